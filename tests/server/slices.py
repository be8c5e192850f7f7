"""Work in slices: how often other greenlets run in between, and how much is done at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import gevent
import pytest

from l2tpns.runtime import cooperative
from tests.lab.inprocess import until


def most_at_once(
    count: Callable[[], int], enough: Callable[[], object], on_turn: Callable[[], None] = lambda: None
) -> int:
    """Return the largest increase of `count()` in one turn of the event loop, until `enough()` holds.

    A greenlet that only yields cannot tell: on a busy machine the loop turns several times before it runs again.
    `on_turn` is called once a turn.
    """
    most, seen = 0, count()

    def look() -> None:
        nonlocal most, seen
        now = count()
        most, seen = max(most, now - seen), now
        on_turn()

    watcher = gevent.get_hub().loop.prepare()
    watcher.start(look)
    try:
        until(enough)
    finally:
        watcher.stop()
        watcher.close()
    look()
    return most


class Others:
    """A greenlet that runs whenever the work yields; within `with`. `turns` counts how often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By a clock on which a slice of work is over at every tenth look."""
        self.turns = 0
        looks = count()
        monkeypatch.setattr(cooperative, "monotonic", lambda: next(looks) * cooperative.SLICE / 9)

    def _run(self) -> None:
        while True:
            gevent.sleep(cooperative.PAUSE)
            self.turns += 1

    def __enter__(self) -> Others:
        self._greenlet = gevent.spawn(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        gevent.kill(self._greenlet)
