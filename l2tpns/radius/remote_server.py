"""One RADIUS server as we see it: its sockets and identifiers, whether it answers, and its figures.

RFC 2865 section 3 gives one socket 256 identifiers; more requests in flight take more sockets (section 2.5). Which
server is asked, and when again, is transport.py's business.
"""

from __future__ import annotations

import _socket
import time
from collections import deque
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.lock import Semaphore
from pyrad.packet import Packet

from l2tpns.errors import WireError
from l2tpns.radius import packets
from l2tpns.radius.beside import Beside, open_beside
from l2tpns.radius.types import MessageAuthenticator, RadiusSettings, ServerAddress
from l2tpns.runtime.counters import Histogram
from l2tpns.runtime.drain import DRAIN
from l2tpns.runtime.log import Logger
from l2tpns.runtime.repeat_filter import RepeatFilter
from l2tpns.runtime.sockets import udp_socket
from l2tpns.runtime.supervisor import Supervisor

IDENTIFIERS = 256  # RFC 2865 3: one octet
DEAD_AFTER = 3  # tries in a row without any answer
SPARE = IDENTIFIERS // 2  # identifiers that must be free elsewhere before an idle socket is closed
READ = 1  # libev's EV_READ
ELSEWHERE_INTERVAL = 600.0  # seconds between two lines of the log about answers from one other address
LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


@dataclass(slots=True)
class ServerStats:
    """What happened with one server since the start."""

    requests: int = 0
    retransmissions: int = 0
    accepts: int = 0
    rejects: int = 0
    challenges: int = 0
    responses: int = 0
    timeouts: int = 0
    bad_authenticators: int = 0
    malformed: int = 0
    unexpected: int = 0  # late, repeated, or of a kind nobody asked for
    refused: int = 0  # the host said that nobody listens
    send_errors: int = 0
    latency_max: float = 0.0
    latency: Histogram = field(default_factory=lambda: Histogram(LATENCIES))  # from the first sending of a request

    @property
    def latency_sum(self) -> float:
        return self.latency.sum


class Request:
    """One question, whatever number of servers it is put to."""

    __slots__ = ("encode", "label", "legs", "next_try", "result", "session_id", "tries")

    def __init__(self, encode: packets.Encoder, label: str, session_id: int) -> None:
        self.encode = encode
        self.label = label
        self.session_id = session_id
        self.legs: dict[Server, Leg] = {}
        self.tries = 0
        self.next_try = 0.0  # monotonic
        self.result: AsyncResult = AsyncResult()


class Leg:
    """A request as one server knows it: its identifier and authenticator stay the same when it is sent again."""

    __slots__ = ("channel", "identifier", "packet", "raw", "request", "sent", "sent_at")

    def __init__(self, channel: Channel, identifier: int, packet: Packet, raw: bytes, request: Request) -> None:
        self.channel = channel
        self.identifier = identifier
        self.packet = packet
        self.raw = raw
        self.request = request
        self.sent = 0
        self.sent_at = 0.0


