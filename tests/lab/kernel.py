"""What tc, ipset and iptables-legacy say of throttling in a namespace, as an operator would ask them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network

from tests.lab.netns import Namespace

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
    """By the number behind `1:`."""
    text = space.run("tc", "-s", "class", "show", "dev", "tun0")
    return {
        int(number, 16): Bucket(float(rate) * _UNITS[unit], int(octets), int(packets))
        for number, _, rate, unit, octets, packets in _CLASS.findall(text)
    }


def aimed(space: Namespace) -> dict[IPv4Network, int]:
    """Which bucket the set names for each destination."""
    found = re.findall(r"^(\S+) skbmark 0x(\w+)/0xffff0000$", space.run("ipset", "list", SET), re.M)
    return {IPv4Network(network): int(mark, 16) >> 16 for network, mark in found}


def speeds(space: Namespace) -> dict[IPv4Network, float]:
    """kbit/s for each destination that is throttled."""
    there = buckets(space)
    return {network: there[bucket].rate for network, bucket in aimed(space).items()}


def rules(space: Namespace) -> list[str]:
    """Of table mangle."""
    return space.run("iptables-legacy", "-t", "mangle", "-S").splitlines()


def sets(space: Namespace) -> list[str]:
    return space.run("ipset", "list", "-n").split()
