"""What an operator, RADIUS or a plugin has decided about one session: how fast, in a garden or not, copied to whom.

A Policy is data, saved with the session. Parts make it so: the Lns holds one of each kind, and tells them when a
session comes online and when it is offline again.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Protocol

from l2tpns.errors import L2tpnsError

if TYPE_CHECKING:
    from l2tpns.subscriber.session import Session


class PolicyError(L2tpnsError):
    """It cannot be had; in words for the operator."""


@dataclass(frozen=True, slots=True)
class Sink:
    """Where copies of packets go."""

    address: IPv4Address
    port: int


@dataclass(frozen=True, slots=True)
class Policy:
    """`in` is from the subscriber, `out` is to the subscriber, as in accounting."""

    rate_in: int = 0  # kbit/s; 0: not throttled
    rate_out: int = 0
    garden: str = ""  # name of the walled garden that the session is in
    sink: Sink | None = None


class Part(Protocol):
    """One kind of policy."""

    def begin(self, session: Session) -> None:
        """The session is online, or was taken up again after a restart: make its policy so."""

    def finish(self, session: Session) -> None:
        """It is offline. Harmless at any time, and twice."""
