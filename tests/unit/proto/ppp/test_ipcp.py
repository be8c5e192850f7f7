"""IPCP: the peer gets its address and its name servers, we keep ours."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from l2tpns.proto.ppp.automaton import State
from l2tpns.proto.ppp.ipcp import Ipcp, IpcpPolicy
from l2tpns.proto.ppp.negotiation import Notice
from tests.unit.proto.ppp.ends import CLIENT_POLICY, SERVER_POLICY, End, dns_learned, ipcp_end, negotiate, octets

OURS = IPv4Address("10.0.0.1")
PEERS = IPv4Address("10.0.0.77")
OUR_REQUEST = octets("01 01 000a 0306 0a000001")


def started(policy: IpcpPolicy = SERVER_POLICY) -> End[Ipcp]:
    end = ipcp_end(policy)
    end.start()
    return end


def ask(end: End[Ipcp], options: str) -> list[bytes]:
    data = octets(options)
    return end.gets(bytes((1, 0x70, 0, 4 + len(data))) + data)


# A whole negotiation


def test_pppds_first_request_ends_with_its_address_and_name_servers():
    end = ipcp_end(SERVER_POLICY)
    assert end.start() == OUR_REQUEST
    # IPCP of pppd 2.4.9: address, VJ, two DNS.
    assert end.gets("01 01 001c 0306 00000000 0206 002d 0f01 8106 00000000 8306 00000000") == [
        octets("04 01 000a 0206 002d 0f01")
    ]
    assert end.gets("01 02 0016 0306 00000000 8106 00000000 8306 00000000") == [
        octets("03 02 0016 0306 0a00004d 8106 c0000235 8306 c0000236")
    ]
    good = octets("01 03 0016 0306 0a00004d 8106 c0000235 8306 c0000236")
    assert end.gets(good) == [b"\x02" + good[1:]]
    assert end.gets(b"\x02" + OUR_REQUEST[1:]) == []
    assert end.told() == [Notice.UP]
    assert (end.it.local_address, end.it.peer_address) == (OURS, PEERS)


@pytest.mark.parametrize("lost", [(), (0,), (1,), (2,), (3,), (0, 1, 2, 3), (2, 5)])
def test_a_server_and_a_client_open_in_spite_of_lost_packets(lost: tuple[int, ...]):
    server, client = ipcp_end(SERVER_POLICY), ipcp_end(CLIENT_POLICY)
    for end in (server, client):
        end.it.open(0.0)
        end.it.lower_up(0.0)
    negotiate(server, client, lost)
    assert (server.it.opened, client.it.opened) == (True, True)
    assert server.it.peer_address == client.it.local_address == PEERS
    assert client.it.peer_address == server.it.local_address == OURS
    assert dns_learned(client.it) == SERVER_POLICY.dns
    assert dns_learned(server.it) == ()


# The peer's address


@pytest.mark.statement(112)
@pytest.mark.parametrize("asked", ["00000000", "0a00004e", "ffffffff", "0a000001"])
def test_a_peer_that_asks_for_another_address_is_told_its_own(asked: str):
    assert ask(started(), f"0306 {asked}") == [octets("03 70 000a 0306 0a00004d")]


@pytest.mark.statement(112)
def test_a_peer_that_asks_for_its_own_address_gets_it():
    end = started()
    assert ask(end, "0306 0a00004d") == [octets("02 70 000a 0306 0a00004d")]
    assert end.it.peer_address == PEERS


@pytest.mark.statement(112)
def test_a_peer_that_does_not_speak_of_its_address_is_told_it():
    assert ask(started(), "") == [octets("03 70 000a 0306 0a00004d")]


def test_an_address_of_the_wrong_length_is_naked_with_the_right_one():
    assert ask(started(), "0305 0a0000") == [octets("03 70 000a 0306 0a00004d")]


# What has to be agreed on


def request(end: End[Ipcp], identifier: int, options: str) -> list[bytes]:
    data = octets(options)
    return end.gets(bytes((1, identifier, 0, 4 + len(data))) + data)


def acknowledged(end: End[Ipcp]) -> End[Ipcp]:
    """The peer has agreed to what we ask for ourselves."""
    end.gets(b"\x02" + OUR_REQUEST[1:])
    return end


@pytest.mark.statement(88, 112)
@pytest.mark.parametrize(
    ("policy", "options", "words"),
    [
        (
            SERVER_POLICY,
            ["0306 0a01014e"],
            "insists on IP-Address 10.1.1.78 and was offered IP-Address 10.0.0.77",
        ),
        (SERVER_POLICY, [""], "asks for no IP-Address and was offered IP-Address 10.0.0.77"),
        (
            SERVER_POLICY,
            ["0306 00000000"],
            "insists on IP-Address 0.0.0.0 and was offered IP-Address 10.0.0.77",
        ),
        (
            SERVER_POLICY,
            ["0306 0a01014e"] * 5 + [""],
            "insists on IP-Address 10.1.1.78 and was offered IP-Address 10.0.0.77",
        ),
        (
            SERVER_POLICY,
            ["0306 0a01014e", ""],
            "insists on IP-Address 10.1.1.78 and was offered IP-Address 10.0.0.77",
        ),
        (
            SERVER_POLICY,
            ["0306 0a01014e 0206 002d0f01", "0306 0a01014e"],
            "insists on IP-Address 10.1.1.78 and was offered IP-Address 10.0.0.77",
        ),
        (SERVER_POLICY, ["0305 0a0000"], "insists on IP-Address 0a0000 and was offered IP-Address 10.0.0.77"),
        (replace(SERVER_POLICY, peer=None, peer_may_choose=True), [""], "asks for no IP-Address"),
        (
            replace(SERVER_POLICY, peer=None, peer_may_choose=True),
            ["0306 e0000001"],
            "insists on IP-Address 224.0.0.1",
        ),
        (replace(SERVER_POLICY, peer=None, peer_may_choose=True), ["0306 e0000001", ""], None),
        (SERVER_POLICY, ["0306 0a00004d 0206 002d0f01"], "insists on IP-Compression-Protocol Van Jacobson"),
        (SERVER_POLICY, ["0306 00000000 0206 002d0f01"], "insists on IP-Compression-Protocol Van Jacobson"),
        (SERVER_POLICY, ["0206 002d0f01"], "insists on IP-Compression-Protocol Van Jacobson"),
        (SERVER_POLICY, ["0306 0a00004d 8206 0a000001"], "insists on Primary-NBNS 10.0.0.1"),
    ],
)
def test_a_peer_with_which_there_is_no_agreement_is_never_acknowledged_and_the_negotiation_ends(
    policy: IpcpPolicy, options: list[str], words: str | None
):
    end = acknowledged(started(policy))
    answers = []
    for number in range(40):
        answers += request(end, number, options[number % len(options)])
        if end.it.impasse is not None:
            break
    assert end.it.impasse is not None
    assert 5 <= number <= 15
    assert {packet[0] for packet in answers[:-1]} <= {3, 4}
    assert (answers[-1][0], end.it.state, Notice.UP in end.told()) == (5, State.CLOSING, False)
    assert words is None or end.it.impasse.words("the peer") == f"the peer {words}"


@pytest.mark.statement(112)
def test_what_has_to_be_agreed_on_is_not_rejected_with_what_does_not():
    end = started()
    for number in range(5):
        assert request(end, number, "0306 0a00004e 8106 08080808")[0][0] == 3
    repeated = "0306 0a00004e 8106 08080808"
    assert request(end, 4, repeated) == [octets("04 04 000a 8106 08080808")]  # the same again: an answer was lost
    assert request(end, 4, repeated) == [octets("04 04 000a 8106 08080808")]
    assert request(end, 5, "0306 0a00004d")[0][0] == 2


def test_a_peer_that_hears_none_of_our_naks_is_answered_and_in_the_end_given_up():
    end = started()
    answers = [request(end, 7, "0306 00000000")[0][0] for _ in range(15)]
    assert answers == [3] * 15
    assert request(end, 7, "0306 00000000")[0][0] == 5
    other = started()
    for _ in range(12):
        request(other, 7, "0306 00000000")
    assert request(other, 8, "0306 0a00004d")[0][0] == 2


def test_an_acknowledgement_and_a_new_negotiation_begin_the_count_anew():
    end = acknowledged(started())
    for number in range(5):
        request(end, number, "0306 0a00004e")
    assert request(end, 5, "0306 0a00004d")[0][0] == 2
    assert end.it.opened and end.it.refusals() == []
    for number in range(6, 11):
        assert request(end, number, "0306 0a00004e")[-1][0] == 3
    assert (request(end, 11, "0306 0a00004d")[-1][0], end.it.impasse) == (2, None)


@pytest.mark.parametrize("options", ["0306 0a00004d 0306 0a00004d", "0306 0a00004d 0306 0a00004e"])
def test_an_address_that_is_named_twice_is_named_once_too_often(options: str):
    assert ask(started(), options) == [octets("04 70 000a") + octets(options)[6:]]


def test_what_the_peer_wanted_and_did_not_get_is_named():
    end = started()
    request(end, 1, "0306 00000000 0206 002d0f01 8106 00000000 8206 00000000 9003 07")
    request(end, 2, "0306 0a01014e 8106 08080808")
    request(end, 3, "0306 0a00004d 8106 08080808")
    end.gets("03 01 000a 0306 c0a80001")
    assert end.it.refusals() == [
        "IP-Compression-Protocol Van Jacobson",
        "option 144 07",
        "IP-Address 10.1.1.78",
        "Primary-DNS 8.8.8.8",
        "IP-Address 192.168.0.1 (of this side)",
    ]
    request(end, 4, "0306 0a00004d 8106 c0000235")
    assert end.it.refusals()[:2] == ["IP-Compression-Protocol Van Jacobson", "option 144 07"]
    assert len(end.it.refusals()) == 3


def test_a_peer_that_may_choose_gets_what_it_chooses():
    end = started(replace(SERVER_POLICY, peer=None, peer_may_choose=True))
    assert ask(end, "0306 c6336407") == [octets("02 70 000a 0306 c6336407")]
    assert end.it.peer_address == IPv4Address("198.51.100.7")


def test_a_peer_that_may_choose_and_asks_is_offered_one_or_rejected():
    assert ask(started(replace(SERVER_POLICY, peer_may_choose=True)), "0306 00000000") == [
        octets("03 70 000a 0306 0a00004d")
    ]
    assert ask(started(replace(SERVER_POLICY, peer=None)), "0306 00000000") == [octets("04 70 000a 0306 00000000")]


@pytest.mark.parametrize("address", ["00000001", "7f000001", "e0000001", "f0000001", "ffffffff"])
def test_nobody_chooses_an_address_that_no_host_has(address: str):
    end = started(replace(SERVER_POLICY, peer=None, peer_may_choose=True))
    assert ask(end, f"0306 {address}")[0][0] == 4


# Options that we do not want


@pytest.mark.statement(113)
@pytest.mark.parametrize(
    "option", ["010a 0a00004d 0a000001", "0206 002d 0f01", "0204 002d", "9006 00000000", "04 06 01020304"]
)
def test_ip_addresses_vj_and_what_is_unknown_are_rejected(option: str):
    end = started()
    (reject,) = ask(end, f"0306 0a00004d {option}")
    assert reject[:2] == b"\x04\x70" and reject[4:] == octets(option)
    assert end.it.state == State.REQ_SENT


# Name servers


@pytest.mark.statement(115)
@pytest.mark.parametrize(("option", "server"), [("8106", "c0000235"), ("8306", "c0000236")])
@pytest.mark.parametrize("asked", ["00000000", "08080808"])
def test_a_peer_that_asks_for_a_name_server_is_told_ours(option: str, server: str, asked: str):
    end = started()
    assert ask(end, f"0306 0a00004d {option} {asked}") == [octets(f"03 70 000a {option} {server}")]
    assert ask(end, f"0306 0a00004d {option} {server}")[0][0] == 2


@pytest.mark.statement(115)
def test_netbios_name_servers_are_rejected():
    assert ask(started(), "8206 00000000 8406 00000000 0306 0a00004d") == [
        octets("04 70 0010 8206 00000000 8406 00000000")
    ]


@pytest.mark.statement(115)
def test_without_name_servers_the_options_are_rejected():
    none = started(replace(SERVER_POLICY, dns=()))
    assert ask(none, "8106 00000000 8306 00000000 0306 0a00004d") == [octets("04 70 0010 8106 00000000 8306 00000000")]
    one = started(replace(SERVER_POLICY, dns=SERVER_POLICY.dns[:1]))
    assert ask(one, "8106 00000000 8306 00000000") == [octets("04 70 000a 8306 00000000")]


# Our own address


def test_a_peer_that_would_rather_have_another_address_for_us_is_told_ours_again_then_nothing():
    end = started()
    for identifier in range(1, 6):
        assert end.gets(bytes((3, identifier)) + octets("000a 0306 c0a80001")) == [
            bytes((1, identifier + 1)) + OUR_REQUEST[2:]
        ]
    assert end.gets(octets("03 06 000a 0306 c0a80001")) == [octets("01 07 0004")]
    assert end.it.local_address == OURS


def test_a_peer_that_rejects_our_address_gets_none_and_ipcp_opens():
    end = started()
    assert end.gets("04 01 000a 0306 0a000001") == [octets("01 02 0004")]
    end.gets("02 02 0004")
    assert ask(end, "0306 0a00004d")[0][0] == 2
    assert (end.it.opened, end.it.local_address, end.it.peer_address) == (True, OURS, PEERS)


def test_a_server_may_keep_its_address_to_itself():
    assert ipcp_end(replace(SERVER_POLICY, local=None)).start() == octets("01 01 0004")


# The client


def test_a_client_takes_the_address_and_the_name_servers_that_it_is_told():
    end = ipcp_end(CLIENT_POLICY)
    assert end.start() == octets("01 01 0016 0306 00000000 8106 00000000 8306 00000000")
    assert end.gets("03 01 0016 0306 0a00004d 8106 c0000235 8306 c0000236") == [
        octets("01 02 0016 0306 0a00004d 8106 c0000235 8306 c0000236")
    ]
    assert dns_learned(end.it) == SERVER_POLICY.dns


def test_a_client_whose_options_are_rejected_has_no_address_and_no_name_server():
    end = ipcp_end(CLIENT_POLICY)
    end.start()
    assert end.gets("04 01 0010 8106 00000000 8306 00000000") == [octets("01 02 000a 0306 00000000")]
    assert end.gets("04 02 000a 0306 00000000") == [octets("01 03 0004")]
    assert (end.it.local_address, dns_learned(end.it)) == (None, ())


def test_a_nak_of_the_wrong_length_tells_a_client_nothing():
    end = ipcp_end(CLIENT_POLICY)
    end.start()
    (request,) = end.gets("03 01 0009 0305 0a0000")
    assert request[4:10] == octets("0306 00000000")


def test_a_client_accepts_any_address_of_the_server():
    end = started(CLIENT_POLICY)
    assert ask(end, "0306 0a000001")[0][0] == 2
    assert end.it.peer_address == OURS
    assert ask(started(CLIENT_POLICY), "")[0][0] == 2  # nor need it have one


# Down and up again


def test_a_configure_request_in_opened_takes_ipcp_down_and_the_same_address_is_given_again():
    server, client = ipcp_end(SERVER_POLICY), ipcp_end(CLIENT_POLICY)
    for end in (server, client):
        end.it.open(0.0)
        end.it.lower_up(0.0)
    negotiate(server, client)
    server.told()
    client.it.lower_down(50.0)
    client.it.lower_up(50.0)
    negotiate(server, client, begin=50.0)
    assert server.told() == [Notice.DOWN, Notice.UP]
    assert client.it.local_address == PEERS and dns_learned(client.it) == SERVER_POLICY.dns


@pytest.mark.statement(92)
def test_a_peer_that_does_not_speak_ipcp_ends_ipcp():
    end = started()
    end.it.protocol_rejected(1.0)
    assert (end.told(), end.it.state, end.it.deadline) == ([Notice.FINISHED], State.STOPPED, None)
