"""Metrics for Prometheus. Each family is declared once, with its help, its labels and the function that reads it.

Most families are derived from the counters (runtime/counters.py), so a new counter is a new metric. Any other metric is
one entry in FAMILIES. docs/metrics.md is generated from the declarations. prometheus_client writes the text formats.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import gevent
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from l2tpns import __version__
from l2tpns.monitoring.sources import Census, Sources
from l2tpns.runtime.cooperative import in_slices
from l2tpns.runtime.counters import DECLARED, PRIVATE, Histogram

PREFIX = "l2tpns_"
GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"

Value = float | Histogram
Rows = Iterable[tuple[tuple[str, ...], Value]]  # label values, value


@dataclass(frozen=True, slots=True)
class Family:
    """The metrics of one name. `name` has no prefix and, for a counter, no `_total`."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    read: Callable[[Sources, Census], Rows]

    @property
    def full_name(self) -> str:
        return PREFIX + self.name + ("_total" if self.kind == COUNTER else "")


# From the counters


@dataclass(frozen=True, slots=True)
class Group:
    """Counters that form one family. The groups of the pattern are the values of the labels."""

    pattern: str
    name: str
    help: str
    labels: tuple[str, ...]


_SIDE = "side tunnel: LACs, tun: TUN device; rx: received by this server"
GROUPS = (
    Group(r"(tunnel|tun)_(rx|tx)_packets", "packets", f"datagrams and packets carried; {_SIDE}", ("side", "direction")),
    Group(r"(tunnel|tun)_(rx|tx)_octets", "octets", f"octets carried; {_SIDE}", ("side", "direction")),
    Group(r"(tunnel|tun)_(rx|tx)_errors", "errors", f"socket and device errors; {_SIDE}", ("side", "direction")),
    Group(r"drop_(.+)", "drops", "datagrams and packets dropped, by reason", ("reason",)),
    Group(r"logins_(.+)", "logins", "logins, by result", ("result",)),
)


@dataclass(frozen=True, slots=True)
class Counted:
    """The family and label values of a counter."""

    counter: str
    help: str
    group: Group | None
    values: tuple[str, ...]  # values of the group's labels


def _place(counter: str, help: str) -> Counted:
    for group in GROUPS:
        match = re.fullmatch(group.pattern, counter)
        if match:
            return Counted(counter, help, group, match.groups())
    return Counted(counter, help, None, ())


# Private counters are left out: a subscriber could recognise copies of its own packets in them.
COUNTED = tuple(_place(name, help) for name, help in DECLARED if name not in PRIVATE)


def _counter_family(name: str, help: str, labels: tuple[str, ...], members: tuple[Counted, ...]) -> Family:
    def read(sources: Sources, _: Census) -> Rows:
        return ((member.values, getattr(sources.lns.counters, member.counter)) for member in members)

    return Family(name, COUNTER, help, labels, read)


def _counter_families() -> Iterator[Family]:
    for group in GROUPS:
        members = tuple(counted for counted in COUNTED if counted.group is group)
        yield _counter_family(group.name, group.help, group.labels, members)
    for counted in COUNTED:
        if counted.group is None:
            yield _counter_family(counted.counter, counted.help, (), (counted,))


# From other sources


def _build(sources: Sources, census: Census) -> Rows:
    yield (__version__, platform.python_version(), gevent.__version__), 1


def _tunnels(sources: Sources, census: Census) -> Rows:
    return (((state,), count) for state, count in census.tunnels.items())


def _sessions(sources: Sources, census: Census) -> Rows:
    return (((state,), count) for state, count in census.sessions.items())


def _pool(sources: Sources, census: Census) -> Rows:
    yield ("used",), sources.lns.services.pool.used
    yield ("free",), sources.lns.services.pool.free


def _throttled(sources: Sources, census: Census) -> Rows:
    yield ("used",), sources.lns.services.throttle.buckets
    yield ("limit",), sources.lns.config.throttle_buckets


def _fast_path(sources: Sources, census: Census) -> Rows:
    yield (), int(sources.lns.services.plane.fast_path().running)


def _passed(sources: Sources, census: Census) -> Rows:
    totals = sources.lns.services.plane.fast_path().totals
    for name, value in totals.items():
        direction, _, reason = name.partition("_passed_")
        if reason and reason != "session":  # which would tell a subscriber that its packets are copied
            yield (direction, reason), value


def _users(sources: Sources, census: Census) -> Rows:
    yield (), len(sources.lns.services.registry.by_user)


def _parts(sources: Sources, census: Census) -> Rows:
    return (((name,), int(running)) for name, running in sources.lns.services.supervisor.up().items())


def _lag(sources: Sources, census: Census) -> Rows:
    yield (), sources.lag.histogram


def _undelivered(sources: Sources, census: Census) -> Rows:
    yield (), sources.accounting.undelivered


def _records(sources: Sources, census: Census) -> Rows:
    stats = sources.accounting.stats
    return (((event,), getattr(stats, event)) for event in ("spooled", "delivered", "replaced", "lost"))


def _spool_octets(sources: Sources, census: Census) -> Rows:
    spool = sources.accounting.spool
    yield (), spool.octets if spool is not None else 0


def _plugin_counters(sources: Sources, census: Census) -> Rows:
    return (((count.name,), count.value) for count in sources.server.plugins.counts)


def _plugin_hooks(name: str) -> Callable[[Sources, Census], Rows]:
    """Return a reader of one attribute of each hook of each plugin."""

    def read(sources: Sources, _: Census) -> Rows:
        for plugin in sources.server.plugins.loaded:
            for hook, function in plugin.functions.items():
                yield (plugin.name, hook), getattr(function, name)

    return read


