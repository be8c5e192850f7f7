"""The life of a tunnel: the control connection of RFC 2661 as an LNS sees it (RFC 2661 5 to RFC 2661 7.2).

One greenlet per tunnel runs it from top to bottom; no other greenlet uses its `Reliable`. Sessions have greenlets of
their own, and queue their messages by `send`. What a message does is in dispatch.py and calls.py. A tunnel that the LAC
asked for begins with `open_passive`; one that was established before a restart begins with `serve`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from typing import Any

import gevent

from l2tpns import causes
from l2tpns.causes import Cause, TunnelEnded
from l2tpns.config import lac_config
from l2tpns.dataplane.endpoint import Endpoint
from l2tpns.errors import ProtocolError
from l2tpns.l2tp.address_change import AddressChange, Foreign
from l2tpns.l2tp.authentication import TunnelAuthentication
from l2tpns.l2tp.dispatch import handle_message
from l2tpns.l2tp.owner import TunnelOwner
from l2tpns.l2tp.timing import TunnelTiming
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.codes import Framing
from l2tpns.proto.l2tp.header import ControlHeader
from l2tpns.proto.l2tp.messages import (
    HELLO,
    ICRQ,
    SCCRP,
    SCCRQ,
    ErrorCode,
    Message,
    ResultCode,
    StopCCN,
    StopCcnResult,
)
from l2tpns.proto.l2tp.reliable import Reliable
from l2tpns.runtime.cooperative import PAUSE
from l2tpns.runtime.mailbox import Mailbox, serve_until
from l2tpns.runtime.peer import Peer
from l2tpns.subscriber.services import Services
from l2tpns.subscriber.session import Session

ENDS_AT_ONCE = 16  # sessions of a tunnel that are asked to end before other greenlets run
MAX_REPORTED = 16  # different log lines of a tunnel about ignored AVPs


class TunnelState(Enum):
    """The states of RFC 2661 7.2.1 that an LNS has. The operator sees the value."""

    WAIT_CTL_CONN = "Opening"
    ESTABLISHED = "Open"
    CLOSING = "Closing"


@dataclass(slots=True)
class Outgoing:
    """A control message to be sent. `session_id` is the LAC's."""

    message: Message
    session_id: int


@dataclass(slots=True)
class End:
    """A request to close the tunnel."""

    why: TunnelEnded


