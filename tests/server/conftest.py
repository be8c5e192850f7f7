"""Provide servers in the test's own process, which must leave nothing behind."""

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
    """Return the times of the servers' tunnels, which a test may change at any time.

    The interval is so long that a busy machine repeats no control message. A test of retransmissions shortens it.
    """
    return TunnelTiming(first_retransmission=PATIENCE, closed_linger=0.01, min_poll=0.05)


@pytest.fixture
def session_timing() -> SessionTiming:
    """Return the times of the servers' sessions, which a test may change at any time."""
    return SessionTiming(refusal_grace=0.05)


@pytest.fixture
def limits() -> TunnelLimits:
    """Return the limits of the servers' tunnels. A test may change them at any time, `mailbox` only before a tunnel."""
    return TunnelLimits()


@pytest.fixture
def data_clock() -> DataClock:
    return DataClock()


@pytest.fixture
def serve(
    timing: TunnelTiming, limits: TunnelLimits, session_timing: SessionTiming, data_clock: DataClock
) -> Iterator[Serve]:
    """Start servers with the settings given. Asserts afterwards that no tunnel, session, route or greenlet is left."""
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
    """Return a clock of sessions that stands still until the test moves it."""
    session_timing.wheel_tick = LOOKS
    session_timing.clock = data_clock.read = clock = Clock()
    return clock


@pytest.fixture
def tunnel_clock(timing: TunnelTiming, data_clock: DataClock) -> TunnelClock:
    """Return a clock that established tunnels read often."""
    timing.max_poll = 0.05
    timing.clock = data_clock.read = clock = TunnelClock()
    return clock


@pytest.fixture
def server(serve: Serve) -> InProcess:
    """Return a server with the default settings."""
    return serve()


@pytest.fixture
def lac(server: InProcess) -> Lac:
    """Return a LAC of the server, with a tunnel. Its subscribers retransmit quickly."""
    return server.lac(defaults=QUICK).connect()


@pytest.fixture
def shelf(serve: Serve, tmp_path: Path) -> Shelf:
    """Return a server with a directory for its plugins."""
    return Shelf(serve(plugin_dir=str(tmp_path)), tmp_path)


@pytest.fixture
def open_desk(serve: Serve, tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    """Start servers with a console. `users` is the text of l2tpns.users, None for no such file."""
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
    """Return a console without users, which admits each operator."""
    return open_desk()


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lives]:
    """Return Lives with the first server started."""
    monkeypatch.setenv("L2TPNS_RUN", str(tmp_path / "run"))
    lives = Lives(tmp_path / "state")
    lives.begin()
    yield lives
    lives.server.journal.halt()
    assert lives.server.stop() == {}
    lives.store.close()
    for lac in lives.lacs:
        lac.leave()
