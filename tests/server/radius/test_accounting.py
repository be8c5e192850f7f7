"""Accounting over loopback: what is sent, in which order, and what outages and crashes leave (RFC 2866, RFC 2869)."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Network
from itertools import groupby
from pathlib import Path

import gevent
import orjson
import pytest

from l2tpns.errors import ConfigError
from l2tpns.radius import delivery, remote_server
from l2tpns.radius import spool as spool_module
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.session_records import AccountingTiming
from l2tpns.radius.transport import TransportTiming
from l2tpns.radius.types import FramedRoute, TerminateCause
from l2tpns.radius.usage import SessionIds, dump_usage, load_usage, never_less
from l2tpns.runtime import durable as lines
from l2tpns.runtime.clock import Moment, moment
from l2tpns.runtime.durable import make_line
from tests.lab import PATIENCE
from tests.lab.inprocess import until
from tests.lab.memory_log import MemoryLog
from tests.lab.radius_parts import SECRET, settings_for, usage
from tests.lab.radius_server import REJECT, RadiusServer, make_reply
from tests.unit.radius.test_packets import accounting_request

START, STOP, INTERIM, ON, OFF = 1, 2, 3, 7, 8


# Rounds of 0.1 + 0.2 + 0.3 seconds.
QUICK = AccountingTiming(
    tries_per_server=3,
    max_interval=0.3,
    retry_delay=0.1,
    transport=TransportTiming(fresh_probe=0.1, repeated_probe=0.2, poll_interval=0.02),
)
# Few tries are enough to give a record up.
WARY = replace(
    QUICK,
    retry_delay=0.01,
    max_retry_delay=0.1,
    suspect_tries=1,
    replace_tries=3,
    undeliverable_tries=6,
    failed_round_tries=1,
    transport=replace(QUICK.transport, max_passed_over=1),
)


@pytest.fixture
def server():
    with RadiusServer(SECRET) as server:
        yield server


@pytest.fixture
def account(tmp_path):
    """Builds Accountings on one spool directory, as one daemon after the other. They repeat only with a `timeout`."""
    built = []

    def build(*servers, log=None, clock=moment, spool_octets=1 << 30, timing=QUICK, **changes):
        changes.setdefault("timeout", PATIENCE)
        accounting = Accounting(
            settings_for(*servers, **changes),
            tmp_path / "spool",
            (log or MemoryLog()).get(),
            clock=clock,
            spool_octets=spool_octets,
            timing=timing,
        )
        accounting.open()
        built.append(accounting)
        return accounting

    yield build
    for accounting in built:
        accounting.close(0)


def statuses(server):
    return [record.number(40) for record in server.records]


def spooled(tmp_path):
    return sorted(path.name for path in (tmp_path / "spool").glob("*.records"))


# --- what is sent


@pytest.mark.statement(147)
def test_a_session_has_one_start_its_interims_and_one_stop_under_one_name(server, account, tmp_path):
    accounting = account(server)
    accounting.start(usage())
    until(lambda: statuses(server) == [START])
    accounting.interim(usage(in_octets=10))
    until(lambda: statuses(server) == [START, INTERIM])
    accounting.stop(usage(in_octets=20, terminate_cause=1))
    accounting.stop(usage(in_octets=20, terminate_cause=1))
    until(lambda: statuses(server) == [START, INTERIM, STOP])
    assert {record.one(44) for record in server.records} == {b"5F00000000000001"}
    until(lambda: accounting.undelivered == 0)
    assert accounting.open_sessions() == []
    assert accounting.close()
    assert spooled(tmp_path) == []


@pytest.mark.statement(147)
def test_session_names_are_unique_over_restarts():
    lives = [SessionIds(clock=lambda: 1_600_000_000.0) for _ in range(20)]
    names = {life.new() for life in lives for _ in range(50)}
    assert len(names) == 1000
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in names)


@pytest.mark.statement(149)
def test_octets_beyond_32_bits_are_gigawords():
    request = accounting_request(
        "stop", usage(in_octets=(5 << 32) + 7, out_octets=(1 << 32) - 1, in_packets=3, out_packets=4)
    )
    assert (request.number(42), request.number(52)) == (7, 5)
    assert (request.number(43), request.number(53)) == (0xFFFFFFFF, 0)
    assert (request.number(47), request.number(48)) == (3, 4)


@pytest.mark.statement(149)
def test_counters_never_go_back(server, account):
    accounting = account(server)
    accounting.start(usage())
    accounting.interim(usage(in_octets=100, out_octets=7, session_time=60))
    accounting.stop(usage(in_octets=50, out_octets=9, session_time=30, terminate_cause=2))
    until(lambda: STOP in statuses(server))
    stop = server.accounting(STOP)[0]
    assert (stop.number(42), stop.number(43), stop.number(46)) == (100, 9, 60)


def test_never_less_takes_the_greater_of_each_counter():
    assert never_less(usage(in_octets=1, out_packets=9), usage(in_octets=2, out_packets=3)) == usage(
        in_octets=2, out_packets=9
    )


@pytest.mark.statement(142)
def test_every_class_is_echoed_in_every_record(server, account):
    accounting = account(server)
    facts = {"classes": (b"0x41", b"\xff\x00", b"0x41")}
    accounting.start(usage(**facts))
    until(lambda: statuses(server) == [START])
    accounting.interim(usage(**facts))
    accounting.stop(usage(**facts))
    until(lambda: STOP in statuses(server))
    assert all(record.all(25) == [b"0x41", b"\xff\x00", b"0x41"] for record in server.records)


@pytest.mark.statement(150)
@pytest.mark.parametrize("cause", list(TerminateCause))
def test_a_stop_names_its_cause(cause):
    assert accounting_request("stop", usage(terminate_cause=int(cause))).number(49) == int(cause)
    assert accounting_request("interim", usage(terminate_cause=int(cause))).number(49) is None


@pytest.mark.statement(150)
def test_the_causes_are_the_eighteen_of_the_rfc():
    assert [int(cause) for cause in TerminateCause] == list(range(1, 19))


@pytest.mark.statement(152)
def test_a_record_tells_the_call_the_address_and_when_it_happened():
    facts = usage(called="1", calling="2", nas_port_id="7/42", tunnel_client="192.0.2.7", tunnel_server="192.0.2.1",
                  tunnel_host="lac1", tunnel_connection="99", session_timeout=3600, idle_timeout=300, avpairs=("a=b",),
                  routes=(FramedRoute(IPv4Network("192.168.1.0/24")),))  # fmt: skip
    request = accounting_request("start", facts, happened=1_600_000_000.5, now=1_600_000_007.9)
    assert request.number(55) == 1_600_000_000  # Event-Timestamp
    assert request.number(41) == 7  # Acct-Delay-Time
    assert request.one(1) == b"alice"
    assert request.one(8) == bytes([10, 0, 0, 5])
    assert request.one(22) == b"192.168.1.0/24 0.0.0.0 1"
    assert (request.number(5), request.number(61), request.one(87)) == (42, 5, b"7/42")
    assert (request.number(6), request.number(7)) == (2, 1)
    assert (request.one(30), request.one(31)) == (b"1", b"2")
    assert (request.one(66), request.one(67), request.one(90), request.one(68)) == (
        b"192.0.2.7",
        b"192.0.2.1",
        b"lac1",
        b"99",
    )
    assert (request.number(27), request.number(28)) == (3600, 300)
    assert request.vendor(9, 1) == [b"a=b"]
    assert request.number(42) is None  # a Start counts nothing


@pytest.mark.statement(147)
def test_accounting_on_goes_before_later_records_and_off_after_all(server, account):
    server.lose(1)  # the Accounting-On has to be said twice
    accounting = account(server, timeout=1.0)
    accounting.on()
    for number in range(5):
        accounting.start(usage(f"s{number}"))
    until(lambda: len(server.records) == 6)
    for number in range(5):
        accounting.stop(usage(f"s{number}"))
    accounting.off()
    assert accounting.close(PATIENCE)
    assert statuses(server)[0] == ON and statuses(server)[-1] == OFF
    assert sorted(statuses(server)[1:-1]) == [START] * 5 + [STOP] * 5


def test_accounting_on_that_nobody_answers_holds_nobody_up_for_ever(server, account):
    honest = server.answer
    server.handler = lambda request: [] if request.number(40) == ON else honest(request)
    accounting = account(server, timeout=0.1, timing=replace(QUICK, accounting_on_timeout=0.3))
    accounting.on()
    accounting.start(usage())
    until(lambda: accounting.undelivered == 0)
    assert START in statuses(server)
    gevent.sleep(0.1)  # what was on its way has arrived
    seen = len(server.requests)
    gevent.sleep(0.8)
    assert len(server.requests) == seen  # after a Start an Accounting-On would end that session: it is given up


def test_without_radius_accounting_nothing_is_sent_and_the_disk_is_not_touched(server, account, tmp_path):
    accounting = account(server, accounting=False)
    accounting.on()
    accounting.start(usage())
    accounting.stop(usage())
    gevent.sleep(0.05)
    assert server.requests == [] and not (tmp_path / "spool").exists()
    assert accounting.close()


def test_switching_accounting_off_still_stops_what_was_started(server, account):
    accounting = account(server)
    accounting.start(usage("a"))
    accounting.configure(settings_for(server, accounting=False))
    accounting.start(usage("b"))
    accounting.stop(usage("a"))
    accounting.stop(usage("b"))
    until(lambda: accounting.undelivered == 0)
    assert [(r.number(40), r.one(44)) for r in server.records] == [(START, b"a"), (STOP, b"a")]


# --- outages


@pytest.mark.statement(148)
def test_a_repetition_is_the_same_packet_and_a_new_delay_has_a_new_identifier(server, account):
    server.silent = True
    now = [1_600_000_000.0]
    accounting = account(server, clock=lambda: Moment(now[0]), timeout=0.1)
    accounting.start(usage())
    until(lambda: accounting.stats.rounds_unanswered or len(server.requests) >= 3)  # three tries are a round
    now[0] += 40
    until(lambda: len(server.requests) > 3)
    server.silent = False
    until(lambda: accounting.undelivered == 0)
    first = {request.raw for request in server.requests[:3]}
    assert len(first) == 1
    later = next(request for request in server.requests[3:] if request.number(41) == 40)
    assert (server.requests[0].number(41), later.number(41)) == (0, 40)
    assert later.identifier != server.requests[0].identifier
    assert later.number(55) == server.requests[0].number(55) == 1_600_000_000


@pytest.mark.statement(147)
def test_an_outage_loses_nothing_doubles_nothing_and_keeps_the_order(server, account):
    accounting = account(server, timeout=1.0)  # an answer has a second at least, else its record would come again
    server.silent = True
    for number in range(300):
        accounting.start(usage(f"s{number}"))
    until(lambda: any(report.stats.retransmissions for report in accounting.report()))
    for number in range(300):
        accounting.stop(usage(f"s{number}", in_octets=number))
    before = accounting.stats.rounds_unanswered
    server.silent = False
    until(lambda: accounting.undelivered == 0, 3 * PATIENCE)
    told = {f"s{number}".encode(): [] for number in range(300)}
    for record in server.records:
        told[record.one(44)].append(record.number(40))
    assert all([kind for kind, _ in groupby(kinds)] == [START, STOP] for kinds in told.values())
    assert len(server.records) - 600 <= accounting.stats.rounds_unanswered - before  # 0, where a second is enough


def test_a_newer_interim_replaces_an_undelivered_older_one(server, account):
    server.silent = True
    accounting = account(server, timeout=0.1)
    accounting.start(usage())
    for number in range(1, 6):
        accounting.interim(usage(in_octets=number))
    assert accounting.undelivered == 2
    server.silent = False
    until(lambda: accounting.undelivered == 0)
    assert statuses(server) == [START, INTERIM]
    assert server.accounting(INTERIM)[0].number(42) == 5


def test_an_interim_on_its_way_is_replaced_after_its_round(server, account):
    accounting = account(server, timeout=0.1)
    accounting.start(usage())
    until(lambda: statuses(server) == [START])
    server.silent = True
    seen = len(server.requests)
    accounting.interim(usage(in_octets=1))
    until(lambda: len(server.requests) > seen)
    accounting.interim(usage(in_octets=2))
    until(lambda: accounting.stats.replaced)
    server.silent = False
    until(lambda: accounting.undelivered == 0)
    assert [r.number(42) for r in server.accounting(INTERIM)] == [2]


def test_a_forged_response_delivers_nothing(server, account):
    server.handler = lambda request: [make_reply(request, 5, sign=False, secret=b"guess")]
    accounting = account(server)
    accounting.start(usage())
    gevent.sleep(0.2)
    assert accounting.undelivered == 1


def test_nobody_waits_for_a_silent_server(server, account):
    server.silent = True
    accounting = account(server)
    others = []
    gevent.spawn(others.append, "had a turn")
    for number in range(200):
        accounting.start(usage(f"s{number}"))
    assert others == []  # nothing of it waits for anything


def test_a_full_spool_refuses_starts_and_interims_loudly_and_still_takes_stops(server, account):
    server.silent = True
    log = MemoryLog()
    accounting = account(server, log=log, spool_octets=4000, timeout=0.1)
    for number in range(50):
        accounting.start(usage(f"s{number}"))
    known = len(accounting.open_sessions())
    assert 0 < known < 50 and accounting.stats.lost == 50 - known
    assert log.records("accounting_lost")
    accounting.stop(usage("s0"))
    server.silent = False
    until(lambda: STOP in statuses(server))


# --- restarts


def test_what_was_not_delivered_is_delivered_by_the_next_daemon(server, account):
    server.silent = True
    first = account(server)
    first.start(usage("a", user=b"\xff%s", classes=(b"\x00\xfe",)))
    first.stop(usage("a", in_octets=5))
    assert not first.close(0.1)
    server.silent = False
    second = account(server)
    assert second.recover(()) == 0
    until(lambda: second.undelivered == 0)
    assert statuses(server) == [START, STOP]
    assert server.records[0].one(1) == b"\xff%s" and server.records[0].all(25) == [b"\x00\xfe"]
    assert second.close()


def test_a_session_that_nobody_takes_up_is_stopped_once_with_what_was_known(server, account):
    now = [1_600_000_000.0]
    first = account(server, clock=lambda: Moment(now[0]))
    for name in ("lost", "kept", "ended"):
        first.start(usage(name))
    now[0] += 60
    first.interim(usage("lost", in_octets=77, session_time=60))
    first.stop(usage("ended"))
    until(lambda: first.undelivered == 0)
    first.close()

    now[0] += 1000
    second = account(server, clock=lambda: Moment(now[0]))
    assert sorted(second.open_sessions()) == ["kept", "lost"]
    assert second.recover({"kept"}) == 1
    until(lambda: second.undelivered == 0)
    stop = server.accounting(STOP)[-1]
    assert (stop.one(44), stop.number(42), stop.number(46)) == (b"lost", 77, 60)
    assert stop.number(49) == int(TerminateCause.NAS_REBOOT)
    assert (stop.number(55), stop.number(41)) == (1_600_000_060, 1000)
    second.start(usage("kept"))  # its session goes on: no second Start
    second.stop(usage("kept", in_octets=3))
    until(lambda: second.undelivered == 0)
    second.close()

    third = account(server)
    assert third.open_sessions() == [] and third.recover(()) == 0
    assert len(server.accounting(START)) == 3 and len(server.accounting(STOP)) == 3


def test_two_daemons_do_not_share_a_spool(server, account):
    account(server)
    with pytest.raises(ConfigError, match="another l2tpns"):
        account(server)


VICTIM = """
import sys, gevent
from pathlib import Path
from l2tpns.runtime.durable import make_line
from tests.lab.memory_log import MemoryLog
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.settings import RadiusSettings, ServerAddress
from tests.lab.radius_parts import usage
port = int(sys.argv[2])
settings = RadiusSettings(accounting_servers=(ServerAddress("127.0.0.1", port),), secret=b"testing123", accounting=True)
accounting = Accounting(settings, Path(sys.argv[1]), MemoryLog().get())
accounting.open()
for number in range(100):
    accounting.start(usage(f"s{number}"))
