"""Reliable delivery of control messages (RFC 2661 section 5.8, Appendix A)."""

from __future__ import annotations

import heapq
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2tpns.proto.l2tp.header import ControlHeader, build_control, parse_control
from l2tpns.proto.l2tp.reliable import Reliable, ReliableRecord


def arrived(ns: int, nr: int = 0, body: bytes = b"x") -> ControlHeader:
    return ControlHeader(1, 0, ns, nr, body)


def zlb(nr: int, ns: int = 0) -> ControlHeader:
    return arrived(ns, nr, b"")


def sent(end: Reliable, now: float) -> list[tuple[int, int, bytes]]:
    """Ns, Nr and body of what goes out now."""
    headers = [parse_control(datagram) for datagram in end.outgoing(now)]
    return [(header.ns, header.nr, header.body) for header in headers]


def with_messages(number: int, **options: int | float) -> Reliable:
    end = Reliable(**options)  # type: ignore[arg-type]
    for index in range(number):
        end.send(0, b"%d" % index, 0.0)
    return end


# -- a peer whose address may be forged -------------------------------------------------------------------------------


def unproven(size: int, request: int) -> Reliable:
    """An end that has had one message of `request` octets and has one of `size` octets to say, headers included."""
    end = Reliable()
    end.await_proof()
    end.receive(ControlHeader(0, 0, 0, 0, bytes(request - 12)), 0.0)
    end.send(0, bytes(size - 12), 0.0)
    return end


def cycle(end: Reliable, now: float = 0.0) -> list[bytes]:
    """Everything it sends until it gives up, if nothing more comes."""
    datagrams = end.outgoing(now)
    while (due := end.deadline) is not None:
        datagrams += end.outgoing(due)
    return datagrams


