"""The nsctl server in the test's process, with hand-built packets, scripted plugins and scripted clocks."""

from __future__ import annotations

import hashlib
import hmac
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

import gevent
from gevent import socket, subprocess
from gevent.event import Event

from l2tpns.config.settings import Config
from l2tpns.errors import L2tpnsError
from l2tpns.nsctl import __main__ as nsctl
from l2tpns.nsctl.server import NsctlServer
from l2tpns.runtime.counters import Counters
from tests.lab import PATIENCE
from tests.lab.memory_log import MemoryLog

SECRET = "a key that is long enough"
NOW = 1_700_000_000.0
OTHER_HOST = ("192.0.2.7", 40000)

HELP = bytes.fromhex("9013 13 00 ff")
NOTE = bytes.fromhex("9013 14 02 04 6e6f7465 03 6f6e65 ff")  # "note" "one"
SLOW = bytes.fromhex("9013 14 01 04 736c6f77 ff")  # "slow"
OK = bytes.fromhex("9013 21 00 ff")


def sealed(packet: bytes, at: float = NOW, nonce: bytes = bytes(16), key: str = SECRET, direction: int = 1) -> bytes:
    octets = struct.pack("!HBBQ", 0x9014, 1, direction, int(at * 1000)) + nonce + packet
    return octets + hmac.new(key.encode(), octets, hashlib.sha256).digest()


class Plugins:
    """Stands in for the daemon's plugins: `note` works; `fail`, `slow` and `broken` do not."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.obeyed: list[tuple[list[str], tuple[str, int]]] = []
        self.packets: list[tuple[bytes, int, int]] = []
        self.go_on = Event()

    def load(self, name: str) -> None:
        if name in self.loaded:
            raise L2tpnsError(f"{name} is loaded already")
        self.loaded.append(name)

    def remove(self, name: str) -> None:
        if name not in self.loaded:
            raise L2tpnsError(f"{name} is not loaded")
        self.loaded.remove(name)

    def control(
        self, words: list[str], source: tuple[str, int], *, packet: bytes, kind: int, id: int
    ) -> tuple[bool, str] | None:
        self.obeyed.append((words, source))
        self.packets.append((packet, kind, id))
        match words:
            case ["note", *_]:
                return True, ""
            case ["garden" | "ungarden" as what, session]:
                return True, f"{what} {session}"
            case ["fail"]:
                return False, "session not found"
            case ["slow", *_]:
                self.go_on.wait()
                return True, "at last"
            case ["broken"]:
                raise RuntimeError("a plugin's mistake")
            case ["escape"]:
                return True, "\x1b[2Jfred\nmary"
        return None

    def control_help(self) -> list[str]:
        return ["note TEXT - make a note"]


class Stage:
    """A server with its parts. `now` is its wall clock, `sent` records what it sends through the stage."""

    def __init__(self) -> None:
        self.meant: list[dict[str, Any]] = []  # tracebacks that the test expects
        self.config = Config(nsctl_port=0, nsctl_secret="")
        self.counters = Counters()
        self.plugins = Plugins()
        self.log = MemoryLog()
        self.now = NOW
        self.seconds = 0.0  # its monotonic clock
        self.sent: list[tuple[bytes, tuple[str, int]]] = []
        self.server = self.make()
        self.sockets: list[Any] = []

    def make(self, **limits: Any) -> NsctlServer:
        parts = self.config, self.counters, self.plugins, self.log.get()
        return NsctlServer(*parts, clock=lambda: self.now, now=lambda: self.seconds, **limits)

    def restart(self, **limits: Any) -> None:
        """Replace the server by one with other limits."""
        self.server.stop()
        self.server = self.make(**limits)
        self.server.apply_config()
        self.server.start()

    @property
    def port(self) -> int:
        return self.server.addresses[0][1]

    def socket(self) -> Any:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("127.0.0.1", self.port))
        sock.settimeout(PATIENCE)
        self.sockets.append(sock)
        return sock

    def ask(self, octets: bytes) -> bytes:
        sock = self.socket()
        sock.send(octets)
        return bytes(sock.recv(65535))

    def hear(self, octets: bytes, source: tuple[str, int] = OTHER_HOST) -> list[bytes]:
        """Deliver a datagram from any address. Return the replies."""
        self.sent.clear()
        self.server.on_datagram(self, octets, source)
        for _ in range(3):
            gevent.sleep(0)
        assert all(to == source for _, to in self.sent)
        return [octets for octets, _ in self.sent]

    def sendto(self, octets: bytes, to: tuple[str, int]) -> None:
        """Act as the server's socket: record a reply."""
        self.sent.append((octets, to))

    def events(self, event: str) -> list[dict[str, Any]]:
        return self.log.records(event)

    def nsctl(self, *words: str, **environment: str) -> tuple[int, str, str]:
        """Run the client. Return exit status, standard output and standard error."""
        done = subprocess.run(
            [sys.executable, "-m", "l2tpns.nsctl", *words],
            capture_output=True,
            env={"PYTHONPATH": str(Path(nsctl.__file__).parents[1]), "LC_ALL": "C.UTF-8", **environment},
            timeout=60,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def local(self, *words: str) -> tuple[int, str, str]:
        return self.nsctl("-t", "20", "-h", f"127.0.0.1:{self.port}", *words)

    def wait(self, condition: Callable[[], object]) -> None:
        until = monotonic() + PATIENCE
        while not condition():
            assert monotonic() < until
            gevent.sleep(0.005)

    def __enter__(self) -> Self:
        self.server.apply_config()
        self.server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.server.stop()
        for sock in self.sockets:
            sock.close()
        if kind is None:
            assert [record for record in self.log.records() if "traceback" in record] == self.meant
