"""The bounded cursor of l2tpns.proto.wire."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2tpns.errors import WireError
from l2tpns.proto.wire import Cursor


def test_fields_are_read_in_network_order() -> None:
    cursor = Cursor(bytes.fromhex("01 0203 04050607 0809"))
    assert (cursor.u8(), cursor.u16(), cursor.u32()) == (1, 0x0203, 0x04050607)
    assert cursor.left == 2
    assert cursor.rest() == b"\x08\x09"
    cursor.done()


def test_a_cursor_does_not_read_past_the_end_it_was_given() -> None:
    cursor = Cursor(bytes(10), 2, 5)
    assert cursor.take(3) == bytes(3)
    with pytest.raises(WireError):
        cursor.u8()


def test_octets_left_over_are_an_error() -> None:
    cursor = Cursor(bytes(3))
    cursor.u16()
    with pytest.raises(WireError, match="1 octets left over"):
        cursor.done()


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2), (0, 5), (5, None)])
def test_a_cursor_outside_of_its_octets_cannot_be_made(start: int, end: int | None) -> None:
    with pytest.raises(WireError):
        Cursor(bytes(4), start, end)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=20), st.lists(st.integers(-3, 8), max_size=8))
def test_whatever_is_asked_for_the_cursor_stays_inside(octets: bytes, counts: list[int]) -> None:
    cursor = Cursor(octets)
    seen = b""
    for count in counts:
        if 0 <= count <= cursor.left:
            seen += cursor.take(count)
        else:
            with pytest.raises(WireError):
                cursor.take(count)
    assert seen + cursor.rest() == octets
