"""What a daemon asks of its operating system: detaching, sd_notify(3), limits, pid file, sysctls, memory."""

from __future__ import annotations

import os
import resource
import socket
import sys
from contextlib import suppress
from pathlib import Path

import gevent

from l2tpns.errors import ConfigError

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")  # of the network namespace that we are in


def state_directory() -> Path:
    """What survives a restart; the installed launcher names it (README, Install)."""
    return Path(os.environ.get("L2TPNS_STATE", "/var/lib/l2tpns"))


def kernel_forwards() -> bool:
    """Whether the kernel passes packets on between its interfaces; if that cannot be read there is no need to warn."""
    try:
        return IP_FORWARD.read_text().strip() != "0"
    except OSError:
        return True


class Starter:
    """The process that was asked to start a daemon, and waits for its word. Without -d there is none."""

    def __init__(self, pipe: int = -1) -> None:
        self._pipe = pipe

    def release(self, status: int) -> None:
        """Have it exit with this status. Standard error was its, too, and is let go."""
        if self._pipe < 0:
            return
        sys.stderr.flush()
        with suppress(OSError):  # it did not want to wait
            os.write(self._pipe, bytes([status]))
        os.close(self._pipe)
        self._pipe = -1
        _to_nowhere(2)


def detach() -> Starter:
    """Become a daemon: two forks, a session of our own, no terminal. Returns in the daemon only.

    Standard output is let go at once: whoever reads it to its end must not wait for a daemon's.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    theirs, ours = os.pipe()
    if gevent.fork():
        os.close(ours)
        said = os.read(theirs, 1)
        if not said:
            os.write(2, b"l2tpns: the daemon has ended before it was ready\n")
        os._exit(said[0] if said else 1)
    os.close(theirs)
    os.setsid()
    if gevent.fork():
        os._exit(0)
    os.chdir("/")
    _to_nowhere(0, 1)
    return Starter(ours)


def _to_nowhere(*descriptors: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


def notify(state: str) -> None:
    """sd_notify(3), where a service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            pass  # nobody listens any more: nothing to tell


def raise_descriptor_limit() -> None:
    """RADIUS uses a socket for 256 requests; the soft limit of a shell is small."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def write_pid_file(path: Path) -> None:
    try:
        path.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise ConfigError(f"pid_file {path}: {error.strerror}") from None


def reserve_pid_file(path: Path, uid: int, gid: int) -> None:
    """Make an empty pid file that another user can fill, where that user may not make files. Raises ConfigError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigError(f"pid_file {path}: {error.strerror}") from None
    os.fchown(descriptor, uid, gid)
    os.close(descriptor)


def remove_pid_file(path: Path) -> None:
    """Remove the file if it is ours; empty it where its directory is not ours to change."""
    try:
        if path.read_text().strip() != str(os.getpid()):
            return
        try:
            path.unlink()
        except PermissionError:
            path.write_text("")
    except OSError:
        pass  # never written, or gone already


def resident_kib() -> int:
    """Resident memory of this process in KiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)
