"""Lists of configuration options: type, length, value (RFC 1661 section 6). lcp.py and ipcp.py interpret them."""

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
    """Return the options of a Configure packet. Raises WireError if one does not fit in it."""
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
    """Return the data of a Configure packet."""
    return b"".join(bytes((option.type, HEADER_SIZE + len(option.value))) + option.value for option in options)
