"""The plugins of one server: loaded, asked in the order of loading, reloaded, removed.

`chains` is what everybody else looks at: the functions of each hook that anybody has. Without plugins a hook costs one
look into an empty dict. What a plugin does wrong is its own: see calls.py. Nothing here knows what a hook is for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import thread_time
from typing import Any

import gevent
from gevent.lock import RLock

from l2tpns.config.file import owner
from l2tpns.config.settings import SETTINGS, Config
from l2tpns.config.value_types import Setting
from l2tpns.dataplane.session_path import Tap
from l2tpns.errors import ConfigError, PluginError
from l2tpns.hooks import (
    HOOKS,
    NOTHING,
    PACKET_HOOKS,
    PLUGIN_RET_ERROR,
    PLUGIN_RET_OK,
    PLUGIN_RET_STOP,
    Event,
    Outcome,
    param_control,
    param_timer,
)
from l2tpns.plugins import loader, packet_hooks
from l2tpns.plugins.calls import Caller, Failure, Function
from l2tpns.plugins.loader import Code
from l2tpns.plugins.server_api import ConsoleCommand, Count, Host, Server
from l2tpns.plugins.session_api import Session
from l2tpns.runtime.exceptions import describe
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Part, Supervisor
from l2tpns.runtime.text import unknown_word
from l2tpns.subscriber.services import Services
from l2tpns.subscriber.session import Session as CoreSession

HOOK_TIMEOUT = 5.0  # seconds that the end of a session, or of the plugin itself, waits for a plugin
AVPAIR_HOOKS = frozenset({"post_auth", "radius_response"})  # are given AVPairs
INIT_TIMEOUT = 30.0  # seconds for plugin_init: the start of the server waits for it


@dataclass(slots=True, eq=False)
class Plugin:
    """One that is loaded."""

    code: Code
    server: Server
    functions: dict[str, Function]

    @property
    def name(self) -> str:
        return self.code.name


class Plugins:
    """All plugins of the server. `begin` before any is loaded."""

    def __init__(self, config: Config, log: Logger, supervisor: Supervisor) -> None:
        self._config = config
        self._log = log
        self._supervisor = supervisor
        self._host: Host | None = None
        self.hook_timeout, self.init_timeout = HOOK_TIMEOUT, INIT_TIMEOUT
        self._caller = Caller(log)
        self._changing = RLock()
        self._loaded: dict[str, Plugin] = {}  # in the order of loading
        self._passing: Server | None = None  # of one that begins or ends: it may say its secrets, too
        self._timer: Part | None = None
        self.chains: dict[str, tuple[Function, ...]] = {}  # by hook; no empty ones
        self.refused: dict[str, str] = {}  # plugins of the configuration that are not loaded, and why
        self.version = 0  # changes with what is loaded
        self.reserved: frozenset[str] = frozenset()  # words of the console's own commands
        self.on_change: Callable[[], None] = _nothing  # the daemon hides the secrets anew

    # Life

    def begin(self, services: Services, sessions: Mapping[int, CoreSession]) -> None:
        """Serve this server, whose table of sessions is `sessions`, by id."""
        self._host = Host(services, sessions, lambda: self.on_change())

    def start(self) -> None:
        """Load what the configuration names. One that cannot be loaded is named in the log; the others are loaded."""
        self.apply_config(self._config.plugins)

    def stop(self) -> None:
        """plugin_done of each, the last first."""
        with self._changing:
            for name in reversed(list(self._loaded)):
                self._drop(name)

    def apply_config(self, names: Iterable[str]) -> list[str]:
        """Load and remove what differs; what there is to say of those that cannot be loaded. A plugin that is loaded
        goes on as it is, even if its file has changed."""
        told = []
        with self._changing:
            wanted = list(names)
            for name in [name for name in self._loaded if name not in wanted]:
                self._drop(name)
                self._log.info("plugin_removed", plugin=name)
            self.refused = {name: why for name, why in self.refused.items() if name in wanted}
            for name in wanted:
                if name not in self._loaded:
                    try:
                        self._load(name)
                    except PluginError as error:
                        told.append(f"plugin {name} is not loaded: {error}")
            self._loaded = {name: self._loaded[name] for name in wanted if name in self._loaded}
            self._read_settings()
            self._rebuild()
        return told

    def load(self, name: str) -> None:
        """Load one more, the last in order. Raises PluginError."""
        with self._changing:
            if name in self._loaded:
                raise PluginError("Plugin is already loaded")
            self._load(name)
            config = self._config
            if name not in config.plugins:
                config.plugins = (*config.plugins, name)
            self._loaded = {each: self._loaded[each] for each in config.plugins if each in self._loaded}
            self._rebuild()

    def remove(self, name: str) -> None:
        """Raises PluginError when there is no such plugin. Its settings stay in the configuration."""
        with self._changing:
            config = self._config
            if name not in self._loaded and name not in config.plugins:
                raise PluginError("Plugin is not loaded")
            config.plugins = tuple(each for each in config.plugins if each != name)
            self.refused.pop(name, None)
            if name in self._loaded:
                self._drop(name)
                self._log.info("plugin_removed", plugin=name)

    def reload(self, name: str) -> None:
        """Take up its file as it is now. Raises PluginError; then the plugin goes on as it was."""
        with self._changing:
            old = self._loaded.get(name)
            if old is None:
                if name not in self._config.plugins:
                    raise PluginError("Plugin is not loaded")
                self.load(name)
                return
            code = self._read(name)
            saved = None
            if "save" in old.functions:
                saved = self._caller.call(old.functions["save"])
                if isinstance(saved, Failure):
                    raise PluginError(f"plugin_save failed: {describe(saved.error)}")
            self._adopt(code, old, saved)
            self._rebuild()
            self._end(old)
            self._log.info("plugin_reloaded", plugin=name, version=code.version, hooks=sorted(code.functions))

    def _load(self, name: str) -> None:
        code = self._read(name)
        self._adopt(code, None, None)
        self.refused.pop(name, None)
        self._log.info("plugin_loaded", plugin=name, version=code.version, hooks=sorted(code.functions))

    def _read(self, name: str) -> Code:
        began = thread_time()
        try:
            code = loader.read(name, loader.directory(self._config.plugin_dir))
            self._caller.took(Function(name, "import", code.path, _nothing), thread_time() - began)
            return code
        except PluginError as error:
            self._refuse(name, str(error))
            raise

    def _refuse(self, name: str, why: str) -> None:
        self._log.error("plugin_not_loaded", plugin=name, why=why)
        if name in self._config.plugins and name not in self._loaded:
            self.refused[name] = why

    def _adopt(self, code: Code, old: Plugin | None, saved: Any) -> None:
        """plugin_init; then it stands where the old one stood. Raises PluginError, nothing being left of it."""
        functions = {hook: Function(code.name, hook, code.path, call) for hook, call in code.functions.items()}
        server = Server(self.host, code.name, lambda name, error: self._spawned(code, name, error))
        server.saved = saved
        plugin = Plugin(code, server, functions)
        before = sys.modules.get(code.module.__name__)
        sys.modules[code.module.__name__] = code.module
        self._passing = server
        try:
            if "init" in functions:
                self._init(plugin)
            self._give_settings(plugin)
            self._check_commands(plugin)
        except PluginError as error:
            self._end_greenlets(plugin)
            loader.forget(code.module)
            if before is not None:
                sys.modules[code.module.__name__] = before
            self._refuse(code.name, str(error))
            raise
        finally:
            self._passing = None
        server._open = False
        if old is not None:
            for name, count in server._declared.counts.items():
                if name in old.server._declared.counts:
                    count.value += old.server._declared.counts[name].value
            for hook, function in functions.items():
                if hook in old.functions:
                    function.calls, function.seconds = old.functions[hook].calls, old.functions[hook].seconds
        self._loaded[code.name] = plugin

    def _init(self, plugin: Plugin) -> None:
        function = plugin.functions["init"]
        result = self._limited(function, self.init_timeout, plugin.server)
        if isinstance(result, Failure):
            at = loader.where(result.error, plugin.code.path)
            raise PluginError(f"{at}: plugin_init failed: {describe(result.error)}") from result.error
        if result == PLUGIN_RET_ERROR and type(result) is int:
            raise PluginError("its plugin_init returned PLUGIN_RET_ERROR")
        if result is not None and (type(result) is not int or result not in (PLUGIN_RET_OK, PLUGIN_RET_STOP)):
            self._caller.nonsense(function, result)

    def _drop(self, name: str) -> None:
        """No function of it is called any more; then its plugin_done."""
        plugin = self._loaded.pop(name)
        self._rebuild()
        self._end(plugin)

    def _end(self, plugin: Plugin) -> None:
        self._passing = plugin.server
        self.on_change()
        if "done" in plugin.functions:
            self._limited(plugin.functions["done"], self.hook_timeout)
        self._passing = None
        self._end_greenlets(plugin)
        loader.forget(plugin.code.module)

    def _limited(self, function: Function, patience: float, *arguments: Any) -> Any:
        """What it returned, or a Failure: also when it had not returned after so many seconds."""
        job = gevent.spawn(self._caller.call, function, *arguments)
        try:
            job.join(patience)
            if job.successful() and not isinstance(job.value, gevent.GreenletExit):
                return job.value
            if job.ready():  # it has ended its own greenlet
                return Failure(PluginError("its greenlet was killed"))
        finally:
            job.kill(block=False)
        self._log.warning("plugin_given_up", plugin=function.plugin, hook=function.name, seconds=patience)
        return Failure(TimeoutError(f"it had not returned after {patience:g} seconds"))

    def _end_greenlets(self, plugin: Plugin) -> None:
        gevent.killall(list(plugin.server._declared.greenlets), block=False)
        for builder in plugin.server._declared.builders:
            self.host.services.gardens.remove_builder(builder)

    def _spawned(self, code: Code, name: str, error: BaseException) -> None:
        self._caller.failed(Function(code.name, f"spawn {name}", code.path, _nothing), error)

    def _rebuild(self) -> None:
        """What is loaded has changed."""
        packet = [self.chains.get(hook) for hook in PACKET_HOOKS]
        chains = {hook: self._chain(hook) for hook in HOOKS if hook not in ("init", "done", "save")}
        self.chains = {hook: chain for hook, chain in chains.items() if chain}
        self.version += 1
        if packet != [self.chains.get(hook) for hook in PACKET_HOOKS]:
            self.host.services.taps.rebuild_all()
        if "timer" in self.chains and self._timer is None:
            self._timer = self._supervisor.spawn("plugin timer", self._tick)
        elif "timer" not in self.chains and self._timer is not None:
            self._timer.stop(block=False)
            self._timer = None
        self.on_change()

    def _chain(self, hook: str) -> tuple[Function, ...]:
        return tuple(plugin.functions[hook] for plugin in self._loaded.values() if hook in plugin.functions)

    # Calls

    def run(self, hook: str, event: Event, session: CoreSession | None = None) -> Outcome:
        """Ask all plugins in order, until one says STOP or ERROR."""
        chain = self.chains.get(hook)
        if not chain:
            return NOTHING
        changed: dict[str, str] = {}
        failed = ""
        for function in chain:
            if session is not None:
                object.__setattr__(event, "session", Session(session, f"plugin {function.plugin}"))
            before = event.state()
            code = self._caller.hook(function, event)
            for name, was, now in zip(event.changeable, before, event.state(), strict=True):
                if was != now:
                    changed[name] = function.plugin
            if code in (PLUGIN_RET_STOP, PLUGIN_RET_ERROR):
                return Outcome(code, function.plugin, changed, failed)
            if code != PLUGIN_RET_OK:
                failed = function.plugin
            if event.over:
                break
        return Outcome(PLUGIN_RET_OK, "", changed, failed)

    def run_briefly(self, hook: str, event: Event, session: CoreSession) -> Outcome:
        """Do the same for a session that cannot wait: abandon a plugin after `hook_timeout` seconds."""
        if hook not in self.chains:
            return NOTHING
        job = gevent.spawn(self.run, hook, event, session)
        try:
            job.join(self.hook_timeout)
            if not job.ready():
                self._log.warning(
                    "plugin_given_up", hook=HOOKS[hook].function, session=session.id, seconds=self.hook_timeout
                )
                return NOTHING
        finally:
            job.kill(block=False)
        outcome = job.value
        return outcome if isinstance(outcome, Outcome) else NOTHING

    def packet_tap(self, session: CoreSession) -> Tap | None:
        """What stands in this session's path; None while no plugin has a packet hook."""
        up, down = (self.chains.get(hook, ()) for hook in PACKET_HOOKS)
        return packet_hooks.make_tap(self._caller, session, up, down) if up or down else None

    def _tick(self) -> None:
        last = 0
        while True:
            gevent.sleep(1.0 - time.time() % 1.0)
            now = int(time.time() + 0.5)
            if now != last:  # who was late by half a second has told the next one already
                last = now
                self.run("timer", param_timer(now))

    def control(
        self, words: list[str], source: tuple[str, int], *, packet: bytes = b"", kind: int = 0, id: int = 0
    ) -> tuple[bool, str] | None:
        """A command of nsctl's: did it succeed, and the answer. None: no plugin claims it."""
        if "control" not in self.chains:
            return None
        data = b"\0".join(word.encode("utf-8", "surrogateescape") for word in words)
        event = param_control(
            argv=tuple(words),
            source_ip=source[0],
            source_port=source[1],
            buf=packet,
            l=len(packet),
            type=kind,
            id=id,
            data=data,
            data_length=len(data),
        )
        outcome = self.run("control", event)
        if outcome.plugin or event.response or event.send_response:
            return outcome.code != PLUGIN_RET_ERROR, event.response
        if outcome.failed:
            return False, f"plugin {outcome.failed} failed: the server's log has the details"
        return None

    def reads_avpair(self, key: str) -> bool:
        """Return whether a plugin may read AVPairs of this key."""
        for plugin in self._loaded.values():
            keys = plugin.code.avpairs
            if key in keys if keys is not None else not AVPAIR_HOOKS.isdisjoint(plugin.functions):
                return True
        return False

    def control_help(self) -> list[str]:
        """Lines of the plugins' own for `nsctl help`."""
        return [line for plugin in self._loaded.values() for line in plugin.code.help]

    # What plugins have declared

    @property
    def host(self) -> Host:
        """Return what plugins are given of the server. Raises PluginError before `begin`."""
        if self._host is None:
            raise PluginError("the server is not ready for plugins yet")
        return self._host

    @property
    def loaded(self) -> list[Plugin]:
        return list(self._loaded.values())

    @property
    def folder(self) -> Path:
        return loader.directory(self._config.plugin_dir)

    @property
    def settings(self) -> dict[str, Setting]:
        """The plugins' variables, by name."""
        return {name: variable.declared for name, variable in self._variables()}

    def _variables(self) -> Iterator[tuple[str, Any]]:
        for plugin in self._loaded.values():
            yield from plugin.server._declared.variables.items()

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that no log line may show."""
        servers = [plugin.server for plugin in self._loaded.values()]
        if self._passing is not None:
            servers.append(self._passing)
        secret = [v.value for server in servers for v in server._declared.variables.values() if v.declared.secret]
        words = [word for value in secret for word in (value if isinstance(value, tuple) else (value,))]
        return tuple(dict.fromkeys(word for word in words if isinstance(word, str) and word))

    @property
    def counts(self) -> list[Count]:
        return [count for plugin in self._loaded.values() for count in plugin.server._declared.counts.values()]

    @property
    def commands(self) -> list[ConsoleCommand]:
        return [command for plugin in self._loaded.values() for command in plugin.server._declared.commands]

    def owns(self, name: str) -> bool:
        """Whether a variable of this name can only be a plugin's."""
        return name not in SETTINGS and bool(owner(name, self._loaded))

    def clear_counts(self) -> None:
        for count in self.counts:
            count.value = 0

    def run_command(self, command: ConsoleCommand, words: list[str]) -> str | None:
        """A command of a plugin's, typed at the console. Raises PluginError: the plugin's own, or that it failed."""
        plugin = self._loaded[command.plugin]
        function = Function(plugin.name, f"command {command.words}", plugin.code.path, command.run)
        result, error = self._caller.ask(function, words)
        if isinstance(error, PluginError):
            raise error
        if error is not None or not isinstance(result, str | None):
            if error is None:
                self._caller.nonsense(function, result)
            raise PluginError(f"plugin {plugin.name} failed: the log has the details")
        return result

    def assign(self, name: str, text: str) -> Setting:
        """Set a variable of a plugin's. ConfigError leaves everything as it was."""
        variable = dict(self._variables()).get(name)
        if variable is None:
            raise ConfigError(unknown_word("variable", name, tuple(self.settings)))
        declared: Setting = variable.declared
        try:
            variable.value = declared.parse(text)
        except ValueError as wrong:
            raise ConfigError(str(wrong)) from None
        config = self._config
        config.plugin_settings = {**config.plugin_settings, name: text}
        self.on_change()
        return declared

    def check(self, texts: Mapping[str, str], plugins: Iterable[str]) -> None:
        """Whether the plugins that are loaded, and will be, take these settings. Raises ConfigError."""
        for plugin in self._loaded.values():
            if plugin.name in plugins:
                try:
                    self._parse(plugin, texts)
                except PluginError as error:
                    raise ConfigError(str(error)) from None

    def _parse(self, plugin: Plugin, texts: Mapping[str, str]) -> dict[str, Any]:
        """The values of its variables, the default where none is given."""
        variables = plugin.server._declared.variables
        values = {name: variable.declared.default for name, variable in variables.items()}
        others = {*self._config.plugins, plugin.name}
        for name, text in texts.items():
            if owner(name, others) != plugin.name:
                continue
            if name not in variables:
                raise PluginError(unknown_word("variable", name, tuple(variables)))
            try:
                values[name] = variables[name].declared.parse(text)
            except ValueError as wrong:
                raise PluginError(str(wrong)) from None
        return values

    def _give_settings(self, plugin: Plugin) -> None:
        """Its variables become what the configuration says."""
        for name, value in self._parse(plugin, self._config.plugin_settings).items():
            plugin.server._declared.variables[name].value = value

    def _read_settings(self) -> None:
        for plugin in self._loaded.values():
            try:
                self._give_settings(plugin)
            except PluginError as error:  # the file was checked before; at the start it was not loaded
                self._log.error("plugin_setting_refused", plugin=plugin.name, why=str(error))

    def _check_commands(self, plugin: Plugin) -> None:
        taken = self.reserved | {c.words for other in self.loaded if other.name != plugin.name
                                 for c in other.server._declared.commands}  # fmt: skip
        for command in plugin.server._declared.commands:
            if command.words in taken:
                raise PluginError(f"the console has a command `{command.words}` already")


def _nothing(*_: Any) -> None:
    """What nobody wants to know."""
