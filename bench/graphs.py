"""Draw bench/results.json as SVG: each figure against the number of sessions, a line for each variant.

    python -m bench.graphs [FILE [DIRECTORY]]

Needs matplotlib (the extra `bench` of setup.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import RESULTS, ROUND_TRIPS, SETUP, Column, Row, forwarding_columns, values
from tests.lab.server import CHECKOUT

DIRECTORY = CHECKOUT / "docs/graphs"

# A point: sessions, median, lowest, highest.
Point = tuple[int, float, float, float]


def series(column: Column, rows: list[Row]) -> dict[str, list[Point]]:
    """Return the points of each variant that has the figure, in order of sessions."""
    _, read, _ = column
    lines: dict[str, list[Point]] = {}
    for sessions, variant in sorted({(row["sessions"], row["variant"]) for row in rows}):
        own = [row for row in rows if (row["sessions"], row["variant"]) == (sessions, variant)]
        if found := values(read, own):
            lines.setdefault(variant, []).append((sessions, median(found), min(found), max(found)))
    return lines


def graphs(rows: list[Row]) -> dict[str, tuple[str, Column]]:
    """Return what is drawn: title and column, by the name of the file."""
    wanted = {"setup": ("Set-up with RADIUS and accounting", SETUP[0]), "memory": ("Resident memory", SETUP[6])}
    wanted |= {"setup-latency": ("Set-up latency", SETUP[4]), "round-trip": ("Round trip at half load", ROUND_TRIPS[4])}
    for what in dict.fromkeys(what for row in rows for what in row["forward"]):
        wanted["forward-" + what.replace(" ", "-")] = (f"{what} octets", forwarding_columns(what)[0])
    return wanted


def draw(title: str, column: Column, rows: list[Row], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes: Any = figure.add_subplot()
    for variant, points in series(column, rows).items():
        sessions, middle, low, high = zip(*points, strict=True)
        below = [a - b for a, b in zip(middle, low, strict=True)]
        above = [b - a for a, b in zip(middle, high, strict=True)]
        axes.errorbar(sessions, middle, yerr=(below, above), marker="o", capsize=3, label=variant)
    axes.set(title=title, xlabel="sessions", ylabel=column[0], xscale="log")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    # Without the date, so that the same results make the same file.
    figure.savefig(file, format="svg", metadata={"Date": None})


def main(words: list[str]) -> int:
    results = json.loads(Path(words[0] if words else RESULTS).read_text())
    directory = Path(words[1]) if len(words) > 1 else DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    for name, (title, column) in graphs(results["rows"]).items():
        draw(title, column, results["rows"], directory / f"{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
