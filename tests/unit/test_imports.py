"""Which file may import which: the rows of docs/architecture.md, per file, imports for the type checker counted."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "l2tpns"
IMPURE = {
    "gevent",
    "socket",
    "_socket",
    "time",
    "random",
    "secrets",
    "os",
    "structlog",
    "threading",
    "subprocess",
    "pyroute2",
}
# From the bottom up: a file imports from files of its own row and of rows above it in this list. A row names rooms or
# files; the longest name that fits a file counts.
ROWS = (
    ("errors", "__init__"),
    ("proto",),
    ("runtime",),
    ("config",),
    ("system", "radius", "dataplane", "capture"),
    ("causes",),
    ("policy.model", "hooks"),
    ("subscriber", "policy"),
    ("l2tp",),
    ("lns",),
    ("state", "plugins"),
    ("server",),
    ("console", "nsctl", "monitoring"),
    ("components",),
    ("daemon",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(ROWS) for name in names}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def rank(module: str) -> int:
    """Return the row of a file, given as a dotted name below `l2tpns`. Raises KeyError for a room without a row."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in RANK:
            return RANK[name]
    raise KeyError(module)


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file names in an import, those for the type checker included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("l2tpns.") in MODULES else node.module


def arrows() -> set[tuple[str, str]]:
    """Return (importing file, imported file) for all files of the package."""
    return {
        (module, name.removeprefix("l2tpns.") if name != "l2tpns" else "__init__")
        for module, path in MODULES.items()
        for name in imports(path)
        if name.split(".")[0] == "l2tpns"
    }


def circles(edges: set[tuple[str, str]]) -> list[set[str]]:
    """Return the sets of files that reach each other: strongly connected components, by Kosaraju's two walks."""
    forward: dict[str, list[str]] = {}
    backward: dict[str, list[str]] = {}
    for here, there in edges:
        forward.setdefault(here, []).append(there)
        backward.setdefault(there, []).append(here)
    seen: set[str] = set()
    order: list[str] = []
    for start in sorted(MODULES):
        stack = [(start, False)]
        while stack:
            module, done = stack.pop()
            if done:
                order.append(module)
            elif module not in seen:
                seen.add(module)
                stack.append((module, True))
                stack += [(other, False) for other in forward.get(module, ()) if other not in seen]
    found: list[set[str]] = []
    taken: set[str] = set()
    for start in reversed(order):
        group, todo = set(), [start]
        while todo:
            module = todo.pop()
            if module not in taken:
                taken.add(module)
                group.add(module)
                todo += backward.get(module, [])
        if len(group) > 1:
            found.append(group)
    return found


@pytest.mark.parametrize("path", sorted((PACKAGE / "proto").rglob("*.py")), ids=lambda path: path.stem)
def test_proto_is_pure(path: Path) -> None:
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top not in IMPURE, f"{path.name} imports {name}"
        assert top != "l2tpns" or rest.partition(".")[0] in ("proto", "errors"), f"{path.name} imports {name}"


def test_every_file_has_its_row() -> None:
    for module in MODULES:
        rank(module)


def test_imports_go_one_way_but_for_the_known_arrows() -> None:
    assert [(here, there) for here, there in sorted(arrows()) if rank(here) < rank(there)] == []


def test_no_circle_is_new_or_larger_than_it_was() -> None:
    assert [sorted(circle) for circle in circles(arrows())] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_process_is_started_by_the_server(module: str) -> None:
    assert not {"subprocess", "pty"} & set(imports(MODULES[module]))
    assert "os.system" not in MODULES[module].read_text()
