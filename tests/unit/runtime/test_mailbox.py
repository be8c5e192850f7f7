"""The mailbox of a tunnel or session: order, limit, waking up."""

from __future__ import annotations

from time import monotonic

import gevent

from l2tpns.runtime.mailbox import Mailbox
from tests.lab import PATIENCE


def test_items_come_in_the_order_of_their_posting_urgent_or_not() -> None:
    box = Mailbox(10)
    box.post(1)
    box.post_urgent(2)
    box.post(3)
    assert [box.take(), box.take(), box.take(), box.take()] == [1, 2, 3, None]


def test_a_full_mailbox_refuses_and_counts_but_takes_what_is_urgent() -> None:
    box = Mailbox(2)
    assert box.post(1) and box.post(2)
    assert not box.post(3)
    box.post_urgent(4)
    assert (len(box), box.dropped) == (3, 1)


def test_a_waiting_reader_wakes_for_an_item_long_before_its_time_is_up() -> None:
    box = Mailbox(10)
    took: list[tuple[object, float]] = []

    def read() -> None:
        began = monotonic()
        box.wait(10 * PATIENCE)
        took.append((box.take(), monotonic() - began))

    reader = gevent.spawn(read)
    gevent.sleep(0.01)
    box.post("item")
    reader.join(PATIENCE)
    assert took and took[0][0] == "item" and took[0][1] < PATIENCE


def test_a_reader_with_nothing_to_read_gets_on_when_its_time_is_up() -> None:
    box = Mailbox(10)
    began = monotonic()
    box.wait(0.02)
    assert monotonic() - began > 0.015
    assert box.take() is None


def test_waiting_with_an_item_there_does_not_block() -> None:
    box = Mailbox(10)
    box.post(1)
    box.wait(None)
    assert box.take() == 1


def test_an_item_in_the_moment_of_the_time_out_does_not_wake_a_later_wait_of_another_kind() -> None:
    box = Mailbox(10)
    slept: list[float] = []

    def read() -> None:
        box.wait(0.01)
        began = monotonic()
        gevent.sleep(0.05)
        slept.append(monotonic() - began)

    reader = gevent.spawn(read)
    gevent.sleep(0)
    # Busy until the time is over, then post: both the timer and the post are due in the same turn of the loop.
    until = monotonic() + 0.02
    while monotonic() < until:
        pass
    box.post(1)
    reader.join(PATIENCE)
    assert slept and slept[0] > 0.04
    assert box.take() == 1


def test_a_killed_reader_leaves_the_mailbox_usable() -> None:
    box = Mailbox(10)
    reader = gevent.spawn(box.wait, None)
    gevent.sleep(0)
    box.post(1)
    reader.kill()
    box.post(2)
    gevent.sleep(0.01)
    assert [box.take(), box.take()] == [1, 2]
