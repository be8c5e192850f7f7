"""CHAP: every challenge is new, every response is answered the same way twice."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.errors import WireError
from l2tpns.proto.ppp.automaton import Timers
from l2tpns.proto.ppp.chap import (
    ChapCode,
    ChapReply,
    ChapServer,
    ChapValue,
    Credentials,
    build_reply,
    build_value,
    check_md5,
    md5_response,
    parse_reply,
    parse_value,
)
from l2tpns.proto.ppp.frame import Protocol
from tests.unit.proto.ppp.ends import chance, octets


class Asked:
    """A server and what it has sent."""

    def __init__(self, timers: Timers | None = None) -> None:
        self.sent: list[bytes] = []
        self.server = ChapServer(self.sent.append, chance(), b"lns", timers or Timers())

    def challenge(self) -> ChapValue:
        packet = parse_value(self.sent.pop())
        assert packet.code is ChapCode.CHALLENGE
        return packet

    def respond(self, identifier: int, value: bytes = bytes(16), name: bytes = b"anne") -> Credentials | None:
        return self.server.receive(build_value(ChapValue(ChapCode.RESPONSE, identifier, value, name)), 1.0)


def started(timers: Timers | None = None) -> tuple[Asked, ChapValue]:
    peer = Asked(timers)
    peer.server.start(0.0)
    return peer, peer.challenge()


def test_a_challenge_has_a_value_of_sixteen_octets_and_our_name():
    peer = Asked()
    peer.server.start(0.0)
    (packet,) = peer.sent
    assert packet[:1] + packet[2:5] == octets("01 0018 10") and packet.endswith(b"lns") and len(packet) == 24


def test_the_right_secret_is_recognised_and_no_other():
    peer, challenge = started()
    value = hashlib.md5(bytes((challenge.identifier,)) + b"secret" + challenge.value).digest()
    assert md5_response(challenge.identifier, b"secret", challenge.value) == value
    credentials = peer.respond(challenge.identifier, value)
    assert credentials == Credentials(
        Protocol.CHAP, b"anne", identifier=challenge.identifier, challenge=challenge.value, response=value
    )
    assert check_md5(credentials, b"secret")
    assert not check_md5(credentials, b"Secret")


@pytest.mark.statement(105)
def test_an_empty_secret_is_nobodys():
    value = md5_response(1, b"", b"challenge")
    assert not check_md5(Credentials(Protocol.CHAP, b"anne", b"", 1, b"challenge", value), b"")


@pytest.mark.statement(105)
def test_each_transmission_of_a_challenge_has_a_new_identifier_and_a_new_value():
    peer, first = started()
    seen = [first]
    for number in range(1, 10):
        peer.server.timeout(3.0 * number - 0.1)
        assert peer.sent == []
        peer.server.timeout(3.0 * number)
        seen.append(peer.challenge())
    assert len({challenge.identifier for challenge in seen}) == 10
    assert len({challenge.value for challenge in seen}) == 10
    peer.server.timeout(30.0)
    assert (peer.sent, peer.server.exhausted, peer.server.deadline) == ([], True, None)


def test_max_configure_and_the_restart_period_are_those_of_the_timers():
    peer, _ = started(Timers(restart=1.0, max_configure=2))
    peer.server.timeout(1.0)
    late = peer.challenge()
    assert not peer.server.exhausted
    peer.server.timeout(2.0)
    assert peer.server.exhausted
    assert peer.respond(late.identifier) is None  # too late


@pytest.mark.statement(105)
def test_identifiers_wrap_and_another_server_draws_other_values():
    peer, first = started()
    for _ in range(300):
        peer.respond(first.identifier)
        peer.server.verdict(True)
        peer.server.rechallenge(5.0)
        second = peer.challenge()
        peer.sent.clear()
        assert second.identifier == (first.identifier + 1) % 256 and second.value != first.value
        first = second


@pytest.mark.statement(107)
@pytest.mark.parametrize(("verdict", "code"), [((True, b"welcome"), 3), ((False, b"no"), 4), ((True, b""), 3)])
def test_the_verdict_has_the_identifier_of_the_response(verdict: tuple[bool, bytes], code: int):
    peer, challenge = started()
    assert peer.respond(challenge.identifier) is not None
    assert (peer.sent, peer.server.deadline) == ([], None)  # while it is checked nothing is repeated
    peer.server.verdict(*verdict)
    (packet,) = peer.sent
    assert packet == bytes((code, challenge.identifier, 0, 4 + len(verdict[1]))) + verdict[1]
    assert parse_reply(packet) == ChapReply(challenge.identifier, *verdict)


@pytest.mark.statement(106)
@pytest.mark.parametrize("ok", [True, False])
def test_a_repeated_response_gets_the_same_result_and_asks_nobody(ok: bool):
    peer, challenge = started()
    peer.respond(challenge.identifier)
    assert peer.respond(challenge.identifier) is None  # not yet known: nothing to say
    assert peer.sent == []
    peer.server.verdict(ok, b"m")
    assert peer.respond(challenge.identifier, b"other" + bytes(11)) is None
    assert peer.sent[0] == peer.sent[1]
    assert len(peer.sent) == 2


@pytest.mark.statement(106)
def test_a_response_with_another_identifier_is_discarded():
    peer, challenge = started()
    for identifier in (challenge.identifier + 1, challenge.identifier - 1):
        assert peer.respond(identifier % 256) is None
    assert (peer.sent, peer.server.dropped) == ([], 2)
    peer.server.timeout(3.0)
    second = peer.challenge()
    assert peer.respond(challenge.identifier) is None  # of the challenge before
    assert peer.respond(second.identifier) is not None


@pytest.mark.statement(106)
def test_a_response_before_there_was_a_challenge_is_discarded():
    peer = Asked()
    assert [peer.respond(identifier) for identifier in range(256)] == [None] * 256
    assert (peer.sent, peer.server.dropped) == ([], 256)


@pytest.mark.statement(108)
@pytest.mark.parametrize("size", [1, 8, 15, 17, 49, 255])
def test_a_response_of_another_size_than_md5s_is_dropped(size: int):
    peer, challenge = started()
    assert peer.respond(challenge.identifier, bytes(size)) is None
    assert (peer.sent, peer.server.dropped) == ([], 1)
    assert peer.respond(challenge.identifier) is not None


@pytest.mark.statement(108)
def test_a_name_is_no_longer_than_255_octets():
    peer, challenge = started()
    assert peer.respond(challenge.identifier, name=bytes(256)) is None
    credentials = peer.respond(challenge.identifier, name=b"n" * 255)
    assert credentials is not None and credentials.name == b"n" * 255


@pytest.mark.statement(108)
@pytest.mark.parametrize("data", ["0004", "0005 00", "0006 02 aa", "0014 10" + "aa" * 15])
def test_a_value_that_does_not_fit_is_dropped(data: str):
    peer, challenge = started()
    assert peer.server.receive(bytes((2, challenge.identifier)) + octets(data), 1.0) is None
    assert (peer.sent, peer.server.dropped) == ([], 1)


def test_a_challenge_to_the_server_and_a_reply_to_it_are_dropped():
    peer, challenge = started()
    ours = build_value(ChapValue(ChapCode.CHALLENGE, challenge.identifier, bytes(16), b"anne"))
    for packet in (ours, build_reply(ChapReply(challenge.identifier, True))):
        assert peer.server.receive(packet, 1.0) is None
    assert (peer.sent, peer.server.dropped) == ([], 2)


@pytest.mark.statement(105, 106)
def test_a_later_challenge_asks_again_and_forgets_the_old_answer():
    peer, first = started()
    peer.respond(first.identifier)
    peer.server.verdict(True)
    peer.sent.clear()
    peer.server.rechallenge(100.0)
    second = peer.challenge()
    assert peer.server.deadline == 103.0
    assert peer.respond(first.identifier) is None and peer.sent == []
    assert peer.respond(second.identifier) is not None
    peer.server.verdict(False, b"gone")
    assert peer.sent == [build_reply(ChapReply(second.identifier, False, b"gone"))]


def test_a_client_that_does_not_answer_a_later_challenge_exhausts_it_too():
    peer, first = started(Timers(max_configure=2))
    peer.respond(first.identifier)
    peer.server.verdict(True)
    peer.server.rechallenge(100.0)
    peer.server.timeout(103.0)
    assert not peer.server.exhausted
    peer.server.timeout(106.0)
    assert peer.server.exhausted


def test_nothing_is_asked_again_while_something_is_asked():
    peer, challenge = started()
    peer.server.rechallenge(1.0)
    peer.respond(challenge.identifier)
    peer.server.rechallenge(2.0)
    assert peer.sent == []


def test_a_verdict_on_nothing_is_not_sent():
    peer, challenge = started()
    peer.server.verdict(True)
    assert peer.sent == []
    peer.respond(challenge.identifier)
    peer.server.verdict(False)
    peer.server.verdict(True)
    assert len(peer.sent) == 1


def test_the_verdict_on_proxy_authentication_answers_the_clients_response():
    peer = Asked()
    credentials = Credentials(Protocol.CHAP, b"anne", b"", 0x21, bytes(16), bytes(16))
    peer.server.adopt(credentials)
    peer.server.verdict(True)
    assert peer.sent == [octets("03 21 0004")]
    assert peer.respond(0x21) is None
    assert peer.sent == [octets("03 21 0004")] * 2
    peer.sent.clear()
    peer.server.rechallenge(50.0)
    assert peer.challenge().identifier == 0x22


def test_a_timer_that_does_not_run_cannot_run_out():
    peer = Asked()
    peer.server.timeout(1e9)
    assert peer.sent == []


@pytest.mark.parametrize("packet", ["03 01 0004", "01 01 0005 00", "01 01 0003"])
def test_what_is_no_value_is_an_error_of_ours(packet: str):
    with pytest.raises(WireError):
        parse_value(octets(packet))


@pytest.mark.parametrize("packet", ["01 01 0004", "02 01 0004", "03 01 0005"])
def test_what_is_no_reply_is_an_error_of_ours(packet: str):
    with pytest.raises(WireError):
        parse_reply(octets(packet))


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_octets_give_credentials_or_nothing(packets: list[bytes]):
    peer, challenge = started()
    for packet in packets:
        credentials = peer.server.receive(packet, 1.0)
        assert credentials is None or (packet[0], packet[1]) == (2, challenge.identifier)


@pytest.mark.statement(94)
@pytest.mark.parametrize("mru", [128, 576])
def test_nothing_a_server_says_is_longer_than_the_peers_mru(mru: int):
    sent: list[bytes] = []
    server = ChapServer(sent.append, chance(), b"n" * 600, Timers(), mru)
    server.start(0.0)
    challenge = parse_value(sent[0])
    assert (len(sent[0]), challenge.name) == (mru, b"n" * (mru - 21))
    response = ChapValue(ChapCode.RESPONSE, challenge.identifier, md5_response(1, b"s", b"c"), b"fred")
    server.receive(build_value(response), 0.1)
    server.verdict(True, b"x" * 4000)
    server.receive(build_value(response), 0.2)
    assert [len(packet) for packet in sent] == [mru] * 3
    assert parse_reply(sent[2]) == ChapReply(challenge.identifier, True, b"x" * (mru - 4))


def test_asked_again_after_a_pause_of_the_server_a_client_gets_one_challenge_more():
    peer, _ = started(Timers(restart=1.0, max_configure=2))
    peer.server.timeout(1.0)
    peer.challenge()
    peer.server.ask_again()
    peer.server.timeout(2.0)
    peer.challenge()
    assert not peer.server.exhausted
    peer.server.timeout(3.0)
    assert peer.server.exhausted
