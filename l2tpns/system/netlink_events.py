"""Notifications of the kernel about links, addresses, routes and packet schedulers (rtnetlink(7)).

A router that speaks BGP changes thousands of routes a second. A filter in the kernel drops those of routing daemons
before they cost this process anything: only addresses, static routes and our own matter here. Notifications that do
not fit the buffer are lost, and `read` reports that: its caller must compare everything.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

from gevent.socket import wait_read

from l2tpns.system.netlink_socket import HEADER, SOL_NETLINK, NetlinkSocket

MAX_DATAGRAMS = 64  # read at once, before other greenlets run
GROUPS = (1, 4, 5, 7)  # RTNLGRP_LINK, RTNLGRP_TC, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE
# rtm_protocol: unspecified, redirect, kernel, boot, static; DHCP, keepalived. Routing daemons have others.
PROTOCOLS = (0, 1, 2, 3, 4, 16, 18)

_NETLINK_ADD_MEMBERSHIP = 1
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_BUFFER = 4 << 20
_MAX_DATAGRAM = 1 << 16
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD_OCTET, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x15, 0x06
_TYPE_AT = 4 if sys.byteorder == "little" else 5  # the lower octet of nlmsg_type
_PROTOCOL_AT = HEADER.size + 5


class NetlinkEvents(NetlinkSocket):
    """A socket that only listens. `protocol` is the one of our own routes."""

    def __init__(self, protocol: int) -> None:
        super().__init__(socket.NETLINK_ROUTE)
        self._attach(_program((*PROTOCOLS, protocol)))
        with suppress(PermissionError):  # then more is lost, and everything is compared more often
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        for group in GROUPS:
            self._socket.setsockopt(SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def wait(self, timeout: float) -> bool:
        """Block until there is something to read. Return False after `timeout` seconds."""
        try:
            wait_read(self._socket.fileno(), timeout=timeout)
        except TimeoutError:
            return False
        return True

    def read(self) -> tuple[list[tuple[int, bytes]], bool]:
        """Return (type, message) of at most MAX_DATAGRAMS, and whether notifications were lost. Does not block."""
        found: list[tuple[int, bytes]] = []
        lost = False
        for _ in range(MAX_DATAGRAMS):
            try:
                octets = self._socket.recv(_MAX_DATAGRAM)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            found.extend(_messages(octets))
        return found, lost

    def _attach(self, program: bytes) -> None:
        buffer = ctypes.create_string_buffer(program, len(program))
        fprog = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def _program(protocols: tuple[int, ...]) -> bytes:
    """Return classic BPF that accepts every message but those of routes with another protocol number."""
    count = len(protocols)
    lines = [
        (_LOAD_OCTET, 0, 0, _TYPE_AT),
        (_JUMP_IF_EQUAL, 1, 0, _RTM_NEWROUTE),
        (_JUMP_IF_EQUAL, 0, count + 2, _RTM_DELROUTE),
        (_LOAD_OCTET, 0, 0, _PROTOCOL_AT),
        *((_JUMP_IF_EQUAL, count - at, 0, protocol) for at, protocol in enumerate(protocols)),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, 0xFFFFFFFF),
    ]
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)


def _messages(octets: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + HEADER.size <= len(octets):
        length, kind, _, _, _ = HEADER.unpack_from(octets, at)
        if length < HEADER.size:
            return
        yield kind, octets[at : at + length]
        at += length + 3 & ~3
