"""The time that outside work gets, the order of turns, and connection slots: no socket, and time is handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from l2tpns.runtime.connection_slots import ConnectionSlot, ConnectionSlots
from l2tpns.runtime.scheduler import SLICE, FairLock, Rank, Scheduler, Turn
from tests.lab.inprocess import until
from tests.server.slices import most_at_once


class Work:
    """Greenlets that always have more to do; each piece takes a tenth of a slice, by a clock of our own."""

    def __init__(self) -> None:
        self.now = 1.0
        self.done: list[str] = []
        self.scheduler = Scheduler(clock=lambda: self.now)
        self.greenlets: list[Any] = []

    def begin(self, owner: str, piece: float = SLICE / 10) -> None:
        def run() -> None:
            while True:
                self.scheduler.wait_turn(owner)
                self.now += piece
                self.done.append(owner)

        self.greenlets.append(gevent.spawn(run))

    def most_at_once(self, pieces: int) -> int:
        """Return the most pieces that were done in one turn of the event loop, until there are so many."""

        def pass_time() -> None:
            self.now += SLICE / 100  # as time passes without them

        return most_at_once(lambda: len(self.done), lambda: len(self.done) >= pieces, pass_time)


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    gevent.killall(work.greenlets)


@pytest.mark.parametrize("number", [1, 3, 200])
def test_however_many_have_work_a_slice_is_all_that_is_done_at_once(work: Work, number: int) -> None:
    for greenlet in range(number):
        work.begin(f"owner {greenlet}")
    assert 10 <= work.most_at_once(500) <= 11


def test_an_owner_with_a_hundred_greenlets_has_no_more_turns_than_one_with_one(work: Work) -> None:
    for _ in range(100):
        work.begin("crowd")
    work.begin("alone")
    work.most_at_once(1000)
    assert work.done.count("alone") >= 30  # of 100 slices each begins with the other one's turn


def test_after_a_piece_that_takes_long_the_pause_is_as_long(work: Work) -> None:
    work.begin("slow", piece=50 * SLICE)
    until(lambda: work.done)
    assert work.scheduler._next_slice >= work.now + 49 * SLICE


def test_one_that_is_killed_while_it_waits_keeps_no_turn(work: Work) -> None:
    for owner in ("first", "second", "third"):
        work.begin(owner)
    gevent.sleep(0)
    gevent.killall(work.greenlets[:2])
    work.most_at_once(50)
    assert work.done.count("third") >= 30


# Ranks


class Booked:
    """Turns that are booked, and the names of those that have come, in order."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.come: list[str] = []

    def book(self, name: str, rank: Rank, owner: str = "") -> Turn:
        return self.scheduler.book(owner, rank, lambda: self.come.append(name))


@pytest.fixture
def booked() -> Booked:
    """By a clock that stands still: but for the ranks all turns would come in one slice."""
    return Booked(Scheduler(clock=lambda: 1.0, eager=True))


def test_the_first_rank_comes_first_and_the_others_alternate(booked: Booked) -> None:
    for number in (1, 2):
        booked.book(f"begin {number}", Rank.BEGIN)
        booked.book(f"end {number}", Rank.END)
    for number in (1, 2):
        booked.book(f"first {number}", Rank.FIRST)
    until(lambda: len(booked.come) == 6)
    assert booked.come == ["first 1", "first 2", "end 1", "begin 1", "end 2", "begin 2"]


def test_a_piece_of_a_later_rank_is_the_last_of_its_slice(booked: Booked) -> None:
    for number in range(20):
        booked.book(str(number), Rank.END)
    assert most_at_once(lambda: len(booked.come), lambda: len(booked.come) == 20) == 1


def test_a_turn_that_is_hurried_comes_before_the_others_and_one_that_is_cancelled_never(booked: Booked) -> None:
    turns = [booked.book(name, Rank.END) for name in "abc"]
    booked.scheduler.cancel("", Rank.END, turns[0])
    booked.scheduler.hurry("", Rank.END, turns[2])
    until(lambda: len(booked.come) == 2)
    booked.scheduler.hurry("", Rank.END, turns[0])  # it has no effect any more
    gevent.sleep(0)
    assert booked.come == ["c", "b"]
    assert [turn.come for turn in turns] == [False, True, True]


