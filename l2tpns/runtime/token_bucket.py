"""Sizes of a token bucket and of the queue behind it, the same for both directions of a throttled session.

The policer (dataplane/policer.py) and the kernel's classes (system/shaping.py) both use them.
"""

from __future__ import annotations

# After a pause so much may be sent at once: a timer of the kernel's that fires late must not cost rate.
MIN_BURST_OCTETS, BURST_SECONDS = 1600, 0.1
# So much may wait. 5,200 octets are three full packets and some small ones: 0.65 s at 64 kbit/s, at which TCP still
# reaches the full rate; with two packets it does not. From 208 kbit/s on it is 0.2 s, for TCP over long distances.
MIN_QUEUE_OCTETS, QUEUE_SECONDS = 5200, 0.2


def octets_per_second(rate: int) -> int:
    """Convert a rate in kbit/s."""
    return rate * 125


def burst_size(rate: int) -> int:
    """Return the depth of the bucket, in octets, for a rate in kbit/s."""
    return max(MIN_BURST_OCTETS, int(octets_per_second(rate) * BURST_SECONDS))


def queue_size(rate: int) -> int:
    """Return how many octets may wait, for a rate in kbit/s. In octets, so that a small packet fits where a large one
    does not."""
    return max(MIN_QUEUE_OCTETS, int(octets_per_second(rate) * QUEUE_SECONDS))
