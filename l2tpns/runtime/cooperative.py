"""Iterate over many things in slices, so that other greenlets run in between.

60,000 sessions are a tenth of a second of work, during which no packet would be forwarded. So a millisecond of work
alternates with a millisecond for other greenlets. The iterable must be a copy, for the original may change meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar

import gevent

T = TypeVar("T")

SLICE = PAUSE = 0.001  # seconds
CLOCK = 32  # things between two readings of the clock; fewer if a thing is much work


def in_slices(things: Iterable[T], clock: int = CLOCK) -> Iterator[T]:
    """Yield each of `things`. The greenlet yields for a PAUSE after each SLICE of work."""
    end = monotonic() + SLICE
    for number, thing in enumerate(things):
        if not number % clock and monotonic() > end:
            gevent.sleep(PAUSE)
            end = monotonic() + SLICE
        yield thing
