"""Usage files: every five minutes a file with the usage of each session since the last one.

The name is `YYYYmmddHHMMSS`, in local time, in the directory `accounting_dir`:

    # dslwatch.pl dump file V1.01
    # host: lns1
    # endpoint: 192.0.2.1
    # time: 1700000000
    # uptime: 86400
    # format: username ip qos uptxoctets downrxoctets
    fred 10.1.0.7 1 81920 1048576

There is a row for each session with traffic since the last file, ended sessions included. A session in a walled garden
has no row. Without rows there is no file. Octets are counted independently of RADIUS accounting, each once: rows that
could not be written are kept for the next file. A file appears complete or not at all. `qos` is 2 for a throttled
session, else 1.
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

INTERVAL = 300.0  # seconds
MAX_WAITING = 500_000  # rows kept while no file can be written
MAX_NAMES_TRIED = 2 * 3600  # seconds: more than the hour that the end of summer time repeats
NORMAL_QOS, THROTTLED_QOS = 1, 2


class Metered(Protocol):
    """The part of an ended session that usage files use."""

    user: str
    usage_file_octets: tuple[int, int]  # octets from and to the subscriber in earlier files

    @property
    def policy(self) -> Policy: ...


class Metering(Metered, Protocol):
    """The part of a living session that usage files use."""

    online_since: float

    def usage(self, terminate_cause: int = 0) -> Usage:
        """Return the usage until now. Does not yield."""


@dataclass(slots=True)
class Row:
    """The usage of one session since the last file."""

    user: str
    address: str
    qos: int
    up: int
    down: int

    def line(self) -> str:
        """Return the row as a line of the file."""
        return f"{self.user} {self.address} {self.qos} {self.up} {self.down}\n"


class UsageFiles:
    """Writes usage files while accounting_dir is set."""

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
        """Start writing, in a supervised greenlet."""
        self._part = self._supervisor.spawn("usage files", self._run)

    def stop(self) -> None:
        """Write a last file, once all sessions have ended. May yield."""
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
            except Exception:  # a defect in one file must not prevent the next
                self._log.exception("usage_file_failed")

    # Sessions

    def ended(self, session: Metered, usage: Usage) -> None:
        """Keep the last usage of a service for the next file. Does not yield."""
        if self._config.accounting_dir and not session.policy.garden:
            self._take(session, usage)
        session.usage_file_octets = (0, 0)

    def _take(self, session: Metered, usage: Usage) -> None:
        """Add the usage since the last file to the rows."""
        up, down = usage.in_octets - session.usage_file_octets[0], usage.out_octets - session.usage_file_octets[1]
        session.usage_file_octets = (usage.in_octets, usage.out_octets)
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
        """Write a file of the usage since the last one. May yield.

        Return its path, None if there was no usage or the file could not be written.
        """
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
        """Keep rows that could not be written, added to newer rows of the same sessions."""
        since, self._waiting = self._waiting, rows
        for name, row in since.items():
            waiting = self._waiting.setdefault(name, row)
            if waiting is not row:
                waiting.up += row.up
                waiting.down += row.down


def unusable(directory: str) -> str:
    """Return why no file can be written to a directory, an empty string if it seems possible."""
    if not directory or (os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)):
        return ""
    try:
        with os.scandir(directory):
            return "not writable"
    except OSError as error:
        return error.strerror or str(error)


def one_word(user: bytes) -> str:
    """Return a user name as one column: blanks and octets that are not printable become %XX, as in a URL.

    `%` is escaped too, so that different names stay different, and a leading `#`, which would begin a comment.
    """
    text = user.decode("utf-8", "surrogateescape")
    return "".join(
        letter if letter.isprintable() and letter not in " %" and (at or letter != "#") else _percent(letter)
        for at, letter in enumerate(text)
    )


def _percent(letter: str) -> str:
    return "".join(f"%{octet:02X}" for octet in letter.encode("utf-8", "surrogateescape"))


def write_file(directory: Path, when: float, text: bytes, max_names: int = MAX_NAMES_TRIED) -> Path:
    """Write a complete file or none. Runs in a thread. Raises OSError.

    Names may exist in the hour that the end of summer time repeats: use the next second that is free.
    """
    why = files.displaced(directory)
    if why:
        raise files.Unfit(why)
    unfinished = files.make_file(directory, text)
    try:
        path = _free_name(directory, when, max_names)
        unfinished.rename(path)  # replaces the name, writes to no existing file
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
    raise files.Unfit(f"the names of the next {max_names} seconds are in use")
