"""The tun device: made here, set up through netlink, gone with the process."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Interface

from l2tpns.errors import ConfigError, RepairError, WaitError, refused
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.drain import DRAIN, DeviceGone
from l2tpns.system.netlink_socket import NetlinkError
from l2tpns.system.rtnetlink import Netlink

CLONE_DEVICE = "/dev/net/tun"
LARGEST = 4096  # octets read at once; the device's MTU stays below 2600
QUEUE_LENGTH = 2000  # packets: what the kernel keeps while this process does something else, 10 ms at full speed

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI, _IFF_TUN_EXCL = 0x0001, 0x1000, 0x8000
_IFREQ = struct.Struct("16sH22x")


class Tun:
    """An open tun device. `read` and `write` never block."""

    __slots__ = ("fd", "index", "name", "write")

    def __init__(self, name: str) -> None:
        """Make it. Raises ConfigError."""
        self.name = name
        self.index = 0
        self.fd = _open(name)
        self.write = partial(os.write, self.fd)  # no function of ours in between, 100,000 times a second

    def set_up(self, netlink: Netlink, address: IPv4Interface, mtu: int) -> None:
        """Give it MTU, address and carrier. Raises ConfigError."""
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
        """The kernel removes the device, its address and all routes through it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open(name: str) -> int:
    octets = name.encode()
    if not 0 < len(octets) < 16:
        raise ConfigError(f"tundevicename: {name!r} is no name of an interface (1 to 15 octets)")
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
        # IFF_TUN_EXCL: never share a device that somebody else has made.
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(octets, _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL))
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL):
            raise WaitError(f"tundevicename: an interface {name} exists already; is l2tpns running?") from None
        why = "CAP_NET_ADMIN is needed" if error.errno == errno.EPERM else error.strerror
        raise refused(error.errno, f"tundevicename: {name} cannot be made: {why}") from None
    return fd


def tun_drain(tun: Tun, counters: Counters, before: Callable[[], None], downlink: Callable[[bytes], None]) -> None:
    """Hand up to DRAIN packets to `downlink`. Raises DeviceGone when the device was deleted."""
    before()
    fd, read = tun.fd, os.read
    for _ in range(DRAIN):
        try:
            packet = read(fd, LARGEST)
        except BlockingIOError:
            return
        except OSError as error:
            counters.tun_rx_errors += 1
            if error.errno in (errno.EBADFD, errno.EBADF):
                raise DeviceGone(f"{tun.name} was deleted") from None
            return
        downlink(packet)
