"""The parts of the server that sessions and tunnels use: one `Services` object, built by server.py.

Sessions and tunnels get this object instead of the LNS or the daemon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
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
from l2tpns.subscriber.pools import Pools
from l2tpns.subscriber.registry import Registry
from l2tpns.subscriber.usage_files import UsageFiles

HISTORY_LENGTH = 1000  # ended sessions, for `show history`
UNREAD_INTERVAL = 3600.0  # seconds between two log lines about an AVPair that is not handled


@dataclass(slots=True)
class SessionTiming:
    """Times of a session that no setting changes, in seconds. One object for each server."""

    refusal_grace: float = 1.0  # from the refusal to the CDN, which ends pppd at once
    release_timeout: float = 5.0  # for the release of an older session of the same user or address
    network_restart_timeout: float = 30.0  # for a subscriber that renegotiates an NCP
    max_renegotiations: int = 10  # of LCP in one call, within renegotiation_window
    renegotiation_window: float = 60.0
    wheel_tick: float = 0.1  # between two looks of the timer wheel at the clock
    clock: Callable[[], float] = monotonic


class LacConnection(Protocol):
    """The part of a tunnel that its sessions use: l2tp/tunnel.py."""

    id: int
    peer: tuple[str, int]  # address and port of the LAC; may change
    peer_id: int  # the LAC's id of the tunnel
    host: str  # the LAC's host name
    lac: str  # the LAC's address when the tunnel began
    config: Config  # the configuration that counts for the LAC
    log: Logger
    endpoint: Endpoint

    def send(self, message: Message, session_id: int = 0) -> None:
        """Queue a control message. `session_id` is that of the LAC. Called from any greenlet. Does not yield."""

    def call_started(self, session_id: int) -> None:
        """Remove a call from the calls that are starting: it is online, or has ended."""

    def call_gone(self, session_id: int) -> None:
        """Remove a call that has ended."""


@dataclass(slots=True, eq=False)
class Services:
    """The parts of one server. Only `backend` (by the daemon) and `handed_over` (by the LNS) are set again."""

    config: Config
    counters: Counters
    log: Logger
    random: Callable[[int], bytes]
    awake: AwakeClock
    supervisor: Supervisor
    plane: DataPlane
    backend: Backend  # decides logins; replaced when radius_servers is set or unset
    accounting: Accounting
    pool: Pools
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
    # For tunnels with more messages than they handle at once.
    tunnel_scheduler: Scheduler = field(default_factory=lambda: Scheduler(load=1.0))
    session_scheduler: Scheduler = field(default_factory=lambda: Scheduler(eager=True))  # those that are not online
    history: deque[Any] = field(default_factory=lambda: deque(maxlen=HISTORY_LENGTH))  # of history.Ending
    unread_avpairs: RepeatFilter = field(default_factory=lambda: RepeatFilter(UNREAD_INTERVAL))
    handed_over: bool = False  # the next process restores the saved state: send and end nothing
    wheel: Wheel[Any] = field(init=False)  # of Session
    policies: tuple[PolicyPart, ...] = field(init=False)
    acct_session_ids: SessionIds = field(init=False)

    def __post_init__(self) -> None:
        self.wheel = Wheel(self.session_timing.clock(), self.session_timing.wheel_tick)
        self.policies = (self.gardens, self.throttle, self.snoop, self.taps)
        self.acct_session_ids = SessionIds(self.random)
