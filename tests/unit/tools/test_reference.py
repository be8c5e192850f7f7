"""The table of the names that operators know (docs/reference.md): nothing is missing, nothing untested."""

from __future__ import annotations

import pytest

from tools.docs import reference


def test_each_name_is_here_with_a_test_or_left_out_for_a_reason() -> None:
    assert reference.faults() == []


def test_a_mark_with_a_name_that_nobody_knows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "tests_by_mark", lambda *_: {"show bananas": ["somewhere"]})
    with pytest.raises(SystemExit, match='has no "show bananas"'):
        reference.gather()


def test_a_name_that_is_nowhere_or_has_no_test_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [("Names", [reference.Entry("show pool", "`show pool`", ""), reference.Entry("fly", "", "")])]
    monkeypatch.setattr(reference, "chapters", lambda: known)
    monkeypatch.setattr(reference, "tests_by_mark", lambda *_: {})
    assert reference.faults() == ["show pool: no test", "fly: missing"]
