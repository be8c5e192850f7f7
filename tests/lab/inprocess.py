"""Run an LNS within the test's process: real UDP sockets on loopback; no root, no tun device, no RADIUS.

    with InProcess(echo_timeout=1) as server:
        lac = server.lac("lac1").connect()
        fred = lac.call("fred", "pw").wait_online()

`plane.delivered` has the packets from subscribers, `plane.kernel` the routes, `backend.asked` the logins, and
`accounting.records` the usage records. At the end of the block everything is closed; the test fails if `leftovers`
returns anything then. `Peer` is a passive LAC: it sends what the test passes to it, and retransmits nothing.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import gevent
import gevent.socket
from gevent.event import Event

from l2tpns import causes
from l2tpns.config.settings import Config
from l2tpns.dataplane.plane import OnControl
from l2tpns.dataplane.userspace import UserPlane
from l2tpns.errors import NoAnswer
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.policy.garden import GardenTiming
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import ControlHeader, build_control, data_header, parse_control
from l2tpns.proto.l2tp.messages import ICCN, ICRP, ICRQ, SCCCN, SCCRP, SCCRQ, Message
from l2tpns.proto.ppp.chap import check_md5
from l2tpns.proto.ppp.credentials import MD5
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.report import InFlight, ServerReport
from l2tpns.radius.secrets_file import check_ms_chap
from l2tpns.radius.types import AuthReply, AuthRequest, Usage
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Supervisor
from l2tpns.server import Server
from l2tpns.subscriber.pool import parse_layout
from l2tpns.subscriber.pools import Pools
from l2tpns.subscriber.services import SessionTiming
from l2tpns.system.routes import Routes
from l2tpns.system.rtnetlink import Netlink, Route
from tests.lab import PATIENCE
from tests.lab.lac import Lac, Subscriber
from tests.lab.memory_log import MemoryLog

POOL = "10.5.0.0/24\n"
LOOPBACK = IPv4Address("127.0.0.1")
M = TypeVar("M", bound=Message)


class Backend:
    """Decide logins by a table of passwords, with a reply for each user. Slow or silent on demand."""

    def __init__(self) -> None:
        self.passwords: dict[str, bytes] = {"fred": b"pw", "mary": b"pw", "guest": b"pw"}
        self.replies: dict[str, AuthReply] = {}
        self.refusal = AuthReply(accepted=False, message=b"go away")
        self.asked: list[AuthRequest] = []
        self.delay = 0.0
        self.answering = Event()  # cleared: no login gets an answer until it is set
        self.answering.set()
        self.silent = False

    def authenticate(self, request: AuthRequest) -> AuthReply:
        self.asked.append(request)
        if self.delay:
            gevent.sleep(self.delay)
        self.answering.wait()
        if self.silent:
            raise NoAnswer("all servers are silent")
        credentials = request.credentials
        password, proof = self.passwords.get(credentials.user), b""
        if password is None:
            return self.refusal
        if credentials.protocol == Protocol.PAP:
            right = credentials.password == password
        elif credentials.algorithm == MD5:
            right = check_md5(credentials, password)
        else:
            right, proof = check_ms_chap(credentials, password)
        reply = self.replies.get(credentials.user, AuthReply(accepted=True)) if right else self.refusal
        return replace(reply, proof=proof) if proof else reply

    def report(self) -> list[ServerReport]:
        return []

    def in_flight(self) -> list[InFlight]:
        return []


class Records:
    """Keep the usage records of accounting in a list."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Usage]] = []
        self.stopped: set[str] = set()  # ids of sessions whose Stop an earlier process has written

    def start(self, usage: Usage) -> None:
        self.records.append(("start", usage))

    def interim(self, usage: Usage) -> None:
        self.records.append(("interim", usage))

    def stop(self, usage: Usage) -> None:
        self.records.append(("stop", usage))

    def of(self, kind: str) -> list[Usage]:
        return [usage for name, usage in self.records if name == kind]

    def report(self) -> list[ServerReport]:
        return []

    def in_flight(self) -> list[InFlight]:
        return []

    def is_on_disk(self, session: str) -> bool:
        return False

    def has_stopped(self, session: str, was_on_disk: bool) -> bool:
        return session in self.stopped


