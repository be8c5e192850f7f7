"""Run the kernel programs on one packet at a time (BPF_PROG_TEST_RUN), with maps that the test has filled."""

from __future__ import annotations

import mmap
import socket
import struct
from ipaddress import IPv4Address, IPv4Network
from time import monotonic_ns
from typing import Any

from l2tpns.dataplane.fastpath import layout
from l2tpns.dataplane.fastpath.programs import read_object
from l2tpns.system.libbpf import Object
from tests.lab.netns import Namespace
from tests.lab.packets import ip

NEXT, DROP, REDIRECT = -1, 2, 7  # verdicts (linux/pkt_cls.h)
LNS, LAC, HOST = "192.0.2.1", "192.0.2.2", "198.51.100.9"
CLIENT, STRANGER = "10.64.0.5", "10.64.0.6"
PORT, LAC_PORT = 1701, 40000
SLOT = 5
ETHERNET = bytes(12) + b"\x08\x00"  # to the address of lo, which runs of the programs seem to come from
HEADER = bytes.fromhex("0002 0007 0008 ff03 0021")
MRU, MSS = 1462, 1422
Limit = tuple[int, int]
SLOWEST = 0xFFFFFFFF  # cost of an octet: 4.2 ms


class KernelStage:
    """The loaded programs with one session. Packets to it are routed as in the namespace `server`."""

    def __init__(self, server: Namespace) -> None:
        self.server = server
        self.object = Object(read_object())
        self._counters = self.object.map("counters").mapped(layout.MAX_SESSIONS * layout.COUNTERS.size)
        self._settings = self.object.map("settings").mapped(mmap.PAGESIZE)
        self.configure()
        with server.entered():
            self.wan = layout.INTERFACE.pack(socket.if_nametoindex("wan"))
        self.serve_wan()
        self.session()
        self.object.map("addresses").put(IPv4Address(CLIENT).packed, layout.path_key(0x00070008))

    def close(self) -> None:
        self._counters.close()
        self._settings.close()
        self.object.close()

    def configure(self, *, flags: int = layout.ENABLED, limit: int = 0, beat: int = 0, patience: int = 0) -> None:
        settings = layout.SETTINGS.pack(flags, 1, PORT.to_bytes(2, "big"), 0, limit, beat, patience)
        self._settings[: len(settings)] = settings

    def session(self, *, flags: int = layout.CHECK_SOURCE, up: Limit = (0, 0), down: Limit = (0, 0)) -> None:
        """Put the session. `up` and `down` are the cost and the burst of a rate."""
        entry = layout.SESSION.pack(
            SLOT, flags, IPv4Address(LAC).packed, IPv4Address(LNS).packed, LAC_PORT.to_bytes(2, "big"),
            PORT.to_bytes(2, "big"), IPv4Address(CLIENT).packed, b"\0\x17", b"\0\x18", MRU, MSS, up[0], down[0], up[1],
            down[1],
        )  # fmt: skip
        self.object.map("sessions").put(layout.path_key(0x00070008), entry)

    def serve_wan(self, served: bool = True) -> None:
        interfaces = self.object.map("interfaces")
        if served:
            interfaces.put(self.wan, layout.INTERFACE.pack(1))
        else:
            interfaces.delete(self.wan)

    def route(self, route: str, key: int = 0x00070008) -> None:
        self.object.map("routes").put(layout.route_key(IPv4Network(route)), layout.path_key(key))

    def counters(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the counters of the session, up and down."""
        found = layout.COUNTERS.unpack_from(self._counters, SLOT * layout.COUNTERS.size)
        return found[: layout.DOWN], found[layout.DOWN :]

    def pause(self) -> None:
        """Let both rates believe that the session has sent and received nothing for a long time."""
        for offset in layout.READY_OFFSETS:
            struct.pack_into("=Q", self._counters, SLOT * layout.COUNTERS.size + offset, 0)

    def up(self, frame: bytes, gso_size: int = 0) -> tuple[int, bytes, dict[str, int]]:
        """Run fast_up on an Ethernet frame. Return its verdict, the frame after it, and the totals that changed."""
        return self._run("fast_up", frame, gso_size)

    def down(self, packet: bytes, gso_size: int = 0) -> tuple[int, dict[str, int]]:
        """Run fast_down on an IP packet; its source must begin with 8.0: the kernel takes that for an Ethernet type."""
        verdict, _, changed = self._run("fast_down", packet, gso_size)
        return verdict, changed

    def _run(self, name: str, octets: bytes, gso_size: int) -> tuple[int, bytes, dict[str, int]]:
        totals = self.object.map("totals")
        before = totals.sums(len(layout.TOTALS))
        with self.server.entered():
            verdict, after = self.object.program(name).run(octets, gso_size)
        steps = (now - then for now, then in zip(totals.sums(len(layout.TOTALS)), before, strict=True))
        return verdict, after, {total: step for total, step in zip(layout.TOTALS, steps, strict=True) if step}


def datagram(message: bytes, *, source: str = LAC, port: int = LAC_PORT, to: str = LNS, **words: Any) -> bytes:
    """Return the frame with which a LAC's L2TP message arrives."""
    udp = struct.pack("!HHHH", port, words.pop("to_port", PORT), 8 + len(message), 0)
    return ETHERNET + ip(source, to, udp + message, **words)


def price(octets: int) -> int:
    """Return the microseconds that so many octets take at the lowest rate."""
    return octets * SLOWEST // 1024 // 1000


def window() -> int:
    """Return the number of the present window of packet_limit."""
    return monotonic_ns() // 100_000_000
