"""A subscriber's life: one call of RFC 2661 (7.4.2, LNS side) and the PPP link it carries (RFC 1661).

One greenlet per session tells it from top to bottom. It blocks in `wait` only, which feeds the automata meanwhile:
LCP Echo is answered and a Terminate-Request obeyed while RADIUS is slow. Packets of an online session never come
here: the data plane carries them by the session's Path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent

from l2tpns import causes
from l2tpns.causes import Reason, SessionEnded
from l2tpns.errors import NoAddress, NoAnswer, ProtocolError
from l2tpns.policy import filters
from l2tpns.policy.model import Policy
from l2tpns.proto.l2tp.messages import CDN, ICRP, ICRQ, CdnResult, DisconnectCause, ErrorCode, ResultCode
from l2tpns.proto.ppp.automaton import State
from l2tpns.proto.ppp.chap import ChapServer
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.pap import PapServer
from l2tpns.radius.types import Assign, AuthReply, AuthRequest, Usage
from l2tpns.subscriber import accounting, history, plugin_hooks, proxy, timers
from l2tpns.subscriber.link import TICK, Link, Renegotiated, T

if TYPE_CHECKING:
    from l2tpns.l2tp.tunnel import Tunnel
    from l2tpns.lns import Lns
    from l2tpns.runtime.timer_wheel import Timer

REFUSAL_GRACE = 1.0  # an Authenticate-Nak needs its moment before the CDN, which ends pppd at once
RELEASE_PATIENCE = 5.0  # for an older session of the same user or address to let go
MOST_RENEGOTIATIONS, RENEGOTIATIONS_WITHIN = 10, 60.0  # of LCP in one call, seconds
NCP_RESTART_PATIENCE = 30.0  # for a subscriber that renegotiates IPCP
FRAMING_TYPES = 3  # what our SCCRP advertises: synchronous and asynchronous


class Session(Link):
    """One call, one PPP link, one subscriber."""

    __slots__ = (
        "_renegotiations",
        "acct_session_id",
        "address",
        "call_serial",
        "called",
        "calling",
        "dumped",
        "greenlet",
        "introduced",
        "next_challenge",
        "next_echo",
        "next_interim",
        "online_since",
        "opened_wall",
        "policy",
        "profile",
        "proxied",
        "releasing",
        "rx_speed",
        "starting",
        "time_from",
        "timer",
        "tx_speed",
        "user",
    )

    def __init__(self, lns: Lns, tunnel: Tunnel, session_id: int, icrq: ICRQ) -> None:
        super().__init__(lns, tunnel, session_id, icrq)
        self.called = _text(icrq.called_number)
        self.calling = _text(icrq.calling_number)
        self.call_serial = icrq.call_serial_number
        self.user = ""
        self.acct_session_id = ""
        self.address: IPv4Address | None = None
        self.profile: AuthReply | None = None
        self.proxied: Credentials | None = None  # what the LAC has asked the subscriber, until it is used
        self.policy = Policy()
        self.online_since = 0.0  # monotonic; 0 while not online
        self.time_from = 0.0  # when the Session-Timeout began to run
        self.opened_wall = 0.0
        self.dumped = (0, 0)  # octets from and to the subscriber that usage files have told of
        self.tx_speed = self.rx_speed = 0  # bit/s as the LAC says; towards the subscriber, and from it
        self.next_echo = self.next_interim = self.next_challenge = 0.0
        self.timer: Timer[Session] | None = None
        self.greenlet: Any = None
        self._renegotiations: tuple[float, ...] = ()  # when the last ones were
        self.starting = True
        self.introduced = False  # plugins have been told of it, and will be told of its end
        self.releasing = False

    # The life

    def run(self) -> None:
        """From ICRQ to CDN; of a session that was online before a restart, from there."""
        ended = SessionEnded(causes.SHUTDOWN)  # if the greenlet is killed
        try:
            resumed = bool(self.online_since)
            if not resumed:
                self.answer_call()
            while True:
                try:
                    if resumed:  # a plugin may wait in there, and the subscriber begin anew meanwhile
                        resumed = False
                        plugin_hooks.new_session(self, resumed=True)
                    if not self.online_since:
                        self.open_link()
                        self.authenticate()
                        self.open_networks()
                        self.go_online()
                    self.serve()
                except Renegotiated:
                    self.log.info("lcp_renegotiated", user=self.user)
                    plugin_hooks.kill_session(self, causes.USER_REQUEST.name)
                    self.go_offline(causes.USER_REQUEST)
                    self.begin_again(self.now())
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
            if not self.lns.left:
                self.release(ended)

    def begin_again(self, now: float) -> None:
        """How long the next login may take, and whether there may be one: each costs a question and two records."""
        if self.login_deadline is None:  # it was online; who was not has no more time than before
            self.login_deadline = now + self.lns.config.login_timeout
        self._renegotiations = (*self._renegotiations, now)[-MOST_RENEGOTIATIONS:]
        if len(self._renegotiations) == MOST_RENEGOTIATIONS and now - self._renegotiations[0] < RENEGOTIATIONS_WITHIN:
            raise SessionEnded(causes.LCP_FAILED, text="LCP begins again and again")

    def answer_call(self) -> None:
        """7.4.2: ICRP, then an acceptable ICCN."""
        self.lns.plane.attach(self.path)
        self.tell_lac(ICRP(assigned_session_id=self.id))
        if not self.wait(lambda: self.connected is not None, self.lns.config.call_timeout):
            raise SessionEnded(causes.CALL_TIMEOUT)
        assert self.connected is not None
        if self.connected.framing_type & ~FRAMING_TYPES:
            raise ProtocolError(CdnResult.GENERAL, ErrorCode.VALUE, "Framing Type was not advertised")
        self.path.sequenced = self.connected.sequencing_required
        self.tx_speed = self.connected.tx_connect_speed
        self.rx_speed = self.connected.rx_speed
        self.login_deadline = self.now() + self.lns.config.login_timeout
        self.take_early_frames()
        self.log.debug("call_connected", calling=self.calling, called=self.called)

    def open_link(self) -> None:
        """LCP, both ways; with what the LAC has negotiated already if that is complete and allowed (4.4.5)."""
        self.phase = "lcp"
        now = self.now()
        self.proxied = None  # a subscriber that begins again with LCP is asked again, too
        if self.lcp.state is State.INITIAL:
            iccn, self.connected = self.connected, None
            assert iccn is not None
            taken = proxy.take_over(self.lcp, iccn, self.lns.config, now)
            if taken.why_not:
                self.log.debug("proxy_lcp_not_adopted", why=taken.why_not)
                self.lcp.open(now)
                self.lcp.lower_up(now)
            else:
                self.log.debug("proxy_lcp_adopted")
            self.proxied = taken.credentials
        self.wait(lambda: self.lcp.opened)
        self.tell_refused("LCP", self.lcp.refusals())

    def authenticate(self) -> None:
        """PAP or CHAP as LCP agreed, by the LAC's proxy authentication if it may be used; then the verdict."""
        self.phase = "authenticate"
        self.authenticator = self.new_authenticator(self.lcp.auth)
        self.credentials = self.proxied_credentials(self.authenticator)
        if self.credentials is None:
            if isinstance(self.authenticator, ChapServer):
                self.authenticator.start(self.now())
            self.wait(lambda: self.credentials is not None)
        first = self.credentials
        assert first is not None
        self.user = first.user
        self.acct_session_id = self.lns.acct_session_ids.new()
        self.introduced = True
        self.credentials, reply = self.verify(lambda: plugin_hooks.decide(self, first))
        if not reply.accepted:
            self.refuse(reply)
        self.profile = reply
        if reply.framed_pool:
            self.log.warning("framed_pool_unknown", pool=reply.framed_pool, why="there is one pool, l2tpns.ip_pool")
        filters.bind(self, reply.filter_ids)
        if reply.termination_action != 1:
            self.credentials = replace(self.credentials, password=b"")  # not needed again: not kept
        self.authenticator.verdict(True, reply.message)
        self.lns.counters.logins_accepted += 1
        if reply.session_timeout == 0 and self.lns.config.kill_timedout_sessions:
            raise SessionEnded(causes.SESSION_TIMEOUT, text="Session-Timeout is 0")
        self.end_older(self.lns.older_sessions(self), causes.DUPLICATE_USER)

    def proxied_credentials(self, authenticator: PapServer | ChapServer) -> Credentials | None:
        """Credentials out of the ICCN (RFC 2661 4.4.5); used once: a renegotiated link authenticates anew."""
        credentials, self.proxied = self.proxied, None
        if credentials is not None:
            authenticator.adopt(credentials)
            self.log.debug("proxy_authentication_used")
        return credentials

    def verify(self, decide: Callable[[], T]) -> T:
        """Have it decided who the subscriber is; SessionEnded when nobody answers."""
        try:
            return self.aside(decide)
        except NoAnswer:
            self.lns.counters.logins_unanswered += 1
            self.log.warning("auth_unanswered", user=self.user)
            raise SessionEnded(causes.RADIUS_SILENT) from None

    def auth_request(self, credentials: Credentials, state: bytes = b"") -> AuthRequest:
        """What RADIUS is asked."""
        return accounting.auth_request(self, credentials, state)

    def refuse(self, reply: AuthReply) -> None:
        """Say no, and give the subscriber a moment to read it before the CDN."""
        assert self.authenticator is not None
        self.lns.counters.logins_refused += 1
        self.log.info(
            "auth_refused", user=self.user, calling=self.calling, why=reply.why or reply.message or "no reason given"
        )
        self.authenticator.verdict(False, reply.message)
        tell = True
        try:
            self.wait(lambda: False, REFUSAL_GRACE)
        except SessionEnded as end:
            tell = end.tell
        except Renegotiated:
            pass
        raise SessionEnded(causes.AUTH_REFUSED, tell=tell)

    def end_older(self, older: list[Session], reason: Reason) -> None:
        """End sessions that stand in this one's way, and wait until they have let go of what they hold."""
        self.lns.counters.sessions_replaced += len(older)
        for session in older:
            session.end(reason)
        self.lns.awake.join([session.greenlet for session in older], RELEASE_PATIENCE)

    def open_networks(self) -> None:
        """IPCP with the address that RADIUS or the pool gives."""
        self.phase = "network"
        assert self.profile is not None
        peer_chooses = self.profile.assign is Assign.PEER
        if not peer_chooses:
            self.choose_address(self.profile)
        self.ipcp = self.new_ipcp(self.profile, self.address)
        now = self.now()
        self.ipcp.open(now)
        self.ipcp.lower_up(now)
        self.wait(lambda: self.ipcp is not None and self.ipcp.opened)
        self.tell_refused("IPCP", self.ipcp.refusals())
        if peer_chooses:
            chosen = self.ipcp.peer_address
            assert chosen is not None  # without one IPCP does not open
            self.take_address(chosen)

    def choose_address(self, profile: AuthReply) -> None:
        """The address that RADIUS named, or one of the pool's."""
        if profile.address is not None and not (self.policy.garden and self.lns.holders(profile.address, self)):
            self.end_older(self.lns.holders(profile.address, self), causes.DUPLICATE_ADDRESS)
            self.take_address(profile.address)
            return
        try:
            address = self.lns.pool.allocate(self.proven_user)
        except NoAddress as error:
            self.lns.counters.no_address += 1
            self.log.error("pool_empty", user=self.user)
            raise SessionEnded(causes.NO_ADDRESS) from error
        self.lns.by_address[address] = self
        self.address = address

    @property
    def proven_user(self) -> str:
        """Whose address the pool may keep for it: in a walled garden anybody may say that it is fred."""
        return "" if self.policy.garden else self.user

    def take_address(self, address: IPv4Address) -> None:
        why = self.lns.take_address(address, self)
        if why:
            self.log.provoked("address_refused", user=self.user, address=str(address), why=why)
            raise SessionEnded(causes.ADDRESS_IN_USE, text=f"{address} cannot be had")
        self.address = address

    def go_online(self) -> None:
        """Routes, data path, accounting Start, timers."""
        assert self.profile is not None and self.address is not None
        now = monotonic()
        self.phase = "online"
        self.login_deadline = None
        self.online_since = self.time_from = now
        self.opened_wall = time.time()
        self.carry()
        for part in self.lns.policies:
            part.begin(self)
        self.stop_starting()
        self.lns.counters.sessions_online += 1
        if not self.policy.garden:
            started = self.accounted("start")
            if started.acct_session_id == self.acct_session_id:  # else it is in a walled garden by now
                self.lns.accounting.start(started)
        timers.begin(self, now)
        self.set_timer(now)
        self.lns.journal.session(self)
        self.log.info(
            "session_up",
            user=self.user,
            acct=self.acct_session_id,
            address=str(self.address),
            mru=self.path.mru,
            calling=self.calling,
            called=self.called,
            auth="pap" if isinstance(self.authenticator, PapServer) else "chap",
            routes=[str(route) for route in self.path.routes],
        )
        plugin_hooks.new_session(self)

    def stop_starting(self) -> None:
        """Online, or ended before: this call no longer counts among those that are starting."""
        if self.starting:
            self.starting = False
            self.lns.session_started(self)

    def carry(self) -> None:
        """Let the data plane carry this session's packets."""
        assert self.address is not None and self.profile is not None
        self.lns.guard.narrow(self)
        self.lns.taps.prepare(self)
        mru = min(self.lcp.peer_mru, self.lns.config.mru)
        if self.profile.mtu:
            mru = min(mru, self.profile.mtu)
        self.lns.plane.online(self.path, self.address, [route.prefix for route in self.profile.routes], mru)

    def serve(self) -> None:
        """Online, until somebody ends it; a renegotiated IPCP interrupts the traffic, not the session."""
        while True:
            # IPCP may have come back, with another address, before this looks: while a plugin or RADIUS was asked.
            self.wait(lambda: not self.ipcp_stands)
            self.lns.plane.offline(self.path)
            back = self.wait(lambda: self.ipcp is not None and self.ipcp.opened, NCP_RESTART_PATIENCE)
            if not back or self.ipcp is None:
                raise SessionEnded(causes.NCP_FAILED)
            if self.ipcp.peer_address != self.address:
                text = f"the subscriber wants {self.ipcp.peer_address} in place of {self.address}"
                raise SessionEnded(causes.NO_COMMON_ADDRESS, text=text)
            self.carry()

    @property
    def ipcp_stands(self) -> bool:
        """IPCP is open, for the address that the session has."""
        return self.ipcp is not None and self.ipcp.opened and self.ipcp.peer_address == self.address

    def go_offline(self, reason: Reason) -> None:
        """The reverse of go_online, open_networks and authenticate; harmless at any time."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.ipcp = None
        self.authenticator = None
        if self.online_since:
            self.attempt(lambda: self.stop_service(reason))
        else:
            self.lns.snoop.gave_up(self)
        if self.address is not None:
            address, self.address = self.address, None
            self.lns.give_back_address(address)
        self.lns.forget_user(self)  # who it is must be shown again
        self.policy = Policy()
        self.profile = None
        self.credentials = None
        self.opened_wall = 0.0

    def stop_service(self, reason: Reason) -> None:
        """The reverse of go_online. It is offline before anything that may wait (kernel, plugins): whoever changes its
        policy or writes the state meanwhile must not bring back to its address what is being taken from it."""
        seconds, self.online_since = int(monotonic() - self.online_since), 0.0
        self.attempt(lambda: self.lns.plane.offline(self.path))
        for part in self.lns.policies:
            self.attempt(partial(part.finish, self))
        usage = replace(self.usage(reason.terminate), session_time=seconds)  # now that no packet can follow
        self.lns.journal.call(self)  # before the Stop: a session that has its Stop is never taken up again
        try:
            usage = plugin_hooks.accounted(self, "stop", usage)
        finally:
            self.lns.accounting.stop(usage)
            self.lns.usage_files.ended(self, usage)
            self.path.reset_counters()

    def attempt(self, step: Callable[[], object]) -> None:
        """A step of the end, which the others survive."""
        try:
            step()
        except SessionEnded as end:  # by Session.kill() of a plugin's: it has to wait for the other steps
            self.mailbox.post_urgent(end)
        except Exception:
            self.log.exception("release_failed")

    def release(self, end: SessionEnded) -> None:
        """The one exit, whatever happened: each step survives the others' failure."""
        self.releasing = True
        online = self.online_since
        usage = self.usage()
        opened = round(monotonic() - online, 1) if online else 0.0
        wanted = [] if online else self.wanted()  # of a login that failed: it may be why
        steps: list[Callable[[], None]] = [
            self.stop_starting,
            lambda: plugin_hooks.kill_session(self, end.reason.name),
            lambda: self.go_offline(end.reason),
            lambda: self.say_goodbye(end),
            lambda: self.lns.plane.detach(self.path),
            lambda: self.lns.session_gone(self),
            self.let_go,
        ]
        for step in steps:
            self.attempt(step)
        self.log.info(
            "session_down",
            user=self.user,
            cause=end.reason.name,
            why=end.text,
            result=int(end.result),
            error=int(end.error),
            phase=self.phase,
            wanted=wanted,
            seconds=opened,
            in_octets=usage.in_octets,
            out_octets=usage.out_octets,
        )
        self.lns.history.append(history.ending(self, end, usage, opened))

    def say_goodbye(self, end: SessionEnded) -> None:
        """LCP Terminate-Request to the subscriber, CDN to the LAC: unless the LAC has said it itself."""
        if not end.tell:
            return
        if self.lcp.opened:
            self.lcp.close(self.now(), end.text.encode())
        self.tell_lac(
            CDN(
                result_code=ResultCode(end.result, end.error, end.text),
                assigned_session_id=self.id,
                disconnect_cause=DisconnectCause(end.reason.disconnect, 0, end.reason.direction, ""),
            )
        )

    # What other greenlets call

    def end(self, reason: Reason, *, tell: bool = True, text: str = "") -> None:
        """Ask the session's greenlet to end; callable from any greenlet, more than once."""
        self.mailbox.post_urgent(SessionEnded(reason, tell=tell, text=text))

    def usage(self, terminate_cause: int = 0) -> Usage:
        """What accounting says of this session now."""
        return accounting.usage(self, terminate_cause)

    def accounted(self, kind: str, terminate_cause: int = 0) -> Usage:
        """The same for a record, `start`, `interim` or `stop`, with what plugins add."""
        return plugin_hooks.accounted(self, kind, self.usage(terminate_cause))

    # While online

    def on_credentials(self, credentials: Credentials) -> None:
        if self.phase == "authenticate":
            self.credentials = credentials
        elif self.profile is not None:
            gevent.spawn(timers.reverify, self, credentials)

    def on_timer(self, now: float) -> None:
        """Called by the timer wheel: wake the greenlet only when something is due."""
        if timers.next_due(self) <= now:
            self.mailbox.post_urgent(TICK)
        else:
            self.set_timer(now)

    def keep_house(self) -> None:
        if self.online_since:
            now = monotonic()
            timers.keep_house(self, now)
            self.set_timer(now)

    def set_timer(self, now: float) -> None:
        """One timer a session, whoever asked to look."""
        if self.timer is not None:
            self.timer.cancel()
        delay = min(timers.next_due(self) - now, timers.LONGEST_SLEEP)
        self.timer = self.lns.wheel.schedule(self, delay, now)


def _text(octets: bytes | None) -> str:
    return "" if octets is None else octets.decode("utf-8", "backslashreplace")
