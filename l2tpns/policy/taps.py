"""Who sees or changes a session's packets in passing: packet hooks of plugins, interception, monitors of consoles.

Two callables of a Path, each None while nobody wants its packets, so that nobody else pays:

- `path.packet_hook`: the packet hooks. What it returns is carried in the packet's place; None drops it.
- `path.mirror`: who only looks, the one who intercepts before the monitors.

The order, in dataplane/forward.py. From the subscriber: source address checked, **copied**, filter, throttle, MSS,
**hooks**, tun device. To the subscriber: filter, MSS, **hooks**, cut to the MRU or refused as too big, packet_limit,
sent, **copied**. So a copy is what the subscriber has really sent, whatever becomes of it, and what has really been
sent to it: not what was dropped before, and the pieces of what was cut. A packet from an address that is not the
subscriber's is not copied.

Session.carry() has them set before the path is online, so that nobody misses a session's first packet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from l2tpns.dataplane.plane import DataPlane
from l2tpns.dataplane.session_path import Copy, Tap
from l2tpns.hooks import Hooks
from l2tpns.policy.model import Subscriber


class Taps:
    """Decides whose tap and whose copy stands in each path."""

    def __init__(self, plane: DataPlane, hooks: Hooks, sessions: Mapping[int, Subscriber]) -> None:
        self._plane = plane
        self._hooks = hooks
        self._sessions = sessions
        self._watchers: dict[Subscriber, tuple[Copy, ...]] = {}
        self.interceptor: Callable[[Subscriber], Copy | None] = _no_copy  # set by Snoop, which comes before monitors

    def rebuild(self, session: Subscriber) -> None:
        """Who wants this session's packets has changed."""
        if session.path.online:
            self.prepare(session)

    def prepare(self, session: Subscriber) -> None:
        """It is about to be carried: have everybody in place before its first packet."""
        self._set(session, self._hooks.packet_tap(session), _each(self._copies(session)))

    def _set(self, session: Subscriber, packet_hook: Tap | None, mirror: Copy | None) -> None:
        path = session.path
        if (packet_hook, mirror) != (path.packet_hook, path.mirror):
            path.packet_hook, path.mirror = packet_hook, mirror
            self._plane.changed(path)

    def rebuild_all(self) -> None:
        """A packet hook has come or gone."""
        for session in list(self._sessions.values()):
            self.rebuild(session)

    def _copies(self, session: Subscriber) -> tuple[Copy, ...]:
        copier = self.interceptor(session)
        watchers = self._watchers.get(session, ())
        return watchers if copier is None else (copier, *watchers)

    # Monitors

    def watch(self, session: Subscriber, copy: Copy) -> None:
        """Have copies of its packets, until unwatch(). `copy` is called by the data path: no waiting, no error."""
        self._watchers[session] = (*self._watchers.get(session, ()), copy)
        self.rebuild(session)

    def unwatch(self, session: Subscriber, copy: Copy) -> None:
        left = tuple(other for other in self._watchers.pop(session, ()) if other is not copy)
        if left:
            self._watchers[session] = left
        self.rebuild(session)

    # A Part (policy/model.py)

    def begin(self, session: Subscriber) -> None:
        pass

    def finish(self, session: Subscriber) -> None:
        """Let go of who may hold the session; if it comes online again, carry() brings them back."""
        self._set(session, None, None)


def _no_copy(_: Subscriber) -> Copy | None:
    """Intercept nothing."""
    return None


def _each(copies: tuple[Copy, ...]) -> Copy | None:
    """One callable for all of them."""
    if len(copies) < 2:
        return copies[0] if copies else None

    def copy(direction: int, packet: bytes) -> None:
        for one in copies:
            one(direction, packet)

    return copy
