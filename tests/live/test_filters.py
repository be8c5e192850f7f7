"""Packet filters with a RADIUS server, real packets and a reload (root, own namespaces)."""

from __future__ import annotations

import signal
import socket
from ipaddress import IPv4Address

import gevent
import gevent.socket
import pytest

from tests.lab import PATIENCE
from tests.lab.lac import Lac, Subscriber
from tests.lab.netns import Lab, is_root, three_hosts, wait_until
from tests.lab.radius_server import RadiusServer, User
from tests.lab.server import Server
from tests.lab.traffic import icmp_echo, parse

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST = "192.0.2.1", "198.51.100.2"
FILTER_ID = 11  # RFC 2865 5.11
RULES = """\
ip access-list extended web
 permit udp any gt 1023 host 198.51.100.2 eq 9000
 permit icmp any any
ip access-list extended back
 permit udp host 198.51.100.2 eq 9000 any"""


class Stage:
    """The daemon with its RADIUS server, a LAC, and two sockets on the host beyond."""

    def __init__(self, lab: Lab) -> None:
        self.lac_space, space, host = three_hosts(lab)
        users = {
            b"fred": User(b"pw", [(FILTER_ID, b"web.in"), (FILTER_ID, b"back.out")]),
            b"mary": User(b"pw", [(FILTER_ID, b"nobody-knows.in")]),
        }
        with space.entered():
            self.radius = RadiusServer(users=users).start()
        self.settings = {
            "primary_radius": "127.0.0.1",
            "primary_radius_port": self.radius.port,
            "radius_secret": "testing123",
        }
        self.server = Server(space, lab.directory / "lns", settings=self.settings, lines=[RULES])
        self.server.start()
        self.lac_socket = self.lac_space.socket()
        self.lac = Lac(("0.0.0.0", 0), (LNS, 1701), sock=self.lac_socket).connect()
        self.sockets = {}
        for port in (9000, 9001):
            with host.entered():
                self.sockets[port] = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.sockets[port].bind((HOST, port))
            self.sockets[port].settimeout(PATIENCE)

    def log_in(self, name: str) -> Subscriber:
        return self.lac.call(name, "pw", auth="pap").wait_online()

    def dropped(self) -> int:
        """drop_filtered, as the daemon says it."""
        count = len(self.server.log("status"))
        self.server.signal(signal.SIGUSR1)
        found: int = self.server.wait_for("status", count=count + 1).get("drop_filtered", 0)
        return found

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        self.lac.close()
        assert self.server.stop() == 0
        self.radius.stop()
        assert self.server.tracebacks() == ""


def udp_of(packet: bytes) -> tuple[IPv4Address, int, bytes]:
    """Source, its port and the data of a UDP packet."""
    found = parse(packet)
    return found.source, found.ports[0], found.payload[8:]


def test_filter_id_decides_what_reaches_whom_and_a_reload_decides_anew(stage: Stage) -> None:
    fred = stage.log_in("fred")
    assert stage.server.log("filter_unknown") == []
    # Up: only to port 9000. What is sent there last is received first, so the others were dropped, not late.
    fred.send_udp(HOST, 9001, b"not this")
    fred.send_udp(HOST, 9000, b"nor this", sport=1023)
    fred.send_udp(HOST, 9000, b"this")
    data, back = stage.sockets[9000].recvfrom(100)
    assert (data, back) == (b"this", (str(fred.address), 7000))
    assert stage.dropped() == 2
    # Down: only from port 9000; nothing is answered to what is dropped.
    stage.sockets[9001].sendto(b"not this", back)
    stage.sockets[9000].sendto(b"this", back)
    assert udp_of(fred.receive_ip()) == (IPv4Address(HOST), 9000, b"this")
    fred.send_ip(icmp_echo(fred.address, IPv4Address(HOST), 1, 1))  # the request passes, the reply does not
    wait_until(lambda: stage.dropped() == 4)
    # New rules, the same session.
    stage.server.configure(stage.settings, [RULES.replace("9000", "9001")])
    stage.server.signal(signal.SIGHUP)
    assert "filters" in stage.server.wait_for("reloaded")["changed"]
    fred.send_udp(HOST, 9000, b"not this")
    fred.send_udp(HOST, 9001, b"this")
    assert stage.sockets[9001].recvfrom(100)[0] == b"this"
    stage.sockets[9000].sendto(b"not this", back)
    stage.sockets[9001].sendto(b"this", back)
    assert udp_of(fred.receive_ip()) == (IPv4Address(HOST), 9001, b"this")
    assert stage.dropped() == 6
    assert len(stage.server.log("session_up")) == 1


def test_who_gets_an_unknown_filter_comes_online_without(stage: Stage) -> None:
    mary = stage.log_in("mary")
    warning = stage.server.wait_for("filter_unknown")
    assert (warning["level"], warning["filter"]) == ("warning", "nobody-knows.in")
    mary.send_udp(HOST, 9001, b"anything")
    assert stage.sockets[9001].recvfrom(100)[0] == b"anything"
    assert mary.ping(HOST) is not None and stage.dropped() == 0
