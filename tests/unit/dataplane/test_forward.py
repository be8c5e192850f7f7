"""What happens to IP packets between sessions and the tun device."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from l2tpns.config.access_list import AccessList, parse_rule
from l2tpns.config.settings import Config
from l2tpns.dataplane.forward import ERRORS_PER_SECOND, Forwarder
from l2tpns.dataplane.session_path import DOWN, UP, SessionPath, key_of
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.drain import Clock
from tests.lab.packets import ip, tcp_checksum_is_right, tcp_syn

CLIENT, HOST = "10.0.0.5", "198.51.100.2"
LAC = ("192.0.2.2", 1701)
HEADER = bytes.fromhex(
    "0002"  # data, no options, version 2
    "0009 000a"  # the LAC's tunnel and session id
    "ff03 0021"  # PPP address, control, protocol IP
)


class FakeEndpoint:
    """Keeps what would be sent; refuses when told so."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, tuple[str, int]]] = []
        self.refuses = False

    def send_data(self, datagram: bytes, peer: tuple[str, int]) -> bool:
        if not self.refuses:
            self.sent.append((datagram, peer))
        return not self.refuses


class Rig:
    """A Forwarder with one online session, tun device and raw socket replaced by lists."""

    def __init__(self, mru: int = 1462, routes: tuple[str, ...] = (), sequenced: bool = False, **settings: Any) -> None:
        self.config = Config()
        for name, value in settings.items():
            setattr(self.config, name, value)
        self.counters = Counters()
        self.clock = Clock(lambda: 100.0)
        self.written: list[bytes] = []
        self.errors: list[bytes] = []
        self.endpoint = FakeEndpoint()
        self.forwarder = Forwarder(self.config, self.counters, self.clock, self.write, self.send_error)
        endpoint: Any = self.endpoint
        self.path = SessionPath(key_of(7, 8), endpoint, LAC, 9, 10, lambda *_: None, sequenced=sequenced, now=0.0)
        networks = tuple(IPv4Network(route) for route in routes)
        self.path.address, self.path.online = IPv4Address(CLIENT).packed, True
        self.path.mru, self.path.mss = mru, mru - 40
        self.path.networks = tuple((int(n.netmask), int(n.network_address)) for n in networks)
        self.forwarder.table.add(self.path, self.path.address, networks)

    def write(self, packet: bytes) -> int:
        self.written.append(packet)
        return len(packet)

    def send_error(self, packet: bytes) -> bool:
        self.errors.append(packet)
        return True

    def up(self, packet: bytes) -> None:
        self.forwarder.uplink(self.path, packet)

    def down(self, packet: bytes) -> list[bytes]:
        """The datagrams sent for it."""
        self.endpoint.sent.clear()
        self.forwarder.downlink(packet)
        return [datagram for datagram, _ in self.endpoint.sent]


# Up


def test_a_subscribers_packet_goes_to_the_tun_device_and_is_counted() -> None:
    rig = Rig()
    packet = ip(CLIENT, HOST, bytes(100))
    rig.up(packet)
    assert rig.written == [packet]
    assert (rig.path.in_packets, rig.path.in_octets) == (1, 120)
    assert rig.path.last_rx == rig.path.last_ip_rx == 100.0
    assert rig.counters.tun_tx_octets == 120


def test_padding_after_the_packet_is_cut_off_and_not_counted() -> None:
    rig = Rig()
    packet = ip(CLIENT, HOST)
    rig.up(packet + bytes(10))
    assert rig.written == [packet] and rig.path.in_octets == len(packet)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        ip(CLIENT, HOST)[:19],
        ip(CLIENT, HOST)[:-1],  # shorter than it says
        b"\x44" + ip(CLIENT, HOST)[1:],  # a header of 16 octets
        b"\x4f" + ip(CLIENT, HOST)[1:],  # a header longer than the packet
        b"\x65" + ip(CLIENT, HOST)[1:],  # version 6
        ip(CLIENT, HOST)[:2] + b"\0\0" + ip(CLIENT, HOST)[4:],  # a total length of 0
        ip(CLIENT, HOST)[:2] + b"\0\x13" + ip(CLIENT, HOST)[4:],  # less than a header's
        b"\x46\0\0\x14" + ip(CLIENT, HOST)[4:],  # less than its header's
    ],
)
def test_what_is_no_ip_packet_is_dropped_and_counted(packet: bytes) -> None:
    rig = Rig()
    rig.up(packet)
    assert rig.written == []
    assert rig.counters.drop_bad_ip == rig.path.dropped_bad_ip == 1


