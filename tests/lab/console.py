"""Act as an operator at the console of a daemon in a namespace, on a plain socket: no telnet, no pages.

said = Console(namespace).do("show session")
"""

from __future__ import annotations

import json
import socket
from types import TracebackType
from typing import Any, Self

import gevent.socket

from tests.lab import PATIENCE
from tests.lab.netns import Namespace


class Console:
    """Connect to the console with enable privilege."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            self.socket = gevent.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", 23))
        self._until(b"> ")
        self.do("enable")

    def do(self, line: str) -> str:
        """Return the output of a command, without the prompt."""
        self.socket.sendall(line.encode() + b"\n")
        return self._until(b"# ").rpartition("\n")[0]

    def rows(self, line: str) -> list[dict[str, Any]]:
        """Return the table that a command shows, as data."""
        found: list[dict[str, Any]] = json.loads(self.do(f"{line} | json"))
        return found

    def _until(self, sign: bytes) -> str:
        heard = b""
        while not heard.endswith(sign):
            octets = self.socket.recv(65536)
            if not octets:
                raise ConnectionError(f"closed after {heard!r}")
            heard += octets
        return heard.decode(errors="replace").replace("\r\n", "\n")

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
