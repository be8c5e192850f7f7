"""Control messages that concern a call: ICRQ, CDN, and all that a session receives (RFC 2661 7.4.2).

Called by the greenlet of the call's tunnel; nothing here yields. Each session has a greenlet of its own and gets its
messages through its mailbox. A mistake in a message of a call ends that call only (RFC 2661 4.1, RFC 2661 7.4.2).
"""

from __future__ import annotations

from typing import Protocol

from l2tpns import causes
from l2tpns.causes import SessionEnded
from l2tpns.errors import ProtocolError
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.codes import DisconnectCode
from l2tpns.proto.l2tp.header import ControlHeader
from l2tpns.proto.l2tp.messages import (
    CDN,
    ICRP,
    ICRQ,
    OCRQ,
    CdnResult,
    ErrorCode,
    Message,
    ResultCode,
    StopCcnResult,
)
from l2tpns.runtime.log import Logger
from l2tpns.subscriber.services import Services
from l2tpns.subscriber.session import Session


class CallTunnel(Protocol):
    """A tunnel, as far as its calls are concerned."""

    log: Logger
    services: Services
    sessions: dict[int, Session]  # by our session id
    by_peer_id: dict[int, Session]  # by the LAC's

    @property
    def established(self) -> bool:
        """Return True if calls are possible."""

    def send(self, message: Message, session_id: int = 0) -> None:
        """Queue a control message; `session_id` is the LAC's."""

    def has_backlog(self) -> bool:
        """Return True if so much is unacknowledged that nothing more may be answered."""

    def forget_peer_id(self, session: Session) -> None:
        """Free the LAC's id of a session for another call."""

    def call_refusal(self) -> ProtocolError | None:
        """Return why there may be no further call now, or None."""

    def start_session(self, icrq: ICRQ) -> None:
        """Start a session for a call."""

    def unused_session_id(self) -> int:
        """Return a session id that is free."""


def on_icrq(tunnel: CallTunnel, header: ControlHeader, message: ICRQ) -> None:
    """Start a session, or refuse the call."""
    if not tunnel.established:
        raise ProtocolError(StopCcnResult.FSM, 0, "ICRQ before SCCCN")
    if header.session_id:
        on_session_message(tunnel, header, message)
        return
    known = tunnel.by_peer_id.get(message.assigned_session_id)
    if known is not None:
        # RFC 2661 7.4.2: an ICRQ for an existing call ends it. The LAC could not tell which of the two a CDN means.
        error = ProtocolError(CdnResult.GENERAL, ErrorCode.SESSION_ID, "Session ID is in use")
        refuse_call(tunnel, known.id, known.peer_id, error)
        return
    refusal = tunnel.call_refusal()
    if refusal is not None:
        tunnel.services.counters.calls_refused += 1
        tunnel.log.warning_limited("call_refused", why=refusal.text)
        refuse_call(tunnel, 0, message.assigned_session_id, refusal)
        return
    tunnel.start_session(message)


def on_ocrq(tunnel: CallTunnel, header: ControlHeader, message: OCRQ) -> None:
    """Refuse an outgoing call: a LAC never asks an LNS to dial (RFC 2661 6.9)."""
    error = ProtocolError(CdnResult.GENERAL, ErrorCode.VENDOR, "this LNS does not support outgoing calls")
    refuse_call(tunnel, 0, message.assigned_session_id, error)


def on_cdn(tunnel: CallTunnel, header: ControlHeader, message: CDN) -> None:
    """End the call that the LAC has ended."""
    text = messages.describe_result(CDN.message_type, message.result_code)
    if message.disconnect_cause is not None:  # RFC 3145
        text += f"; {DisconnectCode.describe(message.disconnect_cause.code)}"
    code = message.result_code
    reason = causes.LAC_LOST_CARRIER if code.result == CdnResult.LOST_CARRIER else causes.LAC_CDN
    end = SessionEnded(reason, tell=False, result=code.result, error=code.error, text=text)
    end_call(tunnel, header.session_id, message.assigned_session_id, end)


def on_malformed_cdn(tunnel: CallTunnel, session_id: int, peer_session_id: int, why: str) -> None:
    """End the call of a CDN, of which only the ids could be read."""
    end_call(tunnel, session_id, peer_session_id, SessionEnded(causes.LAC_CDN, tell=False, result=0, text=why))


def end_call(tunnel: CallTunnel, session_id: int, peer_session_id: int, end: SessionEnded) -> None:
    """End a call without a CDN. The LAC may use its session id again in its very next message."""
    session = tunnel.sessions.get(session_id)
    if session is None and not session_id:
        # RFC 2661 4.4.4: sent before the LAC knew our id, so the CDN carries its own.
        session = tunnel.by_peer_id.get(peer_session_id)
    if session is not None:
        tunnel.forget_peer_id(session)
        session.end_from_lac(end)


def on_session_message(tunnel: CallTunnel, header: ControlHeader, message: Message) -> None:
    """Pass a message to its session."""
    session = tunnel.sessions.get(header.session_id)
    if session is None:
        tunnel.services.counters.drop_unknown_session += 1
        tunnel.log.debug("control_for_no_session", message=type(message).__name__, session=header.session_id)
        if isinstance(message, (ICRQ, ICRP)):  # RFC 2661 7.4.2, state idle; for ICCN and others nothing is due
            error = ProtocolError(CdnResult.GENERAL, ErrorCode.SESSION_ID, "unknown call")
            refuse_call(tunnel, 0, message.assigned_session_id, error)
    else:
        session.post_message(message)


def refuse_call(tunnel: CallTunnel, session_id: int, peer_session_id: int, error: ProtocolError) -> None:
    """End the session of a call with this error. Without a session, send a CDN to the LAC's session id."""
    session = tunnel.sessions.get(session_id)
    if session is not None:
        session.end_from_lac(error)
    elif not tunnel.has_backlog():
        tunnel.send(
            CDN(
                result_code=ResultCode(error.result_code, error.error_code, error.text),
                assigned_session_id=tunnel.unused_session_id(),
            ),
            peer_session_id,
        )
