"""A client of dynamic authorization: builds requests octet by octet, and checks the answers (RFC 5176)."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gevent
from gevent import socket

from tests.lab import PATIENCE
from tests.lab.radius_server import join, split

DISCONNECT, COA = 40, 43
Attribute = tuple[int, bytes]


def request(
    code: int, attributes: Iterable[Attribute], secret: bytes, *, identifier: int = 1, signed: bool = False
) -> bytes:
    """Return a request; `signed`: with a Message-Authenticator as its first attribute."""
    body = join(attributes)
    if signed:
        body = b"\x50\x12" + bytes(16) + body
    head = struct.pack("!BBH", code, identifier, 20 + len(body))
    if signed:
        signature = hmac.new(secret, head + bytes(16) + body, "md5").digest()
        body = b"\x50\x12" + signature + body[18:]
    return head + hashlib.md5(head + bytes(16) + body + secret).digest() + body


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose authenticators hold."""

    code: int
    attributes: list[Attribute]
    raw: bytes

    @property
    def cause(self) -> int:
        """Return the Error-Cause, 0 without one."""
        return next((int.from_bytes(value, "big") for kind, value in self.attributes if kind == 101), 0)

    def all(self, kind: int) -> list[bytes]:
        return [value for each, value in self.attributes if each == kind]


class DaeClient:
    """One socket of a client. `ask` returns the answer, `silence` asserts that there is none."""

    def __init__(self, server: tuple[str, int], secret: bytes, source: str = "127.0.0.1") -> None:
        self.server, self.secret = server, secret
        self.socket: Any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((source, 0))
        self.identifier = 0

    def ask(self, code: int, *attributes: Attribute, signed: bool = False) -> Answer:
        self.identifier = (self.identifier + 1) & 0xFF
        return self.send(request(code, attributes, self.secret, identifier=self.identifier, signed=signed))

    def send(self, octets: bytes) -> Answer:
        """Send a request and return its answer, whose authenticators are checked."""
        self.socket.sendto(octets, self.server)
        self.socket.settimeout(PATIENCE)
        raw, source = self.socket.recvfrom(4096)
        assert source == self.server and raw[1] == octets[1] and int.from_bytes(raw[2:4], "big") == len(raw)
        expected = hashlib.md5(raw[:4] + octets[4:20] + raw[20:] + self.secret).digest()
        assert raw[4:20] == expected, "the Response Authenticator is wrong"
        attributes = split(raw[20:])
        for kind, value in attributes:
            if kind == 80:
                zeroed = join((each, bytes(16) if each == 80 else octets_) for each, octets_ in attributes)
                signature = hmac.new(self.secret, raw[:4] + octets[4:20] + zeroed, "md5").digest()
                assert value == signature, "the Message-Authenticator is wrong"
        return Answer(raw[0], attributes, raw)

    def quiet(self, octets: bytes, after: Any) -> None:
        """Send a datagram that gets no answer. `after()` must hold once it has been read."""
        self.socket.sendto(octets, self.server)
        with gevent.Timeout(PATIENCE):
            while not after():
                gevent.sleep(0.01)
        self.socket.settimeout(0.05)
        try:
            found = self.socket.recv(4096)
        except (TimeoutError, BlockingIOError):
            return
        raise AssertionError(f"there is an answer: {found.hex()}")
