"""Every file that the server writes is opened here, and none of another's through a name that was put in our way.

The server is root, and a directory such as accounting_dir may be another user's: a symbolic link, a hard link, a FIFO
or a device in place of a file of ours must neither have us write elsewhere nor make us wait. So the last component of a
path is never followed, what was opened is looked at before anything is written, and what appears whole is made under a
name that was free. docs/decisions/0025-files-in-directories-of-others.md says which directories are warned of.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

ROOT = 0
SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
LARGEST = 1 << 30  # octets of a file that is read as a whole
_own_users: set[int] = {ROOT}
_own_groups: set[int] = set()


class Unfit(OSError):
    """A file that is not what it should be; in words for the operator, as strerror of any other OSError."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EPERM, why)


def accept_owner(uid: int, gid: int) -> None:
    """Treat the files of this user and group as ours from now on: `setuid` names them, and we are still root."""
    _own_users.add(uid)
    _own_groups.add(gid)


def open_file(path: str | Path, flags: int, mode: int = 0o600, *, stream: bool = False) -> int:
    """A descriptor of a plain file of ours. `stream`: a FIFO or a device will do where only we could have put it.

    OSError when it cannot be had, or is another's.
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
            raise Unfit("it is a FIFO that nobody reads, or a socket") from None
        raise


def _objection(found: os.stat_result, path: Path, stream: bool) -> str:
    """Why this is no file to write to, or nothing."""
    ours = _is_ours(found.st_uid)
    if not stat.S_ISREG(found.st_mode):
        channel = stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode)
        return "" if stream and channel and (ours or not _others_put(path.parent)) else "it is no plain file"
    if found.st_nlink > 1:
        return f"it has {found.st_nlink} names (hard links): it may be another's file"
    if not ours and _others_put(path.parent):
        return f"it belongs to user {found.st_uid}"
    return ""


def read_file(path: str | Path, largest: int = LARGEST) -> bytes:
    """What is in a plain file. Neither follows a link nor waits for a FIFO. Raises OSError."""
    descriptor = _open(path, os.O_RDONLY)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise Unfit("it is no plain file")
    with open(descriptor, "rb") as file:
        if found.st_size > largest:
            raise Unfit(f"it has {found.st_size} octets")
        return file.read()


def make_file(directory: Path, octets: bytes, mode: int = 0o644) -> Path:
    """A new file under a name that was free, on the disk when this returns. Raises OSError; then it is gone."""
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
    """All or nothing, on the disk when it returns. Mode and owner stay as they were; of a new one `mode`, or 0600.

    Raises OSError. A symbolic link is replaced, what it leads to stays as it is.
    """
    old = _status(path)
    if old is not None and stat.S_ISLNK(old.st_mode):
        old = None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise Unfit("it is no plain file")
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
    """Mode and owner; by the descriptor, for the name may be another's by now."""
    descriptor = os.open(new, os.O_RDONLY | SAFE)
    try:
        if old is None:
            os.fchmod(descriptor, 0o600 if mode is None else mode)
            return
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))  # while it is ours: the service has no CAP_FOWNER
        if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, old.st_uid, old.st_gid)
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> bool:
    """Whether nothing is there any more. Needs neither room nor a descriptor."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def foreign(directory: Path) -> str:
    """Who besides root and ourselves decides what stands in a directory, in words; nothing: nobody.

    Group members are whom root has chosen (/var/log is syslog's group on some systems). In a sticky directory, such
    as /tmp, nobody removes what is ours; what was there before us open_file refuses.
    """
    for place in (directory.absolute(), *directory.absolute().parents):
        try:
            found = os.stat(place)
        except OSError:
            continue  # what is wrong with it shows when it is used
        if not _is_ours(found.st_uid):
            return f"{place} belongs to user {found.st_uid}, who can remove and replace what is written there"
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            return f"everybody can remove and replace what is written to {place}: chmod o-w {place}"
    return ""


def displaced(directory: Path) -> str:
    """Why a directory may be another one than was meant, or nothing: who has the place has put this one there."""
    owner = os.stat(directory).st_uid
    for place in directory.absolute().parents:
        holder = os.stat(place).st_uid
        if holder != owner and not _is_ours(holder):
            return f"it belongs to user {owner}, and user {holder}, whose {place} is, may have put it there"
    return ""


def _others_put(directory: Path) -> bool:
    """Whether another than root, ourselves and a group of root's choice can put a name into it."""
    found = os.stat(directory)
    return not _is_ours(found.st_uid) or bool(found.st_mode & stat.S_IWOTH)


def _is_ours(uid: int) -> bool:
    return uid in _own_users or uid == os.geteuid()


def beyond_own_group(found: os.stat_result) -> bool:
    """Return True if the mode of a file admits users outside of the server's own group."""
    own_group = found.st_gid == os.getegid() or found.st_gid in _own_groups
    return bool(found.st_mode & (0o007 if own_group else 0o077))


def open_to_others(path: Path) -> str:
    """Why a file with secrets is not as safe as it should be, and the command that mends it; nothing: it is."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return ""
    if not mode & 0o007:
        return ""
    return f"{path} holds secrets, and every user of this machine can open it (mode {mode:04o}): chmod o= {path}"
