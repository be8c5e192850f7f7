"""The accounting spool on its own: torn lines, segments, copying forward, full disks."""

from __future__ import annotations

import errno
import os

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.errors import ConfigError
from l2tpns.radius import spool as spool_module
from l2tpns.radius.spool import Spool, make_line, read_line
from l2tpns.runtime.clock import Moment
from tests.lab.inprocess import until
from tests.lab.memory_log import MemoryLog


@pytest.fixture
def opened(tmp_path):
    spools = []

    def build(segment_octets=1 << 20, synced=lambda entries: None, log=None, **changes):
        log = (log or MemoryLog()).get()
        spool = Spool(tmp_path / "spool", log, synced, segment_octets=segment_octets, **changes)
        spools.append(spool)
        return spool, spool.open()

    yield build
    for spool in spools:
        spool.close()


def files(tmp_path):
    return sorted((tmp_path / "spool").glob("*.records"))


def facts(entries):
    return [(entry.number, entry.kind, entry.session, entry.delivered) for entry in entries]


def test_records_come_back_in_order_with_what_became_of_them(opened):
    spool, left = opened()
    assert left == []
    first, second, third = (spool.append("start", name, Moment(1.5), b'{"user":"x"}') for name in ("a", "b", "c"))
    spool.mark_delivered(second)
    spool.release(first)
    spool.close()
    _, left = opened()
    assert facts(left) == [(2, "start", "b", True), (3, "start", "c", False)]
    assert left[0].time == Moment(1.5) and left[0].body == b'{"user":"x"}'
    assert third.number == 3


def test_a_record_may_be_sent_only_when_it_is_on_disk(opened):
    told = []
    spool, _ = opened(synced=told.extend)
    entry = spool.append("start", "a", Moment(1.0), b"{}")
    assert told == [] and not entry.synced
    until(lambda: told)
    assert told == [entry] and entry.synced


def test_a_torn_last_line_costs_only_itself(opened, tmp_path):
    spool, _ = opened()
    for name in "abc":
        spool.append("start", name, Moment(1.0), b"{}")
    spool.close()
    last = files(tmp_path)[-1]
    whole = last.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(1, len(lines[-1]) + 1):
        last.write_bytes(whole[:-cut])
        spool, left = opened()
        assert [entry.session for entry in left] == ["a", "b"]
        spool.close()
        for path in files(tmp_path)[1:]:
            path.unlink()


@given(st.binary(max_size=80))
def test_any_octets_are_a_line_or_nothing(octets):
    assert read_line(octets) is None or make_line(read_line(octets)) == octets


def test_a_damaged_line_costs_only_itself(opened, tmp_path):
    spool, _ = opened()
    for name in "abc":
        spool.append("start", name, Moment(1.0), b"{}")
    spool.close()
    path = files(tmp_path)[-1]
    octets = bytearray(path.read_bytes())
    octets[octets.index(b'"b"') + 1] ^= 1
    path.write_bytes(octets)
    log = MemoryLog()
    _, left = opened(log=log)
    assert [entry.session for entry in left] == ["a", "c"]
    assert len(log.records("spool_line_unreadable")) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 1},
        7,
        [],
        ["r"],
        ["d"],
        ["x", "1"],
        ["r", "1", "start", "s", 1.0, False, None],
        ["r", 9, "start", "s", 1.0, False],
        ["r", 9, "start", 5, 1.0, False, None],
        ["r", 9, None, "s", 1.0, False, None],
        ["r", 9, "start", "s", "now", False, None],
        ["of a later release", 1, 2, 3],
    ],
)
def test_a_line_that_makes_no_sense_costs_only_itself(opened, tmp_path, fields):
    spool, _ = opened()
    spool.append("start", "a", Moment(1.0), b"{}")
    spool.close()
    (tmp_path / "spool" / "notes.records").write_text("not ours")
    with files(tmp_path)[0].open("ab") as file:
        file.write(make_line(fields))
    log = MemoryLog()
    _, left = opened(log=log)
    assert [entry.session for entry in left] == ["a"]
    assert len(log.records("spool_record_refused") + log.records("spool_line_unreadable")) == 1


def test_segments_go_when_nothing_in_them_is_needed(opened, tmp_path):
    spool, _ = opened(segment_octets=500)
    entries = [spool.append("start", f"s{number}", Moment(1.0), b"{}") for number in range(100)]
    assert len(files(tmp_path)) > 5
    for entry in entries:
        spool.release(entry)
    assert len(files(tmp_path)) == 1 and spool.live_octets == 0
    spool.close()
    assert files(tmp_path) == []


