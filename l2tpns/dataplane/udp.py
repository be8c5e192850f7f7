"""The LACs' side: UDP sockets, and the loop that takes L2TP datagrams apart (RFC 2661 3.1, 8.1).

Control messages are handed on as they are. Data messages find their Path by our ids and must come from the path's
peer; IP packets of online sessions go to `uplink`, called directly, other PPP frames are posted to the session.

Where no address is configured a wildcard socket listens, and answers from the address that it was asked at by ancillary
data (8.1). The first tunnel that comes up at one of our addresses gets a socket bound to that address, which the kernel
prefers from then on and which needs no ancillary data. It is closed when no tunnel has used it for a while
(docs/decisions/0021-sockets-are-for-tunnels-that-are-up.md).
"""

from __future__ import annotations

import errno
import struct
from _socket import socket as RawSocket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from math import inf
from socket import (
    SO_REUSEPORT,
    SOL_SOCKET,
    inet_aton,
)
from time import monotonic

import gevent

from l2tpns.dataplane.endpoint import Endpoint, Peer, WildcardEndpoint, open_socket
from l2tpns.dataplane.session_path import Path
from l2tpns.errors import WireError, refused
from l2tpns.proto.l2tp.header import PORT, is_control, parse_data
from l2tpns.proto.ppp.frame import Protocol, parse_frame
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.drain import DRAIN, Clock, drain_forever
from l2tpns.runtime.log import Logger
from l2tpns.runtime.sockets import (
    destination,
    report_destinations,
)
from l2tpns.runtime.supervisor import Part, Supervisor

MAX_DATAGRAM = 4096  # octets of a datagram; l2tp_mtu ends at 2600, and control messages of real LACs are far shorter
MAX_SOURCES = 1024  # addresses of ours that L2TP is known to leave from; sockets of their own have the first 256
MAX_ENDPOINTS = 256  # sockets for single addresses of ours beside the wildcard one (127/8 alone has 2^24)
ENDPOINT_IDLE_TIMEOUT = 120.0  # seconds that such a socket stays open without a tunnel
SWEEP_INTERVAL = 30.0  # seconds between two looks for such sockets

_NO_PORT = 1  # tcpmux: nothing of UDP comes from there

# 3.1, the two forms that nearly every data message has: no option, or Length only. The last two fields are the first
# four octets of PPP. Our two ids together are the key of a path.
_PLAIN, _PLAIN_FLAGS = struct.Struct("!HIHH"), 0x0002
_WITH_LENGTH, _WITH_LENGTH_FLAGS = struct.Struct("!HIHH"), 0x4002
_PPP_ADDRESS_CONTROL, _IP = 0xFF03, int(Protocol.IP)  # plain integers: they are compared for each packet
_MIN_DATAGRAM = 6 + 2 + 20  # with less than this the quick way may not look at the octets


