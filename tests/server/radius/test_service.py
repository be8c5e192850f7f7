"""What the octets of an Access-Accept make of a login, through the whole server (RFC 2865 5.6 to 5.8, RFC 2868 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from l2tpns.radius.auth import RadiusBackend
from tests.lab import PATIENCE
from tests.lab.inprocess import InProcess
from tests.lab.pppclient import CHAP, PAP
from tests.lab.radius_parts import SECRET, settings_for
from tests.lab.radius_server import RadiusServer, User, ip, u32, vsa
from tests.server.conftest import QUICK, Serve
from tests.server.shelf import Shelf
from tests.server.subscribers import Ear, refused

Accepting = Callable[..., InProcess]


@pytest.fixture
def accepting(serve: Serve) -> Iterator[Accepting]:
    """Starts servers whose RADIUS server accepts fred with these attributes."""
    closers: list[Callable[[], None]] = []

    def start(*attributes: tuple[int, bytes], **settings: object) -> InProcess:
        radius = RadiusServer(SECRET, {b"fred": User(b"pw", list(attributes))}).start()
        server = serve(**settings)
        backend = RadiusBackend(settings_for(radius, timeout=PATIENCE), server.log.get())
        server.services.backend = backend
        closers.extend((backend.close, radius.stop))
        return server

    yield start
    for close in closers:
        close()


@pytest.mark.parametrize("auth", ["pap", "chap"])
@pytest.mark.parametrize("attribute", [(6, u32(1)), (7, u32(2)), (64, u32(1)), vsa(311, (7, u32(2)))])
def test_a_subscriber_who_is_to_have_another_service_is_told_no(
    accepting: Accepting, auth: str, attribute: tuple[int, bytes]
) -> None:
    server = accepting(attribute, (18, b"Welcome!"))
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw", auth=auth)
    ear = Ear(fred)
    assert refused(fred) == (3, 0)
    protocol, code = (PAP, 3) if auth == "pap" else (CHAP, 4)
    assert b"service unavailable" in ear.of("in", protocol, code)[0]
    assert server.accounting.records == [] and server.counters.logins_refused == 1
    (line,) = server.events("auth_refused")
    assert "unavailable" in line["why"]
    server.wait(lambda: server.calm)


def test_the_framed_service_comes_online(accepting: Accepting) -> None:
    server = accepting((6, u32(2)), (7, u32(1)), (64, u32(3)))
    assert server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online().online


@pytest.mark.parametrize("address", ["0.0.0.0", "255.255.255.254"])
def test_an_address_of_the_pool_is_given_where_none_is_named(accepting: Accepting, address: str) -> None:
    server = accepting((8, ip(address)))
    assert str(server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online().address) == "10.5.0.1"


@pytest.mark.parametrize("mtu", [0, 1, 63, 65536])
def test_an_impossible_mtu_leaves_the_link_as_it_was_negotiated(accepting: Accepting, mtu: int) -> None:
    server = accepting((12, u32(mtu)))
    server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online()
    (line,) = server.events("session_up")
    assert line["mru"] == server.config.mru


# What is said in Cisco-AVPairs


def test_name_servers_of_an_avpair_reach_the_subscriber(accepting: Accepting) -> None:
    server = accepting(vsa(9, (1, b"ip:dns-servers=192.0.2.53 192.0.2.54")), primary_dns=IPv4Address("192.0.2.1"))
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online()
    assert tuple(map(str, fred.dns)) == ("192.0.2.53", "192.0.2.54")
    assert server.events("avpair_ignored") == []


PLUGIN = """
{declared}
def plugin_{hook}(event):
    pass
"""


@pytest.mark.parametrize(
    "declared, hook, named",
    [
        (None, "", ["ip:route", "throttle"]),
        ("plugin_avpairs = ['Throttle']", "radius_response", ["ip:route"]),
        ("plugin_avpairs = ()", "post_auth", ["ip:route", "throttle"]),
        ("", "radius_response", []),  # it may read all
        ("", "post_auth", []),
        ("", "timer", ["ip:route", "throttle"]),  # it is given none
    ],
)
def test_an_avpair_that_nothing_reads_is_named_once_without_its_value(
    accepting: Accepting, tmp_path: Path, declared: str | None, hook: str, named: list[str]
) -> None:
    pairs = [(1, b"ip:route#1=10.0.0.0 s3cret"), (1, b"ip:route#2=10.0.0.0 s3cret"), (1, b"Throttle=s3cret")]
    server = accepting(vsa(9, *pairs), plugin_dir=str(tmp_path), allow_duplicate_users=True)
    if declared is not None:
        Shelf(server, tmp_path).load("one", PLUGIN.format(declared=declared, hook=hook))
    lac = server.lac(defaults=QUICK).connect()
    for _ in range(3):
        lac.call("fred", "pw").wait_online()
    assert [line["key"] for line in server.events("avpair_ignored")] == named
    assert not any("s3cret" in str(line) for line in server.log.records())


def test_whom_nothing_intercepts_though_radius_asks_for_it_is_in_no_line(accepting: Accepting, tmp_path: Path) -> None:
    server = accepting(vsa(9, (1, b"intercept=yes")))
    server.log.open_audit(str(tmp_path / "audit"))
    server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online()
    assert not any("intercept" in str(line) for line in server.log.records())
    assert "avpair_ignored" in (tmp_path / "audit").read_text()
