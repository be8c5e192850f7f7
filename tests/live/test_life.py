"""What the server survives, and how it leaves when it cannot: each exit status, lost devices, signals in hard times."""

from __future__ import annotations

import configparser
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import gevent
import pytest

from tests.lab.lac import Lac, Subscriber
from tests.lab.netns import Lab, Namespace, is_root, run, three_hosts
from tests.lab.server import Server, ServerDied, Setting

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST = "192.0.2.1", "198.51.100.2"
UNIT = Path(__file__).resolve().parents[2] / "etc/systemd/l2tpns.service.in"
SECRETS = "fred * pw *\nmary * pw *\n"
DAEMON = (sys.executable, "-m", "l2tpns")


def unit(section: str, option: str) -> str:
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser.get(section, option)


def within(script: str) -> tuple[str, ...]:
    """The daemon as a command, after this script has changed the file systems that it sees, and nobody else does."""
    return ("sh", "-ec", f'{script}; exec "$@"', "sh", *DAEMON)


# How a start fails


@pytest.fixture
def machine() -> Iterator[Namespace]:
    with Lab() as lab:
        yield lab.namespace("server")


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def status_of(server: Server, why: str) -> int:
    """The exit status of a start that fails, and says why on standard error and, where it has one, in its log."""
    with pytest.raises(ServerDied, match=why):
        server.start()
    assert server.process is not None
    assert "Traceback" not in server.errors.read_text()
    assert [line["status"] for line in server.log("start_failed")] in ([server.process.returncode], [])
    return int(server.process.returncode)


def test_systemd_starts_again_after_all_but_an_error_of_the_file() -> None:
    assert unit("Service", "Restart") == "on-failure"
    assert unit("Service", "RestartPreventExitStatus") == "78"
    assert unit("Unit", "StartLimitIntervalSec") == "0"  # however often
    assert float(unit("Service", "WatchdogSec")) >= 30


def test_an_address_that_the_machine_does_not_have_yet_is_waited_for(machine: Namespace, tmp_path: Path) -> None:
    server = Server(machine, tmp_path, settings={"bind_multi_address": "192.0.2.50"}, secrets=SECRETS)
    assert status_of(server, "bind_multi_address: .*192.0.2.50") == 75
    machine.ip("address", "add", "192.0.2.50/32", "dev", "lo")
    with server:
        assert server.log("listening", address="192.0.2.50")


PORTS: list[tuple[dict[str, Setting], int, int]] = [
    ({}, socket.SOCK_STREAM, 23),
    ({}, socket.SOCK_DGRAM, 1701),
    ({}, socket.SOCK_DGRAM, 1702),
]


@pytest.mark.parametrize(("settings", "kind", "port"), PORTS, ids=lambda value: str(value))
def test_a_port_that_is_another_programs_is_waited_for(
    machine: Namespace, tmp_path: Path, undo: ExitStack, settings: dict[str, Setting], kind: int, port: int
) -> None:
    other = undo.enter_context(machine.socket(kind=kind))
    other.bind(("127.0.0.1", port) if port != 1701 else ("0.0.0.0", port))
    if kind == socket.SOCK_STREAM:
        other.listen()
    server = Server(machine, tmp_path, settings=settings, secrets=SECRETS)
    assert status_of(server, "Address already in use") == 75
    other.close()
    server.start()
    assert server.stop() == 0


FULL = "mkdir -p {0}; mount -t tmpfs -o size=16k,nr_inodes=3 tmpfs {0}; touch {0}/a {0}/b 2>/dev/null || true"
READ_ONLY = "mkdir -p {0}; mount -t tmpfs -o ro tmpfs {0}"


@pytest.mark.parametrize(("disk", "why"), [(FULL, "No space left"), (READ_ONLY, "Read-only file system")])
@pytest.mark.parametrize("what", ["log_file", "audit_file", "pid_file", "spool_dir"])
def test_a_disk_that_takes_nothing_is_waited_for(
    machine: Namespace, tmp_path: Path, disk: str, why: str, what: str
) -> None:
    directory = tmp_path / "disk"
    settings: dict[str, Setting] = {what: str(directory / "it"), "radius_accounting": True}
    server = Server(machine, tmp_path, settings=settings, secrets=SECRETS, command=within(disk.format(directory)))
    assert status_of(server, f"{what}.*{why}") == 75


def test_a_disk_for_the_state_that_takes_nothing_costs_the_state_and_not_the_service(
    machine: Namespace, tmp_path: Path
) -> None:
    directory = tmp_path / "disk"
    settings: dict[str, Setting] = {"state_dir": str(directory / "state"), "save_state": True}
    command = within(READ_ONLY.format(directory))
    with Server(machine, tmp_path, settings=settings, secrets=SECRETS, command=command) as server:
        assert "Read-only" in server.log("state_not_kept")[0]["why"]
        server.signal(signal.SIGTERM)
        assert server.running().wait(60) == 0
    assert server.tracebacks() == ""


