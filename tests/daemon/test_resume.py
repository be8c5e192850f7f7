"""Tunnels and sessions that are taken up again: by a second server in the same process, on the same port.

`die` is kill -9: nobody says or writes anything more. `leave` is SIGTERM with save_state.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

from l2tpns import ends, journal, tunnel
from l2tpns.clock import Moment
from l2tpns.ends import SessionEnded, TunnelEnded
from l2tpns.lines import make_line
from l2tpns.proto.messages import ICCN
from l2tpns.proto.ppp import Protocol
from l2tpns.radius.types import Assign, AuthReply, FramedRoute
from l2tpns.records import Replay
from l2tpns.resume import Outage, Resumed, resume, session_record, tunnel_record
from l2tpns.session import Session
from l2tpns.snoop import Snoop
from l2tpns.state import StateStore
from tests.daemon.conftest import QUICK
from tests.daemon.subscribers import Ear, say
from tests.daemon.test_records import altered, written
from tests.daemon.test_state import Disk
from tests.lab import PATIENCE, traffic
from tests.lab.inprocess import InProcess, until
from tests.lab.lac import Lac, Subscriber, Why


class Lives:
    """One server after the other, with the same directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings: dict[str, Any] = {"save_state": True, "hello_interval": 0}
        self.server: InProcess
        self.store: StateStore
        self.resumed = Resumed()
        self.saved = Replay()
        self.port = 0
        self.pool = "10.5.0.0/24\n"
        self.replies: dict[str, AuthReply] = {}
        self.lacs: list[Lac] = []

    def begin(self) -> InProcess:
        self.server = server = InProcess(self.pool, **self.settings)
        server.backend.replies = self.replies
        self.store = StateStore(self.directory, server.log.get())
        self.store.open()
        self.saved = self.store.load(300)
        server.plane.lacs.port = self.port
        server.start()
        self.port = server.plane.lacs.port
        self.resumed = resume(server.lns, self.saved)
        server.lns.journal.start(self.store, *self.resumed.gone)
        return server

    def end(self) -> None:
        """Nobody gets a turn any more, nothing is said."""
        server = self.server
        server.lns.left = True
        server.plane.stop()
        assert server.lns.clock is not None
        server.lns.clock.stop()
        gevent.killall([session.greenlet for session in server.lns.sessions.values()])
        for each in server.lns.tunnels.values():
            each.mailbox.post_urgent(TunnelEnded(ends.SHUTDOWN, None))
        gevent.sleep(0)
        gevent.Greenlet.remove_spawn_callback(server.greenlets.append)
        self.store.close()

    def die(self) -> InProcess:
        self.server.lns.journal.halt()
        self.server.lns.journal.active = False
        self.end()
        return self.begin()

    def leave(self) -> InProcess:
        assert self.server.lns.leave()
        self.end()
        return self.begin()


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lives]:
    monkeypatch.setattr(tunnel, "CLOSED_LINGER", 0.01)
    monkeypatch.setattr(tunnel, "SHORTEST_LOOK", 0.05)
    monkeypatch.setattr(journal, "BEAT", 0.05)
    monkeypatch.setenv("L2TPNS_RUN", str(tmp_path / "run"))
    lives = Lives(tmp_path / "state")
    lives.begin()
    yield lives
    lives.server.lns.journal.halt()
    assert lives.server.stop() == {}
    lives.store.close()
    for lac in lives.lacs:
        lac.leave()


def connect(lives: Lives, **options: Any) -> Lac:
    lac = Lac(("127.0.0.1", 0), lives.server.address, defaults=QUICK, **options).connect()
    lac.carried = lambda subscriber: lives.server.carries(subscriber)
    lives.lacs.append(lac)
    return lac


def beat(lives: Lives) -> None:
    """What the journal does twenty times a second here is done now."""
    lives.server.lns.journal._tick()


