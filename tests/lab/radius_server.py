"""Script a RADIUS server for tests: it answers, loses, delays, refuses, forges (RFC 2865, RFC 2866).

Its codec is its own, of struct and hashlib only, so that a mistake of the daemon's codec is not made twice.

    with RadiusServer(users={b"alice": User(b"secret", [(8, ip("10.0.0.5"))])}) as server:
        server.lose(2)                       # the next two datagrams vanish
        server.handler = lambda request: []  # or say octet for octet what comes back
        server.requests                      # everything that came, repetitions too
        server.records                       # Accounting-Requests, each once, as a real server writes them down
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from types import TracebackType
from typing import Any, Self

import gevent
from gevent.server import DatagramServer

from l2tpns.proto.ppp.credentials import MS_CHAP_1, MS_CHAP_2, Credentials
from l2tpns.radius.secrets_file import check_ms_chap

MICROSOFT = 311
ACCEPT, REJECT, ACCOUNTING_RESPONSE, CHALLENGE = 2, 3, 5, 11
Attributes = list[tuple[int, bytes]]


@dataclass(frozen=True)
class User:
    """Hold the password of a user, and the attributes of the Accept."""

    password: bytes
    attributes: Attributes = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """Hold a received datagram, decoded."""

    raw: bytes
    peer: tuple[str, int]
    secret: bytes
    attributes: Attributes

    @property
    def code(self) -> int:
        return self.raw[0]

    @property
    def identifier(self) -> int:
        return self.raw[1]

    @property
    def authenticator(self) -> bytes:
        return self.raw[4:20]

    def all(self, number: int) -> list[bytes]:
        return [value for kind, value in self.attributes if kind == number]

    def one(self, number: int) -> bytes | None:
        values = self.all(number)
        return values[0] if values else None

    def number(self, number: int) -> int | None:
        value = self.one(number)
        return None if value is None else int.from_bytes(value, "big")

    def vendor(self, vendor: int, number: int) -> list[bytes]:
        """Return the sub-attributes, one per Vendor-Specific as clients send them."""
        head = struct.pack("!IB", vendor, number)
        return [value[6:] for value in self.all(26) if value.startswith(head)]

    @property
    def password(self) -> bytes | None:
        """Return the User-Password in clear (RFC 2865 5.2)."""
        hidden, last, clear = self.one(2), self.authenticator, b""
        if hidden is None:
            return None
        for at in range(0, len(hidden), 16):
            block = hidden[at : at + 16]
            key = hashlib.md5(self.secret + last).digest()
            clear += bytes(a ^ b for a, b in zip(key, block, strict=True))
            last = block
        return clear.rstrip(b"\0")

    def chap_matches(self, password: bytes) -> bool:
        answer = self.one(3) or b""
        challenge = self.one(60) or self.authenticator
        return answer[1:] == hashlib.md5(answer[:1] + password + challenge).digest()

    def ms_chap(self) -> Credentials | None:
        """Return the response of MS-CHAP, if there is one (RFC 2548 2.1.3, 2.3.2)."""
        for number, algorithm in ((1, MS_CHAP_1), (25, MS_CHAP_2)):
            for value in self.vendor(MICROSOFT, number):
                (challenge,) = self.vendor(MICROSOFT, 11)
                response = value[2:] + value[1:2]
                return Credentials(0xC223, self.one(1) or b"", b"", value[0], challenge, response, algorithm)
        return None

    @property
    def signature_holds(self) -> bool:
        """Return True if there is a correct Message-Authenticator (RFC 2869 5.14)."""
        signature = self.one(80)
        if signature is None:
            return False
        zeroed = join((kind, bytes(16) if kind == 80 else value) for kind, value in self.attributes)
        return signature == hmac.new(self.secret, self.raw[:20] + zeroed, "md5").digest()

    @property
    def accounting_authenticator_holds(self) -> bool:
        """Verify the MD5 over code, id, length, 16 zeros, attributes and secret (RFC 2866 3)."""
        return self.authenticator == hashlib.md5(self.raw[:4] + bytes(16) + self.raw[20:] + self.secret).digest()


def ip(address: str) -> bytes:
    return IPv4Address(address).packed


def u32(number: int) -> bytes:
    return struct.pack("!I", number)


def vsa(vendor: int, *subs: tuple[int, bytes]) -> tuple[int, bytes]:
    """Return one Vendor-Specific with any number of sub-attributes (RFC 2865 5.26)."""
    return 26, struct.pack("!I", vendor) + join(subs)


def join(attributes: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack("!BB", kind, len(value) + 2) + value for kind, value in attributes)


def make_reply(
    request: Request,
    code: int,
    attributes: Iterable[tuple[int, bytes]] = (),
    *,
    sign: bool = True,
    secret: bytes | None = None,
    identifier: int | None = None,
    body: bytes | None = None,
) -> bytes:
    """Return a reply, forged if `secret` or `identifier` differ from the request's. `body` gives the octets raw."""
    key = request.secret if secret is None else secret
    octets = join(attributes) if body is None else body
    if sign and body is None:
        octets = join([(80, bytes(16))]) + octets
    head = struct.pack("!BBH", code, request.identifier if identifier is None else identifier, 20 + len(octets))
    if sign and body is None:
        signature = hmac.new(key, head + request.authenticator + octets, "md5").digest()
        octets = join([(80, signature)]) + octets[18:]
    return head + hashlib.md5(head + request.authenticator + octets + key).digest() + octets


