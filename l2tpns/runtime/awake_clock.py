"""A clock that stands still while this process does, so that its own absence is not taken for a peer's silence.

When a process was stopped, a virtual machine was paused, migrated or restored, or a machine slept, every timer is due
at once while the answers wait unread in the sockets. The timer wheel calls `beat` ten times a second. A beat that is
too late ends a pause. A pause includes the `drain` seconds after it, in which the sockets are read. Whatever judges a
peer by its silence counts awake seconds only.

`paused_since(since)` returns the seconds of pauses between `since` and now; `at` returns readings of this clock, for
deadlines. Both take monotonic times. Pauses do count where time is billed, and for what only decides when to send.
docs/decisions/0022-the-awake-clock.md has the reasons.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gevent

MAX_PAUSES = 16  # pauses that are kept; a span that began before the first of them counts as older than it is


@dataclass(frozen=True, slots=True)
class PauseTiming:
    """What counts as a pause, in seconds."""

    late: float = 1.0  # without a beat; less than this is a busy moment
    drain: float = 2.0  # after a pause, in which the sockets are read before any peer is judged
    # Another pause within `soon`, shorter than `short`, is an overloaded loop: the clock must not stand still for good.
    soon: float = 10.0
    short: float = 5.0


DEFAULT_TIMING = PauseTiming()


def _boottime() -> float:
    """Return CLOCK_BOOTTIME: like the monotonic clock, but it goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class AwakeClock:
    """Counts pauses once `beat` is called regularly; until then it is the monotonic clock."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        boottime: Callable[[], float] = _boottime,
        timing: PauseTiming = DEFAULT_TIMING,
    ) -> None:
        self._clock = clock
        self._boottime = boottime
        self._timing = timing
        self._last_beat: float | None = None
        self._asleep = 0.0  # how far the boot clock is ahead
        self._seen = 0.0  # the last reading of the clock
        self._pauses: list[tuple[float, float]] = []  # beginning and end, in order
        self._forgotten = 0.0  # seconds of those not kept
        self._unreported = 0.0
        self.pauses = 0  # number of pauses; a change means that peers must be asked again
        self.resumed = float("-inf")  # end of the last pause, `drain` included

    def beat(self) -> float:
        """Record that the event loop runs. Return the seconds of the pause that this ends, mostly 0."""
        now, asleep = self._clock(), self._boottime() - self._clock()
        self._update(now)
        if self._last_beat is not None and asleep - self._asleep > self._timing.late:
            self._add(now, now, asleep - self._asleep)
        self._last_beat, self._asleep = now, asleep
        ended, self._unreported = self._unreported, 0.0
        return ended

    def _update(self, now: float) -> None:
        if self._last_beat is not None and now - self._last_beat > self._timing.late:
            self._last_beat = now
            self._add(self._seen, now, now - self._seen)
        self._seen = now

    def _add(self, start: float, end: float, seconds: float) -> None:
        if start > self.resumed + self._timing.soon or end - start > self._timing.short:
            end += self._timing.drain
        else:
            start = min(start + self._timing.late, end)
        start = max(start, self.resumed)
        if end <= start:
            return
        self._pauses.append((start, end))
        if len(self._pauses) > MAX_PAUSES:
            first, last = self._pauses.pop(0)
            self._forgotten += last - first
        self.resumed = end
        self.pauses += 1
        self._unreported += seconds

    def at(self, stamp: float) -> float:
        """Return the reading of this clock at a monotonic time."""
        self._update(self._clock())
        lost = self._forgotten
        for start, end in self._pauses:
            if stamp > start:
                lost += min(stamp, end) - start
        return stamp - lost

    def paused_since(self, stamp: float) -> float:
        """Return the seconds of pauses after a monotonic time, including what is still to come of the last one."""
        self._update(self._clock())
        return sum(end - max(start, stamp) for start, end in self._pauses if end > stamp)

    def now(self) -> float:
        return self.at(self._clock())

    def real(self, seconds: float) -> float:
        """Return how many real seconds to sleep for so many awake seconds. Never negative."""
        if seconds <= 0.0:
            return 0.0
        return seconds + max(0.0, self.resumed - self._clock())

    # Waiting

    def sleep(self, seconds: float) -> None:
        """Yield for so many awake seconds."""
        deadline = self.now() + seconds
        while (left := deadline - self.now()) > 0.0:
            gevent.sleep(self.real(left))

    def join(self, greenlets: Iterable[Any], seconds: float) -> None:
        """Block until all greenlets have ended, at most for so many awake seconds."""
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
