"""Debian's FreeRADIUS going away, and the daemon going away: no record is lost and none comes twice."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import gevent
import pytest

from tests.lab import PATIENCE
from tests.lab.freeradius import FreeRadius
from tests.lab.lac import Refused, Subscriber, Why
from tests.lab.radius_server import RadiusServer, User
from tests.lab.radius_stage import (
    HOST,
    RadiusStage,
    Record,
    aside,
    counted,
    counted_by,
    missing,
    until,
)

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

USERS = 'DEFAULT Cleartext-Password := "pw"\n'
INTERIM = 60  # the least there is (RFC 2869 5.16)
NO_FACILITIES = 4  # CDN: lack of facilities, temporarily


@pytest.fixture(scope="module", autouse=True)
def long_session() -> Iterator[tuple[RadiusStage, Subscriber]]:
    """A subscriber of a daemon of its own, who is online while the other tests run."""
    with RadiusStage(USERS + f"\tAcct-Interim-Interval = {INTERIM}\n") as stage:
        subscriber = stage.online("interim")
        assert subscriber.ping(HOST) is not None
        yield stage, subscriber


# Message-Authenticator, and two servers


@pytest.mark.statement(145)
@pytest.mark.shows("set radius_require_message_authenticator")
def test_a_server_that_signs_nothing_lets_nobody_in_when_signatures_are_required() -> None:
    with RadiusStage(USERS, settings={"radius_require_message_authenticator": "yes"}) as stage:
        stage.radius.kill()
        with stage.host.entered():
            plain = RadiusServer(users={b"fred": User(b"pw")}, host=HOST, port=1812, sign=False).start()
        try:
            with pytest.raises(Refused) as refused:
                stage.call("fred").wait_online()
            assert refused.value.ended.result == NO_FACILITIES
            assert plain.requests and all(request.signature_holds for request in plain.requests if request.code == 1)
            assert all(request.attributes[0][0] == 80 for request in plain.requests if request.code == 1)
            assert stage.server.log("radius_reply_not_authentic")
            plain.sign = True
            assert stage.online("fred", auth="chap").complaints == ()
            aside(stage.server.stop)
            assert [record.number(40) for record in plain.records] == [7, 1, 2, 8]
        finally:
            plain.stop()


@pytest.mark.statement(157)
@pytest.mark.parametrize("how", ["halt", "kill"])
@pytest.mark.shows("set radius_dead_time")
def test_the_second_server_takes_over_and_the_first_gets_its_place_back(how: str) -> None:
    first, second = (USERS + f'\tReply-Message = "{name}"\n' for name in ("first", "second"))
    with RadiusStage(first, second=second, settings={"radius_dead_time": 3}) as stage:

        def login() -> tuple[bytes, float]:
            begun = time.monotonic()
            subscriber = stage.online("fred", auth="pap")
            took = time.monotonic() - begun
            subscriber.terminate()
            subscriber.wait_ended()
            assert subscriber.complaints == ()
            return subscriber.auth_message, took

        assert login()[0] == b"first"
        until(lambda: len(stage.records("fred", "Stop")) == 1, PATIENCE, "the Stop at the first server")
        aside(stage.radius.halt if how == "halt" else stage.radius.kill)
        answered, slow = login()
        assert answered == b"second"
        for _ in range(3):
            assert login()[0] == b"second"
        until(lambda: stage.server.log("radius_server_silent"), 30.0, "the first server is known to be silent")
        answered, quick = login()
        print(f"failover: {slow:.2f} s for the first login, {quick:.2f} s when the silence is known")
        assert answered == b"second" and quick < 10.0
        aside(stage.radius.go_on if how == "halt" else stage.radius.start)
        gevent.sleep(3.0)
        until(lambda: login()[0] == b"first", PATIENCE, "the first server has its place again")
        assert stage.server.log("radius_server_back")
        sessions = len(stage.server.log("session_up"))

        def ids(status: str, *servers: FreeRadius) -> list[str]:
            return [str(record["Acct-Session-Id"]) for record in stage.records("fred", status, servers)]

        both = stage.radius, stage.second
        for status in ("Start", "Stop"):
            until(lambda status=status: len(set(ids(status, *both))) == sessions, 30.0, f"every {status}")
            # One that was halted has in its socket what it was told before we asked the other.
            for servers in [both] if how == "kill" else [(server,) for server in both]:
                assert len(set(ids(status, *servers))) == len(ids(status, *servers))


# A RADIUS server that is away among logins and logouts


@dataclass(slots=True)
class Tally:
    """What the subscribers saw."""

    refusals: Counter[tuple[Why, int, str]] = field(default_factory=Counter)
    waited: list[float] = field(default_factory=list)
    sessions: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def live(self, stage: RadiusStage, user: str, login_in: float, logout_in: float) -> None:
        """One subscriber: tries until it is in, as a router does, sends a little, and logs out."""
        begun = time.monotonic()
        gevent.sleep(login_in)
        while True:
            subscriber = stage.call(user, auth="pap" if int(user[-1]) % 2 else "chap")
            try:
                subscriber.wait_online()
                break
            except Refused as refused:
                self.see(subscriber)
                self.refusals[refused.ended.why, refused.ended.result, refused.ended.text] += 1
                gevent.sleep(1.0)
        self.waited.append(time.monotonic() - begun - login_in)
        gevent.sleep(max(0.3, begun + logout_in - time.monotonic()))
        for number in range(1 + int(user[-2:]) % 7):
            assert subscriber.ping(HOST, size=100 * number, timeout=PATIENCE) is not None
        subscriber.terminate()
        subscriber.wait_ended()
        self.see(subscriber)
        self.sessions[user] = counted_by(subscriber)

    def see(self, subscriber: Subscriber) -> None:
        self.complaints += subscriber.complaints


def outage(stage: RadiusStage, count: int, seconds: float, how: str) -> str:
    """`count` subscribers log in and out while FreeRADIUS is away; every record must be there, once."""
    radius, tally, before = stage.radius, Tally(), 3.0
    assert stage.lac.ended is None
    lives = []
    for number in range(count):
        share = number / count
        if number % 2:  # in before the outage or at its beginning, out in the midst of it
            login, logout = share * before * 1.1, before + share * seconds
        else:  # tries to get in during the outage, and stays for a moment
            login, logout = before + share * seconds, 0.0
        lives.append(gevent.spawn(tally.live, stage, f"user{number:04d}", login, logout))
    gevent.sleep(before)
    away_at = time.monotonic()
    aside(radius.halt if how == "halt" else radius.kill)
    gevent.sleep(seconds)
    known = len(radius.records())
    aside(radius.go_on if how == "halt" else radius.start)
    away, back_at = time.monotonic() - away_at, time.monotonic()
    gevent.joinall(lives, timeout=4 * PATIENCE, raise_error=True)
    assert len(tally.sessions) == count and tally.complaints == []
    for status in ("Start", "Stop"):
        until(lambda status=status: len(radius.records(status)) >= count, 90.0, f"{count} of {status}")
    told = time.monotonic() - back_at
    gevent.sleep(3.0)  # what came twice would come now
    check_records(stage, tally)
    # Who could not be authenticated was told so, and that it may try again.
    assert tally.refusals and all(why is Why.CDN and code == NO_FACILITIES for why, code, _ in tally.refusals)
    assert len(stage.server.log("auth_unanswered")) == tally.refusals.total()
    late = max(int(str(record["Acct-Delay-Time"])) for record in radius.records())
    return (
        f"{how}: away for {away:.1f} s; {count} logins and {count} logouts, {tally.refusals.total()} refusals "
        f"{[text for _, _, text in tally.refusals]}, longest wait for a login {max(tally.waited):.1f} s; "
        f"{known} records before it came back, all {len(radius.records())} {told:.1f} s after, the latest {late} s old"
    )


def check_records(stage: RadiusStage, tally: Tally) -> None:
    """One Start and one Stop with one Acct-Session-Id for each session, which tell what the client counted."""
    starts, stops = stage.records(status="Start"), stage.records(status="Stop")
    assert sorted(str(record["User-Name"]) for record in starts) == sorted(tally.sessions)
    ids = {str(record["Acct-Session-Id"]): record["User-Name"] for record in starts}
    assert len(ids) == len(starts)
    assert {str(record["Acct-Session-Id"]): record["User-Name"] for record in stops} == ids
    assert len(stops) == len(starts)
    for stop in stops:
        user = str(stop["User-Name"])
        assert (user, counted(stop)) == (user, tally.sessions[user])
        assert stop["Acct-Terminate-Cause"] == "User-Request"


@pytest.mark.statement(147, 148, 157)
@pytest.mark.parametrize("how", ["halt", "kill"])
def test_a_radius_server_that_is_away_for_a_moment_loses_and_doubles_nothing(how: str) -> None:
    with RadiusStage(USERS) as stage:
        print(outage(stage, 60, 8.0, how))


@pytest.mark.interop
@pytest.mark.statement(147, 148, 157)
@pytest.mark.parametrize("how", ["halt", "kill"])
def test_a_radius_server_away_for_a_minute_amid_200_logins_and_200_logouts_loses_and_doubles_nothing(
    how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with RadiusStage(USERS) as stage:
        figures = outage(stage, 200, 60.0, how)
        with capsys.disabled():
            print(f"\n{figures}")


# A daemon that ends


def per_session(stage: RadiusStage) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in stage.records():
        if "User-Name" in record:
            found.setdefault(str(record["Acct-Session-Id"]), []).append(record)
    return found


@pytest.mark.statement(147, 150)
def test_a_daemon_that_is_told_to_leave_ends_its_sessions_and_says_accounting_off() -> None:
    with RadiusStage(USERS) as stage:
        subscribers = [stage.online(f"user{number}") for number in range(3)]
        assert subscribers[0].ping(HOST) is not None
        assert aside(stage.server.stop, signal.SIGQUIT) == 0
        assert {subscriber.wait_ended().why for subscriber in subscribers} <= {Why.CDN, Why.STOPCCN}
        kinds = [str(record["Acct-Status-Type"]) for record in stage.records()]
        assert kinds == ["Accounting-On", *["Start"] * 3, *["Stop"] * 3, "Accounting-Off"]
        assert {record["Acct-Terminate-Cause"] for record in stage.records(status="Stop")} == {"Admin-Reboot"}
        assert counted(stage.stop_of("user0")) == counted_by(subscribers[0])
        aside(stage.server.start)
        until(lambda: len(stage.records(status="Accounting-On")) == 2, PATIENCE, "another Accounting-On")
        for number in range(3):
            stage.online(f"user{number}")
        aside(stage.server.stop)
        assert len(per_session(stage)) == 6  # no Acct-Session-Id twice
        assert all(
            [r["Acct-Status-Type"] for r in records] == ["Start", "Stop"] for records in per_session(stage).values()
        )


@pytest.mark.statement(147, 148)
def test_records_that_nobody_takes_are_kept_for_the_next_daemon() -> None:
    with RadiusStage(USERS, settings={"shutdown_timeout": 4}) as stage:
        subscribers = [stage.online(f"user{number}") for number in range(10)]
        until(lambda: len(stage.records(status="Start")) == 10, PATIENCE, "ten Starts")
        aside(stage.radius.kill)
        for subscriber in subscribers[:5]:
            subscriber.terminate()
            subscriber.wait_ended()
        begun = time.monotonic()
        assert aside(stage.server.stop, signal.SIGQUIT) == 0
        assert time.monotonic() - begun < 4 + PATIENCE
        assert stage.server.log("accounting_left_in_spool")
        gevent.sleep(3.0)
        aside(stage.server.start)
        assert stage.server.log("spool_read")[-1]["undelivered"] == 10
        aside(stage.radius.start)
        until(lambda: len(stage.records(status="Stop")) >= 10, 2 * PATIENCE, "ten Stops")
        gevent.sleep(2.0)
        check_stops(stage, {"User-Request": 5, "Admin-Reboot": 5})
        assert all(int(str(record["Acct-Delay-Time"])) >= 3 for record in stage.records(status="Stop"))


@pytest.mark.statement(147, 150)
@pytest.mark.parametrize("radius", ["up", "away"])
def test_sessions_of_a_daemon_that_was_killed_get_one_stop_each_from_the_next_one(radius: str) -> None:
    with RadiusStage(USERS) as stage:
        subscribers = [stage.online(f"user{number}") for number in range(10)]
        until(lambda: len(stage.records(status="Start")) == 10, PATIENCE, "ten Starts")
        if radius == "away":
            aside(stage.radius.kill)
        for subscriber in subscribers[:3]:
            subscriber.terminate()
            subscriber.wait_ended()
        if radius == "up":
            until(lambda: len(stage.records(status="Stop")) == 3, PATIENCE, "three Stops")
            gevent.sleep(0.5)  # the answer is on its way after the record is written down
        killed = time.time()
        aside(stage.server.kill)
        gevent.sleep(1.5)
        if radius == "away":
            aside(stage.radius.start)
        aside(stage.server.start)
        assert stage.server.log("sessions_stopped_after_crash")[-1]["sessions"] == 7
        until(lambda: len(stage.records(status="Stop")) >= 10, 2 * PATIENCE, "a Stop for each")
        gevent.sleep(2.0)
        check_stops(stage, {"User-Request": 3, "NAS-Reboot": 7})
        for stop in stage.records(status="Stop"):  # they ended then, not now
            assert int(str(stop["Acct-Delay-Time"])) >= (1 if radius == "away" else 0)
            assert int(str(stop["Timestamp"])) - int(str(stop["Acct-Delay-Time"])) <= killed + 1
        # Whoever calls again is let in.
        stage.lac.leave()
        stage.online("user5")
        aside(stage.server.stop)
        until(lambda: len(stage.records("user5", "Stop")) == 2, PATIENCE, "its new session's Stop")
        assert len(per_session(stage)) == 11


@pytest.mark.statement(147)
def test_what_a_halted_server_was_told_by_two_daemons_is_known_by_its_id_and_time() -> None:
    """It finds both in its socket, and no daemon can know which of its datagrams lie there."""
    with RadiusStage(USERS, settings={"shutdown_timeout": 3}) as stage:
        stage.online("fred")
        until(lambda: stage.records("fred", "Start"), PATIENCE, "a Start")
        aside(stage.radius.halt)
        aside(stage.server.stop)
        aside(stage.server.start)
        aside(stage.radius.go_on)
        until(lambda: stage.records("fred", "Stop"), PATIENCE, "a Stop")
        gevent.sleep(2.0)
        changing = {"Acct-Delay-Time", "Timestamp"}
        stops = [
            {name: value for name, value in record.items() if name not in changing}
            for record in stage.records("fred", "Stop")
        ]
        assert 1 <= len(stops) <= 2 and stops[0] == stops[-1]


def check_stops(stage: RadiusStage, causes: dict[str, int]) -> None:
    """Each session has one Start and then one Stop; so many for each cause."""
    sessions = per_session(stage)
    assert len(sessions) == sum(causes.values())
    for records in sessions.values():
        assert [record["Acct-Status-Type"] for record in records] == ["Start", "Stop"], records
    assert Counter(str(records[1]["Acct-Terminate-Cause"]) for records in sessions.values()) == causes


# A daemon that stays


@pytest.mark.statement(147, 149, 151)
def test_interim_records_come_when_radius_asks_and_never_go_back(long_session: tuple[RadiusStage, Subscriber]) -> None:
    stage, subscriber = long_session
    left = INTERIM - (time.monotonic() - subscriber.online_at)
    until(lambda: stage.records("interim", "Interim-Update"), max(left, 0.0) + PATIENCE, "an Interim-Update")
    assert subscriber.ping(HOST) is not None
    subscriber.terminate()
    stop = stage.stop_of("interim")
    interims = stage.records("interim", "Interim-Update")
    assert len(interims) == 1
    assert int(str(interims[0]["Acct-Session-Time"])) >= 60
    both = zip(counted(interims[0]), counted(stop), strict=True)
    assert all(0 < earlier < later for earlier, later in both)
    assert counted(stop) == counted_by(subscriber)
    assert subscriber.complaints == ()
