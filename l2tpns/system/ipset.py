"""ipset: named sets of addresses, which a firewall rule looks up in one step (linux/netfilter/ipset/ip_set.h).

The sets hold networks (hash:net), each optionally with a packet mark (skbinfo), which `-j SET --map-set` copies to the
packet. A change costs the same whatever the set holds. Sets of another type under our names are refused, not changed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from errno import EEXIST, ENOENT
from ipaddress import IPv4Network

from l2tpns.errors import L2tpnsError
from l2tpns.system.netlink_socket import NetlinkError
from l2tpns.system.nfnetlink import NfNetlink, attribute, attributes, nested, text

_SUBSYSTEM = 6 << 8
_PROTOCOL = 6  # spoken since Linux 2.6.39
_CREATE, _DESTROY, _LIST, _ADD, _DEL, _HEADER = 2, 3, 7, 9, 10, 12
_REVISIONS = {"hash:net": 6, "hash:ip": 4}  # the first with skbinfo: Linux 3.18
_INET = 2
_FLAG_LIST_HEADER, _FLAG_WITH_SKBINFO = 1 << 2, 1 << 6
_MAX_MARK = 0xFFFFFFFF

# Attributes: of a message, of its data
_PROTOCOL_ATTRIBUTE, _SETNAME, _TYPENAME, _REVISION, _FAMILY, _FLAGS, _DATA, _ADT = 1, 2, 3, 4, 5, 6, 7, 8
_IP, _CIDR, _CADT_FLAGS, _MAXELEM, _ELEMENTS, _SKBMARK = 1, 3, 8, 19, 24, 27
_IPV4 = 1
_BYTE_ORDER = 0x4000  # NLA_F_NET_BYTEORDER: big-endian
_ERRORS = {  # errno values of ipset, which strerror does not know
    4097: "the kernel speaks another protocol",
    4098: "the kernel does not support this type of set",
    4099: "there are too many sets",
    4100: "it is in use",
    4103: "it exists already",
    4108: "a rule refers to it",
    4352: "the set is full",
}
_EXIST, _HASH_FULL = 4103, 4352

_START = attribute(_PROTOCOL_ATTRIBUTE, bytes([_PROTOCOL]))
_U32 = struct.Struct("!I")
_MARK = struct.Struct("!II")  # mark, mask


class IpSetError(L2tpnsError):
    """The kernel has refused. The text is for the operator, `code` is the errno."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"ipset {name}: {_ERRORS.get(code) or os.strerror(code)}")
        self.code = code


