"""What do those who are online notice when a LAC with 10,000 sessions vanishes, and when it comes back at once?

    python -m bench outage[:BACK[:ONLINE]]

Two LACs have BACK and ONLINE sessions (10,000 each). The second LAC's sessions carry 5,000 packets a second each way,
and 200 pings a second, in spans of 10 s. The first LAC is killed and started again: it calls for all its sessions at
once, and again a second later for those that were refused. Later it is killed for good, and the server ends its
sessions. The server has its default limits of starting calls. A line for each span; at the end the exit status is 1 if
a session of those online was lost.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent

from bench.common import HOST, LNS, OTHER_CPU, print_figure
from bench.loadgen import Generator, Load
from bench.variants import SESSIONS_PER_TUNNEL, TUNNEL_SECRET, Setup, Variant, started
from tests.lab.server import Server

OTHER_LAC = "192.0.2.3"
SPAN = 10.0  # seconds
RATE, PINGS = 5000.0, 200.0  # a second
REDIAL = 1.0  # seconds
# The first 50 s after the last word of a LAC pass before its tunnels are given up; then its sessions end.
VANISHING = 120.0  # seconds at most
DEFAULTS = {"max_starting_calls": 2000, "max_starting_per_lac": 1000}
VARIANT = Variant("fast path", "ours", {"fast_path": "on", "debug": 2, **DEFAULTS})


def main(back: int = 10_000, online: int = 10_000) -> int:
    """Return the exit status."""
    with started(VARIANT, online) as setup:
        bench = setup.bench
        assert bench is not None and isinstance(bench.process, Server)
        bench.lac.ip("address", "add", f"{OTHER_LAC}/24", "dev", "wan")
        setup.login(online, 64)
        traffic = Spans(setup, online)
        with calling(setup, back) as lac:
            print_figure("first login of the LAC", describe([lac.login(back, window=64)]))
            traffic.span("calm")
            lac.leave()
        with calling(setup, back) as lac:
            login = gevent.spawn(come_back, lac, back)
            while not login.ready():
                traffic.span("it is back")
            print_figure("second login of the LAC", login.get())
            traffic.span("calm")
            lac.leave()
        deadline = time.monotonic() + VANISHING
        while sessions(bench.process) > online and time.monotonic() < deadline:
            traffic.span("it has vanished")
        traffic.span("calm")
        lost = setup.lac.stats()["lost"]
        print_figure("sessions", f"{sessions(bench.process)} online, {lost} lost of those {online}")
        return int(lost > 0)


@contextmanager
def calling(setup: Setup, count: int) -> Iterator[Generator]:
    """Start the LAC that vanishes."""
    assert setup.bench is not None
    options = ("--from", OTHER_LAC, "--lns", LNS, "--peer", HOST, "--secret", TUNNEL_SECRET, "--name", "vanishing")
    tunnels = max(1, -(-count // SESSIONS_PER_TUNNEL))
    words = ("lac", *options, "--users", "back", "--tunnels", str(tunnels), "--sessions", str(count))
    with Generator(setup.bench.lac, *words, cpu=OTHER_CPU) as generator:
        yield generator


def come_back(lac: Generator, count: int) -> str:
    """Call for all sessions at once until all are online. Return how that went."""
    begun, reports = time.monotonic(), []
    while count:
        reports.append(lac.login(count, window=count, timeout=300.0))
        count -= reports[-1]["up"]
        if count:
            gevent.sleep(REDIAL)
    return f"{describe(reports)}; all after {time.monotonic() - begun:.1f} s"


def describe(reports: list[dict[str, object]]) -> str:
    parts = []
    for report in reports:
        refused = {name: many for name, many in report["failures"].items() if many}  # type: ignore[attr-defined]
        parts.append(f"{report['up']} of {report['asked']} online in {report['seconds']:.1f} s, failed {refused or 0}")
    return "; ".join(parts)


def sessions(server: Server) -> int:
    """Return how many sessions the server has."""
    count = len(server.log("status"))
    server.signal(signal.SIGUSR1)
    return int(server.wait_for("status", count=count + 1)["sessions"])


class Spans:
    """Traffic of those online, and what they notice."""

    def __init__(self, setup: Setup, online: int) -> None:
        self.setup, self.online = setup, online
        self.run = 0

    def span(self, name: str) -> None:
        """Carry packets and pings for a span, and print how many were lost and how long pings took."""
        ends = ((self.setup.lac, self.setup.net), (self.setup.net, self.setup.lac))
        loads = []
        for sender, receiver in ends:
            self.run += 1
            loads.append(Load(self.run, 256, SPAN, RATE, self.online))
            receiver.expect(self.run)
            sender.send(loads[-1])
        self.run += 1
        pings = Load(self.run, 64, SPAN, PINGS, self.online)
        self.setup.lac.ping(pings)
        lost = []
        for load, (sender, receiver) in zip(loads, ends, strict=True):
            sent = sender.sent(load)["packets"]
            lost.append(f"{sent - receiver.counts()['packets']} of {sent}")
        pinged = self.setup.lac.pinged(pings)
        times = pinged["round_trip_ms"]
        words = f"lost {lost[0]} up, {lost[1]} down; ping p50 {times['p50']:.2f} p99 {times['p99']:.1f} "
        print_figure(name, f"{words}max {times['max']:.1f} ms, {pinged['sent'] - times['count']} lost")
