"""The processor time that messages of unknown senders may cost (docs/decisions/0013).

The budget grows by SHARE of the time that passes, up to `burst` seconds. When little is left,
addresses of known LACs come before others, and addresses that have used little of this second before those that have
used much.
"""

from __future__ import annotations

from collections import OrderedDict

SHARE = 0.25  # of the time, for all unknown senders together
# The same while the socket has more to read than is read at once. SHARE may be more than a busy machine has to spare.
BUSY_SHARE = 0.05
# The part of `burst` that must be left to handle a message
MIN_LEFT_BUSY = 0.75  # of any address, while there is more to read
MIN_LEFT_HEAVY = 0.5  # of an address that has used more than FAIR_SHARE
MIN_LEFT_UNKNOWN = 0.25  # of any other address that is not a known LAC's
FAIR_SHARE = 0.125  # of SHARE, for one address in one second
MAX_ADDRESSES = 1024  # whose use is counted, and that are remembered as LACs


class Budget:
    """Seconds of work that are left. Times are monotonic. Does not yield."""

    def __init__(self, burst: float, now: float) -> None:
        self.left = self._burst = burst
        self._filled_at = now
        self._second = int(now)
        self._used: dict[str, float] = {}  # seconds of work by address, in this second
        self._known: OrderedDict[str, None] = OrderedDict()

    def add_known(self, lac: str) -> None:
        """Remember that a tunnel with this LAC was established."""
        self._known[lac] = None
        self._known.move_to_end(lac)
        if len(self._known) > MAX_ADDRESSES:
            self._known.popitem(last=False)

    def allows(self, lac: str, now: float, busy: bool = False) -> bool:
        """Return True if a message from this address may be handled. `busy`: there is more to read behind it."""
        share = BUSY_SHARE if busy else SHARE
        self.left = min(self._burst, self.left + share * max(0.0, now - self._filled_at))
        self._filled_at = now
        if int(now) != self._second:
            self._second = int(now)
            self._used.clear()
        min_left = 0.0 if lac in self._known else MIN_LEFT_BUSY if busy else MIN_LEFT_UNKNOWN
        if self._used.get(lac, 0.0) > FAIR_SHARE * SHARE:
            min_left = max(min_left, MIN_LEFT_HEAVY)
        return self.left > min_left * self._burst

    def charge(self, lac: str, seconds: float) -> None:
        """Subtract what a message or a half-open tunnel of this address has used."""
        self.left -= seconds
        if lac in self._used or len(self._used) < MAX_ADDRESSES:
            self._used[lac] = self._used.get(lac, 0.0) + seconds
