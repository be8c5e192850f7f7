"""Build and check IP packets, and run a small host beyond the server.

Every packet of the checked traffic carries its sender (`flow`), a number, its direction and a CRC over all of it, so a
receiver counts per flow what was lost, duplicated, reordered or changed on the way.
As a program (`python -m tests.lab.traffic --listen 198.51.100.2:7000`) it is the host beyond: a UDP process that checks
what arrives and sends it back; it takes commands as JSON lines on its standard input, see `Host`.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import struct
import sys
import time
import zlib
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

ICMP, TCP, UDP = 1, 6, 17
ECHO_REPLY, UNREACHABLE, ECHO_REQUEST = 0, 3, 8
UP, DOWN, ECHOED = 1, 2, 3

IP_HEADER = struct.Struct("!BBHHHBBH4s4s")
UDP_HEADER = struct.Struct("!HHHH")
ICMP_HEADER = struct.Struct("!BBHHH")
# "l2tp", direction, three octets of room, flow, number, length of all of it, CRC-32 of the rest with this field zero
MARK = struct.Struct("!4sBxxxIIHI")
MAGIC = b"l2tp"
PATTERN = bytes(range(256)) * 257


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) & 1:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(
    source: IPv4Address,
    destination: IPv4Address,
    protocol: int,
    payload: bytes,
    *,
    identification: int = 0,
    ttl: int = 64,
    tos: int = 0,
    flags: int = 0,
    options: bytes = b"",
) -> bytes:
    """Return an IPv4 packet. `flags` is the 16-bit field of flags and fragment offset (0x4000 = do not fragment)."""
    words = 5 + len(options) // 4
    fields = (0x40 | words, tos, words * 4 + len(payload), identification, flags, ttl, protocol)
    header = IP_HEADER.pack(*fields, 0, source.packed, destination.packed) + options
    return IP_HEADER.pack(*fields, checksum(header), source.packed, destination.packed) + options + payload


def udp(
    source: IPv4Address,
    destination: IPv4Address,
    sport: int,
    dport: int,
    data: bytes,
    *,
    identification: int = 0,
    ttl: int = 64,
    flags: int = 0,
) -> bytes:
    """Return an IPv4 packet with a UDP datagram, checksum included."""
    length = 8 + len(data)
    pseudo = source.packed + destination.packed + struct.pack("!BBH", 0, UDP, length)
    check = checksum(pseudo + UDP_HEADER.pack(sport, dport, length, 0) + data) or 0xFFFF
    datagram = UDP_HEADER.pack(sport, dport, length, check) + data
    return ipv4(source, destination, UDP, datagram, identification=identification, ttl=ttl, flags=flags)


def icmp_echo(
    source: IPv4Address,
    destination: IPv4Address,
    identifier: int,
    sequence: int,
    data: bytes = b"",
    *,
    kind: int = ECHO_REQUEST,
    flags: int = 0,
) -> bytes:
    """Return an IPv4 packet with an ICMP echo request (or reply)."""
    message = ICMP_HEADER.pack(kind, 0, 0, identifier, sequence) + data
    message = ICMP_HEADER.pack(kind, 0, checksum(message), identifier, sequence) + data
    return ipv4(source, destination, ICMP, message, flags=flags)


def tcp_syn(source: IPv4Address, destination: IPv4Address, sport: int, dport: int, mss: int | None = None) -> bytes:
    """Return a TCP SYN, with an MSS option if one is given: for tests of MSS clamping."""
    options = b"" if mss is None else struct.pack("!BBH", 2, 4, mss)
    header = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, (5 + len(options) // 4) << 4, 2, 65535, 0, 0) + options
    pseudo = source.packed + destination.packed + struct.pack("!BBH", 0, TCP, len(header))
    check = checksum(pseudo + header)
    return ipv4(source, destination, TCP, header[:16] + check.to_bytes(2, "big") + header[18:])


@dataclass(frozen=True, slots=True)
class Packet:
    """Hold the fields of a received IPv4 packet. `payload` follows the IP header."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    identification: int
    flags: int
    ttl: int
    payload: bytes

    @property
    def ports(self) -> tuple[int, int]:
        return int.from_bytes(self.payload[:2], "big"), int.from_bytes(self.payload[2:4], "big")

    @property
    def icmp(self) -> tuple[int, int, int, int]:
        """Return type, code, identifier and sequence (of other types: the two halves of their word)."""
        kind, code, _, identifier, sequence = ICMP_HEADER.unpack_from(self.payload)
        return kind, code, identifier, sequence

    @property
    def fragment_offset(self) -> int:
        return (self.flags & 0x1FFF) * 8

    @property
    def more_fragments(self) -> bool:
        return bool(self.flags & 0x2000)


