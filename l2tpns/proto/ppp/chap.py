"""The Challenge Handshake Authentication Protocol with MD5 (RFC 1994): packets of both sides, and the server.

Does not know secrets: `verdict` is said by whoever does, with `check_md5` or by RADIUS. When to challenge again is the
session's decision.
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
from l2tpns.proto.ppp.credentials import Credentials as Credentials
from l2tpns.proto.ppp.frame import DEFAULT_MRU, PACKET_HEADER, Protocol, build_packet, cut_text, parse_packet
from l2tpns.proto.ppp.negotiation import Random

CHALLENGE_SIZE = 16
MD5_SIZE = 16
MAX_NAME = 255  # no longer than PAP could carry


class ChapCode(IntEnum):
    CHALLENGE = 1
    RESPONSE = 2
    SUCCESS = 3
    FAILURE = 4


@dataclass(frozen=True, slots=True)
class ChapValue:
    """A Challenge or a Response (4.1)."""

    code: ChapCode
    identifier: int
    value: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class ChapReply:
    """Success or Failure (4.2)."""

    identifier: int
    accepted: bool
    message: bytes = b""


def build_value(packet: ChapValue) -> bytes:
    data = bytes((len(packet.value),)) + packet.value + packet.name
    return build_packet(packet.code, packet.identifier, data)


def parse_value(packet: bytes) -> ChapValue:
    code, identifier, data = parse_packet(packet)
    if code not in (ChapCode.CHALLENGE, ChapCode.RESPONSE):
        raise WireError(f"CHAP code {code} has no value")
    if not data or data[0] == 0 or len(data) < 1 + data[0]:  # 4.1: one or more octets
        raise WireError("CHAP value of no size or beyond the packet")
    return ChapValue(ChapCode(code), identifier, data[1 : 1 + data[0]], data[1 + data[0] :])


def build_reply(reply: ChapReply) -> bytes:
    return build_packet(ChapCode.SUCCESS if reply.accepted else ChapCode.FAILURE, reply.identifier, reply.message)


def parse_reply(packet: bytes) -> ChapReply:
    code, identifier, data = parse_packet(packet)
    if code not in (ChapCode.SUCCESS, ChapCode.FAILURE):
        raise WireError(f"CHAP code {code} is no reply")
    return ChapReply(identifier, code == ChapCode.SUCCESS, data)


def md5_response(identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """4.1: over the Identifier, the secret and the challenge."""
    return hashlib.md5(bytes((identifier,)) + secret + challenge, usedforsecurity=False).digest()


def check_md5(credentials: Credentials, secret: bytes) -> bool:
    """Section 2.2 asks for a secret of at least one octet: without one nobody is right."""
    expected = md5_response(credentials.identifier, secret, credentials.challenge)
    return bool(secret) and hmac.compare_digest(expected, credentials.response)


class _Phase(Enum):
    IDLE = auto()  # nothing asked yet
    CHALLENGED = auto()
    CHECKING = auto()  # a response waits for its verdict
    ANSWERED = auto()
    EXHAUSTED = auto()


class ChapServer:
    """One authentication and its repeats. Made when LCP has opened with CHAP."""

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

    def __init__(
        self, send: Callable[[bytes], None], random: Random, name: bytes, timers: Timers, mru: int = DEFAULT_MRU
    ) -> None:
        self.send = send
        self.mru = mru  # no packet of ours is longer: a name or message that does not fit is cut
        self.random = random
        self.name = name
        self.timers = timers
        self.deadline: float | None = None
        self.dropped = 0
        self._identifier = random(1)[0]
        self._challenge = b""
        self._count = 0  # challenges sent with no response to any
        self._phase = _Phase.IDLE
        self._reply = ChapReply(0, False)

    @property
    def exhausted(self) -> bool:
        """Max-Configure challenges stayed without a response."""
        return self._phase is _Phase.EXHAUSTED

    def start(self, now: float) -> None:
        """Send the first challenge."""
        self._count = 0
        self._send_challenge(now)

    def rechallenge(self, now: float) -> None:
        """Section 2: authentication may be asked for again at any time; not while it is going on."""
        if self._phase is _Phase.ANSWERED:
            self.start(now)

    def timeout(self, now: float) -> None:
        """To be called when `deadline` has come; earlier calls do nothing."""
        if self.deadline is None or now < self.deadline:
            return
        if self._count < self.timers.max_configure:
            self._send_challenge(now)
        else:
            self._phase = _Phase.EXHAUSTED
            self.deadline = None

    def ask_again(self) -> None:
        """Send one challenge more at least: a response may be lost that came while this process could not read it."""
        self._count = min(self._count, self.timers.max_configure - 1)

    def receive(self, packet: bytes, now: float) -> Credentials | None:
        """The credentials to be checked, once a challenge; whatever the octets are, nothing is raised."""
        try:
            response = self._parse_response(packet)
        except WireError:
            self.dropped += 1
            return None
        if self._phase is _Phase.ANSWERED:
            self._send_reply()  # 4.1: the same answer to the same response, and nobody is asked
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
        )

    def adopt(self, credentials: Credentials) -> None:
        """Proxy authentication (RFC 2661 4.4.5): the LAC has taken the response, `verdict` will answer it."""
        self._identifier = credentials.identifier
        self._challenge = credentials.challenge
        self._phase = _Phase.CHECKING
        self.deadline = None

    def verdict(self, ok: bool, message: bytes = b"") -> None:
        """Answer the response that is open; without one there is nothing to answer."""
        if self._phase is _Phase.CHECKING:
            self._phase = _Phase.ANSWERED
            self._reply = ChapReply(self._identifier, ok, message)
            self._send_reply()

    @property
    def challenging(self) -> bool:
        """A challenge has not been answered yet, or the response not been judged."""
        return self._phase in (_Phase.CHALLENGED, _Phase.CHECKING)

    def record(self) -> ChapReply:
        """The last answer that was given. A challenge that is under way is left out: a successor challenges anew."""
        return ChapReply(self._identifier, True, self._reply.message)

    def restore(self, identifier: int, message: bytes) -> None:
        """Go on after the Success of an earlier process."""
        self._identifier, self._reply = identifier, ChapReply(identifier, True, message)
        self._phase = _Phase.ANSWERED

    def _send_challenge(self, now: float) -> None:
        # 4.1: a new Identifier and a new value each time, also when the last one was lost: a response to an old one
        # is nobody's any more.
        self._identifier = (self._identifier + 1) & 0xFF
        self._challenge = self.random(CHALLENGE_SIZE)
        self._count += 1
        self._phase = _Phase.CHALLENGED
        self.deadline = now + self.timers.restart
        name = cut_text(self.name, self.mru - PACKET_HEADER.size - 1 - CHALLENGE_SIZE)
        self.send(build_value(ChapValue(ChapCode.CHALLENGE, self._identifier, self._challenge, name)))

    def _send_reply(self) -> None:
        message = cut_text(self._reply.message, self.mru - PACKET_HEADER.size)
        self.send(build_reply(ChapReply(self._reply.identifier, self._reply.accepted, message)))

    def _parse_response(self, packet: bytes) -> ChapValue:
        response = parse_value(packet)
        if response.code is not ChapCode.RESPONSE or response.identifier != self._identifier:
            raise WireError("response to no challenge of ours")
        if len(response.value) != MD5_SIZE or len(response.name) > MAX_NAME:
            raise WireError("CHAP response of a wrong size")
        return response
