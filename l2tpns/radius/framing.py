"""The frame of a RADIUS packet: sizes, codes, and the strict check of a received one (RFC 2865 3, RFC 2865 5)."""

from __future__ import annotations

import struct

from l2tpns.errors import WireError
from l2tpns.radius.attributes import BY_NAME

ACCESS_REQUEST, ACCESS_ACCEPT, ACCESS_REJECT, ACCOUNTING_REQUEST, ACCOUNTING_RESPONSE = 1, 2, 3, 4, 5
ACCESS_CHALLENGE = 11

HEADER = struct.Struct("!BBH16s")  # code, identifier, length, authenticator
MAX_PACKET = 4096  # RFC 2865 3
MAX_ATTRIBUTES = MAX_PACKET - HEADER.size  # octets of all attributes of a packet
MAX_VALUE = 253
HEAD, VENDOR_HEAD = 2, 8  # octets of an attribute before its value (RFC 2865 5 and 5.26)
MESSAGE_AUTHENTICATOR = BY_NAME["Message-Authenticator"].number
SIGNATURE = 16  # octets of a Message-Authenticator's value


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
        if at + HEAD > length or datagram[at + 1] < HEAD or at + datagram[at + 1] > length:
            raise WireError(f"RADIUS attribute at octet {at} does not fit")
        if datagram[at] == MESSAGE_AUTHENTICATOR:
            authenticators += 1
            if datagram[at + 1] != HEAD + SIGNATURE or authenticators > 1:
                raise WireError("malformed Message-Authenticator")
        at += datagram[at + 1]
    return datagram[:length]
