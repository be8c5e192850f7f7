"""A session's PPP link: its mailbox, LCP, the authenticator, the network layers, and the one place that waits.

RFC 1661 has the phases and LCP. A session has a link. What the automata notice becomes an exception in the session's
greenlet (Renegotiated, SessionEnded), so that session.py can tell its life from top to bottom. The link knows nothing
of addresses, accounting or who the subscriber is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import gevent

from l2tpns import causes
from l2tpns.causes import SessionEnded
from l2tpns.dataplane.session_path import SessionPath
from l2tpns.errors import NoAnswer, PluginError, ProtocolError
from l2tpns.proto.l2tp.messages import Message
from l2tpns.proto.ppp.automaton import State, Timers
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.lcp import AuthChoice, Lcp, LcpWishes
from l2tpns.proto.ppp.names import MAX_NAMED, authentication_name, protocol_name
from l2tpns.proto.ppp.negotiation import Notice
from l2tpns.runtime.log import DATA, Logger
from l2tpns.runtime.log_render import ppp_octets
from l2tpns.runtime.mailbox import Mailbox, serve_until
from l2tpns.subscriber.layers import Authenticator, NetworkLayer
from l2tpns.subscriber.phase import Phase
from l2tpns.subscriber.services import Services

T = TypeVar("T")
MAILBOX_LIMIT = 64  # frames and messages; what does not fit is sent again by its sender
MAX_EARLY_FRAMES = 4
AUTH_CHOICES = {"pap": AuthChoice.PAP, "chap": AuthChoice.CHAP_MD5}
IPV6 = 0x0057


class Renegotiated(Exception):
    """RFC 1661 4.3: a Configure-Request in Opened; authentication and networks start over."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A PPP frame that is not a subscriber's IP packet."""

    protocol: int
    information: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The session has to end, for this reason."""

    why: SessionEnded | ProtocolError


class Wake:
    """Something that happened elsewhere is to be looked at: the timer wheel's call, a decision, an answer."""


WAKE, TIMER = Wake(), Wake()


