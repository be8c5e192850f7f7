"""Variables set at the console of the daemon as a process, and what each of them moves (root, own namespaces)."""

from __future__ import annotations

import time
from ipaddress import IPv4Address
from typing import Any

import gevent
import gevent.socket
import pytest

from tests.lab.lac import Lac, Refused, Subscriber
from tests.lab.netns import Lab, Namespace, is_root, three_hosts
from tests.lab.radius_server import RadiusServer, Request, User
from tests.lab.server import Server, Setting

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS = "192.0.2.1"
SECRET = "testing123"
NAS_IP_ADDRESS, START = 4, 1
PATIENCE = 20.0


class Console:
    """An operator on a plain socket."""

    def __init__(self, space: Namespace, address: str = "127.0.0.1") -> None:
        with space.entered():
            self.socket = gevent.socket.socket()
        self.socket.settimeout(PATIENCE)
        self.socket.connect((address, 23))
        self.heard = b""
        self.until(b"> ")
        self.do("enable")

    def until(self, sign: bytes) -> str:
        while not self.heard.endswith(sign):
            octets = self.socket.recv(65536)
            assert octets, self.heard
            self.heard += octets
        said, self.heard = self.heard, b""
        return said.decode(errors="replace").replace("\r\n", "\n")

    def do(self, line: str) -> str:
        self.socket.sendall(line.encode() + b"\n")
        return self.until(b"# ")

    def set(self, **variables: Setting) -> None:
        for name, value in variables.items():
            assert f'Setting "{name}" to' in self.do(f"set {name} {value}")

    def close(self) -> None:
        self.socket.close()


class Stage:
    """The daemon, two RADIUS servers beside it, a LAC, a console."""

    def __init__(self, lab: Lab) -> None:
        self.lac_space, self.space, _ = three_hosts(lab)
        users = {b"fred": User(b"pw"), b"mary": User(b"pw")}
        with self.space.entered():
            self.first, self.second = (RadiusServer(SECRET.encode(), users).start() for _ in range(2))
        self.settings: dict[str, Setting] = {
            "primary_radius": "127.0.0.1",
            "primary_radius_port": self.first.port,
            "radius_secret": SECRET,
            "radius_timeout": 1,
            "hello_interval": 0,
        }
        self.server = Server(self.space, lab.directory / "lns", settings=self.settings)
        self.lacs: list[Lac] = []
        self.consoles: list[Console] = []

    def start(self, **settings: Setting) -> Console:
        """With these besides the usual ones."""
        self.server.configure({**self.settings, **settings})
        self.server.start()
        self.lacs.append(Lac(("0.0.0.0", 0), (LNS, 1701), sock=self.lac_space.socket()).connect())
        return self.console(str(settings.get("cli_bind_address", "127.0.0.1")))

    def console(self, address: str) -> Console:
        self.consoles.append(Console(self.space, address))
        return self.consoles[-1]

    def log_in(self, name: str = "fred") -> Subscriber:
        return self.lacs[-1].call(name, "pw", auth="pap").wait_online(PATIENCE)

    def asked(self, server: RadiusServer) -> list[Request]:
        """Logins that this server was asked about."""
        return [request for request in server.requests if request.code == 1]

    def close(self) -> None:
        for console in self.consoles:
            console.close()
        for lac in self.lacs:
            lac.close()
        if self.server.process is not None and self.server.process.poll() is None:
            gevent.get_hub().threadpool.apply(self.server.stop, (), {"timeout": 60})  # RADIUS has to answer meanwhile
        self.first.stop()
        self.second.stop()
        assert self.server.tracebacks() == ""


