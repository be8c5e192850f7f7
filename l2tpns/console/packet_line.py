"""Formats an IP packet as one line for `monitor session`: protocol, addresses, ports and main fields.

A truncated or malformed packet is safe: fields that are missing are left out.
"""

from __future__ import annotations

import struct
from socket import inet_ntoa

SNAP_LENGTH = 128  # octets of a packet that its line is made from: longest IP header, TCP header
ICMP, TCP, UDP = 1, 6, 17
_PROTOCOLS = {2: "IGMP", 4: "IPIP", 41: "IPv6", 47: "GRE", 50: "ESP", 51: "AH", 89: "OSPF", 115: "L2TP", 132: "SCTP"}
_ICMP_TYPES = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
_FLAGS = ((0x02, "S"), (0x10, "A"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x20, "U"), (0x40, "E"), (0x80, "W"))
_PORTS = struct.Struct("!HH")
_TCP = struct.Struct("!HHIIBBH")


def packet_line(packet: bytes, octets: int) -> str:
    """Return the line for a packet of this length, given its first SNAP_LENGTH octets."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return f"no IPv4, length {octets}"
    header = (packet[0] & 0x0F) << 2
    source, destination = inet_ntoa(packet[12:16]), inet_ntoa(packet[16:20])
    protocol, word = packet[9], int.from_bytes(packet[6:8], "big")
    name = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP"}.get(protocol) or _PROTOCOLS.get(protocol, f"protocol {protocol}")
    length = max(octets - header, 0)
    offset = (word & 0x1FFF) << 3
    tail = ""
    if offset or word & 0x2000:
        more = "+" if word & 0x2000 else ""
        tail = f", fragment {int.from_bytes(packet[4:6], 'big')}@{offset}{more}"
    if offset:
        return f"{name} {source} > {destination} length {length}{tail}"
    payload = packet[header:]
    if protocol == TCP and len(payload) >= 16:
        ours, theirs, seq, ack, data, flags, window = _TCP.unpack_from(payload)
        letters = "".join(letter for bit, letter in _FLAGS if flags & bit) or "none"
        acked = f" ack {ack}" if flags & 0x10 else ""
        carried = max(length - (data >> 4 << 2), 0)
        fields = f"{letters} seq {seq}{acked} win {window} length {carried}"
        return f"{name} {source}:{ours} > {destination}:{theirs} {fields}{tail}"
    if protocol == UDP and len(payload) >= 4:
        ours, theirs = _PORTS.unpack_from(payload)
        return f"{name} {source}:{ours} > {destination}:{theirs} length {max(length - 8, 0)}{tail}"
    if protocol == ICMP and len(payload) >= 8:
        return f"{name} {source} > {destination} {_icmp(payload)} length {length}{tail}"
    return f"{name} {source} > {destination} length {length}{tail}"


def _icmp(payload: bytes) -> str:
    kind, code = payload[0], payload[1]
    if kind in (0, 8):
        identifier, number = _PORTS.unpack_from(payload, 4)
        return f"{_ICMP_TYPES[kind]} id {identifier} seq {number}"
    return f"{_ICMP_TYPES.get(kind, f'type {kind}')} code {code}"
