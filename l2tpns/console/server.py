"""The console's port: accepts connections within limits and runs a shell for each."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address
from typing import Any

import gevent
from gevent import socket

from l2tpns.console import commands
from l2tpns.console.commands import plugins
from l2tpns.console.context import ConsoleContext
from l2tpns.console.operators import Operators
from l2tpns.console.shell import Shell
from l2tpns.console.terminal import Terminal
from l2tpns.console.timing import ConsoleTiming
from l2tpns.errors import ConfigError, refused
from l2tpns.runtime.acceptor import Acceptor
from l2tpns.runtime.connection_slots import ConnectionSlot, ConnectionSlots
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Part
from l2tpns.system.socket_owner import owner_of_connection

TELNET_PORT = 23
BACKLOG = 256
SEND_BUFFER = 65536  # octets that the kernel buffers for a slow reader


class Console:
    """The console of a server."""

    def __init__(
        self, context: ConsoleContext, log: Logger, port: int = TELNET_PORT, timing: ConsoleTiming | None = None
    ) -> None:
        self._office = context
        self._log = log
        self._port = port
        self._timing = timing or ConsoleTiming()
        self._commands = plugins.Commands(context, commands.COMMANDS, commands.WORDS)
        self._share = context.lns.services.operator_scheduler
        self._places = ConnectionSlots(lambda: context.config.cli_max_connections)
        self._listener: Any = None
        self._door: Acceptor | None = None
        self._part: Part | None = None
        self.users = Operators(context.files.users, log, self._timing.password_check)

    @property
    def _address(self) -> IPv4Address:
        return self._office.config.cli_bind_address or IPv4Address(0)

    def open(self) -> None:
        """Bind the port; connections wait until `start`. Raises ConfigError if it is unavailable."""
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
            hint = "; cli_bind_address is not an address of this machine" if error.errno == errno.EADDRNOTAVAIL else ""
            why = f"the console cannot listen on {address}:{self._port}: {error.strerror}{hint}"
            raise refused(error.errno, why) from None
        self._listener = listener

    def start(self) -> None:
        """Serve connections. Calls `open` if needed, which raises ConfigError."""
        if self._listener is None:
            self.open()
        self._open_door()
        self._warn(self._address)
        self._part = self._office.lns.services.supervisor.spawn("console", self._keep_listening)

    def _open_door(self) -> None:
        self._door = Acceptor(
            self._listener, self._places, self._share, self._log, owner_of_connection, self._serve, self._refuse
        )
        self._door.start()

    def _keep_listening(self) -> None:
        """Recreate the listening socket whenever it fails."""
        while True:
            if self._door is None:
                try:
                    self.open()
                except ConfigError as error:  # the rest of the server keeps running
                    self._log.warning_limited("console_not_served", why=str(error))
                    gevent.sleep(self._timing.listen_retry)
                    continue
                self._open_door()
            assert self._door is not None
            self._door.wait()
            self._door.close()
            self._door = None

    def _warn(self, address: IPv4Address) -> None:
        users = self.users.read()
        for warning in users.warnings:
            self._log.warning("console_users_doubtful", why=warning)
        if users.broken:
            self._log.error("console_users_unreadable", why=users.broken)
        elif users.open and not address.is_loopback:
            self._log.warning(
                "console_open", why=f"no users are configured: anyone who can reach {address}:{self.port} has access"
            )
        elif not users.open and not users.passwords:
            self._log.warning("console_locked", why="the users file contains no user: nobody can log in")

    @property
    def port(self) -> int:
        assert self._door is not None
        return self._door.address[1]

    def stop(self) -> None:
        """Close the port and all connections."""
        if self._part is not None:
            self._part.stop()
            self._part = None
        if self._door is not None:
            self._door.close()
        elif self._listener is not None:
            self._listener.close()

    def __len__(self) -> int:
        return len(self._places)

    def _serve(self, sock: Any, address: tuple[str, int], place: ConnectionSlot) -> None:
        peer = f"{address[0]}:{address[1]}"
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        except OSError:
            return  # reset by the peer
        context = self._office
        terminal = Terminal(
            sock,
            self._share,
            lambda: context.config.cli_idle_timeout,
            context.lns.services.awake,
            place.owner,
            self._timing.send,
        )
        shell = Shell(context, self._commands.grammar, self.users, terminal, peer, self._log, place, self._timing)
        self._log.debug("console_connected", peer=peer)
        why = "an error of this server"
        try:
            why = shell.run()
        except Exception:
            self._log.exception("console_failed", peer=peer)
        finally:
            terminal.close()
            self._log.debug("console_closed", peer=peer, user=shell.user, why=why)

    def _refuse(self, sock: Any, address: tuple[str, int]) -> None:
        peer = f"{address[0]}:{address[1]}"
        self._log.warning_limited("console_refused_connection", peer=peer, why="cli_max_connections")
        refuse(sock, self._timing.refusal_send)


def refuse(sock: Any, timeout: float) -> None:
    """Send a refusal if the socket takes it within the time, then close it."""
    try:
        sock.settimeout(timeout)
        sock.sendall(b"Too many consoles\r\n")
    except OSError:
        pass
    finally:
        sock.close()
