"""The data plane with a real tun device, kernel routes and a host beyond it (root, own namespaces)."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path as File
from typing import Any

import gevent
import gevent.socket
import pytest

from l2tpns.config.settings import Config
from l2tpns.dataplane.session_path import SessionPath, key_of
from l2tpns.dataplane.userspace import UserPlane
from l2tpns.errors import ConfigError, WaitError
from l2tpns.proto.l2tp.header import build_control
from l2tpns.runtime.counters import Counters
from l2tpns.system import tun_device
from l2tpns.system.routes import PROTOCOL, Routes
from l2tpns.system.rtnetlink import Netlink, Route
from tests.lab import PATIENCE
from tests.lab.memory_log import MemoryLog
from tests.lab.netns import Lab, Namespace, is_root, three_hosts
from tests.lab.packets import ip, ones_sum

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST, CLIENT = "192.0.2.1", "198.51.100.2", "10.64.0.5"
HEADER = bytes.fromhex("0002 0007 0008 ff03 0021")


class Rig:
    """A UserPlane in the namespace of the server, a LAC's socket, a socket on the host."""

    def __init__(self, lab: Lab) -> None:
        self.lac_space, self.server, self.host_space = three_hosts(lab, clients="10.0.0.0/8")
        self.config = Config()
        self.counters = Counters()
        self.log = MemoryLog()
        self.posted: list[tuple[int, bytes]] = []
        self.lost: list[str] = []
        self.plane = self.make_plane()
        self.lac = _socket(self.lac_space)
        self.lac.bind(("192.0.2.2", 0))
        self.host = _socket(self.host_space)
        self.host.bind((HOST, 9000))

    def make_plane(self, **options: Any) -> UserPlane:
        return UserPlane(
            self.config,
            self.counters,
            self.log.get(),
            lambda *_: None,
            on_lost=lambda: self.lost.append("tun"),
            **options,
        )

    def start(self) -> None:
        with self.server.entered():
            self.plane.start()

    def online(self, routes: tuple[str, ...] = (), mru: int = 1462, address: str = CLIENT) -> SessionPath:
        with self.server.entered():
            endpoint = self.plane.endpoint(LNS)
        path = SessionPath(
            key_of(7, 8), endpoint, self.lac.getsockname(), 7, 8, lambda *frame: self.posted.append(frame)
        )
        self.plane.attach(path)
        self.plane.online(path, IPv4Address(address), [IPv4Network(route) for route in routes], mru)
        return path

    def up(self, packet: bytes) -> None:
        self.lac.sendto(HEADER + packet, (LNS, 1701))

    def down(self) -> bytes:
        """The next IP packet that reaches the LAC."""
        datagram: bytes = self.lac.recv(4096)
        assert datagram.startswith(HEADER)
        return datagram[len(HEADER) :]

    def routes(self) -> list[str]:
        """Destinations of our kernel routes, as iproute2 prints them."""
        shown = self.server.ip("route", "show", "proto", str(PROTOCOL))
        return [line.split()[0] for line in shown.splitlines()]


def _socket(namespace: Namespace) -> socket.socket:
    with namespace.entered():
        sock = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    return sock


def udp(source: str, destination: str, payload: bytes, port: int = 9000) -> bytes:
    return ip(source, destination, struct.pack("!HHHH", 9001, port, 8 + len(payload), 0) + payload)


def until(condition: Callable[[], bool]) -> None:
    with gevent.Timeout(PATIENCE):
        while not condition():
            gevent.sleep(0.005)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Lab() as lab:
        rig = Rig(lab)
        yield rig
        rig.plane.stop()
        rig.lac.close()
        rig.host.close()


