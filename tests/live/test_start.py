"""The daemon's first moments as a process: what it refuses, and what it warns of."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netns import Lab, Namespace, is_root, wait_until
from tests.lab.server import CHECKOUT, Server, ServerDied

pytestmark = pytest.mark.live
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


def test_a_refused_configuration_is_an_exit_status_after_which_systemd_does_not_start_again(tmp_path: Path) -> None:
    server = Server(None, tmp_path, lines=["set no_such_variable 1"])
    with pytest.raises(ServerDied, match="no_such_variable"):
        server.start()
    assert server.process is not None
    unit = UNIT.read_text()
    assert re.findall("^RestartPreventExitStatus=(.*)$", unit, re.M) == [str(server.process.returncode)]
    assert re.findall("^Restart=(.*)$", unit, re.M) == ["on-failure"]  # a crash: yes


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
            second.start(timeout=10)
    assert not second.log("accounting_left_in_spool")  # an Accounting-Off would wait there


def test_a_detached_daemon_finds_a_configuration_that_was_named_from_the_old_directory(
    machine: Namespace, tmp_path: Path
) -> None:
    settings = {"log_file": str(tmp_path / "log"), "pid_file": str(tmp_path / "pid")}
    server = Server(machine, tmp_path, settings=settings, secrets="")
    server.output = tmp_path / "log"
    name = os.path.relpath(server.config)
    machine.run(*server.command, "-d", "-c", name)
    wait_until(lambda: bool(server.log("ready")), 10)
    pid = int((tmp_path / "pid").read_text())
    try:
        server.configure({**settings, "echo_timeout": 17})
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: bool(server.log("reloaded") or server.log("reload_refused")), 5)
        assert [line["changed"] for line in server.log("reloaded")] == [["echo_timeout"]]
    finally:
        os.kill(pid, signal.SIGQUIT)
    wait_until(lambda: bool(server.log("stopped")), 10)


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
