"""One RADIUS server: our sockets to it, the identifiers in use, whether it answers, and its figures.

One socket has 256 identifiers (RFC 2865 3); more requests in flight take more sockets (RFC 2865 2.5). transport.py
decides which server a request is sent to, and when it is sent again.
"""

from __future__ import annotations

import _socket
import time
from collections import deque
from ipaddress import IPv4Address

import gevent
from gevent.lock import Semaphore

from l2tpns.errors import WireError
from l2tpns.radius import packets
from l2tpns.radius.framing import ACCESS_ACCEPT, ACCESS_CHALLENGE, ACCESS_REJECT, ACCESS_REQUEST, MAX_PACKET
from l2tpns.radius.reply_packet import decode_reply
from l2tpns.radius.report import ServerStats
from l2tpns.radius.request_packet import RequestPacket
from l2tpns.radius.settings import MessageAuthenticator, RadiusSettings, ServerAddress
from l2tpns.radius.stray_answers import Source, StrayAnswerListener, open_second_socket
from l2tpns.runtime.log import Logger
from l2tpns.runtime.mailbox import Mailbox
from l2tpns.runtime.repeat_filter import RepeatFilter
from l2tpns.runtime.sockets import udp_socket
from l2tpns.runtime.supervisor import Supervisor

IDENTIFIERS = 256  # RFC 2865 3: one octet
MAX_DRAIN = 16  # datagrams read before the reader yields
DEAD_AFTER = 3  # tries in a row without any answer
MIN_SPARE = IDENTIFIERS // 2  # identifiers that must be free on other sockets before an idle socket is closed
READ = 1  # libev's EV_READ
MAX_ANSWERS = 1  # to one request; the first counts
STRAY_LOG_INTERVAL = 600.0  # seconds between two log lines about answers from the same other address


class Request:
    """One request, to whatever number of servers it is sent."""

    __slots__ = ("answers", "encode", "label", "next_try", "pending", "session_id", "tries")

    def __init__(self, encode: packets.Encoder, label: str, session_id: int) -> None:
        self.encode = encode
        self.label = label
        self.session_id = session_id
        self.pending: dict[RemoteServer, PendingRequest] = {}
        self.tries = 0
        self.next_try = 0.0  # monotonic
        self.answers = Mailbox(MAX_ANSWERS)


class PendingRequest:
    """A request at one server: it keeps its identifier and authenticator when it is sent again."""

    __slots__ = ("identifier", "packet", "radius_socket", "raw", "request", "sent", "sent_at")

    def __init__(
        self, radius_socket: RadiusSocket, identifier: int, packet: RequestPacket, raw: bytes, request: Request
    ) -> None:
        self.radius_socket = radius_socket
        self.identifier = identifier
        self.packet = packet
        self.raw = raw
        self.request = request
        self.sent = 0
        self.sent_at = 0.0


