"""Accounting: one Start, some Interims, one Stop of every session, each delivered once (RFC 2866, RFC 2869).

start(), interim() and stop() only write to the spool and return. Greenlets deliver: a session's records in their order,
many sessions at once, for ever until a server acknowledges. A record that is sent again within one round is the same
packet with the same identifier, by which a server knows a repetition; only a later round tells a new Acct-Delay-Time
under a new identifier (RFC 2866 5.2).

A record that a server never takes, while it takes others, must not keep others waiting: new records always find a
worker, the Accounting-Off goes without it, and it gives way to the next record of its session (docs/decisions/0018).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import gevent
from gevent.event import Event
from pyrad.packet import Packet

from l2tpns.errors import NoAnswer, PassedOver
from l2tpns.radius import packets, set_aside
from l2tpns.radius.account import (
    A_ROUND,
    Account,
    AccountingStats,
    Unreadable,
    gives_way,
    is_suspect,
    passed_over,
    pause_before,
)
from l2tpns.radius.spool import Entry, Spool
from l2tpns.radius.transport import Transport
from l2tpns.radius.types import RadiusSettings, TerminateCause, Usage
from l2tpns.radius.usage import (
    INTERIM,
    OFF,
    ON,
    START,
    STATUS,
    STOP,
    dump_usage,
    fill_accounting_request,
    load_usage,
    never_less,
    unusable,
)
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.clock import Moment, date, elapsed, moment
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Supervisor

WORKERS = 256  # records in flight
# One round: 1 + 2 + 4 + 8 + 8 ... seconds, a little over a minute per server.
TRIES_PER_SERVER = 11
MAX_INTERVAL = 8.0
PAUSE = 5.0  # between two rounds of one record
AGAIN_WORKERS = WORKERS // 4 * 3  # for records that were in vain before: new ones always find a worker
GATE = 30.0  # Accounting-On goes first, but does not hold the others up for longer
SPOOL_OCTETS = 256 << 20
LOST_LOG_INTERVAL = 10.0
NOT_TAKEN = "servers answer other records and never this one"


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
    ) -> None:
        self._supervisor = supervisor or Supervisor(log)
        self.settings = settings
        self._dictionary = packets.load_dictionary()
        self.transport = Transport(
            settings,
            self._dictionary,
            log,
            accounting=True,
            random=random,
            awake=awake,
            supervisor=self._supervisor,
        )
        self._awake = self.transport.awake
        self.stats = AccountingStats()
        self.undelivered = 0
        self._log = log
        self._clock = clock
        self._limit = spool_octets
        self._spool_dir = Path(spool_dir)
        self._spool: Spool | None = None
        self._accounts: dict[str, Account] = {}
        self._ready: deque[Account] = deque()
        self._ready_again: deque[Account] = deque()  # have AGAIN_WORKERS at most
        self._again_out = 0  # how many of them workers have
        self._suspects: set[Entry] = set()  # undelivered records that servers pass over
        self._held: list[Account] = []  # behind an Accounting-On
        self._gate: Account | None = None  # an Accounting-On that later records wait for
        self._farewell: Account | None = None  # the Accounting-Off, which waits for everybody else
        self._workers: set[gevent.Greenlet] = set()
        self._resting: dict[Account, gevent.Greenlet] = {}
        self._empty = Event()
        self._empty.set()
        self._lost_logged = 0.0
        self._leaving = False  # the Accounting-Off waits for nothing any more
        self._closing = False
        self._unreadable: dict[int, str] = {}  # records of an earlier process, by number: what is wrong with them

    # --- life

    def open(self) -> None:
        """Take up what an earlier process left, and go on delivering it. ConfigError if the spool cannot be used."""
        if self._spool is not None or not (self.settings.accounting or self._spool_dir.is_dir()):
            return
        spool = Spool(self._spool_dir, self._log, self._on_disk, supervisor=self._supervisor)
        left = spool.open()
        self._spool = spool
        for entry in left:
            if entry.kind in (ON, OFF):
                spool.release(entry)  # of another life: a new one is sent where it is due
                continue
            if entry.kind not in STATUS:
                self._keep_aside(entry, "a kind of record that this release does not know")
                spool.release(entry)
                spool.continued = False  # it does not know all that it knew
                continue
            why = unusable(entry.kind, entry.session, entry.body)
            if why:
                self._unreadable[entry.number] = why
            account = self._accounts.setdefault(entry.session, Account(entry.session))
            if not entry.delivered:
                account.pending.append(entry)
                self._add_undelivered()
            if entry.kind == STOP:
                account.stopped = True
                self._keep_latest(account, None)
            else:
                self._keep_latest(account, entry)
        for account in self._accounts.values():
            if account.pending:
                self._make_ready(account)
        if left:
            self._log.info("spool_read", sessions=len(self._accounts), undelivered=self.undelivered)

    def configure(self, settings: RadiusSettings) -> None:
        """radius_accounting switched off still lets the sessions that have a Start have their Stop."""
        self.settings = settings
        self.transport.configure(settings)
        self.open()

    def close(self, timeout: float = 5.0) -> bool:
        """Deliver what can be delivered in that time; the rest waits in the spool. True when nothing is left."""
        for account in list(self._resting):
            self._end_rest(account)
        if not self._empty.wait(timeout * 2 / 3):
            self._send_farewell()
            self._empty.wait(timeout / 3)
        delivered = self.undelivered == 0
        self._closing = True
        gevent.killall([*self._workers, *self._resting.values()])
        self.transport.close()
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        if not delivered:
            self._log.warning("accounting_left_in_spool", records=self.undelivered, path=str(self._spool_dir))
        return delivered

    # --- what sessions say

    def start(self, usage: Usage) -> None:
        if not self.settings.accounting or self._spool is None:
            return
        if usage.acct_session_id in self._accounts:
            return  # taken up again after a restart: it has its Start
        if self._full(self._limit, START, usage.acct_session_id):
            return
        account = self._accounts[usage.acct_session_id] = Account(usage.acct_session_id)
        self._keep_latest(account, self._record(account, START, usage))

    def interim(self, usage: Usage) -> None:
        account = self._open_account(usage)
        if account is None or self._full(self._limit // 4 * 3, INTERIM, usage.acct_session_id):
            return
        waiting = account.pending[1:] if account.busy else account.pending
        replaced = waiting[-1] if waiting and waiting[-1].kind == INTERIM else None
        self._keep_latest(account, self._record(account, INTERIM, self._monotonic(account, usage)))
        if replaced is not None:
            self._drop(account, replaced)

    def stop(self, usage: Usage) -> None:
        """Always taken, however full the spool: there is one for each Start."""
        account = self._open_account(usage)
        if account is not None:
            self._stop(account, self._monotonic(account, usage), self._clock())

    def on(self) -> None:
        """Accounting-On: whatever the server thinks is open here is not. Not for a start that took sessions up."""
        if not self.settings.accounting or self._spool is None:
            return
        account = self._gate = self._accounts[ON] = Account(ON, stopped=True)
        self._record(account, ON, None)
        gevent.spawn(self._give_up_gate, account)

    def off(self) -> None:
        """Accounting-Off, when everything else is delivered."""
        if not self.settings.accounting or self._spool is None:
            return
        self._farewell = self._accounts[OFF] = Account(OFF, stopped=True)
        self._record(self._farewell, OFF, None)

    def recover(self, adopted: Collection[str]) -> int:
        """Stop the sessions of an earlier process that nobody took up; how many these were."""
        lost = [a for a in self._accounts.values() if not a.stopped and a.session not in adopted and a.latest]
        for account in lost:
            assert account.latest is not None
            # What is known ends at the last record: that is when, and with what, the session is said to have ended.
            usage = replace(self._last_known(account), terminate_cause=int(TerminateCause.NAS_REBOOT))
            self._stop(account, usage, account.latest.time)
        if lost:
            self._log.warning("sessions_stopped_after_crash", sessions=len(lost))
        return len(lost)

    @property
    def spool(self) -> Spool | None:
        """None while nothing touches the disk."""
        return self._spool

    def open_sessions(self) -> list[str]:
        """Sessions with a Start and without a Stop."""
        return [account.session for account in self._accounts.values() if not account.stopped]

    def is_on_disk(self, session: str) -> bool:
        """Whether the next process will find the session's last record in the spool."""
        account = self._accounts.get(session)
        if account is None or account.stopped or account.latest is None or self._spool is None:
            return False
        return self._spool.holds(account.latest)

    def has_stopped(self, session: str, was_on_disk: bool) -> bool:
        """Whether a session of an earlier process has had its Stop. `was_on_disk`: its record had been in the spool,
        which lets go of it when the Stop is delivered, and not before. Of a spool that is new nothing can be said."""
        account = self._accounts.get(session)
        if account is not None:
            return account.stopped
        return was_on_disk and self._spool is not None and self._spool.continued

    # --- records

    def _open_account(self, usage: Usage) -> Account | None:
        account = self._accounts.get(usage.acct_session_id)
        return None if account is None or account.stopped or self._spool is None else account

    def _monotonic(self, account: Account, usage: Usage) -> Usage:
        return never_less(usage, self._last_known(account))

    def _last_known(self, account: Account) -> Usage:
        """Return the usage of the newest record; of a record that cannot be read, only the session's name."""
        assert account.latest is not None
        try:
            return self._usage(account.latest)
        except Unreadable:
            return Usage(account.session, b"", 0)

    def _stop(self, account: Account, usage: Usage, when: Moment) -> None:
        account.stopped = True
        self._record(account, STOP, usage, when)
        self._keep_latest(account, None)

    def _record(self, account: Account, kind: str, usage: Usage | None, when: Moment | None = None) -> Entry:
        assert self._spool is not None
        body = b"null" if usage is None else dump_usage(usage)
        entry = self._spool.append(kind, account.session, self._clock() if when is None else when, body)
        account.pending.append(entry)
        self.stats.spooled += 1
        self._add_undelivered()
        return entry

    def _keep_latest(self, account: Account, entry: Entry | None) -> None:
        """Only the newest tells what is known; the one before is needed until it is delivered."""
        assert self._spool is not None
        old, account.latest = account.latest, entry
        if old is not None and old.delivered:
            self._spool.release(old)

    def _drop(self, account: Account, entry: Entry) -> None:
        """An undelivered record that a newer one replaces."""
        assert self._spool is not None
        account.pending.remove(entry)
        self._spool.release(entry)
        self.stats.replaced += 1
        self._sub_undelivered(entry)

    def _full(self, limit: int, kind: str, session: str) -> bool:
        assert self._spool is not None
        if self._spool.live_octets < limit:
            return False
        self.stats.lost += 1
        now = time.monotonic()
        if now - self._lost_logged >= LOST_LOG_INTERVAL or self.stats.lost == 1:
            self._lost_logged = now
            self._log.error("accounting_lost", why="the spool is full", kind=kind, lost=self.stats.lost, acct=session)
        return True

    def _add_undelivered(self) -> None:
        self.undelivered += 1
        self._empty.clear()

    def _sub_undelivered(self, entry: Entry) -> None:
        self._suspects.discard(entry)
        self.undelivered -= 1
        self._go_on_without_suspects()

    @property
    def _hopeful(self) -> int:
        """Return how many undelivered records servers may take at any time."""
        return self.undelivered - len(self._suspects)

    def _go_on_without_suspects(self) -> None:
        if not self._hopeful:
            self._empty.set()
        elif self._farewell is not None and self._hopeful == len(self._farewell.pending):
            self._make_ready(self._farewell)

    # --- delivery

    def _on_disk(self, entries: list[Entry]) -> None:
        for entry in entries:
            account = self._accounts.get(entry.session)
            if account is None:
                continue
            if account in self._resting and gives_way(account, self.transport.answers):
                self._end_rest(account)
            self._make_ready(account)

    def _make_ready(self, account: Account) -> None:
        if self._closing or account.busy or not account.pending or not account.pending[0].synced:
            return
        if account is self._farewell and self._hopeful > len(account.pending) and not self._leaving:
            return  # _go_on_without_suspects comes back to it
        if self._gate is not None and account.pending[0].number > self._gate.pending[0].number:
            self._held.append(account)
            return
        account.busy = True
        (self._ready_again if account.pending[0].tried else self._ready).append(account)
        self._need_worker()

    def _need_worker(self) -> None:
        if (self._ready or self._ready_again) and len(self._workers) < WORKERS:
            worker = gevent.spawn(self._work)
            self._workers.add(worker)
            worker.rawlink(self._workers.discard)

    def _next_ready(self) -> Account | None:
        if self._ready:
            return self._ready.popleft()
        if self._ready_again and self._again_out < AGAIN_WORKERS:
            return self._ready_again.popleft()
        return None

    def _work(self) -> None:
        while self._ready or self._ready_again:
            if not self.settings.secret or not self.settings.accounting_servers:
                gevent.sleep(PAUSE)  # until somebody configures them
                continue
            account = self._next_ready()
            if account is None:
                return
            entry = account.pending[0]
            again, entry.tried = entry.tried, True
            self._again_out += again
            account.worker = gevent.getcurrent()
            try:
                delivered = self._deliver(account, entry)
            except Unreadable as error:
                account.worker = None
                self._set_aside(account, str(error))
                continue
            except Exception:  # the greenlet's top: a bug with one record must not stop the others
                self._log.exception("accounting_failed", kind=entry.kind, acct=entry.session)
                entry.passed_over += A_ROUND
                delivered = False
            except BaseException:  # it is ended: the record, if it is still wanted, has its turn with another
                account.worker = None
                if not self._closing and self._accounts.get(account.session) is account:
                    self._rest(account)
                raise
            finally:
                self._again_out -= again
            account.worker = None
            if delivered:
                self._delivered(account)
            else:
                self._rest(account)

    def _usage(self, entry: Entry) -> Usage:
        """Return what the record says. Raises Unreadable."""
        try:
            if entry.number in self._unreadable:
                raise Unreadable(self._unreadable[entry.number])
            return load_usage(entry.body)
        except ValueError as error:
            raise Unreadable(str(error)) from error

    def _deliver(self, account: Account, entry: Entry) -> bool:
        settings = self.settings
        usage = None if entry.kind in (ON, OFF) else self._usage(entry)

        def encode(identifier: int, local: IPv4Address) -> tuple[Packet, bytes]:
            packet = packets.new_accounting_request(identifier, settings.secret, self._dictionary)
            now = self._clock()
            happened, late = date(entry.time, now), elapsed(entry.time, now)
            left_out = fill_accounting_request(
                packet, entry.kind, usage, settings, local, happened=happened, now=happened + late
            )
            if left_out and not account.cut:
                account.cut = True
                self._log.warning(
                    "accounting_record_cut",
                    acct=entry.session,
                    user=usage.user if usage is not None else "",
                    left_out=dict(left_out),
                    why=f"a packet has at most {packets.MAX_PACKET} octets",
                )
            return packet, packet.RequestPacket()

        try:
            reply = self.transport.request(
                encode,
                label=entry.kind.upper(),
                session_id=usage.session_id if usage else 0,
                tries=TRIES_PER_SERVER * len(settings.accounting_servers),
                max_interval=MAX_INTERVAL,
            )
        except NoAnswer as silence:
            self.stats.rounds_unanswered += 1
            if isinstance(silence, PassedOver):
                passed_over(entry, silence, self.transport.answers)
            return False
        if reply.code == packets.ACCOUNTING_RESPONSE:
            return True
        self._log.provoked("radius_reply_unknown", acct=entry.session, code=reply.code)
        entry.passed_over += A_ROUND
        return False

    def _delivered(self, account: Account) -> None:
        self.stats.delivered += 1
        entry = self._finish(account)
        if entry.kind == ON:
            self._open_gate(account)
        else:
            self._forget_stale_on(entry)

    def _finish(self, account: Account) -> Entry:
        """Forget the first of its pending records, which is delivered or set aside, and go on with the next."""
        assert self._spool is not None
        entry = account.pending.pop(0)
        account.busy = False
        if entry is account.latest:
            self._spool.mark_delivered(entry)
        else:
            self._spool.release(entry)
        if account.stopped and not account.pending:
            self._accounts.pop(account.session, None)
        self._sub_undelivered(entry)
        self._make_ready(account)
        return entry

    # --- what no server takes

    def _send_farewell(self) -> None:
        """Send the Accounting-Off now. The next process delivers the records that are left."""
        self._leaving = True
        if self._farewell is not None:
            self._make_ready(self._farewell)

    def _set_aside(self, account: Account, why: str) -> None:
        """Give up the first of its pending records, which goes into a file for the operator."""
        self.stats.set_aside += 1
        self._keep_aside(account.pending[0], why)
        self._finish(account)

    def _keep_aside(self, entry: Entry, why: str) -> None:
        lost = set_aside.keep(self._spool_dir, entry, why, self._clock().wall)
        path = str(self._spool_dir / set_aside.NAME)
        self._log.error("accounting_set_aside", acct=entry.session, kind=entry.kind, why=why, path=path, lost=lost)

    def _forget_stale_on(self, delivered: Entry) -> None:
        """An Accounting-On that comes after a Start would end that session: it goes first or not at all."""
        account = self._accounts.get(ON)
        if account is None or delivered.number < account.pending[0].number:
            return
        if account.worker is not None:
            account.worker.kill(block=False)
        timer = self._resting.pop(account, None)
        if timer is not None:
            timer.kill(block=False)
        for ready in (self._ready, self._ready_again):
            if account in ready:
                ready.remove(account)
        del self._accounts[ON]
        self._drop(account, account.pending[0])
        self._need_worker()

    def _rest(self, account: Account) -> None:
        """Others may have their turn; then another round."""
        entry = account.pending[0]
        leave = gives_way(account, self.transport.answers)
        if is_suspect(entry):
            self._suspects.add(entry)
            self._go_on_without_suspects()
        if leave:
            self._set_aside(account, NOT_TAKEN)
        else:
            self._resting[account] = gevent.spawn_later(pause_before(entry, PAUSE), self._end_rest, account)

    def _end_rest(self, account: Account) -> None:
        timer = self._resting.pop(account, None)
        if timer is not None and timer is not gevent.getcurrent():
            timer.kill(block=False)
        account.busy = False
        # While it was on its way a newer interim may have come.
        while len(account.pending) > 1 and account.pending[0].kind == account.pending[1].kind == INTERIM:
            self._drop(account, account.pending[0])
        if gives_way(account, self.transport.answers):
            self._set_aside(account, NOT_TAKEN)
        else:
            self._make_ready(account)

    def _give_up_gate(self, account: Account) -> None:
        """Wait for the server's answer to an Accounting-On, but no longer than GATE."""
        self._awake.sleep(GATE)
        self._open_gate(account)

    def _open_gate(self, account: Account) -> None:
        if self._gate is not account:
            return
        self._gate = None
        if account.pending:
            self._log.warning("accounting_on_unanswered", seconds=GATE)
        held, self._held = self._held, []
        for other in held:
            self._make_ready(other)
