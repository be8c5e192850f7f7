"""The loops that the server consists of: each is run, watched, and begun again when it ends by itself.

    part = supervisor.spawn("timer wheel", self._turn_wheel, essential=True)
    ...
    part.stop()

A loop is meant to run until `stop`. One that returns, or raises anything at all, has failed: the log gets its
traceback, and it is begun again, at once the first time and then after ever longer pauses. An essential one that fails
again and again is given up: `on_lost` is called, and the process leaves for another to take its place. What has failed
of late is in `unwell`, what does not run at this moment in `down`: /health, the metrics and the watchdog ask there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent

from l2tpns.runtime.exceptions import describe, format_traceback
from l2tpns.runtime.log import Logger

SETTLED = 60.0  # seconds after which a loop that was begun again counts as well
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds before the second attempt, and at most
MOST_FAILURES = 10  # in a row, of an essential loop: about half a minute of attempts


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
        self.failures = 0  # without SETTLED seconds of work between them
        self.failed_at = 0.0  # monotonic: the first of these
        self.why = ""  # it ended the last time
        self.running = False
        self._supervisor = supervisor
        self._loop = loop
        self._arguments: tuple[Any, ...] = ()
        self._began = 0.0
        self._error: BaseException | None = None
        self._greenlet: gevent.Greenlet | None = None
        self._stopped = False

    def stop(self, *, block: bool = True, then: Callable[[], None] | None = None) -> None:
        """End it for good. With `block` it has ended when this returns; `then` is called, by the hub, when it has."""
        self._leave()
        assert self._greenlet is not None
        if then is not None:
            self._greenlet.rawlink(lambda _: then())
        self._greenlet.kill(block=block)

    def finish(self, timeout: float | None = None) -> None:
        """Let the loop return by itself, as its owner has asked it to; end it after so many seconds."""
        self._leave()
        assert self._greenlet is not None
        self._greenlet.join(timeout)
        self._greenlet.kill()

    def unwell(self, now: float) -> bool:
        """Whether it has failed, and has not worked for a while since."""
        return self.failures > 0 and not (self.running and now - self._began >= SETTLED)

    def begin(self, delay: float = 0.0) -> None:
        """Run the loop; called by the supervisor."""
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
        except BaseException as error:  # GreenletExit, too, if nobody has asked for it: nothing may end a loop unseen
            self._error = error

    def _ended(self, _: object) -> None:
        """Called by the hub, so it must not wait."""
        self.running = False
        error, self._error = self._error, None
        if self._stopped:
            return
        now = monotonic()
        if self._began and now - self._began >= SETTLED:
            self.failures = 0
        if not self.failures:
            self.failed_at = now
        self.failures += 1
        self.why = "it has returned" if error is None else describe(error)
        self._supervisor.failed(self, error)


class Supervisor:
    """One for a server. `on_lost` is called, by the hub, with an essential part that cannot be kept running."""

    def __init__(self, log: Logger, on_lost: Callable[[Part], None] | None = None) -> None:
        self.parts: dict[Part, None] = {}
        self.on_lost = on_lost
        self._log = log

    def spawn(self, name: str, loop: Callable[..., None], *arguments: Any, essential: bool = False) -> Part:
        """Run loop(*arguments) until the part is stopped. Several parts may have one name, such as readers of
        sockets: they are told of together."""
        part = Part(self, name, loop, essential)
        part._arguments = arguments
        self.parts[part] = None
        part.begin()
        return part

    def failed(self, part: Part, error: BaseException | None) -> None:
        """A part has ended by itself: say so, and begin it again."""
        pause = 0.0 if part.failures == 1 else min(FIRST_PAUSE * 2.0 ** (part.failures - 2), LONGEST_PAUSE)
        facts = {} if error is None else {"traceback": format_traceback(error)}
        self._log.error("part_failed", part=part.name, why=part.why, failures=part.failures, again_in=pause, **facts)
        part.begin(pause)
        if part.essential and part.failures == MOST_FAILURES and self.on_lost is not None:
            self._log.critical("part_given_up", part=part.name, why=part.why, failures=part.failures)
            self.on_lost(part)

    def up(self) -> dict[str, bool]:
        """Whether each runs at this moment, by name."""
        found: dict[str, bool] = {}
        for part in self.parts:
            found[part.name] = found.get(part.name, True) and part.running
        return dict(sorted(found.items()))

    def down(self) -> list[str]:
        """The names of those that do not run at this moment."""
        return [name for name, running in self.up().items() if not running]

    def unwell(self) -> Iterator[Part]:
        """Those that have failed of late, one of each name: the one that has failed most often."""
        now = monotonic()
        worst: dict[str, Part] = {}
        for part in self.parts:
            if part.unwell(now) and part.failures > getattr(worst.get(part.name), "failures", 0):
                worst[part.name] = part
        yield from worst.values()
