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
    AF_INET,
    IPPROTO_IP,
    SO_RCVBUF,
    SO_REUSEPORT,
    SO_SNDBUF,
    SOCK_DGRAM,
    SOL_SOCKET,
    inet_aton,
    inet_ntoa,
)
from time import monotonic

import gevent

from l2tpns.dataplane.session_path import PPP_IP, Path
from l2tpns.errors import WireError, refused
from l2tpns.proto.l2tp.header import parse_data
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.drain import DRAIN, Clock, drain_forever
from l2tpns.runtime.log import Logger
from l2tpns.runtime.peer import Peer
from l2tpns.runtime.supervisor import Part, Supervisor

L2TP_PORT = 1701
LARGEST = 4096  # octets of a datagram; l2tp_mtu ends at 2600, and control messages of real LACs are far shorter
MAX_SOURCES = 1024  # addresses of ours that L2TP is known to leave from; sockets of their own have the first 256
MOST_ENDPOINTS = 256  # sockets for single addresses of ours beside the wildcard one (127/8 alone has 2^24)
IDLE_ENDPOINT = 120.0  # seconds that such a socket stays open without a tunnel
SWEEP = 30.0  # seconds between two looks for such sockets


# Linux's numbers, which the socket module does not name.
_IP_PKTINFO, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 8, 10, 0
_SO_NO_CHECK, _SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 11, 32, 33
_BUFFER = 8 << 20
_NO_PORT = 1  # tcpmux: nothing of UDP comes from there
_PKTINFO = struct.Struct("=i4s4s")  # interface, our address, destination in the header

# 3.1, the two forms that nearly every data message has: no option, or Length only. The last two fields are the first
# four octets of PPP. Our two ids together are the key of a path.
_PLAIN, _PLAIN_FLAGS = struct.Struct("!HIHH"), 0x0002
_WITH_LENGTH, _WITH_LENGTH_FLAGS = struct.Struct("!HIHH"), 0x4002
_PPP_ADDRESS_CONTROL = 0xFF03
_SHORTEST_IP = 6 + 2 + 20  # with less than this the quick way may not look at the octets
_CONTROL_BIT = 0x80


class Endpoint:
    """A UDP socket on one address of ours. Never raises because of the network; never blocks.

    RFC 2661 8.1: the UDP checksum must be on for control, and may be off for data. Without `data_checksums` the socket
    sends none; `send` turns it on for its own datagram, which costs two system calls and is rare.
    """

    __slots__ = (
        "_counters",
        "address",
        "data_checksums",
        "full_at",
        "idle_since",
        "on_demand",
        "port",
        "retired",
        "sendto",
        "socket",
        "tunnels",
    )

    def __init__(
        self,
        address: str,
        port: int,
        counters: Counters,
        *,
        beside_wildcard: bool = False,
        data_checksums: bool = True,
    ) -> None:
        self._counters = counters
        self.socket = open_socket(address, port, share=beside_wildcard)
        self.address: str = address
        self.port: int = self.socket.getsockname()[1]
        self.sendto: Callable[[bytes, Peer], int] = self.socket.sendto
        self.data_checksums = data_checksums
        self.on_demand = beside_wildcard
        self.full_at = -inf  # when there was last more to read than is read at once
        self.retired = False  # about to be closed: no tunnel may use it
        self.tunnels = 0  # that use it, whatever their state
        self.idle_since = monotonic()  # while there are none
        self._without_checksum(not data_checksums)

    def hold(self) -> None:
        """Note that one more tunnel uses it."""
        self.tunnels += 1

    def release(self) -> None:
        """Note that one of its tunnels is gone."""
        self.tunnels -= 1
        self.idle_since = monotonic()

    def _without_checksum(self, off: bool) -> None:
        self.socket.setsockopt(SOL_SOCKET, _SO_NO_CHECK, off)

    def send(self, datagram: bytes, peer: Peer) -> bool:
        """Send a control message or a control frame of PPP, with a UDP checksum; as send_data."""
        if self.data_checksums:
            return self.send_data(datagram, peer)
        self._without_checksum(False)
        try:
            return self.send_data(datagram, peer)
        finally:
            self._without_checksum(True)

    def send_data(self, datagram: bytes, peer: Peer) -> bool:
        """Send, count; False when the kernel refused (full queue, no route, firewall)."""
        try:
            self.sendto(datagram, peer)
        except OSError:
            self._counters.tunnel_tx_errors += 1
            return False
        self._counters.tunnel_tx_packets += 1
        self._counters.tunnel_tx_octets += len(datagram)
        return True

    def close(self) -> None:
        self.socket.close()


class WildcardEndpoint(Endpoint):
    """An address of ours without a socket of its own: the wildcard socket sends from it, by ancillary data."""

    __slots__ = ("_source",)

    def __init__(self, sock: RawSocket, address: str, port: int, counters: Counters, full_at: float) -> None:
        self._counters = counters
        self._source = [(IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, inet_aton(address), bytes(4)))]
        self.socket = sock
        self.address = address
        self.port = port
        self.sendto = self._sendto
        self.full_at = full_at
        self.data_checksums = True  # as the socket has them
        self.on_demand = self.retired = False
        self.tunnels = 0
        self.idle_since = 0.0

    def _sendto(self, datagram: bytes, peer: Peer) -> int:
        return self.socket.sendmsg([datagram], self._source, 0, peer)

    def close(self) -> None:
        """The socket is everybody's."""


