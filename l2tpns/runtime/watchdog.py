"""Keep the process in working order: refill the spare descriptors and notify the service manager's watchdog.

The watchdog is notified only while every part of the server runs and the event loop gets round. A process in which a
part stays dead, or which a plugin blocks for ever, is ended by systemd (WatchdogSec) and started again.
"""

from __future__ import annotations

from time import monotonic

import gevent

from l2tpns.runtime.process import ServiceManager, Spare
from l2tpns.runtime.supervisor import Supervisor

INTERVAL = 1.0  # seconds between two checks, at most: a short watchdog period makes it shorter


class Watchdog:
    """One for the daemon. `run` is a supervised part itself: when it ends, the watchdog is not notified either."""

    def __init__(self, manager: ServiceManager, spare: Spare, supervisor: Supervisor) -> None:
        self._manager = manager
        self._spare = spare
        self._supervisor = supervisor
        self._notified_at = 0.0  # monotonic

    def run(self) -> None:
        while True:
            self._spare.fill()
            period = self._manager.watchdog_period
            due = bool(period) and monotonic() - self._notified_at >= period / 2 - INTERVAL / 2
            if due and not self._supervisor.down():
                self._notified_at = monotonic()
                self._manager.notify("WATCHDOG=1")
            gevent.sleep(min(INTERVAL, period / 4) if period else INTERVAL)
