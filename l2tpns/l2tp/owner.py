"""What a tunnel asks of the LNS, which holds the tables of tunnels and sessions (lns.py)."""

from __future__ import annotations

from typing import Protocol, TypeVar

from l2tpns.errors import ProtocolError
from l2tpns.l2tp.timing import TunnelLimits
from l2tpns.proto.l2tp.messages import ICRQ
from l2tpns.runtime.peer import Peer
from l2tpns.subscriber.session import Session

T = TypeVar("T", contravariant=True)  # the class of tunnels


class TunnelOwner(Protocol[T]):
    """The LNS. Nothing here yields."""

    limits: TunnelLimits

    def tunnel_established(self, tunnel: T) -> None:
        """Note that the tunnel is established."""

    def tunnel_closing(self, tunnel: T, *, sends_stopccn: bool) -> None:
        """Note that the tunnel ends. It may linger until its StopCCN is acknowledged."""

    def tunnel_moved(self, tunnel: T, peer: Peer) -> None:
        """Note that the LAC sends from another address now."""

    def tunnel_gone(self, tunnel: T) -> None:
        """Remove the tunnel."""

    def move_refusal(self, tunnel: T, peer: Peer, now: float) -> bool:
        """Return True if the tunnel must not look for its LAC at this address now; else count a probe."""

    def charge(self, lac: str, seconds: float) -> None:
        """Charge the CPU time of a tunnel that is not proven yet to the budget of unknown senders."""

    def may_linger(self) -> bool:
        """Return True if one more closed tunnel may stay to acknowledge repetitions."""

    def call_refusal(self, tunnel: T) -> ProtocolError | None:
        """Return why the tunnel may have no further call now, or None."""

    def start_session(self, tunnel: T, icrq: ICRQ) -> None:
        """Start a session for a call."""

    def call_started(self, tunnel: T) -> None:
        """Note that a call is online, or has ended before."""

    def session_gone(self, session: Session) -> None:
        """Remove a session."""

    def unused_session_id(self) -> int:
        """Return a session id that is free."""
