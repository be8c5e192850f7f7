"""The side of the LACs: UDP sockets, and the loop that parses L2TP datagrams (RFC 2661 3.1, 8.1).

Control messages are handed to `on_control` unread. A data message finds its path by the tunnel and session id that this
server has assigned, and must come from the path's peer. IP packets of online sessions go to `uplink`, called directly;
other PPP frames are posted to the session.

Without bind_multi_address a wildcard socket listens, and by ancillary data answers from the address that a datagram was
sent to (RFC 2661 8.1). The first tunnel that comes up at a local address gets a socket bound to that address, which the
kernel prefers from then on and which needs no ancillary data. It is closed when no tunnel has used it for
ENDPOINT_IDLE_TIMEOUT (docs/decisions/0021-sockets-are-for-tunnels-that-are-up.md).
"""

from __future__ import annotations

import errno
import os
import struct
from _socket import socket as RawSocket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from math import inf
from socket import SO_REUSEPORT, SOCK_DGRAM, SOL_SOCKET, inet_aton
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from l2tpns.dataplane.endpoint import Endpoint, WildcardEndpoint, open_socket
from l2tpns.dataplane.session_path import SessionPath
from l2tpns.errors import WireError, refused
from l2tpns.proto.l2tp.header import PLAIN_DATA, PORT, is_control, parse_data
from l2tpns.proto.ppp.frame import Protocol, parse_frame
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.descriptor_store import DescriptorStore
from l2tpns.runtime.drain import DRAIN, Clock, drain_forever, opened
from l2tpns.runtime.log import Logger
from l2tpns.runtime.peer import Peer
from l2tpns.runtime.sockets import (
    destination,
    report_destinations,
)
from l2tpns.runtime.supervisor import Part, Supervisor

MAX_DATAGRAM = 4096  # octets; l2tp_mtu is 2600 at most, and control messages of real LACs are far shorter
MAX_SOURCES = 1024  # local addresses that are remembered as sources of L2TP; MAX_ENDPOINTS of them have sockets
MAX_ENDPOINTS = 256  # sockets for single addresses beside the wildcard one (127/8 alone has 2^24 addresses)
ENDPOINT_IDLE_TIMEOUT = 120.0  # seconds that such a socket stays open without a tunnel
SWEEP_INTERVAL = 30.0  # seconds between two searches for sockets to close

_MAX_EXTRA = 64  # octets of options in a header; a LAC with more pads its messages
_UNUSED_PORT = 1  # tcpmux: no UDP datagram comes from there

# RFC 2661 3.1: the two forms that nearly every data message has, without options or with Length only. The last two
# fields are the first four octets of PPP. The two ids together are the key of a path.
_PLAIN, _PLAIN_FLAGS = struct.Struct("!HIHH"), 0x0002
_WITH_LENGTH, _WITH_LENGTH_FLAGS = struct.Struct("!HIHH"), 0x4002
_PPP_ADDRESS_CONTROL, _IP = 0xFF03, int(Protocol.IP)  # plain integers: they are compared for each packet
_MIN_DATAGRAM = 6 + 2 + 20  # octets of the shortest IP packet in L2TP; shorter datagrams are parsed in full


