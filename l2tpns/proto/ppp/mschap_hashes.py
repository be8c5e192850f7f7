"""The computations of MS-CHAP version 1 (RFC 2433) and 2 (RFC 2759): what a response must be, and the server's proof.

Only who knows the password needs them: the secrets file, not a server that asks RADIUS. MD4 and DES are broken, and
Python's hashlib has no MD4 with OpenSSL 3, so both come from pycryptodome.
"""

from __future__ import annotations

import hashlib

from Cryptodome.Cipher import DES
from Cryptodome.Hash import MD4

from l2tpns.proto.ppp.mschap import without_domain

_MAGIC_1 = b"Magic server to client signing constant"  # RFC 2759 8.7
_MAGIC_2 = b"Pad to make it do more than one iteration"


def nt_hash(password: bytes) -> bytes:
    """Return NtPasswordHash, 16 octets (RFC 2759 8.3). A password that is not UTF-8 is taken for Latin-1."""
    try:
        text = password.decode()
    except UnicodeDecodeError:
        text = password.decode("latin-1")
    return MD4.new(text.encode("utf-16-le")).digest()


def challenge_response(challenge: bytes, password_hash: bytes) -> bytes:
    """Return 24 octets from a challenge of 8 octets: DES with three keys of seven octets (RFC 2759 8.5)."""
    padded = password_hash.ljust(21, b"\0")
    keys = (_des_key(padded[at : at + 7]) for at in (0, 7, 14))
    return b"".join(DES.new(key, DES.MODE_ECB).encrypt(challenge) for key in keys)


def challenge_hash(peer_challenge: bytes, challenge: bytes, user: bytes) -> bytes:
    """Return the challenge of 8 octets that version 2 makes of both sides' challenges (RFC 2759 8.2)."""
    return hashlib.sha1(peer_challenge + challenge + without_domain(user), usedforsecurity=False).digest()[:8]


def nt_response(challenge: bytes, peer_challenge: bytes, user: bytes, password_hash: bytes) -> bytes:
    """Return the NT-Response of version 2, 24 octets (RFC 2759 8.1)."""
    return challenge_response(challenge_hash(peer_challenge, challenge, user), password_hash)


def authenticator_response(
    challenge: bytes, peer_challenge: bytes, user: bytes, password_hash: bytes, response: bytes
) -> bytes:
    """Return `S=` and 40 hexadecimal digits, by which the server proves that it knows the password (RFC 2759 8.7)."""
    twice = MD4.new(password_hash).digest()
    first = hashlib.sha1(twice + response + _MAGIC_1, usedforsecurity=False).digest()
    hashed = challenge_hash(peer_challenge, challenge, user)
    digest = hashlib.sha1(first + hashed + _MAGIC_2, usedforsecurity=False).hexdigest()
    return b"S=" + digest.upper().encode()


def _des_key(octets: bytes) -> bytes:
    """Spread seven octets over eight, whose lowest bits DES takes for parity and ignores (RFC 2759 8.6)."""
    bits = int.from_bytes(octets, "big")
    return bytes((bits >> shift & 0x7F) << 1 for shift in range(49, -1, -7))
