"""rtnetlink: links, addresses and routes of the kernel (rtnetlink(7)).

A socket of our own with the message classes of pyroute2 as the codec: the IPRoute of pyroute2 must not be used by
several greenlets, and is six times slower. The kernel acknowledges every request, and the caller waits for that, one
request at a time under a lock; requests may be sent in batches.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import gevent
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from l2tpns.system.netlink_socket import (
    HEADER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
    NetlinkError,
    NetlinkSocket,
    error_of,
)

CHUNK, PAUSE = 200, 0.001  # routes decoded before a pause, and its seconds
BATCH = 20  # messages in one send: more gains nothing, and the answers must fit the receive buffer

RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 16, 18, 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

_NLM_F_REPLACE, _NLM_F_EXCL, _NLM_F_CREATE = 0x100, 0x200, 0x400
_IFF_UP = 1
_IN6_ADDR_GEN_MODE_NONE = 1
_RT_TABLE_MAIN, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 253, 1
_NETLINK_GET_STRICT_CHK = 12

_RTMSG = struct.Struct(
    "=BBBBBBBBI"
)  # family, length of destination and source, TOS, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")
_INDEX = struct.Struct("=I")
_NEXTHOP = struct.Struct("=HBBI")  # length, flags, weight, interface
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH = 1, 4, 5, 9
_RTM_F_CLONED = 0x200

Message = Any  # pyroute2's classes have no types


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 route through a device, in the main table."""

    prefix: IPv4Network
    device: int
    protocol: int


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """An IPv4 route of any table, as the kernel reports it."""

    prefix: IPv4Network
    protocol: int
    scope: int
    type: int
    device: int  # 0: none, or several
    gateways: tuple[IPv4Address, ...]


@dataclass(frozen=True, slots=True)
class KernelAddress:
    """An IPv4 address of an interface."""

    device: int
    address: IPv4Interface
    broadcast: IPv4Address | None


@dataclass(frozen=True, slots=True)
class KernelLink:
    """An interface."""

    index: int
    name: str
    up: bool
    mtu: int
    queue_length: int
    type: int  # ARPHRD_... of <linux/if_arp.h>
    kind: str  # of a virtual interface, such as vlan or bridge; empty for a network card
    master: int  # the index of the bridge or bond that it belongs to, 0: none
    alias: str  # a text that its creator or the operator has given it


