"""Build IPv4 packets for the tests of the data path, independently of the code under test."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address


def ones_sum(octets: bytes) -> int:
    """Return the sum of RFC 1071: 0xFFFF over data with a correct checksum."""
    total = 0
    for position in range(0, len(octets), 2):
        total += int.from_bytes(octets[position : position + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ip(
    source: str,
    destination: str,
    payload: bytes = b"data",
    *,
    protocol: int = 17,
    df: bool = False,
    fragment: int = 0,
    options: bytes = b"",
    identification: int = 0x1234,
) -> bytes:
    """Return an IPv4 packet. `fragment` is the flags and offset field without DF."""
    length = 20 + len(options)
    word = fragment | (0x4000 if df else 0)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | length >> 2, 0, length + len(payload), identification, word, 64, protocol, 0,
        IPv4Address(source).packed, IPv4Address(destination).packed,
    ) + options  # fmt: skip
    check = ~ones_sum(header) & 0xFFFF
    return header[:10] + check.to_bytes(2, "big") + header[12:] + payload


def tcp_syn(source: str, destination: str, mss: int | None, *, flags: int = 0x02, before: bytes = b"") -> bytes:
    """Return a TCP segment with an MSS option after the options `before`, and a correct checksum."""
    options = before + (struct.pack("!BBH", 2, 4, mss) if mss is not None else b"")
    options += bytes(-len(options) & 3)
    segment = struct.pack("!HHIIBBHHH", 4000, 80, 1, 0, (20 + len(options)) >> 2 << 4, flags, 65535, 0, 0) + options
    pseudo = IPv4Address(source).packed + IPv4Address(destination).packed + struct.pack("!BBH", 0, 6, len(segment))
    check = ~ones_sum(pseudo + segment) & 0xFFFF
    return ip(source, destination, segment[:16] + check.to_bytes(2, "big") + segment[18:], protocol=6)


def tcp_checksum_is_right(packet: bytes) -> bool:
    segment = packet[20:]
    pseudo = packet[12:20] + struct.pack("!BBH", 0, 6, len(segment))
    return ones_sum(pseudo + segment) == 0xFFFF
