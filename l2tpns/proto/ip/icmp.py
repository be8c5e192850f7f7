"""ICMP errors that we send (RFC 792, RFC 1191), when none may be sent (RFC 1122 3.2.2), and how many.

Builds packets; forward.py decides when.
"""

from __future__ import annotations

import struct

from l2tpns.proto.ip import ipv4

HOST_UNREACHABLE = 1
FRAGMENTATION_NEEDED = 4
_DESTINATION_UNREACHABLE = 3
_ERRORS = frozenset((3, 4, 5, 11, 12))  # unreachable, source quench, redirect, time exceeded, parameter problem
_TOTAL = 576  # RFC 1812 4.3.2.3: quote as much as fits in this
_TOS = 0xC0  # RFC 1812 4.3.2.5: precedence Internetwork Control
_TTL = 64
_HEADER = struct.Struct("!BBHHHBBH4s4s")
_REDIRECT = 5
_ICMP = struct.Struct("!BBHHH")


def unreachable(code: int, about: bytes, source: bytes, mtu: int = 0) -> bytes:
    """An IP packet with Destination Unreachable `code` for the sender of `about`; `mtu` is RFC 1191's next-hop MTU."""
    quoted = about[: _TOTAL - ipv4.HEADER_LENGTH - _ICMP.size]
    total = ipv4.HEADER_LENGTH + _ICMP.size + len(quoted)
    sum_ = ipv4.checksum(_ICMP.pack(_DESTINATION_UNREACHABLE, code, 0, 0, mtu) + quoted)
    destination = about[12:16]
    header = _HEADER.pack(0x45, _TOS, total, 0, 0, _TTL, ipv4.ICMP, 0, source, destination)
    header = header[:10] + ipv4.checksum(header).to_bytes(2, "big") + header[12:]
    return header + _ICMP.pack(_DESTINATION_UNREACHABLE, code, sum_, 0, mtu) + quoted


def may_answer(packet: bytes) -> bool:
    """RFC 1122 3.2.2: no error about an ICMP error, a broadcast or multicast, a later fragment, or to nobody."""
    version_and_length, _, fragment, protocol, source = ipv4.HEADER.unpack_from(packet)
    if fragment & ipv4.OFFSET or not _is_one_host(source) or not _is_one_host(packet[ipv4.DESTINATION]):
        return False
    if protocol != ipv4.ICMP:
        return True
    header_length = (version_and_length & 0x0F) << 2
    return len(packet) > header_length and packet[header_length] not in _ERRORS


def _is_one_host(address: bytes) -> bool:
    """Neither 0/8, loopback, multicast, class E nor broadcast."""
    return 0 < address[0] < 224 and address[0] != 127


class RateLimit:
    """At most `rate` a second, none saved up beyond one second's worth."""

    __slots__ = ("_credit", "_last")

    def __init__(self) -> None:
        self._credit = 1.0
        self._last = 0.0

    def allow(self, rate: int, now: float) -> bool:
        self._credit = min(float(rate), self._credit + (now - self._last) * rate)
        self._last = now
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True


def is_redirect(packet: bytes) -> bool:
    """Whether an ICMP packet tells its receiver to use another router (RFC 792)."""
    start = (packet[0] & 0x0F) << 2
    return packet[start : start + 1] == bytes([_REDIRECT]) and not packet[6] & 0x1F and not packet[7]
