"""What fast_up does with each form of datagram: carry, drop, or leave it to user space as it came."""

from __future__ import annotations

import struct
from time import monotonic_ns

import pytest

from l2tpns.dataplane.fastpath import layout
from tests.lab.packets import ip, tcp_checksum_is_right, tcp_syn
from tests.server.dataplane.fastpath.kernel_stage import (
    CLIENT,
    DROP,
    ETHERNET,
    HEADER,
    HOST,
    MSS,
    NEXT,
    REDIRECT,
    SLOWEST,
    STRANGER,
    KernelStage,
    datagram,
    price,
)

PACKET = ip(CLIENT, HOST, bytes(1380))  # 1,400 octets


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        bytes.fromhex("0002 0007 0008 0021"),
        struct.pack("!HH", 0x4002, 12 + 1400) + HEADER[2:],
        struct.pack("!HH", 0x4002, 10 + 1400) + bytes.fromhex("0007 0008 0021"),
    ],
    ids=["plain", "no address and control", "length", "length, no address and control"],
)
def test_a_packet_is_taken_out_of_each_usual_form_of_data_message(kernel: KernelStage, header: bytes) -> None:
    began = monotonic_ns()
    verdict, after, totals = kernel.up(datagram(header + PACKET))
    assert verdict == REDIRECT
    assert after == ETHERNET + PACKET
    assert totals == {"up_packets": 1, "up_octets": 1400, "up_datagram_octets": len(header) + 1400}
    up, down = kernel.counters()
    assert (up[layout.PACKETS], up[layout.OCTETS]) == (1, 1400)
    assert began - 100_000_000 < up[layout.LAST] <= monotonic_ns()  # the clock is coarse
    assert not any(down)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (datagram(bytes.fromhex("c802 000c 0007 0000 0000 0000")), "control"),
        (datagram(bytes.fromhex("0002 0007 0009 ff03 0021") + PACKET), "session"),
        (datagram(HEADER + PACKET, source="192.0.2.3"), "peer"),
        (datagram(HEADER + PACKET, port=40001), "peer"),
        (datagram(HEADER + PACKET, to="192.0.2.9"), "peer"),
        (datagram(bytes.fromhex("0003 0007 0008 ff03 0021") + PACKET), "header"),
        (datagram(bytes.fromhex("0802 0007 0008 0000 0000 ff03 0021") + PACKET), "header"),
        (datagram(bytes.fromhex("0202 0007 0008 0000 ff03 0021") + PACKET), "header"),
        (datagram(bytes.fromhex("0102 0007 0008 ff03 0021") + PACKET), "header"),
        (datagram(bytes.fromhex("4002 0100 0007 0008 ff03 0021") + PACKET), "header"),
        (datagram(HEADER + PACKET, fragment=0x2000), "header"),
        (datagram(HEADER + PACKET, fragment=0x0001), "header"),
        (datagram(HEADER + PACKET) + b"\0", "header"),
        (datagram(HEADER + PACKET)[:-1], "header"),
        (datagram(HEADER[:6] + bytes.fromhex("ff03 c021 0901 0008 0000 0000")), "protocol"),
        (datagram(HEADER[:6] + bytes.fromhex("ff03 0057") + bytes(40)), "protocol"),
        (datagram(HEADER[:6] + bytes.fromhex("21") + PACKET), "protocol"),
        (datagram(HEADER + PACKET[:-1]), "packet"),
        (datagram(HEADER + PACKET + b"\0"), "packet"),
        (datagram(HEADER + b"\x45" + bytes(10)), "packet"),
        (datagram(HEADER + ip(CLIENT, HOST, options=bytes(4))), "packet"),
        (datagram(HEADER + b"\x65" + PACKET[1:]), "packet"),
        (datagram(HEADER + ip(CLIENT, HOST, bytes(10), protocol=6)), "packet"),
        (datagram(HEADER + tcp_syn(CLIENT, HOST, 1460, before=b"\x01\x01")), "packet"),
    ],
)
def test_everything_else_reaches_user_space_as_it_came(kernel: KernelStage, frame: bytes, reason: str) -> None:
    assert kernel.up(frame) == (NEXT, frame, {f"up_passed_{reason}": 1})
    assert not any(kernel.counters()[0])


def test_a_super_packet_of_datagrams_reaches_user_space(kernel: KernelStage) -> None:
    frame = datagram(HEADER + PACKET)
    assert kernel.up(frame, gso_size=700) == (NEXT, frame, {"up_passed_header": 1})


@pytest.mark.parametrize(
    "frame",
    [
        datagram(HEADER + PACKET, to_port=1702),
        datagram(HEADER + PACKET, protocol=6),
        datagram(HEADER + PACKET, options=bytes(4)),
        bytes.fromhex("020000000001") + datagram(HEADER + PACKET)[6:],
        datagram(HEADER + PACKET)[:12] + b"\x86\xdd" + datagram(HEADER + PACKET)[14:],
        datagram(b""),
    ],
    ids=["another port", "not UDP", "IP options", "another machine's", "not IPv4", "no message"],
)
def test_what_is_not_plainly_l2tp_is_not_even_counted(kernel: KernelStage, frame: bytes) -> None:
    assert kernel.up(frame) == (NEXT, frame, {})


