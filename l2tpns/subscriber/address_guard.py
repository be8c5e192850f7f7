"""What follows from routable.py for sessions, tunnels, the pool and the routes of one server.

Called whenever something changes: another configuration or pool, a LAC that comes up, another state of the kernel's.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from time import monotonic
from typing import TYPE_CHECKING

from l2tpns.proto.ip.prefixes import SPECIAL
from l2tpns.subscriber.routable import Routable
from l2tpns.system.surroundings import Surroundings

if TYPE_CHECKING:
    from l2tpns.lns import Lns
    from l2tpns.subscriber.session import Session

MAX_WARNINGS = 20  # about the pool, of one look


class AddressGuard:
    """One for the Lns."""

    def __init__(self, lns: Lns) -> None:
        self._lns = lns
        self.routable = Routable(lns.config)

    # What sessions ask

    def refusal(self, address: IPv4Address) -> str:
        """Say why no subscriber can have this address, or nothing."""
        return self.routable.refusal(IPv4Network(address))

    def narrow(self, session: Session) -> None:
        """Take those framed routes from a session that may not be routed, before it is carried."""
        assert session.profile is not None
        permitted = []
        for route in session.profile.routes:
            why = self.routable.refusal(route.prefix)
            if why:
                session.log.provoked("framed_route_refused", user=session.user, route=str(route.prefix), why=why)
            else:
                permitted.append(route)
        if len(permitted) < len(session.profile.routes):
            session.profile = replace(session.profile, routes=tuple(permitted))

    # What tunnels ask

    def lac_refusal(self, host: str) -> str:
        """Say why a LAC at this address cannot have a tunnel: our answers would go to a subscriber. At an address of
        the pool that no subscriber has it may: the address is the LAC's from now on."""
        address = IPv4Address(host)
        if self.routable.is_lac(address) or not self._lns.plane.leads_into_tun(address):
            return ""
        path = self._lns.plane.subscriber_at(address)
        if path is not None:
            session = self._lns.sessions.get(path.key & 0xFFFF)
            return f"{address} is routed to the subscriber {session.user if session is not None else ''}".rstrip()
        if not self.routable.lac_candidate(address, monotonic()):
            return f"{address} is an address of the pool, as those of other LACs that are connecting"
        self.refresh()
        return ""

    def lac_established(self, host: str, name: str) -> None:
        """A LAC has shown that it hears us: its address is no subscriber's."""
        address = IPv4Address(host)
        was_routed = self._lns.plane.leads_into_tun(address)
        if self.routable.lac_established(address, name, monotonic()) and was_routed:
            self.refresh()

    def lac_left(self, host: str) -> None:
        self.routable.lac_left(IPv4Address(host), monotonic())

    # Changes

    def follow(self, surroundings: Surroundings) -> None:
        """The kernel's state has changed, or it is time to look."""
        lns = self._lns
        self.routable.expire(monotonic(), {IPv4Address(tunnel.peer[0]) for tunnel in lns.tunnels.values()})
        self.routable.surroundings = surroundings
        self.refresh()

    def refresh(self) -> None:
        """Have the pool give out, and the routes lead to, what may be routed, and nothing else."""
        lns = self._lns
        withheld = self.routable.withheld(lns.pool.networks)
        before = lns.pool.withheld
        if lns.pool.withhold(withheld):
            lns.claim_held_addresses()
        new = [each for each in withheld if each not in before and not self.routable.is_configured(each)]
        for network in new[:MAX_WARNINGS]:
            lns.log.warning("pool_address_withheld", network=str(network), why=withheld[network])
        if len(new) > MAX_WARNINGS:
            lns.log.warning("pool_address_withheld", network="others", why=f"{len(new) - MAX_WARNINGS} more")
        needed = self.routable.needed()
        lns.plane.avoid(needed.kept_free, (*needed.connected, *SPECIAL))
