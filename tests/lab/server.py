"""Run the daemon as a process in a namespace: write its configuration, start it, read its log, end it.

    with Server(namespace, lab.directory / "lns", settings={"l2tp_secret": "s"}, secrets="fred * pw *\\n") as server:
        server.wait_for("session_up", user="fred")

The daemon reports that it is ready by sd_notify (READY=1), so a start never needs a sleep. Standard output (the log,
one JSON object a line) and standard error (tracebacks) go to files, never to pipes that could fill up.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab import PATIENCE, unprivileged
from tests.lab.netns import Namespace, end, wait_until
from tests.lab.service_manager import ServiceManager

FAST_PATH = os.environ.get("L2TPNS_TEST_FAST_PATH") or "off"  # value of `set fast_path` where a test does not say it
CHECKOUT = Path(__file__).resolve().parents[2]

Setting = str | int | bool
UNMEANT = ("greenlet_failed", "part_failed", "signal_failed", "stop_step_failed")  # a test must declare these


class ServerDied(Exception):
    """Report that the daemon ended by itself. The text holds the end of its output."""


class Server:
    """Run one l2tpns daemon, which may be started, ended and started again in the same directory."""

    def __init__(
        self,
        namespace: Namespace | None,
        directory: Path,
        *,
        settings: Mapping[str, Setting] | None = None,
        lines: Sequence[str] = (),
        secrets: str | None = None,
        pool: str | None = "10.1.0.0/16\n",
        users: str | None = None,
        arguments: Sequence[str] = (),
        command: Sequence[str] = (sys.executable, "-m", "l2tpns"),
        keeps_descriptors: bool = False,
    ) -> None:
        """Prepare. With `keeps_descriptors`, `manager` keeps what the daemon stores there, until it is closed."""
        self.namespace = namespace
        self.directory = directory
        self.config = directory / "l2tpns.cfg"
        self.output = directory / "stdout"
        self.errors = directory / "stderr"
        self.arguments = list(arguments)
        self.command = list(command)
        self.keeps_descriptors = keeps_descriptors
        self.manager: ServiceManager | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.started_in = 0.0
        directory.mkdir(parents=True, exist_ok=True)
        self.configure(settings or {}, lines)
        for name, text in (("l2tpns.secrets", secrets), ("l2tpns.ip_pool", pool), ("l2tpns.users", users)):
            if text is not None:
                (directory / name).write_text(text)
                (directory / name).chmod(0o600)

    def configure(self, settings: Mapping[str, Setting], lines: Sequence[str] = ()) -> None:
        """Write a new configuration: `set` lines first, then other commands as they are."""
        everything = {
            "debug": 4,
            "fast_path": FAST_PATH,
            "spool_dir": str(self.directory / "spool"),
            "state_dir": str(self.directory / "state"),
            **settings,
        }
        text = [f"set {name} {_word(value)}" for name, value in everything.items()]
        self.config.write_text("\n".join([*text, *lines]) + "\n")
        self.config.chmod(0o600)  # it may hold secrets
        self.has_own_user = "setuid" in everything
        if self.takes_lab_user():
            unprivileged.prepare_config(self.config)

    # Process

    def argv(self, *arguments: str) -> list[str]:
        """Prepare what the daemon needs and return the command that starts it, with these arguments."""
        argv = [*self.command, *arguments]
        if self.takes_lab_user():
            unprivileged.prepare(self.directory, self.config)
            argv = unprivileged.with_tun(self.directory, argv)
        return argv if self.namespace is None else self.namespace.command(*argv)

    def environment(self) -> dict[str, str]:
        own = unprivileged.environment(self.directory) if self.takes_lab_user() else {}
        return {**os.environ, **own}

    def takes_lab_user(self) -> bool:
        """Return True under `make unprivileged`, unless the test says what user an installation or a daemon has."""
        return unprivileged.IDENTITY is not None and not self.has_own_user and self.config.parent == self.directory

    def start(self, timeout: float = 2 * PATIENCE) -> None:
        begun = time.monotonic()
        if self.manager is None:
            self.manager = ServiceManager(self.directory / "notify", keeps=self.keeps_descriptors)
        argv, passed = self.manager.wrap(self.argv("-c", str(self.config), *self.arguments))
        with self.output.open("ab") as output, self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                argv,
                cwd=CHECKOUT,
                env={**self.environment(), "NOTIFY_SOCKET": str(self.directory / "notify"), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                pass_fds=passed,
            )
        for fd in passed:
            os.close(fd)
        if self.namespace is not None:
            self.namespace.processes.append(self.process)
        while "READY" not in self.manager.next_message():
            if self.process.poll() is not None:
                raise ServerDied(f"exit status {self.process.returncode}\n{self.last_words()}")
            if time.monotonic() - begun > timeout:
                self.kill()
                raise TimeoutError(f"the daemon did not say READY=1 within {timeout:g} s\n{self.last_words()}")
        if not self.keeps_descriptors:
            self.manager.close()
            self.manager = None
        self.started_in = time.monotonic() - begun
        if self.takes_lab_user():
            unprivileged.check_user(self.process.pid)

    def stop(self, by: int = signal.SIGQUIT, timeout: float = 2 * PATIENCE) -> int:
        """Stop it with SIGQUIT, which ends all sessions and tunnels. Return its exit status. Raises TimeoutError."""
        process = self.running()
        process.send_signal(by)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise TimeoutError(f"the daemon did not leave within {timeout:g} s\n{self.last_words()}") from None

    def kill(self) -> None:
        """Kill the daemon, as a power failure would."""
        if self.process is not None:
            end(self.process, by=signal.SIGKILL)

    def signal(self, number: int) -> None:
        self.running().send_signal(number)

    def running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            raise ServerDied(f"not running\n{self.last_words()}")
        return self.process

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        if error is None:
            self.stop()
        else:
            self.kill()

    # Log

    def log(self, event: str | None = None, *, after: int = 0, **facts: Any) -> list[dict[str, Any]]:
        """Return the log's lines without the first `after`, or those of one event with these facts."""
        found = []
        for line in self.output.read_bytes().splitlines()[after:] if self.output.exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"event": "not_json", "line": line.decode(errors="backslashreplace")}
            wanted = event is None or entry.get("event") == event
            if wanted and all(entry.get(key) == value for key, value in facts.items()):
                found.append(entry)
        return found

    def wait_for(
        self, event: str, timeout: float = PATIENCE, count: int = 1, *, after: int = 0, **facts: Any
    ) -> dict[str, Any]:
        """Wait until the log holds `count` such lines. Return the last of them."""

        def there() -> bool:
            if len(self.log(event, after=after, **facts)) >= count:
                return True
            self.running()
            return False

        try:
            wait_until(there, timeout, step=0.05)
        except TimeoutError:
            raise TimeoutError(f"{timeout:g} s without {count} of {event} {facts}\n{self.last_words()}") from None
        return self.log(event, after=after, **facts)[-1]

    def tracebacks(self) -> str:
        """Return standard error, and log lines with an exception. No test may find any."""
        logged = [
            json.dumps(entry, indent=1)
            for entry in self.log()
            if "exception" in entry or "exc_info" in entry or entry.get("event") in UNMEANT
        ]
        return self.errors.read_text(errors="backslashreplace") + "\n".join(logged)

    def last_words(self) -> str:
        parts = []
        for file in (self.output, self.errors):
            if file.exists():
                parts += file.read_text(errors="backslashreplace").splitlines()[-25:]
        return "\n".join(parts)

    # Resources

    @property
    def pid(self) -> int:
        return self.running().pid

    def rss(self) -> int:
        """Return the resident memory in octets."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ServerDied("no VmRSS")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def _word(value: Setting) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f'"{value}"'
