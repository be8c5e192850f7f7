"""What each control message does in a tunnel: one handler for each type (RFC 2661 7.2.1).

Called by the tunnel's greenlet, for messages in sequence only; nothing here yields. Handlers end the tunnel by raising
TunnelEnded or ProtocolError. Messages of calls are handled by calls.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from l2tpns import causes
from l2tpns.causes import TunnelEnded
from l2tpns.errors import ProtocolError
from l2tpns.l2tp import calls
from l2tpns.l2tp.authentication import TunnelAuthentication
from l2tpns.l2tp.calls import CallTunnel
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import ControlHeader
from l2tpns.proto.l2tp.messages import (
    CDN,
    HELLO,
    ICCN,
    ICRP,
    ICRQ,
    OCCN,
    OCRP,
    OCRQ,
    SCCCN,
    SCCRP,
    SCCRQ,
    SLI,
    WEN,
    Message,
    MessageError,
    StopCCN,
    StopCcnResult,
    UnknownMessage,
)


class ControlTunnel(CallTunnel, Protocol):
    """A tunnel, as far as its control messages are concerned."""

    secret: bytes
    authentication: TunnelAuthentication

    @property
    def closing(self) -> bool:
        """Return True when the tunnel only acknowledges."""

    def establish(self) -> None:
        """Enter the state established."""

    def report_ignored(self, message: str, why: str) -> None:
        """Log which AVPs of a message were ignored."""


def handle_message(tunnel: ControlTunnel, header: ControlHeader) -> None:
    """Decode one message and call its handler."""
    if tunnel.closing:
        return  # Reliable acknowledges it; nothing else is due
    try:
        message = messages.decode(header.body, tunnel.secret)
    except MessageError as error:
        tunnel.services.counters.control_malformed += 1
        tunnel.log.warning_limited("control_refused", message=error.message_type, why=error.text)
        on_malformed(tunnel, header, error)
        return
    tunnel.log.debug("control_received", message=type(message).__name__, session=header.session_id)
    tunnel.log.data("control_received_fields", fields=message)  # by field, so that the log can hide secrets
    if message.warnings:
        tunnel.report_ignored(type(message).__name__, "; ".join(message.warnings))
    handler = HANDLERS.get(type(message))
    if handler is not None:
        handler(tunnel, header, message)


def on_malformed(tunnel: ControlTunnel, header: ControlHeader, error: MessageError) -> None:
    """End the call that a malformed message concerns, or else the tunnel (RFC 2661 4.1, RFC 2661 7.1).

    A StopCCN or CDN has its effect as far as it could be read.
    """
    if error.message_type == StopCCN.message_type:
        raise TunnelEnded(causes.TUNNEL_CLOSED, None, text=f"malformed StopCCN: {error.text}")
    if error.message_type == CDN.message_type:
        calls.on_malformed_cdn(tunnel, header.session_id, error.assigned_id, error.text)
    elif error.session:
        calls.refuse_call(tunnel, header.session_id, error.assigned_id, error)
    else:
        raise error


def on_scccn(tunnel: ControlTunnel, header: ControlHeader, message: SCCCN) -> None:
    """Establish the tunnel, if the LAC knows the secret."""
    if tunnel.established:
        raise ProtocolError(StopCcnResult.FSM, 0, "SCCCN in an established tunnel")
    if not tunnel.authentication.accepts(SCCCN.message_type, message.challenge_response):
        tunnel.log.warning_limited("tunnel_auth_refused")
        raise ProtocolError(StopCcnResult.NOT_AUTHORISED, 0, "wrong or missing Challenge Response")
    tunnel.establish()


def on_unexpected(tunnel: ControlTunnel, header: ControlHeader, message: Message) -> None:
    """End the tunnel: no state of an LNS that has received the SCCRQ allows this message."""
    raise ProtocolError(StopCcnResult.FSM, 0, f"{type(message).__name__} is not expected here")


def on_stopccn(tunnel: ControlTunnel, header: ControlHeader, message: StopCCN) -> None:
    """End the tunnel without a StopCCN."""
    text = "StopCCN from the LAC: " + messages.describe_result(StopCCN.message_type, message.result_code)
    raise TunnelEnded(causes.TUNNEL_CLOSED, None, text=text)


def on_nothing_to_do(tunnel: ControlTunnel, header: ControlHeader, message: Message) -> None:
    """Do nothing: HELLO and unknown messages with M=0 are only acknowledged (RFC 2661 4.4.1, RFC 2661 6.5)."""


HANDLERS: dict[type[Message], Callable[[Any, ControlHeader, Any], None]] = {
    SCCRQ: on_unexpected,
    SCCRP: on_unexpected,
    SCCCN: on_scccn,
    StopCCN: on_stopccn,
    HELLO: on_nothing_to_do,
    ICRQ: calls.on_icrq,
    ICRP: calls.on_session_message,
    ICCN: calls.on_session_message,
    OCRQ: calls.on_ocrq,
    OCRP: calls.on_session_message,
    OCCN: calls.on_session_message,
    CDN: calls.on_cdn,
    WEN: calls.on_session_message,
    SLI: calls.on_session_message,
    UnknownMessage: on_nothing_to_do,
}
