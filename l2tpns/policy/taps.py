"""Who sees or changes a session's packets in passing: packet hooks of plugins, interception, monitors of consoles.

Two callables of a Path, each None while nobody wants its packets, so that nobody else pays:

- `path.tap`: the packet hooks. What it returns is carried in the packet's place; None drops it.
- `path.copy`: who only looks, the one who intercepts before the monitors.

The order, in dataplane/forward.py. From the subscriber: source address checked, **copied**, filter, throttle, MSS,
**hooks**, tun device. To the subscriber: filter, MSS, **hooks**, cut to the MRU or refused as too big, packet_limit,
sent, **copied**. So a copy is what the subscriber has really sent, whatever becomes of it, and what has really been
sent to it: not what was dropped before, and the pieces of what was cut. A packet from an address that is not the
subscriber's is not copied.

Session.carry() has them set before the path is online, so that nobody misses a session's first packet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2tpns.dataplane.session_path import Copy

if TYPE_CHECKING:
    from l2tpns.lns import Lns
    from l2tpns.subscriber.session import Session


class Taps:
    """One for the Lns."""

    def __init__(self, lns: Lns) -> None:
        self._lns = lns
        self._watchers: dict[Session, tuple[Copy, ...]] = {}

    def rebuild(self, session: Session) -> None:
        """Who wants this session's packets has changed."""
        if session.path.online:
            self.prepare(session)

    def prepare(self, session: Session) -> None:
        """It is about to be carried: have everybody in place before its first packet."""
        lns, path = self._lns, session.path
        tap = lns.plugins.packet_tap(session)
        copy = _each(self._copies(session))
        if (tap, copy) != (path.tap, path.copy):
            path.tap, path.copy = tap, copy
            lns.plane.changed(path)

    def rebuild_all(self) -> None:
        """A packet hook has come or gone."""
        for session in list(self._lns.sessions.values()):
            self.rebuild(session)

    def _copies(self, session: Session) -> tuple[Copy, ...]:
        copier = self._lns.snoop.copier(session)
        watchers = self._watchers.get(session, ())
        return watchers if copier is None else (copier, *watchers)

    # Monitors

    def watch(self, session: Session, copy: Copy) -> None:
        """Have copies of its packets, until unwatch(). `copy` is called by the data path: no waiting, no error."""
        self._watchers[session] = (*self._watchers.get(session, ()), copy)
        self.rebuild(session)

    def unwatch(self, session: Session, copy: Copy) -> None:
        left = tuple(other for other in self._watchers.pop(session, ()) if other is not copy)
        if left:
            self._watchers[session] = left
        self.rebuild(session)

    # A Part (policy/model.py)

    def begin(self, session: Session) -> None:
        pass

    def finish(self, session: Session) -> None:
        """Let go of who may hold the session; if it comes online again, carry() brings them back."""
        session.path.tap = session.path.copy = None


def _each(copies: tuple[Copy, ...]) -> Copy | None:
    """One callable for all of them."""
    if len(copies) < 2:
        return copies[0] if copies else None

    def copy(direction: int, packet: bytes) -> None:
        for one in copies:
            one(direction, packet)

    return copy
