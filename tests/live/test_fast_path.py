"""The fast path: what the kernel programs carry, count, drop and leave to user space (root, own namespaces).

Two servers side by side, one with the fast path and one without, get the same datagrams and packets: both must send the
same octets, and count the same.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from time import monotonic
from typing import Any

import gevent
import gevent.socket
import pytest

from l2tpns.config.settings import Config
from l2tpns.dataplane.fastpath import layout
from l2tpns.dataplane.fastpath.plane import KernelPlane
from l2tpns.dataplane.fastpath.programs import Loader
from l2tpns.dataplane.policer import Policer
from l2tpns.dataplane.rate import Rate
from l2tpns.dataplane.session_path import SessionPath, key_of
from l2tpns.dataplane.userspace import UserPlane
from l2tpns.runtime.counters import Counters
from l2tpns.system.rtnetlink import Netlink
from l2tpns.system.tun_device import Tun
from tests.lab import PATIENCE
from tests.lab.memory_log import MemoryLog
from tests.lab.netns import Lab, Namespace, is_root, three_hosts
from tests.lab.packets import ip, tcp_checksum_is_right, tcp_syn
from tests.lab.transfer import transfer

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, LAC, HOST, CLIENT, STRANGER = "192.0.2.1", "192.0.2.2", "198.51.100.9", "10.64.0.5", "10.64.0.6"
BEHIND = "10.9.0.77"  # in the framed route
HEADER = bytes.fromhex("0002 0007 0008 ff03 0021")
MRU = 1462
PATH_COUNTERS = (
    "in_packets",
    "in_octets",
    "out_packets",
    "out_octets",
    "dropped_spoofed",
    "dropped_packet_limit",
)
COUNTERS = (
    "tun_rx_packets",
    "tun_rx_octets",
    "tun_tx_packets",
    "tun_tx_octets",
    "tunnel_tx_packets",
    "tunnel_tx_octets",
    "tunnel_rx_packets",
    "tunnel_rx_octets",
    "drop_spoofed",
    "mss_clamped",
    "fragmented",
)


class Rig:
    """One data plane between a LAC's socket and a host; both ends see whole IP packets."""

    def __init__(self, lab: Lab, kind: type[UserPlane], **settings: Any) -> None:
        self.lac_space, self.server, self.host_space = three_hosts(lab, clients="10.0.0.0/8")
        # HOST is an address that the host does not have, so that its kernel answers nothing.
        self.server.ip("neighbour", "add", HOST, "lladdr", mac(self.host_space, "lan"), "dev", "lan")
        self.server.ip("neighbour", "add", LAC, "lladdr", mac(self.lac_space, "wan"), "dev", "wan")
        self.config = Config(fast_path="on", **settings)
        self.counters = Counters()
        self.log = MemoryLog()
        self.posted: list[tuple[int, bytes]] = []
        self.plane = kind(self.config, self.counters, self.log.get(), lambda *_: None)
        if isinstance(self.plane, KernelPlane):
            self.plane.loader = Loader(tcx=os.environ.get("L2TPNS_HOOKS") != "clsact")
        with self.server.entered():
            self.plane.start()
            self.endpoint = self.plane.endpoint(LNS)
        self.plane.serve([IPv4Network("10.64.0.0/16")])
        with self.lac_space.entered():
            self.lac = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.lac.bind((LAC, 0))
        self.lac.settimeout(PATIENCE)
        self.from_lac = sniffer(self.host_space, "lan")
        self.from_host = sniffer(self.lac_space, "wan")
        with self.host_space.entered():
            self.host = gevent.socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.path = self.online()

    def online(
        self, mru: int = MRU, session_id: int = 8, address: str = CLIENT, routes: str = "10.9.0.0/24"
    ) -> SessionPath:
        path = SessionPath(
            key_of(7, session_id),
            self.endpoint,
            self.lac.getsockname(),
            7,
            session_id,
            lambda *it: self.posted.append(it),
        )
        self.plane.attach(path)
        self.plane.online(path, IPv4Address(address), [IPv4Network(routes)] if routes else [], mru)
        return path

    def up(self, datagrams: Iterable[bytes], last: bytes) -> list[bytes]:
        """Send datagrams as the LAC. Return the IP packets of subscribers that come to the host until `last`."""
        for datagram in datagrams:
            self.lac.sendto(datagram, (LNS, 1701))
        return until_seen(self.from_lac, last, lambda frame: frame if frame[12] == 10 else None)

    def down(self, packets: Iterable[bytes], last: bytes) -> list[bytes]:
        """Send packets as the host. Return the L2TP messages that come to the LAC until `last`."""
        for packet in packets:
            self.host.sendto(packet, (str(IPv4Address(packet[16:20])), 0))
        return until_seen(self.from_host, last, l2tp_of)

    def counts(self) -> dict[str, int]:
        self.plane.collect()
        self.plane.refresh(self.path)
        path = self.path
        return {name: getattr(path, name) for name in PATH_COUNTERS} | {
            name: getattr(self.counters, name) for name in COUNTERS
        }

    def carried(self) -> int:
        return self.plane.fast_path().totals["up_packets"] + self.plane.fast_path().totals["down_packets"]

    def close(self) -> None:
        self.plane.stop()
        for sock in (self.lac, self.from_lac, self.from_host, self.host):
            sock.close()


