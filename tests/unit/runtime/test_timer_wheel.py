"""The timer wheel: fires in time, never early, and costs the same for many."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from l2tpns.runtime.timer_wheel import Wheel


def test_a_timer_fires_once_at_its_time_and_not_before() -> None:
    wheel: Wheel[str] = Wheel(now=1000.0)
    wheel.schedule("echo", 10.0, now=1000.0)
    assert wheel.advance(1009.9) == []
    assert wheel.advance(1010.1) == ["echo"]
    assert wheel.advance(2000.0) == []


def test_a_cancelled_timer_does_not_fire_and_may_be_cancelled_again() -> None:
    wheel: Wheel[str] = Wheel(now=0.0)
    timer = wheel.schedule("echo", 1.0, now=0.0)
    assert timer.pending
    timer.cancel()
    timer.cancel()
    assert not timer.pending
    assert wheel.advance(5.0) == []
    assert len(wheel) == 0


def test_a_fired_timer_may_be_cancelled() -> None:
    wheel: Wheel[str] = Wheel(now=0.0)
    timer = wheel.schedule("echo", 1.0, now=0.0)
    assert wheel.advance(1.2) == ["echo"]
    timer.cancel()
    assert not timer.pending


def test_a_delay_longer_than_the_wheel_goes_round() -> None:
    wheel: Wheel[str] = Wheel(now=0.0, tick=0.1, size=8)
    wheel.schedule("late", 10.0, now=0.0)
    fired = [now / 10 for now in range(1, 150) if wheel.advance(now / 10)]
    assert len(fired) == 1
    assert 10.0 <= fired[0] <= 10.1


def test_no_delay_fires_in_the_next_slot_and_not_a_turn_later() -> None:
    wheel: Wheel[str] = Wheel(now=5.0)
    wheel.advance(7.0)
    wheel.schedule("now", 0.0, now=7.0)
    assert wheel.advance(7.15) == ["now"]


def test_a_late_call_returns_what_it_missed_in_order() -> None:
    wheel: Wheel[int] = Wheel(now=0.0)
    for delay in (30, 10, 20):
        wheel.schedule(delay, float(delay), now=0.0)
    assert wheel.advance(3600.0) == [10, 20, 30]


def test_what_is_scheduled_from_a_due_entry_does_not_fire_in_the_same_call() -> None:
    wheel: Wheel[str] = Wheel(now=0.0, size=4)
    wheel.schedule("again", 0.4, now=0.0)
    assert wheel.advance(0.4) == ["again"]
    wheel.schedule("again", 0.4, now=0.4)
    assert wheel.advance(0.7) == []
    assert wheel.advance(0.9) == ["again"]


@given(st.lists(st.floats(0, 500), max_size=40), st.floats(0, 1e6), st.integers(2, 64))
def test_every_timer_fires_once_within_a_slot_of_its_time(delays: list[float], start: float, size: int) -> None:
    wheel: Wheel[float] = Wheel(now=start, size=size)
    for delay in delays:
        wheel.schedule(delay, delay, now=start)
    fired: list[float] = []
    now = start
    while now < start + 502:
        now += 0.7
        for delay in wheel.advance(now):
            assert now - start >= delay - 1e-6, "early"
            assert now - start <= delay + 0.7 + 0.2 + 1e-6, "late"
            fired.append(delay)
    assert sorted(fired) == sorted(delays)


def test_a_slot_that_was_busy_once_gives_its_memory_back() -> None:
    wheel: Wheel[int] = Wheel(0.0, tick=0.1, size=16)
    empty = sum(map(sys.getsizeof, wheel._slots))
    timers = [wheel.schedule(number, number % 16 / 10, 0.0) for number in range(10_000)]
    assert sum(map(sys.getsizeof, wheel._slots)) > 10 * empty
    for timer in timers[:5000]:
        timer.cancel()
    assert len(wheel.advance(1.6)) == 5000
    assert sum(map(sys.getsizeof, wheel._slots)) <= empty
