"""The counters of the process, each declared once with its help.

`show counters`, the metrics and docs/counters.md are loops over these declarations. Plain integers, incremented in
place (`counters.tunnel_rx_packets += 1`): all greenlets share one thread. Counters of a single session or tunnel
live with it.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

_HELP, _PRIVATE = "help", "private"


def counter(help: str, *, private: bool = False) -> int:
    """Declare a counter, a field of a dataclass. Only operators with enable privilege see a `private` one."""
    return dataclasses.field(default=0, metadata={_HELP: help, _PRIVATE: private})


@dataclass(slots=True)
class Counters:
    """tunnel: on the side of the LACs. tun: on the side of the tun device. rx: received, tx: sent by this server."""

    # Packets and octets; octets are those of the IP packet on the tun side, of the UDP payload on the tunnel side.
    tunnel_rx_packets: int = counter("datagrams received from LACs")
    tunnel_rx_octets: int = counter("octets of datagrams received from LACs")
    tunnel_rx_errors: int = counter("errors reading from the UDP sockets")
    tunnel_tx_packets: int = counter("datagrams sent to LACs")
    tunnel_tx_octets: int = counter("octets of datagrams sent to LACs")
    tunnel_tx_errors: int = counter("datagrams that the kernel refused to send to a LAC")
    tun_rx_packets: int = counter("packets for subscribers, read from the tun device")
    tun_rx_octets: int = counter("octets of packets read from the tun device")
    tun_rx_errors: int = counter("errors reading from the tun device")
    tun_tx_packets: int = counter("packets of subscribers, written to the tun device")
    tun_tx_octets: int = counter("octets of packets written to the tun device")
    tun_tx_errors: int = counter("packets that the tun device refused")

    # Datagrams and packets dropped, by reason
    drop_malformed: int = counter("datagrams that are not L2TP (RFC 2661 3.1)")
    drop_unknown_tunnel: int = counter("datagrams for a tunnel id that does not exist")
    drop_unknown_session: int = counter("datagrams for a session id that does not exist")
    drop_wrong_peer: int = counter("datagrams for a tunnel, from an address that is not its LAC's")
    drop_not_online: int = counter("IP packets of sessions that are not online")
    drop_old_ns: int = counter("data messages that came after a later one (RFC 2661 5.4)")
    drop_spoofed: int = counter("packets from source addresses that are not the subscriber's")
    drop_filtered: int = counter("packets that a session's filter does not permit, either way")
    drop_policed: int = counter("packets that throttled subscribers sent too fast")
    drop_policed_out: int = counter("packets to throttled subscribers that came too fast, where no class queues them")
    drop_bad_ip: int = counter("packets that are not IP, or shorter than their header says")
    drop_ipv6: int = counter("IPv6 packets from the tun device; subscribers have IPv4 only")
    drop_above_mru: int = counter("frames of this server's that were longer than the subscriber's MRU")
    drop_mailbox_full: int = counter("control or negotiation packets that came faster than they were handled")
    drop_packet_limit: int = counter("packets to sessions above packet_limit")
    drop_no_session: int = counter("packets from the tun device for addresses without a session")
    drop_too_big: int = counter("packets that did not fit, answered by `fragmentation needed`")
    drop_tap: int = counter("packets that a packet hook dropped")
    drop_own_l2tp: int = counter("L2TP packets of our own that the kernel routed into the tun device")
    drop_redirect: int = counter("ICMP redirects of the kernel to subscribers, which are useless to them")
    drop_half_open_limit: int = counter("SCCRQs beyond the limits of half-open tunnels")
    drop_strangers: int = counter("SCCRQs and other messages for no tunnel, beyond their share of the time")

    # The data path's other work
    fragmented: int = counter("packets that were fragmented for a subscriber's MRU")
    mss_clamped: int = counter("TCP SYNs whose MSS option was lowered")
    icmp_sent: int = counter("ICMP messages sent")
    icmp_suppressed: int = counter("ICMP messages that icmp_rate kept back")
    snoop_packets: int = counter("copies of intercepted packets sent", private=True)
    snoop_errors: int = counter(
        "copies of intercepted packets that were not sent, or not received as far as we know", private=True
    )

    # Control connections (RFC 2661 5.8)
    control_retransmissions: int = counter("control messages sent again")
    control_malformed: int = counter("control messages with unreadable AVPs")
    tunnels_opened: int = counter("tunnels that came up")
    tunnels_refused: int = counter("tunnels refused: secret, limit, protocol")
    lacs_refused: int = counter("SCCRQs from addresses that are routed to subscribers, not answered")
    tunnels_crowded_out: int = counter("half-open tunnels that were forgotten to make room for a new one")
    tunnels_closed: int = counter("tunnels closed by either side")

    # Calls and sessions
    calls_refused: int = counter("calls refused: limit, protocol")
    calls_overdue: int = counter("calls refused after call_wait_timeout, because logins came too fast")
    sessions_online: int = counter("sessions that came online, gone ones included")
    sessions_resumed: int = counter("sessions restored after a restart")
    sessions_ended: int = counter("sessions that ended, online or not")
    sessions_replaced: int = counter("sessions ended by a new login of the same user or address")
    no_address: int = counter("sessions ended because no address was free")
    garden_entered: int = counter("sessions that came into a walled garden, from another one too")
    garden_left: int = counter("sessions that were let out of a walled garden")
    logins_accepted: int = counter("logins accepted")
    logins_refused: int = counter("logins refused")
    logins_unanswered: int = counter("logins given up because no server answered")

    # Dynamic authorization (RFC 5176)
    dae_requests: int = counter("Disconnect- and CoA-Requests that were answered, repetitions too")
    dae_refused: int = counter("Disconnect- and CoA-Requests answered with a NAK")
    dae_dropped: int = counter(
        "datagrams to the port of dynamic authorization that got no answer: stranger, forged, old"
    )
    dae_crowded_out: int = counter("Disconnect- and CoA-Requests beyond the rate of a client, not answered")

    # nsctl
    nsctl_requests: int = counter("nsctl requests that were accepted")
    nsctl_refused: int = counter("nsctl requests refused: sender not permitted, forged, replayed, too many at once")
    nsctl_malformed: int = counter("datagrams to the port of nsctl that are not requests")

    def items(self) -> Iterator[tuple[str, str, int]]:
        """Yield (name, help, value) of each counter, in the order of declaration."""
        for name, help in DECLARED:
            yield name, help, getattr(self, name)

    def clear(self) -> None:
        """Reset all counters to zero (`clear counters`)."""
        for name, _ in DECLARED:
            setattr(self, name, 0)


DECLARED: tuple[tuple[str, str], ...] = tuple((f.name, f.metadata[_HELP]) for f in dataclasses.fields(Counters))
PRIVATE = frozenset(f.name for f in dataclasses.fields(Counters) if f.metadata[_PRIVATE])


class Histogram:
    """Counts values by upper bounds, and sums them up."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last: above all bounds
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """Return (bound, number of values up to it); the last bound is `+Inf`."""
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))