@pytest.mark.statement(57)
@pytest.mark.parametrize("size", [20, 70, 100, 159, 160, 300, 1000])
@pytest.mark.parametrize("request_size", [53, 100, 220, 700])
def test_until_the_peer_has_proved_its_address_it_gets_three_times_what_it_sent_at_most(
    size: int, request_size: int
) -> None:
    datagrams = cycle(unproven(size, request_size))
    assert sum(map(len, datagrams)) <= 3 * request_size
    assert len(datagrams) == min(3, 3 * request_size // size)


@pytest.mark.statement(54)
def test_a_repeat_of_the_peers_pays_for_a_retransmission_and_is_answered_by_it() -> None:
    end = unproven(150, 53)
    assert [ns for ns, _, _ in sent(end, 0.0)] == [0]
    assert end.outgoing(1.0) == []  # nothing is left of 159 octets
    for repeat in range(1, 4):
        assert end.receive(ControlHeader(0, 0, 0, 0, bytes(41)), 1.0 + repeat) == []
        assert [(ns, nr, len(body)) for ns, nr, body in sent(end, 1.0 + repeat)] == [(0, 1, 138)]


def test_what_is_larger_than_the_allowance_waits_for_the_peer_to_ask_again_and_nothing_silences_it() -> None:
    end = unproven(300, 53)
    assert cycle(end) == []  # no bare acknowledgement, either
    end.receive(ControlHeader(0, 0, 0, 0, bytes(41)), 1.0)
    assert [len(body) for _, _, body in sent(end, 1.0)] == [288]


@pytest.mark.statement(57)
def test_once_it_is_proved_retransmission_is_as_ever() -> None:
    end = unproven(150, 53)
    end.outgoing(0.0)
    end.proved()
    assert len(cycle(end)) == 5
    assert end.dead


def test_a_peer_without_proof_is_acknowledged_when_there_is_nothing_else_to_say() -> None:
    end = unproven(100, 53)
    end.outgoing(0.0)
    assert len(end.receive(ControlHeader(0, 0, 1, 1, bytes(20)), 0.5)) == 1
    assert sent(end, 0.5) == [(1, 2, b"")]


# -- sending ----------------------------------------------------------------------------------------------------------


@pytest.mark.statement(53)
def test_the_first_message_has_ns_0_and_each_next_one_more() -> None:
    end = with_messages(2)
    assert sent(end, 0.0) == [(0, 0, b"0")]
    assert end.receive(zlb(1), 0.1) == []
    assert sent(end, 0.1) == [(1, 0, b"1")]
    assert end.ns == 2


@pytest.mark.statement(53)
def test_ns_and_nr_wrap_at_65536() -> None:
    end = with_messages(2)
    end.ns = end.nr = 0xFFFF
    assert sent(end, 0.0) == [(0xFFFF, 0xFFFF, b"0")]
    assert len(end.receive(arrived(0xFFFF, nr=0), 0.1)) == 1
    assert sent(end, 0.1) == [(0, 0, b"1")]
    assert (end.ns, end.nr) == (1, 0)


@pytest.mark.statement(53)
def test_a_zlb_has_the_next_ns_and_does_not_use_it_up() -> None:
    end = Reliable()
    end.receive(arrived(0), 0.0)
    assert sent(end, 0.0) == [(0, 1, b"")]
    end.receive(arrived(1), 0.1)
    assert sent(end, 0.1) == [(0, 2, b"")]
    end.send(0, b"first", 0.2)
    assert sent(end, 0.2) == [(0, 2, b"first")]


@pytest.mark.statement(53)
def test_a_received_zlb_is_not_counted_and_not_acknowledged() -> None:
    end = Reliable()
    assert end.receive(zlb(0), 0.0) == []
    assert end.nr == 0
    assert end.outgoing(0.0) == []
    assert end.deadline is None


@pytest.mark.statement(6)
def test_the_tunnel_id_is_0_until_it_is_known_even_for_what_was_queued_before() -> None:
    end = with_messages(1)
    assert parse_control(end.outgoing(0.0)[0]).tunnel_id == 0
    end.peer_tunnel_id = 77
    again = parse_control(end.outgoing(1.0)[0])
    assert (again.tunnel_id, again.ns) == (77, 0)


@pytest.mark.statement(6)
def test_each_message_goes_to_the_session_it_was_queued_for() -> None:
    end = Reliable()
    end.send(4711, b"cdn", 0.0)
    assert end.outgoing(0.0) == [build_control(0, 4711, 0, 0, b"cdn")]


# -- receiving --------------------------------------------------------------------------------------------------------


@pytest.mark.statement(54)
def test_a_duplicate_is_not_processed_but_acknowledged_at_once() -> None:
    end = Reliable()
    assert len(end.receive(arrived(0), 5.0)) == 1
    assert sent(end, 5.0) == [(0, 1, b"")]
    assert end.receive(arrived(0), 6.0) == []
    assert end.deadline == 6.0
    assert sent(end, 6.0) == [(0, 1, b"")]
    assert end.duplicates == 1
    assert end.outgoing(6.0) == []


@pytest.mark.statement(54)
def test_the_32768_numbers_up_to_the_last_received_are_old_as_the_example_of_the_rfc_says() -> None:
    # 5.8: "if the last received sequence number was 15, then 0 through 15, as well as 32784 through 65535"
    for ns in range(0x10000):
        end = Reliable(receive_window=0x8000)
        end.nr = 16
        delivered = end.receive(arrived(ns), 0.0)
        assert bool(delivered) == (ns == 16)
        assert end.duplicates == (ns <= 15 or ns >= 32784)
        assert end.out_of_order == (16 < ns < 32784)


@pytest.mark.statement(55)
def test_a_message_ahead_of_its_turn_waits_and_nr_stays() -> None:
    end = Reliable()
    assert end.receive(arrived(1, body=b"second"), 0.0) == []
    assert end.nr == 0
    assert sent(end, 0.0) == [(0, 0, b"")]
    ready = end.receive(arrived(0, body=b"first"), 0.1)
    assert [header.body for header in ready] == [b"first", b"second"]
    assert sent(end, 0.1) == [(0, 2, b"")]


@pytest.mark.statement(53, 55)
def test_a_message_that_waited_is_not_delivered_again_when_the_numbers_come_round() -> None:
    end = Reliable()
    end.receive(arrived(1), 0.0)
    assert len(end.receive(arrived(0), 0.0)) == 2
    for ns in range(2, 0x10000):
        assert len(end.receive(arrived(ns), 0.0)) == 1
    assert len(end.receive(arrived(0), 0.0)) == 1


@pytest.mark.statement(55)
def test_no_more_than_the_receive_window_is_kept_ahead_of_its_turn() -> None:
    end = Reliable(receive_window=4)
    for ns in range(1, 100):
        assert end.receive(arrived(ns), 0.0) == []
    assert [header.ns for header in end.receive(arrived(0), 0.1)] == [0, 1, 2, 3]
    assert end.out_of_order == 99


@pytest.mark.statement(59)
def test_every_message_of_a_flood_is_acknowledged_however_many_answers_wait() -> None:
    end = Reliable(peer_window=1)
    for ns in range(100):
        end.receive(arrived(ns), 0.0)
        end.send(0, b"answer", 0.0)
        assert [nr for _, nr, _ in sent(end, 0.0)] == [ns + 1]
    assert end.queue_length == 99


def test_one_acknowledgement_serves_all_that_came_before_it() -> None:
    end = Reliable()
    for ns in range(5):
        end.receive(arrived(ns), 0.0)
    assert sent(end, 0.0) == [(0, 5, b"")]


def test_a_message_carries_the_acknowledgement_and_no_zlb_follows() -> None:
    end = Reliable()
    end.receive(arrived(0), 0.0)
    end.send(0, b"reply", 0.0)
    assert sent(end, 0.0) == [(0, 1, b"reply")]


# -- acknowledgements -------------------------------------------------------------------------------------------------


@pytest.mark.statement(60)
@pytest.mark.parametrize("nr", [2, 3, 100, 0x7FFF, 0x8000, 0xFFFF])
def test_an_nr_beyond_what_was_sent_or_of_the_past_is_ignored(nr: int) -> None:
    end = with_messages(1)
    end.outgoing(0.0)
    assert len(end.receive(arrived(0, nr=nr), 0.1)) == 1  # the message itself is good
    assert end.unacked == 1
    assert sent(end, 1.0) == [(0, 1, b"0")]


@pytest.mark.statement(60)
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 0xFFFF), st.integers(0, 8), st.integers(-12, 12) | st.integers(0, 0xFFFF))
def test_for_any_nr_only_what_was_sent_is_acknowledged(first: int, in_flight: int, distance: int) -> None:
    end = Reliable()
    end.restore(ReliableRecord(1, 8, first, 0, in_flight, ((0, b"x"),) * (in_flight + 2)), 0.0)
    end.receive(zlb((first + distance) & 0xFFFF), 0.5)
    assert end.unacked == in_flight - (distance if 0 <= distance <= in_flight else 0)
    assert end.ns == (first + in_flight) & 0xFFFF


