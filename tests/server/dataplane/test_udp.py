"""The LACs' side on loopback: listening, headers, who may send what."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from itertools import pairwise
from math import inf
from typing import Any

import gevent
import gevent.socket
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.dataplane import endpoint as endpoint_module
from l2tpns.dataplane import udp
from l2tpns.dataplane.endpoint import Endpoint, WildcardEndpoint, open_socket
from l2tpns.dataplane.session_path import SessionPath, key_of
from l2tpns.dataplane.udp import LacSide
from l2tpns.errors import ConfigError, WireError
from l2tpns.proto.ppp.frame import parse_frame
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.drain import DRAIN, Clock, DeviceGone, drain_forever, opened
from tests.lab import PATIENCE
from tests.lab.memory_log import MemoryLog
from tests.lab.netns import is_root
from tests.lab.packets import ip
from tests.lab.portthief import PortThief

EVERYWHERE = (IPv4Address(0),)
PACKET = ip("10.0.0.5", "198.51.100.2", b"data")
SCCRQ = bytes.fromhex(
    "c802 0014 0000 0000 0000 0000"  # control, 20 octets, no ids, Ns 0, Nr 0
    "8008 0000 0000 0001"  # Message Type: SCCRQ
)
ZLB = bytes.fromhex("c802 000c 0007 0000 0000 0000")


class Rig:
    """A LacSide on loopback and a path with our ids 7 and 8 whose LAC is `self.lac`."""

    def __init__(self, addresses: tuple[IPv4Address, ...] = EVERYWHERE, port: int = 0) -> None:
        self.counters = Counters()
        self.clock = Clock()
        self.carried: list[bytes] = []
        self.posted: list[tuple[int, bytes]] = []
        self.control: list[tuple[bytes, tuple[str, int], str]] = []
        self.on_full: Callable[[float], None] = lambda full_at: None
        self.up = False  # each control message is taken to bring a tunnel up
        self.side = LacSide(
            addresses,
            self.counters,
            self.clock,
            MemoryLog().get(),
            uplink=lambda path, packet: self.carried.append(packet),
            on_control=self.on_control,
            port=port,
        )
        self.side.start()
        self.lac = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.lac.bind(("127.0.0.1", 0))
        self.lac.settimeout(PATIENCE)
        self.peer: tuple[str, int] = self.lac.getsockname()
        self.endpoint = self.side.endpoint("127.0.0.1")
        self.path = self.attach(8)

    def on_control(self, datagram: bytes, peer: tuple[str, int], endpoint: Endpoint) -> None:
        self.control.append((datagram, peer, endpoint.address))
        self.on_full(endpoint.full_at)
        self.asked = self.side.dedicate(endpoint) if self.up else endpoint

    def open(self, address: str) -> Endpoint:
        """A tunnel comes up at this address."""
        self.send(SCCRQ, to=address)
        endpoint = self.side.dedicate(self.asked)
        endpoint.hold()
        return endpoint

    def attach(self, session_id: int) -> SessionPath:
        path = SessionPath(
            key_of(7, session_id), self.endpoint, self.peer, 9, 10, lambda *frame: self.posted.append(frame), now=0.0
        )
        path.online = True
        self.side.paths[path.key] = path
        return path

    def send(self, datagram: bytes, to: str = "127.0.0.1", lac: socket.socket | None = None) -> None:
        """Send, and let the reader take it."""
        before = self.counters.tunnel_rx_packets
        (lac or self.lac).sendto(datagram, (to, self.side.port))
        until(lambda: self.counters.tunnel_rx_packets > before)

    def close(self) -> None:
        self.side.stop()
        self.lac.close()


def until(condition: Callable[[], bool]) -> None:
    with gevent.Timeout(PATIENCE):
        while not condition():
            gevent.sleep(0.001)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def data(
    frame: bytes,
    *,
    length: bool = False,
    ns: int | None = None,
    offset: int | None = None,
    priority: bool = False,
    reserved: int = 0,
    session_id: int = 8,
    beyond: bytes = b"",
) -> bytes:
    """A data message to tunnel 7 with any of the options of RFC 2661 3.1."""
    flags = 0x0002 | reserved | (0x4000 * length) | (0x0100 * priority)
    rest = struct.pack("!HH", 7, session_id)
    if ns is not None:
        flags |= 0x0800
        rest += struct.pack("!HH", ns, 77)  # Nr means nothing in data
    if offset is not None:
        flags |= 0x0200
        rest += struct.pack("!H", offset) + b"\xaa" * offset
    size = 2 + 2 * length + len(rest) + len(frame)
    return struct.pack("!H", flags) + (struct.pack("!H", size) if length else b"") + rest + frame + beyond


# Headers


@pytest.mark.statement(4)
@pytest.mark.parametrize("length", [False, True])
@pytest.mark.parametrize("ns", [None, 5])
@pytest.mark.parametrize("offset", [None, 0, 3])
@pytest.mark.parametrize("priority", [False, True])
def test_every_mix_of_the_l_s_o_and_p_bits_is_read(
    rig: Rig, length: bool, ns: int | None, offset: int | None, priority: bool
) -> None:
    rig.send(data(b"\xff\x03\x00\x21" + PACKET, length=length, ns=ns, offset=offset, priority=priority))
    assert rig.carried == [PACKET]


@pytest.mark.parametrize(
    ("options", "extra"), [({}, 0), ({"length": True}, 2), ({"length": True, "ns": 5}, 6), ({"offset": 3}, 5)]
)
def test_a_path_knows_how_long_the_lacs_headers_are(rig: Rig, options: dict[str, Any], extra: int) -> None:
    rig.send(data(bytes.fromhex("ff03 c021 0901 0008 0000 0000"), **options))
    assert rig.path.extra == extra


@pytest.mark.statement(3)
def test_reserved_bits_of_a_data_message_are_ignored(rig: Rig) -> None:
    rig.send(data(b"\xff\x03\x00\x21" + PACKET, reserved=0x34F0))
    assert rig.carried == [PACKET]


@pytest.mark.statement(5)
def test_octets_beyond_length_are_ignored(rig: Rig) -> None:
    rig.send(data(b"\xff\x03\x00\x21" + PACKET, length=True, beyond=b"junk"))
    assert rig.carried == [PACKET]


@pytest.mark.statement(5)
@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\x00",
        data(b"")[:5],  # no room for the ids
        data(b"\xff\x03\x00\x21" + PACKET, length=True)[:-1],  # Length beyond the datagram
        bytes.fromhex("4002 0006 0007 0008") + b"\xff\x03\x00\x21" + PACKET,  # Length shorter than the header
        bytes.fromhex("0202 0007 0008 ffff") + b"\xff\x03\x00\x21" + PACKET,  # offset past the end
        bytes.fromhex("0001 0007 0008") + b"\xff\x03\x00\x21" + PACKET,  # L2F
        bytes.fromhex("0003 0007 0008") + b"\xff\x03\x00\x21" + PACKET,  # version 3
    ],
)
def test_a_malformed_header_is_dropped_and_counted(rig: Rig, datagram: bytes) -> None:
    rig.send(datagram)
    assert rig.carried == rig.posted == []
    assert rig.counters.drop_malformed == 1


@pytest.mark.statement(97)
@pytest.mark.parametrize("start", ["ff03 0021", "0021", "ff03 21", "21"])
@pytest.mark.parametrize("length", [False, True])
def test_ip_comes_with_or_without_ff_03_and_with_one_or_two_octets_of_protocol(
    rig: Rig, start: str, length: bool
) -> None:
    rig.send(data(bytes.fromhex(start) + PACKET, length=length))
    assert rig.carried == [PACKET]


@pytest.mark.statement(97)
@pytest.mark.parametrize("start", ["ff03 c021", "c021"])
def test_other_protocols_are_posted_to_the_session_in_either_form(rig: Rig, start: str) -> None:
    rig.send(data(bytes.fromhex(start) + b"\x09\x01\x00\x08abcd"))
    assert rig.posted == [(0xC021, b"\x09\x01\x00\x08abcd")] and not rig.carried


@pytest.mark.statement(97)
def test_a_frame_that_we_send_always_has_ff_03_and_two_octets_of_protocol(rig: Rig) -> None:
    rig.endpoint.send(rig.path.frame(0xC021, b"lcp"), rig.peer)
    assert rig.lac.recv(100) == bytes.fromhex("0002 0009 000a ff03 c021") + b"lcp"


@pytest.mark.parametrize("frame", [b"", b"\xff", b"\xff\x03", b"\x00", b"\x00\x20abc", b"\xff\x03\xc0"])
def test_a_frame_without_a_protocol_is_dropped_and_counted(rig: Rig, frame: bytes) -> None:
    rig.send(data(frame))
    if frame == b"\xff":
        assert rig.posted == [(0xFF, b"")]  # an odd octet: a protocol that nobody has
    else:
        assert rig.posted == [] and rig.counters.drop_malformed == rig.path.dropped_malformed == 1


@given(st.binary(max_size=40))
def test_any_frame_gives_a_protocol_or_an_error_of_ours(frame: bytes) -> None:
    try:
        protocol, information = parse_frame(frame)
    except WireError:
        return
    assert protocol & 1 and frame.endswith(information)


@given(st.binary(max_size=60))
def test_any_datagram_is_carried_posted_handed_on_or_counted(datagram: bytes) -> None:
    counters = Counters()
    seen: list[bytes] = []
    side = LacSide(
        (), counters, Clock(), MemoryLog().get(),
        uplink=lambda path, packet: seen.append(packet), on_control=lambda octets, peer, endpoint: seen.append(octets),
    )  # fmt: skip
    endpoint = object.__new__(Endpoint)
    peer = ("192.0.2.2", 1701)
    for key in (key_of(7, 8), int.from_bytes(datagram[2:6], "big")):
        side.paths[key] = path = SessionPath(key, endpoint, peer, 1, 1, lambda *frame: seen.append(frame[1]), now=0.0)
        path.online = True
    side.receive(datagram, peer, endpoint)
    drops = counters.drop_malformed + counters.drop_unknown_session + counters.drop_old_ns
    assert len(seen) + drops == 1


# Sequence


@pytest.mark.statement(17)
def test_a_data_message_with_an_old_ns_is_dropped_and_one_after_a_gap_is_not(rig: Rig) -> None:
    for ns in (65534, 65535, 65535, 0, 65533, 3, 2, 4):
        rig.send(data(b"\x21" + ip("10.0.0.5", "198.51.100.2", ns.to_bytes(2, "big")), ns=ns))
    assert [int.from_bytes(packet[-2:], "big") for packet in rig.carried] == [65534, 65535, 0, 3, 4]
    assert rig.counters.drop_old_ns == rig.path.dropped_old == 3


@pytest.mark.statement(17)
def test_a_message_without_ns_passes_between_numbered_ones(rig: Rig) -> None:
    rig.send(data(b"\x21" + PACKET, ns=5))
    rig.send(data(b"\x21" + PACKET))
    assert len(rig.carried) == 2


# Who may send


@pytest.mark.statement(10)
def test_data_from_another_address_or_port_is_neither_carried_nor_posted(rig: Rig) -> None:
    with gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.3", 0))
        for frame in (b"\xff\x03\x00\x21" + PACKET, b"\xc0\x21lcp!"):
            rig.send(data(frame), lac=stranger)
    assert rig.carried == rig.posted == []
    assert rig.counters.drop_wrong_peer == rig.path.dropped_wrong_peer == 2
    assert rig.path.last_rx == 0.0


@pytest.mark.statement(13)
def test_two_lacs_behind_one_address_are_told_apart_by_their_ports(rig: Rig) -> None:
    with gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
        second.bind(("127.0.0.1", 0))
        path = rig.attach(9)
        path.peer = second.getsockname()
        rig.send(data(b"\x21" + PACKET))
        rig.send(data(b"\x21" + PACKET, session_id=9), lac=second)
        rig.send(data(b"\x21" + PACKET, session_id=9))
    assert len(rig.carried) == 2 and path.dropped_wrong_peer == 1


@pytest.mark.statement(14)
def test_ip_of_a_session_that_is_not_online_is_dropped_while_its_lcp_is_posted(rig: Rig) -> None:
    rig.path.online = False
    rig.send(data(b"\xff\x03\x00\x21" + PACKET))
    rig.send(data(b"\xff\x03\xc0\x21lcp"))
    assert rig.carried == [] and rig.posted == [(0xC021, b"lcp")]
    assert rig.counters.drop_not_online == rig.path.dropped_not_online == 1


def test_data_for_an_unknown_session_is_dropped_and_counted(rig: Rig) -> None:
    rig.send(data(b"\x21" + PACKET, session_id=99))
    assert rig.counters.drop_unknown_session == 1 and not rig.carried


# Listening


@pytest.mark.statement(10, 11)
@pytest.mark.parametrize("up", [False, True])
def test_the_reply_leaves_from_the_address_the_sccrq_was_sent_to(rig: Rig, up: bool) -> None:
    rig.send(SCCRQ, to="127.0.0.2")
    ((datagram, peer, address),) = rig.control
    assert (datagram, peer, address) == (SCCRQ, rig.peer, "127.0.0.2")
    endpoint = rig.side.dedicate(rig.asked) if up else rig.asked
    assert endpoint.send(ZLB, peer) and endpoint.send_data(b"data", peer)
    assert [rig.lac.recvfrom(100) for _ in range(2)] == [
        (each, ("127.0.0.2", rig.side.port)) for each in (ZLB, b"data")
    ]
    assert (rig.counters.tunnel_tx_packets, rig.counters.tunnel_tx_octets) == (2, len(ZLB) + 4)


@pytest.mark.statement(8)
def test_nothing_opens_a_socket_but_a_tunnel_that_is_up(rig: Rig) -> None:
    for number in range(40):
        for datagram in (SCCRQ, ZLB, data(b"\x21" + PACKET)):
            rig.send(datagram, to=f"127.0.9.{number}")
    assert list(rig.side.endpoints) == ["127.0.0.1"]
    assert len(rig.control) == 80 and len(rig.carried) == 40  # what came was heard all the same
    assert rig.open("127.0.9.7").address == "127.0.9.7"
    assert list(rig.side.endpoints) == ["127.0.0.1", "127.0.9.7"]


def test_a_broadcast_is_not_for_us(rig: Rig) -> None:
    with gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        rig.send(SCCRQ, to="127.255.255.255", lac=sender)
    assert rig.control == [] and rig.counters.drop_unknown_tunnel == 1


def test_a_socket_that_no_tunnel_uses_is_closed_after_a_while_and_its_address_is_heard_further_on(rig: Rig) -> None:
    rig.endpoint.hold()
    used, unused = rig.open("127.0.0.2"), rig.open("127.0.0.3")
    unused.release()
    now = unused.idle_since
    rig.side.sweep(now + udp.ENDPOINT_IDLE_TIMEOUT - 1)
    assert "127.0.0.3" in rig.side.endpoints
    rig.side.sweep(now + udp.ENDPOINT_IDLE_TIMEOUT)
    assert list(rig.side.endpoints) == ["127.0.0.1", "127.0.0.2"]
    until(lambda: unused.socket.fileno() < 0)
    for address in ("127.0.0.2", "127.0.0.3"):
        rig.send(ZLB, to=address)
        assert rig.control[-1] == (ZLB, rig.peer, address)
    again = rig.open("127.0.0.3")
    assert again.socket is not unused.socket and used.socket.fileno() >= 0


def test_what_is_in_a_socket_when_it_is_closed_is_not_lost(rig: Rig) -> None:
    rig.endpoint.hold()
    endpoint = rig.open("127.0.0.2")
    endpoint.release()
    before = len(rig.control)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as lac:
        lac.bind(("127.0.0.1", 0))
        for number in range(5 * DRAIN):
            lac.sendto(ZLB + number.to_bytes(2, "big"), ("127.0.0.2", rig.side.port))
        rig.side.sweep(endpoint.idle_since + udp.ENDPOINT_IDLE_TIMEOUT)  # before its reader had a turn
        until(lambda: endpoint.socket.fileno() < 0)
        lac.sendto(ZLB, ("127.0.0.2", rig.side.port))
        until(lambda: len(rig.control) == before + 5 * DRAIN + 1)
    assert rig.asked is not endpoint  # a tunnel that begins now does not get a socket that is closed


def test_when_sockets_run_out_one_without_a_tunnel_makes_room_and_else_the_wildcard_one_serves(
    rig: Rig,
) -> None:
    rig.side.max_endpoints = 4
    rig.endpoint.hold()
    first, second, third = (rig.open(f"127.0.0.{number}") for number in (2, 3, 4))
    second.release()
    first.release()
    assert rig.open("127.0.0.5").address == "127.0.0.5"
    assert list(rig.side.endpoints) == ["127.0.0.1", "127.0.0.2", "127.0.0.4", "127.0.0.5"]  # the longest idle one left
    first.hold()
    full = rig.open("127.0.0.6")
    assert isinstance(full, WildcardEndpoint) and "127.0.0.6" not in rig.side.endpoints
    assert full.send(ZLB, rig.peer)
    assert rig.lac.recvfrom(100) == (ZLB, ("127.0.0.6", rig.side.port))
    assert third.socket.fileno() >= 0


def test_an_address_that_cannot_have_a_socket_is_served_by_the_wildcard_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    rig.send(SCCRQ, to="127.0.0.2")
    monkeypatch.setattr(endpoint_module, "open_socket", refuse)
    assert rig.side.dedicate(rig.asked) is rig.asked
    assert rig.asked.send(ZLB, rig.peer)
    assert rig.lac.recvfrom(100)[1][0] == "127.0.0.2"


def test_a_burst_before_the_socket_is_open_arrives_in_full() -> None:
    rig = Rig()
    rig.up = True
    for number in range(3 * DRAIN):
        rig.lac.sendto(SCCRQ + number.to_bytes(2, "big"), ("127.0.0.4", rig.side.port))
    until(lambda: len(rig.control) == 3 * DRAIN)
    assert {address for _, _, address in rig.control} == {"127.0.0.4"}
    assert rig.asked is rig.side.endpoints["127.0.0.4"]
    rig.close()


def test_with_addresses_given_only_they_are_listened_on() -> None:
    rig = Rig((IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2")))
    rig.send(SCCRQ, to="127.0.0.2")
    rig.lac.sendto(SCCRQ, ("127.0.0.5", rig.side.port))
    rig.send(SCCRQ, to="127.0.0.1")
    assert [address for _, _, address in rig.control] == ["127.0.0.2", "127.0.0.1"]
    rig.close()


@pytest.mark.parametrize("second", [EVERYWHERE, (IPv4Address("127.0.0.1"),), (IPv4Address("127.0.0.9"),)])
def test_a_second_server_on_the_port_fails_and_says_where(rig: Rig, second: tuple[IPv4Address, ...]) -> None:
    with pytest.raises(ConfigError, match=f"UDP port {rig.side.port}.*in use"):
        Rig(second, rig.side.port)


@pytest.mark.skipif(not is_root(), reason="needs root to be another user as well")
def test_no_other_user_binds_the_port_beside_us_also_while_sockets_for_new_addresses_are_made(rig: Rig) -> None:
    addresses = ["0.0.0.0", "127.0.0.1", "127.9.0.1", "127.9.0.77", "::", "::ffff:127.0.0.1", "::ffff:127.9.0.99"]
    with PortThief([("udp", address, rig.side.port) for address in addresses]) as thief:
        thief.wait_for_a_round()  # with the wildcard socket and one beside it
        for number in range(1, 100):
            rig.side.endpoint(f"127.9.0.{number}")
            gevent.sleep(0.001)
        thief.wait_for_a_round()
        assert thief.loot() == []
    assert thief.tries >= 2 * 4 * len(addresses)
    rig.send(SCCRQ, to="127.9.0.50")
    rig.send(SCCRQ, to="127.9.0.150")
    assert [address for _, _, address in rig.control] == ["127.9.0.50", "127.9.0.150"]


def test_no_socket_of_ours_stays_open_to_sharing_its_port(rig: Rig) -> None:
    rig.side.endpoint("127.9.0.1")
    assert rig.side._wildcard is not None
    for sock in (rig.side._wildcard, *(endpoint.socket for endpoint in rig.side.endpoints.values())):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_an_address_that_is_not_ours_leaves_the_wildcard_socket_as_it_was(rig: Rig) -> None:
    assert rig.side._wildcard is not None
    with pytest.raises(OSError, match="assign requested address"):
        rig.side.endpoint("192.0.2.77")
    assert rig.side._wildcard.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


@pytest.mark.statement(12)
def test_datagrams_carry_a_udp_checksum_and_may_be_fragmented() -> None:
    sock = open_socket("127.0.0.1", 0)
    assert sock.getsockopt(socket.SOL_SOCKET, 11) == 0  # SO_NO_CHECK
    assert sock.getsockopt(socket.IPPROTO_IP, 10) == 0  # IP_MTU_DISCOVER: dont, no DF
    sock.close()


def test_an_error_of_the_network_is_counted_and_never_raised(rig: Rig) -> None:
    assert not rig.endpoint.send(b"x", ("255.255.255.255", 9))  # EACCES: no broadcast
    assert not rig.endpoint.send(bytes(70000), rig.peer)  # EMSGSIZE
    assert rig.counters.tunnel_tx_errors == 2 and rig.counters.tunnel_tx_packets == 0


def test_stopping_leaves_no_descriptor_and_frees_the_port(rig: Rig) -> None:
    fds = [endpoint.socket.fileno() for endpoint in rig.side.endpoints.values()]
    port = rig.side.port
    rig.side.stop()
    again = open_socket("0.0.0.0", port)
    assert fds and not rig.side.endpoints
    again.close()


# Sharing


def test_a_full_queue_is_drained_in_small_bites_with_everybody_elses_turn_between(rig: Rig) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        for _ in range(10 * DRAIN):
            flood.sendto(SCCRQ, ("127.0.0.1", rig.side.port))
    seen = [0]
    while seen[-1] < 10 * DRAIN:
        gevent.sleep(1e-6)
        seen.append(len(rig.control))
    assert max(after - before for before, after in pairwise(seen)) <= DRAIN


@pytest.mark.parametrize("up", [False, True])
def test_a_socket_tells_when_there_was_more_to_read_than_is_read_at_once(rig: Rig, up: bool) -> None:
    address = rig.open("127.0.0.2").address if up else "127.0.0.2"
    for _ in range(3):
        rig.send(SCCRQ, to=address)
    assert rig.asked.full_at == -inf
    full_at: list[float] = []
    rig.on_full = full_at.append
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        for _ in range(2 * DRAIN + 1):
            flood.sendto(SCCRQ, (address, rig.side.port))
    until(lambda: len(full_at) == 2 * DRAIN + 1)
    assert full_at[:DRAIN] == [-inf] * DRAIN and -inf not in full_at[DRAIN:]
    assert full_at[-1] <= rig.clock.now


def test_packets_stay_in_the_queue_while_reading_is_not_set() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.setblocking(False)
    taken: list[bytes] = []
    reading = opened()
    greenlet = gevent.spawn(
        drain_forever, left.fileno(), lambda: taken.append(left.recv(10)), reading, MemoryLog().get()
    )
    right.send(b"one")
    until(lambda: taken == [b"one"])
    reading.clear()
    right.send(b"two")
    for _ in range(5):
        gevent.idle()
    assert taken == [b"one"]
    reading.set()
    until(lambda: taken == [b"one", b"two"])
    greenlet.kill()
    left.close()
    right.close()


def test_a_handler_that_fails_costs_its_packet_and_not_the_loop() -> None:
    log = MemoryLog()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.setblocking(False)
    taken = []

    def drain() -> None:
        octets = left.recv(10)
        if octets == b"bad":
            raise ValueError("a bug")
        if octets == b"gone":
            raise DeviceGone("tun0 was deleted")
        taken.append(octets)

    greenlet = gevent.spawn(drain_forever, left.fileno(), drain, opened(), log.get())
    for octets in (b"bad", b"good", b"gone"):
        right.send(octets)
    greenlet.join(PATIENCE)
    assert greenlet.dead and taken == [b"good"]
    left.close()
    right.close()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("0.0.0.0", "cannot listen on UDP port {port}: Address already in use; is another L2TP server running?"),
        (
            "127.0.0.1",
            "bind_multi_address: cannot listen on UDP port {port} of 127.0.0.1: Address already in use; "
            "is another L2TP server running?",
        ),
        (
            "192.0.2.77",
            "bind_multi_address: cannot listen on UDP port {port} of 192.0.2.77: Cannot assign requested address; "
            "it is not an address of this machine",
        ),
    ],
)
def test_a_start_that_is_refused_its_port_says_what_to_look_at(address: str, says: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(ConfigError) as refused:
            Rig((IPv4Address(address),), port)
    assert str(refused.value) == says.format(port=port)
