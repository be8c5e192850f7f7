"""Build the load generator of bench/generator, start its modes in namespaces, and command them line by line.

    with Generator(namespace, "lac", "--from", LAC, "--lns", LNS) as generator:
        report = generator.login(1000, window=64)

Each mode prints an event a line as JSON; the head of bench/generator/main.c lists the commands.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab import PATIENCE
from tests.lab.netns import Namespace, end
from tests.lab.server import CHECKOUT

SOURCES = Path(__file__).with_name("generator")
PROGRAM = CHECKOUT / "build/bench/loadgen"

Event = dict[str, Any]


class GeneratorDied(Exception):
    """Report that the generator exited by itself, or said something else than expected."""


def build() -> Path:
    """Compile the generator if a source is newer than it. Return the program."""
    sources = sorted(SOURCES.glob("*.c"))
    newest = max(path.stat().st_mtime for path in [*sources, *SOURCES.glob("*.h")])
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < newest:
        PROGRAM.parent.mkdir(parents=True, exist_ok=True)
        fresh = PROGRAM.with_name(f"loadgen.{os.getpid()}")
        command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(fresh), *map(str, sources), "-lm"]
        subprocess.run(command, check=True, timeout=120)
        fresh.rename(PROGRAM)
    return PROGRAM


def parse_event(line: bytes) -> Event:
    """Return an event that the generator has printed. Raises GeneratorDied if it is not one."""
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise GeneratorDied(f"not an event: {line!r}")
    return event


@dataclass(frozen=True, slots=True)
class Load:
    """Probes over sessions in turn; a rate of 0 is as fast as possible."""

    run: int
    octets: int
    seconds: float
    rate: float
    sessions: int
    first: int = 0

    def words(self) -> str:
        return f"{self.run} {self.octets} {self.seconds:g} {self.rate:.3f} {self.first} {self.sessions}"


class Generator:
    """Run one mode of the generator. The end of its input ends it, so it does not outlive this process."""

    def __init__(self, namespace: Namespace, *words: str, cpu: int | None = None) -> None:
        pinned = () if cpu is None else ("taskset", "-c", str(cpu))
        self.process = namespace.start(
            *pinned, str(build()), *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None
        )
        self._pending = b""
        self.events: list[Event] = []

    def command(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise GeneratorDied(f"exit status {self.process.wait()} before {line!r}") from error

    def wait(self, name: str, timeout: float = PATIENCE) -> Event:
        """Return the next event of this name. Those of other names stay for later."""
        deadline = time.monotonic() + timeout
        while True:
            for number, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(number)
            self._read(deadline, name)

    def ask(self, line: str, name: str, timeout: float = PATIENCE) -> Event:
        self.command(line)
        return self.wait(name, timeout)

    def _read(self, deadline: float, name: str) -> None:
        assert self.process.stdout is not None
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
            raise TimeoutError(f"the generator has not printed {name!r} in time")
        data = os.read(self.process.stdout.fileno(), 65536)
        if not data:
            raise GeneratorDied(f"exit status {self.process.wait()} before {name!r}")
        *lines, self._pending = (self._pending + data).split(b"\n")
        self.events += [parse_event(line) for line in lines]

    # Commands

    def login(self, count: int, *, window: int = 64, rate: float = 0.0, timeout: float = 0.0) -> Event:
        """Bring sessions up. Return the report, also of logins that failed."""
        return self.ask(f"login {count} {window} {rate:g}", "login", timeout or 60 + count / 100)

    def expect(self, run: int) -> None:
        self.ask(f"expect {run}", "expect")

    def counts(self) -> Event:
        return self.ask("counts", "counts")

    def stats(self) -> Event:
        return self.ask("stats", "stats")

    def send(self, load: Load) -> None:
        """Begin to send; the event `sent` follows at the end."""
        self.command(f"send {load.words()}")

    def sent(self, load: Load) -> Event:
        return self.wait("sent", load.seconds + PATIENCE)

    def ping(self, load: Load) -> None:
        """Begin to send pings; the event `pinged` follows a second after the last one at the latest."""
        self.command(f"ping {load.words()}")

    def pinged(self, load: Load) -> Event:
        return self.wait("pinged", load.seconds + PATIENCE)

    # Life

    def leave(self) -> None:
        """End the generator without a word to the server."""
        end(self.process)

    def close(self) -> None:
        if self.process.poll() is None and self.process.stdin is not None:
            try:
                self.command("quit")
                self.process.wait(PATIENCE)
            except (GeneratorDied, subprocess.TimeoutExpired):
                end(self.process)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        self.wait("ready")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
