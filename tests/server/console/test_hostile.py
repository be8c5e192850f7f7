"""A thousand strangers at the console's port, and sixty thousand rows for a slow connection."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import socket

from l2tpns.subscriber.pool import parse_layout
from tests.lab.inprocess import until
from tests.server.operators import Desk, OpenDesk

PATIENCE = 60.0


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, min(4096, most)), most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize("typed", [b"", b"fred\n", b"\xff\xfb", b"fred\nhu"], ids=["nothing", "name", "telnet", "half"])
def test_a_thousand_half_open_connections_lock_nobody_out_and_are_not_kept(open_desk: OpenDesk, typed: bytes) -> None:
    desk = open_desk("fred:hush\n", cli_max_connections=64)
    operator = desk.operator()
    operator.type("fred\nhush\n")
    operator.expect("# ")
    strangers = []
    for _ in range(1000):
        stranger = desk.operator()
        stranger.type(typed)
        strangers.append(stranger)
        gevent.sleep(0)
        assert len(desk.console) <= 64 + 1  # one being sent
    assert "L2TPNS" in operator.do("show version")
    late = desk.operator()
    late.type("fred\nhush\n")
    late.expect("# ", timeout=PATIENCE)
    for stranger in strangers:
        stranger.close()
    until(lambda: len(desk.console) == 2, PATIENCE)
    assert [record for record in desk.server.log.records() if "traceback" in record] == []


def test_sixty_thousand_rows_are_made_as_a_slow_line_takes_them(desk: Desk, rows_made: Callable[[], int]) -> None:
    desk.server.pool.change(parse_layout("10.5.0.0/16\n"))
    other = desk.plain()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", desk.console.port))
        slow.sendall(b"show pool all\nquit\n")
        until(lambda: rows_made() > 100, PATIENCE)
        for _ in range(5):
            assert "L2TPNS" in other.do("show version")
        stuck = -1
        while rows_made() != stuck:  # until both buffers are full and the console blocks
            stuck = rows_made()
            for _ in range(20):
                other.do("show version")
        assert stuck < 30_000  # the rest is neither rendered nor stored
        said = bytearray()
        while octets := slow.recv(512 if len(said) < 20_000 else 65536):
            said += octets
    assert rows_made() == said.count(b"10.5.") == 256 * 254
