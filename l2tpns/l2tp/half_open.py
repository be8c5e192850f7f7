"""Half-open tunnels, which have had their SCCRP and not yet sent their SCCCN (RFC 2661 5.8).

An SCCRQ costs its sender one datagram from any address it likes, and this server a place for half a minute. So when
all places are taken the oldest is evicted: docs/decisions/0009-the-oldest-half-open-tunnel-makes-room.md. Established
tunnels are never in here.
"""

from __future__ import annotations

from l2tpns.l2tp.timing import TunnelTiming
from l2tpns.l2tp.tunnel import Tunnel


class HalfOpen:
    """All half-open tunnels, the oldest first."""

    def __init__(self, timing: TunnelTiming) -> None:
        self._timing = timing
        self._tunnels: dict[int, Tunnel] = {}
        self._by_lac: dict[str, dict[int, Tunnel]] = {}

    def __len__(self) -> int:
        return len(self._tunnels)

    def total(self) -> int:
        """Return how many there are."""
        return len(self._tunnels)

    def of(self, lac: str) -> int:
        """Return how many of a LAC's address there are."""
        return len(self._by_lac.get(lac, ()))

    def add(self, tunnel: Tunnel) -> None:
        """Add the youngest."""
        self._tunnels[tunnel.id] = tunnel
        self._by_lac.setdefault(tunnel.lac, {})[tunnel.id] = tunnel

    def discard(self, tunnel: Tunnel) -> None:
        """Remove a tunnel that is established, or gone. Harmless at any time."""
        if self._tunnels.get(tunnel.id) is not tunnel:
            return
        del self._tunnels[tunnel.id]
        own = self._by_lac[tunnel.lac]
        del own[tunnel.id]
        if not own:
            del self._by_lac[tunnel.lac]

    def oldest(self, now: float, lac: str | None = None) -> Tunnel | None:
        """Return which to evict: the oldest of this LAC; without one, the oldest of an address that has most."""
        most = 0 if lac is not None else max(map(len, self._by_lac.values()), default=0)
        second: Tunnel | None = None
        for tunnel in (self._tunnels if lac is None else self._by_lac.get(lac, {})).values():
            if now - tunnel.opened_at < self._timing.half_open_grace:
                break  # and the rest are younger still
            if len(tunnel.mailbox):
                continue  # what has come for it may be its SCCCN
            if len(self._by_lac[tunnel.lac]) >= most:
                return tunnel
            second = second or tunnel
        return second