@pytest.mark.statement(61)
def test_one_nr_acknowledges_several_messages_and_the_queue_goes_on() -> None:
    end = with_messages(8)
    for acknowledged in (1, 3, 6):  # the window opens: 1, 2, 3 messages
        end.outgoing(0.0)
        end.receive(zlb(acknowledged), 0.0)
    assert (end.unacked, end.queue_length) == (0, 2)
    assert [ns for ns, _, _ in sent(end, 0.0)] == [6, 7]
    assert not end.idle
    end.receive(zlb(8), 0.1)
    assert end.idle
    assert end.deadline is None


# -- retransmission ---------------------------------------------------------------------------------------------------


@pytest.mark.statement(56)
def test_a_retransmission_keeps_its_ns_and_carries_the_nr_of_now() -> None:
    end = with_messages(1)
    assert sent(end, 0.0) == [(0, 0, b"0")]
    end.receive(arrived(0), 0.5)
    assert sent(end, 0.5) == [(1, 1, b"")]
    assert sent(end, 1.0) == [(0, 1, b"0")]
    assert end.retransmissions == 1


def times_of_sending(end: Reliable, start: float = 0.0) -> list[float]:
    times = []
    now: float | None = start
    while now is not None:
        times += [now] * len(end.outgoing(now))
        now = end.deadline
    return times


@pytest.mark.statement(57)
def test_a_message_is_sent_again_after_1_2_4_8_8_seconds_and_given_up_31_seconds_after_the_first() -> None:
    end = with_messages(1)
    assert times_of_sending(end) == [0.0, 1.0, 3.0, 7.0, 15.0, 23.0]
    assert end.dead
    assert end.cycle == 31.0
    assert end.outgoing(32.0) == []


@pytest.mark.statement(57)
def test_the_end_is_not_dead_before_the_last_interval_is_over() -> None:
    end = with_messages(1)
    for now in (0.0, 1.0, 3.0, 7.0, 15.0, 23.0, 30.9):
        end.outgoing(now)
        assert not end.dead
    assert end.deadline == 31.0
    end.outgoing(31.0)
    assert end.dead


