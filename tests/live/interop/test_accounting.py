"""Debian's pppd and FreeRADIUS with the daemon between them: what one counts is what the other writes down.

IP packets with their headers, without PPP's. pppd's "Sent ... bytes" is that too: it takes the interface's figures when
IPCP opens and when it ends, and so leaves out IPCP, CCP and IPV6CP, which the kernel counts on the interface (LCP and
authentication never pass it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab import PATIENCE, freeradius
from tests.lab.freeradius import FreeRadius
from tests.lab.interop import HOST, Stage, missing
from tests.lab.netns import wait_until
from tests.lab.pppd import Peer
from tests.lab.radius_stage import SETTINGS, counted

pytestmark = [
    pytest.mark.live,
    pytest.mark.interop,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not freeradius.installed(), reason="the package freeradius is not installed"),
]

USERS = 'fred Cleartext-Password := "fredpw"\n\tFramed-IP-Address = 10.9.9.9,\n\tClass = "gold"\n'


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage(settings=SETTINGS) as stage:
        stage.server.start()
        yield stage


@pytest.mark.statement(142, 147, 149)
@pytest.mark.parametrize("auth", ["pap", "chap", "mschap", "mschapv2"])
@pytest.mark.parametrize("kernel", [False, True], ids=["pty", "kernel"])
def test_the_stop_tells_what_pppd_counted(stage: Stage, auth: str, kernel: bool) -> None:
    users = FreeRadius(USERS, host=HOST, port=1812, prefix=tuple(stage.host.command()))
    with users as radius, stage.scene([Peer("one", "fred", "fredpw", auth=auth)], kernel=kernel) as clients:
        link = clients.dial("one")
        assert str(link.address) == "10.9.9.9"
        before = clients.traffic(link)
        for size in (0, 56, 1400, 3000):
            # One at a time, so that no queue fills: what is lost on its way down was sent, and is accounted for.
            one = f"ping -n -q -c 1 -W 20 -s {size} -I {link.address} {HOST}"
            stage.guest.run(f"for number in $(seq 20); do {one} || exit 1; done", timeout=10 * PATIENCE)
        after = clients.traffic(link)
        clients.terminate("one")
        clients.wait_down("one")
        wait_until(lambda: radius.records("Stop"), what="a Stop")
        records = [record for record in radius.records() if record.get("User-Name") == "fred"]
        assert [record["Acct-Status-Type"] for record in records] == ["Start", "Stop"]
        stop = records[1]
        assert counted(stop) == (
            after.out_octets - before.out_octets,
            after.out_packets - before.out_packets,
            after.in_octets - before.in_octets,
            after.in_packets - before.in_packets,
        )
        assert (stop["Acct-Terminate-Cause"], stop["Class"]) == ("User-Request", "0x676f6c64")
        totals = re.findall(r"Sent (\d+) bytes, received (\d+) bytes", clients.log("one"))
        assert totals == [(stop["Acct-Input-Octets"], stop["Acct-Output-Octets"])]
