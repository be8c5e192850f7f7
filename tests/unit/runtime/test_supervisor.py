"""Loops that end by themselves: they are begun again, told of, and given up only where that is wanted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent.event import Event

from l2tpns.runtime.exceptions import contain_strays
from l2tpns.runtime.supervisor import MAX_FAILURES, Part, RestartTiming, Supervisor
from tests.lab.inprocess import until
from tests.lab.memory_log import MemoryLog


class Own(BaseException):
    """What a plugin may define."""

    def __str__(self) -> str:
        raise KeyboardInterrupt  # not even its words harm anybody


ENDINGS: list[BaseException | None] = [
    None,  # it returns
    ValueError("oh dear"),
    gevent.GreenletExit(),
    KeyboardInterrupt(),
    SystemExit(3),
    GeneratorExit(),
    gevent.Timeout(1),
    Own(),
]


class Loop:
    """One that ends when told, and counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.ending: BaseException | None = None
        self.go = Event()

    def run(self) -> None:
        self.begun += 1
        self.go.wait()
        self.go.clear()
        if self.ending is not None:
            raise self.ending


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def parts(log: MemoryLog) -> Iterator[Supervisor]:
    found = Supervisor(log.get())
    yield found
    for part in list(found.parts):
        part.stop()


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: type(ending).__name__)
def test_a_loop_is_begun_again_however_it_ends(parts: Supervisor, log: MemoryLog, ending: BaseException | None) -> None:
    loop = Loop()
    loop.ending = ending
    parts.spawn("loop", loop.run)
    until(lambda: loop.begun == 1)
    loop.go.set()
    until(lambda: loop.begun == 2)
    (line,) = log.records("part_failed")
    assert (line["part"], line["failures"], line["again_in"]) == ("loop", 1, 0.0)
    assert line["why"].startswith("it has returned" if ending is None else type(ending).__name__)
    assert ("traceback" in line) == (ending is not None)
    assert parts.up() == {"loop": True} and [part.name for part in parts.unwell()] == ["loop"]


def test_one_that_is_killed_by_a_stranger_is_begun_again(parts: Supervisor) -> None:
    loop = Loop()
    part = parts.spawn("loop", loop.run)
    until(lambda: loop.begun == 1)
    assert part._greenlet is not None
    part._greenlet.kill()
    until(lambda: loop.begun == 2)


def test_one_that_is_stopped_stays_so(parts: Supervisor, log: MemoryLog) -> None:
    loop = Loop()
    part = parts.spawn("loop", loop.run)
    until(lambda: loop.begun == 1)
    part.stop()
    gevent.sleep(0)
    assert (loop.begun, part.running, parts.up(), log.records("part_failed")) == (1, False, {}, [])


def test_one_is_stopped_before_its_first_turn_and_while_it_waits_for_another(parts: Supervisor) -> None:
    loop = Loop()
    parts.spawn("loop", loop.run).stop()
    assert loop.begun == 0
    failing = parts.spawn("failing", int, "x")
    until(lambda: failing.failures > 1 and not failing.running)
    failures = failing.failures
    failing.stop()
    assert (failing.failures, parts.up()) == (failures, {})


def test_one_that_is_told_to_end_has_its_time_to_do_so(parts: Supervisor, log: MemoryLog) -> None:
    loop = Loop()
    part = parts.spawn("loop", loop.run)
    until(lambda: loop.begun == 1)
    loop.go.set()
    part.finish()
    assert (loop.begun, parts.up(), log.records("part_failed")) == (1, {}, [])


def test_the_pauses_grow_and_only_an_essential_one_is_given_up(parts: Supervisor, log: MemoryLog) -> None:
    parts.timing = RestartTiming(first_delay=0.001, max_delay=0.004)
    given_up: list[Part] = []
    parts.on_lost = given_up.append
    parts.spawn("other", int, "x")
    essential = parts.spawn("essential", int, "y", essential=True)
    until(lambda: all(part.failures > MAX_FAILURES + 1 for part in parts.parts))
    assert given_up == [essential]  # once, and it is tried on: leaving may take a while
    assert [line["part"] for line in log.records("part_given_up")] == ["essential"]
    pauses = [line["again_in"] for line in log.records("part_failed") if line["part"] == "other"]
    assert pauses[:6] == [0.0, 0.001, 0.002, 0.004, 0.004, 0.004]


def test_one_that_works_for_a_while_is_well_again(parts: Supervisor) -> None:
    loop = Loop()
    part = parts.spawn("loop", loop.run)
    until(lambda: loop.begun == 1)
    loop.go.set()
    until(lambda: loop.begun == 2)
    assert list(parts.unwell()) == [part]
    parts.timing = RestartTiming(settled=0.0)
    assert list(parts.unwell()) == []
    loop.go.set()
    until(lambda: loop.begun == 3)
    assert part.failures == 1  # it counts anew


def test_parts_of_one_name_are_up_only_together(parts: Supervisor) -> None:
    loop = Loop()
    parts.spawn("reader", loop.run)
    failing = parts.spawn("reader", int, "x")
    until(lambda: failing.failures > 2 and not failing.running)
    assert (parts.up(), parts.down()) == ({"reader": False}, ["reader"])
    assert [part.failures > 2 for part in parts.unwell()] == [True]


@pytest.fixture
def strays(log: MemoryLog) -> Iterator[MemoryLog]:
    hub = gevent.get_hub()
    contain_strays(hub, log.get())
    yield log
    del hub.handle_error


def raising(error: BaseException) -> Callable[[], None]:
    def bad() -> None:
        raise error

    return bad


def test_what_a_thread_raises_is_told_where_its_result_is_waited_for_and_nowhere_else(
    strays: MemoryLog, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="read-only"):
        gevent.get_hub().threadpool.apply(raising(OSError("read-only")))
    assert strays.records() == [] and capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [*ENDINGS[1:2], *ENDINGS[3:]], ids=lambda error: type(error).__name__)
def test_what_a_greenlet_of_nobodys_raises_is_in_the_log_and_ends_nothing_else(
    strays: MemoryLog, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    gevent.spawn(raising(error)).join()
    gevent.get_hub().loop.run_callback(raising(error))
    until(lambda: len(strays.records("greenlet_failed")) == 2)
    assert all(line["why"].startswith(type(error).__name__) for line in strays.records("greenlet_failed"))
    assert all("raising" in line["traceback"] or "bad" in line["traceback"] for line in strays.records())
    assert capsys.readouterr().err == "" and sys.exc_info() == (None, None, None)
