"""What accounting keeps of one session, what it has counted of all, and when it gives a record up (decision 18).

Nothing here moves a record: accounting.py does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import gevent

from l2tpns.errors import PassedOver
from l2tpns.radius.spool import Entry
from l2tpns.radius.usage import OFF, ON

# Tries after which a server answered others and not this record. From SUSPECT on nothing else waits for it; at GIVE_WAY
# the next record of its session takes its place; at SET_ASIDE, most of a day later, the last one is given up. An outage
# counts less than SUSPECT: a server is dead after three tries.
SUSPECT, GIVE_WAY, SET_ASIDE = 4, 8, 120
A_ROUND = 4  # so many tries a round counts that failed in another way
LONGEST_PAUSE = 3600.0  # between two rounds of a record that is passed over again and again


@dataclass(slots=True)
class AccountingStats:
    spooled: int = 0
    delivered: int = 0
    replaced: int = 0  # interims that a newer one made needless before they were delivered
    lost: int = 0  # records that found the spool full
    set_aside: int = 0  # records that no server takes
    rounds_unanswered: int = 0


@dataclass(slots=True, eq=False)
class Account:
    """The records of one session; also of an Accounting-On or -Off, which go the same way."""

    session: str
    latest: Entry | None = None  # the Start or Interim that tells what is known; kept until the Stop is written
    pending: list[Entry] = field(default_factory=list)
    busy: bool = False  # its first pending record is with a worker, or waits for its next round
    stopped: bool = False  # nothing follows what is pending
    cut: bool = False  # the log has said that its records are too long for a packet
    worker: gevent.Greenlet | None = None


class Unreadable(Exception):
    """A record of the spool cannot be read."""


def passed_over(entry: Entry, silence: PassedOver, answers: int) -> None:
    """A round of this record has ended. `answers`: those that servers have given to whatever was asked."""
    entry.passed_over += silence.tries
    entry.unsure += silence.unsure
    entry.answers = answers


def is_suspect(entry: Entry) -> bool:
    return entry.passed_over >= SUSPECT


def gives_way(account: Account, answers: int) -> bool:
    """Return whether the first pending record of a session has been passed over for long enough."""
    entry = account.pending[0]
    if entry.unsure and answers > entry.answers:  # the server was alive, then
        entry.passed_over += entry.unsure
        entry.unsure = 0
    if entry.kind in (ON, OFF):
        return False
    return entry.passed_over >= (GIVE_WAY if len(account.pending) > 1 else SET_ASIDE)


def pause_before(entry: Entry, pause: float) -> float:
    """Return how long a record rests before its next round; a suspect's pause doubles with every few tries."""
    doublings = min(entry.passed_over // SUSPECT - 1, 20) if is_suspect(entry) else 0
    return min(pause * 2.0**doublings, LONGEST_PAUSE)
