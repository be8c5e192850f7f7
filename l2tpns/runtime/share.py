"""A bounded share of the process's time for everything that strangers feed: consoles, HTTP, nsctl.

A greenlet whose socket is always ready never waits, and nothing else runs meanwhile; hundreds of greenlets that each
wait often enough do the same together. So each asks the one `Share` for a turn before each small piece of work. Slices
of work alternate with pauses, whatever the number of greenlets, and the packet loops run in the pauses.

Turns, and the lock of `OneAtATime`, go round the owners (an address, a local user, an operator): an owner with a
thousand connections has no more of them than an owner with one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import gevent
from gevent.hub import Waiter

SLICE = PAUSE = 0.001  # seconds


class Rotation:
    """Greenlets that wait: first come, first served among those of one owner, and the owners in rotation."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Waiter]] = {}  # the owner whose turn comes next is the first key

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, owner: str, missed: Callable[[], None]) -> None:
        """Yield until `take` has chosen this greenlet. If an exception comes after that, call `missed`."""
        waiter = Waiter()
        self._waiting.setdefault(owner, deque()).append(waiter)
        try:
            waiter.get()
        except BaseException:
            if not self._remove(owner, waiter):
                missed()
            raise

    def take(self) -> Waiter:
        """Choose the greenlet whose turn it is; the caller switches to it."""
        owner = next(iter(self._waiting))
        queue = self._waiting.pop(owner)
        waiter = queue.popleft()
        if queue:
            self._waiting[owner] = queue
        return waiter

    def _remove(self, owner: str, waiter: Waiter) -> bool:
        queue = self._waiting.get(owner)
        if queue is None or waiter not in queue:
            return False
        queue.remove(waiter)
        if not queue:
            del self._waiting[owner]
        return True


class Share:
    """Slices of work, each followed by a pause that is at least as long. One for the process."""

    def __init__(self) -> None:
        self._rotation = Rotation()
        self._until = 0.0  # monotonic: the end of the slice that is open; 0: none is
        self._rested = 0.0  # monotonic: the end of the pause
        self._timer: Any = None

    def turn(self, owner: str = "") -> None:
        """Return when this greenlet may do its next piece of work. Yields unless a slice is open."""
        if self.open:
            return
        if self._timer is None:
            self._wind_up()
        self._rotation.wait(owner, _nothing)

    @property
    def open(self) -> bool:
        """Whether the greenlet that has the turn may go on without asking for another."""
        return monotonic() < self._until

    def _wind_up(self) -> None:
        # Never 0: a timer that is due at once would be served before the sockets.
        delay = max(self._rested - monotonic(), 1e-6)
        self._timer = gevent.get_hub().loop.timer(delay)
        self._timer.start(self._on_timer, update=True)

    def _on_timer(self) -> None:
        """Run the greenlets one after the other, in the hub: each comes back here when it waits for something."""
        self._timer.close()
        begun = now = monotonic()
        self._until = begun + SLICE
        while self._rotation and now < self._until:
            self._rotation.take().switch(None)
            now = monotonic()
        self._until = 0.0
        # One piece may take longer than the slice (a password's hash, a plugin): then so does the pause.
        self._rested = now + max(PAUSE, now - begun)
        self._timer = None
        if self._rotation:
            self._wind_up()


class OneAtATime:
    """A lock for work that is costly as a whole. gevent's locks know no owners and may pass over those that wait."""

    def __init__(self) -> None:
        self._held = False
        self._rotation = Rotation()

    @contextmanager
    def hold(self, owner: str) -> Iterator[None]:
        """Hold the lock; waits while another greenlet does."""
        if self._held:
            self._rotation.wait(owner, self._pass_on)
        self._held = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        if not self._rotation:
            self._held = False
            return
        waiter = self._rotation.take()  # the lock stays held: no newcomer takes it before this one runs
        waiter.hub.loop.run_callback(waiter.switch, None)


def _nothing() -> None:
    pass
