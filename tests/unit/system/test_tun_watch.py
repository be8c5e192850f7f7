"""The pace of repairs of the tun device; the repairs themselves need a kernel (tests/live/test_tun_kept.py)."""

from __future__ import annotations

from l2tpns.system.tun_watch import MAX_IMMEDIATE_REPAIRS, MAX_RETRY_DELAY, QUIET_PERIOD, Pace


def test_a_few_repairs_in_a_row_are_made_at_once_then_the_pauses_grow() -> None:
    pace, now, pauses = Pace(), 1000.0, []
    for _ in range(MAX_IMMEDIATE_REPAIRS + 7):
        now = max(now, pace.not_before)
        pace.repaired(now)
        pauses.append(max(pace.not_before - now, 0.0))
    assert pauses == [0.0] * MAX_IMMEDIATE_REPAIRS + [
        2.0,
        4.0,
        8.0,
        16.0,
        MAX_RETRY_DELAY,
        MAX_RETRY_DELAY,
        MAX_RETRY_DELAY,
    ]


def test_after_a_quiet_time_a_repair_is_made_at_once_again() -> None:
    pace = Pace()
    for _ in range(MAX_IMMEDIATE_REPAIRS + 3):
        pace.repaired(1000.0)
    pace.repaired(1001.0 + QUIET_PERIOD)
    assert pace.not_before == 0.0