for number in range(50):
    accounting.stop(usage(f"s{number}", in_octets=number))
print("written", flush=True)
gevent.sleep(60)
"""


def test_kill_9_loses_nothing_that_was_said(server, account, tmp_path):
    server.silent = True
    command = [sys.executable, "-c", VICTIM, str(tmp_path / "spool"), str(server.port + 1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"written\n"
        os.kill(victim.pid, signal.SIGKILL)
    gevent.sleep(0.05)
    server.requests.clear()
    server.silent = False
    accounting = account(server)
    accounting.recover(())
    until(lambda: accounting.undelivered == 0)
    names = [f"s{number}".encode() for number in range(100)]
    assert sorted(r.one(44) for r in server.accounting(START)) == sorted(names)
    assert sorted(r.one(44) for r in server.accounting(STOP)) == sorted(names)
    causes = {r.one(44): r.number(49) for r in server.accounting(STOP)}
    assert causes[b"s49"] is None and causes[b"s50"] == int(TerminateCause.NAS_REBOOT)


# --- usage as text


def test_usage_survives_the_spool():
    routes = (FramedRoute(IPv4Network("10.1.0.0/16"), None, 3),)
    classes = (b"\0", b"\xff" * 253)
    everything = usage(
        user=bytes(range(256)), classes=classes, called="ä", avpairs=("a=b",), in_octets=1 << 60, routes=routes
    )
    assert load_usage(dump_usage(everything)) == everything


def test_usage_of_another_release_is_read_as_far_as_we_know_it():
    assert load_usage(b'{"acct_session_id":"a","user":"x","session_id":1,"news":7}') == usage(
        "a", user=b"x", session_id=1, address=None
    )


def test_an_accounting_request_is_at_most_4096_octets_long():
    assert len(accounting_request("stop", usage(called="1" * 1000, classes=(b"x" * 253,) * 8)).raw) <= 4096
    assert struct.calcsize("!BBH16s") == 20


# --- what ends its greenlets


def test_a_sender_that_is_ended_costs_no_record(account, server):
    accounting = account(server)
    usual, server.handler = server.handler, lambda request: []  # it takes its time
    accounting.start(usage())
    until(lambda: accounting._delivery._workers and statuses(server) == [START])
    (worker,) = accounting._delivery._workers
    worker.kill()
    server.handler = usual
    accounting.stop(usage(terminate_cause=1))
    until(lambda: accounting.undelivered == 0)
    assert statuses(server)[-1] == STOP


def test_a_spool_whose_greenlet_fails_delivers_what_it_had_in_hand(account, server, monkeypatch):
    log = MemoryLog()
    accounting = account(server, log=log)
    failures = iter([gevent.GreenletExit(), MemoryError()])
    original = spool_module.fsync_all

    def failing(*arguments):
        for error in failures:
            raise error
        return original(*arguments)

    monkeypatch.setattr(spool_module, "fsync_all", failing)
    accounting.start(usage())
    accounting.stop(usage(terminate_cause=1))
    until(lambda: accounting.undelivered == 0)
    assert statuses(server) == [START, STOP]
    assert {line["part"] for line in log.records("part_failed")} == {"accounting spool"}
    assert accounting.close()


def test_a_disk_that_is_read_only_by_now_ends_nothing_in_a_traceback(account, server, monkeypatch):
    log = MemoryLog()
    accounting = account(server, log=log)
    accounting.start(usage())
    until(lambda: accounting.undelivered == 0)

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(lines.os, "write", read_only)
    monkeypatch.setattr(lines.Path, "unlink", read_only)
    accounting.stop(usage(terminate_cause=1))
    until(lambda: statuses(server) == [START, STOP] and accounting.undelivered == 0)
    assert accounting.close()
    assert [line["event"] for line in log.records() if "traceback" in line] == []


# --- clocks that are set


TODAY = 1_790_000_000.0


def late_record(server, account, written, delivered):
    """Return the record of a session that an accounting took at one moment, and its successor delivers at another."""
    server.silent = True
    now = [written]
    first = account(server, clock=lambda: now[0])
    first.start(usage("fred"))
    until(lambda: server.requests)
    first.close(0)
    server.silent = False
    seen = len(server.requests)
    now[0] = delivered
    second = account(server, clock=lambda: now[0])
    until(lambda: second.undelivered == 0)
    return server.requests[seen:][-1]


@pytest.mark.parametrize(("before", "after"), [(TODAY, TODAY + 3600), (TODAY, TODAY - 7200), (100.0, TODAY)])
def test_how_long_a_record_has_waited_no_step_of_the_clock_changes(server, account, before, after):
    # The clock is set, and seven seconds pass.
    record = late_record(server, account, Moment(before, 500.0, "a"), Moment(after, 507.0, "a"))
    assert record.number(41) == 7
    assert record.number(55) == int(after - 7)  # the date is corrected


def test_after_a_reboot_a_record_is_as_old_as_the_wall_clock_says(server, account):
    record = late_record(server, account, Moment(TODAY, 500.0, "a"), Moment(TODAY + 100, 20.0, "b"))
    assert (record.number(41), record.number(55)) == (100, TODAY)


def spoiled(tmp_path, *lines):
    path = tmp_path / "spool" / "0000000001.records"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(b"".join(map(make_line, lines)))


def test_a_spool_of_release_0_1_0_is_delivered(server, account, tmp_path):
    body = orjson.loads(dump_usage(usage("fred")))
    spoiled(tmp_path, ["r", 1, "start", "fred", TODAY, False, body])
    accounting = account(server, clock=lambda: Moment(TODAY + 5, 9.0, "a"))
    until(lambda: accounting.undelivered == 0)
    assert (server.records[0].number(41), server.records[0].number(55)) == (5, TODAY)


@pytest.mark.parametrize(
    "line",
    [
        ["r"],
        ["r", "one"],
        ["r", 1 << 62, "start", "x", TODAY, False, {}],
        ["r", -1, "start", "x", TODAY, False, {}],
        ["r", 2, "start", "x", "now", False, {}],
        ["r", 2, "start", "x", 1e300, False, {}],
        ["r", 2, "start", 7, TODAY, False, {}],
        ["r", 2, "start", "x" * 300, TODAY, False, {}],
        ["r", 2, "start", "x", TODAY, "no", {}],
        ["r", 2, "start", "x", TODAY, False, 5],
        ["r", 2, "start", "x", TODAY, False, {}],
        ["r", 2, "begin", "x", TODAY, False, {"user": "x", "acct_session_id": "x", "session_id": 1}],
        ["r", 2, "start", "x", TODAY, False, {"user": 5, "acct_session_id": "x", "session_id": 1}],
        ["r", 2, "start", "x", TODAY, False, {"user": "x", "acct_session_id": "x", "session_id": "one"}],
        ["r", 2, "stop", "x", TODAY, False, {"user": "x", "acct_session_id": "x", "session_id": 1, "in_octets": -1}],
        ["r", 2, "stop", "x", TODAY, False, {"user": "x", "acct_session_id": "x", "session_id": 1, "address": "x"}],
        ["r", 2, "stop", "x", TODAY, False, {"user": "x", "acct_session_id": "y", "session_id": 1}],
        ["d", []],
        ["x", None],
        [],
        [[], {}],
    ],
)
def test_a_record_that_makes_no_sense_is_named_and_the_others_are_delivered(server, account, tmp_path, line):
    good = ["r", 1, "start", "fred", TODAY, False, orjson.loads(dump_usage(usage("fred")))]
    spoiled(tmp_path, good, line, ["r", 3, *good[2:3], "ann", *good[4:6], {**good[6], "acct_session_id": "ann"}])
    log = MemoryLog()
    accounting = account(server, log=log)
    until(lambda: accounting.undelivered == 0)
    assert sorted(record.one(44) for record in server.records) == [b"ann", b"fred"]
    assert len(log.records("spool_record_refused") + log.records("accounting_set_aside")) == 1


def test_what_the_spool_says_of_a_session_goes_before_the_saved_state(server, account, tmp_path):
    first = account(server)
    for name in ("open", "delivered", "waiting"):
        first.start(usage(name))
    assert first.is_on_disk("open") and not first.is_on_disk("unheard")
    first.stop(usage("delivered"))
    until(lambda: first.undelivered == 0)
    server.silent = True
    first.stop(usage("waiting"))
    first.close(0)
    second = account(server)
    said = {name: second.has_stopped(name, True) for name in ("open", "delivered", "waiting")}
    assert said == {"open": False, "delivered": True, "waiting": True}
    assert not second.has_stopped("delivered", False)  # accounting was off
    server.silent = False
    until(lambda: not second.undelivered)
    second.close()


def test_a_spool_that_is_new_says_nothing(server, account):
    assert not account(server).has_stopped("fred", True)


# --- what no server takes


@pytest.fixture
def traffic():
    """Has a session of its own send interim records all the time: the server is seen to answer."""
    greenlets = []

    def begin(accounting):
        accounting.start(usage("lively"))

        def run():
            for number in range(1_000_000):
                accounting.interim(usage("lively", in_octets=number))
                gevent.sleep(0.01)

        greenlets.append(gevent.spawn(run))

    yield begin
    gevent.killall(greenlets)


def never(server, session, *kinds):
    """The server takes no record of this session, or none of these kinds, as if it had not come."""
    honest = server.answer

    def answer(request):
        mute = request.one(44) == session and (not kinds or request.number(40) in kinds)
        return [] if mute else honest(request)

    server.handler = answer


def taken(server, session):
    """The kinds of this session's records that the server has answered."""
    return [r.number(40) for r in server.records if r.one(44) == session and any(server._seen[r.peer, r.raw[:20]])]


