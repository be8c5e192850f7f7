"""Numbers and their meaning: message types, result and error codes, masks (RFC 2661 3.2, 4.4; RFC 3145).

A number that is not listed here is printed as a number. Parsing does not depend on these lists.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class MessageType(IntEnum):
    """RFC 2661 3.2; 0, 5 and 13 are reserved."""

    SCCRQ = 1
    SCCRP = 2
    SCCCN = 3
    STOPCCN = 4
    HELLO = 6
    OCRQ = 7
    OCRP = 8
    OCCN = 9
    ICRQ = 10
    ICRP = 11
    ICCN = 12
    CDN = 14
    WEN = 15
    SLI = 16


SESSION_MESSAGES = frozenset(MessageType) - {
    MessageType.SCCRQ,
    MessageType.SCCRP,
    MessageType.SCCCN,
    MessageType.STOPCCN,
    MessageType.HELLO,
}


def is_session_message(message_type: int) -> bool:
    """Return True if an error in a message of this type ends its session (CDN) and not the tunnel (StopCCN)."""
    return message_type in SESSION_MESSAGES


class CodedEnum(IntEnum):
    """An IntEnum whose members are declared as `NAME = number, "meaning"`."""

    text: str

    def __new__(cls, value: int, text: str) -> CodedEnum:
        member = int.__new__(cls, value)
        member._value_ = value
        member.text = text
        return member

    @classmethod
    def describe(cls, value: int) -> str:
        """Return `2 general error`, or only the number if it is unknown."""
        try:
            return f"{value} {cls(value).text}"  # type: ignore[call-arg]
        except ValueError:
            return str(value)


class StopCcnResult(CodedEnum):
    """Result codes of StopCCN (RFC 2661 4.4.2)."""

    CLEAR = 1, "general request to clear the control connection"
    GENERAL = 2, "general error"
    EXISTS = 3, "control channel already exists"
    NOT_AUTHORISED = 4, "requester is not authorised"
    VERSION = 5, "protocol version not supported"
    SHUTTING_DOWN = 6, "requester is being shut down"
    FSM = 7, "finite state machine error"


class CdnResult(CodedEnum):
    """Result codes of CDN (RFC 2661 4.4.2)."""

    LOST_CARRIER = 1, "loss of carrier"
    GENERAL = 2, "general error"
    ADMINISTRATIVE = 3, "administrative reasons"
    NO_FACILITIES = 4, "no facilities for now"
    NO_FACILITIES_EVER = 5, "no facilities, permanently"
    BAD_DESTINATION = 6, "invalid destination"
    NO_CARRIER = 7, "no carrier detected"
    BUSY = 8, "busy signal"
    NO_DIAL_TONE = 9, "no dial tone"
    NOT_IN_TIME = 10, "not established in time"
    NO_FRAMING = 11, "no appropriate framing detected"


class ErrorCode(CodedEnum):
    """General error codes (RFC 2661 4.4.2), sent with result 2."""

    NONE = 0, "no general error"
    NO_CONTROL_CONNECTION = 1, "no control connection exists yet"
    LENGTH = 2, "length is wrong"
    VALUE = 3, "value out of range, missing, or reserved field not zero"
    RESOURCES = 4, "insufficient resources"
    SESSION_ID = 5, "session ID invalid in this context"
    VENDOR = 6, "vendor specific error"
    TRY_ANOTHER = 7, "try another"
    UNKNOWN_AVP = 8, "unknown AVP with the M bit set"


class DisconnectCode(CodedEnum):
    """PPP disconnect causes (RFC 3145 section 3)."""

    NO_INFORMATION = 0, "no information"
    ADMINISTRATIVE = 1, "administrative disconnect"
    NO_RENEGOTIATION = 2, "LCP renegotiation is disabled at the LNS"
    NORMAL = 3, "normal disconnection"
    ENCRYPTION_REFUSED = 4, "compulsory encryption refused"
    LCP_NOT_CONVERGED = 5, "LCP did not converge"
    LCP_SILENT = 6, "no LCP packets received"
    LCP_LOOPED = 7, "magic number error, line looped back"
    LCP_ECHO = 8, "echo requests unanswered"
    BUNDLE_DISCRIMINATOR = 9, "endpoint discriminator does not fit the bundle"
    BUNDLE_MRRU = 10, "MRRU does not fit the bundle"
    BUNDLE_SHORT_SEQUENCE = 11, "short sequence number option does not fit the bundle"
    CALLBACK_REFUSED = 12, "compulsory call-back refused"
    AUTH_TIMEOUT = 13, "authentication timed out"
    BUNDLE_NAME = 14, "authenticated name does not fit the bundle"
    AUTH_REFUSED = 15, "authentication protocol refused"
    AUTH_FAILED = 16, "authentication failed"
    NCP_NOT_CONVERGED = 17, "network control protocol did not converge"
    NO_NCP = 18, "no network control protocol opened"
    NO_COMMON_ADDRESS = 19, "no acceptable address agreed on"
    NO_ADDRESS_PERMITTED = 20, "user may not use any address"


class DisconnectDirection(IntEnum):
    """The side that the cause applies to (RFC 3145 section 2), seen from the sender of the CDN."""

    GLOBAL = 0
    PEER = 1
    LOCAL = 2


class ProxyAuthenType(IntEnum):
    """Proxy Authen Type (RFC 2661 4.4.5)."""

    TEXTUAL = 1
    CHAP = 2
    PAP = 3
    NONE = 4
    MSCHAPV1 = 5


class Framing(IntFlag):
    """Framing Capabilities and Framing Type (RFC 2661 4.4.3, 4.4.4)."""

    SYNC = 1
    ASYNC = 2


class Bearer(IntFlag):
    """Bearer Capabilities and Bearer Type (RFC 2661 4.4.3, 4.4.4)."""

    DIGITAL = 1
    ANALOG = 2
