"""Going through many things while others have their turns."""

from __future__ import annotations

import time

import gevent

from l2tpns.slices import in_slices


def test_everything_comes_in_order_and_others_have_half_of_the_time() -> None:
    turns: list[float] = []

    def others() -> None:
        while True:
            gevent.sleep(1e-4)
            turns.append(time.monotonic())

    greenlet = gevent.spawn(others)
    seen = []
    begun = time.monotonic()
    for thing in in_slices(range(2000)):
        end = time.monotonic() + 2e-5
        while time.monotonic() < end:
            pass
        seen.append(thing)
    took = time.monotonic() - begun
    gevent.kill(greenlet)
    assert seen == list(range(2000))
    assert took > 0.06  # 40 ms of work, and as much of others'
    assert len(turns) >= 20


def test_few_things_are_done_at_one_go() -> None:
    begun: list[str] = []
    greenlet = gevent.spawn(begun.append, "other")
    assert list(in_slices(range(31))) == list(range(31))
    assert begun == []
    greenlet.join()
