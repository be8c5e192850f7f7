"""The data plane with a fast path: sessions that need no Python code are carried by programs in the kernel.

Everything else is UserPlane's work: what the programs leave alone arrives at the UDP sockets and the tun device as
without them. `set fast_path` takes effect within a second, with sessions online.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from time import monotonic, monotonic_ns
from types import MappingProxyType

import gevent

from l2tpns.dataplane.fastpath import layout
from l2tpns.dataplane.fastpath.programs import LoadedPrograms, Loader
from l2tpns.dataplane.fastpath.sessions import KernelSessions
from l2tpns.dataplane.plane import FastCounts, FastPathStatus
from l2tpns.dataplane.session_path import USERSPACE_FIELDS, SessionPath
from l2tpns.dataplane.userspace import UserPlane
from l2tpns.errors import RepairError
from l2tpns.runtime.supervisor import Part
from l2tpns.system.clsact import filters_of
from l2tpns.system.ipsec import IpsecPolicies
from l2tpns.system.libbpf import BpfError
from l2tpns.system.netlink_socket import NetlinkError
from l2tpns.system.offload import Offloads
from l2tpns.system.pins import Pins

SYNC_INTERVAL = 1.0  # seconds between two looks at the settings and the counters of the programs
CLSACT_PATIENCE = 5  # seconds without a sign of life
RETRY_INTERVAL = 10.0  # seconds until the kernel is asked again for what it has refused


class KernelPlane(UserPlane):
    """A UserPlane whose sessions move into the kernel while they are online and `needs_userspace` is False.

    `loader` is given before `start`.
    """

    loader: Loader
    _programs: LoadedPrograms | None = None
    _sessions: KernelSessions | None = None
    _sync: Part | None = None
    _why_not = ""
    _totals: Mapping[str, int] = MappingProxyType({})
    _retry_at = 0.0  # monotonic: when the kernel is asked again for what it has refused
    _settings = b""
    _no_spoof_check = False
    _why_not_kept = ""
    _offloads: Offloads | None = None
    _ipsec: IpsecPolicies | None = None  # None: the kernel has no IPsec

    # Life

    def start(self) -> None:
        """Start as UserPlane does, then load the programs. Raises RepairError if fast_path is on and they are refused.

        With fast_path auto, a refusal is logged, and user space carries everything.
        """
        super().start()
        self._offloads = Offloads()
        with suppress(OSError):
            self._ipsec = IpsecPolicies()
        pins = self._pins()
        if pins is None:
            self._remove_pins()
        assert self._netlink is not None
        with suppress(NetlinkError):
            if pins is None or not pins.whole:  # left by a process that had no time to remove them
                filters_of(self._netlink, self.config.tundevicename).remove_others(())
        if self.config.fast_path != "off" or (pins is not None and pins.whole):
            self._begin()
            if self._programs is None and self.config.fast_path == "on":
                self.stop()
                raise RepairError(f"fast_path: {self._why_not}")
        self._sync = self._supervisor.spawn("fast path", self._run)

    def stop(self, *, keep: bool = False) -> None:
        if self._sync is not None:
            self._sync.stop()
            self._sync = None
        if keep and self._programs is not None and self._programs.kept:
            self._programs.leave()
            self._programs = self._sessions = None
        else:
            self._end()
        self.loader.close()
        if self._offloads is not None:
            self._offloads.close()
            self._offloads = None
        if self._ipsec is not None:
            self._ipsec.close()
            self._ipsec = None
        super().stop(keep=keep)

    def resume(self) -> None:
        if self._sessions is not None:
            table = self._forwarder.table
            try:
                self._sessions.settle(table.addresses.keys(), [route for route, _ in table.routes()])
            except BpfError as error:
                self._fail(error)
        if (pins := self._pins()) is not None:
            pins.remove_others()
        super().resume()

    def apply_config(self) -> None:
        super().apply_config()
        if self._programs is not None:
            self._keep_programs(self._programs)

    def _run(self) -> None:
        while True:
            gevent.sleep(SYNC_INTERVAL)
            self.synchronise()

    def synchronise(self) -> None:
        """Follow the settings and the interfaces, and collect the counters. May yield."""
        if self.config.fast_path == "off":
            self._end()
            self._retry_at = 0.0
        elif self._programs is None:
            if monotonic() >= self._retry_at:
                self._retry_at = monotonic() + RETRY_INTERVAL
                self._begin()
        else:
            try:
                self.collect()
                self._apply_settings()
                self._read_policies()
                self._attach_again()
            except (BpfError, NetlinkError) as error:
                self._fail(error)

    def _begin(self) -> None:
        """Load the programs and move all sessions that may be carried. On a refusal log why. May yield."""
        assert self._tun is not None and self._netlink is not None
        try:
            filters = filters_of(self._netlink, self.config.tundevicename)
            programs = self.loader.take(filters, self._pins())
        except BpfError as error:
            self._report_refusal(str(error))
            return
        self._programs = programs
        self._settings = b""
        try:
            self._sessions = KernelSessions(programs, self.counters, self._checks_source)
            self._keep_programs(programs)
            self._apply_settings()
            self._read_policies()
            self._fill()
            self._attach(programs)
        except (BpfError, NetlinkError, OSError) as error:
            self._end()
            self._report_refusal(str(error))
            return
        self._why_not = ""
        self._report_use(programs)

    def _pins(self) -> Pins | None:
        """Return where the programs are kept for the next process, None if they are not."""
        return self.loader.pins(self._tun.index) if self._tun is not None and self._tun.kept else None

    def _remove_pins(self) -> None:
        """Remove what an earlier process has kept: its sessions are not restored."""
        if self._tun is not None and (pins := self.loader.pins(self._tun.index)) is not None:
            pins.remove()
            pins.remove_others()

    @property
    def carrying(self) -> bool:
        return self._programs is not None and self._programs.adopted

    def _keep_programs(self, programs: LoadedPrograms) -> None:
        """Have the programs outlive this process, or not, as the tun device does. A refusal is logged."""
        pins, why = self._pins(), ""
        if pins is None:
            programs.keep_no_longer()
            if self.config.save_state:
                why = "the tun device is not kept" if self.loader.store is not None else "no BPF file system is mounted"
        elif not programs.kept:
            try:
                programs.keep(pins)
            except BpfError as error:
                programs.keep_no_longer()
                why = str(error)
        if why and why != self._why_not_kept:
            self._log.warning("fast_path_not_kept", why=f"{why}: it pauses while the server restarts")
        self._why_not_kept = why

    def _attach(self, programs: LoadedPrograms) -> None:
        """Attach the programs to the tun device and to the LACs' interfaces. Raises BpfError, NetlinkError."""
        assert self._tun is not None and self._netlink is not None and self._offloads is not None
        programs.attach_tun(self._tun.index)
        programs.attach_uplinks(self._netlink.links(), self._offloads.leaves_checksums)

    def _attach_again(self) -> None:
        """Follow interfaces that have come or gone. May yield."""
        programs, tun = self._programs, self._tun
        if programs is None or tun is None or self._netlink is None or self._offloads is None:
            return
        programs.attach_tun(tun.index)
        if programs.attach_uplinks(self._netlink.links(), self._offloads.leaves_checksums):
            self._report_use(programs)

    def _report_use(self, programs: LoadedPrograms) -> None:
        facts = {"interfaces": list(programs.interfaces), "passed_over": programs.passed_over}
        self._log.info("fast_path_up", **facts, adopted=programs.adopted, hooks=programs.hooks)

    def _report_refusal(self, why: str) -> None:
        if why != self._why_not:
            self._log.warning("fast_path_unavailable", why=why)
        self._why_not = why

    def _recreate_tun(self) -> bool:
        if not super()._recreate_tun():
            return False
        try:
            if self._programs is not None:  # the pins are those of the device that was deleted
                self._programs.keep_no_longer()
                self._keep_programs(self._programs)
            self._apply_settings()
            self._attach_again()
        except (BpfError, NetlinkError) as error:
            self._fail(error)
        return True

    def _fill(self) -> None:
        """Put the addresses, routes and entries of all sessions into the maps."""
        sessions = self._sessions
        assert sessions is not None
        for address, path in self._forwarder.table.addresses.items():
            sessions.publish_address(address, path)
        for route, path in self._forwarder.table.routes():
            sessions.publish_route(route, path)
        for path in self.lacs.paths.values():
            sessions.update(path)

    def _end(self) -> None:
        """Return all sessions to user space and unload the programs."""
        programs, sessions = self._programs, self._sessions
        if programs is None:
            return
        programs.detach()
        if sessions is not None:
            self.collect()
            sessions.refresh_all(self.lacs.paths.values())
        self._programs = self._sessions = None
        with suppress(BpfError):  # the maps of programs that are not attached have no effect
            programs.close()
        self._why_not = "it was switched off"
        self._log.info("fast_path_down")

    def _fail(self, error: BpfError | NetlinkError) -> None:
        """Give up after the kernel has refused a change: the maps could be wrong."""
        self._end()
        self._report_refusal(str(error))

    # Settings

    def _checks_source(self, path: SessionPath) -> bool:
        return path.in_garden or not self.config.disable_no_spoof

    def _apply_settings(self) -> None:
        """Show the programs that this process is alive, and pass the settings on if they have changed."""
        programs, sessions, tun = self._programs, self._sessions, self._tun
        if programs is None or sessions is None or tun is None:
            return
        # Filters of traffic control stay when the process dies: what is not kept must not carry on for long.
        short = programs.hooks == "clsact" and not programs.kept
        patience = int((CLSACT_PATIENCE if short else self.config.fast_path_orphan_timeout) * 1e9)
        layout.WORD.pack_into(programs.settings, layout.BEAT_OFFSET, monotonic_ns())
        settings = layout.SETTINGS.pack(
            layout.ENABLED, tun.index, self.lacs.port.to_bytes(2, "big"), 0, self.config.packet_limit, 0, patience
        )
        if (settings, self.config.disable_no_spoof) == (self._settings, self._no_spoof_check):
            return
        self._settings, self._no_spoof_check = settings, self.config.disable_no_spoof
        after = layout.BEAT_OFFSET + layout.WORD.size
        programs.settings[after : len(settings)] = settings[after:]
        programs.settings[: layout.BEAT_OFFSET] = settings[: layout.BEAT_OFFSET]
        self._update(self.lacs.paths.values())

    def _read_policies(self) -> None:
        """Leave sessions to user space whose datagrams the kernel must encrypt. Raises NetlinkError. May yield."""
        if self._ipsec is not None and self._ipsec.changed():
            for path in self.lacs.paths.values():
                if self._has_to_encrypt(path) != path.ipsec:
                    self.changed(path)

    def _has_to_encrypt(self, path: SessionPath) -> bool:
        local = path.endpoint.address, path.endpoint.port
        return self._ipsec is not None and self._ipsec.protect(local, path.peer)

    # Sessions

    def _update(self, paths: Iterable[SessionPath]) -> None:
        if self._sessions is not None:
            try:
                for path in paths:
                    self._sessions.update(path)
            except BpfError as error:
                self._fail(error)

    def _publish(self, address: bytes, routes: Iterable[IPv4Network]) -> None:
        """Put the present holders of an address and of routes into the maps."""
        sessions, table = self._sessions, self._forwarder.table
        if sessions is None:
            return
        try:
            sessions.publish_address(address, table.addresses.get(address))
            for route in routes:
                sessions.publish_route(route, table.holder(route))
        except BpfError as error:
            self._fail(error)

    def online(self, path: SessionPath, address: IPv4Address, routes: Iterable[IPv4Network], mru: int) -> None:
        path.ipsec = self._has_to_encrypt(path)
        super().online(path, address, routes, mru)
        self._publish(path.address, path.routes)
        self._update((path,))

    def offline(self, path: SessionPath) -> None:
        if not path.online:
            return
        if self._sessions is not None:
            self._sessions.withdraw(path)
        super().offline(path)
        self._publish(path.address, path.routes)

    def changed(self, path: SessionPath) -> None:
        path.ipsec = self._has_to_encrypt(path)
        super().changed(path)
        self._update((path,))

    def detach(self, path: SessionPath) -> None:
        super().detach(path)
        if self._sessions is not None:
            self._sessions.release(path)

    def refresh(self, path: SessionPath) -> None:
        if self._sessions is not None:
            self._sessions.refresh(path)

    def retreat(self) -> None:
        if self._programs is not None and self._programs.kept:
            return  # the next process adds what the programs count from now on
        if self._sync is not None:
            self._sync.stop()
            self._sync = None
        self._end()

    def counted(self, path: SessionPath) -> FastCounts:
        return self._sessions.counted(path) if self._sessions is not None else FastCounts()

    def go_on(self, path: SessionPath, counted: FastCounts) -> None:
        if self._sessions is not None:
            self._sessions.go_on(path, counted)

    # Figures

    def carrier(self, path: SessionPath) -> str:
        if self._sessions is None:
            return "user space"
        if self._sessions.carries(path):
            return "kernel"
        reasons = [name.replace("_", " ") for name in USERSPACE_FIELDS if getattr(path, name) not in (None, False)]
        return f"user space ({', '.join(reasons) or 'not online'})"

    def collect(self) -> None:
        """Bring the counters of the process up to date."""
        if self._sessions is not None:
            self._totals = self._sessions.collect()

    def fast_path(self) -> FastPathStatus:
        """Return the state of the fast path."""
        programs, sessions = self._programs, self._sessions
        if programs is None or sessions is None:
            return FastPathStatus(False, self._why_not or "fast_path is off", (), {}, 0, {})
        self.collect()
        return FastPathStatus(True, "", programs.interfaces, programs.passed_over, sessions.carried, self._totals)
