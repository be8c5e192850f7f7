"""Descriptors that the service manager keeps while this process restarts (sd_notify(3): FDSTORE; sd_listen_fds(3)).

What arrives at a kept socket meanwhile waits there for the next process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from l2tpns.runtime.process import ServiceManager

_FIRST = 3  # SD_LISTEN_FDS_START
_MAX_INHERITED = 4096


class DescriptorStore:
    """The store of this service. Without a service manager it keeps nothing. Nothing here raises."""

    def __init__(self, manager: ServiceManager | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Take over what the service manager has kept: to be called before other descriptors are opened."""
        self._manager = manager
        self._found = _inherited(environment or {})
        self._stored = set(self._found)  # names
        self._offered: dict[str, int] = {}
        self._wanted = True

    def take(self, name: str) -> int:
        """Return the descriptor of this name that an earlier process has left, -1 if there is none."""
        return self._found.pop(name, -1)

    def offer(self, name: str, fd: int, *, inherited: bool = False) -> None:
        """Have a descriptor kept, in the place of an earlier one of this name. An inherited one is in the store."""
        self._offered[name] = fd
        if self._wanted and not inherited:
            self._remove(name)
            self._send(name)

    def withdraw(self, name: str) -> None:
        """Have the descriptor of this name kept no longer."""
        self._offered.pop(name, None)
        self._remove(name)

    def want(self, wanted: bool) -> None:
        """Have everything kept that was offered, or nothing at all."""
        if wanted == self._wanted:
            return
        self._wanted = wanted
        for name in [*self._stored, *self._offered]:
            self._remove(name)
        if wanted:
            for name in self._offered:
                self._send(name)

    def close_rest(self) -> None:
        """Close and forget what no part of this process has taken."""
        for name, fd in self._found.items():
            os.close(fd)
            self._remove(name)
        self._found.clear()

    def _send(self, name: str) -> None:
        # FDPOLL=0: an error that waits at a socket, such as an ICMP message, is no reason to close it.
        if self._manager is not None:
            self._manager.notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", self._offered[name])
            self._stored.add(name)

    def _remove(self, name: str) -> None:
        if self._manager is not None and name in self._stored:
            self._manager.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
            self._stored.discard(name)


def _inherited(environment: Mapping[str, str]) -> dict[str, int]:
    """Return the descriptors that the service manager has passed to this process, by name."""
    count, pid = environment.get("LISTEN_FDS", ""), environment.get("LISTEN_PID", "")
    if not count.isdecimal() or pid != str(os.getpid()) or int(count) > _MAX_INHERITED:
        return {}
    found: dict[str, int] = {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    for fd, name in zip(range(_FIRST, _FIRST + int(count)), names, strict=False):
        try:
            os.set_inheritable(fd, False)
        except OSError:
            continue
        if name in found:
            os.close(fd)
        else:
            found[name] = fd
    return found