def test_packets_pass_both_ways_and_are_counted_and_nothing_is_left_after(rig: Rig) -> None:
    rig.start()
    rig.plane.serve([IPv4Network("10.64.0.0/16")])
    path = rig.online()
    rig.up(udp(CLIENT, HOST, b"hello"))
    payload, source = rig.host.recvfrom(100)
    assert (payload, source) == (b"hello", (CLIENT, 9001))
    rig.host.sendto(b"welcome", source)
    packet = rig.down()
    assert packet[12:20] == IPv4Address(HOST).packed + IPv4Address(CLIENT).packed and packet[28:] == b"welcome"
    assert ones_sum(packet[:20]) == 0xFFFF
    assert (path.in_packets, path.in_octets, path.out_packets, path.out_octets) == (1, 33, 1, 35)
    assert rig.routes() == ["10.64.0.0/16"]  # which leads to the address: no route of its own
    rig.plane.detach(path)
    rig.plane.stop()
    assert rig.routes() == [] and "tun0" not in rig.server.ip("link", "show")


class Wire:
    """What the LAC's network card sees of our datagrams."""

    def __init__(self, rig: Rig) -> None:
        with rig.lac_space.entered():
            self.socket = gevent.socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            self.socket.bind(("wan", 0x0800))
        self.socket.settimeout(PATIENCE)

    def next(self) -> tuple[bytes, bytes]:
        """The IP header and the UDP datagram of the next packet from our port; its checksum is right or zero."""
        frame = b"\0" * 24
        while frame[9] != 17 or frame[20:22] != (1701).to_bytes(2, "big"):
            frame = self.socket.recv(2000)
        datagram = frame[20 : int.from_bytes(frame[2:4], "big")]
        pseudo = frame[12:20] + struct.pack("!BBH", 0, 17, len(datagram))
        assert datagram[6:8] == b"\0\0" or ones_sum(pseudo + datagram) == 0xFFFF
        return frame[:20], datagram

    def has_checksum(self) -> bool:
        return self.next()[1][6:8] != b"\0\0"


@pytest.fixture
def wire(rig: Rig) -> Iterator[Wire]:
    wire = Wire(rig)
    yield wire
    wire.socket.close()


@pytest.mark.statement(12)
def test_data_to_the_lac_has_a_udp_checksum_and_no_df_bit(rig: Rig, wire: Wire) -> None:
    rig.start()
    path = rig.online()
    rig.host.sendto(b"x" * 100, (CLIENT, 9))
    header, datagram = wire.next()
    assert datagram[6:8] != b"\0\0"
    assert not header[6] & 0x40 and path.out_packets == 1


@pytest.mark.statement(12)
@pytest.mark.shows("set data_checksums")
def test_without_data_checksums_only_data_goes_without(rig: Rig, wire: Wire) -> None:
    rig.config.data_checksums = False
    rig.plane = rig.make_plane()
    rig.start()
    path = rig.online()
    seen = []
    for _ in range(2):  # the second time, after control was sent
        rig.host.sendto(b"x" * 100, (CLIENT, 9))
        seen.append(wire.has_checksum())
        rig.plane.send_frame(path, 0xC021, bytes.fromhex("0901 0008 00000000"))  # LCP Echo-Request
        seen.append(wire.has_checksum())
        path.endpoint.send(build_control(9, 0, 0, 0), path.peer)
        seen.append(wire.has_checksum())
    assert seen == [False, True, True] * 2
    assert path.out_packets == 2 and rig.counters.tunnel_tx_packets == 6


def test_routes_outside_the_pool_are_installed_shared_and_removed_with_their_last_user(rig: Rig) -> None:
    rig.start()
    first = rig.online(routes=("10.9.0.0/24", "10.9.1.0/24"))
    second = SessionPath(key_of(7, 9), first.endpoint, first.peer, 7, 9, lambda *_: None)
    rig.plane.attach(second)
    rig.plane.online(second, IPv4Address("10.64.0.6"), [IPv4Network("10.9.0.0/24")], 1462)
    assert sorted(rig.routes()) == ["10.64.0.5", "10.64.0.6", "10.9.0.0/24", "10.9.1.0/24"]
    rig.host.sendto(b"to the network behind", ("10.9.1.77", 9))
    assert rig.down()[28:] == b"to the network behind"
    rig.plane.offline(first)
    rig.plane.offline(first)
    assert sorted(rig.routes()) == ["10.64.0.6", "10.9.0.0/24"]
    rig.plane.detach(second)
    assert rig.routes() == []


