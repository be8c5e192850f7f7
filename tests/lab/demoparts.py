"""What the demonstration needs besides the lab: the LAC as a process of its own, and a look at what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.lab.netns import RUN_NETNS, Lab, Namespace, end, run, wait_until
from tests.lab.server import CHECKOUT


class LacProgram:
    """`python -m tests.lab.lac` in a namespace; what it says is JSON, one object a line."""

    def __init__(self, namespace: Namespace, directory: Path, lns: str, *arguments: str) -> None:
        self.output, self.errors = directory / "lac.stdout", directory / "lac.stderr"
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = namespace.start(
                *(sys.executable, "-m", "tests.lab.lac", "--lns", lns, "--json", "--hold", *arguments),
                stdout=output,
                stderr=errors,
                cwd=CHECKOUT,
            )

    def said(self, event: str, **facts: Any) -> list[dict[str, Any]]:
        lines = self.output.read_text().splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        return [
            entry
            for entry in entries
            if entry["event"] == event and all(entry.get(key) == value for key, value in facts.items())
        ]

    def wait_for(self, event: str, timeout: float = 10.0, **facts: Any) -> dict[str, Any]:
        """The newest such line, as soon as there is one."""
        over = False

        def there() -> bool:
            nonlocal over
            over = self.process.poll() is not None  # looked at before the last reading
            return bool(self.said(event, **facts)) or over

        wait_until(there, timeout, f"{event} {facts} of the LAC")
        found = self.said(event, **facts)
        if not found:
            raise subprocess.SubprocessError(f"the LAC ended with {self.process.returncode}: {self.last_words()}")
        return found[-1]

    def last_words(self) -> str:
        return "\n".join((self.output.read_text() + self.errors.read_text()).splitlines()[-10:])

    def stop(self) -> None:
        """Its exit status says whether everything went as it was told to expect."""
        status = end(self.process)
        if status != 0:
            raise subprocess.SubprocessError(f"the LAC ended with {status}: {self.last_words()}")


class Leftovers:
    """What a lab has made on this machine, looked for when it should be gone."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._directory = lab.directory
        self._devices = _devices()
        self._routes = _routes()
        self._namespaces: set[str] = set()
        self._processes: set[int] = set()

    def remember(self) -> None:
        """Call it before the lab is closed."""
        for namespace in self._lab.namespaces:
            self._namespaces.add(namespace.name)
            self._processes.update(int(pid) for pid in run("ip", "netns", "pids", namespace.name, check=False).split())
            self._processes.update(process.pid for process in namespace.processes)

    def find(self) -> list[str]:
        found = [f"namespace {name}" for name in sorted(self._namespaces) if (RUN_NETNS / name).exists()]
        found += [f"process {pid}" for pid in sorted(self._processes) if _alive(pid)]
        if self._directory.exists():
            found.append(f"directory {self._directory}")
        # A machine in use gets devices and routes of others meanwhile: only what looks like the lab's is its.
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
