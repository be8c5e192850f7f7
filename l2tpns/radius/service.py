"""Which service an Access-Accept grants, and whether it is available here (RFC 2865 5.6, RFC 2868 3.1).

A subscriber gets PPP through the L2TP tunnel that it came by, without encryption, and no other service. An
Access-Accept for another service counts as an Access-Reject. Attributes that only describe another service
(Login-Service, Callback-Number, Framed-IPX-Network) refuse nothing: the server that wants that service says so by
Service-Type.

Each function takes all values of one attribute and returns why the service is unavailable, or an empty string. They
raise WireError when a value has an impossible length.
"""

from __future__ import annotations

from l2tpns.radius.attribute_values import Values

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
TUNNEL_TYPE_L2TP = 3  # RFC 2868 3.1
TUNNEL_TYPES = {1: "PPTP", 2: "L2F", 3: "L2TP", 4: "ATMP", 5: "VTP", 6: "AH", 7: "IP-IP", 8: "MIN-IP-IP", 9: "ESP",
                10: "GRE", 11: "DVS", 12: "IP-in-IP"}  # fmt: skip
ENCRYPTION_REQUIRED = 2  # RFC 2548 2.4.4


def refuse_service_type(values: Values) -> str:
    others = [number for number in values.integers() if number != FRAMED]
    return f"Service-Type {_named(others[0], SERVICE_TYPES)} is unavailable: only Framed is" if others else ""


def refuse_framed_protocol(values: Values) -> str:
    others = [number for number in values.integers() if number != PPP]
    return f"Framed-Protocol {_named(others[0], FRAMED_PROTOCOLS)} is unavailable: only PPP is" if others else ""


def refuse_tunnel_type(values: Values) -> str:
    """RFC 2868 3.1: a tunnel terminator looks for the protocol in use among all values."""
    tunnels = [number & 0xFFFFFF for number in values.integers()]  # below the tag
    if TUNNEL_TYPE_L2TP in tunnels:
        return ""
    return f"Tunnel-Type {_named(tunnels[0], TUNNEL_TYPES)} is unavailable: the subscriber came by L2TP"


def refuse_encryption(values: Values) -> str:
    required = ENCRYPTION_REQUIRED in list(values.integers())
    return "MS-MPPE-Encryption-Policy requires encryption, which is unavailable" if required else ""


def _named(number: int, names: dict[int, str]) -> str:
    return f"{names[number]} ({number})" if number in names else str(number)