def test_a_packet_with_ip_options_passes() -> None:
    rig = Rig()
    rig.up(ip(CLIENT, HOST, options=bytes.fromhex("94040000")))
    assert len(rig.written) == 1


def test_a_source_address_that_is_not_the_subscribers_is_dropped_and_counted() -> None:
    rig = Rig(routes=("10.9.0.0/24",))
    rig.up(ip("10.0.0.6", HOST))
    rig.up(ip("10.9.1.1", HOST))
    rig.up(ip("10.9.0.77", HOST))  # in the framed route
    assert [packet[12:16] for packet in rig.written] == [bytes([10, 9, 0, 77])]
    assert rig.counters.drop_spoofed == rig.path.dropped_spoofed == 2
    assert rig.path.dropped["spoofed"] == 2


@pytest.mark.shows("set disable_no_spoof")
def test_disable_no_spoof_lets_any_source_through_at_once() -> None:
    rig = Rig()
    rig.config.disable_no_spoof = True
    rig.up(ip("10.0.0.6", HOST))
    assert len(rig.written) == 1


def test_who_is_in_a_walled_garden_sends_from_its_own_addresses_all_the_same() -> None:
    rig = Rig(routes=("10.9.0.0/24",))
    rig.config.disable_no_spoof = True
    rig.path.in_garden = True
    rig.path.changed()
    for source in ("10.0.0.6", CLIENT, "10.9.0.77"):
        rig.up(ip(source, HOST))
    assert len(rig.written) == 2 and rig.path.dropped_spoofed == 1


def test_the_mss_of_a_syn_is_clamped_in_both_directions() -> None:
    rig = Rig(mru=1362)
    rig.up(tcp_syn(CLIENT, HOST, 1460))
    (datagram,) = rig.down(tcp_syn(HOST, CLIENT, 1460, flags=0x12))
    for packet in (rig.written[0], datagram[len(HEADER) :]):
        assert packet[42:44] == (1322).to_bytes(2, "big")
        assert tcp_checksum_is_right(packet)
    assert rig.counters.mss_clamped == 2


def test_the_mss_is_left_alone_where_it_is_no_syn_or_no_first_fragment() -> None:
    rig = Rig(mru=1362)
    ack = tcp_syn(CLIENT, HOST, 1460, flags=0x10)
    later = ip(CLIENT, HOST, tcp_syn(CLIENT, HOST, 1460)[20:], protocol=6, fragment=20)
    back = ip(HOST, CLIENT, tcp_syn(HOST, CLIENT, 1460)[20:], protocol=6, fragment=20)
    rig.up(ack)
    rig.up(later)
    assert rig.written == [ack, later]
    assert rig.down(back) == [HEADER + back]


def test_a_packet_that_the_tun_device_refuses_is_no_traffic_of_the_subscriber() -> None:
    rig = Rig()

    def refuse(packet: bytes) -> int:
        raise OSError(5, "down")

    rig.forwarder.write = refuse
    rig.up(ip(CLIENT, HOST))
    assert rig.path.in_packets == 0 and rig.counters.tun_tx_errors == 1


# Down


def test_a_packet_for_a_subscriber_gets_the_lacs_ids_and_goes_to_the_lac() -> None:
    rig = Rig()
    packet = ip(HOST, CLIENT, bytes(100))
    assert rig.down(packet) == [HEADER + packet]
    assert rig.endpoint.sent[0][1] == LAC
    assert (rig.path.out_packets, rig.path.out_octets) == (1, 120)
    assert rig.path.last_ip_tx == 100.0


