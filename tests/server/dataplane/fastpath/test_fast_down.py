"""What fast_down does with each form of packet. The octets that it sends are seen in tests/live/test_fast_path.py."""

from __future__ import annotations

import pytest

from l2tpns.dataplane.fastpath import layout
from tests.lab.packets import ip, tcp_syn
from tests.server.dataplane.fastpath.kernel_stage import (
    CLIENT,
    DROP,
    LAC,
    MRU,
    NEXT,
    PORT,
    REDIRECT,
    SLOWEST,
    STRANGER,
    KernelStage,
    price,
    window,
)

SOURCE = "8.0.0.1"  # see KernelStage.down
PACKET = ip(SOURCE, CLIENT, bytes(1380))  # 1,400 octets
TCP = bytes.fromhex("0fa0 0050 00000001 00000001 5010 ffff 0000 0000")


def segment(octets: int, destination: str = CLIENT) -> bytes:
    return ip(SOURCE, destination, TCP + bytes(octets), protocol=6)


@pytest.mark.parametrize(
    "packet", [PACKET, ip(SOURCE, CLIENT, bytes(14)), ip(SOURCE, CLIENT, bytes(MRU - 20), fragment=0x2001)]
)
def test_a_packet_to_the_subscriber_is_sent_and_counted(kernel: KernelStage, packet: bytes) -> None:
    octets = len(packet)
    assert kernel.down(packet) == (
        REDIRECT,
        {"down_packets": 1, "down_octets": octets, "down_datagram_octets": octets + 10},
    )
    up, down = kernel.counters()
    assert (down[layout.PACKETS], down[layout.OCTETS]) == (1, octets)
    assert not any(up)


def test_a_lac_behind_an_interface_that_is_not_served_is_left_to_user_space(kernel: KernelStage) -> None:
    kernel.serve_wan(False)
    assert kernel.down(PACKET) == (NEXT, {"down_passed_route": 1})
    kernel.serve_wan()
    assert kernel.down(PACKET)[0] == REDIRECT


def test_the_longest_route_decides_and_an_address_comes_before_it(kernel: KernelStage) -> None:
    assert kernel.down(ip(SOURCE, STRANGER, bytes(40))) == (NEXT, {"down_passed_session": 1})
    kernel.route("10.64.0.0/24")
    assert kernel.down(ip(SOURCE, STRANGER, bytes(40)))[0] == REDIRECT
    kernel.route("10.64.0.4/30", key=0x00070009)  # of a session that the programs do not carry
    assert kernel.down(ip(SOURCE, STRANGER, bytes(40))) == (NEXT, {"down_passed_session": 1})
    assert kernel.down(PACKET)[0] == REDIRECT


@pytest.mark.parametrize(
    "packet",
    [
        ip(SOURCE, CLIENT, bytes(MRU - 19)),
        ip(SOURCE, CLIENT, bytes(40), options=bytes(4)),
        ip(SOURCE, CLIENT, PORT.to_bytes(2, "big") + bytes(30)),
        ip(SOURCE, CLIENT, b"\x05\x01" + bytes(30), protocol=1),
        PACKET + b"\0",
        PACKET[:-1],
        tcp_syn(SOURCE, CLIENT, 1460, before=b"\x01\x01"),
    ],
    ids=["too large", "options", "own L2TP", "redirect", "longer", "shorter", "SYN of a rare form"],
)
def test_what_user_space_has_to_judge_is_left_to_it(kernel: KernelStage, packet: bytes) -> None:
    assert kernel.down(packet) == (NEXT, {"down_passed_packet": 1})
    assert not any(kernel.counters()[1])


def test_later_fragments_are_not_taken_for_l2tp_redirects_or_syns(kernel: KernelStage) -> None:
    kernel.session()
    for protocol, payload in ((17, PORT.to_bytes(2, "big") + bytes(38)), (1, b"\x05" + bytes(39)), (6, bytes(16))):
        assert kernel.down(ip(SOURCE, CLIENT, payload, protocol=protocol, fragment=0x0001))[0] == REDIRECT


