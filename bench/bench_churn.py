"""Does anything grow while sessions come and go, with traffic in the fast path and plugins loaded?

    python -m bench churn[:SECONDS[:SESSIONS]]

SESSIONS (1,000) stay online and carry packets both ways; as many again are replaced, 50 a second, for SECONDS (1,800).
Once a minute a line says what the server holds: memory, descriptors, greenlets, entries of the maps of the fast path,
routes, rules, members of sets. In the last line each must be as in the tenth part of the time; memory may have grown by
GROWTH. No packet may be lost.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from bench.common import print_figure
from bench.loadgen import Load
from bench.variants import Setup, Variant, started
from l2tpns.dataplane.fastpath import layout
from l2tpns.system.libbpf import Map, pinned
from l2tpns.system.routes import PROTOCOL
from tests.lab.server import Server

CHURN = 50  # sessions a second
RATE = 2000.0  # packets a second each way
GROWTH = 2048  # KiB of resident memory
PLUGINS = ("garden", "throttlectl", "snoopctl", "stripdomain")
VARIANT = Variant("fast path", "ours", {"fast_path": "on", "debug": 2, "throttle_speed": 100_000})


def main(seconds: int = 1800, sessions: int = 1000) -> int:
    """Return the exit status: 1 if something grew or was lost."""
    with started(VARIANT, 2 * sessions, plugins=PLUGINS) as setup:
        setup.login(2 * sessions, 64)
        begun, first, samples, lost = time.monotonic(), 0, list[dict[str, Any]](), 0
        while time.monotonic() < begun + seconds:
            lost += minute(setup, sessions, first, len(samples))
            first += 60 * CHURN
            samples.append(sample(setup))
            words = " ".join(f"{name} {value}" for name, value in samples[-1].items())
            print(f"{time.monotonic() - begun:.0f} s: {words} lost {lost}", flush=True)
        early, late = samples[len(samples) // 10], samples[-1]
        grown = [name for name in late if late[name] > early[name] + (GROWTH if name == "rss_kib" else 0)]
        memory = f"{early['rss_kib']} KiB, then {late['rss_kib']} KiB"
        print_figure("churn", f"{first} sessions replaced; memory {memory}; grown: {grown or 'nothing'}; {lost} lost")
        return 1 if grown or lost or setup.lac.stats()["lost"] else 0


def minute(setup: Setup, sessions: int, first: int, number: int) -> int:
    """Replace sessions for a minute, under traffic of those that stay. Return how many packets were lost."""
    loads = Load(2 * number + 1, 256, 58.0, RATE, sessions), Load(2 * number + 2, 256, 58.0, RATE, sessions)
    ends = (setup.lac, setup.net), (setup.net, setup.lac)
    for load, (sender, receiver) in zip(loads, ends, strict=True):
        receiver.expect(load.run)
        sender.send(load)
    for second in range(60):
        at = (first + second * CHURN) % sessions
        due = time.monotonic() + 1.0
        setup.lac.ask(f"hangup {sessions + at} {CHURN}", "hangup")
        report = setup.lac.login(CHURN, window=CHURN)
        if report["failed"]:
            raise RuntimeError(f"logins failed: {report}")
        time.sleep(max(0.0, due - time.monotonic()))
    lost = 0
    for load, (sender, receiver) in zip(loads, ends, strict=True):
        lost += sender.sent(load)["packets"] - receiver.counts()["packets"]
    return lost


def sample(setup: Setup) -> dict[str, Any]:
    """Return what the server holds, in itself and in the kernel."""
    bench = setup.bench
    assert bench is not None and isinstance(bench.process, Server)
    server = bench.process
    count = len(server.log("status"))
    server.signal(signal.SIGUSR1)
    facts = server.wait_for("status", count=count + 1)
    found = {name: facts[name] for name in ("rss_kib", "descriptors", "greenlets", "sessions", "pool_used")}
    (pins,) = {path.parent for path in (setup.directory / "bpf/l2tpns").rglob("sessions")}
    for name, key, value in (
        ("sessions", layout.SESSION_KEY_SIZE, layout.SESSION.size),
        ("addresses", layout.ADDRESS_SIZE, layout.SESSION_KEY_SIZE),
        ("routes", layout.ROUTE_KEY_SIZE, layout.SESSION_KEY_SIZE),
    ):
        found[f"map_{name}"] = len(entries(pins / name, key, value))
    run = bench.server.run
    found["kernel_routes"] = len(run("ip", "route", "show", "proto", str(PROTOCOL)).splitlines())
    found["rules"] = run("iptables-legacy-save").count("-A ")
    found["members"] = run("ipset", "list").count("10.1.")
    found["classes"] = len(run("tc", "class", "show", "dev", "tun0").splitlines())
    return found


def entries(path: Path, key: int, value: int) -> dict[bytes, bytes]:
    table = Map(path.name, pinned(str(path)))
    try:
        return table.entries(key, value)
    finally:
        os.close(table.fd)