def until(rig: Rig, condition: Callable[[], bool]) -> None:
    limit = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < limit, f"{rig.plane.fast_path()} {rig.counts()} {rig.log.records()}"
        gevent.sleep(0.01)


def mac(space: Namespace, device: str) -> str:
    return str(json.loads(space.ip("-j", "link", "show", "dev", device))[0]["address"])


def sniffer(space: Namespace, device: str) -> gevent.socket.socket:
    with space.entered():
        sock = gevent.socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    sock.bind((device, 0x0800))
    sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    sock.settimeout(PATIENCE)
    return sock


def until_seen(sock: gevent.socket.socket, last: bytes, pick: Any) -> list[bytes]:
    found: list[bytes] = []
    while not found or last not in found[-1]:
        frame, address = sock.recvfrom(4096)
        if address[2] == 4:  # PACKET_OUTGOING
            continue
        picked = pick(frame[: int.from_bytes(frame[2:4], "big")])
        if picked is not None:
            found.append(picked)
    return found[:-1]


def l2tp_of(frame: bytes) -> bytes | None:
    """Return the L2TP message in an IP packet from the server."""
    return frame[28:] if frame[9] == 17 and frame[20:22] == (1701).to_bytes(2, "big") else None


def udp(source: str, destination: str, payload: bytes, port: int = 9000, **options: Any) -> bytes:
    return ip(source, destination, struct.pack("!HHHH", 9001, port, 8 + len(payload), 0) + payload, **options)


@pytest.fixture
def fast() -> Iterator[Rig]:
    with Lab() as lab:
        rig = Rig(lab, KernelPlane)
        yield rig
        rig.close()


@pytest.fixture
def both() -> Iterator[tuple[Rig, Rig]]:
    with Lab() as one, Lab() as other:
        fast, slow = Rig(one, KernelPlane), Rig(other, UserPlane)
        yield fast, slow
        fast.close()
        slow.close()


def compare(one: list[bytes], other: list[bytes]) -> None:
    """Compare what two servers sent, in any order: the fast path overtakes user space."""
    here, there = Counter(one), Counter(other)
    assert not [packet.hex() for packet in here - there]  # sent by the first one only
    assert not [packet.hex() for packet in there - here]


# Both ways


def test_packets_pass_both_ways_in_the_kernel_and_are_counted(fast: Rig) -> None:
    there = fast.up([HEADER + udp(CLIENT, HOST, b"hello"), HEADER + udp(CLIENT, HOST, b"end")], b"end")
    assert [packet[28:] for packet in there] == [b"hello"]
    back = fast.down([udp(HOST, CLIENT, b"welcome"), udp(HOST, CLIENT, b"end")], b"end")
    assert [message[:10] for message in back] == [HEADER] and back[0][38:] == b"welcome"
    counts = fast.counts()
    assert (counts["in_packets"], counts["in_octets"], counts["out_packets"], counts["out_octets"]) == (2, 64, 2, 66)
    assert fast.carried() == 4 and fast.plane.fast_path().sessions == 1


