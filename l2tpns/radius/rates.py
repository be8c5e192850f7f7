"""Rates in the dialects of several vendors, for a session in kbit/s.

All of them count in bit/s. "In" is from the subscriber, as in accounting: what MikroTik calls `rx`, Huawei and Cisco
input, WISPr up, Ascend data rate. Each attribute of a reply makes OfferedRates; `chosen` says which of them apply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address

from l2tpns.radius import attribute_values
from l2tpns.radius.attribute_values import Values, avpair_key, text
from l2tpns.radius.types import OfferedRates

UNITS = {"": 1, "k": 1000, "m": 1000_000, "g": 1000_000_000}
NUMBER = re.compile(r"(\d{1,12})([kmg]?)", re.ASCII | re.IGNORECASE)
INTERFACE_CONFIG = "lcp:interface-config"
RATE_LIMIT = re.compile(r"rate-limit\s+(input|output)\s+(?:access-group\s+\S+\s+)?(\d{1,12})(?:\s.*)?", re.ASCII | re.I)
MAX_RATE = 10_000_000  # kbit/s; more is no limit that this server could enforce


def kbits(bits: int) -> int:
    """Return a rate in kbit/s, 0 for none: rounded, at least 1, at most MAX_RATE."""
    return min(max(1, (bits + 500) // 1000), MAX_RATE) if bits else 0


def rate_in(source: str) -> Callable[[Values], tuple[OfferedRates, ...]]:
    """Return a parser of an integer that limits what comes from the subscriber."""
    return lambda values: (OfferedRates(source, rate_in=kbits(next(values.integers()))),)


def rate_out(source: str) -> Callable[[Values], tuple[OfferedRates, ...]]:
    """Return a parser of an integer that limits what is sent to the subscriber."""
    return lambda values: (OfferedRates(source, rate_out=kbits(next(values.integers()))),)


def mikrotik_rate_limit(values: Values) -> tuple[OfferedRates, ...] | None:
    """Parse `RX[/TX] [bursts, priority ...]`. TX is RX if it is missing; what follows the rates is not supported."""
    word = text(values.octets[0]).split(maxsplit=1)[:1]
    found = [NUMBER.fullmatch(part) for part in word[0].split("/")] if word else []
    if not 1 <= len(found) <= 2 or None in found:
        why = "it must begin with RATE or RATE/RATE, such as 512k/10M"
        values.log.warning_limited("radius_value_ignored", attribute=values.name, value=str(word)[:80], why=why)
        return None
    rates = [kbits(int(each[1]) * UNITS[each[2].lower()]) for each in found if each]
    return (OfferedRates("MikroTik", rates[0], rates[-1]),)


Pairs = tuple[tuple[str, str], ...]


def cisco_avpairs(values: Values) -> tuple[Pairs, tuple[IPv4Address, ...], tuple[OfferedRates, ...]]:
    """Parse Cisco-AVPair. Return all pairs, the name servers and the rates that they name."""
    pairs, servers = attribute_values.cisco_avpairs(values)
    return pairs, servers, cisco_rate_limits(pairs)


def cisco_rate_limits(pairs: Sequence[tuple[str, str]]) -> tuple[OfferedRates, ...]:
    """Return the rates of `lcp:interface-config#1=rate-limit output 512000 8000 8000 conform-action ...`."""
    found = []
    for key, value in pairs:
        limit = RATE_LIMIT.fullmatch(value.strip()) if avpair_key(key) == INTERFACE_CONFIG else None
        if limit:
            rate = kbits(int(limit[2]))
            inbound = limit[1].lower() == "input"
            found.append(OfferedRates("Cisco", rate if inbound else None, None if inbound else rate))
    return tuple(found)


def chosen(offers: Sequence[OfferedRates]) -> tuple[int | None, int | None]:
    """Return the rates that apply, from and to the subscriber; None: no attribute names it.

    Each direction has the rate of the first attribute that names it, in the order of the table of attributes.
    """
    inward = next((offer.rate_in for offer in offers if offer.rate_in is not None), None)
    outward = next((offer.rate_out for offer in offers if offer.rate_out is not None), None)
    return inward, outward
