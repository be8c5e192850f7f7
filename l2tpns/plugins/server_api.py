"""The argument of plugin_init: the server as one plugin may use it, and the declarations of the plugin."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address
from typing import Any, Generic, TypeVar

import gevent

from l2tpns.config.value_types import Address, Bool, Choice, Effect, Integer, Kind, Setting, Text, Words
from l2tpns.errors import NoAnswer, PluginError
from l2tpns.hooks import octets
from l2tpns.plugins.session_api import Session
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.runtime import log as logs
from l2tpns.runtime.exceptions import is_kill
from l2tpns.subscriber.services import Services
from l2tpns.subscriber.session import Session as CoreSession

T = TypeVar("T")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_MAX_INTEGER = 2**31 - 1


class Variable(Generic[T]):
    """A variable of a plugin. `value` is set by `set`, or the default."""

    __slots__ = ("declared", "value")

    def __init__(self, declared: Setting) -> None:
        self.declared = declared
        self.value: T = declared.default


@dataclass(slots=True)
class Count:
    """A counter of a plugin, reset by `clear counters`."""

    name: str
    help: str
    value: int = 0

    def add(self, amount: int = 1) -> None:
        """Increase the counter."""
        self.value += amount


@dataclass(frozen=True, slots=True)
class ConsoleCommand:
    """A console command of a plugin. `run` gets the words after the command, and returns the text to print."""

    words: str
    help: str
    run: Callable[[list[str]], str | None]
    usage: str
    privileged: bool
    plugin: str


@dataclass(frozen=True, slots=True)
class Login:
    """The reply to a login requested by a plugin."""

    accepted: bool
    message: str
    avpairs: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Declared:
    """The declarations and greenlets of a plugin."""

    variables: dict[str, Variable[Any]] = field(default_factory=dict)
    counts: dict[str, Count] = field(default_factory=dict)
    commands: list[ConsoleCommand] = field(default_factory=list)
    greenlets: set[Any] = field(default_factory=set)
    builders: list[Callable[[str, str], bool]] = field(default_factory=list)  # of gardens


@dataclass(frozen=True, slots=True)
class Host:
    """The parts of the server that all plugins share."""

    services: Services
    sessions: Mapping[int, CoreSession]  # by id
    on_change: Callable[[], None]  # to call after a change of settings, which may be secret


class Server:
    """The server as one loaded plugin sees it. `saved` is the result of plugin_save() before a reload."""

    def __init__(self, host: Host, name: str, failed: Callable[[str, BaseException], None]) -> None:
        self.name = name
        self.saved: Any = None
        self._host = host
        self._log = host.services.log
        self._failed = failed
        self._by = f"plugin {name}"
        self._open = True  # declarations are allowed, until plugin_init has returned
        self._declared = Declared()

    # The log

    def log(self, level: int | str, text: str, **facts: Any) -> None:
        """Log an event `plugin_says`. Levels are 0 critical, 1 error, 2 warning, 3 info, 4 call and 5 data, by number
        or name. The facts become keys of the line."""
        name = logs.LEVELS[level] if isinstance(level, int) else level
        if name not in logs.LEVELS:
            raise ValueError(f"{level!r} is not a level: {', '.join(logs.LEVELS)}")
        facts = {key: value for key, value in facts.items() if key not in ("event", "level", "plugin", "text", "time")}
        getattr(self._log, name)("plugin_says", plugin=self.name, text=text, **facts)

    # Sessions

    def session(self, id: int) -> Session | None:
        """Return the session with this id (the one that the server assigned), or None."""
        found = self._host.sessions.get(id)
        return None if found is None else Session(found, self._by)

    def sessions(self, user: str | None = None) -> list[Session]:
        """Return all sessions, or the logged-in sessions of a user. Names are compared by `username_case`."""
        found = self._host.sessions.values() if user is None else self._host.services.registry.sessions_of(user)
        return [Session(session, self._by) for session in sorted(found, key=lambda session: session.id)]

    def session_of(self, address: IPv4Address | str) -> Session | None:
        """Return the session that has this address, or None."""
        try:
            found = self._host.services.registry.by_address.get(IPv4Address(address))
        except AddressValueError:
            return None
        return None if found is None else Session(found, self._by)

    def find(self, word: str) -> list[Session]:
        """Return sessions by id, else by user, as the commands of nsctl do. Raises PluginError if there are none."""
        named = self.session(int(word)) if word.isascii() and word.isdigit() and len(word) <= 5 else None
        found = self.sessions(word) if named is None else [named]
        if not found:
            raise PluginError("session not found")
        return found

    # RADIUS

    def radius_login(self, session: Session, username: str, password: str) -> Login | None:
        """Check a user name and password by PAP with RADIUS or the secrets file, on behalf of a session. Blocks until
        the reply. Return None if there was none. It does not change the session, and no hook is called."""
        credentials = Credentials(Protocol.PAP, octets(username), password=octets(password))
        try:
            reply = self._host.services.backend.authenticate(session._living().auth_request(credentials))
        except NoAnswer:
            return None
        return Login(reply.accepted, reply.message.decode("utf-8", "backslashreplace"), reply.avpairs)

    # Declarations, in plugin_init

    def setting(
        self,
        name: str,
        default: T,
        help: str,
        *,
        minimum: int = 0,
        maximum: int = _MAX_INTEGER,
        choices: Sequence[str] = (),
        secret: bool = False,
    ) -> Variable[T]:
        """Declare a variable PLUGIN_NAME for `set`, in the configuration (after `load plugin`) and at the console. Its
        kind is that of the default: bool, int, str, IPv4Address (0.0.0.0: none, `value` is None) or tuple of str."""
        full = f"{self.name}_{self._name(name)}"
        if full in self._declared.variables:
            raise PluginError(f"{full} is declared twice")
        kind = self._kind(default, minimum, maximum, choices)
        initial = None if isinstance(default, IPv4Address) and not int(default) else default
        declared = Setting(full, kind, initial, help, Effect.LIVE, "", secret)
        variable: Variable[T] = Variable(declared)
        given = self._host.services.config.plugin_settings.get(full)
        if given is not None:
            try:
                variable.value = declared.parse(given)
            except ValueError as wrong:
                raise PluginError(str(wrong)) from None
        self._declared.variables[full] = variable
        if secret:
            self._host.on_change()  # it may be logged at once
        return variable

    def counter(self, name: str, help: str) -> Count:
        """Declare a counter PLUGIN_NAME, shown in `show counters` and the metrics. Call its `add`."""
        full = f"{self.name}_{self._name(name)}"
        if full in self._declared.counts:
            raise PluginError(f"{full} is declared twice")
        self._declared.counts[full] = Count(full, help)
        return self._declared.counts[full]

    def command(
        self,
        words: str,
        help: str,
        run: Callable[[list[str]], str | None],
        *,
        usage: str = "",
        privileged: bool = True,
    ) -> None:
        """Declare a console command. `run` gets the list of words after the command, and returns the text to print. Its
        PluginError is printed as an error. `usage` names the arguments, for `?`."""
        self._name("command")
        words = " ".join(words.split())
        if not words or not all(re.fullmatch(r"[a-z][a-z0-9-]*", word) for word in words.split()):
            raise PluginError(f"{words!r:.60} is not a valid command: use words of lower case letters, digits and -")
        self._declared.commands.append(ConsoleCommand(words, help, run, usage, privileged, self.name))

    def on_garden(self, build: Callable[[str, str], bool]) -> None:
        """Call build(name, chain) after a walled garden was built, to add rules to the chain. It is called soon for the
        garden `garden` and existing gardens too. It may block. If it returns True, the server removes the rules of
        the chain when it stops."""
        self._declared.builders.append(build)
        self._host.services.gardens.add_builder(build, self.spawn)

    def spawn(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run a function in its own greenlet until the plugin is removed."""
        greenlet = gevent.spawn(self._guard, function, arguments)
        self._declared.greenlets.add(greenlet)
        greenlet.rawlink(self._declared.greenlets.discard)

    def _guard(self, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            if not is_kill(error):
                self._failed(getattr(function, "__name__", "spawn"), error)

    def _name(self, name: str) -> str:
        if not self._open:
            raise PluginError("only plugin_init may declare settings, counters and commands")
        if not _WORD.fullmatch(name):
            raise PluginError(f"{name!r:.60} is not a valid name: use lower case letters, digits and _")
        return name

    @staticmethod
    def _kind(default: Any, minimum: int, maximum: int, choices: Sequence[str]) -> Kind[Any]:
        if isinstance(default, bool):
            return Bool()
        if isinstance(default, int):
            return Integer(minimum, maximum)
        if isinstance(default, IPv4Address):
            return Address()
        if isinstance(default, tuple):
            return Words(tuple(choices))
        if isinstance(default, str):
            return Choice(*choices) if choices else Text()
        raise PluginError(f"a setting cannot be a {type(default).__name__}")