def random_packet(dice: random.Random, source: str, destination: str) -> bytes:
    """Return an IPv4 packet of any form: sizes, options, fragments, protocols, broken lengths and checksums."""
    kind = dice.randrange(10)
    payload = dice.randbytes(dice.choice((0, 1, 7, 26, 100, 700, 1300, 1434)))
    if kind == 0:
        mss = dice.choice((None, 536, 1422, 1423, 1460, 9000))
        before = dice.choice((b"", b"", b"\1\1\4\2", b"\1"))
        return tcp_syn(source, destination, mss, flags=dice.choice((0x02, 0x12, 0xC2)), before=before)
    if kind == 1:
        return ip(source, destination, payload[: len(payload) & ~7], fragment=dice.choice((0x2000, 0x2005, 0x0010)))
    if kind == 2:
        return ip(source, destination, payload, protocol=dice.choice((1, 6, 17, 47, 255)))
    if kind == 3:
        return ip(source, destination, payload[:1300], options=b"\1" * 4 * dice.randrange(1, 11))
    return udp(source, destination, payload, df=bool(dice.randrange(2)))


def data_message(dice: random.Random, packet: bytes) -> bytes:
    """Put a packet into a data message of any form (RFC 2661 3.1, RFC 1661 6.5, 6.6)."""
    ppp = dice.choice(
        (b"\xff\x03\x00\x21", b"\x00\x21", b"\x21", b"\xff\x03\x21", b"\xff\x03\x00\x57", b"\xff\x03\xc2\x27")
    )
    body = ppp + packet
    ids = dice.choice((b"\0\7\0\x08",) * 6 + (b"\0\7\0\x09", b"\0\1\0\x08"))
    form = dice.randrange(9)
    if form < 4:
        return b"\0\2" + ids + body
    if form < 6:
        return b"\x40\2" + (8 + len(body)).to_bytes(2, "big") + ids + body
    if form == 6:
        return b"\2\2" + ids + b"\0\3xyz" + body  # an offset
    if form == 7:
        return b"\1\2" + ids + body  # priority
    return b"\x40\2" + (8 + len(body) + dice.choice((-4, 3))).to_bytes(2, "big") + ids + body  # a wrong length


@pytest.mark.parametrize("seed", range(4))
def test_both_paths_carry_drop_and_count_the_same_packets_from_the_lac(both: tuple[Rig, Rig], seed: int) -> None:
    dice = random.Random(seed)
    datagrams = []
    for _ in range(400):
        source = dice.choice((CLIENT, CLIENT, CLIENT, BEHIND, STRANGER, HOST))
        packet = random_packet(dice, source, HOST)
        if not dice.randrange(12):
            at = dice.randrange(len(packet))  # a broken octet, wherever
            packet = packet[:at] + dice.randbytes(1) + packet[at + 1 :]
        if not dice.randrange(12):
            packet = packet[: dice.randrange(len(packet))] if dice.randrange(2) else packet + b"pad"
        datagrams.append(data_message(dice, packet))
    # The last one takes the slow way on both: what went before it has been handled when it arrives.
    end = b"\2\2\0\7\0\x08\0\0\xff\x03\0\x21" + udp(CLIENT, HOST, b"the end")
    results = [rig.up([*datagrams, end], b"the end") for rig in both]
    compare(*reversed(results))
    assert len(results[0]) > 50
    fast, slow = both
    assert fast.counts() == slow.counts()
    assert len(fast.posted) == len(slow.posted)
    assert fast.carried() > 20


@pytest.mark.parametrize("seed", range(4))
def test_both_paths_carry_drop_and_count_the_same_packets_from_the_network(both: tuple[Rig, Rig], seed: int) -> None:
    dice = random.Random(seed)
    packets = [random_packet(dice, HOST, dice.choice((CLIENT, CLIENT, BEHIND))) for _ in range(400)]
    end = udp(HOST, CLIENT, b"the end", options=b"\1\1\1\1")
    results = [rig.down([*packets, end], b"the end") for rig in both]
    compare(*results)
    assert len(results[0]) > 300
    fast, slow = both
    assert fast.counts() == slow.counts()
    assert fast.carried() > 200
    for message in results[0]:
        packet = message[10:]
        if (
            packet[9] == 6
            and len(packet) >= 44
            and packet[33] & 2
            and not packet[6] & 0x3F
            and packet[20:22] == b"\x0f\xa0"
        ):
            assert tcp_checksum_is_right(packet)


