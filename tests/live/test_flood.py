"""Floods at a live daemon: bounded tables and memory, an answer that says so, and old sessions that notice nothing.

One daemon for all floods, with 100 sessions that carry checked traffic all the time. Each prints its figures.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gevent
import pytest

from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import build_control, data_header
from l2tpns.proto.l2tp.messages import CDN, ICRP, ICRQ, SCCRQ, ResultCode, StopCCN
from tests.lab import PATIENCE
from tests.lab.lac import Lac
from tests.lab.netns import Lab, is_root
from tools.fuzz.campaign import Campaign
from tools.fuzz.hostile_lac import LNS, SECRET

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.skipif(not is_root(), reason="namespaces need root")]

BAD = "192.0.2.3"
NEWCOMER = "192.0.2.7"
PER_LAC = 32  # max_half_open_per_lac
STARTING_PER_LAC = 1000  # max_starting_per_lac
MEGABYTE = 1024  # KiB


@pytest.fixture(scope="module")
def stage() -> Iterator[Campaign]:
    with Lab() as lab:
        campaign = Campaign(lab, settings={"control_retries": 2, "call_timeout": 5})
        campaign.set_up()
        yield campaign


@dataclass
class Flood:
    """A flood's figures: the daemon's before and after, and its counters in between."""

    stage: Campaign
    what: str

    def __enter__(self) -> Flood:
        self.before = self.stage.sample()
        self.counted = dict(self.stage.report.last)
        self.lost = self.stage.traffic.lost
        self.begun = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.begun
        self.after = self.stage.sample()
        grown = {name: self.grown(name) for name in ("rss_kib", "tunnels", "sessions", "half_open", "starting")}
        print(f"\n{self.what}: {self.seconds:.1f} s, {grown}")

    def grown(self, name: str) -> int:
        now, before = self.stage.report.last.get(name, 0), self.counted.get(name, 0)
        return int(now - before)

    def check_the_others(self) -> None:
        """The good sessions live, no packet of theirs is lost, and a newcomer gets in."""
        stage = self.stage
        assert all(subscriber.online for subscriber in stage.subscribers)
        until = time.monotonic() + PATIENCE
        while stage.traffic.lost > 5 and time.monotonic() < until:  # some are always on their way
            gevent.sleep(0.05)
        assert stage.traffic.lost <= 5
        assert stage.report.faults == []


def flood(stage: Campaign, count: int, one: Callable[[int], Any]) -> None:
    """`count` datagrams, as fast as the daemon reads them."""
    for number in range(count):
        one(number)
        if number % 64 == 63:
            gevent.sleep(1e-6)
            stage.wait_for_queue()
    gevent.sleep(0.2)


def lac(stage: Campaign, address: str = BAD, **options: Any) -> Lac:
    with stage.lac_ns.entered():
        return Lac((address, 0), LNS, "bad", secret=SECRET, **options)


def newcomer_gets_in(stage: Campaign) -> None:
    """A LAC that was not there before, from an address of its own, while all is full."""
    new = lac(stage, NEWCOMER).connect()
    assert new.call("newcomer", "secret").wait_online().online
    new.close()


def test_sccrqs_from_everywhere_meet_stopccn_and_fill_no_memory(stage: Campaign) -> None:
    base = SCCRQ(
        protocol_version=messages.VERSION_1_0, framing_capabilities=3, host_name=b"flood", assigned_tunnel_id=1
    )
    body = messages.encode(base)[:-2]

    def one(number: int) -> None:
        sccrq = build_control(0, 0, 0, 0, body + (number % 65535 + 1).to_bytes(2, "big"))
        stage.send(stage.random.choice(stage.strangers), sccrq)

    assert messages.decode(body + b"\0\1") == base
    with Flood(stage, "20,000 SCCRQs from 8 addresses") as figures:
        flood(stage, 20_000, one)
        newcomer_gets_in(stage)
    assert 0 < figures.grown("half_open") <= 8 * PER_LAC
    not_kept = ("drop_half_open_limit", "tunnels_crowded_out", "drop_strangers")
    assert sum(figures.grown(name) for name in not_kept) > 19_000
    assert figures.grown("tunnels") <= 8 * PER_LAC + 1
    assert figures.grown("rss_kib") < 20 * MEGABYTE
    figures.check_the_others()


def test_icrqs_beyond_the_limit_meet_cdn_4_and_the_calls_before_them_go_on(stage: Campaign) -> None:
    bad = lac(stage).connect()
    answers: Counter[object] = Counter()
    bad.handlers[ICRP] = lambda message, session_id, now: answers.update(["ICRP"])
    bad.handlers[CDN] = lambda message, session_id, now: answers.update([message.result_code.result])
    with Flood(stage, "5,000 ICRQs in one tunnel") as figures:
        for number in range(1, 5001):
            bad.send(ICRQ(assigned_session_id=number, call_serial_number=number))
        bad.wait_acked(4 * PATIENCE)
        newcomer_gets_in(stage)
    assert answers["ICRP"] >= STARTING_PER_LAC
    assert answers[4] > 1000  # no facilities for the moment: try again later
    assert figures.grown("calls_refused") == 5000 - answers["ICRP"]  # most of them told so, while it listens
    assert figures.grown("sessions") <= STARTING_PER_LAC
    assert figures.grown("rss_kib") < 60 * MEGABYTE
    figures.check_the_others()
    bad.wait(lambda: len(stage.good.sessions) == 100 and calm(stage, "starting"), what="the call time-out")
    bad.close()


def calm(stage: Campaign, name: str) -> bool:
    return not stage.sample()[name]


def test_a_lac_that_acknowledges_nothing_fills_no_memory(stage: Campaign) -> None:
    bad = lac(stage).connect()
    bad.wait_acked()
    bad.alive = False  # from here it only talks
    nr, ns = bad.reliable.nr, bad.reliable.ns
    sessions = iter(range(1, 1_000_000))

    def one(number: int) -> None:
        session_id = next(sessions) % 65535 + 1
        end = CDN(result_code=ResultCode(1, 0, ""), assigned_session_id=session_id)
        for place, message in enumerate((ICRQ(assigned_session_id=session_id, call_serial_number=1), end)):
            body = messages.encode(message)
            bad.send_raw(build_control(bad.peer_tunnel_id, 0, (ns + 2 * number + place) & 0xFFFF, nr, body))

    with Flood(stage, "20,000 calls and their ends, never an acknowledgement") as figures:
        flood(stage, 20_000, one)
    assert figures.grown("sessions_ended") > 500
    assert figures.grown("rss_kib") < 20 * MEGABYTE
    figures.check_the_others()
    bad.leave()


@pytest.mark.parametrize("established", [True, False])
def test_tunnels_that_come_and_go_fill_no_memory(stage: Campaign, established: bool) -> None:
    with stage.lac_ns.entered():
        endpoint = Lac(("192.0.2.4", 0), LNS, "bad", secret=SECRET)
    what = "up" if established else "asked for"
    with Flood(stage, f"1,500 tunnels {what} and closed") as figures:
        for number in range(1500):
            cycle = Lac(("192.0.2.4", 0), LNS, "bad", secret=SECRET, endpoint=endpoint.endpoint)
            if established:
                cycle.connect()
                cycle.stop()
            else:
                cycle.start()
                stop = StopCCN(assigned_tunnel_id=cycle.tunnel_id, result_code=ResultCode(1, 0, ""))
                cycle.send_control(messages.encode(stop), tunnel_id=0, ns=1)
            cycle.vanish()
            endpoint.endpoint.lacs.pop(cycle.tunnel_id, None)
            if number % 16 == 15:
                gevent.sleep(1e-3)
        newcomer_gets_in(stage)
    assert figures.grown("tunnels_closed") + figures.grown("drop_strangers") > 1000
    assert figures.grown("tunnels") <= 1001  # LINGERING_LIMIT, and those still open
    assert figures.grown("rss_kib") < 40 * MEGABYTE
    figures.check_the_others()
    endpoint.leave()


def test_data_for_sessions_that_nobody_has_costs_nothing_but_time(stage: Campaign) -> None:
    frame = bytes.fromhex("ff03 0021") + bytes(60)

    def one(number: int) -> None:
        ids = stage.random.getrandbits(16), stage.random.getrandbits(16)
        stage.send(stage.random.choice(stage.strangers), data_header(*ids) + frame)

    with Flood(stage, "100,000 data messages for unknown sessions") as figures:
        flood(stage, 100_000, one)
    # One in 43 million hits a session, which then has another peer.
    assert figures.grown("drop_unknown_session") + figures.grown("drop_wrong_peer") > 99_000
    assert figures.grown("rss_kib") < 4 * MEGABYTE
    figures.check_the_others()


def test_after_all_that_the_tables_are_as_before_and_no_packet_was_lost(stage: Campaign) -> None:
    for lac in stage.hostile_lacs:
        lac.close()
    stage.settle()
    assert stage.traffic.stop() == 0
    assert stage.report.faults == []
    assert all(subscriber.online for subscriber in stage.subscribers)
    assert stage.server.errors.read_text() == ""
    assert stage.server.stop() == 0
