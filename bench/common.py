"""What the benchmarks share: the hosts, the servers they compare, pinned CPUs, and how a figure is printed.

Both servers (ours, and the C l2tpns of the Debian package) run in the same place of the same kind of lab, with the same
FreeRADIUS, alternately: other load of the machine affects both. The server has the first CPU for itself, everything
else (LAC, clients, FreeRADIUS, the host beyond) the last one.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

import gevent

from tests.lab.cl2tpns import CServer, unpack
from tests.lab.freeradius import FreeRadius, installed
from tests.lab.lac import Lac
from tests.lab.netns import Lab, Namespace, three_hosts
from tests.lab.server import CHECKOUT, Server, Setting
from tests.lab.storm import Storm, StormReport

LAC, LNS, HOST = "192.0.2.2", "192.0.2.1", "198.51.100.2"
SUBSCRIBERS_SEE = "10.1.0.1"
POOL = "10.1.0.0/16\n"
TUNNELS = 4
SECRET = "testing123"
PASSWORD = "secret"
CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU, OTHER_CPU = CPUS[0], CPUS[-1]
BUILD = CHECKOUT / "build/bench"
# A storm asks for more at once than one LAC may have in production.
OURS: Mapping[str, Setting] = {"debug": 3, "max_starting_calls": 5000, "max_starting_per_lac": 5000}


class Process(Protocol):
    """A running server."""

    @property
    def pid(self) -> int: ...

    def start(self) -> None: ...

    def stop(self) -> object: ...


@dataclass(slots=True)
class Bench:
    """A server in its lab, and the load on it."""

    name: str
    lab: Lab
    lac: Namespace
    server: Namespace
    host: Namespace
    process: Process

    def cpu(self) -> float:
        """Return the CPU seconds that the server has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))

    def rss(self) -> int:
        """Return the resident octets of the server."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def tunnels(self, count: int = TUNNELS) -> list[Lac]:
        """Return established tunnels, with a socket each."""
        with self.lac.entered():
            lacs = [Lac((LAC, 0), (LNS, 1701), f"lac{number}") for number in range(count)]
        return [lac.connect() for lac in lacs]


@contextmanager
def ours(
    *,
    radius: bool = False,
    settings: Mapping[str, Setting] | None = None,
    users: int = 0,
    beside: Lab | None = None,
) -> Iterator[tuple[Bench, Server]]:
    """Start our server with a secrets file, or with FreeRADIUS; in a lab of its own, or in `beside`."""
    with nullcontext(beside) if beside else Lab() as lab:
        lac, server, host = three_hosts(lab)
        everything: dict[str, Setting] = {**OURS, "peer_address": SUBSCRIBERS_SEE, **(settings or {})}
        if radius:
            start_radius(lab, server)
            everything |= {"primary_radius": "127.0.0.1", "radius_secret": SECRET}
        secrets = "".join(f"user{number:06d} * {PASSWORD} *\n" for number in range(users))
        process = Server(server, lab.directory / "lns", settings=everything, secrets=secrets or None, pool=POOL)
        process.start()
        pin(process.pid, SERVER_CPU)
        try:
            yield Bench("l2tpns", lab, lac, server, host, process), process
        finally:
            if process.process is not None and process.process.poll() is None:
                process.stop(timeout=120)


@contextmanager
def theirs(*, settings: Mapping[str, Setting] | None = None, beside: Lab | None = None) -> Iterator[Bench]:
    """Start the C l2tpns with FreeRADIUS: it has no other way to authenticate."""
    package = unpack(BUILD / "cl2tpns")
    with nullcontext(beside) if beside else Lab() as lab:
        lac, server, host = three_hosts(lab)
        start_radius(lab, server)
        everything: dict[str, Setting] = {
            "bind_address": LNS,
            "peer_address": SUBSCRIBERS_SEE,
            "primary_radius": "127.0.0.1",
            "radius_secret": SECRET,
            "radius_authtypes": "pap,chap",
            **(settings or {}),
        }
        process = CServer(server, lab.directory / "c", package, settings=everything, pool=POOL)
        process.start()
        pin(process.pid, SERVER_CPU)
        try:
            yield Bench("C l2tpns", lab, lac, server, host, process)
        finally:
            process.stop()


def start_radius(lab: Lab, namespace: Namespace) -> None:
    """Start FreeRADIUS beside the server, with one password for every name. The C l2tpns signs no requests."""
    users = f'DEFAULT Cleartext-Password := "{PASSWORD}"\n'
    radius = FreeRadius(users, secret=SECRET, port=1812, prefix=tuple(namespace.command()), sign=False)
    configuration = radius.root / "radiusd.conf"
    text = configuration.read_text()
    text = text.replace("require_message_authenticator = yes", "require_message_authenticator = no")
    configuration.write_text(text.replace("auth = yes", "auth = no"))
    lab.stack.callback(radius.close)
    radius.start()


def c_available() -> str:
    """Return why the C l2tpns cannot be measured here; empty if it can."""
    if not installed():
        return "FreeRADIUS is not installed"
    try:
        unpack(BUILD / "cl2tpns")
    except Exception as error:
        return f"its Debian package is unavailable ({type(error).__name__})"
    return ""


def compile_blast() -> Path:
    """Build bench/blast.c if it has changed. Return the program."""
    source, program = Path(__file__).with_name("blast.c"), BUILD / "blast"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
    return program


# CPUs


def pin(pid: int, cpu: int) -> None:
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), {cpu})


def pin_ourselves() -> None:
    """Keep this process, and what it starts from now on, off the CPU of the server."""
    os.sched_setaffinity(0, {OTHER_CPU})


# Figures


def print_figure(what: str, figures: str) -> None:
    """Print one line: what, the figures, where."""
    print(f"{what}: {figures} [{platform.python_version()}, load {os.getloadavg()[0]:.1f}]", flush=True)


def machine() -> str:
    """Return the line above all figures."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = " ".join(line.partition(":")[2].split())
            break
    return (
        f"{time.strftime('%Y-%m-%d')}: {model}, {len(CPUS)} CPUs; Linux {platform.release()}; "
        f"Python {platform.python_version()}, gevent {gevent.__version__}; load {os.getloadavg()[0]:.1f}"
    )


def middle(values: list[float]) -> str:
    """Return the median with the lowest and highest value."""
    return f"{median(values):.0f} ({min(values):.0f}..{max(values):.0f})"


def ratio(one: list[float], other: list[float]) -> str:
    return f"{median(one) / median(other):.2f}"


# Sessions


def bring_up(bench: Bench, lacs: list[Lac], count: int, first: int = 0, **options: object) -> tuple[Storm, StormReport]:
    """Run a storm in which every call must succeed."""
    storm = Storm(lacs, count, first=first, **options)  # type: ignore[arg-type]
    report = storm.run(60 + count / 50)
    if report.online != count:
        raise RuntimeError(f"{bench.name}: {report}")
    return storm, report


def settle(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait for a condition. Return True if it came true in time."""
    until = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > until:
            return False
        gevent.sleep(0.05)
    return True
