"""`show histogram idle|open`, `show ipcache`, `show parts`: how sessions spread over time, who has which address, and
whether the parts of the server run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING

from l2tpns.console.commands.sessions import last_packet
from l2tpns.console.grammar import Command
from l2tpns.console.output import Column, Output, Row, Table
from l2tpns.subscriber.session import Session

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell

ROWS = 63  # and one for all that lie beyond
IDLE_STEP, OPEN_STEP = 5, 3600  # seconds of a row

HISTOGRAM = Table(
    (
        Column("seconds", "Seconds", 8, lambda seconds: "lots" if seconds is None else str(seconds)),
        Column("percent", "Percent", 7, lambda percent: f"{percent:.2f}"),
        Column("sessions", "Sessions", 8),
    )
)
PARTS = Table(
    (
        Column("part", "Part", -18),
        Column("state", "State", -8),
        Column("failures", "Failures", 8),
        Column("why", "Last failure", 0),
    )
)
IPCACHE = Table((Column("session", "Sess#", 5), Column("address", "IP Address", 0)))


def show_histogram_idle(shell: Shell) -> Output:
    """Since the last packet."""
    return _histogram(shell, IDLE_STEP, lambda session, now: now - last_packet(session))


def show_histogram_open(shell: Shell) -> Output:
    return _histogram(shell, OPEN_STEP, lambda session, now: now - session.online_since)


def _histogram(shell: Shell, step: int, age: Callable[[Session, float], float]) -> Output:
    lns = shell.office.lns

    def rows() -> Iterator[Row]:
        now = monotonic()
        online = list(lns.services.registry.by_address.values())
        counts: Counter[int] = Counter()
        for session in online:
            lns.services.plane.refresh(session.path)
            counts[min(int(max(age(session, now), 0) // step), ROWS)] += 1
        for number in range(ROWS + 1):
            yield {
                "seconds": number * step if number < ROWS else None,
                "percent": round(100 * counts[number] / max(len(online), 1), 2),
                "sessions": counts[number],
            }

    return HISTOGRAM.output(rows, lambda: (f"{len(lns.services.registry.by_address)} sessions are open",))


def show_ipcache(shell: Shell) -> Output:
    """Addresses and networks that lead to a session."""
    lns = shell.office.lns

    def rows() -> Iterator[Row]:
        for address in sorted(lns.services.registry.by_address):
            session = lns.services.registry.by_address.get(address)
            if session is not None:
                yield {"session": session.id, "address": str(address), "routes": list(map(str, session.path.routes))}

    return IPCACHE.output(rows, lambda: (f"{len(lns.services.registry.by_address)} entries",))


def show_parts(shell: Shell) -> Output:
    """The loops that the server consists of."""
    supervisor = shell.office.lns.services.supervisor

    def rows() -> Iterator[Row]:
        unwell = {part.name: part for part in supervisor.unwell()}
        for name, running in supervisor.up().items():
            part = unwell.get(name)
            yield {
                "part": name,
                "state": "runs" if running else "waits",
                "failures": part.failures if part is not None else 0,
                "why": part.why if part is not None else "",
            }

    return PARTS.output(rows)


COMMANDS = (
    Command("show histogram idle", "how long sessions have been idle", show_histogram_idle),
    Command("show histogram open", "how long sessions have been open", show_histogram_open),
    Command("show ipcache", "which address leads to which session", show_ipcache),
    Command("show parts", "parts of the server: which run, and which have failed in the last minute", show_parts),
)