def test_a_tun_device_of_another_program_is_waited_for(machine: Namespace, tmp_path: Path) -> None:
    machine.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    assert status_of(Server(machine, tmp_path, secrets=SECRETS), "tun0 exists already") == 75


def test_a_machine_without_tun_devices_is_to_be_repaired(machine: Namespace, tmp_path: Path) -> None:
    command = within("mount -t tmpfs tmpfs /dev/net")
    assert status_of(Server(machine, tmp_path, secrets=SECRETS, command=command), "/dev/net/tun is missing") == 71


@pytest.mark.parametrize("limit", [8, 10, 12])
def test_a_process_that_may_open_few_files_says_so(machine: Namespace, tmp_path: Path, limit: int) -> None:
    command = ("prlimit", f"--nofile={limit}:{limit}", *DAEMON)
    server = Server(machine, tmp_path, secrets=SECRETS, command=command)
    assert status_of(server, "Too many open files") in (71, 75)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"tundevicename": "a-name-of-an-interface-that-is-too-long"}, "tundevicename"),
        ({"log_file": "/dev"}, "log_file.*Is a directory"),
        ({"no_such_variable": "1"}, "no_such_variable"),
    ],
)
def test_what_only_an_edit_of_the_file_mends_is_not_tried_again(
    machine: Namespace, tmp_path: Path, settings: dict[str, Setting], why: str
) -> None:
    assert status_of(Server(machine, tmp_path, settings=settings, secrets=SECRETS), why) == 78


@pytest.mark.parametrize(("settings", "status"), [({"bind_multi_address": "192.0.2.50"}, 75), ({"debug": 99}, 78)])
def test_a_detached_start_passes_the_status_on(
    machine: Namespace, tmp_path: Path, settings: dict[str, Setting], status: int
) -> None:
    server = Server(machine, tmp_path, settings={"log_file": str(tmp_path / "log"), **settings}, secrets=SECRETS)
    argv = server.argv("-d", "-c", str(server.config))
    done = subprocess.run(argv, env=server.environment(), capture_output=True, timeout=60, check=False)
    assert done.returncode == status


# A server that runs


class Stage:
    """A LAC, the server and a host beyond it; fred is online."""

    def __init__(self, lab: Lab) -> None:
        self.lac_space, self.space, _ = three_hosts(lab)
        self.directory = lab.directory / "lns"
        self.lac: Lac | None = None

    def start(self, *, command: Sequence[str] = DAEMON, lines: Sequence[str] = (), **settings: Setting) -> Server:
        given: dict[str, Setting] = {"debug": 3, "hello_interval": 0, "radius_accounting": False, **settings}
        self.server = Server(self.space, self.directory, settings=given, lines=lines, secrets=SECRETS, command=command)
        wait(self.server.start)
        self.lac = Lac(("0.0.0.0", 0), (LNS, 1701), sock=self.lac_space.socket()).connect()
        return self.server

    def call(self, name: str = "fred") -> Subscriber:
        assert self.lac is not None
        return self.lac.call(name, "pw", auth="pap").wait_online()


def wait(blocks, *arguments):  # type: ignore[no-untyped-def]
    """What blocks without gevent, while our LAC goes on."""
    return gevent.get_hub().threadpool.apply(blocks, arguments)


@pytest.fixture
def stage(lab: Lab) -> Iterator[Stage]:
    stage = Stage(lab)
    yield stage
    if stage.lac is not None:
        stage.lac.close()
    stage.server.kill()


def pings(subscriber: Subscriber) -> bool:
    with suppress(Exception):
        return subscriber.ping(HOST, timeout=1) > 0
    return False


def until(condition, timeout=30.0):  # type: ignore[no-untyped-def]
    with gevent.Timeout(timeout):
        while not condition():
            gevent.sleep(0.05)


def test_a_tun_device_that_is_deleted_is_made_again_and_sessions_do_not_notice(stage: Stage) -> None:
    server = stage.start(throttle_speed=640, save_state=True)
    fred = stage.call()
    assert pings(fred)
    session = server.wait_for("session_up", user="fred")["session"]
    console = stage.space.socket(kind=socket.SOCK_STREAM)
    console.connect(("127.0.0.1", 23))
    console.sendall(b"enable\r\nthrottle fred 640\r\n")
    wait(server.wait_for, "throttled")
    routes = stage.space.ip("route", "show", "dev", "tun0")
    classes = stage.space.run("tc", "class", "show", "dev", "tun0")
    assert "rate 640Kbit" in classes
    for times in (1, 2):
        stage.space.ip("link", "delete", "tun0")
        wait(server.wait_for, "tun_made_again", 30.0, times)
        assert pings(fred)
    assert stage.space.ip("route", "show", "dev", "tun0") == routes
    assert stage.space.run("tc", "class", "show", "dev", "tun0") == classes
    assert fred.ended is None and not server.log("session_down")
    assert pings(stage.call("mary"))
    assert session == server.log("session_up", user="fred")[0]["session"]
    console.close()
    assert wait(server.stop) == 0 and server.tracebacks() == ""
    assert "tun0" not in stage.space.ip("link", "show")


