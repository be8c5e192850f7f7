"""RADIUS packets in pyrad's codec: the dictionary, strict framing, values in and out (RFC 2865 3, RFC 2865 5).

pyrad accepts an attribute that ends beyond its packet and reads octets that begin with "0x" as hexadecimal, so framing
is checked here and octets are passed to it raw, under their number. Numbers, names and types are in attributes.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import cache
from io import StringIO
from ipaddress import IPv4Address
from typing import Any

from pyrad.dictionary import Dictionary
from pyrad.packet import AcctPacket, AuthPacket, Packet, PacketError

from l2tpns.errors import WireError
from l2tpns.radius.attributes import BY_NAME, Key, dictionary_text
from l2tpns.radius.service import FRAMED, PPP, TUNNEL_TYPE_L2TP
from l2tpns.radius.types import PORT_TYPE_VIRTUAL, AuthRequest, Usage

ACCESS_REQUEST, ACCESS_ACCEPT, ACCESS_REJECT, ACCOUNTING_REQUEST, ACCOUNTING_RESPONSE = 1, 2, 3, 4, 5
ACCESS_CHALLENGE = 11

MESSAGE_AUTHENTICATOR = BY_NAME["Message-Authenticator"].number
TUNNEL_MEDIUM_IPV4 = 1  # RFC 2868 3.2
# What describes a call, the most useful first.
CALL = ("Calling-Station-Id", "Called-Station-Id", "NAS-Port-Id", "Connect-Info")
TUNNEL = ("Tunnel-Client-Endpoint", "Tunnel-Server-Endpoint", "Tunnel-Client-Auth-Id")
ALL_32 = 0xFFFFFFFF

HEADER = struct.Struct("!BBH16s")
MAX_PACKET = 4096  # RFC 2865 3
MAX_ATTRIBUTES = MAX_PACKET - HEADER.size  # octets of all attributes of a packet
MAX_VALUE = 253
HEAD, VENDOR_HEAD = 2, 8  # octets of an attribute before its value (RFC 2865 5 and 5.26)
ALWAYS_FITS = MAX_VALUE - (VENDOR_HEAD - HEAD)  # octets of a value, whatever attribute it is

# Encodes a request for one identifier, sent from one local address.
Encoder = Callable[[int, IPv4Address], tuple[Packet, bytes]]


@cache
def load_dictionary() -> Any:
    """Return the table of attributes as pyrad's dictionary."""
    return Dictionary(StringIO(dictionary_text()))


def check_framing(datagram: bytes) -> bytes:
    """Return the packet without padding. Raises WireError (RFC 2865 3; RFC 2865 5 for each attribute's Length)."""
    if len(datagram) < HEADER.size:
        raise WireError(f"RADIUS packet of {len(datagram)} octets")
    length = int.from_bytes(datagram[2:4], "big")
    if not HEADER.size <= length <= MAX_PACKET or length > len(datagram):
        raise WireError(f"RADIUS Length {length} in a datagram of {len(datagram)} octets")
    at = HEADER.size
    authenticators = 0
    while at < length:
        if at + 2 > length or datagram[at + 1] < 2 or at + datagram[at + 1] > length:
            raise WireError(f"RADIUS attribute at octet {at} does not fit")
        if datagram[at] == MESSAGE_AUTHENTICATOR:
            authenticators += 1
            if datagram[at + 1] != 18 or authenticators > 1:
                raise WireError("malformed Message-Authenticator")
        at += datagram[at + 1]
    return datagram[:length]


def decode_reply(request: Packet, datagram: bytes, dictionary: Any) -> Packet:
    """Return a reply's packet, whose authenticators are not verified yet. Raises WireError."""
    raw = check_framing(datagram)
    try:
        return Packet(secret=request.secret, dict=dictionary, packet=raw)
    except PacketError as error:
        raise WireError(str(error)) from error


def values(packet: Packet, key: Key) -> list[bytes]:
    """Return all raw values of an attribute, in order."""
    found: list[bytes] = packet.get(key, [])
    return found


def put_octets(packet: Packet, name: str, value: bytes) -> None:
    """Add one value of raw octets, cut to what an attribute holds. An empty one cannot be sent."""
    if value:
        key = BY_NAME[name].key
        packet[key] = [*values(packet, key), value[:MAX_VALUE]]


def put_text(packet: Packet, name: str, value: str) -> None:
    """Add one text, cut to what an attribute holds. An empty one cannot be sent."""
    if value:
        octets = value.encode("utf-8", "backslashreplace")
        if len(octets) > ALWAYS_FITS:
            octets = cut(octets, room_in(packet, name))
        packet.AddAttribute(name, octets)


def room_in(packet: Packet, name: str) -> int:
    """Return how many octets a text of this attribute may have, besides a vendor's header or a tag (RFC 2868 3)."""
    attribute = packet.dict.attributes[name]
    return MAX_VALUE - (VENDOR_HEAD - HEAD if attribute.vendor else 0) - (1 if attribute.has_tag else 0)


def cut(text: bytes, length: int) -> bytes:
    """Return at most `length` octets of UTF-8, in whole characters."""
    return text[:length].decode("utf-8", "ignore").encode()


def attribute_octets(packet: Packet) -> int:
    """Return how many octets the attributes of a packet will have."""
    return sum(
        (VENDOR_HEAD if isinstance(key, tuple) else HEAD) + len(value)
        for key, found in dict.items(packet)
        for value in found
    )


def put_nas(packet: Packet, address: IPv4Address, identifier: str) -> None:
    """Add what identifies this server (RFC 2865 5.4, RFC 2865 5.32): one would do, some RADIUS servers want both."""
    packet["NAS-IP-Address"] = str(address)
    put_text(packet, "NAS-Identifier", identifier)


def put_port(packet: Packet, call: AuthRequest | Usage) -> None:
    """Add the port, the service and the session, the same in authentication and accounting."""
    put_field(packet, "NAS-Port", call)
    packet["NAS-Port-Type"] = PORT_TYPE_VIRTUAL
    packet["Service-Type"] = FRAMED
    packet["Framed-Protocol"] = PPP
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


def put_value(packet: Packet, name: str, value: str | bytes | int | IPv4Address | None) -> None:
    """Add one value by its type: octets as they are, text cut to what the attribute holds; None adds nothing."""
    if isinstance(value, bytes):
        put_octets(packet, name, value)
    elif isinstance(value, str):
        put_text(packet, name, value)
    elif isinstance(value, int):
        packet[name] = value & ALL_32
    elif value is not None:
        packet[name] = str(value)


def put_field(packet: Packet, name: str, source: AuthRequest | Usage) -> None:
    """Add an attribute from the field that the table has for it."""
    attribute = BY_NAME[name]
    value = getattr(source, attribute.source)
    put_value(packet, name, value >> attribute.shift if attribute.shift else value)


def put_call(packet: Packet, call: AuthRequest) -> None:
    """Add the port and the call."""
    put_port(packet, call)
    for name, value in describe_call(call):
        put_value(packet, name, value)


def new_access_request(identifier: int, secret: bytes, authenticator: bytes, dictionary: Any) -> AuthPacket:
    """Return an Access-Request whose first attribute is Message-Authenticator (RFC 2869 5.14, CVE-2024-3596)."""
    packet = AuthPacket(id=identifier, secret=secret, authenticator=authenticator, dict=dictionary)
    packet.add_message_authenticator()
    return packet


def new_accounting_request(identifier: int, secret: bytes, dictionary: Any) -> AcctPacket:
    return AcctPacket(id=identifier, secret=secret, dict=dictionary)
