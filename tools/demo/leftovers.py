"""What a lab made on this machine and did not remove: namespaces, processes, directories, devices, routes."""

from __future__ import annotations

import os
from pathlib import Path

from tests.lab.netns import RUN_NETNS, Lab, run


class Leftovers:
    """Finds what a lab has made on this machine and should have removed."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._directory = lab.directory
        self._devices = _devices()
        self._routes = _routes()
        self._namespaces: set[str] = set()
        self._processes: set[int] = set()

    def remember(self) -> None:
        """Note names and process ids. To be called before the lab is closed."""
        for namespace in self._lab.namespaces:
            self._namespaces.add(namespace.name)
            self._processes.update(int(pid) for pid in run("ip", "netns", "pids", namespace.name, check=False).split())
            self._processes.update(process.pid for process in namespace.processes)

    def find(self) -> list[str]:
        found = [f"namespace {name}" for name in sorted(self._namespaces) if (RUN_NETNS / name).exists()]
        found += [f"process {pid}" for pid in sorted(self._processes) if _alive(pid)]
        if self._directory.exists():
            found.append(f"directory {self._directory}")
        # Other programs may add devices and routes meanwhile: report only those with names of the lab.
        found += [f"device {name}" for name in sorted(_devices() - self._devices) if name in _OURS]
        found += [f"route {line}" for line in sorted(_routes() - self._routes) if set(line.split()) & _OURS]
        return found


_OURS = {"wan", "lan", "tun0", "ppp-alice", "ppp-bob"}


def _devices() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def _routes() -> set[str]:
    return set(run("ip", "-4", "route", "show", "table", "all", check=False).splitlines())


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:1]
    except OSError:
        return False
