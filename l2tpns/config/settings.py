"""The configuration: every variable of l2tpns.cfg, declared once, and what follows from several of them together.

file.py reads and writes the file; value_types.py says what a declaration is. Most names are those of l2tpns 1.1 and
2.x, so that an operator's file loads.
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
from l2tpns.config.lac_profile import LacProfile
from l2tpns.config.value_types import (
    Address,
    Addresses,
    Affects,
    Bool,
    Choice,
    Clients,
    Effect,
    Integer,
    Networks,
    SecretsOfClients,
    Setting,
    Text,
    User,
    Words,
    declared,
    setting,
)
from l2tpns.errors import ConfigError
from l2tpns.proto.ppp.lcp import AUTH_NAMES
from l2tpns.runtime.text import unknown_word

LIVE, NEW_SESSIONS, RESTART = Effect.LIVE, Effect.NEW_SESSIONS, Effect.RESTART
RADIUS = Affects.RADIUS

# Octets added to a packet for a subscriber: IP, UDP, an L2TP data header without options, PPP: 20 + 8 + 6 + 4.
L2TP_OVERHEAD = 38
PPPOE_MRU = 1492  # RFC 2516 7: most subscribers reach their LAC by PPPoE
ETHERNET_MTU = 1500  # RFC 4638: what some of them carry all the same
DEFAULT_TUN_ADDRESS = IPv4Address("1.1.1.1")  # as in l2tpns 1.1 and 2.x

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
    """All variables; the names of `load plugin`, in order; the packet filters by name."""

    # The log
    debug: int = setting(
        0,
        "Amount of logging: 0 critical, 1 errors, 2 warnings, 3 events of tunnels and sessions, 4 calls, 5 packets",
        Integer(0, 5),
    )
    log_file: str = setting(
        "",
        "Log destination: path, `file:PATH` or `syslog:FACILITY` (default: standard output; with -d, `syslog:daemon`)",
        _LOG_FILE,
    )
    audit_file: str = setting(
        "",
        "Audit log file: changes with their operators; interception is recorded only there (default: the main log)",
        _PATH,
    )
    dump_speed: bool = setting(False, "Log line with the bandwidth, each second", _BOOL)

    # The process
    hostname: str = setting(
        "",
        "Name of this server, in the prompt and in SCCRP (default: the machine's name)",
        _NAME,
        NEW_SESSIONS,
        affects=RADIUS,
    )
    pid_file: str = setting("", "File for the process id, written at the start (default: none)", _PATH, RESTART)
    setuid: str = setting("0", "User to run as, by name or number; 0: root (docs/privileges.md)", User(), RESTART)
    save_state: bool = setting(
        False,
        "Saving of tunnels and sessions on disk: SIGTERM leaves them up, the next start restores them",
        _BOOL,
    )
    state_dir: str = setting("", "Directory of the saved state (default: /var/lib/l2tpns/state)", _PATH, RESTART)
    state_max_age: int = setting(
        300, "Maximum age of saved state; older state is refused as a whole", _seconds(1, 86400), RESTART
    )
    shutdown_timeout: int = setting(
        20, "Maximum time for a shutdown: disconnects sent, accounting delivered", _seconds(0, 3600)
    )

    plugin_dir: str = setting(
        "", "Directory of plugins for `load plugin` (default: /usr/lib/l2tpns, or modules/ of a checkout)", _PATH
    )

    # Addresses and listening
    bind_address: IPv4Address | None = setting(
        None,
        "Main address of this server: NAS-IP-Address, and default of iftun_address and peer_address; "
        "L2TP listens on all addresses (default: none)",
        _ADDRESS,
        RESTART,
        affects=RADIUS,
    )
    bind_multi_address: tuple[IPv4Address, ...] = setting(
        (),
        "Addresses to listen on; the first is also bind_address and iftun_address (default: all addresses)",
        Addresses(),
        RESTART,
        affects=RADIUS,
    )
    multi_hostname: tuple[str, ...] = setting(
        (),
        "Host names of the addresses in bind_multi_address, in the same order (default: hostname)",
        Words(),
        NEW_SESSIONS,
    )
    iftun_address: IPv4Address | None = setting(
        None, "Address of the TUN device (default: bind_address, else 1.1.1.1)", _ADDRESS, RESTART
    )
    tundevicename: str = setting(
        "tun0", "Name of the TUN device", Text(15, r"[^\s/:%]+", "a name of an interface", octets=False), RESTART
    )
    peer_address: IPv4Address | None = setting(
        None, "Address of this server in IPCP, as subscribers see it (default: bind_address)", _ADDRESS, NEW_SESSIONS
    )
    primary_dns: IPv4Address | None = setting(
        None,
        "First name server for subscribers, if RADIUS names none (default: none)",
        _ADDRESS,
        NEW_SESSIONS,
        lac=True,
    )
    secondary_dns: IPv4Address | None = setting(
        None,
        "Second name server for subscribers, if RADIUS names none (default: none)",
        _ADDRESS,
        NEW_SESSIONS,
        lac=True,
    )
    cli_bind_address: IPv4Address | None = setting(
        IPv4Address("127.0.0.1"),
        "Address of the console; 0.0.0.0: all addresses",
        _ADDRESS,
        RESTART,
    )
    cli_max_connections: int = setting(
        512,
        "Maximum number of consoles; at the limit, the source with the most loses one that has not logged in",
        Integer(1, 1000),
    )
    cli_idle_timeout: int = setting(
        600, "Time without input after which a console is closed; 0: never", _seconds(0, 86400)
    )

    nsctl_bind_address: IPv4Address | None = setting(
        IPv4Address("127.0.0.1"),
        "Address of nsctl's port, besides 127.0.0.1; other hosts need nsctl_secret; 0.0.0.0: no port",
        _ADDRESS,
    )
    nsctl_port: int = setting(1702, "UDP port of nsctl", Integer(1, 65535))
    nsctl_secret: str = setting(
        "",
        "Shared secret for nsctl from other hosts (default: none, only this machine is answered)",
        Text(64, pattern=r"[ -~]{16,64}", example="at least 16 characters of ASCII, or nothing"),
        secret=True,
    )

    metrics_bind_address: IPv4Address | None = setting(
        None,
        "Address for metrics, health and the status page, such as 127.0.0.1 (default: none, they are off)",
        _ADDRESS,
    )
    metrics_port: int = setting(9701, "TCP port for metrics, health and the status page", Integer(1, 65535))
    metrics_allowed_hosts: str = setting(
        "",
        "Host names allowed in the URL, besides addresses, `localhost` and this server's own name (default: none)",
        _HOST_NAMES,
    )

    # L2TP
    l2tp_secret: str = setting(
        "",
        "Secret shared with the LACs, RFC 2661 5.1.1 (default: none)",
        _SECRET,
        NEW_SESSIONS,
        secret=True,
        lac=True,
    )
    l2tp_challenge: bool = setting(
        False,
        "Authentication of the LACs too, if l2tp_secret is set (RFC 2661 5.1.1)",
        _BOOL,
        NEW_SESSIONS,
        lac=True,
    )
    l2tp_hide_avps: bool = setting(
        False,
        "Hiding of the AVPs that may be hidden (RFC 2661 4.3)",
        _BOOL,
        NEW_SESSIONS,
        lac=True,
    )
    l2tp_disconnect_cause: bool = setting(
        True,
        "AVP 46 in each CDN that ends PPP: for LACs that it disturbs, no (RFC 3145)",
        _BOOL,
        lac=True,
    )
    l2tp_mtu: int = setting(
        1500,
        "Maximum size of packets to and from LACs; the MRU is 38 less, at most 1500 (1492 if a subscriber names none)",
        Integer(576, 2600, "octets", clamp=True),
        NEW_SESSIONS,
    )
    hello_interval: int = setting(
        60,
        "Silence of a tunnel after which a HELLO is sent (RFC 2661 5.5); 0: never",
        _seconds(0, 86400),
        lac=True,
    )
    disable_sending_hello: bool = setting(
        False,
        "Suppression of HELLO, for clients that do not support it",
        _BOOL,
        lac=True,
    )
    control_retries: int = setting(
        5,
        "Retransmissions of a control message before the tunnel is closed (RFC 2661 5.8)",
        Integer(1, 20),
        NEW_SESSIONS,
        lac=True,
    )
    receive_window: int = setting(
        32,
        "Control messages that a LAC may send without an acknowledgement (RFC 2661 4.4.3)",
        Integer(1, 1024),
        NEW_SESSIONS,
        lac=True,
    )
    auth_tunnel_change_addr_src: bool = setting(
        False,
        "Move of a tunnel to a new address or port of its LAC, as after a NAT change, once the old one "
        "does not answer and the new one does",
        _BOOL,
    )
    tunnel_idle_timeout: int = setting(
        0,
        "Time without sessions after which a tunnel is closed; 0: never",
        _seconds(0, 2_592_000),
        lac=True,
    )
    drop_tunnel_delay: int = setting(
        10,
        "Delay between the CDNs and the StopCCN of a tunnel that is dropped",
        _seconds(0, 300),
    )

    # Limits
    max_tunnels_per_lac: int = setting(
        1000,
        "Maximum number of tunnels from one address; 0: no limit besides max_tunnels",
        Integer(0, 65535),
        lac=True,
    )
    max_tunnels: int = setting(0, "Maximum number of tunnels; 0: no limit besides the 65535 ids", Integer(0, 65535))
    max_sessions: int = setting(0, "Maximum number of sessions; 0: no limit", _LIMIT)
    max_half_open_tunnels: int = setting(
        500, "Maximum number of tunnels being set up; at the limit, a new one evicts the oldest", Integer(1, 65535)
    )
    max_half_open_per_lac: int = setting(
        32,
        "Maximum number of tunnels being set up from one address; at the limit, a new one evicts its oldest",
        Integer(1, 65535),
    )
    max_starting_calls: int = setting(
        2000, "Maximum number of calls that are not online yet; more get CDN 4", Integer(1, 10_000_000)
    )
    max_starting_per_lac: int = setting(
        1000,
        "Maximum number of calls that are not online yet, from one LAC; more get CDN 4",
        Integer(1, 10_000_000),
        lac=True,
    )
    call_wait_timeout: int = setting(
        10,
        "Time that a call waits for its turn when logins come faster than they are served; later it gets CDN 4",
        _seconds(1, 3600),
        NEW_SESSIONS,
        lac=True,
    )
    call_timeout: int = setting(
        30,
        "Time limit for the LAC's ICCN or OCCN after the reply to its call",
        _seconds(1, 3600),
        NEW_SESSIONS,
        lac=True,
    )
    login_timeout: int = setting(
        60,
        "Time limit from the call's set-up until the subscriber is online",
        _seconds(5, 3600),
        NEW_SESSIONS,
        lac=True,
    )

    # PPP
    ppp_restart_time: int = setting(
        3,
        "Restart timer (RFC 1661 4.6)",
        _seconds(1, 60),
        NEW_SESSIONS,
        lac=True,
    )
    ppp_max_configure: int = setting(
        10,
        "Maximum number of requests without an answer (RFC 1661 4.6)",
        Integer(1, 100),
        NEW_SESSIONS,
        lac=True,
    )
    ppp_max_failure: int = setting(
        5,
        "Maximum number of Configure-Naks before a Configure-Reject (RFC 1661 4.6)",
        Integer(1, 100),
        NEW_SESSIONS,
        lac=True,
    )
    ppp_keepalive: bool = setting(
        True,
        "LCP Echo only in silence; no: each echo_timeout, even while traffic flows",
        _BOOL,
        lac=True,
    )
    echo_timeout: int = setting(
        10,
        "Silence of a subscriber after which an LCP Echo is sent; 0: never",
        _seconds(0, 86400),
        lac=True,
    )
    idle_echo_timeout: int = setting(
        240,
        "Silence of a subscriber after which its session ends; 0: never",
        _seconds(0, 86400),
        lac=True,
    )
    proxy_lcp: bool = setting(
        True,
        "Adoption of the LAC's LCP negotiation (RFC 2661 4.4.5)",
        _BOOL,
        NEW_SESSIONS,
        lac=True,
    )
    proxy_authentication: bool = setting(
        True,
        "Adoption of the name and password that the LAC asked for (RFC 2661 4.4.5)",
        _BOOL,
        NEW_SESSIONS,
        lac=True,
    )
    chap_rechallenge: int = setting(
        0,
        "Interval of CHAP challenges while a session is online; 0: none",
        _seconds(0, 86400),
        lac=True,
    )

    # Users
    allow_duplicate_users: bool = setting(
        False, "Several sessions of one name; no: a new login ends the older session", _BOOL
    )
    guest_account: tuple[str, ...] = setting((), "User names that may have several sessions (default: none)", Words())
    username_case: str = setting(
        "insensitive",
        "Case in user names, for duplicates, guest_account, the pool, commands and plugins; insensitive:"
        " Fred and fred are one user; only ASCII letters have a case",
        Choice("insensitive", "sensitive"),
    )
    kill_timedout_sessions: bool = setting(
        True, "End of a session whose Access-Accept has a Session-Timeout of 0", _BOOL, NEW_SESSIONS
    )

    # RADIUS
    primary_radius: IPv4Address | None = setting(
        None, "First RADIUS server (default: none, l2tpns.secrets authenticates)", _ADDRESS, affects=RADIUS
    )
    secondary_radius: IPv4Address | None = setting(
        None, "Second RADIUS server (default: none)", _ADDRESS, affects=RADIUS
    )
    primary_radius_port: int = setting(
        1812,
        "Authentication port of the first RADIUS server; its accounting port is the next",
        Integer(1, 65534),
        affects=RADIUS,
    )
    secondary_radius_port: int = setting(
        1812,
        "Authentication port of the second RADIUS server; its accounting port is the next",
        Integer(1, 65534),
        affects=RADIUS,
    )
    radius_secret: str = setting(
        "",
        "Secret shared with the RADIUS servers (default: none, no request is sent)",
        _SECRET,
        secret=True,
        affects=RADIUS,
    )
    radius_accounting: bool = setting(
        False, "RADIUS accounting: Start, Interim and Stop", _BOOL, NEW_SESSIONS, affects=RADIUS
    )
    radius_interim: int = setting(
        0,
        "Interval of interim records, unless RADIUS sets one (RFC 2869 5.16); 0: none",
        _seconds(0, 86400),
        NEW_SESSIONS,
        affects=RADIUS,
    )
    radius_authtypes: tuple[str, ...] = setting(
        ("pap",),
        "Authentication protocols, the preferred first",
        Words(tuple(AUTH_NAMES), minimum=1),
        NEW_SESSIONS,
        affects=RADIUS,
        lac=True,
    )
    radius_bind_min: int = setting(0, "First local port for RADIUS; 0: any port", _PORT, RESTART, affects=RADIUS)
    radius_bind_max: int = setting(0, "Last local port for RADIUS; 0: any port", _PORT, RESTART, affects=RADIUS)
    radius_timeout: int = setting(
        1,
        "Time-out of the first try of a RADIUS request; doubled for each further try",
        _seconds(1, 60),
        affects=RADIUS,
    )
    radius_retries: int = setting(
        0, "Maximum number of tries of a RADIUS request; 0: twice the number of servers", Integer(0, 20), affects=RADIUS
    )
    radius_dead_time: int = setting(
        60,
        "Time for which a silent RADIUS server is not used while the other answers",
        _seconds(0, 3600),
        affects=RADIUS,
    )
    radius_require_message_authenticator: str = setting(
        "auto",
        "Refusal of answers without Message-Authenticator; auto: from a server that has sent one before",
        Choice("auto", "yes", "no"),
        affects=RADIUS,
    )
    radius_dae_clients: Clients = setting(
        (),
        "Who may send Disconnect- and CoA-Requests (RFC 5176), each with a secret (default: nobody, no port is open)",
        SecretsOfClients(),
        secret=True,
    )
    radius_dae_port: int = setting(3799, "Port of Disconnect- and CoA-Requests; 0: none", _PORT)
    radius_dae_window: int = setting(
        300, "Age of the Event-Timestamp of a Disconnect- or CoA-Request, at most", _seconds(10, 86400)
    )
    radius_dae_require_event_timestamp: bool = setting(
        False, "Silence to Disconnect- and CoA-Requests without Event-Timestamp: they can be replayed", _BOOL
    )
    radius_dae_require_message_authenticator: bool = setting(
        False, "Silence to Disconnect- and CoA-Requests without Message-Authenticator", _BOOL
    )
    spool_dir: str = setting(
        "", "Directory of accounting records that wait for a server (default: /var/lib/l2tpns/spool)", _PATH, RESTART
    )
    accounting_dir: str = setting(
        "",
        "Directory of usage files, with the octets of each session every five minutes (default: none, no files)",
        _PATH,
    )
    account_all_origin: bool = setting(
        False,
        "Forwarded sessions in the usage files",
        _BOOL,
        pending="sessions are not forwarded in this release",
    )

    # The data path
    fast_path: str = setting(
        "auto",
        "Programs in the kernel that carry the packets of sessions; auto: where the kernel can, on: or refuse to start",
        Choice("auto", "on", "off"),
    )
    fast_path_orphan_timeout: int = setting(
        600,
        "Seconds for which the fast path carries packets while no server runs, with save_state; 0: for ever",
        _seconds(0, 86400),
    )
    data_checksums: bool = setting(
        True,
        "UDP checksum of subscribers' packets to the LACs (RFC 2661 8.1), but for those that the fast path sends; "
        "control messages always have it",
        _BOOL,
        RESTART,
    )
    disable_no_spoof: bool = setting(
        False, "Packets of subscribers from addresses that are not theirs, except in a walled garden", _BOOL
    )
    routed_networks: tuple[IPv4Network, ...] = setting(
        (),
        "Networks of this machine's interfaces whose addresses subscribers may have, as with proxy ARP (default: none)",
        Networks(),
    )
    icmp_rate: int = setting(
        0,
        "Maximum rate of `host unreachable` for addresses that are not in use; 0: 1000",
        Integer(0, 1_000_000, "a second"),
    )
    ip_pool: str = setting(
        "",
        "Pool of subscribers for whom RADIUS names none, by its name in l2tpns.ip_pool (default: the unnamed pool)",
        Text(63, pattern=r"[A-Za-z0-9._-]+", example="a name", octets=False),
        NEW_SESSIONS,
        lac=True,
    )
    packet_limit: int = setting(
        0,
        "Maximum rate of packets to a session; more are dropped; 0: no limit",
        Integer(0, 1_000_000, "in 0.1 seconds"),
    )
    throttle_speed: int = setting(
        0,
        "Speed of a throttled session, each way, unless another is named; 0: none, one must be named",
        Integer(0, 10_000_000, "kbit/s"),
    )
    throttle_method: str = setting(
        "auto",
        "How rates are enforced; htb: queued, in user space; kernel: excess is dropped, by the fast path if it is in "
        "use; auto: kernel if the fast path is in use and no rate of the session is below throttle_kernel_min. For "
        "rates that are set after it",
        Choice("auto", "htb", "kernel"),
    )
    throttle_kernel_min: int = setting(
        2000,
        "Lowest rate for which throttle_method auto is kernel: below it dropping costs a subscriber many packets",
        Integer(1, 10_000_000, "kbit/s"),
    )
    throttle_burst: int = setting(
        200,
        "What a subscriber may send or receive at once after a pause, where excess is dropped (at least 5200 octets)",
        Integer(10, 2000, "milliseconds"),
    )
    throttle_buckets: int = setting(3000, "Maximum number of throttled sessions", Integer(1, 65000))
    snoop_host: IPv4Address | None = setting(
        None,
        "Destination of copies of a snooped session, unless `snoop` or RADIUS names another (default: none)",
        _ADDRESS,
    )
    snoop_port: int = setting(0, "UDP port of snoop_host; 0: none", _PORT)
    snoop_format: str = setting(
        "ip",
        "Form of the copies; ip: the packet only; framed: with time, direction, session and user",
        Choice("ip", "framed"),
    )
    cluster_master: IPv4Address | None = setting(
        None,
        "Partner in the cluster of 1.1",
        _ADDRESS,
        RESTART,
        pending="clustering comes with a later release, in another form",
    )

    plugins: tuple[str, ...] = ()
    plugin_settings: Mapping[str, str] = field(default_factory=dict)  # variables of plugins, as the operator wrote them
    filters: Mapping[str, AccessList] = field(default_factory=dict)
    lacs: Mapping[str, LacProfile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hostname = self.hostname or socket.gethostname()

    def assign(self, name: str, text: str) -> Setting:
        """Set one variable from the operator's text. Raises ConfigError; then nothing has changed."""
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
        """Check variables that depend on each other. Raises ConfigError."""
        low, high = self.radius_bind_min, self.radius_bind_max
        # Between two `set` commands one of them may be 0: then the range is unused (radius_ports).
        if low and high and low > high:
            raise ConfigError(f"radius_bind_min ({low}) must not be above radius_bind_max ({high})")
        if len(self.multi_hostname) > max(len(self.bind_multi_address), 1):
            raise ConfigError("multi_hostname: has more names than bind_multi_address has addresses")

    def differences(self, other: Config) -> tuple[str, ...]:
        """Return the names of the fields that differ in `other`."""
        return tuple(f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(other, f.name))

    def take(self, other: Config) -> tuple[str, ...]:
        """Copy `other` in place, for all that hold this object. Return the names of the fields that changed."""
        changed = self.differences(other)
        for name in changed:
            setattr(self, name, getattr(other, name))
        return changed

    def without_effect(self) -> tuple[tuple[str, str], ...]:
        """Return (variable, why) for each variable that is set and has no effect."""
        settings = ((s.name, s.pending) for s in SETTINGS.values() if s.pending and getattr(self, s.name) != s.default)
        return (*settings, *self._half_set())

    def _half_set(self) -> Iterator[tuple[str, str]]:
        """Yield (variable, why) for variables without effect because another one is not set."""
        if self.radius_servers and not self.radius_secret:
            yield "primary_radius", "radius_secret is not set: no subscriber can log in"
        if self.radius_accounting and not self.radius_servers:
            yield "radius_accounting", "no RADIUS server is named: records wait on disk"
        if bool(self.radius_bind_min) != bool(self.radius_bind_max):
            yield "radius_bind_min", "radius_bind_min and radius_bind_max must both be set: any local port is used"
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
        """Return the values that no log line may show."""
        kinds = {s.name: s.kind for s in SETTINGS.values() if s.secret}
        found = [(kind, getattr(self, name)) for name, kind in kinds.items()]
        for profile in self.lacs.values():
            found += [(kinds[name], value) for name, value in profile.values.items() if name in kinds]
        return tuple(secret for kind, value in found for secret in kind.secrets(value))

    # What follows from several variables

    def name_on(self, address: IPv4Address) -> str:
        """Return the host name for LACs that use this address of the server."""
        names = dict(zip(self.bind_multi_address, self.multi_hostname, strict=False))
        return names.get(address, self.hostname)

    @property
    def listen_addresses(self) -> tuple[IPv4Address, ...]:
        """Return bind_multi_address, else 0.0.0.0: `bind_address` has never limited UDP 1701."""
        return self.bind_multi_address or (IPv4Address(0),)

    @property
    def main_address(self) -> IPv4Address | None:
        """Return the first of bind_multi_address, else `bind_address`; also NAS-IP-Address."""
        return self.bind_multi_address[0] if self.bind_multi_address else self.bind_address

    @property
    def tun_address(self) -> IPv4Address:
        """Return the address of the TUN device."""
        if self.bind_multi_address:
            return self.bind_multi_address[0]
        return self.iftun_address or self.bind_address or DEFAULT_TUN_ADDRESS

    @property
    def ppp_local_address(self) -> IPv4Address:
        """Return our address in IPCP: peer_address, else bind_address, else that of the TUN device."""
        return self.peer_address or self.main_address or self.tun_address

    @property
    def mru(self) -> int:
        """Return the largest PPP payload that needs no fragments between the LAC and this server."""
        return min(ETHERNET_MTU, self.l2tp_mtu - L2TP_OVERHEAD)

    @property
    def dns(self) -> tuple[IPv4Address, ...]:
        return tuple(address for address in (self.primary_dns, self.secondary_dns) if address is not None)

    @property
    def radius_servers(self) -> tuple[RadiusServer, ...]:
        both = ((self.primary_radius, self.primary_radius_port), (self.secondary_radius, self.secondary_radius_port))
        return tuple(RadiusServer(address, port, port + 1) for address, port in both if address is not None)

    @property
    def metrics_hosts(self) -> tuple[str, ...]:
        """Return the names of metrics_allowed_hosts."""
        return tuple(name.strip() for name in self.metrics_allowed_hosts.split(",") if name)

    @property
    def radius_ports(self) -> range:
        """Return the local ports for RADIUS; empty: the kernel chooses."""
        low, high = self.radius_bind_min, self.radius_bind_max
        return range(low, high + 1) if low and high else range(0)

    def user_key(self, user: str) -> str:
        """Return the same key for all names of one user, by `username_case`."""
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
        """Return the silence after which a HELLO is sent; 0: never."""
        return 0 if self.disable_sending_hello else self.hello_interval


SETTINGS: dict[str, Setting] = {s.name: s for s in declared(Config)}


def find_setting(name: str) -> Setting:
    """Return the variable of this name. Raises ConfigError with similar names."""
    if name in SETTINGS:
        return SETTINGS[name]
    raise ConfigError(unknown_word("variable", name, tuple(SETTINGS)))
