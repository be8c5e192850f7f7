"""Run one subscriber's call: an L2TP session of our LAC with a PPP client at its end.

It is event-driven, without a greenlet of its own. Methods for tests may block (`wait_online`, `ping`). Methods that are
called for packets must not block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from struct import Struct
from typing import TYPE_CHECKING, Protocol

import gevent
from gevent.event import Event

from tests.lab import PATIENCE, traffic
from tests.lab.pppclient import PppClient
from tests.lab.pppwishes import CHAP, IP, IPCP, LCP, PAP, Phase, Wishes

if TYPE_CHECKING:
    from tests.lab.lac import Lac

PLAIN = Struct("!HHH")
FULL = Struct("!HHHH")
PREFIX = {protocol: b"\xff\x03" + protocol.to_bytes(2, "big") for protocol in (LCP, PAP, CHAP, IPCP, IP)}


class Why(Enum):
    """Name what ended a call or a tunnel."""

    CDN = "CDN from the LNS"
    STOPCCN = "StopCCN from the LNS"
    SILENCE = "the LNS did not answer any more"
    HANGUP = "we hung up"
    VANISHED = "we vanished"
    CLOSED = "we closed the tunnel"
    BAD_RESPONSE = "the LNS does not know the tunnel secret"


@dataclass(frozen=True, slots=True)
class Ended:
    """Hold how a call ended, with the Result Code AVP where one came."""

    why: Why
    result: int = 0
    error: int = 0
    text: str = ""


class Refused(Exception):
    """Report that the call or the tunnel did not come up. `.ended` has the reason."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(f"{ended.why.value}: result {ended.result}, error {ended.error} {ended.text}".rstrip())
        self.ended = ended


@dataclass(frozen=True, slots=True)
class Dial(Wishes):
    """Hold the parameters of a call: of the ICRQ and ICCN, of the frames, and the client's PPP wishes."""

    called: bytes | None = b"08002"
    calling: bytes | None = b"0401"
    tx_speed: int = 10_000_000
    rx_speed: int | None = None
    framing: int = 1  # synchronous
    private_group_id: bytes | None = None
    sequencing_required: bool = False
    length_bit: bool = False  # data messages with Length
    compress: bool = False  # IP without FF 03 and with one octet of protocol, agreed or not: an LNS accepts both
    proxy_lcp: bool = False
    proxy_auth: bool = False  # needs auth "pap" or "chap", and proxy_lcp
    inbox: int = 200  # IP packets kept for receive_ip(); the oldest are dropped


class Waitable(Protocol):
    """Set each added event once, on the next change of the object."""

    def add_waiter(self, event: Event) -> None: ...


def wait_for(thing: Waitable, condition: Callable[[], object], timeout: float, what: str) -> None:
    """Wait until the condition holds. Raises TimeoutError with the state at that moment.

    It is checked on each change of the object, and periodically for conditions that depend on other objects.
    """
    event = Event()
    event.set()
    with gevent.Timeout(timeout, False):
        while not condition():
            if event.is_set():  # a change has used it up, or it is new
                event.clear()
                thing.add_waiter(event)
            event.wait(0.05)
        return
    raise TimeoutError(f"{timeout:g} s without {what or condition}; {thing!r}")


