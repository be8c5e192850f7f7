"""The tests that carry a mark such as `@pytest.mark.statement(12, 13)`, read from the source without running it.

A mark on a class or in a module's `pytestmark` applies to all tests within.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tools.docs.markdown import ROOT

TESTS = ROOT / "tests"
T = TypeVar("T", int, str)


def tests_by_mark(mark: str, kind: type[T]) -> dict[T, list[str]]:
    """Return, by argument of the mark, the tests that carry it, each as "`file` sentence"."""
    shown: dict[T, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        file = path.relative_to(ROOT).as_posix()
        for name, arguments in _marked(tree.body, _module_marks(tree, mark, kind), mark, kind):
            for argument in sorted(arguments):
                shown.setdefault(argument, []).append(f"`{file}` {name}")
    return shown


def _marked(body: list[ast.stmt], inherited: set[T], mark: str, kind: type[T]) -> Iterator[tuple[str, set[T]]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _marked(node.body, inherited | _marks(node.decorator_list, mark, kind), mark, kind)
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            arguments = inherited | _marks(node.decorator_list, mark, kind)
            yield node.name.removeprefix("test_").replace("_", " "), arguments


def _module_marks(tree: ast.Module, mark: str, kind: type[T]) -> set[T]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="pytestmark")], value=value):
                return _marks(value.elts if isinstance(value, ast.List | ast.Tuple) else [value], mark, kind)
    return set()


def _marks(decorators: Sequence[ast.expr], mark: str, kind: type[T]) -> set[T]:
    found: set[T] = set()
    for decorator in decorators:
        match decorator:
            case ast.Call(func=ast.Attribute(attr=attr), args=arguments) if attr == mark:
                found |= {a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, kind)}
    return found