class Kernel:
    """Stand in for the kernel's routing table: keep the routes that rtnetlink would set."""

    def __init__(self) -> None:
        self.routes: list[IPv4Network] = []

    def add_routes(self, routes: Iterable[Route]) -> list[tuple[Route, int]]:
        self.routes.extend(route.prefix for route in routes)
        return []

    def delete_routes(self, routes: Iterable[Route]) -> list[tuple[Route, int]]:
        for route in routes:
            self.routes.remove(route.prefix)
        return []


class LoopbackPlane(UserPlane):
    """Run the data plane without a tun device: real sockets, forwarding, checks and counters."""

    def __init__(
        self,
        config: Config,
        counters: Counters,
        log: Logger,
        on_control: OnControl,
        supervisor: Supervisor,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(config, counters, log, on_control, port=0, supervisor=supervisor, clock=clock)
        self.delivered: list[bytes] = []
        self.kernel = Kernel()
        self._routes = Routes(cast(Netlink, self.kernel), 1, log)

    def start(self) -> None:
        self.lacs.start()

    def deliver(self, packet: bytes) -> None:
        """Forward a packet that came from the network to the subscriber that has its destination address."""
        self._tick()
        self._forwarder.downlink(packet)

    def stop(self, *, keep: bool = False) -> None:
        self.lacs.stop()

    def _write(self, packet: bytes) -> int:
        self.delivered.append(packet)
        return len(packet)

    def _send_error(self, packet: bytes) -> bool:
        return True

    @property
    def busy(self) -> dict[str, Any]:
        """Return the paths and routes that sessions have left behind, by kind."""
        assert self._routes is not None
        return {
            "paths": dict(self.lacs.paths),
            "routes": sorted(map(str, self.kernel.routes)),
            "installed": dict(self._installed),
        }


class InProcess:
    """Run one server. Settings are fields of Config. Unlike in files, times may be fractions of a second."""

    def __init__(
        self,
        pool: str = POOL,
        *,
        awake: AwakeClock | None = None,
        session_timing: SessionTiming | None = None,
        tunnel_timing: TunnelTiming | None = None,
        tunnel_limits: TunnelLimits | None = None,
        garden_timing: GardenTiming | None = None,
        journal_interval: float = 1.0,
        data_clock: Callable[[], float] = monotonic,
        **settings: Any,
    ) -> None:
        settings.setdefault("hostname", "lns.example")
        settings.setdefault("bind_multi_address", (LOOPBACK,))
        settings.setdefault("peer_address", IPv4Address("10.255.0.1"))
        settings.setdefault("radius_authtypes", ("chap", "pap"))
        self.config = Config(**settings)
        self.counters = Counters()
        self.log = MemoryLog()
        self.pool = Pools(parse_layout(pool))
        self.backend = Backend()
        self.accounting = Records()
        supervisor = Supervisor(self.log.get())
        self.plane = LoopbackPlane(
            self.config,
            self.counters,
            self.log.get(),
            lambda datagram, peer, endpoint: self.lns.on_control(datagram, peer, endpoint),
            supervisor,
            data_clock,
        )
        self.core = Server(
            self.config,
            self.counters,
            self.log.get(),
            self.pool,
            self.backend,
            cast(Accounting, self.accounting),
            self.plane,
            supervisor=supervisor,
            awake=awake,
            session_timing=session_timing,
            tunnel_timing=tunnel_timing,
            tunnel_limits=tunnel_limits,
            garden_timing=garden_timing,
            journal_interval=journal_interval,
        )
        self.lns, self.services = self.core.lns, self.core.services
        self.plugins, self.journal = self.core.plugins, self.core.journal
        self.registry, self.timing = self.services.registry, self.lns.timing
        self.meant: tuple[str, ...] = ()  # failure events that the test causes on purpose
        self.greenlets: list[gevent.Greenlet[..., Any]] = []
        self._closers: list[Callable[[], None]] = []

    # Life

    def start(self) -> Self:
        gevent.Greenlet.add_spawn_callback(self.greenlets.append)
        self.plane.start()
        self.lns.start()
        return self

    @property
    def address(self) -> tuple[str, int]:
        return (str(self.plane.lacs._addresses[0]), self.plane.lacs.port)

    def stop(self) -> dict[str, Any]:
        """Close all LACs, wait until their tunnels are gone, stop the server. Return the leftovers."""
        for close in self._closers:
            close()
        for each in list(self.lns.tunnels.values()):
            each.end(causes.ADMIN_DROP, None)
        until(lambda: not self.lns.tunnels and not self.lns.sessions, strict=False)
        self.plugins.stop()
        failed = [part.name for part in self.services.supervisor.unwell()]
        self.plane.stop()
        self.services.gardens.stop()
        for part in list(self.services.supervisor.parts):
            part.stop()
        gevent.sleep(0)  # greenlets that were killed run to their end
        gevent.Greenlet.remove_spawn_callback(self.greenlets.append)
        left = self.leftovers()
        if failed and "part_failed" not in self.meant:
            left["parts"] = failed
        return left

    def leftovers(self) -> dict[str, Any]:
        """Return what tunnels and sessions should not have left behind, and failures in the log, by kind."""
        server, registry = self.lns, self.services.registry
        found: dict[str, Any] = {
            "tunnels": server.tunnels,
            "sessions": server.sessions,
            "by_peer": server.by_peer,
            "by_user": registry.by_user,
            "by_address": registry.by_address,
            "half_open": server.admission.half_open,
            "starting": server.admission.starting,
            "lingering": server.admission.lingering,
            "timers": len(self.services.wheel),
            "pool": self.pool.used,
            "greenlets": [greenlet for greenlet in self.greenlets if not greenlet.dead],
            "failures": [r for r in self.log.records() if "traceback" in r and r["event"] not in self.meant],
            **self.plane.busy,
        }
        return {name: value for name, value in found.items() if value}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        left = self.stop()
        if kind is None:
            assert left == {}

    # Peers

    def lac(self, hostname: str = "lac1", to: tuple[str, int] | None = None, **options: Any) -> Lac:
        """Return a LAC of tests.lab.lac on a port of its own, closed with the server. Call `connect` on it."""
        lac = Lac(("127.0.0.1", 0), to or self.address, hostname, **options)
        lac.carried = self.carries
        self._closers.append(lac.close)
        return lac

    def carries(self, subscriber: Subscriber) -> bool:
        """Return True if the server would forward packets of this subscriber, which may be online a little earlier."""
        session = self.lns.sessions.get(subscriber.peer_session_id)
        return session is not None and session.path.online

    def peer(self, **options: Any) -> Peer:
        """Return a Peer, closed with the server."""
        peer = Peer(self.address, **options)
        self._closers.append(peer.close)
        return peer

    # State

    def events(self, event: str) -> list[dict[str, Any]]:
        return self.log.records(event)

    @property
    def calm(self) -> bool:
        """Return True if there is no session, and nothing is left of one."""
        registry, starting = self.services.registry, self.lns.admission.starting
        return not (self.lns.sessions or registry.by_user or registry.by_address or starting or self.pool.used)

    def wait(self, condition: Callable[[], object], timeout: float = PATIENCE) -> None:
        until(condition, timeout)


class Peer:
    """Send what the test passes, with the next Ns, and the Nr of what was read. Does not retransmit."""

    def __init__(
        self, lns: tuple[str, int], tunnel_id: int = 0x1234, local: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        self.socket = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(local)
        self.lns = lns
        self.tunnel_id = tunnel_id
        self.peer_tunnel_id = 0
        self.ns = self.nr = 0
        self.closed = False

    @property
    def address(self) -> tuple[str, int]:
        name: tuple[str, int] = self.socket.getsockname()
        return name

    def close(self) -> None:
        self.socket.close()

    # Out

    def sccrq(self, **changes: Any) -> SCCRQ:
        """Return a valid SCCRQ with these fields changed."""
        sccrq = SCCRQ(
            protocol_version=messages.VERSION_1_0,
            framing_capabilities=3,
            host_name=b"peer",
            assigned_tunnel_id=self.tunnel_id,
        )
        return dataclasses.replace(sccrq, **changes)

    def say(
        self,
        message: Message | bytes,
        session_id: int = 0,
        *,
        tunnel_id: int | None = None,
        ns: int | None = None,
        nr: int | None = None,
    ) -> bytes:
        """Send a message, by default with the next Ns. Return the datagram."""
        body = message if isinstance(message, bytes) else messages.encode(message)
        if ns is None:
            ns = self.ns
            self.ns = self.ns + bool(body) & 0xFFFF
        to = self.peer_tunnel_id if tunnel_id is None else tunnel_id
        datagram = build_control(to, session_id, ns, self.nr if nr is None else nr, body)
        self.send(datagram)
        return datagram

    def acknowledge(self) -> None:
        """Send a ZLB."""
        self.say(b"")

    def send(self, datagram: bytes) -> None:
        self.socket.sendto(datagram, self.lns)

    def send_frame(self, session_id: int, frame: bytes) -> None:
        """Send a data message. The frame begins with address, control and protocol."""
        self.send(data_header(self.peer_tunnel_id, session_id) + frame)

    # In

    def hear(self, timeout: float = PATIENCE) -> ControlHeader:
        """Return the next control datagram. Raises TimeoutError."""
        while True:
            datagram = self.hear_raw(timeout)
            if datagram[0] & 0x80:
                header = parse_control(datagram)
                if header.body and header.ns == self.nr:
                    self.nr = self.nr + 1 & 0xFFFF
                return header

    def hear_raw(self, timeout: float = PATIENCE) -> bytes:
        self.socket.settimeout(timeout)
        datagram, self.source = self.socket.recvfrom(4096)
        return bytes(datagram)

    def expect(self, kind: type[M] | tuple[type[M], ...], timeout: float = PATIENCE) -> M:
        """Return the next message other than a ZLB. Asserts that it is of this class."""
        return self.expect_header(kind, timeout)[1]

    def expect_header(self, kind: type[M] | tuple[type[M], ...], timeout: float = PATIENCE) -> tuple[ControlHeader, M]:
        while True:
            header = self.hear(timeout)
            if header.body:
                message = messages.decode(header.body)
                assert isinstance(message, kind), f"{message} instead of {kind}"
                return header, message

    def expect_nothing(self, timeout: float = 0.1) -> None:
        """Assert that no control message but ZLBs arrives."""
        until = monotonic() + timeout
        while (left := until - monotonic()) > 0:
            try:
                header = self.hear(left)
            except TimeoutError:
                return
            assert not header.body, messages.decode(header.body)

    # Handshakes

    def open(self, **changes: Any) -> Self:
        """Establish a tunnel."""
        self.say(self.sccrq(**changes))
        self.peer_tunnel_id = self.expect(SCCRP).assigned_tunnel_id
        self.say(SCCCN())
        self.acknowledged()
        return self

    def acknowledged(self) -> None:
        """Assert that every message sent was acknowledged, and that the server sent nothing else."""
        while (header := self.hear()).nr != self.ns:
            assert not header.body
        assert not header.body, messages.decode(header.body)

    def ring(self, session_id: int = 1) -> int:
        """Bring a call to wait-connect. Return the server's session id."""
        self.say(ICRQ(assigned_session_id=session_id, call_serial_number=session_id))
        return self.expect(ICRP).assigned_session_id

    def call(self, session_id: int = 1, **changes: Any) -> int:
        """Connect a call. Return the server's session id."""
        theirs = self.ring(session_id)
        self.say(dataclasses.replace(ICCN(tx_connect_speed=1_000_000, framing_type=1), **changes), theirs)
        return theirs


def until(condition: Callable[[], object], timeout: float = PATIENCE, *, strict: bool = True) -> None:
    """Wait until the condition holds. Raises TimeoutError, unless `strict` is False. Yields."""
    end = monotonic() + timeout
    while not condition():
        if monotonic() >= end:
            if strict:
                raise TimeoutError(f"{timeout:g} s without {condition}")
            return
        gevent.sleep(0.005)


def avps(*parts: str) -> bytes:
    """Return the octets of AVPs that are written in hexadecimal. The division into parts has no meaning."""
    return bytes.fromhex("".join(parts))


def without(body: bytes, attribute: int) -> bytes:
    """Return the AVPs of a message without those of this type."""
    kept, at = b"", 0
    while at < len(body):
        length = (body[at] << 8 | body[at + 1]) & 0x3FF
        if int.from_bytes(body[at + 4 : at + 6], "big") != attribute:
            kept += body[at : at + length]
        at += length
    return kept
