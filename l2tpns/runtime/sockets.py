"""UDP sockets of the C type and the options of Linux that the socket module does not name.

A `_socket.socket` has no Python method between the caller and the system call, and gevent does not patch it: the owner
waits for it in the event loop. Knows no protocol above UDP.
"""

from __future__ import annotations

from _socket import socket as RawSocket
from socket import AF_INET, IPPROTO_IP, SO_RCVBUF, SO_SNDBUF, SOCK_DGRAM, SOL_SOCKET, inet_aton, inet_ntoa
from struct import Struct

# <linux/in.h> and <asm-generic/socket.h>
_IP_PKTINFO, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 8, 10, 0
_SO_NO_CHECK, _SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 11, 32, 33
_PKTINFO = Struct("=i4s4s")  # struct in_pktinfo: interface, local address, destination in the header

Ancillary = tuple[int, int, bytes]  # level, type and octets, as sendmsg takes them and recvmsg returns them


def udp_socket() -> RawSocket:
    """Return a new IPv4 UDP socket that does not block. Raises OSError."""
    sock = RawSocket(AF_INET, SOCK_DGRAM)
    sock.setblocking(False)
    return sock


def set_buffers(sock: RawSocket, *, receive: int = 0, send: int = 0) -> None:
    """Set the kernel's buffers, in octets; 0 leaves one as it is.

    Without CAP_NET_ADMIN the kernel grants no more than net.core.rmem_max and net.core.wmem_max.
    """
    for octets, force, plain in ((receive, _SO_RCVBUFFORCE, SO_RCVBUF), (send, _SO_SNDBUFFORCE, SO_SNDBUF)):
        if octets:
            try:
                sock.setsockopt(SOL_SOCKET, force, octets)
            except PermissionError:
                sock.setsockopt(SOL_SOCKET, plain, octets)


def allow_fragments(sock: RawSocket) -> None:
    """Send without DF: routers may fragment the packets on their way."""
    sock.setsockopt(IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)


def set_checksums(sock: RawSocket, on: bool) -> None:
    """Send datagrams with a UDP checksum or without one (RFC 768: optional over IPv4)."""
    sock.setsockopt(SOL_SOCKET, _SO_NO_CHECK, not on)


def report_destinations(sock: RawSocket) -> None:
    """Let recvmsg return for each datagram the address that it was sent to; see `destination`."""
    sock.setsockopt(IPPROTO_IP, _IP_PKTINFO, 1)


def destination(ancillary: list[Ancillary]) -> str:
    """Return the local address that a datagram was sent to, "" for a broadcast or multicast."""
    for level, kind, octets in ancillary:
        if level == IPPROTO_IP and kind == _IP_PKTINFO and len(octets) >= _PKTINFO.size:
            _, local, destination = _PKTINFO.unpack_from(octets)
            return inet_ntoa(local) if local == destination else ""
    return ""


def source(address: str) -> Ancillary:
    """Return what makes sendmsg send from this local address."""
    return IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, inet_aton(address), bytes(4))
