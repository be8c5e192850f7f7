"""`throttle`, `no throttle`, `show throttle` (reference sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from l2tpns.console.commands.arguments import ONE_USER, SOME_USERS, find_user
from l2tpns.console.grammar import Argument, Command, change
from l2tpns.console.output import Column, Output, Row, Table
from l2tpns.policy.throttle import parse_rates
from l2tpns.runtime.text import printable
from l2tpns.subscriber.session import Session

if TYPE_CHECKING:
    from l2tpns.console.context import ConsoleContext
    from l2tpns.console.shell import Shell


def throttle_user(shell: Shell, name: str, *words: str) -> str:
    """Throttle all sessions of a user, in both directions or as given."""
    throttle = shell.context.lns.services.throttle
    rate_in, rate_out = parse_rates(words)
    for session in find_user(shell.context, name):
        throttle.set(session, rate_in, rate_out, by=shell.actor)
    return f"throttling user {name}"


def unthrottle_users(shell: Shell, *names: str) -> str:
    said = []
    for name in names:
        sessions = shell.context.lns.services.registry.sessions_of(name)
        for session in sessions:
            shell.context.lns.services.throttle.clear(session, by=shell.actor)
        said.append(f"unthrottling user {name}" if sessions else f"User {printable(name)} is not connected")
    return "\n".join(said)


THROTTLED = Table(
    (
        Column("session", "SID", 5),
        Column("tunnel", "TID", 5),
        Column("user", "Username", -32, lambda user: user or "*"),
        Column("rate_in", "In", 8, lambda rate: str(rate or "-")),
        Column("rate_out", "Out", 8, lambda rate: str(rate or "-")),
        Column("filter_bucket", "Bucket", -7, lambda bucket: bucket or "none"),
        Column("method", "Method", -6, lambda method: method or "none"),
        Column("dropped_in", "Dropped In", 10),
        Column("dropped_out", "Dropped Out", 11, lambda dropped: "-" if dropped is None else str(dropped)),
    )
)


def throttled_row(session: Session) -> Row:
    path = session.path
    session.services.plane.refresh(path)
    return {
        "session": session.id,
        "tunnel": session.tunnel.id,
        "user": session.user,
        "rate_in": session.policy.rate_in,
        "rate_out": session.policy.rate_out,
        "filter_bucket": session.services.throttle.bucket(session),
        "method": session.services.throttle.method_of(session),
        "dropped_in": path.dropped_policed,
        # Of a class, the kernel counts: see tc.
        "dropped_out": None if path.shaped else path.dropped_policed_out,
    }


def show_throttle(shell: Shell) -> Output:
    """Show the throttled sessions. `tc -s class` has the packets queued and dropped downstream."""
    lns = shell.context.lns

    def rows() -> Iterator[Row]:
        for session_id in sorted(lns.sessions):
            session = lns.sessions.get(session_id)
            if session is not None and session.policy.throttled:
                yield throttled_row(session)

    return THROTTLED.output(rows)


def _rates(context: ConsoleContext) -> Sequence[tuple[str, str]]:
    return (("in", "packets from the user"), ("out", "packets to the user"))


RATES = Argument(
    "RATE",
    "kbit/s for both directions; or in RATE, out RATE, or both (default: throttle_speed)",
    _rates,
    optional=True,
    many=True,
)

COMMANDS = (
    Command("show throttle", "throttled sessions, with their rates and HTB classes", show_throttle),
    change("throttle", "limit the rate of a user's sessions", throttle_user, ONE_USER, RATES),
    change("no throttle", "remove the rate limits from users' sessions", unthrottle_users, SOME_USERS),
)
