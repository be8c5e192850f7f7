"""The seal around a packet of nsctl that comes from another host: 0x9014, a format of our own (docs/nsctl.md).

HMAC-SHA256 (RFC 2104) under a key that both ends have, over a time, a nonce and the packet. It shows who asks and that
it is asked now; it hides nothing. The answer bears the request's nonce and the other direction: neither a request sent
back nor the answer to another request passes for it.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

from l2tpns.errors import WireError
from l2tpns.proto.nsctl.packet import MAX_PACKET, Malformed

MAGIC = 0x9014
VERSION = 1
NONCE_OCTETS = 16
MAC_OCTETS = 32
WINDOW = 30.0  # seconds that the two clocks may differ, the way included
_HEADER = struct.Struct(f"!HBBQ{NONCE_OCTETS}s")  # magic, version, direction, milliseconds since 1970, nonce
MAX_SEALED = _HEADER.size + MAX_PACKET + MAC_OCTETS
_MAX_TIME = 2**64 - 1


class Direction(IntEnum):
    REQUEST = 1
    ANSWER = 2


class Forged(WireError):
    """Not sealed with our key."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """`time` is its maker's, in seconds since 1970; an answer bears the nonce of its request."""

    direction: Direction
    time: float
    nonce: bytes
    packet: bytes

    def encode(self, key: bytes) -> bytes:
        milliseconds = min(max(round(self.time * 1000), 0), _MAX_TIME)
        octets = _HEADER.pack(MAGIC, VERSION, self.direction, milliseconds, self.nonce) + self.packet
        return octets + _mac(octets, key)


def is_sealed(octets: bytes) -> bool:
    return octets[:2] == MAGIC.to_bytes(2, "big")


def unseal(octets: bytes, key: bytes) -> Sealed:
    """Raises Malformed or Forged. Nothing is looked at before the HMAC but how long it is."""
    if not _HEADER.size + MAC_OCTETS <= len(octets) <= MAX_SEALED or not is_sealed(octets):
        raise Malformed(f"{len(octets)} octets are no sealed packet")
    if not hmac.compare_digest(_mac(octets[:-MAC_OCTETS], key), octets[-MAC_OCTETS:]):
        raise Forged("not sealed with our key")
    _, version, direction, milliseconds, nonce = _HEADER.unpack_from(octets)
    if version != VERSION or direction not in (Direction.REQUEST, Direction.ANSWER):
        raise Malformed(f"sealed by version {version}, direction {direction}")
    return Sealed(Direction(direction), milliseconds / 1000, nonce, octets[_HEADER.size : -MAC_OCTETS])


def _mac(octets: bytes, key: bytes) -> bytes:
    return hmac.digest(key, octets, "sha256")
