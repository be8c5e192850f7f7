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
from l2tpns.system.firewall import Firewall, Table
from l2tpns.system.ipset import IpSets

USERS = "garden_users"  # the chain, and the set of the default garden
DEFAULT = "garden"
RESERVED = "users"  # not a name for a garden: garden_users is a chain already
MAX_NETWORKS = 262_144  # in one garden

_MAX_SET_NAME = 31  # octets (linux/netfilter/ipset/ip_set.h)

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


class GardenRules:
    """The rules of all gardens of one server. Methods raise FirewallError or IpSetError."""

    def __init__(self, firewall: Firewall, sets: IpSets) -> None:
        self._firewall = firewall
        self._instance = named = firewall.instance
        self._top, self._users = named.name("l2tpns"), named.name(USERS)
        self._out, self._in = named.name("l2tpns_out"), named.name("l2tpns_in")
        self._sets = sets
        self._conntrack = Conntrack()
        self._built: set[str] = set()  # by this process
        self._ours: set[tuple[str, str]] = set()  # (table, name) of the operator's chains that we had to create

    @property
    def longest_name(self) -> int:
        """Return how many characters the name of a garden may have."""
        return _MAX_SET_NAME - len(self.set_of(" ")) + 1

    def chain_of(self, name: str) -> str:
        """Return the name of the operator's chain of a garden, in nat and in filter."""
        return self._instance.name(DEFAULT if name == DEFAULT else f"{DEFAULT}_{name}")

    def set_of(self, name: str) -> str:
        """Return the name of the set of a garden's addresses."""
        return self._instance.name(USERS if name == DEFAULT else f"{USERS}_{name}")

    def build(self, name: str) -> bool:
        """Ensure the rules of a garden. Return True if anything was missing."""
        self._firewall.load()
        self._sets.ensure(self.set_of(name), maxelem=MAX_NETWORKS)
        chain, users = self.chain_of(name), self.set_of(name)
        with self._firewall.change("nat", "filter") as (nat, filter_):
            for table, label in ((nat, "nat"), (filter_, "filter")):
                if table.chain(chain):
                    self._ours.add((label, chain))
                elif name not in self._built and table.is_filled(chain):
                    table.empty(chain)  # a process before this one had it filled, and it is filled anew
                    self._ours.add((label, chain))
            self._built.add(name)
            for own in (self._top, self._users):
                nat.chain(own)
            for own in (self._top, self._out, self._in):
                filter_.chain(own)
            for rule in _OUT:
                filter_.ensure(self._out, rule)
            for rule in _IN:
                filter_.ensure(self._in, rule)
            nat.ensure(self._users, f"-m set --match-set {users} src -j {chain}")
            for way, last in (("src", self._out), ("dst", self._in)):
                filter_.ensure(self._top, f"-m set --match-set {users} {way} -j {chain}")
                filter_.ensure(self._top, f"-m set --match-set {users} {way} -j {last}")
            _ensure_jump(nat, self._top, self._users)
            # Before all other rules: a connection that another rule of nat redirects has left the garden.
            _ensure_jump(nat, "PREROUTING", self._top, first=True)
            _ensure_jump(filter_, "FORWARD", self._top, first=True)
            return nat.changed or filter_.changed

    def filled(self, name: str) -> None:
        """Record that the chains of a garden were filled on our behalf: they are removed with us if we created them."""
        chain = self.chain_of(name)
        with self._firewall.change("nat", "filter") as (nat, filter_):
            for table, label in ((nat, "nat"), (filter_, "filter")):
                if (label, chain) in self._ours and table.has_chain(chain):
                    table.mark(chain, filled=True)

    def is_empty(self, name: str) -> bool:
        """Return True if no rule says where new connections go."""
        with self._firewall.change("nat") as (nat,):
            return all(map(nat.is_ours, nat.rules(self.chain_of(name))))

    def add(self, name: str, networks: Iterable[IPv4Network]) -> None:
        for network in networks:
            self._sets.add(self.set_of(name), network)

    def remove(self, name: str, networks: Iterable[IPv4Network]) -> None:
        for network in networks:
            self._sets.remove(self.set_of(name), network)

    def fill(self, name: str, networks: Iterable[IPv4Network]) -> tuple[int, int]:
        """Give the garden exactly these networks. Return how many were missing, and how many were too many."""
        return self._sets.fill(self.set_of(name), dict.fromkeys(networks))

    def count(self, name: str) -> int:
        """Return how many networks the garden's set holds."""
        return self._sets.count(self.set_of(name))

    def forget(self, networks: Collection[IPv4Network]) -> int:
        """Forget the connections that they opened, so that nat decides again. Return how many. May yield."""
        return self._conntrack.forget(networks)

    def tidy(self, names: Collection[str]) -> None:
        """Remove the rules and sets of all other gardens, which an earlier process has left."""
        others = {name for each in self._sets.names() if (name := self._garden_of(each))}.difference(names)
        if others:
            with self._firewall.change("nat", "filter") as (nat, filter_):
                for name in others:
                    users, chain = self.set_of(name), self.chain_of(name)
                    if nat.has_chain(chain):  # else no rule can jump to it
                        nat.remove(self._users, f"-m set --match-set {users} src -j {chain}")
                        nat.remove_chain(chain)
                    if filter_.has_chain(chain):
                        for way, last in (("src", self._out), ("dst", self._in)):
                            filter_.remove(self._top, f"-m set --match-set {users} {way} -j {chain}")
                            filter_.remove(self._top, f"-m set --match-set {users} {way} -j {last}")
                        filter_.remove_chain(chain)
        for name in others:
            self._sets.destroy(self.set_of(name))

    def _garden_of(self, users: str) -> str:
        """Return the garden whose set this is, an empty string if it is none of this server's."""
        base = self._instance.base(users)
        return DEFAULT if base == USERS else base.removeprefix(f"{USERS}_") if base.startswith(f"{USERS}_") else ""

    def stop(self) -> None:
        """Remove the sets. Our rules must be gone by now."""
        self.tidy(())
        self._conntrack.close()


def _ensure_jump(table: Table, chain: str, to: str, *, first: bool = False) -> None:
    """Ensure a rule that jumps to a chain, unless the operator has one, as the manual advises."""
    if not table.leads(chain, to):
        table.ensure(chain, f"-j {to}", first=first)
