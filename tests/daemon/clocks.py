"""Time for a server in the test's process that passes when the test says so: an hour in a moment, no moment by itself."""

from __future__ import annotations

from collections.abc import Callable
from math import floor
from time import monotonic

import pytest

from l2tpns import link, lns, session
from l2tpns.dataplane import path, plane, udp, user
from tests.lab.inprocess import InProcess
from tests.lab.lac import Subscriber

LOOKS = 1 / 16  # real seconds between two looks of the timer wheel at its clock; whole seconds are whole slots of it


class Clock:
    """What sessions and the data path take for `monotonic`; for tunnels, and for who waits, real time goes on."""

    def __init__(self) -> None:
        self.now = float(int(monotonic()))

    def __call__(self) -> float:
        return self.now

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before the server is made."""
        monkeypatch.setattr(lns, "WHEEL_TICK", LOOKS)
        for module in (lns, session, link, path, plane, udp, user):
            monkeypatch.setattr(module, "monotonic", self)

    def forward(self, server: InProcess, seconds: int) -> None:
        """So much later: what has come due for the sessions that are online has been done."""
        self.now += seconds
        self.settle(server, lambda: server.lns.wheel._done >= floor(self.now / LOOKS))

    def heard(self, server: InProcess, *subscribers: Subscriber) -> None:
        """Something of theirs has reached the server since the clock went forward."""
        paths = [server.lns.sessions[subscriber.peer_session_id].path for subscriber in subscribers]
        self.settle(server, lambda: all(path.last_rx == self.now for path in paths))

    def settle(self, server: InProcess, condition: Callable[[], object]) -> None:
        """Until it holds and no session has anything left to do."""
        server.wait(lambda: condition() and not any(len(each.mailbox) for each in server.lns.sessions.values()))
