"""A log that is only kept in memory."""

from __future__ import annotations

from typing import Any

import orjson

from l2tpns.runtime.log import DATA, Log


class MemorySink:
    """Takes every line and keeps none: the Log itself keeps the last ones."""

    def __init__(self) -> None:
        self.dropped = 0

    def write(self, line: bytes, level: int) -> bool:
        return True

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryLog(Log):
    """A Log without a destination, for what a test wants to read again."""

    def __init__(self, level: int = DATA, keep: int = 10_000) -> None:
        super().__init__(MemorySink(), level, keep)

    def records(self, event: str = "") -> list[dict[str, Any]]:
        """The lines kept, read again; only those of `event`, if given."""
        lines = [orjson.loads(line) for line in self._output.recent]
        return [line for line in lines if not event or line["event"] == event]
