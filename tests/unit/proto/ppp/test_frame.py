"""Frames and packets of PPP inside L2TP."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.errors import WireError
from l2tpns.proto.ppp.frame import Protocol, build_frame, build_packet, cut_text, parse_frame, parse_packet
from tests.unit.proto.ppp.ends import octets


@pytest.mark.statement(97)
@pytest.mark.parametrize(
    "frame",
    [
        "ff03 0021 4500",  # nothing compressed
        "0021 4500",  # address and control left out
        "ff03 21 4500",  # protocol compressed
        "21 4500",  # both
    ],
)
def test_every_form_of_the_header_is_read(frame: str):
    assert parse_frame(octets(frame)) == (Protocol.IP, b"\x45\x00")


@pytest.mark.statement(97)
def test_lcp_is_sent_with_nothing_compressed():
    assert build_frame(Protocol.LCP, octets("09010008 00000000")) == octets("ff03 c021 09010008 00000000")
    assert build_frame(Protocol.IP, b"\x45") == octets("ff03 0021 45")


@pytest.mark.parametrize("frame", ["", "ff03", "ff03 c0", "c0", "c022 00", "ff03 0020 00"])
def test_a_frame_without_a_legal_protocol_is_no_frame(frame: str):
    with pytest.raises(WireError):
        parse_frame(octets(frame))


@given(st.binary(max_size=12))
def test_any_octets_give_a_frame_or_an_error_of_ours(payload: bytes):
    try:
        protocol, information = parse_frame(payload)
    except WireError:
        return
    assert protocol & 1 and payload.endswith(information)


@pytest.mark.statement(101)
def test_what_follows_the_length_is_padding():
    assert parse_packet(octets("0a 07 0006 aabb ccdd")) == (10, 7, b"\xaa\xbb")


@pytest.mark.statement(101)
@pytest.mark.parametrize("packet", ["", "01 01 00", "01 01 0003", "01 01 0005", "01 01 0000 aa"])
def test_a_length_that_does_not_fit_is_no_packet(packet: str):
    with pytest.raises(WireError):
        parse_packet(octets(packet))


@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=40), st.binary(max_size=4))
def test_a_packet_that_was_built_is_read_again(code: int, identifier: int, data: bytes, padding: bytes):
    assert parse_packet(build_packet(code, identifier, data) + padding) == (code, identifier, data)


@pytest.mark.parametrize(
    ("text", "size", "cut"),
    [
        ("grün".encode(), 5, "grün".encode()),
        ("grün".encode(), 4, "grü".encode()),
        ("grün".encode(), 3, b"gr"),
        ("\U0001f600".encode() * 2, 7, "\U0001f600".encode()),
        ("\U0001f600".encode(), 3, b""),
        (b"\x80" * 9, 5, b"\x80" * 5),
        (b"abc", 0, b""),
        (b"abc", -1, b""),
    ],
)
def test_a_text_that_is_cut_keeps_whole_characters(text: bytes, size: int, cut: bytes):
    assert cut_text(text, size) == cut


@given(st.text(max_size=20), st.integers(0, 30))
def test_a_cut_text_is_utf_8_again_and_fits(text: str, size: int):
    cut = cut_text(text.encode(), size)
    assert text.startswith(cut.decode()) and len(cut) <= size
    assert len(cut) > min(size, len(text.encode())) - 4
