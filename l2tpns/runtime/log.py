"""The log: structlog, one JSON object a line: `time`, `level`, `event`, then facts.

The same key always means the same thing: `tunnel`, `session` (our ids), `user`, `peer`, `cause`. Levels are those of
the `debug` variable: 0 critical, 1 error, 2 warning, 3 info, 4 call, 5 data. Where lines go is runtime/log_sinks.py's.

What a peer sent may stand in a line and cannot break it, nor reach a terminal as a control character. What is secret
never stands in a line: neither a value under a key such as `password`, nor a registered value under any key.
A hexdump of a packet that carries a password must be cut by whoever knows the packet: see `ppp_octets`.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import orjson
import structlog

from l2tpns.proto.ppp.frame import Protocol
from l2tpns.runtime.log_sinks import Memory, Sink, open_audit, open_sink

CRITICAL, ERROR, WARNING, INFO, CALL, DATA = range(6)
LEVELS = ("critical", "error", "warning", "info", "call", "data")
AUDIT = "audit"  # as important as critical to be written, but nothing is wrong
SECRET = "secret audit"  # the same, and consoles do not show it

HIDDEN = "***"
_SECRET_KEYS = frozenset({"password", "secret", "response", "authenticator"})
_SECRET_ENDINGS = ("_password", "_secret", "_response")
# Values that only our own code chooses: a secret that is an ordinary word must not black them out.
_OWN_WORDS = frozenset({"cause", "phase", "message", "auth", "signal", "variable"})
MOST_PROVOKED = 10  # lines a second of one event that peers can provoke at will
_LONGEST_TEXT = 8192  # characters of one value
_DEEPEST = 4
_INT64 = 1 << 63


class Output:
    """What every Logger of a Log writes to: the threshold, the sink, the last lines. Made and held by Log."""

    __slots__ = ("_provoked", "audit", "dropped", "hidden", "level", "listeners", "recent", "sink", "threshold")

    def __init__(self, sink: Sink, level: int, keep: int) -> None:
        self.sink = sink
        self.audit: Sink | None = None  # where audit lines go besides
        self.threshold = level  # of the sink
        self.level = level  # what is rendered at all: the threshold, or more while somebody listens
        self.listeners: list[Listener] = []
        self.recent: deque[bytes] = deque(maxlen=keep)
        self.hidden: tuple[str, ...] = ()
        self.dropped = 0  # lines lost since the last one that got through
        self._provoked: dict[str, tuple[int, int, int]] = {}  # event -> second, lines in it, kept back since the last

    def allow(self, event: str) -> int | None:
        """None: no further line of this event in this second. Else how many were kept back before it."""
        now = int(time.monotonic())
        second, count, kept_back = self._provoked.get(event, (now, 0, 0))
        if second != now:
            second, count = now, 0
        if count >= MOST_PROVOKED:
            self._provoked[event] = second, count, kept_back + 1
            return None
        self._provoked[event] = second, count + 1, 0
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
        if self.dropped and self.sink.write(_line("warning", "log_lines_dropped", {"count": self.dropped}), WARNING):
            self.dropped = 0
        if self.dropped or not self.sink.write(line, level):
            self.dropped += 1
            self.sink.dropped += 1

    def _audit(self, line: bytes, sink: Sink) -> None:
        if not sink.write(line, CRITICAL):
            sink.dropped += 1
            if self.allow("audit_lines_lost") is not None:
                self.write(_line("error", "audit_lines_lost", {"count": sink.dropped}), ERROR)

    def adjust(self) -> None:
        """The threshold, or who listens, has changed."""
        self.level = max([self.threshold, *(max(listener.levels, default=0) for listener in self.listeners)])


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """Somebody who watches lines of these levels as they are written (`debug` at the console).

    `take` is called by whoever logs, so it must neither block nor log nor fail.
    """

    levels: frozenset[int]
    take: Callable[[bytes, int], None]


class Logger(structlog.BoundLoggerBase):
    """A logger with facts bound to it. A call above the threshold costs one comparison."""

    _logger: Output

    def critical(self, event: str, **facts: object) -> None:
        """The server cannot go on."""
        self._write("critical", event, facts)

    def error(self, event: str, **facts: object) -> None:
        """Wake someone."""
        if self._logger.level >= ERROR:
            self._write("error", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        """Look today."""
        if self._logger.level >= WARNING:
            self._write("warning", event, facts)

    def provoked(self, event: str, **facts: object) -> None:
        """A warning that a peer can provoke at will: a few a second, the next one tells how many were `kept_back`."""
        if self._logger.level >= WARNING:
            kept_back = self._logger.allow(event)
            if kept_back is not None:
                self._write("warning", event, {**facts, "kept_back": kept_back} if kept_back else facts)

    def permits(self, event: str) -> bool:
        """Return whether one more line of an event that any address may cause may be written in this second."""
        return self._logger.allow(event) is not None

    def info(self, event: str, **facts: object) -> None:
        """An event of a tunnel's or session's life."""
        if self._logger.level >= INFO:
            self._write("info", event, facts)

    def audit(self, event: str, **facts: object) -> None:
        """Who did what to the server: written whatever `debug` says."""
        self._write(AUDIT, event, facts)

    def secret_audit(self, event: str, **facts: object) -> None:
        """The same where it is nobody else's business: into the audit file only, or without one into the log.

        No console shows it, neither by `debug` nor by `show log`.
        """
        self._write(SECRET, event, facts)

    def call(self, event: str, **facts: object) -> None:
        """Details of a call: messages and states."""
        if self._logger.level >= CALL:
            self._write("call", event, facts)

    debug = call

    def data(self, event: str, **facts: object) -> None:
        """Packets; pass `octets=packet.hex()`."""
        if self._logger.level >= DATA:
            self._write("data", event, facts)

    def exception(self, event: str, **facts: object) -> None:
        """An error of our own, with the traceback of the exception being handled."""
        if self._logger.level >= ERROR:
            self._write("error", event, {**facts, "exc_info": True})

    def enabled(self, level: int) -> bool:
        """Whether a line of this level would be written: ask before building an expensive fact."""
        return self._logger.level >= level

    def _write(self, level: str, event: str, facts: dict[str, object]) -> None:
        facts["level"] = level
        if facts.pop("exc_info", None):
            facts["traceback"] = traceback.format_exc()
        self._proxy_to_logger("write", event, **facts)


class Log:
    """The log of a process: made once, handed to everybody as loggers by `get`."""

    def __init__(self, destination: str = "", level: int = INFO, keep: int = 1000, *, detached: bool = False) -> None:
        """`destination` is that of the variable log_file; ConfigError if it cannot be opened."""
        self._detached = detached
        self._output = Output(open_sink(destination, detached=detached), level, keep)
        self._root = Logger(self._output, [_Render(self._output)], {})

    @classmethod
    def in_memory(cls, level: int = DATA, keep: int = 10_000) -> Log:
        """A log that is only kept, for tests: see `records`."""
        log = cls.__new__(cls)
        log._detached = False
        log._output = Output(Memory(), level, keep)
        log._root = Logger(log._output, [_Render(log._output)], {})
        return log

    def install(self) -> None:
        """Have `structlog.get_logger()` of any module, a plugin's too, write here."""
        structlog.configure(
            processors=[_Render(self._output)], wrapper_class=Logger, logger_factory=lambda *args: self._output
        )

    def get(self, **facts: object) -> Logger:
        """A logger that puts these facts in each line."""
        return self._root.bind(**facts)

    @property
    def level(self) -> int:
        return self._output.threshold

    @level.setter
    def level(self, level: int) -> None:
        self._output.threshold = level
        self._output.adjust()

    def listen(self, levels: Iterable[int], take: Callable[[bytes, int], None]) -> Listener:
        """Have lines of these levels, also those that `debug` leaves out of the log, until unlisten()."""
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
        """Lines that could not be written because nobody took them, since the start of this destination."""
        return self._output.sink.dropped

    def hide(self, secrets: Iterable[str]) -> None:
        """Never show these values; replaces the ones named before."""
        plain = {_printable(secret) for secret in secrets if secret}
        octets = {secret.encode("utf-8", "surrogateescape").hex() for secret in secrets if secret}
        # The longest first: one secret may begin another.
        self._output.hidden = tuple(sorted(plain | octets, key=len, reverse=True))

    def open(self, destination: str) -> None:
        """Go on elsewhere. ConfigError leaves the log where it is."""
        new = open_sink(destination, detached=self._detached)
        self._output.sink.close()
        self._output.sink = new

    def open_audit(self, path: str) -> None:
        """Where audit lines go besides; nothing: nowhere. ConfigError leaves it as it is."""
        new = open_audit(path) if path else None
        if self._output.audit is not None:
            self._output.audit.close()
        self._output.audit = new

    def reopen(self) -> None:
        """Open the files again, after they were renamed (SIGHUP); on failure go on with the old one, and say so."""
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
        """The last lines, oldest first."""
        return list(self._output.recent)[-count:] if count > 0 else []

    def records(self, event: str = "") -> list[dict[str, Any]]:
        """The lines kept, read again; only those of `event`, if given."""
        lines = [orjson.loads(line) for line in self._output.recent]
        return [line for line in lines if not event or line["event"] == event]


