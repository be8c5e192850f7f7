"""Interception: a copy of every packet of a session, each way, to somewhere else (manual: Interception)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from l2tpns.policy import Sink

if TYPE_CHECKING:
    from l2tpns.dataplane.path import Copy
    from l2tpns.lns import Lns
    from l2tpns.session import Session


class Snoop:
    """One for the Lns."""

    def __init__(self, lns: Lns) -> None:
        self._lns = lns

    def start(self, session: Session, sink: Sink | None = None, *, by: str) -> None:
        session.policy = replace(session.policy, sink=sink)

    def stop(self, session: Session, *, by: str) -> None:
        session.policy = replace(session.policy, sink=None)

    def copier(self, session: Session) -> Copy | None:
        """What is to be told of its packets."""
        return None

    def begin(self, session: Session) -> None:
        pass

    def finish(self, session: Session) -> None:
        pass
