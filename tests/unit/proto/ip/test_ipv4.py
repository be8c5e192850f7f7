"""Octets of IPv4, TCP and ICMP that the data path makes or changes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.proto.ip import icmp, ipv4
from tests.lab.packets import ip, ones_sum, tcp_checksum_is_right, tcp_syn

A, B = "10.0.0.1", "198.51.100.2"


def reassemble(fragments: list[bytes]) -> bytes:
    """The data of the fragments in their places; every header's checksum and length must be right."""
    data = bytearray()
    for number, piece in enumerate(fragments):
        header = (piece[0] & 15) * 4
        assert ones_sum(piece[:header]) == 0xFFFF
        assert int.from_bytes(piece[2:4], "big") == len(piece)
        word = int.from_bytes(piece[6:8], "big")
        assert (word & 0x1FFF) * 8 == len(data)
        assert bool(word & 0x2000) == (number < len(fragments) - 1)
        data += piece[header:]
    return bytes(data)


@given(st.binary(max_size=3000), st.integers(68, 1500), st.sampled_from([b"", bytes.fromhex("94040000"), b"\x01" * 8]))
def test_fragments_fit_and_give_the_packet_again(payload: bytes, mtu: int, options: bytes) -> None:
    packet = ip(A, B, payload, options=options)
    if len(packet) <= mtu:
        return
    pieces = ipv4.fragment(packet, mtu)
    assert all(len(piece) <= mtu for piece in pieces)
    assert len({piece[4:6] for piece in pieces}) == 1  # one identification
    assert reassemble(pieces) == payload


def test_a_fragment_that_is_cut_again_keeps_its_place_and_its_more_bit() -> None:
    packet = ip(A, B, bytes(1000), fragment=0x2000 | 185)
    words = [int.from_bytes(piece[6:8], "big") for piece in ipv4.fragment(packet, 576)]
    assert words == [0x2000 | 185, 0x2000 | 185 + 552 // 8]


def test_only_options_to_be_copied_stand_in_later_fragments() -> None:
    options = bytes.fromhex("4404050094040000")  # timestamp: first fragment only; router alert: copied
    first, second = ipv4.fragment(ip(A, B, bytes(600), options=options), 576)
    assert first[20:28] == options
    assert second[0] == 0x46 and second[20:24] == bytes.fromhex("94040000")


@given(st.binary(min_size=20, max_size=20), st.integers(68, 600))
def test_any_option_octets_are_cut_without_error(options: bytes, mtu: int) -> None:
    assert reassemble(ipv4.fragment(ip(A, B, bytes(range(256)) * 4, options=options), mtu)) == bytes(range(256)) * 4


@pytest.mark.parametrize("before", [b"", b"\x01", b"\x01\x01", bytes.fromhex("0402"), bytes.fromhex("030307")])
def test_a_clamped_syn_has_the_lower_mss_and_a_right_checksum(before: bytes) -> None:
    packet = tcp_syn(A, B, 1460, before=before)
    clamped = ipv4.clamp_mss(packet, 1322)
    at = 40 + len(before) + 2
    assert int.from_bytes(clamped[at : at + 2], "big") == 1322
    assert tcp_checksum_is_right(packet) and tcp_checksum_is_right(clamped)
    assert len(clamped) == len(packet)


def test_a_lower_mss_and_a_syn_without_mss_stay_as_they_are() -> None:
    for packet in (tcp_syn(A, B, 1300), tcp_syn(A, B, None)):
        assert ipv4.clamp_mss(packet, 1322) is packet


@given(st.binary(max_size=60), st.integers(0, 255))
def test_any_tcp_octets_are_searched_for_mss_without_error(octets: bytes, offset: int) -> None:
    segment = octets[:12] + bytes((offset,)) + octets[13:]
    packet = ip(A, B, segment, protocol=6)
    assert len(ipv4.clamp_mss(packet, 536)) == len(packet)


def test_fragmentation_needed_carries_the_mtu_and_the_head_of_the_packet() -> None:
    about = ip(B, A, bytes(1400), df=True)
    message = icmp.unreachable(icmp.FRAGMENTATION_NEEDED, about, bytes([1, 1, 1, 1]), 1322)
    assert ones_sum(message[:20]) == 0xFFFF and ones_sum(message[20:]) == 0xFFFF
    assert message[12:16] == bytes([1, 1, 1, 1]) and message[16:20] == about[12:16]
    assert message[20:22] == b"\x03\x04"  # destination unreachable, fragmentation needed and DF set
    assert struct.unpack_from("!H", message, 26) == (1322,)
    assert len(message) == 576 and message[28:] == about[:548]


@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        (ip(B, A), True),
        (ip(B, A, bytes.fromhex("0800f7ff00000000"), protocol=1), True),  # echo request
        (ip(B, A, bytes.fromhex("0301fcfe00000000"), protocol=1), False),  # an error itself
        (ip(B, A, fragment=10), False),  # not a first fragment
        (ip("0.0.0.0", A), False),
        (ip("127.0.0.1", A), False),
        (ip("224.0.0.5", A), False),
        (ip("255.255.255.255", A), False),
        (ip(B, "224.0.0.251"), False),
        (ip(B, "255.255.255.255"), False),
        (ip(B, A, b"", protocol=1), False),
    ],
)
def test_errors_are_never_sent_where_rfc_1122_forbids_them(packet: bytes, answer: bool) -> None:
    assert icmp.may_answer(packet) is answer


def test_a_rate_limit_lets_one_seconds_worth_through_and_refills_with_time() -> None:
    limit = icmp.RateLimit()
    assert [limit.allow(3, 100.0) for _ in range(5)] == [True, True, True, False, False]
    assert [limit.allow(3, 100.4) for _ in range(2)] == [True, False]
