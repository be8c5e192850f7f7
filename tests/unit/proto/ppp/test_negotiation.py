"""What LCP and the NCPs share: answers are matched, codes are known or rejected, an end is an end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2tpns.proto.ppp.automaton import TIMED, State, Timers
from l2tpns.proto.ppp.lcp import AuthChoice, LcpWishes
from l2tpns.proto.ppp.negotiation import ControlProtocol, Notice
from tests.unit.proto.ppp.ends import (
    CLIENT_POLICY,
    SERVER_POLICY,
    End,
    chance,
    ipcp_end,
    lcp_end,
    negotiate,
    octets,
    opened_lcp,
)

MAGIC = chance()(4).hex()  # what an end of ours with the first seed draws first
REQUEST = octets(f"""
    01 01 000e      # Configure-Request, identifier 1
    0104 05d4       # MRU 1492
    0506 {MAGIC}    # Magic-Number
""")
PLAIN = LcpWishes()


def test_the_first_request_is_what_the_wishes_say():
    assert lcp_end(PLAIN).start() == REQUEST


@pytest.mark.statement(89)
@pytest.mark.parametrize(
    "answer",
    [
        f"02 02 000e 0104 05d4 0506 {MAGIC}",  # Ack of another identifier
        "02 01 000e 0104 05d4 0506 00000001",  # Ack of another value
        f"02 01 000e 0506 {MAGIC} 0104 05d4",  # Ack in another order
        "02 01 0008 0104 05d4",  # Ack of a part
        "03 02 0008 0104 0578",  # Nak of another identifier
        "04 02 0008 0104 05d4",  # Reject of another identifier
        "04 01 0008 0104 0578",  # Reject of a value that we did not ask for
        "04 01 0006 0702",  # Reject of an option that we did not ask for
        "03 01 0004",  # Nak of nothing
        "04 01 0004",  # Reject of nothing
        "03 01 0008 0106 0578",  # Nak whose option does not fit
    ],
)
def test_an_answer_to_something_else_is_silently_discarded(answer: str):
    end = lcp_end(PLAIN)
    end.start()
    assert end.gets(answer) == []
    assert (end.it.state, end.it.dropped) == (State.REQ_SENT, 1)
    end.gets(b"\x02" + REQUEST[1:])  # and the right one still counts
    assert end.it.state == State.ACK_RCVD


@pytest.mark.statement(89)
def test_a_second_copy_of_an_ack_does_not_take_the_link_down():
    end = opened_lcp(PLAIN)
    assert end.gets(b"\x02" + REQUEST[1:]) == []
    assert (end.it.opened, end.told(), end.it.dropped) == (True, [], 1)


def test_a_late_ack_of_a_request_that_was_sent_again_is_good():
    end = lcp_end(PLAIN)
    end.start()
    end.it.timeout(3.0)
    assert end.take() == [REQUEST]
    end.gets(b"\x02" + REQUEST[1:], 3.1)
    assert end.it.state == State.ACK_RCVD


def test_the_identifier_changes_when_the_request_or_its_answer_did():
    end = lcp_end(PLAIN)
    end.start()
    (second,) = end.gets("03 01 0008 0104 0578")  # Nak: MRU 1400
    assert second == octets(f"01 02 000e 0104 0578 0506 {MAGIC}")
    end.gets(b"\x02" + second[1:])
    end.it.timeout(3.0)  # Ack-Rcvd: the peer's own request is overdue
    assert end.take() == [b"\x01\x03" + second[2:]]


@pytest.mark.statement(90)
@pytest.mark.parametrize("state", [state for state in State if state > State.STARTING])
def test_terminate_request_is_acknowledged_in_every_state_that_hears(state: State):
    end = lcp_end(PLAIN)
    end.it.state = state
    assert end.gets("05 2a 0007 627965") == [octets("06 2a 0004")]


@pytest.mark.statement(90)
def test_terminate_request_on_an_open_link_takes_it_down_and_ends_it_a_period_later():
    end = opened_lcp(PLAIN)
    assert end.gets("05 2a 0004", 50.0) == [octets("06 2a 0004")]
    assert (end.told(), end.it.state) == ([Notice.DOWN], State.STOPPING)
    end.it.timeout(52.9)
    assert end.told() == []
    end.it.timeout(53.0)
    assert (end.told(), end.it.state) == ([Notice.FINISHED], State.STOPPED)


@pytest.mark.statement(90)
def test_two_ends_part_when_one_says_so_even_if_the_first_word_is_lost():
    one, other = lcp_end(PLAIN, seed=1), lcp_end(PLAIN, seed=2)
    for end in (one, other):
        end.it.open(0.0)
        end.it.lower_up(0.0)
    negotiate(one, other)
    assert one.told()[-1] == other.told()[-1] == Notice.UP
    one.it.close(100.0, b"good night")
    negotiate(one, other, lose={0}, begin=100.0)
    assert one.told() == [Notice.DOWN, Notice.FINISHED]
    assert other.told() == [Notice.DOWN, Notice.FINISHED]
    assert (one.it.state, other.it.state) == (State.CLOSED, State.STOPPED)


def test_closing_twice_says_the_first_reason_and_an_ack_ends_it():
    end = opened_lcp(PLAIN)
    end.it.close(1.0, b"first")
    end.it.close(1.1, b"second")
    (request,) = end.take()
    assert request == octets("05 02 0009") + b"first"
    assert end.gets("06 02 0004", 1.2) == []
    assert (end.told(), end.it.state, end.it.deadline) == ([Notice.DOWN, Notice.FINISHED], State.CLOSED, None)


@pytest.mark.statement(90)
def test_a_closed_side_answers_everything_with_terminate_ack():
    end = opened_lcp(PLAIN)
    end.it.close(1.0)
    end.gets("06 02 0004")
    assert end.gets("01 09 0004") == [octets("06 09 0004")]
    assert end.gets("02 0a 0004") == [octets("06 0a 0004")]
    assert end.gets("03 0b 0004") == [octets("06 0b 0004")]


@pytest.mark.statement(91)
def test_an_unknown_code_is_rejected_with_a_copy():
    for end in (opened_lcp(PLAIN), ipcp_end(SERVER_POLICY)):
        end.it.open(0.0)
        end.it.lower_up(0.0)
        end.take()
        assert end.gets("2a 07 0006 aabb cc") == [octets("07 02 000a  2a 07 0006 aabb")]  # the padding is not copied
        assert end.gets("00 08 0004") == [octets("07 03 0008  00 08 0004")]  # a new identifier each time


@pytest.mark.statement(91)
def test_ncps_know_seven_codes_only():
    end = ipcp_end(SERVER_POLICY)
    end.start()
    assert end.gets("09 01 0008 00000000") == [octets("07 02 000c  09 01 0008 00000000")]


@pytest.mark.statement(91, 94)
def test_the_copy_in_a_code_reject_is_cut_to_the_peers_mru():
    end = opened_lcp(PLAIN, peer_options="0104 0080")  # MRU 128
    packet = octets("2a 07 012c") + bytes(296)
    (reject,) = end.gets(packet)
    assert len(reject) == 128
    assert reject == octets("07 02 0080") + packet[:124]


UNKNOWN = "".join(f"{kind:02x} 14 {'55' * 18}" for kind in range(0x40, 0x60))  # 32 options of 20 octets


@pytest.mark.statement(94)
def test_options_that_fit_into_the_peers_mru_are_rejected_and_the_others_the_next_time():
    for end in (opened_lcp(PLAIN, peer_options="0104 0080"), ipcp_end(SERVER_POLICY)):
        end.it.open(0.0)
        end.it.lower_up(0.0)
        end.take()
        end.it.peer_mru = 128
        left, answers = octets(UNKNOWN), []
        while left:
            answer = end.gets(bytes((1, len(left) % 251)) + (4 + len(left)).to_bytes(2, "big") + left)[-1]
            assert answer[0] == 4 and len(answer) <= 128
            assert left.startswith(answer[4:]) and len(answer) > 4
            left = left[len(answer) - 4 :]
            answers.append(answer)
        assert len(answers) == 6


@pytest.mark.statement(94)
def test_an_option_that_the_peer_itself_could_not_receive_is_not_answered_and_ends_the_negotiation():
    end = ipcp_end(SERVER_POLICY)
    end.start()
    end.it.peer_mru = 128
    huge = octets("40 ff") + bytes(253)
    answers = [end.gets(bytes((1, number)) + octets("0103") + huge) for number in range(16)]
    assert answers[:15] == [[]] * 15
    assert answers[15][0][0] == 5 and len(answers[15][0]) <= 128


@pytest.mark.statement(94)
def test_the_reason_in_a_terminate_request_is_cut_to_the_peers_mru():
    end = opened_lcp(PLAIN, peer_options="0104 0080")
    end.it.close(1.0, "ü".encode() * 100)
    (request,) = end.take()
    assert request[4:] == "ü".encode() * 62


@pytest.mark.parametrize("code", range(1, 8))
def test_code_reject_of_what_every_protocol_needs_ends_it(code: int):
    end = opened_lcp(PLAIN)
    (request,) = end.gets(bytes((7, 1, 0, 5, code)))
    assert request[0] == 5
    assert (end.told(), end.it.state) == ([Notice.DOWN], State.STOPPING)
    negotiating = ipcp_end(SERVER_POLICY)
    negotiating.start()
    assert negotiating.gets(bytes((7, 1, 0, 5, code))) == []
    assert (negotiating.told(), negotiating.it.state) == ([Notice.FINISHED], State.STOPPED)


@pytest.mark.parametrize("code", [0, 8, 9, 12, 200])
def test_code_reject_of_anything_else_is_borne(code: int):
    end = opened_lcp(PLAIN)
    assert end.gets(bytes((7, 1, 0, 5, code))) == []
    assert end.it.opened
    assert end.gets("07 01 0004") == [] and end.it.dropped == 1  # of nothing


@pytest.mark.statement(98)
def test_a_configure_request_on_an_open_link_takes_it_down_and_negotiates_again():
    end = opened_lcp(PLAIN)
    sent = end.gets("01 71 0008 0104 0578", 20.0)  # MRU 1400 this time
    assert [packet[0] for packet in sent] == [1, 2]
    assert sent[0][1] == 2 and sent[0] != REQUEST  # a new request with a new magic number
    assert (end.told(), end.it.state) == ([Notice.DOWN], State.ACK_SENT)
    assert end.gets(b"\x02" + sent[0][1:], 20.1) == []
    assert (end.told(), end.it.opened, end.it.peer_mru) == ([Notice.UP], True, 1400)


@pytest.mark.statement(98)
def test_a_bad_configure_request_on_an_open_link_takes_it_down_too():
    end = opened_lcp(PLAIN)
    sent = end.gets("01 71 0008 0104 0010", 20.0)  # MRU 16
    assert sent[1] == octets("03 71 0008 0104 0080")
    assert (end.told(), end.it.state) == ([Notice.DOWN], State.REQ_SENT)


@pytest.mark.statement(101)
@pytest.mark.parametrize(
    "packet",
    ["", "01", "01 70 0003", "01 70 0009 0104 0578", "01 70 0006 0104", "01 70 0006 0100", "01 70 0005 01"],
)
def test_a_packet_whose_lengths_do_not_fit_is_dropped(packet: str):
    end = lcp_end(PLAIN)
    end.start()
    assert end.gets(packet) == []
    assert (end.it.state, end.it.dropped) == (State.REQ_SENT, 1)


@pytest.mark.statement(114)
@pytest.mark.parametrize("end", [lcp_end(PLAIN), ipcp_end(SERVER_POLICY)], ids=["lcp", "ipcp"])
def test_nothing_is_heard_before_the_layer_below_is_up(end: End[ControlProtocol]):
    for packet in ("01 01 0004", "05 01 0004", "2a 01 0004"):
        assert end.gets(packet) == []
    assert (end.it.state, end.it.dropped) == (State.INITIAL, 3)
    end.it.open(0.0)
    assert end.gets("01 01 0004") == []
    assert (end.it.state, end.it.dropped) == (State.STARTING, 4)


def test_when_the_layer_below_goes_down_so_does_this_one_and_comes_again():
    end = opened_lcp(PLAIN)
    end.it.lower_down(5.0)
    assert (end.told(), end.it.state) == ([Notice.DOWN], State.STARTING)
    end.it.lower_up(6.0)
    (request,) = end.take()
    assert request[0] == 1 and end.it.state == State.REQ_SENT


def test_an_owner_may_close_from_the_notice():
    end = lcp_end(PLAIN)
    end.start()
    end.it.notify = lambda notice: end.it.close(9.0, b"no") if notice is Notice.UP else end.notices.append(notice)
    end.gets("01 70 0004", 9.0)
    sent = end.gets(b"\x02" + REQUEST[1:], 9.0)
    assert sent == [octets("05 02 0006") + b"no"]
    assert (end.it.state, end.told()) == (State.CLOSING, [Notice.DOWN])


@pytest.mark.statement(88)
def test_after_max_failure_naks_the_peer_gets_a_reject():
    end = lcp_end(PLAIN)
    end.start()
    stubborn = "01 70 000a 0104 0010 0702"  # MRU 16 and, what is good, PFC
    for _ in range(5):
        assert end.gets(stubborn) == [octets("03 70 0008 0104 0080")]
    assert end.gets(stubborn) == [octets("04 70 0008 0104 0010")]
    assert end.gets("01 71 0006 0702") == [octets("02 71 0006 0702")]
    # An Ack begins the count anew (section 4.6).
    assert end.gets(stubborn) == [octets("03 70 0008 0104 0080")]


@pytest.mark.statement(88)
def test_a_peer_that_naks_for_ever_is_left_to_the_timer():
    end = lcp_end(LcpWishes(mru=1492, magic=False))
    (_, identifier), sent = end.start()[:2], 0
    for _ in range(40):
        answer = end.gets(bytes((3, identifier)) + octets("0008 0104 05dc"), 0.0)
        if not answer:
            break
        identifier, sent = answer[0][1], sent + 1
    assert 5 <= sent <= 15
    assert answer == [] and end.it.our_mru == 1500  # the option was given up
    now = 0.0
    while end.it.deadline is not None:
        now = end.it.deadline
        end.it.timeout(now)
    assert (end.it.state, end.told()) == (State.STOPPED, [Notice.FINISHED])
    assert now <= 30.0


def test_a_rejected_option_is_asked_for_no_more_until_the_next_negotiation():
    end = lcp_end(PLAIN)
    end.start()
    (second,) = end.gets("04 01 0008 0104 05d4")
    assert second == octets(f"01 02 000a 0506 {MAGIC}")
    (third,) = end.gets(octets("03 02 0008 0104 05dc"))  # a Nak may ask for it: it stays out
    assert third == octets(f"01 03 000a 0506 {MAGIC}")
    assert end.it.our_mru == 1500
    end.it.lower_down(1.0)
    end.it.lower_up(2.0)
    assert octets("0104 05d4") in end.take()[0]


ENDS = {
    "lns": lambda: lcp_end(LcpWishes(auth=(AuthChoice.PAP, AuthChoice.CHAP_MD5)), seed=1),
    "client": lambda: lcp_end(LcpWishes(accept_auth=(AuthChoice.CHAP_MD5,), ask_pfc=True, accm=0), seed=2),
    "ipcp_server": lambda: ipcp_end(SERVER_POLICY),
    "ipcp_client": lambda: ipcp_end(CLIENT_POLICY),
}
IDENTIFIERS = st.integers(0, 4)
OPTION_OCTETS = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, 4, 5, 7, 8, 17, 129, 130, 131]),
        st.one_of(st.binary(max_size=6), st.sampled_from([b"\xc0\x23", b"\xc2\x23\x05", b"\x05\xd4", bytes(4)])),
    ),
    max_size=4,
).map(lambda options: b"".join(bytes((kind, len(value) + 2)) + value for kind, value in options))
PACKETS = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda code, identifier, data: bytes((code, identifier)) + (len(data) + 4).to_bytes(2, "big") + data,
        st.integers(0, 15),
        IDENTIFIERS,
        st.one_of(OPTION_OCTETS, st.binary(max_size=12)),
    ),
    st.just(b"echo our request"),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(ENDS)), st.sampled_from(list(State)), st.lists(PACKETS, max_size=12))
def test_any_octets_in_any_state_leave_a_legal_state(kind: str, state: State, packets: list[bytes]):
    end = ENDS[kind]()
    request = end.start()
    end.it.state = state
    end.it.deadline = 3.0 if state in TIMED else None
    for number, packet in enumerate(packets):
        if packet == b"echo our request":
            packet = b"\x02" + request[1:]
        for sent in end.gets(packet, number * 0.7):
            assert 4 <= len(sent) <= end.it.peer_mru
            assert int.from_bytes(sent[2:4], "big") == len(sent)
            request = sent if sent[0] == 1 else request
        end.it.timeout(number * 0.7)
        assert end.it.state in State
        assert (end.it.deadline is not None) == (end.it.state in TIMED)
    end.take()
    if end.it.state in TIMED:  # with a silent peer it always comes to an end
        for _ in range(12):
            if end.it.deadline is not None:
                end.it.timeout(end.it.deadline)
        assert end.it.state not in TIMED


@settings(max_examples=150, deadline=None)
@given(st.sets(st.integers(0, 40), max_size=6), st.booleans())
def test_two_ends_open_over_a_line_that_loses_packets(lose: set[int], network: bool):
    if network:
        one, other = ENDS["ipcp_server"](), ENDS["ipcp_client"]()
    else:
        one, other = ENDS["lns"](), ENDS["client"]()
    for end in (one, other):
        end.it.open(0.0)
        end.it.lower_up(0.0)
    took = negotiate(one, other, lose)
    assert (one.it.state, other.it.state) == (State.OPENED, State.OPENED)
    assert took <= 3.0 * (len(lose) + 1)
    assert one.told()[-1] == other.told()[-1] == Notice.UP


def test_a_session_costs_no_dictionary():
    for end in (lcp_end(PLAIN), ipcp_end(SERVER_POLICY, Timers())):
        assert not hasattr(end.it, "__dict__")
