"""The addresses that subscribers get: l2tpns.ip_pool, and who has which.

A subscriber gets the address it had last if that is still free, else one that nobody ever had, else the one that has
been free the longest. `Layout` is what the file says and never changes; `Pool` is who has what. A range costs nothing
until its addresses are used, so 10.0.0.0/8 is as good as a single address.

The first and the last address of a range are left out, and those that end in .0 or .255, which some clients cannot
have; but not when a line names just that address, nor of a /31 (RFC 3021). Lines may overlap.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from pathlib import Path

from l2tpns.config import user_names
from l2tpns.errors import ConfigError, NoAddress, refused
from l2tpns.runtime.text import printable
from l2tpns.runtime.text_file import oddity, read_lines

MAX_REMEMBERED = 262_144  # free addresses whose last user is remembered; beyond that, old ones are reused first


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """Addresses first to last; of a `range` those that end in .0 or .255 are left out."""

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
    """An address that somebody has, or had: then `used` is False and `seconds` the time since."""

    address: IPv4Address
    used: bool
    user: str
    seconds: float


class Layout:
    """The addresses of a pool and the networks they come from."""

    __slots__ = ("_sorted", "networks", "segments", "size")

    def __init__(self, networks: Collection[IPv4Network] = ()) -> None:
        self.networks = tuple(dict.fromkeys(networks))
        self.segments: list[Segment] = []  # in the order of the file, no address twice
        self._sorted: list[Segment] = []
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
        """The same without these networks' addresses, which still are in its prefixes."""
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
                    cut._insert(Segment(first, start - 1, segment.range))
                first = end + 1
            if first <= segment.last:
                cut._insert(Segment(first, segment.last, segment.range))
        cut.size = sum(map(len, cut.segments))
        return cut

    def prefixes(self) -> tuple[IPv4Network, ...]:
        """What the kernel must route to us: each line's network, without those that lie in another."""
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
            # Named one by one: also where a range that we have leaves them out.
            for address in range(first, last + 1):
                if address not in self:
                    self._cut_out(address)
                    self._insert(Segment(address, address, False))
            return
        first, last = first + 1, last - 1
        for gap_first, gap_last in self._gaps(first, last):
            self._insert(Segment(gap_first, gap_last, True))

    def _gaps(self, first: int, last: int) -> list[tuple[int, int]]:
        """The parts of first to last that no segment covers."""
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
        """Split the range that spans `address` but leaves it out, so that segments never overlap."""
        index = bisect_right(self._sorted, address, key=lambda segment: segment.first) - 1
        if index < 0 or address > self._sorted[index].last:
            return
        whole = self._sorted[index]
        halves = [Segment(whole.first, address - 1, True), Segment(address + 1, whole.last, True)]
        halves = [half for half in halves if half.first <= half.last]
        self._sorted[index : index + 1] = halves
        place = self.segments.index(whole)
        self.segments[place : place + 1] = halves

    def _insert(self, segment: Segment) -> None:
        self.segments.append(segment)
        insort(self._sorted, segment)


