"""Build network namespaces joined by veth pairs, for the demo, live tests, interop tests and bench.

    with Lab() as lab:
        lac, server = lab.namespace("lac"), lab.namespace("server")
        lab.link(lac, "wan", "192.0.2.2/24", server, "wan", "192.0.2.1/24")
        lac.run("ping", "-c1", "192.0.2.1")

Names carry the process id, so several labs live side by side; a lab whose process died without cleaning up
is removed by the next one. Leaving the `with` ends every process started through the lab and deletes its
namespaces, also after an error. Needs root; nothing outside the namespaces is touched.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import IO, Self

from tests.lab import PATIENCE

PREFIX = "l2tpns-lab"
CLONE_NEWNET = 0x40000000  # linux/sched.h; os.setns comes with Python 3.12 only
RUN_NETNS = Path("/run/netns")
REPORT = re.compile(r"(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped by kernel")

_libc = ctypes.CDLL(None, use_errno=True)
_machine: int | None = None  # the network that this process was in before leave_network()


class CommandFailed(Exception):
    """Report that a command of the lab ended with an error. The text holds its output."""


def run(*argv: str, check: bool = True, timeout: float = 60.0, input: str | None = None) -> str:
    """Run a command and return what it printed (standard output and error together)."""
    done = subprocess.run(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        input=input,
        text=True,
        errors="replace",
    )
    if check and done.returncode != 0:
        raise CommandFailed(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def end(process: subprocess.Popen[bytes], *, by: int = signal.SIGTERM, patience: float = PATIENCE) -> int:
    """Terminate a process, or kill it if it has not exited in `patience` seconds. Return its exit status."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            process.send_signal(by)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


