"""IPv4 packets as bytes: checksum (RFC 1071), fragments (RFC 791 3.2), the MSS option of TCP (RFC 9293 3.7.1).

Nothing here decides where a packet goes or whether it may pass.
"""

from __future__ import annotations

import struct

# version and header length, total length, flags and fragment offset, protocol, source; the destination follows
HEADER = struct.Struct("!BxHxxHxBxx4s")
DESTINATION = slice(16, 20)
HEADER_LENGTH = 20
TCP, UDP, ICMP = 6, 17, 1
DONT_FRAGMENT, MORE_FRAGMENTS, OFFSET = 0x4000, 0x2000, 0x1FFF

_OPTION_END, _OPTION_NOP = 0, 1
_OPTION_COPIED = 0x80  # RFC 791 3.1: the option is copied into every fragment
_TCP_MSS = 2
_TCP_HEADER_LENGTH = 20


def checksum(octets: bytes) -> int:
    """Return the Internet checksum over `octets`, their checksum field included as it is (RFC 1071)."""
    if len(octets) & 1:
        octets += b"\0"
    total: int = sum(struct.unpack(f"!{len(octets) >> 1}H", octets))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def fragment(packet: bytes, mtu: int) -> list[bytes]:
    """Return a packet in fragments of at most `mtu` octets. Its header must be valid; it may be a fragment itself."""
    header_length = (packet[0] & 0x0F) << 2
    data = packet[header_length:]
    word = packet[6] << 8 | packet[7]
    first_offset, more = word & OFFSET, word & MORE_FRAGMENTS
    header, later = packet[:header_length], _header_of_later_fragments(packet[:header_length])
    fragments = []
    position = 0
    while position < len(data):
        room = (mtu - len(header)) & ~7 or 8
        if len(data) - position <= mtu - len(header):
            room = len(data) - position
        last = position + room >= len(data)
        flags = more if last else MORE_FRAGMENTS
        fragments.append(_finish(header, data[position : position + room], flags | first_offset + (position >> 3)))
        position += room
        header = later
    return fragments


def _header_of_later_fragments(header: bytes) -> bytes:
    """Return the header with only those options that are copied into every fragment."""
    if len(header) == HEADER_LENGTH:
        return header
    kept = b""
    position = HEADER_LENGTH
    while position < len(header) and header[position] != _OPTION_END:
        length = 1
        if header[position] != _OPTION_NOP:
            length = header[position + 1] if position + 1 < len(header) else 0
            if length < 2 or position + length > len(header):
                break
            if header[position] & _OPTION_COPIED:
                kept += header[position : position + length]
        position += length
    kept += bytes(-len(kept) & 3)
    return bytes((0x40 | (HEADER_LENGTH + len(kept)) >> 2,)) + header[1:HEADER_LENGTH] + kept


def _finish(header: bytes, data: bytes, flags_and_offset: int) -> bytes:
    """Return a fragment: the header with length, offset and checksum of its own, then the data."""
    octets = bytearray(header)
    struct.pack_into("!H", octets, 2, len(header) + len(data))
    struct.pack_into("!H", octets, 6, flags_and_offset)
    struct.pack_into("!H", octets, 10, 0)
    struct.pack_into("!H", octets, 10, checksum(bytes(octets)))
    return bytes(octets) + data


def clamp_mss(packet: bytes, limit: int) -> bytes:
    """Return a TCP SYN with its MSS option lowered to `limit`; the same object if there is nothing to lower.

    The caller has checked that the packet is TCP and a first fragment. A SYN without the option stays as it is: its
    sender accepts 536 octets (RFC 9293 3.7.1), and no middlebox may raise that.
    """
    tcp = (packet[0] & 0x0F) << 2
    if len(packet) < tcp + _TCP_HEADER_LENGTH:
        return packet
    end = min(tcp + (packet[tcp + 12] >> 4 << 2), len(packet))
    position = tcp + _TCP_HEADER_LENGTH
    while position < end:
        kind = packet[position]
        if kind == _OPTION_NOP:
            position += 1
            continue
        if kind == _OPTION_END or position + 1 >= end:
            break
        length = packet[position + 1]
        if length < 2 or position + length > end:
            break
        if kind == _TCP_MSS and length == 4:
            return _with_mss(packet, tcp + 16, position + 2, limit)
        position += length
    return packet


def _with_mss(packet: bytes, checksum_at: int, mss_at: int, limit: int) -> bytes:
    old = packet[mss_at] << 8 | packet[mss_at + 1]
    if old <= limit:
        return packet
    octets = bytearray(packet)
    struct.pack_into("!H", octets, mss_at, limit)
    # RFC 1624 section 3: HC' = ~(~HC + ~m + m'). The octets of an option at an odd offset count swapped.
    odd = (mss_at - checksum_at) & 1
    new = limit
    if odd:
        old, new = _swapped(old), _swapped(new)
    total = (~(packet[checksum_at] << 8 | packet[checksum_at + 1]) & 0xFFFF) + (~old & 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", octets, checksum_at, ~total & 0xFFFF)
    return bytes(octets)


def _swapped(word: int) -> int:
    return (word & 0xFF) << 8 | word >> 8
