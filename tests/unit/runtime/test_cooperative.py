"""Going through many things while others have their turns."""

from __future__ import annotations

from itertools import count

import gevent
import pytest

from l2tpns.runtime import cooperative
from l2tpns.runtime.cooperative import CLOCK, SLICE, in_slices


def test_everything_comes_in_order_and_others_have_their_turn_after_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = count()
    monkeypatch.setattr(cooperative, "monotonic", lambda: next(looks) * SLICE / 2)
    seen: list[int] = []
    turns: list[int] = []

    def others() -> None:
        while True:
            turns.append(len(seen))
            gevent.sleep(0)

    greenlet = gevent.spawn(others)
    for thing in in_slices(range(100 * CLOCK)):
        seen.append(thing)
    gevent.kill(greenlet)
    assert seen == list(range(100 * CLOCK))
    assert sorted(set(turns)) == list(range(2 * CLOCK, 100 * CLOCK, 3 * CLOCK))


def test_few_things_are_done_at_one_go() -> None:
    begun: list[str] = []
    greenlet = gevent.spawn(begun.append, "other")
    assert list(in_slices(range(31))) == list(range(31))
    assert begun == []
    greenlet.join()
