"""nfnetlink: ipset, connection tracking and nf_tables of the kernel, for any greenlet (linux/netfilter/nfnetlink.h).

A socket of our own; messages are a header of four octets and attributes, so a handful of structs is the codec. Every
request is acknowledged by the kernel and waited for; requests may go in batches. Knows no subsystem: ipset.py and
conntrack.py do.
"""

from __future__ import annotations

import socket
import struct
from _socket import socket as RawSocket
from collections.abc import Iterator, Sequence
from errno import EIO, ETIMEDOUT
from typing import TypeAlias

from gevent.lock import RLock
from gevent.socket import wait_read

from l2tpns.system.netlink import NetlinkError

BATCH = 64  # requests in one send: their answers must fit the receive buffer
TIMEOUT = 5.0  # seconds for an answer; the kernel answers within the send

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x001, 0x004, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_NFGENMSG = struct.Struct("!BBH")  # family, version, resource
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_LARGEST = 1 << 16

Attributes: TypeAlias = dict[int, bytes]


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) & 3)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each; what is cut off is left out."""
    position, end = 0, len(octets)
    while position + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(octets, position)
        if length < 4:
            return
        yield kind & _TYPE_MASK, octets[position + 4 : position + length]
        position += length + 3 & ~3


class NfNetlink:
    """A NETLINK_NETFILTER socket in the network namespace that the process is in now."""

    def __init__(self) -> None:
        self._socket = RawSocket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._lock = RLock()
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def request(self, kind: int, bodies: Sequence[bytes], flags: int = 0, family: int = socket.AF_INET) -> list[int]:
        """Have each carried out; the errno for each, 0 when it was. `kind` is subsystem << 8 | message."""
        errors: list[int] = []
        with self._lock:
            for start in range(0, len(bodies), BATCH):
                numbers = self._send(kind, bodies[start : start + BATCH], flags | _NLM_F_ACK, family)
                waiting = dict.fromkeys(numbers, 0)
                missing = set(numbers)
                while missing:
                    for type_, sequence, octets in self._receive():
                        if type_ == _NLMSG_ERROR and sequence in missing:
                            missing.discard(sequence)
                            waiting[sequence] = -_ERROR.unpack_from(octets)[0]
                errors.extend(waiting.values())
        return errors

    def demand(self, kind: int, body: bytes, flags: int = 0, family: int = socket.AF_INET) -> None:
        """Have one carried out. Raises NetlinkError."""
        (error,) = self.request(kind, [body], flags, family)
        if error:
            raise NetlinkError(error)

    def dump(self, kind: int, body: bytes, family: int = socket.AF_INET) -> Iterator[tuple[int, bytes]]:
        """(type, attributes undecoded) of each answer. Raises NetlinkError. Holds the socket until it is exhausted."""
        with self._lock:
            (wanted,) = self._send(kind, [body], _NLM_F_DUMP, family)
            while True:
                for type_, sequence, octets in self._receive():
                    if sequence != wanted:
                        continue
                    if type_ == _NLMSG_DONE:
                        return
                    if type_ == _NLMSG_ERROR:
                        code = -_ERROR.unpack_from(octets)[0]
                        if code:
                            raise NetlinkError(code)
                        return
                    yield type_, octets[_NFGENMSG.size :]

    def _send(self, kind: int, bodies: Sequence[bytes], flags: int, family: int) -> list[int]:
        """Send the requests in one datagram; their sequence numbers."""
        numbers = []
        octets = bytearray()
        for body in bodies:
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            numbers.append(self._sequence)
            length = _HEADER.size + _NFGENMSG.size + len(body)
            octets += _HEADER.pack(length, kind, _NLM_F_REQUEST | flags, self._sequence, 0)
            octets += _NFGENMSG.pack(family, 0, 0)
            octets += body
        try:
            self._socket.sendto(octets, (0, 0))
        except OSError as error:
            raise NetlinkError(error.errno or EIO) from error
        return numbers

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """(type, sequence number, what follows the header) for each message of one datagram."""
        while True:
            try:
                octets = self._socket.recv(_LARGEST)
                break
            except BlockingIOError:
                try:
                    wait_read(self._socket.fileno(), timeout=TIMEOUT)
                except TimeoutError:
                    raise NetlinkError(ETIMEDOUT) from None
            except OSError as error:  # ENOBUFS: an answer is lost
                raise NetlinkError(error.errno or EIO) from error
        position = 0
        while position + _HEADER.size <= len(octets):
            length, kind, _, sequence, _ = _HEADER.unpack_from(octets, position)
            if length < _HEADER.size:
                return
            yield kind, sequence, octets[position + _HEADER.size : position + length]
            position += length + 3 & ~3
