"""RADIUS packets in pyrad's codec: our dictionary, strict framing, values in and out (RFC 2865 sections 3 and 5).

pyrad forgives an attribute that ends beyond its packet and reads octets that begin with "0x" as hexadecimal, so
framing is checked here and octets are given to it raw, under their number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from ipaddress import IPv4Address
from typing import Any

from pyrad.dictionary import Dictionary
from pyrad.packet import AcctPacket, AuthPacket, Packet, PacketError

from l2tpns.errors import WireError
from l2tpns.radius.types import PORT_TYPE_VIRTUAL, AuthRequest, Usage

ACCESS_REQUEST, ACCESS_ACCEPT, ACCESS_REJECT, ACCOUNTING_REQUEST, ACCOUNTING_RESPONSE = 1, 2, 3, 4, 5
ACCESS_CHALLENGE = 11

USER_NAME, USER_PASSWORD, CHAP_PASSWORD, FRAMED_IP_ADDRESS, FILTER_ID, FRAMED_MTU = 1, 2, 3, 8, 11, 12
SERVICE_TYPE, FRAMED_PROTOCOL, TUNNEL_TYPE = 6, 7, 64
REPLY_MESSAGE, FRAMED_ROUTE, STATE, CLASS, VENDOR_SPECIFIC = 18, 22, 24, 25, 26
SESSION_TIMEOUT, IDLE_TIMEOUT, TERMINATION_ACTION, CHAP_CHALLENGE = 27, 28, 29, 60
MESSAGE_AUTHENTICATOR, ACCT_INTERIM_INTERVAL, FRAMED_POOL = 80, 85, 88

TUNNEL_TYPE_L2TP = 3  # RFC 2868 3.1
TUNNEL_MEDIUM_IPV4 = 1  # RFC 2868 3.2

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
    """pyrad's view of the dictionary file beside this module."""
    with resources.files("l2tpns.radius").joinpath("dictionary").open("r", encoding="ascii") as file:
        return Dictionary(file)


def check_framing(datagram: bytes) -> bytes:
    """The packet without padding, or WireError (RFC 2865 section 3, and section 5 for each attribute's Length)."""
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
    """A reply's packet, not verified yet; WireError when it is none."""
    raw = check_framing(datagram)
    try:
        return Packet(secret=request.secret, dict=dictionary, packet=raw)
    except PacketError as error:
        raise WireError(str(error)) from error


def values(packet: Packet, key: int | tuple[int, int]) -> list[bytes]:
    """All raw values of an attribute, or of (vendor, sub-attribute), in order."""
    found: list[bytes] = packet.get(key, [])
    return found


def integers(packet: Packet, key: int | tuple[int, int]) -> Iterator[int]:
    """RFC 2865 5: a value of the wrong length makes the whole packet invalid."""
    for value in values(packet, key):
        if len(value) != 4:
            raise WireError(f"RADIUS attribute {key} of {len(value)} octets where 4 are due")
        yield int.from_bytes(value, "big")


def integer(packet: Packet, key: int | tuple[int, int]) -> int | None:
    return next(integers(packet, key), None)


def addresses(packet: Packet, key: int | tuple[int, int]) -> Iterator[IPv4Address]:
    return (IPv4Address(number) for number in integers(packet, key))


def text(value: bytes) -> str:
    """Text as people may read it: whatever octets came, no NUL at the end."""
    return value.rstrip(b"\0").decode("utf-8", "backslashreplace")


def put_octets(packet: Packet, number: int, *octets: bytes) -> None:
    """Raw octets, which pyrad would take for hexadecimal when they begin with 0x; empty ones cannot be sent."""
    kept = [value[:MAX_VALUE] for value in octets if value]
    if kept:
        packet[number] = kept


def put_text(packet: Packet, name: str, *texts: str) -> None:
    """Descriptive text, cut to what an attribute holds."""
    for value in texts:
        if value:
            octets = value.encode("utf-8", "backslashreplace")
            if len(octets) > ALWAYS_FITS:
                octets = cut(octets, room_in(packet, name))
            packet.AddAttribute(name, octets)


def room_in(packet: Packet, name: str) -> int:
    """Return how many octets a text of this attribute may have: a vendor's head or a tag take some (RFC 2868 3)."""
    attribute = packet.dict.attributes[name]
    return MAX_VALUE - (VENDOR_HEAD - HEAD if attribute.vendor else 0) - (1 if attribute.has_tag else 0)


def cut(text: bytes, length: int) -> bytes:
    """Return at most so many octets of UTF-8, and no part of a character."""
    return text[:length].decode("utf-8", "ignore").encode()


def attribute_octets(packet: Packet) -> int:
    """Return how many octets the attributes of a packet will have."""
    return sum(
        (VENDOR_HEAD if isinstance(key, tuple) else HEAD) + len(value)
        for key, found in dict.items(packet)
        for value in found
    )


def put_nas(packet: Packet, address: IPv4Address, identifier: str) -> None:
    """Who asks (RFC 2865 5.4, 5.32): either would do, servers like both."""
    packet["NAS-IP-Address"] = str(address)
    put_text(packet, "NAS-Identifier", identifier)


def put_port(packet: Packet, call: AuthRequest | Usage) -> None:
    """The port, the service and the session, the same in authentication and accounting."""
    packet["NAS-Port"] = call.session_id & 0xFFFFFFFF
    packet["NAS-Port-Type"] = PORT_TYPE_VIRTUAL
    packet["Service-Type"] = 2  # Framed
    packet["Framed-Protocol"] = 1  # PPP
    put_text(packet, "Acct-Session-Id", call.acct_session_id)


def describe_call(call: AuthRequest | Usage) -> Iterator[tuple[str, str | int]]:
    """Yield what describes the call, the most useful first (RFC 2865, RFC 2868, RFC 2869)."""
    yield "Calling-Station-Id", call.calling
    yield "Called-Station-Id", call.called
    yield "NAS-Port-Id", call.nas_port_id
    yield "Connect-Info", call.connect_info
    if call.tunnel_client or call.tunnel_server:
        yield "Tunnel-Type", TUNNEL_TYPE_L2TP
        yield "Tunnel-Medium-Type", TUNNEL_MEDIUM_IPV4
        yield "Tunnel-Client-Endpoint", call.tunnel_client
        yield "Tunnel-Server-Endpoint", call.tunnel_server
        yield "Tunnel-Client-Auth-Id", call.tunnel_host


def put_detail(packet: Packet, name: str, value: str | bytes | int) -> None:
    """One more attribute: octets as they are, text cut to what it holds."""
    if isinstance(value, bytes):
        number = packet.dict.attributes[name].code
        put_octets(packet, number, *values(packet, number), value)
    elif isinstance(value, str):
        put_text(packet, name, value)
    else:
        packet[name] = value


def put_call(packet: Packet, call: AuthRequest) -> None:
    """The port and the call."""
    put_port(packet, call)
    for name, value in describe_call(call):
        put_detail(packet, name, value)


def new_access_request(identifier: int, secret: bytes, authenticator: bytes, dictionary: Any) -> AuthPacket:
    """An Access-Request whose first attribute is Message-Authenticator (RFC 2869 5.14, CVE-2024-3596)."""
    packet = AuthPacket(id=identifier, secret=secret, authenticator=authenticator, dict=dictionary)
    packet.add_message_authenticator()
    return packet


def new_accounting_request(identifier: int, secret: bytes, dictionary: Any) -> AcctPacket:
    return AcctPacket(id=identifier, secret=secret, dict=dictionary)
