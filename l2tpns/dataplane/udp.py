"""The LACs' side: UDP sockets, and the loop that takes L2TP datagrams apart (RFC 2661 3.1, 8.1).

Control messages are handed on as they are. Data messages find their Path by our ids and must come from the path's
peer; IP packets of online sessions go to `uplink`, called directly, other PPP frames are posted to the session.

Where no address is configured a wildcard socket listens, and the first SCCRQ to one of our addresses makes a socket
bound to that address, which the kernel prefers from then on: the reply, and all that follows, leaves from the address
the SCCRQ was sent to (8.1), and needs no ancillary data.
"""

from __future__ import annotations

import errno
import struct
from _socket import socket as RawSocket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from socket import AF_INET, IPPROTO_IP, SO_RCVBUF, SO_REUSEPORT, SO_SNDBUF, SOCK_DGRAM, SOL_SOCKET, inet_ntoa
from time import monotonic

import gevent

from l2tpns.counters import Counters
from l2tpns.dataplane.loop import DRAIN, Clock, drain_forever
from l2tpns.dataplane.path import PPP_IP, Path
from l2tpns.errors import ConfigError, WireError
from l2tpns.log import Logger
from l2tpns.proto.header import parse_data

L2TP_PORT = 1701
LARGEST = 4096  # octets of a datagram; l2tp_mtu ends at 2600, and control messages of real LACs are far shorter
MOST_ENDPOINTS = 256  # addresses of ours that SCCRQs may make sockets for (127/8 alone has 2^24)

Peer = tuple[str, int]

# Linux's numbers, which the socket module does not name.
_IP_PKTINFO, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 8, 10, 0
_SO_NO_CHECK, _SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 11, 32, 33
_BUFFER = 8 << 20
_PKTINFO = struct.Struct("=i4s4s")  # interface, our address, destination in the header

# 3.1, the two forms that nearly every data message has: no option, or Length only. The last two fields are the first
# four octets of PPP. Our two ids together are the key of a path.
_PLAIN, _PLAIN_FLAGS = struct.Struct("!HIHH"), 0x0002
_WITH_LENGTH, _WITH_LENGTH_FLAGS = struct.Struct("!HIHH"), 0x4002
_PPP_ADDRESS_CONTROL = 0xFF03
_SHORTEST_IP = 6 + 2 + 20  # with less than this the quick way may not look at the octets
_CONTROL_BIT = 0x80
_SCCRQ = bytes.fromhex("0000 0000 0001")  # vendor, attribute type and value of its Message Type AVP


class Endpoint:
    """A UDP socket on one address of ours. Never raises because of the network; never blocks.

    RFC 2661 8.1: the UDP checksum must be on for control, and may be off for data. Without `data_checksums` the socket
    sends none; `send` turns it on for its own datagram, which costs two system calls and is rare.
    """

    __slots__ = ("_counters", "address", "data_checksums", "port", "sendto", "socket")

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
        self.sendto = self.socket.sendto
        self.data_checksums = data_checksums
        self._without_checksum(not data_checksums)

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
    ) -> None:
        self.paths: dict[int, Path] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.port = port
        self._data_checksums = data_checksums
        self._addresses = addresses
        self._wildcard: RawSocket | None = None
        self._counters = counters
        self._clock = clock
        self._log = log
        self._uplink = uplink
        self._on_control = on_control
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    # Sockets

    def start(self) -> None:
        for address in self._addresses:
            try:
                if address == IPv4Address(0):
                    self._listen_everywhere()
                else:
                    self.endpoint(str(address))
            except OSError as error:
                raise ConfigError(_refusal(address, self.port, error)) from None

    def stop(self) -> None:
        gevent.killall(self._greenlets)
        self._greenlets.clear()
        for endpoint in self.endpoints.values():
            endpoint.close()
        self.endpoints.clear()
        if self._wildcard is not None:
            self._wildcard.close()
            self._wildcard = None

    def endpoint(self, address: str) -> Endpoint:
        """The socket on this address, opened if need be. Raises OSError."""
        endpoint = self.endpoints.get(address)
        if endpoint is None:
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
            self._read(endpoint.socket, lambda: self._drain(endpoint))
            self._log.info("listening", address=address, port=self.port, beside_wildcard=self._wildcard is not None)
        return endpoint

    def _listen_everywhere(self) -> None:
        sock = open_socket("0.0.0.0", self.port)
        sock.setsockopt(IPPROTO_IP, _IP_PKTINFO, 1)
        self.port = sock.getsockname()[1]
        self._wildcard = sock
        self._read(sock, lambda: self._drain_wildcard(sock))
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

    def _read(self, sock: RawSocket, drain: Callable[[], None]) -> None:
        self._greenlets.append(gevent.spawn(drain_forever, sock.fileno(), drain, self._log))

    # The loops

    def _drain(self, endpoint: Endpoint) -> None:
        self._clock.now = monotonic()
        recvfrom = endpoint.socket.recvfrom
        for _ in range(DRAIN):
            try:
                datagram, peer = recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                self._counters.tunnel_rx_errors += 1
                return
            self.receive(datagram, peer, endpoint)

    def _drain_wildcard(self, sock: RawSocket) -> None:
        """What comes before its address has a socket, and what was queued meanwhile."""
        self._clock.now = monotonic()
        for _ in range(DRAIN):
            try:
                datagram, ancillary, _, peer = sock.recvmsg(LARGEST, 64)
            except BlockingIOError:
                return
            except OSError:
                self._counters.tunnel_rx_errors += 1
                return
            endpoint = self._endpoint_of(datagram, ancillary)
            if endpoint is None:
                self._counters.tunnel_rx_packets += 1
                self._counters.tunnel_rx_octets += len(datagram)
                self._counters.drop_unknown_tunnel += 1
            else:
                self.receive(datagram, peer, endpoint)

    def _endpoint_of(self, datagram: bytes, ancillary: list[tuple[int, int, bytes]]) -> Endpoint | None:
        for level, kind, octets in ancillary:
            if level == IPPROTO_IP and kind == _IP_PKTINFO and len(octets) >= _PKTINFO.size:
                _, ours, destination = _PKTINFO.unpack_from(octets)
                break
        else:
            return None
        if ours != destination:
            return None  # broadcast or multicast
        address = inet_ntoa(ours)
        if address in self.endpoints:
            return self.endpoints[address]
        if not _is_sccrq(datagram) or len(self.endpoints) >= MOST_ENDPOINTS:
            return None
        try:
            return self.endpoint(address)
        except OSError as error:
            self._log.error("listen_failed", address=address, port=self.port, why=error.strerror)
            return None

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


def _is_sccrq(datagram: bytes) -> bool:
    """Good enough to open a socket for; the tunnel looks closer (6.1)."""
    return len(datagram) >= 20 and datagram[0] & _CONTROL_BIT != 0 and datagram[14:20] == _SCCRQ
