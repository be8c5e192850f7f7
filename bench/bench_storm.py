"""How long do those who are online wait while thousands of calls come at once?

    python -m bench storm[:CALLS[:ONLINE[:LIMIT]]]

1,000 subscribers are online: they ping the host beyond and send LCP echoes, and their LAC sends HELLOs. Then another
LAC makes 10,000 calls at once. When all are served, it closes its tunnels, and all its sessions end at once. A capture
on the LACs' wire has the time of each packet, so what the LACs themselves take does not count. LIMIT is the number of
starting calls that the server allows; 0: its defaults.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import count, cycle
from pathlib import Path

import gevent

from bench.common import HOST, LAC, LNS, TUNNELS, Bench, bring_up, ours, print_figure
from tests.lab import traffic
from tests.lab.lac import Lac
from tests.lab.netns import end
from tests.lab.server import CHECKOUT, Setting
from tests.lab.storm import Storm
from tests.lab.subscriber import Subscriber

CALM, AFTER = 2.0, 3.0  # seconds of probes before and after the storm
END = 15.0  # seconds of probes while the sessions end
PING, ECHO, HELLO = 0.004, 0.01, 0.02  # seconds between two probes of all together
PRIORITY = -10  # of the probes: the storm's LAC must not keep them waiting
_LCP, _IP = b"\xff\x03\xc0\x21", b"\xff\x03\x00\x21"
_ETHERNET, _UDP = 14, 8


def main(calls: int = 10_000, online: int = 1000, limit: int = 20_000) -> int:
    """Return the exit status: 1 if a session of those online was lost."""
    settings: dict[str, Setting] = {"max_starting_calls": limit, "max_starting_per_lac": limit} if limit else {}
    if not limit:
        settings = {"max_starting_calls": 2000, "max_starting_per_lac": 1000}
    with ours(users=calls + online, settings=settings) as (bench, _):
        lacs = bench.tunnels()
        others, _report = bring_up(bench, lacs, online)
        gc.freeze()
        ids = {(port(each.lac), each.session_id): each.peer_session_id for each in others.subscribers}
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        probes = [gevent.spawn(work, lacs, others.subscribers) for work in (send_pings, send_echoes, send_hellos)]
        process = start_lac(bench, online, calls)
        with measured(bench, "storm", ids):
            gevent.sleep(CALM)
            before = bench.cpu()
            print_figure("storm, its LAC", step(process))
            print_figure("storm, server", f"{bench.cpu() - before:.1f} s of CPU")
            gevent.sleep(AFTER)
        with measured(bench, "end", ids):
            print_figure("end, its LAC", step(process))
            gevent.sleep(END)
        end(process)
        gevent.killall(probes)
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        lost = sum(not subscriber.online for subscriber in others.subscribers)
        print_figure("storm, of those online", f"{lost} lost")
    return int(lost > 0)


def port(lac: Lac) -> int:
    """Return the UDP port of a LAC."""
    own: int = lac.endpoint.socket.getsockname()[1]
    return own


# The load


@contextmanager
def measured(bench: Bench, name: str, ids: Mapping[tuple[int, int], int]) -> Iterator[None]:
    """Print how long answers took within `with`."""
    capture = bench.lab.capture(bench.lac, "wan", bench.lab.directory / f"{name}.pcap", "udp port 1701")
    os.setpriority(os.PRIO_PROCESS, capture.process.pid, PRIORITY)
    yield
    figures = Figures(ids)
    figures.read(capture.stop())
    for what, waits in figures.waits.items():
        print_figure(f"{name}, {what}", waits.words())


def start_lac(bench: Bench, first: int, calls: int) -> subprocess.Popen[bytes]:
    """Start the LAC of the storm, in a process of its own."""
    command = ["nice", "-n", str(-PRIORITY), sys.executable, "-m", "bench.bench_storm", str(first), str(calls)]
    return bench.lac.start(*command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def step(process: subprocess.Popen[bytes]) -> str:
    """Let the LAC take its next step. Return its report."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    return process.stdout.readline().decode().strip()  # cooperative: the probes run meanwhile


def storm(first: int, calls: int) -> None:
    """Make all calls at once, then close the tunnels. Wait for a line before each step and report after it."""
    sys.stdin.readline()
    lacs = [Lac((LAC, 0), (LNS, 1701), f"storm{number}") for number in range(TUNNELS)]
    for lac in lacs:
        lac.connect()
    print(Storm(lacs, calls, window=calls, first=first).run(30 + calls / 50), flush=True)
    sys.stdin.readline()
    for lac in lacs:
        lac.stop()
    for lac in lacs:
        lac.wait_acked()
    print("all tunnels closed", flush=True)