def test_what_the_socket_refuses_is_not_counted_as_sent() -> None:
    rig = Rig()
    rig.endpoint.refuses = True
    rig.down(ip(HOST, CLIENT))
    assert rig.path.out_packets == rig.path.out_octets == 0


def test_the_longest_framed_route_wins() -> None:
    rig = Rig(routes=("10.9.0.0/16",))
    other = Rig()
    other.path.peer_session_id = 99
    other.path.changed()
    rig.forwarder.table.add(other.path, b"\x0a\x00\x00\x63", [IPv4Network("10.9.3.0/24")])
    rig.down(ip(HOST, "10.9.3.1"))
    rig.down(ip(HOST, "10.9.4.1"))
    assert (other.path.out_packets, rig.path.out_packets) == (1, 1)


@pytest.mark.parametrize(
    ("packet", "counter"),
    [
        (bytes.fromhex("60000000 0000 3b 40") + bytes(32), "drop_ipv6"),  # version 6, no payload, no next header
        (b"\x60", "drop_ipv6"),
        (b"", "drop_bad_ip"),
        (ip(HOST, CLIENT)[:19], "drop_bad_ip"),
        (b"\x55" + ip(HOST, CLIENT)[1:], "drop_bad_ip"),  # version 5
    ],
)
def test_ipv6_from_the_tun_device_is_counted_apart_from_what_is_no_ip(packet: bytes, counter: str) -> None:
    rig = Rig()
    assert rig.down(packet) == [] and rig.errors == []
    dropped = {name: value for name, _, value in rig.counters.items() if name.startswith("drop_") and value}
    assert dropped == {counter: 1}


def test_of_two_claims_the_newest_has_the_address_and_the_older_gets_it_back() -> None:
    rig, other = Rig(), Rig()
    table, address = rig.forwarder.table, rig.path.address
    route = [IPv4Network("10.9.0.0/16")]
    table.add(rig.path, address, route)
    table.add(other.path, address, route)
    assert table.addresses[address] is other.path and table.by_route(b"\x0a\x09\x00\x01") is other.path
    table.remove(other.path, address, route)
    assert table.addresses[address] is rig.path and table.by_route(b"\x0a\x09\x00\x01") is rig.path
    table.remove(rig.path, address, route)
    table.remove(rig.path, address, route)
    assert not table.addresses and table.by_route(b"\x0a\x09\x00\x01") is None


def test_an_older_claim_that_goes_first_leaves_the_newer_one() -> None:
    rig, other = Rig(), Rig()
    table, address = rig.forwarder.table, rig.path.address
    table.add(other.path, address, ())
    table.remove(rig.path, address, ())
    assert table.addresses[address] is other.path
    table.remove(other.path, address, ())
    assert not table.addresses


@pytest.mark.statement(94)
def test_nothing_above_the_peers_mru_is_sent_but_fragments_that_fit() -> None:
    rig = Rig(mru=600)
    sent = rig.down(ip(HOST, CLIENT, bytes(1000)))
    assert len(sent) == 2 and all(len(datagram) - len(HEADER) <= 600 for datagram in sent)
    assert rig.counters.fragmented == 1 and rig.path.out_packets == 2 and not rig.errors
    assert rig.down(ip(HOST, CLIENT, bytes(580)))[0][len(HEADER) :] == ip(HOST, CLIENT, bytes(580))


@pytest.mark.statement(94)
def test_a_packet_that_is_too_big_with_df_is_answered_with_the_mtu() -> None:
    rig = Rig(mru=600, iftun_address=IPv4Address("192.0.2.200"))
    assert rig.down(ip(HOST, CLIENT, bytes(1000), df=True)) == []
    (error,) = rig.errors
    assert error[20:22] == b"\x03\x04" and error[26:28] == (600).to_bytes(2, "big")
    assert error[12:16] == IPv4Address("192.0.2.200").packed and error[16:20] == IPv4Address(HOST).packed
    assert rig.counters.drop_too_big == rig.path.dropped_too_big == 1


def test_a_flood_of_packets_that_are_too_big_gets_a_bounded_number_of_answers() -> None:
    rig = Rig(mru=600)
    for _ in range(ERRORS_PER_SECOND + 50):
        rig.down(ip(HOST, CLIENT, bytes(1000), df=True))
    assert len(rig.errors) == ERRORS_PER_SECOND and rig.counters.icmp_suppressed == 50