def aside(tmp_path):
    path = tmp_path / "spool" / "set-aside"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def test_a_record_too_long_for_a_packet_is_cut_and_told_once(server, account):
    log = MemoryLog()
    accounting = account(server, log=log)
    routes = tuple(FramedRoute(IPv4Network(f"10.{number}.0.0/16")) for number in range(240))
    facts = {"routes": routes, "classes": (b"c" * 253,) * 4}
    accounting.start(usage(**facts))
    until(lambda: statuses(server) == [START])
    accounting.stop(usage(**facts, in_octets=7, terminate_cause=1))
    until(lambda: accounting.undelivered == 0)
    assert statuses(server) == [START, STOP]
    assert all(len(record.raw) <= 4096 and len(record.all(25)) == 4 for record in server.records)
    (line,) = log.records("accounting_record_cut")
    assert line["acct"] == "5F00000000000001" and line["user"] == "alice" and line["left_out"]["Framed-Route"] > 100


def test_a_long_record_of_an_earlier_release_is_delivered(server, account, tmp_path):
    told = {"acct_session_id": "old", "user": "alice", "session_id": 7, "address": "10.0.0.5", "called": "9" * 250,
            "routes": [[f"10.{number}.0.0/16", None, 1] for number in range(200)], "classes": ["c" * 253] * 15,
            "avpairs": ["a=" + "\u00ff" * 245]}  # fmt: skip
    (tmp_path / "spool").mkdir(mode=0o700)
    lines = [
        make_line(["r", number, kind, "old", 1_600_000_000.0, False, told])
        for number, kind in ((1, "start"), (2, "stop"))
    ]
    (tmp_path / "spool" / "0000000001.records").write_bytes(b"".join(lines))
    accounting = account(server)
    until(lambda: accounting.undelivered == 0)
    assert taken(server, b"old") == [START, STOP]
    assert all(len(record.raw) <= 4096 for record in server.records)