class Channel:
    """A connected UDP socket, so that the kernel drops what comes from elsewhere, and its 256 identifiers."""

    __slots__ = ("address", "beside", "free", "legs", "part", "server", "sock")

    def __init__(self, server: Server, sock: _socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.address = IPv4Address(sock.getsockname()[0])
        # Taken from the left and given back on the right: an identifier rests as long as possible, so that a late
        # reply finds nobody instead of the next request.
        self.free: deque[int] = deque(range(IDENTIFIERS))
        self.legs: dict[int, Leg] = {}
        self.beside: Beside | None = None  # hears answers from elsewhere while the server is silent
        self.part = server.supervisor.spawn("RADIUS reader", self._run)

    def send(self, leg: Leg) -> None:
        stats = self.server.stats
        self.server.last_sent = time.monotonic()
        if leg.sent:
            stats.retransmissions += 1
        else:
            stats.requests += 1
            leg.sent_at = time.monotonic()
        leg.sent += 1
        for _ in range(2):
            try:
                self.sock.send(leg.raw)
                return
            except ConnectionRefusedError:
                # The answer to an earlier datagram, told now; this one was not sent yet.
                self.server.refused()
            except OSError:
                stats.send_errors += 1  # no route, no buffer: the next try may do better
                return

    def _run(self) -> None:
        hub = gevent.get_hub()
        watcher = hub.loop.io(self.sock.fileno(), READ)
        try:
            while True:
                try:
                    for _ in range(DRAIN):
                        self.server.receive(self, self.sock.recv(packets.MAX_PACKET + 1))
                except BlockingIOError:
                    pass
                except ConnectionRefusedError:
                    self.server.refused()
                except OSError as error:
                    self.server.stats.send_errors += 1
                    self.server.log.warning("radius_socket_error", why=str(error))
                hub.wait(watcher)
        finally:
            watcher.stop()
            watcher.close()

    def listen_beside(self) -> None:
        if self.beside is None and self in self.server.channels:
            sock = open_beside(self.sock)
            if sock is not None:
                self.beside = Beside(self, sock)

    def stop_beside(self) -> None:
        if self.beside is not None:
            self.beside.close()
            self.beside = None

    def close(self) -> None:
        self.stop_beside()
        self.part.stop(block=False, then=self.sock.close)


class Server:
    """One server, for authentication or for accounting."""

    __slots__ = (
        "_dictionary",
        "_elsewhere",
        "_permits",
        "_settings",
        "address",
        "answers",
        "channels",
        "dead_until",
        "last_sent",
        "log",
        "refusing",
        "retired",
        "silent_tries",
        "stats",
        "supervisor",
        "trusted",
    )

    def __init__(
        self,
        address: ServerAddress,
        settings: RadiusSettings,
        dictionary: Any,
        log: Logger,
        supervisor: Supervisor,
    ) -> None:
        self.supervisor = supervisor
        self.address = address
        self.stats = ServerStats()
        self.trusted = False  # it has sent a valid Message-Authenticator
        self.silent_tries = 0
        self.answers = 0  # authentic ones, whatever was asked
        self.dead_until: float | None = None
        self.last_sent = 0.0
        self.refusing = False  # the host says that nobody listens: nothing waits there for a server that is halted
        self.retired = False
        self.channels: list[Channel] = []
        self._elsewhere = RepeatFilter(ELSEWHERE_INTERVAL, limit=16)
        self._dictionary = dictionary
        self.log = log.bind(peer=str(address))
        self._settings = settings
        self._permits = Semaphore(settings.max_sockets * IDENTIFIERS)

    @property
    def in_flight(self) -> int:
        return sum(len(channel.legs) for channel in self.channels)

    @property
    def sockets(self) -> int:
        return len(self.channels)

    def legs(self) -> list[Leg]:
        return [leg for channel in self.channels for leg in channel.legs.values()]

    def configure(self, settings: RadiusSettings) -> None:
        """Secrets reach new requests by their encoder; those in flight keep the old one."""
        self._settings = settings

    @property
    def dead(self) -> bool:
        return self.dead_until is not None

    # --- requests

    def open_leg(self, request: Request, timeout: float) -> Leg | None:
        """An identifier on some socket; None when all are taken for so long, or no local port is left."""
        if not self._permits.acquire(timeout=timeout):
            return None
        channel = self._channel()
        if channel is None:
            self._permits.release()
            return None
        identifier = channel.free.popleft()
        try:
            packet, raw = request.encode(identifier, channel.address)
        except BaseException:
            channel.free.append(identifier)
            self._permits.release()
            raise
        leg = channel.legs[identifier] = Leg(channel, identifier, packet, raw, request)
        return leg

    def close_leg(self, leg: Leg) -> None:
        channel = leg.channel
        if channel.legs.pop(leg.identifier, None) is None:
            return
        channel.free.append(leg.identifier)
        self._permits.release()
        if not channel.legs and (self.retired or self._free_elsewhere(channel) >= SPARE):
            self.channels.remove(channel)
            channel.close()

    def _channel(self) -> Channel | None:
        for channel in self.channels:
            if channel.free:
                return channel
        sock = open_socket(self.address, self._settings, self.log)
        if sock is None:
            return None
        channel = Channel(self, sock)
        self.channels.append(channel)
        return channel

    def _free_elsewhere(self, channel: Channel) -> int:
        return sum(len(other.free) for other in self.channels if other is not channel)

    # --- replies

    def receive(self, channel: Channel, datagram: bytes) -> None:
        """A datagram from this server's address and port. Nothing that is wrong with it ends a request."""
        leg = channel.legs.get(datagram[1]) if len(datagram) > 1 else None
        if leg is None:
            self.stats.unexpected += 1
            return
        try:
            reply = packets.decode_reply(leg.packet, datagram, self._dictionary)
        except WireError as error:
            self.stats.malformed += 1
            self.log.provoked("radius_reply_malformed", why=str(error))
            return
        signed = bool(reply.message_authenticator)
        if not leg.packet.VerifyReply(reply, enforce_ma=self._demands_signature()):
            # RFC 2865 3: silently discarded. The true answer may still come, so the request stays (a forged reply
            # must not stop a login).
            self.stats.bad_authenticators += 1
            if signed or not self._demands_signature():
                why = "wrong authenticator: is radius_secret the same on both sides?"
            else:
                why = "no Message-Authenticator, and radius_require_message_authenticator asks for one"
            self.log.provoked("radius_reply_not_authentic", signed=signed, why=why)
            return
        self._count(leg, reply.code)
        if signed and leg.packet.code == packets.ACCESS_REQUEST:
            self.trusted = True
        self.answered()
        leg.request.result.set((self, leg, reply))

    def heard_elsewhere(self, channel: Channel, datagram: bytes, source: tuple[str, int]) -> None:
        """Drop a datagram to this channel's port from another address or port; log it if it is an authentic answer."""
        self.stats.unexpected += 1
        leg = channel.legs.get(datagram[1]) if len(datagram) > 1 else None
        if leg is None:
            return
        try:
            reply = packets.decode_reply(leg.packet, datagram, self._dictionary)
        except WireError:
            return
        if not leg.packet.VerifyReply(reply, enforce_ma=self._demands_signature()):
            return
        if self._elsewhere.due(source, time.monotonic()):
            self.log.provoked(
                "radius_answer_from_elsewhere",
                source=f"{source[0]}:{source[1]}",
                why="authentic, but not from the address and port that were asked: the server must answer from these",
            )

    def _demands_signature(self) -> bool:
        require = self._settings.require
        return require is MessageAuthenticator.YES or (require is MessageAuthenticator.AUTO and self.trusted)

    def _count(self, leg: Leg, code: int) -> None:
        stats = self.stats
        latency = time.monotonic() - leg.sent_at
        stats.latency.observe(latency)
        stats.latency_max = max(stats.latency_max, latency)
        if code == packets.ACCESS_ACCEPT:
            stats.accepts += 1
        elif code == packets.ACCESS_REJECT:
            stats.rejects += 1
        elif code == packets.ACCESS_CHALLENGE:
            stats.challenges += 1
        else:
            stats.responses += 1

    # --- life and death

    def refused(self) -> None:
        """An ICMP message, which anybody can forge: it is no reason to give up, only to ask again sooner."""
        self.stats.refused += 1
        self.refusing = True

    def answered(self) -> None:
        self.answers += 1
        self.silent_tries = 0
        self.refusing = False
        for channel in self.channels:
            channel.stop_beside()
        if self.dead:
            self.dead_until = None
            self.log.info("radius_server_back")

    def timed_out(self, channel: Channel) -> None:
        channel.listen_beside()
        self.stats.timeouts += 1
        self.silent_tries += 1
        if self.silent_tries >= DEAD_AFTER and not self.dead:
            self.dead_until = time.monotonic() + self._settings.dead_time
            self.log.warning("radius_server_silent", seconds=self._settings.dead_time)

    def usable(self) -> bool:
        """May a new request go here first? After its dead time one request at a time finds out."""
        if self.dead_until is None:
            return True
        now = time.monotonic()
        if now < self.dead_until:
            return False
        self.dead_until = now + self._settings.dead_time
        return True

    def retire(self) -> None:
        """No new requests; those in flight are still answered."""
        self.retired = True
        for channel in [channel for channel in self.channels if not channel.legs]:
            self.channels.remove(channel)
            channel.close()

    def close(self) -> None:
        self.retired = True
        for channel in self.channels:
            channel.close()
        self.channels.clear()


def open_socket(address: ServerAddress, settings: RadiusSettings, log: Logger) -> _socket.socket | None:
    """A connected socket on a local port of radius_bind_min to radius_bind_max; None when all of them are taken."""
    problem: OSError | None = None
    for port in range(settings.bind_min, settings.bind_max + 1) if settings.bind_min else range(1):
        try:
            return _connected(address, port)
        except OSError as error:
            problem = error
    log.error("radius_no_socket", why=str(problem))
    return None


def _connected(address: ServerAddress, port: int) -> _socket.socket:
    """Raises OSError, also when the process has no free descriptor."""
    sock = udp_socket()
    try:
        sock.bind(("", port))
        sock.connect((address.host, address.port))
    except OSError:
        sock.close()
        raise
    return sock
