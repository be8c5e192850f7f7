"""The kernel's IPsec policies (xfrm, linux/xfrm.h): which datagrams it must encrypt, or drop, on their way out."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

from l2tpns.runtime.peer import Peer
from l2tpns.system.netlink_socket import (
    HEADER,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NetlinkError,
    NetlinkSocket,
    error_of,
)
from l2tpns.system.nfnetlink import attributes

READ_INTERVAL = 10.0  # seconds; when their number changes they are read at once

_NETLINK_XFRM = 6
_GETPOLICY, _GETSPDINFO = 0x15, 0x25
_SPDINFO = 1  # XFRMA_SPD_INFO
_TEMPLATES = 5  # XFRMA_TMPL
_OUT, _BLOCK = 1, 1  # XFRM_POLICY_OUT, XFRM_POLICY_BLOCK
_FAMILIES = (socket.AF_UNSPEC, socket.AF_INET)
# struct xfrm_selector: addresses to and from, ports and masks to and from, family, prefix lengths, protocol
_SELECTOR = struct.Struct("=4s12x4s12x2s2s2s2sHBBB")
_SELECTOR_SIZE, _POLICY_SIZE = 56, 168
_VERDICT = struct.Struct("=II2B")  # priority, index, direction, action
_VERDICT_OFFSET = _SELECTOR_SIZE + 64 + 32
_COUNTS = struct.Struct("=6I")  # struct xfrmu_spdinfo: in, out, forwarded, and those of sockets


@dataclass(frozen=True, slots=True)
class Policy:
    """An outgoing policy. Addresses, ports and their masks are numbers."""

    priority: int
    destination: tuple[int, int]
    source: tuple[int, int]
    destination_port: tuple[int, int]
    source_port: tuple[int, int]
    protects: bool  # encrypts or drops

    def matches(self, local: Peer, peer: Peer) -> bool:
        """Return whether it is about UDP datagrams from one end to the other."""
        ends = (self.destination, self.destination_port, *peer), (self.source, self.source_port, *local)
        return all(
            not (_number(socket.inet_aton(address)) ^ wanted) & mask and not (port ^ wanted_port) & port_mask
            for (wanted, mask), (wanted_port, port_mask), address, port in ends
        )


class IpsecPolicies(NetlinkSocket):
    """The outgoing policies of a network namespace, in the order in which the kernel asks them."""

    def __init__(self) -> None:
        """Read nothing yet. Raises OSError if the kernel has no IPsec."""
        super().__init__(_NETLINK_XFRM)
        self._policies: list[Policy] = []
        self._counts: tuple[int, ...] = ()
        self._read_at = 0.0  # monotonic

    def changed(self) -> bool:
        """Read the policies if that is due. Return whether they are others than before. Raises NetlinkError."""
        counts, now = self._count(), monotonic()
        if counts == self._counts and (not counts[_OUT] or now < self._read_at + READ_INTERVAL):
            return False
        self._counts, self._read_at = counts, now
        before, self._policies = self._policies, sorted(self._dump(), key=lambda policy: policy.priority)
        return before != self._policies

    def protect(self, local: Peer, peer: Peer) -> bool:
        """Return whether UDP datagrams from one end to the other must not leave as they are."""
        for policy in self._policies:
            if policy.matches(local, peer):
                return policy.protects
        return False

    def _count(self) -> tuple[int, ...]:
        with self._lock:
            for message in self._ask(_GETSPDINFO, bytes(4), 0):
                for kind, value in attributes(message[HEADER.size + 4 :]):
                    if kind == _SPDINFO:
                        return tuple(_COUNTS.unpack_from(value))
        return (0,) * 6

    def _dump(self) -> list[Policy]:
        with self._lock:
            return [found for message in self._ask(_GETPOLICY, b"", NLM_F_DUMP) if (found := read_policy(message))]

    def _ask(self, kind: int, payload: bytes, flags: int) -> Iterator[bytes]:
        number = self._number()
        self._transmit(HEADER.pack(HEADER.size + len(payload), kind, NLM_F_REQUEST | flags, number, 0) + payload)
        while True:
            for answer, sequence, message, more in self._receive():
                if sequence != number:
                    continue
                if answer == NLMSG_ERROR and (code := error_of(message)):
                    raise NetlinkError(code)
                if answer in (NLMSG_DONE, NLMSG_ERROR):
                    return
                yield message
                if not more:
                    return


def read_policy(message: bytes) -> Policy | None:
    """Return the policy in a message, None if it is about incoming packets or IPv6."""
    body = message[HEADER.size :]
    to, source, dport, dmask, sport, smask, family, to_bits, from_bits, protocol = _SELECTOR.unpack_from(body)
    priority, _, direction, action = _VERDICT.unpack_from(body, _VERDICT_OFFSET)
    if direction != _OUT or family not in _FAMILIES or protocol not in (0, socket.IPPROTO_UDP):
        return None
    protects = action == _BLOCK or any(kind == _TEMPLATES for kind, _ in attributes(body[_POLICY_SIZE:]))
    return Policy(
        priority,
        (_number(to), _mask(to_bits)),
        (_number(source), _mask(from_bits)),
        (_number(dport), _number(dmask)),
        (_number(sport), _number(smask)),
        protects,
    )


def _number(octets: bytes) -> int:
    return int.from_bytes(octets, "big")


def _mask(bits: int) -> int:
    return 0xFFFFFFFF << (32 - bits) & 0xFFFFFFFF