# What the owner of a session changes


def test_a_session_that_needs_python_code_leaves_the_kernel_and_comes_back(fast: Rig) -> None:
    path, seen = fast.path, []
    path.mirror = lambda direction, packet: seen.append(direction)
    fast.plane.changed(path)
    assert fast.plane.fast_path().sessions == 0 and fast.plane.carrier(path) == "user space (mirror)"
    fast.up([HEADER + udp(CLIENT, HOST, b"end")], b"end")
    fast.down([udp(HOST, CLIENT, b"end")], b"end")
    assert seen == [0, 1] and fast.carried() == 0
    path.mirror = None
    fast.plane.changed(path)
    fast.up([HEADER + udp(CLIENT, HOST, b"end")], b"end")
    fast.down([udp(HOST, CLIENT, b"end")], b"end")
    assert seen == [0, 1] and fast.carried() == 2 and fast.plane.carrier(path) == "kernel"
    counts = fast.counts()
    assert (counts["in_packets"], counts["out_packets"]) == (2, 2)


def test_an_interface_that_leaves_checksums_to_nobody_is_passed_over(fast: Rig) -> None:
    fast.server.run("ethtool", "-K", "wan", "tx", "on")
    until(fast, lambda: "ethtool -K wan tx off" in fast.plane.fast_path().passed_over.get("wan", ""))
    carried = fast.carried()
    fast.down([udp(HOST, CLIENT, b"end")], b"end")
    assert fast.carried() == carried


def test_what_the_kernel_must_encrypt_is_sent_by_user_space(fast: Rig) -> None:
    policy = f"src {LNS}/32 dst {LAC}/32 proto udp sport 1701 dir out".split()
    esp = f"tmpl src {LNS} dst {LAC} proto esp mode transport".split()
    fast.server.ip("xfrm", "policy", "add", *policy, *esp)
    until(fast, lambda: fast.plane.carrier(fast.path) == "user space (ipsec)")
    other = fast.online(session_id=9, address=STRANGER, routes="")
    assert fast.plane.carrier(other) == "user space (ipsec)"
    fast.server.ip("xfrm", "policy", "delete", *policy)
    until(fast, lambda: fast.plane.fast_path().sessions == 2)


def test_a_garden_checks_sources_even_where_spoofing_is_allowed(fast: Rig) -> None:
    fast.plane.detach(fast.path)
    fast.path = fast.online(routes="")
    fast.config.disable_no_spoof = True
    wait_for_settings(fast)
    foreign, end = HEADER + udp(STRANGER, HOST, b"foreign"), HEADER + udp(CLIENT, HOST, b"end")
    assert len(fast.up([foreign, end], b"end")) == 1
    fast.path.in_garden = True
    fast.plane.changed(fast.path)
    assert len(fast.up([foreign, end], b"end")) == 0
    assert fast.counts()["dropped_spoofed"] == 1 and fast.plane.fast_path().totals["up_spoofed"] == 1


def wait_for_settings(rig: Rig) -> None:
    """Wait until the programs have the settings as they are now."""
    plane = rig.plane
    assert isinstance(plane, KernelPlane)
    until(rig, lambda: plane._no_spoof_check == rig.config.disable_no_spoof)


def test_the_switch_moves_sessions_out_and_in_again_and_nothing_is_lost_or_counted_twice(fast: Rig) -> None:
    plane, sent = fast.plane, 0
    assert isinstance(plane, KernelPlane) and plane._sync is not None
    plane._sync.stop()  # it is not in the namespace of the server
    for value in ("on", "off", "auto"):
        fast.config.fast_path = value
        with fast.server.entered():
            plane.synchronise()
        assert plane.fast_path().running == (value != "off")
        packets = [HEADER + udp(CLIENT, HOST, b"%d" % number) for number in range(9)]
        assert len(fast.up([*packets, HEADER + udp(CLIENT, HOST, b"end")], b"end")) == 9
        sent += 10
        assert fast.counts()["in_packets"] == sent
    assert fast.carried() == 20  # of 30: the totals are those since the load
    assert [line["event"] for line in fast.log.records() if line["event"].startswith("fast_path")] == [
        "fast_path_up",
        "fast_path_down",
        "fast_path_up",
    ]


