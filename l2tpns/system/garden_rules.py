"""Walled gardens in the kernel (manual: Walled Garden; docs/garden.md): chains, one set of addresses for each garden.

In nat, as the manual has it: PREROUTING -> l2tpns -> garden_users -> garden. The last is the operator's: it says where
new connections go. nat alone lets everything else out (ICMP, other protocols, connections that exist), so in filter
FORWARD -> l2tpns -> garden, the operator's, too, and then what he did not let out is dropped, but for what nat has sent
elsewhere, and DNS. Each garden costs a few rules, whoever is in it an entry of a set.

All of this holds for packets that the kernel forwards: a data path beside it must not carry whoever is in a garden.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Network

from l2tpns.system.conntrack import Conntrack
from l2tpns.system.firewall import FILLED, Firewall, Table
from l2tpns.system.ipset import IpSets

OURS, USERS, OUT, IN = "l2tpns", "garden_users", "l2tpns_out", "l2tpns_in"
DEFAULT = "garden"
RESERVED = "users"  # no garden can have this name: garden_users is a chain already
LARGEST = 262_144  # networks in one garden

_OUT = (
    "-m conntrack --ctstate DNAT --ctdir ORIGINAL -j RETURN",  # where the operator's chain in nat has sent it
    "-p udp -m udp --dport 53 -j RETURN",
    "-p tcp -m tcp --dport 53 -j RETURN",
    "-j DROP",
)
_IN = (
    "-m conntrack --ctdir REPLY -j RETURN",
    "-j DROP",
)


def chain_of(name: str) -> str:
    """The operator's chain for a garden, in nat and in filter."""
    return DEFAULT if name == DEFAULT else f"{DEFAULT}_{name}"


def set_of(name: str) -> str:
    return USERS if name == DEFAULT else f"{USERS}_{name}"


class Cage:
    """All gardens of one server. What the kernel refuses is a FirewallError or an IpSetError."""

    def __init__(self, firewall: Firewall, sets: IpSets) -> None:
        self._firewall = firewall
        self._sets = sets
        self._conntrack = Conntrack()
        self._ours: set[tuple[str, str]] = set()  # chains of the operator's that we had to make: table, name

    def build(self, name: str) -> bool:
        """Have the garden's rules, whatever is there already; whether anything had to be made."""
        self._firewall.load()
        self._sets.ensure(set_of(name), maxelem=LARGEST)
        chain, users = chain_of(name), set_of(name)
        with self._firewall.change("nat", "filter") as (nat, filter_):
            for table, label in ((nat, "nat"), (filter_, "filter")):
                if table.chain(chain):
                    self._ours.add((label, chain))
            for own in (OURS, USERS):
                nat.chain(own)
            for own in (OURS, OUT, IN):
                filter_.chain(own)
            for rule in _OUT:
                filter_.ensure(OUT, rule)
            for rule in _IN:
                filter_.ensure(IN, rule)
            nat.ensure(USERS, f"-m set --match-set {users} src -j {chain}")
            for way, last in (("src", OUT), ("dst", IN)):
                filter_.ensure(OURS, f"-m set --match-set {users} {way} -j {chain}")
                filter_.ensure(OURS, f"-m set --match-set {users} {way} -j {last}")
            _lead(nat, OURS, USERS)
            # Before everybody else's: what another rule of nat sends elsewhere has left the garden.
            _lead(nat, "PREROUTING", OURS, first=True)
            _lead(filter_, "FORWARD", OURS, first=True)
            return nat.changed or filter_.changed

    def filled(self, name: str) -> None:
        """What is in the garden's chains was put there on our behalf: it goes with us, where we made the chain."""
        chain = chain_of(name)
        with self._firewall.change("nat", "filter") as (nat, filter_):
            for table, label in ((nat, "nat"), (filter_, "filter")):
                if (label, chain) in self._ours and table.has_chain(chain):
                    table.mark(chain, FILLED)

    def is_empty(self, name: str) -> bool:
        """Nobody has said where new connections go."""
        with self._firewall.change("nat") as (nat,):
            return all(rule.ours for rule in nat.rules(chain_of(name)))

    def add(self, name: str, networks: Iterable[IPv4Network]) -> None:
        for network in networks:
            self._sets.add(set_of(name), network)

    def remove(self, name: str, networks: Iterable[IPv4Network]) -> None:
        for network in networks:
            self._sets.remove(set_of(name), network)

    def fill(self, name: str, networks: Iterable[IPv4Network]) -> tuple[int, int]:
        """Exactly these are in the garden; how many were missing, and too many."""
        return self._sets.fill(set_of(name), dict.fromkeys(networks))

    def count(self, name: str) -> int:
        """Return how many networks the garden's set holds."""
        return self._sets.count(set_of(name))

    def forget(self, networks: Collection[IPv4Network]) -> int:
        """Connections that they began are decided about anew; others have turns meanwhile."""
        return self._conntrack.forget(networks)

    def tidy(self, names: Collection[str]) -> None:
        """There are these gardens: sets of others, which an earlier process had, go."""
        remove_sets(self._sets, {set_of(name) for name in names})

    def stop(self) -> None:
        """When no rule of ours is left, the sets can go."""
        self.tidy(())
        self._conntrack.close()


def remove_sets(sets: IpSets, keep: Collection[str]) -> None:
    for name in sets.names():
        if name not in keep and (name == USERS or name.startswith(f"{USERS}_")):
            sets.destroy(name)


def _lead(table: Table, chain: str, to: str, *, first: bool = False) -> None:
    """A rule that leads there, unless the operator has one, as the manual tells him."""
    if not table.leads(chain, to):
        table.ensure(chain, f"-j {to}", first=first)
