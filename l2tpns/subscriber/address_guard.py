"""Applies routable.py to the sessions, tunnels, pool and routes of one server.

Called after each change: of the configuration, of the pool, of the LACs, of the kernel's addresses and routes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from time import monotonic
from typing import Any

from l2tpns.dataplane.plane import DataPlane
from l2tpns.policy.model import Subscriber
from l2tpns.proto.ip.prefixes import SPECIAL
from l2tpns.radius.types import FramedRoute
from l2tpns.runtime.log import Logger
from l2tpns.subscriber.pools import Pools
from l2tpns.subscriber.registry import Registry
from l2tpns.subscriber.routable import Routable
from l2tpns.system.surroundings import Surroundings

MAX_WARNINGS = 20  # about the pool, of one refresh


class AddressGuard:
    """Keeps routes within what `routable` permits. `sessions` is the server's table, by id. Does not yield."""

    def __init__(
        self,
        log: Logger,
        plane: DataPlane,
        pool: Pools,
        registry: Registry[Any],
        routable: Routable,
        sessions: Mapping[int, Subscriber],
        lac_addresses: Callable[[], set[IPv4Address]],
    ) -> None:
        self.routable = routable
        self._log = log
        self._plane = plane
        self._pool = pool
        self._registry = registry
        self._sessions = sessions
        self._lac_addresses = lac_addresses  # of all tunnels

    # Sessions

    def permitted(self, session: Subscriber, routes: tuple[FramedRoute, ...]) -> tuple[FramedRoute, ...]:
        """Return the framed routes of a session that may be routed. Log the others."""
        permitted = []
        for route in routes:
            why = self.routable.refusal(route.prefix)
            if why:
                session.log.warning_limited("framed_route_refused", user=session.user, route=str(route.prefix), why=why)
            else:
                permitted.append(route)
        return tuple(permitted) if len(permitted) < len(routes) else routes

    # Tunnels

    def lac_refusal(self, host: str) -> str:
        """Return why a LAC at this address is refused a tunnel, an empty string if it is not.

        It is refused if replies to it would be routed to a subscriber. An unused address of the pool is permitted and
        belongs to the LAC from now on.
        """
        address = IPv4Address(host)
        if self.routable.is_lac(address) or not self._plane.leads_into_tun(address):
            return ""
        path = self._plane.subscriber_at(address)
        if path is not None:
            session = self._sessions.get(path.key & 0xFFFF)
            return f"{address} is routed to the subscriber {session.user if session is not None else ''}".rstrip()
        if not self.routable.lac_candidate(address, monotonic()):
            return f"{address} is in the pool, as are the addresses of other LACs that are connecting"
        self.refresh()
        return ""

    def lac_established(self, host: str, name: str) -> None:
        """Reserve the address of a LAC that has shown that it receives replies."""
        address = IPv4Address(host)
        was_routed = self._plane.leads_into_tun(address)
        if self.routable.lac_established(address, name, monotonic()) and was_routed:
            self.refresh()

    def lac_left(self, host: str) -> None:
        """Begin the time for which the address of a LAC without a tunnel stays reserved."""
        self.routable.lac_left(IPv4Address(host), monotonic())

    # Changes

    def apply_surroundings(self, surroundings: Surroundings) -> None:
        """Apply the current addresses and routes of the kernel. Called after changes and periodically."""
        self.routable.expire(monotonic(), self._lac_addresses())
        self.routable.surroundings = surroundings
        self.refresh()

    def refresh(self) -> None:
        """Apply to the pool and the routes what may be routed now."""
        withheld = self.routable.withheld(self._pool.networks)
        before = self._pool.withheld
        if self._pool.withhold(withheld):
            self._registry.claim_held_addresses()
        new = [each for each in withheld if each not in before and not self.routable.is_configured(each)]
        for network in new[:MAX_WARNINGS]:
            self._log.warning("pool_address_withheld", network=str(network), why=withheld[network])
        if len(new) > MAX_WARNINGS:
            why = f"{len(new) - MAX_WARNINGS} more networks are withheld"
            self._log.warning("pool_address_withheld", network="others", why=why)
        needed = self.routable.needed()
        self._plane.avoid(needed.kept_free, (*needed.connected, *SPECIAL))
