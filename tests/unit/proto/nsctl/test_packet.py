"""nsctl's packets, octets built by hand from their descriptions (docs/nsctl.md)."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.errors import WireError
from l2tpns.proto.nsctl.packet import (
    MAX_OLD_PACKET,
    MAX_PACKET,
    Malformed,
    OldPacket,
    OldType,
    Packet,
    Request,
    Type,
    Verb,
    decode,
)
from l2tpns.proto.nsctl.seal import MAX_SEALED, Direction, Forged, Sealed, is_sealed, unseal

KEY = b"what both of the ends know"

OLD_GARDEN = bytes.fromhex(
    "9012"  # magic
    "03e8"  # GARDEN, 1000
    "000f"  # length of everything, 15
    "deadbeef"  # id
    "31323334 00"  # "1234"
)
OLD_LOAD = bytes.fromhex("9012 0005 0011 00000001 67617264656e 00")  # LOAD_PLUGIN "garden"
NEW_CONTROL = bytes.fromhex(
    "9013"  # magic
    "14"  # CONTROL
    "03"  # three arguments
    "08 7468726f74746c65"  # "throttle"
    "04 66726564"  # "fred"
    "03 313238"  # "128"
    "ff"  # the end
)


@pytest.mark.parametrize(
    ("octets", "request_"),
    [
        (OLD_GARDEN, Request(Verb.CONTROL, ("garden", "1234"))),
        (bytes.fromhex("9012 03e9 000f 00000000 31323334 00"), Request(Verb.CONTROL, ("ungarden", "1234"))),
        (OLD_LOAD, Request(Verb.LOAD, ("garden",))),
        (bytes.fromhex("9012 0006 0011 00000001 67617264656e 00"), Request(Verb.UNLOAD, ("garden",))),
        (bytes.fromhex("9012 03e8 000a 00000000"), Request(Verb.CONTROL, ("garden",))),
        (NEW_CONTROL, Request(Verb.CONTROL, ("throttle", "fred", "128"))),
        (bytes.fromhex("9013 11 01 06 67617264656e ff"), Request(Verb.LOAD, ("garden",))),
        (bytes.fromhex("9013 12 01 06 67617264656e ff"), Request(Verb.UNLOAD, ("garden",))),
        (bytes.fromhex("9013 13 00 ff"), Request(Verb.HELP)),
        (bytes.fromhex("9013 14 02 00 00 ff"), Request(Verb.CONTROL, ("", ""))),
        (bytes.fromhex("9013 14 01 02 66e9 ff"), Request(Verb.CONTROL, ("f\udce9",))),  # Latin 1: kept as it is
    ],
)
def test_a_request_of_either_format_is_understood(octets: bytes, request_: Request) -> None:
    packet = decode(octets)
    assert packet.request() == request_
    assert packet.encode() == octets


def test_an_answer_to_1_1_echoes_the_id_and_is_a_string() -> None:
    request = decode(OLD_GARDEN)
    assert request.answer(True, "").encode() == bytes.fromhex("9012 0001 000b deadbeef 00")
    assert request.answer(False, "no such session").encode() == bytes.fromhex(
        "9012 0002 001a deadbeef 6e6f20737563682073657373696f6e 00"
    )
    assert request.answer(False, "a\0b").strings == (b"a b",)


def test_an_answer_to_2_x_has_a_line_in_each_argument() -> None:
    request = decode(NEW_CONTROL)
    assert request.answer(True, "").encode() == bytes.fromhex("9013 21 00 ff")
    assert request.answer(False, "no\nbed").encode() == bytes.fromhex("9013 22 02 02 6e6f 03 626564 ff")


def test_a_long_line_becomes_several_and_no_character_is_torn() -> None:
    answer = decode(NEW_CONTROL).answer(True, "x" + "é" * 200)
    assert isinstance(answer, Packet)
    assert answer.text == "x" + "é" * 126 + "\n" + "é" * 74
    assert decode(answer.encode()) == answer


@pytest.mark.parametrize("text", ["long " * 2000, "é" * 10_000])
def test_an_answer_that_is_too_long_is_cut_and_says_so(text: str) -> None:
    old, new = decode(OLD_GARDEN).answer(True, text), decode(NEW_CONTROL).answer(True, text)
    assert isinstance(old, OldPacket)
    assert isinstance(new, Packet)
    assert old.strings[0].endswith(b"...")
    assert new.arguments[-1] == b"..."
    assert MAX_OLD_PACKET - 2 <= len(old.encode()) <= MAX_OLD_PACKET
    assert MAX_PACKET - 255 <= len(new.encode()) <= MAX_PACKET


def test_an_answer_of_too_many_lines_is_cut_and_says_so() -> None:
    answer = decode(NEW_CONTROL).answer(True, "\n" * 500)
    assert isinstance(answer, Packet)
    assert answer.arguments == (*[b""] * 254, b"...")


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"", "no packet"),
        (b"\x90", "no packet"),
        (b"GET / HTTP/1.0\r\n\r\n", "no packet"),
        (OLD_GARDEN[:9], "no packet"),
        (OLD_GARDEN[:-1], "header says 15"),
        (OLD_GARDEN + b"\0", "header says 15"),
        (bytes.fromhex("9012 03e8 000e 00000000 31323334"), "no end"),
        (bytes.fromhex("9012 03e8 ffff 00000000 3100"), "header says 65535"),
        (bytes.fromhex("9012 03e8 0579 00000000") + b"x" * 1390 + b"\0", "1400 are the most"),
        (NEW_CONTROL[:3], "no packet"),
        (NEW_CONTROL[:-1], "0xFF"),
        (NEW_CONTROL[:-3], "3 arguments announced, 2 there"),
        (NEW_CONTROL + b"\0", "0xFF"),
        (NEW_CONTROL + b"\xff", "0xFF"),
        (bytes.fromhex("9013 14 04") + NEW_CONTROL[4:], "4 arguments announced, 3 there"),
        (bytes.fromhex("9013 14 02") + NEW_CONTROL[4:], "0xFF"),
        (bytes.fromhex("9013 14 ff ff"), "255 arguments announced, 0 there"),
        (bytes.fromhex("9013 14 00"), "0xFF"),
        (b"\x90\x13\x14\x11" + b"\xff".join([b""] + [b"x" * 255] * 17), "4096 are the most"),
    ],
)
def test_what_is_cut_or_too_long_or_lies_of_itself_is_refused(octets: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        decode(octets)


@pytest.mark.parametrize("octets", ["9012 0003 000a 00000007", "9013 15 00 ff", "9013 00 00 ff"])
def test_a_request_of_unknown_type_can_be_answered(octets: str) -> None:
    packet = decode(bytes.fromhex(octets))
    with pytest.raises(Malformed, match="unknown request type") as refused:
        packet.request()
    assert refused.value.packet is packet


def test_a_mistake_after_the_header_can_be_answered() -> None:
    for octets, answer in ((OLD_GARDEN + b"x", OldPacket(1000, 0xDEADBEEF)), (NEW_CONTROL[:-1], Packet(0x14))):
        with pytest.raises(Malformed) as refused:
            decode(octets)
        assert refused.value.packet == answer


def test_commands_as_typed_become_the_types_of_2_x() -> None:
    assert Packet.asking(Request.of(["load_plugin", "garden"])) == Packet(Type.LOAD, (b"garden",))
    assert Packet.asking(Request.of(["unload_plugin", "garden"])) == Packet(Type.UNLOAD, (b"garden",))
    assert Packet.asking(Request.of(["help"])) == Packet(Type.HELP)
    assert Packet.asking(Request.of(["throttle", "fred", "128"])).encode() == NEW_CONTROL
    assert Packet.asking(Request.of([""])) == Packet(Type.CONTROL, (b"",))
    assert str(Request.of(["load_plugin", "garden"])) == "load_plugin garden"
    assert str(Request.of(["garden", "12"])) == "garden 12"


@pytest.mark.parametrize("words", [["x" * 256], ["x"] * 256, ["x" * 250] * 17])
def test_a_command_that_does_not_fit_is_not_sent(words: list[str]) -> None:
    with pytest.raises(WireError):
        Packet.asking(Request.of(words)).encode()


@given(
    st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=64).map(lambda rest: b"\x90\x12" + rest),
        st.binary(max_size=64).map(lambda rest: b"\x90\x13" + rest),
        st.binary(max_size=64).map(
            lambda rest: b"\x90\x12\x03\xe8" + (10 + len(rest)).to_bytes(2, "big") + bytes(4) + rest
        ),
    )
)
def test_any_octets_give_a_packet_or_an_error_of_ours(octets: bytes) -> None:
    try:
        packet = decode(octets)
    except Malformed:
        return
    assert packet.encode() == octets
    try:
        str(packet.request())
    except Malformed:
        pass


@given(st.integers(0, 255), st.lists(st.binary(max_size=255), max_size=16))
def test_a_packet_of_2_x_comes_back_as_it_was(type: int, arguments: list[bytes]) -> None:
    packet = Packet(type, tuple(arguments))
    if len(arguments) + sum(map(len, arguments)) + 5 <= MAX_PACKET:
        assert decode(packet.encode()) == packet


@given(
    st.integers(0, 0xFFFF),
    st.integers(0, 2**32 - 1),
    st.lists(st.binary(max_size=80).map(lambda s: s.replace(b"\0", b"")), max_size=16),
)
def test_a_packet_of_1_1_comes_back_as_it_was(type: int, id: int, strings: list[bytes]) -> None:
    packet = OldPacket(type, id, tuple(strings))
    assert decode(packet.encode()) == packet


@given(st.sampled_from([OldPacket(OldType.GARDEN, 7), Packet(Type.CONTROL)]), st.booleans(), st.text(max_size=6000))
def test_any_text_can_be_answered(request_: OldPacket | Packet, ok: bool, text: str) -> None:
    answer = request_.answer(ok, text)
    assert answer.is_answer
    assert decode(answer.encode()) == answer


# The seal


def test_a_sealed_packet_is_an_hmac_over_everything_before_it() -> None:
    octets = bytes.fromhex(
        "9014"  # magic
        "01"  # version
        "01"  # a request
        "0000018bcfe56800"  # 2023-11-14 22:13:20 UTC in milliseconds
        "000102030405060708090a0b0c0d0e0f"  # nonce
        "9013 13 00 ff"  # help
    )
    octets += hmac.new(KEY, octets, hashlib.sha256).digest()
    sealed = Sealed(Direction.REQUEST, 1_700_000_000.0, bytes(range(16)), bytes.fromhex("90131300ff"))
    assert is_sealed(octets)
    assert unseal(octets, KEY) == sealed
    assert sealed.encode(KEY) == octets


def test_one_changed_bit_or_another_key_is_a_forgery() -> None:
    octets = Sealed(Direction.REQUEST, 5.0, bytes(16), b"\x90\x13\x13\x00\xff").encode(KEY)
    with pytest.raises(Forged):
        unseal(octets, KEY + b"!")
    for position in range(16, 8 * len(octets)):
        changed = bytearray(octets)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(Forged):
            unseal(bytes(changed), KEY)


@pytest.mark.parametrize(
    "octets",
    [b"", b"\x90\x14", bytes(100), b"\x90\x14" + bytes(57), b"\x90\x14" + bytes(MAX_SEALED - 1)],
    ids=len,
)
def test_octets_that_cannot_be_sealed_are_malformed(octets: bytes) -> None:
    with pytest.raises(Malformed):
        unseal(octets, KEY)


@pytest.mark.parametrize("head", ["9014 02 01", "9014 01 03", "9014 01 00"])
def test_a_version_or_a_direction_of_later_days_is_malformed(head: str) -> None:
    octets = bytes.fromhex(head) + bytes(24) + b"\x90\x13\x13\x00\xff"
    with pytest.raises(Malformed):
        unseal(octets + hmac.digest(KEY, octets, "sha256"), KEY)


@given(st.binary(max_size=200).map(lambda rest: b"\x90\x14" + rest))
def test_any_octets_are_refused_by_an_error_of_ours(octets: bytes) -> None:
    with pytest.raises(WireError):
        unseal(octets, KEY)


@given(
    st.sampled_from(Direction),
    st.integers(0, 2**45),
    st.binary(min_size=16, max_size=16),
    st.binary(max_size=MAX_PACKET),
)
def test_what_was_sealed_comes_back_as_it_was(direction: Direction, ms: int, nonce: bytes, packet: bytes) -> None:
    sealed = Sealed(direction, ms / 1000, nonce, packet)
    assert unseal(sealed.encode(KEY), KEY) == sealed
