"""Serve the LAC's UDP socket: reading, sending, timers, and network faults (loss, duplication, reordering, delay).

One reader and one ticker greenlet serve every tunnel and session on the socket. The drain is bounded and always ends in
a wait, so that timers and other greenlets run under load.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from struct import Struct
from typing import TYPE_CHECKING

import gevent
from gevent import get_hub, monkey

from l2tpns.errors import WireError
from l2tpns.proto.l2tp.header import parse_control, parse_data

if TYPE_CHECKING:
    from tests.lab.lac import Lac
    from tests.lab.subscriber import Subscriber

RawSocket = monkey.get_original("socket", "socket")  # not gevent's wrapper, whose calls wait by themselves
Address = tuple[str, int]
READ = 1
DRAIN = 32
TICK = 0.02
SLOTS_PER_SECOND = 10
FOUR = Struct("!HHHH")


@dataclass(frozen=True, slots=True)
class Impairment:
    """Describe network faults: probabilities of loss, duplication and reordering; delay and jitter in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    overtaken_by: float = 0.03  # how long a reordered packet is held back


class Wire:
    """Carry one direction of one kind of traffic under an Impairment. The same seed gives the same faults."""

    def __init__(self, impairment: Impairment, seed: int) -> None:
        self.impairment = impairment
        self.random = Random(seed)
        self.lost = self.doubled = self.reordered = 0

    def carry(self, deliver: Callable[[], None]) -> None:
        bad, chance = self.impairment, self.random.random
        if bad.loss and chance() < bad.loss:
            self.lost += 1
            return
        copies = 1
        if bad.duplicate and chance() < bad.duplicate:
            self.doubled += 1
            copies = 2
        for _ in range(copies):
            delay = bad.delay + (bad.jitter * chance() if bad.jitter else 0.0)
            if bad.reorder and chance() < bad.reorder:
                self.reordered += 1
                delay += bad.overtaken_by
            if delay:
                gevent.spawn_later(delay, deliver)
            else:
                deliver()


class Endpoint:
    """Own a UDP socket and the tunnels on it."""

    def __init__(
        self,
        local: Address = ("127.0.0.1", 0),
        *,
        sock: socket.socket | None = None,
        control: Impairment | None = None,
        data: Impairment | None = None,
        seed: int = 0,
    ) -> None:
        if sock is None:
            sock = RawSocket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
        try:
            sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE: beyond the limit, when we are root
        except PermissionError:
            pass
        if sock.getsockname()[1] == 0:
            sock.bind(local)
        self.socket = sock
        self.local: Address = sock.getsockname()
        self.lacs: dict[int, Lac] = {}
        self.now = time.monotonic
        self.rx = self.tx = 0  # datagrams
        self.malformed = 0  # datagrams that could not be decoded
        self.strays = 0  # datagrams for unknown tunnels or sessions
        self.unsent = 0
        self.impair(control=control, data=data, seed=seed)
        self._dirty: set[Lac] = set()
        self._slots: dict[int, list[Subscriber]] = {}
        self._slot = int(self.now() * SLOTS_PER_SECOND)
        self._watcher = get_hub().loop.io(sock.fileno(), READ)
        self._greenlets = [gevent.spawn(self._read), gevent.spawn(self._tick)]
        self.closed = False

    def impair(self, *, control: Impairment | None = None, data: Impairment | None = None, seed: int = 0) -> None:
        """Impair both directions from now on, each with its own random numbers. None: a perfect wire."""
        self.control_out, self.control_in = _wire(control, seed), _wire(control, seed + 1)
        self.data_out, self.data_in = _wire(data, seed + 2), _wire(data, seed + 3)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        gevent.killall(self._greenlets)
        self._watcher.close()
        self.socket.close()
        self.lacs.clear()
        self._slots.clear()

    # --- out ---

    def put(self, datagram: bytes, to: Address, *, control: bool) -> None:
        """Send, through the impairment if there is one."""
        wire = self.control_out if control else self.data_out
        if wire is None:
            self.put_raw(datagram, to)
        else:
            wire.carry(lambda: self.put_raw(datagram, to))

    def put_raw(self, datagram: bytes, to: Address) -> None:
        try:
            self.socket.sendto(datagram, to)
            self.tx += 1
        except OSError as error:
            if error.errno == errno.EBADF and not self.closed:
                raise
            self.unsent += 1

    def touched(self, lac: Lac) -> None:
        """Mark a tunnel that may have something to send. It is flushed after the batch, to piggyback acks."""
        self._dirty.add(lac)

    def flush(self) -> None:
        now = self.now()
        while self._dirty:
            self._dirty.pop().flush(now)

    # --- in ---

    def _read(self) -> None:
        hub, receive = get_hub(), self.socket.recvfrom
        while True:
            try:
                for _ in range(DRAIN):
                    datagram, peer = receive(4096)
                    self.rx += 1
                    if not datagram:
                        self.malformed += 1
                        continue
                    wire = self.control_in if datagram[0] & 0x80 else self.data_in
                    if wire is None:
                        self._take(datagram, peer)
                    else:
                        wire.carry(lambda datagram=datagram, peer=peer: self._take_late(datagram, peer))  # type: ignore[misc]
            except BlockingIOError:
                pass
            except ConnectionError:
                pass  # an ICMP error for an earlier datagram
            if self._dirty:
                self.flush()
            hub.wait(self._watcher)

    def _take_late(self, datagram: bytes, peer: Address) -> None:
        if not self.closed:
            self._take(datagram, peer)
            self.flush()

    def _take(self, datagram: bytes, peer: Address) -> None:
        try:
            if datagram[0] & 0x80:
                header = parse_control(datagram)
                lac = self.lacs.get(header.tunnel_id)
                if lac is None:
                    self.strays += 1
                elif lac.alive:
                    lac.receive_control(header, self.now())
                    self._dirty.add(lac)
                return
            ns: int | None
            if datagram[:2] == b"\x00\x02" and len(datagram) > 8:
                _, tunnel_id, session_id, _ = FOUR.unpack_from(datagram)
                payload, ns = datagram[6:], None
            else:
                data = parse_data(datagram)
                tunnel_id, session_id, payload, ns = data.tunnel_id, data.session_id, data.payload, data.ns
        except WireError:
            self.malformed += 1
            return
        lac = self.lacs.get(tunnel_id)
        subscriber = lac.sessions.get(session_id) if lac is not None and lac.alive else None
        if subscriber is None:
            self.strays += 1
        else:
            subscriber.receive(payload, ns, self.now())

    # --- time ---

    def schedule(self, subscriber: Subscriber) -> None:
        """Check the subscriber when its deadline has come. Each has one entry, which moves with the deadline."""
        subscriber.scheduled = True
        slot = max(int(subscriber.deadline * SLOTS_PER_SECOND) + 1, self._slot + 1)
        self._slots.setdefault(slot, []).append(subscriber)

    def _tick(self) -> None:
        while True:
            gevent.sleep(TICK)
            now = self.now()
            while self._slot < int(now * SLOTS_PER_SECOND):
                self._slot += 1
                for subscriber in self._slots.pop(self._slot, ()):
                    subscriber.scheduled = False
                    if subscriber.deadline and subscriber.deadline <= now:
                        subscriber.timeout(now)
                    if subscriber.deadline:
                        self.schedule(subscriber)
            for lac in list(self.lacs.values()):
                deadline = lac.reliable.deadline
                if deadline is not None and deadline <= now:
                    lac.flush(now)
            if self._dirty:
                self.flush()


def _wire(impairment: Impairment | None, seed: int) -> Wire | None:
    return None if impairment is None else Wire(impairment, seed)
