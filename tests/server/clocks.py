"""Clocks for a server in the test's process: an hour passes in a moment, and what really passes does not matter."""

from __future__ import annotations

from collections.abc import Callable
from math import floor
from time import monotonic

import pytest

from l2tpns import lns
from l2tpns.dataplane import endpoint, session_path, udp, userspace
from l2tpns.l2tp import tunnel
from l2tpns.subscriber import accounting, authorization, link, services, session, state
from tests.lab.inprocess import InProcess
from tests.lab.lac import Subscriber

LOOKS = 1 / 16  # real seconds between two looks of the timer wheel at its clock; whole seconds are whole slots of it


DATA_PATH = (endpoint, session_path, udp, userspace)


class Clock:
    """Sessions and the data path: no time passes but what the test says. For tunnels, and who waits, it goes on."""

    def __init__(self) -> None:
        self.now = float(int(monotonic()))

    def __call__(self) -> float:
        return self.now

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before the server is made."""
        for module in (lns, services):
            monkeypatch.setattr(module, "WHEEL_TICK", LOOKS)
        for module in (lns, services, session, state, accounting, authorization, link, *DATA_PATH):
            monkeypatch.setattr(module, "monotonic", self)

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
    """Tunnels and the data path: real time, and what the test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return monotonic() + self.ahead

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before the server is made, with a `max_poll` of 0.05 seconds."""
        for module in (tunnel, *DATA_PATH):
            monkeypatch.setattr(module, "monotonic", self)
