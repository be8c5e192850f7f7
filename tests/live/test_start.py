"""The daemon's first moments as a process: what it refuses, and what it warns of."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lac import Lac
from tests.lab.netns import Lab, Namespace, is_root, wait_until
from tests.lab.portthief import PortThief
from tests.lab.server import CHECKOUT, Server, ServerDied

pytestmark = pytest.mark.live
SCCRQ = bytes.fromhex("c802 0014 0000 0000 0000 0000 8008 0000 0000 0001")
UNIT = CHECKOUT / "etc/systemd/l2tpns.service.in"


@pytest.fixture
def machine() -> Iterator[Namespace]:
    if not is_root():
        pytest.skip("needs root for namespaces")
    with Lab() as lab:
        yield lab.namespace("server")


@pytest.mark.parametrize("forwards", [False, True])
def test_the_operator_is_warned_when_the_kernel_does_not_forward(
    machine: Namespace, tmp_path: Path, forwards: bool
) -> None:
    machine.run("sysctl", "-qw", f"net.ipv4.ip_forward={int(forwards)}")
    with Server(machine, tmp_path, secrets="") as server:
        warnings = server.log("ip_forward_off")
        assert [warning["level"] for warning in warnings] == ([] if forwards else ["warning"])
    assert all("/proc/sys/net/ipv4/ip_forward" in warning["why"] for warning in warnings)


def limit_on_files(pid: int) -> tuple[int, int]:
    """Return the soft and the hard limit; prlimit(2) would need CAP_SYS_RESOURCE for another user's process."""
    found = re.search(
        r"^Max open files +(\d+|unlimited) +(\d+|unlimited)", Path(f"/proc/{pid}/limits").read_text(), re.M
    )
    assert found is not None
    soft, hard = (resource.RLIM_INFINITY if word == "unlimited" else int(word) for word in found.groups())
    return soft, hard


def test_the_small_limit_of_a_shell_on_open_files_is_raised(machine: Namespace, tmp_path: Path) -> None:
    command = ("sh", "-c", 'ulimit -S -n 256 && exec "$@"', "sh", sys.executable, "-m", "l2tpns")
    with Server(machine, tmp_path, secrets="", command=command) as server:
        soft, hard = limit_on_files(server.pid)
        assert soft == (65536 if hard == resource.RLIM_INFINITY else min(hard, 65536))


def test_a_refused_configuration_is_an_exit_status_after_which_systemd_does_not_start_again(tmp_path: Path) -> None:
    server = Server(None, tmp_path, lines=["set no_such_variable 1"])
    with pytest.raises(ServerDied, match="no_such_variable"):
        server.start()
    assert server.process is not None
    unit = UNIT.read_text()
    assert re.findall("^RestartPreventExitStatus=(.*)$", unit, re.M) == [str(server.process.returncode)]
    assert re.findall("^Restart=(.*)$", unit, re.M) == ["on-failure"]  # a crash: yes


@pytest.mark.shows("set pid_file")
def test_a_second_start_by_mistake_leaves_the_first_one_its_pid_file(machine: Namespace, tmp_path: Path) -> None:
    pid_file = tmp_path / "l2tpns.pid"
    settings = {"pid_file": str(pid_file)}
    with Server(machine, tmp_path / "first", settings=settings, secrets="") as first:
        second = Server(machine, tmp_path / "second", settings=settings, secrets="")
        with pytest.raises(ServerDied, match="1701"):
            second.start()
        assert pid_file.read_text() == f"{first.pid}\n"
    assert not pid_file.exists()


def test_a_start_that_fails_says_nothing_to_the_radius_server_and_does_not_wait_for_it(
    machine: Namespace, tmp_path: Path
) -> None:
    silent = {"primary_radius": "127.0.0.1", "radius_secret": "not-told", "radius_accounting": "yes"}
    with Server(machine, tmp_path / "first", secrets=""):
        second = Server(machine, tmp_path / "second", settings=silent)
        with pytest.raises(ServerDied, match="1701"):
            second.start()
    assert not second.log("accounting_left_in_spool")  # an Accounting-Off would wait there


def test_no_other_user_of_the_machine_can_bind_a_port_that_the_daemon_holds(machine: Namespace, tmp_path: Path) -> None:
    machine.ip("addr", "add", "192.0.2.1/24", "dev", "lo")
    settings = {
        "metrics_bind_address": "192.0.2.1",
        "metrics_port": 9101,
        "nsctl_bind_address": "192.0.2.1",
        "nsctl_secret": "sixteen octets!!",
        "primary_radius": "192.0.2.9",
        "radius_secret": "not-told",
        "radius_accounting": "yes",  # its Accounting-On goes to nobody, from a socket that stays
        "radius_bind_min": 21701,
        "radius_bind_max": 21710,
    }
    with Server(machine, tmp_path, settings=settings) as server:
        theirs = machine.socket()
        lac = Lac(("0.0.0.0", 0), ("192.0.2.1", 1701), sock=theirs)
        lac.connect()  # has a socket beside the wildcard one made
        server.wait_for("listening", address="192.0.2.1")
        wait_until(lambda: any(port == 21701 for _, _, port in held(server)), what="a RADIUS socket")
        sockets = {each for each in held(server) if each[2] != theirs.getsockname()[1]}
        assert {port for _, _, port in sockets} == {23, 1701, 1702, 9101, 21701}
        targets = {(kind, each, port) for kind, address, port in sockets for each in overlapping(address)}
        with PortThief(sorted(targets), machine) as thief:
            assert thief.loot() == []
        lac.close()