def _spool_errors(sources: Sources, census: Census) -> Rows:
    spool = sources.accounting.spool
    yield (), spool.stats.write_errors if spool is not None else 0


SERVER = ("server", "use")
PLUGIN = ("plugin", "hook")
REPLIES = {"accept": "accepts", "reject": "rejects", "challenge": "challenges", "accounting": "responses"}
FAILURES = {
    "timeout": "timeouts",
    "bad_authenticator": "bad_authenticators",
    "malformed": "malformed",
    "unexpected": "unexpected",
    "refused": "refused",
    "send_error": "send_errors",
}


def _radius(name: str) -> Callable[[Sources, Census], Rows]:
    """Return a reader of one field of each ServerReport or of its ServerStats."""

    def read(sources: Sources, _: Census) -> Rows:
        for use, report in sources.radius():
            yield (str(report.address), use), getattr(report if hasattr(report, name) else report.stats, name)

    return read


def _radius_by(fields: dict[str, str]) -> Callable[[Sources, Census], Rows]:
    def read(sources: Sources, _: Census) -> Rows:
        for use, report in sources.radius():
            for label, name in fields.items():
                yield (str(report.address), use, label), getattr(report.stats, name)

    return read


FAMILIES: tuple[Family, ...] = (
    Family("build_info", GAUGE, "always 1", ("version", "python", "gevent"), _build),
    Family("tunnels", GAUGE, "tunnels, by state", ("state",), _tunnels),
    Family("sessions", GAUGE, "sessions, by phase", ("state",), _sessions),
    Family("users", GAUGE, "distinct names of online users", (), _users),
    Family(
        "throttle_buckets",
        GAUGE,
        "sessions throttled downstream (used) and their maximum number (limit)",
        ("state",),
        _throttled,
    ),
    Family("pool_addresses", GAUGE, "addresses of the pool, by state", ("state",), _pool),
    Family("fast_path_up", GAUGE, "1 while the fast path is in use", (), _fast_path),
    Family(
        "fast_path_passed",
        COUNTER,
        "packets that the fast path left to user space since it was loaded",
        ("direction", "reason"),
        _passed,
    ),
    *_counter_families(),
    Family("radius_requests", COUNTER, "requests sent to a RADIUS server", SERVER, _radius("requests")),
    Family("radius_retransmissions", COUNTER, "requests sent again", SERVER, _radius("retransmissions")),
    Family("radius_replies", COUNTER, "authentic replies, by outcome", (*SERVER, "outcome"), _radius_by(REPLIES)),
    Family(
        "radius_failures",
        COUNTER,
        "attempts without a reply, and replies that were discarded",
        (*SERVER, "reason"),
        _radius_by(FAILURES),
    ),
    Family("radius_latency_seconds", HISTOGRAM, "time from a request to its reply", SERVER, _radius("latency")),
    Family("radius_in_flight", GAUGE, "requests awaiting a reply", SERVER, _radius("in_flight")),
    Family("radius_silent", GAUGE, "1 while a server is skipped because it does not reply", SERVER, _radius("dead")),
    Family("accounting_undelivered", GAUGE, "accounting records not yet delivered", (), _undelivered),
    Family(
        "accounting_records",
        COUNTER,
        "accounting records spooled, delivered, replaced by newer ones, or lost because the spool was full",
        ("event",),
        _records,
    ),
    Family("accounting_spool_octets", GAUGE, "size of the accounting spool on disk", (), _spool_octets),
    Family("accounting_spool_errors", COUNTER, "writes to the spool that failed", (), _spool_errors),
    Family(
        "plugin_counter",
        COUNTER,
        "counters of plugins, named as in `show counters`",
        ("counter",),
        _plugin_counters,
    ),
    Family("plugin_calls", COUNTER, "calls of a plugin's hook", PLUGIN, _plugin_hooks("calls")),
    Family(
        "plugin_failures",
        COUNTER,
        "calls that raised an exception or returned an invalid value",
        PLUGIN,
        _plugin_hooks("failures"),
    ),
    Family("plugin_seconds", COUNTER, "CPU time of a plugin's hook", PLUGIN, _plugin_hooks("seconds")),
    Family(
        "part_up", GAUGE, "1 while a component of the server runs, 0 while it waits for a restart", ("part",), _parts
    ),
    Family("loop_lag_seconds", HISTOGRAM, "delay of the event loop, sampled ten times a second", (), _lag),
)


# Exposition


class Metrics:
    """Renders /metrics: these families, and those of prometheus_client for process and interpreter."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._census = Census({}, {})
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(self)

    def describe(self) -> list[Metric]:
        """Return no names, so that registering does not collect."""
        return []

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """Return the exposition in the format chosen by the Accept header, and its content type."""
        self._census = self._sources.census()
        self._sources.lns.services.plane.collect()
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        for family in in_slices(FAMILIES, clock=1):
            yield self._metric(family)

    def _metric(self, family: Family) -> Metric:
        rows = family.read(self._sources, self._census)
        name = PREFIX + family.name
        if family.kind == HISTOGRAM:
            histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
            for labels, value in rows:
                assert isinstance(value, Histogram)
                histogram.add_metric(labels, value.cumulative(), value.sum)
            return histogram
        kind = CounterMetricFamily if family.kind == COUNTER else GaugeMetricFamily
        metric = kind(name, family.help, labels=family.labels)
        for labels, value in rows:
            assert not isinstance(value, Histogram)
            metric.add_metric(labels, value)
        return metric
