"""The port of dynamic authorization: Disconnect- and CoA-Requests of RADIUS servers and billing systems (RFC 5176).

Closed until a client is named. A request that is malformed, forged or too old gets no answer (RFC 5176 2.3, 6.1, 6.3).
A repetition gets the answer of the first one, octet by octet, and has no other effect. Each request runs in a greenlet
of its own, since plugins may block; the answer follows the effect.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent import socket
from gevent.lock import RLock

from l2tpns.config.settings import Config
from l2tpns.errors import L2tpnsError, WireError, refused
from l2tpns.radius.dynamic_packet import NAMES, DynamicRequest, ErrorCause, Refused, parse_request
from l2tpns.radius.framing import MAX_PACKET
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.drain import drain_in_turn
from l2tpns.runtime.log import Logger
from l2tpns.runtime.peer import Peer
from l2tpns.runtime.scheduler import Scheduler
from l2tpns.runtime.supervisor import Part, Supervisor

MAX_RUNNING = 256  # requests running at the same time
MAX_RATE = 500  # requests a second of one client
MAX_REMEMBERED = 50_000  # answers
IP_PKTINFO, PKTINFO_ADDRESS = 8, 4  # linux/in.h: interface, local address, destination address
ANCILLARY = 64  # octets
SHARE_OWNER = "dynamic authorization"


class Authority(Protocol):
    """Carries out requests: subscriber/dynamic.py. Methods may yield and raise Refused."""

    def disconnect(self, request: DynamicRequest) -> list[Any]: ...

    def change(self, request: DynamicRequest, client: str) -> tuple[list[Any], dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Way:
    """The way back to a client: from the address that it has sent its request to, for it expects no other."""

    sock: Any
    client: Peer
    extra: list[tuple[int, int, bytes]]  # with the request: struct in_pktinfo (ip(7))

    def send(self, answer: bytes) -> None:
        local = [info[-PKTINFO_ADDRESS:] for level, kind, info in self.extra
                 if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO)]  # fmt: skip
        extra = [(socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + address + bytes(4)) for address in local]
        try:
            self.sock.sendmsg([answer], extra, 0, self.client)
        except OSError:
            pass  # the client repeats its request


@dataclass(slots=True)
class Remembered:
    """A request of the last `radius_dae_window` seconds, and its answer once there is one."""

    until: float  # monotonic
    answer: bytes = b""


class DynamicAuthorization:
    """Listens on radius_dae_port of all addresses while there are clients."""

    def __init__(
        self,
        config: Config,
        counters: Counters,
        authority: Authority,
        log: Logger,
        *,
        share: Scheduler | None = None,
        supervisor: Supervisor | None = None,
        clock: Callable[[], float] = time.time,
        now: Callable[[], float] = monotonic,
    ) -> None:
        """`clock` is the wall clock, which Event-Timestamps are compared with; `now` is a monotonic clock."""
        self._config = config
        self._counters = counters
        self._authority = authority
        self._log = log
        self._share = share or Scheduler()
        self._supervisor = supervisor or Supervisor(log)
        self._clock = clock
        self._now = now
        self._socket: Any = None
        self._port = 0
        self._reader: Part | None = None
        self._running: set[Any] = set()
        self._recent: dict[tuple[Peer, bytes], Remembered] = {}  # in the order of arrival
        self._spent: dict[str, tuple[int, int]] = {}  # by client: a second, and its requests in it
        self._changing = RLock()  # a change of several sessions is not mixed with another
        self._reading = False

    # The socket

    def apply_config(self) -> None:
        """Open or close the port as configured. Raises ConfigError, and the old port stays open."""
        port = self._config.radius_dae_port if self._config.radius_dae_clients else 0
        if port == self._port:
            return
        fresh = None
        if port:
            fresh = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                fresh.bind(("0.0.0.0", port))
            except OSError as error:
                fresh.close()
                raise refused(error.errno, f"radius_dae_port {port}: {error.strerror}") from None
            fresh.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        self._close()
        self._socket, self._port = fresh, port
        if fresh is not None:
            self._log.info("dae_listens", port=port, clients=len(self._config.radius_dae_clients))
        if self._reading:
            self.start()

    def start(self) -> None:
        """Start serving requests, once sessions are restored."""
        self._reading = True
        if self._socket is not None and self._reader is None:
            self._reader = self._supervisor.spawn("dynamic authorization", self._read, self._socket)

    def stop(self) -> None:
        """Close the port and cancel running requests."""
        self._reading = False
        self._close()
        gevent.killall(list(self._running))

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
        if self._socket is not None:
            self._socket.close()
            self._socket, self._port = None, 0

    @property
    def address(self) -> Peer:
        """Return where it listens."""
        found: Peer = self._socket.getsockname()
        return found

    def _read(self, sock: Any) -> None:
        drain_in_turn(sock, self._share, SHARE_OWNER, self._read_one, self._read_failed)

    def _read_one(self, sock: Any) -> None:
        datagram, extra, _, source = sock.recvmsg(MAX_PACKET, ANCILLARY)
        self.on_datagram(datagram, source, Way(sock, source, extra))

    def _read_failed(self, error: Exception) -> None:
        if isinstance(error, OSError):
            self._log.warning_limited("dae_read_failed", why=error.strerror)
        else:
            self._log.exception("dae_failed")

    # Requests

    def on_datagram(self, datagram: bytes, source: Peer, way: Way) -> None:
        """Handle one datagram. Does not yield."""
        secret = self._secret_of(source[0])
        if secret is None:
            self._drop(source, "not one of radius_dae_clients")
            return
        try:
            required = self._config.radius_dae_require_message_authenticator
            request = parse_request(datagram, secret, signed=required)
        except WireError as error:
            self._drop(source, str(error))
            return
        known = self._recent.get((source, request.identity))
        if known is not None:
            if known.answer:  # else it is being worked on
                self._counters.dae_requests += 1
                way.send(known.answer)
            return
        why = self._untimely(request)
        if why:
            self._drop(source, why)
        elif self._too_many(source[0]) or len(self._running) >= MAX_RUNNING:
            self._counters.dae_crowded_out += 1
            self._log.warning_limited("dae_crowded_out", client=source[0], limit=MAX_RATE)
        else:
            greenlet = gevent.spawn(self._serve, request, source[0], way, self._remember(source, request))
            self._running.add(greenlet)
            greenlet.rawlink(self._running.discard)

    def _secret_of(self, host: str) -> bytes | None:
        """Return the secret of the longest prefix that has this address, None if there is none."""
        address = IPv4Address(host)
        fitting = [(network.prefixlen, secret) for network, secret in self._config.radius_dae_clients
                   if address in network]  # fmt: skip
        return max(fitting)[1].encode("utf-8", "surrogateescape") if fitting else None

    def _drop(self, source: Peer, why: str) -> None:
        self._counters.dae_dropped += 1
        self._log.warning_limited("dae_dropped", client=source[0], why=why)

    def _untimely(self, request: DynamicRequest) -> str:
        """Return why a request may be a replay, or an empty string (RFC 5176 6.3)."""
        when = request.timestamp
        if when is None:
            required = self._config.radius_dae_require_event_timestamp
            return "it has no Event-Timestamp, which radius_dae_require_event_timestamp demands" if required else ""
        apart = abs(self._clock() - when)
        return f"its Event-Timestamp is {apart:.0f} s off" if apart > self._config.radius_dae_window else ""

    def _too_many(self, host: str) -> bool:
        """Count a request of a client. Return True if it has sent too many in this second."""
        second = int(self._now())
        last, count = self._spent.get(host, (second, 0))
        self._spent[host] = (second, count + 1 if last == second else 1)
        return last == second and count >= MAX_RATE

    def _remember(self, source: Peer, request: DynamicRequest) -> Remembered:
        now = self._now()
        while self._recent:
            oldest = next(iter(self._recent))
            if len(self._recent) < MAX_REMEMBERED and self._recent[oldest].until > now:
                break
            del self._recent[oldest]
        found = self._recent[source, request.identity] = Remembered(now + 2 * self._config.radius_dae_window)
        return found

    def _serve(self, request: DynamicRequest, client: str, way: Way, remembered: Remembered) -> None:
        """Carry out a request, log it, and answer it."""
        kind = NAMES[request.packet.code]
        cause, why, changed = None, "", dict[str, Any]()
        sessions: list[Any] = []
        try:
            if request.disconnects:
                sessions = self._authority.disconnect(request)
            else:
                with self._changing:
                    sessions, changed = self._authority.change(request, client)
        except Refused as refusal:
            cause, why = refusal.cause, str(refusal)
        except L2tpnsError as error:
            cause, why = ErrorCause.RESOURCES, str(error)
        except Exception:
            cause, why = ErrorCause.RESOURCES, "an error of this server"
            self._log.exception("dae_failed")
        result = "ack" if cause is None else int(cause)
        ids = [session.id for session in sessions]
        self._log.audit("dae_request", kind=kind, client=client, result=result, why=why, sessions=ids, changed=changed)
        self._counters.dae_requests += 1
        self._counters.dae_refused += cause is not None
        remembered.answer = request.answer(cause, int(self._clock()))
        way.send(remembered.answer)
