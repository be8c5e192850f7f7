"""Half-open tunnels: those whose LAC has been sent the SCCRP and has not sent the SCCCN (RFC 2661 7.2.1).

An SCCRQ costs its sender one datagram, whose address may be forged, and it costs this server a half-open tunnel for
half a minute. So when there are too many the oldest is evicted: see
docs/decisions/0009-the-oldest-half-open-tunnel-makes-room.md. Established tunnels are never evicted.
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
        """Return the number of half-open tunnels."""
        return len(self._tunnels)

    def of(self, lac: str) -> int:
        """Return the number of half-open tunnels from a LAC's address."""
        return len(self._by_lac.get(lac, ()))

    def add(self, tunnel: Tunnel) -> None:
        """Add the newest tunnel."""
        self._tunnels[tunnel.id] = tunnel
        self._by_lac.setdefault(tunnel.lac, {})[tunnel.id] = tunnel

    def discard(self, tunnel: Tunnel) -> None:
        """Remove a tunnel that is established or gone, if it is here."""
        if self._tunnels.get(tunnel.id) is not tunnel:
            return
        del self._tunnels[tunnel.id]
        own = self._by_lac[tunnel.lac]
        del own[tunnel.id]
        if not own:
            del self._by_lac[tunnel.lac]

    def oldest(self, now: float, lac: str | None = None) -> Tunnel | None:
        """Return which tunnel to evict, or None: the oldest of this LAC; without `lac`, of an address with the most."""
        most = 0 if lac is not None else max(map(len, self._by_lac.values()), default=0)
        second: Tunnel | None = None
        for tunnel in (self._tunnels if lac is None else self._by_lac.get(lac, {})).values():
            if now - tunnel.opened_at < self._timing.half_open_grace:
                break  # the rest are newer
            if len(tunnel.mailbox):
                continue  # the message in it may be the SCCCN
            if len(self._by_lac[tunnel.lac]) >= most:
                return tunnel
            second = second or tunnel
        return second
