"""What crosses the border of l2tpns.radius: requests, replies, usage (RFC 2865, RFC 2866, RFC 2869).

Only data: nothing here opens a socket or a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Protocol

from l2tpns.radius.report import InFlight, ServerReport

if TYPE_CHECKING:
    from l2tpns.proto.ppp.credentials import Credentials

PORT_TYPE_VIRTUAL = 5  # RFC 2865 5.41
MTUS = range(64, 65536)  # RFC 2865 5.12


class TerminateCause(IntEnum):
    """Acct-Terminate-Cause (RFC 2866 5.10)."""

    USER_REQUEST = 1
    LOST_CARRIER = 2
    LOST_SERVICE = 3
    IDLE_TIMEOUT = 4
    SESSION_TIMEOUT = 5
    ADMIN_RESET = 6
    ADMIN_REBOOT = 7
    PORT_ERROR = 8
    NAS_ERROR = 9
    NAS_REQUEST = 10
    NAS_REBOOT = 11
    PORT_UNNEEDED = 12
    PORT_PREEMPTED = 13
    PORT_SUSPENDED = 14
    SERVICE_UNAVAILABLE = 15
    CALLBACK = 16
    USER_ERROR = 17
    HOST_REQUEST = 18


class Assign(Enum):
    """Where the subscriber's address comes from (RFC 2865 5.8)."""

    POOL = "pool"  # 255.255.255.254, or no Framed-IP-Address at all
    FIXED = "fixed"  # AuthReply.address
    PEER = "peer"  # 255.255.255.255: the subscriber chooses


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """A subscriber's credentials, and what the tunnel says about the call."""

    credentials: Credentials
    session_id: int
    acct_session_id: str
    called: str = ""
    calling: str = ""
    nas_port_id: str = ""
    tunnel_client: str = ""  # the LAC's address (RFC 2868 3.3)
    tunnel_server: str = ""  # our address on that tunnel (RFC 2868 3.4)
    tunnel_host: str = ""  # the LAC's host name (Tunnel-Client-Auth-ID)
    connect_info: str = ""
    mtu: int = 0
    state: bytes = b""  # of an earlier Accept with Termination-Action RADIUS-Request (RFC 2865 5.24, 5.29)


@dataclass(frozen=True, slots=True)
class FramedRoute:
    """One Framed-Route (RFC 2865 5.22). The gateway None is the subscriber's own address."""

    prefix: IPv4Network
    gateway: IPv4Address | None = None
    metric: int = 1


@dataclass(frozen=True, slots=True)
class OfferedRates:
    """Rates that one attribute names, in kbit/s: from and to the subscriber. 0: no limit; None: it says nothing."""

    source: str  # the vendor
    rate_in: int | None = None
    rate_out: int | None = None


@dataclass(frozen=True, slots=True)
class AuthReply:
    """The verdict. A refusal has attributes too: a walled garden may admit the subscriber with them."""

    accepted: bool
    message: bytes = b""  # Reply-Message, for the PAP or CHAP answer
    assign: Assign = Assign.POOL
    address: IPv4Address | None = None  # only with Assign.FIXED
    routes: tuple[FramedRoute, ...] = ()
    dns: tuple[IPv4Address, ...] = ()
    session_timeout: int | None = None
    idle_timeout: int | None = None
    interim: int | None = None  # seconds, at least 60; 0: none, whatever the configuration says
    classes: tuple[bytes, ...] = ()
    avpairs: tuple[tuple[str, str], ...] = ()
    rates: tuple[OfferedRates, ...] = ()  # in the order of the table of attributes
    filter_ids: tuple[str, ...] = ()
    termination_action: int = 0  # 1: send a new Access-Request when the session time is over
    state: bytes = b""
    framed_pool: str = ""
    mtu: int | None = None
    user: bytes = b""  # the name to account under, when the server gave another (RFC 2865 5.1)
    why: str = ""  # of a refusal, for the log only: a subscriber must not learn which names exist
    proof: bytes = b""  # of MS-CHAP version 2: "S=" and 40 hexadecimal digits (RFC 2759 5)
    error: int = 0  # code in a Failure of MS-CHAP (RFC 2759 6); 0: the usual one


class Backend(Protocol):
    """Decides who may log in: RADIUS servers, or the secrets file."""

    def authenticate(self, request: AuthRequest) -> AuthReply:
        """Return the verdict. May yield. Raises NoAnswer."""
        ...

    def report(self) -> list[ServerReport]:
        """Return the figures of each server that is configured now; none for a backend without servers."""
        ...

    def in_flight(self) -> list[InFlight]:
        """Return the requests that wait for an answer."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """What a session has used so far. "In" is from the subscriber (RFC 2866 5.3)."""

    acct_session_id: str
    user: bytes
    session_id: int
    address: IPv4Address | None = None
    routes: tuple[FramedRoute, ...] = ()
    classes: tuple[bytes, ...] = ()
    called: str = ""
    calling: str = ""
    nas_port_id: str = ""
    tunnel_client: str = ""
    tunnel_server: str = ""
    tunnel_host: str = ""
    tunnel_connection: str = ""  # Acct-Tunnel-Connection (RFC 2867 4.1): the L2TP call serial number
    connect_info: str = ""
    opened: float = 0.0  # wall clock
    session_timeout: int | None = None
    idle_timeout: int | None = None
    by_radius: bool = True  # Acct-Authentic: 1 RADIUS, 2 local
    in_octets: int = 0
    in_packets: int = 0
    out_octets: int = 0
    out_packets: int = 0
    session_time: int = 0
    terminate_cause: int = 0
    avpairs: tuple[str, ...] = ()  # Cisco-AVPair texts that plugins add
    attributes: tuple[tuple[str, str | int], ...] = ()  # and other attributes, by name
