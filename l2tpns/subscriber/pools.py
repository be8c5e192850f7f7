"""All address pools of a server: the unnamed one, and those that `pool NAME` begins in the file.

RADIUS names a pool (Framed-Pool), else the profile of the LAC or the variable `ip_pool`. No address is in two pools. A
pool that is gone from the file keeps the addresses that sessions have until they give them back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from ipaddress import IPv4Address, IPv4Network

from l2tpns.config import user_names
from l2tpns.errors import NoAddress
from l2tpns.subscriber.pool import Holding, Layout, Pool

UNNAMED = ""


class Pools:
    """Pools by name. Does not yield."""

    __slots__ = ("_clock", "_key", "_pools", "_withheld")

    def __init__(
        self,
        layout: Layout | None = None,
        clock: Callable[[], float] = time.monotonic,
        key: Callable[[str], str] = user_names.fold,
    ) -> None:
        """`layout` is the unnamed pool's, with the named ones. `key` maps spellings of a user name to the same key."""
        self._clock = clock
        self._key = key
        self._withheld: frozenset[IPv4Network] = frozenset()
        self._pools: dict[str, Pool] = {}
        self.change(layout or Layout())

    # By name

    @property
    def names(self) -> list[str]:
        """Return the names of the pools, the unnamed one first."""
        return list(self._pools)

    def pool(self, name: str) -> Pool | None:
        return self._pools.get(name)

    def allocate(self, user: str, name: str = UNNAMED) -> IPv4Address:
        """Allocate an address of a pool for `user`. Raises NoAddress if there is none."""
        pool = self._pools.get(name)
        if pool is None:
            raise NoAddress(f"there is no pool {name}")
        return pool.allocate(user)

    def change(self, layout: Layout) -> None:
        """Use another layout from now on. Addresses in use stay so."""
        wanted = {UNNAMED: layout, **layout.named}
        for name in [name for name in self._pools if name not in wanted]:
            self._pools[name].change(Layout())
            if not self._pools[name].used:
                del self._pools[name]
        for name, own in wanted.items():
            pool = self._pools.get(name)
            if pool is None:
                pool = self._pools[name] = Pool(own, self._clock, self._key)
                pool.withhold(self._withheld)
            else:
                pool.change(own)

    # By address

    def contains(self, address: IPv4Address) -> bool:
        """Return whether a pool manages an address."""
        return self._of(address) is not None

    def claim(self, address: IPv4Address, user: str) -> bool:
        """Allocate a given address. Return False if it is in use or in no pool."""
        pool = self._of(address)
        return pool is not None and pool.claim(address, user)

    def release(self, address: IPv4Address) -> bool:
        """Free an address, and remember its user. Return False if it was not in use."""
        pool = self._of(address)
        return pool is not None and pool.release(address)

    def _of(self, address: IPv4Address) -> Pool | None:
        """Return the pool of an address: the one in which it is in use, if it has moved to another."""
        found = [pool for pool in self._pools.values() if pool.contains(address)]
        return next((pool for pool in found if pool.uses(address)), found[0] if found else None)

    # All together

    def withhold(self, unfit: Collection[IPv4Network]) -> bool:
        """Allocate no address of these networks, and again those of networks withheld before.

        Return True if the networks have changed.
        """
        self._withheld = frozenset(unfit)
        return any([pool.withhold(unfit) for pool in self._pools.values()])

    @property
    def withheld(self) -> frozenset[IPv4Network]:
        return self._withheld

    def compare_names(self, key: Callable[[str], str]) -> None:
        """Compare user names by this key from now on."""
        self._key = key
        for pool in self._pools.values():
            pool.compare_names(key)

    @property
    def networks(self) -> tuple[IPv4Network, ...]:
        """Return the networks of the file."""
        return tuple(network for pool in self._pools.values() for network in pool.networks)

    def prefixes(self) -> tuple[IPv4Network, ...]:
        """Return the networks to route into the tun device."""
        return Layout(self.networks).prefixes() if len(self._pools) > 1 else self._pools[UNNAMED].prefixes()

    @property
    def size(self) -> int:
        return sum(pool.size for pool in self._pools.values())

    @property
    def used(self) -> int:
        return sum(pool.used for pool in self._pools.values())

    @property
    def free(self) -> int:
        return sum(pool.free for pool in self._pools.values())

    def holdings(self) -> Iterator[tuple[str, Holding]]:
        """Yield (pool, address in use), then (pool, free one with a last user), pool by pool."""
        for name, pool in list(self._pools.items()):
            for holding in pool.holdings():
                yield name, holding

    def never_used(self) -> Iterator[tuple[str, IPv4Address]]:
        """Yield (pool, address that was never used). There may be millions."""
        for name, pool in list(self._pools.items()):
            for address in pool.never_used():
                yield name, address
