"""bench/report.py: medians, ranges and tables of the results."""

from __future__ import annotations

from typing import Any

from bench.report import spread, tables


def row(variant: str, sessions: int, rate: float, **more: Any) -> dict[str, Any]:
    forward = {"up 64": {"loss_free": rate, "saturated": 2 * rate, "cpu_us": 1.5}}
    return {"variant": variant, "sessions": sessions, "forward": forward, **more}


def test_one_value_stands_by_itself_and_several_show_median_and_range() -> None:
    assert spread([], 1) == ""
    assert spread([1234.56], 1) == "1,234.6"
    assert spread([3, 1, 2], 0) == "2 (1..3)"


def test_runs_of_a_variant_become_one_line_in_order_of_sessions() -> None:
    rows = [row("l2tpns", 10_000, 5000), row("l2tpns", 1000, 1000), row("l2tpns", 1000, 3000), row("C", 1000, 4000)]
    assert tables({"machine": "a machine", "rows": rows}).splitlines() == [
        "a machine",
        "",
        "| up 64 octets: sessions |  | loss-free, kpps | saturated, kpps | CPU a packet, us |",
        "|---|---|---|---|---|",
        "| 1,000 | l2tpns | 2 (1..3) | 4 (2..6) | 1.50 (1.50..1.50) |",
        "| 1,000 | C | 4 | 8 | 1.50 |",
        "| 10,000 | l2tpns | 5 | 10 | 1.50 |",
    ]


def test_what_a_variant_does_not_have_leaves_its_line_or_cell_out() -> None:
    trips = {"idle": {"p50": 0.1, "p99": 0.2, "max": 0.3}}
    text = tables({"machine": "", "rows": [row("forwarding", 1, 1000, round_trip=trips)]})
    assert "Set-up" not in text
    assert text.splitlines()[-1] == "| 1 | forwarding | 0.10 | 0.20 | 0.30 |  |  |  |"