def test_nothing_is_carried_while_switched_off(kernel: KernelStage) -> None:
    kernel.configure(flags=0)
    assert kernel.down(PACKET) == (NEXT, {})


def test_a_lac_that_cannot_be_reached_from_here_is_left_to_user_space(kernel: KernelStage) -> None:
    server = kernel.server
    server.ip("route", "add", "blackhole", f"{LAC}/32")
    assert kernel.down(PACKET) == (NEXT, {"down_passed_route": 1})
    server.ip("route", "replace", f"{LAC}/32", "dev", "wan", "mtu", "lock", "1437")
    assert kernel.down(PACKET) == (NEXT, {"down_passed_route": 1})
    server.ip("route", "replace", f"{LAC}/32", "dev", "wan", "mtu", "lock", "1438")
    assert kernel.down(PACKET)[0] == REDIRECT
    server.ip("route", "replace", f"{LAC}/32", "via", "198.51.100.77")  # a gateway that does not answer
    assert kernel.down(PACKET) == (NEXT, {"down_passed_route": 1})
    server.ip("route", "del", f"{LAC}/32")
    assert kernel.down(PACKET)[0] == REDIRECT


@pytest.mark.parametrize(("offered", "clamped"), [(1460, 1), (1422, 0), (None, 0)])
def test_a_syn_with_a_large_mss_is_clamped(kernel: KernelStage, offered: int | None, clamped: int) -> None:
    verdict, totals = kernel.down(tcp_syn(SOURCE, CLIENT, offered))
    assert (verdict, totals.get("down_clamped", 0)) == (REDIRECT, clamped)


def test_a_super_packet_that_does_not_fit_or_that_the_kernel_cannot_encapsulate_reaches_user_space(
    kernel: KernelStage,
) -> None:
    passed = (NEXT, {"down_passed_packet": 1})
    assert kernel.down(segment(3000), gso_size=MRU - 39) == passed
    assert kernel.down(ip(SOURCE, CLIENT, bytes(3000)), gso_size=1000) == passed
    # In a run of one packet a super-packet has no type.
    assert kernel.down(segment(3000), gso_size=1000) == passed
    assert kernel.counters()[1][layout.PACKETS] == 0


def test_a_packet_that_costs_more_than_the_burst_passes_once_and_leaves_a_debt(kernel: KernelStage) -> None:
    kernel.session(down=(SLOWEST, price(700)))
    assert kernel.down(PACKET)[0] == REDIRECT
    assert kernel.down(PACKET) == (DROP, {"down_policed": 1})
    assert kernel.down(ip(SOURCE, CLIENT, bytes(14))) == (DROP, {"down_policed": 1})
    assert kernel.counters()[1][layout.POLICED] == 2
    kernel.pause()
    assert kernel.down(PACKET)[0] == REDIRECT


def test_packet_limit_drops_what_is_above_it_in_one_window(kernel: KernelStage) -> None:
    kernel.configure(limit=3)
    while True:  # until the packets were all in one window
        began, before = window(), kernel.counters()[1]
        verdicts = [kernel.down(PACKET)[0] for _ in range(5)]
        if began == window() and before[layout.WINDOW] != began:
            break
    assert verdicts == [REDIRECT, REDIRECT, REDIRECT, DROP, DROP]
    assert kernel.counters()[1][layout.LIMITED] - before[layout.LIMITED] == 2


def test_what_the_rate_drops_does_not_count_against_packet_limit(kernel: KernelStage) -> None:
    kernel.configure(limit=3)
    kernel.session(down=(SLOWEST, price(1400) + 1000))
    kernel.pause()
    assert [kernel.down(PACKET)[0] for _ in range(3)] == [REDIRECT, DROP, DROP]
    assert kernel.counters()[1][layout.WINDOW_PACKETS] == 1
