"""What has been logged lately, so that a line which each login would repeat is written once in a while."""

from __future__ import annotations

from collections.abc import Hashable


class Reminders:
    """Remembers at most `most` things; of more than that, those told the longest time ago are forgotten."""

    __slots__ = ("_interval", "_most", "_told")

    def __init__(self, interval: float, most: int = 256) -> None:
        self._interval = interval
        self._most = most
        self._told: dict[Hashable, float] = {}  # the oldest first

    def due(self, thing: Hashable, now: float) -> bool:
        """Return whether this has not been due for the interval; then it is told now."""
        told = self._told.get(thing)
        if told is not None and now - told < self._interval:
            return False
        self._told.pop(thing, None)
        self._told[thing] = now
        if len(self._told) > self._most:
            del self._told[next(iter(self._told))]
        return True
