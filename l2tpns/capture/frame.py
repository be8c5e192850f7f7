"""A copy of a packet as a UDP payload (docs/interception.md has both forms octet by octet).

`ip`, the form of the manual, is the IP packet and nothing else. `framed` has a header with session, subscriber,
direction, time and a number that shows losses to the receiver. The first octet distinguishes the forms: no IP packet
has version 15. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = 0xF053
VERSION = 1
UP, DOWN = 0, 1  # from the subscriber, to the subscriber

# magic, version, direction, length of the header, tunnel id, session id
_FIRST = struct.Struct("!HBBHHH")
# number of the copy, time in nanoseconds since 1970, lengths of Acct-Session-Id and of user name; these two follow
_SECOND = struct.Struct("!IQBB")
_FIXED = _FIRST.size + _SECOND.size
_MAX_NAME = 255
_MIN_PACKET = {4: 20, 6: 40}  # an IP packet, by version


@dataclass(frozen=True, slots=True)
class Copied:
    """One copy, parsed. The form `ip` has nothing but the packet."""

    packet: bytes
    direction: int | None = None
    tunnel: int = 0
    session: int = 0
    number: int = 0
    time: int = 0  # nanoseconds since 1970, UTC
    acct: str = ""
    user: str = ""


class Framer:
    """Builds the headers of the copies of one session; the constant parts are built once."""

    __slots__ = ("_ids", "_names", "_number", "_starts")

    def __init__(self, tunnel: int, session: int, acct: str, user: str) -> None:
        self._ids = (tunnel, session)
        self._number = 0
        self.name(acct, user)

    def name(self, acct: str, user: str) -> None:
        """Set Acct-Session-Id and user name of the next copies. The count continues."""
        names = [_cut(name) for name in (acct, user)]
        length = _FIXED + sum(map(len, names))
        self._starts = [_FIRST.pack(MAGIC, VERSION, way, length, *self._ids) for way in (UP, DOWN)]
        self._names = (len(names[0]), len(names[1]), b"".join(names))

    def frame(self, direction: int, packet: bytes, time: int) -> bytes:
        """Return the payload for a packet; `time` in nanoseconds since 1970."""
        number = self._number
        self._number = number + 1 & 0xFFFFFFFF
        acct, user, names = self._names
        return b"".join((self._starts[direction], _SECOND.pack(number, time, acct, user), names, packet))


def parse(payload: bytes) -> Copied:
    """Parse a copy in either form. Raises ValueError if it is neither."""
    if not payload:
        raise ValueError("it is empty")
    if len(payload) >= _MIN_PACKET.get(payload[0] >> 4, 0xFFFF):
        return Copied(payload)
    if len(payload) < _FIXED:
        raise ValueError("it is too short")
    magic, version, direction, length, tunnel, session = _FIRST.unpack_from(payload)
    if magic != MAGIC or version != VERSION or direction not in (UP, DOWN):
        raise ValueError("it is of no form that is known here")
    number, time, acct, user = _SECOND.unpack_from(payload, _FIRST.size)
    if not _FIXED + acct + user <= length <= len(payload):  # a later release may append to the header
        raise ValueError("its header has a wrong length")
    names = payload[_FIXED : _FIXED + acct + user]
    return Copied(payload[length:], direction, tunnel, session, number, time, _text(names[:acct]), _text(names[acct:]))


def _cut(name: str) -> bytes:
    """Return UTF-8 of at most 255 octets, not cut inside a character."""
    return name.encode("utf-8", "backslashreplace")[:_MAX_NAME].decode("utf-8", "ignore").encode()


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")
