"""A bounded mailbox: how the packet loops and other greenlets reach a tunnel's or a session's greenlet.

Posting never blocks and never grows without limit: what does not fit is refused and counted, and L2TP or PPP
sends it again.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from gevent.event import Event


class Mailbox:
    """Items in the order of their posting, for one reader."""

    __slots__ = ("_event", "_items", "dropped", "limit")

    def __init__(self, limit: int) -> None:
        self._items: deque[Any] = deque()
        self._event = Event()
        self.limit = limit
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    def post(self, item: Any) -> bool:
        """Hand over an item; False when the mailbox is full and the item is lost."""
        if len(self._items) >= self.limit:
            self.dropped += 1
            return False
        self._items.append(item)
        self._event.set()
        return True

    def post_urgent(self, item: Any) -> None:
        """Hand over what must not be lost (an end, a verdict): few of them exist, so no limit is needed."""
        self._items.append(item)
        self._event.set()

    def take(self) -> Any | None:
        """The next item, or None."""
        if self._items:
            return self._items.popleft()
        self._event.clear()
        return None

    def wait(self, timeout: float | None) -> None:
        """Block until there is an item, at most `timeout` seconds (None: for ever)."""
        if not self._items:
            self._event.wait(timeout)
