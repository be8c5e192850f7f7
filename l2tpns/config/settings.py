"""The configuration: every variable of l2tpns.cfg, declared once, and what follows from several of them together.

Reading and writing the file is config/file.py's; what a declaration means is in settings.py. The names are those of
l2tpns 1.1 and 2.x, so that an operator's file loads; those after "ours" are new.
"""

# ruff: noqa: RUF009  (setting() makes a dataclass field, as dataclasses.field() does)
from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from l2tpns.config import user_names as names
from l2tpns.config.access_list import AccessList
from l2tpns.config.value_types import (
    Address,
    Addresses,
    Bool,
    Choice,
    Effect,
    Integer,
    Networks,
    Setting,
    Text,
    User,
    Words,
    declared,
    setting,
)
from l2tpns.errors import ConfigError
from l2tpns.runtime.text import unknown_word

LIVE, NEW_SESSIONS, RESTART = Effect.LIVE, Effect.NEW_SESSIONS, Effect.RESTART

# IP, UDP, and the longest L2TP data header plus PPP that we add to a subscriber's packet: 20 + 8 + 6 + 4.
L2TP_OVERHEAD = 38
PPPOE_MRU = 1492  # RFC 2516 section 7: most LACs have the subscriber on PPPoE
DEFAULT_TUN_ADDRESS = IPv4Address("1.1.1.1")  # as ever, where the file names none

_ADDRESS = Address()
_BOOL = Bool()
_PORT = Integer(0, 65535)
_LIMIT = Integer(0, 10_000_000)
_SECRET = Text(64)
_PATH = Text(4095, pattern=r"/.*", example='a path from the root such as "/run/l2tpns.pid", or nothing')
_LOG_FILE = Text(
    4095,
    pattern=r"(file:)?/.*|syslog:(kern|user|mail|daemon|auth|syslog|lpr|news|uucp|cron|authpriv|ftp|local[0-7])",
    example='a path from the root, "file:/PATH", "syslog:FACILITY" (local0 to local7, daemon, ...), or nothing',
)
_HOST_NAMES = Text(
    1024,
    pattern=r"[A-Za-z0-9_][A-Za-z0-9_.-]*( *, *[A-Za-z0-9_][A-Za-z0-9_.-]*)*",
    example='names of hosts without a port, separated by commas, such as "lns1.example.net,status.example.net"',
)
_NAME = Text(64, pattern=r"[A-Za-z0-9._-]+", example="letters, digits, dots and dashes")


def _seconds(minimum: int, maximum: int) -> Integer:
    return Integer(minimum, maximum, "seconds")


@dataclass(frozen=True, slots=True)
class RadiusServer:
    """Where a RADIUS server listens (RFC 2865, RFC 2866: accounting on the next port)."""

    address: IPv4Address
    auth_port: int
    acct_port: int