def test_one_that_cannot_be_made_again_ends_the_process_and_the_sessions_come_back_with_the_next(stage: Stage) -> None:
    server = stage.start(save_state=True)
    fred = stage.call()
    gone = ("nsenter", "-t", str(server.pid), "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/net")
    subprocess.run(gone, check=True)
    stage.space.ip("link", "delete", "tun0")
    process = server.running()
    assert wait(process.wait, 60) == 75
    assert [line["status"] for line in server.log("server_failed")] == [75]
    assert server.log("tun_not_made") and server.log("leaving")[0]["state_saved"] is True
    assert fred.ended is None  # not a word to anybody
    wait(server.start)
    assert server.wait_for("state_resumed")["sessions"] == 1
    until(lambda: pings(fred))
    assert "tun0 was deleted" in server.log("server_failed")[0]["why"] and server.tracebacks() == ""


def test_without_saved_state_everybody_is_told_before_it_ends(stage: Stage) -> None:
    server = stage.start()
    fred = stage.call()
    subprocess.run(("nsenter", "-t", str(server.pid), "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/net"), check=True)
    stage.space.ip("link", "delete", "tun0")
    assert wait(server.running().wait, 60) == 75
    assert fred.ended is not None


# No descriptor is free


def starve(server: Server, space: Namespace) -> list[socket.socket]:
    """Take all descriptors from the server, by its own console; the connections that hold them."""
    fds = [int(name) for name in os.listdir(f"/proc/{server.pid}/fd")]
    limit = max(fds) + 4
    found = os.stat(f"/proc/{server.pid}")
    # As its user: root without CAP_SYS_RESOURCE may not set limits of others.
    who = (f"--reuid={found.st_uid}", f"--regid={found.st_gid}", "--clear-groups")
    run("setpriv", *who, "prlimit", f"--nofile={limit}:{limit}", "--pid", str(server.pid))
    held = []
    for _ in range(limit - len(fds) + 4):
        connection = space.socket(kind=socket.SOCK_STREAM)
        connection.connect(("127.0.0.1", 23))
        held.append(connection)
    server.wait_for("accept_failed")
    return held


def test_signals_are_obeyed_and_the_end_is_in_order_when_no_descriptor_is_free(stage: Stage) -> None:
    # more consoles than there are descriptors
    server = stage.start(save_state=True, cli_max_connections=1000, metrics_bind_address="127.0.0.1")
    fred = stage.call()
    held = wait(starve, server, stage.space)
    for times in (1, 2):
        server.signal(signal.SIGUSR1)
        status = wait(server.wait_for, "status", 30.0, times)
        assert status["sessions"] == 1 and status["descriptors"] > 3 and status["rss_kib"] > 0
        server.signal(signal.SIGHUP)
        assert wait(server.wait_for, "reloaded", 30.0, times)["changed"] == []
    assert pings(fred)
    assert wait(server.stop, signal.SIGTERM) == 0
    assert server.log("leaving")[0]["state_saved"] is True
    assert server.log("stopped") and not server.log("stop_step_failed")
    assert server.tracebacks() == "" and not [line for line in server.log() if "traceback" in line]
    for connection in held:
        connection.close()
    wait(server.start)
    assert server.wait_for("state_resumed")["sessions"] == 1


def test_everybody_is_told_goodbye_when_no_descriptor_is_free(stage: Stage) -> None:
    server = stage.start(cli_max_connections=1000)
    fred = stage.call()
    wait(starve, server, stage.space)
    assert wait(server.stop, signal.SIGQUIT) == 0
    until(lambda: fred.ended is not None)
    assert server.log("stopped") and not server.log("stop_step_failed") and server.tracebacks() == ""


def test_a_file_system_that_has_become_read_only_ends_no_signal_in_a_traceback(stage: Stage) -> None:
    disk = stage.directory.parent / "disk"
    mount = f"mkdir -p {disk}; mount -t tmpfs tmpfs {disk}"
    server = stage.start(
        command=within(mount),
        save_state=True,
        spool_dir=f"{disk}/spool",
        state_dir=f"{disk}/state",
        pid_file=f"{disk}/pid",
        radius_accounting=True,
    )
    fred = stage.call()
    inside = ("nsenter", "-t", str(server.pid), "-m", "sh", "-ec")
    # A remount would not do while files are open for writing; another one over it is as good.
    subprocess.run((*inside, f"mount --bind {disk} {disk}; mount -o remount,bind,ro {disk}"), check=True)
    for signum, event in ((signal.SIGHUP, "reloaded"), (signal.SIGUSR1, "status")):
        server.signal(signum)
        wait(server.wait_for, event)
    assert wait(server.stop, signal.SIGTERM) == 0
    assert server.tracebacks() == "" and not [line for line in server.log() if "traceback" in line]
    assert server.log("stopped")
    until(lambda: fred.ended is not None or server.log("leaving")[0]["state_saved"])


