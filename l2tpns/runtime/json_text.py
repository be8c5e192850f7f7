"""JSON that is kept for long."""

from __future__ import annotations

from typing import Any

import orjson


def dump(value: Any) -> bytes:
    """Return a value as JSON, in no more memory than it needs.

    What orjson.dumps returns keeps the buffer of 8 KiB that it was written in: with a record for each session, that was
    a third of the memory of the process.
    """
    return bytes(memoryview(orjson.dumps(value)))
