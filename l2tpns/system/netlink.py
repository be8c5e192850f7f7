"""rtnetlink: links, addresses and routes, for any greenlet (rtnetlink(7)).

A socket of our own with pyroute2's message classes as the codec: pyroute2's own IPRoute may not be used from several
greenlets, and is six times slower. Every request is acknowledged by the kernel and waited for; requests may go in
batches. One at a time: a lock, no greenlet of its own.
"""

from __future__ import annotations

import os
import socket
import struct
from _socket import socket as RawSocket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from errno import EIO, ETIMEDOUT
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

from gevent.lock import RLock
from gevent.socket import wait_read
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from l2tpns.errors import L2tpnsError

BATCH = 20  # messages in one send: more gains nothing, and the answers must fit the receive buffer
TIMEOUT = 5.0  # seconds for an answer; the kernel answers within the send

RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR = 16, 18, 20
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

_NLM_F_REQUEST, _NLM_F_MULTI, _NLM_F_ACK = 0x001, 0x002, 0x004
_NLM_F_DUMP, _NLM_F_REPLACE, _NLM_F_EXCL, _NLM_F_CREATE = 0x300, 0x100, 0x200, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFF_UP = 1
_IN6_ADDR_GEN_MODE_NONE = 1
_RT_TABLE_MAIN, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 253, 1
_NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK = 10, 12
_SOL_NETLINK = 270
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ERROR = struct.Struct("=i")
_LARGEST = 1 << 16

Message = Any  # pyroute2's classes have no types


