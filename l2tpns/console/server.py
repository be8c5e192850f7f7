"""The console's port: accepts connections, within limits, and gives each a shell of its own."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address
from typing import Any

import gevent
from gevent import socket
from gevent.server import StreamServer

from l2tpns.console import commands, plugins
from l2tpns.console.office import Office
from l2tpns.console.shell import Shell
from l2tpns.console.terminal import Terminal, Turns
from l2tpns.console.users import Users
from l2tpns.errors import ConfigError, refused
from l2tpns.log import Logger
from l2tpns.supervisor import Part

TELNET_PORT = 23
BACKLOG = 64
SEND_BUFFER = 65536  # octets that the kernel keeps for a reader that is slow
RETRY = 10.0  # seconds between two attempts to have it again
LOOK = 1.0  # seconds between two looks whether the port is still served
FAREWELL = 2.0  # seconds in which a console that is refused may read why


class Console:
    """All operators."""

    def __init__(self, office: Office, log: Logger, port: int = TELNET_PORT) -> None:
        self._office = office
        self._log = log
        self._port = port
        self._commands = plugins.Commands(office, commands.COMMANDS, commands.WORDS)
        self._turns = Turns()
        self._shells: dict[Shell, Any] = {}  # with their greenlets
        self._listener: Any = None
        self._server: StreamServer | None = None
        self._part: Part | None = None
        self.users = Users(office.files.users, log)

    @property
    def _address(self) -> IPv4Address:
        return self._office.config.cli_bind_address or IPv4Address(0)

    def open(self) -> None:
        """Take the port; who comes waits until `start`. Raises ConfigError when it cannot be had."""
        address = self._address
        try:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((str(address), self._port))
                listener.listen(BACKLOG)
            except BaseException:
                listener.close()
                raise
        except OSError as error:
            hint = "; cli_bind_address is no address of this machine" if error.errno == errno.EADDRNOTAVAIL else ""
            why = f"the console cannot listen on {address}:{self._port}: {error.strerror}{hint}"
            raise refused(error.errno, why) from None
        self._listener = listener

    def start(self) -> None:
        """Serve. Raises ConfigError as `open` does, if that was not called."""
        if self._listener is None:
            self.open()
        self._accept()
        self._warn(self._address)
        self._part = self._office.lns.supervisor.spawn("console", self._mind)

    def _accept(self) -> None:
        self._server = StreamServer(self._listener, self._serve)
        self._server.start()

    def _mind(self) -> None:
        """gevent gives up a server whose socket fails: then there is to be another one."""
        while self._server is None or self._server.closed:
            try:
                self.open()
            except ConfigError as error:  # no reason to do without the rest of the server
                self._log.provoked("console_not_served", why=str(error))
                gevent.sleep(RETRY)
            else:
                self._accept()
        while self._server is not None and not self._server.closed:
            gevent.sleep(LOOK)

    def _warn(self, address: IPv4Address) -> None:
        users = self.users.read()
        for warning in users.warnings:
            self._log.warning("console_users_doubtful", why=warning)
        if users.broken:
            self._log.error("console_users_unreadable", why=users.broken)
        elif users.open and not address.is_loopback:
            self._log.warning("console_open", why=f"whoever reaches {address}:{self.port} may use it: no user is named")
        elif not users.open and not users.passwords:
            self._log.warning("console_locked", why="the users file names nobody: nobody can log in")

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.server_port)

    def stop(self) -> None:
        """Close the port and all consoles."""
        if self._part is not None:
            self._part.stop()
            self._part = None
        if self._server is not None:
            self._server.stop()
        elif self._listener is not None:
            self._listener.close()
        gevent.killall(list(self._shells.values()))

    def __len__(self) -> int:
        return len(self._shells)

    def _serve(self, sock: Any, address: tuple[str, int]) -> None:
        peer = f"{address[0]}:{address[1]}"
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if not self._make_room():
            self._log.warning("console_refused_connection", peer=peer, why="cli_max_connections")
            refuse(sock)
            return
        terminal = Terminal(sock, self._turns, lambda: self._office.config.cli_idle_timeout, self._office.lns.awake)
        shell = Shell(self._office, self._commands.grammar, self.users, terminal, peer, self._log)
        self._shells[shell] = gevent.getcurrent()
        self._log.debug("console_connected", peer=peer)
        why = "an error of this server"
        try:
            why = shell.run()
        except Exception:
            self._log.exception("console_failed", peer=peer)
        finally:
            del self._shells[shell]
            terminal.close()
            self._log.debug("console_closed", peer=peer, user=shell.user, why=why)

    def _make_room(self) -> bool:
        """Is there room for one more? Who has not logged in makes way: a stranger locks no operator out."""
        if len(self._shells) < self._office.config.cli_max_connections:
            return True
        strangers = [shell for shell in self._shells if not shell.inside]
        if not strangers:
            return False
        oldest = min(strangers, key=lambda shell: shell.since)
        gevent.kill(self._shells[oldest])
        return True


def refuse(sock: Any) -> None:
    """A word, if it can be said at once."""
    try:
        sock.settimeout(FAREWELL)
        sock.sendall(b"Too many consoles\r\n")
    except OSError:
        pass
    finally:
        sock.close()
