"""What consoles that list everything cost the subscribers.

    python -m bench consoles[:SESSIONS[:CONSOLES[:ROUNDS]]]

50 consoles list 10,000 sessions again and again while packets flow. Measures the time of a ping through the server and
of an LCP echo, alternately with and without the consoles. They are a program of their own at the lowest priority, so
that only their cost for the server shows.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from selectors import EVENT_READ, DefaultSelector
from statistics import quantiles

import gevent

from bench.common import HOST, Bench, bring_up, ours, print_figure
from tests.lab.subscriber import Subscriber

SECONDS = 6.0  # of a round, with and without
INTERVAL = 0.02  # between two pings
RATE = 1000  # packets a second of other subscribers
COMMAND = b"show session\n"


def main(sessions: int = 10_000, consoles: int = 50, rounds: int = 5) -> None:
    with ours(users=sessions) as (bench, server):
        lacs = bench.tunnels()
        storm, _ = bring_up(bench, lacs, sessions)
        subject, *others = storm.subscribers
        traffic = gevent.spawn(flow, others)
        pings: dict[bool, list[float]] = {False: [], True: []}
        echoes: dict[bool, list[float]] = {False: [], True: []}
        busy: dict[bool, list[float]] = {False: [], True: []}
        rows = 0
        gevent.sleep(1.0)
        for _ in range(rounds):
            for on in (False, True):
                looking = look(bench, consoles) if on else None
                gevent.sleep(0.5)
                cpu, begun = server.cpu_seconds(), time.monotonic()
                measure(subject, pings[on], echoes[on])
                busy[on].append(100 * (server.cpu_seconds() - cpu) / (time.monotonic() - begun))
                if looking is not None:
                    looking.terminate()
                    rows += int(looking.communicate()[0])
        traffic.kill()
        for name, times in (("ping", pings), ("LCP echo", echoes)):
            without, looked_at = figures(times[False]), figures(times[True])
            print_figure(f"{name} without consoles", without)
            print_figure(f"{name} with {consoles} consoles", looked_at)
        shares = {on: sum(values) / len(values) for on, values in busy.items()}
        print_figure(
            f"{consoles} consoles, {sessions} sessions",
            f"{rows / rounds / (SECONDS + 0.5):.0f} rows/s to all of them; the server used "
            f"{shares[True]:.0f} % of a core with them, {shares[False]:.0f} % without",
        )


def figures(times: list[float]) -> str:
    cuts = quantiles(times, n=100)
    return f"p50 {1000 * cuts[49]:.1f}, p99 {1000 * cuts[98]:.1f}, longest {1000 * max(times):.0f} ms of {len(times)}"


def measure(subject: Subscriber, pings: list[float], echoes: list[float]) -> None:
    """Measure pings and echoes alternately."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        took = subject.ping(HOST, timeout=5.0)
        pings.append(5.0 if took is None else took)
        gevent.sleep(INTERVAL / 2)
        begun, before = time.monotonic(), subject.echo_replies
        subject.send_echo()
        subject.wait(lambda before=before: subject.echo_replies > before, 5.0)  # type: ignore[misc]
        echoes.append(time.monotonic() - begun)
        gevent.sleep(INTERVAL / 2)


def flow(subscribers: list[Subscriber]) -> None:
    """Send packets to the host, from all subscribers in turn."""
    begun, sent = time.monotonic(), 0
    while True:
        for subscriber in subscribers:
            subscriber.send_udp(HOST, 9, b"x" * 64)
            sent += 1
            if sent % 10 == 0:
                gevent.sleep(max(0.0, begun + sent / RATE - time.monotonic()))


def look(bench: Bench, consoles: int) -> subprocess.Popen[bytes]:
    command = ["nice", "-n", "19", sys.executable, "-m", "bench.bench_consoles", str(consoles)]
    return bench.server.start(*command, stdout=subprocess.PIPE)


def operators(count: int) -> None:
    """Run `count` consoles that list all sessions until SIGTERM, then print the number of rows."""
    selector = DefaultSelector()
    for _ in range(count):
        console = socket.create_connection(("127.0.0.1", 23))
        console.setblocking(False)
        selector.register(console, EVENT_READ)
    rows = 0
    going = True

    def stop(*_: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    while going:
        for key, _ in selector.select(0.1):
            assert isinstance(key.fileobj, socket.socket)
            octets = key.fileobj.recv(65536)
            rows += octets.count(b"\n")
            if octets.endswith(b"> "):
                key.fileobj.send(COMMAND)
    print(rows)


if __name__ == "__main__":
    operators(int(sys.argv[1]))