class NetlinkError(L2tpnsError):
    """The kernel refused; `code` is its errno."""

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.code = code


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 route through a device, in the main table."""

    prefix: IPv4Network
    device: int
    protocol: int


class Netlink:
    """An rtnetlink socket in the network namespace that the process is in now."""

    def __init__(self) -> None:
        self._socket = RawSocket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._lock = RLock()
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    # What l2tpns asks for

    def link_index(self, name: str) -> int:
        """Raises NetlinkError (ENODEV)."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name)]
        for link in self.query(RTM_GETLINK, message, ifinfmsg):
            return int(link["index"])
        raise NetlinkError(19)

    def set_link(
        self, index: int, *, up: bool = False, mtu: int | None = None, queue_length: int | None = None
    ) -> None:
        message = ifinfmsg()
        message["index"] = index
        if up:
            message["flags"] = message["change"] = _IFF_UP
        attributes = (("IFLA_MTU", mtu), ("IFLA_TXQLEN", queue_length))
        message["attrs"] = [(name, value) for name, value in attributes if value is not None]
        self.request(RTM_NEWLINK, [message])

    def keep_silent(self, index: int) -> None:
        """Have the kernel send no router solicitations and MLD reports into this link: no link-local address."""
        message = ifinfmsg()
        message["index"] = index
        inet6 = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _IN6_ADDR_GEN_MODE_NONE)]}
        message["attrs"] = [("IFLA_AF_SPEC", {"attrs": [("AF_INET6", inet6)]})]
        self.request(RTM_NEWLINK, [message])

    def add_address(self, index: int, address: IPv4Interface) -> None:
        """Give the link this address; it may have it already."""
        message = ifaddrmsg()
        message["family"] = socket.AF_INET
        message["index"] = index
        message["prefixlen"] = address.network.prefixlen
        message["attrs"] = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
        self.request(RTM_NEWADDR, [message], _NLM_F_CREATE | _NLM_F_REPLACE)

    def add_routes(self, routes: Iterable[Route]) -> list[tuple[Route, int]]:
        """Add; the errno of each that failed, EEXIST where the prefix is routed already."""
        return self._routes(RTM_NEWROUTE, list(routes), _NLM_F_CREATE | _NLM_F_EXCL)

    def delete_routes(self, routes: Iterable[Route]) -> list[tuple[Route, int]]:
        """Delete exactly these; the errno of each that failed, ESRCH where there is none."""
        return self._routes(RTM_DELROUTE, list(routes), 0)

    def routes(self, device: int, protocol: int) -> list[Route]:
        """The routes through the device that carry this protocol number; the kernel selects."""
        message = rtmsg()
        message["family"] = socket.AF_INET
        message["table"] = _RT_TABLE_MAIN
        message["proto"] = protocol
        message["attrs"] = [("RTA_OIF", device)]
        found = []
        for route in self.query(RTM_GETROUTE, message, rtmsg, _NLM_F_DUMP):
            destination = route.get_attr("RTA_DST") or "0.0.0.0"
            if route["proto"] == protocol and route.get_attr("RTA_OIF") == device:
                found.append(Route(IPv4Network(f"{destination}/{route['dst_len']}"), device, protocol))
        return found

    def _routes(self, kind: int, routes: Sequence[Route], flags: int) -> list[tuple[Route, int]]:
        errors = self._acknowledged(kind, [_route_message(route) for route in routes], flags)
        return [(route, error) for route, error in zip(routes, errors, strict=True) if error]

    # The exchange

    def request(self, kind: int, messages: Sequence[Message], flags: int = 0) -> None:
        """Send, in batches; raises NetlinkError with the first error after all have been answered."""
        for error in self._acknowledged(kind, messages, flags):
            if error:
                raise NetlinkError(error)

    def query(self, kind: int, message: Message, answer: type[Message], flags: int = 0) -> list[Message]:
        """Send one request, give the answers decoded."""
        with self._lock:
            (wanted,) = self._send(kind, [message], flags)
            found: list[Message] = []
            while True:
                for type_, sequence, octets, more in self._receive():
                    if sequence != wanted:
                        continue
                    if type_ == _NLMSG_DONE:
                        return found
                    if type_ == _NLMSG_ERROR:
                        code = -_ERROR.unpack_from(octets, _HEADER.size)[0]
                        if code:
                            raise NetlinkError(code)
                        return found
                    decoded = answer(octets)
                    decoded.decode()
                    found.append(decoded)
                    if not more and not flags & _NLM_F_DUMP:
                        return found

    def _acknowledged(self, kind: int, messages: Sequence[Message], flags: int) -> list[int]:
        """The errno for each message, 0 when it was carried out."""
        errors: list[int] = []
        with self._lock:
            for start in range(0, len(messages), BATCH):
                waiting = dict.fromkeys(self._send(kind, messages[start : start + BATCH], flags | _NLM_F_ACK), 0)
                missing = set(waiting)
                while missing:
                    for type_, sequence, octets, _ in self._receive():
                        if type_ == _NLMSG_ERROR and sequence in missing:
                            missing.discard(sequence)
                            waiting[sequence] = -_ERROR.unpack_from(octets, _HEADER.size)[0]
                errors.extend(waiting.values())
        return errors

    def _send(self, kind: int, messages: Sequence[Message], flags: int) -> list[int]:
        """Send the messages in one datagram; their sequence numbers."""
        numbers = []
        octets = bytearray()
        for message in messages:
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            numbers.append(self._sequence)
            message["header"]["type"] = kind
            message["header"]["flags"] = _NLM_F_REQUEST | flags
            message["header"]["sequence_number"] = self._sequence
            message.encode()
            octets += message.data
            octets += bytes(-len(octets) & 3)
        try:
            self._socket.sendto(octets, (0, 0))
        except OSError as error:
            raise NetlinkError(error.errno or EIO) from error
        return numbers

    def _receive(self) -> Iterator[tuple[int, int, bytes, bool]]:
        """(type, sequence number, whole message, whether more follow) for each message of one datagram."""
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
            length, kind, flags, sequence, _ = _HEADER.unpack_from(octets, position)
            if length < _HEADER.size:
                return
            yield kind, sequence, octets[position : position + length], bool(flags & _NLM_F_MULTI)
            position += length + 3 & ~3


def _route_message(route: Route) -> Message:
    message = rtmsg()
    message["family"] = socket.AF_INET
    message["dst_len"] = route.prefix.prefixlen
    message["table"] = _RT_TABLE_MAIN
    message["proto"] = route.protocol
    message["scope"] = _RT_SCOPE_LINK
    message["type"] = _RTN_UNICAST
    message["attrs"] = [("RTA_DST", str(route.prefix.network_address)), ("RTA_OIF", route.device)]
    return message
