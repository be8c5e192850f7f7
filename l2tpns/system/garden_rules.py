"""Walled gardens in the kernel (manual: Walled Garden; docs/garden.md): chains, one set of addresses for each garden.

In nat, as in the manual: PREROUTING -> l2tpns -> garden_users -> garden. The chain garden is the operator's: it
redirects new connections. nat alone lets everything else out (ICMP, other protocols, existing connections), so in
filter: FORWARD -> l2tpns -> garden, again the operator's chain, then everything except DNS and connections redirected
by nat is dropped. Each garden costs a few rules, each session in it an entry of a set.

All of this applies to packets that the kernel forwards: a data path beside it must not carry packets of a garden.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Network

from l2tpns.system.conntrack import Conntrack
from l2tpns.system.firewall import FILLED, Firewall, Table
from l2tpns.system.ipset import IpSets

OURS, USERS, OUT, IN = "l2tpns", "garden_users", "l2tpns_out", "l2tpns_in"
DEFAULT = "garden"
RESERVED = "users"  # not a name for a garden: garden_users is a chain already
MAX_NETWORKS = 262_144  # in one garden

_OUT = (
    "-m conntrack --ctstate DNAT --ctdir ORIGINAL -j RETURN",  # redirected by the chain of the operator in nat
    "-p udp -m udp --dport 53 -j RETURN",
    "-p tcp -m tcp --dport 53 -j RETURN",
    "-j DROP",
)
_IN = (
    "-m conntrack --ctdir REPLY -j RETURN",
    "-j DROP",
)


def chain_of(name: str) -> str:
    """Return the name of the operator's chain of a garden, in nat and in filter."""
    return DEFAULT if name == DEFAULT else f"{DEFAULT}_{name}"


def set_of(name: str) -> str:
    return USERS if name == DEFAULT else f"{USERS}_{name}"


class GardenRules:
    """The rules of all gardens of one server. Methods raise FirewallError or IpSetError."""

    def __init__(self, firewall: Firewall, sets: IpSets) -> None:
        self._firewall = firewall
        self._sets = sets
        self._conntrack = Conntrack()
        self._built: set[str] = set()  # by this process
        self._ours: set[tuple[str, str]] = set()  # (table, name) of the operator's chains that we had to create

    def build(self, name: str) -> bool:
        """Ensure the rules of a garden. Return True if anything was missing."""
        self._firewall.load()
        self._sets.ensure(set_of(name), maxelem=MAX_NETWORKS)
        chain, users = chain_of(name), set_of(name)
        with self._firewall.change("nat", "filter") as (nat, filter_):
            for table, label in ((nat, "nat"), (filter_, "filter")):
                if table.chain(chain):
                    self._ours.add((label, chain))
                elif name not in self._built and table.is_marked(chain, FILLED):
                    table.empty(chain)  # a process before this one had it filled, and it is filled anew
                    self._ours.add((label, chain))
            self._built.add(name)
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
            _ensure_jump(nat, OURS, USERS)
            # Before all other rules: a connection that another rule of nat redirects has left the garden.
            _ensure_jump(nat, "PREROUTING", OURS, first=True)
            _ensure_jump(filter_, "FORWARD", OURS, first=True)
            return nat.changed or filter_.changed

    def filled(self, name: str) -> None:
        """Record that the chains of a garden were filled on our behalf: they are removed with us if we created them."""
        chain = chain_of(name)
        with self._firewall.change("nat", "filter") as (nat, filter_):
            for table, label in ((nat, "nat"), (filter_, "filter")):
                if (label, chain) in self._ours and table.has_chain(chain):
                    table.mark(chain, FILLED)

    def is_empty(self, name: str) -> bool:
        """Return True if no rule says where new connections go."""
        with self._firewall.change("nat") as (nat,):
            return all(rule.ours for rule in nat.rules(chain_of(name)))

    def add(self, name: str, networks: Iterable[IPv4Network]) -> None:
        for network in networks:
            self._sets.add(set_of(name), network)

    def remove(self, name: str, networks: Iterable[IPv4Network]) -> None:
        for network in networks:
            self._sets.remove(set_of(name), network)

    def fill(self, name: str, networks: Iterable[IPv4Network]) -> tuple[int, int]:
        """Give the garden exactly these networks. Return how many were missing, and how many were too many."""
        return self._sets.fill(set_of(name), dict.fromkeys(networks))

    def count(self, name: str) -> int:
        """Return how many networks the garden's set holds."""
        return self._sets.count(set_of(name))

    def forget(self, networks: Collection[IPv4Network]) -> int:
        """Forget the connections that they opened, so that nat decides again. Return how many. May yield."""
        return self._conntrack.forget(networks)

    def tidy(self, names: Collection[str]) -> None:
        """Remove the rules and sets of all other gardens, which an earlier process has left."""
        used = {set_of(name) for name in names}
        others = [each for each in self._sets.names() if is_garden_set(each) and each not in used]
        if others:
            with self._firewall.change("nat", "filter") as (nat, filter_):
                for users in others:
                    chain = DEFAULT if users == USERS else f"{DEFAULT}_{users.removeprefix(f'{USERS}_')}"
                    if nat.has_chain(chain):  # else no rule can jump to it
                        nat.remove(USERS, f"-m set --match-set {users} src -j {chain}")
                        nat.remove_chain(chain)
                    if filter_.has_chain(chain):
                        for way, last in (("src", OUT), ("dst", IN)):
                            filter_.remove(OURS, f"-m set --match-set {users} {way} -j {chain}")
                            filter_.remove(OURS, f"-m set --match-set {users} {way} -j {last}")
                        filter_.remove_chain(chain)
        remove_sets(self._sets, used)

    def stop(self) -> None:
        """Remove the sets. Our rules must be gone by now."""
        self.tidy(())
        self._conntrack.close()


def remove_sets(sets: IpSets, keep: Collection[str]) -> None:
    for name in sets.names():
        if name not in keep and is_garden_set(name):
            sets.destroy(name)


def is_garden_set(name: str) -> bool:
    return name == USERS or name.startswith(f"{USERS}_")


def _ensure_jump(table: Table, chain: str, to: str, *, first: bool = False) -> None:
    """Ensure a rule that jumps to a chain, unless the operator has one, as the manual advises."""
    if not table.leads(chain, to):
        table.ensure(chain, f"-j {to}", first=first)
