"""What a daemon asks of its operating system: detaching, sd_notify(3), limits, pid file, sysctls, memory."""

from __future__ import annotations

import os
import resource
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import gevent
from gevent.monkey import get_original

from l2tpns.errors import refused
from l2tpns.runtime import files

_close = get_original("os", "close")  # gevent's own closes later, when the event loop comes to it
SPARE = 8  # descriptors: a configuration, a pool, a log and a socket at once, and some that were not thought of
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")  # of the network namespace that we are in


def state_directory() -> Path:
    """What survives a restart; the installed launcher names it (README, Install)."""
    return Path(os.environ.get("L2TPNS_STATE", "/var/lib/l2tpns"))


def runtime_directory() -> Path:
    """What survives this process, but not the machine: not on the disk that the state is on, and writable when that is
    not."""
    return Path(os.environ.get("L2TPNS_RUN", "/run/l2tpns"))


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


class ServiceManager:
    """sd_notify(3), where a service manager listens. Its socket stays open: a descriptor might not be had later."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._environment = environment
        self._socket: socket.socket | None = None
        self._open()

    def say(self, state: str) -> None:
        """Never raises. Where nobody listens any more there is nothing to tell."""
        with suppress(OSError):
            self._open()
            if self._socket is not None:
                self._socket.sendto(state.encode(), self._address)

    @property
    def watchdog_period(self) -> float:
        """Seconds within which WATCHDOG=1 must be said (sd_watchdog_enabled(3)); 0: nobody waits for it."""
        pid, period = self._environment.get("WATCHDOG_PID", ""), self._environment.get("WATCHDOG_USEC", "")
        if not self._address or not period.isdecimal() or (pid and pid != str(os.getpid())):
            return 0.0
        return int(period) / 1e6

    def _open(self) -> None:
        if self._address and self._socket is None:
            with suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.settimeout(1.0)  # a manager that does not read must not hold us up


class Spare:
    """Descriptors that are kept for a time when no other is free: to obey a signal, and to leave in order."""

    def __init__(self, count: int = SPARE) -> None:
        self._count = count
        self._held: list[int] = []

    def fill(self) -> None:
        """Have them again, or as many as there are."""
        with suppress(OSError):
            while len(self._held) < self._count:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    @property
    def short(self) -> bool:
        """Whether the last `fill` found none that was free."""
        return len(self._held) < self._count

    def release(self) -> None:
        while self._held:
            _close(self._held.pop())

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let what runs within have them."""
        self.release()
        try:
            yield
        finally:
            self.fill()


def descriptors() -> int | None:
    """How many are open; None when there is none left to count them by."""
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return None


def raise_descriptor_limit() -> None:
    """RADIUS uses a socket for 256 requests; the soft limit of a shell is small."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        with suppress(OSError, ValueError):  # a container may not let us: what there is will do
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
    """Make an empty pid file that another user can fill, where that user may not make files. Raises ConfigError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return
    except OSError as error:
        raise refused(error.errno, f"pid_file {path}: {error.strerror}") from None
    os.fchown(descriptor, uid, gid)
    os.close(descriptor)


def remove_pid_file(path: Path) -> None:
    """Remove the file if it is ours; empty it where its directory is not ours to change."""
    try:
        if files.read_file(path, 100).strip() != b"%d" % os.getpid():
            return
        try:
            path.unlink()
        except PermissionError:
            os.close(files.open_file(path, os.O_WRONLY | os.O_TRUNC))
    except OSError:
        pass  # never written, or gone already


def resident_kib() -> int | None:
    """Resident memory of this process in KiB; None when there is no descriptor to read it by."""
    with suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)
    return None
