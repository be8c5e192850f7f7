"""docs/architecture.md and the "Code." lines of docs/decisions, held against the source: what they name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from l2tpns import causes
from l2tpns.causes import Cause
from tests.unit.test_imports import MODULES, PACKAGE, ROWS

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


def classes() -> dict[str, set[str]]:
    """Return what each class of the package defines, by the class's name."""
    found: dict[str, set[str]] = {}
    for path in MODULES.values():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(names(node))
    return found


CLASSES = classes()


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


@pytest.mark.parametrize("page", sorted((ROOT / "docs/decisions").glob("*.md")), ids=lambda page: page.stem[:4])
def test_the_code_that_a_decision_points_to_is_there(page: Path) -> None:
    code = page.read_text().partition("**Code.**")[2]
    for file in re.findall(r"`((?:\w+/)*\w+\.py)`", code):
        assert (PACKAGE / file).is_file() or (ROOT / file).is_file(), f"there is no {file}"
    for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)`", code):
        assert name in CLASSES.get(owner, ()), f"there is no {owner}.{name}"


def test_the_states_name_every_cause() -> None:
    declared = {cause.name for cause in vars(causes).values() if isinstance(cause, Cause)}
    states = PAGE.partition("## 2. States")[2].partition("## 3. ")[0]
    assert declared - set(re.findall(r"`([a-z_]+)`", states)) == set()
