"""Bounded drains: a reader greenlet reads a few packets of a raw non-blocking descriptor, then yields.

A loop that reads while data is ready never yields under load and blocks everything else; gevent.sleep(0) is not a fair
yield either. So at most DRAIN packets are read, then hub.wait is called, even if there are more. 16 keeps the delay
of a timer below a millisecond at full load; 64 is 5 % faster and makes that delay twenty times as long.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event
from gevent.socket import wait_read

from l2tpns.errors import L2tpnsError
from l2tpns.runtime.log import Logger
from l2tpns.runtime.scheduler import Scheduler

DRAIN = 16  # packets or datagrams read before other greenlets run
RETRY_DELAY = 1.0  # seconds after an error of a socket
_READ = 1  # libev's EV_READ


class DeviceGone(L2tpnsError):
    """The descriptor will never deliver anything again."""


class Clock:
    """Time as of the last drain, which sets `now` to `read()`: good enough to stamp packets, and free."""

    __slots__ = ("now", "read")

    def __init__(self, read: Callable[[], float] = monotonic) -> None:
        self.read = read
        self.now = read()


def opened() -> Event:
    """Return an event that is set."""
    event = Event()
    event.set()
    return event


def drain_forever(fd: int, drain: Callable[[], None], reading: Event, log: Logger) -> None:
    """Call `drain` while `fd` is readable and `reading` is set, until it raises DeviceGone. Yields after each drain."""
    hub = gevent.get_hub()
    watcher = hub.loop.io(fd, _READ)
    try:
        while True:
            if not reading.is_set():
                reading.wait()
            try:
                drain()
            except DeviceGone as gone:
                log.error("data_path_lost", why=str(gone))
                return
            except Exception:  # the handler of one packet failed: the packets of other subscribers must still pass
                log.error("data_path_failed", traceback=traceback.format_exc())
            hub.wait(watcher)
    finally:
        watcher.close()


def drain_in_turn(
    sock: Any, share: Scheduler, owner: str, read_one: Callable[[Any], None], failed: Callable[[Exception], None]
) -> None:
    """Call `read_one` while the socket is readable, in turn with others that have a share of the time.

    `failed` logs what it raises, which must not stop the reader. Yields after each drain.
    """
    sock.setblocking(False)
    while True:
        wait_read(sock.fileno())
        share.wait_turn(owner)
        try:
            for _ in range(DRAIN):
                read_one(sock)
                if not share.slice_open:
                    break
        except BlockingIOError:
            pass
        except Exception as error:
            failed(error)
            if isinstance(error, OSError):
                gevent.sleep(RETRY_DELAY)
