"""How many packets a second go through the server, up (from the subscribers) and down, and what is lost.

    python -m bench forward [RUNS [SECONDS]]

bench/blast.c sends as fast as it can and counts what arrives at the other end. A second run offers 70 % of that, to
measure losses without overload. The sessions are real, brought up by the LAC, whose port blast then takes over. Sender
and counter share one CPU, which limits what the server is offered.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from bench.common import (
    HOST,
    LAC,
    LNS,
    Bench,
    bring_up,
    c_available,
    compile_blast,
    middle,
    ours,
    print_figure,
    ratio,
    theirs,
)

SESSIONS = 200
SIZES = (64, 1400)
SHARE = 0.7
PORT = "9"


@dataclass(slots=True)
class Result:
    """Results of one server, direction and size: a value for each run."""

    rate: list[float] = field(default_factory=list)  # packets/s that arrived at full load
    per_cpu: list[float] = field(default_factory=list)  # for each CPU second of the server
    lost: list[float] = field(default_factory=list)  # per cent at 70 %


@dataclass(slots=True)
class Traffic:
    """Sessions of one server, in the form that blast reads."""

    bench: Bench
    port: str
    up: bytes  # lines of "tunnel session address"
    down: bytes  # lines of addresses


def main(runs: int = 3, seconds: int = 3) -> None:
    blast = str(compile_blast())
    why = c_available()
    results: dict[tuple[str, str, int], Result] = {}
    with ExitStack() as stack:
        bench, _ = stack.enter_context(ours(users=SESSIONS))
        servers = [sessions(bench)]
        if not why:
            servers.append(sessions(stack.enter_context(theirs(beside=bench.lab))))
        for _ in range(runs):
            for way in ("up", "down"):
                for size in SIZES:
                    for server in servers:
                        result = results.setdefault((server.bench.name, way, size), Result())
                        measure(server, blast, way, size, seconds, result)
    for (name, way, size), result in results.items():
        print_figure(
            f"{way} {size} octets, {name}",
            f"{middle([rate / 1000 for rate in result.rate])} kpps, "
            f"{middle([rate / 1000 for rate in result.per_cpu])} per CPU second, "
            f"{1e6 / median(result.per_cpu):.1f} us of CPU a packet; "
            f"{median(result.lost):.2f} % lost at {SHARE:.0%} of that rate",
        )
    if why:
        print(f"forward: the C l2tpns is left out: {why}")
        return
    for way in ("up", "down"):
        for size in SIZES:
            one, other = (results[server.bench.name, way, size] for server in servers)
            print_figure(f"{way} {size} octets, ours to C", f"{ratio(one.rate, other.rate)}")


def sessions(bench: Bench) -> Traffic:
    """Bring sessions up, and leave the port of the LAC to blast: missing echoes end no session within seconds."""
    lac = bench.tunnels(1)[0]
    storm, _ = bring_up(bench, [lac], SESSIONS)
    up = "".join(f"{lac.peer_tunnel_id} {call.peer_session_id} {call.address}\n" for call in storm.subscribers)
    down = "".join(f"{call.address}\n" for call in storm.subscribers)
    port = str(lac.endpoint.local[1])
    lac.leave()
    return Traffic(bench, port, up.encode(), down.encode())


def measure(server: Traffic, blast: str, way: str, size: int, seconds: int, result: Result) -> None:
    before = server.bench.cpu()
    _, arrived, took = run(server, blast, way, size, seconds, 0)
    result.per_cpu.append(arrived / (server.bench.cpu() - before))
    result.rate.append(arrived / took)
    sent, arrived, _ = run(server, blast, way, size, seconds, int(SHARE * arrived / took))
    result.lost.append(max(0.0, 100 * (1 - arrived / sent)))


def run(server: Traffic, blast: str, way: str, size: int, seconds: int, rate: int) -> tuple[int, int, float]:
    """Return packets sent, packets that arrived, and the seconds between the first and the last arrival."""
    bench = server.bench
    options = (str(size), str(seconds), str(rate))
    if way == "up":
        receiver, sender = bench.host, bench.lac
        listen, lines = (HOST, PORT), server.up
        argv = ["l2tp", LAC, server.port, LNS, "1701", *options, HOST]
    else:
        receiver, sender = bench.lac, bench.host
        listen, lines = (LAC, server.port), server.down
        argv = ["udp", HOST, "5000", PORT, *options]
    counter = receiver.start(blast, "count", *listen, str(seconds + 5), stdout=subprocess.PIPE)
    with counter:
        said = subprocess.run(
            sender.command(blast, *argv), input=lines, stdout=subprocess.PIPE, check=True, timeout=seconds + 30
        )
        counted, _ = counter.communicate(timeout=seconds + 30)
    sent = int(said.stdout.split()[0])
    packets, _, took = counted.split()
    return sent, int(packets), float(took) or 1.0
