"""The life of a session: one incoming call of the LNS (RFC 2661 7.4.2) and its PPP link (RFC 1661).

Each session has one greenlet, and `Session.run` is its whole life. It blocks only in `link.wait`, which serves the
automata: LCP Echo-Requests and Terminate-Requests get a reply while RADIUS is slow. IP packets of an online session do
not pass here: the data plane carries them by the session's path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import gevent
from gevent.hub import Waiter

from l2tpns import causes
from l2tpns.causes import Cause, SessionEnded
from l2tpns.errors import ProtocolError
from l2tpns.policy.model import Policy
from l2tpns.proto.l2tp.messages import (
    CDN,
    ICCN,
    ICRP,
    ICRQ,
    SLI,
    WEN,
    CdnResult,
    DisconnectCause,
    ErrorCode,
    Message,
    ResultCode,
)
from l2tpns.proto.ppp.automaton import State
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.radius.types import AuthRequest, TerminateCause, Usage
from l2tpns.runtime.scheduler import Rank
from l2tpns.subscriber import accounting, authentication, history, network, plugin_hooks, proxy, timers
from l2tpns.subscriber.link import TIMER, PppLink, Renegotiated
from l2tpns.subscriber.phase import Phase
from l2tpns.subscriber.services import LacConnection, Services
from l2tpns.subscriber.state import SessionState

FRAMING_TYPES = 3  # advertised in the SCCRP: synchronous and asynchronous (RFC 2661 4.4.3)


class Session(SessionState):
    """A session and its life. `run` is its greenlet."""

    __slots__ = ("_iccn_came",)

    def __init__(self, services: Services, tunnel: LacConnection, session_id: int, icrq: ICRQ) -> None:
        super().__init__(services, tunnel, session_id, icrq)
        self._iccn_came = False
        on_credentials = partial(authentication.on_credentials, self)
        self.link = PppLink(
            services, tunnel.config, self.path, self.log, self._on_message, self._on_timer, on_credentials
        )

    # The life

    def start(self) -> None:
        """Begin the session's greenlet. Does not yield."""
        self.greenlet = gevent.spawn(self.run)

    def run(self) -> None:
        """Run the session from ICRQ to CDN, a restored one from where it was. Does not raise."""
        ended = SessionEnded(causes.SHUTDOWN)  # if the greenlet is killed
        try:
            resumed = self.is_online
            if not resumed:
                self.wait_for_turn()
                self.answer_call()
            while True:
                try:
                    if resumed:  # a plugin may block, and LCP be renegotiated meanwhile
                        resumed = False
                        plugin_hooks.new_session(self, resumed=True)
                    if not self.is_online:
                        self.open_link()
                        authentication.authenticate(self)
                        network.open_networks(self)
                        self.go_online()
                    self.serve()
                except Renegotiated:
                    self.log.info("lcp_renegotiated", user=self.user)
                    plugin_hooks.kill_session(self, causes.USER_REQUEST.name)
                    self.go_offline(causes.USER_REQUEST)
                    self.restart_negotiation()
        except SessionEnded as end:
            ended = end.detached()
        except ProtocolError as error:
            ended = SessionEnded(
                causes.PROTOCOL_ERROR, result=error.result_code, error=error.error_code, text=error.text
            )
        except Exception:
            self.log.exception("session_failed")
            ended = SessionEnded(causes.INTERNAL_ERROR)
        finally:
            try:
                self.wait_to_release()
            finally:
                if not self.services.handed_over:
                    self.release(ended)

    def wait_for_turn(self) -> None:
        """Wait until no login that has begun needs the time, in the order of the LAC's calls. Raises SessionEnded."""
        services, lac = self.services, self.tunnel.lac
        timeout = self.tunnel.config.call_wait_timeout
        turn = services.session_scheduler.book(lac, Rank.BEGIN, self.link.wake)
        try:
            if not self.link.wait(lambda: turn.come, timeout):
                services.counters.calls_overdue += 1
                self.log.warning_limited("call_refused", why=causes.OVERLOADED.text, seconds=timeout)
                raise SessionEnded(causes.OVERLOADED)
        finally:
            services.session_scheduler.cancel(lac, Rank.BEGIN, turn)

    def answer_call(self) -> None:
        """Send the ICRP and wait for an acceptable ICCN (RFC 2661 7.4.2). Raises SessionEnded or ProtocolError."""
        services, link = self.services, self.link
        services.plane.attach(self.path)
        self.tunnel.send(ICRP(assigned_session_id=self.id), self.peer_id)
        if not link.wait(lambda: self.connected is not None, self.tunnel.config.call_timeout):
            raise SessionEnded(causes.CALL_TIMEOUT)
        assert self.connected is not None
        if self.connected.framing_type & ~FRAMING_TYPES:
            raise ProtocolError(CdnResult.GENERAL, ErrorCode.VALUE, "Framing Type was not advertised")
        self.path.sequenced = self.connected.sequencing_required
        self.tx_speed = self.connected.tx_connect_speed
        self.rx_speed = self.connected.rx_speed
        link.login_deadline = link.now() + self.tunnel.config.login_timeout
        link.take_early_frames()
        self.log.debug("call_connected", calling=self.calling, called=self.called)

    def open_link(self) -> None:
        """Negotiate LCP, or adopt the LAC's negotiation if it is complete and allowed (RFC 2661 4.4.5). May yield."""
        link, lcp = self.link, self.link.lcp
        link.phase = Phase.LCP
        now = link.now()
        self.proxied = None  # after a renegotiation the subscriber must authenticate again
        if lcp.state is State.INITIAL:
            iccn, self.connected = self.connected, None
            assert iccn is not None
            taken = proxy.adopt_proxy(lcp, iccn, self.tunnel.config, now)
            if taken.why_not:
                self.log.debug("proxy_lcp_not_adopted", why=taken.why_not)
                lcp.open(now)
                lcp.lower_up(now)
            else:
                self.log.debug("proxy_lcp_adopted")
            self.proxied = taken.credentials
        link.wait(lambda: lcp.opened)
        link.log_refused("LCP", lcp.refusals())

    def go_online(self) -> None:
        """Install routes, start forwarding, policies, accounting and timers, notify plugins. May yield."""
        services, link = self.services, self.link
        assert self.profile is not None and self.address is not None and link.authenticator is not None
        now = services.session_timing.clock()
        link.phase = Phase.ONLINE
        link.login_deadline = None
        self.online_since = self.timeout_started_at = now
        self.opened_wall = time.time()
        self.start_service()
        self.stop_starting()
        services.counters.sessions_online += 1
        if not self.policy.garden:
            accounting.start(self)
        timers.begin(self, now)
        timers.set_timer(self, now)
        services.changes.session(self)
        self.log.info(
            "session_up",
            user=self.user,
            acct=self.acct_session_id,
            address=str(self.address),
            mru=self.path.mru,
            calling=self.calling,
            called=self.called,
            auth=link.authenticator.method,
            routes=[str(route) for route in self.path.routes],
        )
        plugin_hooks.new_session(self)

    def stop_starting(self) -> None:
        """Remove this call from the calls that are starting: it is online, or has ended."""
        if self.starting:
            self.starting = False
            self.tunnel.call_started(self.id)

    def start_service(self) -> None:
        """Start forwarding and the policies. May yield.

        The kernel forwards without this process: were it to begin earlier, the first packets would escape a garden.
        """
        self.path.awaiting_policies = True
        self.start_forwarding()
        for part in self.services.policies:
            part.begin(self)
        self.path.awaiting_policies = False
        self.services.plane.changed(self.path)

    def start_forwarding(self) -> None:
        """Start forwarding IP packets of this session. Does not yield."""
        assert self.address is not None and self.profile is not None
        services = self.services
        routes = services.guard.permitted(self, self.profile.routes)
        if routes is not self.profile.routes:
            self.profile = replace(self.profile, routes=routes)
        services.taps.prepare(self)
        mru = self.link.mru
        if self.profile.mtu:
            mru = min(mru, self.profile.mtu)
        services.plane.online(self.path, self.address, [route.prefix for route in routes], mru)

    def serve(self) -> None:
        """Stay online until an exception ends the session. A renegotiated NCP interrupts only the traffic."""
        link, services = self.link, self.services
        while True:
            # An NCP may have reopened, with another address, while a plugin or RADIUS was being asked.
            link.wait(lambda: not any(layer.ready for layer in link.layers.values()))
            services.plane.offline(self.path)
            back = link.wait(
                lambda: any(layer.opened for layer in link.layers.values()),
                services.session_timing.network_restart_timeout,
            )
            if not back:
                raise SessionEnded(causes.NCP_FAILED)
            for layer in link.layers.values():
                disagreement = layer.disagreement()
                if disagreement is not None:
                    raise disagreement
            self.start_forwarding()

    def restart_negotiation(self) -> None:
        """Limit the duration of the next login, and the rate of renegotiations.

        Each one costs an Access-Request and two accounting records. Raises SessionEnded if there are too many.
        """
        link, timing, now = self.link, self.services.session_timing, self.link.now()
        if link.login_deadline is None:  # it was online; otherwise the deadline stays
            link.login_deadline = now + self.tunnel.config.login_timeout
        times = self.renegotiations = (*self.renegotiations, now)[-timing.max_renegotiations :]
        if len(times) == timing.max_renegotiations and now - times[0] < timing.renegotiation_window:
            raise SessionEnded(causes.LCP_FAILED, text="the subscriber keeps restarting LCP")

    # The end

    def go_offline(self, reason: Cause) -> None:
        """Undo go_online, open_networks and authenticate. May be called in any phase. May yield."""
        services = self.services
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.link.layers = {}
        self.link.authenticator = None
        if self.is_online:
            self.attempt(lambda: self.stop_service(reason))
        else:
            services.snoop.login_failed(self)
        if self.address is not None:
            address, self.address = self.address, None
            services.registry.give_back_address(address)
        services.registry.forget_user(self)  # the subscriber must authenticate again
        self.policy = Policy()
        self.profile = None
        self.credentials = None
        self.opened_wall = 0.0

    def stop_service(self, reason: Cause) -> None:
        """Undo go_online. May yield.

        The session counts as offline before any step that may yield (kernel, plugins). A command that changes its
        policy meanwhile, or the saved state, must not restore what is being removed.
        """
        services = self.services
        seconds, self.online_since = int(services.session_timing.clock() - self.online_since), 0.0
        self.attempt(lambda: services.plane.offline(self.path))
        for part in services.policies:
            self.attempt(partial(part.finish, self))
        usage = replace(self.usage(reason.terminate), session_time=seconds)  # final: no packet can follow
        services.changes.call(self)  # before the Stop: a session with a Stop is never restored
        try:
            accounting.stop(self, usage)
        finally:
            services.usage_files.ended(self, usage)
            self.path.reset_counters()

    def attempt(self, step: Callable[[], object]) -> None:
        """Run one step of the end. Log its failure, so that the other steps follow. May yield."""
        try:
            step()
        except SessionEnded as end:  # from kill() of a plugin: the other steps must follow
            self.link.end(end)
        except Exception:
            self.log.exception("release_failed")

    def wait_to_release(self) -> None:
        """Wait until no login that has begun needs the time, unless a newer session waits for the release."""
        scheduler = self.services.session_scheduler
        if self.awaited or scheduler.slice_open:
            return
        waiter = Waiter()
        self.release_turn = scheduler.book(self.tunnel.lac, Rank.END, partial(waiter.switch, None))
        try:
            waiter.get()
        finally:
            scheduler.cancel(self.tunnel.lac, Rank.END, self.release_turn)
            self.release_turn = None

    def release(self, end: SessionEnded) -> None:
        """Release all resources and log the end, in whatever phase. May yield."""
        self.releasing = True
        online = self.online_since
        usage = self.usage()
        opened = round(self.services.session_timing.clock() - online, 1) if online else 0.0
        wanted = [] if online else self.link.refusals()  # of a failed login, as a possible reason
        steps: list[Callable[[], None]] = [
            self.stop_starting,
            lambda: plugin_hooks.kill_session(self, end.cause.name),
            lambda: self.go_offline(end.cause),
            lambda: self.notify_peers(end),
            lambda: self.services.plane.detach(self.path),
            self.leave_table,
            self.link.break_reference_cycles,
        ]
        for step in steps:
            self.attempt(step)
        self.log.info(
            "session_down",
            user=self.user,
            cause=end.cause.name,
            why=end.text,
            result=int(end.result),
            error=int(end.error),
            phase=self.phase.value,
            wanted=wanted,
            seconds=opened,
            in_octets=usage.in_octets,
            out_octets=usage.out_octets,
        )
        self.services.history.append(history.ending(self, end, usage, opened))

    def leave_table(self) -> None:
        """Remove the session from the tables of the tunnel and the LNS."""
        self.alive = False
        self.tunnel.call_gone(self.id)

    def notify_peers(self, end: SessionEnded) -> None:
        """Send an LCP Terminate-Request to the subscriber and a CDN to the LAC, unless the LAC has ended the call."""
        if not end.tell:
            return
        self.link.close(end.text)
        cause = None
        if self.tunnel.config.l2tp_disconnect_cause:
            protocol = self.link.protocol_of(end.cause.disconnect)
            cause = DisconnectCause(end.cause.disconnect, protocol, end.cause.direction, "")
        self.tunnel.send(
            CDN(
                result_code=ResultCode(end.result, end.error, end.text),
                assigned_session_id=self.id,
                disconnect_cause=cause,
            ),
            self.peer_id,
        )

    # L2TP messages and time

    def post_message(self, message: Message) -> None:
        """Queue a control message of this call. Called by the tunnel's greenlet. Does not yield.

        The tunnel has acknowledged the message. So the ICCN, which is not retransmitted, is never dropped.
        """
        if isinstance(message, ICCN) and not self._iccn_came:
            self._iccn_came = True
            self.link.mailbox.post_urgent(message)
        elif not self.link.mailbox.post(message):
            self.services.counters.drop_mailbox_full += 1

    def _on_message(self, message: Message) -> None:
        """Handle a control message, except a CDN, which arrives as an End (RFC 2661 7.4.2). Raises ProtocolError."""
        if isinstance(message, ICCN) and self.phase is Phase.CALL and self.connected is None:
            self.connected = message
        elif isinstance(message, WEN):
            if message.call_errors is not None:
                self.wide_errors = message
        elif not isinstance(message, SLI):
            name = type(message).__name__
            raise ProtocolError(CdnResult.GENERAL, ErrorCode.VENDOR, f"{name} is not expected here")

    def on_timer(self, now: float) -> None:
        """Wake the session's greenlet if a timer is due. Called by the timer wheel; must not block or raise.

        An Echo-Request is sent at once: thousands of sessions send one in each second, and none of them has to wake.
        """
        if self.timer is None:
            return  # it went offline after the wheel had found it
        other = timers.other_deadline(self)
        if other <= now:
            self.link.mailbox.post_urgent(TIMER)
            return
        timers.run_echo_timer(self, now)
        timers.schedule(self, min(other, timers.echo_deadline(self)), now)

    def _on_timer(self) -> None:
        if self.is_online:
            now = self.services.session_timing.clock()
            if timers.session_timeout_expired(self, now):
                authentication.reauthorize(self)
            timers.run_due_timers(self, now)
            timers.set_timer(self, now)

    # Called by policies, plugins and consoles

    def usage(self, terminate_cause: int = 0) -> Usage:
        """Return the usage until now. Does not yield."""
        return accounting.usage(self, terminate_cause)

    def auth_request(self, credentials: Credentials) -> AuthRequest:
        """Return the request of a login of this session with these credentials."""
        return accounting.auth_request(self, credentials)

    def account_interim(self) -> None:
        """Write an interim accounting record. May yield."""
        accounting.interim(self)

    def replace_older(self) -> None:
        """End the sessions that a login of this user replaces, and wait for their release. May yield."""
        network.end_older(self, self.services.registry.replaced_by(self), causes.DUPLICATE_USER)

    def suspend_service(self, cause: TerminateCause) -> Usage:
        """End the accounted service; the session stays online. Return the usage for `account_stop`. Does not yield."""
        return accounting.suspend(self, cause)

    def account_stop(self, usage: Usage) -> None:
        """Write the accounting Stop of a service that was suspended. May yield."""
        accounting.stop(self, usage)

    def resume_service(self) -> None:
        """Begin a new accounted service, as after a login. Does not yield."""
        accounting.resume(self)

    def account_start(self) -> None:
        """Write the accounting Start of the service that has begun, unless it has ended meanwhile. May yield."""
        accounting.start(self)
