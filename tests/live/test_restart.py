"""The server goes away and comes back under subscribers who are busy: nobody notices, but for a pause (root).

Our own LAC counts every control message and every PPP frame that is no IP packet: because of a restart there is none
but HELLO, and that after a crash only.
"""

from __future__ import annotations

import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

import gevent
import gevent.socket
import pytest

from l2tpns.proto.l2tp.messages import HELLO
from tests.lab import traffic
from tests.lab.endpoint import Endpoint
from tests.lab.inprocess import until
from tests.lab.lac import Dial, Lac, Subscriber
from tests.lab.netns import Lab, is_root, three_hosts
from tests.lab.pppwishes import IP
from tests.lab.radius_server import RadiusServer, User
from tests.lab.server import Server, ServerDied
from tests.lab.storm import Storm

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST = "192.0.2.1", "198.51.100.2"
START, STOP, INTERIM, ON, OFF = 1, 2, 3, 7, 8
RATE = 400.0  # packets a second, over all subscribers


@dataclass
class Heard:
    """What subscribers and LACs got that is no IP packet."""

    frames: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)


class Stage:
    """Daemon, RADIUS server, LACs, and traffic that goes on and on."""

    def __init__(self, lab: Lab, sessions: int, tunnels: int = 4, **settings: Any) -> None:
        lac_space, space, host = three_hosts(lab)
        users = {
            b"user%06d" % number: User(b"secret", [(27, (3600).to_bytes(4, "big")), (25, b"class %d" % number)])
            for number in range(sessions + 10)
        }
        with space.entered():
            self.radius = RadiusServer(users=users).start()
        self.settings: dict[str, Any] = {
            "primary_radius": "127.0.0.1",
            "primary_radius_port": self.radius.port,
            "radius_secret": "testing123",
            "radius_accounting": True,
            "radius_authtypes": "chap,pap",
            "save_state": True,
            "echo_timeout": 60,  # on a slow machine a subscriber's next packet may take more than 10 s
            "debug": 3,
            **settings,
        }
        self.server = Server(space, lab.directory / "lns", settings=self.settings)
        self.in_thread(self.server.start)
        self.endpoint = Endpoint(("0.0.0.0", 0), sock=lac_space.socket())
        self.lacs = [Lac(("0.0.0.0", 0), (LNS, 1701), f"lac{n}", endpoint=self.endpoint) for n in range(tunnels)]
        for lac in self.lacs:
            lac.connect()
        storm = Storm(self.lacs, sessions, window=32, dial=Dial(auth="chap"))
        report = storm.run(120.0)
        assert report.online == sessions, str(report)
        self.subscribers = storm.subscribers
        with host.entered():
            self.echo = gevent.socket.socket(2, 2)
        self.echo.bind((HOST, 7000))
        self.echoes = gevent.spawn(self._echo)
        self.heard = Heard()
        self.sent = 0
        self.back: list[float] = []
        self.flows: set[int] = set()
        self.stream: Any = None

    @staticmethod
    def in_thread(call: Callable[[], Any]) -> Any:
        """What blocks without gevent, while our LACs go on."""
        return gevent.get_hub().threadpool.apply(call)

    def _echo(self) -> None:
        while True:
            data, peer = self.echo.recvfrom(4096)
            self.echo.sendto(traffic.turned(data, traffic.ECHOED), peer)

    def listen(self) -> None:
        """From now on, count what a restart must not bring; and send."""
        heard = self.heard = Heard()
        checker = traffic.Checker()

        def on_ip(subscriber: Subscriber, packet: bytes) -> None:
            found = traffic.parse(packet)
            if found.protocol == traffic.UDP and checker.take(found.payload[8:]) is not None:
                self.back.append(time.monotonic())

        def on_frame(way: str, protocol: int, packet: bytes) -> bytes | None:
            if way == "in" and protocol != IP:
                heard.frames[f"{protocol:04x} {packet[:1].hex()}"] += 1
            return packet

        for subscriber in self.subscribers:
            subscriber.on_ip, subscriber.on_frame = on_ip, on_frame
        for lac in self.lacs:
            lac.inbox.clear()
        self.checker = checker
        self.stream = gevent.spawn(self._stream)

    def _stream(self) -> None:
        begun, rounds = time.monotonic(), 0
        while True:
            for flow, subscriber in enumerate(self.subscribers):
                subscriber.send_udp(IPv4Address(HOST), 7000, traffic.numbered(traffic.UP, flow, rounds, 64))
                self.sent += 1
                gevent.sleep(max(0.0, begun + self.sent / RATE - time.monotonic()))
            rounds += 1

    def silence(self) -> tuple[int, float]:
        """Packets lost, and the longest time in which none came back."""
        self.stream.kill()
        before = -1
        while len(self.back) != before:  # some are on their way
            before = len(self.back)
            gevent.sleep(1.0)
        gaps = [after - before for before, after in zip(self.back, self.back[1:], strict=False)]
        return self.sent - len(self.back), max(gaps)

    def beats(self) -> int:
        """How often the server has written down what was used."""
        files = (self.server.directory / "state").glob("*.state")
        return sum(path.read_bytes().count(b'"use"') for path in files)

    def control(self) -> Counter[str]:
        return Counter(type(message).__name__ for lac in self.lacs for _, message in lac.inbox)

    def records(self, status: int) -> list[bytes]:
        return [record.one(44) or b"" for record in self.radius.accounting(status)]

    def alive(self) -> int:
        """How many get an answer from the host beyond, now."""
        pings = [gevent.spawn(subscriber.ping, HOST) for subscriber in self.subscribers]
        gevent.joinall(pings)
        return sum(ping.value is not None for ping in pings)

    def close(self) -> None:
        for lac in self.lacs:
            lac.alive = True
        self.in_thread(self.server.stop)
        self.echoes.kill()
        self.endpoint.close()
        self.radius.stop()
        assert self.server.tracebacks() == ""