@pytest.mark.statement(57)
def test_number_and_intervals_of_retransmissions_are_configurable() -> None:
    assert times_of_sending(with_messages(1, retries=2)) == [0.0, 1.0, 3.0]
    assert times_of_sending(with_messages(1, retries=0)) == [0.0]
    assert times_of_sending(with_messages(1, first_interval=0.5, retries=3)) == [0.0, 0.5, 1.5, 3.5]
    assert times_of_sending(with_messages(1, max_interval=60.0)) == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0]
    assert times_of_sending(with_messages(1, first_interval=20.0, retries=2)) == [0.0, 20.0, 40.0]


@pytest.mark.statement(57)
def test_a_cap_below_8_seconds_is_refused() -> None:
    with pytest.raises(ValueError, match="8 s or more"):
        Reliable(max_interval=7.9)


def test_nothing_is_sent_again_before_its_time() -> None:
    end = with_messages(1)
    end.outgoing(0.0)
    assert end.deadline == 1.0
    assert end.outgoing(0.99) == []


def test_progress_starts_the_back_off_anew() -> None:
    end = with_messages(2)
    for now in (0.0, 1.0, 3.0):
        end.outgoing(now)
    end.receive(zlb(1), 4.0)
    assert sent(end, 4.0) == [(1, 0, b"1")]
    assert times_of_sending(end, 5.0) == [5.0, 7.0, 11.0, 19.0, 27.0]


@pytest.mark.statement(65)
def test_the_last_message_is_sent_again_until_acknowledged_and_then_the_end_is_idle() -> None:
    end = Reliable()
    end.send(0, b"stopccn", 0.0)
    assert sent(end, 0.0) == [(0, 0, b"stopccn")]
    assert not end.idle
    assert sent(end, 1.0) == [(0, 0, b"stopccn")]
    end.receive(zlb(1), 1.5)
    assert end.idle
    assert not end.dead


@pytest.mark.statement(65)
def test_the_last_message_never_acknowledged_ends_in_dead_and_not_in_idle() -> None:
    end = Reliable()
    end.send(0, b"stopccn", 0.0)
    assert len(times_of_sending(end)) == 6
    assert (end.dead, end.idle, end.deadline) == (True, False, None)


def test_the_exchange_of_appendix_b_2_where_the_icrp_is_lost() -> None:
    lns = Reliable()
    lns.ns, lns.nr = 1, 2
    assert len(lns.receive(arrived(2, nr=1, body=b"icrq"), 0.0)) == 1
    lns.send(9, b"icrp", 0.1)
    assert sent(lns, 0.1) == [(1, 3, b"icrp")]  # lost
    assert lns.receive(arrived(2, nr=1, body=b"icrq"), 1.0) == []
    assert sent(lns, 1.0) == [(2, 3, b"")]
    assert sent(lns, 1.1) == [(1, 3, b"icrp")]
    assert len(lns.receive(arrived(3, nr=2, body=b"iccn"), 1.2)) == 1
    assert sent(lns, 1.2) == [(2, 4, b"")]


# -- window -----------------------------------------------------------------------------------------------------------


@pytest.mark.statement(58)
@pytest.mark.parametrize("window", [1, 2, 4, 10])
def test_slow_start_opens_up_to_the_peers_window_and_no_further(window: int) -> None:
    end = with_messages(200, peer_window=window)
    sizes = []
    for _ in range(12):
        end.outgoing(0.0)
        sizes.append(end.unacked)
        for _ in range(end.unacked):  # one acknowledgement for each message
            end.receive(zlb((end.ns - end.unacked + 1) & 0xFFFF), 0.0)
    assert sizes == [min(2**trip, window) for trip in range(12)]


@pytest.mark.statement(58)
def test_after_a_loss_slow_start_begins_with_one_message_and_turns_linear_at_half() -> None:
    end = with_messages(100, peer_window=8)
    for acknowledged in (1, 3, 7):
        end.outgoing(0.0)
        for nr in range(end.ns - end.unacked + 1, acknowledged + 1):
            end.receive(zlb(nr), 0.0)
    assert [ns for ns, _, _ in sent(end, 0.0)] == list(range(7, 15))  # all 8 are lost
    assert [ns for ns, _, _ in sent(end, 1.0)] == [7]
    end.receive(zlb(8), 1.1)
    assert [ns for ns, _, _ in sent(end, 1.1)] == [8, 9]  # the lost ones before any new one
    sizes = []
    for now in (1.2, 1.3, 1.4, 1.5, 1.6):
        for _ in range(end._flight):
            end.receive(zlb((end.ns - end.unacked + 1) & 0xFFFF), now)
        end.outgoing(now)
        sizes.append(end._flight)
    assert sizes == [4, 4, 5, 6, 7]  # up to SSTHRESH = 4 doubled, then one more for each full window


