"""Answers of a RADIUS server that come from another address of its host, or from another port.

Requests go through connected sockets, to which the kernel delivers what the server's own address sends and nothing
else. While a server is silent, a second socket is open on the same port as each of them: the kernel delivers the rest
to it. An answer that is authentic there is dropped like any other, but the log names the address that it came from.
Any host can send to this socket, so it is read a few times a second at most.
"""

from __future__ import annotations

import _socket
import socket
from collections.abc import Callable

import gevent

from l2tpns.radius.framing import MAX_PACKET
from l2tpns.runtime.sockets import udp_socket
from l2tpns.runtime.supervisor import Supervisor

READ = 1  # libev's EV_READ
READ_INTERVAL = 0.1  # seconds between two datagrams; the kernel drops more when RECEIVE_BUFFER is full
RECEIVE_BUFFER = 16384  # octets

Source = tuple[str, int]


class StrayAnswerListener:
    """The second socket, and the greenlet that reads it and calls `received` with each datagram and its source."""

    __slots__ = ("_part", "_received", "_sock")

    def __init__(self, sock: _socket.socket, received: Callable[[bytes, Source], None], supervisor: Supervisor) -> None:
        self._sock = sock
        self._received = received
        self._part = supervisor.spawn("RADIUS reader", self._run)

    def _run(self) -> None:
        hub = gevent.get_hub()
        watcher = hub.loop.io(self._sock.fileno(), READ)
        try:
            while True:
                hub.wait(watcher)
                try:
                    datagram, source = self._sock.recvfrom(MAX_PACKET + 1)
                except OSError:
                    pass  # an ICMP error, or another process has read it
                else:
                    self._received(datagram, source)
                gevent.sleep(READ_INTERVAL)
        finally:
            watcher.stop()
            watcher.close()

    def close(self) -> None:
        self._part.stop(block=False, then=self._sock.close)


def open_second_socket(connected: _socket.socket) -> _socket.socket | None:
    """Return a socket on the address and port of a connected one, or None if the kernel refuses.

    Both share the port during the bind only. SO_REUSEPORT, unlike SO_REUSEADDR, admits sockets of this user id and no
    others. Does not yield.
    """
    sock = udp_socket()
    both = (connected, sock)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        for each in both:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(connected.getsockname())
    except OSError:
        sock.close()
        return None
    finally:
        for each in both:
            if each.fileno() >= 0:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    return sock