def test_a_shorter_route_of_another_session_does_not_get_packets_of_one_in_user_space(fast: Rig) -> None:
    fast.online(session_id=9, address="10.64.0.9", routes="10.64.0.0/24")
    fast.path.policer = Policer(10_000, 0.0)
    fast.plane.changed(fast.path)
    (back,) = fast.down([udp(HOST, CLIENT, b"mine"), udp(HOST, CLIENT, b"end")], b"end")
    assert back[4:6] == b"\0\x08"
    (other,) = fast.down([udp(HOST, "10.64.0.77", b"routed"), udp(HOST, "10.64.0.77", b"end")], b"end")
    assert other[4:6] == b"\0\x09"


def test_a_session_that_ends_is_gone_from_the_maps_and_its_slot_starts_at_zero(fast: Rig) -> None:
    fast.up([HEADER + udp(CLIENT, HOST, b"end")], b"end")
    fast.plane.detach(fast.path)
    assert fast.path.in_packets == 1 and fast.plane.fast_path().sessions == 0
    plane = fast.plane
    assert isinstance(plane, KernelPlane) and plane._programs is not None and plane._sessions is not None
    assert plane._programs.sessions.get(b"\0\7\0\x08", layout.SESSION.size) is None
    assert plane._programs.addresses.get(IPv4Address(CLIENT).packed, 4) is None
    plane._sessions._free.rotate(1)  # the slot that was released last comes next
    fast.path = fast.online()
    fast.up([HEADER + udp(CLIENT, HOST, b"end")], b"end")
    assert fast.counts()["in_packets"] == 1


def test_packet_limit_counts_in_the_kernel(fast: Rig) -> None:
    fast.config.packet_limit = 5
    plane = fast.plane
    assert isinstance(plane, KernelPlane)
    until(fast, lambda: struct.unpack_from("=12xI", plane._settings)[0] == 5)
    for number in range(200):
        fast.host.sendto(udp(HOST, CLIENT, b"%d" % number), (CLIENT, 0))
    until(fast, lambda: sum(fast.counts()[name] for name in ("out_packets", "dropped_packet_limit")) == 200)
    assert fast.counts()["dropped_packet_limit"] > 50


# Rates


def test_a_rate_is_kept_in_the_kernel_each_way_and_a_change_is_no_new_burst(fast: Rig) -> None:
    path, size = fast.path, 1000
    path.rate_in = path.rate_out = Rate.of(80, 650)  # 10 packets of 1,000 octets a second, a burst of 6.5
    fast.plane.changed(path)
    packets = 60
    begun = monotonic()
    for _ in range(packets):
        fast.lac.sendto(HEADER + udp(CLIENT, HOST, bytes(size - 28)), (LNS, 1701))
        fast.host.sendto(udp(HOST, CLIENT, bytes(size - 28)), (CLIENT, 0))
    wait_for_total(fast, 2 * packets)
    most = 6.5 + 10 * (monotonic() - begun)
    counts = fast.counts()
    for way, dropped in (("in", path.dropped_policed), ("out", path.dropped_policed_out)):
        assert 6 <= counts[f"{way}_packets"] <= most
        assert counts[f"{way}_packets"] + dropped == packets
        assert counts[f"{way}_octets"] == size * counts[f"{way}_packets"]
    assert fast.plane.fast_path().sessions == 1
    # Another rate: what was saved at the old one is gone, and comes back at the new one's pace.
    path.rate_in = path.rate_out = Rate.of(100_000, 1000)
    fast.plane.changed(path)
    passed = counts["in_packets"]
    with gevent.Timeout(PATIENCE):
        while fast.counts()["in_packets"] < passed + 5:
            fast.lac.sendto(HEADER + udp(CLIENT, HOST, bytes(size - 28)), (LNS, 1701))
            gevent.sleep(0.001)
    path.rate_in = path.rate_out = None
    fast.plane.changed(path)
    fast.up([HEADER + udp(CLIENT, HOST, b"end")], b"end")


