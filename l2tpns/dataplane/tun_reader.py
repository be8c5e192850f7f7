"""The bounded read of the tun device: packets that the kernel routes to subscribers.

system/tun_device.py makes the device; forward.py decides what becomes of a packet.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from l2tpns.runtime.counters import Counters
from l2tpns.runtime.drain import DRAIN, DeviceGone
from l2tpns.system.tun_device import Tun

MAX_PACKET = 4096  # octets read at once; the device's MTU stays below 2600


def drain_tun(tun: Tun, counters: Counters, before: Callable[[], None], downlink: Callable[[bytes], None]) -> None:
    """Call `before`, then `downlink` with up to DRAIN packets. Raises DeviceGone when the device was deleted.

    Does not yield.
    """
    before()
    fd, read = tun.fd, os.read
    for _ in range(DRAIN):
        try:
            packet = read(fd, MAX_PACKET)
        except BlockingIOError:
            return
        except OSError as error:
            counters.tun_rx_errors += 1
            if error.errno in (errno.EBADFD, errno.EBADF):
                raise DeviceGone(f"{tun.name} was deleted") from None
            return
        downlink(packet)
