"""Where log lines go: standard output (syslog for a daemon without one), a file, or syslog.

No write blocks: a full pipe, a stopped terminal or a slow syslog loses lines, which are counted, and never delays a
subscriber's packet. A line that was begun is finished before the next, so that no reader sees half a line. Only a
write to a disk may take as long as the disk takes.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import time
from typing import Protocol

from l2tpns.errors import refused
from l2tpns.runtime import files
from l2tpns.runtime.durable import close_quietly

SYSLOG_SOCKET = "/dev/log"
DAEMON_FACILITY = "daemon"  # for a daemon that has no standard output and no log_file
_RETRY_SECONDS = 1.0
# Names of descriptors that this process has inherited: symbolic links, which a log file must not be.
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
_INHERITED = re.compile(r"/dev/std(?:out|err)|/(?:dev|proc/self)/fd/([0-9]{1,4})")

_FACILITIES = (
    "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp ntp audit alert clock "
    "local0 local1 local2 local3 local4 local5 local6 local7"
).split()
# Our levels 0 to 5 in syslog's words: crit, err, warning, info, debug, debug (RFC 5424 6.2.1).
_SEVERITIES = (2, 3, 4, 6, 7, 7)


class LogSink(Protocol):
    """Takes lines, and counts in `dropped` those that it could not take."""

    dropped: int

    def write(self, line: bytes, level: int) -> bool:
        """Write one line. Return False if it was lost. Does not yield."""

    def reopen(self) -> None:
        """Open the destination again. Raises OSError, and leaves the sink as it was."""

    def close(self) -> None: ...


def open_sink(destination: str, *, detached: bool = False) -> LogSink:
    """Return the sink for a value of log_file. `detached`: there is no standard output. Raises ConfigError."""
    kind, _, rest = destination.partition(":")
    try:
        if not destination and detached:
            return Syslog(DAEMON_FACILITY, optional=True)
        if not destination:
            return Descriptor(sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
        if kind == "syslog":
            return Syslog(rest)
        path = rest if kind == "file" else destination
        inherited = _INHERITED.fullmatch(path)
        if inherited:
            return Descriptor(_STANDARD.get(path) or int(inherited[1]))
        return File(path)
    except OSError as error:
        through = f"{SYSLOG_SOCKET}: " if kind == "syslog" else ""
        why = f'log_file: cannot open "{destination}": {through}{error.strerror or error}'
        raise refused(error.errno, why) from None


def open_audit(path: str) -> LogSink:
    """Return the sink for a value of audit_file. Raises ConfigError."""
    try:
        return File(path, mode=0o600)
    except OSError as error:
        raise refused(error.errno, f'audit_file: cannot open "{path}": {error.strerror or error}') from None


class Descriptor:
    """An inherited descriptor, such as standard output, which is not closed."""

    def __init__(self, fd: int) -> None:
        self.dropped = 0
        self._rest = b""  # of a line that was written in part
        self._socket: socket.socket | None = None
        self._fd = self._private(fd)

    def _private(self, fd: int) -> int:
        """Return a descriptor of our own that does not block.

        O_NONBLOCK belongs to the open file, which the shell or the service manager shares: set there, it would break
        them. Opening it again gives an open file of our own. A socket (of the journal) cannot be opened again, but
        takes MSG_DONTWAIT.
        """
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(fd))
            return fd
        if stat.S_ISREG(mode):
            return os.dup(fd)  # keeps the position that others who write to it share
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return os.dup(fd)  # a terminal of another user: writing to it may block

    def write(self, line: bytes, level: int) -> bool:
        if self._rest and not self._flush():
            return False
        self._rest = line + b"\n"
        length = len(self._rest)
        # A line of which nothing was taken is lost. The rest of a line that was begun waits.
        if not self._flush() and len(self._rest) == length:
            self._rest = b""
            return False
        return True

    def _flush(self) -> bool:
        try:
            self._rest = self._rest[self._send(self._rest) :]
        except OSError:
            return False
        return not self._rest

    def _send(self, octets: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(octets, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._fd, octets)

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        if self._rest:
            self._flush()
        if self._socket is not None:
            self._socket.close()
        else:
            close_quietly(self._fd)


class File(Descriptor):
    """A file to which lines are appended; it is opened again after it was rotated."""

    def __init__(self, path: str, mode: int = 0o640) -> None:
        self._path = path
        self._mode = mode
        super().__init__(-1)

    def _private(self, fd: int) -> int:
        # The log names users, so others may not read it.
        return files.open_file(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, self._mode, stream=True)

    def reopen(self) -> None:
        old, new = self._fd, self._private(-1)
        self._flush()
        self._rest, self._fd = b"", new
        close_quietly(old)


class Syslog:
    """The datagram socket of the local syslog, in the form of RFC 3164 that libc sends.

    `optional`: a syslog that does not listen yet is not an error. Lines are lost until it does.
    """

    def __init__(self, facility: str, path: str = "", *, optional: bool = False) -> None:
        self.dropped = 0
        self._path = path or SYSLOG_SOCKET
        self._facility = _FACILITIES.index(facility) << 3
        self._socket: socket.socket | None = None
        self._retry = 0.0
        if not optional:
            self.reopen()

    def reopen(self) -> None:
        new = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        new.setblocking(False)
        try:
            new.connect(self._path)
        except OSError:
            new.close()
            raise
        self.close()
        self._socket = new

    def write(self, line: bytes, level: int) -> bool:
        if self._socket is None and not self._connect():
            return False
        stamp = time.strftime("%b %e %H:%M:%S")
        head = f"<{self._facility | _SEVERITIES[level]}>{stamp} l2tpns[{os.getpid()}]: ".encode()
        try:
            assert self._socket is not None
            self._socket.send(head + line)
        except BlockingIOError:
            return False  # its reader is slow
        except OSError:
            self.close()  # it was restarted, or the line is longer than it takes
            return False
        return True

    def _connect(self) -> bool:
        """Connect again, at most once per second. Return True if that worked."""
        now = time.monotonic()
        if now < self._retry:
            return False
        self._retry = now + _RETRY_SECONDS
        try:
            self.reopen()
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
