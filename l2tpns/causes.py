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
class Reason:
    """One way for a session to end."""

    name: str
    text: str
    result: CdnResult
    error: ErrorCode
    terminate: TerminateCause
    disconnect: int = 0
    direction: int = 0


def _reason(
    name: str,
    text: str,
    result: CdnResult,
    terminate: TerminateCause,
    disconnect: int = 0,
    direction: int = 0,
    error: ErrorCode = ErrorCode.NONE,
) -> Reason:
    return Reason(name, text, result, error, terminate, disconnect, direction)


_ADMIN = CdnResult.ADMINISTRATIVE
_GENERAL = CdnResult.GENERAL
_CARRIER = CdnResult.LOST_CARRIER
_T = TerminateCause

USER_REQUEST = _reason("user_request", "the subscriber ended PPP", _ADMIN, _T.USER_REQUEST, 3, 1)
LAC_CDN = _reason("lac_cdn", "the LAC ended the call", _ADMIN, _T.USER_REQUEST)
LAC_LOST_CARRIER = _reason("lac_lost_carrier", "the LAC lost the subscriber's carrier", _CARRIER, _T.LOST_CARRIER)
TUNNEL_CLOSED = _reason("tunnel_closed", "the LAC closed the tunnel", _CARRIER, _T.LOST_SERVICE)
TUNNEL_LOST = _reason("tunnel_lost", "the LAC no longer answers", _CARRIER, _T.LOST_CARRIER)
LCP_SILENT = _reason("lcp_silent", "no answer to LCP", _CARRIER, _T.LOST_CARRIER, 6, 1)
LCP_FAILED = _reason("lcp_failed", "LCP did not converge", _GENERAL, _T.PORT_ERROR, 5, 1, ErrorCode.VENDOR)
LOOPED = _reason("looped", "the link is looped back", _GENERAL, _T.PORT_ERROR, 7, 0, ErrorCode.VENDOR)
ECHO_TIMEOUT = _reason("echo_timeout", "no answer to LCP Echo", _CARRIER, _T.LOST_CARRIER, 8, 1)
AUTH_PROTOCOL_REFUSED = _reason(
    "auth_protocol_refused", "the subscriber refuses to authenticate", _ADMIN, _T.USER_ERROR, 15, 1
)
AUTH_TIMEOUT = _reason("auth_timeout", "the subscriber did not authenticate in time", _ADMIN, _T.USER_ERROR, 13, 1)
AUTH_REFUSED = _reason("auth_refused", "authentication failed", _ADMIN, _T.USER_ERROR, 16, 2)
RADIUS_SILENT = _reason("radius_silent", "no RADIUS server answers", CdnResult.NO_FACILITIES, _T.SERVICE_UNAVAILABLE)
NO_ADDRESS = _reason("no_address", "no address is free", _GENERAL, _T.SERVICE_UNAVAILABLE, 20, 2, ErrorCode.TRY_ANOTHER)
ADDRESS_IN_USE = _reason(
    "address_in_use", "the address is unavailable", CdnResult.NO_FACILITIES, _T.SERVICE_UNAVAILABLE, 20, 2
)
NO_COMMON_ADDRESS = _reason(
    "no_common_address", "no address was agreed on", _GENERAL, _T.PORT_ERROR, 19, 1, ErrorCode.VENDOR
)
NCP_FAILED = _reason("ncp_failed", "IPCP did not converge", _GENERAL, _T.PORT_ERROR, 17, 1, ErrorCode.VENDOR)
NCP_REFUSED = _reason("ncp_refused", "the subscriber closed or rejected IPCP", _ADMIN, _T.USER_REQUEST, 18, 1)
SESSION_TIMEOUT = _reason("session_timeout", "the time of the session is over", _ADMIN, _T.SESSION_TIMEOUT, 3, 2)
IDLE_TIMEOUT = _reason("idle_timeout", "no traffic for too long", _ADMIN, _T.IDLE_TIMEOUT, 3, 2)
DUPLICATE_USER = _reason("duplicate_user", "the same user has logged in again", _ADMIN, _T.NAS_REQUEST, 1, 0)
DUPLICATE_ADDRESS = _reason(
    "duplicate_address", "the address was given to a newer session", _ADMIN, _T.NAS_REQUEST, 1, 0
)
ADMIN_DROP = _reason("admin_drop", "dropped by the operator", _ADMIN, _T.ADMIN_RESET, 1, 0)
SHUTDOWN = _reason("shutdown", "the server is being shut down", _ADMIN, _T.ADMIN_REBOOT, 1, 0)
CALL_TIMEOUT = _reason("call_timeout", "no ICCN in time", CdnResult.NOT_IN_TIME, _T.PORT_ERROR)
LOGIN_TIMEOUT = _reason("login_timeout", "not online in time", _ADMIN, _T.PORT_ERROR, 5, 0)
NO_RESOURCES = _reason(
    "no_resources",
    "too many calls",
    CdnResult.NO_FACILITIES,
    _T.SERVICE_UNAVAILABLE,
    error=ErrorCode.RESOURCES,
)
PROTOCOL_ERROR = _reason("protocol_error", "protocol error of the LAC", _GENERAL, _T.NAS_ERROR, error=ErrorCode.VENDOR)
INTERNAL_ERROR = _reason("internal_error", "an error of this server", _GENERAL, _T.NAS_ERROR, error=ErrorCode.VENDOR)


class SessionEnded(Exception):
    """Ends a session from inside its greenlet. `tell`: the LAC still needs a CDN.

    `result`, `error` and `text` replace the codes of the reason where the RFC demands other ones.
    """

    def __init__(
        self, reason: Reason, *, tell: bool = True, result: int | None = None, error: int | None = None, text: str = ""
    ) -> None:
        super().__init__(reason.name)
        self.reason = reason
        self.tell = tell
        self.result = reason.result if result is None else result
        self.error = reason.error if error is None else error
        self.text = text or reason.text

    def detached(self) -> SessionEnded:
        """Return the exception without its frames: they refer to each other, and both to the session."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class TunnelEnded(Exception):
    """Ends a tunnel from inside its greenlet.

    `result` is the result code of the StopCCN to send; None if the LAC needs none (it has sent one, or is gone).
    """

    def __init__(self, reason: Reason, result: int | None, error: int = 0, text: str = "") -> None:
        super().__init__(reason.name)
        self.reason = reason
        self.result = result
        self.error = error
        self.text = text or reason.text

    def detached(self) -> TunnelEnded:
        """Return the exception without its frames, as SessionEnded.detached does."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self
