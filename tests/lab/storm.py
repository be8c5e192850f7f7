"""Bring up many calls at once, as fast as the LNS accepts them, and check traffic through all of them.

report = Storm([lac], 1000, window=64).run(timeout=60)
print(report)                       # rate, latency percentiles, what failed and why
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import cycle

import gevent
from gevent.event import Event

from tests.lab import traffic
from tests.lab.lac import Dial, Lac, Subscriber
from tests.lab.pppwishes import Phase

Users = Callable[[int], tuple[bytes, bytes]]


def numbered_users(number: int) -> tuple[bytes, bytes]:
    """Return user000000, user000001 ... all with the password "secret"."""
    return b"user%06d" % number, b"secret"


@dataclass(slots=True)
class StormReport:
    """Hold the results. Latencies are seconds from ICRQ queued to IPCP open."""

    asked: int
    online: int
    seconds: float
    latencies: list[float] = field(repr=False)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        return self.online / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """Return the percentile by nearest rank, 0 if no call came up."""
        ranked = sorted(self.latencies)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0

    def __str__(self) -> str:
        times = " ".join(f"p{int(share * 100)} {self.percentile(share) * 1000:.1f}" for share in (0.5, 0.9, 0.99))
        worst = f"max {max(self.latencies, default=0.0) * 1000:.1f} ms"
        failed = "".join(f"; {count} x {what}" for what, count in self.failed.items())
        return (
            f"{self.online} of {self.asked} online in {self.seconds:.2f} s: {self.rate:.0f}/s, {times} {worst}{failed}"
        )


class Storm:
    """Make `count` calls over the tunnels in turn, at most `window` in progress at once, at most `rate` a second."""

    def __init__(
        self,
        lacs: Sequence[Lac],
        count: int,
        *,
        window: int = 64,
        rate: float | None = None,
        users: Users = numbered_users,
        dial: Dial | None = None,
        first: int = 0,
    ) -> None:
        self.count = count
        self.window = window
        self.rate = rate
        self.users = users
        self.dial = dial or lacs[0].defaults
        self.subscribers: list[Subscriber] = []
        self._all = list(lacs)
        self._lacs = cycle(self._all)
        self._clock = lacs[0].endpoint.now
        self._first = first
        self._begun = 0
        self._allowed = count if rate is None else 0
        self._in_flight = 0
        self._settled = 0
        self._done = Event()
        self._failed: Counter[str] = Counter()

    def run(self, timeout: float = 60.0) -> StormReport:
        """Bring the calls up. Return when all are online or refused, or after the timeout."""
        now = self._clock
        begun = now()
        pacer = gevent.spawn(self._pace) if self.rate is not None else None
        self._fill()
        self._flush()
        self._done.wait(timeout)
        ended = now()
        if pacer is not None:
            pacer.kill()
        for subscriber in self.subscribers:
            subscriber.on_change = None
        missing = self.count - self._settled
        if missing:
            self._failed["not settled when time was up"] = missing
        up = [subscriber for subscriber in self.subscribers if subscriber.online_at]
        latencies = [subscriber.online_at - subscriber.started_at for subscriber in up]
        last = max((subscriber.online_at for subscriber in up), default=ended)
        return StormReport(self.count, len(up), last - begun, latencies, self._failed)

    def _pace(self) -> None:
        rate = self.rate or 0.0
        begun = self._clock()
        while self._allowed < self.count:
            self._allowed = min(self.count, int((self._clock() - begun) * rate) + 1)
            self._fill()
            self._flush()  # else the calls wait for the endpoint's next tick, which would add to their latency
            gevent.sleep(0.002)

    def _flush(self) -> None:
        for lac in self._all:
            lac.endpoint.flush()

    def _fill(self) -> None:
        while self._in_flight < self.window and self._begun < self._allowed:
            user, password = self.users(self._first + self._begun)
            self._begun += 1
            self._in_flight += 1
            subscriber = next(self._lacs).call(user, password, self.dial)
            self.subscribers.append(subscriber)
            if subscriber.ended is not None:  # its tunnel has ended
                self._settle(subscriber)
            else:
                subscriber.on_change = self._on_change

    def _on_change(self, subscriber: Subscriber) -> None:
        if subscriber.phase >= Phase.ONLINE or subscriber.auth_refused:
            self._settle(subscriber)
            self._fill()

    def _settle(self, subscriber: Subscriber) -> None:
        subscriber.on_change = None
        self._in_flight -= 1
        self._settled += 1
        if subscriber.auth_refused:
            self._failed["authentication refused"] += 1
        elif subscriber.ended is not None:
            ended = subscriber.ended
            self._failed[f"{ended.why.value} {ended.result}/{ended.error} {ended.text}".rstrip()] += 1
        elif not subscriber.online:
            self._failed["LCP ended"] += 1
        if self._settled == self.count:
            self._done.set()


@dataclass(slots=True)
class TrafficReport:
    """Sum the checked packets to the host beyond and back over the calls. `sufferers` are the calls that lost any."""

    sent: int
    returned: int
    corrupt: int
    doubled: int
    overtaken: int
    seconds: float
    sufferers: dict[int, int] = field(default_factory=dict)  # flow -> packets lost

    @property
    def lost(self) -> int:
        return self.sent - self.returned

    def __str__(self) -> str:
        return (
            f"{self.sent} sent, {self.returned} back in {self.seconds:.2f} s; lost {self.lost}, "
            f"corrupt {self.corrupt}, doubled {self.doubled}, overtaken {self.overtaken}"
        )


def exchange(
    subscribers: Sequence[Subscriber],
    host: tuple[str, int],
    *,
    count: int = 10,
    size: int = 64,
    rate: float = 2000.0,
    patience: float = 2.0,
) -> TrafficReport:
    """Send `count` marked packets of `size` octets of UDP data by each call to the echo beyond. Check all answers.

    `rate` is packets a second over all calls. A flow is a subscriber's place in the list.
    """
    clock = subscribers[0].lac.endpoint.now
    target, port = IPv4Address(host[0]), host[1]
    checker = traffic.Checker()
    before = [subscriber.on_ip for subscriber in subscribers]

    def take(subscriber: Subscriber, packet: bytes) -> None:
        try:
            found = traffic.parse(packet)
        except ValueError:
            checker.corrupt += 1
            return
        if found.protocol == traffic.UDP:
            checker.take(found.payload[8:])

    for subscriber in subscribers:
        subscriber.on_ip = take
    begun = clock()
    sent = 0
    for number in range(count):
        for flow, subscriber in enumerate(subscribers):
            subscriber.send_udp(target, port, traffic.numbered(traffic.UP, flow, number, size))
            sent += 1
            if sent % 16 == 0:
                gevent.sleep(max(1e-6, begun + sent / rate - clock()))
    ended = clock()
    while checker.received(traffic.ECHOED) < sent and clock() < ended + patience:
        gevent.sleep(0.02)
    ended = clock()
    for subscriber, handler in zip(subscribers, before, strict=True):
        subscriber.on_ip = handler
    flows = [checker.flows.get((traffic.ECHOED, flow), traffic.Flow()) for flow in range(len(subscribers))]
    return TrafficReport(
        sent=sent,
        returned=sum(flow.received for flow in flows),
        corrupt=checker.corrupt,
        doubled=sum(flow.doubled for flow in flows),
        overtaken=sum(flow.overtaken for flow in flows),
        seconds=ended - begun,
        sufferers={number: flow.lost(count) for number, flow in enumerate(flows) if flow.lost(count)},
    )
