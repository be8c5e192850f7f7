"""Keeps the tun device as it was set up: link, MTU, address, routes, sysctls and queues (rtnetlink(7)).

Other programs change these: a network manager that restarts removes what it did not create; when an operator sets the
device down and up, the kernel drops its routes without a notification. This greenlet restores what was lost and logs
it. Two programs that undo each other's work do not run in a busy loop: after a few repairs in a row the delays grow.

The same notifications show which addresses this machine needs itself (surroundings.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from time import monotonic

import gevent

from l2tpns.errors import L2tpnsError
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Part, Supervisor
from l2tpns.system.netlink_events import NetlinkEvents
from l2tpns.system.netlink_socket import HEADER
from l2tpns.system.routes import PROTOCOL, Routes
from l2tpns.system.rtnetlink import Netlink, parse_route
from l2tpns.system.surroundings import Surroundings, look
from l2tpns.system.sysctls import Sysctls

CHECK_INTERVAL = 60.0  # seconds between two comparisons of everything, whether or not the kernel reported a change
SETTLE_DELAY = 0.1  # seconds in which further notifications are collected
MAX_IMMEDIATE_REPAIRS = 5  # in a row, before the delays begin
QUIET_PERIOD = 60.0  # seconds without a repair that end a row
MAX_RETRY_DELAY = 30.0  # seconds between two repairs
WHY = "removed or changed by another program"
MAX_NAMED = 10  # routes in one log line

_LINK, _ADDRESS, _ROUTE = (16, 17), (20, 21), (24, 25)  # RTM_NEW..., RTM_DEL...
_RTM_DELLINK, _RTM_DELROUTE = 17, 25
_QUEUES_GONE = (37, 41, 45)  # RTM_DELQDISC, RTM_DELTCLASS, RTM_DELTFILTER
_LINK_INDEX = struct.Struct("=4xi")  # of ifinfomsg and tcmsg
_ADDRESS_INDEX = struct.Struct("=4xI")  # of ifaddrmsg


@dataclass(frozen=True, slots=True)
class Device:
    """The tun device as it was set up."""

    index: int
    name: str
    address: IPv4Interface
    mtu: int
    queue_length: int


class Pace:
    """When the next repair may be made: at once, unless there were many in a row. Times are monotonic."""

    __slots__ = ("_last", "_row")

    def __init__(self) -> None:
        self._last = 0.0
        self._row = 0  # repairs without QUIET_PERIOD seconds in between

    @property
    def not_before(self) -> float:
        if self._row <= MAX_IMMEDIATE_REPAIRS:
            return 0.0
        return self._last + min(MAX_RETRY_DELAY, 2.0 ** min(self._row - MAX_IMMEDIATE_REPAIRS, 8))

    def repaired(self, now: float) -> None:
        self._row = 1 if now - self._last > QUIET_PERIOD else self._row + 1
        self._last = now


class TunWatch:
    """The watcher of one tun device. It has netlink sockets of its own: its dumps may be long."""

    def __init__(
        self,
        device: Device,
        routes: Routes,
        log: Logger,
        *,
        on_surroundings: Callable[[Surroundings], None],
        restore_queues: Callable[[], list[str]],
        supervisor: Supervisor | None = None,
    ) -> None:
        self._device = device
        self._routes = routes
        self._log = log
        self._on_surroundings = on_surroundings
        self._restore_queues = restore_queues
        self._events = NetlinkEvents(PROTOCOL)  # opened before anything is read, so that no change is missed
        self._netlink = Netlink()
        self._sysctls = Sysctls(device.name)
        self._forwards = self._sysctls.forwards()
        self._supervisor = supervisor or Supervisor(log)
        self._watch: Part | None = None
        self._compare_device = self._compare_queues = self._look_around = False
        self._gone = False
        self._lost_routes: set[IPv4Network] = set()
        self._pace = Pace()

    def start(self) -> None:
        """Set the sysctls, report the surroundings, then watch. Raises L2tpnsError."""
        self._sysctls.apply()
        self._report_sysctls()
        self._on_surroundings(look(self._netlink, self._device.index))
        self._watch = self._supervisor.spawn("tun watcher", self._run)

    def stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        self._events.close()
        self._netlink.close()
        self._sysctls.close()

    def _run(self) -> None:
        """Watch until stopped. The reader of the device handles its deletion, and stops this greenlet."""
        while True:
            try:
                woken = self._events.wait(self._pause(monotonic()))
                if woken:
                    self._read()
                    gevent.sleep(SETTLE_DELAY)
                    self._read()
                else:
                    self._compare_device = self._compare_queues = self._look_around = True
                self._work()
            except (L2tpnsError, OSError) as error:
                self._log.error("tun_not_restored", device=self._device.name, why=str(error))
                self._compare_device = self._compare_queues = self._look_around = True
                self._pace.repaired(monotonic())
                gevent.sleep(1.0)
            except Exception:  # an error in one notification must not end the watch
                self._log.exception("tun_watch_failed")
                gevent.sleep(1.0)

    def _pause(self, now: float) -> float:
        """Return the seconds until the next comparison if the kernel reports nothing."""
        if self._compare_device or self._compare_queues or self._lost_routes:
            return max(self._pace.not_before - now, SETTLE_DELAY)
        return CHECK_INTERVAL

    # What the kernel reports

    def _read(self) -> None:
        messages, overrun = self._events.read()
        if overrun:
            self._compare_device = self._compare_queues = self._look_around = True
        for kind, message in messages:
            self._note(kind, message)

    def _note(self, kind: int, message: bytes) -> None:
        """Note what to compare because of this message."""
        if kind in _ROUTE:
            route = parse_route(message)
            if route is None:
                return
            if route.device != self._device.index:
                self._look_around = True
            elif kind == _RTM_DELROUTE and route.protocol == PROTOCOL:
                self._lost_routes.add(route.prefix)
        elif kind in _LINK or kind in _ADDRESS:
            (index,) = (_LINK_INDEX if kind in _LINK else _ADDRESS_INDEX).unpack_from(message, HEADER.size)
            if index == self._device.index:
                self._gone |= kind == _RTM_DELLINK  # the reader of the device creates another
                self._compare_device = True
            else:
                self._look_around = True
        elif kind in _QUEUES_GONE:
            (index,) = _LINK_INDEX.unpack_from(message, HEADER.size)
            self._compare_queues |= index == self._device.index

    # What follows

    def _work(self) -> None:
        if self._gone:
            return
        if self._look_around:
            self._look_around = False
            self._on_surroundings(look(self._netlink, self._device.index))
        if not (self._compare_device or self._compare_queues or self._lost_routes):
            return
        now = monotonic()
        if now >= self._pace.not_before and self._repair():
            self._pace.repaired(now)

    def _repair(self) -> bool:
        """Restore what is missing and log it. Return True if anything was missing."""
        whole, self._compare_device = self._compare_device, False
        queues, self._compare_queues = self._compare_queues, False
        routes, self._lost_routes = self._lost_routes, set()
        lost = self._repair_link() if whole else []
        if whole:
            lost += self._sysctls.apply()
            self._warn_of_forwarding()
        missing = self._routes.compare(self._installed_routes()) if whole else self._routes.repair(routes)
        if queues or whole:
            lost += self._restore_queues()
        if lost:
            self._log.warning("tun_restored", device=self._device.name, lost=lost, why=WHY)
        if missing:
            named = [str(prefix) for prefix in sorted(missing)[:MAX_NAMED]]
            self._log.warning("routes_restored", device=self._device.name, count=len(missing), routes=named, why=WHY)
        return bool(lost or missing)

    def _installed_routes(self) -> set[IPv4Network]:
        routes = self._netlink.kernel_routes(PROTOCOL, device=self._device.index, pauses=True)
        return {route.prefix for route in routes}

    def _repair_link(self) -> list[str]:
        """Set the link as it was set up. Return in words what had to be set."""
        device, netlink, lost = self._device, self._netlink, []
        link = netlink.link(device.index)
        if link.mtu != device.mtu:
            netlink.set_link(device.index, mtu=device.mtu)
            lost.append(f"mtu {device.mtu}")
        if link.queue_length != device.queue_length:
            netlink.set_link(device.index, queue_length=device.queue_length)
            lost.append(f"txqueuelen {device.queue_length}")
        if device.address not in [each.address for each in netlink.addresses() if each.device == device.index]:
            netlink.add_address(device.index, device.address)
            lost.append(f"address {device.address}")
        if not link.up:
            netlink.set_link(device.index, up=True)
            lost.append("up")
        return lost

    # Sysctls

    def _report_sysctls(self) -> None:
        facts = {"device": self._device.name, "settings": self._sysctls.state()}
        refused = self._sysctls.refused()
        if refused:
            self._log.warning("sysctl_refused", device=self._device.name, settings=refused)
        overruled = self._sysctls.overruled()
        if overruled:
            facts["overruled_by"] = overruled
            facts["why"] = "that is 1 and holds for every device: the data path drops the redirects"
        self._log.info("tun_settings", **facts)

    def _warn_of_forwarding(self) -> None:
        before, self._forwards = self._forwards, self._sysctls.forwards()
        if before and not self._forwards:
            self._log.warning("ip_forward_off", why="it was switched off: subscribers reach only this machine")