def test_a_start_that_is_never_taken_gives_way_to_its_stop(server, account, tmp_path, traffic):
    log = MemoryLog()
    never(server, b"bad", START)
    accounting = account(server, log=log, timeout=0.1, timing=WARY)
    accounting.start(usage("bad"))
    traffic(accounting)
    accounting.stop(usage("bad", in_octets=5, terminate_cause=1))
    until(lambda: STOP in taken(server, b"bad"))
    (kept,) = aside(tmp_path)
    assert (kept["kind"], kept["session"], kept["usage"]["user"]) == ("start", "bad", "alice")
    (line,) = log.records("accounting_set_aside")
    assert (line["acct"], line["kind"], line["lost"]) == ("bad", "start", "")
    assert (tmp_path / "spool" / "set-aside").stat().st_mode & 0o777 == 0o600


def test_a_start_that_is_never_taken_is_given_up_and_the_stop_still_comes(server, account, tmp_path, traffic):
    never(server, b"bad", START)
    accounting = account(server, timeout=0.1, timing=WARY)
    accounting.start(usage("bad"))
    traffic(accounting)
    until(lambda: aside(tmp_path))
    assert "bad" in accounting.open_sessions()
    accounting.stop(usage("bad", in_octets=5, terminate_cause=1))
    until(lambda: STOP in taken(server, b"bad"))
    until(lambda: "bad" not in accounting._book.sessions)


