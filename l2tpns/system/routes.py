"""The kernel routes to subscribers: prefixes of the pool, framed addresses outside it, framed routes.

All of them go through the tun device and carry a protocol number of our own: `ip route show proto 115` lists them, and
by it we recognise them. Routes of others are neither replaced nor removed. Routes are reference-counted, because two
sessions may have the same route, and a framed address may be a prefix of the pool.

Addresses that this server itself needs (subscriber/routable.py) are left out: a route that contains one is installed
as several, which together cover everything else. Other routes of the kernel still apply to those addresses.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network

from l2tpns.proto.ip.prefixes import subtract
from l2tpns.runtime.log import Logger
from l2tpns.system.rtnetlink import Netlink, Route

# 0 to 4 belong to the kernel, others to daemons in rt_protos of iproute2; 115 is the IP protocol number of L2TP.
PROTOCOL = 115


class Routes:
    """The routes through one device."""

    def __init__(self, netlink: Netlink, device: int, log: Logger) -> None:
        self._netlink = netlink
        self._device = device
        self._log = log
        self._users: dict[IPv4Network, int] = {}
        self._prefixes: frozenset[IPv4Network] = frozenset()  # of the pool
        self._pool: dict[int, set[int]] = {}  # the same by netmask: what needs no route for a single address
        self._needed: dict[IPv4Network, str] = {}  # left out of every route, with the words for it
        self._numbers: list[int] = []  # the single addresses among them, in order
        self._single: frozenset[int] = frozenset()  # the same, to ask for one
        self._ranges: list[IPv4Network] = []  # and the others
        self._connected: tuple[IPv4Network, ...] = ()  # left out of the pool's
        self._connected_numbers: list[tuple[int, int]] = []  # the same as (mask, network)
        self._pieces: dict[IPv4Network, tuple[IPv4Network, ...]] = {}  # what a wanted route is in the kernel
        self._installed: Counter[IPv4Network] = Counter()  # how many wanted routes a piece belongs to
        self._refused: set[IPv4Network] = set()  # pieces that the kernel does not take
        self._inherited: set[IPv4Network] = set()  # pieces that an earlier process has installed, until `settle`

    def start(self) -> None:
        """Adopt what an earlier process left, until `settle`: packets are being carried there."""
        self._inherited = {route.prefix for route in self._netlink.routes(self._device, PROTOCOL)}

    def settle(self) -> None:
        """Remove what an earlier process left and nobody has asked for since."""
        gone = [self._route(piece) for piece in self._inherited if piece not in self._installed]
        self._inherited = set()
        self._delete(gone)

    def stop(self, *, keep: bool = False) -> None:
        """Remove all our routes, unless they are kept for the next process."""
        if not keep:
            left = self._inherited.union(self._installed)
            self._delete([self._route(piece) for piece in left])
        for state in (self._users, self._pieces, self._installed, self._refused, self._inherited):
            state.clear()
        self._prefixes, self._pool = frozenset(), {}

    def take_pool(self, prefixes: Iterable[IPv4Network]) -> list[IPv4Network]:
        """Route these prefixes, so that their addresses need no routes of their own.

        Return the earlier prefixes that are not among them. The caller removes these when they are unused.
        """
        before, after = self._prefixes, frozenset(prefixes)
        self._prefixes, self._pool = after, {}
        for prefix in after:
            self._pool.setdefault(int(prefix.netmask), set()).add(int(prefix.network_address))
        self.add(sorted(after - before))
        return sorted(before - after)

    def covers(self, address: IPv4Address) -> bool:
        """Return True if a prefix of the pool covers this address."""
        number = int(address)
        if not any(number & mask in networks for mask, networks in self._pool.items()):
            return False
        return number not in self._single and not any(number & mask == net for mask, net in self._connected_numbers)

    def avoid(self, needed: Mapping[IPv4Network, str], connected: Collection[IPv4Network]) -> bool:
        """Leave out needed addresses of every route, and connected networks of the pool's routes, from now on.

        Return True if routes have changed.
        """
        if self._needed == needed and self._connected == tuple(connected):
            return False
        before, self._needed = self._needed, dict(needed)
        self._numbers = sorted(int(each.network_address) for each in needed if each.prefixlen == 32)
        self._single = frozenset(self._numbers)
        self._ranges = [each for each in needed if each.prefixlen < 32]
        pool_changed, self._connected = self._connected != tuple(connected), tuple(connected)
        self._connected_numbers = [(int(each.netmask), int(each.network_address)) for each in connected]
        affected = {prefix for prefix in self._prefixes if prefix in self._pieces} if pool_changed else set()
        for hole in {*before} ^ {*self._needed}:
            wanted = self._wanted_overlapping(hole)
            affected.update(wanted)
            for prefix in wanted:
                if hole in self._needed and prefix not in self._prefixes:
                    why = f"{hole.network_address} is {self._needed[hole]}"
                    self._log.warning("route_holed", route=str(prefix), why=why)
        for prefix in affected:
            self._recut(prefix)
        return bool(affected)

    def _wanted_overlapping(self, hole: IPv4Network) -> list[IPv4Network]:
        if hole.prefixlen < 32:
            return [prefix for prefix in self._pieces if prefix.overlaps(hole)]
        number = int(hole.network_address)
        supernets = (IPv4Network((number >> bits << bits, 32 - bits)) for bits in range(33))
        return [prefix for prefix in supernets if prefix in self._pieces]

    def _recut(self, prefix: IPv4Network) -> None:
        """Install the new pieces of a route before its old ones are removed: no address is unreachable in between."""
        before = self._pieces[prefix]
        self._pieces[prefix] = after = self._cut(prefix)
        self._install(after)
        self._uninstall(before)

    def _cut(self, prefix: IPv4Network) -> tuple[IPv4Network, ...]:
        first = bisect_left(self._numbers, int(prefix.network_address))
        last = bisect_right(self._numbers, int(prefix.broadcast_address))
        holes = [IPv4Network(number) for number in self._numbers[first:last]]
        holes += [hole for hole in self._ranges if hole.overlaps(prefix)]
        if prefix in self._prefixes:
            holes += [network for network in self._connected if network.overlaps(prefix)]
        return tuple(subtract((prefix,), holes)) if holes else (prefix,)

    def add(self, prefixes: Iterable[IPv4Network]) -> None:
        """Count one more user of each prefix. A refused route is logged; the session goes on without it."""
        new: list[IPv4Network] = []
        for prefix in prefixes:
            users = self._users.get(prefix, 0)
            self._users[prefix] = users + 1
            if not users:
                self._pieces[prefix] = pieces = self._cut(prefix)
                new += pieces
        self._install(new)

    def move(self, device: int) -> int:
        """Install all routes again through a new device, after the old one was deleted. Return how many."""
        self._device = device
        self._inherited = set()
        self._explain(dict(self._netlink.add_routes([self._route(piece) for piece in self._installed])))
        return len(self._installed)

    def remove(self, prefixes: Iterable[IPv4Network]) -> None:
        """Count one user less of each prefix. The route is removed with its last user."""
        gone: list[IPv4Network] = []
        for prefix in prefixes:
            users = self._users.get(prefix, 0)
            if users > 1:
                self._users[prefix] = users - 1
            elif users:
                del self._users[prefix]
                gone += self._pieces.pop(prefix)
        self._uninstall(gone)

    def compare(self, there: Collection[IPv4Network]) -> list[IPv4Network]:
        """Compare with `there`, our routes in the kernel: install missing ones, remove unwanted ones.

        Return what was missing. Raises NetlinkError.
        """
        wanted = self._inherited.union(self._installed)
        self._delete([self._route(prefix) for prefix in there if prefix not in wanted])
        return self._install_again([piece for piece in self._installed if piece not in there], explain=True)

    def repair(self, lost: Collection[IPv4Network]) -> list[IPv4Network]:
        """Install deleted routes again if they are wanted. Return what was missing. Raises NetlinkError.

        A route that was deleted and added again, for two sessions with the same address, is not missing.
        """
        return self._install_again([prefix for prefix in lost if prefix in self._installed])

    def _install_again(self, pieces: Collection[IPv4Network], *, explain: bool = False) -> list[IPv4Network]:
        failed = dict(self._netlink.add_routes([self._route(piece) for piece in pieces]))
        self._explain({route: code for route, code in failed.items() if explain or code != errno.EEXIST})
        restored = [piece for piece in pieces if self._route(piece) not in failed]
        self._refused.difference_update(restored)
        self._delete([self._route(piece) for piece in restored if piece not in self._installed])  # removed meanwhile
        return [piece for piece in restored if piece in self._installed]

    # The kernel

    def _install(self, pieces: Iterable[IPv4Network]) -> None:
        new = []
        for piece in pieces:
            self._installed[piece] += 1
            if self._installed[piece] == 1 and piece not in self._inherited:
                new.append(self._route(piece))
        if not new:
            return
        self._explain(dict(self._netlink.add_routes(new)))

    def _explain(self, failed: Mapping[Route, int]) -> None:
        """Log the routes that the kernel refused, except existing ones that are ours."""
        exist = [route for route, code in failed.items() if code == errno.EEXIST]
        ours = set(self._netlink.routes(self._device, PROTOCOL)) if exist else set()
        for route, code in failed.items():
            if code != errno.EEXIST:
                self._refuse(route.prefix, os.strerror(code))
            elif route not in ours:
                self._refuse(route.prefix, "another program routes this prefix")

    def _uninstall(self, pieces: Iterable[IPv4Network]) -> None:
        gone = []
        for piece in pieces:
            self._installed[piece] -= 1
            if self._installed[piece] <= 0:
                del self._installed[piece]
                self._refused.discard(piece)
                self._inherited.discard(piece)
                gone.append(self._route(piece))
        self._delete(gone)

    def _refuse(self, piece: IPv4Network, why: str) -> None:
        if piece not in self._refused:
            self._refused.add(piece)
            self._log.error("route_refused", route=str(piece), why=why)

    def _route(self, prefix: IPv4Network) -> Route:
        return Route(prefix, self._device, PROTOCOL)

    def _delete(self, routes: list[Route]) -> None:
        if not routes:
            return
        for route, code in self._netlink.delete_routes(routes):
            # ESRCH, ENODEV: it was removed already, or never ours.
            if code not in (errno.ESRCH, errno.ENODEV):
                self._log.error("route_stuck", route=str(route.prefix), why=os.strerror(code))