class RadiusSocket:
    """A connected UDP socket, so that the kernel drops what comes from elsewhere, and its 256 identifiers."""

    __slots__ = ("address", "free", "part", "pending", "server", "sock", "stray_listener")

    def __init__(self, server: RemoteServer, sock: _socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.address = IPv4Address(sock.getsockname()[0])
        # Taken from the left and put back on the right: an identifier is unused for as long as possible, so that a
        # late reply matches no request instead of the next one.
        self.free: deque[int] = deque(range(IDENTIFIERS))
        self.pending: dict[int, PendingRequest] = {}
        self.stray_listener: StrayAnswerListener | None = None  # while the server is silent
        self.part = server.supervisor.spawn("RADIUS reader", self._run)

    def send(self, pending: PendingRequest) -> None:
        stats = self.server.stats
        self.server.last_sent = time.monotonic()
        if pending.sent:
            stats.retransmissions += 1
        else:
            stats.requests += 1
            pending.sent_at = time.monotonic()
        pending.sent += 1
        for _ in range(2):
            try:
                self.sock.send(pending.raw)
                return
            except ConnectionRefusedError:
                # An ICMP error for an earlier datagram, reported now; this one was not sent yet.
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
                    for _ in range(MAX_DRAIN):
                        self.server.receive(self, self.sock.recv(MAX_PACKET + 1))
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

    def listen_for_strays(self) -> None:
        """Open a second socket on our port, until the server answers. No effect on a socket that is closed."""
        if self.stray_listener is None and self in self.server.open_sockets:
            sock = open_second_socket(self.sock)
            if sock is not None:
                self.stray_listener = StrayAnswerListener(sock, self._received_stray, self.server.supervisor)

    def _received_stray(self, datagram: bytes, source: Source) -> None:
        self.server.received_stray(self, datagram, source)

    def close_stray_listener(self) -> None:
        if self.stray_listener is not None:
            self.stray_listener.close()
            self.stray_listener = None

    def close(self) -> None:
        self.close_stray_listener()
        self.part.stop(block=False, then=self.sock.close)


class RemoteServer:
    """One server, for authentication or for accounting."""

    __slots__ = (
        "_permits",
        "_settings",
        "_stray_log",
        "address",
        "answers",
        "dead_until",
        "last_sent",
        "log",
        "open_sockets",
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
        self.refusing = False  # ICMP said that the port is closed: no datagram waits there for a halted server
        self.retired = False
        self.open_sockets: list[RadiusSocket] = []
        self._stray_log = RepeatFilter(STRAY_LOG_INTERVAL, limit=16)
        self.log = log.bind(peer=str(address))
        self._settings = settings
        self._permits = Semaphore(settings.max_sockets * IDENTIFIERS)

    @property
    def in_flight(self) -> int:
        return sum(len(radius_socket.pending) for radius_socket in self.open_sockets)

    @property
    def sockets(self) -> int:
        return len(self.open_sockets)

    def pending_requests(self) -> list[PendingRequest]:
        return [pending for radius_socket in self.open_sockets for pending in radius_socket.pending.values()]

    def configure(self, settings: RadiusSettings) -> None:
        """Use these settings from now on. Requests in flight keep the secret that they were encoded with."""
        self._settings = settings

    @property
    def dead(self) -> bool:
        return self.dead_until is not None

    # --- requests

    def open_request(self, request: Request, timeout: float) -> PendingRequest | None:
        """Take an identifier on some socket and encode the request for it. May yield, for `timeout` at most.

        Return None when all identifiers stay in use, or no local port is free.
        """
        if not self._permits.acquire(timeout=timeout):
            return None
        radius_socket = self._socket_with_room()
        if radius_socket is None:
            self._permits.release()
            return None
        identifier = radius_socket.free.popleft()
        try:
            packet, raw = request.encode(identifier, radius_socket.address)
        except BaseException:
            radius_socket.free.append(identifier)
            self._permits.release()
            raise
        pending = radius_socket.pending[identifier] = PendingRequest(radius_socket, identifier, packet, raw, request)
        return pending

    def close_request(self, pending: PendingRequest) -> None:
        radius_socket = pending.radius_socket
        if radius_socket.pending.pop(pending.identifier, None) is None:
            return
        radius_socket.free.append(pending.identifier)
        self._permits.release()
        if not radius_socket.pending and (self.retired or self._free_elsewhere(radius_socket) >= MIN_SPARE):
            self.open_sockets.remove(radius_socket)
            radius_socket.close()

    def _socket_with_room(self) -> RadiusSocket | None:
        for radius_socket in self.open_sockets:
            if radius_socket.free:
                return radius_socket
        sock = open_socket(self.address, self._settings, self.log)
        if sock is None:
            return None
        radius_socket = RadiusSocket(self, sock)
        self.open_sockets.append(radius_socket)
        return radius_socket

    def _free_elsewhere(self, radius_socket: RadiusSocket) -> int:
        return sum(len(other.free) for other in self.open_sockets if other is not radius_socket)

    # --- replies

    def receive(self, radius_socket: RadiusSocket, datagram: bytes) -> None:
        """Handle a datagram from this server's address and port. A wrong one ends no request."""
        pending = radius_socket.pending.get(datagram[1]) if len(datagram) > 1 else None
        if pending is None:
            self.stats.unexpected += 1
            return
        try:
            reply = decode_reply(datagram)
        except WireError as error:
            self.stats.malformed += 1
            self.log.warning_limited("radius_reply_malformed", why=str(error))
            return
        signed = reply.signed
        if not pending.packet.verify(reply, signed=self._demands_signature()):
            # RFC 2865 3: silently discarded. The true answer may still come, so the request stays pending: a forged
            # reply must not stop a login.
            self.stats.bad_authenticators += 1
            if signed or not self._demands_signature():
                why = "wrong authenticator: is radius_secret the same on both sides?"
            else:
                why = "no Message-Authenticator, and radius_require_message_authenticator asks for one"
            self.log.warning_limited("radius_reply_not_authentic", signed=signed, why=why)
            return
        self._count(pending, reply.code)
        if signed and pending.packet.code == ACCESS_REQUEST:
            self.trusted = True
        self.answered()
        pending.request.answers.post(reply)

    def received_stray(self, radius_socket: RadiusSocket, datagram: bytes, source: Source) -> None:
        """Drop a datagram from another address or port than was asked; log it if it is an authentic answer."""
        self.stats.unexpected += 1
        pending = radius_socket.pending.get(datagram[1]) if len(datagram) > 1 else None
        if pending is None:
            return
        try:
            reply = decode_reply(datagram)
        except WireError:
            return
        if not pending.packet.verify(reply, signed=self._demands_signature()):
            return
        if self._stray_log.due(source, time.monotonic()):
            self.log.warning_limited(
                "radius_answer_from_elsewhere",
                source=f"{source[0]}:{source[1]}",
                why="authentic, but not from the address and port of the request: the server must reply from these",
            )

    def _demands_signature(self) -> bool:
        require = self._settings.require
        return require is MessageAuthenticator.YES or (require is MessageAuthenticator.AUTO and self.trusted)

    def _count(self, pending: PendingRequest, code: int) -> None:
        stats = self.stats
        latency = time.monotonic() - pending.sent_at
        stats.latency.observe(latency)
        stats.latency_max = max(stats.latency_max, latency)
        if code == ACCESS_ACCEPT:
            stats.accepts += 1
        elif code == ACCESS_REJECT:
            stats.rejects += 1
        elif code == ACCESS_CHALLENGE:
            stats.challenges += 1
        else:
            stats.responses += 1

    # --- life and death

    def refused(self) -> None:
        """Handle an ICMP error. Any host can forge one: do not give the server up, only try it again sooner."""
        self.stats.refused += 1
        self.refusing = True

    def answered(self) -> None:
        self.answers += 1
        self.silent_tries = 0
        self.refusing = False
        for radius_socket in self.open_sockets:
            radius_socket.close_stray_listener()
        if self.dead:
            self.dead_until = None
            self.log.info("radius_server_back")

    def timed_out(self, radius_socket: RadiusSocket) -> None:
        radius_socket.listen_for_strays()
        self.stats.timeouts += 1
        self.silent_tries += 1
        if self.silent_tries >= DEAD_AFTER and not self.dead:
            self.dead_until = time.monotonic() + self._settings.dead_time
            self.log.warning("radius_server_silent", seconds=self._settings.dead_time)

    def usable(self) -> bool:
        """Return whether a new request may be sent here first. After the dead time, one request at a time may."""
        if self.dead_until is None:
            return True
        now = time.monotonic()
        if now < self.dead_until:
            return False
        self.dead_until = now + self._settings.dead_time
        return True

    def retire(self) -> None:
        """Accept no new requests; those in flight are still answered."""
        self.retired = True
        for radius_socket in [radius_socket for radius_socket in self.open_sockets if not radius_socket.pending]:
            self.open_sockets.remove(radius_socket)
            radius_socket.close()

    def close(self) -> None:
        self.retired = True
        for radius_socket in self.open_sockets:
            radius_socket.close()
        self.open_sockets.clear()


def open_socket(address: ServerAddress, settings: RadiusSettings, log: Logger) -> _socket.socket | None:
    """Return a connected socket on a port from radius_bind_min to radius_bind_max, or None if none is free."""
    problem: OSError | None = None
    for port in range(settings.bind_min, settings.bind_max + 1) if settings.bind_min else range(1):
        try:
            return _connected(address, port)
        except OSError as error:
            problem = error
    log.error("radius_no_socket", why=str(problem))
    return None


def _connected(address: ServerAddress, port: int) -> _socket.socket:
    """Return a connected socket. Raises OSError, also when the process has no free descriptor."""
    sock = udp_socket()
    try:
        sock.bind(("", port))
        sock.connect((address.host, address.port))
    except OSError:
        sock.close()
        raise
    return sock
