"""Which sessions the kernel programs carry, and what they have counted.

The programs find a session by its L2TP ids or by its address in maps; this file fills the maps and reads the counters.
It knows the layout of the maps, but neither the kernel nor sockets: `Programs` is their interface.

A session that needs Python code, for instance because it is intercepted, is missing in the map of sessions, and its
packets go to user space. Its address and routes are there all the same: otherwise a shorter route of another session
would match.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from socket import inet_aton
from time import monotonic_ns
from typing import Protocol

from l2tpns.dataplane.fastpath import layout
from l2tpns.dataplane.plane import FastCounts
from l2tpns.dataplane.session_path import SessionPath
from l2tpns.runtime.counters import Counters

NANOSECONDS = 1e-9


class Table(Protocol):
    """A map of the kernel."""

    def put(self, key: bytes, value: bytes) -> None:
        """Insert or replace one entry, at once for all processors. Raises BpfError."""

    def delete(self, key: bytes) -> None:
        """Remove an entry, if it is there. Raises BpfError."""

    def entries(self, key_size: int, value_size: int) -> dict[bytes, bytes]:
        """Return all entries. Raises BpfError."""


class Programs(Protocol):
    """The loaded programs with their maps (programs.py)."""

    @property
    def sessions(self) -> Table: ...
    @property
    def addresses(self) -> Table: ...
    @property
    def routes(self) -> Table: ...
    @property
    def counters(self) -> memoryview:
        """Return layout.COUNTERS of each slot, one after the other."""

    def totals(self) -> tuple[int, ...]:
        """Return the sums of layout.TOTALS since the programs were loaded."""


@dataclass(slots=True)
class Carried:
    """A session that the programs have carried at some time, and how much of its slot is in the path's counters."""

    path: SessionPath
    slot: int
    entry: bytes = b""  # in the map of sessions; empty: not there
    seen: tuple[int, ...] = field(default=layout.NO_COUNTS)