def held(server: Server) -> set[tuple[str, str, int]]:
    """Sockets of the namespace: UDP ones that are bound, TCP ones that listen."""
    found = set()
    for kind, states in (("udp", ("07", "01")), ("tcp", ("0A",))):
        for line in Path(f"/proc/{server.pid}/net/{kind}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state in states:
                address, port = local.split(":")
                octets = int(address, 16).to_bytes(4, sys.byteorder)
                found.add((kind, socket.inet_ntoa(octets), int(port, 16)))
    return found


def overlapping(address: str) -> list[str]:
    """Addresses of a socket that would get some of what is for a socket on this one."""
    specific = ["127.0.0.1", "127.0.0.9", "192.0.2.1"] if address == "0.0.0.0" else [address]
    return ["0.0.0.0", "::", *specific, *(f"::ffff:{each}" for each in specific)]


@pytest.mark.shows("set log_file")
def test_a_detached_daemon_finds_a_configuration_that_was_named_from_the_old_directory(
    machine: Namespace, tmp_path: Path
) -> None:
    settings = {"log_file": str(tmp_path / "log"), "pid_file": str(tmp_path / "pid")}
    server = Server(machine, tmp_path, settings=settings, secrets="")
    server.output = tmp_path / "log"
    name = os.path.relpath(server.config)
    done = subprocess.run(
        server.argv("-d", "-c", name), cwd=CHECKOUT, env=server.environment(), timeout=60, check=False
    )
    assert done.returncode == 0
    wait_until(lambda: bool(server.log("ready")))
    pid = int((tmp_path / "pid").read_text())
    try:
        server.configure({**settings, "echo_timeout": 17})
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: bool(server.log("reloaded") or server.log("reload_refused")))
        assert [line["changed"] for line in server.log("reloaded")] == [["echo_timeout"]]
    finally:
        os.kill(pid, signal.SIGQUIT)
    wait_until(lambda: bool(server.log("stopped")))


def start_detached(server: Server) -> subprocess.CompletedProcess[str]:
    """As `out=$(l2tpns -d)`: waits until nobody holds standard output and standard error any more."""
    return subprocess.run(
        server.argv("-d", "-c", str(server.config)),
        cwd=CHECKOUT,
        env=server.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_detached_start_returns_when_the_daemon_is_ready_and_says_where_its_log_is(
    machine: Namespace, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    server = Server(machine, tmp_path, settings={"pid_file": str(pid_file)}, secrets="")
    found = start_detached(server)
    try:
        assert (found.returncode, found.stdout) == (0, "")
        assert found.stderr.startswith("no log_file is set: the log goes to syslog:daemon")
        with machine.socket(kind=socket.SOCK_STREAM) as console:
            console.connect(("127.0.0.1", 23))  # at once: everything is open
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGQUIT)
    wait_until(lambda: not pid_file.exists(), 10)


def test_a_detached_start_that_fails_has_the_exit_status_and_the_reason(machine: Namespace, tmp_path: Path) -> None:
    with Server(machine, tmp_path / "first", secrets=""):
        second = Server(machine, tmp_path / "second", settings={"log_file": str(tmp_path / "log")}, secrets="")
        second.output = tmp_path / "log"
        found = start_detached(second)
    assert (found.returncode, found.stdout) == (75, "")
    assert "1701" in found.stderr and [line["why"] + "\n" for line in second.log("start_failed")] == [found.stderr]


def test_a_detached_daemon_that_is_killed_before_it_is_ready_does_not_leave_its_starter_waiting() -> None:
    code = "import os; from l2tpns.runtime.process import detach; detach(); os.kill(os.getpid(), 9)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "l2tpns: the daemon has ended before it was ready\n"


def test_a_reload_that_is_refused_for_its_secrets_file_changes_nothing(machine: Namespace, tmp_path: Path) -> None:
    radius = {"primary_radius": "127.0.0.1", "radius_secret": "not-told"}
    with Server(machine, tmp_path, settings=radius) as server:
        server.configure({"echo_timeout": 17, "log_file": str(tmp_path / "elsewhere")})
        server.signal(signal.SIGHUP)
        assert "l2tpns.secrets" in server.wait_for("reload_refused")["why"]
        (tmp_path / "l2tpns.secrets").write_text("")
        server.configure({**radius, "echo_timeout": 18})
        server.signal(signal.SIGHUP)
        assert server.wait_for("reloaded")["changed"] == ["echo_timeout"]
        assert server.log("reloaded", changed=[]) == []


def test_a_reload_opens_the_log_again_after_it_was_rotated(machine: Namespace, tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = Server(machine, tmp_path, settings={"log_file": str(log)}, secrets="")
    server.output = log
    with server:
        log.rename(tmp_path / "log.1")
        server.signal(signal.SIGHUP)
        assert server.wait_for("reloaded")["changed"] == []
        assert not server.log("ready") and "ready" in (tmp_path / "log.1").read_text()
