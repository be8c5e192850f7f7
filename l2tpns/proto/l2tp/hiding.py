"""Hiding of AVP values with the tunnel's shared secret (RFC 2661 section 4.3).

avp.py decides which AVPs may be hidden, and keeps the Random Vector.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import md5

from l2tpns.errors import WireError

BLOCK = 16
LENGTH_SIZE = 2  # octets of the length that precedes the value
VECTOR_SIZE = 16  # 4.4.1: at least 16 octets are recommended
MAX_CIPHER = 1017  # an AVP of 1023 octets without its header
MAX_HIDDEN_VALUE = MAX_CIPHER - 2

Random = Callable[[int], bytes]


def hide(number: int, value: bytes, secret: bytes, vector: bytes, random: Random) -> bytes:
    """Return the hidden form of a value, padded to whole blocks so that its length reveals little."""
    plain = len(value).to_bytes(2, "big") + value
    plain += random(min(-len(plain) % BLOCK, MAX_CIPHER - len(plain)))
    cipher = b""
    pad = _digest(number.to_bytes(2, "big") + secret + vector)
    for start in range(0, len(plain), BLOCK):
        block = _xor(plain[start : start + BLOCK], pad)
        cipher += block
        pad = _digest(secret + block)
    return cipher


def unhide(number: int, cipher: bytes, secret: bytes, vector: bytes) -> bytes:
    """Return the value of a hidden one. Raises WireError if there is none, as when the secrets differ.

    The length is in the first block. Padding after the value is not decoded.
    """
    if len(cipher) < LENGTH_SIZE:
        raise WireError("is hidden and cannot be uncovered")
    block = cipher[:BLOCK]
    plain = _xor(block, _digest(number.to_bytes(2, "big") + secret + vector))
    end = LENGTH_SIZE + int.from_bytes(plain[:LENGTH_SIZE], "big")
    if end > len(cipher):
        raise WireError("is hidden and cannot be uncovered")
    for start in range(BLOCK, end, BLOCK):
        pad = _digest(secret + block)
        block = cipher[start : start + BLOCK]
        plain += _xor(block, pad)
    return plain[LENGTH_SIZE:end]


def _digest(octets: bytes) -> bytes:
    return md5(octets, usedforsecurity=False).digest()


def _xor(block: bytes, pad: bytes) -> bytes:
    size = len(block)
    return (int.from_bytes(block, "big") ^ int.from_bytes(pad[:size], "big")).to_bytes(size, "big")
