"""Where copies of intercepted packets leave: a UDP socket of its own for each sink.

No send waits, so a lost sink costs the subscriber nothing but the attempt. The socket is connected: so the kernel tells
by ICMP that nobody is there, and the source address and port stay as they are: those that the route to the sink gives
when the first copy is sent, a port of the kernel's choice. Copies may be cut into fragments on their way (no DF).

Knows neither sessions nor forms; snoop.py does.
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

BUFFER = 4 << 20  # octets that wait in the kernel for a network card or a neighbour
RETRY_DELAY = 0.25  # seconds without a try after one that found no route: it would cost each packet time
WARNING_PAUSE = 60.0  # seconds between two warnings of one sink


class SnoopSink:
    """The way to one sink; `find` says where that is now, and `refusal` why nothing may be sent there, or nothing."""

    __slots__ = (
        "_counters",
        "_find",
        "_log",
        "_lost",
        "_refusal",
        "_rest",
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
        self._rest = 0.0  # monotonic: until then nothing is tried
        self._why: str | None = ""  # there was no way
        self._lost = 0  # copies since the last warning
        self._warned = 0.0  # monotonic
        self.sink: Sink | None = None
        self.blocked = ""  # why nothing may be sent now
        self.users = 0  # sessions whose copies go here

    def send(self, payload: bytes) -> bool:
        """Send a copy; False when that could not be."""
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
        """What a send reports may be ICMP's word on an earlier copy: this one has not been tried yet."""
        try:
            sock.send(payload)
        except OSError as error:
            self.close()  # opened anew, it may have another way
            self._give_up(error)
            return False
        return True

    def move(self, sink: Sink | None) -> None:
        """Send there from now on, if that may be."""
        self.close()
        self._rest = 0.0
        self.sink = sink
        self.blocked = "snoop_host and snoop_port are not set" if sink is None else self._refusal(sink)

    def check(self) -> None:
        """Who has which address is different now."""
        self.move(self.sink)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> RawSocket | None:
        """None if there is no way; then nothing is tried for a moment."""
        if monotonic() < self._rest:
            return None
        assert self.sink is not None
        sock: RawSocket | None = None
        try:
            sock = udp_socket()
            allow_fragments(sock)
            set_buffers(sock, send=BUFFER)
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
        self._rest = monotonic() + self._retry_delay

    def _lose(self, why: str | None) -> bool:
        """Count; a warning at once, then one a minute at most."""
        self._counters.snoop_errors += 1
        self._lost += 1
        now = monotonic()
        if now - self._warned >= WARNING_PAUSE or not self._warned:
            where = f"{self.sink.address}:{self.sink.port}" if self.sink is not None else ""
            self._log.warning("snoop_copies_lost", sink=where, count=self._lost, why=why)
            self._warned, self._lost = now, 0
        return False