def test_an_eager_slice_begins_when_the_loop_is_idle_and_any_other_after_the_pause() -> None:
    eager, patient = (Booked(Scheduler(load=1e-6, eager=eager)) for eager in (True, False))
    for each in (eager, patient):  # by its load a slice is followed by a pause of a thousand seconds
        each.book("before", Rank.FIRST)
    until(lambda: eager.come and patient.come)
    for each in (eager, patient):
        each.book("after", Rank.FIRST)
    until(lambda: len(eager.come) == 2)
    assert patient.come == ["before"]


# A lock


def queue_up(lock: FairLock, order: list[str], owners: str) -> list[Any]:
    def hold(owner: str) -> None:
        with lock.hold(owner):
            order.append(owner)
            gevent.sleep(0)

    greenlets = [gevent.spawn(hold, owner) for owner in owners]
    gevent.sleep(0)
    return greenlets


def test_a_lock_goes_round_the_owners_that_wait_for_it() -> None:
    order: list[str] = []
    gevent.joinall(queue_up(FairLock(), order, "aaaaabc"))
    assert "".join(order) == "aabcaaa"


def test_a_lock_is_not_lost_with_a_greenlet_that_holds_it_or_waits_or_was_chosen() -> None:
    lock = FairLock()
    order: list[str] = []
    holder, chosen, waiting, last = queue_up(lock, order, "abcd")
    gevent.kill(waiting)
    holder.kill(block=False)
    gevent.kill(chosen)
    gevent.joinall([holder, chosen, waiting, last])
    assert order[0] == "a" and order[-1] == "d"
    with lock.hold("e"):
        pass


# Places

Take = Callable[[str], ConnectionSlot]


@pytest.fixture
def crowd() -> ConnectionSlots:
    return ConnectionSlots(lambda: 8)


@pytest.fixture
def take(crowd: ConnectionSlots) -> Take:
    def take(owner: str) -> ConnectionSlot:
        place = crowd.take(owner)
        assert place is not None
        place.greenlet = gevent.spawn(gevent.sleep, 3600)
        gevent.sleep(0)
        return place

    return take


def alive(place: ConnectionSlot) -> bool:
    gevent.sleep(0)
    gevent.sleep(0)
    return not place.greenlet.dead


@pytest.mark.parametrize(
    ("flood", "operator"),
    [("uid 65534", "uid 0"), ("192.0.2.7", "198.51.100.2"), ("192.0.2.7", "uid 0"), ("192.0.2.7", "192.0.2.8")],
)
def test_a_source_that_comes_all_the_time_crowds_out_itself(take: Take, flood: str, operator: str) -> None:
    before = take(operator)
    for _ in range(20):
        take(flood)
    after = take(operator)
    for _ in range(100):
        newest = take(flood)
    assert alive(before) and alive(after) and alive(newest)


def test_the_addresses_of_one_network_count_as_one_where_another_network_needs_room(take: Take) -> None:
    operator = take("198.51.100.2")
    for number in range(200):
        take(f"192.0.2.{number}")
    assert alive(operator)


def test_the_oldest_of_a_source_goes_but_one_that_has_spoken_after_the_silent(take: Take) -> None:
    places = [take("192.0.2.7") for _ in range(8)]
    places[0].active = True
    take("192.0.2.7")
    assert [alive(place) for place in places] == [True, False, *[True] * 6]
    for _ in range(6):
        take("192.0.2.7")
    assert alive(places[0])


def test_a_place_that_is_kept_is_never_taken_and_without_another_there_is_none(
    crowd: ConnectionSlots, take: Take
) -> None:
    kept = [take("192.0.2.7") for _ in range(7)]
    for place in kept:
        place.protected = True
    strangers = [take(f"uid {number}") for number in range(50)]
    assert all(map(alive, kept)) and [alive(stranger) for stranger in strangers].count(True) == 1
    strangers[-1].protected = True
    assert crowd.take("198.51.100.2") is None
    crowd.give_back(kept[0])
    assert crowd.take("198.51.100.2") is not None


def test_where_every_stranger_has_a_network_of_its_own_a_source_that_had_logged_in_stays(
    crowd: ConnectionSlots, take: Take
) -> None:
    earlier = take("198.51.100.2")
    earlier.protected = True
    crowd.give_back(earlier)
    again = take("198.51.100.2")
    for number in range(200):
        take(f"10.1.{number}.1")
    assert alive(again)


def test_a_place_that_was_given_back_is_free_and_may_be_given_back_again(crowd: ConnectionSlots, take: Take) -> None:
    places = [take("uid 0") for _ in range(8)]
    for _ in range(2):
        crowd.give_back(places[3])
    assert len(crowd) == 7
    take("uid 1")
    assert len(crowd) == 8 and alive(places[0])
