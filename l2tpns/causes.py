"""Why a session or a tunnel ends: every cause, declared once, with its codes in each protocol.

The name of a cause is the value of `cause` in the log, the counters and the console. The codes are those of RFC 2661
4.4.2 (CDN), RFC 2866 5.10 (Acct-Terminate-Cause) and RFC 3145 2 (disconnect code and direction: 1 caused by the PPP
peer, 2 by us, 0 by neither).
"""

from __future__ import annotations

from dataclasses import dataclass

from l2tpns.proto.l2tp.codes import CdnResult, ErrorCode
from l2tpns.radius.types import TerminateCause


@dataclass(frozen=True, slots=True)
class Cause:
    """One way for a session to end."""

    name: str
    text: str
    result: CdnResult
    error: ErrorCode
    terminate: TerminateCause
    disconnect: int = 0
    direction: int = 0


def _cause(
    name: str,
    text: str,
    result: CdnResult,
    terminate: TerminateCause,
    disconnect: int = 0,
    direction: int = 0,
    error: ErrorCode = ErrorCode.NONE,
) -> Cause:
    return Cause(name, text, result, error, terminate, disconnect, direction)


_ADMIN = CdnResult.ADMINISTRATIVE
_GENERAL = CdnResult.GENERAL
_CARRIER = CdnResult.LOST_CARRIER
_T = TerminateCause

USER_REQUEST = _cause("user_request", "the subscriber ended PPP", _ADMIN, _T.USER_REQUEST, 3, 1)
LAC_CDN = _cause("lac_cdn", "the LAC ended the call", _ADMIN, _T.USER_REQUEST)
LAC_LOST_CARRIER = _cause("lac_lost_carrier", "the LAC lost the subscriber's carrier", _CARRIER, _T.LOST_CARRIER)
TUNNEL_CLOSED = _cause("tunnel_closed", "the LAC closed the tunnel", _CARRIER, _T.LOST_SERVICE)
TUNNEL_LOST = _cause("tunnel_lost", "the LAC no longer responds", _CARRIER, _T.LOST_CARRIER)
LCP_SILENT = _cause("lcp_silent", "no reply to LCP", _CARRIER, _T.LOST_CARRIER, 6, 1)
LCP_FAILED = _cause("lcp_failed", "LCP did not converge", _GENERAL, _T.PORT_ERROR, 5, 1, ErrorCode.VENDOR)
LOOPED = _cause("looped", "the link is looped back", _GENERAL, _T.PORT_ERROR, 7, 0, ErrorCode.VENDOR)
ECHO_TIMEOUT = _cause("echo_timeout", "no reply to LCP Echo-Request", _CARRIER, _T.LOST_CARRIER, 8, 1)
AUTH_PROTOCOL_REFUSED = _cause(
    "auth_protocol_refused", "the subscriber refuses to authenticate", _ADMIN, _T.USER_ERROR, 15, 1
)
AUTH_TIMEOUT = _cause("auth_timeout", "the subscriber did not authenticate in time", _ADMIN, _T.USER_ERROR, 13, 1)
AUTH_REFUSED = _cause("auth_refused", "authentication failed", _ADMIN, _T.USER_ERROR, 16, 2)
RADIUS_SILENT = _cause("radius_silent", "no RADIUS server replied", CdnResult.NO_FACILITIES, _T.SERVICE_UNAVAILABLE)
NO_ADDRESS = _cause(
    "no_address", "the address pool is exhausted", _GENERAL, _T.SERVICE_UNAVAILABLE, 20, 2, ErrorCode.TRY_ANOTHER
)
ADDRESS_IN_USE = _cause(
    "address_in_use", "the address is unavailable", CdnResult.NO_FACILITIES, _T.SERVICE_UNAVAILABLE, 20, 2
)
NO_COMMON_ADDRESS = _cause(
    "no_common_address", "no address was agreed on", _GENERAL, _T.PORT_ERROR, 19, 1, ErrorCode.VENDOR
)
NCP_FAILED = _cause("ncp_failed", "IPCP did not converge", _GENERAL, _T.PORT_ERROR, 17, 1, ErrorCode.VENDOR)
NCP_REFUSED = _cause("ncp_refused", "the subscriber closed or rejected IPCP", _ADMIN, _T.USER_REQUEST, 18, 1)
SESSION_TIMEOUT = _cause("session_timeout", "Session-Timeout reached", _ADMIN, _T.SESSION_TIMEOUT, 3, 2)
IDLE_TIMEOUT = _cause("idle_timeout", "Idle-Timeout reached", _ADMIN, _T.IDLE_TIMEOUT, 3, 2)
DUPLICATE_USER = _cause("duplicate_user", "the same user has logged in again", _ADMIN, _T.NAS_REQUEST, 1, 0)
DUPLICATE_ADDRESS = _cause(
    "duplicate_address", "the address was assigned to a newer session", _ADMIN, _T.NAS_REQUEST, 1, 0
)
ADMIN_DROP = _cause("admin_drop", "dropped by the operator", _ADMIN, _T.ADMIN_RESET, 1, 0)
RADIUS_DISCONNECT = _cause("radius_disconnect", "ended by RADIUS", _ADMIN, _T.ADMIN_RESET, 1, 0)
SHUTDOWN = _cause("shutdown", "the server is being shut down", _ADMIN, _T.ADMIN_REBOOT, 1, 0)
CALL_TIMEOUT = _cause("call_timeout", "no ICCN received in time", CdnResult.NOT_IN_TIME, _T.PORT_ERROR)
LOGIN_TIMEOUT = _cause("login_timeout", "not online in time", _ADMIN, _T.PORT_ERROR, 5, 0)
NO_RESOURCES = _cause(
    "no_resources",
    "too many calls",
    CdnResult.NO_FACILITIES,
    _T.SERVICE_UNAVAILABLE,
    error=ErrorCode.RESOURCES,
)
OVERLOADED = _cause(
    "overloaded",
    "the server is too busy for the call",
    CdnResult.NO_FACILITIES,
    _T.SERVICE_UNAVAILABLE,
    error=ErrorCode.RESOURCES,
)
PROTOCOL_ERROR = _cause(
    "protocol_error", "protocol violation by the LAC", _GENERAL, _T.NAS_ERROR, error=ErrorCode.VENDOR
)
INTERNAL_ERROR = _cause("internal_error", "internal error of the LNS", _GENERAL, _T.NAS_ERROR, error=ErrorCode.VENDOR)


class SessionEnded(Exception):
    """Ends a session from inside its greenlet. `tell`: the LAC still needs a CDN.

    `result`, `error` and `text` replace the codes of the cause where the RFC demands other ones.
    """

    def __init__(
        self, cause: Cause, *, tell: bool = True, result: int | None = None, error: int | None = None, text: str = ""
    ) -> None:
        super().__init__(cause.name)
        self.cause = cause
        self.tell = tell
        self.result = cause.result if result is None else result
        self.error = cause.error if error is None else error
        self.text = text or cause.text

    def detached(self) -> SessionEnded:
        """Return the exception without its frames: they refer to each other, and both to the session."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class TunnelEnded(Exception):
    """Ends a tunnel from inside its greenlet.

    `result` is the result code of the StopCCN to send; None if the LAC needs none (it has sent one, or is gone).
    """

    def __init__(self, cause: Cause, result: int | None, error: int = 0, text: str = "") -> None:
        super().__init__(cause.name)
        self.cause = cause
        self.result = result
        self.error = error
        self.text = text or cause.text

    def detached(self) -> TunnelEnded:
        """Return the exception without its frames, as SessionEnded.detached does."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self
