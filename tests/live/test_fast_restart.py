"""No packet is lost while the daemon is dead or restarts (root, own namespaces, own BPF file system).

The fast path carries it, or it waits in queues that the service manager keeps.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import gevent
import gevent.socket
import pytest

from l2tpns.dataplane.fastpath.layout import MAPS
from tests.lab.lac import Lac, Subscriber
from tests.lab.netns import Lab, is_root, three_hosts
from tests.lab.server import Server, Setting
from tests.lab.traffic import parse

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST, PORT = "192.0.2.1", "198.51.100.2", 9000
SECRETS = "ann * pw *\nben * pw *\n"
HEADERS = 28  # octets of IP and UDP
READERS = 3  # of the daemon: the tun device, the LACs' socket, that of the tunnel
START = 100  # packets: the kernel may carry a later one before the process has carried the first ones


class Stage:
    """A daemon whose fast path carries two subscribers, each with numbered packets in both directions."""

    def __init__(
        self, lab: Lab, mount: Path, *, keeps_descriptors: bool = False, pause: float = 0.003, **settings: Setting
    ) -> None:
        self.mount, self.pause = mount, pause
        self.lac_space, self.space, self.host_space = three_hosts(lab)
        self.settings = {"save_state": True, "fast_path": "on", "hello_interval": 2, **settings}
        self.lines = ('load plugin "garden"',)
        self.server = Server(
            self.space,
            lab.directory / "lns",
            settings=self.settings,
            secrets=SECRETS,
            lines=self.lines,
            keeps_descriptors=keeps_descriptors,
        )
        self.server.start()
        self.lac = Lac(("0.0.0.0", 0), (LNS, 1701), sock=self.lac_space.socket()).connect()
        self.subscribers = [self.lac.call(name, "pw", auth="pap").wait_online() for name in ("ann", "ben")]
        with self.host_space.entered():
            self.host = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.host.bind((HOST, PORT))
        self.sent = 0  # packets each way for each subscriber
        self.up: dict[str, list[int]] = {str(each.address): [] for each in self.subscribers}
        self.down: dict[str, list[int]] = {str(each.address): [] for each in self.subscribers}
        for each in self.subscribers:
            each.on_ip = self.note_down
        self.greenlets = [gevent.spawn(self.note_up), gevent.spawn(self.send)]

    def note_up(self) -> None:
        while True:
            payload, (address, _) = self.host.recvfrom(100)
            self.up[address].append(int(payload))

    def note_down(self, _: Subscriber, packet: bytes) -> None:
        found = parse(packet)
        self.down[str(found.destination)].append(int(found.payload[8:]))

    def send(self) -> None:
        """Send a packet each way for each subscriber, again and again."""
        while True:
            payload = b"%08d" % self.sent
            for each in self.subscribers:
                each.send_udp(HOST, PORT, payload)
                self.host.sendto(payload, (str(each.address), 7000))
            self.sent += 1
            gevent.sleep(self.pause)

    def run_for(self, packets: int) -> None:
        """Wait until so many more packets were sent."""
        until = self.sent + packets
        self.lac.wait(lambda: self.sent >= until)

    def wait_journal(self) -> None:
        """Wait until the daemon has written down what it has carried itself, before the kernel carried the sessions."""

        def used() -> int:
            files = (self.server.directory / "state").glob("*.state")
            return sum(path.read_bytes().count(b'"use"') for path in files)

        self.run_for(50)
        before = used()
        self.lac.wait(lambda: used() >= before + 2 * len(self.subscribers))

    def end(self, by: int) -> None:
        """Send a signal to the daemon and wait for its end."""
        if by == signal.SIGKILL:
            self.server.kill()
        else:
            assert gevent.get_hub().threadpool.apply(self.server.stop, (by,)) == 0

    def begin(self) -> None:
        gevent.get_hub().threadpool.apply(self.server.start)

    def stop_sending(self) -> None:
        self.greenlets[1].kill()

    def all_arrive(self, *, in_order: bool = True) -> None:
        """Check that no packet is lost or doubled, and that none is overtaken once the kernel carries the sessions."""
        whole = list(range(self.sent))
        every = [*self.up.values(), *self.down.values()]
        self.lac.wait(lambda: all(len(numbers) >= len(whole) for numbers in every))
        assert all(sorted(numbers) == whole for numbers in every)
        if in_order:
            assert [numbers[START:] for numbers in every] == [whole[START:]] * len(every)

    def pins(self) -> list[str]:
        """Return what is left in the BPF file system, besides the kernel's own files."""
        return sorted(path.name for path in (self.mount / "l2tpns").rglob("*") if path.is_file())

    def close(self) -> None:
        gevent.killall(self.greenlets)
        self.lac.close()
        if self.server.process is not None and self.server.process.poll() is None:
            assert gevent.get_hub().threadpool.apply(self.server.stop) == 0
        self.host.close()
        if self.server.manager is not None:
            self.server.manager.close()
        assert self.server.tracebacks() == ""


