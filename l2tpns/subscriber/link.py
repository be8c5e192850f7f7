"""A session's PPP link: its mailbox, its automata, and the one place that waits (RFC 1661, RFC 2661 7.4.2).

What the automata notice becomes an exception here (Renegotiated, SessionEnded), so that session.py can tell the life
from top to bottom. Knows nothing of addresses, accounting or who the subscriber is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import gevent

from l2tpns import causes
from l2tpns.causes import SessionEnded
from l2tpns.dataplane.session_path import Path, key_of
from l2tpns.errors import NoAnswer, PluginError, ProtocolError
from l2tpns.proto.l2tp.messages import ICCN, ICRQ, SLI, WEN, CdnResult, ErrorCode, Message
from l2tpns.proto.ppp.automaton import State, Timers
from l2tpns.proto.ppp.chap import ChapServer
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.ipcp import Ipcp, IpcpPolicy
from l2tpns.proto.ppp.lcp import AuthChoice, Lcp, LcpWishes
from l2tpns.proto.ppp.names import MOST_NAMED, authentication_name, protocol_name
from l2tpns.proto.ppp.negotiation import Notice
from l2tpns.proto.ppp.pap import PapServer
from l2tpns.radius.types import Assign, AuthReply
from l2tpns.runtime.log import DATA
from l2tpns.runtime.log_render import ppp_octets
from l2tpns.runtime.mailbox import Mailbox

if TYPE_CHECKING:
    from l2tpns.l2tp.tunnel import Tunnel
    from l2tpns.lns import Lns

T = TypeVar("T")
MAILBOX_LIMIT = 64  # frames and messages; what does not fit is sent again by its sender
EARLY_FRAMES = 4
AUTH_CHOICES = {"pap": AuthChoice.PAP, "chap": AuthChoice.CHAP_MD5}
TICK = object()  # mailed when time has come to look at the clock
IPV6 = 0x0057


class Renegotiated(Exception):
    """RFC 1661 4.3: a Configure-Request in Opened; authentication and networks start over."""


class Link:
    """What a session's greenlet feeds while it waits. Session adds the life."""

    __slots__ = (
        "_early",
        "_ending",
        "_iccn_came",
        "_lcp_down",
        "_lcp_heard",
        "_pauses",
        "authenticator",
        "connected",
        "credentials",
        "id",
        "ipcp",
        "lcp",
        "lns",
        "log",
        "login_deadline",
        "mailbox",
        "path",
        "peer_id",
        "phase",
        "protocols_rejected",
        "tunnel",
        "wide_errors",
    )

    def __init__(self, lns: Lns, tunnel: Tunnel, session_id: int, icrq: ICRQ) -> None:
        self.lns = lns
        self.tunnel = tunnel
        self.id = session_id
        self.peer_id = icrq.assigned_session_id
        self.log = tunnel.log.bind(session=session_id)
        self.mailbox = Mailbox(MAILBOX_LIMIT)
        self.phase = "call"  # then lcp, authenticate, network, online
        self.connected: ICCN | None = None
        self.wide_errors: WEN | None = None
        self.login_deadline: float | None = None
        self.path = Path(
            key=key_of(tunnel.id, session_id),
            peer=tunnel.peer,
            endpoint=tunnel.endpoint,
            peer_tunnel_id=tunnel.peer_id,
            peer_session_id=self.peer_id,
            post=self.post_frame,
            now=monotonic(),
        )
        config = lns.config
        self.lcp = Lcp(
            partial(self.send_frame, Protocol.LCP),
            self.on_lcp,
            lns.random,
            self.timers(),
            LcpWishes(mru=config.mru, auth=tuple(AUTH_CHOICES[name] for name in config.radius_authtypes)),
            self.on_protocol_rejected,
        )
        self.authenticator: PapServer | ChapServer | None = None
        self.credentials: Credentials | None = None
        self.ipcp: Ipcp | None = None
        self.protocols_rejected: tuple[int, ...] = ()  # the last ones
        self._lcp_down = self._lcp_heard = False
        self._ending = self._iccn_came = False
        self._pauses = lns.awake.pauses
        self._early: list[tuple[int, bytes]] = []

    def now(self) -> float:
        """Return the time by which peers are judged; it stands still while this process does."""
        return self.lns.awake.at(monotonic())

    def timers(self) -> Timers:
        config = self.lns.config
        return Timers(
            restart=config.ppp_restart_time,
            max_configure=config.ppp_max_configure,
            max_failure=config.ppp_max_failure,
        )

    def new_authenticator(self, choice: AuthChoice | None) -> PapServer | ChapServer:
        mru = min(self.lcp.peer_mru, self.lns.config.mru)
        if choice is AuthChoice.PAP:
            return PapServer(partial(self.send_frame, Protocol.PAP), mru)
        name = self.lns.config.hostname.encode()
        return ChapServer(partial(self.send_frame, Protocol.CHAP), self.lns.random, name, self.timers(), mru)

    def new_ipcp(self, profile: AuthReply, address: IPv4Address | None) -> Ipcp:
        """`address` is what the subscriber gets; with Assign.PEER it chooses itself."""
        config = self.lns.config
        peer_chooses = profile.assign is Assign.PEER
        policy = IpcpPolicy(
            local=config.ppp_local_address,
            peer=None if peer_chooses else address,
            dns=profile.dns or config.dns,
            peer_may_choose=peer_chooses,
        )
        ipcp = Ipcp(partial(self.send_frame, Protocol.IPCP), self.on_ipcp, self.lns.random, self.timers(), policy)
        ipcp.peer_mru = self.lcp.peer_mru
        return ipcp

    def must_end(self, why: SessionEnded | ProtocolError) -> None:
        """What the LAC has said ends this call. The first time counts: it may say it as often as it likes."""
        if not self._ending:
            self._ending = True
            self.mailbox.post_urgent(why)

    def take_early_frames(self) -> None:
        """The call is connected: what came a little too early counts now."""
        for frame in self._early:
            self.mailbox.post_urgent(frame)
        self._early = []

    def let_go(self) -> None:
        """Cut the circles of references: a session's memory is free when it ends, not when the collector comes by."""
        self.lcp.send = self.lcp.notify = self.lcp.rejected_protocol = self.path.post = _nobody

    # What a session adds

    def keep_house(self) -> None:
        """Time-outs and keepalives of a session that is online."""
        raise NotImplementedError

    def on_credentials(self, credentials: Credentials) -> None:
        """The subscriber has answered the authenticator."""
        raise NotImplementedError

    # The mailbox

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Serve the mailbox until `condition()` holds; False after `timeout` seconds. Raises when the session ends."""
        deadline = None if timeout is None else self.now() + timeout
        while not condition():
            item = self.mailbox.take()
            if item is not None:
                self.handle(item)
                self.check_link()
                continue
            now = self.now()
            wake = self.run_timers(now)
            self.check_link()
            if condition():
                break
            if deadline is not None:
                if now >= deadline:
                    return False
                wake = deadline if wake is None else min(wake, deadline)
            self.mailbox.wait(None if wake is None else self.lns.awake.real(wake - now))
        return True

    def aside(self, work: Callable[[], T]) -> T:
        """Do what may wait for others in a greenlet of its own, serving the mailbox meanwhile."""
        job = gevent.spawn(self._work_aside, work)
        try:
            self.wait(job.ready)
        finally:
            job.kill(block=False)  # a subscriber that begins anew has no further use for the answer
        if not job.successful():
            raise job.exception
        if isinstance(job.value, gevent.GreenletExit):  # by a plugin, for nobody else knows this greenlet
            raise PluginError("the greenlet that a plugin worked in was killed")
        done: T | NoAnswer = job.value
        if isinstance(done, NoAnswer):
            raise NoAnswer(*done.args)  # not itself: its traceback would hold this frame, which holds it
        return done

    def _work_aside(self, work: Callable[[], T]) -> T | NoAnswer:
        """Wakes the session when it is over. NoAnswer is no failure of ours, and returned, lest gevent print it."""
        try:
            return work()
        except NoAnswer as silence:
            return silence
        finally:
            self.mailbox.post_urgent(TICK)

    def run_timers(self, now: float) -> float | None:
        """Restart timers of the automata; returns when the next one is due."""
        wake = self.login_deadline
        if wake is not None and now >= wake:
            raise SessionEnded(causes.LOGIN_TIMEOUT if self.phase != "authenticate" else causes.AUTH_TIMEOUT)
        after_pause = self._pauses != self.lns.awake.pauses
        self._pauses = self.lns.awake.pauses
        for automaton in (self.lcp, self.authenticator, self.ipcp):
            if automaton is None:
                continue
            if after_pause:
                automaton.ask_again()
            due = automaton.deadline
            if due is not None and due <= now:
                automaton.timeout(now)
                due = automaton.deadline
            if due is not None and (wake is None or due < wake):
                wake = due
        return wake

    def check_link(self) -> None:
        """Turn what the automata have noticed into this life's turns."""
        if isinstance(self.authenticator, ChapServer) and self.authenticator.exhausted:
            raise SessionEnded(causes.AUTH_TIMEOUT)
        if self.lcp.auth_refused:
            raise SessionEnded(causes.AUTH_PROTOCOL_REFUSED, text=self.auth_refusal())
        if self.lcp.loop_suspected:
            raise SessionEnded(causes.LOOPED)
        if self.lcp.impasse is not None:
            raise SessionEnded(causes.LCP_FAILED, text=self.lcp.impasse.words("the subscriber"))
        if self.ipcp is not None and self.ipcp.impasse is not None:
            reason = causes.NO_COMMON_ADDRESS if self.ipcp.address_disputed else causes.NCP_FAILED
            raise SessionEnded(reason, text=self.ipcp.impasse.words("the subscriber"))
        if self._lcp_down:
            self._lcp_down = False
            if self.lcp.state in (State.REQ_SENT, State.ACK_RCVD, State.ACK_SENT, State.OPENED):
                self.lns.plane.offline(self.path)  # at once: the peer's MRU may be another one by now
                raise Renegotiated
            raise SessionEnded(causes.USER_REQUEST)

    def auth_refusal(self) -> str:
        """Which authentication the subscriber wants in place of those that are allowed."""
        wanted = self.lcp.auth_wanted
        if not wanted:
            return ""
        allowed = " or ".join(authentication_name(choice.value) for choice in self.lcp.wishes.auth)
        return f"the subscriber wants to authenticate by {', '.join(wanted)}, not by {allowed}"

    def wanted(self) -> list[str]:
        """What the subscriber has asked for in PPP and did not get, by the standards' names."""
        rejected = [protocol_name(protocol) for protocol in self.protocols_rejected]
        return self.lcp.refusals() + (self.ipcp.refusals() if self.ipcp is not None else []) + rejected

    def tell_refused(self, layer: str, wanted: list[str]) -> None:
        if wanted:
            self.log.debug("ppp_refused", layer=layer, wanted=wanted)

    def handle(self, item: Any) -> None:
        if item is TICK:
            self.keep_house()
        elif isinstance(item, tuple):
            self.on_frame(*item)
        elif isinstance(item, (SessionEnded, ProtocolError)):
            raise item
        else:
            self.on_message(item)

    def on_message(self, message: Message) -> None:
        """A call's control message (7.4.2), except CDN, which comes as SessionEnded."""
        if isinstance(message, ICCN) and self.phase == "call" and self.connected is None:
            self.connected = message
        elif isinstance(message, WEN):
            if message.call_errors is not None:
                self.wide_errors = message
        elif not isinstance(message, SLI):
            name = type(message).__name__
            raise ProtocolError(CdnResult.GENERAL, ErrorCode.VENDOR, f"{name} is not expected here")

    def post_message(self, message: Message) -> None:
        """A control message of this call; from the tunnel, which has acknowledged it: its ICCN does not come again."""
        if isinstance(message, ICCN) and not self._iccn_came:
            self._iccn_came = True
            self.mailbox.post_urgent(message)
        elif not self.mailbox.post(message):
            self.lns.counters.drop_mailbox_full += 1

    # PPP

    def post_frame(self, protocol: int, information: bytes) -> None:
        """A PPP frame that is not a subscriber's IP packet; from the UDP reader."""
        if not self.mailbox.post((protocol, information)):
            self.lns.counters.drop_mailbox_full += 1

    def on_frame(self, protocol: int, information: bytes) -> None:
        if self.phase == "call":
            # The reader hands us frames directly, messages come through the tunnel: a subscriber's first
            # Configure-Request may overtake the ICCN that allows it (5.1). It waits; the rest is dropped.
            if protocol == Protocol.LCP and len(self._early) < EARLY_FRAMES:
                self._early.append((protocol, information))
            return
        if self.log.enabled(DATA):
            self.log.data("ppp_received", protocol=f"{protocol:04x}", octets=ppp_octets(protocol, information))
        now = self.now()
        if protocol == Protocol.LCP:
            self._lcp_heard = True
            self.lcp.receive(information, now)
        elif protocol in (Protocol.PAP, Protocol.CHAP):
            self.on_auth_frame(protocol, information, now)
        elif protocol == Protocol.IPCP:
            if self.ipcp is not None:  # RFC 1332 2: silently discarded before the network phase
                self.ipcp.receive(information, now)
        elif self.lcp.opened and self.phase in ("network", "online") and protocol not in (Protocol.IP, IPV6):
            if self.lcp.protocol_reject(protocol, information, now) and protocol not in self.protocols_rejected:
                self.tell_refused("LCP", [protocol_name(protocol)])
                self.protocols_rejected = (*self.protocols_rejected, protocol)[-MOST_NAMED:]

    def on_auth_frame(self, protocol: int, information: bytes, now: float) -> None:
        authenticator = self.authenticator
        if authenticator is None or protocol != authenticator.protocol:
            return
        credentials = authenticator.receive(information, now)
        if credentials is not None:
            self.on_credentials(credentials)

    def send_frame(self, protocol: int, packet: bytes) -> None:
        """Every frame of ours but IP packets, which the data plane cuts, leaves here: none is above the peer's MRU.

        Each protocol cuts what it says to what fits; a packet that is too long all the same is a slip of ours.
        """
        if len(packet) > self.lcp.peer_mru:
            self.lns.counters.drop_above_mru += 1
            self.log.provoked("frame_above_mru", protocol=f"{protocol:04x}", octets=len(packet), mru=self.lcp.peer_mru)
            return
        if self.log.enabled(DATA):
            self.log.data("ppp_sent", protocol=f"{protocol:04x}", octets=ppp_octets(protocol, packet))
        self.lns.plane.send_frame(self.path, protocol, packet)

    def tell_lac(self, message: Message) -> None:
        self.tunnel.send(message, self.peer_id)

    def on_lcp(self, notice: Notice) -> None:
        if notice is Notice.DOWN:
            self._lcp_down = True
        elif notice is Notice.FINISHED and not self._lcp_down:
            reason = causes.LCP_FAILED if self._lcp_heard else causes.LCP_SILENT
            self.mailbox.post_urgent(SessionEnded(reason))

    def on_ipcp(self, notice: Notice) -> None:
        if notice is Notice.FINISHED:
            self.mailbox.post_urgent(SessionEnded(causes.NCP_FAILED if self.phase == "network" else causes.NCP_REFUSED))

    def on_protocol_rejected(self, protocol: int) -> None:
        if protocol == Protocol.IPCP:
            self.mailbox.post_urgent(SessionEnded(causes.NCP_REFUSED, text="the subscriber rejected IPCP"))
        elif protocol in (Protocol.PAP, Protocol.CHAP):
            text = f"the subscriber rejected {protocol_name(protocol)}"
            self.mailbox.post_urgent(SessionEnded(causes.AUTH_PROTOCOL_REFUSED, text=text))


def _nobody(*_: object) -> None:
    """Hears what comes after the end."""
