"""A tunnel's life: the control connection of RFC 2661 as the LNS sees it (sections 5 to 7.2).

One greenlet per tunnel tells it from top to bottom; no other greenlet touches its `Reliable`. Sessions are greenlets of
their own: what concerns a call is mailed to them, and their messages come back through `send`. `open_passive` is how
a tunnel begins that a LAC has asked for; a tunnel that was established before a restart begins at `serve`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from typing import Any, ClassVar, Protocol

from l2tpns import causes
from l2tpns.causes import Cause, SessionEnded, TunnelEnded
from l2tpns.dataplane.endpoint import Endpoint
from l2tpns.errors import ProtocolError
from l2tpns.l2tp.address_change import AddressChange, Foreign
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.codes import DisconnectCode, Framing
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
    CdnResult,
    ErrorCode,
    Message,
    MessageError,
    ResultCode,
    StopCCN,
    StopCcnResult,
    UnknownMessage,
)
from l2tpns.proto.l2tp.reliable import Reliable
from l2tpns.runtime.mailbox import Mailbox, serve_until
from l2tpns.subscriber.services import Services
from l2tpns.subscriber.session import Session

CHALLENGE_LENGTH = 16
MAX_REPORTED = 16  # different lines of a tunnel about AVPs that were ignored


class TunnelState(Enum):
    """States of 7.2.1 as far as an LNS has them; the value is what the operator sees."""

    WAIT_CTL_CONN = "Opening"
    ESTABLISHED = "Open"
    CLOSING = "Closing"


class TunnelOwner(Protocol):
    """What a tunnel asks of the LNS, which has the tables of tunnels and sessions. Nothing here yields."""

    limits: TunnelLimits

    def tunnel_established(self, tunnel: Tunnel) -> None:
        """Note that the SCCCN has come."""

    def tunnel_closing(self, tunnel: Tunnel, *, says_goodbye: bool) -> None:
        """Note that the tunnel ends; it may linger until its StopCCN is acknowledged."""

    def tunnel_moved(self, tunnel: Tunnel, peer: tuple[str, int]) -> None:
        """Note that the LAC sends from another address now."""

    def tunnel_gone(self, tunnel: Tunnel) -> None:
        """Forget the tunnel."""

    def move_refusal(self, tunnel: Tunnel, peer: tuple[str, int], now: float) -> bool:
        """Return whether the tunnel may not look for its LAC at this address now."""

    def charge(self, lac: str, seconds: float) -> None:
        """Take from the time that strangers may use what an unproven tunnel has used."""

    def may_linger(self) -> bool:
        """Return whether one more closed tunnel may stay to acknowledge repeats."""

    def call_refusal(self, tunnel: Tunnel) -> ProtocolError | None:
        """Return why the tunnel may have no further call now, or None."""

    def start_session(self, tunnel: Tunnel, icrq: ICRQ) -> None:
        """Begin a session for a call."""

    def call_started(self, tunnel: Tunnel) -> None:
        """Note that a call is online, or has ended before."""

    def session_gone(self, session: Session) -> None:
        """Forget a session."""

    def unused_session_id(self) -> int:
        """Return a session id that is free."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A control message to be sent; `session_id` is the peer's."""

    message: Message
    session_id: int


@dataclass(frozen=True, slots=True)
class End:
    """The tunnel is to close."""

    why: TunnelEnded


