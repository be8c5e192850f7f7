"""docs/reference.md: the commands and variables that operators know, their form here, and the tests that show them.

tests/reference.md has the names. A test shows one by `@pytest.mark.shows("show pool", "set primary_dns")`: a command as
it is listed there, a variable behind `set`. A name that the list does not have, and one that is neither here nor left
out for a reason, are errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from l2tpns.config.file import IGNORED
from l2tpns.config.settings import SETTINGS
from l2tpns.console.commands import COMMANDS
from tools.docs.markdown import NOTE, ROOT, table
from tools.docs.marks import tests_by_mark

LIST = ROOT / "tests/reference.md"
NEW = "New here"
BY_WORDS = {command.words: command for command in COMMANDS}


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the list: a name, in what form it is here, or why it is not."""

    name: str
    here: str
    why: str


def chapters() -> list[tuple[str, list[Entry]]]:
    found: list[tuple[str, list[Entry]]] = []
    for line in LIST.read_text().splitlines():
        if line.startswith("## "):
            found.append((line[3:], []))
        elif line.startswith("| ") and found:
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if cells[0] not in ("Name", "---"):
                found[-1][1].append(_entry(*cells))
    return found


def _entry(name: str, here: str, why: str) -> Entry:
    if not why and not here:
        variable = name.removeprefix("set ")
        here, why = _variable(variable) if variable != name and variable.islower() else _command(name)
    return Entry(name, here, why)


def _variable(name: str) -> tuple[str, str]:
    if name in SETTINGS:
        return f"`set {name}`", SETTINGS[name].pending
    return "", IGNORED.get(name, "")


def _command(name: str) -> tuple[str, str]:
    """Return the usage of the longest command that these words begin with; words in capitals are arguments."""
    words = name.split()
    while words:
        command = BY_WORDS.get(" ".join(words))
        if command is not None and (command.arguments or command.words == name):
            return f"`{command.usage}`", ""
        words.pop()
    return "", ""


def ours(known: list[Entry]) -> list[Entry]:
    """Return the commands and variables that the list does not have: new here."""
    found = [Entry(f"set {name}", f"`set {name}`", setting.pending) for name, setting in SETTINGS.items()]
    for command in COMMANDS:
        needed = [argument.name for argument in command.arguments if not argument.optional]
        found.append(Entry(" ".join([command.words, *needed]), f"`{command.usage}`", ""))
    there = {entry.here for entry in known}
    return [entry for entry in found if entry.here not in there]


def rows(entries: list[Entry], shown: Mapping[str, list[str]]) -> Iterator[tuple[str, str, str]]:
    for entry in entries:
        if entry.why:
            yield f"`{entry.name}`", entry.here, f"*{'not yet' if entry.here else 'left out'}: {entry.why}*"
        elif not entry.here:
            yield f"`{entry.name}`", "", "**missing**"
        else:
            yield f"`{entry.name}`", entry.here, "<br>".join(shown.get(entry.name, ["**no test**"]))


def gather() -> tuple[list[tuple[str, list[Entry]]], dict[str, list[str]]]:
    """Return the list, and the tests by name. Raises SystemExit if a mark names what the list does not have."""
    shown = tests_by_mark("shows", str)
    found = chapters()
    names = {entry.name for _, entries in found for entry in entries}
    new = ours([entry for _, entries in found for entry in entries])
    names |= {entry.name for entry in new}
    unknown = sorted(set(shown) - names)
    if unknown:
        places = ", ".join(f'"{name}" ({shown[name][0]})' for name in unknown)
        raise SystemExit(f"tests/reference.md has no {places}")
    return [*found, (NEW, new)], shown


def faults() -> list[str]:
    """Return what the page should not have: a name neither here nor left out, or here without a test."""
    found, shown = gather()
    return [
        f"{entry.name}: {'no test' if entry.here else 'missing'}"
        for title, entries in found
        for entry in entries
        if title != NEW and not entry.why and not (entry.here and entry.name in shown)
    ]


def page() -> str:
    """Return the page, from tests/reference.md, the declarations, and the tests' `shows` marks."""
    found, shown = gather()
    head = ("Name", "Here", "Shown by")
    text = "".join(f"\n## {title}\n\n{table(head, list(rows(entries, shown)))}" for title, entries in found)
    entries = [entry for title, entries in found for entry in entries if title != NEW]
    left_out = sum(bool(entry.why) for entry in entries)
    return f"""{NOTE}
# Commands and variables of earlier l2tpns

The commands and variables of l2tpns 1.1 and 2.x, their form here, and the tests that show them. Of {len(entries)} names
{left_out} are left out or not built yet, each with the reason. [commands.md](commands.md) and
[configuration.md](configuration.md) describe them.
{text}"""