@dataclass(slots=True)
class Config:
    """All variables with their defaults; the names of `load plugin`, in order; the packet filters by name."""

    # The log
    debug: int = setting(
        0, "how much is logged: 0 critical, 1 errors, 2 warnings, 3 a life's events, 4 calls, 5 packets", Integer(0, 5)
    )
    log_file: str = setting(
        "",
        "where the log goes: a path, `file:PATH` or `syslog:FACILITY`; nothing: standard output, with -d syslog:daemon",
        _LOG_FILE,
    )
    audit_file: str = setting(
        "", "file that also tells who changed what, and alone who is intercepted; nothing: the log does", _PATH
    )
    dump_speed: bool = setting(False, "log a line with the bandwidth each second", _BOOL)

    # The process
    hostname: str = setting(
        "", "our name, in the prompt and in SCCRP; nothing: the machine's name", _NAME, NEW_SESSIONS
    )
    pid_file: str = setting("", "file that gets the process id at the start", _PATH, RESTART)
    setuid: str = setting("0", "user to run as, by name or number; 0: stay root (docs/privileges.md)", User(), RESTART)
    save_state: bool = setting(
        False,
        "keep tunnels and sessions on disk, leave without a word at SIGTERM, and take them up at the start",
        _BOOL,
    )
    state_dir: str = setting("", "where they are kept; nothing: /var/lib/l2tpns/state", _PATH, RESTART)
    state_max_age: int = setting(
        300, "saved state of a server that has been away for longer is refused as a whole", _seconds(1, 86400), RESTART
    )
    shutdown_timeout: int = setting(
        20, "how long leaving may take: disconnects sent and accounting delivered", _seconds(0, 3600)
    )

    plugin_dir: str = setting(
        "", "where `load plugin` finds plugins; nothing: /usr/lib/l2tpns, or modules/ of a checkout", _PATH
    )

    # Addresses and listening
    bind_address: IPv4Address | None = setting(
        None,
        "our address: default of iftun_address and peer_address, NAS-IP-Address; L2TP listens on all addresses",
        _ADDRESS,
        RESTART,
    )
    bind_multi_address: tuple[IPv4Address, ...] = setting(
        (), "several addresses to listen on; the first counts as bind_address and iftun_address", Addresses(), RESTART
    )
    multi_hostname: tuple[str, ...] = setting(
        (), "our name on each of bind_multi_address, in the same order", Words(), NEW_SESSIONS
    )
    iftun_address: IPv4Address | None = setting(
        None, "address of the tun device; none: bind_address, else 1.1.1.1", _ADDRESS, RESTART
    )
    tundevicename: str = setting(
        "tun0", "name of the tun device", Text(15, r"[^\s/:%]+", "a name of an interface", octets=False), RESTART
    )
    peer_address: IPv4Address | None = setting(
        None, "our address as subscribers see it (IPCP); none: bind_address", _ADDRESS, NEW_SESSIONS
    )
    primary_dns: IPv4Address | None = setting(
        None, "first name server given to subscribers, unless RADIUS names one", _ADDRESS, NEW_SESSIONS
    )
    secondary_dns: IPv4Address | None = setting(None, "second name server given to subscribers", _ADDRESS, NEW_SESSIONS)
    cli_bind_address: IPv4Address | None = setting(
        IPv4Address("127.0.0.1"),
        "address that the console listens on; 0.0.0.0: all",
        _ADDRESS,
        RESTART,
    )
    cli_max_connections: int = setting(
        512,
        "consoles at the same time; to admit one more, the source that has the most loses one that has not logged in",
        Integer(1, 1000),
    )
    cli_idle_timeout: int = setting(
        600, "how long a console may be left alone before it is closed; 0: for ever", _seconds(0, 86400)
    )

    nsctl_bind_address: IPv4Address | None = setting(
        IPv4Address("127.0.0.1"),
        "address that nsctl's port is open on, and 127.0.0.1 besides; other hosts need nsctl_secret; none: nowhere",
        _ADDRESS,
    )
    nsctl_port: int = setting(1702, "and its UDP port", Integer(1, 65535))
    nsctl_secret: str = setting(
        "",
        "secret of the hosts that may use nsctl from elsewhere; nothing: only this machine",
        Text(64, pattern=r"[ -~]{16,64}", example="at least 16 characters of ASCII, or nothing"),
        secret=True,
    )

    metrics_bind_address: IPv4Address | None = setting(
        None, "address for metrics, health and the status page, such as 127.0.0.1; none: they are off", _ADDRESS
    )
    metrics_port: int = setting(9701, "and their TCP port", Integer(1, 65535))
    metrics_allowed_hosts: str = setting(
        "", "names that may stand in the URL besides addresses, `localhost` and our own name", _HOST_NAMES
    )

    # L2TP
    l2tp_secret: str = setting("", "secret shared with the LACs (RFC 2661 5.1.1)", _SECRET, NEW_SESSIONS, secret=True)
    l2tp_challenge: bool = setting(False, "challenge the LACs too, where l2tp_secret is set", _BOOL, NEW_SESSIONS)
    l2tp_hide_avps: bool = setting(False, "hide the AVPs that may be hidden (RFC 2661 4.3)", _BOOL, NEW_SESSIONS)
    l2tp_mtu: int = setting(
        1500,
        "largest packet to and from LACs; the MRU is this less 38, 1492 at most",
        Integer(576, 2600, "octets", clamp=True),
        NEW_SESSIONS,
    )
    hello_interval: int = setting(
        60, "silence of a tunnel before a HELLO is sent (RFC 2661 5.5); 0: none", _seconds(0, 86400)
    )
    disable_sending_hello: bool = setting(False, "never send HELLO, for clients that choke on it", _BOOL)
    control_retries: int = setting(
        5,
        "how often a control message is sent again before the tunnel is given up (RFC 2661 5.8)",
        Integer(1, 20),
        NEW_SESSIONS,
    )
    receive_window: int = setting(
        32, "control messages a LAC may have on the way (RFC 2661 4.4.3)", Integer(1, 1024), NEW_SESSIONS
    )
    auth_tunnel_change_addr_src: bool = setting(
        False,
        "follow a known tunnel to a new address or port of its LAC, as NAT may change it, "
        "once the old one does not answer and the new one does",
        _BOOL,
    )
    tunnel_idle_timeout: int = setting(
        0, "how long a tunnel without sessions is kept; 0: for ever", _seconds(0, 2_592_000)
    )
    drop_tunnel_delay: int = setting(
        10,
        "time between the CDNs to a dropped tunnel's sessions and its StopCCN",
        _seconds(0, 300),
    )

    # Limits
    max_tunnels_per_lac: int = setting(1000, "tunnels from one address; 0: no limit but the next", Integer(0, 65535))
    max_tunnels: int = setting(0, "tunnels in all; 0: no limit but the ids", Integer(0, 65535))
    max_sessions: int = setting(0, "sessions in all; 0: no limit", _LIMIT)
    max_half_open_tunnels: int = setting(
        500, "tunnels being set up, in all; for one more the oldest is forgotten", Integer(1, 65535)
    )
    max_half_open_per_lac: int = setting(
        32, "tunnels being set up, from one address; for one more its oldest is forgotten", Integer(1, 65535)
    )
    max_starting_calls: int = setting(
        2000, "calls that are not online yet, in all; more get CDN 4", Integer(1, 10_000_000)
    )
    max_starting_per_lac: int = setting(1000, "calls that are not online yet, from one LAC", Integer(1, 10_000_000))
    call_timeout: int = setting(30, "time for ICCN or OCCN to come after our reply", _seconds(1, 3600), NEW_SESSIONS)
    login_timeout: int = setting(
        60, "time from the call's set-up until the subscriber is online", _seconds(5, 3600), NEW_SESSIONS
    )

    # PPP
    ppp_restart_time: int = setting(3, "restart timer (RFC 1661 4.6)", _seconds(1, 60), NEW_SESSIONS)
    ppp_max_configure: int = setting(
        10, "requests sent without an answer (RFC 1661 4.6)", Integer(1, 100), NEW_SESSIONS
    )
    ppp_max_failure: int = setting(5, "Configure-Naks before we reject (RFC 1661 4.6)", Integer(1, 100), NEW_SESSIONS)
    ppp_keepalive: bool = setting(True, "no: send an LCP Echo each echo_timeout even while traffic flows", _BOOL)
    echo_timeout: int = setting(10, "silence before an LCP Echo is sent; 0: none", _seconds(0, 86400))
    idle_echo_timeout: int = setting(240, "silence before a session is given up; 0: never", _seconds(0, 86400))
    proxy_lcp: bool = setting(True, "take over what the LAC negotiated (RFC 2661 4.4.5)", _BOOL, NEW_SESSIONS)
    proxy_authentication: bool = setting(
        True, "take over the name and password the LAC asked for (RFC 2661 4.4.5)", _BOOL, NEW_SESSIONS
    )
    chap_rechallenge: int = setting(
        0, "time between CHAP challenges of a session that is online; 0: none", _seconds(0, 86400)
    )

    # Users
    allow_duplicate_users: bool = setting(False, "no: a new login ends the older session of the same name", _BOOL)
    guest_account: tuple[str, ...] = setting((), "names that may be online many times", Words())
    username_case: str = setting(
        "insensitive",
        "whether Fred and fred are one user (insensitive) or two (sensitive), for duplicates, guest_account, the pool, "
        "commands and plugins; only ASCII letters have a case",
        Choice("insensitive", "sensitive"),
    )
    kill_timedout_sessions: bool = setting(
        True, "end a session whose Access-Accept has a Session-Timeout of 0", _BOOL, NEW_SESSIONS
    )

    # RADIUS
    primary_radius: IPv4Address | None = setting(
        None, "first RADIUS server; none: l2tpns.secrets authenticates", _ADDRESS
    )
    secondary_radius: IPv4Address | None = setting(None, "second RADIUS server", _ADDRESS)
    primary_radius_port: int = setting(1812, "its port for authentication; accounting: the next", Integer(1, 65534))
    secondary_radius_port: int = setting(1812, "the port of the second server", Integer(1, 65534))
    radius_secret: str = setting("", "secret shared with the RADIUS servers", _SECRET, secret=True)
    radius_accounting: bool = setting(False, "send Start, Interim and Stop", _BOOL, NEW_SESSIONS)
    radius_interim: int = setting(
        0,
        "time between interim records, unless RADIUS names one (RFC 2869 5.16); 0: none",
        _seconds(0, 86400),
        NEW_SESSIONS,
    )
    radius_authtypes: tuple[str, ...] = setting(
        ("pap",),
        "how subscribers may authenticate, the preferred first",
        Words(("pap", "chap"), minimum=1),
        NEW_SESSIONS,
    )
    radius_bind_min: int = setting(0, "first local port for RADIUS; 0: any", _PORT, RESTART)
    radius_bind_max: int = setting(0, "last local port for RADIUS", _PORT, RESTART)
    radius_timeout: int = setting(1, "wait for the first answer; doubled for each further try", _seconds(1, 60))
    radius_retries: int = setting(0, "requests sent before we give up; 0: twice the number of servers", Integer(0, 20))
    radius_dead_time: int = setting(
        60, "how long a server that kept silent is left alone while the other answers", _seconds(0, 3600)
    )
    radius_require_message_authenticator: str = setting(
        "auto",
        "refuse answers without Message-Authenticator; auto: from a server that has once sent it",
        Choice("auto", "yes", "no"),
    )
    spool_dir: str = setting(
        "", "where accounting records wait for the server; nothing: /var/lib/l2tpns/spool", _PATH, RESTART
    )
    accounting_dir: str = setting(
        "", "directory for files that say every five minutes who has used how much; nothing: none", _PATH
    )
    account_all_origin: bool = setting(
        False,
        "usage files also tell of forwarded sessions",
        _BOOL,
        pending="sessions are not forwarded in this release",
    )

    # The data path
    data_checksums: bool = setting(
        True,
        "no: leave out the UDP checksum of subscribers' packets to the LACs (RFC 2661 8.1); never of control messages",
        _BOOL,
        RESTART,
    )
    disable_no_spoof: bool = setting(
        False, "let subscribers send from addresses that are not theirs, unless they are in a walled garden", _BOOL
    )
    routed_networks: tuple[IPv4Network, ...] = setting(
        (),
        "networks this machine is connected to whose addresses subscribers may have all the same, as with proxy ARP; "
        "nothing: those of no connected network",
        Networks(),
    )
    icmp_rate: int = setting(
        0, "`host unreachable` sent for addresses that nobody has; 0: 1000", Integer(0, 1_000_000, "a second")
    )
    packet_limit: int = setting(
        0, "packets to a session; more are dropped; 0: no limit", Integer(0, 1_000_000, "in 0.1 seconds")
    )
    throttle_speed: int = setting(
        0,
        "speed of a throttled session, each way, where no other is named; 0: none, then one has to be named",
        Integer(0, 10_000_000, "kbit/s"),
    )
    throttle_buckets: int = setting(3000, "sessions that may be throttled at the same time", Integer(1, 65000))
    snoop_host: IPv4Address | None = setting(
        None, "where copies of a snooped session's packets go, unless `snoop` or RADIUS names another place", _ADDRESS
    )
    snoop_port: int = setting(0, "and the UDP port", _PORT)
    snoop_format: str = setting(
        "ip",
        "form of the copies. ip: the packet and nothing else; framed: with time, direction, session and user",
        Choice("ip", "framed"),
    )
    cluster_master: IPv4Address | None = setting(
        None,
        "partner of the cluster of 1.1",
        _ADDRESS,
        RESTART,
        pending="clustering comes with a later release, in another form",
    )

    plugins: tuple[str, ...] = ()
    plugin_settings: Mapping[str, str] = field(default_factory=dict)  # variables of plugins, in the operator's words
    filters: Mapping[str, AccessList] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hostname = self.hostname or socket.gethostname()

    def assign(self, name: str, text: str) -> Setting:
        """Set one variable from the operator's words; ConfigError leaves everything as it was."""
        chosen = find_setting(name)
        try:
            value = chosen.parse(text)
        except ValueError as wrong:
            raise ConfigError(str(wrong)) from None
        trial = dataclasses.replace(self, **{name: value})
        trial.check()
        setattr(self, name, getattr(trial, name))
        return chosen

    def check(self) -> None:
        """What a single variable cannot show. Raises ConfigError."""
        low, high = self.radius_bind_min, self.radius_bind_max
        # While only one of them has been typed at the console the range is open, and unused: see radius_ports.
        if low and high and low > high:
            raise ConfigError(f"radius_bind_min ({low}) must not be above radius_bind_max ({high})")
        if len(self.multi_hostname) > max(len(self.bind_multi_address), 1):
            raise ConfigError("multi_hostname: has more names than bind_multi_address has addresses")

    def differences(self, other: Config) -> tuple[str, ...]:
        """The names of the fields that differ in `other`."""
        return tuple(f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(other, f.name))

    def take(self, other: Config) -> tuple[str, ...]:
        """Become as `other`, in place, so that everybody who holds this object sees it; the names that changed."""
        changed = self.differences(other)
        for name in changed:
            setattr(self, name, getattr(other, name))
        return changed

    def without_effect(self) -> tuple[tuple[str, str], ...]:
        """(what, why) for each word of the operator's that moves nothing in this release."""
        settings = ((s.name, s.pending) for s in SETTINGS.values() if s.pending and getattr(self, s.name) != s.default)
        return (*settings, *self._half_set())

    def _half_set(self) -> Iterator[tuple[str, str]]:
        """Variables that move nothing because another one is not set."""
        if self.radius_servers and not self.radius_secret:
            yield "primary_radius", "radius_secret is not set: nobody can log in"
        if self.radius_accounting and not self.radius_servers:
            yield "radius_accounting", "no RADIUS server is named: records wait on disk"
        if bool(self.radius_bind_min) != bool(self.radius_bind_max):
            yield "radius_bind_min", "it needs radius_bind_max, and that needs it: any local port is used"
        address = self.nsctl_bind_address
        if address is not None and not address.is_loopback and not self.nsctl_secret:
            yield "nsctl_bind_address", "nsctl_secret is not set: requests from other hosts are not answered"
        if self.snoop_host is not None and not self.snoop_port:
            yield "snoop_host", "snoop_port is not set: `snoop USER` needs an address and a port"
        if self.snoop_port and self.snoop_host is None:
            yield "snoop_port", "snoop_host is not set: `snoop USER` needs an address and a port"
        if self.l2tp_challenge and not self.l2tp_secret:
            yield "l2tp_challenge", "l2tp_secret is not set: no LAC is challenged"

    def secrets(self) -> tuple[str, ...]:
        """The values that no log line may show."""
        return tuple(value for s in SETTINGS.values() if s.secret and (value := getattr(self, s.name)))

    # What follows from several variables

    def name_on(self, address: IPv4Address) -> str:
        """Our host name for a LAC that spoke to this address of ours."""
        names = dict(zip(self.bind_multi_address, self.multi_hostname, strict=False))
        return names.get(address, self.hostname)

    @property
    def listen_addresses(self) -> tuple[IPv4Address, ...]:
        """bind_multi_address, else every address of the machine: `bind_address` has never limited UDP 1701."""
        return self.bind_multi_address or (IPv4Address(0),)

    @property
    def main_address(self) -> IPv4Address | None:
        """`bind_address`, which the first of bind_multi_address overrides; also NAS-IP-Address."""
        return self.bind_multi_address[0] if self.bind_multi_address else self.bind_address

    @property
    def tun_address(self) -> IPv4Address:
        """The tun device's: as `iftun_address`, with its fallbacks."""
        if self.bind_multi_address:
            return self.bind_multi_address[0]
        return self.iftun_address or self.bind_address or DEFAULT_TUN_ADDRESS

    @property
    def ppp_local_address(self) -> IPv4Address:
        """Our address in IPCP: peer_address, else bind_address, else the tun device's."""
        return self.peer_address or self.main_address or self.tun_address

    @property
    def mru(self) -> int:
        """The largest PPP payload that reaches a subscriber without fragments between LAC and us."""
        return min(PPPOE_MRU, self.l2tp_mtu - L2TP_OVERHEAD)

    @property
    def dns(self) -> tuple[IPv4Address, ...]:
        return tuple(address for address in (self.primary_dns, self.secondary_dns) if address is not None)

    @property
    def radius_servers(self) -> tuple[RadiusServer, ...]:
        both = ((self.primary_radius, self.primary_radius_port), (self.secondary_radius, self.secondary_radius_port))
        return tuple(RadiusServer(address, port, port + 1) for address, port in both if address is not None)

    @property
    def metrics_hosts(self) -> tuple[str, ...]:
        """The names of metrics_allowed_hosts."""
        return tuple(name.strip() for name in self.metrics_allowed_hosts.split(",") if name)

    @property
    def radius_ports(self) -> range:
        """Local ports for RADIUS; empty: whatever the kernel gives."""
        low, high = self.radius_bind_min, self.radius_bind_max
        return range(low, high + 1) if low and high else range(0)

    def user_key(self, user: str) -> str:
        """Return what the names of one user have in common, by `username_case`."""
        return user if self.username_case == "sensitive" else names.fold(user)

    @property
    def l2tp_secret_octets(self) -> bytes:
        return self.l2tp_secret.encode("utf-8", "surrogateescape")

    @property
    def radius_secret_octets(self) -> bytes:
        return self.radius_secret.encode("utf-8", "surrogateescape")

    @property
    def nsctl_secret_octets(self) -> bytes:
        return self.nsctl_secret.encode("utf-8", "surrogateescape")

    @property
    def hello_seconds(self) -> int:
        """Silence before a HELLO; 0: never."""
        return 0 if self.disable_sending_hello else self.hello_interval


SETTINGS: dict[str, Setting] = {s.name: s for s in declared(Config)}


def find_setting(name: str) -> Setting:
    """The variable of this name; ConfigError with a guess at what was meant."""
    if name in SETTINGS:
        return SETTINGS[name]
    raise ConfigError(unknown_word("variable", name, tuple(SETTINGS)))
