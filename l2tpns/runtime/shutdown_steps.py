"""The steps of a shutdown: each runs although another has failed, and the log names the one that failed."""

from __future__ import annotations

from collections.abc import Callable

from l2tpns.runtime.exceptions import describe, format_traceback
from l2tpns.runtime.log import Logger


class ShutdownSteps:
    """Runs the steps one after the other."""

    def __init__(self, log: Logger) -> None:
        self._log = log

    def take(self, name: str, step: Callable[..., object], *arguments: object) -> None:
        """Run one step and log whatever it raises. Does not raise."""
        try:
            step(*arguments)
        except BaseException as error:
            self._log.error("stop_step_failed", step=name, why=describe(error), traceback=format_traceback(error))
