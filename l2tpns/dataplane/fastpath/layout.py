"""The layout of the maps, as in fastpath.h."""

from __future__ import annotations

import hashlib
import struct
from ipaddress import IPv4Network

MAX_SESSIONS, MAX_INTERFACES = 65536, 4096
CHECK_SOURCE, HAS_ROUTES = 0x1, 0x2  # struct session, flags
ENABLED = 0x1  # struct settings, flags

MAPS = ("sessions", "addresses", "routes", "interfaces", "counters", "settings", "totals")
MEANING = 1  # of what is in the maps: counted up when it changes while the structures do not

SESSION_KEY_SIZE, ADDRESS_SIZE, ROUTE_KEY_SIZE = 4, 4, 8  # octets of the maps' keys
INTERFACE = struct.Struct("=I")  # key and value
# struct session
SESSION = struct.Struct("=II4s4s2s2s4s2s2sHHIIII")
# struct counters: a direction after the other
COUNTERS = struct.Struct("=7QII7QII")
SLOT, ADDRESS = 0, 6  # fields of SESSION
PACKETS, OCTETS, LAST, SPOOFED, POLICED, LIMITED, READY, WINDOW, WINDOW_PACKETS = range(9)
DOWN = 9  # where the fields of the second direction begin
WORD = struct.Struct("=Q")
READY_OFFSETS = (48, 64 + 48)  # octets to the field `ready` of each direction
NO_COUNTS = (0,) * 18
# struct settings
SETTINGS = struct.Struct("=II2sHIQQ")
BEAT_OFFSET = 16  # octets to the field `beat`

# enum total: each with its help. "passed": left to user space.
HELP = {
    "up_packets": "packets from subscribers that were carried",
    "up_octets": "octets of these packets",
    "up_datagram_octets": "octets of the datagrams that held them or what was dropped",
    "up_spoofed": "dropped: source addresses that are not the subscriber's",
    "up_policed": "dropped: sent faster than the session's rate",
    "up_clamped": "TCP SYNs whose MSS option was lowered",
    "up_passed_control": "passed: control messages",
    "up_passed_session": "passed: of sessions that user space carries, or that do not exist",
    "up_passed_peer": "passed: from another address or port than the session's LAC",
    "up_passed_header": "passed: rare forms of a header, and fragments of datagrams",
    "up_passed_protocol": "passed: PPP frames that are not IPv4",
    "up_passed_packet": "passed: IP packets that user space has to judge",
    "down_packets": "packets to subscribers that were carried",
    "down_octets": "octets of these packets",
    "down_datagram_octets": "octets of the datagrams that hold them",
    "down_policed": "dropped: faster than the session's rate",
    "down_limited": "dropped: above packet_limit",
    "down_clamped": "TCP SYNs whose MSS option was lowered",
    "down_passed_session": "passed: to sessions that user space carries, or to addresses not in use",
    "down_passed_packet": "passed: IP packets that user space has to judge",
    "down_passed_route": "passed: no route or neighbour for the LAC, too small an MTU, an interface that is not served",
}
TOTALS = tuple(HELP)


def digest() -> str:
    """Return a name for the layout and the meaning of the maps: a process goes on only with maps that it knows."""
    known = (MEANING, MAPS, MAX_SESSIONS, MAX_INTERFACES, SESSION.format, COUNTERS.format, SETTINGS.format, TOTALS)
    return hashlib.sha256(repr(known).encode()).hexdigest()[:12]


def path_key(key: int) -> bytes:
    """Return struct session_key of a SessionPath.key: tunnel id and session id as in the header."""
    return key.to_bytes(4, "big")


def route_key(route: IPv4Network) -> bytes:
    """Return struct route_key of a framed route."""
    return struct.pack("=I4s", route.prefixlen, route.network_address.packed)
