"""Work in slices: how often other greenlets run in between."""

from __future__ import annotations

from itertools import count

import gevent
import pytest

from l2tpns.runtime import cooperative


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
