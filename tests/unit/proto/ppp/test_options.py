"""The list of configuration options."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.errors import WireError
from l2tpns.proto.ppp.options import MAX_VALUE, Option, build_options, parse_options
from tests.unit.proto.ppp.ends import octets


def test_options_are_read_in_order_and_more_than_once():
    data = octets("""
        0104 05dc   # MRU 1500
        0702        # Protocol-Field-Compression
        0104 0578   # MRU 1400
    """)
    assert parse_options(data) == [Option(1, b"\x05\xdc"), Option(7), Option(1, b"\x05\x78")]


@pytest.mark.parametrize("data", ["01", "0100", "0101", "0104 05", "0702 01", "0104 05dc 05ff 00"])
def test_an_option_that_does_not_fit_is_an_error_of_ours_and_no_endless_loop(data: str):
    with pytest.raises(WireError):
        parse_options(octets(data))


@given(st.lists(st.builds(Option, st.integers(0, 255), st.binary(max_size=MAX_VALUE)), max_size=6))
def test_options_that_were_built_are_read_again(options: list[Option]):
    assert parse_options(build_options(options)) == options


@given(st.binary(max_size=60))
def test_any_octets_give_options_or_an_error_of_ours(data: bytes):
    try:
        options = parse_options(data)
    except WireError:
        return
    assert build_options(options) == data