# A part dies


def test_a_plugin_that_ends_greenlets_costs_no_lac_its_reader(stage: Stage) -> None:
    plugins = stage.directory.parent / "plugins"
    plugins.mkdir(mode=0o755)
    (plugins / "bad.py").write_text(
        "import gevent\n"
        "def plugin_packet_tx(event): raise gevent.GreenletExit\n"
        "def plugin_init(server):\n"
        "    gevent.spawn(exit, 3)\n"
        "    server.spawn(exit, 3)\n"
    )
    server = stage.start(plugin_dir=str(plugins))
    console = stage.space.socket(kind=socket.SOCK_STREAM)
    console.connect(("127.0.0.1", 23))
    console.sendall(b"enable\r\nload plugin bad\r\n")
    wait(server.wait_for, "plugin_loaded")
    fred = stage.call()
    assert pings(fred)
    Lac(("0.0.0.0", 0), (LNS, 1701), "other", sock=stage.lac_space.socket()).connect().close()
    failed = {line["hook"] for line in server.log("plugin_failed")}
    assert failed == {"plugin_packet_tx", "plugin_spawn exit"} or failed == {"plugin_packet_tx", "plugin_spawn spawn"}
    assert "SystemExit: 3" in server.log("greenlet_failed")[0]["why"]
    assert server.errors.read_text() == ""
    console.close()
    assert wait(server.stop) == 0


PARTS = {
    "fast path",
    "LAC reader",
    "LAC sockets",
    "accounting spool",
    "bandwidth meter",
    "console",
    "figures",
    "garden watcher",
    "journal",
    "keeper",
    "loop meter",
    "nsctl reader",
    "plugin timer",
    "throttle watcher",
    "timer wheel",
    "tun reader",
    "tun watcher",
    "usage files",
}


def test_every_loop_of_the_server_is_a_part_that_is_watched(stage: Stage) -> None:
    plugins = stage.directory.parent / "plugins"
    plugins.mkdir(mode=0o755)
    (plugins / "ticks.py").write_text("def plugin_timer(event): pass\n")
    server = stage.start(
        plugin_dir=str(plugins),
        lines=['load plugin "ticks"'],
        throttle_speed=64,
        radius_accounting=True,
        metrics_bind_address="127.0.0.1",
    )
    asking = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9701/metrics').read().decode())"
    metrics = wait(stage.space.run, sys.executable, "-c", asking)
    assert dict(re.findall(r'^l2tpns_part_up\{part="(.*)"\} (.*)$', metrics, re.M)) == dict.fromkeys(PARTS, "1.0")
    assert wait(server.stop) == 0 and server.tracebacks() == ""


def test_the_watchdog_is_told_that_we_live(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    server = stage.start()
    notify = stage.directory / "notify"
    notify.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(notify))
        notify.chmod(0o777)
        listener.settimeout(30)
        for _ in range(3):
            assert wait(listener.recv, 100) == b"WATCHDOG=1"
        os.kill(server.pid, signal.SIGSTOP)  # as a plugin that loops for ever
        listener.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                listener.recv(100)
        gevent.sleep(1)  # five times as long as systemd would wait
        with pytest.raises(BlockingIOError):
            listener.recv(100)
        os.kill(server.pid, signal.SIGCONT)
        listener.settimeout(30)
        assert wait(listener.recv, 100) == b"WATCHDOG=1"


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_during_the_start_is_obeyed_afterwards(stage: Stage, signum: signal.Signals) -> None:
    plugins = stage.directory.parent / "plugins"
    plugins.mkdir(mode=0o755)
    (plugins / "slow.py").write_text(f"import os\ndef plugin_init(server):\n    os.kill(os.getpid(), {int(signum)})\n")
    stage.server = server = Server(
        stage.space,
        stage.directory,
        settings={"debug": 3, "plugin_dir": str(plugins)},
        lines=['load plugin "slow"'],
        secrets=SECRETS,
    )
    wait(server.start)
    if signum == signal.SIGTERM:
        assert wait(server.running().wait, 60) == 0
        assert server.log("stopped")
    else:
        wait(server.wait_for, "reloaded" if signum == signal.SIGHUP else "status")
        assert wait(server.stop) == 0
