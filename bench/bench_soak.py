"""Do 10,000 sessions come up and stay up through five minutes of LCP echoes, with none lost?

    python -m bench soak[:SECONDS[:SESSIONS]]        (`make soak`)

Every subscriber answers the server's echoes (one each 10 s of silence), and sends one of its own each 25 s, which the
server must answer. Meanwhile one subscriber pings the host beyond: the worst time is the longest pause of the server.
At the end each subscriber sends two packets through the server, and they must come back.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Sequence

import gevent

from bench.common import HOST, bring_up, ours, print_figure, settle
from tests.lab.netns import Namespace
from tests.lab.server import CHECKOUT
from tests.lab.storm import Storm, exchange
from tests.lab.subscriber import Subscriber

ECHO = 25.0  # seconds between two echoes of a subscriber: longer than echo_timeout, so that the server asks, too
PORT = 7000


def main(seconds: int = 300, sessions: int = 10_000) -> int:
    """Return the exit status: 1 if a session or an echo was lost."""
    with ours(users=sessions, settings={"debug": 3}) as (bench, server):
        lacs = bench.tunnels()
        empty = bench.rss()
        storm, report = bring_up(bench, lacs, sessions)
        print_figure("soak, set-up", f"{report}; {(bench.rss() - empty) / sessions / 1024:.1f} KiB a session")
        gc.freeze()  # a collection over all these clients would look like a pause of the server
        begun, before = time.monotonic(), bench.cpu()
        pings: list[float] = []
        echoes = gevent.spawn(send_echoes, storm.subscribers)
        pinger = gevent.spawn(ping, storm.subscribers[0], pings)
        for minute in range(1, seconds // 60 + 1):
            gevent.sleep(max(0.0, begun + 60 * minute - time.monotonic()))
            print(f"soak, minute {minute}: {online(storm)} online, {bench.rss() >> 20} MiB", flush=True)
        gevent.sleep(max(0.0, begun + seconds - time.monotonic()))
        cpu = (bench.cpu() - before) / (time.monotonic() - begun)
        gevent.killall([echoes, pinger])
        asked: int = echoes.value
        settle(lambda: replies(storm) >= asked, 5)
        answered = sum(subscriber.echoes_answered for subscriber in storm.subscribers)
        print_figure(
            "soak, echoes",
            f"{asked} sent and {replies(storm)} answered by the server; it sent {answered}; {cpu:.1%} of a CPU",
        )
        pings.sort()
        p50, p99 = (pings[int(len(pings) * share)] * 1e3 for share in (0.5, 0.99))
        print_figure("soak, ping meanwhile", f"{len(pings)}, p50 {p50:.1f} p99 {p99:.1f} max {pings[-1] * 1e3:.1f} ms")
        start_echo(bench.host)
        flows = exchange(storm.subscribers, (HOST, PORT), count=2, rate=4000.0)
        print_figure("soak, packets of all", str(flows))
        lost, ended = sessions - online(storm), len(server.log("session_down"))
        print_figure("soak", f"{sessions} sessions, {seconds} s: {lost} lost; {ended} ended by the log")
        return 1 if lost or ended or replies(storm) < asked or flows.lost else 0


def online(storm: Storm) -> int:
    return sum(subscriber.online for subscriber in storm.subscribers)


def replies(storm: Storm) -> int:
    return sum(subscriber.echo_replies for subscriber in storm.subscribers)


def send_echoes(subscribers: Sequence[Subscriber]) -> int:
    """Send echoes from each subscriber in turn, one each in ECHO seconds. Return how many, when killed."""
    begun, sent = time.monotonic(), 0
    try:
        while True:
            due = int((time.monotonic() - begun) * len(subscribers) / ECHO)
            while sent < due:
                subscribers[sent % len(subscribers)].send_echo()
                sent += 1
            gevent.sleep(0.02)
    except gevent.GreenletExit:
        return sent


def ping(subscriber: Subscriber, times: list[float]) -> None:
    while True:
        took = subscriber.ping(HOST, timeout=5.0)
        times.append(5.0 if took is None else took)
        gevent.sleep(0.05)


def start_echo(host: Namespace) -> None:
    """Make the host beyond send marked packets back, until the lab ends."""
    program = (sys.executable, "-m", "tests.lab.traffic", "--listen", f"{HOST}:{PORT}")
    process = host.start(*program, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