class Tunnel:
    """The control connection with one LAC. `peer_id` is the LAC's id of it, `host` the LAC's host name."""

    def __init__(
        self,
        services: Services,
        owner: TunnelOwner[Tunnel],
        timing: TunnelTiming,
        tunnel_id: int,
        peer: Peer,
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
        self.lac = peer[0]  # the address that the limits count, even if the LAC moves
        self.endpoint = endpoint
        endpoint.hold()
        self.host = host
        self.peer_id = peer_id
        self.sessions: dict[int, Session] = {}  # by our session id
        self.by_peer_id: dict[int, Session] = {}
        self.state = TunnelState.WAIT_CTL_CONN
        self.evicted = False  # removed by the LNS: it must not send or report anything any more
        self.dropping = False  # by the operator: its sessions have been sent their CDN, its StopCCN follows
        self.mailbox = Mailbox(owner.limits.mailbox)
        self.opened_at = self.last_heard = self.last_used = self.timing.clock()
        self.log = services.log.bind(tunnel=tunnel_id, peer=f"{peer[0]}:{peer[1]}", host=self.host)
        self.profile, self.config = lac_config.choose(services.config, self.lac, host)
        self.secret = self.config.l2tp_secret_octets
        self.authentication = TunnelAuthentication(self.secret)
        self.reliable = reliable
        self.reliable.peer_tunnel_id = self.peer_id
        self.address_change = AddressChange(timing)
        self._calls_ended = False  # each of them was asked to end
        self._foreign_posted = False
        self._retransmissions_counted = 0
        self._work_began = 0.0  # CPU seconds of this process at the end of the last pause
        self._reported: set[tuple[str, str]] = set()  # (message, AVPs) of the log lines about ignored AVPs
        self._pauses = services.awake.pauses

    def count_as(self, lac: str) -> None:
        """Count the tunnel as that of a LAC which has moved since it began, with the profile of its first address."""
        self.lac = lac
        self.profile, self.config = lac_config.choose(self.services.config, lac, self.host)
        self.secret = self.config.l2tp_secret_octets
        self.authentication = TunnelAuthentication(self.secret)

    # Life

    def run(self, open: Callable[[], None] | None = None) -> None:
        """Live from `open` to the last acknowledgement. Without `open` the tunnel is established already."""
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
                self.finish(end)
            if not self.reliable.proven:
                self.charge()

    def finish(self, end: TunnelEnded) -> None:
        """Close, and remove the tunnel and its sessions from the LNS whatever fails meanwhile."""
        try:
            self.close(end)
        except Exception:
            self.log.exception("tunnel_failed")
        finally:
            if not self._calls_ended:
                for session in list(self.sessions.values()):
                    session.end(end.cause, tell=False)
            self.owner.tunnel_gone(self)

    def receive_sccrq(self, header: ControlHeader) -> None:
        """Take the SCCRQ that `open_passive` answers, so that repetitions are recognised. Does not yield."""
        self.reliable.await_proof()  # the source address of the SCCRQ may be forged
        self.reliable.receive(header, self.now())

    def open_passive(self, sccrq: SCCRQ) -> None:
        """Answer the SCCRQ and wait for an acceptable SCCCN (RFC 2661 7.2.1)."""
        config = self.config
        response = self.authentication.respond(SCCRP.message_type, sccrq.challenge)
        challenge = None
        if self.secret and config.l2tp_challenge:
            challenge = self.authentication.challenge(self.services.random)
        self.log.debug("tunnel_opening", window=self.reliable.peer_window)
        self.send(
            SCCRP(
                protocol_version=messages.VERSION_1_0,
                framing_capabilities=Framing.SYNC | Framing.ASYNC,
                host_name=config.name_on(IPv4Address(self.endpoint.address)).encode(),
                assigned_tunnel_id=self.id,
                receive_window_size=config.receive_window,
                vendor_name=b"l2tpns",
                challenge=challenge,
                challenge_response=response,
            )
        )
        if not self.wait(lambda: self.established, self.timing.establish_timeout):
            raise TunnelEnded(causes.TUNNEL_LOST, StopCcnResult.CLEAR, text="no SCCCN in time")

    def serve(self) -> None:
        """Serve the established tunnel. Send a HELLO when the LAC has been silent (RFC 2661 5.5)."""
        while True:
            config = self.config
            self.wait(lambda: False, self.next_poll(self.timing.clock()))
            now = self.timing.clock()
            if config.tunnel_idle_timeout and not self.sessions and self.unused(now) >= config.tunnel_idle_timeout:
                raise TunnelEnded(causes.IDLE_TIMEOUT, StopCcnResult.CLEAR, text="no session for too long")
            self.heard_data()
            silence = config.hello_seconds
            if silence and now - self.last_heard >= silence and self.reliable.idle:
                self.send(HELLO())

    def next_poll(self, now: float) -> float:
        """Return the seconds until a HELLO or the idle time-out may be due."""
        config = self.config
        poll = self.timing.max_poll
        if config.hello_seconds:
            poll = min(poll, self.last_heard + config.hello_seconds - now)
        if config.tunnel_idle_timeout:
            # The last session may end during the wait: polling once in each idle time-out is often enough.
            poll = min(poll, config.tunnel_idle_timeout - (0.0 if self.sessions else self.unused(now)))
        # The reply to a HELLO moves last_heard. Until then poll again soon, but not in a busy loop.
        return max(poll, min(self.timing.min_poll, self.timing.max_poll))

    def unused(self, now: float) -> float:
        """Return the seconds without a session, except pauses of this process: the LAC could start none in these."""
        return now - self.last_used - self.services.awake.paused_since(self.last_used)

    def heard_data(self) -> None:
        """Count data messages as signs of life of the LAC, as control messages are (RFC 2661 5.5)."""
        refresh = self.services.plane.refresh
        for session in self.sessions.values():
            refresh(session.path)
            if session.path.last_rx > self.last_heard:
                self.last_heard = session.path.last_rx

    def data_since(self, when: float) -> bool:
        """Return True if a data message has come since then, by `now`."""
        awake, refresh = self.services.awake, self.services.plane.refresh
        for session in self.sessions.values():
            refresh(session.path)
            if awake.at(session.path.last_rx) > when:
                return True
        return False

    def close(self, end: TunnelEnded) -> None:
        """End all sessions without a CDN (RFC 2661 6.4), send the StopCCN if one is due, then keep acknowledging."""
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
        self.owner.tunnel_closing(self, sends_stopccn=end.result is not None)
        lingers = self.reliable.proven and self.owner.may_linger()  # a tunnel of a forged address does not
        if not (self.services.handed_over or self.evicted):
            self.flush(self.now())  # the StopCCN of the LAC is acknowledged before
        self._end_calls(end)
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
            pass  # the LAC no longer responds
        if not (self.services.handed_over or self.evicted):
            self.flush(self.now())

    def _end_calls(self, end: TunnelEnded) -> None:
        """Ask each session to end. Yields in between: thousands would fill the queue of the event loop."""
        for number, session in enumerate(list(self.sessions.values()), 1):
            session.end(end.cause, tell=False, text=end.text)
            if not number % ENDS_AT_ONCE:
                gevent.sleep(PAUSE)
        self._calls_ended = True

    def now(self) -> float:
        """Return the time by which the LAC is judged, in seconds. It stands still while this process does."""
        return self.services.awake.at(self.timing.clock())

    @property
    def established(self) -> bool:
        """Return True between the SCCCN and the end of the tunnel."""
        return self.state is TunnelState.ESTABLISHED

    @property
    def closing(self) -> bool:
        """Return True when the tunnel only acknowledges."""
        return self.state is TunnelState.CLOSING

    @property
    def quiet(self) -> bool:
        """Return True if all messages to the LAC are sent and acknowledged."""
        return not len(self.mailbox) and self.reliable.idle

    def has_backlog(self) -> bool:
        """Return True if so much is unacknowledged that nothing more may be answered.

        Without this limit a LAC that acknowledges nothing would fill the memory.
        """
        return (
            self.reliable.queue_length + len(self.mailbox) >= self.owner.limits.max_unanswered
        )  # our messages wait there first

    # Called by other greenlets

    def send(self, message: Message, session_id: int = 0) -> None:
        """Queue a control message; `session_id` is the LAC's. Called from any greenlet. Does not yield."""
        self.mailbox.post_urgent(Outgoing(message, session_id))

    def end(self, reason: Cause, result: int | None = StopCcnResult.CLEAR, text: str = "") -> None:
        """Ask the tunnel's greenlet to close with StopCCN `result` (None: without a StopCCN). Does not yield."""
        self.mailbox.post_urgent(End(TunnelEnded(reason, result, text=text)))

    def close_evicted(self) -> None:
        """Close without sending or reporting anything: the tunnel was never established."""
        self.evicted = True
        self.end(causes.TUNNEL_LOST, None)

    def use_endpoint(self, endpoint: Endpoint) -> None:
        """Send from this socket from now on. It has the same address as the one before."""
        if endpoint is not self.endpoint:
            endpoint.hold()
            self.endpoint.release()
            self.endpoint = endpoint

    def add_session(self, session: Session) -> None:
        """Add a session to this tunnel."""
        self.sessions[session.id] = self.by_peer_id[session.peer_id] = session

    def call_started(self, session_id: int) -> None:
        """Stop counting a call as starting: it is online, or has ended."""
        self.owner.call_started(self)

    def call_gone(self, session_id: int) -> None:
        """Remove a call that has ended from the LNS and from this tunnel."""
        session = self.sessions[session_id]
        self.owner.session_gone(session)
        self.remove_session(session)

    def remove_session(self, session: Session) -> None:
        """Remove a session from this tunnel."""
        del self.sessions[session.id]
        self.forget_peer_id(session)
        self.last_used = self.timing.clock()

    def forget_peer_id(self, session: Session) -> None:
        """Free the LAC's id of a session for another call."""
        if self.by_peer_id.get(session.peer_id) is session:
            del self.by_peer_id[session.peer_id]

    def post_foreign(self, header: ControlHeader, peer: Peer) -> None:
        """Post a control message from another address. One at a time: unknown senders must not fill the mailbox."""
        if self.established and not self._foreign_posted and self.reliable.fits(header):
            self._foreign_posted = self.mailbox.post(Foreign(header, peer))

    # Used by dispatch.py, calls.py and address_change.py

    def establish(self) -> None:
        """Enter the state established: the LAC has proved that it knows our id, and the secret if there is one."""
        self.state = TunnelState.ESTABLISHED
        self.last_used = self.timing.clock()
        self.owner.tunnel_established(self)
        self.log.info("tunnel_up", window=self.reliable.peer_window)

    def report_ignored(self, message: str, why: str) -> None:
        """Log which AVPs of a message were ignored, once: a LAC sends the same in each call."""
        if (message, why) not in self._reported and len(self._reported) < MAX_REPORTED:
            self._reported.add((message, why))
            self.log.warning_limited("avp_ignored", message=message, why=why)

    def call_refusal(self) -> ProtocolError | None:
        """Return why there may be no further call now, or None."""
        return self.owner.call_refusal(self)

    def start_session(self, icrq: ICRQ) -> None:
        """Start a session for a call."""
        self.owner.start_session(self, icrq)

    def unused_session_id(self) -> int:
        """Return a session id that is free."""
        return self.owner.unused_session_id()

    def move_refusal(self, peer: Peer, now: float) -> bool:
        """Return True if this tunnel must not look for its LAC at another address now; else count a probe."""
        return self.owner.move_refusal(self, peer, now)

    # The mailbox

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Serve the mailbox until `condition()` holds. Return False after `timeout` seconds. May yield.

        Yields after `timing.slice` seconds of work, however much there is to read. Raises TunnelEnded or ProtocolError.
        """
        return serve_until(self, condition, timeout, self.timing.slice)

    def before_wait(self, now: float) -> float | None:
        """Send what is due, and look for a LAC that has moved. Return when more is due.

        Raises TunnelEnded when the LAC has not acknowledged a message in time.
        """
        self.flush(now)
        if self.reliable.dead:
            raise TunnelEnded(causes.TUNNEL_LOST, None)
        self.address_change.look(self, now)
        dues = [due for due in (self.reliable.deadline, self.address_change.deadline) if due is not None]
        return min(dues) if dues else None

    def pause(self, seconds: float | None) -> None:
        """Block until there is mail, for `seconds` of the tunnel's time at most.

        If there is mail already, let other tunnels with much mail run first.
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
        """Charge the work since the last pause to the budget of unknown senders."""
        self.owner.charge(self.lac, self.timing.cpu_clock() - self._work_began)

    def handle(self, item: Any) -> None:
        """Handle one item of the mailbox."""
        if isinstance(item, ControlHeader):
            now = self.now()
            if self.reliable.fits(item):  # else it may be forged: no sign of life, no reply
                self.last_heard = self.timing.clock()
                self.address_change.on_answer(self, now)
                if item.tunnel_id:
                    self.reliable.proved()  # only a receiver of our first message knows our id
            for header in self.reliable.receive(item, now):
                handle_message(self, header)
        elif isinstance(item, Foreign):
            self.on_foreign(item)
        elif isinstance(item, End):
            if not self.closing or self.evicted:
                raise item.why
        elif isinstance(item, Outgoing):
            message = item.message
            body = messages.encode(
                message,
                secret=self.secret,
                random=self.services.random,
                hide=bool(self.secret) and self.config.l2tp_hide_avps,
            )
            self.log.debug("control_sent", message=type(message).__name__, lac_session=item.session_id)
            self.log.data("control_sent_fields", fields=message)
            self.reliable.send(item.session_id, body, self.now())

    def flush(self, now: float) -> None:
        """Send what is due: new messages, retransmissions, acknowledgements."""
        if self.services.handed_over:
            raise TunnelEnded(causes.SHUTDOWN, None)  # the next process goes on from here
        if self._pauses != self.services.awake.pauses:
            self._pauses = self.services.awake.pauses
            self.reliable.ask_again()
            self.address_change.give_up()
        datagrams = self.reliable.outgoing(now)
        self.services.changes.control(self)  # first: the next process must not know less than the LAC
        for datagram in datagrams:
            self.endpoint.send(datagram, self.peer)
        new = self.reliable.retransmissions - self._retransmissions_counted
        if new:
            self._retransmissions_counted += new
            self.services.counters.control_retransmissions += new

    def on_foreign(self, foreign: Foreign) -> None:
        """Probe whether the LAC has moved. Once that is certain, move there and handle the message."""
        self._foreign_posted = False
        if self.established and self.address_change.on_foreign(self, foreign, self.now()):
            self.move(foreign.peer)
            self.handle(foreign.header)

    def move(self, peer: Peer) -> None:
        """Send everything to another address from now on, and accept nothing from the old one."""
        self.log.warning("tunnel_moved", new_peer=f"{peer[0]}:{peer[1]}")
        self.address_change.moved()
        self.owner.tunnel_moved(self, peer)
        self.peer = peer
        self.log = self.log.bind(peer=f"{peer[0]}:{peer[1]}")
        for session in self.sessions.values():
            session.lac_moved(peer)
        self.services.changes.tunnel(self)
