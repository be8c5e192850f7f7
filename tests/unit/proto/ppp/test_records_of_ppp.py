"""PPP's automata as records: a successor goes on with an opened link, and sends nothing because of it."""

from __future__ import annotations

from ipaddress import IPv4Address

from l2tpns.proto.ppp.automaton import State, Timers
from l2tpns.proto.ppp.chap import ChapReply, ChapServer, md5_response
from l2tpns.proto.ppp.ipcp import Ipcp, IpcpPolicy, IpcpRecord
from l2tpns.proto.ppp.lcp import AuthChoice, Lcp, LcpRecord, LcpWishes
from l2tpns.proto.ppp.pap import PapReply, PapServer
from tests.unit.proto.ppp.ends import build_request

RECORD = LcpRecord(AuthChoice.CHAP_MD5, 0x11223344, 0x55667788, 1492, 1460, True, False, 9)
OURS, THEIRS = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")


class Wire:
    """What an automaton sends and tells."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.notices: list[object] = []


def random(count: int) -> bytes:
    return bytes(range(1, count + 1))


def lcp(wire: Wire) -> Lcp:
    wishes = LcpWishes(auth=(AuthChoice.CHAP_MD5, AuthChoice.PAP))
    link = Lcp(wire.packets.append, wire.notices.append, random, Timers(), wishes)
    link.restore(RECORD)
    return link


def test_a_link_that_is_taken_up_again_is_open_and_silent() -> None:
    wire = Wire()
    link = lcp(wire)
    assert link.opened and link.deadline is None
    assert (wire.packets, wire.notices) == ([], [])
    assert link.record() == RECORD


def test_it_answers_an_echo_request_with_the_magic_number_of_before() -> None:
    wire = Wire()
    lcp(wire).receive(bytes.fromhex("09 07 0008 55667788"), 0.0)
    assert wire.packets == [bytes.fromhex("0a 07 0008 11223344")]


def test_its_own_echo_has_the_next_identifier() -> None:
    wire = Wire()
    lcp(wire).send_echo(0.0)
    assert wire.packets == [bytes.fromhex("09 0a 0008 11223344")]


def test_it_negotiates_anew_when_the_peer_does() -> None:
    wire = Wire()
    link = lcp(wire)
    link.receive(bytes.fromhex("01 01 000a 0506 99999999"), 0.0)
    assert link.state is State.ACK_SENT
    assert [packet[0] for packet in wire.packets] == [1, 2]


def test_it_ends_when_the_peer_says_so() -> None:
    wire = Wire()
    lcp(wire).receive(bytes.fromhex("05 02 0004"), 0.0)
    assert wire.packets == [bytes.fromhex("06 02 0004")]


def test_ipcp_that_is_taken_up_again_is_open_and_knows_both_addresses() -> None:
    wire = Wire()
    ipcp = Ipcp(wire.packets.append, wire.notices.append, random, Timers(), IpcpPolicy(OURS, THEIRS))
    ipcp.restore(IpcpRecord(OURS, THEIRS, 3))
    assert ipcp.opened and (ipcp.local_address, ipcp.peer_address) == (OURS, THEIRS)
    assert ipcp.record() == IpcpRecord(OURS, THEIRS, 3)
    assert (wire.packets, wire.notices) == ([], [])


def test_a_pap_request_repeated_after_the_restart_gets_the_answer_of_before() -> None:
    wire = Wire()
    server = PapServer(wire.packets.append)
    server.restore(4, b"hi")
    assert server.receive(build_request(5, b"fred", b"pw"), 0.0) is None
    assert wire.packets == [bytes.fromhex("02 05 0007 02") + b"hi"]
    assert server.record() == PapReply(4, True, b"hi")


def test_a_chap_response_repeated_after_the_restart_gets_the_answer_of_before() -> None:
    wire = Wire()
    server = ChapServer(wire.packets.append, random, b"lns", Timers())
    server.restore(7, b"hi")
    value = md5_response(7, b"pw", b"challenge")
    assert server.receive(b"\x02\x07\x00\x19\x10" + value + b"fred", 0.0) is None
    assert wire.packets == [bytes.fromhex("03 07 0006") + b"hi"]
    assert server.record() == ChapReply(7, True, b"hi") and not server.challenging


def test_chap_can_challenge_again_after_the_restart() -> None:
    wire = Wire()
    server = ChapServer(wire.packets.append, random, b"lns", Timers())
    server.restore(7, b"")
    server.rechallenge(0.0)
    assert wire.packets[0][:2] == b"\x01\x08" and server.challenging
