"""Accounting: one Start, some Interims, one Stop of every session, each delivered once (RFC 2866, RFC 2869).

start(), interim() and stop() only write to the spool and return. Greenlets deliver: a session's records in their order,
many sessions at once, for ever until a server acknowledges. A record that is sent again within one round is the same
packet with the same identifier, by which a server knows a repetition; only a later round tells a new Acct-Delay-Time
under a new identifier (RFC 2866 5.2).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path

import gevent
from gevent.event import Event
from pyrad.packet import Packet

from l2tpns.awake import AwakeClock
from l2tpns.errors import NoAnswer
from l2tpns.log import Logger
from l2tpns.radius import packets
from l2tpns.radius.spool import Entry, Spool
from l2tpns.radius.transport import Transport
from l2tpns.radius.types import RadiusSettings, TerminateCause, Usage
from l2tpns.radius.usage import (
    INTERIM,
    OFF,
    ON,
    START,
    STOP,
    dump_usage,
    fill_accounting_request,
    load_usage,
    never_less,
)

WORKERS = 256  # records in flight
# One round: 1 + 2 + 4 + 8 + 8 ... seconds, a little over a minute per server.
TRIES_PER_SERVER = 11
MAX_INTERVAL = 8.0
PAUSE = 5.0  # between two rounds of one record
GATE = 30.0  # Accounting-On goes first, but does not hold the others up for longer
SPOOL_OCTETS = 256 << 20
LOST_LOG_INTERVAL = 10.0


@dataclass(slots=True)
class AccountingStats:
    spooled: int = 0
    delivered: int = 0
    replaced: int = 0  # interims that a newer one made needless before they were delivered
    lost: int = 0  # records that found the spool full
    rounds_unanswered: int = 0


@dataclass(slots=True, eq=False)
class Account:
    """The records of one session; also of an Accounting-On or -Off, which go the same way."""

    session: str
    latest: Entry | None = None  # the Start or Interim that tells what is known; kept until the Stop is written
    pending: list[Entry] = field(default_factory=list)
    busy: bool = False  # its first pending record is with a worker, or waits for its next round
    stopped: bool = False  # nothing follows what is pending
    worker: gevent.Greenlet | None = None


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
        clock: Callable[[], float] = time.time,
        spool_octets: int = SPOOL_OCTETS,
    ) -> None:
        self.settings = settings
        self._dictionary = packets.load_dictionary()
        self.transport = Transport(settings, self._dictionary, log, accounting=True, random=random, awake=awake)
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
        self._held: list[Account] = []  # behind an Accounting-On
        self._gate: Account | None = None  # an Accounting-On that later records wait for
        self._farewell: Account | None = None  # the Accounting-Off, which waits for everybody else
        self._workers: set[gevent.Greenlet] = set()
        self._resting: dict[Account, gevent.Greenlet] = {}
        self._empty = Event()
        self._empty.set()
        self._lost_logged = 0.0
        self._closing = False

    # --- life

    def open(self) -> None:
        """Take up what an earlier process left, and go on delivering it. ConfigError if the spool cannot be used."""
        if self._spool is not None or not (self.settings.accounting or self._spool_dir.is_dir()):
            return
        spool = Spool(self._spool_dir, self._log, self._on_disk)
        left = spool.open()
        self._spool = spool
        for entry in left:
            if entry.kind in (ON, OFF):
                spool.release(entry)  # of another life: a new one is sent where it is due
                continue
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
        self._empty.wait(timeout)
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
            usage = replace(load_usage(account.latest.body), terminate_cause=int(TerminateCause.NAS_REBOOT))
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

    # --- records

    def _open_account(self, usage: Usage) -> Account | None:
        account = self._accounts.get(usage.acct_session_id)
        return None if account is None or account.stopped or self._spool is None else account

    def _monotonic(self, account: Account, usage: Usage) -> Usage:
        assert account.latest is not None
        return never_less(usage, load_usage(account.latest.body))

    def _stop(self, account: Account, usage: Usage, when: float) -> None:
        account.stopped = True
        self._record(account, STOP, usage, when)
        self._keep_latest(account, None)

    def _record(self, account: Account, kind: str, usage: Usage | None, when: float | None = None) -> Entry:
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
        self._sub_undelivered()

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

    def _sub_undelivered(self) -> None:
        self.undelivered -= 1
        if not self.undelivered:
            self._empty.set()
        elif self._farewell is not None and self.undelivered == len(self._farewell.pending):
            self._make_ready(self._farewell)

    # --- delivery

    def _on_disk(self, entries: list[Entry]) -> None:
        for entry in entries:
            account = self._accounts.get(entry.session)
            if account is not None:
                self._make_ready(account)

    def _make_ready(self, account: Account) -> None:
        if self._closing or account.busy or not account.pending or not account.pending[0].synced:
            return
        if account is self._farewell and self.undelivered > len(account.pending):
            return  # _sub_undelivered comes back to it
        if self._gate is not None and account.pending[0].number > self._gate.pending[0].number:
            self._held.append(account)
            return
        account.busy = True
        self._ready.append(account)
        self._need_worker()

    def _need_worker(self) -> None:
        if self._ready and len(self._workers) < WORKERS:
            worker = gevent.spawn(self._work)
            self._workers.add(worker)
            worker.rawlink(self._workers.discard)

    def _work(self) -> None:
        while self._ready:
            if not self.settings.secret or not self.settings.accounting_servers:
                gevent.sleep(PAUSE)  # until somebody configures them
                continue
            account = self._ready.popleft()
            account.worker = gevent.getcurrent()
            entry = account.pending[0]
            try:
                delivered = self._deliver(entry)
            except Exception:  # the greenlet's top: a bug with one record must not stop the others
                self._log.exception("accounting_failed", kind=entry.kind, acct=entry.session)
                delivered = False
            account.worker = None
            if delivered:
                self._delivered(account, entry)
            else:
                self._rest(account)

    def _deliver(self, entry: Entry) -> bool:
        settings = self.settings
        usage = None if entry.kind in (ON, OFF) else load_usage(entry.body)

        def encode(identifier: int, local: IPv4Address) -> tuple[Packet, bytes]:
            packet = packets.new_accounting_request(identifier, settings.secret, self._dictionary)
            fill_accounting_request(packet, entry.kind, usage, settings, local, happened=entry.time, now=self._clock())
            return packet, packet.RequestPacket()

        try:
            reply = self.transport.request(
                encode,
                label=entry.kind.upper(),
                session_id=usage.session_id if usage else 0,
                tries=TRIES_PER_SERVER * len(settings.accounting_servers),
                max_interval=MAX_INTERVAL,
            )
        except NoAnswer:
            self.stats.rounds_unanswered += 1
            return False
        return bool(reply.code == packets.ACCOUNTING_RESPONSE)

    def _delivered(self, account: Account, entry: Entry) -> None:
        assert self._spool is not None
        account.pending.pop(0)
        account.busy = False
        self.stats.delivered += 1
        if entry is account.latest:
            self._spool.mark_delivered(entry)
        else:
            self._spool.release(entry)
        if account.stopped and not account.pending:
            self._accounts.pop(account.session, None)
        self._sub_undelivered()
        self._make_ready(account)
        if entry.kind == ON:
            self._open_gate(account)
        else:
            self._forget_stale_on(entry)

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
        if account in self._ready:
            self._ready.remove(account)
        del self._accounts[ON]
        self._drop(account, account.pending[0])
        self._need_worker()

    def _rest(self, account: Account) -> None:
        """Others may have their turn; then another round."""
        self._resting[account] = gevent.spawn_later(PAUSE, self._end_rest, account)

    def _end_rest(self, account: Account) -> None:
        timer = self._resting.pop(account, None)
        if timer is not None and timer is not gevent.getcurrent():
            timer.kill(block=False)
        account.busy = False
        # While it was on its way a newer interim may have come.
        while len(account.pending) > 1 and account.pending[0].kind == account.pending[1].kind == INTERIM:
            self._drop(account, account.pending[0])
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
