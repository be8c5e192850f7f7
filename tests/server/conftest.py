"""A server in the test's own process, which must leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from l2tpns.console.timing import ConsoleTiming
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.subscriber.services import SessionTiming
from tests.lab import PATIENCE
from tests.lab.inprocess import InProcess
from tests.lab.lac import Dial, Lac
from tests.server.clocks import LOOKS, Clock, DataClock, TunnelClock
from tests.server.lives import Lives
from tests.server.operators import Desk
from tests.server.shelf import Shelf

Serve = Callable[..., InProcess]
QUICK = Dial(restart=0.3)


@pytest.fixture
def timing() -> TunnelTiming:
    """The times of the servers' tunnels, which a test may change at any time.

    No control message is repeated only because the machine was busy: a test that wants that sets the interval.
    """
    return TunnelTiming(first_retransmission=PATIENCE, closed_linger=0.01, min_poll=0.05)


@pytest.fixture
def session_timing() -> SessionTiming:
    """The times of the servers' sessions, which a test may change at any time."""
    return SessionTiming(refusal_grace=0.05)


@pytest.fixture
def limits() -> TunnelLimits:
    """The limits of the servers' tunnels, which a test may change at any time, `mailbox` before there is a tunnel."""
    return TunnelLimits()


@pytest.fixture
def data_clock() -> DataClock:
    return DataClock()


@pytest.fixture
def serve(
    timing: TunnelTiming, limits: TunnelLimits, session_timing: SessionTiming, data_clock: DataClock
) -> Iterator[Serve]:
    """Starts servers with the settings given; afterwards no tunnel, session, address, route or greenlet may be left."""
    servers: list[InProcess] = []

    def start(*args: Any, **settings: Any) -> InProcess:
        server = InProcess(
            *args,
            tunnel_timing=timing,
            tunnel_limits=limits,
            session_timing=session_timing,
            data_clock=data_clock,
            **settings,
        ).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        assert server.stop() == {}


@pytest.fixture
def clock(session_timing: SessionTiming, data_clock: DataClock) -> Clock:
    """A clock of sessions that stands still until the test moves it."""
    session_timing.wheel_tick = LOOKS
    session_timing.clock = data_clock.read = clock = Clock()
    return clock


@pytest.fixture
def tunnel_clock(timing: TunnelTiming, data_clock: DataClock) -> TunnelClock:
    """A clock that established tunnels look at often."""
    timing.max_poll = 0.05
    timing.clock = data_clock.read = clock = TunnelClock()
    return clock


@pytest.fixture
def server(serve: Serve) -> InProcess:
    """One with the defaults."""
    return serve()


@pytest.fixture
def lac(server: InProcess) -> Lac:
    """Its LAC, with a tunnel; its subscribers repeat themselves quickly."""
    return server.lac(defaults=QUICK).connect()


@pytest.fixture
def shelf(serve: Serve, tmp_path: Path) -> Shelf:
    """A server and a directory for its plugins."""
    return Shelf(serve(plugin_dir=str(tmp_path)), tmp_path)


@pytest.fixture
def open_desk(serve: Serve, tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    """Starts servers with a console; `users` is the text of l2tpns.users, if there shall be one."""
    desks: list[Desk] = []

    def start(users: str | None = None, timing: ConsoleTiming | None = None, **settings: Any) -> Desk:
        desk = Desk(serve(**settings), tmp_path, users, timing).start()
        desks.append(desk)
        return desk

    yield start
    for desk in desks:
        desk.stop()


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    """One without users: everybody may come in."""
    return open_desk()


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lives]:
    """The first of them has begun."""
    monkeypatch.setenv("L2TPNS_RUN", str(tmp_path / "run"))
    lives = Lives(tmp_path / "state")
    lives.begin()
    yield lives
    lives.server.journal.halt()
    assert lives.server.stop() == {}
    lives.store.close()
    for lac in lives.lacs:
        lac.leave()
