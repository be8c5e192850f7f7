"""Parse the attributes of a packet from a RADIUS server, by the table in attributes.py (RFC 2865 5, RFC 5176 3.2).

An Access-Accept, an Access-Reject and a CoA-Request carry the same attributes and have the same parser.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from l2tpns.radius.attribute_values import Values
from l2tpns.radius.attributes import BY_KEY, IN_REPLIES, REPLY, VENDOR_SPECIFIC, label
from l2tpns.radius.framing import ACCESS_ACCEPT
from l2tpns.radius.reply_packet import ReplyPacket
from l2tpns.radius.types import AuthReply
from l2tpns.runtime.log import Logger

NO_SERVICE = b"service unavailable"  # shown to the subscriber; an Accept's own message would be a greeting
READ_VENDORS = frozenset(attribute.vendor for attribute in IN_REPLIES)


def parse_reply(reply: ReplyPacket, log: Logger) -> AuthReply:
    """Return the verdict. Raises WireError when an attribute that is used has an impossible length.

    An Access-Accept for a service that is unavailable here is a refusal with the attributes of the Accept, as an
    Access-Reject is with its own.
    """
    accepted = reply.code == ACCESS_ACCEPT
    why = unavailable_service(reply, log) if accepted else ""
    fields = parse_attributes(reply, log)
    if why:
        fields["message"] = NO_SERVICE
    return AuthReply(accepted=accepted and not why, why=why, **fields)


def parse_attributes(packet: ReplyPacket, log: Logger) -> dict[str, Any]:
    """Return the fields of AuthReply that the packet's attributes fill; without those that it does not mention.

    Raises WireError when an attribute that is used has an impossible length.
    """
    fields: dict[str, Any] = {}
    for attribute in IN_REPLIES:
        octets = packet.values(attribute.key)
        parsed = attribute.parse(Values(attribute.name, octets, log)) if attribute.parse and octets else None
        if parsed is None:
            continue
        for name, value in zip(attribute.fills, parsed if len(attribute.fills) > 1 else (parsed,), strict=True):
            if name in fields:  # several attributes fill it: each value once, in the order of the table
                value = tuple(dict.fromkeys((*fields[name], *value)))
            fields[name] = value
    log_malformed_vendors(packet, log)
    return fields


def unavailable_service(accept: ReplyPacket, log: Logger) -> str:
    """Return why the service of this Access-Accept is unavailable here, or an empty string. Raises WireError."""
    # All are read first: an impossible length matters more than what the other attributes say.
    reasons = [
        attribute.refuse(Values(attribute.name, octets, log))
        for attribute in IN_REPLIES
        if attribute.refuse and (octets := accept.values(attribute.key))
    ]
    return next(filter(None, reasons), "")


def ignored_attributes(packet: ReplyPacket) -> Iterator[str]:
    """Yield a name for each kind of attribute that is ignored, for the log."""
    for key in packet.attributes:
        attribute = BY_KEY.get(key)
        if key != VENDOR_SPECIFIC and not (attribute and attribute.uses & REPLY):
            yield label(key)


def log_malformed_vendors(packet: ReplyPacket, log: Logger) -> None:
    """Log sub-attributes that do not add up and may be of a vendor in the table; they are left out (RFC 2865 5.26)."""
    for value in packet.values(VENDOR_SPECIFIC):
        if len(value) < 4 or int.from_bytes(value[:4], "big") in READ_VENDORS:
            log.warning("vendor_attribute_malformed", octets=len(value))
