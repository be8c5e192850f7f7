"""ICMP errors (RFC 792, RFC 1191): packets, when none may be sent (RFC 1122 3.2.2), and a rate limit.

dataplane/forward.py decides which error a packet gets.
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
    """Return an IP packet with Destination Unreachable `code` for the sender of `about`.

    `mtu` is the next-hop MTU in octets, for FRAGMENTATION_NEEDED (RFC 1191 section 4).
    """
    quoted = about[: _TOTAL - ipv4.HEADER_LENGTH - _ICMP.size]
    total = ipv4.HEADER_LENGTH + _ICMP.size + len(quoted)
    sum_ = ipv4.checksum(_ICMP.pack(_DESTINATION_UNREACHABLE, code, 0, 0, mtu) + quoted)
    destination = about[12:16]
    header = _HEADER.pack(0x45, _TOS, total, 0, 0, _TTL, ipv4.ICMP, 0, source, destination)
    header = header[:10] + ipv4.checksum(header).to_bytes(2, "big") + header[12:]
    return header + _ICMP.pack(_DESTINATION_UNREACHABLE, code, sum_, 0, mtu) + quoted


def may_answer(packet: bytes) -> bool:
    """Return True if an ICMP error may be sent about a packet.

    RFC 1122 3.2.2: none about an ICMP error, a broadcast, a multicast or a later fragment, and none to an address that
    is not a single host.
    """
    version_and_length, _, fragment, protocol, source = ipv4.HEADER.unpack_from(packet)
    if fragment & ipv4.OFFSET or not _is_one_host(source) or not _is_one_host(packet[ipv4.DESTINATION]):
        return False
    if protocol != ipv4.ICMP:
        return True
    header_length = (version_and_length & 0x0F) << 2
    return len(packet) > header_length and packet[header_length] not in _ERRORS


def _is_one_host(address: bytes) -> bool:
    """Return True unless the address is in 0/8, loopback, multicast, class E or broadcast."""
    return 0 < address[0] < 224 and address[0] != 127


class RateLimit:
    """At most `rate` events a second; unused credit is kept for one second. Times are in seconds."""

    __slots__ = ("_credit", "_last")

    def __init__(self) -> None:
        self._credit = 1.0
        self._last = 0.0

    def allow(self, rate: int, now: float) -> bool:
        """Return True and use up one credit, or return False."""
        self._credit = min(float(rate), self._credit + (now - self._last) * rate)
        self._last = now
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True


def is_redirect(packet: bytes) -> bool:
    """Return True if an ICMP packet is a Redirect (RFC 792)."""
    start = (packet[0] & 0x0F) << 2
    return packet[start : start + 1] == bytes([_REDIRECT]) and not packet[6] & 0x1F and not packet[7]
