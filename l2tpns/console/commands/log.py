"""`show log`, `debug`, `no debug`: recent log messages, and live ones (reference section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from l2tpns.console.commands.arguments import LINE_COUNT
from l2tpns.console.context import ConsoleContext
from l2tpns.console.grammar import Argument, Command, Privilege
from l2tpns.console.log_line import log_line
from l2tpns.console.output import Output
from l2tpns.runtime.log import LEVELS

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell


def show_log(shell: Shell, count: int = 100) -> Output:
    """Show the most recent messages, the newest last."""
    kept = shell.context.log.tail(count)

    def entries() -> Iterator[Any]:
        return map(orjson.loads, kept)

    return Output(lambda: (f"{entry['time']} {log_line(entry)}" for entry in entries()), entries)


def debug(shell: Shell, *names: str) -> str:
    """Add levels to those shown on this console. Without arguments, list them."""
    if not names:
        return _streams(shell)
    shell.watch(shell.streams | _levels(names))
    return _streams(shell)


def no_debug(shell: Shell, *names: str) -> str:
    """Remove levels from those shown; all of them without arguments or with `all`."""
    left = shell.streams - _levels(names) if names and "all" not in names else frozenset()
    shell.watch(left)
    return _streams(shell)


def _levels(names: Sequence[str]) -> frozenset[int]:
    """Return the numbers of the levels. `all` excludes packets, as in the manual's server."""
    everything = {LEVELS.index(level) for level in LEVELS if level != "data"} if "all" in names else set()
    return frozenset(everything | {LEVELS.index(name) for name in names if name != "all"})


def _streams(shell: Shell) -> str:
    return "Currently debugging: " + (" ".join(LEVELS[level] for level in sorted(shell.streams)) or "nothing")


def _stream_names(context: ConsoleContext) -> Iterator[tuple[str, str]]:
    for level in LEVELS:
        yield level, f"messages of level {level}"
    yield "all", "all levels except data"


STREAMS = Argument("LEVEL", "log level to display", _stream_names, closed=True, optional=True, many=True)

COMMANDS = (
    Command(
        "debug",
        "display log messages on this console as they are written",
        debug,
        (STREAMS,),
        privilege=Privilege.ENABLED,
    ),
    Command("no debug", "stop displaying some or all log messages", no_debug, (STREAMS,)),
    Command("show log", "most recent log messages", show_log, (LINE_COUNT,), privilege=Privilege.ENABLED),
)
