"""Arithmetic of IPv4 prefixes, and the special prefixes that are never routed to a subscriber."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network

# No subscriber owns these. Overlap counts, so 0.0.0.0/0 is refused, and 0.0.0.0/1 and 128.0.0.0/1, which together would
# be a default route.
SPECIAL = tuple(
    IPv4Network(prefix)
    for prefix in (
        "0.0.0.0/8",  # this network, RFC 791
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)


def span(network: IPv4Network) -> tuple[int, int]:
    """Return the first and the last address, as numbers: to compare networks by them is ten times as fast."""
    first = int(network.network_address)
    return first, first | 0xFFFFFFFF >> network.prefixlen


_SPECIAL_SPANS = tuple((special, span(special)) for special in SPECIAL)


def special_refusal(network: IPv4Network) -> str:
    """Return why no server may route this network to a subscriber, "" if one may."""
    first, last = span(network)
    for special, (begin, end) in _SPECIAL_SPANS:
        if first <= end and begin <= last:
            return f"{network} is not a subscriber's: it overlaps {special}"
    return ""


def subtract(networks: Iterable[IPv4Network], holes: Iterable[IPv4Network]) -> Iterator[IPv4Network]:
    """Yield the networks without the holes, as networks."""
    holes = list(holes)
    for network in networks:
        pieces = [network]
        for hole in holes:
            if hole.overlaps(network):
                pieces = [rest for piece in pieces for rest in _without(piece, hole)]
        yield from pieces


def _without(piece: IPv4Network, hole: IPv4Network) -> Iterable[IPv4Network]:
    if not piece.overlaps(hole):
        return (piece,)
    if hole.supernet_of(piece):
        return ()
    return piece.address_exclude(hole)