class IpSets:
    """The sets of one network namespace: the one of the process, or the one in which `netlink` was made."""

    def __init__(self, netlink: NfNetlink | None = None) -> None:
        self._netlink = netlink or NfNetlink()

    def close(self) -> None:
        self._netlink.close()

    def ensure(self, name: str, kind: str = "hash:net", *, skbinfo: bool = False, maxelem: int = 65536) -> None:
        """Ensure a set of this name and type exists; it keeps its members. Raises IpSetError for another type."""
        data = attribute(_MAXELEM | _BYTE_ORDER, _U32.pack(maxelem))
        if skbinfo:
            data += attribute(_CADT_FLAGS | _BYTE_ORDER, _U32.pack(_FLAG_WITH_SKBINFO))
        head = text(_TYPENAME, kind) + attribute(_REVISION, bytes([_REVISIONS[kind]]))
        body = self._named(name) + head + attribute(_FAMILY, bytes([_INET])) + nested(_DATA, data)
        (error,) = self._netlink.request(_SUBSYSTEM | _CREATE, [body])
        if error in (EEXIST, _EXIST):
            raise IpSetError(f"{name} of another type", _EXIST)
        self._check(name, [error])

    def exists(self, name: str) -> bool:
        (error,) = self._netlink.request(_SUBSYSTEM | _HEADER, [self._named(name)])
        if error not in (0, ENOENT):
            raise IpSetError(name, error)
        return not error

    def destroy(self, name: str) -> None:
        """Remove a set, if it exists. Raises IpSetError, such as when a rule refers to it."""
        (error,) = self._netlink.request(_SUBSYSTEM | _DESTROY, [self._named(name)])
        if error not in (0, ENOENT):
            raise IpSetError(name, error)

    def names(self) -> list[str]:
        """Return the names of all sets, ours or not."""
        found = []
        for _, octets in self._netlink.dump(_SUBSYSTEM | _LIST, _START):
            name = dict(attributes(octets)).get(_SETNAME, b"").rstrip(b"\0").decode()
            if name not in found:
                found.append(name)
        return found

    def add(self, name: str, network: IPv4Network, mark: int | None = None, mask: int = _MAX_MARK) -> None:
        """Add a network, or change its mark. A packet keeps the bits of its own mark that are not in `mask`."""
        self._change(name, _ADD, {network: mark}, mask)

    def remove(self, name: str, network: IPv4Network) -> None:
        """Remove a network, if the set has it."""
        self._change(name, _DEL, {network: None})

    def members(self, name: str) -> dict[IPv4Network, int | None]:
        """Return the members and their marks; None: no mark. Raises IpSetError if there is no such set."""
        found: dict[IPv4Network, int | None] = {}
        try:
            for _, octets in self._netlink.dump(_SUBSYSTEM | _LIST, self._named(name)):
                for kind, values in attributes(octets):
                    if kind == _ADT:
                        found.update(_read(entry) for _, entry in attributes(values))
        except NetlinkError as error:
            raise IpSetError(name, error.code) from error
        return found

    def count(self, name: str) -> int:
        """Return how many networks the set holds, which costs the same whatever it holds. Raises IpSetError."""
        only_header = attribute(_FLAGS | _BYTE_ORDER, _U32.pack(_FLAG_LIST_HEADER))
        try:
            for _, octets in self._netlink.dump(_SUBSYSTEM | _LIST, self._named(name) + only_header):
                data = dict(attributes(dict(attributes(octets)).get(_DATA, b"")))
                if _ELEMENTS in data:
                    return int(_U32.unpack(data[_ELEMENTS])[0])
        except NetlinkError as error:
            raise IpSetError(name, error.code) from error
        return len(self.members(name))  # a kernel that does not report it

    def fill(self, name: str, wanted: Mapping[IPv4Network, int | None], mask: int = _MAX_MARK) -> tuple[int, int]:
        """Give the set exactly these members. Return how many were added or changed, and how many removed."""
        wanted = {half: mark for network, mark in wanted.items() for half in _halves(network)}
        there = self.members(name)
        new = {network: mark for network, mark in wanted.items() if network not in there or there[network] != mark}
        gone = [network for network in there if network not in wanted]
        self._change(name, _DEL, dict.fromkeys(gone))
        self._change(name, _ADD, new, mask)
        return len(new), len(gone)

    def _change(
        self, name: str, command: int, networks: Mapping[IPv4Network, int | None], mask: int = _MAX_MARK
    ) -> None:
        named = self._named(name)
        bodies = [
            named + nested(_DATA, *_entry(half, mark, mask))
            for network, mark in networks.items()
            for half in _halves(network)
        ]
        self._check(name, self._netlink.request(_SUBSYSTEM | command, bodies))

    def _check(self, name: str, errors: Iterable[int]) -> None:
        for error in errors:
            if error:
                raise IpSetError(name, error)

    @staticmethod
    def _named(name: str) -> bytes:
        return _START + text(_SETNAME, name)


def _halves(network: IPv4Network) -> Iterable[IPv4Network]:
    """Split a /0, which hash:net cannot hold."""
    return network.subnets() if network.prefixlen == 0 else (network,)


def _entry(network: IPv4Network, mark: int | None, mask: int) -> Iterator[bytes]:
    yield nested(_IP, attribute(_IPV4 | _BYTE_ORDER, network.network_address.packed))
    if network.prefixlen < 32:
        yield attribute(_CIDR, bytes([network.prefixlen]))
    if mark is not None:
        yield attribute(_SKBMARK | _BYTE_ORDER, _MARK.pack(mark, mask))


def _read(octets: bytes) -> tuple[IPv4Network, int | None]:
    values = dict(attributes(octets))
    address = dict(attributes(values[_IP]))[_IPV4]
    prefix = values[_CIDR][0] if _CIDR in values else 32
    mark = _MARK.unpack(values[_SKBMARK])[0] if _SKBMARK in values else None
    return IPv4Network((address, prefix)), mark
