"""LCP: options both ways, loops, echoes, rejected protocols, and what a LAC has negotiated before us."""

from __future__ import annotations

from itertools import pairwise

import pytest

from l2tpns.proto.ppp.automaton import State, Timers
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.lcp import REJECTS_PER_SECOND, AuthChoice, Lcp, LcpWishes
from l2tpns.proto.ppp.negotiation import Notice
from tests.unit.proto.ppp.ends import End, chance, lcp_end, negotiate, octets, opened_lcp

PAP, CHAP = AuthChoice.PAP, AuthChoice.CHAP_MD5
BOTH = LcpWishes(auth=(PAP, CHAP))
PLAIN = LcpWishes()
MAGIC = chance()(4).hex()  # what an end of ours with the first seed draws first


def acked(end: End[Lcp]) -> bytes:
    """The Configure-Ack of what the end asks for now."""
    end.it.timeout(end.it.deadline or 0.0)
    (request,) = end.take()
    return b"\x02" + request[1:]


def started(wishes: LcpWishes | None = None) -> End[Lcp]:
    end = lcp_end(wishes)
    end.start()
    return end


# A whole negotiation


def test_pppd_in_pty_mode_whose_first_configure_request_and_ours_are_lost():
    end = lcp_end(BOTH)
    first = end.start()
    assert first == octets(f"""
        01 01 0012      # Configure-Request
        0104 05d4       # MRU 1492
        0304 c023       # Authentication-Protocol PAP
        0506 {MAGIC}
    """)
    end.it.timeout(3.0)
    assert end.take() == [first]
    pppd = octets("""
        01 01 0014      # Configure-Request
        0206 00000000   # asyncmap 0
        0506 8b2a6f11   # magic
        0702 0802       # pcomp accomp
    """)
    assert end.gets(pppd, 3.2) == [b"\x02" + pppd[1:]]
    assert end.gets(b"\x02" + first[1:], 3.2) == []
    assert end.told() == [Notice.UP]
    lcp = end.it
    assert (lcp.auth, lcp.peer_auth, lcp.our_mru, lcp.peer_mru) == (PAP, None, 1492, 1500)
    assert (lcp.magic, lcp.peer_magic, lcp.pfc, lcp.acfc) == (int(MAGIC, 16), 0x8B2A6F11, True, True)


@pytest.mark.parametrize("lost", [(), (0,), (1,), (2,), (3,), (0, 1, 2), (1, 4)])
def test_a_server_and_a_client_open_in_spite_of_lost_packets(lost: tuple[int, ...]):
    server = lcp_end(LcpWishes(mru=1400, auth=(PAP, CHAP)), seed=1)
    client = lcp_end(LcpWishes(mru=1460, accept_auth=(CHAP,), ask_pfc=True, ask_acfc=True, accm=0), seed=2)
    for end in (server, client):
        end.it.open(0.0)
        end.it.lower_up(0.0)
    negotiate(server, client, lost)
    assert (server.it.opened, client.it.opened) == (True, True)
    assert server.it.auth is client.it.peer_auth is CHAP
    assert client.it.auth is server.it.peer_auth is None
    assert (server.it.our_mru, client.it.peer_mru) == (1400, 1400)
    assert (client.it.our_mru, server.it.peer_mru) == (1460, 1460)
    assert server.it.magic == client.it.peer_magic != 0
    assert client.it.magic == server.it.peer_magic != 0
    assert (server.it.pfc, server.it.acfc) == (True, True)
    assert (client.it.pfc, client.it.acfc) == (False, False)  # the server did not ask for them


# The peer's options


@pytest.mark.statement(94)
@pytest.mark.parametrize(("mru", "limit"), [("0080", 128), ("05dc", 1500), ("2000", 8192), ("ffff", 65535)])
def test_the_peers_mru_is_the_limit_of_what_we_send(mru: str, limit: int):
    end = opened_lcp(PLAIN, f"0104 {mru}")
    assert end.it.peer_mru == limit


