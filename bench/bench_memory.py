"""Memory of a session that is online.

    python -m bench memory

Resident memory before and after 1,000 and 10,000 sessions, divided by their number.
"""

from __future__ import annotations

from bench.common import Bench, bring_up, c_available, ours, print_figure, settle, theirs

STEPS = (1000, 10_000)


def main() -> None:
    with ours(users=STEPS[-1]) as (bench, _):
        measure(bench)
    why = c_available()
    if why:
        print(f"memory: the C l2tpns is left out: {why}")
    else:
        with theirs() as bench:
            measure(bench)


def measure(bench: Bench) -> None:
    lacs = bench.tunnels()
    empty, there = bench.rss(), 0
    for sessions in STEPS:
        bring_up(bench, lacs, sessions - there, first=there)
        there = sessions
        settle(lambda: False, 0.5)  # the last replies are sent, and memory of the set-up is freed
        used = bench.rss() - empty
        print_figure(
            f"memory, {bench.name}, {sessions} sessions",
            f"{used / sessions / 1024:.1f} KiB a session, {bench.rss() >> 20} MiB in all, {empty >> 20} without any",
        )
