"""Dynamic authorization by FreeRADIUS's radclient, of an installed daemon's sessions (root, own namespaces)."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator

import gevent
import pytest

from tests.lab.lac import Lac, Subscriber
from tests.lab.netns import Lab, is_root, three_hosts
from tests.lab.radius_server import RadiusServer, User
from tests.lab.server import Server
from tests.lab.storm import numbered_users

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not is_root(), reason="needs root for namespaces"),
    pytest.mark.skipif(shutil.which("radclient") is None, reason="the package freeradius-utils is not installed"),
]

LNS, HOST = "192.0.2.1", "198.51.100.2"
SECRET = "coa secret"
RULES = "ip access-list extended web\n permit icmp any any"


class Stage:
    """The daemon with its RADIUS server and a LAC. The host beyond is the client of dynamic authorization."""

    def __init__(self, lab: Lab) -> None:
        lac_space, self.space, self.host = three_hosts(lab)
        self.host.route("192.0.2.0/24", "198.51.100.1")  # the answer must come from the address that was asked
        with self.space.entered():
            self.radius = RadiusServer(users={user: User(password) for user, password in map(numbered_users, range(3))})
            self.radius.start()
        settings = {
            "primary_radius": "127.0.0.1",
            "primary_radius_port": self.radius.port,
            "radius_secret": "testing123",
            "radius_accounting": True,
            "save_state": True,
            "radius_dae_clients": f"{HOST} {SECRET}",
        }
        self.server = Server(self.space, lab.directory / "lns", settings=settings, lines=[RULES])
        gevent.get_hub().threadpool.apply(self.server.start)
        self.lac = Lac(("0.0.0.0", 0), (LNS, 1701), sock=lac_space.socket()).connect()
        self.subscribers = [self.call(number) for number in range(3)]

    def call(self, number: int) -> Subscriber:
        user, password = numbered_users(number)
        return self.lac.call(user, password, auth="pap").wait_online()

    def ask(self, kind: str, *attributes: str, secret: str = SECRET) -> tuple[int, str]:
        """Return radclient's exit status, 0 only after an ACK, and what it has printed."""
        command = self.host.command("radclient", "-x", "-r", "1", "-t", "3", f"{LNS}:3799", kind, secret)
        done = gevent.get_hub().threadpool.apply(
            lambda: subprocess.run(command, input=", ".join(attributes), capture_output=True, text=True, timeout=60)
        )
        return done.returncode, done.stdout + done.stderr

    def acct(self, number: int) -> str:
        (start,) = [record for record in self.radius.accounting(1) if record.one(1) == numbered_users(number)[0]]
        return f'Acct-Session-Id = "{(start.one(44) or b"").decode()}"'

    def stops(self) -> list[tuple[bytes, int | None]]:
        return [(record.one(1) or b"", record.number(49)) for record in self.radius.accounting(2)]

    def restart(self) -> None:
        """kill -9, and start: in a thread, for the RADIUS server is one of ours."""

        def again() -> None:
            self.server.kill()
            self.server.start()

        gevent.get_hub().threadpool.apply(again)

    def close(self) -> None:
        self.lac.close()
        assert gevent.get_hub().threadpool.apply(self.server.stop) == 0
        self.radius.stop()
        assert self.server.tracebacks() == ""


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        stage = Stage(lab)
        yield stage
        stage.close()


@pytest.mark.statement(257, 258, 263, 266)
def test_radclient_changes_and_ends_sessions(stage: Stage) -> None:
    stage.lac.wait(lambda: len(stage.radius.accounting(1)) == 3, what="three Starts")
    stamp = f"Event-Timestamp = {time.time():.0f}, Message-Authenticator = 0x00"
    first, second = stage.acct(0), stage.acct(1)

    # Rates and a filter, seen in the kernel and at the subscriber.
    status, said = stage.ask("coa", first, 'Mikrotik-Rate-Limit = "500k/1M"', 'Filter-Id = "web.in"', stamp)
    assert status == 0 and "Received CoA-ACK" in said, said
    assert "rate 1Mbit" in stage.space.run("tc", "class", "show", "dev", "tun0")
    status, said = stage.ask("coa", first, 'Cisco-AVPair = "throttle=2000"', stamp)
    assert status == 0 and "rate 2Mbit" in stage.space.run("tc", "class", "show", "dev", "tun0")
    assert stage.subscribers[0].ping(HOST) is not None

    # Two sessions at once, by the name of the server.
    status, said = stage.ask("coa", f"NAS-IP-Address = {LNS}", second, "Idle-Timeout = 900", stamp)
    assert status == 0, said

    # What cannot be: radclient shows the cause, by its name.
    for attributes, cause in (
        (("Idle-Timeout = 5",), "Missing-Attribute"),
        ((first, "NAS-IP-Address = 192.0.2.77", "Idle-Timeout = 5"), "NAS-Identification-Mismatch"),
        ((first, 'Filter-Id = "nothing.in"'), "Invalid-Attribute-Value"),
        ((first, 'Framed-Pool = "other"'), "Unsupported-Attribute"),
        (('User-Name = "nobody"', "Idle-Timeout = 5"), "Session-Context-Not-Found"),
        ((first, "Service-Type = Authorize-Only", "State = 0x01"), "Unsupported-Service"),
        ((first, 'Cisco-AVPair = "intercept=yes"'), "Administratively-Prohibited"),
    ):
        status, said = stage.ask("coa", *attributes, stamp)
        assert status == 1 and "Received CoA-NAK" in said and f"Error-Cause = {cause}" in said, said
    status, said = stage.ask("disconnect", first, secret="wrong")
    assert status == 1 and "No reply" in said

    # What was changed outlives a kill -9; a Disconnect reaches restored sessions too.
    stage.restart()
    console = stage.space.run("tc", "class", "show", "dev", "tun0")
    assert re.search(r"rate 2Mbit", console)
    status, said = stage.ask("disconnect", 'User-Name = "user000000"', stamp)
    assert status == 0 and "Received Disconnect-ACK" in said, said
    assert stage.subscribers[0].wait_ended().result == 3
    status, said = stage.ask("disconnect", first)
    assert status == 1 and "Session-Context-Not-Found" in said
    stage.lac.wait(lambda: stage.stops() == [(b"user000000", 6)], what="one Stop")
    assert stage.subscribers[1].ping(HOST) is not None and stage.subscribers[2].ping(HOST) is not None
    kinds = [line["result"] for line in stage.server.log("dae_request")]
    assert kinds.count("ack") == 4 and len(kinds) == 12
