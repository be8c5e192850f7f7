"""A bounded mailbox, by which packet loops and other greenlets reach the greenlet of a tunnel or session.

Posting does not block, and the mailbox does not grow without limit. What does not fit is refused and counted; L2TP or
PPP retransmits it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from gevent.hub import Waiter


class Mailbox:
    """Items in the order of posting, for one reader.

    Uses a Waiter for each wait, not an Event: a session waits nine times until it is online, and Event.wait with a
    timeout costs 7 us, this 3 us.
    """

    __slots__ = ("_items", "_waiter", "dropped", "limit")

    def __init__(self, limit: int) -> None:
        self._items: deque[Any] = deque()
        self._waiter: Waiter | None = None  # of the reader, until it is woken
        self.limit = limit
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    def post(self, item: Any) -> bool:
        """Add an item. Return False if the mailbox is full, so that the item is lost. Does not yield."""
        if len(self._items) >= self.limit:
            self.dropped += 1
            return False
        self.post_urgent(item)
        return True

    def post_urgent(self, item: Any) -> None:
        """Add an item that must not be lost (an end, a verdict). There are few, so no limit applies. Does not yield."""
        self._items.append(item)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            # The poster runs on first. A Waiter whose reader is gone may be switched to without harm.
            waiter.hub.loop.run_callback(waiter.switch, None)

    def take(self) -> Any | None:
        """Remove and return the next item, or None."""
        return self._items.popleft() if self._items else None

    def wait(self, timeout: float | None) -> None:
        """Block until there is an item, for at most `timeout` seconds (None: no limit)."""
        if self._items:
            return
        waiter = self._waiter = Waiter()
        timer = None
        try:
            if timeout is not None:
                timer = waiter.hub.loop.timer(timeout)
                timer.start(waiter.switch, None)
            waiter.get()
        finally:
            self._waiter = None
            if timer is not None:
                timer.close()


class Reader(Protocol):
    """A greenlet that serves a mailbox, and does at certain times what is due."""

    mailbox: Mailbox

    def now(self) -> float:
        """Return the time by which the peer is judged, in seconds."""

    def handle(self, item: Any) -> None:
        """Do what an item asks for. What it raises ends `serve_until`."""

    def before_wait(self, now: float) -> float | None:
        """Do what is due. Return when something will be due next, None for never. What it raises ends `serve_until`."""

    def pause(self, seconds: float | None) -> None:
        """Block until there is an item, at most for so long (None: for ever). With an item there, yield and return."""


def serve_until(
    reader: Reader, condition: Callable[[], bool], timeout: float | None = None, slice: float = math.inf
) -> bool:
    """Serve a reader's mailbox until `condition()` holds. Return False after `timeout` seconds without that.

    After `slice` seconds of work it does what is due and pauses, however much there is to read.
    """
    mailbox = reader.mailbox
    deadline = None if timeout is None else reader.now() + timeout
    slice_end = monotonic() + slice
    while not condition():
        item = mailbox.take()
        if item is not None:
            reader.handle(item)
            if monotonic() < slice_end:
                continue
        now = reader.now()
        due = reader.before_wait(now)
        if condition():
            break
        if deadline is not None:
            if now >= deadline and not len(mailbox):
                return False
            due = deadline if due is None else min(due, deadline)
        reader.pause(None if due is None else due - now)
        slice_end = monotonic() + slice
    return True