@pytest.mark.statement(94)
def test_a_peer_that_names_no_mru_gets_what_its_path_is_known_to_carry():
    assert opened_lcp(LcpWishes(magic=False, peer_mru=1492)).it.peer_mru == 1492
    assert opened_lcp(LcpWishes(magic=False, peer_mru=1492), "0104 05dc").it.peer_mru == 1500


@pytest.mark.statement(94)
def test_without_an_mru_option_the_limit_is_1500_also_after_another_negotiation():
    end = opened_lcp(PLAIN, "0104 0240")
    assert end.it.peer_mru == 576
    end.gets("01 71 0004", 5.0)
    assert end.it.peer_mru == 1500


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("0104 007f", "03 0104 0080"),  # MRU 127: nothing below 128
        ("0104 0000", "03 0104 0080"),
        ("0103 05", "03 0104 05dc"),  # an MRU of the wrong length (section 6: Nak with the right one)
        ("0204 0000", "03 0206 00000000"),
        ("0703 00", "03 0702"),
        ("0506 00000000", "03 0506 ????????"),
        ("0503 01", "03 0506 ????????"),
        ("0408 c025 00000064", "04 0408 c025 00000064"),  # Quality-Protocol
        ("1104 05dc", "04 1104 05dc"),  # MRRU
        ("1305 00 0000", "04 1305 00 0000"),  # endpoint discriminator
        ("0d03 06", "04 0d03 06"),  # callback
        ("0304 c023", "04 0304 c023"),  # we authenticate ourselves to nobody
        ("0104 0000 1104 05dc 0702", "04 1104 05dc"),  # Reject comes before Nak, and leaves out what is good
        ("0104 0000 0702 0206 00000000", "03 0104 0080"),
    ],
)
def test_what_we_do_not_take_is_naked_or_rejected(asked: str, answer: str):
    end = started(BOTH)
    data = octets(asked)
    (reply,) = end.gets(bytes((1, 0x33, 0, len(data) + 4)) + data)
    shape = answer.replace(" ", "")
    assert reply[:2].hex() == shape[:2] + "33"
    assert all(want in ("?", got) for got, want in zip(reply[4:].hex(), shape[2:], strict=True))
    assert int.from_bytes(reply[2:4], "big") == len(reply)
    assert end.it.state == State.REQ_SENT


@pytest.mark.statement(99)
@pytest.mark.parametrize("accm", ["00000000", "ffffffff", "000a0000"])
def test_any_character_map_is_accepted_and_changes_nothing(accm: str):
    end = started()
    request = octets(f"01 44 000a 0206 {accm}")
    assert end.gets(request) == [b"\x02" + request[1:]]


def test_header_compression_may_be_refused():
    end = started(LcpWishes(accept_pfc=False, accept_acfc=False))
    assert end.gets("01 44 0008 0702 0802") == [octets("04 44 0008 0702 0802")]


def test_a_client_is_told_which_protocol_it_could_use():
    client = started(LcpWishes(accept_auth=(CHAP, PAP)))
    assert client.gets("01 44 0009 0305 c22381") == [octets("03 44 0009 0305 c22305")]  # MS-CHAPv2: CHAP, please
    request = octets("01 45 0008 0304 c023")
    assert client.gets(request) == [b"\x02" + request[1:]]
    assert client.it.peer_auth is PAP


# Our options


@pytest.mark.parametrize(
    ("asked", "mru"),
    [("0578", 1400), ("05dc", 1492), ("0064", 1492), ("05d4", 1492)],
    ids=["less", "more", "too_little", "the_same"],
)
def test_a_nak_of_our_mru_can_only_make_it_smaller(asked: str, mru: int):
    end = started()
    (request,) = end.gets(f"03 01 0008 0104 {asked}")
    assert request[4:8] == b"\x01\x04" + mru.to_bytes(2, "big")
    end.gets(b"\x02" + request[1:])
    assert end.it.our_mru == mru


def test_a_nak_of_the_wrong_length_changes_nothing_and_the_option_is_given_up_in_time():
    end = lcp_end(LcpWishes(mru=1400, accm=0, magic=False))
    identifier = end.start()[1]
    for _ in range(5):
        (request,) = end.gets(bytes((3, identifier)) + octets("000a 0103 05 0203 00"))
        assert request[4:] == octets("0104 0578 0206 00000000")
        identifier = request[1]
    (request,) = end.gets(bytes((3, identifier)) + octets("000a 0103 05 0203 00"))
    assert request[4:] == b""
    assert end.it.our_mru == 1500


