"""Which sessions are in the kernel's maps, and how their counters come back, with maps that are dicts."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

import pytest

from l2tpns.dataplane.fastpath import layout
from l2tpns.dataplane.fastpath.sessions import KernelSessions
from l2tpns.dataplane.plane import FastCounts
from l2tpns.dataplane.rate import Rate
from l2tpns.dataplane.session_path import SessionPath, key_of
from l2tpns.runtime.counters import Counters
from l2tpns.system.libbpf import BpfError

KEY = b"\0\7\0\x08"


class FakeTable(dict[bytes, bytes]):
    """A map that is full when `room` entries are in it."""

    room = 1 << 20

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self and len(self) >= self.room:
            raise BpfError("full")
        self[key] = value

    def delete(self, key: bytes) -> None:
        self.pop(key, None)

    def entries(self, key_size: int, value_size: int) -> dict[bytes, bytes]:
        return dict(self)


class FakePrograms:
    """What the kernel would hold, with a function in place of packets."""

    def __init__(self) -> None:
        self.sessions, self.addresses, self.routes = FakeTable(), FakeTable(), FakeTable()
        self.counters = memoryview(bytearray(layout.MAX_SESSIONS * layout.COUNTERS.size))
        self.sums = dict.fromkeys(layout.TOTALS, 0)

    def totals(self) -> tuple[int, ...]:
        return tuple(self.sums.values())

    def carry(self, slot: int, direction: int, packets: int, octets: int, last: int) -> None:
        values = list(layout.COUNTERS.unpack_from(self.counters, slot * layout.COUNTERS.size))
        values[direction + layout.PACKETS] += packets
        values[direction + layout.OCTETS] += octets
        values[direction + layout.LAST] = last
        layout.COUNTERS.pack_into(self.counters, slot * layout.COUNTERS.size, *values)


class Endpoint:
    address, port = "192.0.2.1", 1701


class Bench:
    """One path and the maps."""

    def __init__(self) -> None:
        self.programs, self.counters, self.checks = FakePrograms(), Counters(), True
        self.sessions = KernelSessions(self.programs, self.counters, lambda path: self.checks)
        self.path = self.make(8)

    def make(self, session_id: int) -> SessionPath:
        endpoint: Any = Endpoint()
        path = SessionPath(key_of(7, session_id), endpoint, ("192.0.2.2", 5000), 9, 10, lambda *_: None, now=0.0)
        path.address, path.online, path.mru, path.mss = b"\x0a\x40\0\5", True, 1462, 1422
        return path

    def entry(self, key: bytes = KEY) -> tuple[Any, ...]:
        return layout.SESSION.unpack(self.programs.sessions[key])


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_plain_online_session_is_in_the_kernel_with_all_that_its_packets_need(bench: Bench) -> None:
    bench.path.rate_in, bench.path.rate_out = Rate.of(8000, 200), Rate.of(64, 200)
    bench.sessions.update(bench.path)
    slot, flags, *rest = bench.entry()
    assert (slot, flags) == (0, layout.CHECK_SOURCE)
    addresses = [b"\xc0\0\2\2", b"\xc0\0\2\1", b"\x13\x88", b"\x06\xa5", b"\x0a\x40\0\5", b"\0\x09", b"\0\x0a"]
    # 8 Mbit/s are 1,000 ns an octet; 64 kbit/s have room for 5,200 octets, which take 650 ms.
    assert rest == [*addresses, 1462, 1422, 1000 * 1024, 125_000 * 1024, 200_000, 650_000]
    assert bench.sessions.carries(bench.path) and bench.sessions.carried == 1


@pytest.mark.parametrize("field", ["mirror", "policer", "shaped", "sequenced"])
def test_what_needs_python_code_is_taken_out_and_comes_back_to_the_same_counters(bench: Bench, field: str) -> None:
    path, sessions = bench.path, bench.sessions
    sessions.update(path)
    bench.programs.carry(0, 0, 3, 300, 5_000_000_000)
    before = getattr(path, field)
    setattr(path, field, True)
    path.changed()
    sessions.update(path)
    assert KEY not in bench.programs.sessions and (path.in_packets, path.in_octets) == (3, 300)
    setattr(path, field, before)
    path.changed()
    sessions.update(path)
    assert bench.entry()[0] == 0  # the same slot
    bench.programs.carry(0, layout.DOWN, 2, 200, 6_000_000_000)
    sessions.refresh(path)
    sessions.refresh(path)
    assert (path.in_packets, path.out_packets, path.out_octets) == (3, 2, 200)
    assert (path.last_ip_rx, path.last_rx, path.last_ip_tx) == (5.0, 5.0, 6.0)


def test_a_slot_is_used_again_last_and_starts_at_zero(bench: Bench) -> None:
    bench.sessions.update(bench.path)
    bench.programs.carry(0, 0, 1, 20, 1)
    bench.sessions.release(bench.path)
    assert bench.path.in_packets == 1 and KEY not in bench.programs.sessions
    other = bench.make(9)
    bench.sessions.update(other)
    assert bench.entry(b"\0\7\0\x09")[0] == 1
    bench.sessions._free.rotate(1)
    third = bench.make(10)
    bench.sessions.update(third)
    bench.sessions.refresh(third)
    assert bench.entry(b"\0\7\0\x0a")[0] == 0 and third.in_packets == 0


def test_a_map_that_is_full_leaves_the_session_to_user_space(bench: Bench) -> None:
    bench.programs.sessions.room = 0
    with pytest.raises(BpfError):
        bench.sessions.update(bench.path)
    assert not bench.sessions.carries(bench.path)
    bench.programs.sessions.room = 1
    bench.sessions.update(bench.path)
    assert bench.sessions.carries(bench.path)


def test_an_ended_path_s_successor_with_the_same_ids_is_not_touched_by_its_release(bench: Bench) -> None:
    bench.sessions.update(bench.path)
    bench.sessions.release(bench.path)
    successor = bench.make(8)
    bench.sessions.update(successor)
    bench.sessions.release(bench.path)
    bench.sessions.withdraw(bench.path)
    assert bench.sessions.carries(successor) and KEY in bench.programs.sessions


def test_addresses_and_routes_are_published_for_every_session(bench: Bench) -> None:
    route = IPv4Network("10.9.0.0/24")
    bench.sessions.publish_address(bench.path.address, bench.path)
    bench.sessions.publish_route(route, bench.path)
    assert bench.programs.addresses == {bench.path.address: KEY}
    assert bench.programs.routes == {b"\x18\0\0\0\x0a\x09\0\0": KEY}
    bench.sessions.publish_address(bench.path.address, None)
    bench.sessions.publish_route(route, None)
    assert not bench.programs.addresses and not bench.programs.routes


def test_a_debt_of_a_super_packet_ends_with_a_change_of_rate(bench: Bench) -> None:
    bench.path.rate_out = Rate.of(64, 200)
    bench.sessions.update(bench.path)
    at = layout.READY_OFFSETS[1]
    layout.WORD.pack_into(bench.programs.counters, at, 1 << 62)
    bench.path.rate_out = Rate.of(64_000, 200)
    bench.sessions.update(bench.path)
    assert layout.WORD.unpack_from(bench.programs.counters, at)[0] < 1 << 62


def test_totals_become_counters_of_the_process_once(bench: Bench) -> None:
    sums = bench.programs.sums
    sums.update(up_packets=5, up_octets=500, up_datagram_octets=600, up_spoofed=1, up_policed=2, up_clamped=1)
    sums.update(
        down_packets=7, down_octets=700, down_datagram_octets=770, down_limited=3, down_policed=1, down_clamped=1
    )
    assert bench.sessions.collect()["up_packets"] == 5
    bench.sessions.collect()
    counters = bench.counters
    assert (counters.tunnel_rx_packets, counters.tunnel_rx_octets) == (8, 600)
    assert (counters.tun_tx_packets, counters.tun_tx_octets) == (5, 500)
    assert (counters.tun_rx_packets, counters.tun_rx_octets) == (11, 700)
    assert (counters.tunnel_tx_packets, counters.tunnel_tx_octets) == (7, 770)
    assert (counters.drop_spoofed, counters.drop_policed, counters.drop_policed_out) == (1, 2, 1)
    assert (counters.drop_packet_limit, counters.mss_clamped) == (3, 2)


# What an earlier process has left


class Heir(Bench):
    """The maps after a process has died, and the path as the next process restores it."""

    def __init__(self, *, saved: FastCounts | None = None) -> None:
        super().__init__()
        self.path.routes = (IPv4Network("10.9.0.0/24"),)
        self.sessions.publish_address(self.path.address, self.path)
        self.sessions.publish_route(self.path.routes[0], self.path)
        self.sessions.update(self.path)
        self.before = self.programs.sessions[KEY]
        self.programs.carry(0, 0, 10, 1000, 5_000_000_000)
        self.programs.carry(0, layout.DOWN, 20, 3000, 6_000_000_000)
        self.sessions = KernelSessions(self.programs, Counters(), lambda path: True)
        self.path = self.make(8)
        self.path.in_packets, self.path.in_octets, self.path.out_packets, self.path.out_octets = 7, 700, 15, 2000
        if saved is not None:
            self.sessions.go_on(self.path, saved)

    def restore(self) -> None:
        self.sessions.update(self.path)


SAVED = FastCounts(in_octets=600, in_packets=6, out_octets=1900, out_packets=14)


def test_a_restored_session_gets_what_was_counted_since_its_state_was_saved() -> None:
    heir = Heir(saved=SAVED)
    assert heir.sessions.counted(heir.path) == SAVED
    heir.restore()
    path = heir.path
    assert (path.in_packets, path.in_octets, path.out_packets, path.out_octets) == (11, 1100, 21, 3100)
    assert heir.sessions.counted(path) == FastCounts(1000, 10, 3000, 20)
    heir.programs.carry(0, 0, 1, 100, 7_000_000_000)
    heir.sessions.refresh(path)
    assert (path.in_packets, path.in_octets) == (12, 1200)
    assert heir.sessions.carries(path)


def test_nothing_changes_in_the_maps_before_the_policies_of_a_restored_session_apply() -> None:
    heir = Heir(saved=SAVED)
    heir.path.awaiting_policies = True
    heir.path.changed()
    heir.restore()
    assert heir.programs.sessions[KEY] == heir.before and heir.path.in_packets == 7
    heir.path.awaiting_policies, heir.path.mirror = False, lambda *_: None
    heir.path.changed()
    heir.restore()
    assert KEY not in heir.programs.sessions and heir.path.in_packets == 11


@pytest.mark.parametrize("saved", [None, SAVED._replace(in_packets=11)])
def test_counts_that_cannot_be_those_of_the_slot_add_nothing(saved: FastCounts | None) -> None:
    heir = Heir(saved=saved)
    heir.restore()
    assert (heir.path.in_packets, heir.path.out_octets) == (7, 2000)


def test_an_entry_of_another_session_with_the_same_ids_is_not_taken_over() -> None:
    heir = Heir(saved=SAVED)
    heir.path.address = b"\x0a\x40\0\6"
    heir.restore()
    assert heir.entry()[0] == 1 and heir.path.in_packets == 7


def test_what_no_restored_session_claims_is_removed_and_its_slot_is_free_again() -> None:
    heir = Heir()
    other = heir.make(9)
    other.address = b"\x0a\x40\0\7"
    heir.sessions.publish_address(other.address, other)
    heir.sessions.update(other)
    assert heir.entry(b"\0\7\0\x09")[0] == 1
    assert heir.sessions.settle({other.address}, []) == 1
    assert list(heir.programs.sessions) == [b"\0\7\0\x09"]
    assert list(heir.programs.addresses) == [other.address] and not heir.programs.routes
    assert 0 in heir.sessions._free
