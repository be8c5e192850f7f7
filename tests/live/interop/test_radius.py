"""Debian's FreeRADIUS and pppd with the daemon between them (`make interop`)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab.freeradius import FreeRadius
from tests.lab.interop import HOST, Stage, missing
from tests.lab.netns import wait_until
from tests.lab.pppd import LinkFailed, Peer

pytestmark = [pytest.mark.live, pytest.mark.interop, pytest.mark.skipif(bool(missing()), reason=missing())]

CLASS = "6c327470"
USERS = f"""fred Cleartext-Password := "fredpw"
\tFramed-IP-Address = 10.1.5.5,
\tFramed-Route = "10.77.0.0/24 10.1.5.5 1",
\tAcct-Interim-Interval = 60,
\tClass = 0x{CLASS}

ann Cleartext-Password := "annpw"
\tSession-Timeout = 4

"""
SETTINGS = {
    "primary_radius": "127.0.0.1",
    "primary_radius_port": 1812,
    "radius_secret": "shared-by-two",
    "radius_accounting": True,
}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage(settings=SETTINGS) as built:
        built.server.start()
        yield built


@pytest.fixture(scope="module")
def radius(stage: Stage) -> Iterator[FreeRadius]:
    with stage.freeradius(USERS) as running:
        yield running
        assert stage.server.stop() == 0
        assert len(running.records("Accounting-Off")) == 1


def records(radius: FreeRadius, user: str, status: str) -> list[dict[str, str | list[str]]]:
    return [record for record in radius.records(status) if record.get("User-Name") == user]


def number(record: dict[str, str | list[str]], name: str) -> int:
    """A counter with its gigawords (RFC 2869 5.1)."""
    high = int(str(record.get(name.replace("Octets", "Gigawords"), 0))) if name.endswith("Octets") else 0
    return int(str(record[name])) + (high << 32)


@pytest.mark.parametrize("auth", ["pap", "chap", "mschap", "mschapv2"])
def test_a_reject_ends_the_call(stage: Stage, radius: FreeRadius, auth: str) -> None:
    with stage.scene([Peer("bad", "fred", "wrong", auth=auth)]) as clients:
        with pytest.raises(LinkFailed):
            clients.dial("bad")
        stage.wait_for("auth_refused", user="fred")
    assert records(radius, "fred", "Start") == []


def test_session_timeout_ends_the_session_in_time(stage: Stage, radius: FreeRadius) -> None:
    with stage.scene([Peer("one", "ann", "annpw", auth="chap")]) as clients:
        clients.dial("one")
        begun = time.monotonic()
        clients.wait_down("one")
        assert time.monotonic() - begun > 2.5
        wait_until(lambda: records(radius, "ann", "Stop"), what="a Stop")
    stop = records(radius, "ann", "Stop")[0]
    assert stop["Acct-Terminate-Cause"] == "Session-Timeout"
    assert number(stop, "Acct-Session-Time") >= 4


def test_what_radius_says_is_done_and_what_it_is_told_is_what_the_client_counted(
    stage: Stage, radius: FreeRadius
) -> None:
    with stage.scene([Peer("one", "fred", "fredpw", auth="pap")], kernel=True) as clients:
        link = clients.dial("one")
        assert str(link.address) == "10.1.5.5"
        before = clients.traffic(link)

        # Framed-Route: a network behind the subscriber, reached from the host beyond the server.
        stage.guest.run(
            "sysctl -qw net.ipv4.ip_forward=1; ip address add 10.77.0.1/32 dev lo; ip rule add from 10.77.0.1 table 100"
        )
        answered = stage.host.run("ping", "-c", "3", "-i", "0.2", "-w", "30", "10.77.0.1", check=False)
        assert "3 received" in answered
        stage.guest.run("ip rule del from 10.77.0.1; ip address del 10.77.0.1/32 dev lo")

        stage.iperf(link, "5M")
        stage.iperf(link, "5M", down=True)
        assert clients.ping(link, HOST) == 3
        wait_until(lambda: records(radius, "fred", "Interim-Update"), 75.0, "an Interim", step=0.5)
        time.sleep(0.5)
        after = clients.traffic(link)
        clients.terminate("one")
        clients.wait_down("one")
        wait_until(lambda: records(radius, "fred", "Stop"), what="a Stop")
        assert "10.77.0.0/24" not in stage.server_side.ip("route")

    starts, stops = records(radius, "fred", "Start"), records(radius, "fred", "Stop")
    interims = records(radius, "fred", "Interim-Update")
    assert (len(starts), len(stops)) == (1, 1)
    assert len({str(record["Acct-Session-Id"]) for record in [*starts, *interims, *stops]}) == 1
    assert all(record["Class"] == f"0x{CLASS}" for record in [*starts, *interims, *stops])
    assert all(record["Framed-IP-Address"] == "10.1.5.5" for record in [*starts, *interims, *stops])
    stop = stops[0]
    assert stop["Acct-Terminate-Cause"] == "User-Request"
    counted = {
        "Acct-Input-Packets": after.out_packets - before.out_packets,
        "Acct-Input-Octets": after.out_octets - before.out_octets,
        "Acct-Output-Packets": after.in_packets - before.in_packets,
        "Acct-Output-Octets": after.in_octets - before.in_octets,
    }
    assert {name: number(stop, name) for name in counted} == counted
    for name in counted:
        assert number(interims[0], name) <= number(stop, name)
