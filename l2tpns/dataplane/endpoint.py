"""The local UDP sockets that L2TP is sent from and received on (RFC 2661 8.1).

An `Endpoint` is one local address as the tunnels see it: with a socket of its own, or, as `WildcardEndpoint`, by
ancillary data through the socket that is bound to all addresses. This file sends and counts; udp.py opens, reads and
closes the sockets.
"""

from __future__ import annotations

from _socket import socket as RawSocket
from collections.abc import Callable
from math import inf
from socket import SO_REUSEPORT, SOL_SOCKET
from time import monotonic

from l2tpns.runtime.counters import Counters
from l2tpns.runtime.peer import Peer
from l2tpns.runtime.sockets import allow_fragments, set_buffers, set_checksums, source, udp_socket

_BUFFER = 8 << 20  # octets in the kernel, each way


class Endpoint:
    """A UDP socket on one local address. Never raises because of the network; does not yield.

    RFC 2661 8.1: the UDP checksum must be on for control messages, and may be off for data. Without `data_checksums`
    the socket sends none; `send` turns it on for its own datagram, which costs two system calls and is rare.
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
        sock: RawSocket | None = None,
    ) -> None:
        """Use `sock`, or open a socket. Raises OSError."""
        self._counters = counters
        self.socket = sock or open_socket(address, port, share=beside_wildcard)
        self.address: str = address
        self.port: int = self.socket.getsockname()[1]
        self.sendto: Callable[[bytes, Peer], int] = self.socket.sendto
        self.data_checksums = data_checksums
        self.on_demand = beside_wildcard
        self.full_at = -inf  # monotonic: when one drain last left datagrams unread
        self.retired = False  # about to be closed: no tunnel may use it any more
        self.tunnels = 0  # that use it, whatever their state
        self.idle_since = monotonic()  # valid while there are none
        set_checksums(self.socket, data_checksums)

    def hold(self) -> None:
        """Count one more tunnel that uses it."""
        self.tunnels += 1

    def release(self) -> None:
        """Count one tunnel less."""
        self.tunnels -= 1
        self.idle_since = monotonic()

    def send(self, datagram: bytes, peer: Peer) -> bool:
        """Send a control message or a PPP control frame, with a UDP checksum. Return as `send_data` does."""
        if self.data_checksums:
            return self.send_data(datagram, peer)
        set_checksums(self.socket, True)
        try:
            return self.send_data(datagram, peer)
        finally:
            set_checksums(self.socket, False)

    def send_data(self, datagram: bytes, peer: Peer) -> bool:
        """Send and count. Return False if the kernel refused the datagram (full queue, no route, firewall)."""
        try:
            self.sendto(datagram, peer)
        except OSError:
            self._counters.tunnel_tx_errors += 1
            return False
        self._counters.tunnel_tx_packets += 1
        self._counters.tunnel_tx_octets += len(datagram)
        return True

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class WildcardEndpoint(Endpoint):
    """A local address without a socket of its own: the wildcard socket sends from it, by ancillary data."""

    __slots__ = ("_source",)

    def __init__(self, sock: RawSocket, address: str, port: int, counters: Counters, full_at: float) -> None:
        self._counters = counters
        self._source = [source(address)]
        self.socket = sock
        self.address = address
        self.port = port
        self.sendto = self._sendto
        self.full_at = full_at
        self.data_checksums = True  # as the wildcard socket sends them
        self.on_demand = self.retired = False
        self.tunnels = 0
        self.idle_since = 0.0

    def _sendto(self, datagram: bytes, peer: Peer) -> int:
        return self.socket.sendmsg([datagram], self._source, 0, peer)

    def close(self) -> None:
        """Do nothing: the wildcard socket stays open for the other addresses."""


def open_socket(address: str, port: int, *, share: bool = False) -> RawSocket:
    """Return a socket bound to `address` and `port`. Raises OSError.

    With `share` it may be bound beside another socket of this user id whose SO_REUSEPORT is set at that moment.
    """
    sock = udp_socket()
    try:
        allow_fragments(sock)
        set_buffers(sock, receive=_BUFFER, send=_BUFFER)
        # Unlike SO_REUSEADDR, this option lets only sockets of one user id share a port. Once it is cleared, no socket
        # can be bound beside this one, whatever its owner and options.
        sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, share)
        sock.bind((address, port))
        sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, 0)
    except OSError:
        sock.close()
        raise
    return sock
