"""How much time has passed, also from one process to the next, and what the date is.

Within a process durations are differences of time.monotonic(). What outlives a process (saved state, the accounting
spool) is written with a Moment: the wall clock may be set by an hour, or from 1970 to now, at any time, so durations
come from CLOCK_BOOTTIME, which nobody can set, as long as it is the same boot. The wall clock tells dates: to people,
to RADIUS servers, in the names of files. docs/decisions/0017-time-that-nobody-can-set.md.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TIME_NAMESPACE = "/proc/self/ns/time"  # has a CLOCK_BOOTTIME of its own
# Between two boots there is the wall clock only. A machine without a battery begins each boot in 1970, or at the date
# of its image: what it says before it was set is no date.
UNSET = 1_577_836_800.0  # 2020
MOST = 366 * 86400.0  # seconds that may have passed from one boot to another
STEP = 60.0  # seconds by which a clock is set, not slewed


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment as it is written to disk."""

    wall: float = 0.0  # seconds since 1970, by the clock as it was set then
    since_boot: float = 0.0  # CLOCK_BOOTTIME
    boot: str = ""  # of which boot; empty: unknown, as in what release 0.1.0 wrote


NEVER = Moment()


def _boot() -> str:
    try:
        boot = BOOT_ID.read_text().strip()
        namespace = os.stat(TIME_NAMESPACE).st_ino
    except OSError:
        return ""
    return f"{boot}/{namespace}"


BOOT = _boot()


def moment() -> Moment:
    """Now."""
    return Moment(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), BOOT)


def elapsed(since: Moment, until: Moment) -> float:
    """Seconds from one moment to the other: never negative, and exact within one boot.

    From one boot to another at least what has passed since the second one, and a year at most, by the wall clock if it
    was set on both sides.
    """
    if since.boot and since.boot == until.boot:
        return max(0.0, until.since_boot - since.since_boot)
    by_wall = min(until.wall - since.wall, MOST)
    if not (since.boot and until.boot):
        return max(0.0, by_wall)
    if min(since.wall, until.wall) < UNSET:
        by_wall = 0.0
    return max(by_wall, until.since_boot)


def date(when: Moment, now: Moment) -> float:
    """The date of a moment, corrected if the clock has been set since: one may be told in 1970 for what is of today."""
    corrected = now.wall - elapsed(when, now)
    known = when.boot and when.boot == now.boot
    return corrected if known and abs(corrected - when.wall) > STEP else when.wall
