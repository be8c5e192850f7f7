"""The accounting spool: records on disk from the moment they exist until a server has acknowledged them.

A directory of segments, each a file of lines that are only ever appended:

    checksum ["r", number, kind, session, time, delivered, usage]     a record
    checksum ["d", number]                                            it was delivered, but is still needed here
    checksum ["x", number]                                            it is needed no more

Reading all lines in order gives what is left; a torn last line is what a crash leaves and counts for nothing. Segments
go from the oldest end only, so that the line that ends a record never goes before the record itself. What keeps an old
segment alive is copied forward when the spool has grown to twice what is live.

A line is written when it is made (so kill -9 loses nothing) and fsynced in batches by a thread (so power failure loses
nothing that was sent, and no greenlet waits for the disk). Knows nothing of RADIUS: accounting.py does.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gevent
import orjson
from gevent.event import Event

from l2tpns.errors import ConfigError
from l2tpns.lines import fsync_all, make_line, read_line, write_all
from l2tpns.log import Logger

SEGMENT_OCTETS = 1 << 20
SUFFIX = ".records"


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
    time: float  # wall clock of the event
    body: bytes  # JSON
    segment: Segment
    size: int
    delivered: bool = False
    synced: bool = False  # safe on disk: it may be sent
    tried: bool = False  # by this process
    passed_over: int = 0  # tries after which a server answered others and not this
    unsure: int = 0  # tries after which no server has answered anything yet
    answers: int = 0  # of the servers, when these ended


@dataclass(slots=True)
class SpoolStats:
    written: int = 0
    unreadable: int = 0  # lines that were torn or damaged
    write_errors: int = 0
    copied: int = 0


class Spool:
    """Live records by number. `synced` is called with records that are safe on disk and may be sent."""

    def __init__(
        self,
        directory: str | Path,
        log: Logger,
        synced: Callable[[list[Entry]], None],
        *,
        segment_octets: int = SEGMENT_OCTETS,
    ) -> None:
        self._directory = Path(directory)
        self._log = log
        self._synced = synced
        self._segment_octets = segment_octets
        self._segments: list[Segment] = []
        self._lock = -1
        self._descriptor = -1
        self._rolled: list[int] = []  # descriptors of full segments, to be fsynced once more and closed
        self._number = 0
        self._unsynced: list[Entry] = []
        self._dirty = Event()
        self._broken = False  # the last write failed
        self._copying = False  # copies of the oldest segment's records are not on disk yet: it must stay
        self._closing = False
        self._greenlet: gevent.Greenlet | None = None
        self.live_octets = 0
        self.stats = SpoolStats()

    @property
    def octets(self) -> int:
        """On disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def segments(self) -> int:
        return len(self._segments)

    # --- opening

    def open(self) -> list[Entry]:
        """What an earlier process left, in order. ConfigError when the directory cannot be ours."""
        self._claim_directory()
        entries: dict[int, Entry] = {}
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            name = path.name.removesuffix(SUFFIX)
            if not (name.isascii() and name.isdigit()):
                continue  # not ours
            segment = Segment(int(name), path)
            self._segments.append(segment)
            for line in path.read_bytes().splitlines(keepends=True):
                segment.size += len(line)
                self._replay(segment, line, entries)
        self._number = max(entries, default=0)
        self._start_segment()
        self._trim()
        self._greenlet = gevent.spawn(self._run)
        return sorted(entries.values(), key=lambda entry: entry.number)

    def _claim_directory(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self._directory.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise ConfigError(f"spool_dir {self._directory}: must belong to us and be writable by nobody else")
            self._lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"spool_dir {self._directory}: another l2tpns uses it") from None
        except OSError as error:
            raise ConfigError(f"spool_dir {self._directory}: {error.strerror}") from error

    def _replay(self, segment: Segment, line: bytes, entries: dict[int, Entry]) -> None:
        fields = read_line(line)
        if fields is None or not _makes_sense(fields):
            self.stats.unreadable += 1
            self._log.warning("spool_line_unreadable", path=str(segment.path), octets=len(line))
            return
        number = fields[1]
        old = entries.get(number)
        if fields[0] == "r":
            if old is not None:
                self._forget(old)
            _, _, kind, session, time, delivered, usage = fields
            entry = Entry(number, kind, session, time, orjson.dumps(usage), segment, len(line), delivered, True)
            entries[number] = segment.live[number] = entry
            self.live_octets += entry.size
        elif old is not None and fields[0] == "d":
            old.delivered = True
        elif old is not None:
            self._forget(old)
            del entries[number]

    # --- writing

    def append(self, kind: str, session: str, time: float, body: bytes) -> Entry:
        """A new record, written at once; synced() is told when it is safe."""
        self._number += 1
        entry = Entry(self._number, kind, session, time, body, self._segments[-1], 0)
        self._write_record(entry)
        self.stats.written += 1
        self._unsynced.append(entry)
        self._dirty.set()
        return entry

    def mark_delivered(self, entry: Entry) -> None:
        """Acknowledged, but kept: it is the last that is known of a session."""
        entry.delivered = True
        self._write(make_line(["d", entry.number]))

    def release(self, entry: Entry) -> None:
        """Needed no more."""
        if entry.number not in entry.segment.live:
            return
        self._forget(entry)
        self._write(make_line(["x", entry.number]))
        if not self.live_octets and self._segments[-1].size > self._segment_octets // 4:
            self._start_segment()
        self._trim()

    def _write_record(self, entry: Entry) -> None:
        usage = orjson.Fragment(entry.body)
        line = make_line(["r", entry.number, entry.kind, entry.session, entry.time, entry.delivered, usage])
        self._write(line)
        entry.segment, entry.size = self._segments[-1], len(line)
        entry.segment.live[entry.number] = entry
        self.live_octets += entry.size

    def _write(self, line: bytes) -> None:
        if self._segments[-1].size >= self._segment_octets:
            self._start_segment()
        # After a failed write the file may end within a line: begin a new one.
        octets = b"\n" + line if self._broken else line
        try:
            write_all(self._descriptor, octets)
        except OSError as error:
            self.stats.write_errors += 1
            if not self._broken:
                # The record lives on in memory and is sent all the same.
                self._log.error("spool_write_failed", path=str(self._directory), why=error.strerror)
            self._broken = True
            return
        if self._broken:
            self._broken = False
            self._log.warning("spool_writes_again", path=str(self._directory))
        self._segments[-1].size += len(octets)

    def _start_segment(self) -> None:
        number = self._segments[-1].number + 1 if self._segments else 1
        segment = Segment(number, self._directory / f"{number:010d}{SUFFIX}")
        try:
            descriptor = os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if not self._segments or self._descriptor < 0:
                raise ConfigError(f"spool_dir {self._directory}: {error.strerror}") from error
            self._log.error("spool_write_failed", path=str(segment.path), why=error.strerror)
            return  # the old segment grows on
        if self._descriptor >= 0:
            self._rolled.append(self._descriptor)
        self._descriptor = descriptor
        self._segments.append(segment)

    # --- forgetting

    def _forget(self, entry: Entry) -> None:
        if entry.segment.live.pop(entry.number, None) is not None:
            self.live_octets -= entry.size

    def _trim(self) -> None:
        """Remove segments from the oldest end, as long as nothing in them is needed."""
        while len(self._segments) > 1 and not self._segments[0].live and not self._copying:
            self._segments.pop(0).path.unlink(missing_ok=True)

    def _copy_forward(self) -> None:
        """Free the oldest segment by writing what is live in it again, at the end."""
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
            self._dirty.wait()
            self._sync()

    def _sync(self) -> None:
        """Make what is written safe; blocks this greenlet only."""
        self._dirty.clear()
        batch, self._unsynced = self._unsynced, []
        overgrown = self._overgrown() and not self._broken
        if overgrown:
            self._copying = True
            self._copy_forward()
        rolled, self._rolled = self._rolled, []
        error = gevent.get_hub().threadpool.apply(fsync_all, ([*rolled, self._descriptor], self._directory))
        for descriptor in rolled:
            os.close(descriptor)
        self._copying = False
        if error:
            self.stats.write_errors += 1
            self._log.error("spool_sync_failed", path=str(self._directory), why=error)
        elif overgrown and not self._broken:
            self._trim()
        for entry in batch:
            entry.synced = True
        if batch:
            self._synced(batch)

    def close(self) -> None:
        """Everything safe; a spool without a live record leaves no segment behind."""
        if self._greenlet is None:
            return
        self._closing = True
        self._dirty.set()
        self._greenlet.join()
        self._greenlet = None
        os.close(self._descriptor)
        self._descriptor = -1
        if not self.live_octets:
            for segment in self._segments:
                segment.path.unlink(missing_ok=True)
        self._segments.clear()
        os.close(self._lock)
        self._lock = -1


def _makes_sense(fields: object) -> bool:
    """Return whether a line whose checksum is right has the fields that it must have."""
    if not isinstance(fields, list) or len(fields) < 2 or type(fields[1]) is not int:
        return False
    if fields[0] != "r":
        return fields[0] in ("d", "x")
    return len(fields) == 7 and [*map(type, fields[2:4])] == [str, str] and type(fields[4]) in (int, float)