def leave(stage: Stage, how: int) -> None:
    if how == signal.SIGKILL:
        stage.server.kill()
    else:
        assert stage.in_thread(lambda: stage.server.stop(how)) == 0


def restart_with(lab: Lab, sessions: int, how: int) -> None:
    stage = Stage(lab, sessions)
    stage.listen()
    gevent.sleep(2.5)
    until(lambda: stage.beats() >= 2)
    begun, unanswered, sent = time.monotonic(), stage.sent - len(stage.back), stage.sent
    leave(stage, how)
    down = time.monotonic()
    stage.in_thread(stage.server.start)
    up, meanwhile = time.monotonic(), stage.sent - sent
    early = sum(subscriber.out_packets for subscriber in stage.subscribers[:8])
    back = len(stage.back)
    gevent.sleep(2.0)
    until(lambda: len(stage.back) > back + 100)
    lost, gap = stage.silence()
    resumed = stage.server.wait_for("state_resumed")
    print(
        f"\n{signal.Signals(how).name}, {sessions} sessions: {resumed['sessions']} taken up, "
        f"leaving {down - begun:.2f} s, starting {up - down:.2f} s, "
        f"{gap:.2f} s without service, {lost} of {stage.sent} packets lost"
    )
    assert resumed["sessions"] == sessions and resumed["tunnels"] == len(stage.lacs)
    assert all(subscriber.online for subscriber in stage.subscribers)
    assert stage.alive() == sessions
    stage.server.signal(signal.SIGUSR1)
    assert stage.server.wait_for("status")["greenlets"] > sessions + len(stage.lacs)  # those that were taken up, too
    assert stage.heard.frames == Counter()
    crashed = how == signal.SIGKILL
    assert stage.control() == (Counter({HELLO.__name__: len(stage.lacs)}) if crashed else Counter())
    assert lost <= unanswered + meanwhile  # none that was sent when the server was there
    assert stage.checker.corrupt == 0
    # Both directions of the control connections go on: a call comes up, a call goes down, each in its tunnel.
    for number, lac in enumerate(stage.lacs):
        lac.call(b"user%06d" % (sessions + number), b"secret").wait_online()
    for subscriber in stage.subscribers[:8]:
        subscriber.terminate()
        subscriber.wait_ended()
    until(lambda: len(stage.records(START)) >= sessions + len(stage.lacs) and len(stage.records(STOP)) >= 8)
    gevent.sleep(0.3)
    started, stopped = stage.records(START), stage.records(STOP)
    assert len(started) == len(set(started)) == sessions + len(stage.lacs)
    assert len(stopped) == len(set(stopped)) == 8 and set(stopped) <= set(started)
    assert len(stage.records(ON)) == 1 and not stage.records(OFF)
    # Counters are those of the whole session, not of what came after the restart.
    packets = sum(record.number(47) or 0 for record in stage.radius.accounting(STOP))
    ours = sum(subscriber.out_packets for subscriber in stage.subscribers[:8])
    assert packets <= ours
    later = ours - early
    if not crashed:
        assert packets >= sum(subscriber.in_packets for subscriber in stage.subscribers[:8])
    else:
        assert packets > later  # those of the last second or so before it are not known any more
    lac = stage.lacs[0]
    lac.wait_acked()
    assert lac.phase.value == "established"
    stage.close()
    assert not list((stage.server.directory / "state").glob("*.state"))  # QUIT leaves none


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_two_hundred_busy_sessions_survive_a_restart_and_nobody_notices(lab: Lab, how: int) -> None:
    restart_with(lab, 200, how)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_thousand_busy_sessions_survive_a_restart_and_nobody_notices(lab: Lab, how: int) -> None:
    restart_with(lab, 1000, how)


