"""The seal of nsctl packets from other hosts: 0x9014, a format of l2tpns (docs/nsctl.md).

HMAC-SHA256 (RFC 2104) with a shared key over a time, a nonce and the packet. It authenticates the sender and the time,
and encrypts nothing. An answer has the nonce of its request and the other direction, so that neither a reflected
request nor the answer to another request is accepted.
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
WINDOW = 30.0  # seconds that the two clocks may differ, transmission included
_HEADER = struct.Struct(f"!HBBQ{NONCE_OCTETS}s")  # magic, version, direction, milliseconds since 1970, nonce
MAX_SEALED = _HEADER.size + MAX_PACKET + MAC_OCTETS
_MAX_TIME = 2**64 - 1


class Direction(IntEnum):
    REQUEST = 1
    ANSWER = 2


class Forged(WireError):
    """The packet is not sealed with this key."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed packet: `time` of the sender in seconds since 1970; the nonce of an answer is that of its request."""

    direction: Direction
    time: float
    nonce: bytes
    packet: bytes

    def encode(self, key: bytes) -> bytes:
        """Return the packet sealed with this key."""
        milliseconds = min(max(round(self.time * 1000), 0), _MAX_TIME)
        octets = _HEADER.pack(MAGIC, VERSION, self.direction, milliseconds, self.nonce) + self.packet
        return octets + _mac(octets, key)


def is_sealed(octets: bytes) -> bool:
    """Return True if the octets begin as a sealed packet does."""
    return octets[:2] == MAGIC.to_bytes(2, "big")


def unseal(octets: bytes, key: bytes) -> Sealed:
    """Return what is sealed. Raises Malformed or Forged. Only the size is read before the HMAC is checked."""
    if not _HEADER.size + MAC_OCTETS <= len(octets) <= MAX_SEALED or not is_sealed(octets):
        raise Malformed(f"{len(octets)} octets are not a sealed packet")
    if not hmac.compare_digest(_mac(octets[:-MAC_OCTETS], key), octets[-MAC_OCTETS:]):
        raise Forged("not sealed with the shared key")
    _, version, direction, milliseconds, nonce = _HEADER.unpack_from(octets)
    if version != VERSION or direction not in (Direction.REQUEST, Direction.ANSWER):
        raise Malformed(f"sealed by version {version}, direction {direction}")
    return Sealed(Direction(direction), milliseconds / 1000, nonce, octets[_HEADER.size : -MAC_OCTETS])


def _mac(octets: bytes, key: bytes) -> bytes:
    return hmac.digest(key, octets, "sha256")