def test_a_session_that_changes_its_address_leaves_nothing_of_the_old_one(rig: Rig) -> None:
    rig.start()
    path = rig.online(routes=("10.9.0.0/24",))
    rig.plane.online(path, IPv4Address("10.64.0.9"), (), 1462)
    assert rig.routes() == ["10.64.0.9"]
    rig.host.sendto(b"new", ("10.64.0.9", 9))
    assert rig.down()[28:] == b"new"


def test_a_route_of_somebody_else_is_neither_replaced_nor_removed(rig: Rig) -> None:
    rig.start()
    rig.server.ip("route", "add", "10.9.0.0/24", "via", HOST)
    path = rig.online(routes=("10.9.0.0/24",))
    (refused,) = [record for record in rig.log.records() if record["event"] == "route_refused"]
    assert (refused["route"], refused["why"]) == ("10.9.0.0/24", "another program routes this prefix")
    rig.plane.detach(path)
    assert HOST in rig.server.ip("route", "show", "10.9.0.0/24")


def test_stale_routes_of_ours_are_removed_at_the_start_and_others_stay(rig: Rig) -> None:
    rig.start()
    with rig.server.entered():
        netlink = Netlink()
    index = netlink.link_index("tun0")
    rig.server.ip("route", "add", "10.1.0.0/16", "dev", "tun0", "proto", str(PROTOCOL))
    rig.server.ip("route", "add", "10.2.0.0/16", "dev", "tun0", "proto", "static")
    rig.server.ip("route", "add", "10.3.0.0/16", "via", HOST, "proto", str(PROTOCOL))
    rig.server.ip("route", "add", "10.4.0.0/16", "dev", "tun0", "proto", str(PROTOCOL))
    routes = Routes(netlink, index, rig.log.get())
    routes.start()
    routes.add([IPv4Network("10.4.0.0/16")])
    assert not [record for record in rig.log.records() if record["event"] == "route_refused"]
    routes.compare({IPv4Network("10.1.0.0/16"), IPv4Network("10.4.0.0/16")})  # the watcher of the device may come first
    assert "10.1.0.0" in rig.server.ip("route", "show")
    routes.settle()
    shown = rig.server.ip("route", "show")
    assert "10.1.0.0" not in shown and all(f"10.{number}.0.0" in shown for number in (2, 3, 4))
    netlink.close()


# What outlives the process

MARK = "l2tpns /var/lib/l2tpns/state"


def test_a_kept_device_is_adopted_with_its_routes_and_packets_wait_for_the_sessions(rig: Rig) -> None:
    rig.config.save_state = True
    rig.plane = rig.make_plane(mark=MARK)
    rig.start()
    rig.plane.serve([IPv4Network("10.64.0.0/16")])
    rig.online(("10.9.0.0/24", "10.10.0.0/24"))
    assert f"alias {MARK}" in rig.server.ip("link", "show", "tun0")
    index = rig.plane._tun.index
    rig.plane.stop(keep=True)
    kept = rig.routes()
    assert sorted(kept) == ["10.10.0.0/24", "10.64.0.0/16", "10.9.0.0/24"]

    rig.plane = rig.make_plane(mark=MARK)
    rig.plane.hold()
    rig.start()
    assert rig.plane.adopted and rig.plane._tun.index == index
    rig.up(udp(CLIENT, HOST, b"hello"))
    rig.plane.serve([IPv4Network("10.64.0.0/16")])
    assert sorted(rig.routes()) == sorted(kept)
    rig.online(("10.9.0.0/24",))
    rig.plane.resume()
    assert rig.host.recv(100) == b"hello" and rig.counters.drop_unknown_session == 0
    assert sorted(rig.routes()) == ["10.64.0.0/16", "10.9.0.0/24"]
    rig.plane.stop()
    assert "tun0" not in rig.server.ip("link", "show")


