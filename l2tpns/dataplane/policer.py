"""A token bucket with a short queue for packets that a throttled subscriber sends (manual: Throttling).

A packet for which there are tokens passes at once; others wait in order as long as there is room. Without the queue TCP
reaches nine tenths of the rate at best. In the other direction the kernel shapes: system/shaping.py, with the same
figures. Knows octets and time only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from gevent import get_hub

from l2tpns.runtime.token_bucket import burst_size, octets_per_second, queue_size

PASS, WAIT, DROP = range(3)  # verdicts on a packet

Forward = Callable[[bytes], None]


def call_later(seconds: float, call: Callable[[], None]) -> Any:
    """Call back once from the event loop; `call` must not block. Return a timer that has `close`."""
    timer = get_hub().loop.timer(seconds)
    timer.start(call)
    return timer


class Policer:
    """Limits one subscriber to `rate` kbit/s. The caller passes the time; only the queue's timer reads the clock."""

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
        self._queue: deque[tuple[bytes, Forward]] = deque()
        self._queued = 0
        self._timer: Any = None
        self._schedule = schedule
        self.change(rate)

    def change(self, rate: int) -> None:
        """Set another rate. Tokens and queued packets stay."""
        self.rate = rate
        self._octets = octets_per_second(rate)
        self._burst = burst_size(rate)
        self._limit = queue_size(rate)
        self._tokens = min(self._tokens, self._burst)

    def submit(self, packet: bytes, now: float, forward: Forward) -> int:
        """Return PASS if the packet may go on now, WAIT if `forward` gets it later, DROP if the queue is full."""
        octets = len(packet)
        if not self._queue:
            self._fill(now)
            if self._tokens >= octets:
                self._tokens -= octets
                return PASS
        if self._queued + octets > self._limit:
            return DROP
        self._queue.append((packet, forward))
        self._queued += octets
        if self._timer is None:
            self._wait()
        return WAIT

    def end(self, *, carried: bool = True) -> None:
        """Stop policing. Forward the queued packets now if the session is still carried, otherwise drop them."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        if not carried:
            self._queue.clear()
        while self._queue:
            packet, forward = self._queue.popleft()
            forward(packet)
        self._queued = 0

    def release(self, now: float) -> None:
        """Forward the queued packets for which there are tokens by now."""
        self._fill(now)
        while self._queue and self._tokens >= len(self._queue[0][0]):
            packet, forward = self._queue.popleft()
            self._tokens -= len(packet)
            self._queued -= len(packet)
            forward(packet)
        if self._queue:
            self._wait()

    def _fill(self, now: float) -> None:
        self._tokens = min(self._tokens + (now - self._at) * self._octets, self._burst)
        self._at = now

    def _wait(self) -> None:
        missing = len(self._queue[0][0]) - self._tokens
        self._timer = self._schedule(max(missing / self._octets, 0.001), self._on_timer)

    def _on_timer(self) -> None:
        self._timer.close()
        self._timer = None
        self.release(monotonic())
