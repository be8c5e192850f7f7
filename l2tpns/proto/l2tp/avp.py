"""Attribute Value Pairs: the table of all known ones, and decoding with graded errors (RFC 2661 section 4, RFC 3145).

To add an AVP, add an assignment to those below: TABLE collects them. messages.py says which AVP
belongs to which message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

from l2tpns.errors import ProtocolError, WireError
from l2tpns.proto.l2tp import values
from l2tpns.proto.l2tp.codes import ErrorCode
from l2tpns.proto.l2tp.hiding import MAX_HIDDEN_VALUE, Random, hide, unhide
from l2tpns.proto.l2tp.values import GENERAL, ID, MAX_VALUE, OCTETS, SOME_OCTETS, U16, U32, Codec, wrong_length

M_BIT = 0x8000
H_BIT = 0x4000
RESERVED_BITS = 0x3C00
LENGTH_MASK = 0x03FF
HEADER = Struct("!HHH")  # M, H, reserved, length; vendor id; attribute type
MAX_AVPS = 100  # of a message: more than twice as many as are defined; a datagram has room for hundreds
MAX_WARNINGS = 20  # of a message: bounds what a peer can make this server log
MAX_NUMBER = 8  # octets of a number that has a wrong size


# -- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Avp:
    """One attribute of vendor 0: number, name, codec, the M bit as sent, and whether it may be hidden."""

    number: int
    name: str
    codec: Codec[Any]
    mandatory: bool
    hideable: bool
    harmless: bool = False  # nothing depends on it: a malformed one counts as absent, even with M=1

    def __str__(self) -> str:
        return f"{self.name} (AVP {self.number})"


M, O, H, X = True, False, True, False  # noqa: E741 - mandatory or optional, may be hidden or not
HARMLESS = True

MESSAGE_TYPE = Avp(0, "Message Type", U16, M, X)
RESULT_CODE = Avp(1, "Result Code", values.RESULT, M, X)
PROTOCOL_VERSION = Avp(2, "Protocol Version", values.VERSION, M, X)
FRAMING_CAPABILITIES = Avp(3, "Framing Capabilities", U32, M, H, HARMLESS)
BEARER_CAPABILITIES = Avp(4, "Bearer Capabilities", U32, M, H, HARMLESS)
TIE_BREAKER = Avp(5, "Tie Breaker", values.octet_string(8, 8), O, X)
FIRMWARE_REVISION = Avp(6, "Firmware Revision", U16, O, H, HARMLESS)
HOST_NAME = Avp(7, "Host Name", SOME_OCTETS, M, X)
VENDOR_NAME = Avp(8, "Vendor Name", OCTETS, O, H)
ASSIGNED_TUNNEL_ID = Avp(9, "Assigned Tunnel ID", ID, M, H)
RECEIVE_WINDOW_SIZE = Avp(10, "Receive Window Size", U16, M, X)
CHALLENGE = Avp(11, "Challenge", SOME_OCTETS, M, H)
Q931_CAUSE_CODE = Avp(12, "Q.931 Cause Code", values.Q931, M, X)
CHALLENGE_RESPONSE = Avp(13, "Challenge Response", values.octet_string(16, 16), M, H)
ASSIGNED_SESSION_ID = Avp(14, "Assigned Session ID", ID, M, H)
CALL_SERIAL_NUMBER = Avp(15, "Call Serial Number", U32, M, H, HARMLESS)
MINIMUM_BPS = Avp(16, "Minimum BPS", U32, M, H, HARMLESS)
MAXIMUM_BPS = Avp(17, "Maximum BPS", U32, M, H, HARMLESS)
BEARER_TYPE = Avp(18, "Bearer Type", U32, M, H, HARMLESS)
FRAMING_TYPE = Avp(19, "Framing Type", U32, M, H, HARMLESS)
CALLED_NUMBER = Avp(21, "Called Number", OCTETS, M, H)
CALLING_NUMBER = Avp(22, "Calling Number", OCTETS, M, H)
SUB_ADDRESS = Avp(23, "Sub-Address", OCTETS, M, H)
TX_CONNECT_SPEED = Avp(24, "(Tx) Connect Speed", values.TX_SPEED, M, H, HARMLESS)
PHYSICAL_CHANNEL_ID = Avp(25, "Physical Channel ID", U32, O, H, HARMLESS)
INITIAL_RECEIVED_LCP_CONFREQ = Avp(26, "Initial Received LCP CONFREQ", OCTETS, O, H)
LAST_SENT_LCP_CONFREQ = Avp(27, "Last Sent LCP CONFREQ", OCTETS, O, H)
LAST_RECEIVED_LCP_CONFREQ = Avp(28, "Last Received LCP CONFREQ", OCTETS, O, H)
PROXY_AUTHEN_TYPE = Avp(29, "Proxy Authen Type", U16, O, H, HARMLESS)
PROXY_AUTHEN_NAME = Avp(30, "Proxy Authen Name", OCTETS, O, H)
PROXY_AUTHEN_CHALLENGE = Avp(31, "Proxy Authen Challenge", SOME_OCTETS, O, H, HARMLESS)
PROXY_AUTHEN_ID = Avp(32, "Proxy Authen ID", values.number(2, high=0xFF), O, H, HARMLESS)  # the upper octet is 0
PROXY_AUTHEN_RESPONSE = Avp(33, "Proxy Authen Response", OCTETS, O, H)
CALL_ERRORS = Avp(34, "Call Errors", values.ERRORS, M, H, HARMLESS)
ACCM = Avp(35, "ACCM", values.ACCM_PAIR, M, H, HARMLESS)
RANDOM_VECTOR = Avp(36, "Random Vector", OCTETS, M, X)
PRIVATE_GROUP_ID = Avp(37, "Private Group ID", OCTETS, O, H)
RX_CONNECT_SPEED = Avp(38, "Rx Connect Speed", values.RX_SPEED, O, H, HARMLESS)
SEQUENCING_REQUIRED = Avp(39, "Sequencing Required", values.PRESENCE, M, X)
PPP_DISCONNECT_CAUSE = Avp(46, "PPP Disconnect Cause Code", values.DISCONNECT, O, H, HARMLESS)

TABLE: Mapping[int, Avp] = {avp.number: avp for avp in list(globals().values()) if isinstance(avp, Avp)}


# -- decoding and encoding --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Decoded:
    """The AVPs of a message: values by attribute number, the first fatal error, and what was skipped."""

    values: dict[int, Any] = field(default_factory=dict)
    fault: ProtocolError | None = None
    warnings: list[str] = field(default_factory=list)
    more_warnings: int = 0  # beyond MAX_WARNINGS
    unread: dict[int, ProtocolError] = field(default_factory=dict)  # malformed AVPs, by number

    def warn(self, what: object, text: str) -> None:
        """Note that an AVP was skipped or changed. Only counts beyond MAX_WARNINGS."""
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(f"{what}{text}")
        else:
            self.more_warnings += 1


def name_of(vendor: int, number: int) -> str:
    """Return `Host Name (AVP 7)`, `AVP 61` or `AVP 5 of vendor 9`."""
    if vendor:
        return f"AVP {number} of vendor {vendor}"
    known = TABLE.get(number)
    return str(known) if known else f"AVP {number}"


def decode_avps(
    body: bytes, secret: bytes = b"", start: int = 0, *, address: Avp | None = None, only_address: bool = False
) -> Decoded:
    """Decode all AVPs from `start` on, and grade the errors by RFC 2661 4.2 and 7.1.

    An unknown or malformed AVP with M=0 is skipped with a warning, and so is a malformed one that is harmless. The
    first other error becomes the fault; after it only `address` is decoded, the Assigned ID that the answer needs.
    With `only_address` nothing else is decoded at all.
    """
    decoded = Decoded()
    vector: bytes | None = None
    end = len(body)
    at = start
    count = 0
    while at < end:
        certain = only_address or decoded.fault is not None
        if certain and (address is None or address.number in decoded.values):
            break
        count += 1
        if count > MAX_AVPS:
            decoded.fault = decoded.fault or ProtocolError(GENERAL, ErrorCode.RESOURCES, f"more than {MAX_AVPS} AVPs")
            break
        size = (body[at] << 8 | body[at + 1]) & LENGTH_MASK if end - at >= HEADER.size else 0
        if not HEADER.size <= size <= end - at:
            # The start of the next AVP is unknown: nothing after this one is decoded.
            _grade_framing(decoded, body[at:])
            break
        flags, vendor, number = HEADER.unpack_from(body, at)
        value = body[at + HEADER.size : at + size]
        at += size
        known = None if vendor or flags & RESERVED_BITS else TABLE.get(number)
        if certain and known is not address and known is not RANDOM_VECTOR:
            continue
        if known is None:
            _grade_unknown(decoded, flags, vendor, number)
        elif number in decoded.values:
            decoded.warn(f"second {known.name}", " ignored")  # before any work on a hidden value
        elif flags & H_BIT or not known.codec.low <= len(value) <= known.codec.high:
            _read_hidden_or_odd(decoded, known, flags, value, secret, vector)
        else:
            _read(decoded, known, flags, value)
        if known is RANDOM_VECTOR:
            vector = decoded.values.pop(number, vector)  # RFC 2661 4.3: the last one before a hidden AVP applies
    return decoded


def _grade_framing(decoded: Decoded, rest: bytes) -> None:
    """Grade an AVP whose Length does not fit the message."""
    length = int.from_bytes(rest[:2], "big") & LENGTH_MASK
    error = ProtocolError(GENERAL, ErrorCode.LENGTH, f"AVP of length {length} with {len(rest)} octets left")
    if not rest[0] & (M_BIT >> 8):
        decoded.warn(error.text, ", ignored")
    elif decoded.fault is None:
        decoded.fault = error


def _grade_unknown(decoded: Decoded, flags: int, vendor: int, number: int) -> None:
    if not flags & M_BIT:
        decoded.warn(_Unknown(vendor, number), ", ignored")
    elif decoded.fault is None:
        decoded.fault = ProtocolError(GENERAL, ErrorCode.UNKNOWN_AVP, f"unknown {name_of(vendor, number)}")


@dataclass(slots=True)
class _Unknown:
    """An unknown AVP. Its name is built only when it is logged."""

    vendor: int
    number: int

    def __str__(self) -> str:
        return f"unknown {name_of(self.vendor, self.number)}"


def _read_hidden_or_odd(
    decoded: Decoded, known: Avp, flags: int, value: bytes, secret: bytes, vector: bytes | None
) -> None:
    """Decode a value that is hidden or has a wrong length."""
    codec = known.codec
    if known.number in decoded.unread and (known.harmless or not flags & M_BIT):
        decoded.warn(f"second {known.name}", " ignored")  # before any work: a peer may repeat it a hundred times
        return
    if flags & H_BIT:
        try:
            value = _unhide(known, value, secret, vector)
        except (ProtocolError, WireError) as problem:
            _grade(decoded, known, flags, problem)
            return
    if codec.low <= len(value) <= codec.high:
        _read(decoded, known, flags, value)
    elif known.harmless and codec.read_number is not None and 0 < len(value) <= MAX_NUMBER:
        _read_number(decoded, known, flags, value, codec.read_number)
    else:
        _grade(decoded, known, flags, wrong_length(value, codec.expected))


def _read(decoded: Decoded, known: Avp, flags: int, value: bytes) -> None:
    try:
        decoded.values[known.number] = known.codec.decode(value)
    except (ProtocolError, WireError) as problem:
        _grade(decoded, known, flags, problem)


def _read_number(decoded: Decoded, known: Avp, flags: int, value: bytes, read: Callable[[bytes], Any]) -> None:
    """Decode a number of a wrong size, which is good enough for a harmless AVP."""
    wrong = wrong_length(value, known.codec.expected)
    try:
        decoded.values[known.number] = number = read(value)
    except ProtocolError:
        _grade(decoded, known, flags, wrong)
        return
    decoded.warn(known, f" {wrong.text}, read as {number}")


def _grade(decoded: Decoded, avp: Avp, flags: int, problem: ProtocolError | WireError) -> None:
    """Turn a malformed AVP into a warning or the fault."""
    if isinstance(problem, ProtocolError):
        error = ProtocolError(problem.result_code, problem.error_code, f"{avp} {problem.text}")
    else:
        error = ProtocolError(GENERAL, ErrorCode.LENGTH, f"{avp} {problem}")
    decoded.unread[avp.number] = error
    if avp.harmless or not flags & M_BIT:
        decoded.warn(error.text, ", ignored")
    elif decoded.fault is None:
        decoded.fault = error


def _unhide(avp: Avp, cipher: bytes, secret: bytes, vector: bytes | None) -> bytes:
    if not avp.hideable:
        raise ProtocolError(GENERAL, ErrorCode.VALUE, "must not be hidden")
    if not secret:
        raise ProtocolError(GENERAL, ErrorCode.VALUE, "is hidden, and there is no secret")
    if vector is None:
        raise ProtocolError(GENERAL, ErrorCode.VALUE, "is hidden, with no Random Vector before it")
    return unhide(avp.number, cipher, secret, vector)


def encode_avp(
    avp: Avp, value: Any, *, secret: bytes = b"", vector: bytes = b"", random: Random | None = None
) -> bytes:
    """Return one AVP as octets, hidden if `random` (the source of padding) is given and the AVP may be hidden."""
    octets = avp.codec.encode(value)
    flags = M_BIT if avp.mandatory else 0
    if random is not None and avp.hideable:
        if len(octets) > MAX_HIDDEN_VALUE:
            raise wrong_length(octets, f"{MAX_HIDDEN_VALUE} at most")
        octets = hide(avp.number, octets, secret, vector, random)
        flags |= H_BIT
    if len(octets) > MAX_VALUE:
        raise wrong_length(octets, f"{MAX_VALUE} at most")
    return HEADER.pack(flags | HEADER.size + len(octets), 0, avp.number) + octets
