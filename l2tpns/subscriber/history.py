"""Records of ended sessions for `show history`, which tells the operator why a subscriber was dropped."""

from __future__ import annotations

import time
from dataclasses import dataclass
from ipaddress import IPv4Address

from l2tpns import causes
from l2tpns.causes import SessionEnded
from l2tpns.radius.types import Usage
from l2tpns.subscriber.state import SessionState


@dataclass(frozen=True, slots=True)
class Ending:
    """How one session ended. The codes are those of RFC 2661 4.4.2, None if no CDN was sent in that direction."""

    ended: float  # wall clock
    session: int
    tunnel: int
    user: str
    address: IPv4Address | None
    lac: str
    calling: str
    cause: str
    why: str
    phase: str
    lac_result: int | None
    lac_error: int | None
    our_result: int | None
    our_error: int | None
    seconds: float  # time online
    in_octets: int  # from the subscriber
    out_octets: int


def ending(session: SessionState, end: SessionEnded, usage: Usage, seconds: float) -> Ending:
    """Return the record of a session that has ended."""
    by_lac = end.cause in (causes.LAC_CDN, causes.LAC_LOST_CARRIER) and end.result  # 0: its CDN had no readable code
    return Ending(
        ended=time.time(),
        session=session.id,
        tunnel=session.tunnel.id,
        user=session.user,
        address=usage.address,
        lac=session.tunnel.peer[0],
        calling=session.calling,
        cause=end.cause.name,
        why=end.text,
        phase=session.phase.value,
        lac_result=int(end.result) if by_lac else None,
        lac_error=int(end.error) if by_lac else None,
        our_result=int(end.result) if end.tell else None,
        our_error=int(end.error) if end.tell else None,
        seconds=seconds,
        in_octets=usage.in_octets,
        out_octets=usage.out_octets,
    )
