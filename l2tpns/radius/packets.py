"""The contents of RADIUS requests: values by the names of their attributes, and pyrad's dictionary (RFC 2865 5).

request_packet.py encodes requests, and pyrad what plugins add. Numbers, names and types are in attributes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from io import StringIO
from ipaddress import IPv4Address
from typing import Any

from pyrad.dictionary import Dictionary

from l2tpns.radius.attributes import BY_NAME, Attribute, dictionary_text
from l2tpns.radius.framing import ACCESS_REQUEST, ACCOUNTING_REQUEST, HEAD, MAX_VALUE, VENDOR_HEAD
from l2tpns.radius.request_packet import RequestPacket
from l2tpns.radius.service import FRAMED, PPP, TUNNEL_TYPE_L2TP
from l2tpns.radius.types import PORT_TYPE_VIRTUAL, AuthRequest, Usage

TUNNEL_MEDIUM_IPV4 = 1  # RFC 2868 3.2
# What describes a call, the most useful first.
CALL = ("Calling-Station-Id", "Called-Station-Id", "NAS-Port-Id", "Connect-Info")
TUNNEL = ("Tunnel-Client-Endpoint", "Tunnel-Server-Endpoint", "Tunnel-Client-Auth-Id")
ALL_32 = 0xFFFFFFFF
MAX_TAG = 0x1F  # RFC 2868 3: a first octet up to this is read as a tag, so such a text gets the tag 0

ALWAYS_FITS = MAX_VALUE - (VENDOR_HEAD - HEAD)  # octets of a value, whatever attribute it is

# Encodes a request for one identifier, sent from one local address.
Encoder = Callable[[int, IPv4Address], tuple[RequestPacket, bytes]]


@cache
def load_dictionary() -> Any:
    """Return the table of attributes as pyrad's dictionary."""
    return Dictionary(StringIO(dictionary_text()))


def put_octets(packet: RequestPacket, name: str, value: bytes) -> None:
    """Add one value of raw octets, cut to what an attribute holds. An empty one cannot be sent."""
    if value:
        packet.add(BY_NAME[name].key, value[:MAX_VALUE])


def put_text(packet: RequestPacket, name: str, value: str) -> None:
    """Add one text, cut to what an attribute holds. An empty one cannot be sent."""
    if value:
        attribute = BY_NAME[name]
        octets = value.encode("utf-8", "backslashreplace")
        if len(octets) > ALWAYS_FITS:
            octets = cut(octets, room_for(attribute))
        if attribute.tagged and octets[0] <= MAX_TAG:
            octets = b"\0" + octets
        packet.add(attribute.key, octets)


def put_number(packet: RequestPacket, name: str, value: int) -> None:
    """Add one number, of which 32 bits are sent. A tagged one has no tag."""
    packet.add(BY_NAME[name].key, (value & ALL_32).to_bytes(4, "big"))


def put_address(packet: RequestPacket, name: str, value: IPv4Address) -> None:
    """Add one address."""
    packet.add(BY_NAME[name].key, value.packed)


def room_for(attribute: Attribute) -> int:
    """Return how many octets a text of this attribute may have, besides a vendor's header or a tag (RFC 2868 3)."""
    return MAX_VALUE - (VENDOR_HEAD - HEAD if attribute.vendor else 0) - (1 if attribute.tagged else 0)


def cut(text: bytes, length: int) -> bytes:
    """Return at most `length` octets of UTF-8, in whole characters."""
    return text[:length].decode("utf-8", "ignore").encode()


def put_nas(packet: RequestPacket, address: IPv4Address, identifier: str) -> None:
    """Add what identifies this server (RFC 2865 5.4, RFC 2865 5.32): one would do, some RADIUS servers want both."""
    put_address(packet, "NAS-IP-Address", address)
    put_text(packet, "NAS-Identifier", identifier)


def put_port(packet: RequestPacket, call: AuthRequest | Usage) -> None:
    """Add the port, the service and the session, the same in authentication and accounting."""
    put_field(packet, "NAS-Port", call)
    put_number(packet, "NAS-Port-Type", PORT_TYPE_VIRTUAL)
    put_number(packet, "Service-Type", FRAMED)
    put_number(packet, "Framed-Protocol", PPP)
    put_field(packet, "Acct-Session-Id", call)


def describe_call(call: AuthRequest | Usage) -> Iterator[tuple[str, str | int]]:
    """Yield (attribute, value) for all that describes the call, the most useful first."""
    for name in CALL:
        yield name, getattr(call, BY_NAME[name].source)
    if call.tunnel_client or call.tunnel_server:
        yield "Tunnel-Type", TUNNEL_TYPE_L2TP
        yield "Tunnel-Medium-Type", TUNNEL_MEDIUM_IPV4
        for name in TUNNEL:
            yield name, getattr(call, BY_NAME[name].source)


def put_value(packet: RequestPacket, name: str, value: str | bytes | int | IPv4Address | None) -> None:
    """Add one value by its type: octets as they are, text cut to what the attribute holds; None adds nothing."""
    if isinstance(value, str):
        put_text(packet, name, value)
    elif isinstance(value, int):
        put_number(packet, name, value)
    elif isinstance(value, bytes):
        put_octets(packet, name, value)
    elif value is not None:
        put_address(packet, name, value)


def put_field(packet: RequestPacket, name: str, source: AuthRequest | Usage) -> None:
    """Add an attribute from the field that the table has for it."""
    attribute = BY_NAME[name]
    value = getattr(source, attribute.source)
    put_value(packet, name, value >> attribute.shift if attribute.shift else value)


def put_call(packet: RequestPacket, call: AuthRequest) -> None:
    """Add the port and the call."""
    put_port(packet, call)
    for name, value in describe_call(call):
        put_value(packet, name, value)


def new_access_request(identifier: int, secret: bytes, authenticator: bytes) -> RequestPacket:
    """Return an Access-Request; Message-Authenticator will be its first attribute (RFC 2869 5.14, CVE-2024-3596)."""
    return RequestPacket(ACCESS_REQUEST, identifier, secret, authenticator)


def new_accounting_request(identifier: int, secret: bytes) -> RequestPacket:
    return RequestPacket(ACCOUNTING_REQUEST, identifier, secret)
