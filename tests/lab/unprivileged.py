"""Run every daemon of the tests as another user than root (docs/privileges.md): `make unprivileged`.

The environment variable L2TPNS_TEST_SETUID names the user. The configurations then have `set setuid`, and the tests'
directories are prepared as an operator prepares the machine: the configuration is readable for the user's group, which
may also write to its directory (`write memory`); the directories of logs, pid files and accounting belong to the user.
Without the variable these functions have no effect.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from l2tpns.system.privileges import find_identity

IDENTITY = find_identity(os.environ.get("L2TPNS_TEST_SETUID", "0"))
_SETUID = re.compile(r"^\s*set\s+setuid\s", re.M)
_DIRECTORY = re.compile(r'^\s*set\s+accounting_dir\s+"?([^"\n]+)', re.M)
_FILE = re.compile(r'^\s*set\s+(?:log_file|audit_file|pid_file)\s+"?(?:file:)?(/[^"\n]+)', re.M)
_TUN = Path("/dev/net/tun")
OPEN_TUN = 'mount --bind "$0" /dev/net/tun && exec "$@"'


def root_only(reason: str) -> pytest.MarkDecorator:
    """Skip a test of what only root may do, while the daemons run as another user."""
    return pytest.mark.skipif(IDENTITY is not None, reason=f"not under setuid: {reason}")


def prepare_config(config: Path) -> None:
    """Add `set setuid` to a configuration that has none, and let the user read it."""
    assert IDENTITY is not None
    text = config.read_text(errors="surrogateescape")
    if not _SETUID.search(text):
        config.write_text(f"{text}set setuid {IDENTITY.name}\n", errors="surrogateescape")
    let_read(config)


def prepare(directory: Path, config: Path) -> None:
    """Give the user the access that an operator gives before the start: to its configuration and directories."""
    assert IDENTITY is not None
    prepare_config(config)
    text = config.read_text(errors="surrogateescape")
    _let_through(directory)
    if _is_roots(directory):
        os.chown(directory, 0, IDENTITY.gid)
        directory.chmod(0o770)
    for path in directory.glob("l2tpns.*"):
        let_read(path)
    places = [Path(name) for name in _DIRECTORY.findall(text)]
    places += [Path(name).parent for name in _FILE.findall(text)]
    for place in places:
        if place != directory and place.is_dir() and _is_roots(place) and _is_private(place):
            _let_through(place)
            os.chown(place, IDENTITY.uid, IDENTITY.gid)


def let_read(path: Path) -> None:
    """Let the user's group read a file that only root could read."""
    assert IDENTITY is not None
    if _is_roots(path) and not path.stat().st_mode & 0o007:
        os.chown(path, 0, IDENTITY.gid)
        path.chmod(path.stat().st_mode | 0o040)


def environment(directory: Path) -> dict[str, str]:
    """Return what the daemon's environment needs besides: the machine's own directories must not be given away."""
    own = {"L2TPNS_STATE": str(directory / "var"), "L2TPNS_RUN": str(directory / "run")}
    return {name: os.environ.get(name, value) for name, value in own.items()}


def with_tun(directory: Path, command: Sequence[str]) -> list[str]:
    """Return the command with the mode of udev for /dev/net/tun, where the machine has another (containers)."""
    if not _TUN.exists() or _TUN.stat().st_mode & 0o006 == 0o006:
        return list(command)
    return ["unshare", "--mount", "sh", "-c", OPEN_TUN, str(open_tun(directory)), *command]


def open_tun(directory: Path) -> Path:
    """Return a device node for TUN that every user may open, made in the directory."""
    node = directory / "tun"
    if not node.exists():
        os.mknod(node, stat.S_IFCHR, _TUN.stat().st_rdev)
        node.chmod(0o666)
    return node


def check_user(pid: int) -> None:
    """Make sure that the daemon has given up root: else the tests would show nothing."""
    assert IDENTITY is not None
    assert os.stat(f"/proc/{pid}").st_uid == IDENTITY.uid


def _is_roots(path: Path) -> bool:
    return path.stat().st_uid == 0


def _is_private(directory: Path) -> bool:
    """Return True for a directory of the tests: the machine's are not given away."""
    return directory.resolve().is_relative_to(tempfile.gettempdir()) and not directory.stat().st_mode & stat.S_IWOTH


def _let_through(directory: Path) -> None:
    """Let every user pass through the private directories between a public one, such as /tmp, and this one."""
    private: list[Path] = []
    for place in directory.resolve().parents:
        if place.stat().st_mode & stat.S_IWOTH:
            for each in private:
                each.chmod(each.stat().st_mode | 0o011)
            return
        private.append(place)
