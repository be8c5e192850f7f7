"""What saved state costs in operation, and how long a restart takes.

    python -m bench restart [SESSIONS]

The journal's share of a core with SESSIONS (10,000) online, half of them with a packet each second. Then SIGTERM and
start, kill -9 and start: seconds until the process has ended, until it is ready, and until each session has forwarded
a ping. Also the rate of set-up with and without the journal.
"""

from __future__ import annotations

import signal
import time

import gevent

from bench.common import HOST, Bench, bring_up, ours, print_figure
from tests.lab.lac import Lac
from tests.lab.server import Server

SAMPLE = 10.0


def main(sessions: int = 10_000) -> None:
    for save in (False, True):
        with ours(users=sessions, settings={"save_state": save}) as (bench, server):
            lacs = bench.tunnels()
            begun, cpu = time.monotonic(), server.cpu_seconds()
            bring_up(bench, lacs, sessions)
            took, cpu = time.monotonic() - begun, server.cpu_seconds() - cpu
            journal = "with" if save else "without"
            print_figure(
                f"set-up {journal} the journal",
                f"{sessions / took:.0f} sessions/s, {cpu / sessions * 1e6:.0f} us of CPU each",
            )
            gevent.sleep(3.0)
            busy(lacs, 5.0)
            cpu = server.cpu_seconds()
            busy(lacs, SAMPLE)
            print_figure(
                f"traffic {journal} the journal",
                f"{(server.cpu_seconds() - cpu) / SAMPLE * 100:.1f} % of a core, {sessions // 2} packets/s",
            )
            if save:
                size = sum(path.stat().st_size for path in (server.directory / "state").glob("*.state"))
                print_figure("the journal", f"{size / sessions:.0f} octets a session")
                for how in (signal.SIGTERM, signal.SIGKILL):
                    restart(bench, server, lacs, how, sessions)


def busy(lacs: list[Lac], seconds: float) -> None:
    """Send a packet a second from every second session."""
    end = time.monotonic() + seconds
    subscribers = [s for lac in lacs for s in list(lac.sessions.values())[::2]]
    while time.monotonic() < end:
        begun = time.monotonic()
        for number, subscriber in enumerate(subscribers):
            subscriber.send_udp(HOST, 9, b"x" * 64)
            if number % 100 == 99:
                gevent.sleep(max(0.0, begun + number / len(subscribers) - time.monotonic()))
        gevent.sleep(max(0.0, begun + 1.0 - time.monotonic()))


def restart(bench: Bench, server: Server, lacs: list[Lac], how: signal.Signals, sessions: int) -> None:
    lines = len(server.log())
    begun = time.monotonic()
    if how is signal.SIGTERM:
        server.stop(how)
    else:
        server.kill()
    down = time.monotonic()
    server.start(60.0)
    up = time.monotonic()
    took = server.wait_for("ready", after=lines)["took"]
    resumed = server.wait_for("state_resumed", after=lines)
    answered = 0
    subscribers = [s for lac in lacs for s in lac.sessions.values()]
    for chunk in range(0, len(subscribers), 500):
        pings = [gevent.spawn(s.ping, HOST) for s in subscribers[chunk : chunk + 500]]
        gevent.joinall(pings)
        answered += sum(ping.value is not None for ping in pings)
    print_figure(
        f"{how.name}, {sessions} sessions",
        f"left in {down - begun:.2f} s, ready {up - down:.2f} s after the start ({took:.2f} s of it our own), "
        f"{resumed['sessions']} restored, {answered} answer a ping",
    )
