"""docs/conformance.md: the statements of tests/statements.md and the tests that carry their `statement` mark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tools.docs.markdown import NOTE, ROOT, table
from tools.docs.marks import tests_by_mark


@dataclass(frozen=True, slots=True)
class Statement:
    """A line of tests/statements.md."""

    number: int
    section: str
    level: str
    text: str
    not_yet: str


def page() -> str:
    """Return the page. Raises SystemExit if a test names a statement that the list does not have."""
    shown = tests_by_mark("statement", int)
    chapters = _statements()
    statements = [statement for _, chapter in chapters for statement in chapter]
    unknown = sorted(set(shown) - {statement.number for statement in statements})
    if unknown:
        places = ", ".join(f"{number} ({shown[number][0]})" for number in unknown)
        raise SystemExit(f"tests/statements.md has no statement {places}")
    later = sum(bool(statement.not_yet) and statement.number not in shown for statement in statements)
    done = sum(statement.number in shown for statement in statements)
    rows = "\n".join(f"\n## {title}\n\n{_table(chapter, shown)}" for title, chapter in chapters)
    return f"""{NOTE}
# Conformance

The requirements of the RFCs on this server, one statement a line, with the tests that show them. Level M: the RFC
requires it, S: it recommends it, R: a rule of this project. A name in brackets is another server in which the mistake
was found.

Of {len(statements)} statements {done} are shown by a test; {later} concern parts that are not built yet.
{rows}"""


def _table(statements: Sequence[Statement], shown: dict[int, list[str]]) -> str:
    rows = []
    for statement in statements:
        tests = "<br>".join(shown.get(statement.number, []))
        if not tests or statement.not_yet:
            tests += ("<br>" if tests else "") + (
                f"*not yet: {statement.not_yet}*" if statement.not_yet else "**no test**"
            )
        rows.append((str(statement.number), statement.section, statement.level, statement.text, tests))
    return table(("#", "§", "", "Statement", "Shown by"), rows)


def _statements() -> list[tuple[str, list[Statement]]]:
    chapters: list[tuple[str, list[Statement]]] = []
    for line in (ROOT / "tests/statements.md").read_text().splitlines():
        if line.startswith("## "):
            chapters.append((line[3:], []))
        elif re.match(r"\| [0-9]", line):
            number, section, level, text, not_yet = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            chapters[-1][1].append(Statement(int(number), section, level, text, not_yet))
    return chapters
