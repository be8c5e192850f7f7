"""Limits of tunnels and calls, and the result codes of refusals (RFC 2661 4.4.2).

Counts the tunnels and starting calls of each LAC's address. An SCCRQ beyond the limits of half-open tunnels gets no
reply, and the LAC retransmits it (RFC 2661 5.8).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized

from l2tpns.config.settings import Config
from l2tpns.errors import ProtocolError
from l2tpns.l2tp.half_open import HalfOpen
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.l2tp.tunnel import Tunnel, TunnelState
from l2tpns.proto.l2tp.messages import CdnResult, ErrorCode, StopCcnResult


class Admission:
    """The limits of one server. `tunnels` and `sessions` are the tables of the LNS. Nothing here yields."""

    def __init__(
        self, config: Config, timing: TunnelTiming, limits: TunnelLimits, tunnels: Sized, sessions: Sized
    ) -> None:
        self._config = config
        self._timing = timing
        self._limits = limits
        self._tunnels = tunnels
        self._sessions = sessions
        self.half_open = HalfOpen(timing)  # tunnels without an SCCCN
        self.tunnels_of: Counter[str] = Counter()  # tunnels that are not closing, by the LAC's address
        self.starting: Counter[str] = Counter()  # calls that are not online yet, by the LAC's address
        self.lingering = 0  # tunnels that are closing
        self.shutting_down = False

    # Tunnels

    def find_room(self, lac: str) -> tuple[bool, Tunnel | None]:
        """Return whether one more half-open tunnel may begin, and the tunnel that must be evicted first, or None."""
        config, max_ids = self._config, self._limits.max_ids
        own = self.half_open.of(lac) >= config.max_half_open_per_lac
        full = own or self.half_open.total() >= config.max_half_open_tunnels
        if not full and len(self._tunnels) - self.lingering < (config.max_tunnels or max_ids):
            return True, None
        oldest = self.half_open.oldest(self._timing.clock(), lac if own else None)
        return oldest is not None or not full, oldest

    def tunnel_refusal(self, lac: str, config: Config, evicted: Tunnel | None = None) -> ProtocolError | None:
        """Return why a LAC may have no further tunnel now, or None; `evicted` would make room for it.

        `config` is the configuration that counts for this LAC.
        """
        max_ids = self._limits.max_ids
        if self.shutting_down:
            return ProtocolError(StopCcnResult.SHUTTING_DOWN, 0, "shutting down")
        leaves = evicted is not None and evicted.state is not TunnelState.CLOSING  # else it is not counted any more
        of_this_lac = self.tunnels_of[lac] - (leaves and evicted is not None and evicted.lac == lac)
        if (
            of_this_lac >= (config.max_tunnels_per_lac or max_ids)
            or len(self._tunnels) - self.lingering - leaves >= (config.max_tunnels or max_ids)
            or len(self._tunnels) - (evicted is not None) >= max_ids
        ):
            return ProtocolError(StopCcnResult.GENERAL, ErrorCode.RESOURCES, "too many tunnels")
        return None

    def tunnel_begun(self, tunnel: Tunnel) -> None:
        """Count a tunnel whose SCCRQ was accepted."""
        self.half_open.add(tunnel)
        self.tunnels_of[tunnel.lac] += 1

    def tunnel_restored(self, tunnel: Tunnel) -> None:
        """Count an established tunnel of an earlier process."""
        self.tunnels_of[tunnel.lac] += 1

    def tunnel_established(self, tunnel: Tunnel) -> None:
        """Stop counting a tunnel as half-open."""
        self.half_open.discard(tunnel)

    def tunnel_closing(self, tunnel: Tunnel, *, sends_stopccn: bool) -> None:
        """Count a tunnel as lingering. With a StopCCN to be acknowledged, it may count as half-open until then."""
        if not sends_stopccn:
            self.half_open.discard(tunnel)
        self.lingering += 1
        _count_down(self.tunnels_of, tunnel.lac)

    def tunnel_gone(self, tunnel: Tunnel) -> None:
        """Stop counting a tunnel."""
        self.half_open.discard(tunnel)
        self.lingering -= 1

    def may_linger(self) -> bool:
        """Return True if one more closed tunnel may stay to acknowledge repetitions."""
        return self.lingering <= self._limits.max_lingering

    # Calls

    def call_refusal(self, tunnel: Tunnel) -> ProtocolError | None:
        """Return why a tunnel may have no further call now, or None. Result 4 asks the LAC to try again later."""
        config, max_ids = tunnel.config, self._limits.max_ids
        if self.shutting_down or tunnel.dropping:
            return ProtocolError(CdnResult.ADMINISTRATIVE, 0, "shutting down")
        if (
            self.starting.total() >= config.max_starting_calls
            or self.starting[tunnel.lac] >= config.max_starting_per_lac
            or len(self._sessions) >= min(config.max_sessions or max_ids, max_ids)
            or tunnel.has_backlog()
        ):
            return ProtocolError(CdnResult.NO_FACILITIES, ErrorCode.RESOURCES, "too many calls")
        return None

    def call_begun(self, lac: str) -> None:
        """Count a call among those that are starting."""
        self.starting[lac] += 1

    def call_started(self, lac: str) -> None:
        """Stop counting a call as starting: it is online, or has ended."""
        _count_down(self.starting, lac)


def _count_down(counter: Counter[str], lac: str) -> None:
    counter[lac] -= 1
    if counter[lac] <= 0:
        del counter[lac]