def wait_for_total(rig: Rig, number: int) -> None:
    """Wait until the programs have judged so many packets."""
    names = ("up_packets", "up_policed", "down_packets", "down_policed")
    until(rig, lambda: sum(rig.plane.fast_path().totals[name] for name in names) == number)


def test_the_same_rate_holds_in_user_space(both: tuple[Rig, Rig]) -> None:
    for rig in both:
        rig.path.rate_in = rig.path.rate_out = Rate.of(8, 10)  # a burst of 5,200 octets, then one packet a second
        rig.plane.changed(rig.path)
        for _ in range(20):
            rig.lac.sendto(HEADER + udp(CLIENT, HOST, bytes(972)), (LNS, 1701))
            rig.host.sendto(udp(HOST, CLIENT, bytes(972)), (CLIENT, 0))
        until(rig, lambda it=rig: it.counts()["in_packets"] + it.path.dropped_policed == 20)
        until(rig, lambda it=rig: it.counts()["out_packets"] + it.path.dropped_policed_out == 20)
        assert rig.counts()["in_packets"] >= 5 and rig.path.dropped_policed > 0
        assert rig.counts()["out_packets"] >= 5 and rig.path.dropped_policed_out > 0


# Real TCP


class Relay:
    """Make the LAC's socket a network device of the subscriber, in the LAC's namespace: kernel TCP runs through it."""

    def __init__(self, rig: Rig) -> None:
        self.lac = rig.lac
        self.lac.settimeout(None)
        with rig.lac_space.entered():
            netlink = Netlink()
            self.tun = Tun("sub0", netlink)
            netlink.close()
        rig.lac_space.ip("address", "add", f"{CLIENT}/32", "dev", "sub0")
        rig.lac_space.ip("link", "set", "sub0", "mtu", str(MRU), "up")
        rig.lac_space.ip("route", "add", "198.51.100.2", "dev", "sub0", "src", CLIENT)
        self.loops = [gevent.spawn(self._up), gevent.spawn(self._down)]

    def _up(self) -> None:
        while True:
            gevent.socket.wait_read(self.tun.fd)
            self.lac.sendto(HEADER + os.read(self.tun.fd, 4096), (LNS, 1701))

    def _down(self) -> None:
        while True:
            os.write(self.tun.fd, self.lac.recv(4096)[len(HEADER) :])

    def close(self) -> None:
        gevent.killall(self.loops)
        self.tun.close()


@pytest.mark.parametrize("offload", ["off", "on"])
def test_tcp_each_way_arrives_whole_with_and_without_super_packets(fast: Rig, offload: str) -> None:
    for space, device in ((fast.host_space, "lan"), (fast.server, "lan"), (fast.server, "wan")):
        options = ("tx", offload, "tso", offload, "gso", offload, "gro", offload)
        space.run("ethtool", "-K", device, *(options if device == "lan" else options[2:]))
    relay = Relay(fast)
    pool = gevent.get_hub().threadpool
    for way in (
        (fast.host_space, "198.51.100.2", fast.lac_space, CLIENT),
        (fast.lac_space, CLIENT, fast.host_space, "198.51.100.2"),
    ):
        pool.apply(transfer, way, {"octets": 3_000_000})
    relay.close()
    came = int(fast.server.run("cat", "/sys/class/net/lan/statistics/rx_packets"))
    totals = fast.plane.fast_path().totals
    assert totals["down_octets"] > 3_000_000 and totals["up_octets"] > 3_000_000
    assert totals["down_clamped"] + totals["up_clamped"] == fast.counts()["mss_clamped"]
    assert (came < totals["down_packets"]) == (offload == "on")  # a super-packet comes as one
    # Nearly all of it: the first packet may ask for the LAC's address.
    assert totals["down_passed_packet"] + totals["up_passed_packet"] + totals["down_passed_route"] < 5
