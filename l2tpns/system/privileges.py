"""Giving up root: run as another user with the few capabilities that serving needs (capabilities(7), `setuid`).

The switch comes before the first network socket, device or rule is made. So everything the server does works, or is
refused, in the same way from its start to its end. What stays possible afterwards:

- CAP_NET_ADMIN: the tun device, routes, qdiscs, firewall rules, sets, socket buffers, `net.*` sysctls
- CAP_NET_RAW: the raw sockets for iptables and for ICMP errors
- CAP_NET_BIND_SERVICE: port 23, even after a reload

Programs that a plugin starts inherit them (ambient capabilities). No other capability can be gained again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from l2tpns.errors import ConfigError, refused

# linux/capability.h
KEPT = {"CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
_HEADER, _SETS = struct.Struct("=Ii"), struct.Struct("=6I")
_VERSION_3 = 0x20080522
# linux/prctl.h
_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 4, 8, 23, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 38, 47, 2

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Identity:
    """A user to run as, with that user's primary group."""

    name: str
    uid: int
    gid: int


def find_identity(word: str) -> Identity | None:
    """Return the user that `setuid` names by number or name; None for root. Raises ConfigError for an unknown name."""
    try:
        entry = pwd.getpwuid(int(word)) if word.isdigit() else pwd.getpwnam(word)
    except KeyError:
        if not word.isdigit():
            raise ConfigError(f"setuid: this machine has no user {word}") from None
        return Identity(word, int(word), int(word))
    return None if entry.pw_uid == 0 else Identity(entry.pw_name, entry.pw_uid, entry.pw_gid)


def become(identity: Identity) -> None:
    """Switch this process to the user and keep KEPT only. Raises ConfigError when the process may not do that."""
    try:
        _drop_bounding_set()
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
        _set_capabilities()
        for number in KEPT.values():
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_DUMPABLE, 1)  # else /proc/self belongs to root, and we could not count our descriptors
    except OSError as error:
        raise ConfigError(
            f"setuid: cannot become {identity.name}: {error.strerror}; l2tpns must be started by root, with "
            f"{', '.join(KEPT)}"
        ) from None


def hand_over(
    identity: Identity, tree: Path, directories: Mapping[str, Path], files: Iterable[Path], spare: Path | None = None
) -> None:
    """Give the user what the server writes: `tree` with all that is below it, directories by their names, and files.

    The server can do without the directory `spare`: what uses it reports why it cannot be made.

    Directories are made where missing. Those besides `tree` must hold no other directory: a typing error must not give
    away /var/lib. Only plain files and directories that belong to root are given; no symbolic link is followed, and a
    file with a second name (hard link) stays root's, for that may be /etc/shadow. Raises ConfigError.
    """
    every = [tree, *directories.values()]
    try:
        for name, directory in (("", tree), *directories.items()):
            _make(directory, name)
        if spare is not None and _is_made(spare):
            every.append(spare)
        for directory in every:
            below = [Path(entry.path) for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
            if directory != tree and not set(every).issuperset(below):
                raise ConfigError(
                    f"setuid: {directory} holds directories and is not given to {identity.name}: the server needs a "
                    "directory of its own"
                )
            _give_tree(identity, directory)
        for path in files:
            _give(identity, str(path))
    except OSError as error:
        why = f"setuid: {error.filename} cannot be given to {identity.name}: {error.strerror}"
        raise refused(error.errno, why) from None


def share_lock(identity: Identity, path: Path) -> None:
    """Let the user's group take iptables' lock, a file that iptables makes for root alone. Raises ConfigError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchown(descriptor, -1, identity.gid)
            os.fchmod(descriptor, 0o640)
        finally:
            os.close(descriptor)
    except OSError as error:
        why = f"setuid: {path} cannot be given to {identity.name}'s group: {error.strerror}"
        raise refused(error.errno, why) from None


def _make(directory: Path, name: str) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        label = f"{name} " if name else ""
        raise refused(error.errno, f"setuid: {label}{directory} cannot be made: {error.strerror}") from None


def _is_made(directory: Path) -> bool:
    """Make a directory. Return False if it is missing and the disk takes nothing."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO):
            return False
        raise
    return True


def unreadable(paths: Iterable[Path]) -> list[Path]:
    """Return those of the paths that exist and that this process, as the user it is now, may not read."""
    return [path for path in paths if not _readable(path)]


def _readable(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except PermissionError:
        return False
    except OSError:
        pass  # missing, or a fault that reading it will report
    return True


def _give_tree(identity: Identity, top: Path) -> None:
    for _, below, names, descriptor in os.fwalk(top, follow_symlinks=False):
        for name in (".", *below, *names):
            _give(identity, name, descriptor)


def _give(identity: Identity, name: str, directory: int | None = None) -> None:
    """Look at what was opened and change its owner by the descriptor: the name may be another file's by then."""
    try:
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return  # missing, a symbolic link, a socket
        raise
    try:
        found = os.fstat(descriptor)
        plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
        if found.st_uid == 0 and (plain or stat.S_ISDIR(found.st_mode)):
            os.fchown(descriptor, identity.uid, identity.gid)
    finally:
        os.close(descriptor)


def _drop_bounding_set() -> None:
    """Leave only KEPT in the set of capabilities that any program started from here could gain."""
    number = 0
    while _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:  # until the kernel knows no capability of that number
        if number not in KEPT.values():
            _prctl(_PR_CAPBSET_DROP, number)
        number += 1


def _set_capabilities() -> None:
    wanted = sum(1 << number for number in KEPT.values())
    low, high = wanted & 0xFFFFFFFF, wanted >> 32
    if _libc.capset(_HEADER.pack(_VERSION_3, 0), _SETS.pack(low, low, low, high, high, high)) != 0:
        _fail()


def _prctl(option: int, argument: int, another: int = 0) -> None:
    if _libc.prctl(option, argument, another, 0, 0) != 0:
        _fail()


def _fail() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