@pytest.mark.statement(58)
def test_a_window_of_0_works_as_1() -> None:
    end = with_messages(3, peer_window=0)
    assert end.peer_window == 1
    assert len(end.outgoing(0.0)) == 1
    end.receive(zlb(1), 0.1)
    assert len(end.outgoing(0.1)) == 1


@pytest.mark.statement(58)
def test_a_window_that_became_smaller_is_kept_from_then_on() -> None:
    end = with_messages(20, peer_window=8)
    for nr in (1, 2, 3, 4):
        end.outgoing(0.0)
        end.receive(zlb(nr), 0.0)
    end.peer_window = 2
    end.receive(zlb(end.ns), 0.1)
    assert len(end.outgoing(0.1)) == 2


# -- going on in another process --------------------------------------------------------------------------------------


def test_a_record_of_the_state_goes_on_with_the_same_numbers() -> None:
    end = with_messages(6, peer_window=4)
    end.peer_tunnel_id = 7
    end.outgoing(0.0)
    end.receive(arrived(0, nr=1), 0.1)
    assert [ns for ns, _, _ in sent(end, 0.1)] == [1, 2]
    heir = Reliable()
    heir.restore(end.record(), 100.0)
    assert heir.record() == end.record()
    assert (heir.ns, heir.nr, heir.unacked, heir.queue_length, heir.peer_tunnel_id) == (3, 1, 2, 3, 7)
    assert heir.deadline == 100.0
    assert sent(heir, 100.0) == [(1, 1, b"1")]
    heir.receive(zlb(3), 100.1)  # both had arrived before
    assert [ns for ns, _, _ in sent(heir, 100.1)] == [3, 4]


# -- a bad network ----------------------------------------------------------------------------------------------------

Fates = st.lists(st.sampled_from(["arrive", "arrive", "drop", "twice", "late"]), max_size=120)


@pytest.mark.statement(54, 55, 58, 61)
@settings(max_examples=60, deadline=None)
@given(
    fates=Fates,
    numbers=st.tuples(st.integers(0, 25), st.integers(0, 25)),
    windows=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    first=st.sampled_from([0, 0x7FFA, 0xFFF5]),
)
def test_whatever_the_network_does_everything_arrives_once_and_in_order(
    fates: list[str], numbers: tuple[int, int], windows: tuple[int, int], first: int
) -> None:
    ends = [
        Reliable(peer_window=windows[1], receive_window=windows[0], retries=200),
        Reliable(peer_window=windows[0], receive_window=windows[1], retries=200),
    ]
    for end in ends:
        end.ns = end.nr = first
    wanted = [[b"%d" % index for index in range(number)] for number in numbers]
    for end, bodies in zip(ends, wanted, strict=True):
        for body in bodies:
            end.send(1, body, 0.0)
    got: list[list[bytes]] = [[], []]
    wire: list[tuple[float, int, int, bytes]] = []
    serial = count()
    fate = iter(fates)
    now = 0.0
    for _ in range(5000):
        for side, end in enumerate(ends):
            for datagram in end.outgoing(now):
                match next(fate, "arrive"):
                    case "drop":
                        delays = []
                    case "twice":
                        delays = [0.01, 0.5]
                    case "late":
                        delays = [2.5]
                    case _:
                        delays = [0.01]
                for delay in delays:
                    heapq.heappush(wire, (now + delay, next(serial), 1 - side, datagram))
            assert end.unacked <= end.peer_window
            assert not end.dead
        times = [end.deadline for end in ends if end.deadline is not None]
        if wire:
            times.append(wire[0][0])
        if not times:
            break
        now = max(now, min(times))
        while wire and wire[0][0] <= now:
            _, _, side, datagram = heapq.heappop(wire)
            got[side] += [header.body for header in ends[side].receive(parse_control(datagram), now)]
    assert got == [wanted[1], wanted[0]]
    assert all(end.idle for end in ends)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.booleans()), max_size=40))
def test_whatever_numbers_a_peer_sends_delivery_stays_in_order(steps: list[tuple[int, int, bool]]) -> None:
    end = with_messages(5)
    delivered: list[int] = []
    for now, (ns, nr, empty) in enumerate(steps):
        delivered += [header.ns for header in end.receive(arrived(ns % 40, nr % 8, b"" if empty else b"x"), float(now))]
        end.outgoing(float(now))
        assert 0 <= end.unacked <= 4
    assert delivered == list(range(len(delivered)))


