"""PPP frames in L2TP: protocol numbers, frames and control packets (RFC 1661 sections 2 and 5, RFC 2661 5.0).

An L2TP payload is a PPP frame without flags and FCS. Knows nothing of what the information of a protocol means.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from l2tpns.errors import WireError

DEFAULT_MRU = 1500  # RFC 1661 6.1: octets that every peer can receive unless negotiated otherwise
ADDRESS_CONTROL = b"\xff\x03"  # RFC 1662 3.1
PROTOCOL_FIELD = struct.Struct("!H")
PACKET_HEADER = struct.Struct("!BBH")  # code, identifier, length: RFC 1661 section 5, RFC 1334 2.2, RFC 1994 4


class Protocol(IntEnum):
    """The PPP protocol numbers that the code compares; names.py has all names."""

    IP = 0x0021
    MULTILINK = 0x003D
    IPV6 = 0x0057
    IPCP = 0x8021
    IPV6CP = 0x8057
    CCP = 0x80FD
    LCP = 0xC021
    PAP = 0xC023
    CHAP = 0xC223


def parse_frame(payload: bytes) -> tuple[int, bytes]:
    """Return protocol number and information of a PPP frame in any legal form. Raises WireError if it has no protocol.

    Peers compress the two header fields whether or not that was negotiated (RFC 1661 6.5, 6.6), so both forms of both
    fields are accepted at all times. The least significant bit of the last octet of a protocol is 1 and that of the
    octet before it 0 (RFC 1661 section 2), which distinguishes one octet from two.
    """
    start = 2 if payload[:2] == ADDRESS_CONTROL else 0
    if len(payload) > start and payload[start] & 1:
        return payload[start], payload[start + 1 :]
    if len(payload) < start + 2:
        raise WireError("PPP frame without a protocol")
    (protocol,) = PROTOCOL_FIELD.unpack_from(payload, start)
    if not protocol & 1:
        raise WireError(f"PPP protocol {protocol:#06x} is even")
    return protocol, payload[start + 2 :]


def build_frame(protocol: int, information: bytes) -> bytes:
    """Return a frame with nothing compressed: the only legal form of LCP, readable by every peer (RFC 1661 6.5)."""
    return ADDRESS_CONTROL + PROTOCOL_FIELD.pack(protocol) + information


def parse_packet(packet: bytes) -> tuple[int, int, bytes]:
    """Return code, identifier and data of a control packet, without padding (RFC 1661 section 5). Raises WireError."""
    if len(packet) < PACKET_HEADER.size:
        raise WireError(f"{len(packet)} octets are not a packet of a PPP control protocol")
    code, identifier, length = PACKET_HEADER.unpack_from(packet)
    if not PACKET_HEADER.size <= length <= len(packet):
        raise WireError(f"Length {length} in a packet of {len(packet)} octets")
    return code, identifier, packet[PACKET_HEADER.size : length]


def build_packet(code: int, identifier: int, data: bytes = b"") -> bytes:
    """Return a packet of a control protocol (RFC 1661 section 5)."""
    return PACKET_HEADER.pack(code, identifier, PACKET_HEADER.size + len(data)) + data


def cut_text(text: bytes, size: int) -> bytes:
    """Return at most `size` octets of a text, not cut inside a UTF-8 character."""
    if len(text) <= size:
        return text
    end = max(size, 0)
    while end > 0 and size - end < 3 and _continues(text[end]):
        end -= 1
    return text[: max(size, 0) if _continues(text[end]) else end]  # if it is not UTF-8 there are no characters to keep


def _continues(octet: int) -> bool:
    return octet & 0xC0 == 0x80
