"""`python -m bench`: words that it does not understand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.lab.server import CHECKOUT


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("memory:1", "bench: memory takes no argument\n"),
        ("setup:1:2", "bench: setup takes RUNS (numbers)\n"),
        ("setup:many", "bench: setup takes RUNS (numbers)\n"),
        ("speed", "bench: no such part: speed; there are setup, memory, "),
    ],
)
def test_a_word_that_is_no_part_or_too_much_for_it_is_refused_before_anything_runs(word: str, says: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "bench", word], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(says)