def test_a_client_takes_the_character_map_that_it_is_told_and_gives_up_what_is_refused():
    end = lcp_end(LcpWishes(mru=None, magic=False, accm=0, ask_pfc=True, ask_acfc=True))
    assert end.start() == octets("01 01 000e 0206 00000000 0702 0802")
    assert end.gets("03 01 000c 0206 000a0000 0702") == [octets("01 02 000c 0206 000a0000 0802")]
    assert end.gets("04 02 0006 0802") == [octets("01 03 000a 0206 000a0000")]
    assert end.it.our_mru == 1500


def test_options_that_a_nak_adds_are_not_asked_for():
    end = lcp_end(LcpWishes(magic=False))
    end.start()
    assert end.gets("03 01 000c 0206 00000000 0702") == [octets("01 02 0008 0104 05d4")]


# Authentication


@pytest.mark.statement(95)
@pytest.mark.parametrize("preferred", ["0305 c22305", "0305 c22381", "0304 c227"], ids=["ours", "ms_chap", "eap"])
def test_a_nak_of_pap_moves_to_the_next_choice(preferred: str):
    end = started(BOTH)
    option = octets(preferred)
    (request,) = end.gets(bytes((3, 1, 0, 4 + len(option))) + option)
    assert octets("0305 c22305") in request
    end.gets("01 70 0004")
    end.gets(b"\x02" + request[1:])
    assert (end.it.opened, end.it.auth, end.it.auth_refused) == (True, CHAP, False)


@pytest.mark.statement(95)
def test_when_all_choices_are_naked_the_link_ends():
    end = started(LcpWishes(auth=(PAP, CHAP), magic=False, mru=None))
    assert end.gets("03 01 0009 0305 c22305") == [octets("01 02 0009 0305 c22305")]
    (request,) = end.gets("03 02 0008 0304 c023")
    assert request == octets("05 03 001e") + b"Authentication is required"
    assert (end.it.auth_refused, end.it.state) == (True, State.CLOSING)
    assert end.gets(bytes((6, request[1], 0, 4))) == []
    assert end.told() == [Notice.FINISHED]


@pytest.mark.statement(95)
def test_a_reject_of_authentication_ends_the_link():
    end = started(BOTH)
    assert end.gets("04 01 0008 0304 c023") == [octets("05 02 001e") + b"Authentication is required"]
    assert (end.it.auth_refused, end.it.state) == (True, State.CLOSING)


def test_the_next_negotiation_begins_with_the_first_choice_again():
    end = started(BOTH)
    end.gets("03 01 0009 0305 c22305")
    end.gets("01 70 0004")
    end.gets(acked(end))
    assert end.it.auth is CHAP
    (request, _) = end.gets("01 71 0004", 9.0)
    assert octets("0304 c023") in request


def test_no_authentication_is_asked_for_when_none_is_wished():
    assert opened_lcp(PLAIN).it.auth is None


@pytest.mark.statement(95)
@pytest.mark.parametrize(
    ("naks", "wanted"),
    [
        (["0305 c22381"], ["MS-CHAPv2"]),
        (["0305 c22381", "0305 c22380"], ["MS-CHAPv2", "MS-CHAP"]),
        (["0304 c227", "0304 c227"], ["EAP"]),
        (["0304 c023", "0305 c22381"], ["MS-CHAPv2"]),  # PAP it may
        (["0305 c22306"], ["CHAP-SHA-1"]),
        (["0303 07"], ["07"]),
    ],
)
def test_how_a_peer_would_rather_authenticate_is_named(naks: list[str], wanted: list[str]):
    end = started(LcpWishes(auth=(CHAP, PAP)))
    for identifier, nak in enumerate(naks, 1):
        option = octets(nak)
        end.gets(bytes((3, identifier, 0, 4 + len(option))) + option)
    assert end.it.auth_wanted == wanted
    assert end.it.auth_refused == (len(naks) == 2)


