"""The Challenge Handshake Authentication Protocol with MD5 (RFC 1994): its packets and the server side.

Does not know secrets: the owner passes the verdict, by `check_md5` or from RADIUS. The session decides when to
challenge again.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import ClassVar

from l2tpns.errors import WireError
from l2tpns.proto.ppp.automaton import Timers
from l2tpns.proto.ppp.credentials import MD5
from l2tpns.proto.ppp.credentials import Credentials as Credentials
from l2tpns.proto.ppp.frame import DEFAULT_MRU, PACKET_HEADER, Protocol, build_packet, cut_text, parse_packet
from l2tpns.proto.ppp.negotiation import Random

CHALLENGE_SIZE = 16
MD5_SIZE = 16
MAX_NAME = 255  # octets, as many as PAP can carry


class ChapCode(IntEnum):
    CHALLENGE = 1
    RESPONSE = 2
    SUCCESS = 3
    FAILURE = 4


@dataclass(frozen=True, slots=True)
class ChapValue:
    """A Challenge or a Response (RFC 1994 4.1)."""

    code: ChapCode
    identifier: int
    value: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class ChapReply:
    """Success or Failure (RFC 1994 4.2)."""

    identifier: int
    accepted: bool
    message: bytes = b""


def build_value(packet: ChapValue) -> bytes:
    """Return a Challenge or a Response (RFC 1994 4.1)."""
    data = bytes((len(packet.value),)) + packet.value + packet.name
    return build_packet(packet.code, packet.identifier, data)


def parse_value(packet: bytes) -> ChapValue:
    """Parse a Challenge or a Response (RFC 1994 4.1). Raises WireError."""
    code, identifier, data = parse_packet(packet)
    if code not in (ChapCode.CHALLENGE, ChapCode.RESPONSE):
        raise WireError(f"CHAP code {code} has no value")
    if not data or data[0] == 0 or len(data) < 1 + data[0]:  # RFC 1994 4.1: one or more octets
        raise WireError("CHAP value of no size or beyond the packet")
    return ChapValue(ChapCode(code), identifier, data[1 : 1 + data[0]], data[1 + data[0] :])


def build_reply(reply: ChapReply) -> bytes:
    """Return a Success or a Failure (RFC 1994 4.2)."""
    return build_packet(ChapCode.SUCCESS if reply.accepted else ChapCode.FAILURE, reply.identifier, reply.message)


def parse_reply(packet: bytes) -> ChapReply:
    """Parse a Success or a Failure (RFC 1994 4.2). Raises WireError."""
    code, identifier, data = parse_packet(packet)
    if code not in (ChapCode.SUCCESS, ChapCode.FAILURE):
        raise WireError(f"CHAP code {code} is not a reply")
    return ChapReply(identifier, code == ChapCode.SUCCESS, data)


def md5_response(identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """Return the MD5 over the Identifier, the secret and the challenge (RFC 1994 4.1)."""
    return hashlib.md5(bytes((identifier,)) + secret + challenge, usedforsecurity=False).digest()


def check_md5(credentials: Credentials, secret: bytes) -> bool:
    """Return True if the response is right. An empty secret never is: RFC 1994 2.2 requires at least one octet."""
    expected = md5_response(credentials.identifier, secret, credentials.challenge)
    return bool(secret) and hmac.compare_digest(expected, credentials.response)


class _Phase(Enum):
    IDLE = auto()  # no challenge sent yet
    CHALLENGED = auto()
    CHECKING = auto()  # a response waits for its verdict
    ANSWERED = auto()
    EXHAUSTED = auto()


class ChapServer:
    """One authentication and its repetitions. Created when LCP has opened with CHAP. mschap.py has other algorithms."""

    __slots__ = (
        "_challenge",
        "_count",
        "_identifier",
        "_phase",
        "_reply",
        "deadline",
        "dropped",
        "mru",
        "name",
        "random",
        "send",
        "timers",
    )

    protocol: ClassVar[int] = Protocol.CHAP
    method: ClassVar[str] = "chap"
    repeats: ClassVar[bool] = True  # a client can be challenged again at any time
    algorithm: ClassVar[int] = MD5
    challenge_size: ClassVar[int] = CHALLENGE_SIZE
    response_size: ClassVar[int] = MD5_SIZE
    proves: ClassVar[bool] = False  # a Success contains a proof that the server knows the password

    def __init__(
        self, send: Callable[[bytes], None], random: Random, name: bytes, timers: Timers, mru: int = DEFAULT_MRU
    ) -> None:
        self.send = send
        self.mru = mru  # octets of the longest packet sent: a name or message that does not fit is cut
        self.random = random
        self.name = name
        self.timers = timers
        self.deadline: float | None = None
        self.dropped = 0
        self._identifier = random(1)[0]
        self._challenge = b""
        self._count = 0  # challenges sent without a response to any of them
        self._phase = _Phase.IDLE
        self._reply = ChapReply(0, False)

    @property
    def exhausted(self) -> bool:
        """True if Max-Configure challenges had no response."""
        return self._phase is _Phase.EXHAUSTED

    def start(self, now: float) -> None:
        """Send the first challenge."""
        self._count = 0
        self._send_challenge(now)

    def rechallenge(self, now: float) -> None:
        """Challenge again (RFC 1994 section 2: at any time). Does nothing during an authentication."""
        if self._phase is _Phase.ANSWERED:
            self.start(now)

    def timeout(self, now: float) -> None:
        """Send the next challenge, or give up. To be called at `deadline`; does nothing before."""
        if self.deadline is None or now < self.deadline:
            return
        if self._count < self.timers.max_configure:
            self._send_challenge(now)
        else:
            self._phase = _Phase.EXHAUSTED
            self.deadline = None

    def ask_again(self) -> None:
        """Allow at least one more challenge: a response may have been lost while this process could not read."""
        self._count = min(self._count, self.timers.max_configure - 1)

    def receive(self, packet: bytes, now: float) -> Credentials | None:
        """Return the credentials to check, once per challenge. Never raises; malformed packets count as `dropped`."""
        try:
            response = self._parse_response(packet)
        except WireError:
            self._other(packet)
            return None
        if self._phase is _Phase.ANSWERED:
            self._send_reply()  # RFC 1994 4.1: the same answer to the same response, without another check
            return None
        if self._phase is not _Phase.CHALLENGED:
            self.dropped += 1
            return None
        self._phase = _Phase.CHECKING
        self.deadline = None
        return Credentials(
            Protocol.CHAP,
            response.name,
            identifier=response.identifier,
            challenge=self._challenge,
            response=response.value,
            algorithm=self.algorithm,
        )

    def adopt(self, credentials: Credentials) -> None:
        """Take over a response that the LAC has received (RFC 2661 4.4.5); `verdict` answers it."""
        self._identifier = credentials.identifier
        self._challenge = credentials.challenge
        self._phase = _Phase.CHECKING
        self.deadline = None

    def verdict(self, ok: bool, message: bytes = b"", *, proof: bytes = b"", error: int = 0) -> None:
        """Answer the open response. Does nothing if there is none.

        Without the proof that the algorithm needs, there is no Success: the client waits until it is challenged again.
        """
        if self._phase is not _Phase.CHECKING:
            return
        self._phase = _Phase.ANSWERED
        if not ok:
            self._reply = ChapReply(self._identifier, False, self._failure(message, error))
        elif proof or not self.proves:
            self._reply = ChapReply(self._identifier, True, self._success(message, proof))
        else:
            return
        self._send_reply()

    @property
    def answered(self) -> bool:
        """True once there is a verdict, until the next challenge."""
        return self._phase is _Phase.ANSWERED

    @property
    def challenging(self) -> bool:
        """True while a challenge has no response or a response no verdict."""
        return self._phase in (_Phase.CHALLENGED, _Phase.CHECKING)

    def record(self) -> ChapReply:
        """Return the last answer that was sent, without an open challenge: after a restart there is a new one."""
        return ChapReply(self._identifier, True, self._reply.message)

    def restore(self, identifier: int, message: bytes) -> None:
        """Go on after the Success of an earlier process."""
        self._identifier, self._reply = identifier, ChapReply(identifier, True, message)
        self._phase = _Phase.ANSWERED

    def _send_challenge(self, now: float) -> None:
        # RFC 1994 4.1: a new Identifier and a new value each time, also if the last one was lost. A response to an old
        # challenge is dropped.
        self._identifier = (self._identifier + 1) & 0xFF
        self._challenge = self.random(self.challenge_size)
        self._count += 1
        self._phase = _Phase.CHALLENGED
        self.deadline = now + self.timers.restart
        name = cut_text(self.name, self.mru - PACKET_HEADER.size - 1 - self.challenge_size)
        self.send(build_value(ChapValue(ChapCode.CHALLENGE, self._identifier, self._challenge, name)))

    def _send_reply(self) -> None:
        self._send(self._reply)

    def _send(self, reply: ChapReply) -> None:
        message = cut_text(reply.message, self.mru - PACKET_HEADER.size)
        self.send(build_reply(ChapReply(reply.identifier, reply.accepted, message)))

    # What other algorithms do in another way

    def _success(self, message: bytes, proof: bytes) -> bytes:
        """Return the message of a Success."""
        return message

    def _failure(self, message: bytes, error: int) -> bytes:
        """Return the message of a Failure."""
        return message

    def _other(self, packet: bytes) -> None:
        """Handle what is not a response to the challenge."""
        self.dropped += 1

    def _parse_response(self, packet: bytes) -> ChapValue:
        response = parse_value(packet)
        if response.code is not ChapCode.RESPONSE or response.identifier != self._identifier:
            raise WireError("response to another challenge")
        if len(response.value) != self.response_size or len(response.name) > MAX_NAME:
            raise WireError("CHAP response of a wrong size")
        return response
