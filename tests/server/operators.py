"""A console in the test's process, and an operator's end of it: a plain socket, or telnet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Self

import gevent
from gevent import socket

from l2tpns.config.file import find_files
from l2tpns.config.live import Configurator, Options, Reading
from l2tpns.config.settings import Config
from l2tpns.console.context import ConsoleContext
from l2tpns.console.server import Console
from l2tpns.console.timing import ConsoleTiming
from l2tpns.errors import ConfigError
from tests.lab import PATIENCE
from tests.lab.inprocess import InProcess, until

TELNET = bytes.fromhex(
    "fffd01"  # DO ECHO
    "fffd03"  # DO SUPPRESS-GO-AHEAD
    "fffb1f"  # WILL NAWS
    "fffa1f00500018fff0"  # SB NAWS 80 24 SE
)


class Desk:
    """A server with a console. `asked` records what the console asked of the daemon."""

    def __init__(
        self, server: InProcess, directory: Path, users: str | None = None, timing: ConsoleTiming | None = None
    ) -> None:
        self.server = server
        self.asked: list[str] = []
        self.directory = directory
        self.config_file = directory / "l2tpns.cfg"
        self.config_file.write_text("set debug 3\n")
        if users is not None:
            (directory / "l2tpns.users").write_text(users)
            (directory / "l2tpns.users").chmod(0o600)
        self.reload_error = ""
        configurator = Configurator(
            Options(self.config_file),
            Reading(server.config, (), {}),
            server.log,
            apply=lambda radius: server.registry.compare_names(),
            prepare=lambda config: lambda: None,
            check_usage_directory=lambda directory: "",
        )
        self.context = ConsoleContext(
            server=server.core,
            log=server.log,
            files=find_files(self.config_file),
            started=monotonic(),
            intended=configurator.intended,
            assign=configurator.assign,
            reload=self.reload,
            leave=lambda: self.asked.append("leave"),
            bandwidth=lambda: "Bandwidth: none",
            lag=lambda: (0.002, 0.0305),
        )
        self.console = Console(self.context, server.log.get(), port=0, timing=timing)
        self._operators: list[Operator] = []

    def reload(self) -> tuple[str, ...]:
        if self.reload_error:
            raise ConfigError(self.reload_error)
        self.asked.append("reload")
        return ("Changed: nothing",)

    def start(self) -> Self:
        self.console.start()
        return self

    def stop(self) -> None:
        for operator in self._operators:
            operator.close()
        self.console.stop()
        until(lambda: not len(self.console))

    def operator(self, hello: bytes = b"") -> Operator:
        operator = Operator(self.console.port, hello)
        self._operators.append(operator)
        return operator

    def plain(self) -> Operator:
        """Return an operator without telnet, at the prompt and enabled."""
        operator = self.operator()
        operator.expect("> ")
        operator.do("enable")
        return operator

    def telnet(self) -> Operator:
        """Return an operator as with Debian's telnet, 80 by 24, at the prompt and enabled."""
        operator = self.operator(TELNET)
        operator.expect("> ")
        gevent.sleep(0.02)  # wait for the answers to the offers
        operator.type("enable\r\n")
        operator.expect("# ")
        operator.heard = b""
        return operator


class Operator:
    """Types and reads. `heard` has the output that was read but not yet expected."""

    def __init__(self, port: int, hello: bytes = b"") -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.socket.connect(("127.0.0.1", port))
        self.socket.settimeout(PATIENCE)
        self.heard = b""
        self.closed = False
        if hello:
            self.socket.sendall(hello)

    def close(self) -> None:
        self.socket.close()

    def type(self, keys: str | bytes) -> None:
        self.socket.sendall(keys if isinstance(keys, bytes) else keys.encode("utf-8", "surrogateescape"))

    def expect(self, words: str, timeout: float = PATIENCE) -> str:
        """Return the output up to and including these words, and discard it."""
        wanted = words.encode()
        end = monotonic() + timeout
        while wanted not in self.heard:
            self._hear(end, words)
        before, _, self.heard = self.heard.partition(wanted)
        return (before + wanted).decode("utf-8", "surrogateescape")

    def expect_end(self, timeout: float = PATIENCE) -> str:
        """Return the output until the connection is closed."""
        end = monotonic() + timeout
        while not self.closed:
            self._hear(end, "the end")
        return self.heard.decode("utf-8", "backslashreplace")

    def _hear(self, end: float, wanted: str) -> None:
        self.socket.settimeout(max(end - monotonic(), 0.001))
        try:
            octets = self.socket.recv(65536)
        except TimeoutError:
            raise AssertionError(f"no {wanted!r} in {self.heard!r}") from None
        except ConnectionResetError:
            octets = b""
        if not octets:
            self.closed = True
            if wanted != "the end":
                raise AssertionError(f"closed before {wanted!r}: {self.heard!r}")
        self.heard += octets

    def do(self, line: str, prompt: str = "# ") -> str:
        """Type a command on a plain socket. Return its output without the prompt."""
        self.heard = b""
        self.type(line + "\n")
        said = self.expect("lns.example" + prompt) if prompt != "# " else self._until_prompt()
        return said.rpartition("lns.example")[0].replace("\r\n", "\n")

    def _until_prompt(self) -> str:
        end = monotonic() + PATIENCE
        while not self.heard.endswith(b"# "):
            self._hear(end, "# ")
        said, self.heard = self.heard, b""
        return said.decode("utf-8", "surrogateescape")


def with_config(server: InProcess, **changes: Any) -> Config:
    """Change the configuration object that all parts share."""
    server.config.take(dataclasses.replace(server.config, **changes))
    return server.config


OpenDesk = Callable[..., Desk]
