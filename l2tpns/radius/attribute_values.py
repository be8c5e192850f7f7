"""Parsers of the values of reply attributes: what one attribute of the table (attributes.py) puts into an AuthReply.

Each takes all values of one attribute of a packet. It raises WireError when a value that is used has an impossible
length (RFC 2865 5); a value that is well formed and means nothing here is logged and left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from l2tpns.errors import WireError
from l2tpns.radius.framed_route import parse_framed_route
from l2tpns.radius.types import MTUS, Assign, FramedRoute
from l2tpns.runtime.log import Logger

MIN_INTERIM = 60  # RFC 2869 5.16
USER_CHOOSES = IPv4Address("255.255.255.255")  # RFC 2865 5.8
NAS_CHOOSES = IPv4Address("255.255.255.254")
UNNAMED = IPv4Address(0)  # some servers send it where the RFC has 255.255.255.254

CISCO_DNS = "ip:dns-servers"
CISCO_POOL = "ip:addr-pool"
OWN_AVPAIRS = (CISCO_DNS, CISCO_POOL)  # keys that the server itself reads; all others are for plugins
OPTIONAL = re.compile(r"^(\s*[\w-]+:[\w#-]+)\*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Values:
    """All values of one attribute of a packet, in order, and the log for those that cannot be used."""

    name: str
    octets: list[bytes]
    log: Logger

    def integers(self) -> Iterator[int]:
        """Yield the values as numbers. Raises WireError: one of a wrong length invalidates the packet (RFC 2865 5)."""
        for value in self.octets:
            if len(value) != 4:
                raise WireError(f"RADIUS attribute {self.name} of {len(value)} octets where 4 are due")
            yield int.from_bytes(value, "big")

    def addresses(self) -> Iterator[IPv4Address]:
        return map(IPv4Address, self.integers())


Parser = Callable[[Values], Any]


def text(value: bytes) -> str:
    """Return text for people: any octets, without a NUL at the end."""
    return value.rstrip(b"\0").decode("utf-8", "backslashreplace")


# --- parsers for any attribute of their type


def first_integer(values: Values) -> int:
    return next(values.integers())


def first_octets(values: Values) -> bytes:
    return values.octets[0]


def first_text(values: Values) -> str:
    return text(values.octets[0])


def joined_octets(values: Values) -> bytes:
    return b"".join(values.octets)


def all_octets(values: Values) -> tuple[bytes, ...]:
    return tuple(values.octets)


def all_texts(values: Values) -> tuple[str, ...]:
    return tuple(map(text, values.octets))


# --- parsers for one attribute


def framed_address(values: Values) -> tuple[Assign, IPv4Address | None]:
    """Parse Framed-IP-Address. Two addresses are instructions (RFC 2865 5.8); 0.0.0.0 means the pool too."""
    address = next(values.addresses())
    if address == UNNAMED:
        values.log.debug(
            "radius_value_ignored", attribute=values.name, value="0.0.0.0", why="0.0.0.0 is not an address to assign"
        )
        return Assign.POOL, None
    if address == NAS_CHOOSES:
        return Assign.POOL, None
    if address == USER_CHOOSES:
        return Assign.PEER, None
    if not is_host(address):
        raise WireError(f"{values.name} {address} cannot be a subscriber's address")
    return Assign.FIXED, address


def is_host(address: IPv4Address) -> bool:
    """Return whether another host can have this address: 0/8, 127/8, 224/4 and 240/4 have none (RFC 6890)."""
    number = int(address)
    return number >> 24 not in (0, 127) and number >> 29 != 7


def interim_interval(values: Values) -> int:
    """Parse Acct-Interim-Interval, at least a minute (RFC 2869 5.16). 0: this user has no interim records."""
    interval = next(values.integers())
    return max(MIN_INTERIM, interval) if interval else interval


def framed_mtu(values: Values) -> int | None:
    """Parse Framed-MTU. Ignore one outside RFC 2865 5.12: with an MTU of 1 a subscriber would receive no packet."""
    mtu = next(values.integers())
    if mtu in MTUS:
        return mtu
    values.log.warning_limited(
        "radius_value_ignored", attribute=values.name, value=mtu, why="it must be from 64 to 65535"
    )
    return None


def mschap_error(values: Values) -> int:
    """Parse MS-CHAP-Error: an identifier, then `E=691 R=1 ...` (RFC 2548 2.1.5). Return the code, 0 without one."""
    found = re.search(rb"\bE=(\d{1,10})\b", values.octets[0])
    return int(found[1]) if found else 0


def framed_routes(values: Values) -> tuple[FramedRoute, ...]:
    """Parse each Framed-Route. One that is malformed or not allowed is logged and does not refuse the login."""
    routes: dict[FramedRoute, None] = {}
    for value in values.octets:
        try:
            routes[parse_framed_route(value)] = None
        except ValueError as error:
            values.log.warning("framed_route_refused", route=text(value), why=str(error))
    return tuple(routes)


def dns_servers(values: Values) -> tuple[IPv4Address, ...]:
    return hosts(values.addresses(), values.log)


def hosts(addresses: Iterator[IPv4Address], log: Logger) -> tuple[IPv4Address, ...]:
    """Return each address of a name server once, without 0.0.0.0, which names none, and without impossible ones."""
    found = dict.fromkeys(addresses)
    for address in found:
        if not is_host(address) and address != UNNAMED:
            log.warning_limited(
                "radius_value_ignored", attribute="DNS server", value=str(address), why="not a host address"
            )
    return tuple(filter(is_host, found))


# --- Cisco-AVPair


def cisco_avpairs(values: Values) -> tuple[tuple[tuple[str, str], ...], tuple[IPv4Address, ...]]:
    """Parse Cisco-AVPair. Return all pairs, and the name servers that they name."""
    pairs = tuple(pair for value in values.octets for pair in split_avpair(value, values.log))
    words = (value for key, value in pairs if avpair_key(key) == CISCO_DNS)
    return pairs, hosts((address for word in words for address in cisco_addresses(word, values.log)), values.log)


def avpair_key(key: str) -> str:
    """Return the key of an AVPair without the number that distinguishes several of one kind."""
    return key.lower().partition("#")[0]


def cisco_addresses(value: str, log: Logger) -> Iterator[IPv4Address]:
    """Yield the addresses of `ip:dns-servers=192.0.2.1 192.0.2.2`; log each word that is not an address."""
    for word in value.replace(",", " ").split():
        try:
            yield IPv4Address(word)
        except AddressValueError:
            log.warning_limited("radius_value_ignored", attribute=CISCO_DNS, value=word[:80], why="not an IPv4 address")


def split_avpair(value: bytes, log: Logger) -> list[tuple[str, str]]:
    """Return the pairs of `key=value,key2=value2` (manual, Authentication).

    A comma may also stand within a value: what follows it is the next pair only if it begins with a word and `=`.
    Cisco's own attributes (`lcp:interface-config=rate-limit a=b,c=d`) are not lists: the value of one whose key has a
    colon continues up to the next key with a colon. One that is optional to Cisco's servers has `*` for `=`.
    """
    pairs: list[tuple[str, str]] = []
    for piece in text(value).split(","):
        key, equals, rest = OPTIONAL.sub(r"\1=", piece, count=1).partition("=")
        key = key.strip()
        within = pairs and (" " in key or (":" in pairs[-1][0] and ":" not in key))
        if equals and key and not within:
            pairs.append((key, rest.strip()))
        elif pairs:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{piece}")
        elif piece.strip():
            log.warning_limited(
                "avpair_without_key", octets=len(piece)
            )  # its text may name a session that is intercepted
    return pairs
