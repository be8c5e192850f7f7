"""What accounting keeps of one session, and what it has counted of all: data only, accounting.py moves it."""

from __future__ import annotations

from dataclasses import dataclass, field

import gevent

from l2tpns.radius.spool import Entry


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
    cut: bool = False  # the log has told that its records are too long for a packet
    worker: gevent.Greenlet | None = None


class Unreadable(Exception):
    """A record of the spool that tells nothing that could be sent."""
