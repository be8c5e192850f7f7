"""Hostile octets for the fuzzer: recorded datagrams with faults, and random octets.

Everything comes from one `Random`, so a seed gives the same octets again. Sends nothing. The result is anything from
nearly correct to noise.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

SEEDS = Path(__file__).parent / "seeds"
CONTROL = 0xC802
PPP_PROTOCOLS = (0xC021, 0xC023, 0xC223, 0x8021, 0x8057, 0x80FD, 0x0021, 0x0057, 0x003D, 0xC025, 0xC02B, 0x00FD)
MESSAGES = (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16)
ODD_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 16, 17, 127, 128, 255, 256, 1016, 1017, 1018, 1023)
CONTROL_HEAD = struct.Struct("!HHHHHH")
AVP_HEAD = struct.Struct("!HHH")
IP_HEAD = struct.Struct("!BBHHHBBH4s4s")
NOTHING = b""


def committed_seeds() -> list[bytes]:
    """Return the datagrams of real clients in seeds/: one a line in hexadecimal; `#` begins a comment."""
    found = []
    for file in sorted(SEEDS.glob("*.hex")):
        found += [bytes.fromhex(line) for line in file.read_text().split("\n") if line and not line.startswith("#")]
    return found


class Mutator:
    """Makes datagrams, AVPs, PPP frames and IP packets from seeds."""

    def __init__(self, random: Random, seeds: Iterable[bytes]) -> None:
        self.random = random
        self.seeds = list(seeds)
        self.bodies = [seed[12:] for seed in self.seeds if seed[:1] >= b"\x80" and len(seed) > 12]
        self.frames = [frame for seed in self.seeds if seed[:1] < b"\x80" and (frame := _frame_of(seed))]
        self._ways: tuple[Callable[[bytes], bytes], ...] = (
            self.flip_bits,
            self.cut,
            self.overwrite,
            self.insert,
            self.spoil_length,
            self.splice,
        )

    # Whole datagrams

    def datagram(self) -> bytes:
        """Return a datagram of any kind that may arrive at the port."""
        choice = self.random.random()
        if choice < 0.10:
            return self.random.randbytes(self.random.choice((0, 1, 2, 5, 6, 11, 12, 13, 20, 64, 300, 1400)))
        if choice < 0.102:
            return self.random.randbytes(self.random.choice((4095, 4096, 4097, 9000, 60000)))
        if choice < 0.35:
            return self.control(self.body())
        if choice < 0.50:
            return self.data(self.frame())
        return self.spoil(self.random.choice(self.seeds))

    def control(self, body: bytes, tunnel_id: int = 0, session_id: int = 0) -> bytes:
        """Return a control message whose header is nearly always correct."""
        random = self.random
        flags, length = CONTROL, 12 + len(body)
        if random.random() < 0.1:
            flags ^= 1 << random.randrange(16)
        if random.random() < 0.1:
            length = random.choice((0, 11, 12, length - 1, length + 1, 65535))
        ns = random.choice((0, 0, 1, 2, random.getrandbits(16)))
        return CONTROL_HEAD.pack(flags, length & 0xFFFF, tunnel_id, session_id, ns, random.choice((0, 1, ns))) + body

    def data(self, frame: bytes, tunnel_id: int | None = None, session_id: int | None = None) -> bytes:
        """Return a data message with any mix of the L, S, O and P bits; lengths and offsets are mostly correct."""
        random = self.random
        tunnel_id = random.getrandbits(16) if tunnel_id is None else tunnel_id
        session_id = random.getrandbits(16) if session_id is None else session_id
        flags = 2 | random.choice((0, 0, 0x4000, 0x0800, 0x0200, 0x0100, 0x4B00, 0x4800, 0x30F0))
        ids = struct.pack("!HH", tunnel_id, session_id)
        if flags & 0x0800:
            ids += struct.pack("!HH", random.getrandbits(16), 0)
        if flags & 0x0200:
            offset = random.choice((0, 1, 4, 16, 1000, 65535))
            ids += offset.to_bytes(2, "big") + bytes(min(offset, 16))
        if not flags & 0x4000:
            return flags.to_bytes(2, "big") + ids + frame
        length = 4 + len(ids) + len(frame)
        if random.random() < 0.2:
            length = random.choice((0, 1, 6, 8, length - 1, length + 1, 65535)) & 0xFFFF
        return struct.pack("!HH", flags, length) + ids + frame

    # AVPs

    def body(self) -> bytes:
        """Return the AVPs of a control message; never empty."""
        random = self.random
        choice = random.random()
        if choice < 0.15:
            kind = random.choice(MESSAGES) if random.random() < 0.5 else random.getrandbits(16)
            avps = [struct.pack("!HHHH", random.choice((0x8008, 0x0008, 0xC008)), 0, 0, kind)]
            avps += [self.avp() for _ in range(random.randrange(8))]
            return NOTHING.join(avps)
        avps = _split_avps(random.choice(self.bodies))
        if choice < 0.25:
            return self.spoil(NOTHING.join(avps)) or b"\0"
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            at = random.randrange(len(avps))
            match random.randrange(10):
                case 0:
                    avps[at] = self.avp()
                case 1:
                    avps.insert(at, self.avp())
                case 2:
                    avps.append(avps[at])
                case 3:
                    random.shuffle(avps)
                case 4 if len(avps) > 1:
                    del avps[at]
                case 5:
                    avps[at] = _with_length(avps[at], random.choice(ODD_LENGTHS))
                case 6:  # a value of another size, with the right length
                    value = random.randbytes(random.choice(ODD_LENGTHS) % 1018)
                    avps[at] = _with_length(avps[at][:6] + value, 6 + len(value))
                case 7:
                    avps[at] = bytes((avps[at][0] ^ random.choice((0x80, 0x40, 0x20, 0x04)),)) + avps[at][1:]
                case 8:
                    avps[at] = avps[at][:2] + random.randbytes(2) + avps[at][4:]
                case _:
                    avps[at] = self.flip_bits(avps[at])
        if random.random() < 0.002:
            avps += [self.avp()] * 600
        return NOTHING.join(avps)[:4000] or b"\0"

    def avp(self) -> bytes:
        """Return one AVP of any type and vendor, often hidden, often with a wrong length."""
        random = self.random
        value = random.randbytes(random.choice((0, 1, 2, 4, 8, 10, 16, 18, 32, 100, 1017)))
        flags = random.choice((0x8000, 0x0000, 0xC000, 0x4000, 0x3C00))
        length = random.choice(ODD_LENGTHS) if random.random() < 0.2 else 6 + len(value)
        vendor = random.choice((0, 0, 0, 9, 311, 2636, 65535))
        return (
            AVP_HEAD.pack(flags | length, vendor, random.choice((random.randrange(48), random.getrandbits(16)))) + value
        )

    # PPP

    def ip_frame(self, packet: bytes) -> bytes:
        return self.random.choice((b"\xff\x03\x00\x21", b"\x00\x21", b"\x21", b"\xff\x03\x21")) + packet

    def frame(self) -> bytes:
        """Return the frame of a data message: LCP, authentication, NCPs, anything."""
        random = self.random
        choice = random.random()
        if choice < 0.35:
            return self.spoil(random.choice(self.frames))
        if choice < 0.40:
            return random.randbytes(random.randrange(12))
        protocol = random.choice(PPP_PROTOCOLS) if random.random() < 0.9 else random.getrandbits(16)
        data = NOTHING.join(self.option() for _ in range(random.randrange(6)))
        if random.random() < 0.3:
            data = random.randbytes(random.choice((0, 1, 4, 5, 16, 17, 21, 255, 256, 1400)))
        length = 4 + len(data)
        if random.random() < 0.15:
            length = random.choice((0, 1, 3, 4, 5, length + 1, 65535))
        code = random.randrange(14) if random.random() < 0.9 else random.randrange(256)
        head = struct.pack("!HBBH", protocol, code, random.randrange(256), length & 0xFFFF)
        return (b"\xff\x03" if random.random() < 0.8 else b"") + head + data

    def option(self) -> bytes:
        """Return a configuration option of LCP or IPCP, often with a wrong length."""
        random = self.random
        value = random.randbytes(random.choice((0, 1, 2, 3, 4, 4, 5, 16)))
        kind = random.choice((1, 2, 3, 4, 5, 7, 8, 13, 17, 129, 131, random.randrange(256)))
        length = random.choice((0, 1, 2, 255)) if random.random() < 0.1 else 2 + len(value)
        return bytes((kind, length)) + value

    # IP

    def packet(self, source: bytes, destination: bytes) -> bytes:
        """Return an IPv4 packet with any options, fragment fields, TCP options and lengths."""
        random = self.random
        words = random.choice((5, 5, 5, 6, 15, 4, 0))
        protocol = random.choice((1, 6, 6, 17, 0, 41, 50, 255))
        payload = random.randbytes(random.choice((0, 1, 7, 8, 19, 20, 40, 200, 1300)))
        if protocol == 6 and len(payload) >= 20:  # a SYN with options
            payload = payload[:12] + bytes((random.randrange(256), 2)) + payload[14:20] + self.option() + payload[20:]
        total = 20 + len(payload)
        if random.random() < 0.2:
            total = random.choice((0, 19, 20, 21, total - 1, total + 1, 65535))
        flags = random.choice((0, 0, 0x4000, 0x2000, 0x1FFF, random.getrandbits(16)))
        if random.random() < 0.1:
            source = random.randbytes(4)
        head = [(random.choice((4, 4, 4, 4, 6, 0)) << 4) | words, 0, total & 0xFFFF, random.getrandbits(16), flags]
        octets = IP_HEAD.pack(*head, random.choice((0, 1, 64, 255)), protocol, 0, source, destination)
        octets = octets[:10] + _checksum(octets).to_bytes(2, "big") + octets[12:] + payload
        return self.spoil(octets) if random.random() < 0.1 else octets

    # Ways to spoil octets

    def spoil(self, octets: bytes) -> bytes:
        for _ in range(self.random.choice((1, 1, 2, 3))):
            octets = self.random.choice(self._ways)(octets)
        return octets

    def flip_bits(self, octets: bytes) -> bytes:
        if not octets:
            return octets
        changed = bytearray(octets)
        for _ in range(self.random.choice((1, 1, 2, 8))):
            changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
        return bytes(changed)

    def cut(self, octets: bytes) -> bytes:
        return octets[: self.random.randrange(len(octets) + 1)]

    def overwrite(self, octets: bytes) -> bytes:
        at = self.random.randrange(len(octets) + 1)
        with_ = self.random.choice((b"\0", b"\xff", b"\0\0", b"\xff\xff", b"\x7f", b"\x80\0", self.random.randbytes(4)))
        return octets[:at] + with_ + octets[at + len(with_) :]

    def insert(self, octets: bytes) -> bytes:
        at = self.random.randrange(len(octets) + 1)
        return octets[:at] + self.random.randbytes(self.random.choice((1, 2, 4, 100))) + octets[at:]

    def spoil_length(self, octets: bytes) -> bytes:
        """Change the second pair of octets, where L2TP, PPP and IP keep their lengths, or one octet anywhere."""
        if len(octets) < 8:
            return octets
        if self.random.random() < 0.5:
            return (
                octets[:2] + struct.pack("!H", self.random.choice((0, 1, 4, 11, 12, 13, 0x7FFF, 0xFFFF))) + octets[4:]
            )
        at = self.random.randrange(len(octets))
        return octets[:at] + bytes((self.random.choice((0, 1, 2, 127, 255)),)) + octets[at + 1 :]

    def splice(self, octets: bytes) -> bytes:
        other = self.random.choice(self.seeds)
        return octets[: self.random.randrange(len(octets) + 1)] + other[self.random.randrange(len(other) + 1) :]


def addressed(datagram: bytes, tunnel_id: int, session_id: int) -> bytes:
    """Return the datagram with these ids in its header, at the place its flags imply (RFC 2661 3.1)."""
    at = 4 if datagram[:1] >= b"\x40" else 2
    if len(datagram) < at + 4:
        return datagram
    return datagram[:at] + struct.pack("!HH", tunnel_id, session_id) + datagram[at + 4 :]


def _split_avps(body: bytes) -> list[bytes]:
    avps = []
    while len(body) >= 6:
        length = max(6, int.from_bytes(body[:2], "big") & 0x3FF)
        avps.append(body[:length])
        body = body[length:]
    return avps or [bytes.fromhex("8008 0000 0000 0006")]


def _with_length(avp: bytes, length: int) -> bytes:
    return bytes((avp[0] & 0xFC | length >> 8, length & 0xFF)) + avp[2:]


def _frame_of(datagram: bytes) -> bytes:
    at = datagram.find(b"\xff\x03")
    return datagram[at:] if at >= 0 else b""


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
