"""The Password Authentication Protocol (RFC 1334 section 2): its packets and the server side.

Does not check passwords: the owner passes the verdict. Has no timer: the client retransmits (2.2.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from l2tpns.errors import WireError
from l2tpns.proto.ppp.credentials import Credentials as Credentials
from l2tpns.proto.ppp.frame import DEFAULT_MRU, PACKET_HEADER, Protocol, build_packet, cut_text, parse_packet

MAX_FIELD = 255  # Peer-ID-Length, Passwd-Length and Msg-Length are one octet each


class PapCode(IntEnum):
    REQUEST = 1
    ACK = 2
    NAK = 3


@dataclass(frozen=True, slots=True)
class PapReply:
    identifier: int
    accepted: bool
    message: bytes = b""


def parse_request(packet: bytes) -> Credentials:
    """Parse an Authenticate-Request (RFC 1334 2.2.1). Raises WireError if it is anything else."""
    code, identifier, data = parse_packet(packet)
    if code != PapCode.REQUEST:
        raise WireError(f"PAP code {code} to a server")
    name, rest = _take(data)
    password, _ = _take(rest)
    return Credentials(Protocol.PAP, name, password, identifier)


def build_reply(reply: PapReply) -> bytes:
    """Return an Authenticate-Ack or -Nak (RFC 1334 2.2.2)."""
    code = PapCode.ACK if reply.accepted else PapCode.NAK
    return build_packet(code, reply.identifier, _counted(cut_text(reply.message, MAX_FIELD)))


def parse_reply(packet: bytes) -> PapReply:
    """Parse an Authenticate-Ack or -Nak (RFC 1334 2.2.2). Some servers leave out Msg-Length if there is no message."""
    code, identifier, data = parse_packet(packet)
    if code not in (PapCode.ACK, PapCode.NAK):
        raise WireError(f"PAP code {code} to a client")
    message = _take(data)[0] if data else b""
    return PapReply(identifier, code == PapCode.ACK, message)


class PapServer:
    """One authentication. Created when LCP has opened with PAP, so that requests in other phases have no receiver."""

    __slots__ = ("_asked", "_reply", "dropped", "mru", "send")

    deadline: float | None = None  # the client retransmits (RFC 1334 2.2.1): the server has no timer

    protocol: ClassVar[int] = Protocol.PAP
    method: ClassVar[str] = "pap"
    repeats: ClassVar[bool] = False  # a client cannot be asked to authenticate once more
    challenging: ClassVar[bool] = False
    proves: ClassVar[bool] = False
    exhausted: ClassVar[bool] = False

    def __init__(self, send: Callable[[bytes], None], mru: int = DEFAULT_MRU) -> None:
        self.send = send
        self.mru = mru  # octets of the longest packet sent: a message that does not fit is cut
        self.dropped = 0
        self._asked: Credentials | None = None
        self._reply: PapReply | None = None

    def start(self, now: float) -> None:
        """Do nothing: the client begins (2.2.1)."""

    def rechallenge(self, now: float) -> None:
        """Do nothing: PAP authenticates once."""

    def receive(self, packet: bytes, now: float) -> Credentials | None:
        """Return the credentials to check, once. Never raises; malformed packets count as `dropped`."""
        try:
            credentials = parse_request(packet)
        except WireError:
            self.dropped += 1
            return None
        if self._reply is not None:
            # RFC 1334 2.2.1: the answer may have been lost: the same code again, without another check.
            self._send_reply(PapReply(credentials.identifier, self._reply.accepted, self._reply.message))
            return None
        first = self._asked is None
        if self._asked is None or (credentials.name, credentials.password) == (self._asked.name, self._asked.password):
            # Each repeat has a new Identifier, and the answer copies the last one (RFC 1334 2.2.2).
            self._asked = credentials
        return credentials if first else None

    def ask_again(self) -> None:
        """Do nothing: the client retransmits."""

    def adopt(self, credentials: Credentials) -> None:
        """Take over a request that the LAC has received (RFC 2661 4.4.5); `verdict` answers it."""
        self._asked = credentials

    def verdict(self, ok: bool, message: bytes = b"", *, proof: bytes = b"", error: int = 0) -> None:
        """Answer the open request. Does nothing if there is none. `proof` and `error` are for MS-CHAP."""
        if self._asked is not None and self._reply is None:
            self._reply = PapReply(self._asked.identifier, ok, message)
            self._asked = Credentials(Protocol.PAP, self._asked.name)  # no password is kept longer than needed
            self._send_reply(self._reply)

    def record(self) -> PapReply:
        """Return the answer that was sent, for a restored session: the client may repeat its request."""
        return self._reply or PapReply(0, True)

    def restore(self, identifier: int, message: bytes) -> None:
        """Go on after the Ack of an earlier process: a repeat of the request gets the same answer."""
        self._reply = PapReply(identifier, True, message)

    def _send_reply(self, reply: PapReply) -> None:
        message = cut_text(reply.message, self.mru - PACKET_HEADER.size - 1)
        self.send(build_reply(PapReply(reply.identifier, reply.accepted, message)))

    def timeout(self, now: float) -> None:
        """Do nothing: there is no timer. The session calls all authenticators alike."""


def _counted(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def _take(data: bytes) -> tuple[bytes, bytes]:
    if not data or len(data) < 1 + data[0]:
        raise WireError("PAP field beyond the packet")
    return data[1 : 1 + data[0]], data[1 + data[0] :]
