"""The accounting records of one session, the figures of all, and when a record is given up (decision 18).

Only data and rules: record_book.py keeps the records, delivery.py sends them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import gevent

from l2tpns.errors import PassedOver
from l2tpns.radius.spool import Entry
from l2tpns.radius.transport import TransportTiming
from l2tpns.radius.usage import OFF, ON


@dataclass(frozen=True, slots=True)
class AccountingTiming:
    """How often and for how long a record is tried.

    A server passes a record over when it leaves it unanswered and answers others. From `suspect_tries` on no other
    record waits for it. After `replace_tries` the next record of its session takes its place; after
    `undeliverable_tries`, most of a day later, the last record of a session is given up. An outage counts less than
    `suspect_tries`: a server is dead after three tries.
    """

    # One round: 1 + 2 + 4 + 8 + 8 ... seconds, a little over a minute per server.
    tries_per_server: int = 11
    max_interval: float = 8.0  # seconds between two tries of a round
    retry_delay: float = 5.0  # seconds between two rounds of one record
    max_retry_delay: float = 3600.0  # seconds between two rounds of a record that servers pass over
    accounting_on_timeout: float = 30.0  # seconds that other records wait for the answer to an Accounting-On
    workers: int = 256  # records in flight
    retry_workers: int = 192  # of these, for records that were tried before: a new one always finds a worker
    suspect_tries: int = 4
    replace_tries: int = 8
    undeliverable_tries: int = 120
    failed_round_tries: int = 4  # tries that a round counts which failed in another way
    transport: TransportTiming = field(default_factory=TransportTiming)


@dataclass(slots=True)
class AccountingStats:
    spooled: int = 0
    delivered: int = 0
    replaced: int = 0  # interims that a newer one replaced before they were delivered
    lost: int = 0  # records that found the spool full
    set_aside: int = 0  # records that no server accepts
    rounds_unanswered: int = 0


@dataclass(slots=True, eq=False)
class SessionRecords:
    """The records of one session; also of an Accounting-On or -Off, which go the same way."""

    session: str
    latest: Entry | None = None  # the Start or Interim that holds what is known; kept until the Stop is written
    pending: list[Entry] = field(default_factory=list)
    busy: bool = False  # a worker has its first pending record, or it waits for its next round
    stopped: bool = False  # nothing follows what is pending
    cut_logged: bool = False  # it is logged that its records are too long for a packet
    worker: gevent.Greenlet | None = None


class Unreadable(Exception):
    """A record of the spool cannot be read."""


def count_unanswered(entry: Entry, round: PassedOver, answers: int) -> None:
    """Note that a round of this record ended without an answer.

    `answers` is the number of answers that the servers have given so far, to any request.
    """
    entry.passed_over += round.tries
    entry.unsure += round.unsure
    entry.answers = answers


def is_suspect(entry: Entry, timing: AccountingTiming) -> bool:
    return entry.passed_over >= timing.suspect_tries


def is_given_up(records: SessionRecords, answers: int, timing: AccountingTiming) -> bool:
    """Return whether servers have passed over the first pending record for long enough."""
    entry = records.pending[0]
    if entry.unsure and answers > entry.answers:  # a server was alive, then
        entry.passed_over += entry.unsure
        entry.unsure = 0
    if entry.kind in (ON, OFF):
        return False
    return entry.passed_over >= (timing.replace_tries if len(records.pending) > 1 else timing.undeliverable_tries)


def delay_before_retry(entry: Entry, timing: AccountingTiming) -> float:
    """Return the seconds until the next round of a record; a suspect's delay doubles with every few tries."""
    doublings = min(entry.passed_over // timing.suspect_tries - 1, 20) if is_suspect(entry, timing) else 0
    return min(timing.retry_delay * 2.0**doublings, timing.max_retry_delay)