CLSACT = {"hooks": "clsact"}  # of kernels before Linux 6.6


@pytest.fixture
def stage(request: pytest.FixtureRequest, bpf_file_system: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    settings = {"hooks": os.environ.get("L2TPNS_HOOKS", "tcx"), **getattr(request, "param", {})}
    monkeypatch.setenv("L2TPNS_HOOKS", settings.pop("hooks"))
    with Lab() as lab:
        stage = Stage(lab, bpf_file_system, **settings)
        yield stage
        stage.close()


@pytest.mark.parametrize("stage", [{}, CLSACT], indirect=True, ids=["tcx", "clsact"])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_no_packet_is_lost_over_a_restart_and_accounting_is_exact(stage: Stage, by: int) -> None:
    stage.wait_journal()
    assert set(MAPS) <= set(stage.pins())
    stage.end(by)
    stage.run_for(600)
    stage.begin()
    assert stage.server.log("state_resumed")[-1]["sessions"] == 2
    stage.run_for(300)
    stage.stop_sending()
    stage.all_arrive()
    assert gevent.get_hub().threadpool.apply(stage.server.stop) == 0
    octets = stage.sent * (HEADERS + 8)
    down = stage.server.log("session_down")
    assert [(line["in_octets"], line["out_octets"]) for line in down] == [(octets, octets)] * 2
    assert stage.pins() == [] and "clsact" not in stage.space.run("tc", "qdisc", "show")


@pytest.mark.parametrize("stage", [{"fast_path_orphan_timeout": 1}], indirect=True, ids=[""])
def test_the_traffic_of_a_server_that_does_not_come_back_stops(stage: Stage) -> None:
    stage.end(signal.SIGKILL)
    silent = [0]

    def still() -> bool:
        counts = [len(numbers) for numbers in (*stage.up.values(), *stage.down.values())]
        before, silent[0] = silent[0], sum(counts)
        stage.run_for(100)
        return before == silent[0]

    stage.lac.wait(still)
    stage.space.run(sys.executable, "-m", "l2tpns", "--clean-kernel")
    assert stage.pins() == []
    assert "l2tpns" not in stage.space.run("iptables-legacy-save")
    assert "tun0" not in stage.space.ip("link", "show")


@pytest.mark.parametrize("stage", [{"save_state": False, **CLSACT}], indirect=True, ids=[""])
def test_programs_that_outlive_the_process_by_themselves_are_removed_by_the_next_one(stage: Stage) -> None:
    filters = lambda: stage.space.run("tc", "filter", "show", "dev", "wan", "ingress").count("l2tpns fast_up")  # noqa: E731
    assert filters() == 1
    stage.end(signal.SIGKILL)
    assert filters() == 1
    stage.begin()
    assert filters() == 1
    stage.end(signal.SIGKILL)
    stage.space.run(sys.executable, "-m", "l2tpns", "--clean-kernel")
    assert filters() == 0 and "clsact" not in stage.space.run("tc", "qdisc", "show")
    stage.stop_sending()


def test_a_session_that_is_not_restored_is_removed_from_the_maps(stage: Stage) -> None:
    stage.run_for(50)
    stage.end(signal.SIGKILL)
    for path in (stage.server.directory / "state").glob("*.state"):
        path.unlink()
    stage.begin()
    before = {address: len(numbers) for address, numbers in stage.up.items()}
    stage.run_for(50)
    assert {address: len(numbers) for address, numbers in stage.up.items()} == before
    stage.stop_sending()


def test_a_server_that_knows_another_layout_of_the_maps_takes_over_from_programs_of_its_own(stage: Stage) -> None:
    stage.run_for(50)
    stage.end(signal.SIGKILL)
    (found,) = {path.parent for path in (stage.mount / "l2tpns").rglob("*") if path.is_file()}
    found.rename(found.with_name(f"{found.name.partition('-')[0]}-0123456789ab"))
    stage.begin()
    stage.run_for(300)
    assert stage.server.log("fast_path_up")[-1]["adopted"] is False
    assert set(MAPS) <= set(stage.pins())
    stage.stop_sending()
    stage.all_arrive(in_order=False)


def test_a_server_that_is_started_without_the_fast_path_takes_its_sessions_back(stage: Stage) -> None:
    stage.wait_journal()
    stage.end(signal.SIGKILL)
    stage.server.configure({**stage.settings, "fast_path": "off"}, stage.lines)
    stage.begin()
    stage.run_for(300)
    stage.lac.wait(lambda: stage.pins() == [])
    stage.run_for(300)
    stage.stop_sending()
    stage.all_arrive(in_order=False)
    assert gevent.get_hub().threadpool.apply(stage.server.stop) == 0
    octets = stage.sent * (HEADERS + 8)
    assert [(line["in_octets"], line["out_octets"]) for line in stage.server.log("session_down")] == [
        (octets, octets)
    ] * 2


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_a_session_in_a_garden_stays_there_while_there_is_no_server(stage: Stage, by: int) -> None:
    stage.space.run(sys.executable, "-m", "l2tpns.nsctl", "garden", "ann")
    stage.run_for(50)  # what was under way
    ann, ben = (str(each.address) for each in stage.subscribers)
    before = len(stage.up[ann]), len(stage.down[ann])
    stage.end(by)
    stage.run_for(300)
    assert (len(stage.up[ann]), len(stage.down[ann])) == before
    stage.begin()
    stage.run_for(300)
    assert (len(stage.up[ann]), len(stage.down[ann])) == before
    stage.stop_sending()
    whole = list(range(stage.sent))
    stage.lac.wait(lambda: sorted(stage.up[ben]) == sorted(stage.down[ben]) == whole)
    assert gevent.get_hub().threadpool.apply(stage.server.stop) == 0
    assert "l2tpns" not in stage.space.run("iptables-legacy-save")


@pytest.mark.parametrize(
    "stage", [{"keeps_descriptors": True, "pause": 0.02, "fast_path": "off"}], indirect=True, ids=[""]
)
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_packets_of_user_space_wait_in_the_queues_that_the_service_manager_keeps(stage: Stage, by: int) -> None:
    stage.wait_journal()
    for _ in range(2):
        stage.end(by)
        stage.run_for(50)
        stage.begin()
        assert stage.server.log("state_resumed")[-1]["sessions"] == 2
        stage.run_for(50)
    stage.stop_sending()
    if by == signal.SIGTERM:
        stage.all_arrive()
    else:  # one that a reader had taken out of its queue is lost with the process
        every = [*stage.up.values(), *stage.down.values()]
        stage.lac.wait(lambda: all(numbers[-1] == stage.sent - 1 for numbers in every))
        assert sum(stage.sent - len(set(numbers)) for numbers in every) <= 2 * READERS
        assert all(len(set(numbers)) == len(numbers) for numbers in every)
    assert gevent.get_hub().threadpool.apply(stage.server.stop) == 0
    octets = stage.sent * (HEADERS + 8)
    if by == signal.SIGTERM:
        down = stage.server.log("session_down")
        assert [(line["in_octets"], line["out_octets"]) for line in down] == [(octets, octets)] * 2
    assert stage.server.manager is not None
    stage.server.manager.read_all()
    assert stage.server.manager.store == []  # QUIT leaves nothing
    assert "tun0" not in stage.space.ip("link", "show")
