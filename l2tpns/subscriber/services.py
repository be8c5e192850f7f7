"""What sessions and tunnels use of the server: one `Services` object, built once by server.py and handed to each.

It names parts by what they do, so that a session knows neither the table it stands in nor the daemon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from time import monotonic
from typing import Any, Protocol

from l2tpns.config.settings import Config
from l2tpns.dataplane.endpoint import Endpoint
from l2tpns.dataplane.plane import DataPlane
from l2tpns.hooks import Hooks
from l2tpns.policy.garden import Gardens
from l2tpns.policy.model import Changes, PolicyPart
from l2tpns.policy.snoop import Snoop
from l2tpns.policy.taps import Taps
from l2tpns.policy.throttle import Throttle
from l2tpns.proto.l2tp.messages import Message
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.types import Backend
from l2tpns.radius.usage import SessionIds
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.log import Logger
from l2tpns.runtime.repeat_filter import RepeatFilter
from l2tpns.runtime.scheduler import Scheduler
from l2tpns.runtime.supervisor import Supervisor
from l2tpns.runtime.timer_wheel import Wheel
from l2tpns.subscriber.address_guard import AddressGuard
from l2tpns.subscriber.pool import Pool
from l2tpns.subscriber.registry import Registry
from l2tpns.subscriber.usage_files import UsageFiles

HISTORY_LENGTH = 1000  # sessions that have ended, for `show history`
UNREAD_INTERVAL = 3600.0  # seconds between two log lines about an AVPair that nothing reads


@dataclass(slots=True)
class SessionTiming:
    """Times of a session's life that no setting changes, in seconds. One object for a server."""

    refusal_grace: float = 1.0  # an Authenticate-Nak needs its moment before the CDN, which ends pppd at once
    release_timeout: float = 5.0  # for an older session of the same user or address to release what it holds
    network_restart_timeout: float = 30.0  # for a subscriber that renegotiates an NCP
    max_renegotiations: int = 10  # of LCP in one call, within
    renegotiation_window: float = 60.0
    wheel_tick: float = 0.1  # between two looks of the timer wheel at the clock
    clock: Callable[[], float] = monotonic


class LacConnection(Protocol):
    """The tunnel of a session, as far as the session knows it: l2tp/tunnel.py."""

    id: int
    peer: tuple[str, int]  # the LAC's address and port; may change
    peer_id: int  # the LAC's id of the tunnel
    host: str  # the LAC's host name
    lac: str  # the LAC's address when the tunnel began
    log: Logger
    endpoint: Endpoint

    def send(self, message: Message, session_id: int = 0) -> None:
        """Queue a control message; `session_id` is the LAC's. Called from any greenlet; does not yield."""

    def call_started(self, session_id: int) -> None:
        """Count a call no longer among those that are starting: it is online, or has ended."""

    def call_gone(self, session_id: int) -> None:
        """Forget a call that has ended."""


@dataclass(slots=True, eq=False)
class Services:
    """The parts of one server. Only `backend` and `handed_over` are ever set again, by the daemon and the LNS."""

    config: Config
    counters: Counters
    log: Logger
    random: Callable[[int], bytes]
    awake: AwakeClock
    supervisor: Supervisor
    plane: DataPlane
    backend: Backend  # decides logins; another one after a reload that names RADIUS servers, or none
    accounting: Accounting
    pool: Pool
    registry: Registry[Any]  # of Session
    guard: AddressGuard
    hooks: Hooks  # the plugins' functions
    changes: Changes
    gardens: Gardens
    throttle: Throttle
    snoop: Snoop
    taps: Taps
    usage_files: UsageFiles
    session_timing: SessionTiming = field(default_factory=SessionTiming)
    operator_scheduler: Scheduler = field(default_factory=Scheduler)  # for consoles, HTTP and nsctl
    # For tunnels with more mail than they can read at once.
    tunnel_scheduler: Scheduler = field(default_factory=lambda: Scheduler(load=1.0))
    history: deque[Any] = field(default_factory=lambda: deque(maxlen=HISTORY_LENGTH))  # of history.Ending
    unread_avpairs: RepeatFilter = field(default_factory=lambda: RepeatFilter(UNREAD_INTERVAL))
    handed_over: bool = False  # the next process goes on from the saved state: nothing may be sent or ended any more
    wheel: Wheel[Any] = field(init=False)  # of Session
    policies: tuple[PolicyPart, ...] = field(init=False)
    acct_session_ids: SessionIds = field(init=False)

    def __post_init__(self) -> None:
        self.wheel = Wheel(self.session_timing.clock(), self.session_timing.wheel_tick)
        self.policies = (self.gardens, self.throttle, self.snoop, self.taps)
        self.acct_session_ids = SessionIds(self.random)

    def address_of(self, address: IPv4Address) -> Any | None:
        """Return the session that has this address, or None."""
        return self.registry.by_address.get(address)
