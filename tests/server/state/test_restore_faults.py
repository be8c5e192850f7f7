"""Sessions that are taken up again in spite of odd records, full disks, set clocks, and whatever comes meanwhile."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

from l2tpns.policy.snoop import Snoop
from l2tpns.proto.l2tp.messages import ICCN
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.radius.types import Assign, AuthReply
from l2tpns.runtime.clock import Moment
from l2tpns.runtime.durable import make_line
from l2tpns.state.journal import Journal
from l2tpns.state.records import Replay
from l2tpns.state.restore import Outage
from l2tpns.state.snapshot import session_record, tunnel_record
from l2tpns.state.store import StateStore
from l2tpns.subscriber.layers import NetworkLayer
from l2tpns.subscriber.session import Session
from tests.lab import PATIENCE
from tests.lab.inprocess import until
from tests.lab.lac import Subscriber, Why
from tests.server.lives import Lives, beat, connect, works
from tests.server.subscribers import Ear, say
from tests.unit.state.test_records import altered, written
from tests.unit.state.test_store import Disk


class SlowPlugin:
    """Stands for a plugin whose new_session waits, of restored sessions, until `answer` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer = Event()
        self.asked = 0
        monkeypatch.setattr("l2tpns.subscriber.plugin_hooks.new_session", self.new_session)

    def new_session(self, session: Session, resumed: bool = False) -> None:
        session.plugins_notified = True
        if resumed:
            self.asked += 1
            session.link.run_in_background(self.answer.wait)


def ipcp(session: Session) -> NetworkLayer:
    return session.link.layers[Protocol.IPCP]


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
    (session,) = server.registry.by_user["fred"]
    until(lambda: not len(session.link.mailbox))
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
    until(lambda: ipcp(session).opened and ipcp(session).peer_address == IPv4Address("198.18.0.8"))
    lives.server.services.session_timing.network_restart_timeout = 0.1
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
    assert server.pool.used == 1 and set(server.registry.by_user) == {"mary"} and len(server.lns.sessions) == 1
    lac.close()


def test_the_tunnels_of_a_lac_are_counted_after_a_restart_too(lives: Lives) -> None:
    first, second = connect(lives), connect(lives)
    first.call("fred", "pw").wait_online()
    server = lives.leave()
    assert server.lns.admission.tunnels_of["127.0.0.1"] == 2
    first.close()
    until(lambda: server.lns.admission.tunnels_of["127.0.0.1"] == 1)
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
    (session,) = lives.server.registry.by_user["mary"]
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
    assert abs(after.timeout_started_at - online) < 1
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
    lives.server.journal.halt()
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
    assert not lives.server.core.hand_over()
    server = lives.die()  # before any LAC was notified
    assert not server.lns.sessions
    lac.close()


def test_a_session_whose_stop_was_written_is_not_taken_up_whatever_the_state_says(lives: Lives) -> None:
    """A power failure takes the last second of the state, and not the Stop, which is safe before it is sent."""
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    lac.call("mary", "pw").wait_online()
    (session,) = lives.server.registry.by_user["fred"]
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
    start = Journal.start

    def after_an_end(self: Journal, *gone: list[Any]) -> None:
        fred.hangup()
        until(lambda: len(self._sessions) == 1)
        start(self, *gone)
        self.halt()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "start", after_an_end)
        lives.die()
    server = lives.die()
    assert [each.user for each in server.lns.sessions.values()] == ["mary"]
    lac.close()


def test_a_generation_that_goes_on_takes_the_last_words_when_no_new_one_can_be_begun(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    lac = connect(lives)
    fred = lac.call("fred", "pw").wait_online()
    beat(lives)
    with monkeypatch.context() as patch:
        patch.setattr(StateStore, "begin", lambda store: False)  # as without a free descriptor
        assert lives.server.core.hand_over()
    lives.end()
    server = lives.begin()
    assert lives.saved.clean and works(lives, fred)
    assert [each.user for each in server.lns.sessions.values()] == ["fred"]
    lac.close()
