"""Ended sessions are freed at once: with thousands of sessions the garbage collector runs rarely."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from l2tpns.causes import ADMIN_DROP
from l2tpns.l2tp.tunnel import Tunnel
from l2tpns.subscriber.session import Session
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Refused


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(kind: type) -> int:
    return sum(1 for thing in gc.get_objects() if isinstance(thing, kind))


def terminated(server: InProcess, lac: Lac) -> None:
    lac.call("fred", "pw").wait_online().terminate()


def hung_up(server: InProcess, lac: Lac) -> None:
    lac.call("fred", "pw").wait_online().hangup()


def dropped(server: InProcess, lac: Lac) -> None:
    lac.call("fred", "pw").wait_online()
    for session in server.lns.sessions.values():
        session.end(ADMIN_DROP)


def hung_up_in_the_middle(server: InProcess, lac: Lac) -> None:
    server.backend.answering.clear()
    call = lac.call("fred", "pw")
    lac.endpoint.flush()
    server.wait(lambda: server.backend.asked)
    call.hangup()


def refused(server: InProcess, lac: Lac) -> None:
    with pytest.raises(Refused):
        lac.call("fred", "wrong").wait_online()


def unanswered(server: InProcess, lac: Lac) -> None:
    server.backend.silent = True
    with pytest.raises(Refused):
        lac.call("fred", "pw").wait_online()


def without_address(server: InProcess, lac: Lac) -> None:
    while server.pool.free:
        server.pool.allocate("")
    with pytest.raises(Refused):
        lac.call("fred", "pw").wait_online()
    for address in [holding.address for _, holding in server.pool.holdings() if holding.used]:
        server.pool.release(address)


def renegotiated(server: InProcess, lac: Lac) -> None:
    call = lac.call("fred", "pw").wait_online()
    call.restart()
    call.wait_online()
    call.terminate()


@pytest.mark.parametrize(
    "end",
    [terminated, hung_up, dropped, hung_up_in_the_middle, refused, unanswered, without_address, renegotiated],
)
def test_a_session_that_has_ended_leaves_no_garbage(
    server: InProcess, lac: Lac, end: Callable[[InProcess, Lac], None]
) -> None:
    end(server, lac)
    server.wait(lambda: server.calm)
    server.greenlets.clear()  # a killed one that the harness still knows would hold its frames
    server.wait(lambda: not alive(Session))


def test_a_tunnel_that_has_ended_leaves_no_garbage(server: InProcess, lac: Lac) -> None:
    assert alive(Tunnel) == 1
    lac.close()
    server.wait(lambda: not server.lns.tunnels)
    server.wait(lambda: not alive(Tunnel))
