"""The state of one session in the data path, found by L2TP ids upstream and by IP address downstream.

A plain mutable object with slots, because each packet touches it once or twice. The session owns it. It may read the
counters at any time, after DataPlane.refresh, and reports what it changes by DataPlane.changed.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network
from operator import attrgetter
from time import monotonic

from l2tpns.config.access_list import AccessList
from l2tpns.dataplane.endpoint import Endpoint
from l2tpns.dataplane.policer import Policer
from l2tpns.dataplane.rate import Rate
from l2tpns.proto.l2tp.header import data_header
from l2tpns.proto.ppp.frame import Protocol, build_frame
from l2tpns.runtime.peer import Peer

UP, DOWN = 0, 1  # directions: from the subscriber, to the subscriber
MIN_MTU = 68  # RFC 791 3.2: octets that every link carries unfragmented

Post = Callable[[int, bytes], None]  # PPP protocol, information
Tap = Callable[[int, bytes], bytes | None]  # direction, packet -> the packet to carry instead, None: drop it
Copy = Callable[[int, bytes], None]  # direction, packet


# What the owner may change while the path is attached, and must then report by DataPlane.changed: where datagrams go,
# whether source addresses are checked, what is dropped. Each field of USERSPACE_FIELDS, unless None or False, asks for
# more than plain forwarding, which the fast path cannot do.
ADDRESSING_FIELDS = ("endpoint", "peer", "peer_session_id", "peer_tunnel_id")
SOURCE_FIELDS = ("in_garden",)
USERSPACE_FIELDS = (
    *("awaiting_policies", "mirror", "filter_in", "filter_out", "policer", "shaped", "sequenced"),
    *("packet_hook", "ipsec"),
)
_userspace_values = attrgetter(*USERSPACE_FIELDS)  # all at once: this is done several times for each login
RATE_FIELDS = ("rate_in", "rate_out")
CHANGEABLE_FIELDS = ADDRESSING_FIELDS + SOURCE_FIELDS + RATE_FIELDS + USERSPACE_FIELDS


def key_of(tunnel_id: int, session_id: int) -> int:
    """Return the key of a path: the two ids that this server assigned, as in the header of a data message."""
    return tunnel_id << 16 | session_id


class SessionPath:
    """Where a session's packets come from and go to, what is done with them, and how many there were."""

    __slots__ = (
        "address",
        "awaiting_policies",
        "dropped_bad_ip",
        "dropped_filtered",
        "dropped_malformed",
        "dropped_not_online",
        "dropped_old",
        "dropped_packet_limit",
        "dropped_policed",
        "dropped_policed_out",
        "dropped_spoofed",
        "dropped_tap",
        "dropped_too_big",
        "dropped_wrong_peer",
        "endpoint",
        "extra",
        "filter_in",
        "filter_out",
        "header",
        "in_garden",
        "in_octets",
        "in_packets",
        "ipsec",
        "key",
        "last_ip_rx",
        "last_ip_tx",
        "last_rx",
        "mirror",
        "mru",
        "mss",
        "needs_userspace",
        "networks",
        "next_ns",
        "ns",
        "online",
        "out_octets",
        "out_packets",
        "packet_hook",
        "peer",
        "peer_session_id",
        "peer_tunnel_id",
        "policer",
        "post",
        "rate_in",
        "rate_out",
        "ready_in",
        "ready_out",
        "routes",
        "sequenced",
        "shaped",
        "window",
        "window_packets",
    )

    def __init__(
        self,
        key: int,
        endpoint: Endpoint,
        peer: Peer,
        peer_tunnel_id: int,
        peer_session_id: int,
        post: Post,
        *,
        sequenced: bool = False,
        now: float | None = None,
    ) -> None:
        self.key = key
        self.endpoint = endpoint
        self.peer = peer
        self.peer_tunnel_id = peer_tunnel_id
        self.peer_session_id = peer_session_id
        self.post = post  # called with every frame that is not an IP packet of an online session
        self.sequenced = sequenced  # RFC 2661 5.4: data messages to the LAC carry Ns
        self.online = False
        self.address = b""
        self.routes: tuple[IPv4Network, ...] = ()  # framed routes (RFC 2865 5.22)
        self.networks: tuple[tuple[int, int], ...] = ()  # the same as (mask, network)
        self.mru = MIN_MTU  # largest IP packet for the peer
        self.mss = 0
        self.extra = 0  # octets that the headers of the LAC's data messages have more than ours, such as Length
        self.awaiting_policies = False  # the session comes online, and its policies do not apply yet
        self.packet_hook: Tap | None = None  # packet hooks
        self.ipsec = False  # the kernel must encrypt what is sent to the LAC
        self.mirror: Copy | None = None  # gets what the subscriber has sent and what was sent to it
        self.filter_in: AccessList | None = None  # for packets from the subscriber
        self.filter_out: AccessList | None = None  # for packets to the subscriber
        self.in_garden = False  # in a walled garden, whose rules match its addresses: no other source address passes
        self.policer: Policer | None = None  # limits what the subscriber sends
        self.rate_in: Rate | None = None  # what exceeds it is dropped, from the subscriber and to the subscriber
        self.rate_out: Rate | None = None
        self.ready_in = self.ready_out = 0.0  # see Rate.pay, for what this process carries
        self.shaped = False  # what is sent to the subscriber queues in a class of the tun device, which limits it
        self.ns = 0  # of the next data message to the LAC, when sequenced
        self.next_ns = -1  # the lowest Ns from the LAC that is not old; -1: none received yet
        # For accounting: IP packets and their octets; "in" is from the subscriber (RFC 2866 5.3).
        self.in_packets = self.in_octets = self.out_packets = self.out_octets = 0
        # Times by the data path's clock (monotonic, coarse): any data message from the LAC, and IP only (Idle-Timeout).
        self.last_rx = self.last_ip_rx = self.last_ip_tx = monotonic() if now is None else now
        self.dropped_malformed = self.dropped_wrong_peer = self.dropped_old = self.dropped_not_online = 0
        self.dropped_bad_ip = self.dropped_spoofed = self.dropped_too_big = self.dropped_policed = 0
        self.dropped_policed_out = self.dropped_packet_limit = self.dropped_tap = self.dropped_filtered = 0
        self.window = self.window_packets = 0  # packet_limit: number of the current 0.1 s, packets sent in it
        self.header = b""  # of an unsequenced IP packet
        self.needs_userspace = False  # one of USERSPACE_FIELDS is set: plain forwarding does not do
        self.changed()

    def changed(self) -> None:
        """Compute again what follows from CHANGEABLE_FIELDS: `header` and `needs_userspace`."""
        self.needs_userspace = any(_userspace_values(self))
        self.header = data_header(self.peer_tunnel_id, self.peer_session_id) + build_frame(Protocol.IP, b"")

    def numbered_header(self, protocol: int) -> bytes:
        """Return the L2TP and PPP header of the next frame of a sequenced session. Uses up one Ns (RFC 2661 5.4)."""
        ns = self.ns
        self.ns = (ns + 1) & 0xFFFF
        return data_header(self.peer_tunnel_id, self.peer_session_id, ns) + build_frame(protocol, b"")

    def frame(self, protocol: int, information: bytes) -> bytes:
        """Return the datagram for one PPP frame, nothing in its header compressed (RFC 1661 6.5, 6.6)."""
        if self.sequenced:
            return self.numbered_header(protocol) + information
        return data_header(self.peer_tunnel_id, self.peer_session_id) + build_frame(protocol, information)

    def is_old(self, ns: int) -> bool:
        """Return True if a data message came late or twice (RFC 2661 5.4). Otherwise remember its Ns as the newest."""
        if self.next_ns >= 0 and (ns - self.next_ns) & 0x8000:
            return True
        self.next_ns = (ns + 1) & 0xFFFF
        return False

    def owns(self, source: bytes) -> bool:
        """Return True if the source address lies in one of the framed routes."""
        number = int.from_bytes(source, "big")
        return any(number & mask == network for mask, network in self.networks)

    def exceeds_rate_in(self, octets: int, now: float) -> bool:
        """Return True if a packet from the subscriber is above `rate_in`. Otherwise charge it."""
        assert self.rate_in is not None
        ready = self.rate_in.pay(self.ready_in, octets, now)
        if ready is not None:
            self.ready_in = ready
        return ready is None

    def exceeds_rate_out(self, octets: int, now: float) -> bool:
        """Return True if a packet to the subscriber is above `rate_out`. Otherwise charge it."""
        assert self.rate_out is not None
        ready = self.rate_out.pay(self.ready_out, octets, now)
        if ready is not None:
            self.ready_out = ready
        return ready is None

    def reset_counters(self) -> None:
        """Start the accounting counters again from 0: another accounting session begins on the same link."""
        self.in_packets = self.in_octets = self.out_packets = self.out_octets = 0

    @property
    def dropped(self) -> dict[str, int]:
        """Dropped packets by reason."""
        return {name[8:]: getattr(self, name) for name in self.__slots__ if name.startswith("dropped_")}
