"""Answers of a RADIUS server that come from another address of its host, or from another port.

Requests go through connected sockets, to which the kernel gives what the server's own address sends and nothing else.
While a server is silent, a second socket stands beside each of them, on the same port: the kernel gives it the rest. An
answer that is authentic there is dropped like any other, but the log names the address that it came from. Strangers
reach this socket, so it is read a few times a second at most.
"""

from __future__ import annotations

import _socket
import socket
from typing import TYPE_CHECKING

import gevent

from l2tpns.radius import packets
from l2tpns.runtime.sockets import udp_socket

if TYPE_CHECKING:
    from l2tpns.radius.remote_server import Channel

READ = 1  # libev's EV_READ
PAUSE = 0.1  # seconds between two datagrams; more are dropped by the kernel when their room is full
ROOM = 16384  # octets


class Beside:
    """The socket beside a channel's, and the greenlet that reads it."""

    __slots__ = ("_channel", "_part", "_sock")

    def __init__(self, channel: Channel, sock: _socket.socket) -> None:
        self._channel = channel
        self._sock = sock
        self._part = channel.server.supervisor.spawn("RADIUS reader", self._run)

    def _run(self) -> None:
        hub = gevent.get_hub()
        watcher = hub.loop.io(self._sock.fileno(), READ)
        try:
            while True:
                hub.wait(watcher)
                try:
                    datagram, source = self._sock.recvfrom(packets.MAX_PACKET + 1)
                except OSError:
                    pass  # an ICMP error, or another process has read it
                else:
                    self._channel.server.heard_elsewhere(self._channel, datagram, source)
                gevent.sleep(PAUSE)
        finally:
            watcher.stop()
            watcher.close()

    def close(self) -> None:
        self._part.stop(block=False, then=self._sock.close)


def open_beside(connected: _socket.socket) -> _socket.socket | None:
    """Return a socket on the address and port of a connected one. None: what it would hear stays unheard.

    Both may share the port for the moment of the bind only. SO_REUSEPORT, unlike SO_REUSEADDR, admits sockets of this
    user id and no others. Does not yield.
    """
    sock = udp_socket()
    both = (connected, sock)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
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
