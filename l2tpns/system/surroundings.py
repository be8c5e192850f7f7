"""The addresses that this machine needs itself: its own, those of its gateways, and its connected networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from l2tpns.system.netlink_events import PROTOCOLS
from l2tpns.system.rtnetlink import KernelRoute, Netlink

_RTN_UNICAST, _RTN_LOCAL, _RTN_BROADCAST, _RTN_ANYCAST = 1, 2, 3, 4
_KERNEL = 2  # rtm_protocol of routes that follow from an address of an interface
_LOOPBACK = IPv4Network("127.0.0.0/8")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Networks, each with a description such as `an address of eth0` or `the network of eth0`."""

    own: dict[IPv4Network, str] = field(default_factory=dict)
    gateways: dict[IPv4Network, str] = field(default_factory=dict)
    connected: dict[IPv4Network, str] = field(default_factory=dict)


def look(netlink: Netlink, tun: int) -> Surroundings:
    """Read them from the kernel, without our own routes through the interface `tun`. May yield. Raises NetlinkError."""
    names = {link.index: link.name for link in netlink.links()}
    found = Surroundings()
    for each in netlink.addresses():
        name = names.get(each.device, "an interface")
        found.own[IPv4Network(each.address.ip)] = f"an address of {name}"
        if each.broadcast is not None and each.address.network.prefixlen < 31:
            found.own[IPv4Network(each.broadcast)] = f"the broadcast address of {name}"
    for protocol in PROTOCOLS:
        if protocol:
            _take_routes(found, netlink.kernel_routes(protocol, pauses=True), names, tun)
    return found


def _take_routes(found: Surroundings, routes: Iterable[KernelRoute], names: dict[int, str], tun: int) -> None:
    for route in routes:
        name = names.get(route.device, "an interface")
        if route.type in (_RTN_LOCAL, _RTN_BROADCAST, _RTN_ANYCAST):
            if not route.prefix.overlaps(_LOOPBACK):
                found.own.setdefault(route.prefix, f"an address of {name}")
        elif route.type == _RTN_UNICAST:
            for gateway in _hosts(route.gateways):
                found.gateways[gateway] = f"the gateway of a route by {name}"
            if route.protocol == _KERNEL and not route.gateways and route.device not in (0, tun):
                found.connected[route.prefix] = f"the network of {name}"


def _hosts(addresses: Iterable[IPv4Address]) -> Iterator[IPv4Network]:
    return (IPv4Network(address) for address in addresses)
