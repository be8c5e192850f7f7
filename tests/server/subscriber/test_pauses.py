"""A server that was paused: a stopped process, a virtual machine that was paused or moved.

`Paused` has a server whose time is the test's: what passes in steps of a second is awake, a larger step is a pause.
`stand_still` stops this process, server and peers, for real; what was said before waits in the sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from l2tpns.l2tp.timing import TunnelTiming
from l2tpns.proto.l2tp.messages import HELLO, ICCN, SCCCN, SCCRP
from l2tpns.radius.types import AuthReply
from l2tpns.runtime.awake_clock import DEFAULT_TIMING, AwakeClock, PauseTiming
from l2tpns.subscriber.timers import ECHO_REPLY_TIMEOUT
from tests.lab import traffic
from tests.lab.inprocess import InProcess, until
from tests.lab.lac import Subscriber
from tests.lab.memory_log import MemoryLog
from tests.lab.pppclient import LCP
from tests.lab.radius_parts import SECRET, login, settings_for
from tests.lab.radius_server import ACCEPT, RadiusServer, make_reply
from tests.server.clocks import Clock
from tests.server.conftest import QUICK, Serve
from tests.server.operators import Desk
from tests.server.subscribers import Ear

ECHO_REQ = 9
DRAIN = DEFAULT_TIMING.drain
SHORT_PAUSES = PauseTiming(late=0.4, drain=0.3, short=0.5)
SETTLED = int(DRAIN + ECHO_REPLY_TIMEOUT)  # seconds after a pause in which a silent client is not given up


class Paused:
    """A server, its clock, and one online subscriber."""

    def __init__(self, clock: Clock, serve: Serve, reply: AuthReply | None = None, **settings: int) -> None:
        self.clock = clock
        self.server: InProcess = serve(**settings)
        self.server.services.awake = AwakeClock(clock, clock)
        if reply is not None:
            self.server.backend.replies["fred"] = reply
        self.fred: Subscriber = self.server.lac(defaults=QUICK).connect().call("fred", "pw")
        self.ear = Ear(self.fred)
        self.fred.wait_online()

    def go(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.forward(self.server, 1)

    def pause(self, seconds: int) -> None:
        before = len(self.server.events("process_paused"))
        self.clock.forward(self.server, seconds)
        self.server.wait(lambda: len(self.server.events("process_paused")) == before + 1)

    def heard(self) -> None:
        """Wait for a packet of the subscriber that arrives after the last pause."""
        (session,) = self.server.lns.sessions.values()
        self.server.wait(lambda: session.path.last_rx >= self.server.services.awake.resumed - DRAIN)

    @property
    def online(self) -> bool:
        return bool(self.server.lns.sessions)

    def cause(self) -> str:
        self.fred.wait_ended()
        self.server.wait(lambda: self.server.events("session_down"))
        return str(self.server.events("session_down")[0]["cause"])


Begin = Callable[..., Paused]


@pytest.fixture
def begin(clock: Clock, serve: Serve) -> Iterator[Begin]:
    """Return a function that makes a stage. Tunnels use real time, and end with a clock without pauses."""
    stages: list[Paused] = []

    def start(reply: AuthReply | None = None, **settings: int) -> Paused:
        stages.append(Paused(clock, serve, reply, **settings))
        return stages[-1]

    yield start
    for stage in stages:
        stage.server.services.awake = AwakeClock()


def test_a_client_that_was_silent_while_we_were_away_is_asked_and_stays(begin: Begin) -> None:
    stage = begin(echo_timeout=10, idle_echo_timeout=35)
    stage.go(5)
    asked = stage.fred.echoes_answered
    stage.pause(1000)
    stage.go(2)
    stage.fred.wait(lambda: stage.fred.echoes_answered > asked)
    stage.heard()
    stage.go(34)
    assert stage.online
    assert [line["seconds"] for line in stage.server.events("process_paused")] == [1000]


def test_a_client_that_had_vanished_before_is_asked_once_more_and_then_given_up(begin: Begin) -> None:
    stage = begin(echo_timeout=10, idle_echo_timeout=35)
    stage.ear.deaf_to = (LCP,)
    stage.go(34)
    asked = len(stage.ear.of("in", LCP, ECHO_REQ))
    stage.pause(1000)
    stage.go(SETTLED - 1)
    assert stage.online
    stage.fred.wait(lambda: len(stage.ear.of("in", LCP, ECHO_REQ)) > asked)
    stage.go(1)
    assert stage.cause() == "echo_timeout"


def test_without_keepalives_a_client_is_asked_after_a_pause_before_it_is_given_up(begin: Begin) -> None:
    stage = begin(echo_timeout=0, idle_echo_timeout=35)
    stage.go(34)
    stage.pause(1000)
    stage.go(2)
    stage.fred.wait(lambda: stage.fred.echoes_answered == 1)
    stage.heard()
    stage.go(34)
    assert stage.online


def test_idle_timeout_leaves_out_the_time_in_which_we_carried_nothing(begin: Begin) -> None:
    stage = begin(AuthReply(accepted=True, idle_timeout=50))
    stage.go(40)
    stage.pause(1000)
    stage.go(int(DRAIN) + 9)
    assert stage.online
    stage.go(1)
    assert stage.cause() == "idle_timeout"


def test_session_timeout_goes_on_through_a_pause_for_it_is_time_that_is_billed(begin: Begin) -> None:
    stage = begin(AuthReply(accepted=True, session_timeout=200))
    stage.go(10)
    stage.pause(189)
    assert stage.online
    stage.go(1)
    assert stage.cause() == "session_timeout"
    (stop,) = stage.server.accounting.of("stop")
    assert stop.session_time == 200


def test_traffic_in_the_socket_counts_from_when_it_is_read(begin: Begin) -> None:
    stage = begin(AuthReply(accepted=True, idle_timeout=50))
    stage.go(40)
    stage.pause(1000)
    stage.fred.send_udp("198.51.100.2", 9, b"waited")
    stage.server.wait(lambda: stage.server.plane.delivered)
    assert traffic.parse(stage.server.plane.delivered[0]).payload[8:] == b"waited"
    stage.go(int(DRAIN) + 40)
    assert stage.online


# For real


def stand_still(seconds: float) -> None:
    """Stop this process for a while: a pause by SHORT_PAUSES."""
    time.sleep(seconds)


@pytest.fixture
def awake() -> AwakeClock:
    """A clock of the process for which a short absence is a pause, over soon."""
    return AwakeClock(timing=SHORT_PAUSES)


def paused(server: InProcess) -> None:
    server.wait(lambda: server.events("process_paused"))


def test_a_login_that_waits_for_radius_goes_on(serve: Serve, awake: AwakeClock) -> None:
    server = serve(login_timeout=1, awake=awake)
    server.backend.answering.clear()
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw")
    server.wait(lambda: server.backend.asked)
    stand_still(1.5)
    paused(server)
    server.backend.answering.set()
    assert fred.wait_online().online


def test_a_call_whose_iccn_comes_after_a_pause_goes_on(serve: Serve, awake: AwakeClock) -> None:
    server = serve(call_timeout=1, awake=awake)
    peer = server.peer().open()
    session_id = peer.ring()
    stand_still(1.5)
    paused(server)
    peer.say(ICCN(tx_connect_speed=1_000_000, framing_type=1), session_id)
    server.wait(lambda: server.lns.sessions[session_id].phase.value == "lcp")


def test_a_tunnel_whose_scccn_comes_after_a_pause_opens(serve: Serve, awake: AwakeClock, timing: TunnelTiming) -> None:
    timing.establish_timeout = 1.0
    server = serve(awake=awake)
    peer = server.peer()
    peer.say(peer.sccrq())
    peer.peer_tunnel_id = peer.expect(SCCRP).assigned_tunnel_id
    stand_still(1.5)
    paused(server)
    peer.say(SCCCN())
    server.wait(lambda: server.events("tunnel_up"))


def test_a_lac_is_asked_once_more_before_its_tunnel_is_given_up(
    serve: Serve, awake: AwakeClock, timing: TunnelTiming
) -> None:
    timing.first_retransmission = 0.3
    server = serve(hello_interval=0, control_retries=1, awake=awake)
    peer = server.peer().open()
    ours = server.lns.tunnels[peer.peer_tunnel_id]
    ours.send(HELLO())
    first, _ = peer.expect_header(HELLO)
    again, _ = peer.expect_header(HELLO)
    assert again.ns == first.ns  # the last try has begun
    stand_still(1.5)
    paused(server)
    third, _ = peer.expect_header(HELLO)
    assert third.ns == first.ns
    peer.acknowledge()
    server.wait(lambda: ours.reliable.idle)
    assert not server.events("tunnel_down")
    ours.send(HELLO())  # and a silent one is lost in the end
    server.wait(lambda: server.events("tunnel_down"))
    assert server.events("tunnel_down")[0]["cause"] == "tunnel_lost"


def test_a_console_is_not_closed_for_a_pause_of_the_server(open_desk: Callable[..., Desk], awake: AwakeClock) -> None:
    desk = open_desk(cli_idle_timeout=1, awake=awake)
    operator = desk.plain()
    operator.do("show version")
    stand_still(1.5)
    paused(desk.server)
    assert "l2tpns" in operator.do("show version").lower()
    operator.expect_end()
    until(lambda: desk.server.events("console_closed"))
    assert desk.server.events("console_closed")[0]["why"] == "idle for too long"


def test_a_radius_server_is_not_called_silent_for_a_pause_of_ours(awake: AwakeClock) -> None:
    from l2tpns.radius.auth import RadiusBackend

    beat = gevent.spawn(keep_beating, awake)
    with RadiusServer(SECRET, {}) as server:
        backend = RadiusBackend(settings_for(server, timeout=1.0, retries=1), MemoryLog().get(), awake=awake)

        def answer_late(request: object) -> list[bytes]:
            stand_still(1.5)
            gevent.sleep(0.2)  # long after the time, by the clock on the wall
            return [make_reply(request, ACCEPT, [])]

        server.handler = answer_late
        assert backend.authenticate(login()).accepted
        (report,) = backend.transport.report()
        assert report.stats.timeouts == 0 and not report.dead
        backend.close()
    beat.kill()


def keep_beating(clock: AwakeClock) -> None:
    while True:
        clock.beat()
        gevent.sleep(0.05)
