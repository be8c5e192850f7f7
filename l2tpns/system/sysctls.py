"""The sysctls of the tun device: they forbid what a router must not do, and the kernel does by default.

Only settings of the device itself are changed. `net.ipv4.conf.all` is not, even where it overrules the device, for it
applies to other interfaces. What the kernel still does, the data path must undo (dataplane/forward.py).
"""

from __future__ import annotations

import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

ROOT = Path("/proc/sys/net")  # of the network namespace of the thread that opens it
WANTED = {
    "ipv4/conf/{}/send_redirects": "0",  # subscribers are not neighbours of each other, although behind one device
    "ipv4/conf/{}/accept_redirects": "0",  # a subscriber must not change our routes
    "ipv4/conf/{}/accept_source_route": "0",
    "ipv4/conf/{}/route_localnet": "0",
    "ipv6/conf/{}/disable_ipv6": "1",  # subscribers have IPv4 only, and must get no router solicitations
}
FORWARDING = "ipv4/conf/{}/forwarding"
OVERRULING = ("send_redirects",)  # it is enough if either `all` or the device says 1


class Sysctls:
    """The sysctls of one device. The files stay open: they belong to the namespace in which they were opened."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._files: dict[str, FileIO] = {}
        for name in (*WANTED, FORWARDING):
            self._open(name.format(device))
        for name in (FORWARDING, *(f"ipv4/conf/{{}}/{name}" for name in OVERRULING)):
            self._open(name.format("all"))

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def apply(self) -> list[str]:
        """Set what differs. Return it as `NAME=VALUE`, without settings that this kernel does not have."""
        return [_words(name, value) for name, value in self._differing() if self._write(name, value)]

    def refused(self) -> list[str]:
        """Return refused settings as `NAME=VALUE`: in a container /proc/sys may be read-only."""
        return [_words(name, value) for name, value in self._differing()]

    def _differing(self) -> list[tuple[str, str]]:
        wanted = {name.format(self._device): value for name, value in WANTED.items()}
        if self.forwards():
            wanted[FORWARDING.format(self._device)] = "1"
        return [(name, value) for name, value in wanted.items() if self._read(name) not in (value, "")]

    def state(self) -> list[str]:
        """Return the present settings as `NAME=VALUE`."""
        names = [name.format(self._device) for name in (*WANTED, FORWARDING)]
        return [_words(name, value) for name in names if (value := self._read(name))]

    def overruled(self) -> list[str]:
        """Return the settings of `all` that overrule those of the device."""
        return [f"net.ipv4.conf.all.{name}" for name in OVERRULING if self._read(f"ipv4/conf/all/{name}") == "1"]

    def forwards(self) -> bool:
        """Return True if the kernel forwards packets between interfaces, or if that cannot be read."""
        return self._read(FORWARDING.format("all")) != "0"

    def _open(self, name: str) -> None:
        """Open a file for writing, or for reading where /proc/sys is read-only: in a container.

        access(2) does not tell: for a user other than root it ignores CAP_NET_ADMIN, which may write here.
        """
        for mode in ("r+", "r"):
            with suppress(OSError):  # a kernel without IPv6, or a container that shows no sysctls
                self._files[name] = FileIO(str(ROOT / name), mode)
                return

    def _read(self, name: str) -> str:
        try:
            return os.pread(self._files[name].fileno(), 64, 0).decode().strip()
        except (OSError, KeyError):
            return ""

    def _write(self, name: str, value: str) -> bool:
        try:
            os.pwrite(self._files[name].fileno(), value.encode(), 0)
        except OSError:
            return False
        return True


def _words(name: str, value: str) -> str:
    return f"{name.rpartition('/')[2]}={value}"
