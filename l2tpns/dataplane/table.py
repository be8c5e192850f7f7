"""The lookup from a destination address to the path of its session (longest prefix match).

Single addresses are keys of one dict; framed routes have one dict per prefix length in use. If two sessions claim the
same address or route, the newest has it; when that session ends, the one before it has it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from typing import Generic, TypeVar

from l2tpns.dataplane.session_path import SessionPath

K = TypeVar("K", bytes, int)


class Claims(Generic[K]):
    """A map from each key to the newest of the paths that claim it."""

    __slots__ = ("holder", "older")

    def __init__(self) -> None:
        self.holder: dict[K, SessionPath] = {}
        self.older: dict[K, list[SessionPath]] = {}  # only where there is more than one claim

    def claim(self, key: K, path: SessionPath) -> None:
        """Make this path the holder of the key."""
        before = self.holder.get(key)
        if before is path:
            return
        if before is not None:
            self.older.setdefault(key, []).append(before)
        self.holder[key] = path

    def release(self, key: K, path: SessionPath) -> None:
        """Withdraw the path's claim; the claim before it holds the key again."""
        older = self.older.get(key, [])
        if self.holder.get(key) is not path:
            if path in older:
                older.remove(path)
        elif older:
            self.holder[key] = older.pop()
        else:
            del self.holder[key]
        if not older:
            self.older.pop(key, None)


class AddressTable:
    """Addresses and framed routes of all online sessions."""

    __slots__ = ("_addresses", "_lengths", "_prefixes", "addresses")

    def __init__(self) -> None:
        self._addresses: Claims[bytes] = Claims()
        self.addresses = self._addresses.holder  # read by the downlink for each packet
        self._prefixes: dict[int, Claims[int]] = {}  # by prefix length
        self._lengths: tuple[tuple[int, dict[int, SessionPath]], ...] = ()  # (mask, networks), longest first

    def add(self, path: SessionPath, address: bytes, routes: Iterable[IPv4Network]) -> None:
        """Claim an address and framed routes for a path."""
        self._addresses.claim(address, path)
        for route in routes:
            self._prefixes.setdefault(route.prefixlen, Claims()).claim(int(route.network_address), path)
        self._index()

    def remove(self, path: SessionPath, address: bytes, routes: Iterable[IPv4Network]) -> None:
        """Withdraw what `add` has claimed. Does nothing where there is no claim."""
        self._addresses.release(address, path)
        for route in routes:
            claims = self._prefixes.get(route.prefixlen)
            if claims is not None:
                claims.release(int(route.network_address), path)
                if not claims.holder:
                    del self._prefixes[route.prefixlen]
        self._index()

    def holder(self, route: IPv4Network) -> SessionPath | None:
        """Return the path that has exactly this framed route, None if there is none."""
        claims = self._prefixes.get(route.prefixlen)
        return None if claims is None else claims.holder.get(int(route.network_address))

    def routes(self) -> Iterator[tuple[IPv4Network, SessionPath]]:
        """Yield each framed route with the path that has it."""
        for length, claims in self._prefixes.items():
            for network, path in claims.holder.items():
                yield IPv4Network((network, length)), path

    def by_route(self, destination: bytes) -> SessionPath | None:
        """Return the path whose framed route is the longest match, None if no route matches."""
        number = int.from_bytes(destination, "big")
        for mask, networks in self._lengths:
            path = networks.get(number & mask)
            if path is not None:
                return path
        return None

    def _index(self) -> None:
        self._lengths = tuple(
            (0xFFFFFFFF << (32 - length) & 0xFFFFFFFF, self._prefixes[length].holder)
            for length in sorted(self._prefixes, reverse=True)
        )
