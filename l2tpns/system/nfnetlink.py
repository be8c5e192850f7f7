"""nfnetlink: ipset, connection tracking and nf_tables of the kernel (linux/netfilter/nfnetlink.h).

Usable from any greenlet. A message is a header of four octets and attributes, so a few structs are the codec. The
kernel acknowledges every request, and the caller waits for that; requests may be sent in batches. Knows no subsystem:
ipset.py, conntrack.py and nft.py do.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from l2tpns.system.netlink_socket import (
    HEADER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NetlinkError,
    NetlinkSocket,
    error_of,
)

BATCH = 64  # requests in one send: their answers must fit the receive buffer

_NETLINK_NETFILTER = 12
_NFGENMSG = struct.Struct("!BBH")  # family, version, resource
_ATTRIBUTE = struct.Struct("=HH")
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF

Attributes: TypeAlias = dict[int, bytes]


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) & 3)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, value) of each attribute, except one that is cut off."""
    position, end = 0, len(octets)
    while position + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(octets, position)
        if length < 4:
            return
        yield kind & _TYPE_MASK, octets[position + 4 : position + length]
        position += length + 3 & ~3


class NfNetlink(NetlinkSocket):
    """A NETLINK_NETFILTER socket."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_NETFILTER)

    def request(self, kind: int, bodies: Sequence[bytes], flags: int = 0, family: int = socket.AF_INET) -> list[int]:
        """Send requests and return the errno of each, 0 if it succeeded. `kind` is subsystem << 8 | message."""
        errors: list[int] = []
        with self._lock:
            for start in range(0, len(bodies), BATCH):
                errors += self._outcomes(self._send(kind, bodies[start : start + BATCH], flags | NLM_F_ACK, family))
        return errors

    def dump(self, kind: int, body: bytes, family: int = socket.AF_INET) -> Iterator[tuple[int, bytes]]:
        """Yield (type, undecoded attributes) of each answer. Keeps the socket locked. Raises NetlinkError."""
        with self._lock:
            (wanted,) = self._send(kind, [body], NLM_F_DUMP, family)
            while True:
                for type_, sequence, octets, _ in self._receive():
                    if sequence != wanted:
                        continue
                    if type_ == NLMSG_DONE:
                        return
                    if type_ == NLMSG_ERROR:
                        code = error_of(octets)
                        if code:
                            raise NetlinkError(code)
                        return
                    yield type_, octets[HEADER.size + _NFGENMSG.size :]

    def _send(self, kind: int, bodies: Sequence[bytes], flags: int, family: int) -> list[int]:
        """Send requests in one datagram. Return their sequence numbers."""
        numbers = []
        octets = bytearray()
        for body in bodies:
            numbers.append(self._number())
            length = HEADER.size + _NFGENMSG.size + len(body)
            octets += HEADER.pack(length, kind, NLM_F_REQUEST | flags, numbers[-1], 0)
            octets += _NFGENMSG.pack(family, 0, 0)
            octets += body
        self._transmit(octets)
        return numbers
