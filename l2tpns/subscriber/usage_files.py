"""Usage files: every five minutes a file that says who has used how much since the last one.

It is `YYYYmmddHHMMSS`, by local time, in the directory `accounting_dir`:

    # dslwatch.pl dump file V1.01
    # host: lns1
    # endpoint: 192.0.2.1
    # time: 1700000000
    # uptime: 86400
    # format: username ip qos uptxoctets downrxoctets
    fred 10.1.0.7 1 81920 1048576

A row for each session that has used anything since the last file, those that have ended included; no row, no file.
Whoever is in a walled garden has no row.
Octets are counted apart from what RADIUS is told, and none is told twice: rows that could not be written wait for the
next file. A file appears whole, under its name, or not at all. `qos` is 2 for a throttled session, else 1.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Protocol

import gevent

from l2tpns.config.settings import Config
from l2tpns.policy.model import Policy
from l2tpns.radius.types import Usage
from l2tpns.runtime import files
from l2tpns.runtime.cooperative import in_slices
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Part, Supervisor

INTERVAL = 300.0
MAX_WAITING = 500_000  # rows kept while files cannot be written
MAX_NAMES_TRIED = 2 * 3600  # seconds: more than a clock that is set back for the winter repeats
NORMAL_QOS, THROTTLED_QOS = 1, 2


class Metered(Protocol):
    """A session whose counters go no further, as far as usage files know it."""

    user: str
    dumped: tuple[int, int]  # octets from and to the subscriber that are in earlier files

    @property
    def policy(self) -> Policy: ...


class Metering(Metered, Protocol):
    """A session that is in the server's table."""

    online_since: float

    def usage(self, terminate_cause: int = 0) -> Usage:
        """Return what it has used."""


@dataclass(slots=True)
class Row:
    """What one session has used since the last file."""

    user: str
    address: str
    qos: int
    up: int
    down: int

    def line(self) -> str:
        return f"{self.user} {self.address} {self.qos} {self.up} {self.down}\n"


class UsageFiles:
    """Writes them while accounting_dir is set."""

    def __init__(
        self,
        config: Config,
        log: Logger,
        supervisor: Supervisor,
        sessions: Mapping[int, Metering],
        *,
        interval: float = INTERVAL,
    ) -> None:
        self._config = config
        self._log = log
        self._supervisor = supervisor
        self._sessions = sessions  # the server's table, by id
        self._interval = interval
        self._started = monotonic()
        self._waiting: dict[str, Row] = {}  # by Acct-Session-Id
        self._part: Part | None = None
        self._failed = False

    def start(self) -> None:
        self._part = self._supervisor.spawn("usage files", self._run)

    def stop(self) -> None:
        """Nobody uses anything any more: a last file, and no more of them."""
        if self._part is not None:
            self._part.stop()
            self._part = None
        self.write()

    def _run(self) -> None:
        due = monotonic()
        while True:
            due = max(due + self._interval, monotonic())
            gevent.sleep(due - monotonic())
            try:
                self.write()
            except Exception:  # a mistake in one file: the next may do better
                self._log.exception("usage_file_failed")

    # What sessions say

    def ended(self, session: Metered, usage: Usage) -> None:
        """The session's counters go no further: what it has used since the last file is kept for the next."""
        if self._config.accounting_dir and not session.policy.garden:
            self._take(session, usage)
        session.dumped = (0, 0)

    def _take(self, session: Metered, usage: Usage) -> None:
        """Make a row of what is new."""
        up, down = usage.in_octets - session.dumped[0], usage.out_octets - session.dumped[1]
        session.dumped = (usage.in_octets, usage.out_octets)
        if not usage.user or not (up or down):
            return
        row = self._waiting.get(usage.acct_session_id)
        if row is not None:
            row.up += up
            row.down += down
        elif len(self._waiting) < MAX_WAITING:
            qos = THROTTLED_QOS if session.policy.throttled else NORMAL_QOS
            row = Row(one_word(usage.user), str(usage.address), qos, up, down)
            self._waiting[usage.acct_session_id] = row
        else:
            self._log.warning_limited("usage_row_lost", user=session.user, up=up, down=down)

    # The file

    def write(self) -> Path | None:
        """A file of what was used since the last one; None when there was nothing, or it could not be written."""
        config = self._config
        if not config.accounting_dir:
            self._waiting.clear()
            return None
        for session in in_slices(list(self._sessions.values())):
            if session.online_since and not session.policy.garden:
                self._take(session, session.usage())
        if not self._waiting:
            return None
        rows, self._waiting = self._waiting, {}
        now = time.time()
        lines = [
            "# dslwatch.pl dump file V1.01",
            f"# host: {config.hostname}",
            f"# endpoint: {config.main_address or config.tun_address}",
            f"# time: {int(now)}",
            f"# uptime: {int(monotonic() - self._started)}",
            "# format: username ip qos uptxoctets downrxoctets",
        ]
        text = "\n".join(lines) + "\n" + "".join(row.line() for row in in_slices(rows.values()))
        try:
            path = gevent.get_hub().threadpool.apply(write_file, (Path(config.accounting_dir), now, text.encode()))
        except OSError as error:
            self._put_back(rows)
            if not self._failed:
                self._log.error("usage_file_failed", path=config.accounting_dir, why=error.strerror)
            self._failed = True
            return None
        if self._failed:
            self._failed = False
            self._log.warning("usage_files_again", path=str(path))
        self._log.info("usage_file_written", path=str(path), rows=len(rows))
        return Path(path)

    def _put_back(self, rows: dict[str, Row]) -> None:
        """They were not written; the same sessions may have rows again by now."""
        since, self._waiting = self._waiting, rows
        for name, row in since.items():
            waiting = self._waiting.setdefault(name, row)
            if waiting is not row:
                waiting.up += row.up
                waiting.down += row.down


def unusable(directory: str) -> str:
    """Why no file could be written to this directory; nothing when that looks possible."""
    if not directory or (os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)):
        return ""
    try:
        with os.scandir(directory):
            return "we may not write there"
    except OSError as error:
        return error.strerror or str(error)


def one_word(user: bytes) -> str:
    """A subscriber's name as one column, whatever it has chosen: blanks and what is no text are %XX, as in a URL.

    So is `%` itself, that different names stay different, and `#` at the beginning, which would make a comment.
    """
    text = user.decode("utf-8", "surrogateescape")
    return "".join(
        letter if letter.isprintable() and letter not in " %" and (at or letter != "#") else _percent(letter)
        for at, letter in enumerate(text)
    )


def _percent(letter: str) -> str:
    return "".join(f"%{octet:02X}" for octet in letter.encode("utf-8", "surrogateescape"))


def write_file(directory: Path, when: float, text: bytes, max_names: int = MAX_NAMES_TRIED) -> Path:
    """In a thread: the file is there whole or not at all. Raises OSError.

    The hour that the end of summer time repeats finds names that exist: the next second that is free is taken.
    """
    why = files.displaced(directory)
    if why:
        raise files.Unfit(why)
    unfinished = files.make_file(directory, text)
    try:
        path = _free_name(directory, when, max_names)
        unfinished.rename(path)  # whatever has come there meanwhile: a name is replaced, no file is written to
    except BaseException:
        files.remove(unfinished)
        raise
    files.sync_directory(directory)
    return path


def _free_name(directory: Path, when: float, max_names: int) -> Path:
    for second in range(max_names):
        path = directory / time.strftime("%Y%m%d%H%M%S", time.localtime(when + second))
        if not os.path.lexists(path):
            return path
    raise files.Unfit(f"the names of the next {max_names} seconds are taken")
