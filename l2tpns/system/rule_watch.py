"""Check at intervals that rules of ours are still in the kernel: reloading a firewall removes them too.

What is checked, and how it is put back, is the caller's: shaping (table mangle), walled gardens (nat and filter).
"""

from __future__ import annotations

from collections.abc import Callable

import gevent

from l2tpns.runtime.supervisor import Part, Supervisor

RULE_CHECK_INTERVAL = 60.0  # seconds


class RuleWatch:
    """Calls `repair` at intervals, as a supervised part called `name`, between start() and stop()."""

    def __init__(
        self,
        supervisor: Supervisor,
        name: str,
        repair: Callable[[], object],
        interval: float = RULE_CHECK_INTERVAL,
    ) -> None:
        self._supervisor = supervisor
        self._name = name
        self._repair = repair
        self._interval = interval
        self._part: Part | None = None

    def start(self) -> None:
        self._part = self._supervisor.spawn(self._name, self._run)

    def stop(self, *, block: bool = True) -> None:
        """End the checks, if they were started. With `block` none runs when this returns."""
        if self._part is not None:
            self._part.stop(block=block)
            self._part = None

    def _run(self) -> None:
        while True:
            gevent.sleep(self._interval)
            self._repair()