class Netlink(NetlinkSocket):
    """An rtnetlink socket."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)
        self._socket.setsockopt(SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    # Requests

    def link_index(self, name: str) -> int:
        """Return the index of a link. Raises NetlinkError (ENODEV)."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name)]
        for link in self.query(RTM_GETLINK, message, ifinfmsg):
            return int(link["index"])
        raise NetlinkError(19)

    def set_link(
        self,
        index: int,
        *,
        up: bool = False,
        mtu: int | None = None,
        queue_length: int | None = None,
        alias: str | None = None,
    ) -> None:
        message = ifinfmsg()
        message["index"] = index
        if up:
            message["flags"] = message["change"] = _IFF_UP
        attributes = (("IFLA_MTU", mtu), ("IFLA_TXQLEN", queue_length), ("IFLA_IFALIAS", alias))
        message["attrs"] = [(name, value) for name, value in attributes if value is not None]
        self.request(RTM_NEWLINK, [message])

    def keep_silent(self, index: int) -> None:
        """Stop router solicitations and MLD reports of the kernel on this link: it gets no link-local address."""
        message = ifinfmsg()
        message["index"] = index
        inet6 = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _IN6_ADDR_GEN_MODE_NONE)]}
        message["attrs"] = [("IFLA_AF_SPEC", {"attrs": [("AF_INET6", inet6)]})]
        self.request(RTM_NEWLINK, [message])

    def add_address(self, index: int, address: IPv4Interface) -> None:
        """Add an address to a link, if it does not have it."""
        self.request(RTM_NEWADDR, [_address_message(index, address)], _NLM_F_CREATE | _NLM_F_REPLACE)

    def remove_address(self, index: int, address: IPv4Interface) -> None:
        """Remove an address of a link. Raises NetlinkError if it does not have it."""
        self.request(RTM_DELADDR, [_address_message(index, address)])

    def add_routes(self, routes: Iterable[Route]) -> list[tuple[Route, int]]:
        """Add routes. Return the errno of each that failed; EEXIST: the prefix is routed already."""
        return self._routes(RTM_NEWROUTE, list(routes), _NLM_F_CREATE | _NLM_F_EXCL)

    def delete_routes(self, routes: Iterable[Route]) -> list[tuple[Route, int]]:
        """Delete exactly these routes. Return the errno of each that failed; ESRCH: there was none."""
        return self._routes(RTM_DELROUTE, list(routes), 0)

    def routes(self, device: int, protocol: int) -> list[Route]:
        """Return the routes through a device with this protocol number. The kernel selects."""
        return [
            Route(route.prefix, device, protocol)
            for route in self.kernel_routes(protocol, table=_RT_TABLE_MAIN, device=device)
            if route.device == device
        ]

    def kernel_routes(
        self, protocol: int, *, table: int = 0, device: int = 0, pauses: bool = False
    ) -> Iterator[KernelRoute]:
        """Yield the routes with this protocol number, of one table or of all (0).

        The kernel selects, for a router may have a million others. With `pauses` other greenlets run in between; those
        that need this socket wait.
        """
        message = rtmsg()
        message["family"] = socket.AF_INET
        message["table"] = table
        message["proto"] = protocol
        message["attrs"] = [("RTA_OIF", device)] if device else []
        for number, octets in enumerate(self._answers(RTM_GETROUTE, message, NLM_F_DUMP, pauses=pauses), 1):
            route = parse_route(octets)
            if route is not None and route.protocol == protocol:
                yield route
            if pauses and not number % CHUNK:
                gevent.sleep(PAUSE)

    def device_to(self, address: IPv4Address) -> int:
        """Return the interface through which the kernel would send to this address; 0 if there is no route."""
        message = rtmsg()
        message["family"] = socket.AF_INET
        message["dst_len"] = 32
        message["attrs"] = [("RTA_DST", str(address))]
        try:
            for octets in self._answers(RTM_GETROUTE, message, 0):
                route = parse_route(octets, cloned=True)
                return 0 if route is None else route.device
        except NetlinkError:  # ENETUNREACH and its like
            return 0
        return 0

    def addresses(self) -> list[KernelAddress]:
        """Return every IPv4 address of every interface, up or down."""
        message = ifaddrmsg()
        message["family"] = socket.AF_INET
        found = []
        for each in self.query(RTM_GETADDR, message, ifaddrmsg, NLM_F_DUMP):
            local = each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")
            if local is not None:
                broadcast = each.get_attr("IFA_BROADCAST")
                interface = IPv4Interface(f"{local}/{each['prefixlen']}")
                found.append(KernelAddress(each["index"], interface, IPv4Address(broadcast) if broadcast else None))
        return found

    def links(self) -> list[KernelLink]:
        """Return all interfaces."""
        return [_link(each) for each in self.query(RTM_GETLINK, ifinfmsg(), ifinfmsg, NLM_F_DUMP)]

    def link(self, index: int) -> KernelLink:
        """Return one interface. Raises NetlinkError (ENODEV)."""
        message = ifinfmsg()
        message["index"] = index
        for each in self.query(RTM_GETLINK, message, ifinfmsg):
            return _link(each)
        raise NetlinkError(19)

    def _routes(self, kind: int, routes: Sequence[Route], flags: int) -> list[tuple[Route, int]]:
        errors = self._acknowledged(kind, [_route_message(route) for route in routes], flags)
        return [(route, error) for route, error in zip(routes, errors, strict=True) if error]

    # The exchange

    def request(self, kind: int, messages: Sequence[Message], flags: int = 0) -> None:
        """Send requests in batches. Raises NetlinkError with the first error, after all are answered."""
        for error in self._acknowledged(kind, messages, flags):
            if error:
                raise NetlinkError(error)

    def query(self, kind: int, message: Message, answer: type[Message], flags: int = 0) -> list[Message]:
        """Send one request. Return the decoded answers."""
        found: list[Message] = []
        for octets in self._answers(kind, message, flags):
            decoded = answer(octets)
            decoded.decode()
            found.append(decoded)
        return found

    def _answers(self, kind: int, message: Message, flags: int, *, pauses: bool = False) -> list[bytes]:
        """Send one request. Return the answers undecoded."""
        with self._lock:
            (wanted,) = self._send(kind, [message], flags)
            found: list[bytes] = []
            while True:
                for type_, sequence, octets, more in self._receive():
                    if sequence != wanted:
                        continue
                    if type_ == NLMSG_DONE:
                        return found
                    if type_ == NLMSG_ERROR:
                        code = error_of(octets)
                        if code:
                            raise NetlinkError(code)
                        return found
                    found.append(octets)
                    if not more and not flags & NLM_F_DUMP:
                        return found
                if pauses:
                    gevent.sleep(PAUSE)

    def _acknowledged(self, kind: int, messages: Sequence[Message], flags: int) -> list[int]:
        """Send requests in batches. Return the errno of each, 0 if it succeeded."""
        errors: list[int] = []
        with self._lock:
            for start in range(0, len(messages), BATCH):
                errors += self._outcomes(self._send(kind, messages[start : start + BATCH], flags | NLM_F_ACK))
        return errors

    def _send(self, kind: int, messages: Sequence[Message], flags: int) -> list[int]:
        """Send messages in one datagram. Return their sequence numbers."""
        numbers = []
        octets = bytearray()
        for message in messages:
            numbers.append(self._number())
            message["header"]["type"] = kind
            message["header"]["flags"] = NLM_F_REQUEST | flags
            message["header"]["sequence_number"] = numbers[-1]
            message.encode()
            octets += message.data
            octets += bytes(-len(octets) & 3)
        self._transmit(octets)
        return numbers


