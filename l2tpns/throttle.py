"""Throttling: how fast a session may be, each way (manual: Throttling)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l2tpns.lns import Lns
    from l2tpns.session import Session


class Throttle:
    """One for the Lns."""

    def __init__(self, lns: Lns) -> None:
        self._lns = lns

    def set(self, session: Session, rate_in: int | None = None, rate_out: int | None = None, *, by: str) -> None:
        """Rates in kbit/s; None keeps what there is."""
        policy = session.policy
        session.policy = replace(
            policy,
            rate_in=policy.rate_in if rate_in is None else rate_in,
            rate_out=policy.rate_out if rate_out is None else rate_out,
        )

    def clear(self, session: Session, *, by: str) -> None:
        self.set(session, 0, 0, by=by)

    def begin(self, session: Session) -> None:
        pass

    def finish(self, session: Session) -> None:
        pass
