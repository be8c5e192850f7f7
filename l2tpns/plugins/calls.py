"""One call of one function of a plugin: what it returns, what it raises, what CPU time it takes.

A function may wait (sleep, network): other greenlets run meanwhile, and their time is not its time. So while such a
call is under way, each switch between greenlets is looked at (greenlet.settrace), and the clock of the thread stops for
a function that waits. Packet hooks may not wait: see packets.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, thread_time
from typing import Any

import greenlet
from gevent import GreenletExit, Timeout

from l2tpns.errors import PluginError
from l2tpns.hooks import PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP, Event
from l2tpns.plugins import loader
from l2tpns.runtime.exceptions import describe, is_kill, shown, was_thrown
from l2tpns.runtime.log import Logger

SLOW = 0.05  # seconds of CPU time in one call that are worth a warning: nobody else was served meanwhile
QUIET = 10.0  # seconds between two lines about the same hook of the same plugin
FAILED = -1  # what is wrong is in the log; the next plugin has its turn


@dataclass(slots=True, eq=False)
class Function:
    """A function of a plugin's, and what its calls have cost."""

    plugin: str
    hook: str
    path: Path
    call: Callable[..., Any]
    calls: int = 0
    failures: int = 0
    seconds: float = 0.0  # of CPU time
    slowest: float = 0.0
    said: float = 0.0  # when the log was last told of a failure
    slow_said: float = 0.0

    @property
    def name(self) -> str:
        return f"plugin_{self.hook}"


class Meter:
    """The CPU time of the functions that are under way, by greenlet."""

    __slots__ = ("_before", "_running")

    def __init__(self) -> None:
        self._running: dict[Any, list[float]] = {}  # seconds so far, when it went on
        self._before: Any = None  # somebody else's trace function

    def run(self, function: Function, *arguments: Any) -> tuple[Any, BaseException | None, float]:
        """What it returned or raised, and its CPU time. What others throw at this greenlet meanwhile passes."""
        running = self._running
        current = greenlet.getcurrent()
        outer = running.get(current)
        if outer is not None:  # a function that has another called: its own clock stands meanwhile
            outer[0] += thread_time() - outer[1]
        elif not running:
            self._before = greenlet.settrace(self._on_switch)
        mine = running[current] = [0.0, thread_time()]
        try:
            return function.call(*arguments), None, mine[0] + thread_time() - mine[1]
        except BaseException as error:
            limited = function.hook == "control" and isinstance(error, Timeout) and was_thrown(error)
            if limited:
                raise
            if is_kill(error):
                raise GreenletExit from error
            return None, error, mine[0] + thread_time() - mine[1]
        finally:
            if outer is not None:
                outer[1] = thread_time()
                running[current] = outer
            else:
                del running[current]
                if not running:
                    greenlet.settrace(self._before)

    def _on_switch(self, event: str, switch: tuple[Any, Any]) -> None:
        running = self._running
        origin, target = switch
        if origin in running:
            clock = running[origin]
            clock[0] += thread_time() - clock[1]
        if target in running:
            running[target][1] = thread_time()


class Caller:
    """Calls functions of plugins; tells the log what went wrong."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._meter = Meter()

    def hook(self, function: Function, event: Event) -> int:
        """Call one for an event: the manual's return code, or FAILED. One that fails changes nothing in the event."""
        before = event.state()
        secret = event.secret
        result = self.call(function, event, secret=secret)
        if result is None:
            return PLUGIN_RET_OK
        if type(result) is int and PLUGIN_RET_ERROR <= result <= PLUGIN_RET_STOP:
            return result
        event.restore(before)
        if not isinstance(result, Failure):
            self.nonsense(function, result)
        return FAILED

    def call(self, function: Function, *arguments: Any, secret: str = "") -> Any:
        """What it returned; a Failure if it raised."""
        result, error, seconds = self._meter.run(function, *arguments)
        self.took(function, seconds)
        if error is None:
            return result
        self.failed(function, error, secret)
        return Failure(error)

    def ask(self, function: Function, *arguments: Any) -> tuple[Any, BaseException | None]:
        """What it returned or raised; a PluginError is no failure: it is the answer to whoever asked."""
        result, error, seconds = self._meter.run(function, *arguments)
        self.took(function, seconds)
        if error is not None and not isinstance(error, PluginError):
            self.failed(function, error)
        return result, error

    def took(self, function: Function, seconds: float) -> None:
        function.calls += 1
        function.seconds += seconds
        if seconds > function.slowest:
            function.slowest = seconds
        if seconds >= SLOW:
            now = monotonic()
            if now - function.slow_said >= QUIET or not function.slow_said:
                function.slow_said = now
                self._log.warning(
                    "plugin_slow",
                    plugin=function.plugin,
                    hook=function.name,
                    milliseconds=round(seconds * 1000),
                    why="nobody else was served meanwhile",
                )

    def failed(self, function: Function, error: BaseException, secret: str = "") -> None:
        """Its traceback, if the last one was not just now."""
        function.failures += 1
        if self._may_say(function):
            why = describe(error)
            lines = loader.trace(error, function.path)
            if secret:
                why, lines = why.replace(secret, "***"), lines.replace(secret, "***")
            self._log.error(
                "plugin_failed",
                plugin=function.plugin,
                hook=function.name,
                why=why,
                where=loader.where(error, function.path),
                failures=function.failures,
                traceback=lines,
            )

    def nonsense(self, function: Function, result: Any) -> None:
        function.failures += 1
        if self._may_say(function):
            self._log.error(
                "plugin_failed",
                plugin=function.plugin,
                hook=function.name,
                why=f"it returned {shown(result)}, which is none of PLUGIN_RET_ERROR, _OK and _STOP",
                where=str(function.path),
                failures=function.failures,
            )

    @staticmethod
    def _may_say(function: Function) -> bool:
        now = monotonic()
        if function.said and now - function.said < QUIET:
            return False
        function.said = now
        return True


@dataclass(frozen=True, slots=True)
class Failure:
    """Instead of a result."""

    error: BaseException
