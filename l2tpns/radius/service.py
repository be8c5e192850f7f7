"""Which service an Access-Accept grants, and whether it is available here (RFC 2865 5.6, RFC 2868 3.1).

A subscriber gets PPP through the L2TP tunnel that it came by, without encryption, and nothing else. An Access-Accept
for another service counts as an Access-Reject. Attributes that only describe another service (Login-Service,
Callback-Number, Framed-IPX-Network) refuse nothing: the server that wants that service says so by Service-Type.
"""

from __future__ import annotations

from pyrad.packet import Packet

from l2tpns.radius import packets

FRAMED, PPP = 2, 1
SERVICE_TYPES = {
    1: "Login",
    2: "Framed",
    3: "Callback-Login",
    4: "Callback-Framed",
    5: "Outbound",
    6: "Administrative",
    7: "NAS-Prompt",
    8: "Authenticate-Only",
    9: "Callback-NAS-Prompt",
    10: "Call-Check",
    11: "Callback-Administrative",
    17: "Authorize-Only",  # RFC 5176 3.2
}
FRAMED_PROTOCOLS = {1: "PPP", 2: "SLIP", 3: "ARAP", 4: "Gandalf", 5: "Xylogics IPX/SLIP", 6: "X.75"}
TUNNEL_TYPES = {1: "PPTP", 2: "L2F", 3: "L2TP", 4: "ATMP", 5: "VTP", 6: "AH", 7: "IP-IP", 8: "MIN-IP-IP", 9: "ESP",
                10: "GRE", 11: "DVS", 12: "IP-in-IP"}  # fmt: skip
MPPE_POLICY = (311, 7)  # RFC 2548 2.4.4
ENCRYPTION_REQUIRED = 2


def unavailable(reply: Packet) -> str:
    """Return why the service of this Access-Accept is unavailable here, or an empty string.

    Raises WireError when one of the attributes has an impossible length.
    """
    # Read all of them first: a length that is impossible matters more than what the other attributes say.
    services = list(packets.integers(reply, packets.SERVICE_TYPE))
    framings = list(packets.integers(reply, packets.FRAMED_PROTOCOL))
    tunnels = [number & 0xFFFFFF for number in packets.integers(reply, packets.TUNNEL_TYPE)]  # below the tag
    policies = list(packets.integers(reply, MPPE_POLICY))
    for service in services:
        if service != FRAMED:
            return f"Service-Type {_named(service, SERVICE_TYPES)} is unavailable: only Framed is"
    for framing in framings:
        if framing != PPP:
            return f"Framed-Protocol {_named(framing, FRAMED_PROTOCOLS)} is unavailable: only PPP is"
    # RFC 2868 3.1: a tunnel terminator looks for the protocol in use among them.
    if tunnels and packets.TUNNEL_TYPE_L2TP not in tunnels:
        return f"Tunnel-Type {_named(tunnels[0], TUNNEL_TYPES)} is unavailable: the subscriber came by L2TP"
    if ENCRYPTION_REQUIRED in policies:
        return "MS-MPPE-Encryption-Policy requires encryption, which is unavailable"
    return ""


def _named(number: int, names: dict[int, str]) -> str:
    return f"{names[number]} ({number})" if number in names else str(number)
