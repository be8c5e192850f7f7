"""Attributes of an Access-Accept that nothing here reads, by name: what an operator asks for must not vanish unseen."""

from __future__ import annotations

from collections.abc import Iterator

from pyrad.packet import Packet

from l2tpns.radius.service import MPPE_POLICY

# What parse_reply reads; and Tunnel-Medium-Type (65), Proxy-State (33) and EAP-Message (79), which say nothing to us.
READ = frozenset({1, 6, 7, 8, 11, 12, 18, 22, 24, 25, 27, 28, 29, 33, 64, 65, 79, 80, 85, 88, 135, 136,
                  (9, 1), (311, 28), (311, 29), (529, 135), (529, 136), MPPE_POLICY})  # fmt: skip
VENDOR_SPECIFIC = 26  # left whole when its octets do not add up, which is logged elsewhere

NAMES = {
    9: "Framed-IP-Netmask",
    10: "Framed-Routing",
    13: "Framed-Compression",
    14: "Login-IP-Host",
    15: "Login-Service",
    16: "Login-TCP-Port",
    19: "Callback-Number",
    20: "Callback-Id",
    23: "Framed-IPX-Network",
    34: "Login-LAT-Service",
    35: "Login-LAT-Node",
    36: "Login-LAT-Group",
    37: "Framed-AppleTalk-Link",
    38: "Framed-AppleTalk-Network",
    39: "Framed-AppleTalk-Zone",
    62: "Port-Limit",
    63: "Login-LAT-Port",
    66: "Tunnel-Client-Endpoint",
    67: "Tunnel-Server-Endpoint",
    69: "Tunnel-Password",
    71: "ARAP-Features",
    72: "ARAP-Zone-Access",
    78: "Configuration-Token",
    81: "Tunnel-Private-Group-ID",
    82: "Tunnel-Assignment-ID",
    83: "Tunnel-Preference",
    90: "Tunnel-Client-Auth-ID",
    91: "Tunnel-Server-Auth-ID",
    96: "Framed-Interface-Id",
    97: "Framed-IPv6-Prefix",
    98: "Login-IPv6-Host",
    99: "Framed-IPv6-Route",
    100: "Framed-IPv6-Pool",
    123: "Delegated-IPv6-Prefix",
    168: "Framed-IPv6-Address",
    169: "DNS-Server-IPv6-Address",
    171: "Delegated-IPv6-Prefix-Pool",
}
VENDORS = {9: "Cisco", 311: "Microsoft", 529: "Ascend", 2636: "Juniper", 3561: "ADSL-Forum", 14988: "MikroTik"}


def attributes(reply: Packet) -> Iterator[str]:
    """Yield a name for each kind of attribute that is not supported."""
    for key in dict.keys(reply):
        if key in READ or key == VENDOR_SPECIFIC:
            continue
        if isinstance(key, tuple):
            vendor, number = key
            yield f"{VENDORS.get(vendor, 'vendor')} ({vendor}), attribute {number}"
        else:
            yield f"{NAMES.get(key, 'attribute')} ({key})"
