"""A session's usage in its two written forms: JSON in the spool, attributes in an Accounting-Request.

RFC 2866 5, with gigawords (RFC 2869 5.1) and tunnels (RFC 2867 4).
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import orjson
from pyrad.packet import Packet

from l2tpns.radius import packets
from l2tpns.radius.attributes import BY_NAME
from l2tpns.radius.framing import MAX_ATTRIBUTES
from l2tpns.radius.packets import ALL_32
from l2tpns.radius.request_packet import RequestPacket
from l2tpns.radius.settings import RadiusSettings
from l2tpns.radius.types import FramedRoute, Usage
from l2tpns.runtime import json_text

START, STOP, INTERIM, ON, OFF = "start", "stop", "interim", "on", "off"
STATUS = {START: 1, STOP: 2, INTERIM: 3, ON: 7, OFF: 8}  # RFC 2866 5.1
BY_RADIUS, BY_US = 1, 2  # Acct-Authentic, RFC 2866 5.6
ROUTE = "Framed-Route"
ALL_FITS: Counter[str] = Counter()  # what is left out of a record, mostly
LEASE = ("Framed-IP-Address", "Session-Timeout", "Idle-Timeout")
# RFC 2866 5.3 to 5.8; the upper 32 bits of the octets are gigawords (RFC 2869 5.1, RFC 2869 5.2).
COUNTED = ("Acct-Input-Octets", "Acct-Output-Octets", "Acct-Input-Gigawords", "Acct-Output-Gigawords",
           "Acct-Input-Packets", "Acct-Output-Packets", "Acct-Session-Time")  # fmt: skip

NAMES = tuple(field.name for field in dataclasses.fields(Usage))
# What only grows while a session lives.
COUNTERS = ("in_octets", "in_packets", "out_octets", "out_packets", "session_time")


class SessionIds:
    """Acct-Session-Ids, sixteen hexadecimal digits: the second of the login, and a count that begins at random.

    They are unique, over restarts too (RFC 2866 5.5): within one process by the count, between two processes by the
    second, and within the second of a restart by the random beginning.
    """

    def __init__(self, random: Callable[[int], bytes] = os.urandom, clock: Callable[[], float] = time.time) -> None:
        self._count = int.from_bytes(random(4), "big")
        self._clock = clock

    def new(self) -> str:
        self._count = (self._count + 1) & ALL_32
        return f"{int(self._clock()) & ALL_32:08X}{self._count:08X}"


def dump_usage(usage: Usage) -> bytes:
    """Return a usage as JSON, with octets as latin-1, which loses none of them."""
    facts: dict[str, Any] = {name: getattr(usage, name) for name in NAMES}
    facts["user"] = usage.user.decode("latin-1")
    facts["classes"] = [value.decode("latin-1") for value in usage.classes]
    facts["address"] = str(usage.address) if usage.address else None
    facts["routes"] = [
        [str(route.prefix), str(route.gateway) if route.gateway else None, route.metric] for route in usage.routes
    ]
    return json_text.dump(facts)


def load_usage(body: bytes) -> Usage:
    """Return what dump_usage wrote, perhaps in another release: unknown fields are left out, missing have defaults.

    Raises ValueError when it is not a usage.
    """
    try:
        facts = {name: value for name, value in orjson.loads(body).items() if name in NAMES}
        facts["user"] = facts["user"].encode("latin-1")
        facts["classes"] = tuple(value.encode("latin-1") for value in facts.get("classes", ()))
        facts["address"] = IPv4Address(facts["address"]) if facts.get("address") else None
        facts["avpairs"] = tuple(facts.get("avpairs", ()))
        facts["attributes"] = tuple((name, value) for name, value in facts.get("attributes", ()))
        facts["routes"] = tuple(
            FramedRoute(IPv4Network(prefix), IPv4Address(gateway) if gateway else None, metric)
            for prefix, gateway, metric in facts.get("routes", ())
        )
        return Usage(**facts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"unreadable usage: {error!r:.200}") from error


def unusable(kind: str, session: str, body: bytes) -> str:
    """Return why no record can be made of what the spool has, or an empty string."""
    if kind not in (START, STOP, INTERIM):
        return f"{kind!r} is not a kind of record"
    try:
        usage = load_usage(body)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    for field in dataclasses.fields(Usage):
        value = getattr(usage, field.name)
        number = isinstance(value, int) and 0 <= value < 1 << 64
        kinds = {"int": number, "int | None": value is None or number, "str": isinstance(value, str)}
        if not kinds.get(str(field.type), True):
            return f"{field.name}: {str(value)[:60]!r} is out of range"
    return "" if usage.acct_session_id == session else "it is of another session"


def never_less(usage: Usage, earlier: Usage) -> Usage:
    """Return the usage with no counter below what was reported earlier: a server never sees one decrease."""
    lost = {name: getattr(earlier, name) for name in COUNTERS if getattr(earlier, name) > getattr(usage, name)}
    return dataclasses.replace(usage, **lost) if lost else usage


def fill_accounting_request(
    packet: RequestPacket,
    kind: str,
    usage: Usage | None,
    settings: RadiusSettings,
    local: IPv4Address,
    *,
    happened: float,
    now: float,
) -> Counter[str]:
    """Add all attributes; usage is None for Accounting-On and -Off, which concern the whole server.

    Return the names of those that are left out, because a packet has at most 4096 octets (RFC 2866 3).
    """
    put_event(packet, kind, settings, local, happened, now)
    if usage is None:
        # RFC 2866 5.13 does not require it, but servers do: a name for this event.
        packets.put_text(packet, "Acct-Session-Id", f"{int(happened) & ALL_32:08X}00000000")
        return ALL_FITS
    put_bill(packet, kind, usage)
    for put, name, value in details(usage):
        try:
            put(packet, name, value)
        except ValueError:
            pass  # a plugin added it under another release, which accepted it
    if packet.octets <= MAX_ATTRIBUTES:
        return ALL_FITS
    packet.clear()
    put_event(packet, kind, settings, local, happened, now)
    put_bill(packet, kind, usage)
    return add_what_fits(packet, usage)


def put_event(
    packet: RequestPacket, kind: str, settings: RadiusSettings, local: IPv4Address, happened: float, now: float
) -> None:
    """Add what has happened, where and when."""
    packets.put_number(packet, "Acct-Status-Type", STATUS[kind])
    packets.put_nas(packet, settings.nas_address or local, settings.nas_identifier)
    packets.put_number(packet, "Event-Timestamp", int(happened))
    # RFC 2866 5.2: how long the record has waited. A packet that is sent again unchanged keeps its identifier.
    packets.put_number(packet, "Acct-Delay-Time", max(0, min(ALL_32, int(now - happened))))


def add_what_fits(packet: RequestPacket, usage: Usage) -> Counter[str]:
    """Add each detail that the packet still has room for; routes only if nothing else was left out.

    Return the names of the others.
    """
    left_out: Counter[str] = Counter()
    for put, name, value in details(usage):
        alone = packets.new_accounting_request(0, b"")
        with suppress(ValueError):
            put(alone, name, value)
        no_room = packet.octets + alone.octets > MAX_ATTRIBUTES
        if no_room or (name == ROUTE and left_out.total() > left_out[ROUTE]):
            left_out[name] += 1
            continue
        for key, found in alone.attributes.items():
            for octets in found:
                packet.add(key, octets)
    return left_out


def put_bill(packet: RequestPacket, kind: str, usage: Usage) -> None:
    """Add what every record has: the user, the session, and how much was used. A few hundred octets."""
    packets.put_field(packet, "User-Name", usage)
    packets.put_number(packet, "Acct-Authentic", BY_RADIUS if usage.by_radius else BY_US)
    packets.put_port(packet, usage)
    for name in LEASE if kind == START else (*LEASE, *COUNTED):
        packets.put_field(packet, name, usage)
    if kind == STOP and usage.terminate_cause:
        packets.put_field(packet, "Acct-Terminate-Cause", usage)


def details(usage: Usage) -> Iterator[tuple[Callable[[RequestPacket, str, Any], None], str, Any]]:
    """Yield what may be left out of a record that is too long, what matters most to billing first."""
    put = packets.put_value
    for value in usage.classes:
        yield put, "Class", value
    yield put, "Acct-Tunnel-Connection", usage.tunnel_connection
    for name, fact in packets.describe_call(usage):
        yield put, name, fact
    for pair in usage.avpairs:
        yield put, "Cisco-AVPair", pair
    for name, added in usage.attributes:
        yield put_attribute, name, added
    for route in usage.routes:
        yield put, ROUTE, route_text(route)


def put_attribute(packet: RequestPacket, name: str, value: str | int) -> None:
    """Add one attribute by its name in the dictionary. Raises ValueError if it is unknown or cannot have this value."""
    attribute, dictionary = BY_NAME.get(name), packets.load_dictionary()
    if attribute is None or name not in dictionary:
        raise ValueError(f"the dictionary has no attribute {name}")
    octets = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""
    if len(octets) > packets.room_for(attribute):
        raise ValueError(f"{name} has {len(octets)} octets, which is more than an attribute holds")
    alone = Packet(id=0, dict=dictionary)
    try:
        alone.AddAttribute(name, value)
    except Exception as error:  # pyrad's, of many kinds
        raise ValueError(f"{name} cannot be {value!r:.60}: {error}") from error
    for octets in dict.get(alone, attribute.key, []):
        packet.add(attribute.key, octets)


def sample(kind: str, usage: Usage) -> RequestPacket:
    """Return a record that is not sent, to try attributes of plugins on."""
    packet = packets.new_accounting_request(0, b"-")
    fill_accounting_request(packet, kind, usage, RadiusSettings(), IPv4Address(0), happened=0.0, now=0.0)
    return packet


def route_text(route: FramedRoute) -> str:
    return f"{route.prefix} {route.gateway or '0.0.0.0'} {route.metric}"
