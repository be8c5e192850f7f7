"""How much time has passed, even from one process to the next, and what the date is.

Within a process durations are differences of time.monotonic(). What outlives a process (saved state, the accounting
spool) is written with a Moment. The wall clock may be set by an hour, or from 1970 to now, at any time, so durations
within one boot come from CLOCK_BOOTTIME, which cannot be set. The wall clock gives dates only: for people, for RADIUS
servers, in names of files. docs/decisions/0017-time-that-nobody-can-set.md.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TIME_NAMESPACE = "/proc/self/ns/time"  # each namespace has its own CLOCK_BOOTTIME
# From one boot to another only the wall clock is left. A machine without a battery begins each boot in 1970, or at the
# date of its image: before the clock is set it is wrong.
UNSET = 1_577_836_800.0  # 2020
MAX_OUTAGE = 366 * 86400.0  # seconds that may have passed from one boot to another
MIN_STEP = 60.0  # seconds: a smaller difference comes from slewing the clock, not from setting it


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time as it is written to disk."""

    wall: float = 0.0  # seconds since 1970, by the wall clock of that time
    since_boot: float = 0.0  # CLOCK_BOOTTIME
    boot: str = ""  # id of the boot; empty: unknown, as in files of release 0.1.0


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
    """Return the present."""
    return Moment(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), BOOT)


def elapsed(since: Moment, until: Moment) -> float:
    """Return the seconds from one moment to another: never negative, and exact within one boot.

    From one boot to another: the difference of the wall clock if it was set at both moments, a year at most, and at
    least the time since the second boot.
    """
    if since.boot and since.boot == until.boot:
        return max(0.0, until.since_boot - since.since_boot)
    by_wall = min(until.wall - since.wall, MAX_OUTAGE)
    if not (since.boot and until.boot):
        return max(0.0, by_wall)
    if min(since.wall, until.wall) < UNSET:
        by_wall = 0.0
    return max(by_wall, until.since_boot)


def date(when: Moment, now: Moment) -> float:
    """Return the date of a moment, corrected if the wall clock has been set since then, such as from 1970 to today."""
    corrected = now.wall - elapsed(when, now)
    known = when.boot and when.boot == now.boot
    return corrected if known and abs(corrected - when.wall) > MIN_STEP else when.wall
