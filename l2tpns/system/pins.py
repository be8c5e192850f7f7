"""The files by which eBPF maps and links outlive the process: directories in the kernel's BPF file system.

Below l2tpns/ there is a directory for each network namespace, and in it one for each tun device and layout of the maps:
a process finds those it can go on with, since the device is its own (tun_device.py) and the layout one that it knows.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from l2tpns.system.libbpf import BpfError, pin, pinned

FILE_SYSTEM = "/sys/fs/bpf"
_MAGIC = 0xCAFE4A11  # BPF_FS_MAGIC (linux/magic.h)
_SO_NETNS_COOKIE = 71


class PinStore:
    """The directory of this network namespace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def give(self, uid: int, gid: int) -> None:
        """Let a user have the directory, whom this process is about to become. Raises OSError.

        The way there is closed to all but root: from now on it is named by a descriptor, which stays open.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory, below, names in os.walk(self.path):
            for name in (".", *below, *names):
                os.chown(os.path.join(directory, name), uid, gid, follow_symlinks=False)
        self.path = Path(f"/proc/self/fd/{os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}")

    def remove(self) -> int:
        """Remove everything, while no server runs here. Return how many devices had pins."""
        found = _names(self.path)
        for name in found:
            _remove(self.path / name)
        self.tidy()
        return len(found)

    def tidy(self) -> None:
        """Remove directories that hold nothing."""
        with suppress(OSError):  # they hold something, or are root's
            self.path.rmdir()
            self.path.parent.rmdir()


def find_store() -> PinStore | None:
    """Return where this network namespace has its pins, None if this machine has no BPF file system."""
    mounted = Path(os.environ.get("L2TPNS_BPFFS", FILE_SYSTEM))
    return PinStore(mounted / "l2tpns" / f"{_namespace_cookie():x}") if _is_bpf_file_system(mounted) else None


class Pins:
    """The directory of one tun device. Nothing here yields."""

    def __init__(self, store: PinStore, device: int, layout: str, maps: Collection[str]) -> None:
        """Name the directory. `maps` are the names of all maps, whose layout has the name `layout`."""
        self._store, self._maps, self._device = store, maps, str(device)
        self._directory = store.path / f"{device}-{layout}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pins) and other._directory == self._directory

    def __hash__(self) -> int:
        return hash(self._directory)

    def maps(self) -> dict[str, int]:
        """Return descriptors of the maps of an earlier process; none if it has not left all of them."""
        found: dict[str, int] = {}
        try:
            for name in self._maps:
                found[name] = pinned(str(self._directory / name))
        except BpfError:
            for fd in found.values():
                os.close(fd)
            return {}
        return found

    @property
    def whole(self) -> bool:
        """Return whether all maps are pinned."""
        return set(self._maps) <= set(_names(self._directory))

    def link(self, name: str) -> int:
        """Return a descriptor of a link, -1 if there is none of this name."""
        try:
            return pinned(str(self._directory / name))
        except BpfError:
            return -1

    def links(self) -> list[str]:
        """Return the names of all links."""
        return [name for name in _names(self._directory) if name not in self._maps]

    def keep(self, name: str, fd: int) -> None:
        """Pin a map or a link, in the place of another one. Raises BpfError."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BpfError(f"cannot make a directory for maps: {error.strerror}") from None
        self.drop(name)
        pin(fd, str(self._directory / name))

    def drop(self, name: str) -> None:
        """Remove a pin, if there is one."""
        with suppress(OSError):
            (self._directory / name).unlink()

    def remove(self) -> None:
        """Remove everything: the kernel detaches programs that no process holds."""
        _remove(self._directory)
        self._store.tidy()

    def remove_others(self) -> None:
        """Remove what this device has in other layouts, and what devices have that are gone."""
        devices = {str(index) for index, _ in socket.if_nameindex()} - {self._device}
        for name in _names(self._store.path):
            if name != self._directory.name and name.partition("-")[0] not in devices:
                _remove(self._store.path / name)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _remove(directory: Path) -> None:
    with suppress(OSError):
        for name in _names(directory):
            (directory / name).unlink()
        directory.rmdir()


def _namespace_cookie() -> int:
    """Return the number of this process's network namespace, which no other one gets before the next boot."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")


class _Statfs(ctypes.Structure):
    """Is the beginning of struct statfs (sys/statfs.h), with room for the rest."""

    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


def _is_bpf_file_system(path: Path) -> bool:
    found = _Statfs()
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), ctypes.byref(found)):
        return False
    return bool(found.f_type == _MAGIC)
