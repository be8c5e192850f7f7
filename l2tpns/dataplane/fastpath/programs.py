"""The loaded programs: their maps, and the interfaces that they are attached to.

fast_up runs on each Ethernet interface through which a LAC may come, fast_down on the tun device. The kernel detaches
them when this process ends, unless they are pinned (pins.py): then the next process replaces them, and goes on with
their maps.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from errno import EINVAL
from importlib.resources import files

from l2tpns.dataplane.fastpath import layout
from l2tpns.system.clsact import Filter, Filters
from l2tpns.system.libbpf import EGRESS, INGRESS, BpfError, Link, Object
from l2tpns.system.pins import Pins, PinStore
from l2tpns.system.rtnetlink import KernelLink

OBJECT = "fastpath.o"
DOWNLINK, UPLINK = "down", "up-"  # names of pinned links; the latter with the interface's index
_ETHERNET, _LOOPBACK, _TUNNEL = 1, 772, 0xFFFE  # ARPHRD_... (linux/if_arp.h)


class Loader:
    """Loads the programs, which only a process with CAP_BPF may do: before it gives up root, if it will.

    Programs that are not used any more stay loaded, so that they can be used again.
    """

    def __init__(
        self,
        store: PinStore | None = None,
        load: Callable[[Mapping[str, int]], Object] = lambda maps: Object(read_object(), maps),
        *,
        tcx: bool = True,
    ) -> None:
        """Prepare. Without a `store`, no program outlives this process. Without `tcx`, clsact is used (clsact.py)."""
        self.store = store
        self._tcx = tcx
        self._load = load
        self._object: Object | None = None
        self._inherited: Pins | None = None  # the maps of the object are those

    def pins(self, device: int) -> Pins | None:
        """Return where the programs of a tun device are kept, given by its index."""
        return Pins(self.store, device, layout.digest(), layout.MAPS) if self.store is not None else None

    def prepare(self, device: str, uid: int, gid: int) -> None:
        """Load the programs now, for a user whom this process is about to become: `take` reports what prevents it.

        `device` is the name of the tun device, which an earlier process may have left.
        """
        if self.store is not None:
            try:
                self.store.give(uid, gid)
            except OSError:
                self.store = None
        with suppress(OSError):
            self._inherit(self.pins(socket.if_nametoindex(device)))
        if self._object is None:
            with suppress(BpfError):
                self._object = self._load({})

    def _inherit(self, pins: Pins | None) -> bool:
        """Load the programs with the maps of an earlier process. Return False if it has left none, or they are refused.

        Then its sessions pause.
        """
        maps = pins.maps() if pins is not None else {}
        if not maps:
            return False
        try:
            inheriting = self._load(maps)
        except BpfError:
            return False
        finally:
            for fd in maps.values():
                os.close(fd)
        self.close()
        self._object, self._inherited = inheriting, pins
        return True

    def take(self, filters: Filters, pins: Pins | None = None) -> LoadedPrograms:
        """Return the programs, not attached: with the maps that `pins` holds, else with empty ones.

        Raises BpfError if they cannot be loaded.
        """
        inherits = pins is not None and pins.whole and (pins == self._inherited or self._inherit(pins))
        if self._object is None:
            self._object = self._load({})
        return LoadedPrograms(self._object, filters, pins if inherits else None, tcx=self._tcx)

    def close(self) -> None:
        """Unload the programs, unless they are kept for the next process."""
        if self._object is not None:
            self._object.close()
            self._object = None


class LoadedPrograms:
    """The two programs of a loaded object, with their maps, which may outlive this process."""

    def __init__(self, programs: Object, filters: Filters, pins: Pins | None = None, *, tcx: bool = True) -> None:
        """Take the programs. With `pins`, their maps and links are those of an earlier process.

        They are attached by `filters` where the kernel has no TCX, or without `tcx`.
        """
        self._object = programs
        self._filters = filters
        self._tcx = tcx
        self._pins = pins
        self.adopted = pins is not None
        self.sessions = self._object.map("sessions")
        self.addresses = self._object.map("addresses")
        self.routes = self._object.map("routes")
        self._interfaces = self._object.map("interfaces")
        self._totals = self._object.map("totals")
        self._mapped: list[mmap.mmap] = []
        self._uplinks: dict[int, tuple[str, Link | Filter]] = {}  # by the index of the interface
        self._downlink: tuple[int, Link | Filter] | None = None  # with the index of the tun device
        self.passed_over: dict[str, str] = {}  # interfaces that are not served, with the reason
        self.counters = self._memory("counters", layout.MAX_SESSIONS * layout.COUNTERS.size)
        self.settings = self._memory("settings", layout.SETTINGS.size)

    @property
    def kept(self) -> bool:
        """Return whether maps and links outlive this process."""
        return self._pins is not None

    def keep(self, pins: Pins) -> None:
        """Have the maps and links outlive this process. Raises BpfError, and some of them may be kept."""
        pins.remove()
        self._pins = pins
        for name in layout.MAPS:
            pins.keep(name, self._object.map(name).fd)
        for index, (_, link) in self._uplinks.items():
            self._keep_link(f"{UPLINK}{index}", link)
        if self._downlink is not None:
            self._keep_link(DOWNLINK, self._downlink[1])

    def _keep_link(self, name: str, link: Link | Filter) -> None:
        if self._pins is not None and link.fd >= 0:
            self._pins.keep(name, link.fd)

    def keep_no_longer(self) -> None:
        """Have nothing outlive this process."""
        if self._pins is not None:
            self._pins.remove()
            self._pins = None

    @property
    def hooks(self) -> str:
        """Return how the programs are attached."""
        return "tcx" if self._tcx else "clsact"

    def _attach(self, name: str, program: str, interface: int, point: int) -> Link | Filter:
        """Attach a program, or replace the one of an earlier process. `name` is the link's pin. Raises BpfError."""
        if self._tcx:
            try:
                return self._attach_link(name, program, interface, point)
            except BpfError as error:
                if error.code != EINVAL or self._downlink is not None or self._uplinks:
                    raise
            self._tcx = False  # this kernel has none
        return self._filters.attach(self._object.program(program), interface, point)

    def _attach_link(self, name: str, program: str, interface: int, point: int) -> Link:
        pins = self._pins
        if pins is not None and (fd := pins.link(name)) >= 0:
            link = Link(fd)
            try:
                link.update(self._object.program(program))
            except BpfError:  # its interface is gone, and another one has the index
                link.close()
                pins.drop(name)
            else:
                return link
        link = self._object.program(program).attach(interface, point)
        self._keep_link(name, link)
        return link

    def _detach(self, name: str, link: Link | Filter) -> None:
        if self._pins is not None:
            self._pins.drop(name)
        link.detach()

    def _memory(self, name: str, octets: int) -> memoryview:
        mapped = self._object.map(name).mapped(-(-octets // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._mapped.append(mapped)
        return memoryview(mapped)

    def totals(self) -> tuple[int, ...]:
        """Return the sums of layout.TOTALS since the programs were loaded. Raises BpfError."""
        return self._totals.sums(len(layout.TOTALS))

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Return the names of the interfaces whose packets fast_up sees."""
        return tuple(sorted(name for name, _ in self._uplinks.values()))

    def attach_tun(self, index: int) -> None:
        """Attach fast_down to a tun device, and no longer to the one before it. Raises BpfError."""
        if self._downlink is not None:
            if self._downlink[0] == index:
                return
            self._detach(DOWNLINK, self._downlink[1])
            self._downlink = None
        self._downlink = index, self._attach(DOWNLINK, "fast_down", index, EGRESS)

    def attach_uplinks(self, links: Collection[KernelLink], unfinished: Callable[[str], bool]) -> bool:
        """Attach fast_up to the interfaces that can be served, and forget those that have gone. Return what changed.

        An interface that the kernel refuses is passed over: its LACs' packets go to user space. `unfinished` returns
        whether packets leave an interface without their checksums (offload.py).
        """
        passed_over: dict[str, str] = {}
        without = [link for link in links if link.kind == "veth" and unfinished(link.name)]
        barred = {index for link in without for index in (link.index, link.master)}  # and their bridges
        served: set[int] = set()
        before = self.interfaces, self.passed_over
        for link in links:
            why = unfit(link)
            if why is None and link.index in barred:
                why = f"packets leave it without TCP and UDP checksums: ethtool -K {link.name} tx off"
            if why:
                passed_over[link.name] = why
            if why is not None:
                continue
            try:
                if link.index not in self._uplinks:
                    attached = self._attach(f"{UPLINK}{link.index}", "fast_up", link.index, INGRESS)
                else:
                    attached = self._uplinks[link.index][1]
            except BpfError as error:
                passed_over[link.name] = str(error)
                continue
            self._uplinks[link.index] = link.name, attached
            served.add(link.index)
        for index in self._uplinks.keys() - served:
            self._detach(f"{UPLINK}{index}", self._uplinks.pop(index)[1])
        if self._pins is not None:  # those that only an earlier process has served
            for name in self._pins.links():
                if name != DOWNLINK and name not in (f"{UPLINK}{index}" for index in served):
                    self._pins.drop(name)
        wanted = {layout.INTERFACE.pack(index) for index in served}
        there = self._interfaces.entries(layout.INTERFACE.size, layout.INTERFACE.size).keys()
        for key in there - wanted:
            self._interfaces.delete(key)
        for key in wanted - there:
            self._interfaces.put(key, layout.INTERFACE.pack(1))
        self.passed_over = passed_over
        changed = before != (self.interfaces, self.passed_over)
        if (changed or not served) and not self._tcx and self._downlink is not None:
            self._filters.remove_others({(index, INGRESS) for index in served} | {(self._downlink[0], EGRESS)})
        return changed

    def detach(self) -> None:
        """Detach the programs: from now on user space sees every packet."""
        for index, (_, link) in self._uplinks.items():
            self._detach(f"{UPLINK}{index}", link)
        self._uplinks.clear()
        if self._downlink is not None:
            self._detach(DOWNLINK, self._downlink[1])
            self._downlink = None

    def leave(self) -> None:
        """Close everything here. What is kept goes on carrying packets for the next process."""
        for _, link in self._uplinks.values():
            link.close()
        self._uplinks.clear()
        if self._downlink is not None:
            self._downlink[1].close()
            self._downlink = None
        self._unmap()

    def _unmap(self) -> None:
        self.counters = self.settings = memoryview(b"")
        self._mapped.clear()  # unmapped when the last view of it is gone

    def close(self) -> None:
        """Detach the programs and leave the maps empty. Raises BpfError."""
        self.detach()
        self.keep_no_longer()
        self.sessions.clear(layout.SESSION_KEY_SIZE)
        self.addresses.clear(layout.ADDRESS_SIZE)
        self.routes.clear(layout.ROUTE_KEY_SIZE)
        self._interfaces.clear(layout.INTERFACE.size)
        self._unmap()


def read_object() -> bytes:
    """Return the object file that is part of this package."""
    return files("l2tpns.dataplane.fastpath").joinpath(OBJECT).read_bytes()


def unfit(link: KernelLink) -> str | None:
    """Return why LACs of an interface are served by user space, "" if none can come there, None if it can be served."""
    if link.type in (_LOOPBACK, _TUNNEL):
        return ""
    if link.type != _ETHERNET:
        return "it is not an Ethernet interface"
    if link.kind in ("vlan", "macvlan", "ipvlan"):
        return f"it is a {link.kind} device"
    if link.master:
        return ""  # its bridge or bond receives the packets
    return None
