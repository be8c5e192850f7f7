"""Claim a directory for this process alone: created if need be, owned by us, closed to others, and locked."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from l2tpns.errors import RepairError, WaitError, refused
from l2tpns.runtime import files


def claim_directory(directory: Path, setting: str, *, confidential: bool = False) -> int:
    """Lock a directory of ours and return the descriptor that holds the lock.

    Others must not be able to write to it. `confidential`: nor to enter it, and it must not be a symbolic link.
    Raises ConfigError, whose text begins with the name of the setting.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.stat(directory, follow_symlinks=not confidential)
        forbidden = 0o077 if confidential else 0o022
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & forbidden:
            rule = "that no other user can enter" if confidential else "to which no other user can write"
            raise RepairError(f"{setting} {directory}: must be a directory of ours {rule}")
        descriptor = files.open_file(directory / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
    except BlockingIOError:
        raise WaitError(f"{setting} {directory}: another l2tpns uses it") from None
    except OSError as error:
        raise refused(error.errno, f"{setting} {directory}: {error.strerror}") from error
    return descriptor
