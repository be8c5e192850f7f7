"""What plugin_init is given: the server, as one plugin may use it, and everything that this plugin has declared."""

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
_LARGEST = 2**31 - 1


class Variable(Generic[T]):
    """A variable of a plugin's: `value` is what `set` gave it, or its default."""

    __slots__ = ("declared", "value")

    def __init__(self, declared: Setting) -> None:
        self.declared = declared
        self.value: T = declared.default


@dataclass(slots=True)
class Count:
    """A counter of a plugin's; clear counters sets it to zero."""

    name: str
    help: str
    value: int = 0

    def add(self, amount: int = 1) -> None:
        self.value += amount


@dataclass(frozen=True, slots=True)
class ConsoleCommand:
    """A command of a plugin's. `run` gets the words typed behind its own; what it returns is printed."""

    words: str
    help: str
    run: Callable[[list[str]], str | None]
    usage: str
    privileged: bool
    plugin: str


@dataclass(frozen=True, slots=True)
class Login:
    """The answer to a login that a plugin has asked for."""

    accepted: bool
    message: str
    avpairs: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Declared:
    """What a plugin has declared, and what it runs."""

    variables: dict[str, Variable[Any]] = field(default_factory=dict)
    counts: dict[str, Count] = field(default_factory=dict)
    commands: list[ConsoleCommand] = field(default_factory=list)
    greenlets: set[Any] = field(default_factory=set)
    builders: list[Callable[[str, str], bool]] = field(default_factory=list)  # of gardens


@dataclass(frozen=True, slots=True)
class Host:
    """What of the server all plugins share."""

    services: Services
    sessions: Mapping[int, CoreSession]  # by our id
    on_change: Callable[[], None]  # settings have changed, secret ones perhaps


class Server:
    """One for each plugin that is loaded. `saved` is what the plugin's plugin_save() returned before a reload."""

    def __init__(self, host: Host, name: str, failed: Callable[[str, BaseException], None]) -> None:
        self.name = name
        self.saved: Any = None
        self._host = host
        self._log = host.services.log
        self._failed = failed
        self._by = f"plugin {name}"
        self._open = True  # declarations are taken: until plugin_init has returned
        self._declared = Declared()

    # The log

    def log(self, level: int | str, text: str, **facts: Any) -> None:
        """A line in the server's log, `plugin_says`. Levels: 0 critical, 1 error, 2 warning, 3 info, 4 call, 5 data,
        by number or name. The facts become keys of the line."""
        name = logs.LEVELS[level] if isinstance(level, int) else level
        if name not in logs.LEVELS:
            raise ValueError(f"{level!r} is no level: {', '.join(logs.LEVELS)}")
        facts = {key: value for key, value in facts.items() if key not in ("event", "level", "plugin", "text", "time")}
        getattr(self._log, name)("plugin_says", plugin=self.name, text=text, **facts)

    # Sessions

    def session(self, id: int) -> Session | None:
        """The session with this id of ours."""
        found = self._host.sessions.get(id)
        return None if found is None else Session(found, self._by)

    def sessions(self, user: str | None = None) -> list[Session]:
        """All sessions, or those of a user who has logged in; `username_case` says which names are one user's."""
        found = self._host.sessions.values() if user is None else self._host.services.registry.sessions_of(user)
        return [Session(session, self._by) for session in sorted(found, key=lambda session: session.id)]

    def session_of(self, address: IPv4Address | str) -> Session | None:
        """Who has this address."""
        try:
            found = self._host.services.registry.by_address.get(IPv4Address(address))
        except AddressValueError:
            return None
        return None if found is None else Session(found, self._by)

    def find(self, word: str) -> list[Session]:
        """As the commands of nsctl name sessions: by id, else by user. PluginError when there is none."""
        named = self.session(int(word)) if word.isascii() and word.isdigit() and len(word) <= 5 else None
        found = self.sessions(word) if named is None else [named]
        if not found:
            raise PluginError("session not found")
        return found

    # RADIUS

    def radius_login(self, session: Session, username: str, password: str) -> Login | None:
        """Ask RADIUS (or the secrets file) whether these may log in, by PAP, as this session would. Waits for the
        answer; None when there was none. Nothing follows from it, and no hook is called."""
        credentials = Credentials(Protocol.PAP, octets(username), password=octets(password))
        try:
            reply = self._host.services.backend.authenticate(session._living().auth_request(credentials))
        except NoAnswer:
            return None
        return Login(reply.accepted, reply.message.decode("utf-8", "backslashreplace"), reply.avpairs)

    # What the plugin declares, in plugin_init

    def setting(
        self,
        name: str,
        default: T,
        help: str,
        *,
        minimum: int = 0,
        maximum: int = _LARGEST,
        choices: Sequence[str] = (),
        secret: bool = False,
    ) -> Variable[T]:
        """A variable PLUGIN_NAME for `set`, in the configuration (after `load plugin`) and at the console. Its kind is
        the default's: bool, int, str, IPv4Address (0.0.0.0: none, then `value` is None), or a tuple of str."""
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
            self._host.on_change()  # it may be said at once
        return variable

    def counter(self, name: str, help: str) -> Count:
        """A counter PLUGIN_NAME, in `show counters` and the metrics: call its `add`."""
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
        """A command of the console. `run` gets the list of the words typed behind it, and returns what is printed; a
        PluginError is printed as a refusal. `usage` names its arguments, for `?`."""
        self._name("command")
        words = " ".join(words.split())
        if not words or not all(re.fullmatch(r"[a-z][a-z0-9-]*", word) for word in words.split()):
            raise PluginError(f"{words!r:.60} are no words of a command")
        self._declared.commands.append(ConsoleCommand(words, help, run, usage, privileged, self.name))

    def on_garden(self, build: Callable[[str, str], bool]) -> None:
        """Have build(name, chain) called when a walled garden has been made, to put rules into the chain; soon, too,
        for the garden `garden` and those that are there. It may wait. If it returns True, what is in the chain goes
        with the server."""
        self._declared.builders.append(build)
        self._host.services.gardens.add_builder(build, self.spawn)

    def spawn(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run a function beside everything else, until the plugin is removed."""
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
            raise PluginError(f"{name!r:.60} will not do as a name: lower case letters, digits and _")
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
