"""Framed-Route: reading the text, and which prefixes a RADIUS server may hand out (RFC 2865 section 5.22).

Installing the routes is system/routes.py's work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from l2tpns.radius.types import FramedRoute

# A subscriber never owns these. Overlap counts, so 0.0.0.0/0 is refused, and 0.0.0.0/1 and 128.0.0.0/1 with it:
# together they would be a default route.
REFUSED = tuple(
    IPv4Network(prefix)
    for prefix in (
        "0.0.0.0/8",  # this network, RFC 791
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
UNNUMBERED = IPv4Address(0)

_ADDRESS = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
_ROUTE = re.compile(rf"\s*({_ADDRESS})(?:/([0-9]{{1,3}}))?(?:\s+({_ADDRESS})((?:\s+-?[0-9]{{1,10}})*))?\s*", re.ASCII)


def parse_framed_route(value: bytes, refused: Iterable[IPv4Network] = REFUSED) -> FramedRoute:
    """`prefix[/length] [gateway [metric ...]]`; ValueError says what is wrong with it."""
    match = _ROUTE.fullmatch(value.rstrip(b"\0").decode("ascii", "replace"))
    if match is None:
        raise ValueError("not `prefix/length gateway metric`")
    address, length, gateway, metrics = match.groups()
    prefix = _prefix(IPv4Address(address), length)
    for network in refused:
        if prefix.overlaps(network):
            raise ValueError(f"{prefix} is not a subscriber's: it overlaps {network}")
    via = IPv4Address(gateway) if gateway else UNNUMBERED
    if via.is_multicast or via.is_reserved:
        raise ValueError(f"{via} cannot be a gateway")
    metric = int(metrics.split()[0]) if metrics and metrics.strip() else 1
    return FramedRoute(prefix, None if via == UNNUMBERED else via, metric)


def _prefix(address: IPv4Address, length: str | None) -> IPv4Network:
    bits = _classful(address) if length is None else int(length)
    if not 1 <= bits <= 32:
        raise ValueError(f"a prefix length of {bits}")
    return IPv4Network((address, bits), strict=False)


def _classful(address: IPv4Address) -> int:
    """5.22: without a length, 8 bits for class A, 16 for class B, 24 for class C."""
    first = int(address) >> 24
    if first < 128:
        return 8
    return 16 if first < 192 else 24
