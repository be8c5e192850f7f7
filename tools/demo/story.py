"""The output of a demonstration: headings, commands with their output, and a summary of the steps on one screen.

Lines are cut to WIDTH columns; colours only on a terminal, and not if NO_COLOR is set.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.lab.netns import CommandFailed
from tests.lab.server import ServerDied

WIDTH = 100
TITLE = 56  # columns of a step's title in the summary
BOLD, DIM, GREEN, RED = "1", "2", "32", "31"
# TimeoutError is an OSError.
EXPECTED = (AssertionError, CommandFailed, OSError, ServerDied, subprocess.SubprocessError)

Step = tuple[str, Callable[[], str]]


class Failed(AssertionError):
    """A step did not show what it should; the text is for the reader."""


@dataclass(frozen=True, slots=True)
class Outcome:
    title: str
    ok: bool | None  # None: not reached
    detail: str


class Story:
    """Runs steps in order and records their outcomes. After a failure the remaining steps are skipped."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.begun = time.monotonic()
        self.coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    @property
    def failed(self) -> bool:
        return any(outcome.ok is False for outcome in self.outcomes)

    def chapter(self, heading: str, steps: Sequence[Step], *, always: bool = False) -> None:
        """Run the steps of one chapter. A step returns a detail for the summary, or raises."""
        if not self.failed or always:
            self.heading(heading)
        for title, step in steps:
            if self.failed and not always:
                self.outcomes.append(Outcome(title, None, ""))
                continue
            try:
                outcome = Outcome(title, True, step())
            except KeyboardInterrupt:
                outcome = Outcome(title, False, "interrupted")
            except EXPECTED as error:
                outcome = Outcome(title, False, str(error) or type(error).__name__)
            except Exception as error:
                traceback.print_exc(file=sys.stdout)
                outcome = Outcome(title, False, f"{type(error).__name__}: {error}")
            self.outcomes.append(outcome)
            if outcome.ok:
                self.text(f"=> OK: {outcome.title} ({outcome.detail})", colour=GREEN)
            else:
                self._print(f"  => FAILED: {outcome.title}:\n{textwrap.indent(outcome.detail, '     ')}", RED)

    def interrupted(self) -> None:
        """Record Ctrl-C between two steps."""
        self.outcomes.append(Outcome("the rest of it", False, "interrupted"))

    def summary(self, name: str) -> bool:
        """Print the last screen: each step with OK or FAILED. Return True if all were OK."""
        self.heading(name)
        for outcome in self.outcomes:
            word, colour = {True: ("OK", GREEN), False: ("FAILED", RED), None: ("not reached", DIM)}[outcome.ok]
            detail = outcome.detail.split("\n", 1)[0]
            line = f"{outcome.title:<{TITLE}} {detail}"[: WIDTH - 8].rstrip()
            if outcome.ok is None:
                self._print(f"{'-':<7} {outcome.title} (not reached)", colour)
            else:
                print(f"{self.paint(f'{word:<7}', colour)} {line}", flush=True)
        good = all(outcome.ok for outcome in self.outcomes)
        took = time.monotonic() - self.begun
        words = "all OK" if good else "FAILED"
        self._print(f"\n{words}: {len(self.outcomes)} steps in {took:.1f} s", GREEN if good else RED)
        return good

    # Lines

    def heading(self, words: str) -> None:
        self._print(f"\n{f'-- {words} '.ljust(WIDTH - 1, '-')}", BOLD)

    def command(self, line: str, *, on: str = "server") -> None:
        """Print a command and the machine it is typed on."""
        self._print(f"{on}# {line}"[:WIDTH], BOLD)

    def text(self, lines: str, *, colour: str = "") -> None:
        """Print output, each line cut where the screen ends."""
        for line in lines.rstrip("\n").split("\n"):
            cut = line.rstrip()
            self._print(f"  {cut}" if len(cut) <= WIDTH - 2 else f"  {cut[: WIDTH - 5]}...", colour)

    def wrapped(self, line: str) -> None:
        """Print a long line, wrapped."""
        self.text("\n".join(textwrap.wrap(line, WIDTH - 2, break_long_words=False, break_on_hyphens=False)))

    def plain(self, lines: str) -> None:
        """Print lines as they are, to be copied."""
        print(lines, flush=True)

    def paint(self, words: str, colour: str) -> str:
        return f"\x1b[{colour}m{words}\x1b[0m" if self.coloured and colour else words

    def _print(self, words: str, colour: str = "") -> None:
        print(self.paint(words, colour), flush=True)
