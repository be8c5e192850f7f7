"""What is imposed on one session from outside: its rates, its walled garden, the copies of its packets.

A `Policy` is data, saved with the session. A `PolicyPart` enforces one kind of it: there is one of each for the server,
and sessions call them when they come online and when they are offline again. Parts see a session as a `Subscriber`.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Protocol

from l2tpns.causes import Cause
from l2tpns.dataplane.session_path import SessionPath
from l2tpns.errors import L2tpnsError
from l2tpns.radius.types import AuthReply, TerminateCause, Usage
from l2tpns.runtime.log import Logger


class PolicyError(L2tpnsError):
    """A policy cannot be applied; the text is for the operator."""


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

    @property
    def throttled(self) -> bool:
        """Return whether any rate is limited."""
        return bool(self.rate_in or self.rate_out)


class Filtered(Protocol):
    """A session, as far as packet filters know it."""

    log: Logger
    path: SessionPath


class Subscriber(Protocol):
    """A session, as far as policies and the registry know it."""

    id: int
    log: Logger
    path: SessionPath
    user: str
    acct_session_id: str
    address: IPv4Address | None
    profile: AuthReply | None  # what RADIUS has said of it
    online_since: float  # monotonic; 0.0 while it is not online
    greenlet: Any

    @property
    def policy(self) -> Policy:
        """Return what is imposed on it now."""

    @property
    def tunnel_id(self) -> int:
        """Return our id of its tunnel."""

    @property
    def alive(self) -> bool:
        """Return False once it has ended."""

    @property
    def proven_user(self) -> str:
        """Return its user name if its login has proven that, else nothing."""

    def change_policy(self, **changes: Any) -> None:
        """Replace fields of its policy. Does not yield."""

    def rename(self, user: str) -> None:
        """Give it another user name, for accounting too. Does not yield."""

    def end(self, reason: Cause, *, tell: bool = True, text: str = "") -> None:
        """End it soon. Called from any greenlet; does not yield."""

    def replace_older(self) -> None:
        """End the sessions that a login of this user replaces, and wait until they have released what they hold."""

    def suspend_service(self, cause: TerminateCause) -> Usage:
        """End what is accounted while it stays online. Return the usage for `account_stop`. Does not yield."""

    def account_stop(self, usage: Usage) -> None:
        """Write the accounting Stop of a service that was suspended. May yield."""

    def resume_service(self) -> None:
        """Begin a new accounted service, as if it had just come online: times and counters at zero. Does not yield."""

    def account_start(self) -> None:
        """Write the accounting Start of the service that has begun, if it still goes on then. May yield."""


class PolicyPart(Protocol):
    """One kind of policy."""

    def begin(self, session: Subscriber) -> None:
        """Enforce the policy of a session that is online, or that was restored after a restart."""

    def finish(self, session: Subscriber) -> None:
        """Enforce nothing: the session is offline. Harmless at any time, and twice."""


class Changes(Protocol):
    """Records what has changed, so that a restart knows it: state/journal.py. Nothing here raises."""

    def tunnel(self, tunnel: Any) -> None:
        """Record a tunnel that is established, or that has moved."""

    def control(self, tunnel: Any) -> None:
        """Record a tunnel's sequence numbers, before a datagram that shows them leaves."""

    def tunnel_gone(self, tunnel: Any) -> None:
        """Record the end of a tunnel."""

    def call(self, session: Any) -> None:
        """Record a call that is not online yet, or not any more."""

    def session(self, session: Any) -> None:
        """Record a session that is online, as it is now."""

    def session_gone(self, session: Any) -> None:
        """Record the end of a call."""
