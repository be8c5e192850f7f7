"""Debian's xl2tpd and pppd while the server is restarted or reloaded (`make interop`): they must not notice."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

from tests.lab import PATIENCE
from tests.lab.bpffs import bpf_file_system
from tests.lab.interop import HOST, Stage, missing
from tests.lab.netns import wait_until
from tests.lab.pppd import Clients, Peer
from tests.lab.server import Setting

pytestmark = [
    pytest.mark.live,
    pytest.mark.interop,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

SECONDS, INTERVAL = 8, 0.2  # of a transfer, and between two figures
PEERS = (Peer("one", "fred", "fredpw", auth="pap"), Peer("two", "ann", "annpw", auth="chap"))


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage(secrets="fred * fredpw *\nann * annpw 10.1.9.9\n", settings={"save_state": True}) as built:
        built.server.start()
        yield built


def noticed_nothing(clients: Clients, said: dict[str, str]) -> None:
    """Since `said`, pppd has exchanged nothing but keepalives."""
    for name, before in said.items():
        new = clients.log(name).removeprefix(before)
        lines = [line for line in new.splitlines() if "rcvd [" in line or "sent [" in line]
        assert all("LCP Echo" in line for line in lines), new
        assert clients.is_up(name)


@pytest.mark.parametrize("kernel", [False, True], ids=["pty", "kernel"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_pppd_does_not_notice_a_restart(stage: Stage, how: signal.Signals, kernel: bool) -> None:
    peers = PEERS[:1] if kernel else PEERS  # the guest's kernel answers for one of two links to the same peer only
    with stage.scene(peers, kernel=kernel) as clients:
        links = [clients.dial(peer.name) for peer in peers]
        assert all(clients.ping(link, HOST) == 3 for link in links)
        said = [clients.log(peer.name) for peer in peers]
        if how == signal.SIGTERM:
            assert stage.server.stop(how) == 0
        else:
            stage.server.kill()
        stage.server.start()
        resumed = stage.wait_for("state_resumed")
        assert (resumed["sessions"], resumed["clean"]) == (len(peers), how == signal.SIGTERM)
        assert all(clients.ping(link, HOST) == 3 for link in links)
        noticed_nothing(clients, dict(zip((peer.name for peer in peers), said, strict=True)))
        assert stage.server.log("session_down", after=stage.since) == []
        # The control connection goes on as well: one link ends, and comes up again through the same tunnel.
        clients.terminate("one")
        clients.wait_down("one")
        stage.wait_for("session_down", user="fred", cause="user_request")


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    settings: dict[str, Setting] = {"save_state": True, "fast_path": "on"}
    with (
        bpf_file_system(tmp_path_factory.mktemp("fast")),
        Stage(secrets="fred * fredpw *\n", settings=settings) as built,
    ):
        built.server.start()
        yield built


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("kernel", [False, True], ids=["pty", "kernel"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_tcp_transfer_does_not_notice_a_restart(fast: Stage, how: signal.Signals, kernel: bool, down: bool) -> None:
    with fast.scene(PEERS[:1], kernel=kernel) as clients:
        link = clients.dial("one")
        assert clients.ping(link, HOST) == 3
        fast.wait_journal("fred")
        options = f"--json -c {HOST} -B {link.address} -t {SECONDS} -i {INTERVAL} {'-R' if down else ''}"
        fast.guest.run(f"(iperf3 {options} >/tmp/iperf; echo $? >/tmp/iperf.status) >/dev/null 2>&1 &")
        time.sleep(2.0)
        if how == signal.SIGTERM:
            assert fast.server.stop(how) == 0
        else:
            fast.server.kill()
        time.sleep(1.0)
        fast.server.start()
        assert fast.wait_for("state_resumed")["sessions"] == 1
        wait_until(lambda: fast.guest.run("cat /tmp/iperf.status || true").strip() == "0", 2 * PATIENCE, step=0.5)
        report = json.loads(fast.guest.run("cat /tmp/iperf; rm /tmp/iperf.status"))
        silent = [interval["sum"]["bytes"] == 0 for interval in report["intervals"]]
        longest = max(len(list(run)) for run in "".join("-" if it else " " for it in silent).split(" "))
        total, again = report["end"]["sum_received"]["bytes"], report["end"]["sum_sent"].get("retransmits")
        print(
            f"\n{how.name}, {total / SECONDS / 1e6 * 8:.1f} Mbit/s, {again} segments again, {longest} intervals silent"
        )
        assert longest * INTERVAL < 1.0
        assert fast.server.log("session_down", after=fast.since) == []
        assert clients.is_up("one")


def test_pppd_does_not_notice_a_reload_be_the_file_good_or_broken(stage: Stage) -> None:
    with stage.scene(PEERS) as clients:
        links = [clients.dial(peer.name) for peer in PEERS]
        said = {peer.name: clients.log(peer.name) for peer in PEERS}
        stage.server.configure({**stage.settings, "max_tunnels": 77, "primary_dns": "198.51.100.53"})
        stage.server.signal(signal.SIGHUP)
        assert set(stage.wait_for("reloaded")["changed"]) == {"max_tunnels", "primary_dns"}
        stage.server.configure(stage.settings, ["set no_such_variable 1"])
        stage.server.signal(signal.SIGHUP)
        assert "no_such_variable" in stage.wait_for("reload_refused")["why"]
        assert all(clients.ping(link, HOST) == 3 for link in links)
        noticed_nothing(clients, said)
        assert stage.server.log("session_down", after=stage.since) == []
        stage.server.configure(stage.settings)
        stage.server.signal(signal.SIGHUP)
        stage.server.wait_for("reloaded", count=2, after=stage.since)
