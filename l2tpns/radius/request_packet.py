"""One RADIUS request: its attributes as octets, its encoding and signature, and the check of its reply (RFC 2865 3).

Every login sends two requests, so they are encoded here and not by pyrad, which takes seven times as long for the same
octets. pyrad encodes the attributes that plugins add.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import md5

from l2tpns.radius.attributes import BY_NAME, VENDOR_SPECIFIC, Key
from l2tpns.radius.framing import ACCESS_REQUEST, HEAD, HEADER, MESSAGE_AUTHENTICATOR, SIGNATURE, VENDOR_HEAD
from l2tpns.radius.reply_packet import ReplyPacket

PROXY_STATE = BY_NAME["Proxy-State"].number
VENDOR = struct.Struct("!BBIBB")  # 26, length, vendor; number, length
ZEROS = bytes(SIGNATURE)
# RFC 2869 5.14. It is the first attribute (CVE-2024-3596), and is signed as if its value were zeros.
UNSIGNED = bytes((MESSAGE_AUTHENTICATOR, HEAD + len(ZEROS))) + ZEROS
BLOCK = 16  # octets of a password that are hidden together (RFC 2865 5.2)


class RequestPacket:
    """An Access-Request or an Accounting-Request. `attributes` has raw values by key, in the order of sending."""

    __slots__ = ("attributes", "authenticator", "code", "identifier", "octets", "secret")

    def __init__(self, code: int, identifier: int, secret: bytes, authenticator: bytes = ZEROS) -> None:
        """`authenticator` is random in an Access-Request; in an Accounting-Request it follows from the attributes."""
        self.code = code
        self.identifier = identifier
        self.secret = secret
        self.authenticator = authenticator
        self.clear()

    def __contains__(self, name: str) -> bool:
        """Return True if the packet has an attribute of this name."""
        return name in BY_NAME and BY_NAME[name].key in self.attributes

    def clear(self) -> None:
        """Remove all attributes."""
        self.attributes: dict[Key, list[bytes]] = {}
        self.octets = 0  # of all attributes, without a Message-Authenticator

    def add(self, key: Key, value: bytes) -> None:
        """Add one value to those of this attribute."""
        self.octets += (VENDOR_HEAD if type(key) is tuple else HEAD) + len(value)
        values = self.attributes.get(key)
        if values is None:
            self.attributes[key] = [value]
        else:
            values.append(value)

    def hide(self, password: bytes) -> bytes:
        """Return a password as User-Password carries it (RFC 2865 5.2)."""
        padded = password.ljust(max(1, -(-len(password) // BLOCK)) * BLOCK, b"\0")
        hidden, last = b"", self.authenticator
        for at in range(0, len(padded), BLOCK):
            key = int.from_bytes(md5(self.secret + last, usedforsecurity=False).digest(), "big")
            last = (key ^ int.from_bytes(padded[at : at + BLOCK], "big")).to_bytes(BLOCK, "big")
            hidden += last
        return hidden

    def encode(self) -> bytes:
        """Return the datagram, and sign it: by a Message-Authenticator, or by the authenticator (RFC 2866 3)."""
        body = encode_attributes(self.attributes)
        if self.code == ACCESS_REQUEST:
            head = HEADER.pack(self.code, self.identifier, HEADER.size + len(UNSIGNED) + len(body), self.authenticator)
            return head + signed_body(head, body, self.secret)
        head = HEADER.pack(self.code, self.identifier, HEADER.size + len(body), ZEROS)
        self.authenticator = md5(head + body + self.secret, usedforsecurity=False).digest()
        return head[: -len(ZEROS)] + self.authenticator + body

    def verify(self, reply: ReplyPacket, *, signed: bool) -> bool:
        """Return True if the reply is of a server that knows the secret, to this request (RFC 2865 3).

        With `signed` a reply to an Access-Request must have a Message-Authenticator. One that is there must hold
        (RFC 2869 5.14). A Proxy-State, which this request did not have, is the mark of a forgery (CVE-2024-3596).
        """
        raw, asks_access = reply.raw, self.code == ACCESS_REQUEST
        expected = md5(raw[:4] + self.authenticator + raw[HEADER.size :] + self.secret, usedforsecurity=False).digest()
        if reply.identifier != self.identifier or not hmac.compare_digest(expected, raw[4 : HEADER.size]):
            return False
        if asks_access and PROXY_STATE in reply.attributes:
            return False
        return self._signature_holds(reply) if reply.signed else not (signed and asks_access)

    def _signature_holds(self, reply: ReplyPacket) -> bool:
        """Return True if the reply's Message-Authenticator is right. It is signed as if its own value were zeros."""
        return signature_holds(reply, self.secret, self.authenticator if self.code == ACCESS_REQUEST else ZEROS)


def signed_body(head: bytes, body: bytes, secret: bytes) -> bytes:
    """Return the attributes of a packet with a Message-Authenticator before them. `head` counts it (RFC 2869 5.14)."""
    return UNSIGNED[:HEAD] + hmac.digest(secret, head + UNSIGNED + body, "md5") + body


def signature_holds(packet: ReplyPacket, secret: bytes, authenticator: bytes) -> bool:
    """Return True if the Message-Authenticator of a packet is right, computed with this authenticator in its header."""
    raw, at = packet.raw, packet.signature_at
    begins = raw[:4] + authenticator + raw[HEADER.size : at]
    expected = hmac.digest(secret, begins + ZEROS + raw[at + SIGNATURE :], "md5")
    return hmac.compare_digest(expected, raw[at : at + SIGNATURE])


def encode_attributes(attributes: dict[Key, list[bytes]]) -> bytes:
    """Return the octets of all attributes. A value must fit: packets.py cuts what may be too long."""
    return b"".join(
        [
            b"%c%c%b" % (key, HEAD + len(value), value) if isinstance(key, int) else vendor_attribute(*key, value)
            for key, values in attributes.items()
            for value in values
        ]
    )


def vendor_attribute(vendor: int, number: int, value: bytes) -> bytes:
    """Return the octets of a Vendor-Specific attribute with one value (RFC 2865 5.26)."""
    size = len(value)
    return VENDOR.pack(VENDOR_SPECIFIC, VENDOR_HEAD + size, vendor, number, HEAD + size) + value
