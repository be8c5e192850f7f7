"""Interception of real traffic: copies against captures at both ends, octet by octet (root, own namespaces)."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import gevent
import gevent.socket
import pytest

from tests.lab import PATIENCE
from tests.lab.console import Console
from tests.lab.endpoint import Endpoint
from tests.lab.inner import forwarded, frames, inner, plain
from tests.lab.lac import Dial, Lac, Subscriber
from tests.lab.netns import Lab, Namespace, is_root, run, three_hosts
from tests.lab.radius_server import RadiusServer, User, vsa
from tests.lab.server import CHECKOUT, Server
from tests.lab.tshark import fields
from tests.lab.tun import TunLink
from tests.live.test_restart import Stage as RestartStage

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST, SINK = "192.0.2.1", "198.51.100.2", "203.0.113.2"
PORT = 9000
CISCO = 9
BEFORE, AFTER = 300_000, 600_000  # octets each way before and after interception begins
CHUNK = 1 << 14


def aside(call: Callable[[], Any]) -> Any:
    """What blocks without gevent, while our LAC goes on."""
    return gevent.get_hub().threadpool.apply(call)


class Stage:
    """A LAC, the server, a host beyond it, and a network of its own for whoever gets the copies."""

    def __init__(self, lab: Lab, form: str, users: dict[bytes, User] | None = None) -> None:
        """With `users` a RADIUS server of ours has them, and autosnoop is loaded."""
        self.lab = lab
        self.lac_space, self.space, self.host = three_hosts(lab)
        self.mediator = lab.namespace("mediator")
        lab.link(self.space, "copies", "203.0.113.1/24", self.mediator, "copies", f"{SINK}/24")
        for space, device in ((self.host, "lan"), (self.space, "lan"), (self.space, "wan"), (self.lac_space, "wan")):
            space.run("ethtool", "-K", device, "tso", "off", "gso", "off", "gro", "off", "tx", "off", "rx", "off")
        settings: dict[str, Any] = {"snoop_format": form, "audit_file": str(lab.directory / "audit")}
        self.radius: RadiusServer | None = None
        if users is not None:
            with self.space.entered():
                self.radius = RadiusServer(users=users).start()
            settings |= {"primary_radius": "127.0.0.1", "primary_radius_port": self.radius.port}
            settings |= {"radius_secret": "testing123", "radius_accounting": True, "radius_authtypes": "chap"}
        self.server = Server(
            self.space,
            lab.directory / "lns",
            settings=settings,
            lines=['load plugin "autosnoop"'] if users is not None else [],
            secrets="fred * pw *\n",
        )
        aside(self.server.start)
        self.endpoint = Endpoint(("0.0.0.0", 0), sock=self.lac_space.socket())
        self.lac = Lac(("0.0.0.0", 0), (LNS, 1701), "lac1", endpoint=self.endpoint).connect()
        self.copies = lab.directory / "copies.pcapng"
        self.receiver: subprocess.Popen[bytes] | None = None

    def receive(self) -> None:
        """Start l2tpns-capture."""
        said = self.lab.directory / "capture.said"
        with said.open("wb") as errors:
            argv = (sys.executable, "-m", "l2tpns.capture", "-a", SINK, "-p", str(PORT), str(self.copies))
            self.receiver = subprocess.Popen(self.mediator.command(*argv), cwd=CHECKOUT, stderr=errors)
            self.mediator.processes.append(self.receiver)
        _wait(lambda: b"listening" in said.read_bytes())

    def received(self) -> list[tuple[bytes, str, str]]:
        """Stop it: (packet, direction, interface) of each copy, as tshark reads them."""
        assert self.receiver is not None
        self.receiver.send_signal(signal.SIGTERM)
        assert aside(lambda: self.receiver and self.receiver.wait(PATIENCE)) == 0
        rows = aside(lambda: packets(self.copies))
        return rows

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.lab.directory / "audit").read_text().splitlines()]

    def close(self) -> None:
        aside(self.server.stop)
        self.endpoint.close()
        if self.radius is not None:
            self.radius.stop()
        assert self.server.tracebacks() == ""


def _wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        gevent.sleep(0.02)


def packets(file: Path) -> list[tuple[bytes, str, str]]:
    """(octets, direction, interface's name) of each packet of a pcapng file, read by tshark."""
    run("tshark", "-r", str(file), "-F", "pcap", "-w", f"{file}.pcap", timeout=120.0)
    told = fields(file, ["frame.packet_flags_direction", "frame.interface_name"])
    ways = {"0x00000001": "up", "0x00000002": "down", "": ""}
    octets = [frame for _, frame in frames(Path(f"{file}.pcap"))]
    return [(frame, ways[way], name) for frame, (way, name) in zip(octets, told, strict=True)]


class Stream:
    """Ordinary kernel TCP from one namespace to another, on and on until told to stop; digests of both ends."""

    def __init__(self, sender: Namespace, source: str, receiver: Namespace, target: str) -> None:
        self.stop = Event()
        self.sent = self.got = 0
        self._digests: dict[str, bytes] = {}
        self._listener = receiver.socket(kind=socket.SOCK_STREAM)
        self._listener.settimeout(PATIENCE)
        self._listener.bind((target, 0))
        self._listener.listen(1)
        self._sending = sender.socket(kind=socket.SOCK_STREAM)
        self._sending.settimeout(PATIENCE)
        self._sending.bind((source, 0))
        self._threads = [Thread(target=self._receive, daemon=True), Thread(target=self._send, daemon=True)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        digest, noise = hashlib.sha256(), random.Random(1)
        with self._sending as sending:
            sending.connect(self._listener.getsockname())
            while not self.stop.is_set():
                chunk = noise.randbytes(CHUNK)
                sending.sendall(chunk)
                digest.update(chunk)
                self.sent += CHUNK
        self._digests["sent"] = digest.digest()

    def _receive(self) -> None:
        digest = hashlib.sha256()
        with self._listener as listener, listener.accept()[0] as receiving:
            receiving.settimeout(PATIENCE)
            while chunk := receiving.recv(CHUNK):
                digest.update(chunk)
                self.got += len(chunk)
        self._digests["got"] = digest.digest()

    def finish(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert self.sent == self.got and self._digests["sent"] == self._digests["got"]


@pytest.mark.parametrize("form", ["ip", "framed"])
def test_switched_on_in_the_middle_of_a_transfer_the_copies_are_all_that_passes_from_then_on(
    lab: Lab, form: str
) -> None:
    stage = Stage(lab, form)
    stage.receive()
    fred = stage.lac.call(b"fred", b"pw").wait_online()
    near = lab.capture(stage.lac_space, "wan", lab.directory / "near.pcap", "udp port 1701")
    far = lab.capture(stage.host, "lan", lab.directory / "far.pcap", f"host {fred.address}")
    with stage.lac_space.entered():
        link = TunLink(fred, "tun-fred")
    up = Stream(stage.lac_space, link.address, stage.host, HOST)
    down = Stream(stage.host, HOST, stage.lac_space, link.address)
    console = Console(stage.space)
    _wait(lambda: min(up.got, down.got) > BEFORE)
    assert "Snooping user fred" in console.do(f"snoop fred {SINK} {PORT}")
    after = time.time()
    at_start = up.got, down.got
    _wait(lambda: up.got > at_start[0] + AFTER and down.got > at_start[1] + AFTER)
    aside(up.finish)
    aside(down.finish)
    gevent.sleep(1.0)  # nothing is on its way any more
    near.stop()
    far.stop()
    (row,) = console.rows("show snoop")
    console.do("no snoop fred")
    console.close()
    copies = stage.received()
    stage.close()
    with stage.lac_space.entered():
        link.close()

    assert row["lost"] == 0 and row["sent"] == len(copies)
    client = socket.inet_aton(link.address)
    passed = inner(near.file, LNS)
    host_side = plain(far.file)
    for way in ("up", "down"):
        ours = [packet for packet, told, _ in copies if (packet[12:16] == client) == (way == "up")]
        theirs = [(when, packet) for when, direction, packet in passed if direction == way]
        assert 0 < len(ours) < len(theirs)
        assert ours == [packet for _, packet in theirs[-len(ours) :]], way
        last = theirs[-len(ours) - 1][0]  # that was not copied
        assert last <= after, "a packet passed after the console had answered, and was not copied"
        # On the far side: what the subscriber sent has arrived there; what it got has left there. A queue that is full
        # drops some on the way, as TCP wants it: before the server those are not copied, behind it they are.
        if way == "up":
            ours = [forwarded(packet) for packet in ours]
            known = set(ours)
            there = [packet for _, packet in host_side if packet[12:16] == client]
            begins = next(place for place, packet in enumerate(there) if packet in known)
            assert not Counter(there[begins:]) - Counter(ours)
        else:
            there = [forwarded(packet) for _, packet in host_side if packet[16:20] == client]
            missing = Counter(ours) - Counter(there)
            assert not missing, (len(missing), far.said.read_text())
    if form == "framed":
        assert {told for _, told, _ in copies} == {"up", "down"}
        assert all((packet[12:16] == client) == (told == "up") for packet, told, _ in copies)
        assert {name for _, _, name in copies} == {f"fred {row['tunnel']}/{row['session']}"}
        assert fields(stage.copies, ["frame.number", "frame.comment"], "frame.comment") == []  # none is missing
    on, off = stage.audit()[-2:]
    assert (on["event"], on["user"], on["sink"]) == ("snoop_on", "fred", f"{SINK}:{PORT}")
    assert (off["event"], off["sent"], off["lost"]) == ("snoop_off", len(copies), 0)
    print(f"\n{form}: {len(copies)} copies of {len(passed)} packets, {sum(len(p) for p, _, _ in copies)} octets")


def test_by_radius_every_packet_from_the_first_on_is_copied_and_nobody_elses(lab: Lab) -> None:
    where = f"{SINK}:{PORT}"
    avpair = b"intercept=" + where.encode()
    users = {b"fred": User(b"pw", [vsa(CISCO, (1, avpair))]), b"mary": User(b"pw", [])}
    stage = Stage(lab, "framed", users)
    assert stage.radius is not None
    stage.receive()
    near = lab.capture(stage.lac_space, "wan", lab.directory / "near.pcap", "udp port 1701")
    flooders = [gevent.spawn(call_and_talk, stage.lac, name) for name in (b"mary", b"fred")]
    gevent.joinall(flooders, raise_error=True)
    fred: Subscriber = flooders[1].value
    session = stage.server.wait_for("session_up", user="fred")
    gevent.sleep(1.0)
    near.stop()
    with Console(stage.space) as console:
        (row,) = console.rows("show snoop")
    copies = stage.received()
    stage.close()
    assert fred.address is not None
    client = fred.address.packed
    passed = inner(near.file, LNS)
    hers = [packet for _, _, packet in passed if client not in (packet[12:16], packet[16:20])]
    for way, place in (("up", slice(12, 16)), ("down", slice(16, 20))):
        theirs = [packet for _, direction, packet in passed if direction == way and packet[place] == client]
        ours = [packet for packet, told, _ in copies if told == way]
        # Before the server says online it drops what comes: that is not copied, nor carried.
        assert len(theirs) >= len(ours) >= 10 and ours == theirs[-len(ours) :]
        if way == "down":
            assert ours == theirs
    assert hers and len(copies) == row["sent"] and row["lost"] == 0
    started = [record for record in stage.radius.accounting(1) if record.one(1) == b"fred"]
    assert started[0].vendor(CISCO, 1) == [avpair]
    on = next(line for line in stage.audit() if line["event"] == "snoop_on")
    assert (on["by"], on["user"], on["session"], on["sink"]) == ("radius", "fred", session["session"], where)
    log = [line for line in stage.server.log() if line["event"] not in ("plugin_loaded", "control_sent")]
    assert "intercept" not in str(log) and "snoop" not in str(log) and where not in str(log)


def call_and_talk(lac: Lac, name: bytes) -> Subscriber:
    """Online, and ten pings answered, the first without waiting for anything."""
    subscriber = lac.call(name, b"pw", Dial(auth="chap")).wait_online()
    for _ in range(10):
        assert subscriber.ping(HOST, timeout=PATIENCE) is not None
    return subscriber


def test_fifty_intercepted_sessions_are_so_after_a_crash_and_a_restart(lab: Lab) -> None:
    sessions, snooped = 60, 50
    stage = RestartStage(lab, sessions, audit_file=str(lab.directory / "audit"))
    space = stage.server.namespace
    assert space is not None
    with space.entered():
        sink = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("127.0.0.1", 0))
    port = sink.getsockname()[1]
    users = [f"user{number:06d}" for number in range(snooped)]
    with Console(space) as console:
        for user in users[: snooped // 2]:
            assert "Snooping" in console.do(f"snoop {user} 127.0.0.1 {port}")
        console.do("set snoop_host 127.0.0.1")
        console.do(f"set snoop_port {port}")
        assert console.do(f"snoop {' '.join(users[snooped // 2 :])}").count("Snooping") == snooped // 2
        before = [(row["user"], row["session"], row["sink"]) for row in console.rows("show snoop")]
    gevent.sleep(2.5)  # online for longer than what a crash may cost
    stage.server.kill()
    stage.settings |= {"snoop_host": "127.0.0.1", "snoop_port": port}
    stage.server.configure(stage.settings)
    stage.in_thread(stage.server.start)
    assert stage.server.wait_for("state_resumed")["sessions"] == sessions
    assert stage.alive() == sessions
    copied: Counter[str] = Counter()
    sink.settimeout(PATIENCE)
    for _ in range(2 * snooped):  # an echo and its reply
        packet = sink.recv(4096)
        copied[min((packet[12:16], packet[16:20]), key=lambda address: address[0] != 10).hex()] += 1
    with Console(space) as console:
        rows = console.rows("show snoop")
        sessions_now = {row["user"]: row["address"] for row in console.rows("show session")}
    assert [(row["user"], row["session"], row["sink"]) for row in rows] == before and len(before) == snooped
    assert all((row["sent"], row["lost"]) == (2, 0) for row in rows)
    assert copied == {socket.inet_aton(sessions_now[user]).hex(): 2 for user in users}
    lines = [json.loads(line) for line in (lab.directory / "audit").read_text().splitlines()]
    resumed = [line for line in lines if line["event"] == "snoop_on" and line["by"] == "saved state"]
    assert sorted(line["user"] for line in resumed) == users
    sink.close()
    stage.close()
