"""Write the generated pages of docs/ from the declarations in the source: `python -m tools.docs [--check]`.

With --check nothing is written: stale pages are listed, and the exit status is 1. To add a page, write a function that
returns its text and enter it in PAGES.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from tools.docs import conformance, pages, plugins, reference
from tools.docs.markdown import ROOT

DOCS = ROOT / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": pages.configuration,
    "commands.md": pages.commands,
    "counters.md": pages.counters,
    "metrics.md": pages.metrics,
    "log.md": pages.log_events,
    "plugins.md": plugins.page,
    "conformance.md": conformance.page,
    "reference.md": reference.page,
    "radius.md": pages.radius,
    "architecture.md": pages.architecture,
}


def main(arguments: Sequence[str]) -> int:
    """Write the pages that differ, or with --check report them. Return the exit status."""
    if set(arguments) - {"--check"}:
        print("usage: python -m tools.docs [--check]", file=sys.stderr)
        return 2
    stale = []
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if path.exists() and path.read_text() == text:
            continue
        if arguments:
            stale.append(name)
        else:
            path.write_text(text)
            print(f"docs/{name} written")
    if stale:
        print(f"stale, `make docs` writes them again: {', '.join(f'docs/{name}' for name in stale)}", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
