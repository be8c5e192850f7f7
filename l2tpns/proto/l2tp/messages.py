"""The control messages of L2TP, one class each, decoded and encoded (RFC 2661 section 6).

Each field is an AVP, named by its annotation. A field without default is an AVP that must be present, unless the
annotation also gives a value to assume. Decoding, encoding and the check for missing AVPs are loops over these
declarations. l2tp/dispatch.py (tunnels) and subscriber/session.py (calls) decide whether a message is allowed in
the present state.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from hashlib import md5
from typing import Annotated, Any, ClassVar, get_type_hints

from l2tpns.errors import ProtocolError
from l2tpns.proto.l2tp import avp
from l2tpns.proto.l2tp.codes import CdnResult as CdnResult
from l2tpns.proto.l2tp.codes import ErrorCode as ErrorCode
from l2tpns.proto.l2tp.codes import MessageType as MessageType
from l2tpns.proto.l2tp.codes import ProxyAuthenType as ProxyAuthenType
from l2tpns.proto.l2tp.codes import StopCcnResult as StopCcnResult
from l2tpns.proto.l2tp.codes import is_session_message as is_session_message
from l2tpns.proto.l2tp.hiding import VECTOR_SIZE, Random
from l2tpns.proto.l2tp.values import Accm as Accm
from l2tpns.proto.l2tp.values import CallErrors as CallErrors
from l2tpns.proto.l2tp.values import DisconnectCause as DisconnectCause
from l2tpns.proto.l2tp.values import ProtocolVersion as ProtocolVersion
from l2tpns.proto.l2tp.values import Q931Cause as Q931Cause
from l2tpns.proto.l2tp.values import ResultCode as ResultCode

DEFAULT_WINDOW = 4  # 4.4.3: when the Receive Window Size AVP is absent
VERSION_1_0 = ProtocolVersion(1, 0)
MESSAGE_TYPE_SIZE = 8


@dataclass(frozen=True, slots=True)
class Assumed:
    """The value to assume if a received message lacks an AVP that it must have, or has a malformed one."""

    value: Any


UNKNOWN = Assumed(0)
NOTHING = Assumed(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The fields of every message. `warnings` says in words which AVPs were skipped by `decode`."""

    message_type: ClassVar[int] = 0
    warnings: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownMessage(Message):
    """A message of an unknown type with M=0: acknowledged and ignored (4.4.1)."""

    type: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer(Message):
    """The common fields of SCCRQ and SCCRP."""

    protocol_version: Annotated[ProtocolVersion, avp.PROTOCOL_VERSION]
    framing_capabilities: Annotated[int, avp.FRAMING_CAPABILITIES]
    bearer_capabilities: Annotated[int | None, avp.BEARER_CAPABILITIES] = None
    firmware_revision: Annotated[int | None, avp.FIRMWARE_REVISION] = None
    host_name: Annotated[bytes, avp.HOST_NAME]
    vendor_name: Annotated[bytes | None, avp.VENDOR_NAME] = None
    assigned_tunnel_id: Annotated[int, avp.ASSIGNED_TUNNEL_ID]
    receive_window_size: Annotated[int | None, avp.RECEIVE_WINDOW_SIZE] = None
    challenge: Annotated[bytes | None, avp.CHALLENGE] = None

    @property
    def window(self) -> int:
        """The window to use: 4 if absent. 0 is invalid and counts as 1, the smallest that works."""
        return DEFAULT_WINDOW if self.receive_window_size is None else max(1, self.receive_window_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SCCRQ(Offer):
    message_type: ClassVar[int] = MessageType.SCCRQ
    tie_breaker: Annotated[bytes | None, avp.TIE_BREAKER] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SCCRP(Offer):
    message_type: ClassVar[int] = MessageType.SCCRP
    challenge_response: Annotated[bytes | None, avp.CHALLENGE_RESPONSE] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SCCCN(Message):
    message_type: ClassVar[int] = MessageType.SCCCN
    challenge_response: Annotated[bytes | None, avp.CHALLENGE_RESPONSE] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopCCN(Message):
    message_type: ClassVar[int] = MessageType.STOPCCN
    assigned_tunnel_id: Annotated[int, avp.ASSIGNED_TUNNEL_ID]
    result_code: Annotated[ResultCode, avp.RESULT_CODE]


@dataclass(frozen=True, slots=True, kw_only=True)
class HELLO(Message):
    message_type: ClassVar[int] = MessageType.HELLO


@dataclass(frozen=True, slots=True, kw_only=True)
class OCRQ(Message):
    message_type: ClassVar[int] = MessageType.OCRQ
    assigned_session_id: Annotated[int, avp.ASSIGNED_SESSION_ID]
    call_serial_number: Annotated[int, avp.CALL_SERIAL_NUMBER, UNKNOWN]
    minimum_bps: Annotated[int, avp.MINIMUM_BPS, UNKNOWN]
    maximum_bps: Annotated[int, avp.MAXIMUM_BPS, UNKNOWN]
    bearer_type: Annotated[int, avp.BEARER_TYPE, UNKNOWN]
    framing_type: Annotated[int, avp.FRAMING_TYPE, UNKNOWN]
    called_number: Annotated[bytes, avp.CALLED_NUMBER]
    sub_address: Annotated[bytes | None, avp.SUB_ADDRESS] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OCRP(Message):
    message_type: ClassVar[int] = MessageType.OCRP
    assigned_session_id: Annotated[int, avp.ASSIGNED_SESSION_ID]
    physical_channel_id: Annotated[int | None, avp.PHYSICAL_CHANNEL_ID] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected(Message):
    """The common fields of OCCN and ICCN. Speeds are seen from the LAC, in bits per second."""

    tx_connect_speed: Annotated[int, avp.TX_CONNECT_SPEED, UNKNOWN]
    framing_type: Annotated[int, avp.FRAMING_TYPE, UNKNOWN]
    rx_connect_speed: Annotated[int | None, avp.RX_CONNECT_SPEED] = None
    sequencing_required: Annotated[bool, avp.SEQUENCING_REQUIRED] = False

    @property
    def rx_speed(self) -> int:
        """The Rx speed; without that AVP the line is symmetric (4.4.4)."""
        return self.tx_connect_speed if self.rx_connect_speed is None else self.rx_connect_speed


@dataclass(frozen=True, slots=True, kw_only=True)
class OCCN(Connected):
    message_type: ClassVar[int] = MessageType.OCCN


@dataclass(frozen=True, slots=True, kw_only=True)
class ICRQ(Message):
    message_type: ClassVar[int] = MessageType.ICRQ
    assigned_session_id: Annotated[int, avp.ASSIGNED_SESSION_ID]
    call_serial_number: Annotated[int, avp.CALL_SERIAL_NUMBER, UNKNOWN]
    bearer_type: Annotated[int | None, avp.BEARER_TYPE] = None
    physical_channel_id: Annotated[int | None, avp.PHYSICAL_CHANNEL_ID] = None
    calling_number: Annotated[bytes | None, avp.CALLING_NUMBER] = None
    called_number: Annotated[bytes | None, avp.CALLED_NUMBER] = None
    sub_address: Annotated[bytes | None, avp.SUB_ADDRESS] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ICRP(Message):
    message_type: ClassVar[int] = MessageType.ICRP
    assigned_session_id: Annotated[int, avp.ASSIGNED_SESSION_ID]


@dataclass(frozen=True, slots=True, kw_only=True)
class ICCN(Connected):
    message_type: ClassVar[int] = MessageType.ICCN
    initial_received_lcp_confreq: Annotated[bytes | None, avp.INITIAL_RECEIVED_LCP_CONFREQ] = None
    last_sent_lcp_confreq: Annotated[bytes | None, avp.LAST_SENT_LCP_CONFREQ] = None
    last_received_lcp_confreq: Annotated[bytes | None, avp.LAST_RECEIVED_LCP_CONFREQ] = None
    proxy_authen_type: Annotated[int | None, avp.PROXY_AUTHEN_TYPE] = None
    proxy_authen_name: Annotated[bytes | None, avp.PROXY_AUTHEN_NAME] = None
    proxy_authen_challenge: Annotated[bytes | None, avp.PROXY_AUTHEN_CHALLENGE] = None
    proxy_authen_id: Annotated[int | None, avp.PROXY_AUTHEN_ID] = None
    # A clear text password for types 1 and 3: not in the repr.
    proxy_authen_response: Annotated[bytes | None, avp.PROXY_AUTHEN_RESPONSE] = field(default=None, repr=False)
    private_group_id: Annotated[bytes | None, avp.PRIVATE_GROUP_ID] = None

    @property
    def proxy_authen_missing(self) -> tuple[str, ...]:
        """The fields that the Proxy Authen Type requires and the LAC left out (4.4.5)."""
        wanted = PROXY_AUTHEN_FIELDS.get(self.proxy_authen_type or 0, ())
        return tuple(name for name in wanted if getattr(self, name) is None)

    @property
    def proxy_authen_usable(self) -> bool:
        """True if the LAC sent a known Proxy Authen Type and all AVPs that it requires."""
        return self.proxy_authen_type in PROXY_AUTHEN_FIELDS and not self.proxy_authen_missing


_NAME, _CHALLENGE, _ID, _RESPONSE = (f"proxy_authen_{part}" for part in ("name", "challenge", "id", "response"))
PROXY_AUTHEN_FIELDS: dict[int, tuple[str, ...]] = {
    ProxyAuthenType.TEXTUAL: (_NAME, _RESPONSE),
    ProxyAuthenType.CHAP: (_NAME, _CHALLENGE, _ID, _RESPONSE),
    ProxyAuthenType.PAP: (_NAME, _ID, _RESPONSE),
    ProxyAuthenType.NONE: (),
    ProxyAuthenType.MSCHAPV1: (_NAME, _CHALLENGE, _ID, _RESPONSE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CDN(Message):
    message_type: ClassVar[int] = MessageType.CDN
    result_code: Annotated[ResultCode, avp.RESULT_CODE]
    assigned_session_id: Annotated[int, avp.ASSIGNED_SESSION_ID]
    q931_cause: Annotated[Q931Cause | None, avp.Q931_CAUSE_CODE] = None
    disconnect_cause: Annotated[DisconnectCause | None, avp.PPP_DISCONNECT_CAUSE] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WEN(Message):
    message_type: ClassVar[int] = MessageType.WEN
    call_errors: Annotated[CallErrors | None, avp.CALL_ERRORS, NOTHING]


@dataclass(frozen=True, slots=True, kw_only=True)
class SLI(Message):
    message_type: ClassVar[int] = MessageType.SLI
    accm: Annotated[Accm | None, avp.ACCM, NOTHING]


MESSAGES: dict[int, type[Message]] = {
    cls.message_type: cls
    for cls in (SCCRQ, SCCRP, SCCCN, StopCCN, HELLO, OCRQ, OCRP, OCCN, ICRQ, ICRP, ICCN, CDN, WEN, SLI)
}


@dataclass(frozen=True, slots=True)
class Slot:
    """A field of a message class: its name, its AVP, whether it is required, and the value to assume without it."""

    name: str
    avp: avp.Avp
    required: bool
    assumed: Assumed | None


def _slots(cls: type[Message]) -> tuple[Slot, ...]:
    hints = get_type_hints(cls, include_extras=True)
    slots = []
    for entry in fields(cls):
        if hasattr(hints[entry.name], "__metadata__"):
            declared, *assumed = hints[entry.name].__metadata__
            slots.append(Slot(entry.name, declared, entry.default is MISSING, assumed[0] if assumed else None))
    return tuple(slots)


LAYOUT: dict[int, tuple[Slot, ...]] = {number: _slots(cls) for number, cls in MESSAGES.items()}


class MessageError(ProtocolError):
    """A message that must be refused, with the codes of the answer.

    The answer is a CDN if `session` is True, otherwise a StopCCN. `assigned_id` is the peer's own session or tunnel ID,
    0 if it is unreadable. `message_type` is 0 if even that is unreadable.
    """

    def __init__(self, cause: ProtocolError, message_type: int = 0, assigned_id: int = 0) -> None:
        super().__init__(cause.result_code, cause.error_code, cause.text)
        self.message_type = message_type
        self.assigned_id = assigned_id

    @property
    def session(self) -> bool:
        return is_session_message(self.message_type)


def _invalid(text: str, error: int = ErrorCode.VALUE) -> ProtocolError:
    return ProtocolError(StopCcnResult.GENERAL, error, text)


def decode(body: bytes, secret: bytes = b"") -> Message:
    """Decode the AVPs of one control message, which is not a ZLB. Raises MessageError if it must be refused."""
    known, message_type = read_message_type(body)
    if not known:
        return UnknownMessage(type=message_type, warnings=(f"message type {message_type} ignored",))
    address = avp.ASSIGNED_SESSION_ID if is_session_message(message_type) else avp.ASSIGNED_TUNNEL_ID
    decoded = avp.decode_avps(body, secret, MESSAGE_TYPE_SIZE, address=address)
    assigned_id = decoded.values.get(address.number, 0)
    wanted = {} if decoded.fault else _fill(decoded, LAYOUT[message_type])
    if decoded.fault is not None:
        raise MessageError(decoded.fault, message_type, assigned_id)
    for number in decoded.values:
        decoded.warn(avp.name_of(0, number), " does not belong here, ignored")
    if decoded.more_warnings:
        decoded.warnings.append(f"and {decoded.more_warnings} more")
    return MESSAGES[message_type](warnings=tuple(decoded.warnings), **wanted)


def _fill(decoded: avp.Decoded, slots: tuple[Slot, ...]) -> dict[str, Any]:
    """Return the values of a message's fields. A missing one may become the fault."""
    wanted: dict[str, Any] = {}
    for slot in slots:
        value = decoded.values.pop(slot.avp.number, None)
        if value is not None:
            wanted[slot.name] = value
        elif slot.required:
            malformed = decoded.unread.get(slot.avp.number)
            if slot.assumed is None:
                decoded.fault = decoded.fault or malformed or _invalid(f"{slot.avp} is missing")
                continue
            wanted[slot.name] = slot.assumed.value
            if malformed is None:
                decoded.warn(slot.avp, " is missing" + (", taken as 0" if slot.assumed is UNKNOWN else ""))
    return wanted


def assigned_tunnel_id(body: bytes, secret: bytes = b"") -> int:
    """Return the Assigned Tunnel ID of a message, 0 if there is none. Decodes nothing else, so it is cheap."""
    found: int = _only(avp.ASSIGNED_TUNNEL_ID, body, secret) or 0
    return found


def host_name(body: bytes) -> bytes:
    """Return the Host Name of a message, empty if there is none. It is never hidden (RFC 2661 4.4.3)."""
    found: bytes = _only(avp.HOST_NAME, body) or b""
    return found


def _only(wanted: avp.Avp, body: bytes, secret: bytes = b"") -> Any:
    """Return the value of one AVP of a message, None without it. Decodes no other."""
    decoded = avp.decode_avps(body, secret, MESSAGE_TYPE_SIZE, address=wanted, only_address=True)
    return decoded.values.get(wanted.number)


def read_message_type(body: bytes) -> tuple[bool, int]:
    """Return whether the message type is known, and its number. Raises MessageError.

    RFC 2661 4.4.1: the Message Type is the first AVP, and its M bit applies to the whole message.
    """
    if len(body) < MESSAGE_TYPE_SIZE:
        raise MessageError(_invalid("message without a Message Type", ErrorCode.LENGTH))
    flags, vendor, number = avp.HEADER.unpack_from(body)
    message_type = int.from_bytes(body[avp.HEADER.size : MESSAGE_TYPE_SIZE], "big")
    if vendor or number != avp.MESSAGE_TYPE.number:
        raise MessageError(_invalid("first AVP is not the Message Type"))
    if flags & ~avp.M_BIT != MESSAGE_TYPE_SIZE:  # hidden, reserved bits, or another length
        if flags & avp.M_BIT:
            raise MessageError(_invalid("malformed Message Type"))
        return False, 0
    if message_type in MESSAGES:
        return True, message_type
    if flags & avp.M_BIT:
        raise MessageError(_invalid(f"unknown message type {message_type}", ErrorCode.UNKNOWN_AVP), message_type)
    return False, message_type


def encode(message: Message, *, secret: bytes = b"", random: Random | None = None, hide: bool = False) -> bytes:
    """Return the AVPs of a message as octets, Message Type first.

    With `hide` all AVPs that may be hidden are; this needs `secret` and `random`, else ValueError is raised.
    """
    slots = LAYOUT[message.message_type]
    parts = [avp.encode_avp(avp.MESSAGE_TYPE, message.message_type)]
    vector = b""
    cover: Random | None = None
    if hide:
        if random is None or not secret:
            raise ValueError("hiding AVPs needs a secret and a source of random octets")
        cover = random
        if any(slot.avp.hideable for slot in slots):
            vector = random(VECTOR_SIZE)
            parts.append(avp.encode_avp(avp.RANDOM_VECTOR, vector))
    for slot in slots:
        value = getattr(message, slot.name)
        if value is not None and value is not False:
            parts.append(avp.encode_avp(slot.avp, value, secret=secret, vector=vector, random=cover))
    return b"".join(parts)


def tunnel_auth_response(message_type: int, secret: bytes, challenge: bytes) -> bytes:
    """Return the Challenge Response for a message of this type, SCCRP or SCCCN (5.1.1)."""
    return md5(bytes((message_type,)) + secret + challenge, usedforsecurity=False).digest()


def describe_result(message_type: int, code: ResultCode) -> str:
    """Return a Result Code in words for a log line. Unknown numbers stay numbers."""
    results = CdnResult if is_session_message(message_type) else StopCcnResult
    words = [results.describe(code.result)]
    if code.error:
        words.append(ErrorCode.describe(code.error) if code.result == StopCcnResult.GENERAL else str(code.error))
    if code.text:
        words.append(code.text)
    return ", ".join(words)


class Tie(Enum):
    """The tunnel that stays if both ends have sent an SCCRQ (4.4.3)."""

    OURS = "ours"
    THEIRS = "theirs"
    NEITHER = "neither"
    BOTH = "both"


def break_tie(ours: bytes | None, theirs: bytes | None) -> Tie:
    """Compare the Tie Breakers of this end's SCCRQ and the peer's: the lower value wins, or the only one (4.4.3)."""
    if ours == theirs:
        return Tie.BOTH if ours is None else Tie.NEITHER
    if ours is None or theirs is None:
        return Tie.OURS if theirs is None else Tie.THEIRS
    return Tie.OURS if ours < theirs else Tie.THEIRS
