"""What happens to a session in the course of time: echoes, time-outs, interim accounting, new challenges."""

from __future__ import annotations

import time
from ipaddress import IPv4Address

import gevent
import pytest

from l2tpns import housekeeping
from l2tpns.radius.types import AuthReply
from tests.daemon.conftest import QUICK, Serve
from tests.daemon.subscribers import Ear, say
from tests.lab import traffic
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Subscriber, Why
from tests.lab.pppclient import CHAP, LCP

ECHO_REQ = 9
WORLD = IPv4Address("198.51.100.2")
SESSION_TIMEOUT, IDLE_TIMEOUT, LOST_CARRIER = 5, 4, 2  # Acct-Terminate-Cause (RFC 2866 5.10)


def dial(server: InProcess, user: str = "fred", **options: object) -> tuple[Subscriber, Ear]:
    subscriber = server.lac(defaults=QUICK).connect().call(user, "pw", **options)
    ear = Ear(subscriber)
    return subscriber.wait_online(), ear


def chatter(server: InProcess, subscriber: Subscriber, seconds: float) -> None:
    """Packets from the subscriber, ten a second."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        subscriber.send_ip(traffic.udp(subscriber.address, WORLD, 9, 9, b"x"))
        gevent.sleep(0.1)


def stop_cause(server: InProcess) -> int:
    (stop,) = server.accounting.of("stop")
    return stop.terminate_cause


# Echo


@pytest.mark.statement(93)
def test_a_silent_client_is_asked_whether_it_lives_and_a_talking_one_is_not(serve: Serve) -> None:
    server = serve(echo_timeout=0.4)
    silent, _ = dial(server)
    talking, ear = dial(server, "mary")
    chatter(server, talking, 0.9)
    assert ear.of("in", LCP, ECHO_REQ) == []
    assert 1 <= silent.echoes_answered <= 4
    assert silent.online and talking.online


def test_with_ppp_keepalive_no_even_a_talking_client_is_asked(serve: Serve) -> None:
    server = serve(echo_timeout=0.2, ppp_keepalive=False)
    fred, ear = dial(server)
    chatter(server, fred, 0.7)
    assert 2 <= len(ear.of("in", LCP, ECHO_REQ)) <= 5


def test_a_client_that_vanished_is_given_up_after_idle_echo_timeout(serve: Serve) -> None:
    server = serve(echo_timeout=0.2, idle_echo_timeout=0.7)
    fred, ear = dial(server)
    since = time.monotonic()
    ear.deaf_to = (LCP,)
    assert fred.wait_ended().result == 1  # loss of carrier
    assert 0.5 < time.monotonic() - since < 1.2
    assert len(ear.of("in", LCP, ECHO_REQ)) >= 2
    assert stop_cause(server) == LOST_CARRIER


def test_an_echo_reply_is_life_enough(serve: Serve) -> None:
    server = serve(echo_timeout=0.2, idle_echo_timeout=0.4)
    fred, _ = dial(server)
    gevent.sleep(0.8)
    assert fred.online


def test_without_echo_and_without_time_outs_a_session_stays_as_it_is(serve: Serve) -> None:
    server = serve(echo_timeout=0, idle_echo_timeout=0)
    fred, ear = dial(server)
    gevent.sleep(0.4)
    assert fred.online
    assert ear.of("in", LCP, ECHO_REQ) == []


# Session-Timeout and Idle-Timeout


@pytest.mark.statement(143)
def test_session_timeout_ends_even_a_busy_session(server: InProcess) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=0.4)
    fred, _ = dial(server)
    since = time.monotonic()
    chatter(server, fred, 0.2)
    assert fred.online
    assert fred.wait_ended().result == 3
    assert 0.3 < time.monotonic() - since < 1.0
    assert stop_cause(server) == SESSION_TIMEOUT


@pytest.mark.statement(143)
def test_a_session_timeout_of_0_ends_the_session_at_its_start(server: InProcess) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=0)
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw")
    ended = fred.wait_ended()
    assert (ended.why, ended.result) == (Why.CDN, 3)
    assert server.accounting.records == []
    server.wait(lambda: server.calm)


def test_or_it_means_nothing_with_kill_timedout_sessions_no(serve: Serve) -> None:
    server = serve(kill_timedout_sessions=False, echo_timeout=0.2)
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=0)
    fred, _ = dial(server)
    fred.wait(lambda: fred.echoes_answered >= 2, what="echoes")
    assert fred.online


@pytest.mark.statement(143)
def test_idle_timeout_counts_packets_both_ways_but_no_echoes(serve: Serve) -> None:
    server = serve(echo_timeout=0.2)
    for user in ("fred", "mary", "guest"):
        server.backend.replies[user] = AuthReply(accepted=True, idle_timeout=0.5)
    idle, _ = dial(server)
    sender, _ = dial(server, "mary")
    receiver, _ = dial(server, "guest")
    since = time.monotonic()
    while idle.ended is None and time.monotonic() < since + 3.0:
        sender.send_ip(traffic.udp(sender.address, WORLD, 9, 9, b"x"))
        server.plane.deliver(traffic.udp(WORLD, receiver.address, 9, 9, b"x"))
        gevent.sleep(0.1)
    assert 0.4 < time.monotonic() - since < 1.1
    assert idle.echoes_answered >= 1
    assert stop_cause(server) == IDLE_TIMEOUT
    assert sender.online and receiver.online


@pytest.mark.statement(143)
@pytest.mark.parametrize("auth", ["pap", "chap"])
def test_termination_action_asks_radius_again_and_the_session_goes_on(server: InProcess, auth: str) -> None:
    again = AuthReply(accepted=True, session_timeout=0.4, termination_action=1, state=b"ticket")
    server.backend.replies["fred"] = again
    fred, _ = dial(server, auth=auth)
    server.wait(lambda: len(server.backend.asked) == 3)
    assert fred.online
    assert server.backend.asked[2].state == b"ticket"
    assert len(server.lns.wheel) == 1
    server.backend.passwords["fred"] = b"changed"
    assert fred.wait_ended().result == 3
    assert stop_cause(server) == SESSION_TIMEOUT
    assert len(server.backend.asked) == 4
    assert len(server.accounting.of("start")) == 1


@pytest.mark.statement(143)
def test_when_radius_does_not_answer_then_the_time_is_over(server: InProcess) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=0.4, termination_action=1)
    fred, _ = dial(server)
    server.backend.silent = True
    assert fred.wait_ended().result == 3
    assert stop_cause(server) == SESSION_TIMEOUT


@pytest.mark.statement(143)
def test_a_call_that_is_hung_up_while_radius_is_asked_again_was_hung_up(server: InProcess) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=0.4, termination_action=1)
    fred, _ = dial(server)
    server.backend.delay = 0.6
    server.wait(lambda: len(server.backend.asked) == 2)
    fred.hangup()
    server.wait(lambda: server.calm)
    assert server.events("session_down")[0]["cause"].startswith("lac_")


# Interim accounting


@pytest.fixture
def quick_interim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "MINIMUM_INTERIM", 0)


@pytest.mark.statement(151)
@pytest.mark.usefixtures("quick_interim")
def test_interim_records_tell_what_was_used_so_far(serve: Serve) -> None:
    server = serve(radius_interim=0.3)
    fred, _ = dial(server)
    records = server.accounting.records
    since = time.monotonic()
    while len(records) < 3 and time.monotonic() < since + 3.0:
        chatter(server, fred, 0.1)
    assert time.monotonic() - since > 0.5
    assert [kind for kind, _ in records] == ["start", "interim", "interim"]
    packets = [usage.in_packets for _, usage in records]
    assert packets == sorted(packets) and packets[0] == 0 < packets[1] < packets[2]
    assert len({usage.acct_session_id for _, usage in records}) == 1


@pytest.mark.statement(151)
@pytest.mark.usefixtures("quick_interim")
def test_an_interval_of_radius_goes_before_the_configured_one(serve: Serve) -> None:
    server = serve(radius_interim=0.2)
    server.backend.replies["fred"] = AuthReply(accepted=True, interim=3600)
    server.backend.replies["mary"] = AuthReply(accepted=True, interim=0)
    for user in ("fred", "mary"):
        dial(server, user)
    gevent.sleep(0.5)
    assert server.accounting.of("interim") == []


@pytest.mark.statement(151)
def test_no_interval_is_shorter_than_a_minute(server: InProcess) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, interim=1)
    dial(server)
    (session,) = server.lns.sessions.values()
    assert housekeeping.interim_interval(session) == 60


# CHAP challenges of a session that is online


@pytest.mark.statement(105)
def test_a_client_is_challenged_again_and_stays_if_it_still_knows_the_secret(serve: Serve) -> None:
    server = serve(chap_rechallenge=0.3)
    fred, ear = dial(server, auth="chap")
    fred.wait(lambda: len(ear.of("in", CHAP, 3)) >= 3, what="Success")
    assert len({packet[5:21] for packet in ear.of("in", CHAP, 1)}) == len(ear.of("in", CHAP, 1))
    assert fred.online
    assert len(server.accounting.records) == 1


@pytest.mark.statement(107)
def test_a_client_that_no_longer_knows_it_is_disconnected(serve: Serve) -> None:
    server = serve(chap_rechallenge=0.3)
    fred, ear = dial(server, auth="chap")
    fred.password = b"forgotten"
    assert fred.wait_ended().result == 3
    assert len(ear.of("in", CHAP, 4)) == 1
    assert stop_cause(server) == 17  # user error


def test_a_client_that_answers_in_another_name_is_disconnected(serve: Serve) -> None:
    server = serve(chap_rechallenge=0.3)
    fred, _ = dial(server, auth="chap")
    fred.user = b"mary"
    assert fred.wait_ended().result == 3


def test_a_client_that_does_not_answer_a_challenge_is_disconnected(serve: Serve) -> None:
    server = serve(chap_rechallenge=0.2, ppp_restart_time=0.1, ppp_max_configure=2)
    fred, ear = dial(server, auth="chap")
    ear.deaf_to = (CHAP,)
    assert fred.wait_ended().result == 3
    assert len(ear.of("in", CHAP, 1)) == 1 + 2


def test_when_radius_does_not_answer_the_client_stays_and_is_asked_another_time(serve: Serve) -> None:
    server = serve(chap_rechallenge=0.2)
    fred, ear = dial(server, auth="chap")
    server.backend.silent = True
    fred.wait(lambda: len(ear.of("in", CHAP, 1)) >= 4, what="challenges")
    assert fred.online


def test_pap_clients_are_not_challenged(serve: Serve) -> None:
    server = serve(chap_rechallenge=0.2)
    _, ear = dial(server, auth="pap")
    gevent.sleep(0.5)
    assert ear.of("in", CHAP) == []
    assert len(server.backend.asked) == 1


# The clock of all sessions


def test_many_sessions_each_get_their_echo_and_one_timer(serve: Serve) -> None:
    server = serve(echo_timeout=0.3, allow_duplicate_users=True)
    lac: Lac = server.lac(defaults=QUICK).connect()
    calls = [lac.call("fred", "pw") for _ in range(20)]
    for call in calls:
        call.wait_online()
    lac.wait(lambda: all(call.echoes_answered >= 2 for call in calls))
    assert len(server.lns.wheel) <= 20
    calls[0].restart()
    calls[0].wait(lambda: calls[0].online)
    for call in calls[1:]:
        call.hangup()
    server.wait(lambda: len(server.lns.sessions) == 1)
    assert len(server.lns.wheel) <= 1
    say(calls[0], "ff03 c021 0501 0004")
    server.wait(lambda: server.calm)