def _address_message(index: int, address: IPv4Interface) -> Message:
    message = ifaddrmsg()
    message["family"] = socket.AF_INET
    message["index"] = index
    message["prefixlen"] = address.network.prefixlen
    message["attrs"] = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
    return message


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


def parse_route(message: bytes, *, cloned: bool = False) -> KernelRoute | None:
    """Decode an RTM_NEWROUTE or RTM_DELROUTE. Return None for another family or a cached route.

    Ten times as fast as the codec of pyroute2, which matters when every route of a machine is decoded.
    """
    fields = _RTMSG.unpack_from(message, HEADER.size)
    family, length, _, _, _, protocol, scope, type_, flags = fields
    if family != socket.AF_INET or (flags & _RTM_F_CLONED and not cloned):
        return None
    destination, device = 0, 0
    gateways: list[IPv4Address] = []
    for kind, value in _attributes(message, HEADER.size + _RTMSG.size):
        if kind == _RTA_DST:
            destination = int.from_bytes(value, "big")
        elif kind == _RTA_OIF:
            (device,) = _INDEX.unpack(value)
        elif kind == _RTA_GATEWAY:
            gateways.append(IPv4Address(value))
        elif kind == _RTA_MULTIPATH:
            gateways += _gateways_of_many(value)
    return KernelRoute(IPv4Network((destination, length)), protocol, scope, type_, device, tuple(gateways))


def _gateways_of_many(octets: bytes) -> Iterator[IPv4Address]:
    """Yield the gateways in an RTA_MULTIPATH."""
    at = 0
    while at + _NEXTHOP.size <= len(octets):
        length, _, _, _ = _NEXTHOP.unpack_from(octets, at)
        if length < _NEXTHOP.size:
            return
        for kind, value in _attributes(octets[: at + length], at + _NEXTHOP.size):
            if kind == _RTA_GATEWAY:
                yield IPv4Address(value)
        at += length + 3 & ~3


def _attributes(octets: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= len(octets):
        length, kind = _ATTRIBUTE.unpack_from(octets, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, octets[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


def _link(message: Message) -> KernelLink:
    info = message.get_attr("IFLA_LINKINFO")
    return KernelLink(
        index=int(message["index"]),
        name=str(message.get_attr("IFLA_IFNAME")),
        up=bool(message["flags"] & _IFF_UP),
        mtu=int(message.get_attr("IFLA_MTU") or 0),
        queue_length=int(message.get_attr("IFLA_TXQLEN") or 0),
        type=int(message["ifi_type"]),
        kind=str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else "",
        master=int(message.get_attr("IFLA_MASTER") or 0),
        alias=str(message.get_attr("IFLA_IFALIAS") or ""),
    )
