"""Packets of dynamic authorization: Disconnect and Change-of-Authorization (RFC 5176). Pure.

A request is signed as an Accounting-Request is (RFC 2866 3), its answer as that of an Access-Request (RFC 2865 3), with
the request's authenticator. The Message-Authenticator of a request is computed as if its authenticator were zeros (RFC
5176 3.4).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import IntEnum
from hashlib import md5

from l2tpns.errors import L2tpnsError, WireError
from l2tpns.radius.attributes import BY_NAME, Key
from l2tpns.radius.framing import HEADER
from l2tpns.radius.reply_packet import ReplyPacket, decode_reply
from l2tpns.radius.request_packet import UNSIGNED, ZEROS, encode_attributes, signature_holds, signed_body

DISCONNECT_REQUEST, DISCONNECT_ACK, DISCONNECT_NAK = 40, 41, 42
COA_REQUEST, COA_ACK, COA_NAK = 43, 44, 45
NAMES = {DISCONNECT_REQUEST: "disconnect", COA_REQUEST: "coa"}

PROXY_STATE, STATE = BY_NAME["Proxy-State"].number, BY_NAME["State"].number
EVENT_TIMESTAMP = BY_NAME["Event-Timestamp"].number
ERROR_CAUSE = BY_NAME["Error-Cause"].number


class ErrorCause(IntEnum):
    """Error-Cause (RFC 5176 3.5)."""

    UNSUPPORTED_ATTRIBUTE = 401
    MISSING_ATTRIBUTE = 402
    NAS_MISMATCH = 403
    INVALID_REQUEST = 404
    UNSUPPORTED_SERVICE = 405
    INVALID_VALUE = 407
    PROHIBITED = 501
    NO_SESSION = 503
    NOT_REMOVABLE = 504
    RESOURCES = 506


class Refused(L2tpnsError):
    """A request gets a NAK with this cause. The text is for the log."""

    def __init__(self, cause: ErrorCause, why: str) -> None:
        super().__init__(why)
        self.cause = cause


@dataclass(slots=True)
class DynamicRequest:
    """A request whose signature holds."""

    packet: ReplyPacket
    secret: bytes

    @property
    def disconnects(self) -> bool:
        return self.packet.code == DISCONNECT_REQUEST

    @property
    def authenticator(self) -> bytes:
        return self.packet.raw[4 : HEADER.size]

    @property
    def identity(self) -> bytes:
        """Return what a repetition of this request has in common with it, and no other request of its sender."""
        return self.packet.raw[1:2] + self.authenticator

    def values(self, key: Key) -> list[bytes]:
        return self.packet.values(key)

    @property
    def timestamp(self) -> int | None:
        """Return the Event-Timestamp in seconds of Unix time, None without a valid one (RFC 2869 5.3)."""
        found = self.values(EVENT_TIMESTAMP)
        return int.from_bytes(found[0], "big") if found and len(found[0]) == 4 else None

    def answer(self, cause: ErrorCause | None, now: int) -> bytes:
        """Return the ACK, or the NAK with a cause. `now` is Unix time, for the Event-Timestamp (RFC 5176 3)."""
        code = self.packet.code + (1 if cause is None else 2)
        attributes: dict[Key, list[bytes]] = {STATE: self.values(STATE)[:1], PROXY_STATE: self.values(PROXY_STATE)}
        if cause is not None:
            attributes[ERROR_CAUSE] = [cause.to_bytes(4, "big")]
        if self.values(EVENT_TIMESTAMP):
            attributes[EVENT_TIMESTAMP] = [now.to_bytes(4, "big")]
        body = encode_attributes(attributes)
        length = HEADER.size + len(body) + (len(UNSIGNED) if self.packet.signed else 0)
        head = HEADER.pack(code, self.packet.identifier, length, self.authenticator)
        if self.packet.signed:
            body = signed_body(head, body, self.secret)
        authenticator = md5(head + body + self.secret, usedforsecurity=False).digest()
        return head[: -len(authenticator)] + authenticator + body


def parse_request(datagram: bytes, secret: bytes, *, signed: bool) -> DynamicRequest:
    """Return a request. Raises WireError if it gets no answer: it is malformed, or its sender has another secret.

    With `signed` it must have a Message-Authenticator.
    """
    packet = decode_reply(datagram)
    if packet.code not in (DISCONNECT_REQUEST, COA_REQUEST):
        raise WireError(f"RADIUS code {packet.code} is not a request of dynamic authorization")
    raw = packet.raw
    expected = md5(raw[:4] + ZEROS + raw[HEADER.size :] + secret, usedforsecurity=False).digest()
    if not hmac.compare_digest(expected, raw[4 : HEADER.size]):
        raise WireError("its authenticator does not hold: is the secret the same?")
    if packet.signed:
        if not signature_holds(packet, secret, ZEROS):
            raise WireError("its Message-Authenticator does not hold")
    elif signed:
        raise WireError("it has no Message-Authenticator, which radius_dae_require_message_authenticator demands")
    return DynamicRequest(packet, secret)