class KernelSessions:
    """The contents of the maps. A session has one slot for its counters until it is released."""

    def __init__(self, programs: Programs, counters: Counters, check_source: Callable[[SessionPath], bool]) -> None:
        """Go on with what is in the maps: sessions that the programs carry for a process that is gone, until `settle`.

        Raises BpfError.
        """
        self._programs = programs
        self._counters = counters
        self._check_source = check_source
        self._carried: dict[int, Carried] = {}  # by path.key
        entries = programs.sessions.entries(layout.SESSION_KEY_SIZE, layout.SESSION.size)
        self._inherited = {int.from_bytes(key, "big"): entry for key, entry in entries.items()}  # by path.key
        self._expected: dict[int, FastCounts] = {}  # by path.key, of sessions that are being restored
        used = {layout.SESSION.unpack(entry)[layout.SLOT] for entry in entries.values()}
        # Slots; the one that was released first comes first.
        self._free = deque(slot for slot in range(layout.MAX_SESSIONS) if slot not in used)
        self._totals = programs.totals()

    @property
    def carried(self) -> int:
        """Return the number of sessions that the programs carry now."""
        return sum(1 for each in self._carried.values() if each.entry)

    def carries(self, path: SessionPath) -> bool:
        """Return True if the programs carry this session."""
        carried = self._carried.get(path.key)
        return carried is not None and carried.path is path and bool(carried.entry)

    # What the maps hold

    def publish_address(self, address: bytes, holder: SessionPath | None) -> None:
        """Set which session has an address, None for no session. Raises BpfError."""
        _publish(self._programs.addresses, address, holder)

    def publish_route(self, route: IPv4Network, holder: SessionPath | None) -> None:
        """Set which session has a framed route, None for no session. Raises BpfError."""
        _publish(self._programs.routes, layout.route_key(route), holder)

    def update(self, path: SessionPath) -> None:
        """Carry a session as it is now, or leave it to user space. Raises BpfError; then user space has it."""
        if path.key in self._inherited and path.online:
            if path.awaiting_policies:
                return  # what the process before has decided applies until then
            self._inherit(path)
        carried = self._carried.get(path.key)
        if not path.online or path.needs_userspace:
            if carried is not None:
                self._withdraw(carried)
            return
        if carried is None:
            if not self._free:
                return
            carried = self._begin(path)
        entry = self._entry(carried)
        if entry == carried.entry:
            return
        try:
            self._programs.sessions.put(layout.path_key(path.key), entry)
        except Exception:
            self._withdraw(carried)
            raise
        carried.entry = entry
        self._forgive(carried.slot)

    def withdraw(self, path: SessionPath) -> None:
        """Leave a session to user space, whose last packets are counted. Raises BpfError."""
        carried = self._carried.get(path.key)
        if carried is not None and carried.path is path:
            self._withdraw(carried)

    def release(self, path: SessionPath) -> None:
        """Forget a session that has ended. Its last packets are counted. Raises BpfError."""
        carried = self._carried.get(path.key)
        if carried is None or carried.path is not path:
            return
        self._withdraw(carried)
        del self._carried[path.key]
        self._free.append(carried.slot)

    # What an earlier process has left

    def go_on(self, path: SessionPath, counted: FastCounts) -> None:
        """Note how much of what the programs have counted for a session its path contains already."""
        if path.key in self._inherited:
            self._expected[path.key] = counted

    def _inherit(self, path: SessionPath) -> None:
        """Take over the entry of a restored session, with its slot. Raises BpfError."""
        entry = self._inherited.pop(path.key)
        fields = layout.SESSION.unpack(entry)
        slot = fields[layout.SLOT]
        if fields[layout.ADDRESS] != path.address:  # another session's
            self._programs.sessions.delete(layout.path_key(path.key))
            self._free.append(slot)
            return
        now = layout.COUNTERS.unpack_from(self._programs.counters, slot * layout.COUNTERS.size)
        counted = self._expected.pop(path.key, None)
        seen = list(now)
        if counted is not None and all(before <= new for before, new in zip(counted, _counts(now), strict=True)):
            seen[layout.OCTETS], seen[layout.PACKETS] = counted.in_octets, counted.in_packets
            seen[layout.DOWN + layout.OCTETS], seen[layout.DOWN + layout.PACKETS] = counted[2:]
        self._carried[path.key] = carried = Carried(path, slot, entry, tuple(seen))
        self._read(carried)

    def settle(self, addresses: Collection[bytes], routes: Iterable[IPv4Network]) -> int:
        """Remove what is left of sessions that were not restored. Return how many. Raises BpfError.

        `addresses` and `routes` are those of the sessions that are online.
        """
        programs, gone = self._programs, len(self._inherited)
        for key, entry in self._inherited.items():
            programs.sessions.delete(layout.path_key(key))
            self._free.append(layout.SESSION.unpack(entry)[layout.SLOT])
        self._inherited.clear()
        self._expected.clear()
        for address in programs.addresses.entries(layout.ADDRESS_SIZE, layout.SESSION_KEY_SIZE):
            if address not in addresses:
                programs.addresses.delete(address)
        wanted = {layout.route_key(network) for network in routes}
        for route in programs.routes.entries(layout.ROUTE_KEY_SIZE, layout.SESSION_KEY_SIZE):
            if route not in wanted:
                programs.routes.delete(route)
        return gone

    def counted(self, path: SessionPath) -> FastCounts:
        """Return what the programs had counted for a session when its path was last brought up to date."""
        carried = self._carried.get(path.key)
        if carried is not None and carried.path is path:
            return _counts(carried.seen)
        return self._expected.get(path.key, FastCounts())

    def _begin(self, path: SessionPath) -> Carried:
        slot = self._free.popleft()
        start = slot * layout.COUNTERS.size
        self._programs.counters[start : start + layout.COUNTERS.size] = bytes(layout.COUNTERS.size)
        carried = self._carried[path.key] = Carried(path, slot)
        return carried

    def _forgive(self, slot: int) -> None:
        """Forget what a super-packet still owes at the rate before, which may be seconds at the new one."""
        now = monotonic_ns()
        for offset in layout.READY_OFFSETS:
            at = slot * layout.COUNTERS.size + offset
            if layout.WORD.unpack_from(self._programs.counters, at)[0] > now:
                layout.WORD.pack_into(self._programs.counters, at, now)

    def _withdraw(self, carried: Carried) -> None:
        if carried.entry:
            carried.entry = b""
            self._programs.sessions.delete(layout.path_key(carried.path.key))
        self._read(carried)

    def _entry(self, carried: Carried) -> bytes:
        path = carried.path
        flags = layout.CHECK_SOURCE if self._check_source(path) else 0
        if path.routes:
            flags |= layout.HAS_ROUTES
        return layout.SESSION.pack(
            carried.slot,
            flags,
            inet_aton(path.peer[0]),
            inet_aton(path.endpoint.address),
            path.peer[1].to_bytes(2, "big"),
            path.endpoint.port.to_bytes(2, "big"),
            path.address,
            path.peer_tunnel_id.to_bytes(2, "big"),
            path.peer_session_id.to_bytes(2, "big"),
            path.mru,
            path.mss,
            path.rate_in.kernel_cost if path.rate_in is not None else 0,
            path.rate_out.kernel_cost if path.rate_out is not None else 0,
            path.rate_in.kernel_burst if path.rate_in is not None else 0,
            path.rate_out.kernel_burst if path.rate_out is not None else 0,
        )

    # What the programs have counted

    def refresh(self, path: SessionPath) -> None:
        """Add what the programs have counted for a session to its path."""
        carried = self._carried.get(path.key)
        if carried is not None and carried.path is path:
            self._read(carried)

    def refresh_all(self, paths: Iterable[SessionPath]) -> None:
        """Add what the programs have counted to each of the paths."""
        for path in paths:
            self.refresh(path)

    def _read(self, carried: Carried) -> None:
        now = layout.COUNTERS.unpack_from(self._programs.counters, carried.slot * layout.COUNTERS.size)
        seen = carried.seen
        if now == seen:
            return
        carried.seen = now
        path = carried.path
        up, down, before_up, before_down = (
            now[: layout.DOWN],
            now[layout.DOWN :],
            seen[: layout.DOWN],
            seen[layout.DOWN :],
        )
        if up[layout.PACKETS] != before_up[layout.PACKETS]:
            path.in_packets += up[layout.PACKETS] - before_up[layout.PACKETS]
            path.in_octets += up[layout.OCTETS] - before_up[layout.OCTETS]
            last = up[layout.LAST] * NANOSECONDS
            path.last_ip_rx = max(path.last_ip_rx, last)
            path.last_rx = max(path.last_rx, last)
        if down[layout.PACKETS] != before_down[layout.PACKETS]:
            path.out_packets += down[layout.PACKETS] - before_down[layout.PACKETS]
            path.out_octets += down[layout.OCTETS] - before_down[layout.OCTETS]
            path.last_ip_tx = max(path.last_ip_tx, down[layout.LAST] * NANOSECONDS)
        path.dropped_spoofed += up[layout.SPOOFED] - before_up[layout.SPOOFED]
        path.dropped_policed += up[layout.POLICED] - before_up[layout.POLICED]
        path.dropped_policed_out += down[layout.POLICED] - before_down[layout.POLICED]
        path.dropped_packet_limit += down[layout.LIMITED] - before_down[layout.LIMITED]

    def collect(self) -> dict[str, int]:
        """Add what the programs have counted since the last time to the counters of the process. Return the totals."""
        before, self._totals = self._totals, self._programs.totals()
        new = dict(
            zip(layout.TOTALS, (now - then for now, then in zip(self._totals, before, strict=True)), strict=True)
        )
        counters = self._counters
        counters.tunnel_rx_packets += new["up_packets"] + new["up_spoofed"] + new["up_policed"]
        counters.tunnel_rx_octets += new["up_datagram_octets"]
        counters.tun_tx_packets += new["up_packets"]
        counters.tun_tx_octets += new["up_octets"]
        counters.drop_spoofed += new["up_spoofed"]
        counters.drop_policed += new["up_policed"]
        counters.drop_policed_out += new["down_policed"]
        counters.tun_rx_packets += new["down_packets"] + new["down_limited"] + new["down_policed"]
        counters.tun_rx_octets += new["down_octets"]
        counters.tunnel_tx_packets += new["down_packets"]
        counters.tunnel_tx_octets += new["down_datagram_octets"]
        counters.drop_packet_limit += new["down_limited"]
        counters.mss_clamped += new["up_clamped"] + new["down_clamped"]
        return dict(zip(layout.TOTALS, self._totals, strict=True))


def _counts(counters: Sequence[int]) -> FastCounts:
    """Return what the fields of layout.COUNTERS say of packets that were carried."""
    up, down = counters[: layout.DOWN], counters[layout.DOWN :]
    return FastCounts(up[layout.OCTETS], up[layout.PACKETS], down[layout.OCTETS], down[layout.PACKETS])


def _publish(table: Table, key: bytes, holder: SessionPath | None) -> None:
    if holder is None:
        table.delete(key)
    else:
        table.put(key, layout.path_key(holder.key))