def test_accounting_off_goes_without_what_is_never_taken_which_the_next_daemon_tries_again(server, account, traffic):
    never(server, b"bad", STOP)
    accounting = account(server, timeout=0.1, timing=replace(WARY, undeliverable_tries=1_000_000))
    accounting.start(usage("bad"))
    traffic(accounting)
    accounting.stop(usage("bad", in_octets=5, terminate_cause=1))
    accounting.stop(usage("lively"))
    until(lambda: any(entry.session == "bad" for entry in accounting._book.suspects) or not accounting._book.hopeful)
    accounting.off()
    assert not accounting.close(PATIENCE)
    assert server.accounting(OFF)
    server.handler = server.answer
    second = account(server)
    until(lambda: STOP in taken(server, b"bad"))
    assert second.close()


def test_accounting_off_goes_at_the_end_of_the_time_whatever_is_left(server, account):
    """The server answers nothing else any more, so nothing says that it is alive."""
    never(server, b"bad")
    accounting = account(server, timeout=0.1)
    accounting.start(usage("bad"))
    until(lambda: server.requests)
    accounting.off()
    assert not accounting.close(3.0)
    assert server.accounting(OFF)


def test_tries_before_an_outage_is_noticed_are_fewer_than_a_suspects(server, account):
    accounting = account(server, timeout=0.05)
    accounting.start(usage("early"))
    until(lambda: accounting.undelivered == 0)
    server.silent = True
    for number in range(3):
        accounting.start(usage(f"s{number}"))
        accounting.stop(usage(f"s{number}"))
    until(lambda: accounting.stats.rounds_unanswered > 6)
    server.silent = False
    until(lambda: accounting.undelivered == 0)
    assert accounting.stats.set_aside == 0
    assert all(taken(server, b"s%d" % number)[:1] == [START] for number in range(3))
    assert all(STOP in taken(server, b"s%d" % number) for number in range(3))


