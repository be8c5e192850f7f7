"""Calls functions of plugins: their results, exceptions and CPU time.

A function may block (sleep, network) while other greenlets run, whose time must not count. So each greenlet switch
during a call is traced (greenlet.settrace), and the CPU time of the thread is not counted while the function blocks.
Packet hooks must not block: see packet_hooks.py.
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

SLOW_CALL = 0.05  # seconds of CPU time in one call that cause a warning: the call blocks the whole server
WARNING_INTERVAL = 10.0  # seconds between two log lines about the same function
FAILED = -1  # the function failed, which is logged; the next plugin is called


@dataclass(slots=True, eq=False)
class Function:
    """A function of a plugin, and statistics of its calls."""

    plugin: str
    hook: str
    path: Path
    call: Callable[..., Any]
    calls: int = 0
    failures: int = 0
    seconds: float = 0.0  # of CPU time
    slowest: float = 0.0
    failure_logged_at: float = 0.0  # monotonic
    slow_logged_at: float = 0.0

    @property
    def name(self) -> str:
        """Return the name in the log."""
        return f"plugin_{self.hook}"


class Meter:
    """Measures the CPU time of running functions, by greenlet."""

    __slots__ = ("_before", "_running")

    def __init__(self) -> None:
        self._running: dict[Any, list[float]] = {}  # seconds so far, CPU time of the thread when it continued
        self._before: Any = None  # the trace function of other code

    def run(self, function: Function, *arguments: Any) -> tuple[Any, BaseException | None, float]:
        """Return the result or exception of a call, and its CPU time. May yield.

        Raises exceptions that other code throws into this greenlet: kills, and time-outs of nsctl.
        """
        running = self._running
        current = greenlet.getcurrent()
        outer = running.get(current)
        if outer is not None:  # a nested call: the outer time stops meanwhile
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
    """Calls functions of plugins, and logs their failures."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._meter = Meter()

    def hook(self, function: Function, event: Event) -> int:
        """Call a hook. Return its code (manual: Plugins) or FAILED, which restores the event. May yield."""
        before = event.state()
        secret = event.secret
        result = self.call(function, event, secret=secret)
        if result is None:
            return PLUGIN_RET_OK
        if type(result) is int and PLUGIN_RET_ERROR <= result <= PLUGIN_RET_STOP:
            return result
        event.restore(before)
        if not isinstance(result, Failure):
            self.record_invalid_result(function, result)
        return FAILED

    def call(self, function: Function, *arguments: Any, secret: str = "") -> Any:
        """Return the result of a call, a Failure if it raised an exception. May yield."""
        result, error, seconds = self._meter.run(function, *arguments)
        self.record_time(function, seconds)
        if error is None:
            return result
        self.record_failure(function, error, secret)
        return Failure(error)

    def ask(self, function: Function, *arguments: Any) -> tuple[Any, BaseException | None]:
        """Return the result and the exception of a call. A PluginError is a reply, not a failure. May yield."""
        result, error, seconds = self._meter.run(function, *arguments)
        self.record_time(function, seconds)
        if error is not None and not isinstance(error, PluginError):
            self.record_failure(function, error)
        return result, error

    def record_time(self, function: Function, seconds: float) -> None:
        """Count the CPU time of a call. Log a slow one."""
        function.calls += 1
        function.seconds += seconds
        if seconds > function.slowest:
            function.slowest = seconds
        if seconds >= SLOW_CALL:
            now = monotonic()
            if now - function.slow_logged_at >= WARNING_INTERVAL or not function.slow_logged_at:
                function.slow_logged_at = now
                self._log.warning(
                    "plugin_slow",
                    plugin=function.plugin,
                    hook=function.name,
                    milliseconds=round(seconds * 1000),
                    why="it blocked the whole server",
                )

    def record_failure(self, function: Function, error: BaseException, secret: str = "") -> None:
        """Count a failure. Log its traceback, at most once in WARNING_INTERVAL."""
        function.failures += 1
        if self._may_log(function):
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

    def record_invalid_result(self, function: Function, result: Any) -> None:
        """Count a call that returned an invalid value. Log it, at most once in WARNING_INTERVAL."""
        function.failures += 1
        if self._may_log(function):
            self._log.error(
                "plugin_failed",
                plugin=function.plugin,
                hook=function.name,
                why=f"it returned {shown(result)} instead of PLUGIN_RET_ERROR, _OK or _STOP",
                where=str(function.path),
                failures=function.failures,
            )

    @staticmethod
    def _may_log(function: Function) -> bool:
        now = monotonic()
        if function.failure_logged_at and now - function.failure_logged_at < WARNING_INTERVAL:
            return False
        function.failure_logged_at = now
        return True


@dataclass(frozen=True, slots=True)
class Failure:
    """Stands for the result of a call that raised an exception."""

    error: BaseException
