"""The sources of metrics and status page, including what is measured for them: the census and the loop's lag."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic

import gevent

from l2tpns.l2tp.tunnel import TunnelState
from l2tpns.lns import Lns
from l2tpns.monitoring.problems import Check, Finding, Problem, ProblemBoard, failing_parts
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.report import ServerReport
from l2tpns.runtime.cooperative import in_slices
from l2tpns.runtime.counters import Histogram
from l2tpns.server import Server
from l2tpns.subscriber.phase import Phase

TUNNEL_STATES = tuple(state.value.lower() for state in TunnelState)
SESSION_STATES = tuple(phase.value for phase in Phase)
LATE = 0.1  # seconds of lag that subscribers notice
STANDING = 50  # measurements in a row with such a lag that are a problem: at least five seconds
RECENT = 600  # measurements that `show load` is about: a minute
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # seconds


class LagMeter:
    """Measures the delay of the event loop: the time that a received packet waits to be read."""

    PERIOD = 0.1

    def __init__(self) -> None:
        self.histogram = Histogram(LAG_BUCKETS)
        self._worst = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._late = 0  # measurements in a row above LATE, until now

    def run(self) -> None:
        """Measure for ever. Runs in its own greenlet."""
        loop = gevent.get_hub().loop
        while True:
            loop.update_now()  # else the sleep starts at the loop's last clock reading
            before = monotonic()
            gevent.sleep(self.PERIOD)
            self.take(max(0.0, monotonic() - before - self.PERIOD))

    def take(self, lag: float) -> None:
        self.histogram.observe(lag)
        self._worst = max(self._worst, lag)
        self._recent.append(lag)
        self._late = self._late + 1 if lag > LATE else 0

    def recent(self) -> tuple[float, float]:
        """Return the 99th percentile and the maximum of the last minute, in seconds."""
        ranked = sorted(self._recent) or [0.0]
        return ranked[int(0.99 * (len(ranked) - 1))], ranked[-1]

    @property
    def standing(self) -> bool:
        """Return True if the event loop has been late without a break."""
        return self._late >= STANDING

    def take_worst(self) -> float:
        """Return the longest delay since the last call, in seconds."""
        worst, self._worst = self._worst, 0.0
        return worst


@dataclass(frozen=True, slots=True)
class Census:
    """The numbers of tunnels and sessions, by state."""

    tunnels: Mapping[str, int]
    sessions: Mapping[str, int]


@dataclass(slots=True)
class Sources:
    """The parts of the server that metrics and status page read."""

    server: Server
    accounting: Accounting
    lag: LagMeter = field(default_factory=LagMeter)
    started: float = field(default_factory=monotonic)
    board: ProblemBoard = field(default_factory=ProblemBoard)
    checks: list[Check] = field(default_factory=list)  # further checks for problems
    rows_per_page: int = 100  # sessions on a page of the status page

    @property
    def lns(self) -> Lns:
        return self.server.lns

    def census(self) -> Census:
        """Count tunnels and sessions. Yields between slices, for tables of 60,000 sessions."""
        tunnels = dict.fromkeys(TUNNEL_STATES, 0)
        tunnels.update(Counter(tunnel.state.value.lower() for tunnel in in_slices(list(self.lns.tunnels.values()))))
        sessions = dict.fromkeys(SESSION_STATES, 0)
        sessions.update(Counter(session.phase.value for session in in_slices(list(self.lns.sessions.values()))))
        return Census(tunnels, sessions)

    def radius(self) -> Iterator[tuple[str, ServerReport]]:
        """Yield ("auth" or "acct", report) for each configured RADIUS server."""
        yield from (("auth", report) for report in self.lns.services.backend.report())
        yield from (("acct", report) for report in self.accounting.report())

    def problems(self) -> list[Problem]:
        """Return the current problems. Call it often, so that `since` is accurate."""
        return self.board.update(self._find(), monotonic())

    def _find(self) -> Iterator[Finding]:
        yield from failing_parts(self.lns.services.supervisor)
        for use, report in self.radius():
            if report.dead:
                text = f"RADIUS server {report.address} ({use}) is silent"
                yield Finding(
                    "radius_silent", f"{report.address} {use}", text, "check that it is running and reachable"
                )
        if self.lag.standing:
            text = f"the event loop has been more than {LATE * 1000:.0f} ms late at each turn"
            yield Finding(
                "loop_late", "", text, "find what takes the processor: a plugin, other programs, too many logins"
            )
        pools = self.lns.services.pool
        for name in pools.names:
            pool = pools.pool(name)
            if pool is not None and pool.size and not pool.free:
                text = f"no address of the pool {name}".rstrip() + " is free"
                yield Finding("pool_empty", name, text, "add addresses to l2tpns.ip_pool, then send SIGHUP")
        if self.accounting.stats.lost:
            text = "accounting records were lost: the spool was full"
            yield Finding("accounting_lost", "", text, "repair the RADIUS server: undelivered records wait on disk")
        if self.accounting.stats.set_aside:
            text = "accounting records were set aside because no server accepts them"
            yield Finding("accounting_set_aside", "", text, "bill from the file that is named in the log")
        if self.accounting.spool is not None and self.accounting.spool.behind:
            text = "accounting records cannot be written to disk: they wait in memory"
            yield Finding("spool_not_written", "", text, "free space in spool_dir, or repair its disk")
        if self.server.journal.failing:
            text = "the saved state cannot be written to disk: a crash would end every session"
            yield Finding("state_not_written", "", text, "free space in state_dir, or repair its disk")
        for check in self.checks:
            yield from check()
        if self.lns.admission.shutting_down:
            yield Finding("leaving", "", "the server is shutting down", "wait for its successor to start")
