"""A token bucket for what a throttled subscriber sends (manual: Throttling). The other way is system/shaping.py's.

Policed, not queued: a packet goes on at once, or is dropped because there are fewer tokens than it has octets. So
small packets get through where large ones do not, and a ping is answered while somebody sends all he can.
"""

from __future__ import annotations

BURST_OCTETS, BURST_SECONDS = 3000, 0.25  # two full packets, or what TCP needs for its windows


class Police:
    """`rate` in kbit/s."""

    __slots__ = ("_at", "_burst", "_octets", "_tokens", "rate")

    def __init__(self, rate: int, now: float) -> None:
        self._at = now
        self._tokens = 0.0
        self.change(rate)
        self._tokens = self._burst

    def change(self, rate: int) -> None:
        """Another rate, from what there is now."""
        self.rate = rate
        self._octets = rate * 125.0  # a second
        self._burst = max(BURST_OCTETS, self._octets * BURST_SECONDS)
        self._tokens = min(self._tokens, self._burst)

    def permits(self, octets: int, now: float) -> bool:
        """Whether a packet may pass now; then it has."""
        tokens = min(self._tokens + (now - self._at) * self._octets, self._burst)
        self._at = now
        if tokens < octets:
            self._tokens = tokens
            return False
        self._tokens = tokens - octets
        return True
