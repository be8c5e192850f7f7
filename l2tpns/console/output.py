"""The output of a command: lines of text, and the same as data for `| json`. Both are produced lazily, row by row.

The columns of a table are declared once, with heading and width for the text and a key for JSON. Keys are stable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

Row = Mapping[str, Any]


class Refused(Exception):
    """A command was refused; the text is shown to the operator."""


@dataclass(frozen=True, slots=True)
class Output:
    """`lines` are the text, `data` a mapping or rows for JSON. Without `data`, JSON contains the lines."""

    lines: Callable[[], Iterable[str]]
    data: Callable[[], Iterable[Any] | Row] | None = None

    def json_lines(self) -> Iterator[str]:
        """Yield one JSON value, with each row on its own line."""
        data: Iterable[Any] | Row = {"lines": list(self.lines())} if self.data is None else self.data()
        if isinstance(data, Mapping):
            yield from _dump(data, orjson.OPT_INDENT_2).split("\n")
            return
        before = "["
        for row in data:
            yield before + _dump(row)
            before = ","
        yield "]" if before == "," else "[]"


def _dump(value: Any, option: int = 0) -> str:
    return orjson.dumps(value, default=str, option=option | orjson.OPT_NON_STR_KEYS).decode()


def text(words: str) -> Output:
    """Return an output of text only."""
    return Output(lambda: words.split("\n"))


@dataclass(frozen=True, slots=True)
class Column:
    """A column. A negative width aligns left; 0 is for the last column, of any length."""

    key: str
    title: str
    width: int
    show: Callable[[Any], str] = str


@dataclass(frozen=True, slots=True)
class Table:
    """A table of these columns."""

    columns: tuple[Column, ...]

    def head(self) -> str:
        return self._lay_out(column.title for column in self.columns)

    def line(self, row: Row) -> str:
        return self._lay_out(column.show(row[column.key]) for column in self.columns)

    def _lay_out(self, cells: Iterable[str]) -> str:
        """Lay out a line. A long cell uses the padding of the next ones, so that later columns stay aligned."""
        line, edge = "", 0
        for column, words in zip(self.columns, cells, strict=True):
            edge += abs(column.width)
            line += words.rjust(edge - len(line)) if column.width > 0 else words
            line = line.ljust(edge) + " "
            edge += 1
        return line.rstrip()

    def lines(self, rows: Iterable[Row]) -> Iterator[str]:
        yield self.head()
        for row in rows:
            yield self.line(row)

    def output(self, rows: Callable[[], Iterable[Row]], after: Callable[[], Iterable[str]] = tuple) -> Output:
        def lines() -> Iterator[str]:
            yield from self.lines(rows())
            yield from after()

        return Output(lines, rows)


def sheet(title: str, labels: Mapping[str, str], row: Row) -> Iterator[str]:
    """Yield a row in detail: a blank line, a title, then a tab, label and value for each key."""
    yield ""
    yield f"{title}:"
    for key, label in labels.items():
        yield f"\t{label + ':':<17}{shown(row[key])}"


def shown(value: Any) -> str:
    """Return a value as text."""
    if value is None or value == "":
        return "none"
    if value is True or value is False:
        return "YES" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return str(value)