# -- a successor after a crash ----------------------------------------------------------------------------------------


def heir_of(record: ReliableRecord, **options: int) -> Reliable:
    """Who goes on from a record that may be older than what the peer has seen."""
    end = Reliable(**options)  # type: ignore[arg-type]
    end.restore(record, 100.0, b"HELLO")
    return end


def test_a_record_and_the_changes_after_it_are_the_record_of_now() -> None:
    end = with_messages(3, peer_window=2)
    record = end.record()
    assert end.change() is None
    for step in (
        lambda: end.outgoing(0.0),
        lambda: end.receive(arrived(0, nr=1), 0.1),
        lambda: end.outgoing(0.1),
        lambda: end.send(7, b"new", 0.2),
        lambda: end.receive(zlb(3, ns=1), 0.3),
        lambda: end.outgoing(0.3),
    ):
        step()
        change = end.change()
        assert change is not None
        record = record.after(change)
        assert end.change() is None
    assert record == end.record() == ReliableRecord(0, 2, 3, 1, 1, ((7, b"new"),))


def test_a_successor_says_hello_first_and_nothing_new_before_its_acknowledgement() -> None:
    end = heir_of(ReliableRecord(1, 4, 10, 5, 0, ()))
    end.send(3, b"CDN", 100.0)
    assert sent(end, 100.0) == [(10, 5, b"HELLO")]
    assert not end.idle
    assert sent(end, 101.0) == [(10, 5, b"HELLO")]
    end.receive(zlb(11, ns=5), 101.1)
    assert sent(end, 101.1) == [(11, 5, b"CDN")]


@pytest.mark.parametrize("forgotten", [1, 2, 7])
def test_a_peer_that_has_had_more_than_we_remember_says_so_and_the_next_message_has_the_ns_it_expects(
    forgotten: int,
) -> None:
    end = heir_of(ReliableRecord(1, 4, 10, 5, 0, ()))
    end.send(3, b"CDN", 100.0)
    assert sent(end, 100.0) == [(10, 5, b"HELLO")]  # a duplicate to the peer: acknowledged, not processed
    end.receive(zlb(10 + forgotten, ns=5), 100.1)
    assert sent(end, 100.1) == [(10 + forgotten, 5, b"CDN")]
    end.receive(zlb(11 + forgotten, ns=5), 100.2)
    assert end.idle


def test_what_was_sent_and_not_acknowledged_is_sent_again_before_the_hello() -> None:
    end = heir_of(ReliableRecord(1, 4, 10, 5, 1, ((3, b"CDN"), (4, b"ICRP"))))
    assert sent(end, 100.0) == [(10, 5, b"CDN")]
    end.receive(zlb(12, ns=5), 100.1)  # it had had both
    assert sent(end, 100.1) == [(12, 5, b"HELLO")]
    end.receive(zlb(13, ns=5), 100.2)
    assert end.idle


def test_a_successor_numbers_on_over_65535() -> None:
    end = heir_of(ReliableRecord(1, 4, 0xFFFF, 5, 0, ()))
    sent(end, 100.0)
    end.receive(zlb(3, ns=5), 100.1)
    end.send(0, b"x", 100.2)
    assert sent(end, 100.2) == [(3, 5, b"x")]


def test_an_nr_far_beyond_is_not_believed_by_a_successor_either() -> None:
    end = heir_of(ReliableRecord(1, 4, 10, 5, 0, ()))
    sent(end, 100.0)
    end.receive(zlb(5000, ns=5), 100.1)
    assert end.ns == 11 and not end.idle


def test_messages_that_the_peer_repeats_during_the_outage_are_taken_in_order_even_if_the_first_is_late() -> None:
    end = heir_of(ReliableRecord(1, 4, 10, 5, 0, ()))
    assert end.receive(arrived(6, nr=10, body=b"second"), 100.1) == []  # its first was sent before we were there
    ready = end.receive(arrived(5, nr=10, body=b"first"), 100.2)
    assert [header.body for header in ready] == [b"first", b"second"]


