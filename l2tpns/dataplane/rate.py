"""A rate that the data path enforces by dropping: no queue, no timer (the generic cell rate algorithm, ITU-T I.371).

One number for each session and direction says until when everything that was carried so far is paid for. The kernel
programs and forward.py calculate alike, each with a number of its own.
"""

from __future__ import annotations

from typing import NamedTuple

MIN_BURST_OCTETS = 5200  # three full packets and some small ones: with less, TCP does not reach a low rate
KERNEL_COST_UNIT = 1024e9  # costs in the kernel are nanoseconds * 1024 an octet
_LARGEST_COST = 0xFFFFFFFF


class Rate(NamedTuple):
    """A rate in kbit/s, with what follows from it."""

    kbits: int
    cost: float  # seconds that one octet takes
    burst: float  # seconds of unused time that count

    @classmethod
    def of(cls, kbits: int, burst_ms: int) -> Rate:
        """Return the rate of so many kbit/s. After a pause, as much as it allows in `burst_ms` may come at once."""
        cost = 1 / (125 * kbits)
        return cls(kbits, cost, max(burst_ms / 1000, MIN_BURST_OCTETS * cost))

    @property
    def kernel_cost(self) -> int:
        """Return the cost in the unit of the kernel programs."""
        return min(_LARGEST_COST, round(self.cost * KERNEL_COST_UNIT))

    @property
    def kernel_burst(self) -> int:
        """Return the burst in microseconds."""
        return min(_LARGEST_COST, round(self.burst * 1e6))

    def pay(self, ready: float, octets: int, now: float) -> float | None:
        """Return until when everything is paid for after a packet, None if the rate does not allow it now.

        `ready` is what the last call that allowed a packet has returned, and 0 before the first.
        """
        paid = max(ready, now - self.burst) + octets * self.cost
        return paid if paid <= now else None
