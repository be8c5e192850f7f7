"""`garden`, `ungarden`, `show gardens`: walled gardens (manual: Walled Garden; docs/garden.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from l2tpns.console.commands.arguments import find_user, sessions, users
from l2tpns.console.grammar import Argument, Command, change
from l2tpns.console.output import Column, Output, Refused, Row, Table
from l2tpns.runtime.text import printable
from l2tpns.system.garden_rules import DEFAULT

if TYPE_CHECKING:
    from l2tpns.console.context import ConsoleContext
    from l2tpns.console.shell import Shell
    from l2tpns.subscriber.session import Session


def enter(shell: Shell, word: str, name: str = DEFAULT) -> str:
    """Move a session, or all sessions of a user that are not there yet, into a garden."""
    gardens = shell.context.lns.services.gardens
    found = _find(shell.context, word)
    outside = [session for session in found if session.policy.garden != name] or found
    for session in outside:
        gardens.enter(session, name, by=shell.actor)
    return "\n".join(f"Session {session.id} ({session.user}) is in walled garden {name}" for session in outside)


def leave(shell: Shell, word: str) -> str:
    """Release one session. Releasing a second one of the same user would end the first."""
    found = _find(shell.context, word)
    inside = [session for session in found if session.policy.garden] or found
    if len(inside) > 1:
        ids = ", ".join(str(session.id) for session in inside)
        raise Refused(f"{printable(word)} has several sessions in a walled garden, {ids}: enter the ID of one")
    (session,) = inside
    shell.context.lns.services.gardens.leave(session, by=shell.actor)
    return f"Session {session.id} ({session.user}) is out of the walled garden"


def _find(context: ConsoleContext, word: str) -> list[Session]:
    """Return the session with this ID, else the sessions of the user with this name."""
    if word.isascii() and word.isdigit() and int(word[:6]) in context.lns.sessions:
        return [context.lns.sessions[int(word)]]
    return find_user(context, word)


GARDENS = Table(
    (
        Column("garden", "Garden", -16),
        Column("sessions", "Sessions", 8),
        Column("networks", "Networks", 8),
        Column("chain", "Chain", 0),
    )
)


def show_gardens(shell: Shell) -> Output:
    """Show the gardens built since the start or restored from saved state."""
    gardens = shell.context.lns.services.gardens

    def rows() -> Iterator[Row]:
        for name, count in gardens.members().items():
            yield {
                "garden": name,
                "sessions": count,
                "networks": gardens.networks(name),
                "chain": gardens.kernel.chain_of(name),
            }

    return GARDENS.output(rows)


def _gardens(context: ConsoleContext) -> Iterator[tuple[str, str]]:
    yield from ((name, f"{count} sessions") for name, count in context.lns.services.gardens.members().items())


def _users_and_sessions(context: ConsoleContext) -> Iterator[tuple[str, str]]:
    yield from users(context)
    yield from sessions(context)


WHO = Argument("USER|SID", "user name or session ID", _users_and_sessions)
NAME = Argument("NAME", f"walled garden name (default: {DEFAULT})", _gardens, optional=True)

COMMANDS = (
    change("garden", "move a user's sessions into a walled garden", enter, WHO, NAME),
    change("ungarden", "release a session from its walled garden, as after a new login", leave, WHO),
    Command("show gardens", "walled gardens, with the number of sessions in each", show_gardens),
)
