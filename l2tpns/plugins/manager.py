"""The plugins of one server: load, call in the order of loading, reload, remove (manual: Plugins).

Other parts of the server look at `chains`, the functions of each hook that is in use. Without plugins a hook costs one
lookup in an empty dict. Failures of plugins are contained by calls.py. This file does not know the purpose of a hook.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import thread_time
from typing import Any

import gevent
from gevent.lock import RLock

from l2tpns.config.settings import Config
from l2tpns.dataplane.session_path import Tap
from l2tpns.errors import PluginError
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
from l2tpns.plugins.settings import PluginSettings
from l2tpns.runtime.exceptions import describe
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Part, Supervisor
from l2tpns.subscriber.services import Services
from l2tpns.subscriber.session import Session as CoreSession

HOOK_TIMEOUT = 5.0  # seconds that the end of a session or of the plugin waits for its function
AVPAIR_HOOKS = frozenset({"post_auth", "radius_response"})  # receive AVPairs
INIT_TIMEOUT = 30.0  # seconds for plugin_init, which delays the start of the server


@dataclass(slots=True, eq=False)
class Plugin:
    """A loaded plugin."""

    code: Code
    server: Server
    functions: dict[str, Function]

    @property
    def name(self) -> str:
        return self.code.name


class Plugins:
    """All plugins of the server. Call `begin` before loading any."""

    def __init__(self, config: Config, log: Logger, supervisor: Supervisor) -> None:
        self._config = config
        self._log = log
        self._supervisor = supervisor
        self._host: Host | None = None
        self.hook_timeout, self.init_timeout = HOOK_TIMEOUT, INIT_TIMEOUT
        self._caller = Caller(log)
        self._lock = RLock()
        self._loaded: dict[str, Plugin] = {}  # in the order of loading
        self._timer: Part | None = None
        self.chains: dict[str, tuple[Function, ...]] = {}  # by hook, without empty chains
        self.refused: dict[str, str] = {}  # configured plugins that are not loaded, with the reason
        self.version = 0  # counts changes of the loaded plugins
        self.reserved: frozenset[str] = frozenset()  # words of the console's own commands
        self.on_change: Callable[[], None] = _ignore  # set by the daemon, which hides the secrets in the log
        self.settings = PluginSettings(config, log, self._servers, lambda: self.on_change())

    # Life

    def begin(self, services: Services, sessions: Mapping[int, CoreSession]) -> None:
        """Serve this server, whose table of sessions is `sessions`, by id."""
        self._host = Host(services, sessions, lambda: self.on_change())

    def start(self) -> None:
        """Load the configured plugins. May yield. Log those that cannot be loaded."""
        self.apply_config(self._config.plugins)

    def stop(self) -> None:
        """Unload all plugins, the last one first. May yield."""
        with self._lock:
            for name in reversed(list(self._loaded)):
                self._unload(name)

    def apply_config(self, names: Iterable[str]) -> list[str]:
        """Load and unload plugins until these are loaded. May yield. Return a line for each that cannot be loaded.

        A loaded plugin stays as it is, even if its file has changed.
        """
        problems = []
        with self._lock:
            wanted = list(names)
            for name in [name for name in self._loaded if name not in wanted]:
                self._unload(name)
                self._log.info("plugin_removed", plugin=name)
            self.refused = {name: why for name, why in self.refused.items() if name in wanted}
            for name in wanted:
                if name not in self._loaded:
                    try:
                        self._load(name)
                    except PluginError as error:
                        problems.append(f"plugin {name} is not loaded: {error}")
            self._loaded = {name: self._loaded[name] for name in wanted if name in self._loaded}
            self.settings.apply_all()
            self._rebuild()
        return problems

    def load(self, name: str) -> None:
        """Load a plugin, last in order. May yield. Raises PluginError."""
        with self._lock:
            if name in self._loaded:
                raise PluginError("Plugin is already loaded")
            self._load(name)
            config = self._config
            if name not in config.plugins:
                config.plugins = (*config.plugins, name)
            self._loaded = {each: self._loaded[each] for each in config.plugins if each in self._loaded}
            self._rebuild()

    def remove(self, name: str) -> None:
        """Unload a plugin. Its settings stay configured. May yield. Raises PluginError if it is not loaded."""
        with self._lock:
            config = self._config
            if name not in self._loaded and name not in config.plugins:
                raise PluginError("Plugin is not loaded")
            config.plugins = tuple(each for each in config.plugins if each != name)
            self.refused.pop(name, None)
            if name in self._loaded:
                self._unload(name)
                self._log.info("plugin_removed", plugin=name)

    def reload(self, name: str) -> None:
        """Load the current file of a plugin. May yield. Raises PluginError, and the plugin stays as it was."""
        with self._lock:
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
            self._install(code, old, saved)
            self._rebuild()
            self._finish(old)
            self._log.info("plugin_reloaded", plugin=name, version=code.version, hooks=sorted(code.functions))

    def _load(self, name: str) -> None:
        code = self._read(name)
        self._install(code, None, None)
        self.refused.pop(name, None)
        self._log.info("plugin_loaded", plugin=name, version=code.version, hooks=sorted(code.functions))

    def _read(self, name: str) -> Code:
        began = thread_time()
        try:
            code = loader.read(name, loader.directory(self._config.plugin_dir))
            self._caller.record_time(Function(name, "import", code.path, _ignore), thread_time() - began)
            return code
        except PluginError as error:
            self._refuse(name, str(error))
            raise

    def _refuse(self, name: str, why: str) -> None:
        self._log.error("plugin_not_loaded", plugin=name, why=why)
        if name in self._config.plugins and name not in self._loaded:
            self.refused[name] = why

    def _install(self, code: Code, old: Plugin | None, saved: Any) -> None:
        """Call plugin_init, then replace the old plugin. Raises PluginError, and leaves nothing behind."""
        functions = {hook: Function(code.name, hook, code.path, call) for hook, call in code.functions.items()}
        server = Server(self.host, code.name, lambda name, error: self._spawned(code, name, error))
        server.saved = saved
        plugin = Plugin(code, server, functions)
        before = sys.modules.get(code.module.__name__)
        sys.modules[code.module.__name__] = code.module
        self.settings.in_transition = server
        try:
            if "init" in functions:
                self._init(plugin)
            self.settings.apply(server)
            self._check_commands(plugin)
        except PluginError as error:
            self._end_greenlets(plugin)
            loader.forget(code.module)
            if before is not None:
                sys.modules[code.module.__name__] = before
            self._refuse(code.name, str(error))
            raise
        finally:
            self.settings.in_transition = None
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
            self._caller.record_invalid_result(function, result)

    def _unload(self, name: str) -> None:
        """Stop calling the functions of a plugin, then call its plugin_done."""
        plugin = self._loaded.pop(name)
        self._rebuild()
        self._finish(plugin)

    def _finish(self, plugin: Plugin) -> None:
        self.settings.in_transition = plugin.server
        self.on_change()
        if "done" in plugin.functions:
            self._limited(plugin.functions["done"], self.hook_timeout)
        self.settings.in_transition = None
        self._end_greenlets(plugin)
        loader.forget(plugin.code.module)

    def _limited(self, function: Function, timeout: float, *arguments: Any) -> Any:
        """Return the result of a function, or a Failure, also if it does not return within `timeout` seconds."""
        job = gevent.spawn(self._caller.call, function, *arguments)
        try:
            job.join(timeout)
            if job.successful() and not isinstance(job.value, gevent.GreenletExit):
                return job.value
            if job.ready():  # it has killed its own greenlet
                return Failure(PluginError("its greenlet was killed"))
        finally:
            job.kill(block=False)
        self._log.warning("plugin_given_up", plugin=function.plugin, hook=function.name, seconds=timeout)
        return Failure(TimeoutError(f"did not return within {timeout:g} seconds"))

    def _end_greenlets(self, plugin: Plugin) -> None:
        gevent.killall(list(plugin.server._declared.greenlets), block=False)
        for builder in plugin.server._declared.builders:
            self.host.services.gardens.remove_builder(builder)

    def _spawned(self, code: Code, name: str, error: BaseException) -> None:
        self._caller.record_failure(Function(code.name, f"spawn {name}", code.path, _ignore), error)

    def _rebuild(self) -> None:
        """Rebuild the chains and the timer after a change of the loaded plugins."""
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
        """Call the functions of a hook in order, until one returns STOP or ERROR. May yield."""
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
        """Do the same for a session that cannot wait: abandon the call after `hook_timeout` seconds. May yield."""
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
        """Return the packet hook of a session's path, None while no plugin has one. Does not yield."""
        up, down = (self.chains.get(hook, ()) for hook in PACKET_HOOKS)
        return packet_hooks.make_tap(self._caller, session, up, down) if up or down else None

    def _tick(self) -> None:
        last = 0
        while True:
            gevent.sleep(1.0 - time.time() % 1.0)
            now = int(time.time() + 0.5)
            if now != last:  # a tick that was half a second late has counted as this one
                last = now
                self.run("timer", param_timer(now))

    def control(
        self, words: list[str], source: tuple[str, int], *, packet: bytes = b"", kind: int = 0, id: int = 0
    ) -> tuple[bool, str] | None:
        """Run a command of nsctl. May yield. Return success and reply, None if no plugin handles the command."""
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
            return False, f"plugin {outcome.failed} failed: see the server's log"
        return None

    def reads_avpair(self, key: str) -> bool:
        """Return whether a plugin may read AVPairs of this key."""
        for plugin in self._loaded.values():
            keys = plugin.code.avpairs
            if key in keys if keys is not None else not AVPAIR_HOOKS.isdisjoint(plugin.functions):
                return True
        return False

    def control_help(self) -> list[str]:
        """Return the lines of the plugins for `nsctl help`."""
        return [line for plugin in self._loaded.values() for line in plugin.code.help]

    # Declarations of plugins

    @property
    def host(self) -> Host:
        """Return the parts of the server that plugins share. Raises PluginError before `begin`."""
        if self._host is None:
            raise PluginError("the server is not ready for plugins yet")
        return self._host

    @property
    def loaded(self) -> list[Plugin]:
        """Return the loaded plugins, in the order of loading."""
        return list(self._loaded.values())

    def _servers(self) -> dict[str, Server]:
        return {name: plugin.server for name, plugin in self._loaded.items()}

    @property
    def folder(self) -> Path:
        """Return the directory of plugins."""
        return loader.directory(self._config.plugin_dir)

    @property
    def counts(self) -> list[Count]:
        """Return the counters of all plugins."""
        return [count for plugin in self._loaded.values() for count in plugin.server._declared.counts.values()]

    @property
    def commands(self) -> list[ConsoleCommand]:
        """Return the console commands of all plugins."""
        return [command for plugin in self._loaded.values() for command in plugin.server._declared.commands]

    def clear_counts(self) -> None:
        """Reset the counters of all plugins."""
        for count in self.counts:
            count.value = 0

    def run_command(self, command: ConsoleCommand, words: list[str]) -> str | None:
        """Run a console command of a plugin. May yield. Raises PluginError if the plugin refuses it or fails."""
        plugin = self._loaded[command.plugin]
        function = Function(plugin.name, f"command {command.words}", plugin.code.path, command.run)
        result, error = self._caller.ask(function, words)
        if isinstance(error, PluginError):
            raise error
        if error is not None or not isinstance(result, str | None):
            if error is None:
                self._caller.record_invalid_result(function, result)
            raise PluginError(f"plugin {plugin.name} failed: see the log")
        return result

    def _check_commands(self, plugin: Plugin) -> None:
        taken = self.reserved | {c.words for other in self.loaded if other.name != plugin.name
                                 for c in other.server._declared.commands}  # fmt: skip
        for command in plugin.server._declared.commands:
            if command.words in taken:
                raise PluginError(f"the console already has a command `{command.words}`")


def _ignore(*_: Any) -> None:
    """Do nothing."""