class Tunnel:
    """The control connection with one LAC. `peer_id` is the LAC's id of it, `host` the LAC's host name."""

    def __init__(
        self,
        services: Services,
        owner: TunnelOwner,
        timing: TunnelTiming,
        tunnel_id: int,
        peer: tuple[str, int],
        endpoint: Endpoint,
        peer_id: int,
        host: str,
        reliable: Reliable,
    ) -> None:
        self.services = services
        self.owner = owner
        self.timing = timing
        self.id = tunnel_id
        self.peer = peer
        self.lac = peer[0]  # whom the limits count, even if it moves
        self.endpoint = endpoint
        endpoint.hold()
        self.host = host
        self.peer_id = peer_id
        self.sessions: dict[int, Session] = {}  # by our session id
        self.by_peer_id: dict[int, Session] = {}
        self.state = TunnelState.WAIT_CTL_CONN
        self.evicted = False  # forgotten by the LNS: it must not send or report anything any more
        self.dropping = False  # by the operator: its sessions have their CDN, its StopCCN follows
        self.mailbox = Mailbox(owner.limits.mailbox)
        self.opened_at = self.last_heard = self.last_used = timing.clock()
        self.log = services.log.bind(tunnel=tunnel_id, peer=f"{peer[0]}:{peer[1]}", host=self.host)
        self.secret = services.config.l2tp_secret_octets
        self.reliable = reliable
        self.reliable.peer_tunnel_id = self.peer_id
        self.address_change = AddressChange(timing)
        self._foreign_posted = False
        self._challenge = b""
        self._retransmissions_counted = 0
        self._work_began = 0.0  # CPU seconds of this process when the last pause was over
        self._reported: set[tuple[str, str]] = set()  # messages whose ignored AVPs are in the log, and which they were
        self._pauses = services.awake.pauses

    # The life

    def run(self, open: Callable[[], None] | None = None) -> None:
        """Live from `open` to the last acknowledgement; without `open`, a tunnel that is established already."""
        end = TunnelEnded(causes.INTERNAL_ERROR, StopCcnResult.GENERAL, ErrorCode.VENDOR)
        self._work_began = self.timing.cpu_clock()
        try:
            if open is not None:
                open()
            self.serve()
        except TunnelEnded as reason:
            end = reason.detached()
        except ProtocolError as error:
            end = TunnelEnded(causes.PROTOCOL_ERROR, error.result_code, error.error_code, error.text)
        except Exception:
            self.log.exception("tunnel_failed")
        finally:
            if not (self.services.handed_over or self.evicted):
                self.leave(end)
            if not self.reliable.proven:
                self.charge()

    def leave(self, end: TunnelEnded) -> None:
        """Leave by the one exit, except in a process that hands its tunnels over to the next one."""
        try:
            self.close(end)
        except Exception:
            self.log.exception("tunnel_failed")
        finally:
            for session in list(self.sessions.values()):  # whatever happened, none outlives its tunnel
                session.end(end.cause, tell=False)
            self.owner.tunnel_gone(self)

    def receive_sccrq(self, header: ControlHeader) -> None:
        """Take the SCCRQ that this tunnel answers, so that its repeats are known as such. Does not yield."""
        self.reliable.await_proof()  # the SCCRQ may bear any address
        self.reliable.receive(header, self.now())

    def open_passive(self, sccrq: SCCRQ) -> None:
        """7.2.1: answer the SCCRQ, wait for an acceptable SCCCN."""
        config = self.services.config
        response = None
        if sccrq.challenge is not None:
            if not self.secret:
                raise ProtocolError(StopCcnResult.NOT_AUTHORISED, 0, "no secret is configured to answer a Challenge")
            response = messages.tunnel_auth_response(SCCRP.message_type, self.secret, sccrq.challenge)
        if self.secret and config.l2tp_challenge:
            self._challenge = self.services.random(CHALLENGE_LENGTH)
        self.log.debug("tunnel_opening", window=self.reliable.peer_window)
        self.send(
            SCCRP(
                protocol_version=messages.VERSION_1_0,
                framing_capabilities=Framing.SYNC | Framing.ASYNC,
                host_name=config.name_on(IPv4Address(self.endpoint.address)).encode(),
                assigned_tunnel_id=self.id,
                receive_window_size=config.receive_window,
                vendor_name=b"l2tpns",
                challenge=self._challenge or None,
                challenge_response=response,
            )
        )
        if not self.wait(lambda: self.state is TunnelState.ESTABLISHED, self.timing.establish_timeout):
            raise TunnelEnded(causes.TUNNEL_LOST, StopCcnResult.CLEAR, text="no SCCCN in time")

    def serve(self) -> None:
        """Established: everything arrives through the mailbox; silence is answered with HELLO (5.5)."""
        while True:
            config = self.services.config
            self.wait(lambda: False, self.next_poll(self.timing.clock()))
            now = self.timing.clock()
            if config.tunnel_idle_timeout and not self.sessions and self.unused(now) >= config.tunnel_idle_timeout:
                raise TunnelEnded(causes.IDLE_TIMEOUT, StopCcnResult.CLEAR, text="no session for too long")
            self.heard_data()
            silence = config.hello_seconds
            if silence and now - self.last_heard >= silence and self.reliable.idle:
                self.send(HELLO())

    def next_poll(self, now: float) -> float:
        """Return the seconds until HELLO or the idle time-out may be due."""
        config = self.services.config
        poll = self.timing.max_poll
        if config.hello_seconds:
            poll = min(poll, self.last_heard + config.hello_seconds - now)
        if config.tunnel_idle_timeout:
            # The last session may end while we wait: looking this often is often enough.
            poll = min(poll, config.tunnel_idle_timeout - (0.0 if self.sessions else self.unused(now)))
        # After a HELLO the answer moves last_heard; until then look again soon, not at once.
        return max(poll, min(self.timing.min_poll, self.timing.max_poll))

    def unused(self, now: float) -> float:
        """Return for how long there has been no session, leaving out pauses, in which the LAC could begin none."""
        return now - self.last_used - self.services.awake.paused_since(self.last_used)

    def heard_data(self) -> None:
        """5.5: take data messages for signs of life, as control messages are."""
        for session in self.sessions.values():
            if session.path.last_rx > self.last_heard:
                self.last_heard = session.path.last_rx

    def move_refusal(self, peer: tuple[str, int], now: float) -> bool:
        """Return whether this tunnel may not look for its LAC at another address now; else a probe is counted."""
        return self.owner.move_refusal(self, peer, now)

    def data_since(self, when: float) -> bool:
        """Return whether a data message has come since then, by `now`."""
        awake = self.services.awake
        return any(awake.at(session.path.last_rx) > when for session in self.sessions.values())

    def close(self, end: TunnelEnded) -> None:
        """End all sessions without a CDN (6.4), say StopCCN if the peer must hear it, go on acknowledging."""
        self.state = TunnelState.CLOSING
        if self.reliable.proven or self.log.permits("tunnel_down"):
            self.log.info(
                "tunnel_down",
                cause=end.cause.name,
                why=end.text,
                result=None if end.result is None else int(end.result),
                error=int(end.error),
                sessions=len(self.sessions),
            )
        self.owner.tunnel_closing(self, says_goodbye=end.result is not None)
        lingers = self.reliable.proven and self.owner.may_linger()  # a forged address gets no place
        for session in list(self.sessions.values()):
            session.end(end.cause, tell=False, text=end.text)
        try:
            if end.result is not None:
                self.send(
                    StopCCN(
                        assigned_tunnel_id=self.id,
                        result_code=ResultCode(end.result, end.error, end.text),
                    )
                )
                self.wait(lambda: self.quiet, 2 * self.timing.closed_linger if lingers else 0.0)
            elif end.cause is causes.TUNNEL_CLOSED and lingers:
                self.wait(lambda: False, self.timing.closed_linger)
        except TunnelEnded:
            pass  # the peer is gone as well
        if not (self.services.handed_over or self.evicted):
            self.flush(self.now())

    def now(self) -> float:
        """Return the time by which the LAC is judged; it stands still while this process does."""
        return self.services.awake.at(self.timing.clock())

    @property
    def quiet(self) -> bool:
        """Everything we had to say is said and acknowledged."""
        return not len(self.mailbox) and self.reliable.idle

    # What other greenlets call

    def send(self, message: Message, session_id: int = 0) -> None:
        """Queue a control message; `session_id` is the peer's. Callable from any greenlet."""
        self.mailbox.post_urgent(Outgoing(message, session_id))

    def end(self, reason: Cause, result: int | None = StopCcnResult.CLEAR, text: str = "") -> None:
        """Ask the tunnel's greenlet to close with StopCCN `result` (None: without a word)."""
        self.mailbox.post_urgent(End(TunnelEnded(reason, result, text=text)))

    def close_evicted(self) -> None:
        """Close without sending or reporting anything: it never came up, and another has its place now."""
        self.evicted = True
        self.end(causes.TUNNEL_LOST, None)

    def use(self, endpoint: Endpoint) -> None:
        """Send from this socket, whose address is the same, from now on."""
        if endpoint is not self.endpoint:
            endpoint.hold()
            self.endpoint.release()
            self.endpoint = endpoint

    def session_born(self, session: Session) -> None:
        self.sessions[session.id] = self.by_peer_id[session.peer_id] = session

    def call_started(self, session_id: int) -> None:
        """Count a call no longer among those that are starting."""
        self.owner.call_started(self)

    def call_gone(self, session_id: int) -> None:
        """Forget a call that has ended."""
        session = self.sessions[session_id]
        self.owner.session_gone(session)
        self.forget(session)

    def forget(self, session: Session) -> None:
        """Remove a session from this tunnel."""
        del self.sessions[session.id]
        self.forget_peer_id(session)
        self.last_used = self.timing.clock()

    def forget_peer_id(self, session: Session) -> None:
        if self.by_peer_id.get(session.peer_id) is session:
            del self.by_peer_id[session.peer_id]

    def post_foreign(self, header: ControlHeader, peer: tuple[str, int]) -> None:
        """Hand over a control message from another address. One at a time: strangers must not fill the mailbox."""
        if self.state is TunnelState.ESTABLISHED and not self._foreign_posted and self.reliable.fits(header):
            self._foreign_posted = self.mailbox.post(Foreign(header, peer))

    def on_foreign(self, foreign: Foreign) -> None:
        """Ask whether the LAC has moved; once that is certain, go there and take what it has sent."""
        self._foreign_posted = False
        if self.state is TunnelState.ESTABLISHED and self.address_change.on_foreign(self, foreign, self.now()):
            self.move(foreign.peer)
            self.handle(foreign.header)

    def move(self, peer: tuple[str, int]) -> None:
        """Send everything to another address from now on, and accept nothing from the old one."""
        self.log.warning("tunnel_moved", new_peer=f"{peer[0]}:{peer[1]}")
        self.address_change.moved()
        self.owner.tunnel_moved(self, peer)
        self.peer = peer
        self.log = self.log.bind(peer=f"{peer[0]}:{peer[1]}")
        for session in self.sessions.values():
            session.lac_moved(peer)
        self.services.changes.tunnel(self)

    # The mailbox

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Serve the mailbox until `condition()` holds; False after `timeout` seconds. Raises when the tunnel ends.

        Yields to others after `timing.slice` seconds of work, however much there is to read.
        """
        return serve_until(self, condition, timeout, self.timing.slice)

    def before_wait(self, now: float) -> float | None:
        """Send what is due, look for a LAC that has moved. Return when more is due. Raises when the LAC is dead."""
        self.flush(now)
        if self.reliable.dead:
            raise TunnelEnded(causes.TUNNEL_LOST, None)
        self.address_change.look(self, now)
        dues = [due for due in (self.reliable.deadline, self.address_change.deadline) if due is not None]
        return min(dues) if dues else None

    def pause(self, seconds: float | None) -> None:
        """Block until there is mail, for `seconds` of the tunnel's time at most.

        With mail there, wait for a turn among the tunnels that have much of it.
        """
        if not self.reliable.proven:
            self.charge()
        if len(self.mailbox):
            self.services.tunnel_scheduler.wait_turn()
        else:
            self.mailbox.wait(None if seconds is None else self.services.awake.real(seconds))
        if not self.reliable.proven:
            self._work_began = self.timing.cpu_clock()

    def charge(self) -> None:
        """Account for work since the last pause to the strangers' share of time."""
        self.owner.charge(self.lac, self.timing.cpu_clock() - self._work_began)

    def handle(self, item: Any) -> None:
        if isinstance(item, ControlHeader):
            now = self.now()
            if self.reliable.fits(item):  # else it may be forged: no sign of life, no answer
                self.last_heard = self.timing.clock()
                self.address_change.on_answer(self, now)
                if item.tunnel_id:
                    self.reliable.proved()  # our id stands in nothing but our SCCRP
            for header in self.reliable.receive(item, now):
                self.on_message(header)
        elif isinstance(item, Foreign):
            self.on_foreign(item)
        elif isinstance(item, End):
            if self.state is not TunnelState.CLOSING or self.evicted:
                raise item.why
        elif isinstance(item, Outgoing):
            message = item.message
            body = messages.encode(
                message,
                secret=self.secret,
                random=self.services.random,
                hide=bool(self.secret) and self.services.config.l2tp_hide_avps,
            )
            self.log.debug("control_sent", message=type(message).__name__, lac_session=item.session_id)
            self.log.data("control_sent_fields", fields=message)
            self.reliable.send(item.session_id, body, self.now())

    def flush(self, now: float) -> None:
        """Put on the wire what is due: new messages, retransmissions, acknowledgements."""
        if self.services.handed_over:
            raise TunnelEnded(causes.SHUTDOWN, None)  # the next process goes on from here
        if self._pauses != self.services.awake.pauses:
            self._pauses = self.services.awake.pauses
            self.reliable.ask_again()
            self.address_change.give_up()
        datagrams = self.reliable.outgoing(now)
        self.services.changes.control(self)  # a successor must not know less than what the LAC is about to see
        for datagram in datagrams:
            self.endpoint.send(datagram, self.peer)
        new = self.reliable.retransmissions - self._retransmissions_counted
        if new:
            self._retransmissions_counted += new
            self.services.counters.control_retransmissions += new

    # Messages (7.2.1)

    def on_message(self, header: ControlHeader) -> None:
        """Grade (4.1, 7.1), then dispatch one message that is in sequence."""
        if self.state is TunnelState.CLOSING:
            return  # acknowledged by Reliable, nothing else
        try:
            message = messages.decode(header.body, self.secret)
        except MessageError as error:
            self.services.counters.control_malformed += 1
            self.log.warning_limited("control_refused", message=error.message_type, why=error.text)
            self.on_malformed(header, error)
            return
        self.log.debug("control_received", message=type(message).__name__, session=header.session_id)
        self.log.data("control_received_fields", fields=message)  # by field, so that secrets are known as such
        if message.warnings:
            self.report_ignored(type(message).__name__, "; ".join(message.warnings))
        handler = self.HANDLERS.get(type(message))
        if handler is not None:
            handler(self, header, message)

    def report_ignored(self, message: str, why: str) -> None:
        """Log which AVPs of a message were ignored. A LAC says the same at each call: the tunnel logs it once."""
        if (message, why) not in self._reported and len(self._reported) < MAX_REPORTED:
            self._reported.add((message, why))
            self.log.warning_limited("avp_ignored", message=message, why=why)

    def on_malformed(self, header: ControlHeader, error: MessageError) -> None:
        """4.1, 7.1: a call's message ends that call, any other the tunnel. Goodbyes are obeyed as far as understood."""
        if error.message_type == StopCCN.message_type:
            raise TunnelEnded(causes.TUNNEL_CLOSED, None, text=f"malformed StopCCN: {error.text}")
        if error.message_type == CDN.message_type:
            end = SessionEnded(causes.LAC_CDN, tell=False, result=0, text=error.text)
            self.end_call(header.session_id, error.assigned_id, end)
        elif error.session:
            self.refuse_call(header.session_id, error.assigned_id, error)
        else:
            raise error

    def on_scccn(self, header: ControlHeader, message: SCCCN) -> None:
        if self.state is not TunnelState.WAIT_CTL_CONN:
            raise ProtocolError(StopCcnResult.FSM, 0, "SCCCN in an established tunnel")
        if self._challenge:
            expected = messages.tunnel_auth_response(SCCCN.message_type, self.secret, self._challenge)
            if not hmac.compare_digest(expected, message.challenge_response or b""):
                self.log.warning_limited("tunnel_auth_refused")
                raise ProtocolError(StopCcnResult.NOT_AUTHORISED, 0, "wrong or missing Challenge Response")
        self.state = TunnelState.ESTABLISHED
        self.last_used = self.timing.clock()
        self.owner.tunnel_established(self)
        self.log.info("tunnel_up", window=self.reliable.peer_window)

    def on_unexpected(self, header: ControlHeader, message: Message) -> None:
        raise ProtocolError(StopCcnResult.FSM, 0, f"{type(message).__name__} is not expected here")

    def on_stopccn(self, header: ControlHeader, message: StopCCN) -> None:
        text = "StopCCN from the LAC: " + messages.describe_result(StopCCN.message_type, message.result_code)
        raise TunnelEnded(causes.TUNNEL_CLOSED, None, text=text)

    def on_icrq(self, header: ControlHeader, message: ICRQ) -> None:
        if self.state is not TunnelState.ESTABLISHED:
            raise ProtocolError(StopCcnResult.FSM, 0, "ICRQ before SCCCN")
        if header.session_id:
            self.on_session_message(header, message)
            return
        known = self.by_peer_id.get(message.assigned_session_id)
        if known is not None:
            # 7.4.2: an ICRQ for a call that is there ends it. The LAC could not tell which of the two our CDN means.
            error = ProtocolError(CdnResult.GENERAL, ErrorCode.SESSION_ID, "Session ID is in use")
            self.refuse_call(known.id, known.peer_id, error)
            return
        refusal = self.owner.call_refusal(self)
        if refusal is not None:
            self.services.counters.calls_refused += 1
            self.refuse_call(0, message.assigned_session_id, refusal)
            return
        self.owner.start_session(self, message)

    def on_ocrq(self, header: ControlHeader, message: OCRQ) -> None:
        """6.9: a LAC never asks an LNS to dial."""
        error = ProtocolError(CdnResult.GENERAL, ErrorCode.VENDOR, "this LNS places no outgoing calls")
        self.refuse_call(0, message.assigned_session_id, error)

    def on_cdn(self, header: ControlHeader, message: CDN) -> None:
        text = messages.describe_result(CDN.message_type, message.result_code)
        if message.disconnect_cause is not None:  # RFC 3145
            text += f"; {DisconnectCode.describe(message.disconnect_cause.code)}"
        code = message.result_code
        reason = causes.LAC_LOST_CARRIER if code.result == CdnResult.LOST_CARRIER else causes.LAC_CDN
        end = SessionEnded(reason, tell=False, result=code.result, error=code.error, text=text)
        self.end_call(header.session_id, message.assigned_session_id, end)

    def end_call(self, session_id: int, peer_session_id: int, end: SessionEnded) -> None:
        """The LAC has ended a call; it may use its session id again in the very next message."""
        session = self.sessions.get(session_id)
        if session is None and not session_id:
            # 4.4.4: sent before the peer knew our id; it names its own.
            session = self.by_peer_id.get(peer_session_id)
        if session is not None:
            self.forget_peer_id(session)
            session.end_from_lac(end)

    def on_session_message(self, header: ControlHeader, message: Message) -> None:
        session = self.sessions.get(header.session_id)
        if session is None:
            self.services.counters.drop_unknown_session += 1
            self.log.debug("control_for_no_session", message=type(message).__name__, session=header.session_id)
            if isinstance(message, (ICRQ, ICRP)):  # 7.4.2 idle; ICCN and the rest find nothing to clean up
                error = ProtocolError(CdnResult.GENERAL, ErrorCode.SESSION_ID, "there is no such call")
                self.refuse_call(0, message.assigned_session_id, error)
        else:
            session.post_message(message)

    def has_backlog(self) -> bool:
        """Return whether so much waits for the LAC that nothing more is answered: else it could fill our memory."""
        queued = self.reliable.queue_length + len(self.mailbox)  # what we send waits in the mailbox first
        return queued >= self.owner.limits.max_unanswered

    def on_nothing_to_do(self, header: ControlHeader, message: Message) -> None:
        """HELLO, and messages of an unknown type with M=0: acknowledged, that is all (4.4.1, 6.5)."""

    def refuse_call(self, session_id: int, peer_session_id: int, error: ProtocolError) -> None:
        """A mistake in a call's message ends that call only (4.1, 7.4.2)."""
        session = self.sessions.get(session_id)
        if session is not None:
            session.end_from_lac(error)
        elif not self.has_backlog():
            self.send(
                CDN(
                    result_code=ResultCode(error.result_code, error.error_code, error.text),
                    assigned_session_id=self.owner.unused_session_id(),
                ),
                peer_session_id,
            )

    HANDLERS: ClassVar[dict[type[Message], Callable[[Any, ControlHeader, Any], None]]] = {
        SCCRQ: on_unexpected,
        SCCRP: on_unexpected,
        SCCCN: on_scccn,
        StopCCN: on_stopccn,
        HELLO: on_nothing_to_do,
        ICRQ: on_icrq,
        ICRP: on_session_message,
        ICCN: on_session_message,
        OCRQ: on_ocrq,
        OCRP: on_session_message,
        OCCN: on_session_message,
        CDN: on_cdn,
        WEN: on_session_message,
        SLI: on_session_message,
        UnknownMessage: on_nothing_to_do,
    }
