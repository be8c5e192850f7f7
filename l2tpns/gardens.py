"""Walled gardens: sessions whose packets the operator's firewall rules send elsewhere (manual: Walled Garden)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l2tpns.lns import Lns
    from l2tpns.session import Session


class Gardens:
    """One for the Lns."""

    def __init__(self, lns: Lns) -> None:
        self._lns = lns

    def enter(self, session: Session, name: str = "garden", *, by: str) -> None:
        session.policy = replace(session.policy, garden=name)

    def leave(self, session: Session, *, by: str) -> None:
        session.policy = replace(session.policy, garden="")

    def begin(self, session: Session) -> None:
        pass

    def finish(self, session: Session) -> None:
        pass
