"""Hiding of AVP values with the tunnel's shared secret (RFC 2661 section 4.3).

Which AVPs may be hidden, and where the Random Vector comes from, is avp.py's knowledge.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import md5

from l2tpns.errors import WireError

BLOCK = 16
VECTOR_SIZE = 16  # 4.4.1: at least 16 octets are recommended
MAX_CIPHER = 1017  # an AVP of 1023 octets without its header
MAX_HIDDEN_VALUE = MAX_CIPHER - 2

Random = Callable[[int], bytes]


def hide(number: int, value: bytes, secret: bytes, vector: bytes, random: Random) -> bytes:
    """The hidden form of a value, padded to whole blocks so that its length tells little."""
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
    """The value behind a hidden one; WireError when there can be none, as when the secrets differ."""
    plain = b""
    pad = _digest(number.to_bytes(2, "big") + secret + vector)
    for start in range(0, len(cipher), BLOCK):
        block = cipher[start : start + BLOCK]
        plain += _xor(block, pad)
        pad = _digest(secret + block)
    length = int.from_bytes(plain[:2], "big")
    if length > len(plain) - 2:  # so are the lengths 0 and 1, which have no room for the field itself
        raise WireError("hidden value cannot be uncovered")
    return plain[2 : 2 + length]


def _digest(octets: bytes) -> bytes:
    return md5(octets, usedforsecurity=False).digest()


def _xor(block: bytes, pad: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(block, pad, strict=False))
