"""Tunnels that have had their SCCRP and not yet sent their SCCCN: how many, whose, and who makes room (RFC 2661 5.8).

An SCCRQ costs its sender one datagram from any address it likes, and us a place for half a minute. So when all places
are taken the oldest goes, as docs/decisions/0009-the-oldest-half-open-tunnel-makes-room.md tells. Established tunnels
are never here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l2tpns.l2tp.tunnel import Tunnel

# Seconds that a tunnel has at least to bring its SCCCN, whatever else comes meanwhile.
ANSWER_TIME = 0.25


class HalfOpen:
    """The oldest first. Knows them until they are discarded."""

    def __init__(self) -> None:
        self._tunnels: dict[int, Tunnel] = {}
        self._by_lac: dict[str, dict[int, Tunnel]] = {}

    def __len__(self) -> int:
        return len(self._tunnels)

    def total(self) -> int:
        return len(self._tunnels)

    def of(self, lac: str) -> int:
        return len(self._by_lac.get(lac, ()))

    def add(self, tunnel: Tunnel) -> None:
        self._tunnels[tunnel.id] = tunnel
        self._by_lac.setdefault(tunnel.lac, {})[tunnel.id] = tunnel

    def discard(self, tunnel: Tunnel) -> None:
        """It is established, or gone; harmless at any time."""
        if self._tunnels.get(tunnel.id) is not tunnel:
            return
        del self._tunnels[tunnel.id]
        own = self._by_lac[tunnel.lac]
        del own[tunnel.id]
        if not own:
            del self._by_lac[tunnel.lac]

    def oldest(self, now: float, lac: str | None = None) -> Tunnel | None:
        """Who makes room: the oldest of this LAC; of all, the oldest of an address that has most."""
        most = 0 if lac is not None else max(map(len, self._by_lac.values()), default=0)
        second: Tunnel | None = None
        for tunnel in (self._tunnels if lac is None else self._by_lac.get(lac, {})).values():
            if now - tunnel.opened_at < ANSWER_TIME:
                break  # and the rest are younger still
            if len(tunnel.mailbox):
                continue  # what has come for it may be its SCCCN
            if len(self._by_lac[tunnel.lac]) >= most:
                return tunnel
            second = second or tunnel
        return second