class RadiusServer:
    """Serve two sockets: authentication on `port` and accounting on the next one."""

    def __init__(
        self,
        secret: bytes = b"testing123",
        users: dict[bytes, User] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        sign: bool = True,
    ) -> None:
        self.secret = secret
        self.users = users or {}
        self.host = host
        self.port = port
        self.sign = sign
        self.delay = 0.0
        self.silent = False
        self.handler: Callable[[Request], Iterable[bytes]] = self.answer
        self.requests: list[Request] = []
        self.records: list[Request] = []
        self._lose = 0
        self._seen: dict[tuple[tuple[str, int], bytes], list[bytes]] = {}
        self._servers: list[DatagramServer] = []

    # --- life

    def start(self) -> Self:
        sockets = bind_pair(self.host, self.port)
        self.port = sockets[0].getsockname()[1]
        self._servers = [Listener(sock, self._receive) for sock in sockets]
        for server in self._servers:
            server.start()
        return self

    def stop(self) -> None:
        """Close the sockets. A later start() listens on the same ports again."""
        for server in self._servers:
            server.stop()
        self._servers = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # --- for tests

    def lose(self, count: int) -> None:
        self._lose = count

    def accounting(self, status: int | None = None) -> list[Request]:
        """Return the records of one Acct-Status-Type, or all, in the order of arrival."""
        return [record for record in self.records if status is None or record.number(40) == status]

    def answer(self, request: Request) -> list[bytes]:
        """Return the reply of an honest server."""
        if request.code == 4:
            return [make_reply(request, ACCOUNTING_RESPONSE, sign=False)]
        user = self.users.get(request.one(1) or b"")
        response = request.ms_chap()
        if response is not None:
            return [self.answer_ms_chap(request, response, user)]
        if request.one(3) is not None:
            right = user is not None and request.chap_matches(user.password)
        else:
            right = user is not None and request.password == user.password
        if user is None or not right:
            return [make_reply(request, REJECT, [(18, b"no")], sign=self.sign)]
        return [make_reply(request, ACCEPT, user.attributes, sign=self.sign)]

    def answer_ms_chap(self, request: Request, response: Credentials, user: User | None) -> bytes:
        """Return the reply to a response of MS-CHAP, as FreeRADIUS gives it: R=1 with a new challenge in a Reject."""
        right, proof = check_ms_chap(response, user.password) if user else (False, b"")
        identifier = bytes([response.identifier])
        if user is None or not right:
            error = b"E=691 R=1 C=" + b"0" * 32 + b" V=3 M=no"
            return make_reply(request, REJECT, [vsa(MICROSOFT, (2, identifier + error))], sign=self.sign)
        success = [vsa(MICROSOFT, (26, identifier + proof))] if proof else []
        return make_reply(request, ACCEPT, [*user.attributes, *success], sign=self.sign)

    # --- the wire

    def _receive(self, listener: Listener, raw: bytes, peer: tuple[str, int]) -> None:
        request = Request(raw, peer, self.secret, split(raw[20:]))
        self.requests.append(request)
        if self._lose:
            self._lose -= 1
            return
        if self.silent:
            return
        if self.delay:
            gevent.sleep(self.delay)
        key = (peer, raw[:20])
        replies = self._seen.get(key)
        if replies is None:
            if request.code == 4 and request.accounting_authenticator_holds:
                self.records.append(request)
            replies = self._seen[key] = list(self.handler(request))
        for reply in replies:
            listener.sendto(reply, peer)


class Listener(DatagramServer):  # type: ignore[misc]
    """Serve one socket. Each datagram is handled in a greenlet of its own."""

    def __init__(self, sock: Any, receive: Callable[[Listener, bytes, tuple[str, int]], None]) -> None:
        super().__init__(sock)
        self._receive = receive

    def handle(self, data: bytes, address: tuple[str, int]) -> None:
        self._receive(self, data, address)


def split(octets: bytes) -> Attributes:
    attributes = []
    while octets:
        kind, length = octets[0], octets[1]
        attributes.append((kind, octets[2:length]))
        octets = octets[length:]
    return attributes


def bind_pair(host: str, port: int = 0) -> tuple[Any, Any]:
    """Return two sockets on neighbouring ports, for authentication and accounting."""
    for _ in range(100):
        first, second = (gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        try:
            first.bind((host, port))
            second.bind((host, first.getsockname()[1] + 1))
            return first, second
        except OSError:
            first.close()
            second.close()
            if port:
                raise
    raise OSError("no two neighbouring ports are free")
