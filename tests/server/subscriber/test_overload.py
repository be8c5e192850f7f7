"""More logins and ends than can be served at once: who waits, in what order, and who is refused (RFC 2661 4.4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from l2tpns import causes
from l2tpns.l2tp.tunnel import ENDS_AT_ONCE
from l2tpns.proto.l2tp.messages import CDN, ICRP, ICRQ, ResultCode
from l2tpns.runtime.scheduler import Scheduler
from l2tpns.subscriber.phase import Phase
from l2tpns.subscriber.session import Session
from tests.lab.inprocess import InProcess, Peer
from tests.lab.lac import Dial
from tests.server.conftest import QUICK, Serve
from tests.server.slices import most_at_once

CALLS = 60


@contextmanager
def logins_for_ever(server: InProcess) -> Iterator[None]:
    """Keep the server busy with logins that have begun, within `with`."""

    def work() -> None:
        while True:
            server.services.session_scheduler.wait_turn("busy")

    worker = gevent.spawn(work)
    try:
        yield
    finally:
        worker.kill()


def ring(peer: Peer, *session_ids: int) -> None:
    """Make calls. Return when the server has acknowledged them."""
    for session_id in session_ids:
        peer.say(ICRQ(assigned_session_id=session_id, call_serial_number=session_id))
    peer.acknowledged()


def callers(peer: Peer, count: int) -> list[int]:
    """Return the LAC's ids of the next calls that are answered."""
    answers = []
    for _ in range(count):
        answers.append(peer.expect_header(ICRP)[0].session_id)
        peer.acknowledge()
    return answers


def test_a_new_call_is_acknowledged_at_once_and_answered_after_the_logins_that_have_begun(serve: Serve) -> None:
    server = serve()
    lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw").wait_online()
    peer = server.peer().open()
    with logins_for_ever(server):
        ring(peer, 1, 2, 3)
        before = fred.echo_replies
        fred.send_echo()
        fred.wait(lambda: fred.echo_replies > before)  # an online session does not wait
        lac.hello()
        lac.wait_acked()
        peer.expect_nothing()
        assert server.lns.admission.starting.total() == 3
    assert callers(peer, 3) == [1, 2, 3]


def test_the_calls_of_a_lac_with_many_do_not_delay_those_of_another(serve: Serve) -> None:
    server = serve()
    crowd, single = server.peer().open(), server.peer(local=("127.0.0.2", 0)).open()
    order: list[int] = []
    server.services.plane.attach = lambda path: order.append(path.peer_session_id)  # type: ignore[method-assign]
    with logins_for_ever(server):
        ring(crowd, *range(1, 9))
        ring(single, 100)
    assert callers(crowd, 8) == [*range(1, 9)] and callers(single, 1) == [100]
    assert order.index(100) == 1


@pytest.mark.shows("set call_wait_timeout")
def test_a_call_that_has_waited_too_long_is_told_to_try_later(serve: Serve) -> None:
    server = serve(call_wait_timeout=0.05)
    peer = server.peer().open()
    with logins_for_ever(server):
        ring(peer, 7)
        header, cdn = peer.expect_header(CDN)
    assert header.session_id == 7
    assert cdn.result_code == ResultCode(4, 4, causes.OVERLOADED.text)
    server.wait(lambda: not server.lns.sessions)
    assert server.counters.calls_overdue == 1
    assert [line["why"] for line in server.events("call_refused")] == [causes.OVERLOADED.text]
    assert [line["cause"] for line in server.events("session_down")] == ["overloaded"]
    peer.acknowledge()
    assert peer.ring(7)  # once there is time the same call is served


def test_a_call_beyond_the_limit_is_refused_in_the_log_too(serve: Serve) -> None:
    server = serve(max_starting_calls=1)
    peer = server.peer().open()
    peer.ring(1)
    peer.say(ICRQ(assigned_session_id=2, call_serial_number=2))
    assert peer.expect(CDN).result_code.result == 4
    assert [line["why"] for line in server.events("call_refused")] == ["too many calls"]


def test_a_call_that_the_lac_ends_while_it_waits_is_forgotten(serve: Serve) -> None:
    server = serve()
    peer = server.peer().open()
    with logins_for_ever(server):
        ring(peer, 1, 2)
        peer.say(CDN(result_code=ResultCode(1), assigned_session_id=1))
        server.wait(lambda: len(server.lns.sessions) == 1)
    assert callers(peer, 1) == [2]


def test_while_the_calls_of_a_vanished_lac_end_the_others_are_served_in_between(serve: Serve) -> None:
    server = serve()
    server.services.session_scheduler = Scheduler(length=1e-9, eager=True)  # one piece of work for each slice
    lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw").wait_online()
    peer = server.peer().open()
    for number in range(1, CALLS + 1):
        peer.call(number)
        peer.acknowledge()
    ours = next(tunnel for tunnel in server.lns.tunnels.values() if tunnel.peer == peer.address)
    left_at_echo: list[int] = []

    def answered() -> None:
        if fred.echo_replies > before and not left_at_echo:
            left_at_echo.append(len(server.lns.sessions))

    before = fred.echo_replies
    fred.send_echo()
    ours.end(causes.TUNNEL_LOST, None)
    most = most_at_once(
        lambda: server.counters.sessions_ended, lambda: server.counters.sessions_ended == CALLS, answered
    )
    assert most <= 1
    assert left_at_echo and left_at_echo[0] > CALLS / 2
    assert fred.online


def test_the_calls_of_a_tunnel_are_asked_to_end_a_few_at_a_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    peer = server.peer().open()
    for number in range(1, CALLS + 1):
        peer.call(number)
        peer.acknowledge()
    (ours,) = server.lns.tunnels.values()
    asked: list[int] = []
    end = Session.end

    def count(session: Session, reason: causes.Cause, **options: Any) -> None:
        asked.append(session.id)
        end(session, reason, **options)

    monkeypatch.setattr(Session, "end", count)
    ours.end(causes.TUNNEL_LOST, None)
    assert most_at_once(lambda: len(asked), lambda: not server.lns.tunnels) <= ENDS_AT_ONCE
    server.wait(lambda: not server.lns.sessions)
    assert len(asked) == CALLS  # each of them once


def test_a_login_that_replaces_a_session_does_not_wait_behind_the_other_ends(serve: Serve) -> None:
    server = serve()
    old = server.lac(defaults=QUICK).connect()
    old.call("fred", "pw").wait_online()
    new = server.lac("lac2", defaults=QUICK).connect()
    server.backend.answering.clear()
    again = new.call("fred", "pw", Dial(restart=0.3))
    server.wait(lambda: len(server.backend.asked) == 2)
    with logins_for_ever(server):
        (session,) = (each for each in server.lns.sessions.values() if each.phase is Phase.ONLINE)
        session.end(causes.TUNNEL_LOST)
        server.wait(lambda: session.release_turn is not None)
        server.backend.answering.set()
        again.wait_online()
        assert not session.alive
