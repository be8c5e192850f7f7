"""The log: structlog, one JSON object a line: `time`, `level`, `event`, then facts.

The same key always means the same thing: `tunnel`, `session` (our ids), `user`, `peer`, `cause`. Levels are those of
the `debug` variable: 0 critical, 1 error, 2 warning, 3 info, 4 call, 5 data. How
a line is written: log_render.py. Where lines go: log_sinks.py.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from l2tpns.runtime.log_render import render_fact, render_line
from l2tpns.runtime.log_sinks import LogSink, open_audit, open_sink
from l2tpns.runtime.text import escape_unprintable

CRITICAL, ERROR, WARNING, INFO, CALL, DATA = range(6)
LEVELS = ("critical", "error", "warning", "info", "call", "data")
AUDIT = "audit"  # always written, like critical, although nothing is wrong
SECRET = "secret audit"  # the same, and no console shows it

MAX_LIMITED_PER_SECOND = 10  # lines of one event that peers can cause at will


class LogOutput:
    """What every Logger of a Log writes to: the threshold, the sink, the last lines. Made and held by Log."""

    __slots__ = ("_limited", "audit", "dropped", "hidden", "level", "listeners", "recent", "sink", "threshold")

    def __init__(self, sink: LogSink, level: int, keep: int) -> None:
        self.sink = sink
        self.audit: LogSink | None = None  # additional sink of audit lines
        self.threshold = level  # of the sink
        self.level = level  # what is rendered at all: the threshold, or more while there are listeners
        self.listeners: list[Listener] = []
        self.recent: deque[bytes] = deque(maxlen=keep)
        self.hidden: tuple[str, ...] = ()
        self.dropped = 0  # lines lost since the last one that got through
        self._limited: dict[str, tuple[int, int, int]] = {}  # event -> (second, lines in it, lines kept back)

    def allow(self, event: str) -> int | None:
        """Return how many lines of this event were kept back before this one; None: keep this one back too."""
        now = int(time.monotonic())
        second, count, kept_back = self._limited.get(event, (now, 0, 0))
        if second != now:
            second, count = now, 0
        if count >= MAX_LIMITED_PER_SECOND:
            self._limited[event] = second, count, kept_back + 1
            return None
        self._limited[event] = second, count + 1, 0
        return kept_back

    def write(self, line: bytes, level: int, kind: str = "") -> None:
        if kind in (AUDIT, SECRET) and self.audit is not None:
            self._audit(line, self.audit)
            if kind == SECRET:
                return
        if kind != SECRET:
            for listener in self.listeners:
                if level in listener.levels:
                    listener.take(line, level)
            if level > self.threshold:
                return
            self.recent.append(line)
        if self.dropped:
            gap = render_line("warning", "log_lines_dropped", {"count": self.dropped})
            if self.sink.write(gap, WARNING):
                self.dropped = 0
        if self.dropped or not self.sink.write(line, level):
            self.dropped += 1
            self.sink.dropped += 1

    def _audit(self, line: bytes, sink: LogSink) -> None:
        if not sink.write(line, CRITICAL):
            sink.dropped += 1
            if self.allow("audit_lines_lost") is not None:
                self.write(render_line("error", "audit_lines_lost", {"count": sink.dropped}), ERROR)

    def adjust(self) -> None:
        """Follow a change of the threshold or of the listeners."""
        self.level = max([self.threshold, *(max(listener.levels, default=0) for listener in self.listeners)])


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A reader of the lines of some levels, as they are written (`debug` at the console).

    `take` is called by the greenlet that logs; must not block, log or raise.
    """

    levels: frozenset[int]
    take: Callable[[bytes, int], None]


