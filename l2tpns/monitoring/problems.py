"""Problems that persist until they are repaired, as reported by /health and the status page.

A check is a generator of findings. Findings with the same name and subject in consecutive runs are one problem, which
exists since the first of them. A further kind of problem needs one further check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from l2tpns.runtime.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault found by a check."""

    name: str  # kind of the fault, for programs
    subject: str  # server, component or file; empty if there is only one
    text: str  # description for operators
    remedy: str  # suggested action


@dataclass(frozen=True, slots=True)
class Problem(Finding):
    """A finding and the time since which it persists."""

    since: float  # monotonic


Check = Callable[[], Iterable[Finding]]


class ProblemBoard:
    """Remembers since when each problem exists."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}

    def update(self, found: Iterable[Finding], now: float) -> list[Problem]:
        """Return the current problems. A problem that is not among `found` has been repaired."""
        before, self._since = self._since, {}
        problems = []
        for each in found:
            key = each.name, each.subject
            self._since[key] = since = before.get(key, now)
            problems.append(Problem(each.name, each.subject, each.text, each.remedy, since))
        return problems


def failing_parts(supervisor: Supervisor) -> Iterator[Finding]:
    """Yield components that failed recently, running again or not."""
    for part in supervisor.unwell():
        times = "once" if part.failures == 1 else f"{part.failures} times"
        state = "it runs again" if part.running else "it does not run"
        yield Finding(
            "part_failing",
            part.name,
            f"the {part.name} has failed {times}, the last time by {part.why}: {state}",
            "see part_failed in the log: unload the plugin named in its traceback, or report the failure",
        )