@pytest.mark.shows("set icmp_rate")
def test_an_address_of_ours_that_nobody_has_is_answered_host_unreachable_icmp_rate_times_a_second() -> None:
    rig = Rig(icmp_rate=2)
    for _ in range(5):
        rig.down(ip(HOST, "10.0.0.99"))
    assert [error[20:22] for error in rig.errors] == [b"\x03\x01"] * 2
    assert rig.counters.drop_no_session == 5 and rig.counters.icmp_suppressed == 3
    rig.clock.now += 1.0
    rig.down(ip(HOST, "10.0.0.99"))
    assert len(rig.errors) == 3


def test_an_icmp_error_for_an_address_that_nobody_has_is_not_answered() -> None:
    rig = Rig()
    rig.down(ip(HOST, "10.0.0.99", bytes.fromhex("0301fcfe00000000"), protocol=1))
    assert rig.errors == [] and rig.counters.drop_no_session == 1


@pytest.mark.shows("set packet_limit")
def test_packet_limit_drops_the_surplus_of_each_tenth_of_a_second() -> None:
    rig = Rig(packet_limit=3)
    for _ in range(5):
        rig.down(ip(HOST, CLIENT))
    assert rig.path.out_packets == 3
    assert rig.counters.drop_packet_limit == rig.path.dropped_packet_limit == 2
    rig.clock.now += 0.1
    rig.down(ip(HOST, CLIENT))
    assert rig.path.out_packets == 4


@pytest.mark.statement(15)
def test_a_sequenced_session_numbers_every_packet_and_frame_and_wraps() -> None:
    rig = Rig(sequenced=True)
    rig.path.ns = 0xFFFE
    packet = ip(HOST, CLIENT)
    head = bytes.fromhex("0802 0009 000a")  # data with S, the LAC's ids
    assert rig.down(packet) == [head + bytes.fromhex("fffe 0000 ff03 0021") + packet]
    assert rig.path.frame(0xC021, b"lcp") == head + bytes.fromhex("ffff 0000 ff03 c021") + b"lcp"
    assert rig.down(packet) == [head + bytes.fromhex("0000 0000 ff03 0021") + packet]


@pytest.mark.statement(16)
def test_numbering_can_be_switched_at_any_time_and_resumes_where_it_stopped() -> None:
    rig = Rig()
    packet = ip(HOST, CLIENT)
    assert rig.down(packet)[0][:2] == bytes.fromhex("0002")
    for expected in (0, 1):
        rig.path.sequenced = True
        rig.path.changed()
        assert rig.down(packet)[0][6:8] == expected.to_bytes(2, "big")
        rig.path.sequenced = False
        rig.path.changed()
        assert rig.down(packet) == [HEADER + packet]


def test_a_tap_sees_changes_and_drops_packets_both_ways() -> None:
    rig = Rig()
    seen = []

    def tap(direction: int, packet: bytes) -> bytes | None:
        seen.append(direction)
        return packet + b"!" if direction == UP else None

    rig.path.packet_hook = tap
    rig.path.changed()
    rig.up(ip(CLIENT, HOST))
    assert rig.down(ip(HOST, CLIENT)) == []
    assert seen == [UP, DOWN]
    assert rig.written == [ip(CLIENT, HOST) + b"!"] and rig.counters.drop_tap == 1


# Filters


def acl(*lines: str) -> AccessList:
    return AccessList("x", True, tuple(parse_rule(line.split(), True) for line in lines))


def test_filter_in_is_for_what_the_subscriber_sends_and_filter_out_for_what_is_sent_there() -> None:
    rig = Rig()
    rig.path.filter_in = acl(f"permit ip host {CLIENT} host {HOST}")
    rig.path.filter_out = acl(f"deny ip host {HOST} any", "permit ip any any")
    rig.path.changed()
    rig.up(ip(CLIENT, HOST))
    rig.up(ip(CLIENT, "198.51.100.3"))
    assert rig.written == [ip(CLIENT, HOST)]
    assert rig.down(ip(HOST, CLIENT)) == []
    assert rig.down(ip("198.51.100.3", CLIENT)) == [HEADER + ip("198.51.100.3", CLIENT)]
    assert rig.counters.drop_filtered == rig.path.dropped_filtered == rig.path.dropped["filtered"] == 2


