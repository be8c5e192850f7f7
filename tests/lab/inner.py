"""Read IP packets from captures without tshark: those within L2TP, as a LAC sends and receives them, and plain ones.

lines = inner(Path("wan.pcap"), lns="192.0.2.1")          # [(time, "up" or "down", packet), ...]
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from socket import inet_aton

_ETHERNET, _IP, _UDP = 14, 20, 8
_L2TP = 1701


def frames(capture: Path) -> Iterator[tuple[float, bytes]]:
    """Yield (time, Ethernet frame) of each record of a pcap file of this machine's tcpdump."""
    octets = capture.read_bytes()
    assert octets[:4] == bytes.fromhex("d4c3b2a1"), "no pcap of microseconds and little endian"
    at = 24
    while at + 16 <= len(octets):
        seconds, micros, length, whole = struct.unpack_from("<IIII", octets, at)
        assert length == whole, "tcpdump has cut a packet"
        yield seconds + micros / 1e6, octets[at + 16 : at + 16 + length]
        at += 16 + length


def inner(capture: Path, lns: str) -> list[tuple[float, str, bytes]]:
    """Return (time, direction, IP packet) of each data message with an IP packet in it."""
    server = inet_aton(lns)
    found = []
    for when, packet in _whole(plain(capture)):
        if packet[9] != 17 or _L2TP not in struct.unpack_from("!HH", packet, _IP):
            continue
        message = packet[_IP + _UDP :]
        flags = int.from_bytes(message[:2], "big")
        if flags & 0x8000:
            continue
        at = 6 + (2 if flags & 0x4000 else 0) + (4 if flags & 0x0800 else 0)
        assert not flags & 0x0200, "an offset is not expected"
        if message[at : at + 2] == b"\xff\x03":
            at += 2
        if message[at : at + 2] == b"\x00\x21":
            found.append((when, "down" if packet[12:16] == server else "up", message[at + 2 :]))
    return found


def _whole(packets: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Reassemble fragments. Each packet gets the time of its last fragment."""
    begun: dict[bytes, list[bytes]] = {}
    for when, packet in packets:
        word = int.from_bytes(packet[6:8], "big")
        if word & 0x3FFF:
            pieces = begun.setdefault(packet[4:6] + packet[9:10] + packet[12:20], [])
            pieces.append(packet)
            pieces.sort(key=lambda piece: int.from_bytes(piece[6:8], "big") & 0x1FFF)
            if int.from_bytes(pieces[-1][6:8], "big") & 0x2000:
                continue
            length = sum(len(piece) - _IP for piece in pieces)
            last = ((int.from_bytes(pieces[-1][6:8], "big") & 0x1FFF) << 3) + len(pieces[-1]) - _IP
            if length != last:
                continue
            del begun[packet[4:6] + packet[9:10] + packet[12:20]]
            packet = pieces[0][:_IP] + b"".join(piece[_IP:] for piece in pieces)
        yield when, packet


def plain(capture: Path) -> list[tuple[float, bytes]]:
    """Return (time, IP packet) of each frame with IPv4 in it, without the padding of short ones."""
    return [
        (when, frame[_ETHERNET:][: int.from_bytes(frame[_ETHERNET + 2 : _ETHERNET + 4], "big")])
        for when, frame in frames(capture)
        if frame[12:14] == b"\x08\x00"
    ]


def forwarded(packet: bytes, hops: int = 1) -> bytes:
    """Return the packet as it is after so many routers: TTL and header checksum are different."""
    header = bytearray(packet[: (packet[0] & 15) << 2])
    header[8] -= hops
    header[10:12] = b"\0\0"
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    header[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(header) + packet[len(header) :]
