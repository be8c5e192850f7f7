"""The daemon's first moments as a process: what it refuses, and what it warns of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netns import Lab, Namespace, is_root
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
