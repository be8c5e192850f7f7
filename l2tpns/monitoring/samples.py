"""Samples of the last hour, taken every ten seconds for the graphs of the status page.

GRAPHS declares the graphs and the lines of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from l2tpns.monitoring.sources import Sources
from l2tpns.runtime.counters import DECLARED

PERIOD = 10.0
HOUR = 3600.0
DROPS = tuple(name for name, _ in DECLARED if name.startswith("drop_"))


@dataclass(frozen=True, slots=True)
class Moment:
    """All counters, and the RADIUS statistics, at one time."""

    at: float  # monotonic
    counters: dict[str, int]
    replies: dict[str, int]  # by use
    latency: dict[str, float]  # sum in seconds, by use
    worst_lag: float

    @classmethod
    def now(cls, sources: Sources) -> Moment:
        replies, latency = {"auth": 0, "acct": 0}, {"auth": 0.0, "acct": 0.0}
        for use, report in sources.radius():
            replies[use] += report.stats.latency.count
            latency[use] += report.stats.latency.sum
        counters = {name: value for name, _, value in sources.lns.counters.items()}
        return cls(monotonic(), counters, replies, latency, sources.lag.take_worst())


@dataclass(frozen=True, slots=True)
class Step:
    """The input of one sample: two moments, and the sources at the second one."""

    before: Moment
    after: Moment
    sources: Sources

    def rate(self, *names: str) -> float | None:
        """Return the rate of the sum of these counters per second, None if they were cleared meanwhile."""
        delta = sum(self.after.counters[name] - self.before.counters[name] for name in names)
        return None if delta < 0 else delta / (self.after.at - self.before.at)

    def latency(self, use: str) -> float | None:
        """Return the mean reply time in milliseconds, None without replies."""
        replies = self.after.replies[use] - self.before.replies[use]
        seconds = self.after.latency[use] - self.before.latency[use]
        return None if replies <= 0 or seconds < 0 else 1000 * seconds / replies


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a graph."""

    label: str
    read: Callable[[Step], float | None]


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph of the status page."""

    title: str
    unit: str
    lines: tuple[Line, ...]


def _rate(*names: str, scale: float = 1.0) -> Callable[[Step], float | None]:
    def read(step: Step) -> float | None:
        rate = step.rate(*names)
        return None if rate is None else rate * scale

    return read


MEGABIT = 8 / 1e6

GRAPHS: tuple[Graph, ...] = (
    Graph(
        "Sessions",
        "",
        (
            Line("online", lambda step: len(step.sources.lns.services.registry.by_address)),
            Line("starting", lambda step: step.sources.lns.admission.starting.total()),
        ),
    ),
    Graph(
        "Logins",
        "per second",
        (
            Line("accepted", _rate("logins_accepted")),
            Line("refused", _rate("logins_refused")),
            Line("unanswered", _rate("logins_unanswered")),
        ),
    ),
    Graph(
        "Traffic",
        "Mbit/s",
        (
            Line("from subscribers", _rate("tun_tx_octets", scale=MEGABIT)),
            Line("to subscribers", _rate("tun_rx_octets", scale=MEGABIT)),
        ),
    ),
    Graph(
        "Packets",
        "per second",
        (Line("from subscribers", _rate("tun_tx_packets")), Line("to subscribers", _rate("tun_rx_packets"))),
    ),
    Graph(
        "Drops and retransmissions",
        "per second",
        (
            Line("packets dropped", _rate(*DROPS)),
            Line("control messages retransmitted", _rate("control_retransmissions")),
        ),
    ),
    Graph(
        "RADIUS reply time",
        "ms",
        (
            Line("authentication", lambda step: step.latency("auth")),
            Line("accounting", lambda step: step.latency("acct")),
        ),
    ),
    Graph(
        "Undelivered accounting records", "", (Line("in the spool", lambda step: step.sources.accounting.undelivered),)
    ),
    Graph("Worst lag of the event loop", "ms", (Line("lag", lambda step: 1000 * step.after.worst_lag),)),
)

Values = tuple[tuple[float | None, ...], ...]  # by graph and line


@dataclass(frozen=True, slots=True)
class Sample:
    at: float  # monotonic
    values: Values


class Samples:
    """The ring of samples. The caller calls `take` every PERIOD seconds."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._last = Moment.now(sources)
        self.ring: deque[Sample] = deque(maxlen=int(HOUR / PERIOD) + 1)

    def take(self) -> None:
        moment = Moment.now(self._sources)
        step = Step(self._last, moment, self._sources)
        self._last = moment
        values = tuple(tuple(line.read(step) for line in graph.lines) for graph in GRAPHS)
        self.ring.append(Sample(moment.at, values))

    def line(self, graph: int, line: int) -> list[tuple[float, float | None]]:
        """Return (time, value) pairs of one line, the oldest first."""
        return [(sample.at, sample.values[graph][line]) for sample in self.ring]
