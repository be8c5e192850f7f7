"""The PPP link of a session: mailbox, LCP, authenticator, network layers, and its only wait loop (RFC 1661 3, 4, 5).

Events of the automata become exceptions in the session's greenlet (Renegotiated, SessionEnded), so that session.py
reads from top to bottom. The link knows nothing of addresses, accounting or the subscriber's identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import gevent

from l2tpns import causes
from l2tpns.causes import SessionEnded
from l2tpns.config.settings import PPPOE_MRU, Config
from l2tpns.dataplane.session_path import SessionPath
from l2tpns.errors import NoAnswer, PluginError, ProtocolError
from l2tpns.proto.l2tp.codes import DisconnectCode
from l2tpns.proto.l2tp.messages import Message
from l2tpns.proto.ppp.automaton import State, Timers
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.lcp import AUTH_NAMES, Lcp, LcpWishes
from l2tpns.proto.ppp.names import MAX_NAMED, authentication_name, protocol_name
from l2tpns.proto.ppp.negotiation import Notice
from l2tpns.runtime.log import DATA, Logger
from l2tpns.runtime.log_render import ppp_octets
from l2tpns.runtime.mailbox import Mailbox, serve_until
from l2tpns.subscriber.layers import Authenticator, NetworkLayer
from l2tpns.subscriber.phase import Phase
from l2tpns.subscriber.services import Services

T = TypeVar("T")
MAILBOX_LIMIT = 64  # frames and messages; the sender retransmits those that do not fit
ECHO_CODES = (b"\x09", b"\x0a")  # Echo-Request, Echo-Reply (RFC 1661 5.8)
ECHOES_PER_SECOND = 10  # that are handled at once
MAX_EARLY_FRAMES = 4
IPV6 = 0x0057


class Renegotiated(Exception):
    """LCP left state Opened (RFC 1661 4.3): authentication and network layers start over."""


@dataclass(slots=True)
class Frame:
    """A PPP frame that is not a subscriber's IP packet."""

    protocol: int
    information: bytes


@dataclass(slots=True)
class End:
    """Makes the session end with this exception."""

    why: SessionEnded | ProtocolError


class Wake:
    """Wakes the session: a timer is due, or background work is done."""


WAKE, TIMER = Wake(), Wake()