def test_what_a_filter_drops_is_not_accounted_and_nobody_else_sees_or_answers_it() -> None:
    rig = Rig(mru=576)
    seen: list[bytes] = []
    rig.path.packet_hook = lambda direction, packet: seen.append(packet) or packet
    rig.path.filter_in = rig.path.filter_out = acl("deny ip any any")
    rig.path.changed()
    rig.up(ip(CLIENT, HOST))
    rig.down(ip(HOST, CLIENT, bytes(1000), df=True))
    assert (rig.path.in_packets, rig.path.in_octets, rig.path.out_packets, rig.path.out_octets) == (0, 0, 0, 0)
    assert seen == rig.written == rig.errors == [] and rig.counters.drop_too_big == 0


def test_a_forged_source_is_a_forgery_whatever_the_filter_says() -> None:
    rig = Rig()
    rig.path.filter_in = acl("permit ip any any")
    rig.path.changed()
    rig.up(ip("10.0.0.6", HOST))
    assert rig.written == [] and (rig.counters.drop_spoofed, rig.counters.drop_filtered) == (1, 0)


def test_a_packet_with_padding_is_judged_without_it() -> None:
    rig = Rig()
    rig.path.filter_in = acl("deny tcp any any eq 80", "permit ip any any")
    rig.path.changed()
    rig.up(ip(CLIENT, HOST, b"\x00\x01", protocol=6) + b"\x00\x51" + bytes(20))  # the port is padding: no port at all
    assert rig.written == [] and rig.counters.drop_filtered == 1


# What never passes


@pytest.mark.parametrize(
    "options, fragment, passes",
    [(b"", 0, False), (b"\x94\x04\0\0", 0, False), (b"", 0x4000, False), (b"", 0x0001, True)],
    ids=["plain", "options", "DF", "a later fragment, whose octets are data"],
)
def test_an_icmp_redirect_reaches_no_subscriber(options: bytes, fragment: int, passes: bool) -> None:
    rig = Rig()
    redirect = bytes.fromhex("0501 0000 0a000006") + ip(CLIENT, "10.0.0.6", bytes(8))
    sent = rig.down(ip(HOST, CLIENT, redirect, protocol=1, options=options, fragment=fragment))
    assert (bool(sent), rig.counters.drop_redirect) == (passes, 0 if passes else 1)


@pytest.mark.parametrize("kind", [0, 3, 8, 11, 12])
def test_other_icmp_does(kind: int) -> None:
    rig = Rig()
    assert len(rig.down(ip(HOST, CLIENT, bytes([kind, 0]) + bytes(6), protocol=1))) == 1


@pytest.mark.parametrize(
    "source, ports, protocol, passes",
    [
        ("192.0.2.1", "06a5 06a5", 17, False),
        ("192.0.2.1", "06a5 0400", 17, False),  # a LAC behind NAT has any port
        ("192.0.2.9", "06a5 06a5", 17, True),  # another server
        ("192.0.2.1", "0035 06a5", 17, True),  # another program of this machine
        ("192.0.2.1", "06a5 06a5", 6, True),
    ],
)
def test_l2tp_of_our_own_does_not_go_round_in_circles(source: str, ports: str, protocol: int, passes: bool) -> None:
    rig = Rig()
    reported: list[bytes] = []
    rig.forwarder.l2tp_addresses = {IPv4Address("192.0.2.1").packed}
    rig.forwarder.l2tp_port = bytes.fromhex("06a5")
    rig.forwarder.on_own_l2tp = reported.append
    packet = ip(source, CLIENT, bytes.fromhex(ports) + bytes(20), protocol=protocol)
    assert bool(rig.down(packet)) == passes
    assert reported == ([] if passes else [packet]) and rig.counters.drop_own_l2tp == len(reported)
