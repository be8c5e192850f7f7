"""The tun device: creation by ioctl, MTU, address and carrier by netlink (Linux: tuntap.rst, rtnetlink(7)).

The kernel removes the device with the process that holds its descriptor, unless it is kept for the next process. Such a
device carries a mark as its alias, which `ip link` shows: a process adopts a device with its own mark, and refuses any
other of that name. tun_watch.py keeps the device as it was set up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path

from l2tpns.errors import ConfigError, RepairError, WaitError, refused
from l2tpns.system.netlink_socket import NetlinkError
from l2tpns.system.rtnetlink import Netlink

CLONE_DEVICE = "/dev/net/tun"
QUEUE_LENGTH = 2000  # packets that the kernel keeps while this process does other work: 10 ms at full speed

MARK = "l2tpns "  # and the directory of the saved state
_MAX_ALIAS = 255  # octets

_TUNSETIFF, _TUNSETPERSIST, _TUNGETIFF = 0x400454CA, 0x400454CB, 0x800454D2
_IFF_TUN, _IFF_NO_PI, _IFF_TUN_EXCL = 0x0001, 0x1000, 0x8000
_IFREQ = struct.Struct("16sH22x")


class Tun:
    """An open tun device. Its descriptor does not block; `write` sends one packet and raises OSError if it cannot."""

    __slots__ = ("_mark", "_netlink", "adopted", "fd", "index", "inherited", "kept", "name", "write")

    def __init__(self, name: str, netlink: Netlink, mark: str = "", open_already: int = -1) -> None:
        """Create the device, or adopt the one with this mark that an earlier process has kept.

        `open_already` is a descriptor of that device, if this process has inherited one: it is used or closed. Raises
        ConfigError, RepairError or WaitError.
        """
        self.name = name
        self.index = 0
        self._netlink, self._mark = netlink, mark
        self.inherited = _is_device(open_already, name) and bool(mark) and _alias(netlink, name) == mark
        if self.inherited:
            self.fd, self.adopted = open_already, True
        else:
            if open_already >= 0:
                os.close(open_already)
            self.fd, self.adopted = _open(name, netlink, mark)
        self.kept = self.adopted
        self.write = partial(os.write, self.fd)  # no Python function in between: it is called 100,000 times a second

    def set_up(self, netlink: Netlink, address: IPv4Interface, mtu: int) -> None:
        """Set MTU, queue length and address, then bring the device up. Raises ConfigError."""
        try:
            self.index = netlink.link_index(self.name)
            netlink.set_link(self.index, mtu=mtu, queue_length=QUEUE_LENGTH)
            with suppress(NetlinkError):  # a kernel without IPv6
                netlink.keep_silent(self.index)
            netlink.add_address(self.index, address)
            for other in netlink.addresses() if self.adopted else ():
                if other.device == self.index and other.address != address:
                    netlink.remove_address(self.index, other.address)
            netlink.set_link(self.index, up=True)
        except NetlinkError as error:
            why = f"tundevicename: {self.name} with address {address} cannot be set up: {error}"
            raise refused(error.code, why) from None

    def keep(self, kept: bool) -> None:
        """Have the device outlive this process, or not. Without a mark it never does. Raises NetlinkError."""
        kept = kept and bool(self._mark)
        if kept == self.kept:
            return
        if kept:
            self._netlink.set_link(self.index, alias=self._mark)  # first: a kept device without a mark is a stranger's
        try:
            fcntl.ioctl(self.fd, _TUNSETPERSIST, int(kept))
        except OSError as error:
            raise NetlinkError(error.errno or 0) from None
        self.kept = kept

    def close(self) -> None:
        """Close the descriptor. Unless the device is kept, the kernel removes it, its address and all routes."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open(name: str, netlink: Netlink, mark: str) -> tuple[int, bool]:
    """Return the descriptor of a device of this name, and whether it was adopted."""
    octets = name.encode()
    if not 0 < len(octets) < 16:
        raise ConfigError(f"tundevicename: {name!r} is not a valid interface name (1 to 15 octets)")
    try:
        fd = os.open(CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise RepairError(
            f"{CLONE_DEVICE} is missing: load the module tun, or give this container the device"
        ) from None
    except OSError as error:
        root = error.errno in (errno.EACCES, errno.EPERM)
        hint = (
            "; l2tpns must be started by root, and the user of setuid needs the device's mode to be 0666"
            if root
            else ""
        )
        raise refused(error.errno, f"{CLONE_DEVICE} cannot be opened: {error.strerror}{hint}") from None
    adopted = bool(mark) and _alias(netlink, name) == mark
    try:
        # IFF_TUN_EXCL: fail if another process has made a device of this name.
        flags = _IFF_TUN | _IFF_NO_PI | (0 if adopted else _IFF_TUN_EXCL)
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(octets, flags))
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL):
            raise WaitError(f"tundevicename: an interface {name} exists already; is l2tpns running?") from None
        why = "CAP_NET_ADMIN is needed" if error.errno == errno.EPERM else error.strerror
        raise refused(error.errno, f"tundevicename: {name} cannot be created: {why}") from None
    return fd, adopted


def _is_device(fd: int, name: str) -> bool:
    """Return whether a descriptor is an open tun device of this name."""
    if fd < 0:
        return False
    try:
        found, _ = _IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size)))
    except OSError:  # it is something else, or the device was deleted
        return False
    return bool(found.rstrip(b"\0") == name.encode())


def _alias(netlink: Netlink, name: str) -> str:
    """Return the alias of a tun device, an empty string if there is none."""
    try:
        link = netlink.link(netlink.link_index(name))
    except NetlinkError:
        return ""
    return link.alias if link.kind == "tun" else ""


def mark_of(directory: Path) -> str:
    """Return the mark of the devices of the server whose saved state is in this directory."""
    return f"{MARK}{directory}".encode(errors="replace")[:_MAX_ALIAS].decode(errors="ignore")


def remove_kept(netlink: Netlink, mark: str = MARK, *, but: str = "") -> list[str]:
    """Remove the devices whose mark begins so, except the one named `but` and those in use. Return their names.

    Raises L2tpnsError.
    """
    removed = []
    for link in netlink.links():
        if link.kind != "tun" or not link.alias.startswith(mark) or link.name == but:
            continue
        with suppress(WaitError):  # a process has it open
            tun = Tun(link.name, netlink, link.alias)
            tun.keep(False)
            tun.close()
            removed.append(link.name)
    return removed
