"""`show radius`: requests awaiting a reply, and the servers (reference sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from l2tpns.console.context import ConsoleContext
from l2tpns.console.grammar import Command
from l2tpns.console.output import Column, Output, Row, Table
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.types import Backend

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell

RADIUS = Table(
    (
        Column("identifier", "Radius", 6),
        Column("state", "State", 6),
        Column("session", "Session", 9),
        Column("retry", "Retry", 10, lambda retry: str(int(retry))),
        Column("tries", "Try", 4),
        Column("server", "Server", 0),
    )
)
SERVERS = Table(
    (
        Column("server", "Server", -21),
        Column("kind", "For", -4),
        Column("state", "State", -7),
        Column("in_flight", "Waiting", 7),
        Column("requests", "Requests", 10),
        Column("retransmissions", "Repeated", 10),
        Column("answers", "Answers", 10),
        Column("timeouts", "Timeouts", 10),
        Column("not_authentic", "Forged", 8),
        Column("milliseconds", "ms", 7),
    )
)


def radius_clients(context: ConsoleContext) -> tuple[tuple[str, Backend | Accounting], ...]:
    return ("auth", context.lns.services.backend), ("acct", context.lns.services.accounting)


def radius_rows(context: ConsoleContext) -> Iterator[Row]:
    """Yield the requests awaiting a reply. `retry` is the Unix time of the next attempt, as in the manual."""
    for kind, client in radius_clients(context):
        for request in client.in_flight():
            yield {
                "identifier": request.identifier,
                "kind": kind,
                "state": "AUTH" if kind == "auth" else request.label,  # the words of 1.1: AUTH START STOP
                "session": request.session_id,
                "retry": round(request.next_try, 3),
                "tries": request.tries,
                "server": str(request.server),
            }


def server_rows(context: ConsoleContext) -> Iterator[Row]:
    for kind, client in radius_clients(context):
        for report in client.report():
            stats = report.stats
            answers = stats.accepts + stats.rejects + stats.challenges + stats.responses
            yield {
                "server": str(report.address),
                "kind": kind,
                "state": "silent" if report.dead else "up",
                "in_flight": report.in_flight,
                "requests": stats.requests,
                "retransmissions": stats.retransmissions,
                "answers": answers,
                "accepts": stats.accepts,
                "rejects": stats.rejects,
                "timeouts": stats.timeouts,
                "not_authentic": stats.bad_authenticators,
                "milliseconds": round(1000 * stats.latency_sum / answers, 1) if answers else 0.0,
            }


def show_radius(shell: Shell) -> Output:
    return RADIUS.output(lambda: radius_rows(shell.context), lambda: _radius_use(shell.context))


def show_all_radius(shell: Shell) -> Output:
    """Show the requests awaiting a reply and the statistics of each server."""
    context = shell.context

    def lines() -> Iterator[str]:
        yield from RADIUS.lines(radius_rows(context))
        yield from _radius_use(context)
        yield ""
        yield from SERVERS.lines(server_rows(context))

    return Output(lines, lambda: {"requests": list(radius_rows(context)), "servers": list(server_rows(context))})


def _radius_use(context: ConsoleContext) -> Iterator[str]:
    """Yield the numbers of free and used identifiers: a socket has 256 (RFC 2865 section 3)."""
    used = room = 0
    for _, client in radius_clients(context):
        for report in client.report():
            used += report.in_flight
            room += report.identifiers
    yield ""
    yield f"Free: {room - used}"
    yield f"Used: {used}"


COMMANDS = (
    Command("show radius", "RADIUS requests awaiting a reply", show_radius),
    Command("show radius all", "RADIUS requests awaiting a reply, and statistics for each server", show_all_radius),
)
