"""How connections come in: one accepted at a time, in the share of strangers, each with a place and a greenlet.

Knows nothing of what is spoken. gevent's servers accept a hundred connections in one go, and give each a greenlet
whatever their number.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import gevent
from gevent.socket import wait_read

from l2tpns.runtime.log import Logger
from l2tpns.runtime.places import Place, Places
from l2tpns.runtime.share import Share
from l2tpns.system.socket_owner import Peer, owner_of_connection

OWNER = "door"  # of the share's turns: all doors are one
AT_ONCE = 16  # connections accepted in one turn
REST = 0.1  # seconds after an accept that failed: no descriptor is free
BROKEN = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)  # of a listening socket that will never accept anything again


class Door:
    """Of one listening socket, which it closes."""

    def __init__(
        self,
        listener: Any,
        places: Places,
        share: Share,
        log: Logger,
        serve: Callable[[Any, Peer, Place], None],
        refuse: Callable[[Any, Peer], None],
    ) -> None:
        """`serve` and `refuse` run in a greenlet of the connection, whose socket is closed when it ends."""
        self._listener = listener
        self._places = places
        self._share = share
        self._log = log
        self._serve = serve
        self._refuse = refuse
        self._greenlets: dict[Any, None] = {}
        self._acceptor: Any = None
        self._refused = False  # the last accept failed

    @property
    def address(self) -> Peer:
        host, port = self._listener.getsockname()
        return host, port

    def open(self) -> None:
        """Accept connections from now on."""
        self._listener.setblocking(False)
        self._acceptor = gevent.spawn(self._accept_forever)

    @property
    def broken(self) -> bool:
        """Return True when nothing is accepted any more, although nobody has closed the door."""
        return self._acceptor is not None and bool(self._acceptor.dead)

    def wait(self) -> None:
        """Wait until the listening socket fails, or the acceptor is ended."""
        if self._acceptor is not None:
            self._acceptor.join()

    def close(self) -> None:
        """Accept no more, and end all connections. The port is free when it returns. May yield."""
        if self._acceptor is not None:
            self._acceptor.kill()
        self._listener.close()
        gevent.killall(list(self._greenlets))

    def _accept_forever(self) -> None:
        while self._listener.fileno() >= 0:
            try:
                wait_read(self._listener.fileno())
                self._share.turn(OWNER)
                self._accept()
            except OSError as error:
                if error.errno in BROKEN:
                    self._log.error("listener_failed", why=error.strerror)
                    return
                if error.errno != errno.ECONNABORTED:
                    self._report(error)
                    gevent.sleep(REST)
            except Exception:  # our mistake: the next connection may be another
                self._log.exception("door_failed")
                gevent.sleep(REST)

    def _report(self, error: OSError) -> None:
        """Log that nothing is accepted, once for as long as that lasts."""
        if not self._refused:
            self._refused = True
            host, port = self.address
            self._log.warning("accept_failed", address=f"{host}:{port}", why=error.strerror)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, peer = self._listener.accept()
            except BlockingIOError:
                return
            self._refused = False
            try:
                self._admit(sock, peer)
            except BaseException:
                sock.close()
                raise
            if not self._share.open:
                return

    def _admit(self, sock: Any, peer: Peer) -> None:
        place = self._places.take(owner_of_connection(sock, peer))
        greenlet = gevent.spawn(self._refuse, sock, peer) if place is None else self._spawn(sock, peer, place)
        greenlet.rawlink(lambda _: sock.close())  # also when it is killed before its first turn
        self._greenlets[greenlet] = None
        greenlet.rawlink(lambda ended: self._greenlets.pop(ended, None))

    def _spawn(self, sock: Any, peer: Peer, place: Place) -> Any:
        place.greenlet = greenlet = gevent.spawn(self._begin, sock, peer, place)
        greenlet.rawlink(lambda _: self._places.give_back(place))
        return greenlet

    def _begin(self, sock: Any, peer: Peer, place: Place) -> None:
        # A connection that loses its place before this turn comes has cost next to nothing.
        self._share.turn(place.owner)
        self._serve(sock, peer, place)
