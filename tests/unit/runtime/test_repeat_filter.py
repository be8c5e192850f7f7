"""What has been logged lately is not logged again for a while."""

from __future__ import annotations

from l2tpns.runtime.repeat_filter import RepeatFilter


def test_a_thing_is_due_once_an_interval() -> None:
    reminders = RepeatFilter(10.0)
    assert [reminders.due("a", now) for now in (0.0, 9.9, 10.0, 19.9, 20.0)] == [True, False, True, False, True]
    assert reminders.due("b", 19.9)


def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    reminders = RepeatFilter(10.0, limit=2)
    assert all(reminders.due(thing, 0.0) for thing in "abc")
    assert reminders.due("a", 1.0)
    assert not reminders.due("c", 1.0)