def test_a_start_that_fails_leaves_the_sessions_to_the_next_one_and_says_nothing_to_anybody(lab: Lab) -> None:
    stage = Stage(lab, 5)
    gevent.sleep(2.5)
    leave(stage, signal.SIGKILL)
    stage.listen()
    stage.stream.kill()
    space = stage.server.namespace
    assert space is not None
    for kind, port in ((socket.SOCK_STREAM, 23), (socket.SOCK_DGRAM, 1702)):  # the console's, nsctl's
        with space.socket(kind=kind) as taken:
            taken.bind(("127.0.0.1", port))
            if kind == socket.SOCK_STREAM:
                taken.listen()
            with pytest.raises(ServerDied, match=rf"cannot .*127\.0\.0\.1.*{port}"):
                stage.in_thread(stage.server.start)
    assert stage.control() == Counter() and stage.heard.frames == Counter()
    assert not stage.records(STOP)
    stage.server.errors.write_text("")  # which said it, too
    stage.in_thread(stage.server.start)
    assert stage.server.wait_for("state_resumed")["sessions"] == 5
    assert stage.alive() == 5
    stage.close()


CHANGED = {"echo_timeout": 77, "primary_dns": "192.0.2.53", "max_tunnels": 1234, "tundevicename": "tun7"}
FILTER = "ip access-list extended new\n permit ip any any"


def reload_with(lab: Lab, sessions: int, *, broken: bool) -> None:
    """SIGHUP with a file in which much has changed, or with one that is wrong near its end."""
    stage = Stage(lab, sessions)
    stage.listen()
    gevent.sleep(1.5)
    (stage.server.directory / "l2tpns.ip_pool").write_text("10.1.0.0/16\n10.2.0.0/16\n")
    lines = [FILTER, *(["set no_such_variable 1"] if broken else [])]
    stage.server.configure({**stage.settings, **CHANGED}, lines)
    stage.server.signal(signal.SIGHUP)
    said = stage.in_thread(lambda: stage.server.wait_for("reload_refused" if broken else "reloaded"))
    gevent.sleep(1.5)
    lost, gap = stage.silence()
    print(
        f"\nSIGHUP, {'broken' if broken else 'changed'} file, {sessions} sessions: {stage.alive()} answer a ping, "
        f"{gap:.2f} s without service, {lost} of {stage.sent} packets lost; {said}"
    )
    if broken:
        assert f"{stage.server.config}:" in said["why"] and "no_such_variable" in said["why"]
    else:
        assert set(said["changed"]) == {"echo_timeout", "primary_dns", "max_tunnels", "filters"}
        assert stage.server.log("setting_needs_restart", variable="tundevicename")
    assert all(subscriber.online for subscriber in stage.subscribers)
    assert stage.alive() == sessions
    assert stage.heard.frames == Counter() and stage.control() == Counter()
    assert lost < RATE * (gap + 10)
    assert stage.checker.corrupt == 0
    assert stage.server.log("session_down") == []
    started = stage.records(START)
    assert len(started) == len(set(started)) == sessions and not stage.records(STOP)
    # Who comes now is served by the file that holds.
    newcomer = stage.lacs[0].call(b"user%06d" % sessions, b"secret").wait_online()
    assert newcomer.dns == (() if broken else (IPv4Address("192.0.2.53"),))
    stage.close()


@pytest.mark.parametrize("broken", [False, True], ids=["changed", "broken"])
def test_two_hundred_busy_sessions_do_not_notice_a_reload(lab: Lab, broken: bool) -> None:
    reload_with(lab, 200, broken=broken)


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True], ids=["changed", "broken"])
def test_a_thousand_busy_sessions_do_not_notice_a_reload(lab: Lab, broken: bool) -> None:
    reload_with(lab, 1000, broken=broken)
