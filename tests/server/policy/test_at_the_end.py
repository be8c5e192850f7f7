"""Commands for a session that is ending, while a plugin delays its accounting record: nothing is left behind.

The next session with its address must inherit nothing, and RADIUS gets as many Stops as Starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

from l2tpns import causes
from l2tpns.policy.garden import NullKernel
from l2tpns.state import snapshot
from l2tpns.subscriber.session import Session
from tests.lab.inprocess import InProcess
from tests.lab.null_shaper import NullShaper
from tests.server.conftest import Serve
from tests.server.shelf import Shelf

WAITING = """
from gevent.event import Event
GATES = {"start": Event(), "stop": Event()}
def plugin_radius_account(event):
    SEEN.append(event.kind)
    GATES[event.kind].wait()
"""


@pytest.fixture
def shelf(serve: Serve, tmp_path: Path) -> Shelf:
    server = serve(plugin_dir=str(tmp_path))
    server.services.gardens.build()
    server.services.throttle.start(NullShaper())
    shelf = Shelf(server, tmp_path)
    shelf.load("waiting", WAITING)
    return shelf


def go_on(shelf: Shelf, *kinds: str) -> None:
    for kind in kinds:
        shelf.module("waiting").GATES[kind].set()


def asked(shelf: Shelf, kind: str) -> None:
    shelf.server.wait(lambda: kind in shelf.seen("waiting"))


def of_fred(shelf: Shelf) -> Session:
    (session,) = shelf.server.registry.by_user["fred"]
    return session


def gone(shelf: Shelf) -> None:
    shelf.server.wait(lambda: not shelf.server.lns.sessions)


def balance(server: InProcess) -> dict[str, tuple[int, int]]:
    """Return the Starts and Stops of each accounting session. A Stop without a Start is not written."""
    records = server.accounting.records
    count = Counter((kind, usage.acct_session_id) for kind, usage in records)
    started = {usage.acct_session_id for kind, usage in records if kind == "start"}
    return {acct: (count["start", acct], count["stop", acct]) for acct in started}


def leftovers(server: InProcess) -> list[object]:
    kernel, shaper = server.services.gardens.kernel, server.services.throttle._shaper
    assert isinstance(kernel, NullKernel) and isinstance(shaper, NullShaper)
    return [
        *kernel.gardens["garden"],
        *shaper.buckets.values(),
        *server.services.snoop.copiers,
        *server.registry.by_address,
    ]


@pytest.mark.parametrize(
    "ask",
    [
        lambda session: session.services.gardens.enter(session, by="test"),
        lambda session: session.services.throttle.set(session, 64, 64, by="test"),
    ],
    ids=["garden", "throttle"],
)
def test_what_is_asked_of_a_session_that_is_ending_does_not_stay_with_its_address(
    shelf: Shelf, ask: Callable[[Session], None]
) -> None:
    go_on(shelf, "start")
    shelf.online()
    session = of_fred(shelf)
    session.end(causes.ADMIN_DROP)
    asked(shelf, "stop")
    ask(session)
    go_on(shelf, "stop")
    gone(shelf)
    assert leftovers(shelf.server) == []
    assert list(balance(shelf.server).values()) == [(1, 1)]


def test_the_state_can_be_written_while_a_session_that_ends_waits_for_a_plugin(shelf: Shelf) -> None:
    go_on(shelf, "start")
    shelf.online()
    of_fred(shelf).end(causes.ADMIN_DROP)
    asked(shelf, "stop")
    lns = shelf.server.lns
    assert [line[0] for line in snapshot.lines(lns.tunnels, lns.sessions)] == ["tun", "call"]
    go_on(shelf, "stop")
    gone(shelf)


def test_who_goes_into_a_garden_before_its_start_is_written_has_none(shelf: Shelf) -> None:
    shelf.call()
    asked(shelf, "start")
    session = of_fred(shelf)
    going = gevent.spawn(session.services.gardens.enter, session, by="test")
    go_on(shelf, "start", "stop")
    going.get()
    session.end(causes.ADMIN_DROP)
    gone(shelf)
    assert balance(shelf.server) == {} and leftovers(shelf.server) == []


def test_who_ends_before_the_start_of_leaving_a_garden_is_written_has_none(shelf: Shelf) -> None:
    go_on(shelf, "start", "stop")
    shelf.online()
    session = of_fred(shelf)
    session.services.gardens.enter(session, by="test")
    shelf.module("waiting").GATES["start"].clear()
    shelf.seen("waiting").clear()
    leaving = gevent.spawn(session.services.gardens.leave, session, by="test")
    asked(shelf, "start")
    session.end(causes.ADMIN_DROP)
    gone(shelf)
    go_on(shelf, "start")
    leaving.get()
    assert list(balance(shelf.server).values()) == [(1, 1)] and leftovers(shelf.server) == []


def test_a_part_that_fails_costs_neither_the_stop_nor_the_address(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(shelf, "start", "stop")
    shelf.online()
    session = of_fred(shelf)
    session.services.throttle.set(session, 64, 64, by="test")

    def fail(_: Session) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(session.services.snoop, "finish", fail)
    session.end(causes.ADMIN_DROP)
    gone(shelf)
    assert leftovers(shelf.server) == [] and list(balance(shelf.server).values()) == [(1, 1)]
    (failed,) = shelf.server.events("release_failed")
    assert "timed out" in failed["traceback"]
    shelf.server.meant = ("release_failed",)


def test_the_stop_tells_how_long_the_session_was_online(shelf: Shelf) -> None:
    go_on(shelf, "start", "stop")
    shelf.online()
    session = of_fred(shelf)
    opened = session.opened_wall
    session.online_since -= 100.0
    session.end(causes.ADMIN_DROP)
    gone(shelf)
    (stop,) = shelf.server.accounting.of("stop")
    assert stop.session_time >= 100 and stop.opened == opened
