"""Limit repeated log lines: what each login would log again is written once per interval."""

from __future__ import annotations

from collections.abc import Hashable


class RepeatFilter:
    """Remembers at most `limit` subjects, and forgets the one that was due the longest time ago."""

    __slots__ = ("_interval", "_limit", "_seen")

    def __init__(self, interval: float, limit: int = 256) -> None:
        self._interval = interval
        self._limit = limit
        self._seen: dict[Hashable, float] = {}  # when each subject was last due, the oldest first

    def due(self, subject: Hashable, now: float) -> bool:
        """Return True if this subject has not been due for the interval; a new interval begins then."""
        seen = self._seen.get(subject)
        if seen is not None and now - seen < self._interval:
            return False
        self._seen.pop(subject, None)
        self._seen[subject] = now
        if len(self._seen) > self._limit:
            del self._seen[next(iter(self._seen))]
        return True
