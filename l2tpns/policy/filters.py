"""Which packet filters a session has: those that RADIUS names (Filter-Id, RFC 2865 5.11), by name.

NAME.in filters what the subscriber sends, NAME.out what is sent to the subscriber. The rules are the configuration's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from l2tpns.config.access_list import AccessList

if TYPE_CHECKING:
    from l2tpns.lns import Lns
    from l2tpns.subscriber.session import Session


def bind(session: Session, filter_ids: Sequence[str]) -> None:
    """A new login: these filters and no others. One that cannot be had is named in the log, and the login goes on."""
    found: dict[str, AccessList | None] = {"in": None, "out": None}
    for filter_id in filter_ids:
        name, _, direction = filter_id.rpartition(".")
        if not name or direction not in found:
            session.log.warning("filter_unknown", filter=filter_id, why="it must be NAME.in or NAME.out")
        elif name not in session.lns.config.filters:
            session.log.warning("filter_unknown", filter=filter_id, why=f"there is no access-list {name}")
        else:
            found[direction] = session.lns.config.filters[name]
    give(session, found["in"], found["out"])


def give(session: Session, filter_in: AccessList | None, filter_out: AccessList | None) -> None:
    """The session has these filters from its next packet on."""
    path = session.path
    if (path.filter_in, path.filter_out) != (filter_in, filter_out):
        path.filter_in, path.filter_out = filter_in, filter_out
        session.lns.plane.changed(path)


def rebind(lns: Lns) -> None:
    """The configuration has changed: sessions keep their filters by name, with the rules as they are now."""
    gone: set[str] = set()

    def now(filter: AccessList | None) -> AccessList | None:
        if filter is None or filter.name in lns.config.filters:
            return filter and lns.config.filters[filter.name]
        gone.add(filter.name)
        return filter  # better the old rules than none

    for session in lns.sessions.values():
        give(session, now(session.path.filter_in), now(session.path.filter_out))
    for name in sorted(gone):
        lns.log.warning("filter_unknown", filter=name, why="sessions that have it keep its rules of before")
