"""What a daemon needs of its operating system: detaching, sd_notify(3), limits, pid file, sysctls, memory."""

from __future__ import annotations

import os
import resource
import socket
import stat
import sys
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import gevent
from gevent.monkey import get_original

from l2tpns.errors import refused
from l2tpns.runtime import files

_close = get_original("os", "close")  # gevent's own closes later, from the event loop
SPARE = 8  # descriptors: a configuration, a pool, a log and a socket at once, and some in reserve
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")  # of the network namespace of this process


def state_directory() -> Path:
    """Return the directory for what survives a restart. The installed launcher names it (README, Install)."""
    return Path(os.environ.get("L2TPNS_STATE", "/var/lib/l2tpns"))


def runtime_directory() -> Path:
    """Return the directory for what survives this process, but not a reboot. Not on the disk of the saved state."""
    return Path(os.environ.get("L2TPNS_RUN", "/run/l2tpns"))


def kernel_forwards() -> bool:
    """Return True if the kernel forwards packets between interfaces, or if that cannot be read."""
    try:
        return IP_FORWARD.read_text().strip() != "0"
    except OSError:
        return True


class Starter:
    """The process that was called to start a daemon, and waits until it is ready. Without -d there is none."""

    def __init__(self, pipe: int = -1) -> None:
        self._pipe = pipe

    def release(self, status: int) -> None:
        """Make that process exit with this status, and detach from its standard error."""
        if self._pipe < 0:
            return
        sys.stderr.flush()
        with suppress(OSError):  # it has not waited
            os.write(self._pipe, bytes([status]))
        os.close(self._pipe)
        self._pipe = -1
        _to_nowhere(2)


def detach() -> Starter:
    """Become a daemon: two forks, a session of our own, no terminal. Return in the daemon only.

    Standard output is closed at once, for a program that reads it to the end must not wait for the daemon.
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


class ServiceManager:
    """sd_notify(3), if a service manager listens. The socket stays open, for later no descriptor may be free."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._environment = environment
        self._socket: socket.socket | None = None
        self._open()

    def notify(self, state: str, *descriptors: int) -> None:
        """Send a state with descriptors, if the service manager still listens. Does not raise."""
        with suppress(OSError):
            self._open()
            if self._socket is not None:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
                self._socket.sendmsg([state.encode()], rights, 0, self._address)

    @property
    def watchdog_period(self) -> float:
        """Return the seconds within which WATCHDOG=1 must be sent (sd_watchdog_enabled(3)); 0: never."""
        pid, period = self._environment.get("WATCHDOG_PID", ""), self._environment.get("WATCHDOG_USEC", "")
        if not self._address or not period.isdecimal() or (pid and pid != str(os.getpid())):
            return 0.0
        return int(period) / 1e6

    def _open(self) -> None:
        if self._address and self._socket is None:
            with suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.settimeout(1.0)  # a manager that does not read must not block us


class Spare:
    """Descriptors held in reserve for when no other is free: to handle a signal, and to shut down in order."""

    def __init__(self, count: int = SPARE) -> None:
        self._count = count
        self._held: list[int] = []

    def fill(self) -> None:
        """Open them again, or as many as are free."""
        with suppress(OSError):
            while len(self._held) < self._count:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    @property
    def short(self) -> bool:
        """Return True if the last `fill` did not get all of them."""
        return len(self._held) < self._count

    def release(self) -> None:
        while self._held:
            _close(self._held.pop())

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Free the descriptors for the code in the body."""
        self.release()
        try:
            yield
        finally:
            self.fill()


def descriptors() -> int | None:
    """Return how many descriptors are open; None if none is free to count them with."""
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return None


def raise_descriptor_limit() -> None:
    """Raise the soft limit: RADIUS uses a socket for 256 requests, and the limit of a shell is small."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        with suppress(OSError, ValueError):  # a container may forbid it: the limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def write_pid_file(path: Path) -> None:
    try:
        descriptor = files.open_file(path, os.O_WRONLY | os.O_CREAT, 0o644, stream=True)
        with open(descriptor, "wb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.ftruncate(descriptor, 0)
            file.write(b"%d\n" % os.getpid())
    except OSError as error:
        raise refused(error.errno, f"pid_file {path}: {error.strerror}") from None


def reserve_pid_file(path: Path, uid: int, gid: int) -> None:
    """Create an empty pid file for a user that may not create files there. Raises ConfigError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return
    except OSError as error:
        raise refused(error.errno, f"pid_file {path}: {error.strerror}") from None
    os.fchown(descriptor, uid, gid)
    os.close(descriptor)


def remove_pid_file(path: Path) -> None:
    """Remove the pid file if it is ours; empty it if we may not change its directory."""
    try:
        if files.read_file(path, 100).strip() != b"%d" % os.getpid():
            return
        try:
            path.unlink()
        except PermissionError:
            os.close(files.open_file(path, os.O_WRONLY | os.O_TRUNC))
    except OSError:
        pass  # never written, or removed already


def resident_kib() -> int | None:
    """Return the resident memory of this process in KiB; None if no descriptor is free to read it."""
    with suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)
    return None
