"""The shell of one console: login, prompt, execution of command lines, and logging of changes."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import orjson

from l2tpns.console.context import ConsoleContext
from l2tpns.console.grammar import CommandContext, Grammar, Mode, Privilege
from l2tpns.console.log_line import log_line
from l2tpns.console.operators import Operators
from l2tpns.console.output import Output, Refused, text
from l2tpns.console.terminal import Closed, Flooded, Interrupted, Terminal
from l2tpns.console.timing import ConsoleTiming
from l2tpns.errors import ConfigError, PluginError
from l2tpns.policy.model import PolicyError
from l2tpns.runtime.connection_slots import ConnectionSlot
from l2tpns.runtime.log import Listener, Logger

LOGIN_TRIES = 3
REFUSALS = (
    Refused,
    ConfigError,
    PluginError,
    PolicyError,
)  # refusals by a command; their text is shown to the operator


class Shell:
    """A shell for one connection."""

    def __init__(
        self,
        context: ConsoleContext,
        grammar: Callable[[], Grammar],
        users: Operators,
        terminal: Terminal,
        peer: str,
        log: Logger,
        place: ConnectionSlot,
        timing: ConsoleTiming,
    ) -> None:
        self.context = context
        self._grammar = grammar  # changes with the loaded plugins
        self.terminal = terminal
        self.user = ""
        self.peer = peer
        self.mode = Mode.EXEC
        self.access_list = ""  # the list being edited in Mode.ACL
        self.privilege = Privilege.LOOK
        self._place = place
        self._timing = timing
        self.streams: frozenset[int] = frozenset()  # levels that `debug` shows
        self._users = users
        self._log = log
        self._listener: Listener | None = None
        self._leaving = False

    # Life cycle

    def run(self) -> str:
        """Serve the console until it ends. Return the reason."""
        try:
            self.terminal.start()
            if not self.login():
                return "not logged in"
            while not self._leaving:
                line = self.terminal.read_line(self.prompt, self.complete, self.help)
                self.execute(line)
            return "left"
        except Flooded as flooded:
            self._log.warning_limited("console_flooded", peer=self.peer, why=str(flooded))
            return str(flooded)
        except Closed as closed:
            return str(closed)
        finally:
            self.watch(frozenset())
            self.terminal.close()

    def prompt(self) -> str:
        sign = "#" if self.privilege >= Privilege.ENABLED else ">"
        return f"{self.context.config.hostname}{self.mode.value}{sign} "

    def leave(self) -> None:
        self._leaving = True

    # Login

    def login(self) -> bool:
        """Ask for name and password if a login is required. Return False if it failed."""
        users = self._users.read()
        if users.open:
            self.terminal.trust("")
            return True
        awake = self.context.lns.services.awake
        until = awake.now() + self._timing.login
        for _ in range(LOGIN_TRIES):
            try:
                name = self.terminal.ask("Username: ", until=until).strip()
                self._place.active = True
                password = self.terminal.ask("Password: ", hidden=True, until=until)
            except Interrupted:
                continue
            if self._users.check(name, password, self._place.owner):
                self.user = name
                self._place.protected = True
                self.terminal.trust(name)
                # Manual: every user in the file has full control. With an enable password (2.x), `enable` comes first.
                self.privilege = Privilege.ENABLED if users.enable is None else Privilege.LOOK
                self._log.info("console_login", user=name, peer=self.peer)
                return True
            # An unknown name is not logged: it may be a password entered one line too early.
            known = name if name in users.passwords else "?"
            self._log.warning_limited("console_login_refused", user=known, peer=self.peer)
            gevent.sleep(self._timing.access_denied)
            self.terminal.print("Access denied")
        return False

    def enable(self) -> None:
        """Grant the privilege, by password if the users file has one. Raises Refused."""
        users = self._users.read()
        if users.enable is not None or users.broken:
            for _ in range(LOGIN_TRIES):
                try:
                    if self._users.check_enable(self.terminal.ask("Password: ", hidden=True), self._place.owner):
                        break
                except Interrupted:
                    raise Refused("Access denied") from None
                self._log.warning_limited("console_enable_refused", user=self.user, peer=self.peer)
                gevent.sleep(self._timing.access_denied)
            else:
                raise Refused("Access denied")
        self.privilege = Privilege.ENABLED

    @property
    def actor(self) -> str:
        """Return the operator and address, as logged in `by`."""
        return " ".join(filter(None, ("console", self.user, self.peer)))

    # Lines

    @property
    def grammar(self) -> Grammar:
        return self._grammar()

    @property
    def standing(self) -> CommandContext:
        return CommandContext(self.context, self.mode, self.privilege)

    def complete(self, line: str) -> tuple[str, list[str]]:
        return self.grammar.complete(line, self.standing)

    def help(self, line: str) -> list[str]:
        """Return the lines that `?` shows."""
        found = self.grammar.help(line, self.standing)
        if not found:
            return ["Nothing can follow here"]
        width = max(len(word) for word, _ in found)
        return [f"  {word.ljust(width)}  {help}".rstrip() for word, help in found]

    def execute(self, line: str) -> None:
        """Execute a line. Errors are printed, not raised."""
        line = line.strip()
        if not line or line[0] in "#!":
            return
        self._place.protected = True  # without a login, a command distinguishes an operator from a stranger
        if line.endswith("?"):  # from a peer without character mode: nc, a script
            self.terminal.print("\n".join(self.help(line[:-1])))
            return
        try:
            self._run_command(line)
        except REFUSALS as refused:
            self.terminal.print("% " + str(refused).replace("\n", "\n% "))
        except Interrupted:
            self.terminal.print("")
        except Closed:
            raise
        except Exception:
            self._log.exception("console_command_failed", user=self.user, peer=self.peer)
            self.terminal.print("% An error of this server; its log has the details")

    def _run_command(self, line: str) -> None:
        call = self.grammar.parse(line, self.standing)
        where = {"access_list": self.access_list} if self.mode is Mode.ACL else {}
        try:
            said = call.command.run(self, *call.values)
        except REFUSALS as refused:
            if call.command.changes:
                self._log.info(
                    "console_refused", user=self.user, peer=self.peer, command=call.line, why=str(refused), **where
                )
            raise
        if call.command.changes:
            self._log.audit("console_command", user=self.user, peer=self.peer, command=call.line, **where)
        if said is None:
            return
        output = said if isinstance(said, Output) else text(said)
        self.terminal.show(call.pipe.lines(output))

    # Live log

    def watch(self, levels: frozenset[int]) -> None:
        """Show log messages of these levels only."""
        if self._listener is not None:
            self.context.log.unlisten(self._listener)
            self._listener = None
        self.streams = levels
        self.terminal.keep_awake = bool(levels)
        if levels:
            self._listener = self.context.log.listen(levels, self._on_log)

    def _on_log(self, line: bytes, level: int) -> None:
        self.terminal.notify(log_line(orjson.loads(line)))
