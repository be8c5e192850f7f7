"""docs/architecture.md, held against the source: its table of rooms, and the files and names that it points to."""

from __future__ import annotations

import ast
import re

import pytest

from l2tpns import causes
from l2tpns.causes import Cause
from tests.unit.test_imports import PACKAGE, ROWS

ROOT = PACKAGE.parent
PAGE = (ROOT / "docs/architecture.md").read_text()
# `l2tp/tunnel.py`, `l2tp/tunnel.py: serve`; a line may end within.
REFERENCES = sorted({" ".join(found.split()) for found in re.findall(r"`((?:[\w]+/)*\w+\.py(?::\s+\w+)?)`", PAGE)})
ROOM_ROW = re.compile(r"^\| ([0-9]+) \| `([\w.]+)` \| \w", re.MULTILINE)


def names(tree: ast.AST) -> set[str]:
    """Return what a file defines: functions, methods, classes, and variables outside of functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case (
                ast.Assign(targets=[ast.Name(id=name)])
                | ast.AnnAssign(target=ast.Name(id=name) | ast.Attribute(attr=name))
            ):
                found.add(name)
            case ast.Assign(targets=[ast.Attribute(attr=name)]):
                found.add(name)
    return found


def test_the_table_of_rooms_is_that_of_the_imports() -> None:
    table = [(int(row), room) for row, room in ROOM_ROW.findall(PAGE)]
    assert table == [(row, room) for row, rooms in enumerate(ROWS, 1) for room in rooms]


@pytest.mark.parametrize("reference", REFERENCES)
def test_what_the_page_points_to_is_there(reference: str) -> None:
    """A file without a folder may also be one of subscriber/, in the table of a session's phases."""
    file, _, name = reference.partition(": ")
    found = [path for path in (PACKAGE / file, PACKAGE / "subscriber" / file, ROOT / file) if path.is_file()]
    assert found, f"there is no {file}"
    assert not name or any(name in names(ast.parse(path.read_text())) for path in found), f"{file} has no {name}"


def test_the_states_name_every_cause() -> None:
    declared = {cause.name for cause in vars(causes).values() if isinstance(cause, Cause)}
    states = PAGE.partition("## 2. States")[2].partition("## 3. ")[0]
    assert declared - set(re.findall(r"`([a-z_]+)`", states)) == set()
