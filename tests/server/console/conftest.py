"""Share fixtures of the console's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from l2tpns.console.commands import pool


@pytest.fixture
def rows_made(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return how many rows of `show pool all` have been made, for all consoles."""
    made = 0
    make_rows = pool.pool_rows

    def counted(*arguments: Any) -> Iterator[Any]:
        nonlocal made
        for row in make_rows(*arguments):
            made += 1
            yield row

    monkeypatch.setattr(pool, "pool_rows", counted)
    return lambda: made
