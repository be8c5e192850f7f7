"""PPP as L2TP carries it: protocol numbers, frames without HDLC framing (RFC 1661 sections 2 and 5, RFC 2661 5.0).

An L2TP payload is a PPP frame without flags and FCS. Knows nothing of what a protocol's information means.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from l2tpns.errors import WireError

DEFAULT_MRU = 1500  # RFC 1661 6.1: what everybody can receive until told otherwise
ADDRESS_CONTROL = b"\xff\x03"  # RFC 1662 3.1
PROTOCOL_FIELD = struct.Struct("!H")
PACKET_HEADER = struct.Struct("!BBH")  # code, identifier, length: RFC 1661 section 5, RFC 1334 2.2, RFC 1994 4


class Protocol(IntEnum):
    """The PPP protocol numbers that l2tpns has something to say about."""

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
    """The protocol number and the information of a PPP frame, in every legal form.

    Peers compress the two header fields whether or not it was negotiated (RFC 1661 6.5 and 6.6), so both forms of
    both fields are taken at all times. The least significant bit of a protocol's last octet is 1, of the one before
    it 0 (section 2): that tells one octet from two.
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
    """A frame with nothing compressed: the only form that LCP may take (RFC 1661 6.5), and one that all can read."""
    return ADDRESS_CONTROL + PROTOCOL_FIELD.pack(protocol) + information


def parse_packet(packet: bytes) -> tuple[int, int, bytes]:
    """Code, identifier and data of a control protocol's packet; what follows its Length is padding (RFC 1661 5)."""
    if len(packet) < PACKET_HEADER.size:
        raise WireError(f"{len(packet)} octets are no packet of a PPP control protocol")
    code, identifier, length = PACKET_HEADER.unpack_from(packet)
    if not PACKET_HEADER.size <= length <= len(packet):
        raise WireError(f"Length {length} in a packet of {len(packet)} octets")
    return code, identifier, packet[PACKET_HEADER.size : length]


def build_packet(code: int, identifier: int, data: bytes = b"") -> bytes:
    return PACKET_HEADER.pack(code, identifier, PACKET_HEADER.size + len(data)) + data


def cut_text(text: bytes, size: int) -> bytes:
    """At most `size` octets of a text; a UTF-8 character that does not fit is left out whole."""
    if len(text) <= size:
        return text
    end = max(size, 0)
    while end > 0 and size - end < 3 and _continues(text[end]):
        end -= 1
    return text[: max(size, 0) if _continues(text[end]) else end]  # in what is no UTF-8 there are no characters to keep


def _continues(octet: int) -> bool:
    return octet & 0xC0 == 0x80
