"""The server's side of nsctl: UDP 1702, for commands sent by programs (manual: nsctl; docs/nsctl.md).

Every process on this machine may send requests. A datagram from 127.0.0.0/8 cannot come from outside: the kernel drops
such packets as martians unless route_localnet is switched on. Other hosts need nsctl_secret, else they get no reply.

The server itself handles load_plugin, unload_plugin and help; plugins handle all other commands. Each request runs in
its own greenlet, since a plugin may block, and runs only once even if its reply was late or lost. When the limits are
reached, a local user or host that uses less than a quarter of them is still admitted: none can lock out the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from math import inf
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent import socket

from l2tpns.config.settings import Config
from l2tpns.errors import L2tpnsError, refused
from l2tpns.proto.nsctl.packet import NOT_AUTHORISED, UNKNOWN_COMMAND, AnyPacket, Malformed, Request, Verb, decode
from l2tpns.proto.nsctl.seal import MAX_SEALED, WINDOW, Direction, Forged, Sealed, is_sealed, unseal
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.drain import drain_in_turn
from l2tpns.runtime.log import Logger
from l2tpns.runtime.peer import Peer
from l2tpns.runtime.scheduler import Scheduler
from l2tpns.runtime.supervisor import Part, Supervisor
from l2tpns.runtime.text import printable
from l2tpns.system.socket_owner import owner_of

LOOPBACK = "127.0.0.1"
MAX_RUNNING = 32  # requests running at the same time
ANSWER_LIFETIME = 2.0  # seconds for which a repeated request gets its reply again: the client's timeout
MAX_RECENT = 1024  # exchanges of the last ANSWER_LIFETIME seconds
NONCE_LIFETIME = 2 * WINDOW + 1.0  # seconds: a request sealed at one edge of the window can be replayed until the other
MAX_NONCES = 10_000  # 160 requests a second from other hosts
CONTROL_TIMEOUT = 60.0  # seconds for a plugin's reply
SHARE_OWNER = "nsctl"
PRIVATE = frozenset({"snoop", "unsnoop"})  # commands that reveal interception: for the audit log only
FAILED = "an error of this server; its log has the details"
HELP = (
    "help - list the commands",
    "load_plugin NAME - load a plugin",
    "unload_plugin NAME - unload a plugin",
)


class Plugins(Protocol):
    """The part of plugins/manager.py used here. load and remove raise PluginError with a message for the operator."""

    def load(self, name: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def control(
        self, words: list[str], source: Peer, *, packet: bytes, kind: int, id: int
    ) -> tuple[bool, str] | None: ...

    def control_help(self) -> list[str]: ...


@dataclass(slots=True)
class Exchange:
    """A request, its sender, and its reply once there is one."""

    sock: Any
    source: Peer
    octets: bytes
    key: bytes = b""  # and
    nonce: bytes = b""  # if it came sealed
    answer: bytes = b""
    expires_at: float = inf  # when it may be discarded
    owner: str = ""  # its source, determined once half of the places are taken

    @property
    def peer(self) -> str:
        return f"{self.source[0]}:{self.source[1]}"

    def send(self) -> None:
        try:
            self.sock.sendto(self.answer, self.source)
        except OSError:
            pass  # the client retransmits, or has gone


class Exchanges:
    """Running and recent exchanges, by sender or by nonce."""

    def __init__(self, keep: float, most: int, now: Callable[[], float]) -> None:
        self._now = now
        self._keep = keep
        self._most = most
        self._latest: dict[Peer | bytes, Exchange] = {}

    def __len__(self) -> int:
        return len(self._latest)

    def find(self, name: Peer | bytes) -> Exchange | None:
        # Ordered by their ends, except for the running ones: at most MAX_RUNNING precede the oldest.
        now = self._now()
        first = islice(self._latest.items(), 2 * MAX_RUNNING)
        for stale in [name for name, exchange in first if exchange.expires_at <= now]:
            del self._latest[stale]
        return self._latest.get(name)

    def full_for(self, exchange: Exchange) -> bool:
        return full_for(exchange, self._latest.values(), self._most)

    @property
    def crowded(self) -> bool:
        return 2 * len(self._latest) >= self._most

    def begin(self, name: Peer | bytes, exchange: Exchange) -> None:
        self._latest.pop(name, None)
        self._latest[name] = exchange

    def end(self, name: Peer | bytes, exchange: Exchange) -> None:
        if self._latest.get(name) is exchange:
            exchange.expires_at = self._now() + self._keep
            self.begin(name, exchange)


def full_for(exchange: Exchange, held: Collection[Exchange], most: int) -> bool:
    """Return True if `held` has no place for this exchange."""
    if len(held) < most:
        return False
    return len(held) >= 2 * most or sum(other.owner == exchange.owner for other in held) >= most // 4


class NsctlServer:
    """Listens on nsctl_bind_address and nsctl_port, and executes requests."""

    def __init__(
        self,
        config: Config,
        counters: Counters,
        plugins: Plugins,
        log: Logger,
        clock: Callable[[], float] = time.time,
        share: Scheduler | None = None,
        supervisor: Supervisor | None = None,
        awake: AwakeClock | None = None,
        *,
        now: Callable[[], float] = monotonic,
        control_timeout: float = CONTROL_TIMEOUT,
        max_nonces: int = MAX_NONCES,
    ) -> None:
        """`clock` is the wall clock, by which requests are sealed; `now` is a monotonic clock."""
        self._share = share or Scheduler()
        self._supervisor = supervisor or Supervisor(log)
        self._awake = awake or AwakeClock()
        self._config = config
        self._counters = counters
        self._plugins = plugins
        self._log = log
        self._clock = clock
        self._control_timeout = control_timeout  # seconds
        self._sockets: dict[Peer, Any] = {}  # by configured address
        self._readers: dict[Peer, Part] = {}
        self._running: dict[Any, Exchange] = {}  # by greenlet
        self._recent = Exchanges(ANSWER_LIFETIME, MAX_RECENT, now)
        self._nonces = Exchanges(NONCE_LIFETIME, max_nonces, now)
        # Nonces are lost when the process ends: a request sealed before its start could be a replay.
        self._not_before = clock()
        self._reading = False

    # Sockets

    def apply_config(self) -> None:
        """Listen on the configured address and on loopback. Raises ConfigError and changes nothing on failure."""
        address, port = self._config.nsctl_bind_address, self._config.nsctl_port
        hosts = () if address is None else (str(address),) if address.is_loopback else (str(address), LOOPBACK)
        wanted = [(host, port) for host in hosts]
        fresh: dict[Peer, Any] = {}
        try:
            for each in wanted:
                if each not in self._sockets:
                    fresh[each] = sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    sock.bind(each)
        except OSError as error:
            for sock in fresh.values():
                sock.close()
            why = f"nsctl cannot listen on {each[0]}:{port}: {error.strerror}"
            raise refused(error.errno, why) from None
        for each in set(self._sockets) - set(wanted):
            self._close(each)
        for each, sock in fresh.items():
            self._sockets[each] = sock
            self._log.info("nsctl_listens", address=f"{each[0]}:{port}")
        if self._reading:
            self.start()

    def start(self) -> None:
        """Start serving requests."""
        self._reading = True
        for address, sock in self._sockets.items():
            if address not in self._readers:
                self._readers[address] = self._supervisor.spawn("nsctl reader", self._read, sock)

    @property
    def addresses(self) -> list[Peer]:
        return [sock.getsockname() for sock in self._sockets.values()]

    def stop(self) -> None:
        """Close the port and cancel running requests."""
        for each in list(self._sockets):
            self._close(each)
        gevent.killall(list(self._running))

    def _close(self, address: Peer) -> None:
        if address in self._readers:
            self._readers.pop(address).stop()
        self._sockets.pop(address).close()

    def _read(self, sock: Any) -> None:
        drain_in_turn(sock, self._share, SHARE_OWNER, self._read_one, self._read_failed)

    def _read_one(self, sock: Any) -> None:
        octets, source = sock.recvfrom(MAX_SEALED + 1)
        self.on_datagram(sock, octets, source)

    def _read_failed(self, error: Exception) -> None:
        if isinstance(error, OSError):
            self._log.warning_limited("nsctl_read_failed", why=error.strerror)
        else:
            self._log.exception("nsctl_failed")

    # Authorisation

    def on_datagram(self, sock: Any, octets: bytes, source: Peer) -> None:
        """Handle one datagram. Called by the reader; does not yield."""
        exchange = Exchange(sock, source, octets)
        if is_sealed(octets):
            self._on_sealed(exchange)
        elif not source[0].startswith("127."):
            self._refuse(exchange, "from another host, and not sealed with nsctl_secret")
        else:
            earlier = self._recent.find(source)
            if earlier is None or earlier.octets != octets:
                self._accept(exchange, octets, self._recent, source)
            elif earlier.answer:
                earlier.send()

    def _on_sealed(self, exchange: Exchange) -> None:
        key = self._config.nsctl_secret_octets
        if not key:
            self._refuse(exchange, "sealed, and there is no nsctl_secret")
            return
        try:
            sealed = unseal(exchange.octets, key)
        except Forged as forged:
            self._refuse(exchange, str(forged))
            return
        except Malformed as malformed:
            self._malformed(exchange, malformed)
            return
        if sealed.direction is not Direction.REQUEST:
            self._refuse(exchange, "an answer, sent as a request")
            return
        exchange.key, exchange.nonce = key, sealed.nonce
        earlier = self._nonces.find(sealed.nonce)
        if earlier is None:
            self._accept(exchange, sealed.packet, self._nonces, sealed.nonce, self._time_refusal(sealed.time))
        elif (earlier.source, earlier.octets) != (exchange.source, exchange.octets):
            self._refuse(exchange, "replayed")
        elif earlier.answer:  # a retransmission by the same client; no other gets the reply
            earlier.send()

    def _time_refusal(self, sealed_at: float) -> str:
        """Return why a request with the right key is refused because of its time, else an empty string."""
        late = self._clock() - sealed_at
        if abs(late) > WINDOW:
            return f"{NOT_AUTHORISED}: the clocks differ by {abs(late):.0f} s, at most {WINDOW:.0f} s are allowed"
        if sealed_at < self._not_before:
            return f"{NOT_AUTHORISED}: sealed before the server started, or before its clock was set back"
        # If the clock is set back, requests accepted before must not re-enter the window.
        self._not_before = max(self._not_before, sealed_at - 2 * WINDOW)
        return ""

    # Requests

    def _accept(
        self, exchange: Exchange, octets: bytes, exchanges: Exchanges, name: Peer | bytes, refusal: str = ""
    ) -> None:
        """Start an authorised request, or refuse it."""
        self._counters.nsctl_requests += 1
        try:
            packet = decode(octets)
            if packet.is_answer:
                raise Malformed(
                    "an answer, sent as a request"
                )  # no reply: two servers would answer each other for ever
            request = packet.request()
        except Malformed as malformed:
            self._malformed(exchange, malformed)
            return
        if 2 * len(self._running) >= MAX_RUNNING or exchanges.crowded:
            exchange.owner = self._owner(exchange)
        full = full_for(exchange, self._running.values(), MAX_RUNNING) or exchanges.full_for(exchange)
        if not refusal and full:
            refusal = "too many requests: try again later"
        if refusal:
            self._refuse(exchange, refusal)
            self._answer(exchange, packet, False, refusal)
            return
        exchanges.begin(name, exchange)
        greenlet = gevent.spawn(self._serve, exchange, packet, request, exchanges, name)
        self._running[greenlet] = exchange
        greenlet.rawlink(lambda ended: self._running.pop(ended, None))

    def _owner(self, exchange: Exchange) -> str:
        """Return the local user or the host that sent the request."""
        ours = [sock.getsockname() for sock in self._sockets.values() if sock is exchange.sock]
        return owner_of(exchange.source, ours[0], socket.IPPROTO_UDP) if ours else exchange.source[0]

    def _serve(
        self, exchange: Exchange, packet: AnyPacket, request: Request, exchanges: Exchanges, name: Peer | bytes
    ) -> None:
        try:
            ok, text = self._execute(packet, request, exchange)
        except Exception:
            self._log.exception("nsctl_failed", peer=exchange.peer, command=request.name)
            ok, text = False, FAILED
        except BaseException:  # cancelled: the client may send it again
            exchanges.end(name, exchange)
            raise
        self._answer(exchange, packet, ok, text)
        exchanges.end(name, exchange)

    def _execute(self, packet: AnyPacket, request: Request, exchange: Exchange) -> tuple[bool, str]:
        match request.verb:
            case Verb.HELP:
                return True, "\n".join((*HELP, *self._plugins.control_help()))
            case Verb.CONTROL if not request.words:
                return False, "no command given"
            case Verb.CONTROL:
                answer = self._control(packet, request, exchange)
            case _:
                answer = self._load_or_remove(request)
        if answer is None:
            command = request.name if request.name in PRIVATE else str(request)
            self._log.warning_limited("nsctl_unknown_command", peer=exchange.peer, command=command)
            return False, f'{UNKNOWN_COMMAND} "{printable(request.name)}": no plugin that is loaded knows it'
        ok, text = answer
        text = text or ("" if ok else "the command failed")
        result, why = ("ok", "") if ok else ("failed", text)
        if request.name in PRIVATE:
            self._log.secret_audit("nsctl_command", peer=exchange.peer, command=str(request), result=result, why=why)
        else:
            self._log.audit("nsctl_command", peer=exchange.peer, command=str(request), result=result, why=why)
        return ok, text

    def _control(self, packet: AnyPacket, request: Request, exchange: Exchange) -> tuple[bool, str] | None:
        octets, words = packet.encode(), list(request.words)
        timeout: gevent.Timeout | None = None
        try:
            with self._awake.timeout(self._control_timeout) as timeout:
                return self._plugins.control(words, exchange.source, packet=octets, kind=packet.type, id=packet.id)
        except gevent.Timeout as over:
            if over is not timeout:  # a Timeout of the plugin's own that it did not catch
                self._log.exception("nsctl_failed", peer=exchange.peer, command=request.name)
                return False, FAILED
            return False, f"given up after {self._control_timeout:.0f} s"

    def _load_or_remove(self, request: Request) -> tuple[bool, str]:
        if len(request.words) != 1:
            return False, f"{request.verb.value} needs the name of one plugin"
        (name,) = request.words
        try:
            if request.verb is Verb.LOAD:
                self._plugins.load(name)
                return True, f"plugin {name} loaded"
            self._plugins.remove(name)
            return True, f"plugin {name} removed"
        except L2tpnsError as error:
            return False, str(error)

    # Replies

    def _answer(self, exchange: Exchange, packet: AnyPacket, ok: bool, text: str) -> None:
        octets = packet.answer(ok, text).encode()
        if exchange.key:
            octets = Sealed(Direction.ANSWER, self._clock(), exchange.nonce, octets).encode(exchange.key)
        exchange.answer = octets
        exchange.send()

    def _refuse(self, exchange: Exchange, why: str) -> None:
        self._counters.nsctl_refused += 1
        self._log.warning_limited("nsctl_refused", peer=exchange.peer, why=why)

    def _malformed(self, exchange: Exchange, malformed: Malformed) -> None:
        """Count and log a malformed packet; send an ERROR if it is a request from an authorised sender."""
        self._counters.nsctl_malformed += 1
        self._log.warning_limited("nsctl_malformed", peer=exchange.peer, why=str(malformed))
        if malformed.packet is not None and not malformed.packet.is_answer:
            self._answer(exchange, malformed.packet, False, str(malformed))
