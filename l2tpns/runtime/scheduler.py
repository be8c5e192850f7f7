"""Bound the time that work fed from outside takes: consoles, HTTP, nsctl; and tunnels with full mailboxes.

A greenlet whose socket or mailbox is never empty never waits, and nothing else runs meanwhile. A greenlet that yields
by a sleep of its own is back as soon as the event loop is, and hundreds of them together keep packets waiting for
hundreds of slices. So each asks a `Scheduler` for a turn before each small piece of work. Slices of work alternate with
pauses, however many greenlets there are; the event loop polls its sockets in the pauses, and the packet loops run.

Turns, and the lock of `FairLock`, rotate among owners (an address, a local user, an operator): an owner with a thousand
connections gets no more of them than an owner with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

import gevent
from gevent.hub import Waiter

SLICE = 0.001  # seconds


class Rank(Enum):
    """In which order work is done. The ranks after the first one alternate, a piece of work each."""

    FIRST = "first"
    END = "end"  # of sessions
    BEGIN = "begin"  # of calls


class Switched(Protocol):
    """What waits for its turn: a gevent Waiter, or a Turn."""

    def switch(self, value: None) -> object:
        """Begin the turn. Called in the hub."""


W = TypeVar("W", bound=Switched)


class FairQueue(Generic[W]):
    """What waits: in order of arrival for one owner, and the owners in rotation."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[W, None]] = {}  # the first key is the owner whose turn comes next

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, owner: str, waiter: W) -> None:
        """Add the last of an owner."""
        self._waiting.setdefault(owner, {})[waiter] = None

    def take(self) -> W:
        """Remove and return the one whose turn it is. The caller switches to it."""
        owner = next(iter(self._waiting))
        queue = self._waiting.pop(owner)
        waiter = next(iter(queue))
        del queue[waiter]
        if queue:
            self._waiting[owner] = queue
        return waiter

    def remove(self, owner: str, waiter: W) -> bool:
        """Remove one before its turn. Return False if it is not here."""
        queue = self._waiting.get(owner, {})
        if waiter not in queue:
            return False
        del queue[waiter]
        if not queue:
            del self._waiting[owner]
        return True


class Turn:
    """A turn that was asked for by `Scheduler.book`."""

    __slots__ = ("_notify", "come")

    def __init__(self, notify: Callable[[], None]) -> None:
        self.come = False
        self._notify = notify

    def switch(self, _: None) -> None:
        self.come = True
        self._notify()


class Scheduler:
    """Slices of work, of `length` seconds, for greenlets that take turns.

    `load` is the largest part of the time that the slices take together: after each one at least
    (1 - load) / load of its length passes. At 1 the event loop only polls its sockets between two slices.
    With `eager` the next slice also begins as soon as the event loop has nothing else to do.
    """

    def __init__(
        self,
        load: float = 0.5,
        length: float = SLICE,
        clock: Callable[[], float] = monotonic,
        *,
        eager: bool = False,
    ) -> None:
        self._load = load
        self._length = length
        self._eager = eager
        self.clock = clock
        self._queues: dict[Rank, FairQueue[Switched]] = {rank: FairQueue() for rank in Rank}
        self._until = 0.0  # monotonic: end of the open slice; 0: no slice is open
        self._next_slice = 0.0  # monotonic: earliest beginning of the next one
        self._watchers: list[Any] = []  # which begin the next slice

    def wait_turn(self, owner: str = "", rank: Rank = Rank.FIRST) -> None:
        """Return when this greenlet may do its next piece of work. Yields unless a slice is open."""
        if self.slice_open:
            return
        waiter = Waiter()
        self._add(owner, rank, waiter)
        try:
            waiter.get()
        except BaseException:
            self._queues[rank].remove(owner, waiter)
            raise

    def book(self, owner: str, rank: Rank, notify: Callable[[], None]) -> Turn:
        """Have `notify` called in the hub when the turn has come. It must not block. Does not yield."""
        turn = Turn(notify)
        self._add(owner, rank, turn)
        return turn

    def cancel(self, owner: str, rank: Rank, turn: Turn) -> None:
        """Forget a turn that was booked, if it has not come. Does not yield."""
        self._queues[rank].remove(owner, turn)

    def hurry(self, owner: str, rank: Rank, turn: Turn) -> None:
        """Move a turn that was booked to the first rank, if it has not come. Does not yield."""
        if self._queues[rank].remove(owner, turn):
            self._queues[Rank.FIRST].add(owner, turn)

    @property
    def slice_open(self) -> bool:
        """Return True while the greenlet that has the turn may go on without asking for another."""
        return self.clock() < self._until

    def _add(self, owner: str, rank: Rank, waiter: Switched) -> None:
        self._queues[rank].add(owner, waiter)
        if not self._watchers and not self._until:
            self._start_watchers()

    def _start_watchers(self) -> None:
        loop = gevent.get_hub().loop
        # Never 0: the loop would serve a timer that is due at once before the sockets.
        timer = loop.timer(max(self._next_slice - self.clock(), 1e-6))
        timer.start(self._on_slice, update=True)
        self._watchers = [timer]
        if self._eager:
            idle = loop.idle()
            idle.start(self._on_slice)
            self._watchers.append(idle)

    def _on_slice(self) -> None:
        """Run the greenlets one after the other, in the hub: each comes back here when it waits for something."""
        for watcher in self._watchers:
            watcher.close()
        self._watchers = []
        begun = now = self.clock()
        self._until = begun + self._length
        while now < self._until:
            rank = self._next_rank()
            if rank is None:
                break
            self._queues[rank].take().switch(None)
            now = self.clock()
            if rank is not Rank.FIRST:
                break  # it may have made work of the first rank
        self._until = 0.0
        # One piece may take longer than a slice (hashing a password, a plugin): then so does the pause.
        self._next_slice = begun + max(self._length, now - begun) / self._load
        if any(self._queues.values()):
            self._start_watchers()

    def _next_rank(self) -> Rank | None:
        """Return the rank whose turn it is: the first one, or else one of the others alternately."""
        queues = self._queues
        if queues[Rank.FIRST]:
            return Rank.FIRST
        for rank in list(queues):
            if queues[rank]:
                queues[rank] = queues.pop(rank)  # the last one to be looked at next time
                return rank
        return None


class FairLock:
    """A lock for costly work. Unlike gevent's locks it rotates among owners, and no newcomer overtakes a waiter."""

    def __init__(self) -> None:
        self._held = False
        self._queue: FairQueue[Any] = FairQueue()

    @contextmanager
    def hold(self, owner: str) -> Iterator[None]:
        """Hold the lock. Yields while another greenlet does."""
        if self._held:
            self._wait(owner)
        self._held = True
        try:
            yield
        finally:
            self._pass_on()

    def _wait(self, owner: str) -> None:
        """Yield until the lock is passed on to this greenlet. If an exception arrives after that, pass it on."""
        waiter = Waiter()
        self._queue.add(owner, waiter)
        try:
            waiter.get()
        except BaseException:
            if not self._queue.remove(owner, waiter):
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        if not self._queue:
            self._held = False
            return
        waiter = self._queue.take()  # the lock stays held: no newcomer takes it before this one runs
        waiter.hub.loop.run_callback(waiter.switch, None)
