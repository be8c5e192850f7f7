"""What happens to each IPv4 packet between a session and the tun device, both ways.

Source check, filters, TCP MSS, counters, fragments (RFC 791) and ICMP (RFC 792, RFC 1191). Knows nothing of sockets:
`write` puts a packet into the tun device, `send_error` sends an ICMP packet, a path says everything else. A path whose
`needs_userspace` is False takes the short way through both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial

from l2tpns.config.settings import Config
from l2tpns.dataplane.policer import DROP, PASS
from l2tpns.dataplane.session_path import DOWN, UP, SessionPath
from l2tpns.dataplane.table import AddressTable
from l2tpns.proto.ip import icmp, ipv4
from l2tpns.proto.ip.ipv4 import HEADER, ICMP, TCP, UDP, clamp_mss
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.drain import Clock

ERRORS_PER_SECOND = 1000  # "fragmentation needed"; "host unreachable" if icmp_rate is 0
LIMIT_WINDOW = 10  # packet_limit counts in tenths of a second
_SYN = 0x02


class Forwarder:
    """Both directions. `table` maps destination addresses to paths."""

    __slots__ = (
        "_clock",
        "_config",
        "_counters",
        "_own",
        "_send_error",
        "_too_big_rate",
        "_unreachable_rate",
        "l2tp_addresses",
        "l2tp_port",
        "on_own_l2tp",
        "table",
        "write",
    )

    def __init__(
        self,
        config: Config,
        counters: Counters,
        clock: Clock,
        write: Callable[[bytes], int],
        send_error: Callable[[bytes], bool],
    ) -> None:
        self._config = config
        self._counters = counters
        self._clock = clock
        self.write = write  # replaced while there is a tun device
        self._send_error = send_error
        self._own = config.tun_address.packed
        self._too_big_rate = icmp.RateLimit()
        self._unreachable_rate = icmp.RateLimit()
        self.table = AddressTable()
        self.l2tp_addresses: Container[bytes] = ()  # that this server's L2TP leaves from, and its port
        self.l2tp_port = b""
        self.on_own_l2tp: Callable[[bytes], None] = lambda _: None

    # From the subscriber

    def uplink(self, path: SessionPath, packet: bytes) -> None:
        """Carry an IP packet that came from an online session. Called by the reader; must not block or raise."""
        path.last_rx = path.last_ip_rx = self._clock.now
        octets = len(packet)
        if octets < ipv4.HEADER_LENGTH:
            self._drop_bad_ip(path)
            return
        first, total, fragment, protocol, source = HEADER.unpack_from(packet)
        if total != octets:
            if total > octets or total < ipv4.HEADER_LENGTH:
                self._drop_bad_ip(path)
                return
            packet = packet[:total]  # the rest is padding (RFC 1661 section 2)
            octets = total
        # Nearly always 0x45, with options 0x46 to 0x4F. The header must be within the packet.
        if first != 0x45 and (first >> 4 != 4 or first < 0x45 or (first & 0x0F) << 2 > octets):
            self._drop_bad_ip(path)
            return
        if source != path.address and not path.owns(source) and (path.in_garden or not self._config.disable_no_spoof):
            self._counters.drop_spoofed += 1
            path.dropped_spoofed += 1
            return
        if path.needs_userspace and not self._copy_and_filter(path, packet):
            return
        if protocol == TCP and not fragment & ipv4.OFFSET:
            packet = self._clamped(path, packet)
        if path.rate_in is not None and path.exceeds_rate_in(octets, self._clock.now):
            self._counters.drop_policed += 1
            path.dropped_policed += 1
            return
        if path.needs_userspace:
            self._apply_policer(path, packet)
        else:
            self._deliver(path, packet)

    def _copy_and_filter(self, path: SessionPath, packet: bytes) -> bool:
        """Give a subscriber's packet to the path's copiers, then to its filter. Return False if that drops it."""
        if path.mirror is not None:
            path.mirror(UP, packet)
        if path.filter_in is None or path.filter_in.permits(packet):
            return True
        self._drop_filtered(path)
        return False

    def _apply_policer(self, path: SessionPath, packet: bytes) -> None:
        """Pass a subscriber's packet on at the rate of the path's policer, if it has one."""
        if path.policer is not None:
            verdict = path.policer.submit(packet, path.last_rx, partial(self._deliver_tapped, path))
            if verdict == DROP:
                self._counters.drop_policed += 1
                path.dropped_policed += 1
            if verdict != PASS:
                return
        self._deliver_tapped(path, packet)

    def _deliver_tapped(self, path: SessionPath, packet: bytes) -> None:
        """Write a subscriber's packet, or what the path's tap makes of it, to the tun device."""
        tapped = self._tapped(path, UP, packet)
        if tapped is not None:
            self._deliver(path, tapped)

    def _tapped(self, path: SessionPath, direction: int, packet: bytes) -> bytes | None:
        """Return what the path's tap makes of a packet; None: drop it."""
        if path.packet_hook is None:
            return packet
        tapped = path.packet_hook(direction, packet)
        if tapped is None:
            self._counters.drop_tap += 1
            path.dropped_tap += 1
        return tapped

    def _deliver(self, path: SessionPath, packet: bytes) -> None:
        """Write a subscriber's packet to the tun device and count it."""
        octets = len(packet)
        counters = self._counters
        try:
            self.write(packet)
        except OSError:
            counters.tun_tx_errors += 1
            return
        path.in_packets += 1
        path.in_octets += octets
        counters.tun_tx_packets += 1
        counters.tun_tx_octets += octets

    def _drop_bad_ip(self, path: SessionPath) -> None:
        self._counters.drop_bad_ip += 1
        path.dropped_bad_ip += 1

    def _drop_filtered(self, path: SessionPath) -> None:
        self._counters.drop_filtered += 1
        path.dropped_filtered += 1

    def _clamped(self, path: SessionPath, packet: bytes) -> bytes:
        """Return the packet, with a lower MSS if it is a SYN whose MSS does not fit the path."""
        flags_at = ((packet[0] & 0x0F) << 2) + 13
        if len(packet) <= flags_at or not packet[flags_at] & _SYN:
            return packet
        clamped = clamp_mss(packet, path.mss)
        if clamped is not packet:
            self._counters.mss_clamped += 1
        return clamped

    # To the subscriber

    def downlink(self, packet: bytes) -> None:
        """Carry a packet that the kernel routed into the tun device; its header and checksums are valid.

        Called by the reader; must not block or raise.
        """
        counters = self._counters
        octets = len(packet)
        counters.tun_rx_packets += 1
        counters.tun_rx_octets += octets
        if octets < ipv4.HEADER_LENGTH or packet[0] >> 4 != 4:
            if packet and packet[0] >> 4 == 6:
                counters.drop_ipv6 += 1
            else:
                counters.drop_bad_ip += 1
            return
        destination = packet[16:20]
        protocol = packet[9]
        if protocol == UDP:
            if packet[20:22] == self.l2tp_port and packet[12:16] in self.l2tp_addresses and not packet[6] & 0x1F:
                counters.drop_own_l2tp += 1
                self.on_own_l2tp(packet)
                return
        elif protocol == ICMP and icmp.is_redirect(packet):
            counters.drop_redirect += 1
            return
        path = self.table.addresses.get(destination) or self.table.by_route(destination)
        if path is None:
            counters.drop_no_session += 1
            self._unreachable(packet)
            return
        if path.needs_userspace and path.filter_out is not None and not path.filter_out.permits(packet):
            self._drop_filtered(path)
            return
        if protocol == TCP and not packet[6] & 0x1F and not packet[7]:
            packet = self._clamped(path, packet)
        if path.needs_userspace:
            tapped = self._tapped(path, DOWN, packet)
            if tapped is None:
                return
            packet = tapped
            octets = len(packet)
        if octets > path.mru:
            self._too_big(path, packet)
        else:
            self._send(path, packet)

    def _send(self, path: SessionPath, packet: bytes) -> None:
        """Send a packet that fits to the LAC, and count it."""
        limit = self._config.packet_limit
        if limit and self._exceeds_limit(path, limit):
            self._counters.drop_packet_limit += 1
            path.dropped_packet_limit += 1
            return
        if path.rate_out is not None and path.exceeds_rate_out(len(packet), self._clock.now):
            self._counters.drop_policed_out += 1
            path.dropped_policed_out += 1
            return
        header = path.numbered_header(Protocol.IP) if path.sequenced else path.header
        if path.endpoint.send_data(header + packet, path.peer):
            path.out_packets += 1
            path.out_octets += len(packet)
            path.last_ip_tx = self._clock.now
            if path.mirror is not None:
                path.mirror(DOWN, packet)

    def _exceeds_limit(self, path: SessionPath, limit: int) -> bool:
        """Count a packet in the current window. Return True if it is above packet_limit."""
        window = int(self._clock.now * LIMIT_WINDOW)
        if path.window != window:
            path.window, path.window_packets = window, 0
        path.window_packets += 1
        return path.window_packets > limit

    def _too_big(self, path: SessionPath, packet: bytes) -> None:
        """Send a packet in fragments (RFC 791 3.2), or, if DF is set, report the MTU to its sender (RFC 1191)."""
        if not packet[6] & 0x40:
            self._counters.fragmented += 1
            for piece in ipv4.fragment(packet, path.mru):
                self._send(path, piece)
            return
        self._counters.drop_too_big += 1
        path.dropped_too_big += 1
        if icmp.may_answer(packet):
            self._error(self._too_big_rate, ERRORS_PER_SECOND, icmp.FRAGMENTATION_NEEDED, packet, path.mru)

    def _unreachable(self, packet: bytes) -> None:
        """Report that no session has the destination address."""
        if icmp.may_answer(packet):
            rate = self._config.icmp_rate or ERRORS_PER_SECOND
            self._error(self._unreachable_rate, rate, icmp.HOST_UNREACHABLE, packet)

    def _error(self, limit: icmp.RateLimit, rate: int, code: int, packet: bytes, mtu: int = 0) -> None:
        """Send an ICMP Destination Unreachable about a packet, at most `rate` a second."""
        if not limit.allow(rate, self._clock.now):
            self._counters.icmp_suppressed += 1
            return
        if self._send_error(icmp.unreachable(code, packet, self._own, mtu)):
            self._counters.icmp_sent += 1


def mss_for(mru: int) -> int:
    """Return the TCP MSS that fits an MRU: less 20 octets of IP and 20 of TCP (RFC 9293 3.7.1)."""
    return mru - 40
