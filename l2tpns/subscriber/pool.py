"""An address pool: addresses in l2tpns.ip_pool, and their users. pools.py has all pools of a server.

A subscriber gets its last address if that is free, else an address that was never used, else the one that has been free
the longest. `Layout` is the contents of the file and does not change. `Pool` records the user of each address. A range
needs no memory until its addresses are used, so 10.0.0.0/8 is as cheap as a single address.

The first and the last address of a range are left out, and so are those ending in .0 or .255, which some clients
reject. They are used if a line names the single address, and in a /31 (RFC 3021). Lines may overlap.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from pathlib import Path

from l2tpns.config import user_names
from l2tpns.errors import ConfigError, NoAddress, refused
from l2tpns.runtime.text import printable
from l2tpns.runtime.text_file import oddity, read_lines

POOL_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}", re.ASCII)
MAX_REMEMBERED = 262_144  # free addresses whose last user is remembered; beyond that, old ones are reused first


@dataclass(frozen=True, slots=True, order=True)
class AddressRange:
    """The addresses from first to last, of a `range` without those ending in .0 or .255."""

    first: int
    last: int
    range: bool

    def __contains__(self, address: int) -> bool:
        return self.first <= address <= self.last and not (self.range and _at_edge(address))

    def __len__(self) -> int:
        edges = _edges_up_to(self.last) - _edges_up_to(self.first - 1) if self.range else 0
        return self.last - self.first + 1 - edges


@dataclass(frozen=True, slots=True)
class Holding:
    """An address and its user. If `used` is False, the user had it until `seconds` ago, else for `seconds`."""

    address: IPv4Address
    used: bool
    user: str
    seconds: float


class Layout:
    """The addresses of a pool, and the networks of its file."""

    __slots__ = ("_sorted", "named", "networks", "segments", "size")

    def __init__(self, networks: Collection[IPv4Network] = (), named: Mapping[str, Layout] | None = None) -> None:
        """`named` are the other pools of the file."""
        self.named = dict(named or {})
        self.networks = tuple(dict.fromkeys(networks))
        self.segments: list[AddressRange] = []  # in the order of the file, without duplicate addresses
        self._sorted: list[AddressRange] = []
        for network in self.networks:
            self._add(network)
        self.size = sum(map(len, self.segments))

    def __contains__(self, address: int) -> bool:
        index = bisect_right(self._sorted, address, key=lambda segment: segment.first)
        return index > 0 and address in self._sorted[index - 1]

    def __iter__(self) -> Iterator[int]:
        for segment in self.segments:
            for address in range(segment.first, segment.last + 1):
                if not (segment.range and _at_edge(address)):
                    yield address

    def without(self, unfit: Collection[IPv4Network]) -> Layout:
        """Return this layout without the addresses of these networks. Its prefixes still cover them."""
        cut = Layout()
        cut.networks = self.networks
        parts = [(int(part.network_address), int(part.broadcast_address)) for part in collapse_addresses(unfit)]
        ends = [end for _, end in parts]
        for segment in self.segments:
            first = segment.first
            for start, end in parts[bisect_left(ends, first) :]:
                if start > segment.last:
                    break
                if start > first:
                    cut._insert(AddressRange(first, start - 1, segment.range))
                first = end + 1
            if first <= segment.last:
                cut._insert(AddressRange(first, segment.last, segment.range))
        cut.size = sum(map(len, cut.segments))
        return cut

    def prefixes(self) -> tuple[IPv4Network, ...]:
        """Return the networks to route into the tun device: those of all lines, without networks inside others."""
        ranges = [network for network in self.networks if network.prefixlen < 32]
        single = collapse_addresses(network for network in self.networks if network.prefixlen == 32)
        kept: dict[int, set[int]] = {}
        result = []
        for network in sorted({*ranges, *single}, key=lambda network: (network.prefixlen, network)):
            start = int(network.network_address)
            if not any(start & _mask(length) in starts for length, starts in kept.items()):
                kept.setdefault(network.prefixlen, set()).add(start)
                result.append(network)
        return tuple(result)

    def _add(self, network: IPv4Network) -> None:
        first, last = int(network.network_address), int(network.broadcast_address)
        if network.prefixlen >= 31:
            # Single addresses are used even if an earlier range leaves them out.
            for address in range(first, last + 1):
                if address not in self:
                    self._cut_out(address)
                    self._insert(AddressRange(address, address, False))
            return
        first, last = first + 1, last - 1
        for gap_first, gap_last in self._gaps(first, last):
            self._insert(AddressRange(gap_first, gap_last, True))

    def _gaps(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the parts from first to last that no segment covers."""
        gaps = []
        index = max(bisect_right(self._sorted, first, key=lambda segment: segment.first) - 1, 0)
        for segment in self._sorted[index:]:
            if segment.first > last:
                break
            if segment.first > first:
                gaps.append((first, segment.first - 1))
            first = max(first, segment.last + 1)
        if first <= last:
            gaps.append((first, last))
        return gaps

    def _cut_out(self, address: int) -> None:
        """Split the range that spans `address` without containing it, so that segments never overlap."""
        index = bisect_right(self._sorted, address, key=lambda segment: segment.first) - 1
        if index < 0 or address > self._sorted[index].last:
            return
        whole = self._sorted[index]
        halves = [AddressRange(whole.first, address - 1, True), AddressRange(address + 1, whole.last, True)]
        halves = [half for half in halves if half.first <= half.last]
        self._sorted[index : index + 1] = halves
        place = self.segments.index(whole)
        self.segments[place : place + 1] = halves

    def _insert(self, segment: AddressRange) -> None:
        self.segments.append(segment)
        insort(self._sorted, segment)