def test_a_gap_that_the_peer_never_fills_was_acknowledged_before_the_crash() -> None:
    end = heir_of(ReliableRecord(1, 4, 10, 5, 0, ()))
    assert end.receive(arrived(8, nr=10, body=b"new"), 100.1) == []
    ready = end.receive(arrived(8, nr=10, body=b"new"), 101.1)  # a second time: it has nothing older to repeat
    assert [header.body for header in ready] == [b"new"]
    assert end.nr == 9
    assert end.receive(arrived(11, nr=10), 101.2) == end.receive(arrived(11, nr=10), 102.2) == []  # once only


def test_without_a_crash_a_gap_stays_a_gap() -> None:
    end = Reliable()
    end.restore(ReliableRecord(1, 4, 10, 5, 0, ()), 100.0)
    assert end.receive(arrived(8), 100.1) == end.receive(arrived(8), 101.1) == []
    assert end.outgoing(101.2) != []  # a ZLB
    assert end.nr == 5


# -- where the peer is ------------------------------------------------------------------------------------------------


@pytest.mark.statement(10)
@pytest.mark.parametrize(
    ("ns", "nr", "fits"),
    [
        (100, 50, True),  # new, and nothing acknowledged
        (100, 52, True),  # both of ours acknowledged
        (100, 49, False),  # says less than it has said before
        (100, 53, False),  # acknowledges what was never sent
        (96, 51, True),  # a repeat
        (95, 51, False),  # older than its window
        (104, 51, True),
        (105, 51, False),  # beyond its window
        (0, 0, False),
    ],
)
def test_a_message_fits_if_its_ns_and_nr_are_in_the_windows(ns: int, nr: int, fits: bool) -> None:
    end = with_messages(2, receive_window=4, peer_window=4)
    end.ns, end.nr = 50, 100
    end._congestion_window = 4.0
    assert len(sent(end, 0.0)) == 2
    before = end.record()
    for body in (b"x", b""):
        assert end.fits(arrived(ns, nr, body)) is fits
    assert end.record() == before


@pytest.mark.statement(10)
def test_the_windows_wrap_at_65536() -> None:
    end = with_messages(1, receive_window=4)
    end.ns = end.nr = 0xFFFF
    sent(end, 0.0)
    assert end.fits(arrived(1, 0)) and end.fits(arrived(0xFFFD, 0xFFFF)) and not end.fits(arrived(1, 1))


def test_a_copy_of_the_oldest_message_changes_nothing_and_its_acknowledgement_is_told() -> None:
    end = with_messages(2, peer_window=4)
    assert end.oldest() is None and not end.acknowledges(zlb(0))
    assert sent(end, 0.0) == [(0, 0, b"0")]
    copy = end.oldest()
    assert copy is not None
    header = parse_control(copy)
    assert (header.ns, header.nr, header.body) == (0, 0, b"0")
    assert end.acknowledges(zlb(1)) and not end.acknowledges(zlb(0)) and not end.acknowledges(zlb(2))
    assert end.unacked == 1 and sent(end, 1.0) == [(0, 0, b"0")]


def test_after_a_crash_a_message_fits_though_the_peer_is_further_than_we_remember() -> None:
    end = Reliable(receive_window=4)
    end.restore(ReliableRecord(7, 4, ns=10, nr=20, sent=0, pending=()), 0.0, probe=b"hello")
    sent(end, 0.0)
    assert end.fits(arrived(500, 300)) and end.acknowledges(zlb(300)) and not end.fits(arrived(20, 9))


@pytest.mark.parametrize(("retries", "told"), [(5, [0, 1, 2, 3]), (1, [0, 32767])])
def test_timeouts_in_a_row_are_told_and_the_last_retry_counts_as_many(retries: int, told: list[int]) -> None:
    end = with_messages(1, retries=retries)
    seen = []
    for now in (0.0, 1.0, 3.0, 7.0)[: len(told)]:
        end.outgoing(now)
        seen.append(end.silent_timeouts)
    assert seen == told
    end.receive(zlb(1), 8.0)
    assert end.silent_timeouts == 0


@pytest.mark.parametrize("retries", [1, 2])
def test_asked_again_after_a_pause_of_ours_the_last_message_is_sent_once_more(retries: int) -> None:
    end = with_messages(1, retries=retries)
    now = 0.0
    for _ in range(retries + 1):
        assert sent(end, now) == [(0, 0, b"0")]
        now = end.deadline or now
    end.ask_again()
    assert sent(end, now) == [(0, 0, b"0")]
    assert end.deadline is not None and sent(end, end.deadline) == [] and end.dead
