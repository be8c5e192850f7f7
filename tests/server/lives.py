"""Run one server after the other in this process, on the same port and the same saved state.

`die` acts as kill -9: the process sends and writes nothing more. `leave` acts as SIGTERM with save_state.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import gevent

from l2tpns import causes
from l2tpns.l2tp.timing import TunnelTiming
from l2tpns.radius.types import AuthReply
from l2tpns.state.records import Replay
from l2tpns.state.restore import Resumed, resume
from l2tpns.state.store import StateStore
from tests.lab import traffic
from tests.lab.inprocess import InProcess, until
from tests.lab.lac import Dial, Lac, Subscriber


class Lives:
    """Run one server after the other, with the same directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings: dict[str, Any] = {"save_state": True, "hello_interval": 0}
        self.server: InProcess
        self.store: StateStore
        self.resumed = Resumed()
        self.saved = Replay()
        self.first_retransmission = TunnelTiming().first_retransmission
        self.port = 0
        self.pool = "10.5.0.0/24\n"
        self.replies: dict[str, AuthReply] = {}
        self.lacs: list[Lac] = []

    def begin(self) -> InProcess:
        timing = TunnelTiming(closed_linger=0.01, min_poll=0.05, first_retransmission=self.first_retransmission)
        self.server = server = InProcess(self.pool, tunnel_timing=timing, journal_interval=0.05, **self.settings)
        server.backend.replies = self.replies
        self.store = StateStore(self.directory, server.log.get())
        self.store.open()
        self.saved = self.store.load(300)
        server.plane.lacs.port = self.port
        server.start()
        self.port = server.plane.lacs.port
        self.resumed = resume(server.lns, server.journal, self.saved)
        server.core.keep_state(self.store)
        server.journal.start(*self.resumed.gone)
        return server

    def end(self) -> None:
        """End the server as kill -9 does: no greenlet runs again, and nothing is sent."""
        self.server.services.handed_over = True
        end_process(self.server)
        self.store.close()

    def die(self) -> InProcess:
        self.server.journal.halt()
        self.end()
        return self.begin()

    def leave(self) -> InProcess:
        assert self.server.core.hand_over()
        self.end()
        return self.begin()


def connect(lives: Lives, **options: Any) -> Lac:
    lac = Lac(("127.0.0.1", 0), lives.server.address, defaults=Dial(restart=0.3), **options).connect()
    lac.carried = lambda subscriber: lives.server.carries(subscriber)
    lives.lacs.append(lac)
    return lac


def beat(lives: Lives) -> None:
    """Write the journal now, which happens twenty times a second here."""
    lives.server.journal.tick()


def works(lives: Lives, subscriber: Subscriber) -> bool:
    """Return True if packets pass in both directions."""
    before = len(lives.server.plane.delivered)
    subscriber.send_udp("198.51.100.2", 9, b"up")
    until(lambda: len(lives.server.plane.delivered) > before)
    lives.server.plane.deliver(traffic.udp(IPv4Address("198.51.100.2"), subscriber.address, 9, 7000, b"down"))
    return traffic.parse(subscriber.receive_ip()).payload[8:] == b"down"


def end_process(server: InProcess) -> None:
    """Kill the greenlets of tunnels and sessions as the end of a process does. Nothing is sent."""
    server.plane.stop()
    assert server.lns.clock is not None
    server.lns.clock.stop()
    gevent.killall([session.greenlet for session in server.lns.sessions.values()])
    for tunnel in server.lns.tunnels.values():
        tunnel.end(causes.SHUTDOWN, None)
    gevent.sleep(0)
    gevent.Greenlet.remove_spawn_callback(server.greenlets.append)