def ppp_octets(protocol: int, information: bytes) -> str:
    """A PPP packet as hex, without the password that a PAP Authenticate-Request carries (RFC 1334 2.2.1)."""
    if protocol != Protocol.PAP or information[:1] != b"\x01":
        return information.hex()
    name_ends = 5 + information[4] if len(information) > 4 else 5
    if name_ends >= len(information):
        name_ends = 4  # malformed: where the password begins is anybody's guess
    return information[:name_ends].hex() + HIDDEN


class _Render:
    """The one structlog processor: facts become a line."""

    __slots__ = ("_output",)

    def __init__(self, output: Output) -> None:
        self._output = output

    def __call__(self, logger: Any, method: str, facts: MutableMapping[str, Any]) -> tuple[Any, ...]:
        level = facts.pop("level")
        event = facts.pop("event")
        hidden = self._output.hidden
        audit = level in (AUDIT, SECRET)
        line = _line(AUDIT if audit else level, event, {key: _fact(key, value, hidden) for key, value in facts.items()})
        return (line, CRITICAL if audit else LEVELS.index(level), level), {}  # the arguments of Output.write


def _line(level: str, event: str, facts: dict[str, Any]) -> bytes:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
    return orjson.dumps({"time": now, "level": level, "event": event, **facts})


