"""Throttling: its precision, latency beside it, the cost of a change, the cost for other sessions.

    python -m bench throttle [SECONDS]

One subscriber at 64, 512 and 2,000 kbit/s, offered twice that each way; a neighbour at 5 Mbit/s each way with and
without it; pings while one direction is full. A thousand subscribers throttled at once, counted by the server. Setting,
changing and removing a throttle in the kernel beside 10, 1,000 and 10,000 others. The packets that the very first
throttle loses, and full load of sessions that are not throttled, with and without a throttled one.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from statistics import median
from typing import TypeVar

import gevent

from bench.bench_forward import PORT, Traffic, run
from bench.common import HOST, LAC, LNS, Bench, bring_up, compile_blast, middle, ours, print_figure, ratio
from l2tpns.system.firewall import Firewall
from l2tpns.system.ipset import IpSets
from l2tpns.system.rtnetlink import Netlink
from l2tpns.system.shaping import KernelShaper, Shaped
from tests.lab.console import Console
from tests.lab.memory_log import MemoryLog
from tests.lab.netns import Lab, Namespace
from tests.lab.rates import Crowd, Offer
from tests.lab.subscriber import Subscriber

RATES = (64, 512, 2000)
MANY = {64: 980, 512: 15, 2000: 5}
SETTLE = 2.0  # seconds until queues are full
SIZE = 1400
SESSIONS = 200

T = TypeVar("T")


def main(seconds: int = 10) -> None:
    one_subscriber(seconds)
    many_subscribers(seconds)
    for there in (10, 1000, 10_000):
        changes(there)
    others()


# Exactness


def one_subscriber(seconds: int) -> None:
    with ours(users=2) as (bench, _):
        storm, _ = bring_up(bench, bench.tunnels(1), 2)
        slow, neighbour = storm.subscribers
        name = slow.user.decode()
        console = Console(bench.server)
        with Crowd(bench.host, HOST) as crowd:
            beside = [Offer(neighbour, way, 5000) for way in ("down", "up")]
            crowd.flood(beside)
            gevent.sleep(SETTLE)
            alone = crowd.measure(seconds)
            crowd.quiet()
            for rate in RATES:
                console.do(f"throttle {name} {rate}")
                crowd.flood([*beside, *(Offer(slow, way, 2 * rate) for way in ("down", "up"))])
                gevent.sleep(SETTLE)
                found = crowd.measure(seconds)
                crowd.quiet()
                errors = ", ".join(f"{way} {(found[slow, way] / rate - 1) * 100:+.1f} %" for way in ("down", "up"))
                shares = (f"{way} {found[neighbour, way] / alone[neighbour, way]:.2f}" for way in ("down", "up"))
                print_figure(f"{rate} kbit/s over {seconds} s", f"{errors}; neighbour to before: {', '.join(shares)}")
                for way in ("down", "up"):
                    gevent.sleep(SETTLE)
                    crowd.flood([Offer(slow, way, 2 * rate, SIZE)])
                    gevent.sleep(SETTLE)
                    print_figure(f"{rate} kbit/s, full {way}", ping(slow, seconds))
                    crowd.quiet()
                gevent.sleep(SETTLE)
        console.close()


def ping(subscriber: Subscriber, seconds: int) -> str:
    """Send ping after ping."""
    answers = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answers.append(subscriber.ping(HOST, timeout=2.0))
        gevent.sleep(0.2)
    came = [answer * 1000 for answer in answers if answer is not None]
    return f"ping {median(came):.0f} ms, {max(came):.0f} at most; {len(came)} of {len(answers)} answered"


def many_subscribers(seconds: int) -> None:
    """Offer a quarter more than each session may have."""
    blast = str(compile_blast())
    with ours(users=sum(MANY.values())) as (bench, _):
        lac = bench.tunnels(1)[0]
        storm, _ = bring_up(bench, [lac], sum(MANY.values()))
        rates = [rate for rate, count in MANY.items() for _ in range(count)]
        console = Console(bench.server)
        up, down = [], []
        for call, rate in zip(storm.subscribers, rates, strict=True):
            console.do(f"throttle {call.user.decode()} {rate}")
            share = round(rate / min(MANY))
            up += [f"{lac.peer_tunnel_id} {call.peer_session_id} {call.address}\n"] * share
            down += [f"{call.address}\n"] * share
        rate_of = {call.user.decode(): rate for call, rate in zip(storm.subscribers, rates, strict=True)}
        port = str(lac.endpoint.local[1])
        lac.leave()
        packets = round(1.25 * min(MANY) * 125 / SIZE * len(down))
        last = str(int(SETTLE) + seconds + 4)
        options = (str(SIZE), last, str(packets))
        senders = [
            (bench.lac, ("l2tp", LAC, port, LNS, "1701", *options, HOST), up),
            (bench.host, ("udp", HOST, "5000", PORT, *options), down),
        ]
        running = [start(bench, space, blast, argv, lines) for space, argv, lines in senders]
        time.sleep(SETTLE)
        before, begun = octets(console), time.monotonic()
        time.sleep(seconds)
        after, took = octets(console), time.monotonic() - begun
        for process in running:
            process.wait(60)
        for rate in MANY:
            for way in (0, 1):
                errors = sorted(
                    ((after[user][way] - before[user][way]) / 125 / took / rate - 1) * 100
                    for user in after
                    if rate_of[user] == rate
                )
                print_figure(
                    f"{MANY[rate]} of {len(rates)} subscribers at {rate} kbit/s, {'up' if way == 0 else 'down'}",
                    f"{median(errors):+.1f} %, {errors[0]:+.1f} to {errors[-1]:+.1f} %",
                )
        console.close()


def start(
    bench: Bench, space: Namespace, blast: str, argv: tuple[str, ...], lines: list[str]
) -> subprocess.Popen[bytes]:
    file = bench.lab.directory / argv[0]
    file.write_text("".join(lines))
    with file.open("rb") as stdin:
        return space.start(blast, *argv, stdin=stdin)


def octets(console: Console) -> dict[str, tuple[int, int]]:
    """Return packets from and to each user."""
    return {row["user"]: (row["in_octets"], row["out_octets"]) for row in console.rows("show session")}


# Cost of a change


def changes(there: int, tries: int = 200) -> None:
    """Measure changes in the kernel alone: class, queue, set."""
    with Lab() as lab:
        space = lab.namespace("throttle")
        space.ip("tuntap", "add", "tun0", "mode", "tun")
        space.ip("link", "set", "tun0", "up")
        with space.entered():
            netlink = Netlink()
            log = MemoryLog().get()
            shaper = KernelShaper(netlink, netlink.link_index("tun0"), IpSets(), Firewall(log), log)
            networks = [(IPv4Network(IPv4Address("10.64.0.0") + number),) for number in range(there + tries)]
            for number in range(there):
                shaper.shape(Shaped(512, networks[number]))
            behind = networks[there:]
            new = [timed(shaper.shape, Shaped(512, network)) for network in behind]
            buckets = [bucket for _, bucket in new]
            change = [timed(shaper.change, bucket, 64) for bucket in buckets]
            release = [timed(shaper.release, *both) for both in zip(buckets, behind, strict=True)]
            again = [timed(shaper.shape, Shaped(512, network)) for network in behind]
            shaper.stop()
    figures = {"first": times(new), "again": times(again), "other rate": times(change), "off": times(release)}
    said = (f"{what} {median(took) * 1000:.2f} ms" for what, took in figures.items())
    print_figure(f"a change with {there} throttled", ", ".join(said))


def times(done: Sequence[tuple[float, object]]) -> list[float]:
    return [took for took, _ in done]


def timed(call: Callable[..., T], *arguments: object) -> tuple[float, T]:
    begun = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - begun, result


# Cost for other sessions


def others(runs: int = 5, seconds: int = 3) -> None:
    """Measure two servers alternately: one without throttling, one with one throttled subscriber."""
    blast = str(compile_blast())
    with ours(users=SESSIONS) as (plain, _), ours(users=SESSIONS, beside=plain.lab) as (other, _):
        without, _ = subscribers(plain)
        beside, throttled = subscribers(other)
        console = Console(other.server)
        job = gevent.spawn_later(2.0, console.do, f"throttle {throttled.user.decode()} 64")
        sent, arrived, _ = run(beside, blast, "down", 64, 4, 10_000)
        job.get()
        console.close()
        print_figure("the first throttle of all", f"{sent - arrived} of {sent} packets lost at 10,000 a second")
        rates: dict[str, list[float]] = {}
        for _ in range(runs):
            for traffic in (without, beside):
                before = traffic.bench.cpu()
                _, arrived, _ = run(traffic, blast, "down", 64, seconds, 0)
                name = "none" if traffic is without else "another"
                rates.setdefault(name, []).append(arrived / (traffic.bench.cpu() - before))
        for name, found in rates.items():
            print_figure(
                f"down 64 octets, {name} is throttled", f"{middle([r / 1000 for r in found])} kpps per CPU second"
            )
        print_figure("another to none", ratio(rates["another"], rates["none"]))


def subscribers(bench: Bench) -> tuple[Traffic, Subscriber]:
    """Return all sessions but one, for blast, and that one."""
    lac = bench.tunnels(1)[0]
    storm, _ = bring_up(bench, [lac], SESSIONS)
    one, *rest = storm.subscribers
    port = str(lac.endpoint.local[1])
    lac.leave()
    return Traffic(bench, port, b"", "".join(f"{call.address}\n" for call in rest).encode()), one