class Pool:
    """The user of each address of a layout, and the last user of each free one. Does not yield."""

    __slots__ = (
        "_clock",
        "_fresh",
        "_idle",
        "_inside",
        "_key",
        "_last",
        "_layout",
        "_max_remembered",
        "_used",
        "_whole",
        "_withheld",
    )

    def __init__(
        self,
        layout: Layout | None = None,
        clock: Callable[[], float] = time.monotonic,
        key: Callable[[str], str] = user_names.fold,
        max_remembered: int = MAX_REMEMBERED,
    ) -> None:
        """`key` maps all spellings of a user name to the same key."""
        self._max_remembered = max_remembered
        self._clock = clock
        self._key = key
        self._whole = self._layout = layout or Layout()  # with and without withheld networks
        self._withheld: frozenset[IPv4Network] = frozenset()
        self._fresh = iter(self._layout)  # addresses not yielded yet were never allocated, but perhaps claimed
        self._used: dict[int, tuple[str, float]] = {}
        self._idle: dict[int, tuple[str, float]] = {}  # in the order of release
        self._last: dict[str, int] = {}  # by key: the last address of a user, while it is free
        self._inside = 0  # number of those in _used that are in the layout

    def allocate(self, user: str) -> IPv4Address:
        """Allocate an address for `user`, in the order of preference above. Raises NoAddress if none is free."""
        address = self._last.get(self._key(user))
        if address is None and len(self._idle) < self._max_remembered:
            address = self._next_unused()
        if address is None:
            address = next(iter(self._idle), None)
        if address is None:
            address = self._next_unused()
        if address is None:
            raise NoAddress(f"the address pool is exhausted: all {self.size} addresses are in use")
        self._take(address, user)
        return IPv4Address(address)

    def claim(self, address: IPv4Address, user: str) -> bool:
        """Allocate a given address. Return False if it is in use or not in the pool."""
        number = int(address)
        if number in self._used or number not in self._layout:
            return False
        self._take(number, user)
        return True

    def release(self, address: IPv4Address) -> bool:
        """Free an address, and remember its user. Return False if it was not in use."""
        number = int(address)
        if number not in self._used:
            return False
        user, _ = self._used.pop(number)
        if number not in self._layout:
            return True  # a reload has removed it from the pool
        self._inside -= 1
        self._idle[number] = (user, self._clock())
        if user:
            self._last[self._key(user)] = number
        return True

    def uses(self, address: IPv4Address) -> bool:
        """Return whether an address is in use."""
        return int(address) in self._used

    def contains(self, address: IPv4Address) -> bool:
        """Return whether the pool manages an address: it is in the layout, or in use from an earlier layout."""
        return int(address) in self._used or int(address) in self._layout

    def change(self, layout: Layout) -> None:
        """Use another layout from now on. Addresses in use stay so, even if the new layout lacks them."""
        self._whole = layout
        self._apply_layout()

    def withhold(self, unfit: Collection[IPv4Network]) -> bool:
        """Allocate no address of these networks, and again those of networks withheld before.

        Return True if the networks have changed. An address in use stays in use.
        """
        before, self._withheld = self._withheld, frozenset(unfit)
        if before == self._withheld:
            return False
        self._apply_layout()
        return True

    def _apply_layout(self) -> None:
        layout = self._layout = self._whole.without(self._withheld) if self._withheld else self._whole
        self._fresh = iter(layout)
        for number in [number for number in self._idle if number not in layout]:
            self._forget(number)
        self._inside = sum(number in layout for number in self._used)

    def compare_names(self, key: Callable[[str], str]) -> None:
        """Compare user names by this key from now on."""
        self._key = key
        self._last = {key(user): number for number, (user, _) in self._idle.items() if user}

    def prefixes(self) -> tuple[IPv4Network, ...]:
        """Return the networks to route into the tun device."""
        return self._layout.prefixes()

    @property
    def withheld(self) -> frozenset[IPv4Network]:
        """Return the networks whose addresses are not allocated."""
        return self._withheld

    @property
    def networks(self) -> tuple[IPv4Network, ...]:
        """Return the networks of the file."""
        return self._layout.networks

    @property
    def size(self) -> int:
        """Return the number of addresses that can be allocated, in use or free."""
        return self._layout.size

    @property
    def used(self) -> int:
        """Return the number of addresses in use, those of earlier layouts included."""
        return len(self._used)

    @property
    def free(self) -> int:
        """Return the number of free addresses."""
        return self._layout.size - self._inside

    def holdings(self) -> Iterator[Holding]:
        """Yield the addresses in use, then the free ones with a last user, longest free first."""
        now = self._clock()
        for number, (user, since) in list(self._used.items()):
            yield Holding(IPv4Address(number), True, user, now - since)
        for number, (user, since) in list(self._idle.items()):
            yield Holding(IPv4Address(number), False, user, now - since)

    def never_used(self) -> Iterator[IPv4Address]:
        """Yield the addresses that were never used. There may be millions."""
        return (IPv4Address(number) for number in self._layout if number not in self._used and number not in self._idle)

    def _next_unused(self) -> int | None:
        for number in self._fresh:
            if number not in self._used and number not in self._idle:
                return number
        return None

    def _take(self, number: int, user: str) -> None:
        self._forget(number)
        self._used[number] = (user, self._clock())
        self._inside += 1

    def _forget(self, number: int) -> None:
        user, _ = self._idle.pop(number, ("", 0.0))
        if self._last.get(self._key(user)) == number:
            del self._last[self._key(user)]