def works(lives: Lives, subscriber: Subscriber) -> bool:
    """A packet of its reaches the world, and one from there reaches it."""
    before = len(lives.server.plane.delivered)
    subscriber.send_udp("198.51.100.2", 9, b"up")
    until(lambda: len(lives.server.plane.delivered) > before)
    lives.server.plane.deliver(traffic.udp(IPv4Address("198.51.100.2"), subscriber.address, 9, 7000, b"down"))
    return traffic.parse(subscriber.receive_ip()).payload[8:] == b"down"


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
    assert after.lcp.record() == before.lcp.record() and after.ipcp.record() == before.ipcp.record()
    assert after.path.mru == before.path.mru == 1400
    assert abs(after.online_since - before.online_since) < 10
    assert after.usage().user == b"fred" and after.phase == "online"
    gevent.sleep(0.1)
    assert ear.heard == []
    assert [type(message).__name__ for _, message in lac.inbox] == ([] if how == "leave" else ["HELLO"])
    assert server.pool.used == 1 and server.lns.by_user["fred"] == {after}
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
    session.dumped = (300, 4000)
    (again,) = lives.leave().lns.sessions.values()
    assert again.dumped == (300, 4000)
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
    lives.server.lns.journal.halt()
    lives.server.lns.journal.active = False
    lives.end()
    fred.hangup()  # two messages on their way to nobody
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
    session.mailbox.post_urgent(SessionEnded(ends.ADMIN_DROP))
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
    (session,) = lives.server.lns.by_user["mary"]
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
    session.time_from -= 999
    lives.server.lns.journal.session(session)
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
    assert not lives.server.lns.journal.active
    assert not lives.server.lns.leave()
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


