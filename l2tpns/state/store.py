"""The directory of saved state: generations of lines, each a file that is only appended to.

A generation begins with a `head` line. When it has grown to twice the live state, a new one is begun and the live state
is written to it. When that is safe on disk, the older generations are removed. So the files, read in order, give the
whole state at every moment, also after a crash. A line overrides what earlier lines and generations say.

A line is written at once, so that kill -9 loses nothing. A thread fsyncs the file once a second, so that no greenlet
waits for the disk. Only the user of this process may have access to the directory and its files, because they decide
which subscriber has which address. Knows nothing of tunnels and sessions: records.py and journal.py do.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent

from l2tpns import __version__
from l2tpns.runtime import files
from l2tpns.runtime.clock import Moment, elapsed, moment
from l2tpns.runtime.durable import close_quietly, fsync_all, make_line, read_line, write_all
from l2tpns.runtime.log import Logger
from l2tpns.runtime.private_directory import claim_directory
from l2tpns.runtime.process import runtime_directory
from l2tpns.state.records import SCHEMA, Replay, default

SUFFIX = ".state"
GENERATION = r"[0-9]{1,18}" + re.escape(SUFFIX)
DAMAGED, REFUSED = ".damaged", ".refused"  # suffixes of files that were set aside
GROWTH = 16 << 20  # octets beyond twice the live state before a new generation is begun
MAX_FILE = 1 << 30  # octets; the server writes no larger file


class StateStore:
    """The files of saved state. Only `open` raises: a disk that fails later costs the state, not the service."""

    def __init__(self, directory: str | Path, log: Logger, now: Callable[[], Moment] = moment) -> None:
        self.directory = Path(directory)
        self.mark = _mark_of(self.directory)
        self._log = log
        self._now = now
        self.growth = GROWTH
        self._lock = -1
        self._descriptor = -1
        self._path = self.directory  # of the current generation
        self._number = 0
        self._older: list[Path] = []  # generations before the current one
        self._damaged: set[Path] = set()  # those of them that are kept for the operator
        self._size = 0
        self._live_size = 0  # octets of the generation when it held the live state and nothing else
        self._stale: list[Path] = []  # files that must not be restored and could not be removed
        # Whether the failure, and that the state is invalid, are in the log. Reset when all is written again.
        self._failure_logged = self._invalidity_logged = False
        self.broken = False  # the last write failed: the files were removed, or marked as stale

    # The directory

    @property
    def opened(self) -> bool:
        """Return True if this process has claimed the directory."""
        return self._lock >= 0

    def open(self) -> None:
        """Claim the directory for this process alone. Raises ConfigError."""
        self._lock = claim_directory(self.directory, "state_dir", confidential=True)

    def close(self) -> None:
        """Release the directory. What was written stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # Reading

    def load(self, max_age: float) -> Replay:
        """Return what an earlier process saved; an empty Replay if it is more than `max_age` seconds old."""
        found = Replay()
        for path in self._generations():
            self._older.append(path)
            lines = self._lines(path)
            if lines is None:
                found = Replay()  # this file may have recorded the end of what older ones contain
            for fields in lines or ():
                found.feed(fields)
        found.finish()
        self._number = max((_number(path) for path in self._older), default=0)
        self._report(found)
        why = self._marked()
        if why:
            self._log.error("state_stale", path=str(self.directory), sessions=len(found.sessions), why=why)
            self._remove_older()
            return Replay()
        if found.empty:
            return found
        age = elapsed(found.last, self._now())
        if age > max_age:
            self._log.error(
                "state_too_old",
                seconds=round(age),
                limit=round(max_age),
                tunnels=len(found.tunnels),
                sessions=len(found.sessions),
            )
            self._set_aside(self._older, REFUSED)
            self._older.clear()
            return Replay()
        if self._damaged:
            found.clean = False  # later sequence numbers may have been lost
        return found

    def _generations(self) -> list[Path]:
        names = (path for path in self.directory.glob(f"*{SUFFIX}") if re.fullmatch(GENERATION, path.name))
        return sorted(names, key=_number)

    def _lines(self, path: Path) -> list[list[Any]] | None:
        """Return the readable lines of a file. None: the file must not be used at all."""
        octets = self._read(path)
        if octets is None:
            return None
        lines = octets.splitlines(keepends=True)
        whole = []
        bad = 0
        for number, line in enumerate(lines, 1):
            fields = read_line(line)
            if isinstance(fields, list):
                whole.append(fields)
            elif number == len(lines) and not line.endswith(b"\n"):
                self._log.warning("state_line_torn", path=str(path), line=number)  # what a crash leaves
            else:
                bad += 1
        if bad:
            self._damaged.add(path)
            self._log.error("state_damaged", path=str(path), lines=len(lines), unreadable=bad)
        return whole

    def _read(self, path: Path) -> bytes | None:
        """Return the content of a file. None: other users have access to it, or it cannot be read."""
        why = ""
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                    why = "not a regular file"
                elif status.st_uid != os.geteuid():
                    why = f"it belongs to user {status.st_uid}"
                elif status.st_mode & 0o077:
                    why = f"other users have access (mode {stat.S_IMODE(status.st_mode):04o})"
                elif status.st_size > MAX_FILE:
                    why = f"it has {status.st_size} octets"
                else:
                    return file.read()
        except OSError as error:
            why = error.strerror or str(error)
        self._log.error("state_refused", path=str(path), why=why)
        self._damaged.add(path)
        return None

    def _report(self, found: Replay) -> None:
        """Log what could not be read as this release would have written it."""
        for schema in sorted(found.schemas - {SCHEMA}):
            self._log.warning("state_schema", schema=schema, ours=SCHEMA, why="only the known fields are restored")
        if found.unknown:
            self._log.warning("state_not_understood", what=sorted(found.unknown)[:50])
        for why in found.refused[:50]:
            self._log.error("state_record_refused", why=why)

    def _set_aside(self, paths: list[Path], suffix: str) -> None:
        """Rename files for the operator, and remove those that were set aside before."""
        for old in self.directory.glob(f"*{suffix}"):
            files.remove(old)
        for path in paths:
            try:
                path.rename(path.with_suffix(suffix))
                self._log.warning("state_set_aside", path=str(path), now=path.with_suffix(suffix).name)
            except OSError as error:
                self._log.error("state_write_failed", path=str(path), why=error.strerror)

    # Writing

    def begin(self) -> bool:
        """Begin a generation. The caller then writes the live state and calls `finish_generation`.

        Return False if the disk is full or fails. The generation before goes on then, if it is complete.
        """
        if not self._remove_stale():
            return False
        self._number += 1
        path = self.directory / f"{self._number:010d}{SUFFIX}"
        now = self._now()
        head = make_line(["head", SCHEMA, __version__, now.wall, now.since_boot, now.boot])
        descriptor = -1
        try:
            descriptor = files.open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
            write_all(descriptor, head)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
                files.remove(path)
            self._not_begun(path, error.strerror or str(error))
            return False
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._older.append(self._path)
        self._descriptor, self._path, self._size, self.broken = descriptor, path, len(head), False
        return True

    def _not_begun(self, path: Path, why: str) -> None:
        if self._descriptor < 0 or self.broken:
            self._fail(path, why)
        elif not self._failure_logged:
            self._failure_logged = True
            self._log.error("state_write_failed", path=str(path), why=why)

    def write(self, *lines: list[Any]) -> bool:
        """Append lines. Return False if the disk is full or fails. Does not yield."""
        if self._descriptor < 0 or self.broken:
            return False
        octets = b"".join(make_line(fields, default) for fields in lines)
        try:
            write_all(self._descriptor, octets)
        except OSError as error:
            self._fail(self._path, error.strerror or str(error))
            return False
        self._size += len(octets)
        return True

    def _fail(self, path: Path, why: str) -> None:
        """Log the failure and invalidate the state, until a new generation can be written completely."""
        if not self._failure_logged:
            self._failure_logged = True
            self._log.error("state_write_failed", path=str(path), why=why)
        if not self.broken:
            self.broken = True
            self.invalidate(f"the state could not be written: {why}")

    # State that must not be restored

    def invalidate(self, why: str) -> None:
        """Remove the files, which no longer show which sessions are online. Mark them as stale if that fails."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._older.append(self._path)
        self.broken = True
        self._remove_older()
        if not self._invalidity_logged:
            self._invalidity_logged = True
            self._log_invalidity(why)

    def _log_invalidity(self, why: str) -> None:
        removed, marked = not self._stale, bool(self._stale and self._marked())
        self._log.error("state_disowned", path=str(self.directory), removed=removed, marked=marked, why=why)

    def _remove_older(self) -> None:
        self._stale += [path for path in self._older if not files.remove(path)]
        self._older.clear()
        if self._stale:
            self._set_mark()

    def _remove_stale(self) -> bool:
        """Remove stale files and the mark. Return True if none is left, so that new lines will be restored."""
        self._stale = [path for path in self._stale if not files.remove(path)]
        return not self._stale and (not self._marked() or files.remove(self.mark))

    def _set_mark(self) -> None:
        """Create the mark: an empty file, on another file system than the disk that failed."""
        with suppress(OSError):  # the log reports that there is none
            self.mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(files.open_file(self.mark, os.O_WRONLY | os.O_CREAT))

    def _marked(self) -> str:
        """Return why the state must not be restored, or an empty string."""
        try:
            found = os.lstat(self.mark)
        except OSError:
            return ""
        if found.st_uid not in (0, os.geteuid()):
            return ""  # another user made it
        return f"{self.mark}: an earlier process could neither write nor remove it, and sessions have ended since"

    @property
    def overgrown(self) -> bool:
        """Return True if a new generation is due."""
        return self._size > 2 * self._live_size + self.growth

    def sync(self) -> bool:
        """Have the lines fsynced. Return False if that failed. Blocks the calling greenlet only."""
        return self._synced(lambda *arguments: gevent.get_hub().threadpool.apply(fsync_all, arguments))

    def finish_generation(self, *, block: bool = False) -> bool:
        """Make the generation safe on disk and remove the older ones. Return False if that failed.

        The live state must be in it. With `block` the whole process waits for the disk.
        """
        older = list(self._older)
        if self.broken or not (self._synced(fsync_all) if block else self.sync()) or self.broken:
            return False
        self._live_size = self._size
        self._set_aside([path for path in older if path in self._damaged], DAMAGED)
        for path in older:
            if path in self._damaged or files.remove(path):
                self._older.remove(path)
        if self._failure_logged:
            self._failure_logged = self._invalidity_logged = False
            self._log.warning("state_written_again", path=str(self._path))
        return True

    def _synced(self, how: Callable[..., str]) -> bool:
        if self._descriptor < 0:
            return False
        try:
            descriptor = os.dup(self._descriptor)  # the generation may be closed meanwhile
        except OSError:  # no descriptor is free: the lines survive kill -9, but not yet a power failure
            return False
        try:
            why = how([descriptor], self.directory)
        finally:
            close_quietly(descriptor)
        if why:
            self._fail(self.directory, why)
        return not why

    def erase(self) -> None:
        """Remove all saved state. What cannot be removed is marked as stale."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._older.append(self._path)
        with suppress(OSError):  # no descriptor is free: remove the files that are known
            self._older = [*dict.fromkeys([*self._older, *self._generations()])]
        self._remove_older()
        if self._stale:
            self._log_invalidity("it could not be removed")
        else:
            files.remove(self.mark)
        self._live_size = 0


def _mark_of(directory: Path) -> Path:
    """Return the path of the mark which says that this directory of saved state is stale."""
    name = hashlib.sha256(os.fsencode(directory.absolute())).hexdigest()[:16]
    return runtime_directory() / f"{name}.stale"


def _number(path: Path) -> int:
    return int(path.name.removesuffix(SUFFIX))
