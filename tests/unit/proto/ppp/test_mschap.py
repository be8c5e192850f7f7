"""MS-CHAP: the values that the RFCs print, and what a server answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.proto.ppp import mschap_hashes as hashes
from l2tpns.proto.ppp.automaton import Timers
from l2tpns.proto.ppp.chap import ChapCode, ChapValue, build_value, parse_reply, parse_value
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.mschap import MsChap1Server, MsChap2Server, parse_value1, parse_value2
from tests.unit.proto.ppp.ends import chance

# RFC 2759 9.2
CHALLENGE = bytes.fromhex("5b5d7c7d7b3f2f3e3c2c602132262628")
PEER_CHALLENGE = bytes.fromhex("21402324255e262a28295f2b3a337c7e")
NT_RESPONSE = bytes.fromhex("82309ecd8d708b5ea08faa3981cd83544233114a3d85d6df")
PROOF = b"S=407A5589115FD0D6209F510FE9C04566932CDA56"


class Asked:
    """A server, its first challenge and what it has sent since."""

    def __init__(self, kind: type[MsChap1Server | MsChap2Server]) -> None:
        self.sent: list[bytes] = []
        self.server = kind(self.sent.append, chance(), b"lns", Timers())
        self.server.start(0.0)
        self.challenge = parse_value(self.sent.pop())

    def respond(self, value: bytes = bytes(49), name: bytes = b"anne") -> Credentials | None:
        packet = build_value(ChapValue(ChapCode.RESPONSE, self.challenge.identifier, value, name))
        return self.server.receive(packet, 1.0)

    def answer(self) -> tuple[bool, str]:
        (packet,) = self.sent
        reply = parse_reply(packet)
        assert reply.identifier == self.challenge.identifier
        self.sent.clear()
        return reply.accepted, reply.message.decode()


both = pytest.mark.parametrize("kind", [MsChap1Server, MsChap2Server])


@pytest.mark.statement(280)
def test_the_values_of_rfc_2759() -> None:
    password_hash = hashes.nt_hash(b"clientPass")
    assert password_hash.hex() == "44ebba8d5312b8d611474411f56989ae"
    assert hashes.challenge_hash(PEER_CHALLENGE, CHALLENGE, b"User").hex() == "d02e4386bce91226"
    assert hashes.nt_response(CHALLENGE, PEER_CHALLENGE, b"User", password_hash) == NT_RESPONSE
    assert hashes.authenticator_response(CHALLENGE, PEER_CHALLENGE, b"User", password_hash, NT_RESPONSE) == PROOF


@pytest.mark.statement(280)
def test_the_values_of_rfc_2433() -> None:
    response = hashes.challenge_response(bytes.fromhex("102db5df085d3041"), hashes.nt_hash(b"MyPw"))
    assert response.hex() == "4e9d3c8f9cfd385d5bf4d3246791956ca4c351ab409a3d61"


@pytest.mark.parametrize("password", [b"gr\xc3\xbc\xc3\x9fe", b"gr\xfc\xdfe"], ids=["utf-8", "latin-1"])
def test_a_password_is_text(password: bytes) -> None:
    assert hashes.nt_hash(password) == hashes.nt_hash("grüße".encode())


@pytest.mark.statement(284)
def test_the_domain_is_not_hashed() -> None:
    plain = hashes.challenge_hash(PEER_CHALLENGE, CHALLENGE, b"User")
    assert hashes.challenge_hash(PEER_CHALLENGE, CHALLENGE, b"DOM\\User") == plain


@pytest.mark.parametrize("kind, size", [(MsChap1Server, 8), (MsChap2Server, 16)])
def test_a_challenge_has_the_size_of_its_version(kind: type[MsChap1Server | MsChap2Server], size: int) -> None:
    assert len(Asked(kind).challenge.value) == size


@both
@pytest.mark.statement(281)
@pytest.mark.parametrize("size", [0, 1, 16, 48, 50, 200])
def test_a_response_of_another_size_is_dropped(kind: type[MsChap1Server | MsChap2Server], size: int) -> None:
    asked = Asked(kind)
    assert asked.respond(bytes(size)) is None
    assert asked.server.dropped == 1 and not asked.sent
    assert asked.respond(b"\xff" * 49) is not None  # reserved octets and flags may be anything


def test_the_parts_of_a_value() -> None:
    value = bytes(range(49))
    assert (parse_value1(value).lan_manager, parse_value1(value).nt, parse_value1(value).flags) == (
        value[:24],
        value[24:48],
        48,
    )
    assert (parse_value2(value).peer_challenge, parse_value2(value).nt) == (value[:16], value[24:48])


@pytest.mark.statement(287)
def test_a_success_of_version_2_has_the_proof_and_is_repeated() -> None:
    asked = Asked(MsChap2Server)
    assert asked.respond() is not None
    asked.server.verdict(True, b"welcome", proof=PROOF)
    assert asked.answer() == (True, PROOF.decode() + " M=welcome")
    assert asked.respond() is None
    assert asked.answer() == (True, PROOF.decode() + " M=welcome")


def test_without_a_proof_version_2_says_nothing() -> None:
    asked = Asked(MsChap2Server)
    asked.respond()
    asked.server.verdict(True)
    assert not asked.sent and asked.server.answered


def test_a_success_of_version_1_has_the_message_alone() -> None:
    asked = Asked(MsChap1Server)
    asked.respond()
    asked.server.verdict(True, b"welcome", proof=PROOF)
    assert asked.answer() == (True, "welcome")


@pytest.mark.statement(283)
@pytest.mark.parametrize("kind, digits, version", [(MsChap1Server, 16, 2), (MsChap2Server, 32, 3)])
@pytest.mark.parametrize("error, told", [(0, 691), (648, 648)])
def test_a_failure_has_an_error_no_second_try_a_challenge_and_a_version(
    kind: type[MsChap1Server | MsChap2Server], digits: int, version: int, error: int, told: int
) -> None:
    asked = Asked(kind)
    asked.respond()
    asked.server.verdict(False, b"go away", error=error)
    accepted, message = asked.answer()
    words = dict(word.split("=", 1) for word in message.split(" ", 4))
    assert not accepted and len(bytes.fromhex(words.pop("C"))) * 2 == digits
    assert words == {"E": str(told), "R": "0", "V": str(version), "M": "go away"}


@both
@pytest.mark.statement(285)
@pytest.mark.parametrize("code", [5, 6, 7])
def test_a_new_password_is_refused(kind: type[MsChap1Server | MsChap2Server], code: int) -> None:
    asked = Asked(kind)
    change = bytes([code, 77]) + (72).to_bytes(2, "big") + bytes(68)
    assert asked.server.receive(change, 1.0) is None and not asked.sent  # before any verdict
    asked.respond()
    asked.server.verdict(False, error=648)
    asked.sent.clear()
    assert asked.server.receive(change, 1.0) is None
    (packet,) = asked.sent
    reply = parse_reply(packet)
    assert (reply.identifier, reply.accepted) == (77, False) and reply.message.startswith(b"E=709 R=0 ")


@given(packets=st.lists(st.binary(max_size=80) | st.binary(max_size=80).map(lambda body: b"\x02" + body), max_size=5))
@pytest.mark.statement(281)
def test_no_octets_raise(packets: list[bytes]) -> None:
    for kind in (MsChap1Server, MsChap2Server):
        asked = Asked(kind)
        for packet in packets:
            asked.server.receive(packet, 1.0)
        asked.server.verdict(False)
        for packet in packets:
            asked.server.receive(packet, 1.0)
