"""Bound the time that work fed from outside takes: consoles, HTTP, nsctl; and tunnels with full mailboxes.

A greenlet whose socket or mailbox is never empty never waits, and nothing else runs meanwhile. A greenlet that yields
by a sleep of its own is back as soon as the event loop is, and hundreds of them together keep packets waiting for
hundreds of slices. So each asks a `Scheduler` for a turn before each small piece of work. Slices of work alternate with
pauses, however many greenlets there are; the event loop polls its sockets in the pauses, and the packet loops run.

Turns, and the lock of `FairLock`, rotate among owners (an address, a local user, an operator): an owner with a thousand
connections gets no more of them than an owner with one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import gevent
from gevent.hub import Waiter

SLICE = 0.001  # seconds


class FairQueue:
    """Greenlets that wait: in order of arrival for one owner, and the owners in rotation."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Waiter]] = {}  # the first key is the owner whose turn comes next

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, owner: str, missed: Callable[[], None]) -> None:
        """Yield until `take` has chosen this greenlet. If an exception arrives after that, call `missed`."""
        waiter = Waiter()
        self._waiting.setdefault(owner, deque()).append(waiter)
        try:
            waiter.get()
        except BaseException:
            if not self._remove(owner, waiter):
                missed()
            raise

    def take(self) -> Waiter:
        """Choose the greenlet whose turn it is. The caller switches to it."""
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


class Scheduler:
    """Slices of work, of `length` seconds, for greenlets that take turns.

    `load` is the largest part of the time that the slices take together: after each one at least
    (1 - load) / load of its length passes. At 1 the event loop only polls its sockets between two slices.
    """

    def __init__(self, load: float = 0.5, length: float = SLICE, clock: Callable[[], float] = monotonic) -> None:
        self._load = load
        self._length = length
        self.clock = clock
        self._queue = FairQueue()
        self._until = 0.0  # monotonic: end of the open slice; 0: no slice is open
        self._next_slice = 0.0  # monotonic: earliest beginning of the next one
        self._timer: Any = None

    def wait_turn(self, owner: str = "") -> None:
        """Return when this greenlet may do its next piece of work. Yields unless a slice is open."""
        if self.slice_open:
            return
        if self._timer is None:
            self._start_timer()
        self._queue.wait(owner, _ignore)

    @property
    def slice_open(self) -> bool:
        """Return True while the greenlet that has the turn may go on without asking for another."""
        return self.clock() < self._until

    def _start_timer(self) -> None:
        # Never 0: the loop would serve a timer that is due at once before the sockets.
        delay = max(self._next_slice - self.clock(), 1e-6)
        self._timer = gevent.get_hub().loop.timer(delay)
        self._timer.start(self._on_timer, update=True)

    def _on_timer(self) -> None:
        """Run the greenlets one after the other, in the hub: each comes back here when it waits for something."""
        self._timer.close()
        begun = now = self.clock()
        self._until = begun + self._length
        while self._queue and now < self._until:
            self._queue.take().switch(None)
            now = self.clock()
        self._until = 0.0
        # One piece may take longer than a slice (hashing a password, a plugin): then so does the pause.
        self._next_slice = begun + max(self._length, now - begun) / self._load
        self._timer = None
        if self._queue:
            self._start_timer()


class FairLock:
    """A lock for costly work. Unlike gevent's locks it rotates among owners, and no newcomer overtakes a waiter."""

    def __init__(self) -> None:
        self._held = False
        self._queue = FairQueue()

    @contextmanager
    def hold(self, owner: str) -> Iterator[None]:
        """Hold the lock. Yields while another greenlet does."""
        if self._held:
            self._queue.wait(owner, self._pass_on)
        self._held = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        if not self._queue:
            self._held = False
            return
        waiter = self._queue.take()  # the lock stays held: no newcomer takes it before this one runs
        waiter.hub.loop.run_callback(waiter.switch, None)


def _ignore() -> None:
    """Do nothing: a turn that was missed needs no hand-over."""
