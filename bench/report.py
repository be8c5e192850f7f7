"""Make tables in Markdown of bench/results.json: medians of all runs, with the lowest and highest value.

python -m bench.report [FILE]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).with_name("results.json")

Row = dict[str, Any]
# A column: its heading, how a row gives the value (KeyError: not measured), and the decimals shown.
Column = tuple[str, Callable[[Row], float], int]

SETUP: tuple[Column, ...] = (
    ("logins/s", lambda row: row["setup"]["rate"], 0),
    ("failed", lambda row: row["setup"]["failed"], 0),
    ("CPU each, us", lambda row: row["setup"]["cpu_us"], 0),
    ("p50, ms", lambda row: row["setup"]["setup_ms"]["p50"], 1),
    ("p99, ms", lambda row: row["setup"]["setup_ms"]["p99"], 1),
    ("acknowledged p99, ms", lambda row: row["setup"]["acknowledged_ms"]["p99"], 1),
    ("memory, MiB", lambda row: row["memory"]["all"] / 2**20, 0),
    ("idle CPU, %", lambda row: row["idle_cpu"] * 100, 1),
)
ROUND_TRIPS: tuple[Column, ...] = tuple(
    (f"{load} {share}, ms", lambda row, load=load, share=share: row["round_trip"][load][share], 2)  # type: ignore[misc]
    for load in ("idle", "half load")
    for share in ("p50", "p99", "max")
)


def forwarding_columns(what: str) -> tuple[Column, ...]:
    """Return the columns of one way and size, such as "up 64"."""
    return (
        ("loss-free, kpps", lambda row: row["forward"][what]["loss_free"] / 1e3, 0),
        ("saturated, kpps", lambda row: row["forward"][what]["saturated"] / 1e3, 0),
        ("CPU a packet, us", lambda row: row["forward"][what]["cpu_us"], 2),
    )


def restart_columns(what: str) -> tuple[Column, ...]:
    return tuple(
        (heading, lambda row, name=name: row[what][name], decimals)
        for heading, name, decimals in (
            ("packets each way", "up_sent", 0),
            ("lost up", "up_lost", 0),
            ("lost down", "down_lost", 0),
            ("overtaken up", "up_late", 0),
            ("overtaken down", "down_late", 0),
            ("leaving, s", "leaving_s", 2),
            ("starting, s", "starting_s", 2),
        )
    )


def tables(results: dict[str, Any]) -> str:
    """Return all tables, with the line that describes the machine."""
    rows = results["rows"]
    ways = dict.fromkeys(what for row in rows for what in row["forward"])
    parts = [results["machine"], table("Set-up", SETUP, rows)]
    parts += [table(f"{what} octets", forwarding_columns(what), rows) for what in ways]
    parts.append(table("Round trip, 64 octets", ROUND_TRIPS, rows))
    for how in ("SIGKILL", "SIGTERM"):
        parts.append(table(f"Restart by {how}", restart_columns(f"restart by {how}"), rows))
    return "\n\n".join(part for part in parts if part)


def table(title: str, columns: tuple[Column, ...], rows: list[Row]) -> str:
    """Return a table with a line for each number of sessions and variant; empty if nothing was measured."""
    keys = dict.fromkeys((row["sessions"], row["variant"]) for row in rows)
    lines = []
    for sessions, variant in sorted(keys, key=lambda key: key[0]):
        own = [row for row in rows if (row["sessions"], row["variant"]) == (sessions, variant)]
        cells = [spread(values(read, own), decimals) for _, read, decimals in columns]
        if any(cells):
            lines.append(f"| {sessions:,} | {variant} | {' | '.join(cells)} |")
    if not lines:
        return ""
    head = f"| {title}: sessions |  | {' | '.join(heading for heading, _, _ in columns)} |"
    return "\n".join([head, f"|{'---|' * (len(columns) + 2)}", *lines])


def values(read: Callable[[Row], float], rows: Iterable[Row]) -> list[float]:
    """Return the values of those rows that have one."""
    found = []
    for row in rows:
        try:
            found.append(float(read(row)))
        except KeyError:
            continue
    return found


def spread(numbers: list[float], decimals: int) -> str:
    """Return the median, with the lowest and highest value if there are several; empty without any."""
    if not numbers:
        return ""
    middle = f"{median(numbers):,.{decimals}f}"
    return middle if len(numbers) == 1 else f"{middle} ({min(numbers):,.{decimals}f}..{max(numbers):,.{decimals}f})"


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else RESULTS).read_text())))
