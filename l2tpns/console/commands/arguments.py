"""Arguments that several commands share: what Tab proposes for them, and how the typed word is looked up."""

from __future__ import annotations

from collections.abc import Iterator

from l2tpns.console.context import ConsoleContext
from l2tpns.console.grammar import Argument
from l2tpns.console.output import Refused
from l2tpns.l2tp.tunnel import Tunnel
from l2tpns.runtime.text import printable
from l2tpns.subscriber.session import Session

Choice = tuple[str, str]


def sessions(context: ConsoleContext) -> Iterator[Choice]:
    for session_id in sorted(context.lns.sessions):
        session = context.lns.sessions[session_id]
        yield str(session_id), session.user or f"calling from {session.calling or '?'}"


def tunnels(context: ConsoleContext) -> Iterator[Choice]:
    for tunnel_id in sorted(context.lns.tunnels):
        yield str(tunnel_id), context.lns.tunnels[tunnel_id].host


def users(context: ConsoleContext) -> Iterator[Choice]:
    for name in sorted(context.lns.services.registry.by_user):
        for session in context.lns.services.registry.by_user[name]:
            yield session.user, f"session {session.id}"


def ended_users(context: ConsoleContext) -> Iterator[Choice]:
    for name in sorted({ending.user for ending in context.lns.services.history if ending.user}):
        yield name, ""


def pools(context: ConsoleContext) -> Iterator[Choice]:
    for name in context.lns.services.pool.names:
        if name:
            yield name, ""


def find_session(context: ConsoleContext, word: str) -> Session:
    """Return the session. Raises Refused, worded as by the manual's server."""
    session = context.lns.sessions.get(_number(word))
    if session is None:
        raise Refused(f'Invalid session id "{printable(word)}"')
    return session


def find_tunnel(context: ConsoleContext, word: str) -> Tunnel:
    tunnel = context.lns.tunnels.get(_number(word))
    if tunnel is None:
        raise Refused(f'Invalid tunnel id "{printable(word)}"')
    return tunnel


def find_user(context: ConsoleContext, word: str) -> list[Session]:
    """Return all sessions of a user, by `username_case`. Raises Refused if there is none."""
    found = sorted(context.lns.services.registry.sessions_of(word), key=lambda session: session.id)
    if not found:
        raise Refused(f"User {printable(word)} is not connected")
    return found


def _number(word: str) -> int:
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 5 else -1


def _line_count(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 6):
        raise ValueError(f'"{printable(word)}" is not a number of lines')
    return int(word)


SESSION = Argument("SID", "session ID", sessions, optional=True, many=True)
TUNNEL = Argument("TID", "tunnel ID", tunnels, optional=True, many=True)
USER = Argument("USER", "user name", users, optional=True)
ENDED_USER = Argument("USER", "user name", ended_users, optional=True)
POOL_NAME = Argument("NAME", "name of a pool", pools, optional=True)
SOME_SESSIONS = Argument("SID", "session ID", sessions, many=True)
SOME_TUNNELS = Argument("TID", "tunnel ID", tunnels, many=True)
SOME_USERS = Argument("USER", "user name", users, many=True)
ONE_USER = Argument("USER", "user name", users)
LINE_COUNT = Argument("LINES", "number of lines", parse=_line_count, optional=True)
PAGE_LENGTH = Argument("LINES", "lines per page; 0 disables paging", parse=_line_count)