class Pool:
    """Who has which address of a layout, and who had it last."""

    __slots__ = (
        "_clock",
        "_fresh",
        "_idle",
        "_inside",
        "_key",
        "_last",
        "_layout",
        "_max_remembered",
        "_unfit",
        "_used",
        "_whole",
    )

    def __init__(
        self,
        layout: Layout | None = None,
        clock: Callable[[], float] = time.monotonic,
        key: Callable[[str], str] = user_names.fold,
        max_remembered: int = MAX_REMEMBERED,
    ) -> None:
        """`key` returns what the names of one user have in common."""
        self._max_remembered = max_remembered
        self._clock = clock
        self._key = key
        self._whole = self._layout = layout or Layout()  # as the file has it; without what may not be given out
        self._unfit: frozenset[IPv4Network] = frozenset()
        self._fresh = iter(self._layout)  # what it has not yielded was never given, unless claimed
        self._used: dict[int, tuple[str, float]] = {}
        self._idle: dict[int, tuple[str, float]] = {}  # the longest free first
        self._last: dict[str, int] = {}  # a user's last address, while it is idle
        self._inside = 0  # of _used, those that are in the layout

    def allocate(self, user: str) -> IPv4Address:
        """An address for `user`, by the order of preference above; NoAddress if none is free."""
        address = self._last.get(self._key(user))
        if address is None and len(self._idle) < self._max_remembered:
            address = self._never_given()
        if address is None:
            address = next(iter(self._idle), None)
        if address is None:
            address = self._never_given()
        if address is None:
            raise NoAddress(f"no address is free: the pool has {self.size}, all in use")
        self._take(address, user)
        return IPv4Address(address)

    def claim(self, address: IPv4Address, user: str) -> bool:
        """Take this very address (RADIUS named it); False if somebody has it, or it is not the pool's."""
        number = int(address)
        if number in self._used or number not in self._layout:
            return False
        self._take(number, user)
        return True

    def release(self, address: IPv4Address) -> bool:
        """Nobody has it any longer, but its user is remembered. False if it was not in use."""
        number = int(address)
        if number not in self._used:
            return False
        user, _ = self._used.pop(number)
        if number not in self._layout:
            return True  # a reload has taken it out of the pool
        self._inside -= 1
        self._idle[number] = (user, self._clock())
        if user:
            self._last[self._key(user)] = number
        return True

    def contains(self, address: IPv4Address) -> bool:
        """Whether it is ours to give and to take back: in the layout, or still in use from an older one."""
        return int(address) in self._used or int(address) in self._layout

    def change(self, layout: Layout) -> None:
        """Go by another file from now on. Who has an address keeps it, in the new pool or not."""
        self._whole = layout
        self._lay_out()

    def withhold(self, unfit: Collection[IPv4Network]) -> bool:
        """Give out no address of these networks, and those withheld before again. Return True if they are others than
        before. A session that has such an address keeps it."""
        before, self._unfit = self._unfit, frozenset(unfit)
        if before == self._unfit:
            return False
        self._lay_out()
        return True

    def _lay_out(self) -> None:
        layout = self._layout = self._whole.without(self._unfit) if self._unfit else self._whole
        self._fresh = iter(layout)
        for number in [number for number in self._idle if number not in layout]:
            self._forget(number)
        self._inside = sum(number in layout for number in self._used)

    def compare_names(self, key: Callable[[str], str]) -> None:
        """Compare users' names by this key from now on. Does not yield."""
        self._key = key
        self._last = {key(user): number for number, (user, _) in self._idle.items() if user}

    def prefixes(self) -> tuple[IPv4Network, ...]:
        """What the kernel must route to us."""
        return self._layout.prefixes()

    @property
    def withheld(self) -> frozenset[IPv4Network]:
        """Networks of which no address is given out."""
        return self._unfit

    @property
    def networks(self) -> tuple[IPv4Network, ...]:
        """As the file has them."""
        return self._layout.networks

    @property
    def size(self) -> int:
        return self._layout.size

    @property
    def used(self) -> int:
        return len(self._used)

    @property
    def free(self) -> int:
        return self._layout.size - self._inside

    def holdings(self) -> Iterator[Holding]:
        """The addresses in use, then those that somebody had, the longest free first."""
        now = self._clock()
        for number, (user, since) in list(self._used.items()):
            yield Holding(IPv4Address(number), True, user, now - since)
        for number, (user, since) in list(self._idle.items()):
            yield Holding(IPv4Address(number), False, user, now - since)

    def never_used(self) -> Iterator[IPv4Address]:
        """The addresses that nobody ever had; there may be millions."""
        return (IPv4Address(number) for number in self._layout if number not in self._used and number not in self._idle)

    def _never_given(self) -> int | None:
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
    """The layout of a pool file; `own` are the addresses we are bound to. A missing file is an empty pool."""
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        return Layout()
    except OSError as error:
        raise refused(error.errno, f"{path}: {error.strerror}") from None
    return _parse_lines((line.octets.decode("utf-8", "backslashreplace") for line in lines), str(path), own)


def parse_layout(text: str, path: str = "pool", own: Collection[IPv4Address] = ()) -> Layout:
    """An address or a range a line, `#` comments; `ADDRESS:` before it limits the line to that bind address."""
    return _parse_lines(text.split("\n"), path, own)


def _parse_lines(lines: Iterable[str], path: str, own: Collection[IPv4Address]) -> Layout:
    networks = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        bound, colon, network = words.rpartition(":")
        try:
            parsed = _network(network.strip())
            if not colon or IPv4Address(bound.strip()) in own:
                networks.append(parsed)
        except ValueError as error:
            why = str(error) if isinstance(error, _Unfit) else "must be an address, or a range such as 10.1.0.0/16"
            hint = f"; the line {odd}" if (odd := oddity(words)) else ""
            raise ConfigError(f'{path}:{number}: "{printable(words)}" {why}{hint}') from None
    return Layout(networks)


class _Unfit(ValueError):
    """An address or range that is written right and cannot be a subscriber's."""


def _network(text: str) -> IPv4Network:
    network = IPv4Network(text, strict=False)
    if network.prefixlen < 8:
        raise _Unfit("is too wide: /8 is the widest range")
    # 0/8 and 127/8 are this host, 224/4 and 240/4 no hosts at all (RFC 6890).
    if int(network.network_address) >> 24 in (0, 127) or int(network.network_address) >> 29 == 7:
        raise _Unfit("are not addresses that a subscriber can have")
    return network


def _mask(length: int) -> int:
    return (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF


def _at_edge(address: int) -> bool:
    return address & 0xFF in (0x00, 0xFF)


def _edges_up_to(address: int) -> int:
    """How many addresses from 0.0.0.0 to this one end in .0 or .255."""
    blocks, rest = divmod(address + 1, 256)
    return 2 * blocks + (rest > 0)