def parse(packet: bytes) -> Packet:
    """Decode an IPv4 packet and verify its checksums (header, ICMP, UDP). Raises ValueError with the fault."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        raise ValueError(f"not IPv4: {packet[:20].hex()}")
    words, _, length, identification, flags, ttl, protocol, _, source, destination = IP_HEADER.unpack_from(packet)
    header = (words & 15) * 4
    if header < 20 or not header <= length <= len(packet):
        raise ValueError(f"lengths: header {header}, total {length}, octets {len(packet)}")
    if checksum(packet[:header]) != 0:
        raise ValueError("IP header checksum")
    payload = packet[header:length]
    if flags & 0x3FFF == 0:
        if protocol == ICMP and checksum(payload) != 0:
            raise ValueError("ICMP checksum")
        if protocol == UDP and payload[6:8] != b"\0\0":
            if checksum(source + destination + struct.pack("!BBH", 0, UDP, len(payload)) + payload) != 0:
                raise ValueError("UDP checksum")
    return Packet(IPv4Address(source), IPv4Address(destination), protocol, identification, flags, ttl, payload)


def numbered(direction: int, flow: int, number: int, size: int) -> bytes:
    """Return UDP data of `size` octets (at least the 22 of the mark)."""
    size = max(size, MARK.size)
    filler = PATTERN[number & 0xFF : (number & 0xFF) + size - MARK.size]
    crc = zlib.crc32(MARK.pack(MAGIC, direction, flow, number, size, 0) + filler)
    return MARK.pack(MAGIC, direction, flow, number, size, crc) + filler


def turned(data: bytes, direction: int) -> bytes:
    """Return the same marked data with another direction, as the echo sends it back."""
    magic, _, flow, number, size, _ = MARK.unpack_from(data)
    crc = zlib.crc32(MARK.pack(magic, direction, flow, number, size, 0) + data[MARK.size :])
    return MARK.pack(magic, direction, flow, number, size, crc) + data[MARK.size :]


@dataclass(slots=True)
class Flow:
    """Count what one receiver saw of one flow in one direction."""

    received: int = 0
    octets: int = 0
    doubled: int = 0
    overtaken: int = 0
    highest: int = -1
    seen: int = 0  # bit n: number highest - n was there; 128 are remembered

    def take(self, number: int, octets: int) -> None:
        ahead = number - self.highest
        if ahead > 0:
            self.seen = (self.seen << min(ahead, 128) | 1) & (1 << 128) - 1
            self.highest = number
        elif ahead > -128 and self.seen >> -ahead & 1:
            self.doubled += 1
            return
        else:
            self.overtaken += 1
            self.seen |= 1 << -ahead if ahead > -128 else 0
        self.received += 1
        self.octets += octets

    def lost(self, sent: int) -> int:
        return sent - self.received


class Checker:
    """Count marked UDP data per (direction, flow)."""

    def __init__(self) -> None:
        self.flows: dict[tuple[int, int], Flow] = {}
        self.corrupt = 0
        self.foreign = 0  # data without our mark

    def take(self, data: bytes) -> tuple[int, int] | None:
        """Return the direction and flow of good data, None if it has no mark or was changed on the way."""
        if len(data) < MARK.size or data[:4] != MAGIC:
            self.foreign += 1
            return None
        magic, direction, flow, number, size, crc = MARK.unpack_from(data)
        if size != len(data) or zlib.crc32(MARK.pack(magic, direction, flow, number, size, 0) + data[22:]) != crc:
            self.corrupt += 1
            return None
        key = (direction, flow)
        state = self.flows.get(key)
        if state is None:
            state = self.flows[key] = Flow()
        state.take(number, size)
        return key

    def received(self, direction: int) -> int:
        return sum(flow.received for (way, _), flow in self.flows.items() if way == direction)

    def report(self) -> dict[str, Any]:
        """Return totals, and the counts of each flow as [direction, flow, received, octets, doubled, overtaken]."""
        rows = [
            [way, flow, state.received, state.octets, state.doubled, state.overtaken]
            for (way, flow), state in self.flows.items()
        ]
        return {
            "received": sum(row[2] for row in rows),
            "corrupt": self.corrupt,
            "foreign": self.foreign,
            "flows": rows,
        }


class Host:
    """Run the host beyond the server: check marked data, echo it, and flood on demand.

    Commands, one JSON object a line on standard input, each answered by one line on standard output:
    {"do": "report"} -> Checker.report();  {"do": "reset"} -> {};  {"do": "quit"} -> {}
    {"do": "send", "to": [["10.0.0.1", 7000, flow], ...], "count": n, "size": 64, "rate": packets/s or 0} -> {"sent": n}
    """

    def __init__(self, address: tuple[str, int], *, echo: bool = True) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.socket.bind(address)
        self.socket.setblocking(False)
        self.echo = echo
        self.checker = Checker()
        self.unsent = 0

    def run(self) -> None:
        watched: list[Any] = [self.socket, sys.stdin]
        rest = b""
        print(json.dumps({"listening": list(self.socket.getsockname())}), flush=True)
        while True:
            ready, _, _ = select.select(watched, (), ())
            if self.socket in ready:
                self.drain()
            if sys.stdin in ready:
                octets = os.read(sys.stdin.fileno(), 65536)
                if not octets:
                    watched.remove(sys.stdin)  # no more commands: go on echoing until killed
                *lines, rest = (rest + octets).split(b"\n")
                for line in lines:
                    command = json.loads(line)
                    print(json.dumps(self.obey(command)), flush=True)
                    if command["do"] == "quit":
                        return

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["do"]:
            case "report":
                return self.checker.report() | {"unsent": self.unsent}
            case "reset":
                self.checker = Checker()
                self.unsent = 0
            case "send":
                return {"sent": self.send(command)}
        return {}

    def drain(self, limit: int = 256) -> None:
        try:
            for _ in range(limit):
                data, peer = self.socket.recvfrom(65535)
                if self.checker.take(data) is not None and self.echo:
                    self.put(turned(data, ECHOED), peer)
        except BlockingIOError:
            pass

    def send(self, command: dict[str, Any]) -> int:
        """Send `count` rounds to all receivers at the requested rate. Serves incoming packets meanwhile."""
        rate = float(command.get("rate", 0))
        begun = time.monotonic()
        sent = 0
        for number in range(int(command["count"])):
            for address, port, flow in command["to"]:
                self.put(numbered(DOWN, flow, number, int(command.get("size", 64))), (address, port))
                sent += 1
                if rate and sent % 16 == 0:
                    time.sleep(max(0.0, begun + sent / rate - time.monotonic()))
                if sent % 64 == 0:
                    self.drain()
        return sent

    def put(self, data: bytes, to: tuple[str, int]) -> None:
        try:
            self.socket.sendto(data, to)
        except OSError:
            self.unsent += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--listen", default="0.0.0.0:7000", metavar="ADDRESS:PORT")
    parser.add_argument("--no-echo", action="store_true", help="count only")
    arguments = parser.parse_args()
    address, _, port = arguments.listen.rpartition(":")
    Host((address, int(port)), echo=not arguments.no_echo).run()


if __name__ == "__main__":
    main()
