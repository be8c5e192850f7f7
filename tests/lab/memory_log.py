"""Keep a log in memory only."""

from __future__ import annotations

from typing import Any

import orjson

from l2tpns.runtime.log import DATA, Log


class MemorySink:
    """Discard every line: the Log itself keeps the last ones."""

    def __init__(self) -> None:
        self.dropped = 0

    def write(self, line: bytes, level: int) -> bool:
        return True

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryLog(Log):
    """Log without a destination. The test reads the lines from memory."""

    def __init__(self, level: int = DATA, keep: int = 10_000) -> None:
        super().__init__(MemorySink(), level, keep)

    def records(self, event: str = "") -> list[dict[str, Any]]:
        """Return the lines kept, only those of `event` if given."""
        lines = [orjson.loads(line) for line in self._output.recent]
        return [line for line in lines if not event or line["event"] == event]
