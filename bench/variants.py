"""What `make bench` compares: a row for each server or way of forwarding, and the lab that each one is measured in.

The server has the first CPU for itself, with all that the kernel does for packets on their way through it (RPS). The
generator's processes (LAC, network, RADIUS) have the last one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.common import (
    BUILD,
    HOST,
    LAC,
    LNS,
    OTHER_CPU,
    POOL,
    SECRET,
    SERVER_CPU,
    SUBSCRIBERS_SEE,
    Bench,
    Process,
    pin,
)
from bench.loadgen import Event, Generator
from tests.lab.bpffs import bpf_file_system
from tests.lab.cl2tpns import CServer, unpack
from tests.lab.netns import Lab, Namespace, three_hosts
from tests.lab.server import Server, Setting

TUNNEL_SECRET = "tunnel secret"
PLAIN_FIRST = "10.1.0.10"
SESSIONS_PER_TUNNEL = 500


@dataclass(frozen=True, slots=True)
class Variant:
    """One series of the tables and graphs."""

    name: str
    kind: Literal["ours", "c", "plain"]
    settings: Mapping[str, Setting] = field(default_factory=dict)


VARIANTS = (
    Variant("l2tpns", "ours", {"fast_path": "off"}),
    Variant("fast path", "ours", {"fast_path": "on"}),
    Variant("C l2tpns", "c"),
    Variant("forwarding", "plain"),
)


@dataclass(slots=True)
class Setup:
    """A variant in its lab. `lac` is the generator at the subscribers' end, `net` the one beyond the server."""

    bench: Bench | None
    lac: Generator
    net: Generator
    radius: Generator | None
    directory: Path

    def login(self, sessions: int, window: int) -> Event:
        """Bring sessions up, and let the other end know their addresses."""
        report = self.lac.login(sessions, window=window, timeout=60 + sessions / 20)
        self.lac.ask(f"list {self.directory}/sessions", "list")
        self.net.ask(f"sessions {self.directory}/sessions", "sessions")
        return report


@contextmanager
def started(variant: Variant, sessions: int, *, plugins: Sequence[str] = ()) -> Iterator[Setup]:
    """Start the variant in a lab of its own, with room for so many sessions, none of them up."""
    with Lab() as lab:
        lac, server, host = three_hosts(lab)
        steer(server, SERVER_CPU, "wan", "lan")
        steer(lac, OTHER_CPU, "wan")
        steer(host, OTHER_CPU, "lan")
        enter = lab.stack.enter_context
        net = enter(Generator(host, "net", HOST, str(sessions), cpu=OTHER_CPU))
        if variant.kind == "plain":
            lac.ip("route", "add", "local", "10.1.0.0/16", "dev", "lo")
            lac.route("default", LNS)
            server.route("10.1.0.0/16", LAC)
            listed = lab.directory / "sessions"
            listed.write_text("".join(f"{number} {plain_address(number)}\n" for number in range(sessions)))
            net.ask(f"sessions {listed}", "sessions")
            end = enter(Generator(lac, "plain", HOST, PLAIN_FIRST, str(sessions), cpu=OTHER_CPU))
            yield Setup(None, end, net, None, lab.directory)
            return
        enter(bpf_file_system(lab.directory))
        radius = enter(Generator(server, "radius", "127.0.0.1", "1812", SECRET, cpu=OTHER_CPU))
        process = start_server(variant, lab, server, plugins)
        pin(process.pid, SERVER_CPU)
        try:
            tunnels = max(1, -(-sessions // SESSIONS_PER_TUNNEL))
            options = ("--from", LAC, "--lns", LNS, "--peer", HOST, "--secret", TUNNEL_SECRET)
            words = ("lac", *options, "--tunnels", str(tunnels), "--sessions", str(sessions))
            with Generator(lac, *words, cpu=OTHER_CPU) as generator:
                bench = Bench(variant.name, lab, lac, server, host, process)
                yield Setup(bench, generator, net, radius, lab.directory)
                generator.leave()
        finally:
            if isinstance(process, Server):
                process.kill()
            else:
                process.stop()


def start_server(variant: Variant, lab: Lab, server: Namespace, plugins: Sequence[str]) -> Process:
    shared: dict[str, Setting] = {
        "peer_address": SUBSCRIBERS_SEE,
        "primary_radius": "127.0.0.1",
        "radius_secret": SECRET,
        "radius_authtypes": "pap",
        "radius_accounting": "yes",
        "l2tp_secret": TUNNEL_SECRET,
    }
    process: Process
    if variant.kind == "ours":
        own: dict[str, Setting] = {
            "debug": 3,
            "max_starting_calls": 100_000,
            "max_starting_per_lac": 100_000,
            "save_state": True,
        }
        settings = {**shared, **own, **variant.settings}
        lines = [f'load plugin "{name}"' for name in plugins]
        command = ("taskset", "-c", str(SERVER_CPU), sys.executable, "-m", "l2tpns")
        process = Server(server, lab.directory / "lns", settings=settings, lines=lines, pool=POOL, command=command)
    else:
        settings = {**shared, "bind_address": LNS, **variant.settings}
        process = CServer(server, lab.directory / "c", unpack(BUILD / "cl2tpns"), settings=settings, pool=POOL)
    process.start()
    return process


def plain_address(number: int) -> str:
    """Return the address that the generator's mode `plain` gives to a session."""
    last = int(PLAIN_FIRST.rsplit(".", 1)[1]) + number
    return f"10.1.{last >> 8}.{last & 255}"


def steer(namespace: Namespace, cpu: int, *devices: str) -> None:
    """Have one CPU do the kernel's work for packets that arrive at these devices."""
    for device in devices:
        namespace.run("sh", "-c", f"echo {1 << cpu:x} >/sys/class/net/{device}/queues/rx-0/rps_cpus")