class PppLink:
    """One link. `on_message` is called with the call's L2TP messages, `on_timer` for the timer wheel's TIMER,
    `on_credentials` with the subscriber's answers: all in the session's greenlet."""

    __slots__ = (
        "_early",
        "_lcp_down",
        "_lcp_heard",
        "_on_credentials",
        "_on_message",
        "_on_timer",
        "_pauses",
        "_services",
        "authenticator",
        "layers",
        "lcp",
        "log",
        "login_deadline",
        "mailbox",
        "path",
        "phase",
        "protocols_rejected",
    )

    def __init__(
        self,
        services: Services,
        path: SessionPath,
        log: Logger,
        on_message: Callable[[Message], None],
        on_timer: Callable[[], None],
        on_credentials: Callable[[Credentials], None],
    ) -> None:
        self._services = services
        self.path = path
        path.post = self.post_frame
        self.log = log
        self._on_message = on_message
        self._on_timer = on_timer
        self._on_credentials = on_credentials
        self.mailbox = Mailbox(MAILBOX_LIMIT)
        self.phase = Phase.CALL
        self.login_deadline: float | None = None  # by `now`
        config = services.config
        self.lcp = Lcp(
            partial(self.send_frame, Protocol.LCP),
            self._on_lcp,
            services.random,
            self.timers(),
            LcpWishes(mru=config.mru, auth=tuple(AUTH_CHOICES[name] for name in config.radius_authtypes)),
            self._on_protocol_rejected,
        )
        self.authenticator: Authenticator | None = None
        self.layers: dict[int, NetworkLayer] = {}  # by the NCP's protocol number; none before the network phase
        self.protocols_rejected: tuple[int, ...] = ()  # the last ones
        self._lcp_down = self._lcp_heard = False
        self._pauses = services.awake.pauses
        self._early: list[Frame] = []

    def now(self) -> float:
        """Return the time by which the subscriber is judged; it stands still while this process does."""
        return self._services.awake.at(self._services.session_timing.clock())

    def timers(self) -> Timers:
        """Return the restart timer and counters of the configuration, for an automaton."""
        config = self._services.config
        return Timers(
            restart=config.ppp_restart_time,
            max_configure=config.ppp_max_configure,
            max_failure=config.ppp_max_failure,
        )

    @property
    def mru(self) -> int:
        """Return the largest packet in octets that both the subscriber and our configuration allow."""
        return min(self.lcp.peer_mru, self._services.config.mru)

    # The mailbox

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Serve the mailbox until `condition()` holds. Return False after `timeout` seconds without that.

        Raises what ends the session or the link: SessionEnded, ProtocolError, Renegotiated.
        """
        return serve_until(self, condition, timeout)

    def run_in_background(self, work: Callable[[], T]) -> T:
        """Do what may block in a greenlet of its own, serving the mailbox meanwhile. Raises what `work` raises."""
        job = gevent.spawn(self._work, work)
        try:
            self.wait(job.ready)
        finally:
            job.kill(block=False)  # a subscriber that begins anew has no further use for the answer
        if not job.successful():
            raise job.exception
        if isinstance(job.value, gevent.GreenletExit):  # by a plugin, for nothing else knows this greenlet
            raise PluginError("the greenlet that a plugin worked in was killed")
        done: T | NoAnswer = job.value
        if isinstance(done, NoAnswer):
            raise NoAnswer(*done.args)  # not itself: its traceback would hold this frame, which holds it
        return done

    def _work(self, work: Callable[[], T]) -> T | NoAnswer:
        """Wake the session when the work is done. NoAnswer is returned, lest gevent print it as a failure."""
        try:
            return work()
        except NoAnswer as silence:
            return silence
        finally:
            self.mailbox.post_urgent(WAKE)

    def handle(self, item: Any) -> None:
        """Do what an item of the mailbox asks for."""
        if type(item) is Frame:
            self.on_frame(item)
        elif type(item) is End:
            raise item.why
        elif item is TIMER:
            self._on_timer()
        elif item is not WAKE:
            self._on_message(item)
        self._check()

    def before_wait(self, now: float) -> float | None:
        """Run the automata's timers. Return when the next one is due."""
        wake = self.login_deadline
        if wake is not None and now >= wake:
            raise SessionEnded(causes.AUTH_TIMEOUT if self.phase is Phase.AUTHENTICATE else causes.LOGIN_TIMEOUT)
        after_pause = self._pauses != self._services.awake.pauses
        self._pauses = self._services.awake.pauses
        for automaton in (self.lcp, self.authenticator, *self.layers.values()):
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
        self._check()
        return wake

    def pause(self, seconds: float | None) -> None:
        """Block until there is mail, for `seconds` of the link's time at most."""
        self.mailbox.wait(None if seconds is None else self._services.awake.real(seconds))

    def _check(self) -> None:
        """Raise what the automata have noticed, as the turn that the session's life takes."""
        if self.authenticator is not None and self.authenticator.exhausted:
            raise SessionEnded(causes.AUTH_TIMEOUT)
        if self.lcp.auth_refused:
            raise SessionEnded(causes.AUTH_PROTOCOL_REFUSED, text=self._auth_refusal())
        if self.lcp.loop_suspected:
            raise SessionEnded(causes.LOOPED)
        if self.lcp.impasse is not None:
            raise SessionEnded(causes.LCP_FAILED, text=self.lcp.impasse.words("the subscriber"))
        for layer in self.layers.values():
            failure = layer.failure()
            if failure is not None:
                raise failure
        if self._lcp_down:
            self._lcp_down = False
            if self.lcp.state in (State.REQ_SENT, State.ACK_RCVD, State.ACK_SENT, State.OPENED):
                self._services.plane.offline(self.path)  # at once: the peer's MRU may be another one by now
                raise Renegotiated
            raise SessionEnded(causes.USER_REQUEST)

    def _auth_refusal(self) -> str:
        """Return which authentication the subscriber wants in place of those that are allowed."""
        wanted = self.lcp.auth_wanted
        if not wanted:
            return ""
        allowed = " or ".join(authentication_name(choice.value) for choice in self.lcp.wishes.auth)
        return f"the subscriber wants to authenticate by {', '.join(wanted)}, not by {allowed}"

    def refusals(self) -> list[str]:
        """Return what the subscriber has asked for in PPP and not got, by the standards' names."""
        rejected = [protocol_name(protocol) for protocol in self.protocols_rejected]
        layers = [refusal for layer in self.layers.values() for refusal in layer.refusals()]
        return self.lcp.refusals() + layers + rejected

    def log_refused(self, layer: str, wanted: list[str]) -> None:
        """Log what was refused in a layer, if anything was."""
        if wanted:
            self.log.debug("ppp_refused", layer=layer, wanted=wanted)

    # PPP

    def post_frame(self, protocol: int, information: bytes) -> None:
        """Take a PPP frame that is not a subscriber's IP packet. Called by the UDP reader; must not block or raise."""
        if not self.mailbox.post(Frame(protocol, information)):
            self._services.counters.drop_mailbox_full += 1

    def take_early_frames(self) -> None:
        """Post the frames that came before the ICCN: the call is connected now."""
        for frame in self._early:
            self.mailbox.post_urgent(frame)
        self._early = []

    def on_frame(self, frame: Frame) -> None:
        """Dispatch a frame by its protocol number. What the phase does not allow is dropped (RFC 1661 3.4 to 3.7)."""
        protocol, information = frame.protocol, frame.information
        if self.phase is Phase.CALL:
            # The reader hands us frames directly, messages come through the tunnel: a subscriber's first
            # Configure-Request may overtake the ICCN that allows it (RFC 2661 5.1). It waits; the rest is dropped.
            if protocol == Protocol.LCP and len(self._early) < MAX_EARLY_FRAMES:
                self._early.append(frame)
            return
        if self.log.enabled(DATA):
            self.log.data("ppp_received", protocol=f"{protocol:04x}", octets=ppp_octets(protocol, information))
        now = self.now()
        if protocol == Protocol.LCP:
            self._lcp_heard = True
            self.lcp.receive(information, now)
        elif protocol in (Protocol.PAP, Protocol.CHAP):
            if self.authenticator is not None and protocol == self.authenticator.protocol:
                credentials = self.authenticator.receive(information, now)
                if credentials is not None:
                    self._on_credentials(credentials)
        elif protocol == Protocol.IPCP:
            layer = self.layers.get(protocol)
            if layer is not None:  # RFC 1332 2: silently discarded before the network phase
                layer.receive(information, now)
        elif self.lcp.opened and self.phase in (Phase.NETWORK, Phase.ONLINE) and protocol not in (Protocol.IP, IPV6):
            if self.lcp.protocol_reject(protocol, information, now) and protocol not in self.protocols_rejected:
                self.log_refused("LCP", [protocol_name(protocol)])
                self.protocols_rejected = (*self.protocols_rejected, protocol)[-MAX_NAMED:]

    def send_frame(self, protocol: int, packet: bytes) -> None:
        """Send a frame. All frames of ours but IP packets, which the data plane cuts, leave here.

        Each protocol cuts its packets to the peer's MRU; one that is longer all the same is our mistake, and dropped.
        """
        if len(packet) > self.lcp.peer_mru:
            self._services.counters.drop_above_mru += 1
            self.log.warning_limited(
                "frame_above_mru", protocol=f"{protocol:04x}", octets=len(packet), mru=self.lcp.peer_mru
            )
            return
        if self.log.enabled(DATA):
            self.log.data("ppp_sent", protocol=f"{protocol:04x}", octets=ppp_octets(protocol, packet))
        self._services.plane.send_frame(self.path, protocol, packet)

    def close(self, text: str) -> None:
        """Send a Terminate-Request with this text, if LCP is open (RFC 1661 5.5)."""
        if self.lcp.opened:
            self.lcp.close(self.now(), text.encode())

    def end(self, why: SessionEnded | ProtocolError) -> None:
        """Have the session end, with what it is doing now. Called from any greenlet; does not yield."""
        self.mailbox.post_urgent(End(why))

    def on_network(self, notice: Notice) -> None:
        """End the session when an NCP has failed, or was closed by the subscriber."""
        if notice is Notice.FINISHED:
            negotiating = self.phase is Phase.NETWORK
            self.end(SessionEnded(causes.NCP_FAILED if negotiating else causes.NCP_REFUSED))

    def _on_lcp(self, notice: Notice) -> None:
        if notice is Notice.DOWN:
            self._lcp_down = True
        elif notice is Notice.FINISHED and not self._lcp_down:
            self.end(SessionEnded(causes.LCP_FAILED if self._lcp_heard else causes.LCP_SILENT))

    def _on_protocol_rejected(self, protocol: int) -> None:
        """RFC 1661 5.7: stop sending what the subscriber does not know; without it there can be no session."""
        if protocol in self.layers:
            name = self.layers[protocol].name
            self.end(SessionEnded(causes.NCP_REFUSED, text=f"the subscriber rejected {name}"))
        elif protocol in (Protocol.PAP, Protocol.CHAP):
            text = f"the subscriber rejected {protocol_name(protocol)}"
            self.end(SessionEnded(causes.AUTH_PROTOCOL_REFUSED, text=text))

    def break_reference_cycles(self) -> None:
        """Have a session's memory freed when it ends, not when the garbage collector comes by."""
        self.lcp.send = self.lcp.notify = self.lcp.rejected_protocol = self.path.post = _ignore
        self._on_message = self._on_timer = self._on_credentials = _ignore


def _ignore(*_: object) -> None:
    """Drop what comes after the end."""
