"""What has been logged lately, so that a line which each login would repeat is written once in a while."""

from __future__ import annotations

from collections.abc import Hashable


class Reminders:
    """Remember at most `most` things; forget the one that was due the longest time ago."""

    __slots__ = ("_interval", "_most", "_seen")

    def __init__(self, interval: float, most: int = 256) -> None:
        self._interval = interval
        self._most = most
        self._seen: dict[Hashable, float] = {}  # the oldest first

    def due(self, thing: Hashable, now: float) -> bool:
        """Return whether this has not been due for the interval; then the interval begins now."""
        seen = self._seen.get(thing)
        if seen is not None and now - seen < self._interval:
            return False
        self._seen.pop(thing, None)
        self._seen[thing] = now
        if len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]
        return True
