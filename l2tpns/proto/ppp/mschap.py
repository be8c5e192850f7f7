"""MS-CHAP version 1 (RFC 2433) and version 2 (RFC 2759): CHAP with other values and other replies.

Does not know secrets: the owner passes the verdict. In version 2 the server proves too that it knows the password, by
the proof that comes with the verdict. There are no second tries, and no change of the password.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from l2tpns.errors import WireError
from l2tpns.proto.ppp.chap import ChapReply, ChapServer
from l2tpns.proto.ppp.credentials import MS_CHAP_1, MS_CHAP_2
from l2tpns.proto.ppp.frame import parse_packet

VALUE_SIZE = 49  # octets of a response, both versions
V1_CHALLENGE, V2_CHALLENGE = 8, 16  # octets
CHANGE_PASSWORD = (5, 6, 7)  # codes (RFC 2433 9, 10, RFC 2759 7)
BAD_LOGIN, CHANGE_FAILED = 691, 709  # error codes (RFC 2759 6)


@dataclass(frozen=True, slots=True)
class Value1:
    """The value of a response of version 1 (RFC 2433 5): two responses of 24 octets."""

    lan_manager: bytes
    nt: bytes
    flags: int  # 1: `nt` is to be used


@dataclass(frozen=True, slots=True)
class Value2:
    """The value of a response of version 2 (RFC 2759 4)."""

    peer_challenge: bytes  # 16 octets
    nt: bytes  # 24 octets
    flags: int


def parse_value1(value: bytes) -> Value1:
    return Value1(value[:24], value[24:48], value[48])


def parse_value2(value: bytes) -> Value2:
    return Value2(value[:16], value[24:48], value[48])


def without_domain(user: bytes) -> bytes:
    """Return the user name without `DOMAIN\\` (RFC 2759 4)."""
    return user.rpartition(b"\\")[2]


class MsChapServer(ChapServer):
    """What both versions have in common. Created when LCP has opened with one of them."""

    __slots__ = ()

    response_size: ClassVar[int] = VALUE_SIZE
    version: ClassVar[int]  # V= of a Failure: how a password could be changed

    def _failure(self, message: bytes, error: int) -> bytes:
        """Return the text of a Failure (RFC 2433 7, RFC 2759 6): no second try, so its challenge is for the form."""
        challenge = self.random(self.challenge_size).hex().upper().encode()
        text = b"E=%d R=0 C=%b V=%d" % (error or BAD_LOGIN, challenge, self.version)
        return text + (b" M=" + message if message else b"")

    def _other(self, packet: bytes) -> None:
        """Refuse a new password, rather than leave the client without an answer."""
        try:
            code, identifier, _ = parse_packet(packet)
        except WireError:
            code = 0
        if code in CHANGE_PASSWORD and self.answered:
            self._send(ChapReply(identifier, False, self._failure(b"", CHANGE_FAILED)))
        else:
            super()._other(packet)


class MsChap1Server(MsChapServer):
    """Version 1, whose DES keys and LAN Manager response are broken."""

    __slots__ = ()

    method: ClassVar[str] = "mschap"
    algorithm: ClassVar[int] = MS_CHAP_1
    challenge_size: ClassVar[int] = V1_CHALLENGE
    version: ClassVar[int] = 2


class MsChap2Server(MsChapServer):
    """Version 2."""

    __slots__ = ()

    method: ClassVar[str] = "mschapv2"
    algorithm: ClassVar[int] = MS_CHAP_2
    challenge_size: ClassVar[int] = V2_CHALLENGE
    version: ClassVar[int] = 3
    proves: ClassVar[bool] = True

    def _success(self, message: bytes, proof: bytes) -> bytes:
        """Return the text of a Success (RFC 2759 5)."""
        return proof + (b" M=" + message if message else b"")
