"""bench/loadgen.py: the lines that the generator prints, and those that it reads."""

from __future__ import annotations

import pytest

from bench.loadgen import GeneratorDied, Load, parse_event


def test_a_line_of_the_generator_becomes_an_event() -> None:
    assert parse_event(b'{"event":"sent","run":3,"packets":10}') == {"event": "sent", "run": 3, "packets": 10}


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"3", b'{"run":3}', b'{"event":1}', b"\xff"])
def test_another_line_is_refused_and_shown(line: bytes) -> None:
    with pytest.raises(GeneratorDied, match="not an event"):
        parse_event(line)


def test_a_load_is_written_in_the_order_that_the_generator_reads() -> None:
    assert Load(run=7, octets=64, seconds=0.5, rate=1234.5, sessions=10, first=3).words() == "7 64 0.5 1234.500 3 10"