def test_the_journal_is_written_anew_before_it_grows_without_end(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2tpns.state.GROWTH", 2000)
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
    session.authenticator.rechallenge(monotonic())  # type: ignore[union-attr]
    until(lambda: ear.of("in", Protocol.CHAP))
    server = lives.leave()
    ear.deaf_to = ()
    until(lambda: ear.of("in", Protocol.CHAP, 3))  # Success
    assert len(server.lns.sessions) == 1
    lac.close()


class SlowPlugin:
    """Stands for a plugin whose new_session waits, of sessions that were taken up again, until `answer` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer = Event()
        self.asked = 0
        monkeypatch.setattr("l2tpns.consult.new_session", self.new_session)

    def new_session(self, session: Session, resumed: bool = False) -> None:
        session.introduced = True
        if resumed:
            self.asked += 1
            session.aside(self.answer.wait)


def say_iccn(subscriber: Subscriber) -> None:
    subscriber.lac.send(ICCN(tx_connect_speed=1_000_000, framing_type=1), subscriber.peer_session_id)
    subscriber.lac.flush(subscriber.lac.endpoint.now())


EVENTS: dict[str, tuple[Callable[[Subscriber], object], str]] = {
    "LCP begins anew": (lambda fred: fred.restart(), "online"),
    "LCP begins anew twice": (lambda fred: (fred.restart(), gevent.sleep(0.05), fred.restart()), "online"),
    "the subscriber says goodbye": (lambda fred: fred.terminate(), "user_request"),
    "the LAC hangs up": (lambda fred: fred.hangup(), "lac_lost_carrier"),
    "the LAC sends an ICCN": (lambda fred: say_iccn(fred), "protocol_error"),
    "IPCP is terminated": (lambda fred: fred.send_frame(Protocol.IPCP, bytes((5, 9, 0, 4))), "ncp_refused"),
    "IPCP is rejected": (lambda fred: fred.send_frame(Protocol.LCP, bytes((8, 9, 0, 6, 0x80, 0x21))), "ncp_refused"),
    "a Code-Reject": (lambda fred: fred.send_frame(Protocol.LCP, bytes((7, 9, 0, 8, 99, 1, 0, 4))), "online"),
    "an Echo-Request": (lambda fred: fred.send_echo(), "online"),
    "a PAP request": (lambda fred: fred.send_frame(Protocol.PAP, bytes.fromhex("0101000c0466726564027077")), "online"),
    "nothing": (lambda fred: None, "online"),
}


@pytest.mark.parametrize("auth", ["pap", "chap"])
@pytest.mark.parametrize("event", EVENTS)
def test_whatever_comes_while_a_plugin_is_asked_about_a_resumed_session_is_what_it_is_at_any_time(
    lives: Lives, monkeypatch: pytest.MonkeyPatch, event: str, auth: str
) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw", auth=auth).wait_online()
    mary = lac.call("mary", "pw", auth=auth).wait_online()
    plugin = SlowPlugin(monkeypatch)
    server = lives.leave()
    until(lambda: plugin.asked == 2)
    act, expected = EVENTS[event]
    act(fred)
    (session,) = server.lns.by_user["fred"]
    until(lambda: not len(session.mailbox))
    plugin.answer.set()
    if expected == "online":
        fred.wait(lambda: fred.online and works(lives, fred))
    else:
        until(lambda: server.events("session_down"))
        assert [down["cause"] for down in server.events("session_down")] == [expected]
    assert not server.events("session_failed")
    assert works(lives, mary)
    lac.close()


def test_a_subscriber_that_chooses_another_address_meanwhile_does_not_keep_the_session(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives.replies["fred"] = AuthReply(accepted=True, assign=Assign.PEER)
    lac = connect(lives)
    fred = lac.call("fred", "pw", address=IPv4Address("198.18.0.7")).wait_online()
    plugin = SlowPlugin(monkeypatch)
    server = lives.leave()
    until(lambda: plugin.asked)
    ear = Ear(fred)
    ear.deaf_to = (Protocol.IPCP,)
    say(fred, "ff03 8021", "0177000a", "0306 c6120008")
    until(lambda: ear.of("in", Protocol.IPCP, 2) and ear.of("in", Protocol.IPCP, 1))
    say(fred, "ff03 8021", "02", ear.of("in", Protocol.IPCP, 1)[-1][1:].hex())  # what the server asks is granted
    (session,) = server.lns.sessions.values()
    until(lambda: session.ipcp.opened and session.ipcp.peer_address == IPv4Address("198.18.0.8"))
    monkeypatch.setattr("l2tpns.session.NCP_RESTART_PATIENCE", 0.1)
    plugin.answer.set()
    until(lambda: server.events("session_down"))
    assert server.events("session_down")[0]["cause"] == "no_common_address"
    lac.close()


def test_a_part_that_fails_while_a_session_is_taken_up_leaves_nothing_of_it(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    mary = lac.call("mary", "pw").wait_online()
    begin = Snoop.begin

    def broken(snoop: Snoop, session: Session) -> None:
        if session.user == "fred":
            raise RuntimeError("out of order")
        begin(snoop, session)

    monkeypatch.setattr(Snoop, "begin", broken)
    server = lives.leave()
    assert server.events("session_not_resumed")[0]["why"] == "out of order"
    assert fred.wait_ended().why is Why.CDN and works(lives, mary)
    assert server.pool.used == 1 and set(server.lns.by_user) == {"mary"} and len(server.lns.sessions) == 1
    lac.close()


def test_the_tunnels_of_a_lac_are_counted_after_a_restart_too(lives: Lives) -> None:
    first, second = connect(lives), connect(lives)
    first.call("fred", "pw").wait_online()
    server = lives.leave()
    assert server.lns.tunnels_of["127.0.0.1"] == 2
    first.close()
    until(lambda: server.lns.tunnels_of["127.0.0.1"] == 1)
    second.close()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("peer_id",), 70000),
        (("tunnel",), 70000),
        (("id",), 70000),
        (("address",), "127.0.0.1"),
        (("profile", "session_timeout"), -1),
        (("profile",), {}),
        (("usage", "in_octets"), 1 << 63),
        (("lcp", "identifier"), 70000),
    ],
)
def test_a_record_that_makes_no_sense_costs_one_session(lives: Lives, path: tuple[str, ...], value: Any) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    lac.call("mary", "pw").wait_online()
    (session,) = lives.server.lns.by_user["mary"]
    line = ["ses", altered(written(session_record(session)), path, value)]
    begin = StateStore.load

    def load(store: StateStore, max_age: float) -> Replay:
        (file,) = store.directory.glob("*.state")
        gone = [] if path == ("id",) else [["ses-", session.id]]
        file.write_bytes(file.read_bytes() + b"".join(map(make_line, [*gone, line])))
        return begin(store, max_age)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StateStore, "load", load)
        server = lives.die()
    left = {"fred"} if path != ("id",) else {"fred", "mary"}
    assert {each.user for each in server.lns.sessions.values()} == left
    refusals = [*server.events("state_record_refused"), *server.events("session_not_resumed")]
    assert len(refusals) == 1
    assert works(lives, fred)
    lac.close()


@pytest.mark.parametrize("how", ["leave", "die"])
@pytest.mark.parametrize("step", [3600.0, -7200.0, -1_790_000_000.0, 1e9])
def test_a_clock_that_is_set_costs_no_session_and_bills_no_second(
    lives: Lives, monkeypatch: pytest.MonkeyPatch, how: str, step: float
) -> None:
    lives.replies["fred"] = AuthReply(accepted=True, session_timeout=3000, interim=600)
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    (before,) = lives.server.lns.sessions.values()
    due, online = before.next_interim, before.online_since
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + step)
    server = getattr(lives, how)()
    (after,) = server.lns.sessions.values()
    assert abs(after.online_since - online) < 1 and abs(after.next_interim - due) < 1
    assert abs(after.time_from - online) < 1
    assert after.usage().session_time < PATIENCE
    assert after.opened_wall == before.opened_wall
    (tunnel_,) = server.lns.tunnels.values()
    assert abs(tunnel_.opened_at - monotonic()) < PATIENCE
    assert works(lives, fred)
    lac.close()


def test_after_a_reboot_with_a_wrong_clock_only_the_outage_is_in_doubt(lives: Lives) -> None:
    lac = connect(lives)
    lac.call("fred", "pw").wait_online()
    (session,) = lives.server.lns.sessions.values()
    record = session_record(session)
    wall = 1_790_000_000.0
    record = dataclasses.replace(  # online for 100 s when it was written, which is a day before the last sign of life
        record, written=Moment(wall, 1000.0, "old"), online_since=wall - 100, time_from=wall - 100
    )
    last = Moment(wall - 3600, 1000.0 + 86400, "old")  # the clock was set back meanwhile
    outage = Outage(last)
    outage._over = Moment(wall - 3600 + 250, 40.0, "new")
    assert round(outage.over - outage.monotonic(record.online_since, record.written)) == 100 + 86400 + 250
    lac.close()


def test_a_session_that_release_0_1_0_wrote_goes_on_by_the_wall_clock(lives: Lives) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    (session,) = lives.server.lns.sessions.values()
    (control,) = lives.server.lns.tunnels.values()
    at = time.time()
    ses, tun = written(session_record(session)), written(tunnel_record(control))
    for record in (ses, tun):
        del record["written"]
    ses["online_since"] = ses["time_from"] = at - 500
    lines = [["head", 1, "0.1.0", at - 20], ["tun", tun], ["ses", ses], ["use", at - 10, []], ["left", at - 5]]
    lives.server.lns.journal.halt()
    lives.end()
    for path in lives.directory.glob("*.state"):
        path.write_bytes(b"".join(map(make_line, lines)))
    server = lives.begin()
    (after,) = server.lns.sessions.values()
    assert 499 < monotonic() - after.online_since < 500 + PATIENCE
    assert works(lives, fred)
    lac.close()


def test_while_the_disk_is_full_a_session_may_end_and_does_not_come_back(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    lac.call("mary", "pw").wait_online()
    disk.full = True
    fred.hangup()
    until(lambda: len(lives.server.lns.sessions) == 1)
    server = lives.die()
    assert not server.lns.sessions
    lac.close()


def test_when_the_disk_has_room_again_a_kill_costs_no_session(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    mary = lac.call("mary", "pw").wait_online()
    disk.full = True
    fred.hangup()
    until(lambda: lives.server.events("state_disowned"))
    disk.full = False
    until(lambda: lives.server.events("state_written_again"))
    server = lives.die()
    assert [session.user for session in server.lns.sessions.values()] == ["mary"]
    assert works(lives, mary)
    lac.close()


@pytest.mark.parametrize("trouble", ["full", "read_only"])
def test_a_farewell_to_everybody_because_the_state_cannot_be_written_is_not_taken_back(
    lives: Lives, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    disk = Disk(monkeypatch)
    lac = connect(lives)
    lac.call("fred", "pw").wait_online()
    setattr(disk, trouble, True)
    assert not lives.server.lns.leave()
    server = lives.die()  # before anybody was told
    assert not server.lns.sessions
    lac.close()


def test_a_session_whose_stop_was_written_is_not_taken_up_whatever_the_state_says(lives: Lives) -> None:
    """A power failure takes the last second of the state, and not the Stop, which is safe before it is sent."""
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    lac.call("mary", "pw").wait_online()
    (session,) = lives.server.lns.by_user["fred"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.lab.inprocess.Records.has_stopped", lambda _, acct, __: acct == session.acct_session_id)
        server = lives.die()
    assert [each.user for each in server.lns.sessions.values()] == ["mary"]
    assert "has ended" in server.events("session_not_resumed")[0]["why"]
    assert fred.wait_ended().why is Why.CDN
    lac.close()


def test_a_session_that_ends_before_the_journal_begins_again_does_not_come_back(lives: Lives) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    lac.call("mary", "pw").wait_online()
    start = journal.Journal.start

    def after_an_end(self: journal.Journal, store: StateStore, *gone: list[Any]) -> None:
        fred.hangup()
        until(lambda: len(self._lns.sessions) == 1)
        start(self, store, *gone)
        self.halt()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "start", after_an_end)
        lives.die()
    server = lives.die()
    assert [each.user for each in server.lns.sessions.values()] == ["mary"]
    lac.close()
