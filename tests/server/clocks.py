"""Clocks for a server in the test's process: an hour passes in a moment, and what really passes does not matter."""

from __future__ import annotations

from collections.abc import Callable
from math import floor
from time import monotonic

from tests.lab.inprocess import InProcess
from tests.lab.lac import Subscriber

LOOKS = 1 / 16  # real seconds between two looks of the timer wheel at its clock; whole seconds are whole slots of it


class DataClock:
    """The clock of the servers' data path: the real one, until a test sets `read`."""

    def __init__(self) -> None:
        self.read: Callable[[], float] = monotonic

    def __call__(self) -> float:
        return self.read()


class Clock:
    """Time of sessions and the data path: it passes only when the test says so. Tunnels, and waits, go on in real time.

    A server that uses it needs a `wheel_tick` of LOOKS.
    """

    def __init__(self) -> None:
        self.now = float(int(monotonic()))

    def __call__(self) -> float:
        return self.now

    def forward(self, server: InProcess, seconds: int) -> None:
        """So much later: what has come due for the sessions that are online has been done."""
        self.now += seconds
        self.settle(server, lambda: server.services.wheel._done >= floor(self.now / LOOKS))

    def heard(self, server: InProcess, *subscribers: Subscriber) -> None:
        """Something of theirs has reached the server since the clock went forward."""
        paths = [server.lns.sessions[subscriber.peer_session_id].path for subscriber in subscribers]
        self.settle(server, lambda: all(path.last_rx == self.now for path in paths))

    def settle(self, server: InProcess, condition: Callable[[], object]) -> None:
        """Until it holds and no session has anything left to do."""
        server.wait(lambda: condition() and not any(len(each.link.mailbox) for each in server.lns.sessions.values()))


class TunnelClock:
    """Time of tunnels and the data path: the real time, and what the test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return monotonic() + self.ahead
