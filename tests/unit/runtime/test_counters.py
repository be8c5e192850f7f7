"""The counters: declared once, with help."""

from __future__ import annotations

from pathlib import Path

import pytest

from l2tpns.runtime.counters import DECLARED, Counters

PACKAGE = Path(__file__).parents[3] / "l2tpns"


def test_every_counter_begins_at_zero_and_has_help_of_its_own() -> None:
    assert all(value == 0 for _, _, value in Counters().items())
    helps = [help for _, help in DECLARED]
    assert all(helps)
    assert len(set(helps)) == len(helps)


def test_what_is_counted_is_listed_by_name_and_cleared_on_demand() -> None:
    counters = Counters()
    counters.drop_spoofed += 3
    assert {name: value for name, _, value in counters.items() if value} == {"drop_spoofed": 3}
    counters.clear()
    assert not any(value for _, _, value in counters.items())


def test_every_counter_is_counted_somewhere() -> None:
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert [name for name, _ in DECLARED if f"counters.{name} += " not in source] == []


def test_a_counter_that_is_not_declared_cannot_be_counted() -> None:
    with pytest.raises(AttributeError):
        Counters().drop_spofed = 1  # type: ignore[attr-defined]