def test_a_kept_device_follows_the_configuration(rig: Rig) -> None:
    rig.config.save_state = True
    rig.plane = rig.make_plane(mark=MARK)
    rig.start()
    rig.plane.stop(keep=True)
    rig.config.iftun_address = IPv4Address("10.7.7.1")
    rig.config.save_state = False
    rig.plane = rig.make_plane(mark=MARK)
    rig.start()
    shown = rig.server.ip("-4", "address", "show", "dev", "tun0")
    assert re.findall(r"inet (\S+)", shown) == ["10.7.7.1/32"]
    rig.plane.stop(keep=True)  # which save_state does not allow
    assert "tun0" not in rig.server.ip("link", "show")


@pytest.mark.parametrize("alias", ["", "l2tpns /srv/other", "a bridge of ours"])
def test_a_device_of_others_is_refused_and_stays_as_it_is(rig: Rig, alias: str) -> None:
    rig.config.save_state = True
    rig.server.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    if alias:
        rig.server.ip("link", "set", "tun0", "alias", alias)
    before = rig.server.ip("-d", "link", "show", "tun0")
    rig.plane = rig.make_plane(mark=MARK)
    with pytest.raises(WaitError, match="an interface tun0 exists already"):
        rig.start()
    assert rig.server.ip("-d", "link", "show", "tun0") == before


def test_a_kept_device_in_use_is_neither_adopted_nor_removed(rig: Rig) -> None:
    rig.config.save_state = True
    rig.plane = rig.make_plane(mark=MARK)
    rig.start()
    with rig.server.entered():
        netlink = Netlink()
    with rig.server.entered():
        with pytest.raises(WaitError, match="is l2tpns running"):
            tun_device.Tun("tun0", netlink, MARK)
        assert tun_device.remove_kept(netlink) == []
    rig.plane.stop(keep=True)
    rig.server.ip("tuntap", "add", "dev", "tun7", "mode", "tun")
    with rig.server.entered():
        assert tun_device.remove_kept(netlink, but="tun0") == []
        assert tun_device.remove_kept(netlink) == ["tun0"]
    assert re.findall(r"tun\d", rig.server.ip("link", "show")) == ["tun7"]
    netlink.close()


def test_the_device_follows_save_state_while_the_server_runs(rig: Rig) -> None:
    rig.plane = rig.make_plane(mark=MARK)
    rig.start()
    assert "alias" not in rig.server.ip("link", "show", "tun0")
    for save_state, persist in ((True, "on"), (False, "off")):
        rig.config.save_state = save_state
        rig.plane.apply_config()
        assert f"persist {persist}" in rig.server.ip("-d", "link", "show", "tun0")


def test_hundreds_of_routes_go_in_batches_by_many_greenlets_at_once(rig: Rig) -> None:
    rig.start()
    with rig.server.entered():
        netlink = Netlink()
    index = netlink.link_index("tun0")

    def work(number: int) -> list[tuple[Route, int]]:
        routes = [Route(IPv4Network(f"10.{number}.{i}.0/24"), index, PROTOCOL) for i in range(100)]
        refused = netlink.add_routes([*routes, routes[0]])
        return refused + netlink.delete_routes(routes[1:])

    results = [gevent.spawn(work, number) for number in range(5)]
    gevent.joinall(results, timeout=PATIENCE, raise_error=True)
    assert [[code for _, code in result.value] for result in results] == [[17]] * 5  # EEXIST for the repeated one
    assert len(rig.routes()) == 5 and len(netlink.routes(index, PROTOCOL)) == 5
    netlink.close()


@pytest.mark.shows("set l2tp_mtu", "set tundevicename", "set iftun_address")
def test_the_tun_device_has_the_address_and_the_mtu_of_the_configuration(rig: Rig) -> None:
    rig.config.l2tp_mtu, rig.config.tundevicename, rig.config.iftun_address = 1400, "subs", IPv4Address("10.255.0.1")
    rig.start()
    shown = rig.server.ip("addr", "show", "dev", "subs")
    assert "mtu 1362" in shown and "inet 10.255.0.1/32" in shown and re.search(r"<.*\bUP\b.*>", shown)


