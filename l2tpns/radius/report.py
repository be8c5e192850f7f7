"""Figures of RADIUS servers, for `show radius`, the status page and the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

from l2tpns.radius.settings import ServerAddress
from l2tpns.runtime.counters import Histogram

LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


@dataclass(slots=True)
class ServerStats:
    """What happened with one server since the start."""

    requests: int = 0
    retransmissions: int = 0
    accepts: int = 0
    rejects: int = 0
    challenges: int = 0
    responses: int = 0
    timeouts: int = 0
    bad_authenticators: int = 0
    malformed: int = 0
    unexpected: int = 0  # late, repeated, or the answer to no request of ours
    refused: int = 0  # ICMP: no process listens on that port
    send_errors: int = 0
    latency_max: float = 0.0
    latency: Histogram = field(default_factory=lambda: Histogram(LATENCIES))  # from the first sending of a request

    @property
    def latency_sum(self) -> float:
        return self.latency.sum


@dataclass(frozen=True, slots=True)
class ServerReport:
    """A server's figures at one moment."""

    address: ServerAddress
    dead: bool
    trusted: bool
    in_flight: int
    identifiers: int  # of all sockets that may be opened to the server (RFC 2865 3: 256 a socket)
    sockets: int
    stats: ServerStats


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request that waits for its answer, as `show radius` prints it."""

    identifier: int
    server: ServerAddress
    label: str  # PAP, CHAP, START ...
    session_id: int
    tries: int
    next_try: float  # by the wall clock as it is set now