class Namespace:
    """Run commands and open sockets in one network namespace."""

    def __init__(self, name: str, label: str) -> None:
        self.name = name
        self.label = label
        self.processes: list[subprocess.Popen[bytes]] = []

    def command(self, *argv: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, check: bool = True, timeout: float = 60.0, input: str | None = None) -> str:
        return run(*self.command(*argv), check=check, timeout=timeout, input=input)

    def ip(self, *argv: str, check: bool = True) -> str:
        return run("ip", "-netns", self.name, *argv, check=check)

    def start(
        self,
        *argv: str,
        stdin: IO[bytes] | int | None = subprocess.DEVNULL,
        stdout: IO[bytes] | int | None = subprocess.DEVNULL,
        stderr: IO[bytes] | int | None = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
        cwd: str | Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a process that runs at the latest until the lab ends. Its pid is the command's own."""
        # In a session of its own: ^C reaches only us, and a daemon that signals its group (the C l2tpns) only itself.
        process = subprocess.Popen(
            self.command(*argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move this thread into the namespace for the block. The block must not yield."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        target = os.open(RUN_NETNS / self.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(target)
            try:
                yield
            finally:
                _setns(own)
        finally:
            os.close(target)
            os.close(own)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """Return a socket that belongs to the namespace for its whole life, wherever it is used."""
        with self.entered():
            return socket.socket(family, kind)

    def forward(self) -> None:
        """Enable routing between the links of the namespace."""
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def route(self, prefix: str, via: str) -> None:
        self.ip("route", "replace", prefix, "via", via)

    def tap(self, device: str, address: str) -> None:
        """Make a tap device for a guest machine, with our address on it."""
        self.ip("tuntap", "add", "dev", device, "mode", "tap")
        self.ip("address", "add", address, "dev", device)
        self.ip("link", "set", device, "up")

    def addresses(self, device: str) -> list[str]:
        return re.findall(r"inet (\S+)", self.ip("-4", "-o", "address", "show", "dev", device, check=False))

    def close(self) -> None:
        for process in reversed(self.processes):
            end(process)
        # Children of our children (a forked daemon, the helpers of a guest) still keep the namespace alive.
        for pid in run("ip", "netns", "pids", self.name, check=False).split():
            if pid.isdigit():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        run("ip", "netns", "delete", self.name, check=False)


class Lab:
    """Own namespaces, links, processes and one temporary directory."""

    def __init__(self) -> None:
        self.namespaces: list[Namespace] = []
        self.stack = ExitStack()
        self._links = 0
        self.directory = Path()

    def __enter__(self) -> Self:
        sweep()
        self.directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        try:
            self.stack.close()
        finally:
            for namespace in reversed(self.namespaces):
                with suppress(CommandFailed, subprocess.TimeoutExpired):
                    namespace.close()
            self.namespaces.clear()
            rmtree(self.directory, ignore_errors=True)

    def namespace(self, label: str) -> Namespace:
        namespace = Namespace(_free_name(f"{PREFIX}-{os.getpid()}-{label}"), label)
        run("ip", "netns", "add", namespace.name)
        self.namespaces.append(namespace)
        namespace.ip("link", "set", "lo", "up")
        return namespace

    def link(
        self,
        one: Namespace,
        device: str,
        address: str,
        other: Namespace,
        other_device: str,
        other_address: str,
        mtu: int = 1500,
    ) -> None:
        """Make a veth pair between two namespaces, with its addresses and both ends up."""
        self._links += 1
        # Both ends are made inside the namespaces: no device ever appears in the caller's own.
        one.ip(
            *("link", "add", device, "mtu", str(mtu), "type", "veth"),
            *("peer", "name", other_device, "mtu", str(mtu), "netns", other.name),
        )
        for namespace, name, cidr in ((one, device, address), (other, other_device, other_address)):
            namespace.ip("address", "add", cidr, "dev", name)
            namespace.ip("link", "set", name, "up")
            # veth passes on packets without checksums and larger than its MTU. A real wire does neither.
            namespace.run("ethtool", "-K", name, "tx", "off", "gso", "off", "tso", "off", "gro", "off", check=False)

    def capture(self, namespace: Namespace, device: str, file: Path, expression: str = "") -> Capture:
        capture = Capture(namespace, device, file, expression)
        self.stack.callback(capture.stop)
        return capture


class Capture:
    """Run tcpdump on one device, from now on until stop()."""

    def __init__(self, namespace: Namespace, device: str, file: Path, expression: str) -> None:
        self.file = file
        self.said = file.with_suffix(".said")
        self.sightings = 2 if device == "lo" else 1  # of each packet, of which tcpdump keeps one
        with self.said.open("wb") as said:
            self.process = namespace.start(
                *("tcpdump", "-i", device, "-n", "-U", "-s", "0", "-B", "65536", "-Z", "root"),
                *("--immediate-mode", "-w", str(file)),
                *expression.split(),
                stderr=said,
            )
        # tcpdump prints "listening on" when its socket is open. The file lacks what is sent before.
        wait_until(lambda: "listening on" in self.said.read_text() or self.process.poll() is not None)
        if self.process.poll() is not None:
            raise CommandFailed(f"tcpdump: {self.said.read_text()}")

    def stop(self) -> Path:
        """End the capture. The file has all packets that the device has seen until now."""
        if self.process.poll() is None:
            due = self._captured()[1]
            wait_until(lambda: self._captured()[0] >= due)
        end(self.process, by=signal.SIGINT)
        return self.file

    def _captured(self) -> tuple[int, int]:
        """Return how many packets were written, and how many were seen: a busy tcpdump is behind."""
        before = len(REPORT.findall(self.said.read_text()))
        self.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: len(REPORT.findall(self.said.read_text())) > before)
        captured, seen, dropped = (int(number) for number in REPORT.findall(self.said.read_text())[-1])
        return captured + dropped, seen // self.sightings


def three_hosts(lab: Lab, *, clients: str = "10.0.0.0/8") -> tuple[Namespace, Namespace, Namespace]:
    """Build a LAC's network, the server, and a host beyond it that has the route back to the clients.

    lac 192.0.2.2 -- wan -- 192.0.2.1 server 198.51.100.1 -- lan -- 198.51.100.2 host
    """
    lac, server, host = lab.namespace("lac"), lab.namespace("server"), lab.namespace("host")
    lab.link(lac, "wan", "192.0.2.2/24", server, "wan", "192.0.2.1/24")
    lab.link(server, "lan", "198.51.100.1/24", host, "lan", "198.51.100.2/24")
    server.forward()
    host.route(clients, "198.51.100.1")
    return lac, server, host


def sweep() -> None:
    """Delete the namespaces of labs whose process is gone."""
    if not RUN_NETNS.is_dir():
        return
    for entry in RUN_NETNS.iterdir():
        found = re.fullmatch(rf"{PREFIX}-(\d+)-.*", entry.name)
        if found and not Path("/proc", found[1]).exists():
            Namespace(entry.name, entry.name).close()


def is_root() -> bool:
    return os.geteuid() == 0


def leave_network() -> None:
    """Move this thread, and those that it starts, into a new network namespace that has only its loopback device."""
    global _machine
    _machine = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if _libc.unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    run("ip", "link", "set", "lo", "up")


@contextmanager
def machines_network() -> Iterator[None]:
    """Enter the machine's own network for the block, also after leave_network(): it leads to package registries."""
    if _machine is None:
        yield
        return
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(_machine)
        yield
    finally:
        _setns(own)
        os.close(own)


def wait_until(condition: Callable[[], object], timeout: float = PATIENCE, what: str = "", step: float = 0.02) -> None:
    """Poll until the condition holds. Blocks. Raises TimeoutError, which names `what`."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout:g} s still not: {what or condition}")
        time.sleep(step)


def _free_name(wanted: str) -> str:
    """Return the name, with a number appended if a lab of this process has a namespace of that name."""
    names = (wanted if number == 1 else f"{wanted}{number}" for number in count(1))
    return next(name for name in names if not (RUN_NETNS / name).exists())


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