def test_one_long_session_does_not_keep_the_whole_past(opened, tmp_path):
    spool, _ = opened(segment_octets=2000)
    spool.mark_delivered(spool.append("start", "long", Moment(1.0), b'{"user":"x"}'))
    for number in range(1000):
        spool.release(spool.append("start", f"s{number}", Moment(1.0), b"{}"))
        if number % 20 == 0:
            gevent.sleep(0.005)
    gevent.sleep(0.1)
    spool.append("start", "end", Moment(1.0), b"{}")
    until(lambda: spool.octets < 12_000)
    assert spool.stats.copied
    spool.close()
    _, left = opened()
    assert [(entry.session, entry.delivered) for entry in left] == [("long", True), ("end", False)]


def test_what_was_released_stays_released_whatever_segments_went(opened):
    spool, _ = opened(segment_octets=300)
    alive = {}
    for number in range(300):
        entry = spool.append("start", f"s{number}", Moment(1.0), b"{}")
        alive[entry.number] = entry
        if number % 3:
            spool.release(alive.pop(min(alive)))
        if number % 50 == 0:
            gevent.sleep(0.02)
    expected = sorted(alive)
    spool.close()
    _, left = opened()
    assert [entry.number for entry in left] == expected


def test_a_directory_that_others_may_write_is_refused(tmp_path, opened):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o777)
    with pytest.raises(ConfigError, match="no other user can write"):
        opened()


def test_a_directory_that_cannot_be_made_is_an_error_of_configuration(tmp_path, opened):
    (tmp_path / "spool").write_text("a file")
    with pytest.raises(ConfigError, match="spool_dir"):
        opened()


def test_only_we_may_read_it(tmp_path, opened):
    opened()
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert files(tmp_path)[0].stat().st_mode & 0o777 == 0o600


def test_a_disk_that_refuses_is_told_and_records_go_on_in_memory(opened, monkeypatch):
    log = MemoryLog()
    told = []
    spool, _ = opened(log=log, synced=told.extend)
    write = os.write

    def full(descriptor, octets):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    entry = spool.append("start", "a", Moment(1.0), b"{}")
    monkeypatch.setattr(os, "write", write)
    spool.append("start", "b", Moment(1.0), b"{}")
    until(lambda: entry in told)
    assert spool.stats.write_errors == 1
    until(lambda: log.records("spool_writes_again"))
    assert log.records("spool_write_failed") and log.records("spool_writes_again")
    spool.close()
    _, left = opened()
    assert [item.session for item in left] == ["a", "b"]  # what the disk did not take it was given again


class Disk:
    """Takes what has its room already, as a full one does."""

    def __init__(self, monkeypatch):
        self.full = self.failed = False
        self._write, self._allocate = spool_module.write_all, os.posix_fallocate
        monkeypatch.setattr(spool_module, "write_all", self.write_all)
        monkeypatch.setattr(os, "posix_fallocate", self.allocate)

    def write_all(self, descriptor, octets):
        end = os.lseek(descriptor, 0, os.SEEK_CUR) + len(octets)
        if self.failed or (self.full and end > os.fstat(descriptor).st_size):
            raise OSError(errno.EIO if self.failed else errno.ENOSPC, "No space left on device")
        self._write(descriptor, octets)

    def allocate(self, *arguments):
        if self.full or self.failed:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._allocate(*arguments)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def die(spool):
    """kill -9: the greenlet writes nothing more, and the lock is free."""
    spool._part.stop()
    os.close(spool._lock)
    spool._part = None


def test_a_full_disk_still_takes_what_becomes_of_records(opened, disk, tmp_path):
    log = MemoryLog()
    spool, _ = opened(log=log)
    ended, kept, told = (spool.append("start", name, Moment(1.0), b"{}") for name in "abc")
    disk.full = True
    stop = spool.append("stop", "a", Moment(2.0), b"{}")
    spool.release(ended)
    spool.mark_delivered(kept)
    spool.append("stop", "c", Moment(2.0), b"{}")
    spool.release(told)
    assert spool.holds(stop) and log.records("spool_reserve_used")
    die(spool)
    disk.full = False
    log = MemoryLog()
    _, left = opened(log=log)
    assert sorted(facts(left)) == [(2, "start", "b", True), (4, "stop", "a", False), (5, "stop", "c", False)]
    assert not log.records("spool_line_unreadable")


def test_when_there_is_room_again_there_is_a_reserve_again(opened, disk, tmp_path):
    log = MemoryLog()
    spool, _ = opened(log=log)
    for _ in range(3):
        disk.full = True
        spool.append("start", "a", Moment(1.0), b"{}")
        assert not (tmp_path / "spool" / "reserve").exists()
        disk.full = False
        spool.append("start", "b", Moment(1.0), b"{}")
        until(lambda: (tmp_path / "spool" / "reserve").exists() and spool._room is None)
    assert len(log.records("spool_reserve_used")) == len(log.records("spool_reserve_filled")) == 3
    spool.close()
    _, left = opened()
    assert [entry.session for entry in left] == ["a", "b"] * 3


