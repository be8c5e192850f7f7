"""The kernel routes that lead to subscribers: the pool's prefixes, framed addresses outside it, framed routes.

All of them go through the tun device and carry a protocol number of our own, by which `ip route show proto 115` lists
them and by which we know our own: routes of others are never replaced nor removed. Reference-counted, because two
sessions may bring the same route, and a framed address may be one of the pool's prefixes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from l2tpns.log import Logger
from l2tpns.system.netlink import Netlink, Route

# 0 to 4 are the kernel's own, other daemons' are in iproute2's rt_protos; 115 is L2TP's number among IP's protocols.
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

    def start(self) -> None:
        """Remove what an earlier process left."""
        self._delete(self._netlink.routes(self._device, PROTOCOL))

    def stop(self) -> None:
        """Remove all of ours."""
        self._delete([self._route(prefix) for prefix in self._users])
        self._users.clear()
        self._prefixes, self._pool = frozenset(), {}

    def take_pool(self, prefixes: Iterable[IPv4Network]) -> list[IPv4Network]:
        """Route these prefixes: their addresses need no route of their own. Returns those of before that are not among
        them, to be removed by the caller when nobody needs them any more."""
        before, after = self._prefixes, frozenset(prefixes)
        self._prefixes, self._pool = after, {}
        for prefix in after:
            self._pool.setdefault(int(prefix.netmask), set()).add(int(prefix.network_address))
        self.add(sorted(after - before))
        return sorted(before - after)

    def covers(self, address: IPv4Address) -> bool:
        """Whether a prefix of the pool leads to this address."""
        number = int(address)
        return any(number & mask in networks for mask, networks in self._pool.items())

    def add(self, prefixes: Iterable[IPv4Network]) -> None:
        """One more user of each. A route that the kernel refuses is logged: the session lives on without it."""
        new = []
        for prefix in prefixes:
            users = self._users.get(prefix, 0)
            self._users[prefix] = users + 1
            if not users:
                new.append(self._route(prefix))
        if new:
            self._install(new)

    def move(self, device: int) -> int:
        """The device was deleted, and this is the new one: have all routes again, through it; how many."""
        self._device = device
        self._install([self._route(prefix) for prefix in self._users])
        return len(self._users)

    def _install(self, new: list[Route]) -> None:
        for route, code in self._netlink.add_routes(new):
            if code == errno.EEXIST:
                if route in self._netlink.routes(self._device, PROTOCOL):
                    continue
                self._log.error("route_refused", route=str(route.prefix), why="somebody else routes this prefix")
            else:
                self._log.error("route_refused", route=str(route.prefix), why=os.strerror(code))

    def remove(self, prefixes: Iterable[IPv4Network]) -> None:
        """One user less of each; the last one's going removes the route."""
        gone = []
        for prefix in prefixes:
            users = self._users.get(prefix, 0)
            if users > 1:
                self._users[prefix] = users - 1
            elif users:
                del self._users[prefix]
                gone.append(self._route(prefix))
        self._delete(gone)

    def _route(self, prefix: IPv4Network) -> Route:
        return Route(prefix, self._device, PROTOCOL)

    def _delete(self, routes: list[Route]) -> None:
        if not routes:
            return
        for route, code in self._netlink.delete_routes(routes):
            # ESRCH, ENODEV: it has gone already, or never was ours.
            if code not in (errno.ESRCH, errno.ENODEV):
                self._log.error("route_stuck", route=str(route.prefix), why=os.strerror(code))