def test_an_answer_of_any_other_request_tells_that_earlier_tries_were_passed_over(server, account, tmp_path):
    never(server, b"bad", START)
    accounting = account(server, timeout=0.05, timing=WARY)
    accounting.start(usage("bad"))
    accounting.stop(usage("bad", terminate_cause=1))
    until(lambda: accounting.stats.rounds_unanswered)
    for number in range(1000):
        if STOP in taken(server, b"bad"):
            break
        accounting.start(usage(f"other{number}"))  # one at a time, with silence between them
        until(lambda number=number: taken(server, b"other%d" % number))
        gevent.sleep(0.2)
    assert STOP in taken(server, b"bad")
    assert [kept["kind"] for kept in aside(tmp_path)] == ["start"]


def test_sessions_whose_records_are_never_taken_do_not_keep_the_workers_from_others(server, account, traffic):
    patient = replace(WARY, workers=4, retry_workers=1, replace_tries=1_000_000, undeliverable_tries=1_000_000)
    honest = server.answer
    server.handler = lambda request: [] if (request.one(44) or b"").startswith(b"bad") else honest(request)
    accounting = account(server, timeout=0.1, timing=patient)
    traffic(accounting)
    for number in range(8):
        accounting.start(usage(f"bad{number}"))
    until(lambda: accounting.stats.rounds_unanswered)
    for number in range(20):
        accounting.start(usage(f"good{number}"))
        accounting.stop(usage(f"good{number}"))
    until(lambda: all(STOP in taken(server, b"good%d" % number) for number in range(20)))
    assert accounting._delivery._retries_in_flight <= 1


