"""PAP: one question to the verdict's owner, the same answer to every repeat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.errors import WireError
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.pap import (
    Credentials,
    PapReply,
    PapServer,
    build_reply,
    parse_reply,
    parse_request,
)
from tests.unit.proto.ppp.ends import build_request, octets

REQUEST = octets("""
    01 07 0011          # Authenticate-Request, identifier 7
    04 616e6e65         # anne
    07 73656372657421   # secret!
""")
WRONG = octets("01 08 000b 04 616e6e65 01 78")


class Asked:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.server = PapServer(self.sent.append)

    def gets(self, packet: bytes) -> Credentials | None:
        return self.server.receive(packet, 0.0)


def test_a_request_is_read_and_built():
    assert build_request(7, b"anne", b"secret!") == REQUEST
    assert parse_request(REQUEST) == Credentials(Protocol.PAP, b"anne", b"secret!", 7)
    assert parse_request(REQUEST + b"padding") == parse_request(REQUEST)


@pytest.mark.statement(104)
@pytest.mark.parametrize(
    ("verdict", "packet"),
    [
        ((True, b""), "02 07 0005 00"),
        ((True, b"hi"), "02 07 0007 02 6869"),
        ((False, b"no"), "03 07 0007 02 6e6f"),
    ],
)
def test_the_reply_has_the_identifier_of_the_request_and_perhaps_a_message(verdict: tuple[bool, bytes], packet: str):
    peer = Asked()
    assert peer.gets(REQUEST) == Credentials(Protocol.PAP, b"anne", b"secret!", 7)
    assert peer.sent == []
    peer.server.verdict(*verdict)
    assert peer.sent == [octets(packet)]
    assert parse_reply(peer.sent[0]) == PapReply(7, *verdict)


@pytest.mark.statement(104)
def test_a_message_longer_than_its_length_octet_can_tell_is_cut():
    assert build_reply(PapReply(1, False, bytes(300))) == octets("03 01 0104 ff") + bytes(255)


@pytest.mark.statement(102)
@pytest.mark.parametrize("ok", [True, False])
def test_a_repeat_after_the_verdict_gets_the_same_answer_and_asks_nobody(ok: bool):
    peer = Asked()
    peer.gets(REQUEST)
    peer.server.verdict(ok, b"m")
    code = "02" if ok else "03"
    assert peer.gets(REQUEST) is None
    assert peer.gets(WRONG) is None  # whatever it says now
    assert peer.sent[1:] == [octets(f"{code} 07 0006 01 6d"), octets(f"{code} 08 0006 01 6d")]


@pytest.mark.statement(102)
def test_a_repeat_before_the_verdict_asks_nobody_and_its_identifier_is_answered():
    peer = Asked()
    peer.gets(REQUEST)
    assert peer.gets(b"\x01\x09" + REQUEST[2:]) is None
    assert peer.gets(WRONG) is None  # another password is not what is being checked: its identifier is not answered
    assert peer.sent == []
    peer.server.verdict(True)
    assert peer.sent == [octets("02 09 0005 00")]


def test_a_second_verdict_changes_nothing_and_a_verdict_on_nothing_is_not_sent():
    peer = Asked()
    peer.server.verdict(True)
    assert peer.sent == []
    peer.gets(REQUEST)
    peer.server.verdict(False)
    peer.server.verdict(True)
    assert peer.sent == [octets("03 07 0005 00")]


@pytest.mark.statement(103)
@pytest.mark.parametrize(
    "packet",
    [
        "",
        "01 07 0004",  # no fields
        "01 07 0009 04 616e6e65",  # no password
        "01 07 0008 04 616e6e",  # name beyond the packet
        "01 07 000b 04 616e6e65 02 78",  # password beyond the packet
        "01 07 000a 04 616e6e65 01 78",  # password beyond the Length
        "01 07 0005 ff",
        "02 07 0005 00",  # an Ack, to a server
        "09 07 0004",
    ],
)
def test_a_request_whose_lengths_do_not_fit_is_dropped(packet: str):
    peer = Asked()
    assert peer.gets(octets(packet)) is None
    assert (peer.sent, peer.server.dropped) == ([], 1)


@pytest.mark.statement(103)
def test_name_and_password_of_255_octets_are_read_and_empty_ones_too():
    for name, password in ((bytes(255), b"p" * 255), (b"", b"")):
        credentials = parse_request(build_request(1, name, password))
        assert (credentials.name, credentials.password) == (name, password)


@pytest.mark.parametrize(("ok", "code"), [(True, "02"), (False, "03")])
def test_the_verdict_on_proxy_authentication_answers_the_clients_request(ok: bool, code: str):
    peer = Asked()
    peer.server.adopt(Credentials(Protocol.PAP, b"anne", b"secret!", 0x21))
    peer.server.verdict(ok)
    assert peer.gets(b"\x01\x22" + REQUEST[2:]) is None
    assert peer.sent == [octets(f"{code} 21 0005 00"), octets(f"{code} 22 0005 00")]


def test_a_server_of_pap_has_no_timer():
    peer = Asked()
    assert peer.server.deadline is None
    peer.server.timeout(1e9)
    assert peer.sent == []


@pytest.mark.parametrize("packet", ["01 01 0005 00", "02 01 0006 02 61", "02 01 0003"])
def test_a_reply_that_is_none_is_an_error_of_ours(packet: str):
    with pytest.raises(WireError):
        parse_reply(octets(packet))


def test_a_reply_without_msg_length_has_no_message():
    assert parse_reply(octets("02 05 0004")) == PapReply(5, True)


@given(st.lists(st.binary(max_size=30), max_size=4), st.booleans())
def test_any_octets_give_credentials_or_nothing(packets: list[bytes], answered: bool):
    peer = Asked()
    if answered:
        peer.gets(REQUEST)
        peer.server.verdict(True)
    for packet in packets:
        credentials = peer.gets(packet)
        assert credentials is None or packet[:1] == b"\x01"


def test_a_name_of_any_octets_can_be_shown_and_no_secret_is():
    credentials = Credentials(Protocol.PAP, b"zo\xc3\xab\xff", b"hunter2")
    assert credentials.user == "zoë\\xff"
    assert "hunter2" not in repr(credentials)


@pytest.mark.statement(94)
@pytest.mark.parametrize(("mru", "longest"), [(128, 128), (200, 200), (1500, 260)])
def test_an_answer_is_no_longer_than_the_peers_mru_and_its_message_is_cut(mru: int, longest: int):
    sent: list[bytes] = []
    server = PapServer(sent.append, mru)
    server.receive(build_request(7, b"fred", b"pw"), 0.0)
    server.verdict(False, b"x" * 4000)
    server.receive(build_request(8, b"fred", b"pw"), 1.0)
    assert [len(packet) for packet in sent] == [longest, longest]
    assert parse_reply(sent[1]) == PapReply(8, False, b"x" * (longest - 5))
