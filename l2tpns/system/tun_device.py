"""The tun device: creation by ioctl, MTU, address and carrier by netlink (Linux: tuntap.rst, rtnetlink(7)).

The kernel removes the device with the process that holds its descriptor. tun_watch.py keeps it as it was set up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Interface

from l2tpns.errors import ConfigError, RepairError, WaitError, refused
from l2tpns.system.netlink_socket import NetlinkError
from l2tpns.system.rtnetlink import Netlink

CLONE_DEVICE = "/dev/net/tun"
QUEUE_LENGTH = 2000  # packets that the kernel keeps while this process does other work: 10 ms at full speed

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI, _IFF_TUN_EXCL = 0x0001, 0x1000, 0x8000
_IFREQ = struct.Struct("16sH22x")


class Tun:
    """An open tun device. Its descriptor does not block; `write` sends one packet and raises OSError if it cannot."""

    __slots__ = ("fd", "index", "name", "write")

    def __init__(self, name: str) -> None:
        """Create the device. Raises ConfigError, RepairError or WaitError."""
        self.name = name
        self.index = 0
        self.fd = _open(name)
        self.write = partial(os.write, self.fd)  # no Python function in between: it is called 100,000 times a second

    def set_up(self, netlink: Netlink, address: IPv4Interface, mtu: int) -> None:
        """Set MTU, queue length and address, then bring the device up. Raises ConfigError."""
        try:
            self.index = netlink.link_index(self.name)
            netlink.set_link(self.index, mtu=mtu, queue_length=QUEUE_LENGTH)
            with suppress(NetlinkError):  # a kernel without IPv6
                netlink.keep_silent(self.index)
            netlink.add_address(self.index, address)
            netlink.set_link(self.index, up=True)
        except NetlinkError as error:
            why = f"tundevicename: {self.name} with address {address} cannot be set up: {error}"
            raise refused(error.code, why) from None

    def close(self) -> None:
        """Close the descriptor; the kernel removes the device, its address and all routes through it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open(name: str) -> int:
    """Return the descriptor of a new device of this name."""
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
    try:
        # IFF_TUN_EXCL: fail if another process has made a device of this name.
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(octets, _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL))
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL):
            raise WaitError(f"tundevicename: an interface {name} exists already; is l2tpns running?") from None
        why = "CAP_NET_ADMIN is needed" if error.errno == errno.EPERM else error.strerror
        raise refused(error.errno, f"tundevicename: {name} cannot be created: {why}") from None
    return fd
