"""A real client that FreeRADIUS rejects, in the walled garden: HTTP, DNS, and what must not leave (`make interop`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.lab.freeradius import FreeRadius
from tests.lab.interop import HOST, Stage, missing
from tests.lab.netns import wait_until
from tests.lab.pppd import LinkFailed, Peer
from tests.lab.server import CHECKOUT

pytestmark = [pytest.mark.live, pytest.mark.interop, pytest.mark.skipif(bool(missing()), reason=missing())]

PORTAL, WORLD = "198.51.100.80", "203.0.113.5"
USERS = """fred Cleartext-Password := "fredpw"

unpaid Auth-Type := Reject
\tCisco-AVPair = "garden=late"

"""
SETTINGS = {
    "primary_radius": "127.0.0.1",
    "primary_radius_port": 1812,
    "radius_secret": "shared-by-two",
    "radius_accounting": True,
}
# Answers every question for an address with 203.0.113.5 (RFC 1035 4.1).
DNS = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("203.0.113.5", 53))
while True:
    question, peer = sock.recvfrom(512)
    end = question.index(b"\\0", 12) + 5
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + socket.inet_aton("203.0.113.5")
    kind = question[end - 4:end - 2]
    found = kind == b"\\0\\1"
    head = question[:2] + b"\\x81\\x80\\0\\1" + (b"\\0\\1" if found else b"\\0\\0") + bytes(4)
    sock.sendto(head + question[12:end] + (answer if found else b""), peer)
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage(settings=SETTINGS) as built:
        script = built.lab.directory / "build-garden"
        shipped = (CHECKOUT / "etc/l2tpns/build-garden").read_text()
        script.write_text(shipped.replace("PORTAL=192.168.1.1", f"PORTAL={PORTAL}"))
        script.chmod(0o755)
        built.host.ip("address", "add", f"{PORTAL}/24", "dev", "lan")
        built.host.ip("address", "add", f"{WORLD}/32", "dev", "lo")
        built.server_side.route("203.0.113.0/24", HOST)
        for address, text in ((PORTAL, "the portal\n"), (WORLD, "the world\n")):
            pages = built.lab.directory / address
            pages.mkdir()
            (pages / "index.html").write_text(text)
            server = (sys.executable, "-m", "http.server", "80", "--bind", address, "--directory", str(pages))
            built.host.start(*server)
        built.host.start(sys.executable, "-c", DNS)
        listening = ("ss", "-Hltun", "sport = :80 or sport = :53")
        wait_until(lambda: len(built.host.run(*listening).splitlines()) == 3, 30.0, "HTTP and DNS")
        built.server.configure(built.settings, ['load plugin "garden"', f'set garden_script "{script}"'])
        built.server.start()
        yield built


@pytest.fixture(scope="module")
def radius(stage: Stage) -> Iterator[FreeRadius]:
    with stage.freeradius(USERS) as running:
        yield running


def starts(radius: FreeRadius, user: str) -> int:
    return len([record for record in radius.records("Start") if record.get("User-Name") == user])


def nsctl(stage: Stage, *words: str) -> str:
    return stage.server_side.run("env", f"PYTHONPATH={CHECKOUT}", sys.executable, "-m", "l2tpns.nsctl", *words)


@pytest.mark.parametrize("auth", ["pap", "chap"])
def test_a_rejected_client_has_the_portal_and_dns_until_it_is_let_out(
    stage: Stage, radius: FreeRadius, auth: str
) -> None:
    before = starts(radius, "fred")
    with stage.scene([Peer("one", "fred", "wrong", auth=auth)]) as clients:
        link = clients.dial("one")
        up = stage.wait_for("session_up", user="fred", address=str(link.address))
        for network in (f"{WORLD}/32", "198.51.100.0/24"):
            stage.guest.run(f"ip route replace {network} dev {link.device} src {link.address}")
        lan = stage.lab.capture(stage.host, "lan", stage.lab.directory / f"{auth}.pcap", f"src host {link.address}")
        assert stage.guest.run(f"wget -q -T 20 -O- http://{WORLD}/") == "the portal\n"
        assert "203.0.113.5" in stage.guest.run(f"busybox nslookup -type=a www.example.org {WORLD}")
        for target in (WORLD, PORTAL):
            assert " 0 received" in stage.guest.run(f"ping -n -q -c 2 -W 1 -I {link.address} {target}", check=False)
        seen = stage.host.run("tcpdump", "-n", "-r", str(lan.stop())).splitlines()
        places = {line.split(" > ")[1].split(":")[0] for line in seen if " > " in line}
        assert places == {f"{PORTAL}.80", f"{WORLD}.53"}
        assert starts(radius, "fred") == before
        assert "is out of the walled garden" in nsctl(stage, "ungarden", str(up["session"]))
        assert stage.guest.run(f"wget -q -T 20 -O- http://{WORLD}/") == "the world\n"
        assert clients.ping(link, WORLD) == 3
        wait_until(lambda: starts(radius, "fred") == before + 1, 30.0, "an accounting Start")
        assert clients.is_up("one")
        clients.terminate("one")
        clients.wait_down("one")


def test_a_reject_with_a_name_leads_into_that_garden(stage: Stage, radius: FreeRadius) -> None:
    with stage.scene([Peer("one", "unpaid", "any", auth="pap")]) as clients:
        link = clients.dial("one")
        assert stage.wait_for("garden_entered", user="unpaid")["garden"] == "late"
        saved = stage.server_side.run("ipset", "save", "garden_users_late")
        assert f"add garden_users_late {link.address}" in saved
        clients.terminate("one")
        clients.wait_down("one")


def test_without_the_module_a_wrong_password_is_told_and_the_session_gone(stage: Stage, radius: FreeRadius) -> None:
    nsctl(stage, "unload_plugin", "garden")
    try:
        with stage.scene([Peer("bad", "fred", "wrong", auth="pap")]) as clients:
            with pytest.raises(LinkFailed) as failed:
                clients.dial("bad")
            assert "rcvd [PAP AuthNak" in str(failed.value)
            stage.wait_for("auth_refused", user="fred")
            stage.wait_for("session_down", cause="auth_refused")
    finally:
        nsctl(stage, "load_plugin", "garden")
