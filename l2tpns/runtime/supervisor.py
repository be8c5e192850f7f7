"""The loops that the server consists of: each is run, watched, and restarted when it ends by itself.

    part = supervisor.spawn("timer wheel", self._turn_wheel, essential=True)
    ...
    part.stop()

A loop is meant to run until `stop`. One that returns or raises has failed: its traceback is logged, and it is
restarted, at once the first time, then after ever longer delays. An essential loop that fails again and again is
given up: `on_lost` is called, and the process exits, so that another can take its place. `unwell` yields the parts
that have failed lately, `down` names those that do not run now: /health, the metrics and the watchdog use them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

import gevent

from l2tpns.runtime.exceptions import describe, format_traceback
from l2tpns.runtime.log import Logger

MAX_FAILURES = 10  # in a row, of an essential loop: about half a minute of attempts


@dataclass(frozen=True, slots=True)
class RestartTiming:
    """When a loop that failed is restarted, in seconds."""

    settled: float = 60.0  # after which a restarted loop counts as well
    first_delay: float = 0.1  # before the second restart; the first is immediate
    max_delay: float = 10.0

    def delay(self, failures: int) -> float:
        """Return the seconds before the restart that follows so many failures in a row."""
        return 0.0 if failures == 1 else min(self.first_delay * 2.0 ** (failures - 2), self.max_delay)


DEFAULT_TIMING = RestartTiming()


class Part:
    """One loop and its greenlet. Made by Supervisor.spawn."""

    __slots__ = (
        "_arguments",
        "_began",
        "_error",
        "_greenlet",
        "_loop",
        "_stopped",
        "_supervisor",
        "essential",
        "failed_at",
        "failures",
        "name",
        "running",
        "why",
    )

    def __init__(self, supervisor: Supervisor, name: str, loop: Callable[..., None], essential: bool) -> None:
        self.name = name
        self.essential = essential
        self.failures = 0  # without `settled` seconds of work between them
        self.failed_at = 0.0  # monotonic: time of the first of these
        self.why = ""  # reason of the last failure
        self.running = False
        self._supervisor = supervisor
        self._loop = loop
        self._arguments: tuple[Any, ...] = ()
        self._began = 0.0
        self._error: BaseException | None = None
        self._greenlet: gevent.Greenlet | None = None
        self._stopped = False

    def stop(self, *, block: bool = True, then: Callable[[], None] | None = None) -> None:
        """End the loop for good. With `block` it has ended on return. The hub calls `then` when it has ended."""
        self._leave()
        assert self._greenlet is not None
        if then is not None:
            self._greenlet.rawlink(lambda _: then())
        self._greenlet.kill(block=block)

    def finish(self, timeout: float | None = None) -> None:
        """Wait for the loop to return, as its owner has asked it to; kill it after so many seconds. May yield."""
        self._leave()
        assert self._greenlet is not None
        self._greenlet.join(timeout)
        self._greenlet.kill()

    def unwell(self, now: float) -> bool:
        """Return True if the loop has failed and has not yet run for `settled` seconds since."""
        return self.failures > 0 and not (self.running and now - self._began >= self._supervisor.timing.settled)

    def begin(self, delay: float = 0.0) -> None:
        """Run the loop. Called by the supervisor."""
        if not delay:
            self.running = True
        self._greenlet = gevent.spawn_later(delay, self._run) if delay else gevent.spawn(self._run)
        self._greenlet.rawlink(self._ended)

    def _leave(self) -> None:
        self._stopped = True
        self._supervisor.parts.pop(self, None)

    def _run(self) -> None:
        self.running, self._began = True, monotonic()
        try:
            self._loop(*self._arguments)
        except BaseException as error:  # even a GreenletExit that is not ours: no loop may end unnoticed
            self._error = error

    def _ended(self, _: object) -> None:
        """Record the end of the loop. Called by the hub; must not block or raise."""
        self.running = False
        error, self._error = self._error, None
        if self._stopped:
            return
        now = monotonic()
        if self._began and now - self._began >= self._supervisor.timing.settled:
            self.failures = 0
        if not self.failures:
            self.failed_at = now
        self.failures += 1
        self.why = "it has returned" if error is None else describe(error)
        self._supervisor.failed(self, error)


class Supervisor:
    """One for a server. The hub calls `on_lost` with an essential part that cannot be kept running."""

    def __init__(
        self, log: Logger, on_lost: Callable[[Part], None] | None = None, timing: RestartTiming = DEFAULT_TIMING
    ) -> None:
        self.timing = timing
        self.parts: dict[Part, None] = {}
        self.on_lost = on_lost
        self._log = log

    def spawn(self, name: str, loop: Callable[..., None], *arguments: Any, essential: bool = False) -> Part:
        """Run loop(*arguments) until the part is stopped. Does not yield.

        Parts may share a name, such as readers of sockets; they are then reported as one.
        """
        part = Part(self, name, loop, essential)
        part._arguments = arguments
        self.parts[part] = None
        part.begin()
        return part

    def failed(self, part: Part, error: BaseException | None) -> None:
        """Log that a part has ended by itself, and restart it."""
        delay = self.timing.delay(part.failures)
        facts = {} if error is None else {"traceback": format_traceback(error)}
        self._log.error("part_failed", part=part.name, why=part.why, failures=part.failures, again_in=delay, **facts)
        part.begin(delay)
        if part.essential and part.failures == MAX_FAILURES and self.on_lost is not None:
            self._log.critical("part_given_up", part=part.name, why=part.why, failures=part.failures)
            self.on_lost(part)

    def up(self) -> dict[str, bool]:
        """Return by name whether each part runs now."""
        found: dict[str, bool] = {}
        for part in self.parts:
            found[part.name] = found.get(part.name, True) and part.running
        return dict(sorted(found.items()))

    def down(self) -> list[str]:
        """Return the names of the parts that do not run now."""
        return [name for name, running in self.up().items() if not running]

    def unwell(self) -> Iterator[Part]:
        """Yield the parts that have failed lately; of each name the one that has failed most often."""
        now = monotonic()
        worst: dict[str, Part] = {}
        for part in self.parts:
            if part.unwell(now) and part.failures > getattr(worst.get(part.name), "failures", 0):
                worst[part.name] = part
        yield from worst.values()
