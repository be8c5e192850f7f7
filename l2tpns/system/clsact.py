"""Programs at the clsact hooks of interfaces, for kernels without TCX, before Linux 6.6 (tc-bpf(8), linux/pkt_cls.h).

A filter of traffic control stays when the process ends, unlike a link: it is removed at the stop, or by the next start.
Filters of several servers run one after the other; each server's has its own handle.
"""

from __future__ import annotations

import ctypes
import os
import struct
import zlib
from collections.abc import Collection
from contextlib import suppress
from errno import EEXIST

from l2tpns.system.libbpf import EGRESS, INGRESS, BpfError, Program
from l2tpns.system.netlink_socket import NLM_F_DUMP, NetlinkError
from l2tpns.system.nfnetlink import attribute, text
from l2tpns.system.rtnetlink import Message, Netlink
from l2tpns.system.tc_messages import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RTM_GETQDISC,
    RTM_GETTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    TcMessage,
    tc_message,
)

PRIORITY = 0x4C32  # of our filters among others: "L2"
RTM_DELQDISC, RTM_DELTFILTER = 37, 45
_NLM_F_EXCL = 0x200
_CLSACT = 0xFFFFFFF1  # TC_H_CLSACT
_QDISC = 0xFFFF0000  # its handle
_HOOKS = {INGRESS: 0xFFFFFFF2, EGRESS: 0xFFFFFFF3}
_ETH_P_ALL = 0x0300  # in network order
_FD, _NAME, _FLAGS, _DIRECT = 6, 7, 8, 1  # TCA_BPF_...; the program's answer is the verdict
_U32 = struct.Struct("=I")
_MEMBARRIER, _GLOBAL = {"x86_64": 324, "aarch64": 283}, 1  # system calls; MEMBARRIER_CMD_GLOBAL


class Filters:
    """The filters of one server, which have a handle of their own. Methods may yield."""

    def __init__(self, netlink: Netlink, handle: int) -> None:
        self._netlink, self._handle = netlink, handle

    def attach(self, program: Program, interface: int, point: int) -> Filter:
        """Attach a program, in the place of the one that this server has there. Raises BpfError."""
        try:
            self._make_hooks(interface)
            options = (
                attribute(_FD, _U32.pack(program.fd)),
                text(_NAME, f"l2tpns {program.name}"),
                attribute(_FLAGS, _U32.pack(_DIRECT)),
            )
            message = self._message(interface, point, "bpf", *options)
            self._netlink.request(RTM_NEWTFILTER, [message], NLM_F_CREATE | NLM_F_REPLACE)
        except NetlinkError as error:
            raise BpfError(f"cannot attach {program.name} to interface {interface}: {error}") from None
        return Filter(self, interface, point)

    def detach(self, interface: int, point: int) -> None:
        """Remove a filter, and the hooks if nobody uses them. Wait for the packets that its program has begun with."""
        with suppress(NetlinkError):  # the interface is gone
            self._netlink.request(RTM_DELTFILTER, [self._message(interface, point)])
            self._tidy(interface)
        if number := _MEMBARRIER.get(os.uname().machine):
            ctypes.CDLL(None).syscall(number, _GLOBAL, 0)  # returns when no processor is in a program any more

    def remove_others(self, kept: Collection[tuple[int, int]]) -> int:
        """Remove this server's filters at all other hooks than these (interface, point). Return how many."""
        removed = 0
        for interface in _with_hooks(self._netlink):
            for point in _HOOKS:
                if (interface, point) not in kept and self._handle in _handles(self._netlink, interface, point):
                    self.detach(interface, point)
                    removed += 1
        return removed

    def _make_hooks(self, interface: int) -> None:
        message = tc_message(interface, "clsact", _CLSACT, _QDISC)
        try:
            self._netlink.request(RTM_NEWQDISC, [message], NLM_F_CREATE | _NLM_F_EXCL)
        except NetlinkError as error:
            if error.code != EEXIST:
                raise

    def _message(self, interface: int, point: int, kind: str = "", *options: bytes) -> Message:
        message = tc_message(interface, kind, _HOOKS[point], self._handle, *options)
        message["info"] = PRIORITY << 16 | _ETH_P_ALL
        return message

    def _tidy(self, interface: int) -> None:
        if not any(_filters(self._netlink, interface, point) for point in _HOOKS):
            self._netlink.request(RTM_DELQDISC, [tc_message(interface, "", _CLSACT, _QDISC)])


class Filter:
    """One attached program: as a Link (libbpf.py), but nothing has to be pinned, for it stays until it is detached."""

    fd = -1

    def __init__(self, filters: Filters, interface: int, point: int) -> None:
        self._filters, self._interface, self._point = filters, interface, point

    def detach(self) -> None:
        self._filters.detach(self._interface, self._point)

    def close(self) -> None:
        """Do nothing: the program stays attached."""


def filters_of(netlink: Netlink, device: str) -> Filters:
    """Return the filters of the server with this tun device."""
    return Filters(netlink, zlib.crc32(device.encode()) | 1)


def remove_all(netlink: Netlink) -> int:
    """Remove the filters of all servers, while none runs. Return how many."""
    hooks = [(interface, point) for interface in _with_hooks(netlink) for point in _HOOKS]
    servers = {handle for interface, point in hooks for handle in _handles(netlink, interface, point)}
    return sum(Filters(netlink, handle).remove_others(()) for handle in servers)


def _with_hooks(netlink: Netlink) -> list[int]:
    """Return the interfaces that have clsact hooks."""
    queues = netlink.query(RTM_GETQDISC, tc_message(0, "", 0, 0), TcMessage, NLM_F_DUMP)
    return [queue["index"] for queue in queues if queue.get_attr("TCA_KIND") == "clsact"]


def _filters(netlink: Netlink, interface: int, point: int) -> list[Message]:
    wanted = tc_message(interface, "", _HOOKS[point], 0)
    return netlink.query(RTM_GETTFILTER, wanted, TcMessage, NLM_F_DUMP)


def _handles(netlink: Netlink, interface: int, point: int) -> list[int]:
    """Return the handles of servers' filters at a hook."""
    there = _filters(netlink, interface, point)
    return [each["handle"] for each in there if each["info"] >> 16 == PRIORITY and each["handle"]]