def _fact(key: str, value: Any, hidden: tuple[str, ...], depth: int = 0) -> Any:
    """`value` as something that orjson writes, cannot harm a reader, and shows no secret."""
    if value is None or value is True or value is False or type(value) is float:
        return value
    if (key in _SECRET_KEYS or key.endswith(_SECRET_ENDINGS)) and value != "" and value != b"":
        return HIDDEN
    kind = type(value)
    if kind is int:
        return value if -_INT64 <= value < _INT64 else str(value)
    if kind is str:
        text = value
    elif isinstance(value, (bytes, bytearray, memoryview)):
        text = bytes(value).decode("utf-8", "surrogateescape")
    elif isinstance(value, Enum):
        text = value.name
    elif depth < _DEEPEST and dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: _fact(name, getattr(value, name), hidden, depth + 1) for name in names}
    elif depth < _DEEPEST and isinstance(value, Mapping):
        return {_printable(str(k)): _fact(str(k), v, hidden, depth + 1) for k, v in value.items()}
    elif depth < _DEEPEST and isinstance(value, (list, tuple, set, frozenset, deque)):
        return [_fact(key, item, hidden, depth + 1) for item in value]
    elif depth >= _DEEPEST:
        text = kind.__name__  # its own words might show what the keys inside would have hidden
    else:
        text = str(value)
    if key in _OWN_WORDS:
        return text
    if not text.isprintable():
        text = _printable(text)
    for secret in hidden:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."


def _printable(text: str) -> str:
    """Without characters that steer a terminal or end a line for some reader; JSON escapes those below U+0020."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c < " " else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # an octet that was no UTF-8
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
