"""The clock that stands still while the process does, and what hangs on it.

`stand_still` is a pause: nothing of this process runs, not even the peers, which are in it as well. What they send
before it waits in the sockets.
"""

from __future__ import annotations

import time

import gevent
import gevent.socket
import pytest

from l2tpns.runtime.awake_clock import DEFAULT_TIMING, AwakeClock, PauseTiming

LATE, DRAIN = DEFAULT_TIMING.late, DEFAULT_TIMING.drain


class World:
    """Clocks in the hands of a test."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = 0.0
        self.clock = AwakeClock(lambda: self.now, lambda: self.now + self.slept)

    def go(self, seconds: float) -> float:
        """Time passes while the process is awake; returns what pauses were noticed."""
        noticed = 0.0
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            noticed += self.clock.beat()
        return noticed


@pytest.fixture
def world() -> World:
    world = World()
    world.clock.beat()
    return world


def test_without_pauses_it_is_the_monotonic_clock(world: World) -> None:
    assert world.go(100) == 0
    assert world.clock.now() == world.now
    assert world.clock.paused_since(1000.0) == 0 and world.clock.pauses == 0
    assert world.clock.real(5.0) == 5.0


def test_it_counts_nothing_until_the_first_beat() -> None:
    world = World()
    world.now += 50
    assert world.clock.now() == world.now and world.clock.beat() == 0


def test_a_pause_and_the_time_to_read_the_sockets_after_it_do_not_pass(world: World) -> None:
    world.go(5)
    before = world.now
    world.now += 40
    # Whoever looks first sees it, before the next beat.
    assert world.clock.now() == pytest.approx(before)
    assert world.clock.beat() == pytest.approx(40)
    world.go(DRAIN)
    assert world.clock.now() == pytest.approx(before)
    world.go(7)
    assert world.clock.now() == pytest.approx(before + 7)
    assert world.clock.pauses == 1 and world.clock.resumed == pytest.approx(before + 40 + DRAIN)


def test_times_before_during_and_after_a_pause_are_told_apart(world: World) -> None:
    world.now += 40
    world.clock.beat()
    world.go(10)
    assert [round(world.clock.at(stamp)) for stamp in (990, 1000, 1020, 1042, 1045)] == [990, 1000, 1000, 1000, 1003]
    assert [round(world.clock.paused_since(stamp)) for stamp in (990, 1000, 1020, 1042, 1045)] == [42, 42, 22, 0, 0]


def test_a_busy_moment_is_no_pause(world: World) -> None:
    world.now += LATE
    assert world.clock.beat() == 0 and world.clock.now() == world.now


def test_a_loop_that_is_late_all_the_time_does_not_stop_the_clock(world: World) -> None:
    world.go(1)
    begun = world.clock.now()
    for _ in range(100):
        world.now += 2 * LATE
        world.clock.beat()
    assert world.clock.now() > begun + 50 * LATE


def test_many_pauses_are_all_counted_and_time_never_runs_backwards(world: World) -> None:
    begun, last = world.now, world.clock.now()
    for _ in range(100):
        world.now += 30
        assert world.clock.beat() == pytest.approx(30)
        for _ in range(15):
            world.go(1)
            assert world.clock.now() >= last
            last = world.clock.now()
    assert world.clock.now() - begun == pytest.approx(100 * (15 - DRAIN))
    assert world.clock.paused_since(world.now) == 0


def test_a_machine_that_slept_has_had_a_pause_though_the_monotonic_clock_did_not_see_it(world: World) -> None:
    world.go(1)
    world.slept = 3600.0
    assert world.go(0.1) == pytest.approx(3600)
    assert world.clock.pauses == 1
    before = world.clock.now()
    world.go(DRAIN + 1)
    assert world.clock.now() == pytest.approx(before + 1)


def test_sleeping_takes_the_rest_of_a_pause_into_account(world: World) -> None:
    world.now += 40
    world.clock.beat()
    assert world.clock.real(0.5) == pytest.approx(DRAIN + 0.5)
    assert world.clock.real(0.0) == world.clock.real(-1.0) == 0.0
    world.go(DRAIN)
    assert world.clock.real(0.5) == pytest.approx(0.5)


# Waiting


@pytest.fixture
def beaten() -> AwakeClock:
    """A clock of this process, for which a third of a second is a pause."""
    clock = AwakeClock(timing=PauseTiming(late=0.3, drain=0.3))
    clock.beat()
    return clock


def stand_still(clock: AwakeClock, seconds: float) -> None:
    clock.beat()
    time.sleep(seconds)


def test_a_timeout_does_not_come_because_of_a_pause(beaten: AwakeClock) -> None:
    left, right = gevent.socket.socketpair()
    with beaten.timeout(0.2):
        right.send(b"answer")
        stand_still(beaten, 1.0)
        gevent.sleep(0)  # the timer is due by now
        assert left.recv(10) == b"answer"
    with pytest.raises(gevent.Timeout), beaten.timeout(0.1):
        left.recv(10)
    left.close()
    right.close()


def test_a_sleep_lasts_beyond_a_pause(beaten: AwakeClock) -> None:
    sleeper = gevent.spawn(beaten.sleep, 0.4)
    gevent.sleep(0)
    stand_still(beaten, 1.0)
    gevent.sleep(0.01)
    assert not sleeper.ready()
    beaten.beat()
    sleeper.join()
    assert beaten.pauses >= 1


def test_greenlets_are_waited_for_beyond_a_pause_and_not_for_ever(beaten: AwakeClock) -> None:
    def pause_and_answer() -> None:
        stand_still(beaten, 1.0)
        gevent.sleep(0.05)

    paused, endless = gevent.spawn(pause_and_answer), gevent.spawn(gevent.sleep, 1000)
    beaten.join([paused], 0.5)
    assert paused.ready()
    beaten.join([endless], 0.1)
    assert not endless.ready()
    endless.kill()