class PppLink:
    """One link.

    It calls `on_message` with L2TP messages of the call, `on_timer` for TIMER and `on_credentials` with credentials of
    the subscriber. It calls all three in the session's greenlet.
    """

    __slots__ = (
        "_config",
        "_early",
        "_echo_second",
        "_echoes",
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
        config: Config,
        path: SessionPath,
        log: Logger,
        on_message: Callable[[Message], None],
        on_timer: Callable[[], None],
        on_credentials: Callable[[Credentials], None],
    ) -> None:
        self._services = services
        self._config = config  # that counts for the LAC
        self.path = path
        path.post = self.post_frame
        self.log = log
        self._on_message = on_message
        self._on_timer = on_timer
        self._on_credentials = on_credentials
        self.mailbox = Mailbox(MAILBOX_LIMIT)
        self.phase = Phase.CALL
        self.login_deadline: float | None = None  # by `now`
        self.lcp = Lcp(
            partial(self.send_frame, Protocol.LCP),
            self._on_lcp,
            services.random,
            self.timers(),
            LcpWishes(config.mru, PPPOE_MRU, tuple(AUTH_NAMES[name] for name in config.radius_authtypes)),
            self._on_protocol_rejected,
        )
        self.authenticator: Authenticator | None = None
        self.layers: dict[int, NetworkLayer] = {}  # by the NCP's protocol number; none before the network phase
        self.protocols_rejected: tuple[int, ...] = ()  # the last ones
        self._lcp_down = self._lcp_heard = False
        self._echo_second = self._echoes = 0
        self._pauses = services.awake.pauses
        self._early: list[Frame] = []

    def now(self) -> float:
        """Return the link's time in seconds, which stops while this process is paused."""
        return self._services.awake.at(self._services.session_timing.clock())

    def timers(self) -> Timers:
        """Return the restart timer and counters of the configuration (RFC 1661 4.6)."""
        config = self._config
        return Timers(
            restart=config.ppp_restart_time,
            max_configure=config.ppp_max_configure,
            max_failure=config.ppp_max_failure,
        )

    @property
    def mru(self) -> int:
        """Return the largest packet in octets that both the subscriber and our configuration allow."""
        return min(self.lcp.peer_mru, self._config.mru)

    def protocol_of(self, disconnect: int) -> int:
        """Return the PPP protocol that a disconnect code is about, 0 if it is about none (RFC 3145 2)."""
        if DisconnectCode.LCP_NOT_CONVERGED <= disconnect <= DisconnectCode.CALLBACK_REFUSED:
            return Protocol.LCP
        if DisconnectCode.AUTH_TIMEOUT <= disconnect <= DisconnectCode.AUTH_FAILED:
            return self.lcp.auth.protocol if self.lcp.auth is not None else Protocol.LCP
        if DisconnectCode.NCP_NOT_CONVERGED <= disconnect <= DisconnectCode.NO_ADDRESS_PERMITTED:
            return Protocol.IPCP
        return 0

    # The mailbox

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Serve the mailbox until `condition()` holds. Return False after `timeout` seconds. May yield.

        Raises SessionEnded, ProtocolError or Renegotiated when the session or the link ends.
        """
        return serve_until(self, condition, timeout)

    def run_in_background(self, work: Callable[[], T]) -> T:
        """Run blocking work in its own greenlet, and serve the mailbox meanwhile. Raises what `work` raises."""
        job = gevent.spawn(self._work, work)
        try:
            self.wait(job.ready)
        finally:
            job.kill(block=False)  # after a renegotiation the result is of no use
        if not job.successful():
            raise job.exception
        if isinstance(job.value, gevent.GreenletExit):  # killed by a plugin: nothing else knows this greenlet
            raise PluginError("a plugin killed the greenlet that called it")
        done: T | NoAnswer = job.value
        if isinstance(done, NoAnswer):
            raise NoAnswer(*done.args)  # a new one: the traceback of the other refers to this frame
        return done

    def _work(self, work: Callable[[], T]) -> T | NoAnswer:
        """Run the work, then wake the session. Return NoAnswer, since gevent would print it if raised."""
        try:
            return work()
        except NoAnswer as silence:
            return silence
        finally:
            self.wake()

    def handle(self, item: Any) -> None:
        """Handle an item of the mailbox. Raises what ends the session or the link."""
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
        """Run the timers of the automata that are due. Return when the next one is due, None for never."""
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
        """Block until the mailbox has an item, for `seconds` of the link's time at most.

        A session that is not online then waits for its turn: an online one must not wait for logins.
        """
        self.mailbox.wait(None if seconds is None else self._services.awake.real(seconds))
        if self.phase is not Phase.ONLINE:
            self._services.session_scheduler.wait_turn(self.path.peer[0])

    def wake(self) -> None:
        """End the pause. Called from any greenlet. Does not yield."""
        self.mailbox.post_urgent(WAKE)

    def _check(self) -> None:
        """Raise the exception for what the automata have noticed, if anything."""
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
                self._services.plane.offline(self.path)  # at once: the MRU of the subscriber may have changed
                raise Renegotiated
            raise SessionEnded(causes.USER_REQUEST)

    def _auth_refusal(self) -> str:
        """Describe the authentication that the subscriber requested instead of those allowed."""
        wanted = self.lcp.auth_wanted
        if not wanted:
            return ""
        allowed = " or ".join(authentication_name(choice.value) for choice in self.lcp.wishes.auth)
        return f"the subscriber requested authentication by {', '.join(wanted)}, not by {allowed}"

    def refusals(self) -> list[str]:
        """Return the names of PPP options and protocols that the subscriber requested and was refused."""
        rejected = [protocol_name(protocol) for protocol in self.protocols_rejected]
        layers = [refusal for layer in self.layers.values() for refusal in layer.refusals()]
        return self.lcp.refusals() + layers + rejected

    def log_refused(self, layer: str, wanted: list[str]) -> None:
        """Log what the subscriber was refused in a layer, if anything."""
        if wanted:
            self.log.debug("ppp_refused", layer=layer, wanted=wanted)

    # PPP

    def post_frame(self, protocol: int, information: bytes) -> None:
        """Queue a PPP frame that the data plane does not forward. Called by the reader; must not block or raise.

        An echo of a session that is online needs no greenlet: it is answered, or noted, at once.
        """
        if protocol == Protocol.LCP and information[:1] in ECHO_CODES and self.phase is Phase.ONLINE:
            if not self.mailbox and not self.log.enabled(DATA) and self._may_echo():
                self.lcp.receive(information, self.now())
                if self.lcp.loop_suspected:
                    self.wake()
                return
        if not self.mailbox.post(Frame(protocol, information)):
            self._services.counters.drop_mailbox_full += 1

    def _may_echo(self) -> bool:
        """Return whether an echo may be handled at once: those of a flood wait in the mailbox, which is bounded."""
        second = int(self._services.session_timing.clock())
        if second != self._echo_second:
            self._echo_second, self._echoes = second, 0
        self._echoes += 1
        return self._echoes <= ECHOES_PER_SECOND

    def take_early_frames(self) -> None:
        """Queue the frames that arrived before the ICCN: the call is connected now."""
        for frame in self._early:
            self.mailbox.post_urgent(frame)
        self._early = []

    def on_frame(self, frame: Frame) -> None:
        """Dispatch a frame by its protocol number. Drop what the phase does not allow (RFC 1661 3.4 to 3.7)."""
        protocol, information = frame.protocol, frame.information
        if self.phase is Phase.CALL:
            # Frames come directly from the reader, messages through the tunnel. So a first Configure-Request may
            # overtake the ICCN that allows it (RFC 2661 5.1): keep it, and drop other frames.
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
        elif protocol in self.layers:
            self.layers[protocol].receive(information, now)
        elif protocol == Protocol.IPCP:
            pass  # RFC 1332 2: silently discarded before the network phase
        elif self.lcp.opened and self.phase in (Phase.NETWORK, Phase.ONLINE) and protocol not in (Protocol.IP, IPV6):
            if self.lcp.protocol_reject(protocol, information, now) and protocol not in self.protocols_rejected:
                self.log_refused("LCP", [protocol_name(protocol)])
                self.protocols_rejected = (*self.protocols_rejected, protocol)[-MAX_NAMED:]

    def send_frame(self, protocol: int, packet: bytes) -> None:
        """Send a frame. Does not yield. All frames are sent here except IP packets, which the data plane sends.

        Each protocol keeps its packets within the MRU of the subscriber. A longer packet is a defect: drop it.
        """
        if len(packet) > self.lcp.peer_mru:
            self._services.counters.drop_above_mru += 1
            self.log.warning_limited(
                "frame_above_mru", protocol=f"{protocol:04x}", octets=len(packet), mru=self.lcp.peer_mru
            )
            return
        if self.log.enabled(DATA):
            self.log.data("ppp_sent", protocol=f"{protocol:04x}", octets=ppp_octets(protocol, packet))
        # No retransmission and no other packet follows from an echo, so it is sent as cheaply as a data packet.
        echo = protocol == Protocol.LCP and packet[:1] in ECHO_CODES
        self._services.plane.send_frame(self.path, protocol, packet, checksum=not echo)

    def close(self, text: str) -> None:
        """Send a Terminate-Request with this text if LCP is Opened (RFC 1661 5.5). Does not yield."""
        if self.lcp.opened:
            self.lcp.close(self.now(), text.encode())

    def end(self, why: SessionEnded | ProtocolError) -> None:
        """Make the session end, whatever it waits for. Called from any greenlet. Does not yield."""
        self.mailbox.post_urgent(End(why))

    def on_network(self, notice: Notice) -> None:
        """End the session when an NCP has failed or the subscriber has closed it."""
        if notice is Notice.FINISHED:
            negotiating = self.phase is Phase.NETWORK
            self.end(SessionEnded(causes.NCP_FAILED if negotiating else causes.NCP_REFUSED))

    def _on_lcp(self, notice: Notice) -> None:
        if notice is Notice.DOWN:
            self._lcp_down = True
        elif notice is Notice.FINISHED and not self._lcp_down:
            self.end(SessionEnded(causes.LCP_FAILED if self._lcp_heard else causes.LCP_SILENT))

    def _on_protocol_rejected(self, protocol: int) -> None:
        """End the session: the subscriber has rejected a protocol that it needs (RFC 1661 5.7)."""
        if protocol in self.layers:
            name = self.layers[protocol].name
            self.end(SessionEnded(causes.NCP_REFUSED, text=f"the subscriber rejected {name}"))
        elif protocol in (Protocol.PAP, Protocol.CHAP):
            text = f"the subscriber rejected {protocol_name(protocol)}"
            self.end(SessionEnded(causes.AUTH_PROTOCOL_REFUSED, text=text))

    def break_reference_cycles(self) -> None:
        """Free the memory of an ended session now, without the garbage collector."""
        self.lcp.send = self.lcp.notify = self.lcp.rejected_protocol = self.path.post = _ignore
        self._on_message = self._on_timer = self._on_credentials = _ignore


def _ignore(*_: object) -> None:
    """Ignore a call after the end."""
