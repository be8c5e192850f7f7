"""Act as the service manager of a daemon: its notifications, and the descriptors that it has kept (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Sequence
from pathlib import Path

FIRST = 3  # SD_LISTEN_FDS_START
_HIGH = 100  # descriptors that nothing else of the daemon's start has


class ServiceManager:
    """Listens at a socket. With `keeps`, it has a descriptor store that outlives the daemon."""

    def __init__(self, path: Path, *, keeps: bool = False) -> None:
        path.unlink(missing_ok=True)
        self.path = str(path)
        self.keeps = keeps
        self.store: list[tuple[str, int]] = []  # names and descriptors of this process
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o777)  # as systemd's is: the daemon may be another user
        self._socket.settimeout(0.1)

    def next_message(self) -> dict[str, str]:
        """Return the next notification, nothing if none has come within a tenth of a second."""
        try:
            octets, rights, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(4 * 16))
        except TimeoutError:
            return {}
        received = array("i")
        for _, _, data in rights:
            received.frombytes(data)
        message = dict(line.partition("=")[::2] for line in octets.decode().splitlines())
        name = message.get("FDNAME", "stored")
        if "FDSTORE" in message and self.keeps:
            assert message.get("FDPOLL") == "0"
            self.store += [(name, fd) for fd in received]
        else:
            for fd in received:
                os.close(fd)
        if "FDSTOREREMOVE" in message:
            for kept, fd in [one for one in self.store if one[0] == name]:
                os.close(fd)
                self.store.remove((kept, fd))
        return message

    def read_all(self) -> None:
        """Take all notifications that have come."""
        while self.next_message():
            pass

    def wrap(self, argv: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
        """Return a command that passes on what is kept, and the descriptors that it needs."""
        self.read_all()
        if not self.store:
            return list(argv), ()
        moves = [f"{FIRST + number}<&{_HIGH + number} {_HIGH + number}<&-" for number in range(len(self.store))]
        names = ":".join(name for name, _ in self.store)
        script = f'LISTEN_PID=$$ LISTEN_FDS={len(self.store)} LISTEN_FDNAMES="{names}" exec "$@" {" ".join(moves)}'
        for number, (_, fd) in enumerate(self.store):
            os.dup2(fd, _HIGH + number)
        passed = tuple(range(_HIGH, _HIGH + len(self.store)))
        return ["bash", "-c", script, "bash", *argv], passed

    def close(self) -> None:
        """Stop listening, and close what is kept."""
        self._socket.close()
        for _, fd in self.store:
            os.close(fd)
        self.store.clear()
