"""Find the owner of a connection: the local user at its other end (sock_diag(7)), or its source address.

On loopback all local users share one address, so limits by address would let one user lock out all others. Does not
read /proc/net/tcp, which lists every connection of the machine: sock_diag finds one socket in 5 us.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from l2tpns.runtime.peer import Peer
from l2tpns.system.netlink_socket import HEADER, NLM_F_REQUEST, NLMSG_ERROR, NetlinkError, NetlinkSocket

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states (linux/inet_diag.h: inet_diag_req_v2)
_PORTS = struct.Struct("!HH")
_ANY_INTERFACE, _NO_COOKIE = 0, 0xFFFFFFFF
_TAIL = struct.Struct("=III")  # interface, cookie
_ID = _PORTS.size + 16 + 16 + _TAIL.size
_OWNER = struct.Struct("=II")  # uid, inode
_OWNER_AT = HEADER.size + 4 + _ID + 12  # in inet_diag_msg, after expires, rqueue and wqueue


class SockDiag(NetlinkSocket):
    """A NETLINK_SOCK_DIAG socket of the network namespace that the process is in now."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_SOCK_DIAG)

    def uid(self, protocol: int, source: Peer, destination: Peer) -> int | None:
        """Return the user of a socket by its addresses; None if no process here has it. Raises NetlinkError."""
        number = self._number()
        body = _REQUEST.pack(socket.AF_INET, protocol, 0, 0xFFFFFFFF) + _PORTS.pack(source[1], destination[1])
        body += socket.inet_aton(source[0]).ljust(16, b"\0") + socket.inet_aton(destination[0]).ljust(16, b"\0")
        body += _TAIL.pack(_ANY_INTERFACE, _NO_COOKIE, _NO_COOKIE)
        with self._lock:
            self._transmit(HEADER.pack(HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, number, 0) + body)
            for kind, sequence, octets, _ in self._receive():
                if sequence == number and kind != NLMSG_ERROR and len(octets) >= _OWNER_AT + _OWNER.size:
                    uid, inode = _OWNER.unpack_from(octets, _OWNER_AT)
                    # A socket that its process has closed has no owner; the kernel reports 0, which is root.
                    return int(uid) if inode else None
        return None


def owner_of(peer: Peer, ours: Peer, protocol: int = socket.IPPROTO_TCP) -> str:
    """Return `uid 1000` for a process of this machine, else the address. Does not raise."""
    try:
        diag = SockDiag()
    except OSError:
        return peer[0]  # no descriptor is free
    try:
        # The kernel looks up a TCP socket by its own addresses, a UDP socket by those of a packet to it.
        both = (ours, peer) if protocol == socket.IPPROTO_UDP else (peer, ours)
        uid = diag.uid(protocol, *both)
    except (NetlinkError, OSError):
        return peer[0]  # a kernel without sock_diag
    finally:
        diag.close()
    return peer[0] if uid is None else f"uid {uid}"


def owner_of_connection(sock: Any, peer: Peer) -> str:
    """Return the owner of the other end of a TCP connection. Does not raise."""
    try:
        ours: Peer = sock.getsockname()
    except OSError:
        return peer[0]
    return owner_of(peer, ours)