def test_an_outage_passes_nothing_over(server, account, tmp_path):
    server.silent = True
    accounting = account(server, timeout=0.05, timing=WARY)
    for number in range(5):
        accounting.start(usage(f"s{number}"))
        accounting.stop(usage(f"s{number}"))
    until(lambda: accounting.stats.rounds_unanswered > 6)
    assert accounting.stats.set_aside == 0 and not accounting._book.suspects
    assert all(entry.passed_over == 0 for each in accounting._book.sessions.values() for entry in each.pending)


def test_an_answer_of_another_kind_is_none(server, account, tmp_path):
    log = MemoryLog()
    honest = server.answer
    server.handler = lambda request: (
        [make_reply(request, REJECT, sign=False)] if request.number(40) == START else honest(request)
    )
    accounting = account(server, log=log, timing=WARY)
    accounting.start(usage("bad"))
    accounting.stop(usage("bad"))
    until(lambda: taken(server, b"bad")[-1:] == [STOP])
    assert [kept["kind"] for kept in aside(tmp_path)] == ["start"]
    assert log.records("radius_reply_unknown")[0]["code"] == REJECT


UNREADABLE = [None, {}, [], 7, "x", {"user": "x"}, {"acct_session_id": "odd", "user": 7, "session_id": 1},
              {"acct_session_id": "odd", "user": "\u4e00", "session_id": 1},
              {"acct_session_id": "odd", "user": "x", "session_id": 1, "routes": [["10.0.0.1/8", None, 1]]},
              {"acct_session_id": "odd", "user": "x", "session_id": 1, "address": "nowhere"}]  # fmt: skip


