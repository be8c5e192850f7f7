"""A real pppd throttled by RADIUS (Debian's FreeRADIUS), at the console and by nsctl (`make interop`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import IPv4Network
from time import monotonic

import pytest

from tests.lab.console import Console
from tests.lab.freeradius import FreeRadius
from tests.lab.interop import HOST, Stage, missing
from tests.lab.kernel import aimed, buckets, speeds
from tests.lab.pppd import Clients, Link, Peer

pytestmark = [pytest.mark.live, pytest.mark.interop, pytest.mark.skipif(bool(missing()), reason=missing())]

USERS = """fred Cleartext-Password := "fredpw"
\tFramed-Route = "10.77.0.0/24 0.0.0.0 1",
\tCisco-AVPair = "throttle=512"

ann Cleartext-Password := "annpw"

"""
SETTINGS = {
    "primary_radius": "127.0.0.1",
    "primary_radius_port": 1812,
    "radius_secret": "shared-by-two",
    "radius_accounting": True,
    "throttle_speed": 64,
}
BEGIN = 10_000  # octets: what a burst lets through
FRED = Peer("one", "fred", "fredpw", auth="pap")
ANN = Peer("one", "ann", "annpw", auth="chap")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage(settings=SETTINGS) as built:
        with built.server.config.open("a") as file:
            file.write('load plugin "autothrottle"\nload plugin "throttlectl"\n')
        built.server.start()
        yield built


@pytest.fixture(scope="module")
def radius(stage: Stage) -> Iterator[FreeRadius]:
    with stage.freeradius(USERS) as running:
        yield running


@pytest.fixture
def console(stage: Stage, radius: FreeRadius) -> Iterator[Console]:
    with Console(stage.server_side) as console:
        yield console


def kbits(stage: Stage, console: Console, link: Link, octets: str, *, down: bool) -> float:
    """What TCP makes of it, headers included, as the server counts it; pings meanwhile are answered."""
    stage.guest.run(f"ping -I {link.address} -i 0.5 {HOST} >/tmp/ping 2>&1 & echo $! >/tmp/ping.pid")
    key = "out_octets" if down else "in_octets"
    (before,) = console.rows("show session")
    begun = monotonic()
    stage.iperf(link, octets, down=down)
    (after,) = console.rows("show session")
    took = monotonic() - begun
    stage.guest.run("kill -INT $(cat /tmp/ping.pid)")
    assert "bytes from" in stage.guest.run("cat /tmp/ping")
    return float((after[key] - before[key] - BEGIN) / 125 / took)


def both_ways(stage: Stage, console: Console, link: Link, octets: str) -> list[float]:
    return [kbits(stage, console, link, octets, down=down) for down in (True, False)]


def test_radius_throttles_a_client_from_its_first_packet_and_hears_of_it(
    stage: Stage, radius: FreeRadius, console: Console
) -> None:
    with stage.scene([FRED], kernel=True) as clients:
        link = clients.dial("one")
        address = IPv4Network(str(link.address))
        assert speeds(stage.server_side) == {address: 512.0, IPv4Network("10.77.0.0/24"): 512.0}
        assert len(set(aimed(stage.server_side).values())) == 1
        assert all(200 < rate < 512 * 1.05 for rate in both_ways(stage, console, link, "500K"))
        (bucket,) = buckets(stage.server_side).values()
        assert bucket.octets > 500_000
        clients.terminate("one")
        clients.wait_down("one")
    assert aimed(stage.server_side) == {}
    assert [record.get("Cisco-AVPair") for record in radius.records("Start")][-1] == "throttle=512"


def test_the_console_throttles_a_client_that_is_online(stage: Stage, radius: FreeRadius, console: Console) -> None:
    with stage.scene([ANN], kernel=True) as clients:
        link = clients.dial("one")
        assert console.rows("show throttle") == []
        assert console.do("throttle ann").strip() == "throttling user ann"
        assert all(30 < rate < 64 * 1.05 for rate in both_ways(stage, console, link, "60K"))
        console.do("throttle ann in 2000 out 1000")
        down, up = both_ways(stage, console, link, "1M")
        assert 500 < down < 1000 * 1.05 and 1000 < up < 2000 * 1.05
        console.do("no throttle ann")
        assert aimed(stage.server_side) == {}
        is_fast(stage, clients, link)


def test_nsctl_throttles_a_client_that_is_online(stage: Stage, radius: FreeRadius, console: Console) -> None:
    def nsctl(*words: str) -> str:
        return stage.server_side.run(sys.executable, "-m", "l2tpns.nsctl", *words)

    with stage.scene([ANN], kernel=True) as clients:
        link = clients.dial("one")
        assert "is throttled: in 512 out 512 kbit/s" in nsctl("throttle", "ann", "512")
        assert all(200 < rate < 512 * 1.05 for rate in both_ways(stage, console, link, "500K"))
        assert "is not throttled any more" in nsctl("unthrottle", "ann")
        assert aimed(stage.server_side) == {}
        is_fast(stage, clients, link)


def is_fast(stage: Stage, clients: Clients, link: Link) -> None:
    """What would take minutes at the rates above."""
    for down in (True, False):
        assert sum(stage.iperf(link, "20M", down=down, timeout=120.0)) >= 20 * 1024 * 1024
    assert clients.ping(link, HOST) == 3
