"""Try, as another user of the machine, to bind ports that the server holds, with each mix of address and option.

    with PortThief([("udp", "0.0.0.0", 1701)]) as thief:
        ...
        assert thief.loot() == []

It goes on trying until `loot` is called, and has tried everything at least once by then. Needs root, to become another
user.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from tests.lab.netns import Namespace

SCRIPT = r"""
import errno, itertools, json, os, select, socket, sys
targets = json.loads(sys.argv[1])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
kinds = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}
loot, tries = set(), 0

def attempt(kind, address, port, reuse_address, reuse_port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kinds[kind]) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        try:
            sock.bind((address, port))
            if kind == "tcp":
                sock.listen()
            loot.add(f"{kind} {address}:{port} {reuse_address}{reuse_port}")
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                loot.add(f"{kind} {address}:{port} {error}")

while True:
    for target, *options in itertools.product(targets, (0, 1), (0, 1)):
        attempt(*target, *options)
        tries += 1
    print("round", flush=True)
    if select.select([sys.stdin], [], [], 0)[0]:
        break
print(json.dumps([tries, sorted(loot)]), flush=True)
"""


class PortThief:
    """Run a process of the unprivileged user that tries to bind the ports."""

    def __init__(self, targets: Iterable[tuple[str, str, int]], namespace: Namespace | None = None) -> None:
        argv = [sys.executable, "-I", "-c", SCRIPT, json.dumps(list(targets))]
        if namespace is not None:
            argv = namespace.command(*argv)
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(argv, **options)
        self.tries = 0

    def wait_for_a_round(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "round\n"

    def loot(self) -> list[str]:
        """Return the ports that it could bind, and errors other than that the port is in use."""
        output, _ = self._process.communicate("stop\n")
        self.tries, loot = json.loads(output.splitlines()[-1])
        return list(loot)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
