"""One RADIUS reply: its attributes as octets (RFC 2865 3, RFC 2865 5). reply.py says what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field

from l2tpns.radius.attributes import VENDOR_SPECIFIC, Key
from l2tpns.radius.framing import HEAD, HEADER, MESSAGE_AUTHENTICATOR, check_framing

VENDOR_ID = 4  # octets, at the beginning of a Vendor-Specific attribute (RFC 2865 5.26)


@dataclass(slots=True)
class ReplyPacket:
    """A well-formed reply, which may still be forged: RequestPacket.verify says."""

    raw: bytes
    code: int
    identifier: int
    attributes: dict[Key, list[bytes]] = field(default_factory=dict)  # values in the order of the packet
    signature_at: int = 0  # where the value of the Message-Authenticator begins; 0 without one

    @property
    def signed(self) -> bool:
        return bool(self.signature_at)

    def values(self, key: Key) -> list[bytes]:
        """Return all values of an attribute, in order."""
        return self.attributes.get(key, [])


def decode_reply(datagram: bytes) -> ReplyPacket:
    """Return a reply, whose authenticators are not verified yet. Raises WireError."""
    raw = check_framing(datagram)
    reply = ReplyPacket(raw, raw[0], raw[1])
    attributes, at = reply.attributes, HEADER.size
    while at < len(raw):
        number, end = raw[at], at + raw[at + 1]
        value = raw[at + HEAD : end]
        if number == VENDOR_SPECIFIC:
            for key, inner in split_vendor(value):
                attributes.setdefault(key, []).append(inner)
        else:
            attributes.setdefault(number, []).append(value)
            if number == MESSAGE_AUTHENTICATOR:
                reply.signature_at = at + HEAD
        at = end
    return reply


def split_vendor(value: bytes) -> list[tuple[Key, bytes]]:
    """Return the sub-attributes of a Vendor-Specific attribute; the whole one if they do not add up (RFC 2865 5.26)."""
    found: list[tuple[Key, bytes]] = []
    vendor, at = int.from_bytes(value[:VENDOR_ID], "big"), VENDOR_ID
    while at + HEAD <= len(value) and value[at + 1] >= HEAD:
        end = at + value[at + 1]
        found.append(((vendor, value[at]), value[at + HEAD : end]))
        at = end
    return found if found and at == len(value) else [(VENDOR_SPECIFIC, value)]
