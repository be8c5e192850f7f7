"""The book of accounting records: which exist, of which session, and what is known of each (RFC 2866).

Writes records to the spool and releases them; counts those that no server has acknowledged. Sends nothing: delivery.py
does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from l2tpns.radius import undeliverable
from l2tpns.radius.session_records import AccountingStats, SessionRecords, Unreadable
from l2tpns.radius.spool import Entry, Spool
from l2tpns.radius.types import Usage
from l2tpns.radius.usage import OFF, ON, STATUS, STOP, dump_usage, load_usage, never_less, unusable
from l2tpns.runtime.clock import Moment
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Supervisor

MAX_FRESH = 1024  # records that need not be decoded again to be sent: more wait only while servers are silent
LOST_LOG_INTERVAL = 10.0  # seconds between two log lines about a full spool


class RecordBook:
    """All records that are still needed, by Acct-Session-Id. `removed` is called when a record needs no delivery."""

    def __init__(
        self,
        directory: Path,
        log: Logger,
        *,
        clock: Callable[[], Moment],
        removed: Callable[[], None],
    ) -> None:
        self.directory = directory
        self.spool: Spool | None = None  # while nothing touches the disk
        self.sessions: dict[str, SessionRecords] = {}
        self.stats = AccountingStats()
        self.undelivered = 0
        self.suspects: set[Entry] = set()  # undelivered records that servers pass over
        self._log = log
        self._clock = clock
        self._removed = removed
        self._lost_logged = 0.0
        self._inherited = 0  # the number of the last record that an earlier process has written
        self._fresh: dict[int, Usage] = {}  # the usage of the first MAX_FRESH undelivered records, by number

    def open(self, synced: Callable[[list[Entry]], None], supervisor: Supervisor) -> None:
        """Restore what an earlier process left. Raises ConfigError if the spool cannot be used."""
        spool = Spool(self.directory, self._log, synced, supervisor=supervisor)
        entries = spool.open()
        self.spool = spool
        for entry in entries:
            if entry.kind in (ON, OFF):
                spool.release(entry)  # of an earlier process: a new one is sent where it is due
                continue
            if entry.kind not in STATUS:
                self.keep_undeliverable(entry, "a kind of record that this release does not know")
                spool.release(entry)
                spool.continued = False  # this release does not know all that the spool held
                continue
            self._inherited = max(self._inherited, entry.number)
            records = self.sessions.setdefault(entry.session, SessionRecords(entry.session))
            if not entry.delivered:
                records.pending.append(entry)
                self.undelivered += 1
            if entry.kind == STOP:
                records.stopped = True
                self.keep_latest(records, None)
            else:
                self.keep_latest(records, entry)
        if entries:
            self._log.info("spool_read", sessions=len(self.sessions), undelivered=self.undelivered)

    def close(self) -> None:
        if self.spool is not None:
            self.spool.close()
            self.spool = None

    @property
    def hopeful(self) -> int:
        """Return how many undelivered records servers may accept at any time."""
        return self.undelivered - len(self.suspects)

    def unstopped(self, session: str) -> SessionRecords | None:
        """Return the records of a session that has a Start and no Stop."""
        records = self.sessions.get(session)
        return None if records is None or records.stopped or self.spool is None else records

    # --- contents of records

    def usage(self, entry: Entry) -> Usage:
        """Return the usage in a record. Raises Unreadable."""
        fresh = self._fresh.get(entry.number)
        if fresh is not None:
            return fresh
        try:
            if entry.number <= self._inherited and (why := unusable(entry.kind, entry.session, entry.body)):
                raise Unreadable(why)
            return load_usage(entry.body)
        except ValueError as error:
            raise Unreadable(str(error)) from error

    def last_usage(self, records: SessionRecords) -> Usage:
        """Return the usage of the newest record; of a record that cannot be read, only the session's name."""
        assert records.latest is not None
        try:
            return self.usage(records.latest)
        except Unreadable:
            return Usage(records.session, b"", 0)

    def monotonic(self, records: SessionRecords, usage: Usage) -> Usage:
        """Return the usage with no counter below that of the newest record."""
        return never_less(usage, self.last_usage(records))

    # --- writing

    def add(self, records: SessionRecords, kind: str, usage: Usage | None, when: Moment | None = None) -> Entry:
        """Write a new record to the spool."""
        assert self.spool is not None
        body = b"null" if usage is None else dump_usage(usage)
        entry = self.spool.append(kind, records.session, self._clock() if when is None else when, body)
        if usage is not None and len(self._fresh) < MAX_FRESH:
            self._fresh[entry.number] = usage
        records.pending.append(entry)
        self.stats.spooled += 1
        self.undelivered += 1
        return entry

    def add_stop(self, records: SessionRecords, usage: Usage, when: Moment) -> None:
        records.stopped = True
        self.add(records, STOP, usage, when)
        self.keep_latest(records, None)

    def keep_latest(self, records: SessionRecords, entry: Entry | None) -> None:
        """Make this the newest record of its session; the one before is needed until it is delivered."""
        assert self.spool is not None
        old, records.latest = records.latest, entry
        if old is not None and old.delivered:
            self.spool.release(old)

    def is_full(self, limit: int, kind: str, session: str) -> bool:
        """Return whether the spool has reached `limit` octets; if so the record is lost, and this is logged."""
        assert self.spool is not None
        if self.spool.live_octets < limit:
            return False
        self.stats.lost += 1
        now = time.monotonic()
        if now - self._lost_logged >= LOST_LOG_INTERVAL or self.stats.lost == 1:
            self._lost_logged = now
            self._log.error("accounting_lost", why="the spool is full", kind=kind, lost=self.stats.lost, acct=session)
        return True

    # --- removing

    def drop(self, records: SessionRecords, entry: Entry) -> None:
        """Remove an undelivered record that a newer one replaces."""
        assert self.spool is not None
        records.pending.remove(entry)
        self.spool.release(entry)
        self.stats.replaced += 1
        self._no_longer_undelivered(entry)

    def finish(self, records: SessionRecords) -> Entry:
        """Remove the first of a session's pending records, which is delivered or given up, and return it."""
        assert self.spool is not None
        entry = records.pending.pop(0)
        records.busy = False
        if entry is records.latest:
            self.spool.mark_delivered(entry)
        else:
            self.spool.release(entry)
        if records.stopped and not records.pending:
            self.sessions.pop(records.session, None)
        self._no_longer_undelivered(entry)
        return entry

    def keep_undeliverable(self, entry: Entry, why: str) -> None:
        """Write a record that no server accepts to the operator's file."""
        lost = undeliverable.keep(self.directory, entry, why, self._clock().wall)
        path = str(self.directory / undeliverable.NAME)
        self._log.error("accounting_set_aside", acct=entry.session, kind=entry.kind, why=why, path=path, lost=lost)

    def _no_longer_undelivered(self, entry: Entry) -> None:
        self.suspects.discard(entry)
        self._fresh.pop(entry.number, None)
        self.undelivered -= 1
        self._removed()
