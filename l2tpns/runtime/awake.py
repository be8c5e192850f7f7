"""A clock that stands still while this process does, so that its own absence is not taken for a peer's silence.

A process that is stopped, a virtual machine that is paused, migrated or restored, a machine that sleeps: when it goes
on, every timer is due at once, while the answers wait unread in the sockets. The wheel beats this clock ten times a
second. A beat that is too late ends a pause; a pause also covers the DRAIN seconds after it, in which the sockets are
read. What judges a peer by its silence counts awake seconds only.

A span from `since` to now has `paused_since(since)` seconds of pauses in it; `at` gives readings of the clock, for
deadlines. Both take monotonic times. Time that is billed, or that only decides when something is sent, goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent

LATE = 1.0  # seconds without a beat that make a pause; less is a busy moment
DRAIN = 2.0  # seconds after a pause in which the sockets are read before anything is judged
# Another short pause within SOON seconds is an overloaded loop, in which the clock must not stand for good.
SOON, SHORT = 10.0, 5.0
KEPT = 16  # pauses; a span that began before the first of them is taken for older than it is


def _boottime() -> float:
    """Like the monotonic clock, but it goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class AwakeClock:
    """Counts pauses once `beat` is called regularly; until then it is the monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, boottime: Callable[[], float] = _boottime) -> None:
        self._clock = clock
        self._boottime = boottime
        self._last_beat: float | None = None
        self._asleep = 0.0  # how far the boot clock is ahead
        self._seen = 0.0  # the last time that anyone looked
        self._pauses: list[tuple[float, float]] = []  # beginning and end, in order
        self._forgotten = 0.0  # seconds of those not kept
        self._unreported = 0.0
        self.pauses = 0  # how many; whoever asks peers again after a pause compares it
        self.resumed = float("-inf")  # end of the last pause, DRAIN included

    def beat(self) -> float:
        """Note that the event loop turns. Return the seconds of the pause that this ends, mostly 0."""
        now, asleep = self._clock(), self._boottime() - self._clock()
        self._look(now)
        if self._last_beat is not None and asleep - self._asleep > LATE:
            self._add(now, now, asleep - self._asleep)
        self._last_beat, self._asleep = now, asleep
        ended, self._unreported = self._unreported, 0.0
        return ended

    def _look(self, now: float) -> None:
        if self._last_beat is not None and now - self._last_beat > LATE:
            self._last_beat = now
            self._add(self._seen, now, now - self._seen)
        self._seen = now

    def _add(self, start: float, end: float, seconds: float) -> None:
        if start > self.resumed + SOON or end - start > SHORT:
            end += DRAIN
        else:
            start = min(start + LATE, end)
        start = max(start, self.resumed)
        if end <= start:
            return
        self._pauses.append((start, end))
        if len(self._pauses) > KEPT:
            first, last = self._pauses.pop(0)
            self._forgotten += last - first
        self.resumed = end
        self.pauses += 1
        self._unreported += seconds

    def at(self, stamp: float) -> float:
        """Return what this clock showed at a monotonic time."""
        self._look(self._clock())
        lost = self._forgotten
        for start, end in self._pauses:
            if stamp > start:
                lost += min(stamp, end) - start
        return stamp - lost

    def paused_since(self, stamp: float) -> float:
        """Return the seconds of pauses after a monotonic time, with what is still to come of the last one."""
        self._look(self._clock())
        return sum(end - max(start, stamp) for start, end in self._pauses if end > stamp)

    def now(self) -> float:
        return self.at(self._clock())

    def real(self, seconds: float) -> float:
        """Return how long to sleep until so many awake seconds have passed: never less than 0."""
        if seconds <= 0.0:
            return 0.0
        return seconds + max(0.0, self.resumed - self._clock())

    # Waiting

    def sleep(self, seconds: float) -> None:
        """Sleep for so many awake seconds."""
        deadline = self.now() + seconds
        while (left := deadline - self.now()) > 0.0:
            gevent.sleep(self.real(left))

    def join(self, greenlets: Iterable[Any], seconds: float) -> None:
        """Wait until all greenlets have ended, at most so many awake seconds."""
        waiting, deadline = list(greenlets), self.now() + seconds
        while (left := deadline - self.now()) > 0.0 and not all(greenlet.ready() for greenlet in waiting):
            gevent.joinall(waiting, self.real(left))

    @contextmanager
    def timeout(self, seconds: float) -> Iterator[gevent.Timeout]:
        """Raise the gevent.Timeout that is yielded in the body after so many awake seconds."""
        timeout, deadline = gevent.Timeout(), self.now() + seconds
        greenlet, loop = gevent.getcurrent(), gevent.get_hub().loop
        timers = [loop.timer(self.real(seconds))]

        def expire() -> None:
            left = deadline - self.now()
            timers.pop().close()
            if left > 0.0:
                timers.append(loop.timer(self.real(left)))
                timers[0].start(expire)
            else:
                greenlet.throw(timeout)

        timers[0].start(expire)
        try:
            yield timeout
        finally:
            for timer in timers:
                timer.close()
