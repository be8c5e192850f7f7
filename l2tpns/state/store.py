"""The directory of saved state: generations of lines, each a file that is only appended to.

A generation begins with a `head` line. When it has grown to twice what is alive a new one is begun, everything alive is
written into that, and when this is safe on disk the older ones go: at every moment the files, read in order, give the
whole state, and a crash never finds half of it. What one generation says is the last word over the ones before.

A line is written when it is made, so that kill -9 loses nothing; it is fsynced once a second by a thread, so that
nobody waits for the disk. The directory and the files must be ours and nobody else's, for what is read here decides who
has which address. Knows nothing of tunnels and sessions: records.py and journal.py do.
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
DAMAGED, REFUSED = ".damaged", ".refused"  # what a file that was set aside is called
GROWTH = 16 << 20  # octets beyond twice the live state before it is written anew
LARGEST = 1 << 30  # no file of ours is larger


class StateStore:
    """Files of saved state. Only `open` raises; a disk that fails later costs the state, never the service."""

    def __init__(self, directory: str | Path, log: Logger, now: Callable[[], Moment] = moment) -> None:
        self.directory = Path(directory)
        self.mark = _mark_of(self.directory)
        self._log = log
        self._now = now
        self.growth = GROWTH
        self._lock = -1
        self._descriptor = -1
        self._path = self.directory  # of the generation that is written
        self._number = 0
        self._older: list[Path] = []  # generations before the one that is written
        self._damaged: set[Path] = set()  # of these, to be kept for a look
        self._size = 0
        self._settled = 0  # size when everything alive had just been written
        self._stale: list[Path] = []  # what could not be removed although nobody may take it up
        self._complained = self._disowned = False  # that is in the log, until everything is written again
        self.broken = False  # the last write failed: nothing is on disk, or it is marked as stale

    # The directory

    @property
    def opened(self) -> bool:
        return self._lock >= 0

    def open(self) -> None:
        """Claim the directory for this process alone. Raises ConfigError."""
        self._lock = claim_directory(self.directory, "state_dir", confidential=True)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # Reading

    def load(self, max_age: float) -> Replay:
        """What an earlier process left; empty when it is too old. Nothing is removed but what is of no use."""
        found = Replay()
        for path in self._generations():
            self._older.append(path)
            lines = self._lines(path)
            if lines is None:
                found = Replay()  # what the older ones have may have ended in this one
            for fields in lines or ():
                found.feed(fields)
        found.finish()
        self._number = max((_number(path) for path in self._older), default=0)
        self._tell(found)
        why = self._marked()
        if why:
            self._log.error("state_stale", path=str(self.directory), sessions=len(found.sessions), why=why)
            self._disown_older()
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
            found.clean = False  # the numbers may be older than they look
        return found

    def _generations(self) -> list[Path]:
        names = (path for path in self.directory.glob(f"*{SUFFIX}") if re.fullmatch(GENERATION, path.name))
        return sorted(names, key=_number)

    def _lines(self, path: Path) -> list[list[Any]] | None:
        """None for a file that is not to be used at all."""
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
        """The file, if it is ours and nobody else's; one that is not is set aside."""
        why = ""
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                    why = "it is no plain file"
                elif status.st_uid != os.geteuid():
                    why = f"it belongs to user {status.st_uid}"
                elif status.st_mode & 0o077:
                    why = f"others may use it (mode {stat.S_IMODE(status.st_mode):04o})"
                elif status.st_size > LARGEST:
                    why = f"it has {status.st_size} octets"
                else:
                    return file.read()
        except OSError as error:
            why = error.strerror or str(error)
        self._log.error("state_refused", path=str(path), why=why)
        self._damaged.add(path)
        return None

    def _tell(self, found: Replay) -> None:
        for schema in sorted(found.schemas - {SCHEMA}):
            self._log.warning("state_schema", schema=schema, ours=SCHEMA, why="what we know of it is taken up")
        if found.unknown:
            self._log.warning("state_not_understood", what=sorted(found.unknown)[:50])
        for why in found.refused[:50]:
            self._log.error("state_record_refused", why=why)

    def _set_aside(self, paths: list[Path], suffix: str) -> None:
        """Rename; only the newest of a kind are kept."""
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
        """Begin a generation. Everything alive is to be written now, then `settle` called.

        False: the disk does not take it; the generation before, if it is whole, goes on.
        """
        if not self._forget_stale():
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
        elif not self._complained:
            self._complained = True
            self._log.error("state_write_failed", path=str(path), why=why)

    def write(self, *lines: list[Any]) -> bool:
        """Append; False when the disk does not take it."""
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
        """Until a new generation can be written as a whole."""
        if not self._complained:
            self._complained = True
            self._log.error("state_write_failed", path=str(path), why=why)
        if not self.broken:
            self.broken = True
            self.disown(f"the state could not be written: {why}")

    # What nobody may take up

    def disown(self, why: str) -> None:
        """What is on disk no longer tells who is online: it goes, or it is marked where it cannot go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._older.append(self._path)
        self.broken = True
        self._disown_older()
        if not self._disowned:
            self._disowned = True
            self._tell_disowned(why)

    def _tell_disowned(self, why: str) -> None:
        removed, marked = not self._stale, bool(self._stale and self._marked())
        self._log.error("state_disowned", path=str(self.directory), removed=removed, marked=marked, why=why)

    def _disown_older(self) -> None:
        self._stale += [path for path in self._older if not files.remove(path)]
        self._older.clear()
        if self._stale:
            self._set_mark()

    def _forget_stale(self) -> bool:
        """Whether no stale file is left, so that what is written from now on counts."""
        self._stale = [path for path in self._stale if not files.remove(path)]
        return not self._stale and (not self._marked() or files.remove(self.mark))

    def _set_mark(self) -> None:
        """It is on another file system than the disk that fails, and empty: its name says all."""
        with suppress(OSError):  # the log says that there is none
            self.mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(files.open_file(self.mark, os.O_WRONLY | os.O_CREAT))

    def _marked(self) -> str:
        """Why nothing may be taken up, or nothing."""
        try:
            found = os.lstat(self.mark)
        except OSError:
            return ""
        if found.st_uid not in (0, os.geteuid()):
            return ""  # a stranger's
        return f"{self.mark}: an earlier process could neither write nor remove it, and sessions have ended since"

    @property
    def overgrown(self) -> bool:
        return self._size > 2 * self._settled + self.growth

    def sync(self) -> bool:
        """Make what is written safe; blocks this greenlet only."""
        return self._synced(lambda *arguments: gevent.get_hub().threadpool.apply(fsync_all, arguments))

    def settle(self, *, block: bool = False) -> bool:
        """Everything alive is in this generation: make it safe, and let go of the older ones."""
        older = list(self._older)
        if self.broken or not (self._synced(fsync_all) if block else self.sync()) or self.broken:
            return False
        self._settled = self._size
        self._set_aside([path for path in older if path in self._damaged], DAMAGED)
        for path in older:
            if path in self._damaged or files.remove(path):
                self._older.remove(path)
        if self._complained:
            self._complained = self._disowned = False
            self._log.warning("state_written_again", path=str(self._path))
        return True

    def _synced(self, how: Callable[..., str]) -> bool:
        if self._descriptor < 0:
            return False
        try:
            descriptor = os.dup(self._descriptor)  # ours, whatever happens to the generation meanwhile
        except OSError:  # no descriptor is free: what is written is written, it is only not as safe
            return False
        try:
            why = how([descriptor], self.directory)
        finally:
            close_quietly(descriptor)
        if why:
            self._fail(self.directory, why)
        return not why

    def erase(self) -> None:
        """No state is left; what cannot be removed is marked."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._older.append(self._path)
        with suppress(OSError):  # no descriptor is free: then what we know of
            self._older = [*dict.fromkeys([*self._older, *self._generations()])]
        self._disown_older()
        if self._stale:
            self._tell_disowned("it could not be removed")
        else:
            files.remove(self.mark)
        self._settled = 0


def _mark_of(directory: Path) -> Path:
    """Where it is said that what is in this directory of state is stale."""
    name = hashlib.sha256(os.fsencode(directory.absolute())).hexdigest()[:16]
    return runtime_directory() / f"{name}.stale"


def _number(path: Path) -> int:
    return int(path.name.removesuffix(SUFFIX))
