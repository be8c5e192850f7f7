"""Timers of a session: LCP Echo, time-outs, interim accounting, re-challenges.

The time is the test's (tests/server/clocks.py): no other passes.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from l2tpns.policy.garden import networks_of
from l2tpns.radius.types import AuthReply, FramedRoute, OfferedRates
from l2tpns.runtime.mailbox import Mailbox
from l2tpns.subscriber import timers
from l2tpns.subscriber.link import ECHOES_PER_SECOND
from tests.lab import traffic
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Subscriber, Why
from tests.lab.null_shaper import NullShaper
from tests.lab.pppclient import CHAP, LCP
from tests.server.clocks import Clock
from tests.server.conftest import QUICK, Serve
from tests.server.subscribers import Ear, say

ECHO_REQ = 9
WORLD = IPv4Address("198.51.100.2")
SESSION_TIMEOUT, IDLE_TIMEOUT, LOST_CARRIER = 5, 4, 2  # Acct-Terminate-Cause (RFC 2866 5.10)


@pytest.fixture
def server(clock: Clock, serve: Serve) -> InProcess:
    return serve()


def dial(server: InProcess, user: str = "fred", **options: object) -> tuple[Subscriber, Ear]:
    subscriber = server.lac(defaults=QUICK).connect().call(user, "pw", **options)
    ear = Ear(subscriber)
    return subscriber.wait_online(), ear


def talk(server: InProcess, subscriber: Subscriber) -> None:
    """Send a packet of the subscriber through the tun device."""
    before = len(server.plane.delivered)
    subscriber.send_ip(traffic.udp(subscriber.address, WORLD, 9, 9, b"x"))
    server.wait(lambda: len(server.plane.delivered) > before)


def stop_cause(server: InProcess) -> int:
    (stop,) = server.accounting.of("stop")
    return stop.terminate_cause


# Echo


@pytest.mark.statement(93)
@pytest.mark.shows("set echo_timeout")
def test_a_silent_client_is_asked_whether_it_lives_and_a_talking_one_is_not(clock: Clock, serve: Serve) -> None:
    server = serve(echo_timeout=10)
    silent, _ = dial(server)
    talking, ear = dial(server, "mary")
    for _ in range(3):
        for seconds in (4, 4, 2):
            clock.forward(server, seconds)
            talk(server, talking)
        clock.heard(server, silent)
    assert ear.of("in", LCP, ECHO_REQ) == []
    assert silent.echoes_answered == 3
    assert silent.online and talking.online


@pytest.mark.shows("set ppp_keepalive")
def test_with_ppp_keepalive_no_even_a_talking_client_is_asked(clock: Clock, serve: Serve) -> None:
    server = serve(echo_timeout=10, ppp_keepalive=False)
    fred, ear = dial(server)
    for asked in (1, 2, 3):
        clock.forward(server, 9)
        talk(server, fred)
        clock.forward(server, 1)
        fred.wait(lambda asked=asked: len(ear.of("in", LCP, ECHO_REQ)) == asked)


@pytest.mark.shows("set idle_echo_timeout")
def test_a_client_that_vanished_is_given_up_after_idle_echo_timeout(clock: Clock, serve: Serve) -> None:
    server = serve(echo_timeout=10, idle_echo_timeout=35)
    fred, ear = dial(server)
    ear.deaf_to = (LCP,)
    for asked in (1, 2, 3):
        clock.forward(server, 10)
        fred.wait(lambda asked=asked: len(ear.of("in", LCP, ECHO_REQ)) == asked)
    clock.forward(server, 4)
    assert server.lns.sessions
    clock.forward(server, 1)
    assert fred.wait_ended().result == 1  # loss of carrier
    assert stop_cause(server) == LOST_CARRIER


def test_an_echo_reply_is_life_enough(clock: Clock, serve: Serve) -> None:
    server = serve(echo_timeout=10, idle_echo_timeout=15)
    fred, _ = dial(server)
    for _ in range(5):
        clock.forward(server, 10)
        clock.heard(server, fred)
    assert fred.online and fred.echoes_answered == 5


def test_without_echo_and_without_time_outs_a_session_stays_as_it_is(clock: Clock, serve: Serve) -> None:
    server = serve(echo_timeout=0, idle_echo_timeout=0)
    fred, ear = dial(server)
    clock.forward(server, 10_000)
    talk(server, fred)
    assert ear.of("in", LCP, ECHO_REQ) == []


# Session-Timeout and Idle-Timeout


@pytest.mark.statement(143)
def test_session_timeout_ends_even_a_busy_session(clock: Clock, server: InProcess) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=200)
    fred, _ = dial(server)
    for seconds in (199, 0):
        clock.forward(server, seconds)
        talk(server, fred)
    clock.forward(server, 1)
    assert fred.wait_ended().result == 3
    assert stop_cause(server) == SESSION_TIMEOUT


@pytest.mark.statement(143)
@pytest.mark.shows("set kill_timedout_sessions")
def test_a_session_timeout_of_0_ends_the_session_at_its_start(server: InProcess) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=0)
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw")
    ended = fred.wait_ended()
    assert (ended.why, ended.result) == (Why.CDN, 3)
    assert server.accounting.records == []
    server.wait(lambda: server.calm)


@pytest.mark.shows("set kill_timedout_sessions")
def test_or_it_means_nothing_with_kill_timedout_sessions_no(clock: Clock, serve: Serve) -> None:
    server = serve(kill_timedout_sessions=False)
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=0)
    fred, _ = dial(server)
    clock.forward(server, 10)
    clock.heard(server, fred)
    assert fred.online


@pytest.mark.statement(143)
def test_idle_timeout_counts_packets_both_ways_but_no_echoes(clock: Clock, serve: Serve) -> None:
    server = serve(echo_timeout=20)
    for user in ("fred", "mary", "guest"):
        server.backend.replies[user] = AuthReply(accepted=True, idle_timeout=50)
    idle, _ = dial(server)
    sender, _ = dial(server, "mary")
    receiver, _ = dial(server, "guest")
    for _ in range(4):
        clock.forward(server, 10)
        talk(server, sender)
        server.plane.deliver(traffic.udp(WORLD, receiver.address, 9, 9, b"x"))
    clock.forward(server, 9)
    assert len(server.lns.sessions) == 3
    clock.forward(server, 1)
    assert idle.wait_ended().result == 3
    assert idle.echoes_answered >= 1
    assert stop_cause(server) == IDLE_TIMEOUT
    assert sender.online and receiver.online


@pytest.mark.statement(143)
@pytest.mark.parametrize("auth", ["pap", "chap"])
def test_termination_action_asks_radius_again_and_the_session_goes_on(
    clock: Clock, server: InProcess, auth: str
) -> None:
    again = AuthReply(accepted=True, session_timeout=200, termination_action=1, state=b"ticket")
    server.backend.replies["fred"] = again
    fred, _ = dial(server, auth=auth)
    (session,) = server.lns.sessions.values()
    for asked in (2, 3):
        clock.forward(server, 200)
        server.wait(lambda: session.timeout_started_at == clock.now)
        clock.heard(server, fred)
        assert len(server.backend.asked) == asked
    assert fred.online
    assert server.backend.asked[2].state == b"ticket"
    assert len(server.services.wheel) == 1
    server.backend.passwords["fred"] = b"changed"
    clock.forward(server, 200)
    assert fred.wait_ended().result == 3
    assert stop_cause(server) == SESSION_TIMEOUT
    assert len(server.backend.asked) == 4
    assert len(server.accounting.of("start")) == 1


def test_routes_are_those_of_the_login_whatever_is_said_when_radius_is_asked_again(
    clock: Clock, server: InProcess
) -> None:
    home = FramedRoute(IPv4Network("192.0.2.0/28"))
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=200, termination_action=1, routes=(home,))
    fred, _ = dial(server)
    (session,) = server.lns.sessions.values()
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=200, termination_action=1)
    clock.forward(server, 200)
    server.wait(lambda: session.timeout_started_at == clock.now)
    assert fred.online
    assert networks_of(session) == (IPv4Network(session.address), *session.path.routes)
    assert server.accounting.of("start")[0].routes == session.usage().routes == (home,)


def test_rates_are_those_of_the_last_reply(clock: Clock, server: InProcess) -> None:
    server.services.throttle.start(NullShaper())
    offers = (OfferedRates("WISPr", rate_in=100), OfferedRates("WISPr", rate_out=200), OfferedRates("Ascend", 9, 9))
    reply = AuthReply(accepted=True, session_timeout=200, termination_action=1, rates=offers)
    server.backend.replies["fred"] = reply
    dial(server)
    (session,) = server.lns.sessions.values()
    assert (session.policy.rate_in, session.policy.rate_out) == (100, 200)
    for offered, rates in (((OfferedRates("MikroTik", 300, 400),), (300, 400)), (offers[:1], (100, 0)), ((), (0, 0))):
        server.backend.replies["fred"] = replace(reply, rates=offered)
        clock.forward(server, 200)
        server.wait(lambda: session.timeout_started_at == clock.now)
        assert (session.policy.rate_in, session.policy.rate_out) == rates


@pytest.mark.statement(143)
def test_when_radius_does_not_answer_then_the_time_is_over(clock: Clock, server: InProcess) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=200, termination_action=1)
    fred, _ = dial(server)
    server.backend.silent = True
    clock.forward(server, 200)
    assert fred.wait_ended().result == 3
    assert stop_cause(server) == SESSION_TIMEOUT


@pytest.mark.statement(143)
def test_a_call_that_is_hung_up_while_radius_is_asked_again_was_hung_up(clock: Clock, server: InProcess) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, session_timeout=200, termination_action=1)
    fred, _ = dial(server)
    server.backend.answering.clear()
    clock.forward(server, 200)
    server.wait(lambda: len(server.backend.asked) == 2)
    fred.hangup()
    server.wait(lambda: server.calm)
    assert server.events("session_down")[0]["cause"].startswith("lac_")


# Interim accounting


@pytest.mark.statement(151)
@pytest.mark.shows("set radius_interim")
def test_interim_records_tell_what_was_used_so_far(clock: Clock, serve: Serve) -> None:
    server = serve(radius_interim=200)
    fred, _ = dial(server)
    records = server.accounting.records
    for seconds, interims in ((199, 0), (1, 1), (199, 1), (1, 2)):
        talk(server, fred)
        clock.forward(server, seconds)
        assert [kind for kind, _ in records] == ["start"] + ["interim"] * interims
    assert [usage.in_packets for _, usage in records] == [0, 2, 4]
    assert len({usage.acct_session_id for _, usage in records}) == 1


@pytest.mark.statement(151)
def test_an_interval_of_radius_goes_before_the_configured_one(clock: Clock, serve: Serve) -> None:
    server = serve(radius_interim=100)
    server.backend.replies["fred"] = AuthReply(accepted=True, interim=200)
    server.backend.replies["mary"] = AuthReply(accepted=True, interim=0)
    for user in ("fred", "mary"):
        dial(server, user)
    clock.forward(server, 199)
    assert server.accounting.of("interim") == []
    clock.forward(server, 1)
    assert [usage.user for usage in server.accounting.of("interim")] == [b"fred"]


@pytest.mark.statement(151)
def test_no_interval_is_shorter_than_a_minute(server: InProcess) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, interim=1)
    dial(server)
    (session,) = server.lns.sessions.values()
    assert timers.interim_interval(session, session.profile) == 60


@pytest.mark.statement(151)
def test_when_radius_is_asked_again_its_new_interval_counts_from_then(clock: Clock, server: InProcess) -> None:
    again = AuthReply(accepted=True, session_timeout=200, termination_action=1, interim=0)
    server.backend.replies["fred"] = again
    dial(server)
    (session,) = server.lns.sessions.values()
    for interim, due in ((120, True), (0, False)):
        server.backend.replies["fred"] = replace(again, interim=interim)
        clock.forward(server, session.profile.session_timeout - int(clock.now - session.timeout_started_at))
        server.wait(lambda: session.timeout_started_at == clock.now)
        seen = len(server.accounting.of("interim"))
        clock.forward(server, 120)
        assert len(server.accounting.of("interim")) == seen + due


# CHAP challenges of a session that is online


@pytest.mark.statement(105)
@pytest.mark.shows("set chap_rechallenge")
def test_a_client_is_challenged_again_and_stays_if_it_still_knows_the_secret(clock: Clock, serve: Serve) -> None:
    server = serve(chap_rechallenge=200)
    fred, ear = dial(server, auth="chap")
    for answers in (2, 3):
        clock.forward(server, 200)
        fred.wait(lambda answers=answers: len(ear.of("in", CHAP, 3)) == answers, what="Success")
    assert len({packet[5:21] for packet in ear.of("in", CHAP, 1)}) == len(ear.of("in", CHAP, 1)) == 3
    assert fred.online
    assert len(server.accounting.records) == 1


@pytest.mark.statement(107)
def test_a_client_that_no_longer_knows_it_is_disconnected(clock: Clock, serve: Serve) -> None:
    server = serve(chap_rechallenge=200)
    fred, ear = dial(server, auth="chap")
    fred.password = b"forgotten"
    clock.forward(server, 200)
    assert fred.wait_ended().result == 3
    assert len(ear.of("in", CHAP, 4)) == 1
    assert stop_cause(server) == 17  # user error


def test_a_client_that_answers_in_another_name_is_disconnected(clock: Clock, serve: Serve) -> None:
    server = serve(chap_rechallenge=200)
    fred, _ = dial(server, auth="chap")
    fred.user = b"mary"
    clock.forward(server, 200)
    assert fred.wait_ended().result == 3


def test_a_client_that_does_not_answer_a_challenge_is_disconnected(clock: Clock, serve: Serve) -> None:
    server = serve(chap_rechallenge=200, ppp_restart_time=0.1, ppp_max_configure=2)
    fred, ear = dial(server, auth="chap")
    ear.deaf_to = (CHAP,)
    for asked in (2, 3):
        clock.forward(server, 200 if asked == 2 else 1)
        fred.wait(lambda asked=asked: len(ear.of("in", CHAP, 1)) == asked)
    clock.forward(server, 1)
    assert fred.wait_ended().result == 3
    assert len(ear.of("in", CHAP, 1)) == 1 + 2


def test_when_radius_does_not_answer_the_client_stays_and_is_asked_another_time(clock: Clock, serve: Serve) -> None:
    server = serve(chap_rechallenge=200)
    fred, ear = dial(server, auth="chap")
    server.backend.silent = True
    for answers in (2, 3, 4):
        clock.forward(server, 200)
        fred.wait(lambda answers=answers: len(ear.of("in", CHAP, 3)) == answers)
    assert fred.online


def test_pap_clients_are_not_challenged(clock: Clock, serve: Serve) -> None:
    server = serve(chap_rechallenge=200)
    fred, ear = dial(server, auth="pap")
    clock.forward(server, 200)
    talk(server, fred)
    assert ear.of("in", CHAP) == []
    assert len(server.backend.asked) == 1


# The clock of all sessions


def test_many_sessions_each_get_their_echo_and_one_timer(clock: Clock, serve: Serve) -> None:
    server = serve(echo_timeout=30, allow_duplicate_users=True)
    lac: Lac = server.lac(defaults=QUICK).connect()
    calls = [lac.call("fred", "pw") for _ in range(20)]
    for call in calls:
        call.wait_online()
    for _ in range(2):
        clock.forward(server, 30)
        clock.heard(server, *calls)
    assert [call.echoes_answered for call in calls] == [2] * 20
    assert len(server.services.wheel) <= 20
    calls[0].restart()
    calls[0].wait(lambda: calls[0].online)
    for call in calls[1:]:
        call.hangup()
    server.wait(lambda: len(server.lns.sessions) == 1)
    assert len(server.services.wheel) <= 1
    say(calls[0], "ff03 c021 0501 0004")
    server.wait(lambda: server.calm)


# Echoes at once


class Posts:
    """What was put into the mailbox of a session."""

    def __init__(self, server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        self.items: list[object] = []
        (session,) = server.lns.sessions.values()
        mine, original = session.link.mailbox, Mailbox.post_urgent

        def post(mailbox: Mailbox, item: object) -> None:
            if mailbox is mine:
                self.items.append(item)
            original(mailbox, item)

        monkeypatch.setattr(Mailbox, "post_urgent", post)


def test_echoes_of_a_session_that_is_online_wake_no_greenlet(
    clock: Clock, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(echo_timeout=10)
    server.log.level = 3  # at level 5 each frame is logged in its order
    fred, _ = dial(server)
    (session,) = server.lns.sessions.values()
    posts = Posts(server, monkeypatch)
    for number in range(1, 4):
        clock.forward(server, 10)
        server.wait(lambda: fred.echoes_answered == number and not session.link.lcp.echoes_unanswered)  # noqa: B023
        clock.heard(server, fred)
        fred.send_echo()
        fred.wait(lambda: fred.echo_replies == number, what="Echo-Reply")  # noqa: B023
    assert posts.items == []


def test_a_flood_of_echoes_takes_its_turn(clock: Clock, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(echo_timeout=0)
    server.log.level = 3
    fred, _ = dial(server)
    posts = Posts(server, monkeypatch)
    for number in range(1, ECHOES_PER_SECOND + 6):
        fred.send_echo()
        fred.wait(lambda: fred.echo_replies == number, what="Echo-Reply")  # noqa: B023
    assert len(posts.items) == 5


def test_our_own_echo_that_comes_back_ends_the_session_at_once(clock: Clock, serve: Serve) -> None:
    server = serve(echo_timeout=0)
    server.log.level = 3
    fred, _ = dial(server)
    (session,) = server.lns.sessions.values()
    say(fred, f"ff03 c021 0901 0008 {session.link.lcp.magic:08x}")
    assert fred.wait_ended().result == 2
    assert server.events("session_down")[0]["cause"] == "looped"
