"""The L2TP header (RFC 2661 section 3.1)."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l2tpns.errors import WireError
from l2tpns.proto.l2tp.header import (
    ControlHeader,
    DataHeader,
    build_control,
    data_header,
    is_control,
    parse_control,
    parse_data,
)

U16 = st.integers(0, 0xFFFF)

# A ZLB: flags T L S version 2, length 12, tunnel 0x1234, session 0, Ns 5, Nr 6
ZLB = bytes.fromhex("c802 000c 1234 0000 0005 0006")
HELLO = bytes.fromhex("c802 0014 1234 0000 0005 0006  8008 0000 0000 0006")
PPP = bytes.fromhex("ff03 c021 0101 0004")  # an LCP Configure-Request without options


def test_a_zlb_is_a_control_message_with_no_body() -> None:
    assert parse_control(ZLB) == ControlHeader(0x1234, 0, 5, 6, b"")
    assert build_control(0x1234, 0, 5, 6) == ZLB
    assert is_control(ZLB)


def test_the_body_of_a_control_message_is_what_follows_twelve_octets() -> None:
    assert parse_control(HELLO).body == HELLO[12:]
    assert build_control(0x1234, 0, 5, 6, HELLO[12:]) == HELLO


@pytest.mark.statement(1)
@pytest.mark.parametrize("version", [v for v in range(16) if v != 2])
@pytest.mark.parametrize("flags", [0xC8, 0x00, 0x40])
def test_a_header_of_another_version_is_refused(flags: int, version: int) -> None:
    datagram = bytes((flags, version)) + ZLB[2:]
    with pytest.raises(WireError, match="L2F" if version == 1 else f"version {version}"):
        parse_control(datagram)
    with pytest.raises(WireError):
        parse_data(datagram)


@pytest.mark.statement(2)
@pytest.mark.parametrize(
    "flags",
    [
        "4802",  # T missing
        "8802",  # L missing
        "c002",  # S missing
        "ca02",  # O set
        "c902",  # P set
    ],
)
def test_a_control_message_needs_t_l_s_and_must_not_have_o_or_p(flags: str) -> None:
    with pytest.raises(WireError, match="flags"):
        parse_control(bytes.fromhex(flags) + HELLO[2:])


@pytest.mark.statement(2)
def test_a_data_message_has_no_t_bit() -> None:
    with pytest.raises(WireError, match="flags"):
        parse_data(ZLB)
    assert not is_control(data_header(1, 2))
    assert not is_control(b"")


@pytest.mark.statement(3)
def test_reserved_bits_are_ignored_and_never_sent() -> None:
    assert parse_control(bytes.fromhex("fcf2") + ZLB[2:]) == parse_control(ZLB)
    assert parse_data(bytes.fromhex("34f2 0001 0002") + PPP) == DataHeader(1, 2, None, PPP)
    reserved = 0x34F0
    for datagram in (build_control(0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF), data_header(1, 2), data_header(1, 2, 3)):
        assert not int.from_bytes(datagram[:2], "big") & reserved


@pytest.mark.statement(4)
@pytest.mark.parametrize("length", [False, True])
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("offset", [None, 0, 7])
@pytest.mark.parametrize("priority", [False, True])
def test_data_comes_with_any_mix_of_bits(length: bool, sequence: bool, offset: int | None, priority: bool) -> None:
    flags = 0x0002 | 0x4000 * length | 0x0800 * sequence | 0x0200 * (offset is not None) | 0x0100 * priority
    after = bytes.fromhex("0007 0008")  # tunnel 7, session 8
    if sequence:
        after += bytes.fromhex("ffff dead")  # Ns 65535, an Nr that means nothing
    if offset is not None:
        after += offset.to_bytes(2, "big") + b"\xee" * offset
    after += PPP
    if length:
        after = (4 + len(after)).to_bytes(2, "big") + after
    datagram = flags.to_bytes(2, "big") + after
    assert parse_data(datagram) == DataHeader(7, 8, 0xFFFF if sequence else None, PPP)


@pytest.mark.statement(5)
@pytest.mark.parametrize("length", [0, 1, 11, 21, 0xFFFF])
def test_a_control_length_below_the_header_or_past_the_datagram_is_refused(length: int) -> None:
    with pytest.raises(WireError, match=f"Length {length}"):
        parse_control(HELLO[:2] + length.to_bytes(2, "big") + HELLO[4:])


@pytest.mark.statement(5)
@pytest.mark.parametrize("size", range(12))
def test_a_control_message_shorter_than_its_header_is_refused(size: int) -> None:
    with pytest.raises(WireError):
        parse_control(HELLO[:size])


@pytest.mark.statement(5)
def test_octets_past_length_are_ignored() -> None:
    assert parse_control(HELLO + b"trailer") == parse_control(HELLO)
    data = bytes.fromhex("4002 0010 0001 0002") + PPP
    assert parse_data(data + b"trailer") == DataHeader(1, 2, None, PPP)


@pytest.mark.statement(5)
@pytest.mark.parametrize(
    "datagram",
    [
        "",
        "0002 0001 00",  # ends within the session id
        "4002 0007 0001 0002",  # Length 7 is less than the header of 8
        "4002 0009 0001 0002",  # Length 9, but 8 octets came
        "0802 0001 0002 0003",  # S, and no Nr
        "0202 0001 0002 00",  # O, and half an Offset Size
        "0202 0001 0002 0003 eeee",  # offset 3, and 2 octets
        "4202 000b 0001 0002 0002 ee ee",  # offset past Length, though not past the datagram
    ],
)
def test_data_that_is_shorter_than_it_says_is_refused(datagram: str) -> None:
    with pytest.raises(WireError):
        parse_data(bytes.fromhex(datagram))


@pytest.mark.statement(5)
def test_an_offset_up_to_the_very_end_leaves_an_empty_frame() -> None:
    assert parse_data(bytes.fromhex("0202 0001 0002 0002 eeee")).payload == b""


@pytest.mark.statement(6)
def test_the_ids_in_the_header_are_those_given() -> None:
    assert build_control(0, 0, 0, 0)[4:8] == bytes(4)
    assert build_control(0xABCD, 0x1234, 0, 0)[4:8] == bytes.fromhex("abcd 1234")
    assert data_header(0xABCD, 0x1234) == bytes.fromhex("0002 abcd 1234")


@pytest.mark.statement(15)
def test_a_data_header_with_a_number_has_the_s_bit_and_counts_round() -> None:
    assert data_header(7, 8, 0) == bytes.fromhex("0802 0007 0008 0000 0000")
    assert data_header(7, 8, 0xFFFF) == bytes.fromhex("0802 0007 0008 ffff 0000")
    assert data_header(7, 8, 0x10000) == data_header(7, 8, 0)


def test_a_control_message_longer_than_the_length_field_cannot_be_built() -> None:
    assert len(build_control(1, 2, 3, 4, bytes(0xFFFF - 12))) == 0xFFFF
    with pytest.raises(WireError, match="65536"):
        build_control(1, 2, 3, 4, bytes(0xFFFF - 11))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
@example(ZLB)
def test_any_octets_give_a_control_header_or_an_error_of_ours(octets: bytes) -> None:
    try:
        header = parse_control(octets)
    except WireError:
        return
    assert len(header.body) + 12 <= len(octets)


@settings(max_examples=200, deadline=None)
@given(U16.map(lambda flags: (flags & 0x7FF0) | 2), st.binary(max_size=40))
def test_any_octets_give_a_data_header_or_an_error_of_ours(flags: int, octets: bytes) -> None:
    try:
        header = parse_data(flags.to_bytes(2, "big") + octets)
    except WireError:
        return
    assert header.payload in octets


@settings(max_examples=50, deadline=None)
@given(U16, U16, U16, U16, st.binary(max_size=40))
def test_what_is_built_can_be_read(tunnel: int, session: int, ns: int, nr: int, body: bytes) -> None:
    assert parse_control(build_control(tunnel, session, ns, nr, body)) == ControlHeader(tunnel, session, ns, nr, body)
    assert parse_data(data_header(tunnel, session, ns, nr) + body) == DataHeader(tunnel, session, ns, body)
    assert parse_data(data_header(tunnel, session) + body) == DataHeader(tunnel, session, None, body)
