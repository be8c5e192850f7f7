"""What is wrong now and stays so until it is mended: the standing problems that /health and the status page tell.

Each part of the server that may have one yields findings when it is asked; what is found twice in a row under the same
name and subject is one problem, which stands since it was found first. A further kind is a further generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from l2tpns.runtime.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong at this moment."""

    name: str  # of the kind, for programs
    subject: str  # which server, part or file; empty where there is one only
    text: str  # for operators
    remedy: str  # what they can do


@dataclass(frozen=True, slots=True)
class Problem(Finding):
    """A finding that stands."""

    since: float  # monotonic


Check = Callable[[], Iterable[Finding]]


class ProblemBoard:
    """Remembers since when each has been found."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}

    def update(self, found: Iterable[Finding], now: float) -> list[Problem]:
        """The problems that stand; whatever is not among `found` is mended."""
        before, self._since = self._since, {}
        problems = []
        for each in found:
            key = each.name, each.subject
            self._since[key] = since = before.get(key, now)
            problems.append(Problem(each.name, each.subject, each.text, each.remedy, since))
        return problems


def failing_parts(supervisor: Supervisor) -> Iterator[Finding]:
    """Parts of the server that have failed of late, whether they run again or not."""
    for part in supervisor.unwell():
        times = "once" if part.failures == 1 else f"{part.failures} times"
        state = "it runs again" if part.running else "it does not run"
        yield Finding(
            "part_failing",
            part.name,
            f"the {part.name} has failed {times}, the last time by {part.why}: {state}",
            "see part_failed in the log: unload the plugin named in its traceback, or report the failure",
        )
