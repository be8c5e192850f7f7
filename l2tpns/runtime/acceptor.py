"""Accept the connections of one listening socket, bounded in time and number.

Accepting takes its turns from the `Scheduler` that all operators' work shares; each connection gets a slot and a
greenlet. Knows nothing of the protocol spoken, nor how the owner of a connection is found. gevent's own servers accept
a hundred connections in one go and start a greenlet for each, without a limit.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import gevent
from gevent.socket import wait_read

from l2tpns.runtime.connection_slots import ConnectionSlot, ConnectionSlots
from l2tpns.runtime.log import Logger
from l2tpns.runtime.peer import Peer
from l2tpns.runtime.scheduler import Scheduler

OWNER = "acceptor"  # of the scheduler's turns: one for all listening sockets
MAX_ACCEPTS = 16  # connections accepted in one turn
RETRY_DELAY = 0.1  # seconds after an accept that failed, such as for want of a free descriptor
BROKEN = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)  # errors of a listening socket that can never accept again


class Acceptor:
    """Accepts the connections of one listening socket, and closes that socket in the end."""

    def __init__(
        self,
        listener: Any,
        slots: ConnectionSlots,
        scheduler: Scheduler,
        log: Logger,
        owner_of: Callable[[Any, Peer], str],
        serve: Callable[[Any, Peer, ConnectionSlot], None],
        refuse: Callable[[Any, Peer], None],
    ) -> None:
        """`owner_of` names the owner of a new connection: for the turns, and for the slots.

        `serve` and `refuse` run in a greenlet of the connection, whose socket is closed when that greenlet ends.
        """
        self._listener = listener
        self._slots = slots
        self._scheduler = scheduler
        self._log = log
        self._owner_of = owner_of
        self._serve = serve
        self._refuse = refuse
        self._greenlets: dict[Any, None] = {}
        self._acceptor: Any = None
        self._failing = False  # the last accept failed

    @property
    def address(self) -> Peer:
        host, port = self._listener.getsockname()
        return host, port

    def start(self) -> None:
        """Accept connections from now on. Does not yield."""
        self._listener.setblocking(False)
        self._acceptor = gevent.spawn(self._accept_forever)

    @property
    def broken(self) -> bool:
        """Return True when the listening socket has failed although it was not closed."""
        return self._acceptor is not None and bool(self._acceptor.dead)

    def wait(self) -> None:
        """Block until the listening socket fails or `close` is called."""
        if self._acceptor is not None:
            self._acceptor.join()

    def close(self) -> None:
        """Accept no more, end all connections and free the port. May yield."""
        if self._acceptor is not None:
            self._acceptor.kill()
        self._listener.close()
        gevent.killall(list(self._greenlets))

    def _accept_forever(self) -> None:
        while self._listener.fileno() >= 0:
            try:
                wait_read(self._listener.fileno())
                self._scheduler.wait_turn(OWNER)
                self._accept()
            except OSError as error:
                if error.errno in BROKEN:
                    self._log.error("listener_failed", why=error.strerror)
                    return
                if error.errno != errno.ECONNABORTED:
                    self._report(error)
                    gevent.sleep(RETRY_DELAY)
            except Exception:  # our own bug: the next connection may still be served
                self._log.exception("door_failed")
                gevent.sleep(RETRY_DELAY)

    def _report(self, error: OSError) -> None:
        """Log that accepting fails: once, until it works again."""
        if not self._failing:
            self._failing = True
            host, port = self.address
            self._log.warning("accept_failed", address=f"{host}:{port}", why=error.strerror)

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                sock, peer = self._listener.accept()
            except BlockingIOError:
                return
            self._failing = False
            try:
                self._admit(sock, peer)
            except BaseException:
                sock.close()
                raise
            if not self._scheduler.slice_open:
                return

    def _admit(self, sock: Any, peer: Peer) -> None:
        slot = self._slots.take(self._owner_of(sock, peer))
        greenlet = gevent.spawn(self._refuse, sock, peer) if slot is None else self._spawn(sock, peer, slot)
        greenlet.rawlink(lambda _: sock.close())  # also when it is killed before it has run at all
        self._greenlets[greenlet] = None
        greenlet.rawlink(lambda ended: self._greenlets.pop(ended, None))

    def _spawn(self, sock: Any, peer: Peer, slot: ConnectionSlot) -> Any:
        slot.greenlet = greenlet = gevent.spawn(self._begin, sock, peer, slot)
        greenlet.rawlink(lambda _: self._slots.give_back(slot))
        return greenlet

    def _begin(self, sock: Any, peer: Peer, slot: ConnectionSlot) -> None:
        # A connection that loses its slot before this turn has cost an accept and a close.
        self._scheduler.wait_turn(slot.owner)
        self._serve(sock, peer, slot)