def test_what_not_even_the_reserve_takes_is_written_when_there_is_room(opened, disk):
    spool, _ = opened(reserve_octets=100, retry_delay=0.01)
    entries = [spool.append("start", f"s{number}", Moment(1.0), b"{}") for number in range(5)]
    until(lambda: all(entry.synced for entry in entries))
    disk.full = True
    late = [spool.append("stop", f"s{number}", Moment(1.0), b"{}") for number in range(5)]
    spool.release(entries[0])
    spool.mark_delivered(entries[1])
    spool.release(late[2])
    assert not spool.holds(late[4])
    disk.full = False
    until(lambda: all(map(spool.holds, late)) and not spool._owed)
    die(spool)
    _, left = opened()
    assert [(e.session, e.kind) for e in left] == [
        *((f"s{number}", "start") for number in (1, 2, 3, 4)),
        *((f"s{number}", "stop") for number in (0, 1, 3, 4)),
    ]
    assert left[0].delivered


def test_a_disk_that_can_neither_write_nor_remove_ends_nothing(opened, disk, monkeypatch):
    spool, _ = opened(segment_octets=200)
    entries = [spool.append("start", f"s{number}", Moment(1.0), b"{}") for number in range(20)]
    disk.failed = True
    monkeypatch.setattr("l2tpns.runtime.files.remove", lambda path: False)
    for entry in entries:
        spool.release(entry)
    spool.append("stop", "x", Moment(1.0), b"{}")
    spool.close()


def test_what_is_no_plain_file_is_not_read_and_stays(opened, tmp_path):
    spool, _ = opened()
    spool.append("start", "a", Moment(1.0), b"{}")
    spool.close()
    os.mkfifo(tmp_path / "spool" / "0000000007.records")
    (tmp_path / "spool" / "0000000008.records").symlink_to("/etc/passwd")
    (tmp_path / "spool" / "0000000009.records").mkdir()
    (tmp_path / "spool" / "x\u00b2.records").write_bytes(b"")
    log = MemoryLog()
    spool, left = opened(log=log)
    assert [entry.session for entry in left] == ["a"]
    assert len(log.records("spool_refused")) == 3
    spool.append("start", "b", Moment(1.0), b"{}")
    assert files(tmp_path)[-2].name == "0000000010.records"
    for name in ("7", "8", "9"):
        assert os.path.lexists(tmp_path / "spool" / f"000000000{name}.records")


def test_a_disk_that_fails_for_long_is_told_once(opened, disk, monkeypatch):
    monkeypatch.setattr(spool_module, "fsync_all", lambda *_: "Input/output error")
    log = MemoryLog()
    spool, _ = opened(log=log, retry_delay=0.01)
    disk.failed = True
    spool.append("stop", "x", Moment(1.0), b"{}")
    until(lambda: spool.stats.write_errors > 10)
    assert len(log.records("spool_sync_failed")) == len(log.records("spool_write_failed")) == 1
    disk.failed = False


def test_the_directory_is_fsynced_with_the_first_lines_of_a_segment_only(opened, monkeypatch):
    synced, fsynced = [], []
    monkeypatch.setattr(spool_module, "fsync_all", lambda _, directory: fsynced.append(directory) or "")
    spool, _ = opened(segment_octets=200, synced=synced.extend)
    for number in range(1, 4):
        spool.append("start", "x" * 10, Moment(1.0), b"{}")
        until(lambda number=number: len(synced) == number)
    assert spool.segments == 1 and [directory is not None for directory in fsynced] == [True, False, False]
    while spool.segments == 1:
        spool.append("start", "x" * 100, Moment(1.0), b"{}")
    until(lambda: all(entry.synced for entry in synced) and len(synced) == spool.stats.written)
    assert [directory is not None for directory in fsynced[3:]].count(True) == 1


def test_a_directory_that_could_not_be_fsynced_is_tried_again(opened, monkeypatch):
    synced, fsynced = [], []
    monkeypatch.setattr(spool_module, "fsync_all", lambda _, directory: fsynced.append(directory) or "I/O error")
    spool, _ = opened(synced=synced.extend)
    for number in range(1, 4):
        spool.append("start", "x", Moment(1.0), b"{}")
        until(lambda number=number: len(synced) == number)
    assert len(fsynced) == 3 and None not in fsynced