def test_a_nak_of_authentication_that_comes_after_too_many_others_names_what_the_peer_wants_too():
    end = started(LcpWishes(auth=(CHAP, PAP)))
    identifier = 1
    for _ in range(5):
        identifier = end.gets(bytes((3, identifier)) + octets("0008 0104 05dc"))[0][1]
    end.gets(bytes((3, identifier)) + octets("0009 0305 c22381"))
    assert (end.it.auth_refused, end.it.auth_wanted) == (True, ["MS-CHAPv2"])


# What the peer wanted


def test_what_the_peer_wanted_and_did_not_get_is_named_and_the_rest_is_agreed_on():
    end = started()
    # As Windows asks: callback, MRRU, short sequence numbers, endpoint discriminator; and that we authenticate.
    windows = "0d03 06 1104 064e 1202 1307 01 c0a80001"
    end.gets(octets("01 70 0027 0104 0578 0506 12345678 0702 0802") + octets(windows) + octets("0305 c22381"))
    end.gets("01 71 0012 0104 0578 0506 12345678 0702 0802")
    assert end.it.refusals() == [
        "Callback CBCP",
        "Multilink-MRRU 1614",
        "Multilink-Short-Sequence-Number",
        "Multilink-Endpoint-Discriminator",
        "Authentication-Protocol MS-CHAPv2 (of this side)",
    ]
    assert (end.it.state, end.it.impasse) == (State.ACK_SENT, None)


def test_a_value_that_the_peer_gave_up_was_no_wish_in_the_end():
    end = started()
    end.gets("01 70 0008 0104 0040")
    assert end.it.refusals() == ["Maximum-Receive-Unit 64"]
    end.gets("01 71 0008 0104 0080")
    assert end.it.refusals() == []


@pytest.mark.statement(88)
def test_a_peer_that_insists_on_what_we_reject_comes_to_an_end_that_names_it():
    end = started()
    answers = []
    for number in range(40):
        answers += end.gets(bytes((1, number)) + octets("000b 0d03 06 1104 064e"))
        if answers[-1][0] == 5:
            break
    assert [answer[0] for answer in answers] == [4] * 15 + [5]
    assert answers[-1][4:] == b"the peer insists on Callback CBCP, Multilink-MRRU 1614"
    assert end.it.state == State.CLOSING


# Magic numbers and loops


@pytest.mark.statement(96)
def test_our_own_magic_number_and_zero_are_naked_with_another():
    end = started()
    for magic in (MAGIC, "00000000"):
        (nak,) = end.gets(f"01 70 000a 0506 {magic}")
        assert nak[:6] == octets("03 70 000a 0506")
        assert nak[6:].hex() not in (MAGIC, "00000000")
    assert end.it.state == State.REQ_SENT
    end.gets("01 71 000a 0506 12345678")
    assert (end.it.state, end.it.peer_magic, end.it.loop_suspected) == (State.ACK_SENT, 0x12345678, False)


@pytest.mark.statement(96)
def test_a_nak_of_our_magic_number_gives_a_new_one():
    end = started()
    (request,) = end.gets("03 01 000a 0506 01020304")
    assert request[4:10] == octets("0104 05d4 0506")
    assert request[10:].hex() not in (MAGIC, "00000000", "01020304")


def test_a_peer_that_rejects_magic_numbers_gets_echoes_with_zero():
    end = started()
    (request,) = end.gets(f"04 01 000a 0506 {MAGIC}")
    end.gets(b"\x02" + request[1:])
    end.gets("01 70 0004")
    end.it.send_echo(1.0)
    assert end.take() == [octets("09 03 0008 00000000")]
    # Zero is nobody's number: it does not mean a loop.
    assert end.gets("09 09 0008 00000000") == [octets("0a 09 0008 00000000")]
    assert not end.it.loop_suspected


@pytest.mark.statement(96)
def test_a_looped_line_is_noticed_and_closed():
    end = lcp_end(PLAIN)
    packets = [end.start()]
    for _ in range(60):
        if not packets:
            break
        packets += end.gets(packets.pop(0))
    assert packets == []
    assert end.it.loop_suspected
    assert end.it.state in (State.CLOSED, State.STOPPED)
    assert Notice.UP not in end.told()


