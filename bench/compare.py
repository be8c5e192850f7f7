"""`make bench`: the servers and plain forwarding side by side, into bench/results.json.

    python -m bench.compare [--quick] [--runs N] [--sessions N,N] [--only NAME,NAME] [--results FILE]

Each run goes through all variants before the next one, so other load of the machine affects all. Every measurement is a
row of the file; bench/report.py makes medians and tables of them.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from compileall import compile_dir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import BUILD, SERVER_CPU, c_available, machine, pin_ourselves
from bench.loadgen import Generator, Load, build
from bench.report import RESULTS, tables
from bench.variants import VARIANTS, Setup, Variant, started
from tests.lab.netns import is_root
from tests.lab.server import CHECKOUT, Server

ALLOWED_LOSS = 0.001
WINDOW = 64  # logins at a time; with 256 the C l2tpns drops messages at 10,000 sessions and waits for repetitions
TICKS = 100  # /proc/stat
SETTLE = 0.3  # seconds until what is on its way has arrived
RESTART_RATE = 20_000.0  # packets a second each way during a restart
DEAD = 1.0  # seconds without a process


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    runs: int
    sessions: tuple[int, ...]
    octets: tuple[int, ...]
    seconds: float
    steps: int
    idle_seconds: float


WHOLE = Plan(3, (1, 1000, 10_000, 60_000), (64, 1400), 2.0, 7, 20.0)
QUICK = Plan(1, (1000,), (64,), 0.7, 5, 0.0)


class Traffic:
    """Loads through one variant, with a number for each run."""

    def __init__(self, setup: Setup, sessions: int) -> None:
        self.setup = setup
        self.sessions = sessions
        self.run = 0

    def ends(self, way: str) -> tuple[Generator, Generator]:
        """Return the sender and the receiver of a direction."""
        both = (self.setup.lac, self.setup.net)
        return both if way == "up" else (both[1], both[0])

    def offer(self, way: str, octets: int, seconds: float, rate: float) -> dict[str, float]:
        """Send for some seconds. Return sent, arrived, packets a second and CPU microseconds of the server's CPU."""
        self.run += 1
        sender, receiver = self.ends(way)
        load = Load(self.run, octets, seconds, rate, self.sessions)
        receiver.expect(self.run)
        before = busy_seconds(SERVER_CPU)
        sender.send(load)
        sent = sender.sent(load)
        time.sleep(SETTLE)
        busy = busy_seconds(SERVER_CPU) - before
        counts = receiver.counts()
        if counts["corrupt"] or counts["misdelivered"]:
            raise RuntimeError(f"packets were changed or misdelivered: {counts}")
        arrived = int(counts["packets"])
        return {
            "sent": sent["packets"],
            "arrived": arrived,
            "rate": arrived / max(sent["seconds"], counts["seconds"]),
            "cpu_us": busy / arrived * 1e6 if arrived else 0.0,
        }

    def loss_free(self, way: str, octets: int, seconds: float, most: float, steps: int) -> float:
        """Return the highest rate, up to `most`, of which less than 0.1 % is lost, by bisection."""
        low, high = 0.0, most
        for _ in range(steps):
            rate = (low + high) / 2
            done = self.offer(way, octets, seconds, rate)
            if done["arrived"] >= done["sent"] * (1 - ALLOWED_LOSS):
                low = done["sent"] / seconds
            else:
                high = rate
        return low

    def ping(self, half: float) -> dict[str, float]:
        """Return round-trip percentiles, beside `half` packets a second up if it is not 0."""
        self.run += 2
        load = Load(self.run, 64, 2.0, 200, self.sessions)
        beside = Load(self.run - 1, 64, 2.5, half, self.sessions)
        if half:
            self.setup.lac.send(beside)
        self.setup.lac.ping(load)
        pinged = self.setup.lac.pinged(load)
        if half:
            self.setup.lac.sent(beside)
        lost = pinged["sent"] - pinged["round_trip_ms"]["count"]
        return {**pinged["round_trip_ms"], "lost": lost}

    def restart(self, server: Server, how: signal.Signals) -> dict[str, float]:
        """End the server under traffic both ways and start it again. Return packets sent and lost, and its times."""
        seconds = 5.0 + self.sessions / 4000
        loads = {}
        for way in ("up", "down"):
            self.run += 1
            loads[way] = Load(self.run, 64, seconds, RESTART_RATE, self.sessions)
            self.ends(way)[1].expect(self.run)
        for way, load in loads.items():
            self.ends(way)[0].send(load)
        time.sleep(1.0)
        begun = time.monotonic()
        if how == signal.SIGKILL:
            server.kill()
        else:
            server.stop(how)
        found = {"leaving_s": time.monotonic() - begun}
        time.sleep(DEAD)
        server.start()
        found["starting_s"] = server.started_in
        for way, load in loads.items():
            sent = self.ends(way)[0].sent(load)["packets"]
            time.sleep(SETTLE)
            counts = self.ends(way)[1].counts()
            found |= {f"{way}_sent": sent, f"{way}_lost": sent - counts["packets"], f"{way}_late": counts["late"]}
        return found


