"""A campaign of hostile datagrams at a live daemon, while 100 sessions of another LAC carry checked traffic.

The datagrams come from strangers; from other ports of the good LAC's host, with its true ids; from the good LAC's own
port, with other ids; from hostile LACs in tunnels and sessions of their own, in sequence, so that they get past
reliable delivery; and from the tun device. The attack pauses while the daemon's socket queue is long: an overflowing
queue drops the packets of all peers and shows nothing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import Any

import gevent

from tests.lab import traffic
from tests.lab.endpoint import Endpoint, RawSocket
from tests.lab.lac import Lac, Subscriber
from tests.lab.netns import Lab, three_hosts
from tests.lab.server import CHECKOUT, Server, Setting
from tests.lab.storm import Storm
from tools.fuzz.hostile_lac import HOST, LNS, SECRET, HostileLac, Recorder, record
from tools.fuzz.mutator import Mutator, addressed, committed_seeds

GOOD = "192.0.2.2"
HOSTILE_LACS = tuple(f"192.0.2.{number}" for number in range(3, 8))
STRANGERS = tuple(f"192.0.2.{number}" for number in range(10, 18))
GOOD_SESSIONS = 100
GOOD_RATE = 200  # checked packets a second, all sessions together
SAMPLES = 10
QUEUE_LIMIT = 256 << 10  # octets in the daemon's socket queue at which the attack waits
TABLES_TIMEOUT = 100.0  # half-open tunnels live for 31 s, and an unacknowledged StopCCN for 31 more
RSS_SLACK = 12 << 10  # KiB that the last sample may lie above the second
CALM = {"tunnels": 1, "sessions": 100, "online": 100, "half_open": 0, "starting": 0, "pool_used": 100}
TABLES = (*CALM, "greenlets", "descriptors", "rss_kib")
LIVES = (
    *("tunnels_opened", "tunnels_refused", "tunnels_closed", "calls_refused", "sessions_online", "sessions_ended"),
    *("logins_accepted", "logins_refused", "control_malformed", "icmp_sent"),
)
BAD_EVENTS = ("session_failed", "tunnel_failed", "release_failed", "data_path_failed", "data_path_lost")


@dataclass(slots=True)
class Report:
    """The results of a campaign."""

    sent: int = 0
    seconds: float = 0.0
    by_source: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    traffic_sent: int = 0
    traffic_lost: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        drops = {name: count for name, count in self.last.items() if name.startswith("drop_")}
        lines = [
            f"{self.sent} hostile datagrams in {self.seconds:.0f} s, {self.sent / max(self.seconds, 1e-9):.0f}/s",
            "from:    " + ", ".join(f"{name} {count}" for name, count in self.by_source.most_common()),
            "dropped: " + ", ".join(f"{name[5:]} {count}" for name, count in drops.items()),
            "counted: " + ", ".join(f"{name} {self.last.get(name, 0)}" for name in LIVES),
            "log:     " + ", ".join(f"{name} {count}" for name, count in self.events.most_common(12)),
            f"traffic: {self.traffic_sent} checked packets, {self.traffic_lost} lost",
            "after:   " + _figures(self.samples[-1]),
        ]
        return "\n".join([*lines, *(f"FAULT: {fault}" for fault in self.faults), "good" if not self.faults else "bad"])


class Traffic:
    """Send numbered packets from the good subscribers to the host beyond, which echoes them, until stopped."""

    def __init__(self, subscribers: list[Subscriber]) -> None:
        self.subscribers = subscribers
        self.checker = traffic.Checker()
        self.sent = 0
        self._over = False
        for subscriber in subscribers:
            subscriber.on_ip = self._take
        self._greenlet = gevent.spawn(self._run)

    def _take(self, subscriber: Subscriber, packet: bytes) -> None:
        try:
            found = traffic.parse(packet)
        except ValueError:
            return  # hostile hosts and subscribers may write to any address
        if found.protocol == traffic.UDP:
            self.checker.take(found.payload[8:])

    def _run(self) -> None:
        begun = time.monotonic()
        while not self._over:
            while self.sent < (time.monotonic() - begun) * GOOD_RATE:
                number, flow = divmod(self.sent, len(self.subscribers))
                data = traffic.numbered(traffic.UP, flow, number, 64)
                self.subscribers[flow].send_udp(IPv4Address(HOST[0]), HOST[1], data)
                self.sent += 1
            gevent.sleep(0.01)

    def stop(self, patience: float = 5.0) -> int:
        """Stop sending. Return the number of packets not echoed within `patience` seconds."""
        self._over = True
        self._greenlet.join()
        until = time.monotonic() + patience
        while self.lost and time.monotonic() < until:
            gevent.sleep(0.05)
        return self.lost

    @property
    def lost(self) -> int:
        return self.sent - self.checker.received(traffic.ECHOED)


class Campaign:
    """One campaign: `set_up` starts the daemon and all peers, `run` attacks and judges."""

    def __init__(self, lab: Lab, *, seed: int = 1, settings: Mapping[str, Setting] | None = None) -> None:
        self.random = Random(seed)
        self.report = Report()
        self.lac_ns, self.server_ns, self.host_ns = three_hosts(lab)
        for address in (*HOSTILE_LACS, *STRANGERS):
            self.lac_ns.ip("address", "add", f"{address}/24", "dev", "wan")
        everything: dict[str, Setting] = {"debug": 3, "l2tp_secret": SECRET.decode(), "radius_authtypes": "chap,pap"}
        everything |= {"chap_rechallenge": 10, "echo_timeout": 10, "idle_echo_timeout": 60, "tundevicename": "tun0"}
        everything |= {"hello_interval": 10}  # detects LACs that left without a StopCCN
        everything |= settings or {}
        self.server = Server(self.server_ns, lab.directory / "lns", settings=everything, secrets="* * secret *\n")
        self.log = _follow(self.server.output)
        self.statuses = 0

    def set_up(self, *, apart: bool = False) -> None:
        """Start the daemon and all peers. `apart` keeps this process off the daemon's processor."""
        self.server.start()
        self.host_ns.start(
            *(sys.executable, "-m", "tests.lab.traffic", "--listen", f"{HOST[0]}:{HOST[1]}"),
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
        )
        if apart:
            pin()
        seeds = committed_seeds()
        with self.lac_ns.entered():
            recorder = Recorder((GOOD, 0), seeds)
        record(recorder)
        recorder.close()
        self.mutator = Mutator(self.random, seeds)
        with self.lac_ns.entered():
            self.good = Lac((GOOD, 0), LNS, "good", secret=SECRET)
            self.hostile_lacs = [
                HostileLac(Endpoint((address, 0)), self.mutator, number) for number, address in enumerate(HOSTILE_LACS)
            ]
            self.strangers = [_socket(address) for address in STRANGERS for _ in range(3)]
            self.neighbours = [_socket(GOOD) for _ in range(3)]
        with self.server_ns.entered():
            self.tun = RawSocket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self.tun.setblocking(False)
            self.tun.bind(("tun0", 0x0800))
        self.good.connect()
        storm = Storm([self.good], GOOD_SESSIONS)
        up = storm.run()
        if up.online != GOOD_SESSIONS:
            raise RuntimeError(f"the good sessions did not come up: {up}")
        self.subscribers = storm.subscribers
        self.ids = [(self.good.peer_tunnel_id, subscriber.peer_session_id) for subscriber in self.subscribers]
        self.traffic = Traffic(self.subscribers)

    def run(self, count: int) -> Report:
        """Send `count` datagrams, sample the daemon meanwhile, wait for its tables to empty, and return the report."""
        report = self.report
        before = self.show()
        begun = time.monotonic()
        step = max(1, count // SAMPLES)
        while report.sent < count:
            for _ in range(16):
                source = self.attack()
                if source is not None:
                    report.by_source[source] += 1
                    report.sent += 1
                    if report.sent % step == 0:
                        report.seconds = time.monotonic() - begun
                        self.show()
            gevent.sleep(1e-6)
            if report.sent & 0xF0 == 0:
                self.wait_for_queue()
        report.seconds = time.monotonic() - begun
        for lac in self.hostile_lacs:
            lac.close()
        self.settle()
        report.traffic_lost = self.traffic.stop()
        report.traffic_sent = self.traffic.sent
        self.judge(before)
        return report

    # The attack

    def attack(self) -> str | None:
        choice = self.random.random()
        if choice < 0.35:
            return self.stranger()
        if choice < 0.45:
            tunnel_id, session_id = self.random.choice(self.ids)
            self.send(self.random.choice(self.neighbours), addressed(self.datagram(), tunnel_id, session_id))
            return "good LAC's host and ids, other port"
        if choice < 0.50:
            return self.impostor()
        if choice < 0.55:
            return self.behind()
        return self.random.choice(self.hostile_lacs).attack()

    def stranger(self) -> str:
        datagram = self.datagram()
        if self.random.random() < 0.3:
            datagram = addressed(datagram, *self.random.choice(((0, 0), self.random.choice(self.ids))))
        self.send(self.random.choice(self.strangers), datagram)
        return "stranger"

    def impostor(self) -> str:
        """Use the good LAC's address and port, but never both of its ids: a sender with both controls the tunnel."""
        if self.random.random() < 0.5:
            datagram = self.mutator.control(self.mutator.body())
        else:
            datagram = addressed(self.datagram(), self.random.getrandbits(16), self.random.getrandbits(16))
        # The Tunnel ID that the good LAC assigned can be guessed.
        guess = bytes.fromhex("8008 0000 0009") + self.good.tunnel_id.to_bytes(2, "big")
        at = datagram.find(guess[:6])
        if at > 0:
            datagram = datagram[:at] + guess + datagram[at + 8 :]
        if int.from_bytes(datagram[4:6], "big") != self.good.peer_tunnel_id:
            self.good.endpoint.put_raw(datagram, LNS)
        return "good LAC's port, other ids"

    def behind(self) -> str | None:
        """Send through the tun device what the kernel would send, and what it never would."""
        to = self.random.choice(self.subscribers).address if self.random.random() < 0.5 else IPv4Address("10.1.9.9")
        packet = self.mutator.packet(IPv4Address(HOST[0]).packed, to.packed)
        if not packet:
            return None
        try:
            self.tun.send(packet[:1400])
        except OSError:
            return None  # its queue is full
        return "tun device"

    def datagram(self) -> bytes:
        return self.mutator.datagram()

    def send(self, sock: socket.socket, datagram: bytes) -> None:
        try:
            sock.sendto(datagram, LNS)
        except OSError:
            pass

    def wait_for_queue(self) -> None:
        """Wait until the daemon has read most of what was sent."""
        while True:
            rows = Path(f"/proc/{self.server.pid}/net/udp").read_text().splitlines()[1:]
            queued = [int(row.split()[4].split(":")[1], 16) for row in rows if row.split()[1].endswith(":06A5")]
            if max(queued, default=0) < QUEUE_LIMIT:
                return
            gevent.sleep(0.01)

    # Looking at the daemon

    def sample(self) -> dict[str, Any]:
        """Return the current figures, requested by SIGUSR1."""
        wanted = self.statuses + 1
        self.server.signal(signal.SIGUSR1)
        until = time.monotonic() + 20.0
        while self.statuses < wanted:
            if time.monotonic() > until:
                raise TimeoutError("the daemon does not answer SIGUSR1")
            gevent.sleep(0.02)
            self.read_log()
        row = {name: self.report.last.get(name, 0) for name in TABLES}
        self.report.samples.append(row)
        return row

    def show(self) -> dict[str, Any]:
        """Print a sample and return it."""
        row = self.sample()
        print(f"{self.report.sent:>8} sent: {_figures(row)}; {self.traffic.lost} packets on their way", flush=True)
        return row

    def read_log(self) -> None:
        for line in self.log:
            if line is None:
                return
            entry = json.loads(line)
            event = entry["event"]
            self.report.events[event] += 1
            if event == "status":
                self.statuses += 1
                self.report.last = entry
            elif "traceback" in entry or event in BAD_EVENTS or entry["level"] in ("error", "critical"):
                fault = f"{event}: {entry.get('traceback', line.decode())}"
                if fault not in self.report.faults and len(self.report.faults) < 20:
                    self.report.faults.append(fault)

    def settle(self) -> None:
        """Wait until only the good LAC is left in the tables."""
        until = time.monotonic() + TABLES_TIMEOUT
        while any(self.sample()[name] != value for name, value in CALM.items()):
            self.report.samples.pop()
            gevent.sleep(1.0)
            if time.monotonic() > until:
                self.report.faults.append(f"the tables did not become {CALM} again")
                break
        self.show()

    def judge(self, before: dict[str, Any]) -> None:
        report = self.report
        faults = report.faults
        gone = [subscriber for subscriber in self.subscribers if not subscriber.online]
        if gone or self.good.ended is not None:
            faults.append(f"{len(gone)} good sessions lost; {self.good!r}")
        if report.traffic_lost:
            faults.append(f"{report.traffic_lost} of {report.traffic_sent} checked packets lost")
        memory = [row["rss_kib"] for row in report.samples]
        if memory[-1] > memory[min(2, len(memory) - 1)] + RSS_SLACK:
            faults.append(f"memory grows: {memory} KiB")
        for name in ("greenlets", "descriptors"):
            if report.samples[-1][name] > before[name]:
                faults.append(f"{name}: {before[name]} before, {report.samples[-1][name]} after")
        self.good.close()
        status = self.server.stop()
        self.read_log()
        said = self.server.errors.read_text(errors="backslashreplace")
        if status or said:
            faults.append(f"exit status {status}; on standard error: {said[:4000]}")


def pin() -> None:
    """Move to the last processor, away from the daemon, if there is more than one."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) > 1:
        os.sched_setaffinity(0, {max(allowed)})


def _socket(address: str) -> socket.socket:
    sock: socket.socket = RawSocket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((address, 0))
    return sock


def _figures(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items())


def _follow(file: Path) -> Iterator[bytes | None]:
    """Yield the lines of a growing file, and None when there is no further line yet."""
    rest = b""
    position = 0
    while True:
        octets = b""
        if file.exists():
            with file.open("rb") as stream:
                stream.seek(position)
                octets = stream.read(1 << 24)
        position += len(octets)
        *lines, rest = (rest + octets).split(b"\n")
        yield from lines
        if not octets:
            yield None