def send_pings(_: Sequence[Lac], subscribers: Sequence[Subscriber]) -> None:
    for number, subscriber in zip(count(), cycle(subscribers), strict=False):
        packet = traffic.icmp_echo(
            subscriber.address, IPv4Address(HOST), number >> 16 & 0xFFFF, number & 0xFFFF, b"storm"
        )
        subscriber.send_ip(packet)
        gevent.sleep(PING)


def send_echoes(_: Sequence[Lac], subscribers: Sequence[Subscriber]) -> None:
    for subscriber in cycle(subscribers):
        subscriber.send_echo()
        gevent.sleep(ECHO)


def send_hellos(lacs: Sequence[Lac], _: Sequence[Subscriber]) -> None:
    for lac in cycle(lacs):
        lac.hello()
        gevent.sleep(HELLO)


# The capture


@dataclass(slots=True)
class Waits:
    """Seconds from a packet to its answer. `sent` has those without an answer yet."""

    seconds: list[float] = field(default_factory=list)
    sent: dict[object, float] = field(default_factory=dict)

    def ask(self, key: object, now: float) -> None:
        self.sent.setdefault(key, now)  # of a repetition, the first

    def answer(self, key: object, now: float) -> None:
        begun = self.sent.pop(key, None)
        if begun is not None:
            self.seconds.append(now - begun)

    def words(self) -> str:
        ranked = sorted(self.seconds) or [0.0]
        p50, p99 = (ranked[min(len(ranked) - 1, int(len(ranked) * share))] * 1e3 for share in (0.5, 0.99))
        return (
            f"{len(self.seconds)}, p50 {p50:.1f} p99 {p99:.1f} max {ranked[-1] * 1e3:.1f} ms; {len(self.sent)} without"
        )


class Figures:
    """What the capture says. `ids` has the server's session ids by the LAC's port and session id, of those online."""

    def __init__(self, ids: Mapping[tuple[int, int], int]) -> None:
        self.ids = ids
        self.ports = {port for port, _ in ids}
        names = (
            "acknowledgements to the storm",
            "acknowledgements to others",
            "LCP echoes of others",
            "pings of others",
        )
        self.waits = {name: Waits() for name in names}
        self.storm, self.control, self.echoes, self.pings = self.waits.values()

    def read(self, file: Path) -> None:
        for now, frame in packets(file):
            begin = _ETHERNET + (frame[_ETHERNET] & 15) * 4
            source, target = int.from_bytes(frame[begin : begin + 2]), int.from_bytes(frame[begin + 2 : begin + 4])
            l2tp = frame[begin + _UDP :]
            if l2tp[0] & 0x80:
                self._control(now, l2tp, source, target)
            elif (source if target == 1701 else target) in self.ports:
                self._data(now, l2tp, source, target)

    def _control(self, now: float, l2tp: bytes, source: int, target: int) -> None:
        port = source if target == 1701 else target
        waits = self.control if port in self.ports else self.storm
        ns, nr = int.from_bytes(l2tp[8:10]), int.from_bytes(l2tp[10:12])
        if target == 1701:
            if len(l2tp) > 12:
                waits.ask((port, ns), now)
            return
        while (key := (port, nr - 1 & 0xFFFF)) in waits.sent:
            waits.answer(key, now)
            nr -= 1

    def _data(self, now: float, l2tp: bytes, source: int, target: int) -> None:
        begin = 8 if l2tp[0] & 0x40 else 6
        session, ppp = int.from_bytes(l2tp[begin - 2 : begin]), l2tp[begin:]
        if ppp.startswith(_LCP) and ppp[4] in (9, 10):
            if ppp[4] == 9 and target == 1701:
                self.echoes.ask((source, session, ppp[5]), now)
            elif ppp[4] == 10 and source == 1701:
                self.echoes.answer((target, self.ids.get((target, session)), ppp[5]), now)
        elif ppp.startswith(_IP) and ppp[13] == 1:
            ip, icmp = ppp[4:], ppp[4 + (ppp[4] & 15) * 4 :]
            if icmp[0] == traffic.ECHO_REQUEST:
                self.pings.ask((ip[12:16], icmp[4:8]), now)
            elif icmp[0] == traffic.ECHO_REPLY:
                self.pings.answer((ip[16:20], icmp[4:8]), now)


def packets(file: Path) -> Iterator[tuple[float, bytes]]:
    """Yield (seconds, frame) of a capture by tcpdump."""
    octets = file.read_bytes()
    begin = 24
    while begin + 16 <= len(octets):
        seconds, micros, length = (
            int.from_bytes(octets[at : at + 4], sys.byteorder) for at in (begin, begin + 4, begin + 8)
        )
        begin += 16 + length
        yield seconds + micros / 1e6, octets[begin - length : begin]


if __name__ == "__main__":
    storm(int(sys.argv[1]), int(sys.argv[2]))
