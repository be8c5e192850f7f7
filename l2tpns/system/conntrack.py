"""Delete tracked connections of the kernel, so that NAT decides about them again (nfnetlink_conntrack.h).

A rule of the nat table sees only the first packet of a connection. A session that enters or leaves a walled garden has
connections that were decided before.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network

from l2tpns.runtime.cooperative import in_slices
from l2tpns.system.netlink_socket import NetlinkError
from l2tpns.system.nfnetlink import BATCH, NfNetlink, attribute, attributes, nested

MAX_SINGLE_LOOKUPS = 8  # addresses for which the kernel is asked one by one; for more, one full list is cheaper

_SUBSYSTEM = 1 << 8
_GET, _DELETE = 1, 2
_TUPLE_ORIGINAL, _ZONE, _FILTER = 1, 18, 25
_TUPLE_IP, _IP_SOURCE = 1, 1
_FILTER_ORIGINAL, _FILTER_REPLY, _BY_SOURCE = 1, 2, 1
_U32 = struct.Struct("=I")


class Conntrack:
    """The connection table of the network namespace that the process is in now."""

    def __init__(self) -> None:
        self._netlink = NfNetlink()

    def close(self) -> None:
        self._netlink.close()

    def forget(self, networks: Collection[IPv4Network]) -> int:
        """Delete the connections that these sources opened. Return how many. Yields between slices."""
        hosts = [network.network_address for network in networks if network.prefixlen == 32]
        if len(hosts) == len(networks) <= MAX_SINGLE_LOOKUPS:
            found = [entry for host in hosts for entry in self._entries({int(host)}, [], host)]
        else:
            wide = [network for network in networks if network.prefixlen < 32]
            found = self._entries({int(host) for host in hosts}, wide, None)
        batches = [found[start : start + BATCH] for start in range(0, len(found), BATCH)]
        errors = (self._netlink.request(_SUBSYSTEM | _DELETE, batch) for batch in in_slices(batches, clock=1))
        return sum(found.count(0) for found in errors)  # the others have ended meanwhile

    def _entries(self, hosts: set[int], networks: list[IPv4Network], host: IPv4Address | None) -> list[bytes]:
        """Return the key of each of their connections. With `host` the kernel selects, since Linux 5.8."""
        body = b""
        if host is not None:
            source = nested(_TUPLE_ORIGINAL, nested(_TUPLE_IP, attribute(_IP_SOURCE, host.packed)))
            flags = attribute(_FILTER_ORIGINAL, _U32.pack(_BY_SOURCE)) + attribute(_FILTER_REPLY, _U32.pack(0))
            body = source + nested(_FILTER, flags)
        found = []
        try:
            for _, octets in in_slices(self._netlink.dump(_SUBSYSTEM | _GET, body)):
                entry = dict(attributes(octets))
                original = entry[_TUPLE_ORIGINAL]
                source_address = _source(original)
                if source_address in hosts or any(
                    source_address & int(network.netmask) == int(network.network_address) for network in networks
                ):
                    zone = attribute(_ZONE, entry[_ZONE]) if _ZONE in entry else b""
                    found.append(nested(_TUPLE_ORIGINAL, original) + zone)
        except NetlinkError:
            pass  # this kernel does not track connections
        return found


def _source(original: bytes) -> int:
    for kind, value in attributes(original):
        if kind == _TUPLE_IP:
            for inner, address in attributes(value):
                if inner == _IP_SOURCE:
                    return int.from_bytes(address, "big")
    return 0
