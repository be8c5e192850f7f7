"""Delivery of accounting records: a session's records in their order, many sessions at once (RFC 2866, RFC 5080 2.2).

A record is sent in rounds, for ever, until a server acknowledges it. A record that is sent again within one round is
the same packet with the same identifier, by which a server recognises a repetition; only a later round carries a new
Acct-Delay-Time under a new identifier (RFC 2866 5.2).

A record that a server never accepts, while it accepts others, must not keep others waiting: new records always find a
worker, the Accounting-Off goes without it, and the next record of its session replaces it (docs/decisions/0018).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address

import gevent
from gevent.event import Event

from l2tpns.errors import NoAnswer, PassedOver
from l2tpns.radius import packets
from l2tpns.radius.framing import ACCOUNTING_RESPONSE, MAX_PACKET
from l2tpns.radius.record_book import RecordBook
from l2tpns.radius.request_packet import RequestPacket
from l2tpns.radius.session_records import (
    AccountingTiming,
    SessionRecords,
    Unreadable,
    count_unanswered,
    delay_before_retry,
    is_given_up,
    is_suspect,
)
from l2tpns.radius.settings import RadiusSettings
from l2tpns.radius.spool import Entry
from l2tpns.radius.transport import Transport
from l2tpns.radius.usage import INTERIM, OFF, ON, fill_accounting_request
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.clock import Moment, date, elapsed
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Supervisor

NOT_ACCEPTED = "servers answer other records and never this one"


class Delivery:
    """Sends the records of the record book. add() reports that a session has a record on disk."""

    def __init__(
        self,
        settings: RadiusSettings,
        book: RecordBook,
        log: Logger,
        *,
        clock: Callable[[], Moment],
        supervisor: Supervisor,
        timing: AccountingTiming,
        random: Callable[[int], bytes] = os.urandom,
        awake: AwakeClock | None = None,
    ) -> None:
        self._book = book
        self._log = log
        self._clock = clock
        self._timing = timing
        self.transport = Transport(
            settings,
            log,
            accounting=True,
            random=random,
            awake=awake,
            supervisor=supervisor,
            timing=timing.transport,
        )
        self._ready: deque[SessionRecords] = deque()  # their first pending record was never tried
        self._ready_again: deque[SessionRecords] = deque()  # it was; these have timing.retry_workers at most
        self._workers: set[gevent.Greenlet] = set()
        self._retries_in_flight = 0
        self._retry_timers: dict[SessionRecords, gevent.Greenlet] = {}
        self._accounting_on: SessionRecords | None = None  # later records wait for its answer
        self._behind_accounting_on: list[SessionRecords] = []
        self._accounting_off: SessionRecords | None = None  # waits for all other records
        self._last_call = False  # the Accounting-Off waits no longer
        self._closing = False
        self._nothing_hopeful = Event()
        self._nothing_hopeful.set()

    def close(self, timeout: float) -> None:
        """Deliver what can be delivered in that time. Yields."""
        for records in list(self._retry_timers):
            self._retry(records)
        self.check_progress()
        if not self._nothing_hopeful.wait(timeout * 2 / 3):
            self._last_call = True  # the next process delivers the records that are left
            if self._accounting_off is not None:
                self.add(self._accounting_off)
            self._nothing_hopeful.wait(timeout / 3)
        self._closing = True
        gevent.killall([*self._workers, *self._retry_timers.values()])
        self.transport.close()

    def check_progress(self) -> None:
        """Release what waits until no record is left that a server may accept: the Accounting-Off, and close()."""
        hopeful = self._book.hopeful
        if not hopeful:
            self._nothing_hopeful.set()
            return
        self._nothing_hopeful.clear()
        if self._accounting_off is not None and hopeful == len(self._accounting_off.pending):
            self.add(self._accounting_off)

    # --- what is ready to be sent

    def synced(self, entries: list[Entry]) -> None:
        """Take records that are safe on disk."""
        for entry in entries:
            records = self._book.sessions.get(entry.session)
            if records is None:
                continue
            if records in self._retry_timers and self._is_given_up(records):
                self._retry(records)
            self.add(records)

    def add(self, records: SessionRecords) -> None:
        """Have the first pending record of a session sent, if it may be sent now. Does not yield."""
        if self._closing or records.busy or not records.pending or not records.pending[0].synced:
            return
        if records is self._accounting_off and self._book.hopeful > len(records.pending) and not self._last_call:
            return  # check_progress comes back to it
        first = self._accounting_on
        if first is not None and records.pending[0].number > first.pending[0].number:
            self._behind_accounting_on.append(records)
            return
        records.busy = True
        (self._ready_again if records.pending[0].tried else self._ready).append(records)
        self._need_worker()

    def add_accounting_on(self, records: SessionRecords) -> None:
        """Let later records wait for the answer to this Accounting-On, within its time-out."""
        self._accounting_on = records
        gevent.spawn(self._stop_waiting_for_on, records)

    def add_accounting_off(self, records: SessionRecords) -> None:
        """Send this Accounting-Off when all other records are delivered or suspect."""
        self._accounting_off = records

    def _need_worker(self) -> None:
        if (self._ready or self._ready_again) and len(self._workers) < self._timing.workers:
            worker = gevent.spawn(self._work)
            self._workers.add(worker)
            worker.rawlink(self._workers.discard)

    def _next_ready(self) -> SessionRecords | None:
        if self._ready:
            return self._ready.popleft()
        if self._ready_again and self._retries_in_flight < self._timing.retry_workers:
            return self._ready_again.popleft()
        return None

    # --- workers

    def _work(self) -> None:
        while self._ready or self._ready_again:
            settings = self.transport.settings
            if not settings.secret or not settings.accounting_servers:
                gevent.sleep(self._timing.retry_delay)  # until the operator configures them
                continue
            records = self._next_ready()
            if records is None:
                return
            entry = records.pending[0]
            retry, entry.tried = entry.tried, True
            self._retries_in_flight += retry
            records.worker = gevent.getcurrent()
            try:
                delivered = self._send(records, entry)
            except Unreadable as error:
                records.worker = None
                self._give_up(records, str(error))
                continue
            except Exception:  # the greenlet's top: a bug with one record must not stop the others
                self._log.exception("accounting_failed", kind=entry.kind, acct=entry.session)
                entry.passed_over += self._timing.failed_round_tries
                delivered = False
            except BaseException:  # this greenlet is killed: another one sends the record, if it is still needed
                records.worker = None
                if not self._closing and self._book.sessions.get(records.session) is records:
                    self._retry_later(records)
                raise
            finally:
                self._retries_in_flight -= retry
            records.worker = None
            if delivered:
                self._delivered(records)
            else:
                self._retry_later(records)

    def _send(self, records: SessionRecords, entry: Entry) -> bool:
        """Send a record for one round. Return whether a server acknowledged it. Raises Unreadable. Yields."""
        settings = self.transport.settings
        usage = None if entry.kind in (ON, OFF) else self._book.usage(entry)

        def encode(identifier: int, local: IPv4Address) -> tuple[RequestPacket, bytes]:
            packet = packets.new_accounting_request(identifier, settings.secret)
            now = self._clock()
            happened, late = date(entry.time, now), elapsed(entry.time, now)
            left_out = fill_accounting_request(
                packet, entry.kind, usage, settings, local, happened=happened, now=happened + late
            )
            if left_out and not records.cut_logged:
                records.cut_logged = True
                self._log.warning(
                    "accounting_record_cut",
                    acct=entry.session,
                    user=usage.user if usage is not None else "",
                    left_out=dict(left_out),
                    why=f"a RADIUS packet is limited to {MAX_PACKET} octets",
                )
            return packet, packet.encode()

        try:
            reply = self.transport.request(
                encode,
                label=entry.kind.upper(),
                session_id=usage.session_id if usage else 0,
                tries=self._timing.tries_per_server * len(settings.accounting_servers),
                max_interval=self._timing.max_interval,
            )
        except NoAnswer as silence:
            self._book.stats.rounds_unanswered += 1
            if isinstance(silence, PassedOver):
                count_unanswered(entry, silence, self.transport.answers)
            return False
        if reply.code == ACCOUNTING_RESPONSE:
            return True
        self._log.warning_limited("radius_reply_unknown", acct=entry.session, code=reply.code)
        entry.passed_over += self._timing.failed_round_tries
        return False

    def _delivered(self, records: SessionRecords) -> None:
        self._book.stats.delivered += 1
        entry = self._finish(records)
        if entry.kind == ON:
            self._send_behind_on(records)
        else:
            self._drop_late_on(entry)

    def _finish(self, records: SessionRecords) -> Entry:
        """Remove the first pending record, which is delivered or given up, and go on with the next."""
        entry = self._book.finish(records)
        self.add(records)
        return entry

    # --- another round, or none

    def _retry_later(self, records: SessionRecords) -> None:
        entry = records.pending[0]
        given_up = self._is_given_up(records)
        if is_suspect(entry, self._timing):
            self._book.suspects.add(entry)
            self.check_progress()
        if given_up:
            self._give_up(records, NOT_ACCEPTED)
        else:
            delay = delay_before_retry(entry, self._timing)
            self._retry_timers[records] = gevent.spawn_later(delay, self._retry, records)

    def _retry(self, records: SessionRecords) -> None:
        timer = self._retry_timers.pop(records, None)
        if timer is not None and timer is not gevent.getcurrent():
            timer.kill(block=False)
        records.busy = False
        # While it was in flight a newer interim may have come.
        while len(records.pending) > 1 and records.pending[0].kind == records.pending[1].kind == INTERIM:
            self._book.drop(records, records.pending[0])
        if self._is_given_up(records):
            self._give_up(records, NOT_ACCEPTED)
        else:
            self.add(records)

    def _is_given_up(self, records: SessionRecords) -> bool:
        return is_given_up(records, self.transport.answers, self._timing)

    def _give_up(self, records: SessionRecords, why: str) -> None:
        """Move the first pending record to the file for the operator."""
        self._book.stats.set_aside += 1
        self._book.keep_undeliverable(records.pending[0], why)
        self._finish(records)

    # --- Accounting-On

    def _drop_late_on(self, delivered: Entry) -> None:
        """Drop an undelivered Accounting-On that is older than a delivered record: it would end that session."""
        records = self._book.sessions.get(ON)
        if records is None or delivered.number < records.pending[0].number:
            return
        if records.worker is not None:
            records.worker.kill(block=False)
        timer = self._retry_timers.pop(records, None)
        if timer is not None:
            timer.kill(block=False)
        for ready in (self._ready, self._ready_again):
            if records in ready:
                ready.remove(records)
        del self._book.sessions[ON]
        self._book.drop(records, records.pending[0])
        self._need_worker()

    def _stop_waiting_for_on(self, records: SessionRecords) -> None:
        self.transport.awake.sleep(self._timing.accounting_on_timeout)
        self._send_behind_on(records)

    def _send_behind_on(self, records: SessionRecords) -> None:
        """Send the records that wait for this Accounting-On."""
        if self._accounting_on is not records:
            return
        self._accounting_on = None
        if records.pending:
            self._log.warning("accounting_on_unanswered", seconds=self._timing.accounting_on_timeout)
        waiting, self._behind_accounting_on = self._behind_accounting_on, []
        for other in waiting:
            self.add(other)