def read_layout(path: str | Path, own: Collection[IPv4Address] = ()) -> Layout:
    """Read a pool file; a missing one is empty. `own` are the addresses this server is bound to. Raises ConfigError."""
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        return Layout()
    except OSError as error:
        raise refused(error.errno, f"{path}: {error.strerror}") from None
    return _parse_lines((line.octets.decode("utf-8", "backslashreplace") for line in lines), str(path), own)


def parse_layout(text: str, path: str = "pool", own: Collection[IPv4Address] = ()) -> Layout:
    """Parse an address or range on each line, with `#` comments. Raises ConfigError.

    `ADDRESS:` at the beginning limits the line to the server that is bound to that address. `pool NAME` begins another
    pool; the lines before the first one are the unnamed pool's.
    """
    return _parse_lines(text.split("\n"), path, own)


def _parse_lines(lines: Iterable[str], path: str, own: Collection[IPv4Address]) -> Layout:
    name, networks = "", dict[str, list[IPv4Network]]({"": []})
    spans: list[tuple[int, int, str, int]] = []  # first and last address, pool, line
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        if words.split()[0] == "pool":
            name = words[len("pool") :].strip()
            if not POOL_NAME.fullmatch(name) or name == "all":  # `show pool all`
                why = "must be a name of up to 63 of a-z, A-Z, 0-9, `.`, `_` and `-`, and not `all`"
                raise ConfigError(f'{path}:{number}: pool "{printable(name)}": it {why}')
            networks.setdefault(name, [])
            continue
        bound, colon, network = words.rpartition(":")
        try:
            parsed = _network(network.strip())
            if not colon or IPv4Address(bound.strip()) in own:
                networks[name].append(parsed)
                spans.append((int(parsed.network_address), int(parsed.broadcast_address), name, number))
        except ValueError as error:
            why = str(error) if isinstance(error, _Unfit) else "must be an address, or a range such as 10.1.0.0/16"
            hint = f"; the line {odd}" if (odd := oddity(words)) else ""
            raise ConfigError(f'{path}:{number}: "{printable(words)}" {why}{hint}') from None
    _check_spans(spans, path)
    named = {each: Layout(own_networks) for each, own_networks in networks.items() if each}
    return Layout(networks[""], named)


def _check_spans(spans: list[tuple[int, int, str, int]], path: str) -> None:
    """Check that no address is in two pools. Raises ConfigError."""
    furthest = (-1, -1, "", 0)
    for span in sorted(spans):
        if span[0] <= furthest[1] and span[2] != furthest[2]:
            first, second = sorted((span, furthest), key=lambda each: each[3])
            other = f"pool {first[2]}" if first[2] else "the unnamed pool"
            raise ConfigError(f"{path}:{second[3]}: has addresses that are in {other} already, on line {first[3]}")
        if span[1] > furthest[1]:
            furthest = span


class _Unfit(ValueError):
    """An address or range with correct syntax that cannot be used for subscribers."""


def _network(text: str) -> IPv4Network:
    network = IPv4Network(text, strict=False)
    if network.prefixlen < 8:
        raise _Unfit("is too large: the largest range is /8")
    # 0/8 and 127/8 are this host, 224/4 and 240/4 are not hosts (RFC 6890 2.2.2).
    if int(network.network_address) >> 24 in (0, 127) or int(network.network_address) >> 29 == 7:
        raise _Unfit("cannot be used for subscribers")
    return network


def _mask(length: int) -> int:
    return (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF


def _at_edge(address: int) -> bool:
    return address & 0xFF in (0x00, 0xFF)


def _edges_up_to(address: int) -> int:
    """Return how many addresses from 0.0.0.0 to this one end in .0 or .255."""
    blocks, rest = divmod(address + 1, 256)
    return 2 * blocks + (rest > 0)
