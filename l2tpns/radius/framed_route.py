"""Framed-Route: parsing the text (RFC 2865 5.22).

Prefixes that no server may route are refused here; subscriber/routable.py checks them against this server's networks,
and system/routes.py installs them.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network

from l2tpns.proto.ip.prefixes import special_refusal
from l2tpns.radius.types import FramedRoute

UNNUMBERED = IPv4Address(0)

_ADDRESS = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
_ROUTE = re.compile(rf"\s*({_ADDRESS})(?:/([0-9]{{1,3}}))?(?:\s+({_ADDRESS})((?:\s+-?[0-9]{{1,10}})*))?\s*", re.ASCII)


def parse_framed_route(value: bytes) -> FramedRoute:
    """Parse `prefix[/length] [gateway [metric ...]]`. Raises ValueError."""
    match = _ROUTE.fullmatch(value.rstrip(b"\0").decode("ascii", "replace"))
    if match is None:
        raise ValueError("not `prefix/length gateway metric`")
    address, length, gateway, metrics = match.groups()
    prefix = _prefix(IPv4Address(address), length)
    why = special_refusal(prefix)
    if why:
        raise ValueError(why)
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
    """Return the length of a prefix without one: 8 bits for class A, 16 for B, 24 for C (RFC 2865 5.22)."""
    first = int(address) >> 24
    if first < 128:
        return 8
    return 16 if first < 192 else 24
