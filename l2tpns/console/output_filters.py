"""Filters of a command's output: `COMMAND | include RE`, `| exclude RE`, `| begin RE`, `| json`.

The expression is the rest of the line and may contain `|` and spaces. Quotation marks around it are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from l2tpns.console.editor import quoting
from l2tpns.console.output import Output, Refused
from l2tpns.console.regexp import Regexp
from l2tpns.runtime.text import unknown_word

MAX_MATCHED = 4096  # characters of a line that an expression is matched against
FILTERS = {
    "include": "only lines that match a regular expression",
    "exclude": "only lines that do not match a regular expression",
    "begin": "all lines from the first one that matches a regular expression",
    "json": "output as JSON, for programs",
}

Lines = Iterable[str | None]  # None: no line, but the server may do other work
Filter = Callable[[Lines], Iterator[str | None]]
LINES_PER_PAUSE = 8  # lines produced between two pauses


@dataclass(frozen=True, slots=True)
class Pipe:
    """The filter after the first `|` of a line."""

    json: bool = False
    filter: Filter | None = None

    def lines(self, output: Output) -> Lines:
        """Return the filtered lines, with None where the server may do other work, even if nothing passes."""
        lines = output.json_lines() if self.json else output.lines()
        return self.filter(_paced(lines)) if self.filter is not None else lines


def split(line: str) -> tuple[str, str | None]:
    """Split a line at the first `|` that begins a word outside quotation marks. The second part may be None."""
    for position, (char, inside) in enumerate(zip(line, quoting(line), strict=True)):
        if char == "|" and not inside and line[:position].endswith((" ", "\t")):
            return line[:position], line[position + 1 :]
    return line, None


def parse(text: str) -> Pipe:
    """Parse a filter. Raises Refused."""
    word, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    found = [name for name in FILTERS if word and name.startswith(word)]
    if len(found) != 1:
        raise Refused(unknown_word("filter", word, tuple(FILTERS)) + f": {', '.join(FILTERS)}")
    name = found[0]
    if name == "json":
        if not rest:
            return Pipe(json=True)
        if not rest.startswith("|"):
            raise Refused("json takes no argument")
        return Pipe(True, parse(rest[1:]).filter)
    if len(rest) > 1 and rest[0] == rest[-1] and rest[0] in "\"'":
        rest = rest[1:-1]
    try:
        matches = matcher(rest)
    except ValueError as error:
        raise Refused(str(error)) from None
    if name == "include":
        return Pipe(filter=lambda lines: (line for line in lines if line is None or matches(line)))
    if name == "exclude":
        return Pipe(filter=lambda lines: (line for line in lines if line is None or not matches(line)))
    return Pipe(filter=lambda lines: _begin(matches, lines))


def matcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that tests a line; plain text needs no Regexp. Raises ValueError with a message."""
    if pattern and not set(pattern) & set(r"\.[]()*+?|^$"):
        return lambda line: pattern in line
    expression = Regexp(pattern)
    return lambda line: expression.search(line[:MAX_MATCHED])


def _begin(matches: Callable[[str], bool], lines: Lines) -> Iterator[str | None]:
    begun = False
    for line in lines:
        begun = begun or (line is not None and matches(line))
        if begun or line is None:
            yield line


def _paced(lines: Iterable[str]) -> Iterator[str | None]:
    for number, line in enumerate(lines):
        yield line
        if number % LINES_PER_PAUSE == 0:
            yield None
