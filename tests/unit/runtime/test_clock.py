"""Durations that outlive a process: no setting of the clock changes them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.runtime import clock
from l2tpns.runtime.clock import MAX_OUTAGE, Moment, date, elapsed, moment

TODAY = 1_790_000_000.0
HOUR = 3600.0


@pytest.mark.parametrize("step", [0.0, HOUR, -2 * HOUR, -TODAY, 57 * 366 * 86400.0])
def test_within_one_boot_no_step_of_the_wall_clock_counts(step: float) -> None:
    before, after = Moment(TODAY, 500.0, "a"), Moment(TODAY + 7 + step, 507.0, "a")
    assert elapsed(before, after) == 7.0


def test_from_one_boot_to_another_the_wall_clock_tells_but_never_less_than_the_new_boot_has_lasted() -> None:
    before = Moment(TODAY, 90_000.0, "a")
    assert elapsed(before, Moment(TODAY + 60, 20.0, "b")) == 60.0
    assert elapsed(before, Moment(TODAY - HOUR, 20.0, "b")) == 20.0
    assert elapsed(before, Moment(TODAY + 1e9, 20.0, "b")) == MAX_OUTAGE


@pytest.mark.parametrize(("before", "after"), [(100.0, TODAY), (TODAY, 100.0)])
def test_a_clock_that_was_never_set_tells_nothing_about_another_boot(before: float, after: float) -> None:
    assert elapsed(Moment(before, 9.0, "a"), Moment(after, 20.0, "b")) == 20.0


def test_what_an_earlier_release_wrote_has_the_wall_clock_only() -> None:
    assert elapsed(Moment(TODAY), Moment(TODAY + 9, 20.0, "b")) == 9.0
    assert elapsed(Moment(TODAY), Moment(TODAY - 9, 20.0, "b")) == 0.0


MOMENTS = st.builds(Moment, st.floats(0, 1e11), st.floats(0, 1e9), st.sampled_from(["", "a", "b"]))


@given(MOMENTS, MOMENTS)
def test_no_duration_is_negative_or_longer_than_a_boot_or_a_year(before: Moment, after: Moment) -> None:
    assert 0.0 <= elapsed(before, after) <= max(MAX_OUTAGE, after.since_boot)


def test_a_date_told_before_the_clock_was_set_is_corrected_and_a_slewed_clock_changes_none() -> None:
    unset = Moment(100.0, 50.0, "a")
    assert date(unset, Moment(TODAY, 80.0, "a")) == TODAY - 30
    assert date(Moment(TODAY, 50.0, "a"), Moment(TODAY + 31, 80.0, "a")) == TODAY
    assert date(Moment(TODAY, 50.0, "a"), Moment(TODAY + HOUR, 80.0, "b")) == TODAY


def test_now_is_of_this_boot() -> None:
    now = moment()
    assert now.boot.startswith(clock.BOOT_ID.read_text().strip())
    assert elapsed(now, moment()) <= time.clock_gettime(time.CLOCK_BOOTTIME)
