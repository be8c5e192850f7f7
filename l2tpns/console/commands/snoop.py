"""`snoop`, `no snoop`, `show snoop`: interception (manual: Interception; reference sections 4 and 5).

policy/snoop.py records these commands in the audit log and in no other log.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING

from l2tpns.console.commands.arguments import SOME_USERS, find_user, users
from l2tpns.console.grammar import Argument, Command, Privilege
from l2tpns.console.output import Column, Output, Refused, Row, Table
from l2tpns.policy.model import Sink
from l2tpns.runtime.text import printable

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell


def snoop_users(shell: Shell, *words: str) -> str:
    """Intercept users: to snoop_host and snoop_port, or a single user to the given address and port."""
    address = _address(words[1]) if len(words) > 1 else None
    if address is None:
        return "\n".join(_snoop(shell, name, None) for name in words)
    if len(words) != 3 or not (words[2].isascii() and words[2].isdigit() and 0 < int(words[2][:6]) <= 65535):
        raise Refused(f'"{printable(words[1])}" is an address: after it comes a port, 1 to 65535, and nothing else')
    return _snoop(shell, words[0], Sink(address, int(words[2])))


def _snoop(shell: Shell, name: str, sink: Sink | None) -> str:
    sessions = shell.context.lns.services.registry.sessions_of(name)
    if not sessions:
        return f"User {printable(name)} is not connected"
    for session in find_user(shell.context, name):
        shell.context.lns.services.snoop.start(session, sink, by=shell.actor)
    return f"Snooping user {printable(name)}"


def unsnoop_users(shell: Shell, *names: str) -> str:
    said = []
    for name in names:
        sessions = shell.context.lns.services.registry.sessions_of(name)
        for session in sessions:
            shell.context.lns.services.snoop.stop(session, by=shell.actor)
        said.append(f"{'Not snooping user' if sessions else 'User'} {printable(name)}")
        if not sessions:
            said[-1] += " is not connected"
    return "\n".join(said)


def _address(word: str) -> IPv4Address | None:
    try:
        return IPv4Address(word)
    except AddressValueError:
        return None


SNOOPED = Table(
    (
        Column("session", "SID", 5),
        Column("tunnel", "TID", 5),
        Column("user", "Username", -32, lambda user: user or "*"),
        Column("address", "IP", -15),
        Column("sink", "Sink", -21, lambda sink: sink or "none"),
        Column("sent", "Copies", 12),
        Column("lost", "Lost", 8),
    )
)


def show_snoop(shell: Shell) -> Output:
    """Show the intercepted sessions and their sinks."""
    snoop = shell.context.lns.services.snoop

    def rows() -> Iterator[Row]:
        for session, copier in sorted(snoop.copiers.items(), key=lambda item: item[0].id):
            yield {
                "session": session.id,
                "tunnel": session.tunnel_id,
                "user": session.user,
                "address": str(session.address),
                "sink": snoop.place(session),
                "sent": copier.sent,
                "lost": copier.lost,
            }

    return SNOOPED.output(rows)


USERS_OR_SINK = Argument(
    "USER",
    "user name; then further users, or IP PORT of the host that receives the copies instead of snoop_host",
    users,
    many=True,
)

COMMANDS = (
    Command("show snoop", "intercepted sessions", show_snoop, privilege=Privilege.ENABLED),
    Command(
        "snoop",
        "intercept users: send copies of all their packets to snoop_host",
        snoop_users,
        (USERS_OR_SINK,),
        privilege=Privilege.ENABLED,
    ),
    Command("no snoop", "stop intercepting users", unsnoop_users, (SOME_USERS,), privilege=Privilege.ENABLED),
)
