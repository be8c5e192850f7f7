"""Taps on a session's packets: packet hooks of plugins, interception, monitors of consoles.

Two callables of a SessionPath, each None while unused, so that other sessions pay nothing:

- `path.packet_hook`: the packet hooks. It returns the packet to carry instead; None drops the packet.
- `path.mirror`: receives copies; interception comes before the monitors.

The order is that of dataplane/forward.py. From the subscriber: source address checked, **copied**, filter, throttle,
MSS, **hooks**, tun device. To the subscriber: filter, MSS, **hooks**, cut to the MRU or refused as too big,
packet_limit, sent, **copied**. So a packet from the subscriber is copied as it was received, even if it is dropped
later. A packet to the subscriber is copied as it was sent: each fragment of it, and not if it was dropped. Packets from
an address that is not the subscriber's are not copied.

Session.start_forwarding() sets both before the path is online, so that the first packet of a session is copied too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from l2tpns.dataplane.plane import DataPlane
from l2tpns.dataplane.session_path import Copy, Tap
from l2tpns.hooks import Hooks
from l2tpns.policy.model import Subscriber


class Taps:
    """Sets the packet hook and the mirror of each path; a PolicyPart. `sessions` is the server's table, by id."""

    def __init__(self, plane: DataPlane, hooks: Hooks, sessions: Mapping[int, Subscriber]) -> None:
        self._plane = plane
        self._hooks = hooks
        self._sessions = sessions
        self._watchers: dict[Subscriber, tuple[Copy, ...]] = {}
        self.interceptor: Callable[[Subscriber], Copy | None] = _no_copy  # set by Snoop; called before the monitors

    def rebuild(self, session: Subscriber) -> None:
        """Set the taps of a session again if it is online: a hook, an interception or a monitor has changed."""
        if session.path.online:
            self.prepare(session)

    def prepare(self, session: Subscriber) -> None:
        """Set the taps of a session that is about to come online, before its first packet."""
        self._set(session, self._hooks.packet_tap(session), _each(self._copies(session)))

    def _set(self, session: Subscriber, packet_hook: Tap | None, mirror: Copy | None) -> None:
        path = session.path
        if (packet_hook, mirror) != (path.packet_hook, path.mirror):
            path.packet_hook, path.mirror = packet_hook, mirror
            self._plane.changed(path)

    def rebuild_all(self) -> None:
        """Set the taps of all sessions again: a packet hook was added or removed."""
        for session in list(self._sessions.values()):
            self.rebuild(session)

    def _copies(self, session: Subscriber) -> tuple[Copy, ...]:
        copier = self.interceptor(session)
        watchers = self._watchers.get(session, ())
        return watchers if copier is None else (copier, *watchers)

    # Monitors

    def watch(self, session: Subscriber, copy: Copy) -> None:
        """Send copies of the session's packets to `copy` until unwatch().

        The reader calls `copy`, which must not block or raise.
        """
        self._watchers[session] = (*self._watchers.get(session, ()), copy)
        self.rebuild(session)

    def unwatch(self, session: Subscriber, copy: Copy) -> None:
        """Stop sending copies to `copy`. Does nothing if it is not a watcher."""
        left = tuple(other for other in self._watchers.pop(session, ()) if other is not copy)
        if left:
            self._watchers[session] = left
        self.rebuild(session)

    # PolicyPart (policy/model.py)

    def begin(self, session: Subscriber) -> None:
        """Do nothing: Session.start_forwarding() has called `prepare`."""

    def finish(self, session: Subscriber) -> None:
        """Remove the taps, which refer to the session. `prepare` sets them again if it comes back online."""
        self._set(session, None, None)


def _no_copy(_: Subscriber) -> Copy | None:
    """Intercept nothing."""
    return None


def _each(copies: tuple[Copy, ...]) -> Copy | None:
    """Return one callable that calls all of them, None if there are none."""
    if len(copies) < 2:
        return copies[0] if copies else None

    def copy(direction: int, packet: bytes) -> None:
        for one in copies:
            one(direction, packet)

    return copy