@pytest.mark.parametrize("draw", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1"])
def test_chance_that_always_draws_the_same_gives_other_numbers_all_the_same(draw: bytes):
    end = End(lambda send, notify: Lcp(send, notify, lambda n: draw[:n], Timers(), PLAIN))
    end.start()
    seen = [end.it.magic]
    for identifier in (1, 2, 3):
        end.gets(bytes((3, identifier)) + octets("000a 0506 01020304"))
        seen.append(end.it.magic)
    assert all(0 < magic <= 0xFFFFFFFF for magic in seen)
    assert all(one != other for one, other in pairwise(seen))


# Echo, Discard, Identification, Time-Remaining


@pytest.mark.statement(93)
def test_an_echo_is_answered_on_an_open_link_with_our_magic():
    end = opened_lcp(PLAIN, "0506 12345678")
    assert end.gets("09 21 000b 12345678 616263") == [octets(f"0a 21 000b {MAGIC} 616263")]


@pytest.mark.statement(93)
def test_an_echo_is_not_answered_before():
    end = started()
    assert end.gets("09 21 0008 12345678") == []
    assert end.it.dropped == 1
    end.it.send_echo(1.0)
    assert (end.take(), end.it.echoes_unanswered) == ([], 0)


@pytest.mark.statement(93)
def test_an_echo_request_with_our_own_magic_is_a_sign_of_a_loop():
    end = opened_lcp(PLAIN)
    end.it.send_echo(1.0)
    end.gets(f"09 02 0008 {MAGIC}")
    assert end.it.loop_suspected
    assert end.it.echoes_unanswered == 1


def test_a_client_that_copies_our_magic_into_its_echo_reply_is_alive_and_no_loop():
    end = opened_lcp(PLAIN)
    end.it.send_echo(1.0)
    end.gets(f"0a 02 0008 {MAGIC}")
    assert (end.it.loop_suspected, end.it.echoes_unanswered) == (False, 0)


def test_echoes_are_counted_until_one_is_answered():
    end = opened_lcp(PLAIN, "0506 12345678")
    for now in (10.0, 20.0, 30.0):
        end.it.send_echo(now)
    assert end.take() == [octets(f"09 {number:02x} 0008 {MAGIC}") for number in (2, 3, 4)]
    assert end.it.echoes_unanswered == 3
    assert end.gets("0a 03 0008 12345678") == []
    assert (end.it.echoes_unanswered, end.it.loop_suspected) == (0, False)


def test_a_peer_that_does_not_know_echoes_is_alive_nevertheless():
    end = opened_lcp(PLAIN)
    end.it.send_echo(1.0)
    end.take()
    assert end.gets(octets("07 01 000c 09 02 0008") + bytes(4)) == []
    assert (end.it.opened, end.it.echoes_unanswered) == (True, 0)


@pytest.mark.statement(94)
def test_an_echo_reply_is_no_longer_than_the_peers_mru():
    end = opened_lcp(PLAIN, "0104 0080")
    (reply,) = end.gets(octets("09 21 0200 12345678") + bytes(504))
    assert len(reply) == 128 and reply[:4] == octets("0a 21 0080")


def test_an_echo_too_short_for_a_magic_number_is_dropped():
    end = opened_lcp(PLAIN)
    assert end.gets("09 21 0007 123456") == []
    assert end.it.dropped == 1


@pytest.mark.statement(100)
@pytest.mark.parametrize(
    "packet",
    [
        "0c 01 000d 12345678 4d53524153",  # Identification: MSRAS
        "0c 01 0008 12345678",
        "0d 02 000c 12345678 00000e10",  # Time-Remaining: an hour
        "0b 03 0008 12345678",  # Discard-Request
    ],
)
def test_what_wants_no_answer_gets_none(packet: str):
    for end in (opened_lcp(PLAIN), started()):
        state = end.it.state
        assert end.gets(packet) == []
        assert (end.it.state, end.it.dropped, end.told()) == (state, 0, [])


# Protocol-Reject


@pytest.mark.statement(92)
def test_an_unknown_protocol_is_rejected_on_an_open_link():
    end = opened_lcp(PLAIN)
    assert end.it.protocol_reject(Protocol.CCP, octets("01 01 0009 1a04 78 00 18"), 1.0)
    assert end.take() == [octets("08 02 000f 80fd 01 01 0009 1a04 78 00 18")]
    assert end.it.protocol_reject(Protocol.IPV6CP, octets("01 01 0004"), 1.0)
    assert end.take() == [octets("08 03 000a 8057 01 01 0004")]


@pytest.mark.statement(92)
def test_an_unknown_protocol_is_passed_over_in_silence_before():
    end = started()
    assert not end.it.protocol_reject(Protocol.CCP, b"\x01\x01\x00\x04", 1.0)
    assert end.take() == []


@pytest.mark.statement(92, 94)
def test_the_copy_in_a_protocol_reject_is_cut_to_the_peers_mru():
    end = opened_lcp(PLAIN, "0104 0080")
    assert end.it.protocol_reject(Protocol.CCP, bytes(300), 1.0)
    (packet,) = end.take()
    assert len(packet) == 128 and packet[:6] == octets("08 02 0080 80fd")


@pytest.mark.statement(92)
def test_protocol_rejects_are_few_a_second():
    end = opened_lcp(PLAIN)
    told = [end.it.protocol_reject(0x3F, b"", 5.0 + number / 1000) for number in range(500)]
    assert sum(told) == len(end.take()) == REJECTS_PER_SECOND
    assert end.it.protocol_reject(0x3F, b"", 6.0)


@pytest.mark.statement(92)
def test_a_rejected_protocol_is_told_to_the_owner_and_the_link_stays():
    end = opened_lcp(PLAIN)
    rejected: list[int] = []
    end.it.rejected_protocol = rejected.append
    assert end.gets("08 05 000a 8021 01 01 0004") == []
    assert (rejected, end.it.opened) == ([Protocol.IPCP], True)
    assert end.gets("08 05 0005 80") == []
    assert (rejected, end.it.dropped) == ([Protocol.IPCP], 1)


def test_an_owner_that_does_not_care_is_not_told():
    end = opened_lcp(PLAIN)
    assert end.gets("08 05 0006 8057") == []
    assert end.it.opened and end.it.dropped == 0


@pytest.mark.statement(92)
def test_a_protocol_reject_on_a_link_that_is_not_open_is_silently_discarded():
    end = started()
    end.it.rejected_protocol = lambda protocol: pytest.fail("told")
    for protocol in ("8021", "c021"):
        assert end.gets(f"08 05 0006 {protocol}") == []
    assert (end.it.state, end.it.dropped) == (State.REQ_SENT, 2)


def test_a_peer_that_rejects_lcp_itself_ends_the_link():
    end = opened_lcp(PLAIN)
    (request,) = end.gets("08 05 0006 c021")
    assert request[0] == 5
    assert (end.told(), end.it.state) == ([Notice.DOWN], State.STOPPING)


# What a LAC has negotiated (RFC 2661 4.4.5)

LAST_SENT = "0104 05d4 0304 c023 0506 11111111"
LAST_RECEIVED = "0104 0578 0206 00000000 0506 22222222 0702 0802"


def test_proxy_lcp_opens_the_link_with_no_packet():
    end = lcp_end(BOTH)
    assert end.it.adopt(octets(LAST_SENT), octets(LAST_RECEIVED), 0.0, (PAP, CHAP))
    assert (end.take(), end.told(), end.it.deadline) == ([], [Notice.UP], None)
    lcp = end.it
    assert (lcp.opened, lcp.auth, lcp.our_mru, lcp.peer_mru) == (True, PAP, 1492, 1400)
    assert (lcp.magic, lcp.peer_magic, lcp.pfc, lcp.acfc) == (0x11111111, 0x22222222, True, True)
    assert end.gets("09 21 0008 22222222") == [octets("0a 21 0008 11111111")]


def test_an_adopted_link_is_renegotiated_when_the_peer_wants_it():
    end = lcp_end(BOTH)
    end.it.adopt(octets(LAST_SENT), octets(LAST_RECEIVED), 0.0, (PAP, CHAP))
    end.told()
    (request, ack) = end.gets("01 09 0004", 5.0)
    assert (request[0], ack) == (1, octets("02 09 0004"))
    assert (end.told(), end.it.state, end.it.restart_count) == ([Notice.DOWN], State.ACK_SENT, 9)


def test_without_mru_and_magic_the_lac_has_agreed_on_the_defaults():
    end = lcp_end(LcpWishes(auth=(CHAP,)))
    assert end.it.adopt(octets("0305 c22305 0702"), octets("0702"), 0.0, (PAP, CHAP))
    assert (end.it.auth, end.it.our_mru, end.it.peer_mru, end.it.magic) == (CHAP, 1500, 1500, 0)


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ("", LAST_RECEIVED),  # incomplete
        (LAST_SENT, ""),
        (LAST_SENT, "0104 05"),  # no options
        ("01", LAST_RECEIVED),
        ("0104 05d4 0506 11111111", LAST_RECEIVED),  # nobody has asked for authentication
        ("0304 c227", LAST_RECEIVED),  # EAP
        ("0305 c22381", LAST_RECEIVED),  # MS-CHAPv2
        ("0304 c023 0305 c22381", LAST_RECEIVED),
        (LAST_SENT + "1104 05dc", LAST_RECEIVED),  # Multilink
        (LAST_SENT, LAST_RECEIVED + "1104 05dc"),
        ("0104 1194 0304 c023", LAST_RECEIVED),  # 4500: more than we promise to take
        ("0103 05 0304 c023", LAST_RECEIVED),
        ("0503 05 0304 c023", LAST_RECEIVED),
        ("0703 05 0304 c023", LAST_RECEIVED),
        (LAST_SENT, "0304 c023"),  # the peer wants us to authenticate
        (LAST_SENT, "0104 0010"),
        (LAST_SENT, "0506 11111111"),  # the same number on both sides
        ("0304 c023 0305 c22305", LAST_RECEIVED),  # which of them?
        (LAST_SENT, "0104 0578 0104 0500"),
    ],
)
def test_proxy_lcp_that_is_incomplete_or_not_as_we_wish_changes_nothing(sent: str, received: str):
    end = lcp_end(BOTH)
    assert not end.it.adopt(octets(sent), octets(received), 0.0, (PAP, CHAP))
    assert (end.take(), end.told(), end.it.state, end.it.magic) == ([], [], State.INITIAL, 0)
    assert not end.it.loop_suspected
    assert end.start()[0] == 1  # and LCP begins from its beginning