def wait(condition: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        gevent.sleep(0.02)


@pytest.mark.shows("set debug")
def test_debug_decides_at_once_what_is_logged(stage: Stage) -> None:
    console = stage.start()
    console.set(debug=2)
    stage.log_in("fred")
    console.set(debug=3)
    stage.log_in("mary")
    assert stage.server.wait_for("session_up", user="mary")["level"] == "info"
    assert stage.server.log("session_up", user="fred") == []


@pytest.mark.shows("set log_file")
def test_log_file_moves_the_log_at_once(stage: Stage) -> None:
    console = stage.start()
    elsewhere = stage.server.directory / "elsewhere"
    console.set(log_file=f"file:{elsewhere}")
    stage.log_in()
    wait(lambda: elsewhere.exists() and '"session_up"' in elsewhere.read_text())
    assert stage.server.log("session_up") == []
    console.set(log_file='""')  # standard output again
    stage.log_in("mary")
    stage.server.wait_for("session_up", user="mary")


@pytest.mark.shows("set dump_speed", "uptime")
def test_dump_speed_logs_the_bandwidth_each_second(stage: Stage) -> None:
    console = stage.start()
    assert stage.server.log("bandwidth") == []
    console.set(dump_speed="yes")
    line = stage.server.wait_for("bandwidth", count=2)["line"]
    words = [word.partition(":")[0] for word in line.split()]
    assert words == ["Bandwidth", "UDP-ETH", "ETH-UDP", "TOTAL", "IN", "OUT"]
    assert words[1] in console.do("uptime")
    console.set(dump_speed="no")

    def quiet() -> bool:
        count = len(stage.server.log("bandwidth"))
        gevent.sleep(1.5)
        return len(stage.server.log("bandwidth")) == count

    wait(quiet)  # what was under way is written, and no more


@pytest.mark.shows("set primary_radius", "set primary_radius_port", "set secondary_radius", "set secondary_radius_port")
def test_the_radius_servers_are_those_that_are_set_at_once_and_in_order(stage: Stage) -> None:
    console = stage.start()
    stage.log_in()
    assert (len(stage.asked(stage.first)), len(stage.asked(stage.second))) == (1, 0)
    console.set(primary_radius_port=stage.second.port)
    stage.log_in("mary")
    assert (len(stage.asked(stage.first)), len(stage.asked(stage.second))) == (1, 1)
    console.set(primary_radius="127.0.0.2")  # where nobody is
    console.set(secondary_radius="127.0.0.1", secondary_radius_port=stage.first.port)
    stage.log_in("fred")
    assert (len(stage.asked(stage.first)), len(stage.asked(stage.second))) == (2, 1)
    console.set(primary_radius="0.0.0.0", secondary_radius="127.0.0.1")
    assert "RADIUS" not in console.do("set secondary_radius_port 1812")


@pytest.mark.shows("set radius_secret")
@pytest.mark.shows("set radius_retries")
def test_with_another_secret_than_the_server_s_nobody_gets_in(stage: Stage) -> None:
    console = stage.start()
    console.set(radius_secret="another", radius_retries=1)
    with pytest.raises(Refused):
        stage.log_in()
    console.set(radius_secret=SECRET)
    stage.log_in()
    assert stage.asked(stage.first)[0].password != b"pw"
    assert stage.asked(stage.first)[-1].password == b"pw"


@pytest.mark.shows("set radius_accounting")
def test_radius_accounting_is_for_those_who_come_after_it_was_set(stage: Stage) -> None:
    console = stage.start()
    stage.log_in("fred")
    console.set(radius_accounting="yes")
    stage.log_in("mary")
    wait(lambda: stage.first.accounting(START))
    assert [record.one(1) for record in stage.first.accounting(START)] == [b"mary"]


@pytest.mark.shows("set radius_bind_min", "set radius_bind_max")
def test_radius_is_asked_from_the_ports_that_are_set(stage: Stage) -> None:
    stage.start(radius_bind_min=20000, radius_bind_max=20001)
    stage.log_in("fred")
    stage.log_in("mary")
    assert {request.peer[1] for request in stage.asked(stage.first)} <= {20000, 20001}


@pytest.mark.shows("set bind_address", "set peer_address", "set iftun_address")
def test_our_addresses_follow_from_bind_address_until_they_are_set(stage: Stage) -> None:
    console = stage.start(bind_address=LNS)
    assert stage.log_in("fred").peer_address == IPv4Address(LNS)
    assert stage.asked(stage.first)[0].one(NAS_IP_ADDRESS) == IPv4Address(LNS).packed
    assert stage.space.addresses("tun0") == [f"{LNS}/32"]
    console.set(peer_address="10.9.9.9")
    assert stage.log_in("mary").peer_address == IPv4Address("10.9.9.9")


@pytest.mark.shows("set cli_bind_address")
def test_the_console_listens_on_the_address_that_is_set(stage: Stage) -> None:
    console = stage.start(cli_bind_address=LNS)
    assert "L2TPNS" in console.do("show version")
    with pytest.raises(ConnectionRefusedError):
        stage.console("127.0.0.1")


@pytest.mark.shows("set radius_timeout")
def test_radius_timeout_is_the_time_until_a_request_is_sent_again(stage: Stage) -> None:
    console = stage.start()
    console.set(radius_timeout=3)
    stage.first.lose(1)
    begun = time.monotonic()
    stage.log_in()
    assert len(stage.asked(stage.first)) == 2
    assert time.monotonic() - begun > 2.5  # give or take the jitter


@pytest.mark.shows("set spool_dir", "set state_dir")
def test_spool_and_saved_state_are_where_the_variables_say(stage: Stage) -> None:
    spool, state = (stage.server.directory / name for name in ("my spool", "my state"))
    stage.start(spool_dir=str(spool), state_dir=str(state), save_state="yes", radius_accounting="yes")
    stage.log_in()
    wait(lambda: any(state.glob("*.state")) and any(path.stat().st_size for path in spool.rglob("*") if path.is_file()))


@pytest.mark.shows("set shutdown_timeout")
def test_shutdown_timeout_is_how_long_leaving_waits_for_a_lac_that_says_nothing(stage: Stage) -> None:
    stage.start(shutdown_timeout=6)
    stage.log_in()
    stage.lacs[0].vanish()
    begun = time.monotonic()
    stage.server.stop(timeout=60)
    assert time.monotonic() - begun > 2.5  # half of it for the LACs, half for RADIUS
