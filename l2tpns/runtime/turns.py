"""Turns for greenlets that have much to do: one of them works at a time, and everything else runs in between.

A greenlet that yields by a sleep of its own comes back as soon as the loop does, and so do all others like it: a
hundred tunnels with full mailboxes would keep packets waiting for a hundred slices. Here the loop looks at its sockets
after each slice.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from gevent.hub import Waiter, get_hub

PAUSE = 0.001  # seconds between two turns, for everything else


class Turns:
    """First come, first served. Costs nothing while nobody waits."""

    def __init__(self) -> None:
        self._queue: deque[Waiter[None]] = deque()
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._queue)

    def wait(self) -> None:
        """Block until it is the caller's turn: at least for a PAUSE, then in the order of asking."""
        waiter: Waiter[None] = Waiter()
        self._queue.append(waiter)
        if self._timer is None:
            self._start()
        try:
            waiter.get()
        finally:
            if waiter in self._queue:  # the caller was killed
                self._queue.remove(waiter)

    def _start(self) -> None:
        self._timer = get_hub().loop.timer(PAUSE)
        self._timer.start(self._next)

    def _next(self) -> None:
        """Called by the loop: let one go on, and set the clock for the next."""
        self._timer.close()
        self._timer = None
        if not self._queue:
            return
        waiter = self._queue.popleft()
        if self._queue:
            self._start()
        waiter.switch(None)
