"""What keeps the process fit to be told: its spare descriptors, the service manager's watchdog, the steps of its end.

The watchdog is told that we live only while every part of the server runs and the event loop gets round: a process in
which a part stays dead, or which a plugin holds up for ever, is ended by systemd (WatchdogSec) and started again.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import gevent

from l2tpns.runtime.faults import describe, words
from l2tpns.runtime.log import Logger
from l2tpns.runtime.process import ServiceManager, Spare
from l2tpns.runtime.supervisor import Supervisor

LOOK = 1.0  # seconds between two looks, and less where the watchdog is impatient


class Keeper:
    """One for the daemon; `run` is a part of its own, which the watchdog notices, too, when it ends."""

    def __init__(self, manager: ServiceManager, spare: Spare, supervisor: Supervisor) -> None:
        self._manager = manager
        self._spare = spare
        self._supervisor = supervisor
        self._said = 0.0

    def run(self) -> None:
        while True:
            self._spare.fill()
            period = self._manager.watchdog_period
            if period and monotonic() - self._said >= period / 2 - LOOK / 2 and not self._supervisor.down():
                self._said = monotonic()
                self._manager.say("WATCHDOG=1")
            gevent.sleep(min(LOOK, period / 4) if period else LOOK)


class Steps:
    """The steps of an end: each survives the failure of the others, and the log names the one that failed."""

    def __init__(self, log: Logger) -> None:
        self._log = log

    def take(self, name: str, step: Callable[..., object], *arguments: object) -> None:
        """One step, whatever it raises."""
        try:
            step(*arguments)
        except BaseException as error:
            self._log.error("stop_step_failed", step=name, why=describe(error), traceback=words(error))
