"""Tunnels and sessions that are taken up again: by a second server in the same process, on the same port.

`die` is kill -9: nobody says or writes anything more. `leave` is SIGTERM with save_state.
"""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Network
from time import monotonic

import gevent
import pytest

from l2tpns import causes
from l2tpns.causes import SessionEnded
from l2tpns.policy.model import Subscriber
from l2tpns.policy.throttle import Throttle
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.radius.types import AuthReply, FramedRoute
from tests.lab import PATIENCE
from tests.lab.endpoint import Endpoint
from tests.lab.inprocess import until
from tests.lab.lac import Why
from tests.server.lives import Lives, beat, connect, works
from tests.server.subscribers import Ear


@pytest.mark.parametrize("auth", ["pap", "chap"])
@pytest.mark.parametrize("how", ["leave", "die"])
def test_an_online_session_goes_on_and_hears_nothing_of_it(lives: Lives, how: str, auth: str) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw", auth=auth, mru=1400).wait_online()
    before = next(iter(lives.server.lns.sessions.values()))
    lac.wait_acked()
    ear = Ear(fred)
    lac.inbox.clear()
    server = getattr(lives, how)()
    (after,) = server.lns.sessions.values()
    assert works(lives, fred)
    for name in ("id", "peer_id", "user", "address", "acct_session_id", "opened_wall", "profile", "called", "calling"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.link.lcp.record() == before.link.lcp.record()
    (ipcp,) = after.link.layers.values()
    assert [ipcp.record()] == [layer.record() for layer in before.link.layers.values()]
    assert after.path.mru == before.path.mru == 1400
    assert abs(after.online_since - before.online_since) < 10
    assert after.usage().user == b"fred" and after.phase.value == "online"
    gevent.sleep(0.1)
    assert ear.heard == []
    assert [type(message).__name__ for _, message in lac.inbox] == ([] if how == "leave" else ["HELLO"])
    assert server.pool.used == 1 and server.registry.by_user["fred"] == {after}
    lac.close()
    until(lambda: server.calm)
    assert [usage.acct_session_id for usage in server.accounting.of("stop")] == [after.acct_session_id]


@pytest.mark.parametrize("how", ["leave", "die"])
def test_the_control_connection_goes_on_in_both_directions(lives: Lives, how: str) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    mary = lac.call("mary", "pw").wait_online()
    lac.wait_acked()
    server = getattr(lives, how)()
    fred.hangup()
    until(lambda: len(server.lns.sessions) == 1)
    guest = lac.call("guest", "pw").wait_online()
    assert guest.address not in (fred.address, mary.address) or guest.address == fred.address
    mary.terminate()
    mary.wait_ended()
    lac.wait_acked()
    assert lac.unreadable == 0


def test_a_second_and_a_third_life_are_as_good_as_the_first(lives: Lives) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    for number, how in enumerate(("die", "die", "leave", "die", "leave"), 1):
        server = getattr(lives, how)()
        assert works(lives, fred)
        (session,) = server.lns.sessions.values()
        assert session.path.in_packets == number or how == "die"
    lac.close()


def test_what_was_used_is_not_forgotten(lives: Lives) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    for _ in range(3):
        assert works(lives, fred)
    (before,) = lives.server.lns.sessions.values()
    told = before.usage()
    beat(lives)
    server = lives.die()
    (after,) = server.lns.sessions.values()
    now = after.usage()
    assert dataclasses.replace(now, session_time=told.session_time) == told
    assert now.in_packets == now.out_packets == 3
    lac.close()


def test_what_usage_files_have_told_is_not_told_again(lives: Lives) -> None:
    lac = connect(lives)
    lac.call("fred", "pw").wait_online()
    (session,) = lives.server.lns.sessions.values()
    session.usage_file_octets = (300, 4000)
    (again,) = lives.leave().lns.sessions.values()
    assert again.usage_file_octets == (300, 4000)
    lac.close()


def test_a_call_that_was_not_online_yet_is_ended_by_a_cdn(lives: Lives) -> None:
    lac = connect(lives)
    lives.server.backend.answering.clear()
    fred = lac.call("fred", "pw")
    until(lambda: lives.server.backend.asked)
    server = lives.die()
    ended = fred.wait_ended()
    assert ended.why is Why.CDN and ended.text == "the server was restarted"
    assert not server.lns.sessions and lives.resumed.calls == 1
    lac.call("mary", "pw").wait_online()
    lac.close()


def test_what_the_lac_said_meanwhile_it_says_again_and_is_heard(lives: Lives) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    lac.call("mary", "pw").wait_online()
    lac.wait_acked()
    lives.server.journal.halt()
    lives.end()
    fred.hangup()  # two messages that no process receives
    guest = lac.call("guest", "pw")
    gevent.sleep(0.3)
    server = lives.begin()
    guest.wait_online()
    assert {session.user for session in server.lns.sessions.values()} == {"mary", "guest"}
    lac.close()


def test_what_we_had_said_and_nobody_has_acknowledged_is_said_again(lives: Lives) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    lac.wait_acked()
    lac.alive = False  # deaf
    (session,) = lives.server.lns.sessions.values()
    session.link.mailbox.post_urgent(SessionEnded(causes.ADMIN_DROP))
    until(lambda: not lives.server.lns.sessions)
    gevent.sleep(0.05)
    server = lives.leave()
    lac.alive = True
    fred.wait_ended()
    assert not server.lns.sessions
    until(lambda: all(each.reliable.idle for each in server.lns.tunnels.values()))
    lac.close()


def test_a_session_that_has_ended_does_not_come_back(lives: Lives) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    lac.call("mary", "pw").wait_online()
    fred.terminate()
    fred.wait_ended()
    until(lambda: len(lives.server.lns.sessions) == 1)
    server = lives.die()
    assert [session.user for session in server.lns.sessions.values()] == ["mary"]
    lac.close()


def test_a_tunnel_that_has_ended_does_not_come_back(lives: Lives) -> None:
    lac = connect(lives)
    lac.call("fred", "pw").wait_online()
    lac.close()
    until(lambda: lives.server.calm)
    server = lives.die()
    assert not server.lns.tunnels and lives.saved.empty


def test_the_kernel_carries_no_packet_of_a_restored_session_before_its_policies_apply(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, carried_by_us = Throttle.begin, []

    def note(throttle: Throttle, session: Subscriber) -> None:
        carried_by_us.append((session.path.online, session.path.needs_userspace))
        begin(throttle, session)

    monkeypatch.setattr(Throttle, "begin", note)
    connect(lives).call("fred", "pw").wait_online()
    lives.die()
    assert carried_by_us == [(True, True)] * 2
    (session,) = lives.server.lns.sessions.values()
    assert not session.path.needs_userspace


def test_routes_are_carried_again(lives: Lives) -> None:
    route = FramedRoute(IPv4Network("172.16.0.0/24"))
    lives.replies["fred"] = AuthReply(accepted=True, routes=(route,), classes=(b"\xff",))
    lac = connect(lives)
    lac.call("fred", "pw").wait_online()
    server = lives.die()
    assert IPv4Network("172.16.0.0/24") in server.plane.kernel.routes
    (session,) = server.lns.sessions.values()
    assert session.usage().classes == (b"\xff",) and session.usage().routes == (route,)
    lac.close()


def test_a_session_that_cannot_be_written_costs_nobody_else_the_restart(lives: Lives) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    lac.call("mary", "pw").wait_online()
    (session,) = lives.server.registry.by_user["mary"]
    session.calling = "\ud800"
    server = lives.leave()
    assert [each.user for each in server.lns.sessions.values()] == ["fred"]
    assert works(lives, fred)
    lac.close()


def test_the_session_time_goes_on_and_ends_when_it_would_have(lives: Lives) -> None:
    lives.replies["fred"] = AuthReply(accepted=True, session_timeout=1000)
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    (session,) = lives.server.lns.sessions.values()
    session.timeout_started_at -= 999
    lives.server.journal.session(session)
    server = lives.die()
    assert fred.wait_ended().why is Why.CDN
    assert server.events("session_down")[0]["cause"] == "session_timeout"
    lac.close()


def test_idleness_is_counted_on_but_not_the_outage(lives: Lives) -> None:
    lives.replies["fred"] = AuthReply(accepted=True, idle_timeout=100)
    lac = connect(lives)
    lac.call("fred", "pw").wait_online()
    (session,) = lives.server.lns.sessions.values()
    session.path.last_ip_rx = session.path.last_ip_tx = monotonic() - 60
    session.path.in_packets += 1
    beat(lives)
    server = lives.die()
    (after,) = server.lns.sessions.values()
    assert 59 < monotonic() - after.path.last_ip_rx < 60 + PATIENCE
    lac.close()


def test_a_numbered_session_goes_on_ahead_of_what_the_lac_has_seen(lives: Lives) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw", sequencing_required=True).wait_online()
    (session,) = lives.server.lns.sessions.values()
    ns = session.path.ns
    server = lives.die()
    (after,) = server.lns.sessions.values()
    assert after.path.sequenced and 0 < (after.path.ns - ns) & 0xFFFF < 0x8000
    assert works(lives, fred)
    server = lives.leave()
    (last,) = server.lns.sessions.values()
    assert last.path.ns == after.path.ns
    lac.close()


def test_an_address_that_cannot_be_had_any_more_costs_that_session_and_its_lac_is_told(lives: Lives) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    mary = lac.call("mary", "pw").wait_online()
    lives.settings["peer_address"] = fred.address
    server = lives.die()
    assert fred.wait_ended().why is Why.CDN
    assert [session.user for session in server.lns.sessions.values()] == ["mary"]
    assert server.events("session_not_resumed")[0]["user"] == "fred"
    assert mary.online
    lac.close()


@pytest.mark.shows("set save_state")
def test_without_save_state_nothing_is_written(lives: Lives) -> None:
    lives.settings["save_state"] = False
    lives.leave()
    lac = connect(lives)
    lac.call("fred", "pw").wait_online()
    gevent.sleep(0.2)
    assert not lives.server.journal.active
    assert not lives.server.core.hand_over()
    lac.close()


@pytest.mark.shows("set save_state")
def test_save_state_can_be_switched_on_and_off_while_we_run(lives: Lives) -> None:
    lac = connect(lives)
    lac.call("fred", "pw").wait_online()
    lives.server.config.save_state = False
    until(lambda: not list(lives.directory.glob("*.state")))
    lac.call("mary", "pw").wait_online()
    lives.server.config.save_state = True
    until(lambda: list(lives.directory.glob("*.state")))
    beat(lives)
    server = lives.die()
    assert len(server.lns.sessions) == 2
    lac.close()


def test_the_journal_is_written_anew_before_it_grows_without_end(lives: Lives) -> None:
    lives.store.growth = 2000
    lac = connect(lives)
    lac.call("mary", "pw").wait_online()
    for _ in range(10):
        fred = lac.call("fred", "pw").wait_online()
        fred.terminate()
        fred.wait_ended()
        beat(lives)
    until(lambda: len(list(lives.directory.glob("*.state"))) == 1)
    (path,) = lives.directory.glob("*.state")
    assert int(path.stem) > 2 and path.stat().st_size < 10_000
    server = lives.die()
    assert [session.user for session in server.lns.sessions.values()] == ["mary"]
    lac.close()


def test_a_chap_challenge_that_was_not_answered_is_put_again(lives: Lives) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw", auth="chap").wait_online()
    (session,) = lives.server.lns.sessions.values()
    ear = Ear(fred)
    ear.deaf_to = (Protocol.CHAP,)
    session.link.authenticator.rechallenge(monotonic())  # type: ignore[union-attr]
    until(lambda: ear.of("in", Protocol.CHAP))
    server = lives.leave()
    ear.deaf_to = ()
    until(lambda: ear.of("in", Protocol.CHAP, 3))  # Success
    assert len(server.lns.sessions) == 1
    lac.close()


@pytest.mark.parametrize("how", ["leave", "die"])
def test_a_lac_that_moves_while_the_server_is_away_is_followed(
    lives: Lives, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    lives.first_retransmission = 0.05
    lives.settings["auth_tunnel_change_addr_src"] = True
    getattr(lives, how)()
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    lac.wait_acked()
    beat(lives)
    old, lac.endpoint = lac.endpoint, Endpoint()
    lac.endpoint.lacs, old.lacs = old.lacs, {}
    server = getattr(lives, how)()
    (ours,) = server.lns.tunnels.values()
    assert ours.peer == old.local
    lac.hello()
    until(lambda: ours.peer == lac.endpoint.local)
    assert works(lives, fred)
    beat(lives)
    server = lives.die()  # where it is now is known to the next life, too
    (ours,) = server.lns.tunnels.values()
    assert ours.peer == lac.endpoint.local and works(lives, fred)
    old.close()