def test_nothing_is_adopted_once_we_negotiate_ourselves():
    end = started(BOTH)
    assert not end.it.adopt(octets(LAST_SENT), octets(LAST_RECEIVED), 0.0, (PAP, CHAP))
    assert end.it.state == State.REQ_SENT


def test_proxy_lcp_without_authentication_is_good_when_we_want_none():
    end = lcp_end(PLAIN)
    assert end.it.adopt(octets("0506 11111111"), octets("0506 22222222"), 0.0, (PAP, CHAP))
    assert end.it.auth is None
    strict = lcp_end(PLAIN)
    assert not strict.it.adopt(octets("0304 c023"), octets("0506 22222222"), 0.0, (PAP, CHAP))


@pytest.mark.parametrize(
    ("choices", "sent", "adopted"),
    [
        ((CHAP,), "0304 c023", False),
        ((CHAP,), "0305 c22305", True),
        ((), "0305 c22305", False),
        ((PAP, CHAP), "0304 c023", True),
    ],
)
def test_proxy_lcp_is_adopted_only_with_an_authentication_that_can_go_on(
    choices: tuple[AuthChoice, ...], sent: str, adopted: bool
):
    assert lcp_end(BOTH).it.adopt(octets(sent), octets(LAST_RECEIVED), 0.0, choices) is adopted


def test_a_choice_knows_its_ppp_protocol():
    assert (PAP.protocol, CHAP.protocol) == (Protocol.PAP, Protocol.CHAP)
