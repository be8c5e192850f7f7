"""A netlink socket of any family: what rtnetlink.py, nfnetlink.py and socket_owner.py share (netlink(7))."""

from __future__ import annotations

import os
import socket
import struct
from _socket import socket as RawSocket
from collections.abc import Iterator, Sequence
from errno import EIO, ETIMEDOUT

from gevent.lock import RLock
from gevent.socket import wait_read

from l2tpns.errors import L2tpnsError

ANSWER_TIMEOUT = 5.0  # seconds; usually the kernel answers within the send

NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP = 0x001, 0x002, 0x004, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
SOL_NETLINK, NETLINK_CAP_ACK = 270, 10
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ERROR = struct.Struct("=i")
_MAX_DATAGRAM = 1 << 16  # octets


class NetlinkError(L2tpnsError):
    """The kernel has refused a request. `code` is its errno."""

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.code = code


class NetlinkSocket:
    """A socket of the network namespace that the process is in now. One request at a time: under `_lock`."""

    def __init__(self, protocol: int) -> None:
        self.answer_timeout = ANSWER_TIMEOUT
        self._socket = RawSocket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._lock = RLock()
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def _number(self) -> int:
        """Return the next sequence number."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return self._sequence

    def _transmit(self, octets: bytes | bytearray) -> None:
        try:
            self._socket.sendto(octets, (0, 0))
        except OSError as error:
            raise NetlinkError(error.errno or EIO) from error

    def _outcomes(self, numbers: Sequence[int]) -> list[int]:
        """Return the errno of each request, 0 if it succeeded. May yield."""
        waiting = dict.fromkeys(numbers, 0)
        missing = set(numbers)
        while missing:
            for kind, sequence, octets, _ in self._receive():
                if kind == NLMSG_ERROR and sequence in missing:
                    missing.discard(sequence)
                    waiting[sequence] = error_of(octets)
        return list(waiting.values())

    def _receive(self) -> Iterator[tuple[int, int, bytes, bool]]:
        """Yield (type, sequence number, whole message, True if more follow) of one datagram. May yield the greenlet."""
        timed_out = False
        while True:
            try:
                octets = self._socket.recv(_MAX_DATAGRAM)
                break
            except BlockingIOError:
                if timed_out:
                    raise NetlinkError(ETIMEDOUT) from None
                try:
                    wait_read(self._socket.fileno(), timeout=self.answer_timeout)
                except TimeoutError:
                    timed_out = True  # one more try: if the process was suspended, the answer is there
            except OSError as error:  # ENOBUFS: an answer is lost
                raise NetlinkError(error.errno or EIO) from error
        position = 0
        while position + HEADER.size <= len(octets):
            length, kind, flags, sequence, _ = HEADER.unpack_from(octets, position)
            if length < HEADER.size:
                return
            yield kind, sequence, octets[position : position + length], bool(flags & NLM_F_MULTI)
            position += length + 3 & ~3


def error_of(message: bytes) -> int:
    """Return the errno in an NLMSG_ERROR; 0: the request succeeded."""
    return -int(_ERROR.unpack_from(message, HEADER.size)[0])