def measure(variant: Variant, sessions: int, plan: Plan) -> dict[str, Any]:
    """Return a row: all figures of one variant with so many sessions."""
    with started(variant, sessions) as setup:
        row: dict[str, Any] = {"variant": variant.name, "sessions": sessions}
        if setup.bench is not None:
            bench = setup.bench
            cpu, memory = bench.cpu(), bench.rss()
            row["setup"] = setup.login(sessions, WINDOW)
            row["setup"]["cpu_us"] = (bench.cpu() - cpu) / sessions * 1e6
            row["memory"] = {"empty": memory, "all": bench.rss()}
            if plan.idle_seconds:
                time.sleep(10.0)  # the first echoes are due 10 s after a login
                cpu = bench.cpu()
                time.sleep(plan.idle_seconds)
                row["idle_cpu"] = (bench.cpu() - cpu) / plan.idle_seconds
        traffic = Traffic(setup, sessions)
        row["forward"] = dict(forwarding(traffic, plan))
        half = row["forward"]["up 64"]["loss_free"] / 2
        row["round_trip"] = {"idle": traffic.ping(0.0), "half load": traffic.ping(half)}
        if setup.bench is not None:
            if isinstance(bench.process, Server):
                for how in (signal.SIGKILL, signal.SIGTERM):
                    row[f"restart by {how.name}"] = traffic.restart(bench.process, how)
            row["lost_sessions"] = setup.lac.stats()["lost"]
        return row


def forwarding(traffic: Traffic, plan: Plan) -> Iterator[tuple[str, dict[str, float]]]:
    for way in ("up", "down"):
        for octets in plan.octets:
            traffic.offer(way, octets, 0.3, 0.0)  # warm-up
            full = traffic.offer(way, octets, plan.seconds, 0.0)
            # Drops cost too: a server in user space carries more at a rate that it can carry than when it is flooded.
            free = traffic.loss_free(way, octets, plan.seconds, 2 * full["rate"], plan.steps + 1)
            yield f"{way} {octets}", {"saturated": full["rate"], "cpu_us": full["cpu_us"], "loss_free": free}


def busy_seconds(cpu: int) -> float:
    """Return the seconds that a CPU has not been idle."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{cpu}":
            user, nice, system, _, _, irq, softirq = map(int, ticks[:7])
            return (user + nice + system + irq + softirq) / TICKS
    raise ValueError(f"no cpu{cpu} in /proc/stat")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.compare")
    parser.add_argument("--quick", action="store_true", help="1,000 sessions, small packets, one run")
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--sessions", type=lambda text: tuple(map(int, text.split(","))), default=())
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="names of variants")
    parser.add_argument("--results", type=Path, help="file to write (bench/results.json; --quick: below build/)")
    options = parser.parse_args(words)
    if not is_root():
        print("bench: needs root, for network namespaces", file=sys.stderr)
        return 2
    why = c_available()
    if why:
        print(f"bench: the C l2tpns is left out: {why}")
    variants = [one for one in VARIANTS if not (why and one.kind == "c")]
    if unknown := set(options.only) - {one.name for one in variants}:
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    plan = QUICK if options.quick else WHOLE
    file = options.results or (BUILD / "quick.json" if options.quick else RESULTS)
    build()
    compile_dir(CHECKOUT / "l2tpns", quiet=1)  # as an installation has it: else each start of the server compiles
    pin_ourselves()
    results: dict[str, Any] = {"machine": machine(), "rows": []}
    print(results["machine"], flush=True)
    for run in range(options.runs or plan.runs):
        for sessions in options.sessions or plan.sessions:
            for variant in variants:
                if options.only and variant.name not in options.only:
                    continue
                print(f"run {run + 1}, {sessions} sessions, {variant.name}", flush=True)
                results["rows"].append(measure(variant, sessions, plan))
                file.write_text(json.dumps(results, indent=1) + "\n")
    print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