def open_socket(address: str, port: int, *, share: bool = False) -> RawSocket:
    """A bound non-blocking socket of the C type, which gevent does not touch. Raises OSError."""
    sock = RawSocket(AF_INET, SOCK_DGRAM)
    try:
        sock.setblocking(False)
        # The outer packet may be fragmented on its way to the LAC.
        sock.setsockopt(IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
        for force, plain in ((_SO_RCVBUFFORCE, SO_RCVBUF), (_SO_SNDBUFFORCE, SO_SNDBUF)):
            try:
                sock.setsockopt(SOL_SOCKET, force, _BUFFER)
            except PermissionError:
                sock.setsockopt(SOL_SOCKET, plain, _BUFFER)  # as much as net.core.rmem_max allows
        # Unlike SO_REUSEADDR, this option lets sockets of one user id share a port and no others. Once it is cleared
        # no socket can be bound beside this one, whatever its owner and options.
        sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, share)
        sock.bind((address, port))
        sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, 0)
    except OSError:
        sock.close()
        raise
    return sock


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
        port: int = L2TP_PORT,
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
                return self._at(address)
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

    def _at(self, address: str) -> Endpoint:
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
        if len(self.endpoints) < MOST_ENDPOINTS:
            return True
        idle = [endpoint for endpoint in self.endpoints.values() if endpoint.on_demand and not endpoint.tunnels]
        if not idle:
            return False
        self._retire(min(idle, key=lambda endpoint: endpoint.idle_since))
        return True

    def _sweep_forever(self) -> None:
        while True:
            gevent.sleep(SWEEP)
            self.sweep(monotonic())

    def sweep(self, now: float) -> None:
        """Close the sockets of single addresses that no tunnel has used for a while."""
        for endpoint in list(self.endpoints.values()):
            if endpoint.on_demand and not endpoint.tunnels and now - endpoint.idle_since >= IDLE_ENDPOINT:
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
        sock.setsockopt(IPPROTO_IP, _IP_PKTINFO, 1)
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
        user = self._at(endpoint.address) if endpoint.retired else endpoint
        full = self._drain_socket(recvfrom, user)
        if full:
            endpoint.full_at = self._clock.now
        return full

    def _drain_socket(self, recvfrom: Callable[[int], tuple[bytes, Peer]], endpoint: Endpoint) -> bool:
        for _ in range(DRAIN):
            try:
                datagram, peer = recvfrom(LARGEST)
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
                datagram, ancillary, _, peer = sock.recvmsg(LARGEST, 64)
            except BlockingIOError:
                return
            except OSError:
                self._counters.tunnel_rx_errors += 1
                return
            address = _destination(ancillary)
            if address:
                self.receive(datagram, peer, self._at(address))
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
        if octets > _SHORTEST_IP:
            flags, key, first, second = _PLAIN.unpack_from(datagram)
            start = 6
            if flags == _WITH_LENGTH_FLAGS:
                length, key, first, second = _WITH_LENGTH.unpack_from(datagram, 2)
                start = 8 if length == octets else 0
            elif flags != _PLAIN_FLAGS:
                start = 0
            if start:
                if first == _PPP_ADDRESS_CONTROL and second == PPP_IP:
                    start += 4
                elif first == PPP_IP:
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
        if datagram and datagram[0] & _CONTROL_BIT:
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
            protocol, information = split_ppp(header.payload)
        except WireError:
            counters.drop_malformed += 1
            path.dropped_malformed += 1
            return
        if protocol != PPP_IP:
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


def split_ppp(frame: bytes) -> tuple[int, bytes]:
    """(protocol, information) of a frame with or without FF 03, and with one or two octets of protocol.

    RFC 1661 6.5, 6.6; all of them are legal on an L2TP link at all times. The last octet of a protocol is odd, the
    first of two even. Raises WireError.
    """
    start = 2 if frame[:2] == b"\xff\x03" else 0
    if len(frame) > start and frame[start] & 1:
        return frame[start], frame[start + 1 :]
    if len(frame) < start + 2 or not frame[start + 1] & 1:
        raise WireError("no PPP protocol")
    return frame[start] << 8 | frame[start + 1], frame[start + 2 :]


def _destination(ancillary: list[tuple[int, int, bytes]]) -> str:
    """The address of ours that a datagram was sent to; empty for a broadcast or multicast."""
    for level, kind, octets in ancillary:
        if level == IPPROTO_IP and kind == _IP_PKTINFO and len(octets) >= _PKTINFO.size:
            _, ours, destination = _PKTINFO.unpack_from(octets)
            return inet_ntoa(ours) if ours == destination else ""
    return ""