@pytest.mark.parametrize("told", UNREADABLE)
@pytest.mark.parametrize("delivered", [False, True])
def test_a_record_that_cannot_be_read_is_kept_aside_and_its_session_is_stopped(
    server, account, tmp_path, told, delivered
):
    (tmp_path / "spool").mkdir(mode=0o700)
    good = {"acct_session_id": "good", "user": "alice", "session_id": 7}
    lines = [
        make_line(["r", 1, "start", "odd", 1_600_000_000.0, delivered, told]),
        make_line(["r", 2, "start", "good", 1_600_000_000.0, True, good]),
        make_line(["r", 3, "of a later release", "later", 1_600_000_000.0, False, good]),
    ]
    (tmp_path / "spool" / "0000000001.records").write_bytes(b"".join(lines))
    accounting = account(server)
    assert accounting.recover(()) == 2
    until(lambda: accounting.undelivered == 0)
    assert taken(server, b"odd") == taken(server, b"good") == [STOP]
    kept = [(each["session"], each["kind"]) for each in aside(tmp_path)]
    assert sorted(kept) == sorted([("later", "of a later release")] + ([] if delivered else [("odd", "start")]))
    assert accounting.close()
    assert spooled(tmp_path) == []


def test_a_record_that_makes_us_stumble_gives_way_too(server, account, tmp_path, monkeypatch):
    log = MemoryLog()
    fill = delivery.fill_accounting_request

    def stumble(packet, kind, *args, **times):
        if kind == "start":
            raise RuntimeError("a bug")
        return fill(packet, kind, *args, **times)

    monkeypatch.setattr(delivery, "fill_accounting_request", stumble)
    accounting = account(server, log=log, timing=WARY)
    accounting.start(usage("bad"))
    accounting.stop(usage("bad"))
    until(lambda: taken(server, b"bad") == [STOP])
    assert [kept["kind"] for kept in aside(tmp_path)] == ["start"]
    assert len(log.records("accounting_failed")) == 3


def test_what_is_set_aside_is_named_when_it_cannot_be_kept(server, account, tmp_path, traffic):
    log = MemoryLog()
    never(server, b"bad")
    accounting = account(server, log=log, timeout=0.1, timing=WARY)
    (tmp_path / "target").write_text("")
    (tmp_path / "spool" / "set-aside").symlink_to(tmp_path / "target")
    accounting.start(usage("bad"))
    traffic(accounting)
    until(lambda: log.records("accounting_set_aside"))
    assert log.records("accounting_set_aside")[0]["lost"]
    assert (tmp_path / "target").read_text() == ""


@pytest.mark.parametrize("error", [errno.EMSGSIZE, errno.EPERM, errno.EINVAL])
def test_a_record_that_the_kernel_refuses_to_send_gives_way(server, account, tmp_path, traffic, monkeypatch, error):
    class Narrow:
        """A socket through which only short datagrams go."""

        def __init__(self, sock):
            self.sock = sock

        def send(self, octets):
            if len(octets) > 1000:
                raise OSError(error, os.strerror(error))
            return self.sock.send(octets)

        def __getattr__(self, name):
            return getattr(self.sock, name)

    opened = remote_server.open_socket
    monkeypatch.setattr(remote_server, "open_socket", lambda *args: Narrow(opened(*args)))
    accounting = account(server, timeout=0.1, timing=WARY)
    accounting.start(usage("bad", classes=(b"c" * 253,) * 4))
    traffic(accounting)
    accounting.stop(usage("bad", terminate_cause=1))
    until(lambda: STOP in taken(server, b"bad"))
    assert [kept["kind"] for kept in aside(tmp_path)] == ["start"]