class LacSide:
    """All UDP sockets and the paths that are found by L2TP ids."""

    def __init__(
        self,
        addresses: tuple[IPv4Address, ...],
        counters: Counters,
        clock: Clock,
        log: Logger,
        *,
        uplink: Callable[[Path, bytes], None],
        on_control: Callable[[bytes, Peer, Endpoint], None],
        port: int = PORT,
        data_checksums: bool = True,
        supervisor: Supervisor | None = None,
    ) -> None:
        self.paths: dict[int, Path] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.sources: set[bytes] = set()  # addresses of ours that L2TP leaves from
        self.port = port
        self._data_checksums = data_checksums
        self._addresses = addresses
        self._wildcard: RawSocket | None = None
        self._wildcard_full_at = -inf  # as Endpoint.full_at
        self._counters = counters
        self._clock = clock
        self._log = log
        self._uplink = uplink
        self._on_control = on_control
        self._supervisor = supervisor or Supervisor(log)
        self._parts: list[Part] = []  # readers of sockets, and the sweep
        self._readers: dict[str, Part] = {}  # by address
        self._closers: set[gevent.Greenlet[..., None]] = set()

    # Sockets

    def start(self) -> None:
        for address in self._addresses:
            try:
                if address == IPv4Address(0):
                    self._listen_everywhere()
                else:
                    self.endpoint(str(address))
            except OSError as error:
                raise refused(error.errno, _refusal(address, self.port, error)) from None

    def stop(self) -> None:
        for part in self._parts:
            part.stop()
        self._parts.clear()
        gevent.killall(list(self._closers))
        self._readers.clear()
        for endpoint in self.endpoints.values():
            endpoint.close()
        self.endpoints.clear()
        self.sources.clear()
        if self._wildcard is not None:
            self._wildcard.close()
            self._wildcard = None

    def endpoint(self, address: str) -> Endpoint:
        """The socket on this address, opened if need be and if there is room for one. Raises OSError."""
        endpoint = self.endpoints.get(address)
        if endpoint is None:
            if self._wildcard is not None and not self._has_room():
                return self._endpoint_at(address)
            with self._wildcard_shared():
                endpoint = Endpoint(
                    address,
                    self.port,
                    self._counters,
                    beside_wildcard=self._wildcard is not None,
                    data_checksums=self._data_checksums,
                )
            self.port = endpoint.port
            self.endpoints[address] = endpoint
            self.sources.add(inet_aton(address))
            opened = endpoint
            self._readers[address] = self._read(opened.socket, lambda: self._drain(opened))
            self._log.info("listening", address=address, port=self.port, beside_wildcard=self._wildcard is not None)
        return endpoint

    def dedicate(self, endpoint: Endpoint) -> Endpoint:
        """Return a socket for this address alone, if there can be one: a tunnel is up there. Does not yield."""
        try:
            return self.endpoint(endpoint.address)
        except OSError as error:
            self._log.provoked("listen_failed", address=endpoint.address, port=self.port, why=error.strerror)
            return endpoint

    def _endpoint_at(self, address: str) -> Endpoint:
        """The socket on this address; where it has none, the wildcard one."""
        endpoint = self.endpoints.get(address)
        if endpoint is None:
            assert self._wildcard is not None
            if len(self.sources) < MAX_SOURCES:
                self.sources.add(inet_aton(address))
            endpoint = WildcardEndpoint(self._wildcard, address, self.port, self._counters, self._wildcard_full_at)
        return endpoint

    def _has_room(self) -> bool:
        """Return whether one more socket may be opened; one without a tunnel makes room."""
        if len(self.endpoints) < MAX_ENDPOINTS:
            return True
        idle = [endpoint for endpoint in self.endpoints.values() if endpoint.on_demand and not endpoint.tunnels]
        if not idle:
            return False
        self._retire(min(idle, key=lambda endpoint: endpoint.idle_since))
        return True

    def _sweep_forever(self) -> None:
        while True:
            gevent.sleep(SWEEP_INTERVAL)
            self.sweep(monotonic())

    def sweep(self, now: float) -> None:
        """Close the sockets of single addresses that no tunnel has used for a while."""
        for endpoint in list(self.endpoints.values()):
            if endpoint.on_demand and not endpoint.tunnels and now - endpoint.idle_since >= ENDPOINT_IDLE_TIMEOUT:
                self._retire(endpoint)

    def _retire(self, endpoint: Endpoint) -> None:
        """Close a socket that no tunnel uses; from now on the wildcard one serves its address."""
        endpoint.retired = True
        del self.endpoints[endpoint.address]
        self.sources.discard(inet_aton(endpoint.address))
        reader = self._readers.pop(endpoint.address)
        self._parts.remove(reader)
        closer = gevent.spawn(self._close, endpoint, reader)
        self._closers.add(closer)
        closer.rawlink(self._closers.discard)
        self._log.info("listening_ended", address=endpoint.address, port=self.port)

    def _close(self, endpoint: Endpoint, reader: Part) -> None:
        """Read what is in the socket, then close it: nothing that came for its address is lost."""
        try:
            reader.stop()
            with suppress(OSError):  # the address may be ours no more
                # A connected socket gets what comes from its peer only: all else goes to the wildcard one from now on.
                endpoint.socket.connect((endpoint.address, _NO_PORT))
            while self._drain(endpoint):
                gevent.sleep(0)
        finally:
            endpoint.close()

    def _listen_everywhere(self) -> None:
        sock = open_socket("0.0.0.0", self.port)
        report_destinations(sock)
        self.port = sock.getsockname()[1]
        self._wildcard = sock
        self._read(sock, lambda: self._drain_wildcard(sock))
        self._parts.append(self._supervisor.spawn("LAC sockets", self._sweep_forever))
        self._log.info("listening", address="0.0.0.0", port=self.port)

    @contextmanager
    def _wildcard_shared(self) -> Iterator[None]:
        """Let a socket of this process be bound beside the wildcard one."""
        if self._wildcard is None:
            yield
            return
        self._wildcard.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
        try:
            yield
        finally:
            self._wildcard.setsockopt(SOL_SOCKET, SO_REUSEPORT, 0)

    def _read(self, sock: RawSocket, drain: Callable[[], object]) -> Part:
        spawn = self._supervisor.spawn
        reader = spawn("LAC reader", drain_forever, sock.fileno(), drain, self._log, essential=True)
        self._parts.append(reader)
        return reader

    # The loops

    def _drain(self, endpoint: Endpoint) -> bool:
        """Take what is there, within limits; return whether there may be more."""
        self._clock.now = monotonic()
        recvfrom = endpoint.socket.recvfrom
        user = self._endpoint_at(endpoint.address) if endpoint.retired else endpoint
        full = self._drain_socket(recvfrom, user)
        if full:
            endpoint.full_at = self._clock.now
        return full

    def _drain_socket(self, recvfrom: Callable[[int], tuple[bytes, Peer]], endpoint: Endpoint) -> bool:
        for _ in range(DRAIN):
            try:
                datagram, peer = recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return False
            except OSError:
                self._counters.tunnel_rx_errors += 1
                return False
            self.receive(datagram, peer, endpoint)
        return True

    def _drain_wildcard(self, sock: RawSocket) -> None:
        """What comes to addresses that have no socket of their own, and what was queued before they had one."""
        self._clock.now = monotonic()
        for _ in range(DRAIN):
            try:
                datagram, ancillary, _, peer = sock.recvmsg(MAX_DATAGRAM, 64)
            except BlockingIOError:
                return
            except OSError:
                self._counters.tunnel_rx_errors += 1
                return
            address = destination(ancillary)
            if address:
                self.receive(datagram, peer, self._endpoint_at(address))
            else:
                self._counters.tunnel_rx_packets += 1
                self._counters.tunnel_rx_octets += len(datagram)
                self._counters.drop_unknown_tunnel += 1
        self._wildcard_full_at = self._clock.now

    # Datagrams

    def receive(self, datagram: bytes, peer: Peer, endpoint: Endpoint) -> None:
        """The quick way: an IP packet of an online session from the right peer, in one of the common forms."""
        counters = self._counters
        counters.tunnel_rx_packets += 1
        octets = len(datagram)
        counters.tunnel_rx_octets += octets
        if octets > _MIN_DATAGRAM:
            flags, key, first, second = _PLAIN.unpack_from(datagram)
            start = 6
            if flags == _WITH_LENGTH_FLAGS:
                length, key, first, second = _WITH_LENGTH.unpack_from(datagram, 2)
                start = 8 if length == octets else 0
            elif flags != _PLAIN_FLAGS:
                start = 0
            if start:
                if first == _PPP_ADDRESS_CONTROL and second == _IP:
                    start += 4
                elif first == _IP:
                    start += 2
                else:
                    start = 0
                path = self.paths.get(key)
                if start and path is not None and path.online and path.peer == peer:
                    self._uplink(path, datagram[start:])
                    return
        self._receive_any(datagram, peer, endpoint)

    def _receive_any(self, datagram: bytes, peer: Peer, endpoint: Endpoint) -> None:
        """Everything else: control, all forms of the headers, all reasons to drop."""
        counters = self._counters
        if is_control(datagram):
            self._on_control(datagram, peer, endpoint)
            return
        try:
            header = parse_data(datagram)
        except WireError:
            counters.drop_malformed += 1
            return
        path = self.paths.get(header.tunnel_id << 16 | header.session_id)
        if path is None:
            counters.drop_unknown_session += 1
            return
        if path.peer != peer:  # 8.1; data never shows that a LAC has moved, since no answer to us is in it
            counters.drop_wrong_peer += 1
            path.dropped_wrong_peer += 1
            return
        path.last_rx = self._clock.now
        if header.ns is not None and path.is_old(header.ns):
            counters.drop_old_ns += 1
            path.dropped_old += 1
            return
        try:
            protocol, information = parse_frame(header.payload)
        except WireError:
            counters.drop_malformed += 1
            path.dropped_malformed += 1
            return
        if protocol != _IP:
            path.post(protocol, information)
        elif path.online:
            self._uplink(path, information)
        else:
            counters.drop_not_online += 1
            path.dropped_not_online += 1


def _refusal(address: IPv4Address, port: int, error: OSError) -> str:
    """In the operator's words. Without bind_multi_address we listen everywhere, and no variable is to blame."""
    everywhere = address == IPv4Address(0)
    name, of = ("", "") if everywhere else ("bind_multi_address: ", f" of {address}")
    hints = {
        errno.EADDRINUSE: "; is another L2TP server running?",
        errno.EADDRNOTAVAIL: "; it is no address of this machine",
    }
    return f"{name}cannot listen on UDP port {port}{of}: {error.strerror}{hints.get(error.errno or 0, '')}"
