"""The sockets that send copies of intercepted packets: one UDP socket for each sink.

No send blocks: a sink that is down delays no packet of the subscriber. The socket is connected, so the kernel reports
ICMP errors of the sink. The kernel chooses the source address, by the route to the sink, and the port, when the first
copy is sent; both stay the same. Copies may be fragmented on their way (no DF).

This file knows neither sessions nor the format of copies: see snoop.py.
"""

from __future__ import annotations

import errno
from _socket import socket as RawSocket
from collections.abc import Callable
from time import monotonic

from l2tpns.policy.model import Sink
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.log import Logger
from l2tpns.runtime.sockets import allow_fragments, set_buffers, udp_socket

SEND_BUFFER = 4 << 20  # octets queued in the kernel for the network card or neighbour discovery
RETRY_DELAY = 0.25  # seconds without an attempt after a failed one, so that not each packet pays for it
WARNING_INTERVAL = 60.0  # seconds between two warnings about one sink


class SnoopSink:
    """Sends copies to one sink.

    `find` returns its current address and port, None if there is none. `refusal` returns why nothing may be sent
    there, an empty string if it may.
    """

    __slots__ = (
        "_counters",
        "_find",
        "_log",
        "_lost",
        "_refusal",
        "_retry_at",
        "_retry_delay",
        "_socket",
        "_warned",
        "_why",
        "blocked",
        "sink",
        "users",
    )

    def __init__(
        self,
        find: Callable[[], Sink | None],
        refusal: Callable[[Sink], str],
        counters: Counters,
        log: Logger,
        retry_delay: float = RETRY_DELAY,
    ) -> None:
        self._find = find
        self._refusal = refusal
        self._counters = counters
        self._log = log
        self._retry_delay = retry_delay
        self._socket: RawSocket | None = None
        self._retry_at = 0.0  # monotonic: no attempt before
        self._why: str | None = ""  # why the last attempt failed
        self._lost = 0  # copies since the last warning
        self._warned = 0.0  # monotonic: time of the last warning
        self.sink: Sink | None = None
        self.blocked = ""  # why nothing may be sent now
        self.users = 0  # sessions whose copies go here

    def send(self, payload: bytes) -> bool:
        """Send a copy. Return False if it could not be sent. Called by the reader; does not block or raise."""
        sink = self._find()
        if sink is not self.sink:
            self.move(sink)
        if self.blocked:
            return self._lose(self.blocked)
        sock = self._socket or self._open()
        if sock is None:
            return self._lose(self._why)
        try:
            sock.send(payload)
        except OSError as error:
            self._lose(error.strerror)
            if error.errno in (errno.EAGAIN, errno.EMSGSIZE) or not self._send_again(sock, payload):
                return False
        self._counters.snoop_packets += 1
        return True

    def _send_again(self, sock: RawSocket, payload: bytes) -> bool:
        """Send once more: the error may be an ICMP message about an earlier copy. Return False if this fails too."""
        try:
            sock.send(payload)
        except OSError as error:
            self.close()  # a new socket may get another route
            self._give_up(error)
            return False
        return True

    def move(self, sink: Sink | None) -> None:
        """Send to this sink from now on, unless it is refused."""
        self.close()
        self._retry_at = 0.0
        self.sink = sink
        self.blocked = "snoop_host and snoop_port are not set" if sink is None else self._refusal(sink)

    def check(self) -> None:
        """Check again whether copies may be sent: a subscriber has got or lost an address."""
        self.move(self.sink)

    def close(self) -> None:
        """Close the socket. The next copy opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> RawSocket | None:
        """Return a connected socket, or None if that fails; then wait RETRY_DELAY before the next attempt."""
        if monotonic() < self._retry_at:
            return None
        assert self.sink is not None
        sock: RawSocket | None = None
        try:
            sock = udp_socket()
            allow_fragments(sock)
            set_buffers(sock, send=SEND_BUFFER)
            sock.connect((str(self.sink.address), self.sink.port))
        except OSError as error:
            if sock is not None:
                sock.close()
            self._give_up(error)
            return None
        self._socket = sock
        return sock

    def _give_up(self, error: OSError) -> None:
        self._why = error.strerror
        self._retry_at = monotonic() + self._retry_delay

    def _lose(self, why: str | None) -> bool:
        """Count a lost copy. Log a warning for the first one, then one a minute at most. Return False."""
        self._counters.snoop_errors += 1
        self._lost += 1
        now = monotonic()
        if now - self._warned >= WARNING_INTERVAL or not self._warned:
            where = f"{self.sink.address}:{self.sink.port}" if self.sink is not None else ""
            self._log.warning("snoop_copies_lost", sink=where, count=self._lost, why=why)
            self._warned, self._lost = now, 0
        return False