def test_without_any_address_the_tun_device_has_1_1_1_1(rig: Rig) -> None:
    rig.start()
    assert rig.server.addresses("tun0") == ["1.1.1.1/32"]


def test_the_kernel_says_nothing_of_its_own_into_the_tun_device(rig: Rig) -> None:
    rig.start()
    assert "inet6" not in rig.server.ip("address", "show", "dev", "tun0")  # no address, no router solicitation
    gevent.sleep(0.5)
    assert (rig.counters.tun_rx_packets, rig.counters.drop_bad_ip) == (0, 0)


def test_a_name_that_is_taken_is_an_error_that_names_the_variable_and_leaves_nothing_open(rig: Rig) -> None:
    rig.server.ip("link", "add", "tun0", "type", "veth", "peer", "name", "other")
    with pytest.raises(ConfigError, match="tundevicename: an interface tun0 exists already"):
        rig.start()
    rig.server.ip("link", "delete", "tun0")
    rig.start()  # port 1701 is free again


def test_a_tun_device_of_another_process_is_not_shared(rig: Rig) -> None:
    rig.server.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    with pytest.raises(ConfigError, match="exists already"):
        rig.start()


def test_a_missing_dev_net_tun_is_an_error_in_plain_words(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tun_device, "CLONE_DEVICE", "/dev/net/no-such-thing")
    with pytest.raises(ConfigError, match="/dev/net/no-such-thing is missing"):
        rig.start()


def test_a_deleted_device_that_cannot_be_made_again_is_reported_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.plane = rig.make_plane(retry_delays=(0.0, 0.01))
    rig.start()
    monkeypatch.setattr(tun_device, "CLONE_DEVICE", "/dev/net/no-such-thing")
    rig.server.ip("link", "delete", "tun0")
    until(lambda: rig.lost == ["tun"])
    assert [line["level"] for line in rig.log.records("data_path_lost")] == ["error"]
    assert len(rig.log.records("tun_not_made")) == 2
    assert rig.plane._forwarder.write == rig.plane._write  # and no other file gets packets


@pytest.mark.statement(94)
def test_a_host_learns_the_mtu_of_a_subscriber_with_a_smaller_mru(rig: Rig) -> None:
    rig.start()
    rig.online(mru=1000)
    rig.host.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: do
    rig.host.connect((CLIENT, 9))
    rig.host.send(bytes(1300))
    until(lambda: rig.host.getsockopt(socket.IPPROTO_IP, 14) == 1000)  # IP_MTU
    with pytest.raises(OSError, match="too long"):
        rig.host.send(bytes(1300))
    assert rig.counters.icmp_sent == 1


@pytest.mark.statement(94)
def test_a_packet_that_may_be_fragmented_arrives_in_pieces(rig: Rig) -> None:
    rig.start()
    rig.online(mru=1000)
    rig.host.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: dont
    rig.host.sendto(bytes(1300), (CLIENT, 9))
    first, second = rig.down(), rig.down()
    assert len(first) <= 1000 and len(first) + len(second) == 1300 + 8 + 2 * 20


def test_an_address_of_the_pool_that_nobody_has_is_host_unreachable(rig: Rig) -> None:
    rig.start()
    rig.plane.serve([IPv4Network("10.64.0.0/16")])
    rig.host.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: or the kernel keeps this error to itself
    rig.host.connect(("10.64.0.77", 9))
    rig.host.send(b"anybody?")
    with pytest.raises(OSError) as refused:
        rig.host.recv(100)
    assert refused.value.errno == 113  # EHOSTUNREACH
    assert rig.counters.drop_no_session == 1


def test_fifty_starts_and_stops_leave_no_descriptor(rig: Rig) -> None:
    rig.start()
    rig.plane.stop()
    before = len(list(File("/proc/self/fd").iterdir()))
    for _ in range(50):
        rig.start()
        rig.plane.stop()
    assert len(list(File("/proc/self/fd").iterdir())) == before