class Logger(structlog.BoundLoggerBase):
    """A logger with facts bound to it. A call above the threshold costs one comparison."""

    _logger: LogOutput

    def critical(self, event: str, **facts: object) -> None:
        """Log that the server cannot go on."""
        self._write("critical", event, facts)

    def error(self, event: str, **facts: object) -> None:
        """Log what an operator must act on now."""
        if self._logger.level >= ERROR:
            self._write("error", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        """Log what an operator should look at today."""
        if self._logger.level >= WARNING:
            self._write("warning", event, facts)

    def warning_limited(self, event: str, **facts: object) -> None:
        """Log a warning that peers can cause at will: a few a second. The next line says how many were `kept_back`."""
        if self._logger.level >= WARNING:
            kept_back = self._logger.allow(event)
            if kept_back is not None:
                self._write("warning", event, {**facts, "kept_back": kept_back} if kept_back else facts)

    def permits(self, event: str) -> bool:
        """Return True if one more line of an event that any address can cause may be written in this second."""
        return self._logger.allow(event) is not None

    def info(self, event: str, **facts: object) -> None:
        """Log an event in the life of a tunnel or session."""
        if self._logger.level >= INFO:
            self._write("info", event, facts)

    def audit(self, event: str, **facts: object) -> None:
        """Log an operator's action, whatever level `debug` has chosen."""
        self._write(AUDIT, event, facts)

    def secret_audit(self, event: str, **facts: object) -> None:
        """Log a confidential action: to the audit file only, or to the log if there is none.

        No console shows it, neither with `debug` nor with `show log`.
        """
        self._write(SECRET, event, facts)

    def call(self, event: str, **facts: object) -> None:
        """Log the details of a call: messages and states."""
        if self._logger.level >= CALL:
            self._write("call", event, facts)

    debug = call

    def data(self, event: str, **facts: object) -> None:
        """Log a packet; pass `octets=packet.hex()`."""
        if self._logger.level >= DATA:
            self._write("data", event, facts)

    def exception(self, event: str, **facts: object) -> None:
        """Log a bug of ours with the traceback of the exception that is being handled."""
        if self._logger.level >= ERROR:
            self._write("error", event, {**facts, "exc_info": True})

    def enabled(self, level: int) -> bool:
        """Return True if a line of this level would be written. Call it before building an expensive fact."""
        return self._logger.level >= level

    def _write(self, level: str, event: str, facts: dict[str, object]) -> None:
        """Write a line. Structlog's chain of processors is left out: it takes longer than to render the line."""
        output = self._logger
        if facts.pop("exc_info", None):
            facts["traceback"] = traceback.format_exc()
        audit = level in (AUDIT, SECRET)
        safe = {key: render_fact(key, value, output.hidden) for key, value in {**self._context, **facts}.items()}
        line = render_line(AUDIT if audit else level, event, safe)
        output.write(line, CRITICAL if audit else LEVELS.index(level), level)


class Log:
    """The log of a process, made once. Its parts are handed loggers made by `get`."""

    def __init__(
        self, destination: str | LogSink = "", level: int = INFO, keep: int = 1000, *, detached: bool = False
    ) -> None:
        """`destination` is a sink, or the value of log_file. Raises ConfigError if that cannot be opened."""
        self._detached = detached
        sink = open_sink(destination, detached=detached) if isinstance(destination, str) else destination
        self._output = LogOutput(sink, level, keep)
        self._root = Logger(self._output, [], {})

    def install(self) -> None:
        """Send what `structlog.get_logger()` logs in any module, such as a plugin, to this log."""
        structlog.configure(processors=[], wrapper_class=Logger, logger_factory=lambda *args: self._output)

    def get(self, **facts: object) -> Logger:
        """Return a logger that puts these facts in each line."""
        return self._root.bind(**facts)

    @property
    def level(self) -> int:
        return self._output.threshold

    @level.setter
    def level(self, level: int) -> None:
        self._output.threshold = level
        self._output.adjust()

    def listen(self, levels: Iterable[int], take: Callable[[bytes, int], None]) -> Listener:
        """Pass on lines of these levels, even those below the threshold of the log, until unlisten()."""
        listener = Listener(frozenset(levels), take)
        self._output.listeners.append(listener)
        self._output.adjust()
        return listener

    def unlisten(self, listener: Listener) -> None:
        if listener in self._output.listeners:
            self._output.listeners.remove(listener)
            self._output.adjust()

    @property
    def dropped(self) -> int:
        """Return how many lines this destination did not take since it was opened."""
        return self._output.sink.dropped

    def hide(self, secrets: Iterable[str]) -> None:
        """Never show these values. Replaces those of the last call."""
        plain = {escape_unprintable(secret) for secret in secrets if secret}
        octets = {secret.encode("utf-8", "surrogateescape").hex() for secret in secrets if secret}
        # The longest first: one secret may be the beginning of another.
        self._output.hidden = tuple(sorted(plain | octets, key=len, reverse=True))

    def open(self, destination: str) -> None:
        """Change the destination. Raises ConfigError, and leaves the log as it was."""
        new = open_sink(destination, detached=self._detached)
        self._output.sink.close()
        self._output.sink = new

    def open_audit(self, path: str) -> None:
        """Write audit lines to this file as well; empty: to none. Raises ConfigError, and leaves it as it was."""
        new = open_audit(path) if path else None
        if self._output.audit is not None:
            self._output.audit.close()
        self._output.audit = new

    def reopen(self) -> None:
        """Open the files again after they were renamed (SIGHUP). A failure is logged, and the old file stays open."""
        for sink in (self._output.sink, self._output.audit):
            try:
                if sink is not None:
                    sink.reopen()
            except OSError as error:
                self._root.error("log_not_reopened", why=str(error))

    def close(self) -> None:
        self._output.sink.close()
        if self._output.audit is not None:
            self._output.audit.close()

    def tail(self, count: int) -> list[bytes]:
        """Return the last lines, oldest first."""
        return list(self._output.recent)[-count:] if count > 0 else []
