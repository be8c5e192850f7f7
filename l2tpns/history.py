"""Sessions that have ended: the last thousand, for the operator who asks why somebody dropped."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

LENGTH = 1000


@dataclass(frozen=True, slots=True)
class Ending:
    """How one session ended. The codes are those of RFC 2661 4.4.2; None where no CDN went that way."""

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
    seconds: float  # online
    in_octets: int  # from the subscriber
    out_octets: int