class LacSide:
    """All UDP sockets, and the paths by L2TP ids."""

    def __init__(
        self,
        addresses: tuple[IPv4Address, ...],
        counters: Counters,
        clock: Clock,
        log: Logger,
        *,
        uplink: Callable[[SessionPath, bytes], None],
        on_control: Callable[[bytes, Peer, Endpoint], None],
        port: int = PORT,
        data_checksums: bool = True,
        max_endpoints: int = MAX_ENDPOINTS,
        supervisor: Supervisor | None = None,
        reading: Event | None = None,
        store: DescriptorStore | None = None,
    ) -> None:
        """Prepare. Datagrams are read while `reading` is set; without it, always. `store` keeps the sockets."""
        self._store = store or DescriptorStore()
        self.paths: dict[int, SessionPath] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.sources: set[bytes] = set()  # local addresses that L2TP leaves from
        self.port = port
        self.max_endpoints = max_endpoints
        self._data_checksums = data_checksums
        self._addresses = addresses
        self._wildcard: RawSocket | None = None
        self._wildcard_full_at = -inf  # monotonic, as Endpoint.full_at
        self._counters = counters
        self._clock = clock
        self._log = log
        self._uplink = uplink
        self._on_control = on_control
        self._supervisor = supervisor or Supervisor(log)
        self._reading = reading or opened()
        self._parts: list[Part] = []  # readers of sockets, and the sweep
        self._readers: dict[str, Part] = {}  # by address
        self._closers: set[gevent.Greenlet[..., None]] = set()

    # Sockets

    def start(self) -> None:
        """Open the configured sockets. Raises ConfigError, RepairError or WaitError."""
        for address in self._addresses:
            try:
                if address == IPv4Address(0):
                    self._listen_everywhere()
                else:
                    self.endpoint(str(address))
            except OSError as error:
                raise refused(error.errno, _refusal(address, self.port, error)) from None

    def stop(self) -> None:
        """Stop the readers and close all sockets."""
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
        """Return the socket of this address, opened if it has none yet and there is room. Raises OSError."""
        endpoint = self.endpoints.get(address)
        if endpoint is None:
            if self._wildcard is not None and not self._has_room():
                return self._endpoint_at(address)
            kept = self._kept_socket(address)
            with self._wildcard_shared():
                endpoint = Endpoint(
                    address,
                    self.port,
                    self._counters,
                    beside_wildcard=self._wildcard is not None,
                    data_checksums=self._data_checksums,
                    sock=kept,
                )
            self._store.offer(_name_of(address), endpoint.socket.fileno(), inherited=kept is not None)
            self.port = endpoint.port
            self.endpoints[address] = endpoint
            self.sources.add(inet_aton(address))
            opened = endpoint
            self._readers[address] = self._read(opened.socket, lambda: self._drain(opened))
            self._log.info("listening", address=address, port=self.port, beside_wildcard=self._wildcard is not None)
        return endpoint

    def dedicate(self, endpoint: Endpoint) -> Endpoint:
        """Return a socket for this address alone: a tunnel is up there. Does not yield.

        Where none can be opened, return the same endpoint.
        """
        try:
            return self.endpoint(endpoint.address)
        except OSError as error:
            self._log.warning_limited("listen_failed", address=endpoint.address, port=self.port, why=error.strerror)
            return endpoint

    def _endpoint_at(self, address: str) -> Endpoint:
        """Return the socket of this address, or the wildcard socket as seen from it."""
        endpoint = self.endpoints.get(address)
        if endpoint is None:
            assert self._wildcard is not None
            if len(self.sources) < MAX_SOURCES:
                self.sources.add(inet_aton(address))
            endpoint = WildcardEndpoint(self._wildcard, address, self.port, self._counters, self._wildcard_full_at)
        return endpoint

    def _has_room(self) -> bool:
        """Return True if one more socket may be opened. At the limit, close the one that has been idle longest."""
        if len(self.endpoints) < self.max_endpoints:
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
        """Close the sockets of single addresses that no tunnel has used for ENDPOINT_IDLE_TIMEOUT."""
        for endpoint in list(self.endpoints.values()):
            if endpoint.on_demand and not endpoint.tunnels and now - endpoint.idle_since >= ENDPOINT_IDLE_TIMEOUT:
                self._retire(endpoint)

    def _retire(self, endpoint: Endpoint) -> None:
        """Close a socket that no tunnel uses. The wildcard socket serves its address from now on."""
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
        """Read what the socket has queued, then close it, so that no datagram is lost."""
        try:
            reader.stop()
            with suppress(OSError):  # the address may have left this machine
                # A connected socket receives from its peer only; other datagrams go to the wildcard socket from now on.
                endpoint.socket.connect((endpoint.address, _UNUSED_PORT))
            while self._drain(endpoint):
                gevent.sleep(0)
        finally:
            self._store.withdraw(_name_of(endpoint.address))
            endpoint.close()

    def _kept_socket(self, address: str) -> RawSocket | None:
        """Return the socket that an earlier process had at this address."""
        fd = self._store.take(_name_of(address))
        if fd < 0:
            return None
        try:
            sock = RawSocket(fileno=fd)
            if sock.type == SOCK_DGRAM and sock.getsockname() == (address, self.port):
                sock.setblocking(False)
                return sock
            sock.close()
        except OSError:  # it is no socket
            os.close(fd)
        return None

    def _listen_everywhere(self) -> None:
        kept = self._kept_socket("0.0.0.0")
        sock = kept or open_socket("0.0.0.0", self.port)
        self._store.offer(_name_of("0.0.0.0"), sock.fileno(), inherited=kept is not None)
        report_destinations(sock)
        self.port = sock.getsockname()[1]
        self._wildcard = sock
        self._read(sock, lambda: self._drain_wildcard(sock))
        self._parts.append(self._supervisor.spawn("LAC sockets", self._sweep_forever))
        self._log.info("listening", address="0.0.0.0", port=self.port)

    @contextmanager
    def _wildcard_shared(self) -> Iterator[None]:
        """Allow a socket of this process to be bound beside the wildcard socket."""
        if self._wildcard is None:
            yield
            return
        self._wildcard.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
        try:
            yield
        finally:
            self._wildcard.setsockopt(SOL_SOCKET, SO_REUSEPORT, 0)

    def _read(self, sock: RawSocket, drain: Callable[[], Any]) -> Part:
        reader = self._supervisor.spawn("LAC reader", self._read_forever, sock.fileno(), drain, essential=True)
        self._parts.append(reader)
        return reader

    def _read_forever(self, descriptor: int, drain: Callable[[], Any]) -> None:
        drain_forever(descriptor, drain, self._reading, self._log)

    # The loops

    def _drain(self, endpoint: Endpoint) -> bool:
        """Read up to DRAIN datagrams. Return True if there may be more."""
        self._clock.now = self._clock.read()
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
        """Read up to DRAIN datagrams to addresses without a socket of their own, or queued before they had one."""
        self._clock.now = self._clock.read()
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
        """Pass an IP packet of an online session on at once if it has a common form; parse anything else in full."""
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
        """Parse control messages and every other form of the headers; count what must be dropped."""
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
        # RFC 2661 8.1. Data cannot prove that a LAC has a new address: it acknowledges nothing that this server sent.
        if path.peer != peer:
            counters.drop_wrong_peer += 1
            path.dropped_wrong_peer += 1
            return
        path.last_rx = self._clock.now
        path.extra = min(len(datagram) - len(header.payload) - PLAIN_DATA.size, _MAX_EXTRA)
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


def _name_of(address: str) -> str:
    """Return the name of a socket in the descriptor store."""
    return f"udp-{address}"


def _refusal(address: IPv4Address, port: int, error: OSError) -> str:
    """Return an error message that names the setting. Without bind_multi_address no setting is at fault."""
    everywhere = address == IPv4Address(0)
    name, of = ("", "") if everywhere else ("bind_multi_address: ", f" of {address}")
    hints = {
        errno.EADDRINUSE: "; is another L2TP server running?",
        errno.EADDRNOTAVAIL: "; it is not an address of this machine",
    }
    return f"{name}cannot listen on UDP port {port}{of}: {error.strerror}{hints.get(error.errno or 0, '')}"
