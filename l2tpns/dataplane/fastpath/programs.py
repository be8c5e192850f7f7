"""The loaded programs: their maps, and the interfaces that they are attached to.

fast_up runs on each Ethernet interface through which a LAC may come, fast_down on the tun device. The kernel detaches
them when this process ends.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.resources import files

from l2tpns.dataplane.fastpath import layout
from l2tpns.system.libbpf import EGRESS, INGRESS, BpfError, Link, Object
from l2tpns.system.rtnetlink import KernelLink

OBJECT = "fastpath.o"
_ETHERNET, _LOOPBACK, _TUNNEL = 1, 772, 0xFFFE  # ARPHRD_... (linux/if_arp.h)


class Loader:
    """Loads the programs, which only a process with CAP_BPF may do: before it gives up root, if it will.

    Programs that are not used any more stay loaded, so that they can be used again.
    """

    def __init__(self, load: Callable[[], Object] = lambda: Object(read_object())) -> None:
        self._load = load
        self._object: Object | None = None

    def prepare(self) -> None:
        """Load the programs now, if the kernel can: `take` reports what prevents it."""
        with suppress(BpfError):
            self._object = self._load()

    def take(self) -> LoadedPrograms:
        """Return the programs with empty maps, not attached. Raises BpfError if they cannot be loaded."""
        if self._object is None:
            self._object = self._load()
        return LoadedPrograms(self._object)

    def close(self) -> None:
        """Unload the programs."""
        if self._object is not None:
            self._object.close()
            self._object = None


class LoadedPrograms:
    """The two programs of a loaded object, with their maps."""

    def __init__(self, programs: Object) -> None:
        self._object = programs
        self.sessions = self._object.map("sessions")
        self.addresses = self._object.map("addresses")
        self.routes = self._object.map("routes")
        self._totals = self._object.map("totals")
        self._mapped: list[mmap.mmap] = []
        self._uplinks: dict[int, tuple[str, Link]] = {}  # by the index of the interface
        self._downlink: tuple[int, Link] | None = None  # with the index of the tun device
        self.passed_over: dict[str, str] = {}  # interfaces that are not served, with the reason
        self.counters = self._memory("counters", layout.MAX_SESSIONS * layout.COUNTERS.size)
        self.settings = self._memory("settings", layout.SETTINGS.size)

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
            self._downlink[1].close()
            self._downlink = None
        self._downlink = index, self._object.program("fast_down").attach(index, EGRESS)

    def attach_uplinks(self, links: Iterable[KernelLink]) -> bool:
        """Attach fast_up to the interfaces that can be served, and forget those that have gone. Return what changed.

        An interface that the kernel refuses is passed over: its LACs' packets go to user space.
        """
        passed_over: dict[str, str] = {}
        served: set[int] = set()
        before = self.interfaces, self.passed_over
        for link in links:
            why = unfit(link)
            if why:
                passed_over[link.name] = why
            if why is not None:
                continue
            try:
                if link.index not in self._uplinks:
                    attached = self._object.program("fast_up").attach(link.index, INGRESS)
                else:
                    attached = self._uplinks[link.index][1]
            except BpfError as error:
                passed_over[link.name] = str(error)
                continue
            self._uplinks[link.index] = link.name, attached
            served.add(link.index)
        for index in self._uplinks.keys() - served:
            self._uplinks.pop(index)[1].close()
        self.passed_over = passed_over
        return before != (self.interfaces, self.passed_over)

    def detach(self) -> None:
        """Detach the programs: from now on user space sees every packet."""
        for _, link in self._uplinks.values():
            link.close()
        self._uplinks.clear()
        if self._downlink is not None:
            self._downlink[1].close()
            self._downlink = None

    def close(self) -> None:
        """Detach the programs and leave the maps empty. Raises BpfError."""
        self.detach()
        self.sessions.clear(layout.SESSION_KEY_SIZE)
        self.addresses.clear(layout.ADDRESS_SIZE)
        self.routes.clear(layout.ROUTE_KEY_SIZE)
        self.counters = self.settings = memoryview(b"")
        self._mapped.clear()  # unmapped when the last view of it is gone


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
