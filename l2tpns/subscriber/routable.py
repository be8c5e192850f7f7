"""Decides which addresses may be routed into the tun device, for every source of such routes.

A Framed-IP-Address, a Framed-Route, the address that a subscriber requests, the pool and the saved state may each name
an address that this server itself needs. If the address of a LAC were routed to a subscriber, all tunnels of that LAC
would fail and this server's own L2TP packets would loop. See docs/decisions/0015-what-may-be-routed.md.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from l2tpns.config.settings import Config
from l2tpns.proto.ip.prefixes import SPECIAL, span, special_refusal, subtract
from l2tpns.system.surroundings import Surroundings

LAC_MEMORY = 86_400.0  # seconds for which a LAC without a tunnel keeps its address
MAX_LACS = 10_000  # beyond that the LAC that was established first is forgotten
MAX_CANDIDATES = 16  # LACs at addresses of the pool that have not yet shown that they receive replies
CANDIDATE_LIFETIME = 60.0  # seconds within which such a LAC must be established


@dataclass(frozen=True, slots=True)
class Needed:
    """Networks that must not be routed to subscribers, indexed for a fast search among thousands of LACs."""

    basis: tuple[object, ...]  # settings from which this was computed
    kept_free: dict[IPv4Network, str]  # routes to them are removed, even existing ones; with reasons
    hosts: dict[IPv4Network, str]  # these and those that no new session may have
    numbers: list[int]  # the single addresses of hosts, sorted
    ranges: tuple[IPv4Network, ...]  # the other networks of hosts
    connected: tuple[IPv4Network, ...]
    starts: list[int]  # of the spans of addresses that no session may have, sorted, none overlapping another
    ends: list[int]


class Routable:
    """Knows which networks may be routed into the tun device now. Does not yield."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._surroundings = Surroundings()
        self._needed: Needed | None = None
        self._lacs: dict[IPv4Network, tuple[str, float]] = {}  # name and expiry (monotonic)
        self._candidates: dict[IPv4Network, float] = {}  # expiry (monotonic)

    def address_refusal(self, address: IPv4Address) -> str:
        """Return what `refusal` returns for a single address. Costs one search for an address that is free."""
        needed, number = self.needed(), int(address)
        at = bisect_right(needed.starts, number) - 1
        return self.refusal(IPv4Network(address)) if at >= 0 and number <= needed.ends[at] else ""

    def refusal(self, network: IPv4Network) -> str:
        """Return why a network or address may not be routed into the tun device, an empty string if it may."""
        why = special_refusal(network)
        if why:
            return why
        needed = self.needed()
        found = needed.hosts.get(network)
        if found is not None:
            return f"{network.network_address} is {found}"
        for each in _overlapping(needed, network):
            if each.supernet_of(network):
                return f"{network} is {needed.hosts[each]}"
            return f"{network} contains {each.network_address}, {needed.hosts[each]}"
        for connected in needed.connected:
            if network.overlaps(connected):
                return f"{network} overlaps {connected}, {self._name_of(connected)}"
        return ""

    # Needed networks

    @property
    def surroundings(self) -> Surroundings:
        """Return the addresses and routes of the kernel. May be set."""
        return self._surroundings

    @surroundings.setter
    def surroundings(self, surroundings: Surroundings) -> None:
        self._surroundings, self._needed = surroundings, None

    def needed(self) -> Needed:
        """Return the networks that must not be routed into the tun device now."""
        config = self._config
        own = (config.tun_address, config.ppp_local_address)
        servers = tuple(server.address for server in config.radius_servers)
        basis = (own, servers, config.snoop_host, config.routed_networks)
        if self._needed is not None and self._needed.basis == basis:
            return self._needed
        hosts = {lac: f"the LAC {name}".rstrip() for lac, (name, _) in self._lacs.items()}
        hosts.update((lac, "a LAC that is connecting") for lac in self._candidates)
        hosts.update((IPv4Network(server), "a RADIUS server") for server in servers)
        hosts.update(self._surroundings.gateways)
        # The kernel looks up its own addresses before any route, so no route of this server diverts them.
        kept_free = {host: name for host, name in hosts.items() if host not in self._surroundings.own}
        hosts.update(self._surroundings.own)
        hosts[IPv4Network(config.tun_address)] = "the address of the tun device"
        hosts[IPv4Network(config.ppp_local_address)] = "our address in PPP"
        if config.snoop_host is not None:
            hosts.setdefault(IPv4Network(config.snoop_host), "needed by this server")  # not why: it is logged
        connected = tuple(collapse_addresses(subtract(self._surroundings.connected, config.routed_networks)))
        spans = [span(part) for part in collapse_addresses((*SPECIAL, *hosts, *connected))]
        self._needed = Needed(
            basis=basis,
            kept_free=kept_free,
            hosts=hosts,
            numbers=sorted(int(host.network_address) for host in hosts if host.prefixlen == 32),
            ranges=tuple(host for host in hosts if host.prefixlen < 32),
            connected=connected,
            starts=[first for first, _ in spans],
            ends=[last for _, last in spans],
        )
        return self._needed

    def withheld(self, networks: Iterable[IPv4Network]) -> dict[IPv4Network, str]:
        """Return the parts of the pool's networks that must not be allocated, each with its reason."""
        needed = self.needed()
        unfit = {special: f"{special} cannot be used by subscribers" for special in SPECIAL}
        for connected in needed.connected:
            unfit[connected] = f"{connected} is part of {self._name_of(connected)}; see routed_networks"
        for host, name in needed.hosts.items():
            unfit[host] = f"{host.network_address if host.prefixlen == 32 else host} is {name}"
        pool = sorted(collapse_addresses(networks))
        starts = [int(network.network_address) for network in pool]
        found: dict[IPv4Network, str] = {}
        for part, why in unfit.items():
            at = bisect_right(starts, int(part.broadcast_address)) - 1
            while at >= 0 and pool[at].overlaps(part):
                found.setdefault(part if part.prefixlen >= pool[at].prefixlen else pool[at], why)
                at -= 1
        return found

    def is_configured(self, network: IPv4Network) -> bool:
        """Return whether a setting of this server names the address: then the pool may contain it without a warning."""
        return network in (IPv4Network(self._config.tun_address), IPv4Network(self._config.ppp_local_address))

    def _name_of(self, connected: IPv4Network) -> str:
        names = (name for network, name in self._surroundings.connected.items() if network.overlaps(connected))
        return next(names, "a connected network")

    # LACs

    def lac_established(self, address: IPv4Address, name: str, now: float) -> bool:
        """Reserve the address of a LAC that receives replies. Return True if it was not reserved yet."""
        lac = IPv4Network(address)
        known = self._lacs.pop(lac, None)
        self._candidates.pop(lac, None)
        self._lacs[lac] = name, now + LAC_MEMORY
        while len(self._lacs) > MAX_LACS:
            del self._lacs[next(iter(self._lacs))]
        self._needed = None
        return known is None

    def lac_candidate(self, address: IPv4Address, now: float) -> bool:
        """Reserve a pool address of a LAC that requests a tunnel. Return False if there are too many of them.

        Each changes the kernel's routing table, and their addresses may be forged.
        """
        self.expire(now)
        lac = IPv4Network(address)
        if lac not in self._candidates and len(self._candidates) >= MAX_CANDIDATES:
            return False
        self._candidates[lac] = now + CANDIDATE_LIFETIME
        self._needed = None
        return True

    def is_lac(self, address: IPv4Address) -> bool:
        """Return whether a LAC has this address, or had it recently."""
        return IPv4Network(address) in self._lacs

    def lac_left(self, address: IPv4Address, now: float) -> None:
        """Keep the address of a LAC whose tunnel has ended for another LAC_MEMORY seconds."""
        lac = IPv4Network(address)
        if lac in self._lacs:
            self._lacs[lac] = self._lacs[lac][0], now + LAC_MEMORY

    def expire(self, now: float, living: Iterable[IPv4Address] = ()) -> bool:
        """Forget expired candidates, and expired LACs that are not `living`. Return True if there were any."""
        for address in living:
            self.lac_left(address, now)
        gone = [lac for lac, (_, until) in self._lacs.items() if until <= now]
        never = [lac for lac, until in self._candidates.items() if until <= now]
        for lac in gone:
            del self._lacs[lac]
        for lac in never:
            del self._candidates[lac]
        if gone or never:
            self._needed = None
        return bool(gone or never)


def _overlapping(needed: Needed, network: IPv4Network) -> Iterator[IPv4Network]:
    """Yield the needed networks that contain this network or are contained in it."""
    at = bisect_left(needed.numbers, int(network.network_address))
    if at < len(needed.numbers) and needed.numbers[at] <= int(network.broadcast_address):
        yield IPv4Network(needed.numbers[at])
    yield from (each for each in needed.ranges if each.overlaps(network))
