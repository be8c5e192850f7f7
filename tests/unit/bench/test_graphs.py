"""bench/graphs.py: which points and which graphs the results give."""

from __future__ import annotations

from bench.graphs import graphs, series
from bench.report import forwarding_columns
from tests.unit.bench.test_report import row

ROWS = [row("l2tpns", 10_000, 5000), row("l2tpns", 1000, 1000), row("l2tpns", 1000, 3000), row("C", 1000, 4000)]


def test_a_variant_has_a_point_for_each_number_of_sessions_with_the_range_of_its_runs() -> None:
    assert series(forwarding_columns("up 64")[0], ROWS) == {
        "l2tpns": [(1000, 2.0, 1.0, 3.0), (10_000, 5.0, 5.0, 5.0)],
        "C": [(1000, 4.0, 4.0, 4.0)],
    }


def test_each_graph_is_of_the_figure_that_its_name_says() -> None:
    named = {name: column[0] for name, (_, column) in graphs(ROWS).items()}
    assert named == {
        "setup": "logins/s",
        "memory": "memory, MiB",
        "setup-latency": "p99, ms",
        "round-trip": "half load p99, ms",
        "forward-up-64": "loss-free, kpps",
    }
