"""Who may import whom (docs/overview.md): read from the source, so that a shortcut cannot creep in."""

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
# From the bottom up: a module imports from its own layer or from those before it.
LAYERS = (
    ("errors", "names"),
    ("proto",),
    (
        "textfile",
        "settings",
        "filters",
        "config",
        "configfile",
        "counters",
        "log",
        "logsink",
        "faults",
        "supervisor",
        "lines",
        "clock",
        "files",
        "pool",
        "wheel",
        "mailbox",
        "reminders",
        "turns",
        "awake",
        "nsctl",
        "prefixes",
        "process",
        "keeper",
        "capture",
    ),
    ("policy",),
    (
        "slices",
        "share",
        "places",
        "door",
        "speed",
        "recordlimits",
        "records",
        "state",
        "radius",
        "system",
        "dataplane",
        "ends",
        "history",
        "routable",
    ),
    (
        "link",
        "proxy",
        "filtering",
        "consult",
        "plugins",
        "throttle",
        "gardens",
        "outlet",
        "halfopen",
        "strangers",
        "addresschange",
        "snoop",
        "taps",
        "addressguard",
        "housekeeping",
        "particulars",
        "session",
        "tunnel",
        "journal",
        "resume",
        "usagefiles",
        "lns",
    ),
    ("configurator",),
    ("console", "figures", "nsctlserver"),
    ("daemon",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The modules that are imported when the program runs, not those for the type checker only."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "l2tpns":
                yield from (f"l2tpns.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", sorted((PACKAGE / "proto").glob("*.py")), ids=lambda path: path.stem)
def test_proto_is_pure(path: Path) -> None:
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top not in IMPURE, f"{path.name} imports {name}"
        assert top != "l2tpns" or rest.partition(".")[0] in ("proto", "errors"), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imports(path):
        if name.startswith("l2tpns.") and (other := name.split(".")[1]) in LEVEL:
            assert LEVEL[other] <= LEVEL[own], f"{own} imports {name}"


def test_every_module_has_its_layer() -> None:
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_process_is_started_by_the_server(path: Path) -> None:
    assert not {"subprocess", "pty"} & set(imports(path))
    assert "os.system" not in path.read_text()
