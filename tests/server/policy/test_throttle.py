"""Throttled sessions: requests, the state of the kernel and the data path, what operators see."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from l2tpns.dataplane.plane import FastPathStatus
from l2tpns.dataplane.policer import DROP, PASS, WAIT, Policer
from l2tpns.dataplane.rate import Rate
from l2tpns.policy.model import Policy, PolicyError
from l2tpns.policy.throttle import parse_rates
from l2tpns.radius.types import AuthReply, FramedRoute
from l2tpns.runtime.token_bucket import MIN_BURST_OCTETS
from l2tpns.subscriber import network
from l2tpns.subscriber.session import Session
from l2tpns.system.shaping import FIRST, Shaped
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Subscriber
from tests.lab.null_shaper import NullShaper
from tests.server.conftest import QUICK, Serve
from tests.server.operators import Desk

HOST = "198.51.100.2"


@pytest.fixture
def shaper(server: InProcess) -> NullShaper:
    shaper = NullShaper()
    server.services.throttle.start(shaper)
    return shaper


def log_in(server: InProcess, user: str = "fred", *routes: str, lac: Lac | None = None) -> tuple[Session, Subscriber]:
    framed = tuple(FramedRoute(IPv4Network(route), "") for route in routes)
    server.backend.replies[user] = AuthReply(accepted=True, routes=framed)
    lac = lac or server.lac(defaults=QUICK).connect()
    subscriber = lac.call(user, "pw").wait_online()
    (session,) = server.registry.by_user[user]
    return session, subscriber


# What is asked of the kernel


def test_a_session_gets_a_bucket_for_its_address_and_framed_routes_together(
    server: InProcess, shaper: NullShaper
) -> None:
    session, _ = log_in(server, "fred", "10.77.0.0/24", "10.78.0.0/16")
    server.services.throttle.set(session, 64, 128, by="test")
    networks = (IPv4Network(session.address), IPv4Network("10.77.0.0/24"), IPv4Network("10.78.0.0/16"))
    assert shaper.buckets == {FIRST: Shaped(128, networks)}
    assert server.services.throttle.bucket(session) == "1:10"
    assert session.path.policer is not None and session.path.policer.rate == 64
    (line,) = server.events("throttled")
    assert (line["by"], line["rate_in"], line["rate_out"], line["bucket"]) == ("test", 64, 128, "1:10")


def test_another_rate_changes_the_bucket_and_makes_no_new_one(server: InProcess, shaper: NullShaper) -> None:
    session, _ = log_in(server)
    server.services.throttle.set(session, 64, 64, by="test")
    police = session.path.policer
    server.services.throttle.set(session, 512, 2000, by="test")
    assert [(bucket, shaped.rate) for bucket, shaped in shaper.buckets.items()] == [(FIRST, 2000)]
    assert session.path.policer is police and police is not None and police.rate == 512


def test_one_way_alone_can_be_throttled_and_the_other_added(server: InProcess, shaper: NullShaper) -> None:
    session, _ = log_in(server)
    server.services.throttle.set(session, rate_in=64, by="test")
    assert (session.policy, shaper.buckets) == (Policy(rate_in=64), {})
    server.services.throttle.set(session, rate_out=128, by="test")
    assert session.policy == Policy(rate_in=64, rate_out=128)
    assert [shaped.rate for shaped in shaper.buckets.values()] == [128]


@pytest.mark.shows("set throttle_speed")
def test_no_rate_at_all_means_throttle_speed_and_a_later_change_of_it_touches_nobody(
    server: InProcess, shaper: NullShaper
) -> None:
    session, _ = log_in(server)
    with pytest.raises(PolicyError, match="throttle_speed is 0"):
        server.services.throttle.set(session, by="test")
    server.config.throttle_speed = 28
    server.services.throttle.set(session, by="test")
    server.config.throttle_speed = 512
    assert session.policy == Policy(rate_in=28, rate_out=28)
    assert [shaped.rate for shaped in shaper.buckets.values()] == [28]


def test_unthrottled_it_is_as_before(server: InProcess, shaper: NullShaper) -> None:
    session, _ = log_in(server)
    server.services.throttle.set(session, 64, 64, by="test")
    server.services.throttle.clear(session, by="test")
    server.services.throttle.clear(session, by="test")
    assert (session.policy, session.path.policer, shaper.buckets) == (Policy(), None, {})
    assert server.services.throttle.bucket(session) is None
    assert len(server.events("unthrottled")) == 1


def test_who_ends_gives_its_bucket_back_and_the_next_login_is_not_throttled(
    server: InProcess, shaper: NullShaper
) -> None:
    session, fred = log_in(server)
    server.services.throttle.set(session, 64, 64, by="test")
    assert server.services.throttle.buckets == 1
    fred.terminate()
    server.wait(lambda: server.calm)
    assert (server.services.throttle.buckets, shaper.buckets) == (0, {})
    session, _ = log_in(server)
    assert (session.policy, session.path.policer) == (Policy(), None)


def test_a_login_that_was_throttled_before_it_is_online_is_so_from_its_first_packet(
    server: InProcess, shaper: NullShaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = network.choose_address

    def throttled_by_radius(session: Session, profile: AuthReply) -> None:
        server.services.throttle.set(session, 64, 128, by="radius")
        choose(session, profile)

    monkeypatch.setattr(network, "choose_address", throttled_by_radius)
    session, _ = log_in(server)
    assert session.policy == Policy(rate_in=64, rate_out=128)
    assert [shaped.rate for shaped in shaper.buckets.values()] == [128]
    assert session.path.policer is not None
    assert [line["by"] for line in server.events("throttled")] == ["radius", "login"]


@pytest.mark.shows("set throttle_buckets")
def test_throttle_buckets_is_the_limit_and_whoever_comes_after_it_is_told(
    server: InProcess, shaper: NullShaper
) -> None:
    server.config.throttle_buckets = 1
    fred, _ = log_in(server, "fred")
    mary, _ = log_in(server, "mary")
    server.services.throttle.set(fred, 64, 64, by="test")
    with pytest.raises(PolicyError, match=r"all throttle_buckets are in use \(1\)"):
        server.services.throttle.set(mary, 64, 64, by="test")
    assert (mary.policy, mary.path.policer) == (Policy(), None)
    server.services.throttle.set(mary, 64, 0, by="test")  # that way needs none
    server.services.throttle.set(fred, 64, 128, by="test")
    server.services.throttle.clear(fred, by="test")
    server.services.throttle.set(mary, 64, 64, by="test")
    assert list(shaper.buckets) == [FIRST]


def test_what_the_kernel_refuses_leaves_the_session_as_it_was(server: InProcess, shaper: NullShaper) -> None:
    session, fred = log_in(server)
    shaper.refusing = "no such thing as HTB"
    with pytest.raises(PolicyError, match="throttling is unavailable: no such thing as HTB"):
        server.services.throttle.set(session, 64, 64, by="test")
    assert (session.policy, session.path.policer) == (Policy(), None)
    fred.send_udp(HOST, 9, b"?")
    server.wait(lambda: server.plane.delivered)


def test_a_login_goes_on_when_its_bucket_cannot_be_had(server: InProcess, shaper: NullShaper) -> None:
    shaper.refusing = "no such thing as HTB"
    session, _ = log_in(server)
    server.services.throttle.finish(session)
    session.policy = Policy(rate_in=64, rate_out=64)
    server.services.throttle.begin(session)
    (line,) = server.events("throttle_refused")
    assert (line["user"], line["rate_out"]) == ("fred", 64)
    assert session.path.policer is not None  # the way that needs no kernel


@pytest.mark.parametrize("rate", [-1, 10_000_001])
def test_rates_beyond_all_measure_are_refused(server: InProcess, shaper: NullShaper, rate: int) -> None:
    session, _ = log_in(server)
    with pytest.raises(PolicyError):
        server.services.throttle.set(session, rate, by="test")


# After a restart


def test_sessions_that_were_taken_up_get_buckets_when_the_kernel_is_ready(server: InProcess) -> None:
    fred, _ = log_in(server, "fred")
    mary, _ = log_in(server, "mary")
    server.services.throttle.set(fred, 64, 64, by="test")  # no shaper yet, as at the start
    assert server.services.throttle.bucket(fred) is None
    shaper = NullShaper()
    server.services.throttle.start(shaper)
    server.wait(lambda: shaper.buckets)
    assert [shaped.networks for shaped in shaper.buckets.values()] == [(IPv4Network(fred.address),)]
    assert server.services.throttle.bucket(mary) is None


def test_at_the_end_nothing_is_left_in_the_kernel(server: InProcess, shaper: NullShaper) -> None:
    session, _ = log_in(server)
    server.services.throttle.set(session, 64, 64, by="test")
    server.services.throttle.stop()
    assert shaper.buckets == {}


# From the subscriber


PACKETS = [bytes([number]) * 1000 for number in range(40)]


class Line:
    """A policed line with its own clock."""

    def __init__(self, rate: int) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.passed: list[bytes] = []
        self.police = Policer(rate, self.now, self.schedule)

    def schedule(self, seconds: float, call: Callable[[], None]) -> Line:
        self.due.append((self.now + seconds, call))
        return self

    def close(self) -> None:
        """Do nothing: a timer can be closed."""
        self.due.clear()

    def send(self, packet: bytes) -> int:
        verdict = self.police.submit(packet, self.now, self.forward)
        if verdict == PASS:
            self.passed.append(packet)
        return verdict

    def forward(self, packet: bytes) -> None:
        self.passed.append(packet)

    def advance(self, seconds: float) -> None:
        """Run the timers that are due, in order."""
        self.now += seconds
        if self.due and self.due[0][0] <= self.now:
            self.due.clear()
            self.police.release(self.now)


def test_the_bucket_lets_the_rate_through_and_a_burst_at_its_begin() -> None:
    line = Line(64)
    for _ in range(10_000):
        line.send(PACKETS[0])
        line.advance(0.001)
    assert 80_000 <= sum(map(len, line.passed)) <= 80_000 + MIN_BURST_OCTETS


def test_packets_wait_in_order_while_there_is_room() -> None:
    line = Line(8)  # 1000 octets a second
    assert [line.send(packet) for packet in PACKETS[:8]] == [PASS, WAIT, WAIT, WAIT, WAIT, WAIT, DROP, DROP]
    line.advance(0.41)
    assert line.passed == PACKETS[:2]
    for _ in range(4):
        line.advance(1.0)
    assert line.passed == PACKETS[:6]
    line.advance(100.0)
    assert [line.send(packet) for packet in PACKETS[6:8]] == [PASS, WAIT]


def test_small_packets_find_room_where_large_ones_do_not() -> None:
    line = Line(8)
    while line.send(bytes(1400)) != DROP:
        pass
    assert line.send(bytes(84)) == WAIT


def test_nothing_overtakes_what_waits() -> None:
    line = Line(8)
    assert [line.send(bytes(1500)), line.send(bytes(1500)), line.send(bytes(20))] == [PASS, WAIT, WAIT]


def test_a_pause_fills_the_bucket_and_no_more() -> None:
    line = Line(8)
    line.advance(1000.0)
    assert [line.send(bytes(800)) for _ in range(3)] == [PASS, PASS, WAIT]


def test_another_rate_keeps_what_waits() -> None:
    line = Line(8)
    for packet in PACKETS[:5]:
        line.send(packet)
    line.police.change(8000)
    line.advance(1.0)
    assert line.passed == PACKETS[:5]


def test_who_is_not_policed_any_more_loses_nothing_that_waits() -> None:
    line = Line(8)
    for packet in PACKETS[:5]:
        line.send(packet)
    line.police.end()
    assert line.passed == PACKETS[:5]
    assert line.due == []


def test_what_a_subscriber_sends_too_fast_is_dropped_and_counted(server: InProcess, shaper: NullShaper) -> None:
    session, fred = log_in(server)
    server.services.throttle.set(session, rate_in=80, by="test")
    for _ in range(20):
        fred.send_udp(HOST, 9, bytes(1000))
    server.wait(lambda: len(server.plane.delivered) + session.path.dropped_policed == 20)
    assert 2 <= len(server.plane.delivered) < 20
    assert session.path.in_packets == len(server.plane.delivered)
    assert server.counters.drop_policed == session.path.dropped_policed


# At the console


@pytest.fixture
def stage(desk: Desk) -> tuple[Desk, NullShaper]:
    shaper = NullShaper()
    desk.server.services.throttle.start(shaper)
    return desk, shaper


@pytest.mark.shows("throttle USER", "no throttle USER")
def test_throttle_without_a_rate_is_throttle_speed(stage: tuple[Desk, NullShaper]) -> None:
    desk, shaper = stage
    session, _ = log_in(desk.server)
    operator = desk.plain()
    assert "throttle_speed is 0" in operator.do("throttle fred")
    assert operator.do("set throttle_speed 28") == 'Setting "throttle_speed" to "28"\n'
    assert operator.do("throttle fred") == "throttling user fred\n"
    assert session.policy == Policy(rate_in=28, rate_out=28)
    (line,) = desk.server.events("throttled")
    assert re.fullmatch(r"console 127\.0\.0\.1:\d+", line["by"])
    assert operator.do("no throttle fred nobody") == "unthrottling user fred\nUser nobody is not connected\n"
    assert (session.policy, shaper.buckets) == (Policy(), {})
    assert [line["command"] for line in desk.server.events("console_command")][-1] == "no throttle fred nobody"


@pytest.mark.shows("throttle USER RATE", "throttle USER in RATE out RATE")
def test_throttle_takes_a_rate_for_both_ways_or_one_for_each(stage: tuple[Desk, NullShaper]) -> None:
    desk, _ = stage
    session, _ = log_in(desk.server)
    operator = desk.plain()
    operator.do("throttle FRED 64")
    assert session.policy == Policy(rate_in=64, rate_out=64)
    operator.do("throttle fred out 512")
    assert session.policy == Policy(rate_in=64, rate_out=512)
    operator.do("throttle fred out 2000 in 1000")
    assert session.policy == Policy(rate_in=1000, rate_out=2000)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nobody 64", "User nobody is not connected"),
        ("fred 0", '"0" is not a rate: enter 1 to 10000000 kbit/s'),
        ("fred fast", '"fast" is not a rate: enter 1 to 10000000 kbit/s'),
        ("fred in", '"in" is not a rate: enter 1 to 10000000 kbit/s'),
        ("fred in 64 out", "rates are RATE, in RATE, out RATE, or in RATE out RATE"),
        ("fred up 64", '"up" is neither in nor out'),
        ("fred 99999999999", '"99999999999" is not a rate: enter 1 to 10000000 kbit/s'),
    ],
)
def test_throttle_says_what_is_wrong(stage: tuple[Desk, NullShaper], words: str, said: str) -> None:
    desk, _ = stage
    session, _ = log_in(desk.server)
    assert desk.plain().do(f"throttle {words}") == f"% {said}\n"
    assert session.policy == Policy()


@pytest.mark.shows("show throttle")
def test_show_throttle_and_show_session_tell_rates_and_bucket(stage: tuple[Desk, NullShaper]) -> None:
    desk, _ = stage
    session, _ = log_in(desk.server)
    log_in(desk.server, "mary")
    operator = desk.plain()
    assert [row["throttled"] for row in rows_of(operator, "show session")] == [False, False]
    operator.do("throttle fred in 64 out 512")
    lines = operator.do("show throttle").splitlines()
    assert lines[0].split() == [
        "SID",
        "TID",
        "Username",
        "In",
        "Out",
        "Bucket",
        "Method",
        *"Dropped In Dropped Out".split(),
    ]
    assert [line.split()[2:] for line in lines[1:]] == [["fred", "64", "512", "1:10", "htb", "0", "-"]]
    (row,) = rows_of(operator, "show throttle")
    assert (row["user"], row["rate_in"], row["rate_out"], row["filter_bucket"]) == ("fred", 64, 512, "1:10")
    detail = operator.do(f"show session {session.id}")
    assert "\tThrottled:       YES (in 64 out 512 kbit/s, htb)\n" in detail
    assert "\tFilter Bucket:   1:10\n" in detail
    table = operator.do("show session").splitlines()
    assert sorted((line.split()[3], line.split()[6]) for line in table[1:]) == [("fred", "Y"), ("mary", "N")]
    operator.do("no throttle fred")
    assert rows_of(operator, "show throttle") == []
    assert "\tFilter Bucket:   none\n" in operator.do(f"show session {session.id}")


@pytest.mark.shows("set throttle_method", "set throttle_kernel_min", "set throttle_burst")
def test_throttle_method_chooses_between_queues_and_drops(stage: tuple[Desk, NullShaper]) -> None:
    desk, shaper = stage
    session, _ = log_in(desk.server)
    operator, path = desk.plain(), session.path
    operator.do("throttle fred 4000")  # auto, and no fast path: a queue
    assert shaper.buckets and path.policer is not None and path.rate_in is None
    desk.server.config.throttle_method, desk.server.config.throttle_burst = "kernel", 300
    operator.do("throttle fred in 4000 out 3000")
    assert path.policer is None and not path.shaped and not shaper.buckets
    assert path.rate_in == Rate.of(4000, 300) and path.rate_out == Rate.of(3000, 300)
    assert [line.split()[3:] for line in operator.do("show throttle").splitlines()[1:]] == [
        ["4000", "3000", "none", "kernel", "0", "0"]
    ]
    desk.server.config.throttle_method = "auto"
    plane: Any = desk.server.services.plane
    plane.fast_path = lambda: FastPathStatus(True, "", (), {}, 0, {})
    for words, method in (("4000", "kernel"), ("in 1999 out 4000", "htb"), ("in 2000 out 4000", "kernel")):
        operator.do(f"throttle fred {words}")
        assert desk.server.services.throttle.method_of(session) == method
    operator.do("no throttle fred")
    assert (path.rate_in, path.rate_out, path.policer, path.shaped) == (None, None, None, False)


def rows_of(operator: Any, command: str) -> Any:
    return json.loads(operator.do(f"{command} | json"))


def test_rates_are_read_the_same_everywhere() -> None:
    assert parse_rates(()) == (None, None)
    assert parse_rates(("64",)) == (64, 64)
    assert parse_rates(("in", "64")) == (64, None)
    assert parse_rates(("out", "128", "in", "64")) == (64, 128)


def test_throttle_buckets_and_speed_are_variables(serve: Serve) -> None:
    server = serve(throttle_buckets=7, throttle_speed=28)
    assert (server.config.throttle_buckets, server.config.throttle_speed) == (7, 28)


def test_usage_files_mark_who_is_throttled(serve: Serve, tmp_path: Path) -> None:
    server = serve(accounting_dir=str(tmp_path))
    for user in ("fred", "mary"):
        session, _ = log_in(server, user)
        session.path.in_octets = 1000
        if user == "fred":
            server.services.throttle.set(session, rate_in=64, by="test")
    server.services.usage_files.write()
    (file,) = tmp_path.iterdir()
    rows = [line.split() for line in file.read_text().splitlines() if not line.startswith("#")]
    assert sorted((row[0], row[2]) for row in rows) == [("fred", "2"), ("mary", "1")]
