"""The LAC as a process of its own, and the JSON that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.lab.netns import Namespace, end, wait_until
from tests.lab.server import CHECKOUT


class LacProgram:
    """`python -m tests.lab.lac` in a namespace. It prints JSON, one object a line."""

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
        """Return the newest such line as soon as there is one. Raises SubprocessError if the LAC ends before."""
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
        """Stop the LAC. Raises SubprocessError if a call did not go as its arguments expect."""
        status = end(self.process)
        if status != 0:
            raise subprocess.SubprocessError(f"the LAC ended with {status}: {self.last_words()}")
