"""What interception costs, and that a lost sink costs the subscriber nothing.

    python -m bench snoop [RUNS]

TCP through one call, alternately up and down: not intercepted, copies to a sink that reads them, to a closed port, to
a host that does not exist, to a network without a route. Then packets at full load of 200 subscribers (as `forward`),
none of them and all of them intercepted: CPU of the server for each packet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

import gevent
import gevent.socket

from bench.bench_forward import SESSIONS, Traffic, run
from bench.common import HOST, Bench, bring_up, compile_blast, middle, ours, print_figure, ratio
from tests.lab.console import Console
from tests.lab.lac import Lac
from tests.lab.netns import Namespace
from tests.lab.transfer import transfer
from tests.lab.tun import TunLink

PORT = 9000
OCTETS = 8_000_000
SECONDS = 3
NONE, TAKEN = "not intercepted", "copies are read"
SINKS = {
    NONE: "",
    TAKEN: f"203.0.113.2 {PORT}",
    "port is closed": f"203.0.113.2 {PORT + 1}",
    "host is not there": f"203.0.113.99 {PORT}",
    "no route": f"192.88.99.1 {PORT}",
}


@dataclass(slots=True)
class Result:
    """Results: a value for each run."""

    rate: list[float] = field(default_factory=list)
    per_cpu: list[float] = field(default_factory=list)


def main(runs: int = 3) -> None:
    with ours(users=SESSIONS) as (bench, _):
        mediator = bench.lab.namespace("mediator")
        bench.lab.link(bench.server, "copies", "203.0.113.1/24", mediator, "copies", "203.0.113.2/24")
        reader = gevent.spawn(take, mediator)
        with Console(bench.server) as console:
            lac = bench.tunnels(1)[0]
            transfers(bench, console, lac, runs)
            packets(bench, console, lac, runs)
        reader.kill()


def take(space: Namespace) -> None:
    """Read the copies, as the sink that gets them."""
    with space.entered():
        sock = gevent.socket.socket(gevent.socket.AF_INET, gevent.socket.SOCK_DGRAM)
    sock.bind(("203.0.113.2", PORT))
    while True:
        sock.recv(65535)


def transfers(bench: Bench, console: Console, lac: Lac, runs: int) -> None:
    """Measure each direction with each sink, alternately."""
    storm, _ = bring_up(bench, [lac], 1)
    (subscriber,) = storm.subscribers
    with bench.lac.entered():
        link = TunLink(subscriber, "tun-bench")
    results: dict[tuple[str, str], Result] = {}
    ways = {"up": (bench.lac, link.address, bench.host, HOST), "down": (bench.host, HOST, bench.lac, link.address)}
    for _ in range(runs):
        for way, ends in ways.items():
            for name, sink in SINKS.items():
                console.do(f"snoop user000000 {sink}" if sink else "no snoop user000000")
                result = results.setdefault((way, name), Result())
                before = bench.cpu()
                took = transfer(*ends, octets=OCTETS, timeout=120.0)
                result.rate.append(OCTETS / took / 1e6)
                result.per_cpu.append(OCTETS / max(bench.cpu() - before, 0.01) / 1e6)
    console.do("no snoop user000000")
    for (way, name), result in results.items():
        without = results[way, NONE]
        print_figure(
            f"snoop, TCP {way}, {name}",
            f"{middle(result.rate)} MB/s, {ratio(result.rate, without.rate)} of not intercepted; "
            f"{middle(result.per_cpu)} MB for each CPU second, {ratio(result.per_cpu, without.per_cpu)}",
        )
    with bench.lac.entered():
        link.close()
    subscriber.terminate()
    subscriber.wait_ended()


def packets(bench: Bench, console: Console, lac: Lac, runs: int) -> None:
    """Measure at full load. In the end blast has the port of the LAC."""
    blast = str(compile_blast())
    storm, _ = bring_up(bench, [lac], SESSIONS)
    up = "".join(f"{lac.peer_tunnel_id} {call.peer_session_id} {call.address}\n" for call in storm.subscribers)
    down = "".join(f"{call.address}\n" for call in storm.subscribers)
    traffic = Traffic(bench, str(lac.endpoint.local[1]), up.encode(), down.encode())
    lac.leave()
    names = [call.user.decode() for call in storm.subscribers]
    groups = [" ".join(names[first : first + 50]) for first in range(0, SESSIONS, 50)]
    all_of_them = [f"snoop {group}" for group in groups]
    console.do("set snoop_host 203.0.113.2")
    states = {
        NONE: [f"no {line}" for line in all_of_them],
        "ip": ["set snoop_format ip", f"set snoop_port {PORT}", *all_of_them],
        "framed": ["set snoop_format framed", f"set snoop_port {PORT}", *all_of_them],
        "framed, port is closed": ["set snoop_format framed", f"set snoop_port {PORT + 1}", *all_of_them],
    }
    results: dict[tuple[str, str], list[float]] = {}
    for _ in range(runs):
        for name, lines in states.items():
            for line in lines:
                console.do(line)
            assert len(console.rows("show snoop")) == (0 if name == NONE else SESSIONS)
            for way in ("up", "down"):
                before = bench.cpu()
                _, arrived, _ = run(traffic, blast, way, 1400, SECONDS, 0)
                results.setdefault((way, name), []).append(1e6 * (bench.cpu() - before) / arrived)
    for (way, name), costs in results.items():
        more = median(costs) - median(results[way, NONE])
        print_figure(f"snoop, 1400 octets {way}, {name}", f"{median(costs):.1f} us of CPU a packet, {more:+.1f}")
