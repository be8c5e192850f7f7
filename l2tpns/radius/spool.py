"""The accounting spool: a record is on disk from the moment it exists until a server has acknowledged it.

A directory of segments, each a file to which lines are only appended:

    checksum ["r", number, kind, session, time, delivered, usage, since boot, boot]     a record
    checksum ["d", number]                                            it was delivered, but is still needed
    checksum ["x", number]                                            it is no longer needed

All lines, read in order, give the records that are left; a torn last line, which a crash leaves, is ignored. Segments
are removed from the oldest end only, so the line that ends a record is never removed before the record itself. Live
records of the oldest segment are copied to the newest when the spool has grown to twice what is live.

A line is written when it is made (so kill -9 loses nothing) and fsynced by a thread (so power failure loses no record
that was sent, and no greenlet waits for the disk), together with what is written within BATCH_SECONDS. When the disk is
full, lines are written into a reserve that was allocated before. Lines for which the reserve is too small stay in
memory until the disk has room again. Knows nothing of RADIUS.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import orjson
from gevent.event import Event

from l2tpns.errors import refused
from l2tpns.runtime import files, json_text
from l2tpns.runtime.clock import Moment
from l2tpns.runtime.durable import close_quietly, fsync_all, make_line, read_line, write_all
from l2tpns.runtime.log import Logger
from l2tpns.runtime.private_directory import claim_directory
from l2tpns.runtime.record_limits import WHEN
from l2tpns.runtime.supervisor import Part, Supervisor

SEGMENT_OCTETS = 1 << 20
SUFFIX = ".records"
SEGMENT = r"[0-9]{1,18}" + re.escape(SUFFIX)
MAX_NUMBER = 1 << 53  # of a record
RESERVE = "reserve"  # a file of zeros, which become lines when the disk is full
RESERVE_OCTETS = 256 << 10  # some 300 Stops, or 10,000 notes of delivery
BATCH_SECONDS = 0.02  # each fsync costs as much as a tenth of a login, however many lines it makes safe
RETRY_DELAY = 1.0  # seconds between two attempts to write lines that the disk refused


@dataclass(slots=True, eq=False)
class Segment:
    """One file of lines."""

    number: int
    path: Path
    size: int = 0
    live: dict[int, Entry] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Entry:
    """One record that is still needed."""

    number: int
    kind: str
    session: str
    time: Moment  # of the event
    body: bytes  # JSON
    segment: Segment
    size: int
    delivered: bool = False
    synced: bool = False  # safe on disk: it may be sent
    tried: bool = False  # by this process
    passed_over: int = 0  # tries after which a server answered other records and not this one
    unsure: int = 0  # tries after which no server has answered any request yet
    answers: int = 0  # that servers had given when these tries ended


@dataclass(slots=True)
class SpoolStats:
    written: int = 0
    unreadable: int = 0  # lines that were torn or damaged
    write_errors: int = 0
    copied: int = 0


class Spool:
    """The records that are still needed. `synced` is called with those that are safe on disk and may be sent."""

    def __init__(
        self,
        directory: str | Path,
        log: Logger,
        synced: Callable[[list[Entry]], None],
        *,
        segment_octets: int = SEGMENT_OCTETS,
        reserve_octets: int = RESERVE_OCTETS,
        retry_delay: float = RETRY_DELAY,
        supervisor: Supervisor | None = None,
    ) -> None:
        self._supervisor = supervisor or Supervisor(log)
        self._directory = Path(directory)
        self._log = log
        self._synced = synced
        self._segment_octets = segment_octets
        self._reserve_octets = reserve_octets
        self._retry_delay = retry_delay
        self._segments: list[Segment] = []
        self._highest = 0  # number of a segment
        self._lock = -1
        self._descriptor = -1
        self._rolled: list[int] = []  # descriptors of full segments, to be fsynced once more and closed
        self._number = 0
        self._unsynced: list[Entry] = []
        self._dirty = Event()
        self._broken = False  # the last write failed
        self._unwritten: dict[int, Entry] = {}  # live records that the disk refused
        self._owed: dict[int, bytes] = {}  # by record: a line of kind d or x that it refused
        self._reserved = False  # the file RESERVE exists
        self._sync_error = ""  # of the last fsync
        self._room: int | None = None  # octets left in the reserve, while lines go there
        self._unnamed = True  # the directory is not fsynced since a segment was made
        self._copying = False  # copies of the oldest segment's records are not on disk yet: it must stay
        self._closing = False
        self._part: Part | None = None
        self.continued = False  # an earlier process has written to it
        self.live_octets = 0
        self.stats = SpoolStats()

    @property
    def octets(self) -> int:
        """Return the size of all segments on disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def segments(self) -> int:
        return len(self._segments)

    def holds(self, entry: Entry) -> bool:
        """Return whether the record is on disk, not in memory only."""
        return entry.number not in self._unwritten

    @property
    def behind(self) -> bool:
        """Return whether a line is in memory only, because the disk refused it."""
        return bool(self._unwritten or self._owed)

    # --- opening

    def open(self) -> list[Entry]:
        """Return the records that an earlier process left, in order.

        Raises ConfigError if the directory cannot be used.
        """
        self._lock = claim_directory(self._directory, "spool_dir")
        entries: dict[int, Entry] = {}
        found = [path for path in self._directory.glob(f"*{SUFFIX}") if re.fullmatch(SEGMENT, path.name)]
        for path in sorted(found, key=_number):
            self._read(path, entries)
        self.continued = bool(found) and not self.stats.unreadable
        self._number = max(entries, default=0)
        self._start_segment()
        self._reserved = self._make_reserve()
        self._trim()
        self._part = self._supervisor.spawn("accounting spool", self._run)
        return sorted(entries.values(), key=lambda entry: entry.number)

    def _read(self, path: Path, entries: dict[int, Entry]) -> None:
        segment = Segment(_number(path), path)
        self._highest = segment.number
        try:
            octets = files.read_file(path)
        except files.Unfit as error:
            self.stats.unreadable += 1
            self._log.error("spool_refused", path=str(path), why=error.strerror)
            return
        except OSError as error:  # its records are needed: the disk may work at the next start
            raise refused(error.errno, f"spool_dir: {path}: {error.strerror}") from error
        self._segments.append(segment)
        for line in octets.rstrip(b"\0").splitlines(keepends=True):  # the rest of a reserve is zeros
            segment.size += len(line)
            self._replay(segment, line, entries)

    def _replay(self, segment: Segment, line: bytes, entries: dict[int, Entry]) -> None:
        fields = read_line(line)
        if fields is None:
            if line != b"\n":  # it ends a line that a full disk has torn
                self.stats.unreadable += 1
                self._log.warning("spool_line_unreadable", path=str(segment.path), octets=len(line))
            return
        try:
            self._apply(segment, fields, len(line), entries)
        except (ValueError, TypeError, IndexError) as error:
            self.stats.unreadable += 1
            self._log.error("spool_record_refused", path=str(segment.path), why=f"{str(fields)[:80]}: {error}")

    def _apply(self, segment: Segment, fields: list[Any], size: int, entries: dict[int, Entry]) -> None:
        """Apply one line, whatever it holds. Raises ValueError, TypeError or IndexError if it makes no sense."""
        kind, number = fields[:2]
        if type(number) is not int or not 0 < number < MAX_NUMBER:
            raise ValueError("its number is out of range")
        old = entries.get(number)
        if kind == "r":
            entry = _entry(fields, segment, size)
            if old is not None:
                self._forget(old)
            entries[number] = segment.live[number] = entry
            self.live_octets += entry.size
        elif old is not None and kind == "d":
            old.delivered = True
        elif old is not None and kind == "x":
            self._forget(old)
            del entries[number]
        elif kind not in ("d", "x"):
            raise ValueError("a kind of line that this release does not know")

    # --- writing

    def append(self, kind: str, session: str, time: Moment, body: bytes) -> Entry:
        """Write a new record at once. `synced` is called when it is safe. Does not yield."""
        self._number += 1
        entry = Entry(self._number, kind, session, time, body, self._segments[-1], 0)
        self._write_record(entry)
        self.stats.written += 1
        self._unsynced.append(entry)
        self._dirty.set()
        return entry

    def mark_delivered(self, entry: Entry) -> None:
        """Note that a server has acknowledged the record; it stays as the last that is known of a session."""
        entry.delivered = True
        if entry.number not in self._unwritten:
            self._write_note(entry.number, make_line(["d", entry.number]))

    def release(self, entry: Entry) -> None:
        """Remove a record that is no longer needed."""
        if entry.number not in entry.segment.live:
            return
        self._forget(entry)
        if self._unwritten.pop(entry.number, None) is None:  # else it was never on disk
            self._write_note(entry.number, make_line(["x", entry.number]))
        if not self.live_octets and self._segments[-1].size > self._segment_octets // 4:
            self._start_segment()
        self._trim()

    def _write_note(self, number: int, line: bytes) -> None:
        if self._write(line):
            self._owed.pop(number, None)
        else:
            self._owed[number] = line
            self._dirty.set()

    def _write_record(self, entry: Entry) -> None:
        at, usage = entry.time, orjson.Fragment(entry.body)
        fields = [entry.number, entry.kind, entry.session, at.wall, entry.delivered, usage, at.since_boot, at.boot]
        line = make_line(["r", *fields])
        if self._write(line):
            self._unwritten.pop(entry.number, None)
        else:
            self._unwritten[entry.number] = entry
        entry.segment, entry.size = self._segments[-1], len(line)
        entry.segment.live[entry.number] = entry
        self.live_octets += entry.size

    def _write(self, line: bytes) -> bool:
        """Return False when the disk refuses the line: _catch_up writes it later, if it is still true then."""
        if self._segments[-1].size >= self._segment_octets:
            self._start_segment()
        # After a failed write the file may end within a line: begin a new one.
        octets = b"\n" + line if self._broken else line
        try:
            self._put(octets)
        except OSError as error:
            self._fail(error)
            return False
        if self._broken:
            self._broken = False
            self._log.warning("spool_writes_again", path=str(self._directory))
        self._segments[-1].size += len(octets)
        return True

    def _put(self, octets: bytes) -> None:
        try:
            if self._room is None:
                write_all(self._descriptor, octets)
                return
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._enter_reserve(error):
                raise
        if self._room is None or len(octets) > self._room:
            raise OSError(errno.ENOSPC, "the disk is full, and the reserve is used up")
        write_all(self._descriptor, octets)
        self._room -= len(octets)

    def _fail(self, error: OSError) -> None:
        self.stats.write_errors += 1
        if not self._broken:
            # The record stays in memory and is sent nevertheless.
            self._log.error("spool_write_failed", path=str(self._directory), why=error.strerror)
        self._broken = True

    def _catch_up(self) -> None:
        """Write the lines that the disk refused, as far as they are still true."""
        for entry in list(self._unwritten.values()):
            self._forget(entry)
            self._write_record(entry)
            if entry.number in self._unwritten:
                return
        for number, line in list(self._owed.items()):
            if not self._write(line):
                return
            del self._owed[number]

    # --- the reserve: room that is allocated before the disk is full

    def _make_reserve(self) -> bool:
        """Return whether the reserve could be made. A Stop that is not on disk is lost, or sent twice, by kill -9."""
        path = self._directory / RESERVE
        if not files.remove(path):
            return False
        try:
            descriptor = files.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                os.posix_fallocate(descriptor, 0, self._reserve_octets)
            finally:
                os.close(descriptor)
        except OSError:
            files.remove(path)
            return False
        return True

    def _enter_reserve(self, error: OSError) -> bool:
        """Make the reserve the segment that is written, in place, which needs no room. Return False if it cannot be."""
        if not self._reserved:
            return False
        segment = self._next_segment()
        try:
            os.rename(self._directory / RESERVE, segment.path)
            descriptor = files.open_file(segment.path, os.O_WRONLY)
        except OSError:
            self._reserved = False
            return False
        self._log.error(
            "spool_reserve_used", path=str(self._directory), octets=self._reserve_octets, why=error.strerror
        )
        self._reserved = False
        self._room = self._reserve_octets
        self._write_to(segment, descriptor)
        return True

    def _leave_reserve(self) -> None:
        """Start a normal segment if the disk has room again, which a new reserve proves."""
        self._reserved = self._reserved or self._make_reserve()
        if self._room is None or not self._reserved:
            return
        before = self._descriptor
        self._start_segment()
        if self._descriptor != before:
            self._log.warning("spool_reserve_filled", path=str(self._directory))

    def _start_segment(self) -> None:
        if self._room is not None and not self._reserved:
            return  # a new file would have no room
        segment = self._next_segment()
        try:
            descriptor = files.open_file(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        except OSError as error:
            if not self._segments or self._descriptor < 0:
                raise refused(error.errno, f"spool_dir {self._directory}: {error.strerror}") from error
            self._log.error("spool_write_failed", path=str(segment.path), why=error.strerror)
            return  # the old segment goes on growing
        self._room = None
        self._write_to(segment, descriptor)

    def _next_segment(self) -> Segment:
        number = self._highest + 1
        return Segment(number, self._directory / f"{number:010d}{SUFFIX}")

    def _write_to(self, segment: Segment, descriptor: int) -> None:
        """Write to this segment from now on."""
        if self._descriptor >= 0:
            self._rolled.append(self._descriptor)
        self._descriptor, self._highest, self._unnamed = descriptor, segment.number, True
        self._segments.append(segment)

    # --- forgetting

    def _forget(self, entry: Entry) -> None:
        if entry.segment.live.pop(entry.number, None) is not None:
            self.live_octets -= entry.size

    def _trim(self) -> None:
        """Remove segments from the oldest end, as long as nothing in them is needed."""
        while len(self._segments) > 1 and not self._segments[0].live and not self._copying:
            if not files.remove(self._segments[0].path):
                return  # the disk has become read-only: the next process finds that nothing in it is needed
            self._segments.pop(0)

    def _copy_forward(self) -> None:
        """Free the oldest segment by writing its live records again, at the end."""
        oldest = self._segments[0]
        for entry in list(oldest.live.values()):
            self._forget(entry)
            self._write_record(entry)
            self.stats.copied += 1

    def _overgrown(self) -> bool:
        return len(self._segments) > 2 and self.octets > 2 * self.live_octets + 2 * self._segment_octets

    # --- the disk

    def _run(self) -> None:
        while not self._closing:
            self._dirty.wait(self._retry_delay if self.behind or self._room is not None else None)
            if not self._closing:
                gevent.sleep(BATCH_SECONDS)
            self._sync()

    def _sync(self) -> None:
        """Make what is written safe. Yields."""
        self._dirty.clear()
        batch, self._unsynced = self._unsynced, []
        self._leave_reserve()
        self._catch_up()
        overgrown = self._overgrown() and not self._broken and self._room is None
        try:
            if overgrown:
                self._copying = True
                self._copy_forward()
            self._fsync(overgrown)
            for entry in batch:
                entry.synced = True
            if batch:
                self._synced(batch)
        except BaseException:  # another run of this loop handles them
            self._unsynced = batch + self._unsynced
            self._dirty.set()
            raise
        finally:
            self._copying = False

    def _fsync(self, overgrown: bool) -> None:
        rolled, self._rolled = self._rolled, []
        unnamed, self._unnamed = self._unnamed, False
        directory = self._directory if unnamed else None
        error = gevent.get_hub().threadpool.apply(fsync_all, ([*rolled, self._descriptor], directory))
        for descriptor in rolled:
            close_quietly(descriptor)
        self._copying = False
        if error:
            self._unnamed |= unnamed
            self.stats.write_errors += 1
            if error != self._sync_error:  # else it is logged already: this is tried each second
                self._log.error("spool_sync_failed", path=str(self._directory), why=error)
        elif overgrown and not self._broken:
            self._trim()
        self._sync_error = error

    def close(self) -> None:
        """Make everything safe. A spool without a live record leaves no segment behind. Yields."""
        if self._part is None:
            return
        self._closing = True
        self._dirty.set()
        self._part.finish()
        self._part = None
        close_quietly(self._descriptor)
        self._descriptor = -1
        if not self.live_octets:
            for segment in self._segments:
                files.remove(segment.path)
        files.remove(self._directory / RESERVE)
        self._segments.clear()
        close_quietly(self._lock)
        self._lock = -1


def _number(path: Path) -> int:
    return int(path.name.removesuffix(SUFFIX))


def _entry(fields: list[Any], segment: Segment, size: int) -> Entry:
    """Return the record that a line describes. Raises ValueError or TypeError if it cannot be one."""
    _, number, kind, session, wall, delivered, usage, *clock = fields
    since_boot, boot = clock[:2] if len(clock) > 1 else (0.0, "")
    if not (isinstance(kind, str) and isinstance(session, str) and isinstance(boot, str)):
        raise ValueError("its names are not text")
    if not isinstance(delivered, bool):
        raise ValueError("its delivered flag is not a boolean")
    if not (WHEN(wall) and WHEN(since_boot)) or len(session) > 253:
        raise ValueError("its time or its name is out of range")
    moment = Moment(float(wall), float(since_boot), boot)
    return Entry(number, kind, session, moment, json_text.dump(usage), segment, size, delivered, True)
