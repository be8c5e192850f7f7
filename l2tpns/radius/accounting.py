"""Accounting: one Start, some Interims, one Stop of every session, each delivered once (RFC 2866, RFC 2869).

start(), interim() and stop() only write to the spool and return. delivery.py sends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from l2tpns.radius.delivery import Delivery
from l2tpns.radius.record_book import RecordBook
from l2tpns.radius.report import InFlight, ServerReport
from l2tpns.radius.session_records import AccountingStats, AccountingTiming, SessionRecords
from l2tpns.radius.settings import RadiusSettings
from l2tpns.radius.spool import Spool
from l2tpns.radius.types import TerminateCause, Usage
from l2tpns.radius.usage import INTERIM, OFF, ON, START
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.clock import Moment, moment
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Supervisor

SPOOL_OCTETS = 256 << 20


class Accounting:
    """One for the daemon. Until open() is called, and with radius_accounting off, nothing touches the disk."""

    def __init__(
        self,
        settings: RadiusSettings,
        spool_dir: str | Path,
        log: Logger,
        *,
        random: Callable[[int], bytes] = os.urandom,
        awake: AwakeClock | None = None,
        clock: Callable[[], Moment] = moment,
        spool_octets: int = SPOOL_OCTETS,
        supervisor: Supervisor | None = None,
        timing: AccountingTiming | None = None,
    ) -> None:
        self._supervisor = supervisor or Supervisor(log)
        self.settings = settings
        self._log = log
        self._clock = clock
        self._limit = spool_octets
        self._book = RecordBook(Path(spool_dir), log, clock=clock, removed=self._record_removed)
        self._delivery = Delivery(
            settings,
            self._book,
            log,
            clock=clock,
            supervisor=self._supervisor,
            timing=timing or AccountingTiming(),
            random=random,
            awake=awake,
        )

    # --- life

    def open(self) -> None:
        """Restore what an earlier process left, and go on delivering it.

        Raises ConfigError if the spool cannot be used.
        """
        book = self._book
        if book.spool is not None or not (self.settings.accounting or book.directory.is_dir()):
            return
        book.open(self._delivery.synced, self._supervisor)
        for records in list(book.sessions.values()):
            self._delivery.add(records)

    def configure(self, settings: RadiusSettings) -> None:
        """Use these settings from now on.

        With radius_accounting off, sessions that have a Start still get their Stop.
        """
        self.settings = settings
        self._delivery.transport.configure(settings)
        self.open()

    def close(self, timeout: float = 5.0) -> bool:
        """Deliver what can be delivered in that time; the rest stays in the spool. Return True when nothing is left."""
        self._delivery.close(timeout)
        undelivered = self.undelivered
        self._book.close()
        if undelivered:
            self._log.warning("accounting_left_in_spool", records=undelivered, path=str(self._book.directory))
        return not undelivered

    # --- calls of sessions and of the daemon

    def start(self, usage: Usage) -> None:
        if not self.settings.accounting or self._book.spool is None:
            return
        session = usage.acct_session_id
        if session in self._book.sessions:
            return  # restored after a restart: it has its Start
        if self._book.is_full(self._limit, START, session):
            return
        records = self._book.sessions[session] = SessionRecords(session)
        self._book.keep_latest(records, self._book.add(records, START, usage))

    def interim(self, usage: Usage) -> None:
        records = self._book.unstopped(usage.acct_session_id)
        if records is None or self._book.is_full(self._limit // 4 * 3, INTERIM, usage.acct_session_id):
            return
        waiting = records.pending[1:] if records.busy else records.pending
        replaced = waiting[-1] if waiting and waiting[-1].kind == INTERIM else None
        usage = self._book.monotonic(records, usage)
        self._book.keep_latest(records, self._book.add(records, INTERIM, usage))
        if replaced is not None:
            self._book.drop(records, replaced)

    def stop(self, usage: Usage) -> None:
        """Write the Stop, however full the spool is: each Start has one."""
        records = self._book.unstopped(usage.acct_session_id)
        if records is not None:
            self._book.add_stop(records, self._book.monotonic(records, usage), self._clock())

    def on(self) -> None:
        """Send Accounting-On: no session of before is open. Not to be called when sessions were restored."""
        if not self.settings.accounting or self._book.spool is None:
            return
        records = self._book.sessions[ON] = SessionRecords(ON, stopped=True)
        self._book.add(records, ON, None)
        self._delivery.add_accounting_on(records)

    def off(self) -> None:
        """Send Accounting-Off when everything else is delivered."""
        if not self.settings.accounting or self._book.spool is None:
            return
        records = self._book.sessions[OFF] = SessionRecords(OFF, stopped=True)
        self._delivery.add_accounting_off(records)
        self._book.add(records, OFF, None)

    def recover(self, adopted: Collection[str]) -> int:
        """Stop the sessions of an earlier process that were not restored. Return how many there were."""
        lost = [
            records
            for records in self._book.sessions.values()
            if not records.stopped and records.session not in adopted and records.latest
        ]
        for records in lost:
            assert records.latest is not None
            # What is known ends at the last record: the Stop has the time and the counters of that record.
            usage = replace(self._book.last_usage(records), terminate_cause=int(TerminateCause.NAS_REBOOT))
            self._book.add_stop(records, usage, records.latest.time)
        if lost:
            self._log.warning("sessions_stopped_after_crash", sessions=len(lost))
        return len(lost)

    # --- state and figures

    @property
    def spool(self) -> Spool | None:
        """None while nothing touches the disk."""
        return self._book.spool

    @property
    def stats(self) -> AccountingStats:
        return self._book.stats

    @property
    def undelivered(self) -> int:
        """Return how many records no server has acknowledged yet."""
        return self._book.undelivered

    def report(self) -> list[ServerReport]:
        """Return the figures of each server that is configured now."""
        return self._delivery.transport.report()

    def in_flight(self) -> list[InFlight]:
        """Return the requests that wait for an answer."""
        return self._delivery.transport.in_flight()

    def open_sessions(self) -> list[str]:
        """Return the sessions with a Start and without a Stop."""
        return [records.session for records in self._book.sessions.values() if not records.stopped]

    def is_on_disk(self, session: str) -> bool:
        """Return whether the next process will find the session's last record in the spool."""
        records = self._book.unstopped(session)
        if records is None or records.latest is None or self._book.spool is None:
            return False
        return self._book.spool.holds(records.latest)

    def has_stopped(self, session: str, was_on_disk: bool) -> bool:
        """Return whether a session of an earlier process has had its Stop; False if the spool is new.

        `was_on_disk` says that the spool held a record of the session, which it releases when the Stop is delivered.
        """
        records = self._book.sessions.get(session)
        if records is not None:
            return records.stopped
        return was_on_disk and self._book.spool is not None and self._book.spool.continued

    def _record_removed(self) -> None:
        self._delivery.check_progress()
