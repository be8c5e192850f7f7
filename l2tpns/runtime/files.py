"""Open every file that the server writes, so that no other user can make it write elsewhere.

The server may be root, and a directory such as accounting_dir may belong to another user. A symbolic link, a hard link,
a FIFO or a device in place of our file must neither redirect our writing nor block us. So the last component of a path
is never followed, an opened file is examined before anything is written, and a file that must appear whole is written
under a new name first. docs/decisions/0025-files-in-directories-of-others.md has the directories that are warned of.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

ROOT = 0
SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
MAX_OCTETS = 1 << 30  # of a file that is read as a whole
_own_users: set[int] = {ROOT}
_own_groups: set[int] = set()


class Unfit(OSError):
    """A file is not what it should be. strerror says why, for the operator, as with any other OSError."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EPERM, why)


def accept_owner(uid: int, gid: int) -> None:
    """Treat the files of this user and group as ours from now on: `setuid` names them, and we are still root."""
    _own_users.add(uid)
    _own_groups.add(gid)


def open_file(path: str | Path, flags: int, mode: int = 0o600, *, stream: bool = False) -> int:
    """Return a descriptor of a regular file of ours. Raises OSError.

    `stream`: a FIFO or a device is accepted too, where only we could have put it.
    """
    descriptor = _open(path, flags, mode)
    try:
        why = _objection(os.fstat(descriptor), Path(path), stream)
        if why:
            raise Unfit(why)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(path: str | Path, flags: int, mode: int = 0o600) -> int:
    try:
        return os.open(path, flags | SAFE, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Unfit("it is a symbolic link: name the file that it leads to") from None
        if error.errno == errno.ENXIO:
            raise Unfit("it is a FIFO without a reader, or a socket") from None
        raise


def _objection(found: os.stat_result, path: Path, stream: bool) -> str:
    """Return why we must not write to this file; empty if we may."""
    ours = _is_ours(found.st_uid)
    if not stat.S_ISREG(found.st_mode):
        channel = stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode)
        return "" if stream and channel and (ours or not _others_put(path.parent)) else "it is not a regular file"
    if found.st_nlink > 1:
        return f"it has {found.st_nlink} names (hard links): it may be another's file"
    if not ours and _others_put(path.parent):
        return f"it belongs to user {found.st_uid}"
    return ""


def read_file(path: str | Path, maximum: int = MAX_OCTETS) -> bytes:
    """Return the content of a regular file. Does not follow a link, nor wait for a FIFO. Raises OSError."""
    descriptor = _open(path, os.O_RDONLY)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise Unfit("it is not a regular file")
    with open(descriptor, "rb") as file:
        if found.st_size > maximum:
            raise Unfit(f"it has {found.st_size} octets")
        return file.read()


def make_file(directory: Path, octets: bytes, mode: int = 0o644) -> Path:
    """Write a new file under an unused name, and sync it. Return its path. Raises OSError, and leaves no file."""
    path = directory / f".{os.urandom(8).hex()}.unfinished"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(octets)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        remove(path)
        raise
    return path


def replace_file(path: Path, octets: bytes, mode: int | None = None) -> None:
    """Write a whole file or nothing, and sync it. Mode, owner and group stay; a new file gets `mode`, or 0600.

    A process that is not root keeps owner and group as far as it may; else they are its own. A symbolic link is
    replaced, not followed. Raises OSError.
    """
    old = _status(path)
    if old is not None and stat.S_ISLNK(old.st_mode):
        old = None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise Unfit("it is not a regular file")
    new = make_file(path.parent, octets, 0o600)
    try:
        _like(new, old, mode)
        os.rename(new, path)
    except BaseException:
        remove(new)
        raise
    sync_directory(path.parent)


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _like(new: Path, old: os.stat_result | None, mode: int | None) -> None:
    """Copy mode and owner, by descriptor: the name may belong to another file by now."""
    descriptor = os.open(new, os.O_RDONLY | SAFE)
    try:
        if old is None:
            os.fchmod(descriptor, 0o600 if mode is None else mode)
            return
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))  # while we own it: the service has no CAP_FOWNER
        _give_to(descriptor, old.st_uid, old.st_gid)
    finally:
        os.close(descriptor)


def _give_to(descriptor: int, uid: int, gid: int) -> None:
    """Give a file of ours to a user and a group. Raises OSError when root is refused."""
    found = os.fstat(descriptor)
    if (uid, gid) == (found.st_uid, found.st_gid):
        return
    try:
        os.fchown(descriptor, uid, gid)
    except PermissionError:
        if os.geteuid() == ROOT:
            raise
        with suppress(PermissionError):
            os.fchown(descriptor, -1, gid)


def sync_directory(directory: Path) -> None:
    """Sync the names in a directory. Blocks. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> bool:
    """Remove a file. Return True if it is gone. Needs neither disk space nor a descriptor."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def foreign(directory: Path) -> str:
    """Return, in words, which other users control what a directory holds; empty if none but root and we do.

    Groups are of root's choice (/var/log belongs to the group of syslog on some systems). In a sticky directory, such
    as /tmp, others cannot remove our files, and open_file refuses files that were there before.
    """
    for place in (directory.absolute(), *directory.absolute().parents):
        try:
            found = os.stat(place)
        except OSError:
            continue  # the error is reported when the directory is used
        if not _is_ours(found.st_uid):
            return f"{place} belongs to user {found.st_uid}, who can remove and replace what is written there"
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            return f"every user can remove and replace what is written to {place}: chmod o-w {place}"
    return ""


def displaced(directory: Path) -> str:
    """Return why a directory may not be the one that was meant; empty if it is.

    The owner of a directory above may have put another one in its place.
    """
    owner = os.stat(directory).st_uid
    for place in directory.absolute().parents:
        holder = os.stat(place).st_uid
        if holder != owner and not _is_ours(holder):
            return f"it belongs to user {owner}, and user {holder}, whose {place} is, may have put it there"
    return ""


def _others_put(directory: Path) -> bool:
    """Return True if users other than root, ourselves and a group of root's choice can create names in it."""
    found = os.stat(directory)
    return not _is_ours(found.st_uid) or bool(found.st_mode & stat.S_IWOTH)


def _is_ours(uid: int) -> bool:
    return uid in _own_users or uid == os.geteuid()


def beyond_own_group(found: os.stat_result) -> bool:
    """Return True if the mode of a file admits users outside of the server's own group."""
    own_group = found.st_gid == os.getegid() or found.st_gid in _own_groups
    return bool(found.st_mode & (0o007 if own_group else 0o077))


def open_to_others(path: Path) -> str:
    """Return why a file with secrets is not safe, with the command that repairs it; empty if it is safe."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return ""
    if not mode & 0o007:
        return ""
    return f"{path} holds secrets, and every user of this machine can open it (mode {mode:04o}): chmod o= {path}"
