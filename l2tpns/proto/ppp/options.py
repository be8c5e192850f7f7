"""Configuration options as a list (RFC 1661 section 6): type, length, value. What they mean: lcp.py and ipcp.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from l2tpns.errors import WireError

HEADER_SIZE = 2
MAX_VALUE = 255 - HEADER_SIZE


@dataclass(frozen=True, slots=True)
class Option:
    type: int
    value: bytes = b""


def parse_options(data: bytes) -> list[Option]:
    """All options of a Configure packet, or WireError when one does not fit in it."""
    options = []
    at = 0
    while at < len(data):
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < HEADER_SIZE or at + length > len(data):
            raise WireError(f"option {data[at]} of length {length}, {len(data) - at} octets left")
        options.append(Option(data[at], data[at + HEADER_SIZE : at + length]))
        at += length
    return options


def build_options(options: Iterable[Option]) -> bytes:
    return b"".join(bytes((option.type, HEADER_SIZE + len(option.value))) + option.value for option in options)