def test_nothing_is_carried_while_switched_off_or_after_the_server_has_been_silent(kernel: KernelStage) -> None:
    frame = datagram(HEADER + PACKET)
    kernel.configure(flags=0)
    assert kernel.up(frame) == (NEXT, frame, {})
    kernel.configure(beat=monotonic_ns() - 2_000_000_000, patience=1_000_000_000)
    assert kernel.up(frame) == (NEXT, frame, {})
    # The beat is ahead of the coarse clock that the program reads.
    kernel.configure(beat=monotonic_ns() + 50_000_000, patience=100_000_000_000)
    assert kernel.up(frame)[0] == REDIRECT


def test_a_strange_source_address_is_dropped_where_it_is_checked(kernel: KernelStage) -> None:
    frame = datagram(HEADER + ip(STRANGER, HOST, bytes(100)))
    verdict, _, totals = kernel.up(frame)
    assert (verdict, totals) == (DROP, {"up_spoofed": 1, "up_datagram_octets": 130})
    up, _ = kernel.counters()
    assert (up[layout.PACKETS], up[layout.SPOOFED]) == (0, 1)
    kernel.session(flags=0)
    assert kernel.up(frame)[0] == REDIRECT


def test_a_source_in_the_subscribers_own_route_is_carried_and_user_space_decides_about_others(
    kernel: KernelStage,
) -> None:
    frame = datagram(HEADER + ip(STRANGER, HOST, bytes(100)))
    kernel.session(flags=layout.CHECK_SOURCE | layout.HAS_ROUTES)
    assert kernel.up(frame) == (NEXT, frame, {"up_passed_packet": 1})
    kernel.route("10.64.0.0/24", key=0x00070009)
    assert kernel.up(frame) == (NEXT, frame, {"up_passed_packet": 1})
    kernel.route("10.64.0.6/32")
    assert kernel.up(frame)[0] == REDIRECT


@pytest.mark.parametrize("flags", [0x02, 0x12])
@pytest.mark.parametrize("offered", [1460, MSS, 536, None])
@pytest.mark.parametrize("header", [HEADER, bytes.fromhex("0002 0007 0008 0021")])
def test_the_mss_of_a_syn_is_lowered_to_the_sessions(
    kernel: KernelStage, offered: int | None, flags: int, header: bytes
) -> None:
    verdict, after, totals = kernel.up(datagram(header + tcp_syn(CLIENT, HOST, offered, flags=flags)))
    assert verdict == REDIRECT
    mss = min(offered, MSS) if offered is not None else None
    assert after == ETHERNET + tcp_syn(CLIENT, HOST, mss, flags=flags)
    assert tcp_checksum_is_right(after[14:])
    assert totals.get("up_clamped", 0) == (offered == 1460)


def test_later_fragments_and_segments_without_syn_are_not_clamped(kernel: KernelStage) -> None:
    syn = tcp_syn(CLIENT, HOST, 1460)
    for packet in (ip(CLIENT, HOST, syn[20:], protocol=6, fragment=0x2010), tcp_syn(CLIENT, HOST, 1460, flags=0x10)):
        assert kernel.up(datagram(HEADER + packet))[:2] == (REDIRECT, ETHERNET + packet)


def test_a_rate_lets_the_burst_through_and_drops_what_is_not_paid_for(kernel: KernelStage) -> None:
    frame = datagram(HEADER + PACKET)
    kernel.session(up=(SLOWEST, 3 * price(1400) + 1000))
    assert [kernel.up(frame)[0] for _ in range(4)] == [REDIRECT, REDIRECT, REDIRECT, DROP]
    up, _ = kernel.counters()
    assert (up[layout.PACKETS], up[layout.OCTETS], up[layout.POLICED]) == (3, 4200, 1)
    assert kernel.up(frame)[2] == {"up_policed": 1, "up_datagram_octets": 1410}
    small = datagram(HEADER + ip(CLIENT, HOST, b""))
    assert kernel.up(small)[0] == DROP
    kernel.session(up=(1024, price(1400)))
    assert kernel.up(frame)[0] == REDIRECT, "a higher rate did not take effect at once"
    kernel.session(up=(SLOWEST, 3 * price(1400)))
    kernel.pause()
    assert kernel.up(frame)[0] == REDIRECT


def test_a_lac_that_is_not_this_sessions_pays_nothing_of_its_rate(kernel: KernelStage) -> None:
    kernel.session(up=(SLOWEST, price(1400) + 1000))
    for _ in range(3):
        assert kernel.up(datagram(HEADER + PACKET, source="192.0.2.3"))[0] == NEXT
        assert kernel.up(datagram(HEADER + ip(STRANGER, HOST)))[0] == DROP
    assert kernel.up(datagram(HEADER + PACKET))[0] == REDIRECT
