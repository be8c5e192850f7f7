"""Packet filters of a session, named by RADIUS in Filter-Id (RFC 2865 5.11).

NAME.in filters packets from the subscriber, NAME.out packets to the subscriber. The configuration holds the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from l2tpns.config.access_list import AccessList
from l2tpns.dataplane.plane import DataPlane
from l2tpns.policy.model import Filtered
from l2tpns.runtime.log import Logger

AccessLists = Mapping[str, AccessList]  # of the configuration, by name


def apply_filter_ids(plane: DataPlane, lists: AccessLists, session: Filtered, filter_ids: Sequence[str]) -> None:
    """Set the filters that RADIUS names, and no others. Log each name that does not exist; it is not an error."""
    found: dict[str, AccessList | None] = {"in": None, "out": None}
    for filter_id in filter_ids:
        name, _, direction = filter_id.rpartition(".")
        if not name or direction not in found:
            session.log.warning("filter_unknown", filter=filter_id, why="Filter-Id must be NAME.in or NAME.out")
        elif name not in lists:
            session.log.warning("filter_unknown", filter=filter_id, why=f"access-list {name} is not configured")
        else:
            found[direction] = lists[name]
    set_filters(plane, session, found["in"], found["out"])


def set_filters(
    plane: DataPlane, session: Filtered, filter_in: AccessList | None, filter_out: AccessList | None
) -> None:
    """Filter the session's packets by these rules, from its next packet on."""
    path = session.path
    if (path.filter_in, path.filter_out) != (filter_in, filter_out):
        path.filter_in, path.filter_out = filter_in, filter_out
        plane.changed(path)


def refresh_filters(plane: DataPlane, lists: AccessLists, sessions: Iterable[Filtered], log: Logger) -> None:
    """Apply changed rules after a change of the configuration. Sessions keep their filters by name."""
    gone: set[str] = set()

    def now(filter: AccessList | None) -> AccessList | None:
        if filter is None or filter.name in lists:
            return filter and lists[filter.name]
        gone.add(filter.name)
        return filter  # better the old rules than none

    for session in sessions:
        set_filters(plane, session, now(session.path.filter_in), now(session.path.filter_out))
    for name in sorted(gone):
        log.warning("filter_unknown", filter=name, why="the list was removed: sessions that use it keep its last rules")
