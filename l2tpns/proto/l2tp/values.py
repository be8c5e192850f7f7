"""The values of AVPs: classes for those of several fields, and codecs (RFC 2661 4.4, RFC 3145 section 2).

avp.py says which AVP has which codec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Generic, TypeVar

from l2tpns.errors import ProtocolError
from l2tpns.proto.l2tp.codes import ErrorCode, StopCcnResult
from l2tpns.proto.wire import Cursor

MAX_VALUE = 1017  # octets: an AVP of 1023 octets without its header
GENERAL = StopCcnResult.GENERAL  # 2 in StopCCN and in CDN alike
HIGHEST_VERSION = 0x0100  # what StopCCN result 5 carries as its error code: version 1, revision 0


@dataclass(frozen=True, slots=True)
class ProtocolVersion:
    version: int = 1
    revision: int = 0


@dataclass(frozen=True, slots=True)
class ResultCode:
    """Result Code AVP; error code and text are optional on the wire (lengths 8, 10, 10 and more)."""

    result: int
    error: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Q931Cause:
    code: int
    message: int
    advisory: bytes = b""


@dataclass(frozen=True, slots=True)
class CallErrors:
    crc: int = 0
    framing: int = 0
    hardware_overruns: int = 0
    buffer_overruns: int = 0
    timeouts: int = 0
    alignment: int = 0


@dataclass(frozen=True, slots=True)
class Accm:
    send: int = 0xFFFFFFFF
    receive: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class DisconnectCause:
    """PPP Disconnect Cause Code AVP (RFC 3145 section 2): for logs and accounting only."""

    code: int
    protocol: int = 0
    direction: int = 0
    text: str = ""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """How a value is decoded and encoded. Both raise ProtocolError or WireError if it is malformed.

    `low` and `high` are the lengths in octets that a value may have; `decode` is not called with any other.
    """

    decode: Callable[[bytes], T]
    encode: Callable[[T], bytes]
    low: int = 0
    high: int = MAX_VALUE
    read_number: Callable[[bytes], T] | None = None  # decodes an unsigned number of any size
    usual: str = ""  # the length that the RFC requires, if others are accepted too

    @property
    def expected(self) -> str:
        """The lengths that a value may have, in words."""
        if self.usual:
            return self.usual
        if self.low == self.high:
            return str(self.low)
        return f"{self.low} or more" if self.high >= MAX_VALUE else f"{self.low} to {self.high}"


def wrong_length(octets: bytes, expected: str) -> ProtocolError:
    """Return the error of a value whose length is wrong; `expected` says in words which would be right."""
    text = f"has the wrong length ({len(octets)}, expected {expected})"
    return ProtocolError(GENERAL, ErrorCode.LENGTH, text)


def _wrong_value(value: object) -> ProtocolError:
    return ProtocolError(GENERAL, ErrorCode.VALUE, f"has the value {value}, which is not allowed")


def number(size: int, low: int = 0, high: int | None = None) -> Codec[int]:
    """Return the codec of an unsigned number of `size` octets between `low` and `high`."""
    top = (1 << 8 * size) - 1 if high is None else high

    def decode(octets: bytes) -> int:
        value = int.from_bytes(octets, "big")
        if not low <= value <= top:
            raise _wrong_value(value)
        return value

    def encode(value: int) -> bytes:
        if not low <= value <= top:
            raise _wrong_value(value)
        return value.to_bytes(size, "big")

    return Codec(decode, encode, size, size, decode)


def octet_string(low: int = 0, high: int = MAX_VALUE) -> Codec[bytes]:
    """Return the codec of `low` to `high` octets without structure."""

    def encode(octets: bytes) -> bytes:
        if not low <= len(octets) <= high:
            raise wrong_length(octets, codec.expected)
        return octets

    codec = Codec(lambda octets: octets, encode, low, high)
    return codec


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")


def _short_utf8(text: str, room: int) -> bytes:
    """Return UTF-8 of at most `room` octets, not cut inside a character."""
    octets = text.encode("utf-8", "backslashreplace")
    if len(octets) <= room:
        return octets
    return octets[:room].decode("utf-8", "ignore").encode()


def _decode_version(octets: bytes) -> ProtocolVersion:
    if octets[0] != 1:
        text = f"is {octets[0]}.{octets[1]}, which is not supported"
        raise ProtocolError(StopCcnResult.VERSION, HIGHEST_VERSION, text)
    return ProtocolVersion(octets[0], octets[1])


def _decode_result(octets: bytes) -> ResultCode:
    if len(octets) == 3:
        raise wrong_length(octets, "2, or 4 or more")
    cursor = Cursor(octets)
    result = cursor.u16()
    error = cursor.u16() if cursor.left else 0
    return ResultCode(result, error, _text(cursor.rest()))


def _encode_result(value: ResultCode) -> bytes:
    result = value.result.to_bytes(2, "big")
    if not value.error and not value.text:
        return result
    return result + value.error.to_bytes(2, "big") + _short_utf8(value.text, MAX_VALUE - 4)


def _decode_speed(octets: bytes) -> int:
    """Return bits per second. Some access servers send ASCII digits, some eight octets."""
    if len(octets) in (4, 8):
        return int.from_bytes(octets, "big")
    if octets.isdigit() and len(octets) <= 20:
        return int(octets)
    raise wrong_length(octets, "4")


def _decode_tx_speed(octets: bytes) -> int:
    """Return bits per second, of a number of any size up to eight octets: no call should fail because of this AVP."""
    try:
        return _decode_speed(octets)
    except ProtocolError:
        if 1 <= len(octets) <= 8:
            return int.from_bytes(octets, "big")
        raise


def _encode_speed(value: int) -> bytes:
    return min(value, 0xFFFFFFFF).to_bytes(4, "big")


def _decode_q931(octets: bytes) -> Q931Cause:
    cursor = Cursor(octets)
    return Q931Cause(cursor.u16(), cursor.u8(), cursor.rest())


def _encode_q931(value: Q931Cause) -> bytes:
    return value.code.to_bytes(2, "big") + value.message.to_bytes(1, "big") + value.advisory


def _decode_call_errors(octets: bytes) -> CallErrors:
    cursor = Cursor(octets)
    cursor.u16()  # reserved; ignored, because nothing depends on the counters
    errors = CallErrors(*(cursor.u32() for _ in range(6)))
    cursor.done()
    return errors


def _encode_call_errors(value: CallErrors) -> bytes:
    return Struct("!H6L").pack(
        0, value.crc, value.framing, value.hardware_overruns, value.buffer_overruns, value.timeouts, value.alignment
    )


def _decode_accm(octets: bytes) -> Accm:
    cursor = Cursor(octets)
    cursor.u16()  # reserved
    accm = Accm(cursor.u32(), cursor.u32())
    cursor.done()
    return accm


def _encode_accm(value: Accm) -> bytes:
    return Struct("!HLL").pack(0, value.send, value.receive)


def _decode_disconnect(octets: bytes) -> DisconnectCause:
    cursor = Cursor(octets)
    return DisconnectCause(cursor.u16(), cursor.u16(), cursor.u8(), _text(cursor.rest()))


def _encode_disconnect(value: DisconnectCause) -> bytes:
    return Struct("!HHB").pack(value.code, value.protocol, value.direction) + _short_utf8(value.text, MAX_VALUE - 5)


U16 = number(2)
U32 = number(4)
ID = number(2, low=1)
OCTETS = octet_string()
SOME_OCTETS = octet_string(low=1)

VERSION = Codec(_decode_version, lambda value: bytes((value.version, value.revision)), 2, 2)
RESULT = Codec(_decode_result, _encode_result, 2)
Q931 = Codec(_decode_q931, _encode_q931, 3)
TX_SPEED = Codec(_decode_tx_speed, _encode_speed, 1, 20, usual="4")
RX_SPEED = Codec(_decode_speed, _encode_speed, 1, 20, usual="4")
ERRORS = Codec(_decode_call_errors, _encode_call_errors, 26, 26)
ACCM_PAIR = Codec(_decode_accm, _encode_accm, 10, 10)
PRESENCE = Codec(lambda _: True, lambda _: b"", 0, 0)  # the AVP has no value
DISCONNECT = Codec(_decode_disconnect, _encode_disconnect, 5)
