"""RADIUS attributes: one table of all that this server sends, reads, or can name.

Derived from it: the dictionary of pyrad, the parser of replies (reply.py), the fields that requests and accounting
records send (packets.py, usage.py), the log lines about ignored attributes, and the table in docs/radius.md.

To read one more attribute of a reply: a row here, a field of AuthReply in types.py, and, if it acts at once,
a line in subscriber/authorization.py. Several attributes may fill one field, and one attribute several; values of a
field that is a tuple are collected in the order of the table. A parser is given all values of its attribute, raw:
those of a tagged attribute (RFC 2868 3.1) begin with their tag.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum, Flag, auto

from l2tpns.radius import attribute_values as values
from l2tpns.radius import rates, service

Key = int | tuple[int, int]  # number, or (vendor, number): as pyrad has it


class Type(Enum):
    """The type of a value, by its name in a dictionary file."""

    TEXT = "string"
    OCTETS = "octets"
    INTEGER = "integer"
    ADDRESS = "ipaddr"
    DATE = "date"


class Use(Flag):
    """In which packets this server sends or understands an attribute. None: it only has a name."""

    REQUEST = auto()  # sent in an Access-Request
    REPLY = auto()  # understood in an Access-Accept or Access-Reject
    ACCOUNTING = auto()  # sent in an Accounting-Request


TEXT, OCTETS, INTEGER, ADDRESS, DATE = Type
NO_USE, REQUEST, REPLY, ACCOUNTING = Use(0), Use.REQUEST, Use.REPLY, Use.ACCOUNTING
BOTH_REQUESTS = REQUEST | ACCOUNTING

CISCO, MICROSOFT, ASCEND, HUAWEI, WISPR, MIKROTIK = 9, 311, 529, 2011, 14122, 14988
VENDORS = {
    CISCO: "Cisco",
    MICROSOFT: "Microsoft",
    ASCEND: "Ascend",
    HUAWEI: "Huawei",
    2636: "Juniper",
    3561: "ADSL-Forum",
    WISPR: "WISPr",
    MIKROTIK: "MikroTik",
}
VENDOR_SPECIFIC = 26


@dataclass(frozen=True, slots=True)
class Attribute:
    """One row of the table."""

    number: int
    name: str
    type: Type = OCTETS
    uses: Use = NO_USE
    _: KW_ONLY
    vendor: int = 0
    tagged: bool = False
    # Sending.
    source: str = ""  # the field of AuthRequest or Usage that is sent
    shift: int = 0  # lower bits of the source that are not sent (Gigawords)
    # Replies. An attribute that is understood and has neither says nothing here, and is not logged as ignored.
    fills: tuple[str, ...] = ()  # fields of AuthReply; for several, the parser returns a tuple of their values
    parse: values.Parser | None = None  # returns None if no value can be used: nothing is filled
    refuse: Callable[[values.Values], str] | None = None  # return why an Access-Accept counts as a refusal, or ""
    effect: str = ""  # for docs/radius.md; consecutive rows with the same effect are one line there
    key: Key = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.vendor, self.number) if self.vendor else self.number)


_RATE_IN = "the rate from the subscriber, in bit/s ([throttling.md](throttling.md)); 0: no limit"
_RATE_OUT = "the rate to the subscriber, likewise"
_DNS_EFFECT = "the subscriber's name servers: the first two, in this order"

ATTRIBUTES = (
    # --- replies, in the order of docs/radius.md; some are sent too
    # RFC 2865 5.6, 5.7, RFC 2868 3.1, RFC 2548 2.4.4
    Attribute(
        6, "Service-Type", INTEGER, BOTH_REQUESTS | REPLY, refuse=service.refuse_service_type,
        effect="only Framed (2): an Accept with any other is a refusal (RFC 2865 5.6)",
    ),
    Attribute(
        7, "Framed-Protocol", INTEGER, BOTH_REQUESTS | REPLY, refuse=service.refuse_framed_protocol,
        effect="only PPP (1), likewise",
    ),
    Attribute(
        64, "Tunnel-Type", INTEGER, BOTH_REQUESTS | REPLY, tagged=True, refuse=service.refuse_tunnel_type,
        effect="L2TP (3) must be one of them (RFC 2868 3.1); other tunnel attributes are ignored",
    ),
    Attribute(
        7, "MS-MPPE-Encryption-Policy", INTEGER, REPLY, vendor=MICROSOFT, refuse=service.refuse_encryption,
        effect="2, encryption required, is a refusal",
    ),
    # RFC 2548 2.3.3, 2.1.5
    Attribute(
        26, "MS-CHAP2-Success", OCTETS, REPLY, vendor=MICROSOFT,
        fills=("proof",), parse=values.first_octets,
        effect="the proof for the subscriber; without it an Accept of MS-CHAPv2 is a refusal",
    ),
    Attribute(
        2, "MS-CHAP-Error", TEXT, REPLY, vendor=MICROSOFT,
        fills=("error",), parse=values.mschap_error,
        effect="its code (`E=`) is sent to the subscriber; there is no second try (`R=0`)",
    ),
    # RFC 2865
    Attribute(
        8, "Framed-IP-Address", ADDRESS, REPLY | ACCOUNTING, source="address",
        fills=("assign", "address"), parse=values.framed_address,
        effect="this address; 255.255.255.254 or 0.0.0.0: one of the pool; 255.255.255.255: the subscriber chooses",
    ),
    Attribute(
        22, "Framed-Route", TEXT, REPLY | ACCOUNTING, source="routes",
        fills=("routes",), parse=values.framed_routes,
        effect="`PREFIX/LENGTH [GATEWAY [METRIC]]`, any number",
    ),
    Attribute(
        12, "Framed-MTU", INTEGER, REQUEST | REPLY, source="mtu",
        fills=("mtu",), parse=values.framed_mtu,
        effect="64 to 65535: maximum length of packets to the subscriber; other values are ignored",
    ),
    Attribute(
        11, "Filter-Id", TEXT, REPLY,
        fills=("filter_ids",), parse=values.all_texts,
        effect="`NAME.in`, `NAME.out` ([filters.md](filters.md))",
    ),
    Attribute(
        27, "Session-Timeout", INTEGER, REPLY | ACCOUNTING, source="session_timeout",
        fills=("session_timeout",), parse=values.first_integer,
        effect="seconds; 0: see `kill_timedout_sessions`",
    ),
    Attribute(
        28, "Idle-Timeout", INTEGER, REPLY | ACCOUNTING, source="idle_timeout",
        fills=("idle_timeout",), parse=values.first_integer,
        effect="seconds without a packet from or to the subscriber; 0: none",
    ),
    Attribute(
        29, "Termination-Action", INTEGER, REPLY,
        fills=("termination_action",), parse=values.first_integer,
        effect="1: a new Access-Request is sent when the Session-Timeout is over; others: the session ends",
    ),
    Attribute(
        85, "Acct-Interim-Interval", INTEGER, REPLY,  # RFC 2869 5.16
        fills=("interim",), parse=values.interim_interval,
        effect="seconds between interim records, at least 60; 0: none, whatever `radius_interim` is",
    ),
    Attribute(
        25, "Class", OCTETS, REPLY | ACCOUNTING, source="classes",
        fills=("classes",), parse=values.all_octets,
        effect="every value is sent back in each record",
    ),
    Attribute(
        24, "State", OCTETS, REQUEST | REPLY, source="state",
        fills=("state",), parse=values.first_octets,
        effect="sent back in the Access-Request after the Session-Timeout",
    ),
    Attribute(
        1, "User-Name", TEXT, BOTH_REQUESTS | REPLY, source="user",
        fills=("user",), parse=values.first_octets,
        effect="the name in accounting",
    ),
    Attribute(
        18, "Reply-Message", TEXT, REPLY,
        fills=("message",), parse=values.joined_octets,
        effect="in the answer of PAP, CHAP or MS-CHAP",
    ),
    Attribute(
        88, "Framed-Pool", TEXT, REPLY,  # RFC 2869 5.18
        fills=("framed_pool",), parse=values.first_text,
        effect="the pool of this name in `l2tpns.ip_pool`; if there is none, the unnamed one, with a warning",
    ),
    # Primary name servers first; a RADIUS server speaks one of these dialects, or the AVPair after them.
    *(
        Attribute(number, name, ADDRESS, REPLY, vendor=vendor, fills=("dns",), parse=values.dns_servers,
                  effect=_DNS_EFFECT)
        for number, name, vendor in (
            (135, "Ascend-Client-Primary-DNS", ASCEND),
            (136, "Ascend-Client-Secondary-DNS", ASCEND),
            (135, "X-Primary-DNS", 0),  # plain numbers that Ascend used before it had a vendor number
            (136, "X-Secondary-DNS", 0),
            (28, "MS-Primary-DNS-Server", MICROSOFT),  # RFC 2548 2.7.1
            (29, "MS-Secondary-DNS-Server", MICROSOFT),
        )
    ),
    Attribute(
        1, "Cisco-AVPair", TEXT, REPLY | ACCOUNTING, vendor=CISCO, source="avpairs",
        fills=("avpairs", "dns", "rates"), parse=rates.cisco_avpairs,
        effect="`ip:dns-servers=A B`: name servers, after those; `ip:addr-pool=NAME`: as Framed-Pool; "
        "`lcp:interface-config#1=rate-limit output 512000 ...`: a rate in bit/s; "
        "others are for plugins: "
        "[throttling.md](throttling.md), [garden.md](garden.md), [interception.md](interception.md)",
    ),
    # Rates, those of the first row that names a direction: see rates.py.
    Attribute(
        8, "Mikrotik-Rate-Limit", TEXT, REPLY, vendor=MIKROTIK,
        fills=("rates",), parse=rates.mikrotik_rate_limit,
        effect="`512k/10M`: from and to the subscriber, in bit/s; bursts and priorities are ignored",
    ),
    *(
        Attribute(number, name, INTEGER, REPLY, vendor=vendor, fills=("rates",), parse=parse(VENDORS[vendor]),
                  effect=effect)
        for vendor, inward, outward in (
            (WISPR, (7, "WISPr-Bandwidth-Max-Up"), (8, "WISPr-Bandwidth-Max-Down")),
            (HUAWEI, (2, "Huawei-Input-Average-Rate"), (5, "Huawei-Output-Average-Rate")),
            (ASCEND, (197, "Ascend-Data-Rate"), (255, "Ascend-Xmit-Rate")),
        )
        for (number, name), parse, effect in (
            (inward, rates.rate_in, _RATE_IN),
            (outward, rates.rate_out, _RATE_OUT),
        )
    ),
    # Allowed in a reply, and without effect here.
    Attribute(33, "Proxy-State", OCTETS, REPLY),
    Attribute(65, "Tunnel-Medium-Type", INTEGER, BOTH_REQUESTS | REPLY, tagged=True),
    Attribute(79, "EAP-Message", OCTETS, REPLY),
    Attribute(80, "Message-Authenticator", OCTETS, REQUEST | REPLY),
    # --- sent only
    # RFC 2865
    Attribute(2, "User-Password", OCTETS, REQUEST),
    Attribute(3, "CHAP-Password", OCTETS, REQUEST),
    Attribute(11, "MS-CHAP-Challenge", OCTETS, REQUEST, vendor=MICROSOFT),
    Attribute(1, "MS-CHAP-Response", OCTETS, REQUEST, vendor=MICROSOFT),
    Attribute(25, "MS-CHAP2-Response", OCTETS, REQUEST, vendor=MICROSOFT),
    Attribute(4, "NAS-IP-Address", ADDRESS, BOTH_REQUESTS),
    Attribute(5, "NAS-Port", INTEGER, BOTH_REQUESTS, source="session_id"),
    Attribute(30, "Called-Station-Id", TEXT, BOTH_REQUESTS, source="called"),
    Attribute(31, "Calling-Station-Id", TEXT, BOTH_REQUESTS, source="calling"),
    Attribute(32, "NAS-Identifier", TEXT, BOTH_REQUESTS),
    Attribute(60, "CHAP-Challenge", OCTETS, REQUEST),
    Attribute(61, "NAS-Port-Type", INTEGER, BOTH_REQUESTS),
    # RFC 2866 5
    Attribute(40, "Acct-Status-Type", INTEGER, ACCOUNTING),
    Attribute(41, "Acct-Delay-Time", INTEGER, ACCOUNTING),
    Attribute(42, "Acct-Input-Octets", INTEGER, ACCOUNTING, source="in_octets"),
    Attribute(43, "Acct-Output-Octets", INTEGER, ACCOUNTING, source="out_octets"),
    Attribute(44, "Acct-Session-Id", TEXT, BOTH_REQUESTS, source="acct_session_id"),
    Attribute(45, "Acct-Authentic", INTEGER, ACCOUNTING),
    Attribute(46, "Acct-Session-Time", INTEGER, ACCOUNTING, source="session_time"),
    Attribute(47, "Acct-Input-Packets", INTEGER, ACCOUNTING, source="in_packets"),
    Attribute(48, "Acct-Output-Packets", INTEGER, ACCOUNTING, source="out_packets"),
    Attribute(49, "Acct-Terminate-Cause", INTEGER, ACCOUNTING, source="terminate_cause"),
    # RFC 2867 4.1, RFC 2868 3
    Attribute(66, "Tunnel-Client-Endpoint", TEXT, BOTH_REQUESTS, tagged=True, source="tunnel_client"),
    Attribute(67, "Tunnel-Server-Endpoint", TEXT, BOTH_REQUESTS, tagged=True, source="tunnel_server"),
    Attribute(68, "Acct-Tunnel-Connection", TEXT, ACCOUNTING, source="tunnel_connection"),
    Attribute(90, "Tunnel-Client-Auth-Id", TEXT, BOTH_REQUESTS, tagged=True, source="tunnel_host"),
    # RFC 2869 5
    Attribute(52, "Acct-Input-Gigawords", INTEGER, ACCOUNTING, source="in_octets", shift=32),
    Attribute(53, "Acct-Output-Gigawords", INTEGER, ACCOUNTING, source="out_octets", shift=32),
    Attribute(55, "Event-Timestamp", DATE, ACCOUNTING),
    Attribute(77, "Connect-Info", TEXT, BOTH_REQUESTS, source="connect_info"),
    Attribute(87, "NAS-Port-Id", TEXT, BOTH_REQUESTS, source="nas_port_id"),
    # --- dynamic authorization: dynamic_packet.py, subscriber/dynamic.py (RFC 5176 3)
    Attribute(89, "Chargeable-User-Identity"),
    Attribute(95, "NAS-IPv6-Address"),
    Attribute(101, "Error-Cause", INTEGER),
    # --- ignored in replies; named in the log
    Attribute(9, "Framed-IP-Netmask"),
    Attribute(10, "Framed-Routing"),
    Attribute(13, "Framed-Compression"),
    Attribute(14, "Login-IP-Host"),
    Attribute(15, "Login-Service"),
    Attribute(16, "Login-TCP-Port"),
    Attribute(19, "Callback-Number"),
    Attribute(20, "Callback-Id"),
    Attribute(23, "Framed-IPX-Network"),
    Attribute(34, "Login-LAT-Service"),
    Attribute(35, "Login-LAT-Node"),
    Attribute(36, "Login-LAT-Group"),
    Attribute(37, "Framed-AppleTalk-Link"),
    Attribute(38, "Framed-AppleTalk-Network"),
    Attribute(39, "Framed-AppleTalk-Zone"),
    Attribute(62, "Port-Limit"),
    Attribute(63, "Login-LAT-Port"),
    Attribute(69, "Tunnel-Password"),
    Attribute(71, "ARAP-Features"),
    Attribute(72, "ARAP-Zone-Access"),
    Attribute(78, "Configuration-Token"),
    Attribute(81, "Tunnel-Private-Group-ID"),
    Attribute(82, "Tunnel-Assignment-ID"),
    Attribute(83, "Tunnel-Preference"),
    Attribute(91, "Tunnel-Server-Auth-ID"),
    Attribute(96, "Framed-Interface-Id"),
    Attribute(97, "Framed-IPv6-Prefix"),
    Attribute(98, "Login-IPv6-Host"),
    Attribute(99, "Framed-IPv6-Route"),
    Attribute(100, "Framed-IPv6-Pool"),
    Attribute(123, "Delegated-IPv6-Prefix"),
    Attribute(168, "Framed-IPv6-Address"),
    Attribute(169, "DNS-Server-IPv6-Address"),
    Attribute(171, "Delegated-IPv6-Prefix-Pool"),
)  # fmt: skip
BY_NAME = {attribute.name: attribute for attribute in ATTRIBUTES}
BY_KEY = {attribute.key: attribute for attribute in ATTRIBUTES}
IN_REPLIES = tuple(attribute for attribute in ATTRIBUTES if attribute.uses & REPLY)


def label(key: Key) -> str:
    """Return the name of an attribute for the log, or its number if the table does not have it."""
    attribute = BY_KEY.get(key)
    if isinstance(key, int):
        return f"{attribute.name if attribute else 'attribute'} ({key})"
    vendor, number = key
    what = f"{attribute.name} ({number})" if attribute else f"attribute {number}"
    return f"{VENDORS.get(vendor, 'vendor')} ({vendor}), {what}"


def dictionary_text() -> str:
    """Return a dictionary file of the attributes that are sent or read, for pyrad."""
    used = [attribute for attribute in ATTRIBUTES if attribute.uses]
    lines = [f"VENDOR {VENDORS[vendor]} {vendor}" for vendor in {each.vendor: None for each in used if each.vendor}]
    for each in used:
        line = f"ATTRIBUTE {each.name} {each.number} {each.type.value}{' has_tag' if each.tagged else ''}"
        vendor = VENDORS.get(each.vendor)
        lines += [f"BEGIN-VENDOR {vendor}", line, f"END-VENDOR {vendor}"] if vendor else [line]
    return "\n".join(lines) + "\n"
