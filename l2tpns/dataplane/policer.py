"""A token bucket with a short queue for what a throttled subscriber sends (manual: Throttling).

A packet for which there are tokens goes on at once; others wait, in order, as long as there is room. Without the queue
TCP makes nine tenths of the rate at best. The other way is the kernel's: system/shaping.py, with the same figures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from gevent import get_hub

from l2tpns.runtime.token_bucket import burst_size, octets_per_second, queue_size

if TYPE_CHECKING:
    from l2tpns.dataplane.session_path import Path

PASS, WAIT, DROP = range(3)  # what becomes of a packet

Forward = Callable[["Path", bytes], None]


def call_later(seconds: float, call: Callable[[], None]) -> Any:
    """From the event loop, so `call` must not wait. The answer has `close`."""
    timer = get_hub().loop.timer(seconds)
    timer.start(call)
    return timer


class Police:
    """`rate` in kbit/s. Time is handed in, but for packets that have waited."""

    __slots__ = (
        "_at",
        "_burst",
        "_limit",
        "_octets",
        "_queue",
        "_queued",
        "_schedule",
        "_timer",
        "_tokens",
        "rate",
    )

    def __init__(
        self, rate: int, now: float, schedule: Callable[[float, Callable[[], None]], Any] = call_later
    ) -> None:
        self._at = now
        self._tokens = float("inf")
        self._queue: deque[tuple[Path, bytes, Forward]] = deque()
        self._queued = 0
        self._timer: Any = None
        self._schedule = schedule
        self.change(rate)

    def change(self, rate: int) -> None:
        """Another rate, from what there is now."""
        self.rate = rate
        self._octets = octets_per_second(rate)
        self._burst = burst_size(rate)
        self._limit = queue_size(rate)
        self._tokens = min(self._tokens, self._burst)

    def take(self, path: Path, packet: bytes, now: float, forward: Forward) -> int:
        """PASS: it may go on now. WAIT: `forward` is called with it later. DROP: there is no room for it."""
        octets = len(packet)
        if not self._queue:
            self._fill(now)
            if self._tokens >= octets:
                self._tokens -= octets
                return PASS
        if self._queued + octets > self._limit:
            return DROP
        self._queue.append((path, packet, forward))
        self._queued += octets
        if self._timer is None:
            self._wait()
        return WAIT

    def end(self, *, carried: bool = True) -> None:
        """No longer policed: what waits goes on now, if the session's packets are carried at all."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        if not carried:
            self._queue.clear()
        while self._queue:
            path, packet, forward = self._queue.popleft()
            forward(path, packet)
        self._queued = 0

    def release(self, now: float) -> None:
        """Send on what there are tokens for by now."""
        self._fill(now)
        while self._queue and self._tokens >= len(self._queue[0][1]):
            path, packet, forward = self._queue.popleft()
            self._tokens -= len(packet)
            self._queued -= len(packet)
            forward(path, packet)
        if self._queue:
            self._wait()

    def _fill(self, now: float) -> None:
        self._tokens = min(self._tokens + (now - self._at) * self._octets, self._burst)
        self._at = now

    def _wait(self) -> None:
        missing = len(self._queue[0][1]) - self._tokens
        self._timer = self._schedule(max(missing / self._octets, 0.001), self._on_timer)

    def _on_timer(self) -> None:
        self._timer.close()
        self._timer = None
        self.release(monotonic())
