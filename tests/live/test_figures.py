"""Metrics, status page and usage files of the daemon as a process, with real packets (root, own namespaces)."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.lab.lac import Lac
from tests.lab.netns import Lab, is_root, three_hosts, wait_until
from tests.lab.server import Server, Setting

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST = "192.0.2.1", "198.51.100.2"
FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).read().decode(), end='')"


class Stage:
    def __init__(self, lab: Lab) -> None:
        self.lac_space, self.space, _ = three_hosts(lab)
        self.usage = lab.directory / "usage"
        self.usage.mkdir()
        self.settings: dict[str, Setting] = {
            "accounting_dir": str(self.usage),
            "metrics_bind_address": "127.0.0.1",
            "shutdown_timeout": 2,  # the LAC does not acknowledge while this process waits
        }
        self.server = Server(self.space, lab.directory / "lns", settings=self.settings, secrets="fred * pw *\n")
        self.server.start()
        self.lac = Lac(("0.0.0.0", 0), (LNS, 1701), sock=self.lac_space.socket()).connect()

    def fetch(self, path: str, port: int = 9701) -> str:
        return self.space.run("python3", "-c", FETCH, f"http://127.0.0.1:{port}{path}")

    def rows(self) -> list[str]:
        lines = [line for path in sorted(Path(self.usage).iterdir()) for line in path.read_text().splitlines()]
        return [line for line in lines if not line.startswith("#")]

    def close(self) -> None:
        self.lac.close()
        self.server.kill()
        assert self.server.tracebacks() == ""


def test_metrics_page_and_usage_file_tell_the_packets_that_went_by(stage: Stage) -> None:
    fred = stage.lac.call("fred", "pw", auth="pap").wait_online()
    for _ in range(3):
        assert fred.ping(HOST, size=472) is not None  # 500 octets of IP each way
    metrics = stage.fetch("/metrics")
    assert 'l2tpns_sessions{state="online"} 1.0' in metrics
    assert 'l2tpns_packets_total{direction="tx",side="tun"} 3.0' in metrics
    assert 'l2tpns_octets_total{direction="rx",side="tun"} 1500.0' in metrics
    assert float(re.findall("^l2tpns_loop_lag_seconds_count (.*)$", metrics, re.M)[0]) > 0
    assert json.loads(stage.fetch("/health"))["status"] == "ok"
    page = stage.fetch("/?q=fred")
    assert "1 of 1 sessions" in page and "1.5 kB" in page
    address = fred.address
    assert stage.server.stop() == 0
    assert stage.rows() == [f"fred {address} 1 1500 1500"]  # the closing row of a session that the shutdown ended


def test_a_reload_moves_the_port_and_a_wrong_address_stops_nobody(stage: Stage) -> None:
    server, settings = stage.server, stage.settings
    server.configure({**settings, "metrics_port": 9702})
    server.signal(signal.SIGHUP)
    wait_until(lambda: len(server.log("figures_served")) == 2)
    assert json.loads(stage.fetch("/health", 9702))["status"] == "ok"
    server.configure({**settings, "metrics_bind_address": "203.0.113.77"})  # not ours
    server.signal(signal.SIGHUP)
    (error,) = [server.wait_for("figures_not_served")]
    assert error["level"] == "error" and error["address"] == "203.0.113.77:9701"
    assert stage.lac.call("fred", "pw", auth="pap").wait_online().online
