"""Read the state of throttling in a namespace as an operator would: with tc, ipset and iptables-legacy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network

from tests.lab.netns import Namespace, wait_until

SET = "l2tpns_throttle"
_UNITS = {"bit": 0.001, "Kbit": 1.0, "Mbit": 1000.0, "Gbit": 1_000_000.0}
_CLASS = re.compile(r"class htb 1:(\w+) root leaf (\w+): .*?rate (\d+)(\w+) .*\n Sent (\d+) bytes (\d+) pkt")


@dataclass(frozen=True, slots=True)
class Bucket:
    """An HTB class: rate in kbit/s, and what went through it."""

    rate: float
    octets: int
    packets: int


def buckets(space: Namespace) -> dict[int, Bucket]:
    """Return the HTB classes of tun0 by their minor number, which is behind `1:`."""
    text = space.run("tc", "-s", "class", "show", "dev", "tun0")
    return {
        int(number, 16): Bucket(float(rate) * _UNITS[unit], int(octets), int(packets))
        for number, _, rate, unit, octets, packets in _CLASS.findall(text)
    }


def aimed(space: Namespace) -> dict[IPv4Network, int]:
    """Return the number of the bucket that the set names for each destination."""
    found = re.findall(r"^(\S+) skbmark 0x(\w+)/0xffff0000$", space.run("ipset", "list", SET), re.M)
    return {IPv4Network(network): int(mark, 16) >> 16 for network, mark in found}


def speeds(space: Namespace) -> dict[IPv4Network, float]:
    """Return kbit/s for each destination that is throttled. Raises TimeoutError.

    tc and ipset are asked one after the other: an answer counts only if nothing has changed in between.
    """
    found: dict[IPv4Network, float] = {}

    def consistent() -> bool:
        nonlocal found
        before, there = aimed(space), buckets(space)
        if aimed(space) != before or not there.keys() >= set(before.values()):
            return False
        found = {network: there[bucket].rate for network, bucket in before.items()}
        return True

    wait_until(consistent, what="the buckets of all destinations")
    return found


def rules(space: Namespace) -> list[str]:
    """Return the rules of the table mangle."""
    return space.run("iptables-legacy", "-t", "mangle", "-S").splitlines()


def sets(space: Namespace) -> list[str]:
    """Return the names of all sets."""
    return space.run("ipset", "list", "-n").split()
