"""Packets of dynamic authorization: their signatures and their answers (RFC 5176)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.errors import WireError
from l2tpns.radius.dynamic_packet import ErrorCause, parse_request
from tests.lab.dae_client import COA, DISCONNECT, request

SECRET = b"coa-secret-0123"
# radclient has sent and accepted these octets.
COA_REQUEST = bytes.fromhex(
    "2b07006a7b27b6b42e127f08e8b59f805565f8f8501289205273d615d7bff769fcf4921fa24e0113616c696365406973702e6578616d706c65"
    "2c123030303030303241363546334331423037066553f1001a1500000009010f7468726f74746c653d3230343821047031"
)
COA_ACK = "2c070030b09547c1128bdd80cfa94b3a56c2e0e9501293f40e361c5dadda7760b308030a1c4e37066553f10021047031"
COA_NAK = "2d0700363c7b46a1b517e3791e9453d168bf933850121facdeb70af903da79cda2d18ea9a1786506000001f737066553f10021047031"
DISCONNECT_REQUEST = bytes.fromhex(
    "2808002cb412c7118fc7bda87d2477e4e296e0b22c123030303030303241363546334331423037066553f100"
)
DISCONNECT_ACK = "290800144dfdb4e2d9e1114d338a3c4ab5db07a0"
NOW = 1_700_000_000


def attributes(raw: bytes) -> list[bytes]:
    """Return all attributes, sorted: their order is not prescribed between different types."""
    found, at = [], 20
    while at < len(raw):
        found.append(raw[at : at + raw[at + 1]] if raw[at] != 80 else b"signature")
        at += raw[at + 1]
    return sorted(found)


@pytest.mark.statement(252)
def test_the_answers_have_what_radclient_accepts() -> None:
    coa = parse_request(COA_REQUEST, SECRET, signed=True)
    for cause, octets in ((None, COA_ACK), (ErrorCause.NO_SESSION, COA_NAK)):
        answer = coa.answer(cause, NOW)
        assert answer[:4] == bytes.fromhex(octets)[:4]
        assert attributes(answer) == attributes(bytes.fromhex(octets))


def test_a_request_of_disconnect_is_read() -> None:
    found = parse_request(DISCONNECT_REQUEST, SECRET, signed=False)
    assert found.disconnects and found.timestamp == NOW and not found.packet.signed
    assert found.values(44) == [b"0000002A65F3C1B0"]


@pytest.mark.statement(252)
def test_without_a_message_authenticator_there_is_none_in_the_answer() -> None:
    assert parse_request(DISCONNECT_REQUEST[:], SECRET, signed=False).answer(None, NOW)[20:22] == b"\x37\x06"
    with pytest.raises(WireError, match="no Message-Authenticator"):
        parse_request(DISCONNECT_REQUEST, SECRET, signed=True)


@pytest.mark.statement(250)
@pytest.mark.parametrize("at", [1, 5, 25, 60, 100])
def test_a_changed_octet_is_noticed(at: int) -> None:
    changed = bytearray(COA_REQUEST)
    changed[at] ^= 1
    with pytest.raises(WireError):
        parse_request(bytes(changed), SECRET, signed=False)
    with pytest.raises(WireError):
        parse_request(COA_REQUEST, b"another", signed=False)


@pytest.mark.statement(250)
def test_a_wrong_message_authenticator_is_noticed_though_the_authenticator_holds() -> None:
    forged = request(COA, [(80, bytes(16)), (44, b"x")], SECRET)
    with pytest.raises(WireError, match="Message-Authenticator does not hold"):
        parse_request(forged, SECRET, signed=False)


@pytest.mark.statement(251)
def test_lengths_and_codes() -> None:
    good = request(DISCONNECT, [(44, b"x")], SECRET)
    assert parse_request(good + b"padding", SECRET, signed=False).disconnects
    for bad in (good[:-1], good[:19], b"", request(1, [(44, b"x")], SECRET), request(4, [(44, b"x")], SECRET)):
        with pytest.raises(WireError):
            parse_request(bad, SECRET, signed=False)


@given(octets=st.binary(max_size=200))
@pytest.mark.statement(251)
def test_any_octets_are_a_request_or_an_error(octets: bytes) -> None:
    with pytest.raises(WireError):
        parse_request(octets, SECRET, signed=False)


@pytest.mark.statement(255)
def test_proxy_state_and_state_come_back_unchanged_and_in_order() -> None:
    sent = [(33, b"one"), (24, b"state"), (44, b"x"), (33, b"two"), (33, b"")]
    for cause in (None, ErrorCause.INVALID_VALUE):
        raw = parse_request(request(COA, sent[:4], SECRET), SECRET, signed=False).answer(cause, NOW)
        body = raw[20:]
        assert body.startswith(b"\x18\x07state" + b"\x21\x05one" + b"\x21\x05two")