class Subscriber(PppClient):
    """Run a call, from its beginning to its end."""

    __slots__ = (
        "_inbox",
        "authenticated_at",
        "connected_at",
        "dial",
        "ended",
        "ended_at",
        "header",
        "in_octets",
        "in_packets",
        "ip_header",
        "lac",
        "misnumbered",
        "ns",
        "ns_expected",
        "on_change",
        "on_frame",
        "on_ip",
        "online_at",
        "out_octets",
        "out_packets",
        "peer_session_id",
        "scheduled",
        "sequenced_in",
        "sequencing",
        "session_id",
        "started_at",
        "taps",
        "waiters",
    )

    def __init__(self, lac: Lac, session_id: int, user: bytes, password: bytes, dial: Dial, now: float) -> None:
        super().__init__(user, password, dial, lac.random)
        self.lac = lac
        self.session_id = session_id
        self.peer_session_id = 0
        self.dial = dial
        self.phase = Phase.DIALLING
        self.started_at = now
        self.connected_at = self.authenticated_at = self.online_at = self.ended_at = 0.0
        self.ended: Ended | None = None
        self.header = b""  # L2TP header of our data messages
        self.ip_header = b""  # the same with PPP's in front of an IP packet
        self.sequencing = dial.sequencing_required
        self.ns = 0
        self.ns_expected = 0
        self.sequenced_in = 0  # data messages that came with an Ns
        self.misnumbered = 0  # those of them with an unexpected Ns
        self.in_packets = self.in_octets = self.out_packets = self.out_octets = 0  # IP only; in = from the LNS
        self.scheduled = False
        self._inbox: deque[bytes] | None = None
        self.on_ip: Callable[[Subscriber, bytes], None] | None = None
        self.on_change: Callable[[Subscriber], None] | None = None
        # May change or drop (None) what is sent: called with ("out", protocol, packet), and, to observe, ("in", ...).
        self.on_frame: Callable[[str, int, bytes], bytes | None] | None = None
        self.taps: tuple[Callable[[bytes], None], ...] = ()
        self.waiters: tuple[Event, ...] = ()

    # --- for tests ---

    def wait(self, condition: Callable[[], object], timeout: float = PATIENCE, what: str = "") -> None:
        """Wait until the condition holds, checked on each change of this call. Raises TimeoutError."""
        self.lac.endpoint.flush()
        wait_for(self, condition, timeout, what)

    def wait_online(self, timeout: float = PATIENCE) -> Subscriber:
        """Wait until the call is online. Raises Refused with the answer of the LNS."""
        self.wait(lambda: (self.online and self.lac.carried(self)) or self.ended is not None, timeout, "getting online")
        if self.ended is not None:
            raise Refused(self.ended)
        return self

    def wait_ended(self, timeout: float = PATIENCE) -> Ended:
        self.wait(lambda: self.ended is not None, timeout, "the end of the call")
        assert self.ended is not None
        return self.ended

    def wait_phase(self, phase: Phase, timeout: float = PATIENCE) -> None:
        self.wait(lambda: self.phase == phase, timeout, phase.name)

    def terminate(self) -> None:
        """Send an LCP Terminate-Request, as a client does that logs off."""
        self.terminate_link(self.lac.endpoint.now())
        self._after()

    def restart(self) -> None:
        """Send a Configure-Request unprompted: LCP begins again."""
        self.renegotiate(self.lac.endpoint.now())
        self._after()

    def hangup(self, result: int = 1, error: int = 0, text: str = "") -> None:
        """Send a CDN from the LAC; 1 = loss of carrier."""
        if self.ended is None:
            self.lac.send_cdn(self, result, error, text)
            self.lac.endpoint.flush()
            self.finish(Ended(Why.HANGUP, result, error, text))

    def vanish(self) -> None:
        """Forget the call without a CDN."""
        self.finish(Ended(Why.VANISHED))

    def ping(
        self, target: IPv4Address | str, *, size: int = 56, timeout: float = PATIENCE, flags: int = 0
    ) -> float | None:
        """Send an echo request. Return the seconds until the reply with the same data came, None if none came."""
        lac = self.lac
        lac.pings += 1
        sequence, data = lac.pings & 0xFFFF, traffic.PATTERN[:size]
        answered = Event()

        def tap(packet: bytes) -> None:
            try:
                found = traffic.parse(packet)
            except ValueError:
                return
            ours = (traffic.ECHO_REPLY, 0, self.session_id, sequence)
            if found.protocol == traffic.ICMP and found.icmp == ours and found.payload[8:] == data:
                answered.set()

        self.taps += (tap,)
        begun = lac.endpoint.now()
        try:
            self.send_ip(
                traffic.icmp_echo(self.address, IPv4Address(target), self.session_id, sequence, data, flags=flags)
            )
            return lac.endpoint.now() - begun if answered.wait(timeout) else None
        finally:
            self.taps = tuple(other for other in self.taps if other is not tap)

    def send_udp(self, target: IPv4Address | str, port: int, data: bytes, sport: int = 7000) -> None:
        self.send_ip(traffic.udp(self.address, IPv4Address(target), sport, port, data))

    @property
    def received(self) -> deque[bytes]:
        """Return the IP packets that no `on_ip` has taken, the newest `dial.inbox` of them."""
        if self._inbox is None:
            self._inbox = deque(maxlen=self.dial.inbox)
        return self._inbox

    def receive_ip(self, timeout: float = PATIENCE) -> bytes:
        self.wait(lambda: self.received, timeout, "an IP packet")
        return self.received.popleft()

    def __repr__(self) -> str:
        ids = f"{self.lac.tunnel_id}/{self.session_id}"
        return f"<Subscriber {self.user.decode(errors='replace')} {ids} {self.phase.name} {self.ended or ''}>"

    def add_waiter(self, event: Event) -> None:
        self.waiters += (event,)

    # --- frames out ---

    def send_ip(self, packet: bytes) -> None:
        """Send one IP packet to the LNS, without a check of its contents."""
        self.out_packets += 1
        self.out_octets += len(packet)
        if self.ip_header and not self.sequencing:
            self.lac.endpoint.put(self.ip_header + packet, self.lac.lns, control=False)
        else:
            self.send_ppp((b"\x21" if self.dial.compress else b"\xff\x03\x00\x21") + packet)

    def send_frame(self, protocol: int, packet: bytes) -> None:
        if self.on_frame is not None:
            changed = self.on_frame("out", protocol, packet)
            if changed is None:
                return
            packet = changed
        prefix = PREFIX.get(protocol) or b"\xff\x03" + protocol.to_bytes(2, "big")
        self.send_ppp(prefix + packet)

    def send_ppp(self, frame: bytes) -> None:
        """Send any octets as the payload of a data message of this session."""
        dial = self.dial
        if self.sequencing or dial.length_bit:
            flags = 2
            tail = b""
            if self.sequencing:
                flags |= 0x0800
                tail = self.ns.to_bytes(2, "big") + b"\0\0"
                self.ns = self.ns + 1 & 0xFFFF
            tunnel_id, session_id = self.lac.peer_tunnel_id, self.peer_session_id
            if dial.length_bit:
                head = FULL.pack(flags | 0x4000, FULL.size + len(tail) + len(frame), tunnel_id, session_id)
            else:
                head = PLAIN.pack(flags, tunnel_id, session_id)
            self.lac.endpoint.put(head + tail + frame, self.lac.lns, control=False)
        else:
            self.lac.endpoint.put(self.header + frame, self.lac.lns, control=False)

    # --- what the LAC calls ---

    def connected(self, now: float) -> None:
        """Begin PPP, as the ICCN has been sent."""
        self.connected_at = now
        self.header = PLAIN.pack(2, self.lac.peer_tunnel_id, self.peer_session_id)
        if self.dial.proxy_lcp:
            self.outstanding = self.identifier = 1
            self.link_adopted(self.proxied_request(), now, authenticating=self.dial.proxy_auth)
        else:
            self.link_up(now)
        self._after()

    def proxied_request(self) -> bytes:
        """Return the options of the LAC's Configure-Request, which demanded authentication on behalf of the LNS."""
        demand = b"\x03\x04\xc0\x23" if self.dial.auth == "pap" else b"\x03\x05\xc2\x23\x05"
        return demand + b"\x05\x06" + (self.session_id | 0x1AC00000).to_bytes(4, "big")

    def receive(self, frame: bytes, ns: int | None, now: float) -> None:
        """Handle the payload of a data message: PPP, with or without FF 03, a protocol field of one or two octets."""
        if ns is not None:
            self.sequenced_in += 1
            self.misnumbered += ns != self.ns_expected
            self.ns_expected = ns + 1 & 0xFFFF
            self.sequencing = True  # RFC 2661 5.4: the LNS decides
        elif self.sequencing and not self.dial.sequencing_required:
            self.sequencing = False
        at = 2 if frame[:2] == b"\xff\x03" else 0
        if len(frame) < at + 2:
            self.dropped += 1
            return
        protocol = frame[at]
        if protocol & 1:
            at += 1
        else:
            protocol = protocol << 8 | frame[at + 1]
            at += 2
        if protocol == IP:
            if self.phase == Phase.ONLINE:
                self._take_ip(frame[at:])
            else:
                self.dropped += 1
            return
        if self.on_frame is not None:
            self.on_frame("in", protocol, frame[at:])
        self.receive_frame(protocol, frame[at:], now)
        if self.deadline and not self.scheduled:
            self.lac.endpoint.schedule(self)
        if self.waiters:
            self._wake()

    def finish(self, ended: Ended) -> None:
        """End the call, as the L2TP session has ended."""
        if self.ended is not None:
            return
        self.ended = ended
        self.ended_at = self.lac.endpoint.now()
        self.deadline = 0.0
        self.phase = Phase.ENDED
        self.lac.sessions.pop(self.session_id, None)
        self._changed()

    def phase_changed(self, now: float) -> None:
        if self.phase == Phase.NETWORK:
            self.authenticated_at = now
        elif self.phase == Phase.ONLINE:
            if not self.online_at:
                self.online_at = now
            if not self.dial.length_bit:
                self.ip_header = self.header + (b"\x21" if self.dial.compress else b"\xff\x03\x00\x21")
        self._changed()

    def _take_ip(self, packet: bytes) -> None:
        self.in_packets += 1
        self.in_octets += len(packet)
        for tap in self.taps:
            tap(packet)
        if self.on_ip is not None:
            self.on_ip(self, packet)
        elif not self.taps:
            self.received.append(packet)
            if self.waiters:
                self._wake()

    def _after(self) -> None:
        if self.deadline and not self.scheduled:
            self.lac.endpoint.schedule(self)

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change(self)
        if self.waiters:
            self._wake()

    def _wake(self) -> None:
        waiters, self.waiters = self.waiters, ()
        for event in waiters:
            event.set()
