"""The policy of one session: its rates, its walled garden, the copies of its packets.

A `Policy` is data, saved with the session. A `PolicyPart` enforces one kind of policy for all sessions of the server.
A session calls each PolicyPart when it comes online and when it goes offline. A PolicyPart sees a session as a
`Subscriber`. It is not a runtime.supervisor.Part, which is a supervised greenlet.
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
    """A policy cannot be applied. The text is shown to the operator."""


@dataclass(frozen=True, slots=True)
class Sink:
    """The address and UDP port to which copies of packets are sent."""

    address: IPv4Address
    port: int


@dataclass(frozen=True, slots=True)
class Policy:
    """What is imposed on a session. `in` is from the subscriber and `out` to the subscriber, as in accounting."""

    rate_in: int = 0  # kbit/s, 0: not throttled
    rate_out: int = 0
    garden: str = ""  # name of the walled garden that the session is in
    sink: Sink | None = None

    @property
    def throttled(self) -> bool:
        """Return whether any rate is limited."""
        return bool(self.rate_in or self.rate_out)


class Filtered(Protocol):
    """The part of a session that packet filters use."""

    log: Logger
    path: SessionPath


class Subscriber(Protocol):
    """The part of a session that policies and the registry use."""

    id: int
    log: Logger
    path: SessionPath
    user: str
    acct_session_id: str
    address: IPv4Address | None
    profile: AuthReply | None  # the reply of RADIUS to its login
    online_since: float  # monotonic; 0.0 while it is not online
    greenlet: Any

    @property
    def policy(self) -> Policy:
        """Return its current policy."""

    @property
    def tunnel_id(self) -> int:
        """Return the id that this server assigned to its tunnel."""

    @property
    def alive(self) -> bool:
        """Return False once it has ended."""

    @property
    def proven_user(self) -> str:
        """Return its user name if its login has proven the name, else an empty string."""

    def change_policy(self, **changes: Any) -> None:
        """Replace fields of the policy. Does not yield."""

    def rename(self, user: str) -> None:
        """Change the user name, in accounting too. Does not yield."""

    def end(self, reason: Cause, *, tell: bool = True, text: str = "") -> None:
        """Make the session end soon. Called from any greenlet. Does not yield."""

    def end_awaited(self, reason: Cause) -> None:
        """Make the session end before others: a newer one waits for its release. Does not yield."""

    def replace_older(self) -> None:
        """End the sessions that a login of this user replaces, and wait for their release. May yield."""

    def suspend_service(self, cause: TerminateCause) -> Usage:
        """End the accounted service; the session stays online. Return the usage for `account_stop`. Does not yield."""

    def account_stop(self, usage: Usage) -> None:
        """Write the accounting Stop of a service that was suspended. May yield."""

    def resume_service(self) -> None:
        """Begin a new accounted service with times and counters at zero, as after a login. Does not yield."""

    def account_start(self) -> None:
        """Write the accounting Start of the service that has begun, unless it has ended meanwhile. May yield."""


class PolicyPart(Protocol):
    """Enforces one kind of policy."""

    def begin(self, session: Subscriber) -> None:
        """Enforce the policy of a session that came online or was restored after a restart."""

    def finish(self, session: Subscriber) -> None:
        """Stop enforcing: the session is offline. May be called at any time and repeatedly."""


class Changes(Protocol):
    """Records changes for the saved state: state/journal.py. No method raises."""

    def tunnel(self, tunnel: Any) -> None:
        """Record a tunnel that was established, or whose LAC has changed its address."""

    def control(self, tunnel: Any) -> None:
        """Record the Ns and Nr of a tunnel, before a datagram that carries them is sent."""

    def tunnel_gone(self, tunnel: Any) -> None:
        """Record the end of a tunnel."""

    def call(self, session: Any) -> None:
        """Record a call that is not online yet, or no longer."""

    def session(self, session: Any) -> None:
        """Record the current state of an online session."""

    def session_gone(self, session: Any) -> None:
        """Record the end of a call."""
