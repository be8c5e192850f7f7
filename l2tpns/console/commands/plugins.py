"""`load plugin`, `remove plugin`, `reload plugin`, `show plugins`, and the commands that plugins define."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from l2tpns.console.context import ConsoleContext
from l2tpns.console.grammar import Argument, Command, Grammar, Privilege, change
from l2tpns.console.output import Output, Row
from l2tpns.plugins.loader import available
from l2tpns.plugins.manager import Plugin
from l2tpns.plugins.server_api import ConsoleCommand
from l2tpns.runtime.text import printable

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell


def load_plugin(shell: Shell, name: str) -> str:
    shell.context.plugins.load(name)
    return f"Loading plugin {name}"


def remove_plugin(shell: Shell, name: str) -> str:
    shell.context.plugins.remove(name)
    return f"Removing plugin {name}"


def reload_plugin(shell: Shell, name: str) -> str:
    """Load the file again. On failure the loaded version keeps running."""
    shell.context.plugins.reload(name)
    return f"Reloading plugin {name}"


def show_plugins(shell: Shell) -> Output:
    plugins = shell.context.plugins

    def rows() -> Iterator[Row]:
        yield from map(_row, plugins.loaded)
        for name, why in plugins.refused.items():
            yield {"name": name, "loaded": False, "why": why}

    def lines() -> Iterator[str]:
        yield "Plugins currently loaded:"
        for plugin in plugins.loaded:
            row = _row(plugin)
            version = f" {row['version']}" if row["version"] else ""
            yield f"  {plugin.name}{version}"
            for hook, figures in row["hooks"].items():
                failed = f", {figures['failures']} failed" if figures["failures"] else ""
                yield (
                    f"      {hook:<16}{figures['calls']:>10} calls {figures['milliseconds']:>10} ms,"
                    f" slowest {figures['slowest']} ms{failed}"
                )
        if plugins.refused:
            yield "Not loaded:"
            yield from (f"  {name}: {printable(why)}" for name, why in plugins.refused.items())

    return Output(lines, rows)


def _row(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "loaded": True,
        "version": plugin.code.version,
        "file": str(plugin.code.path),
        "hooks": {
            hook: {
                "calls": function.calls,
                "milliseconds": round(function.seconds * 1000, 1),
                "slowest": round(function.slowest * 1000, 1),
                "failures": function.failures,
            }
            for hook, function in plugin.functions.items()
        },
    }


# Commands of plugins


class Commands:
    """The grammar of the console's own commands and of those of the loaded plugins."""

    def __init__(self, context: ConsoleContext, own: tuple[Command, ...], words: dict[str, str]) -> None:
        self._plugins = context.plugins
        self._own = own
        self._words = words
        self._grammar = Grammar(own, words)
        self._version = 0
        self._plugins.reserved = frozenset(command.words for command in own)

    def grammar(self) -> Grammar:
        if self._version != self._plugins.version:
            self._version = self._plugins.version
            brought = (_command(declared) for declared in self._plugins.commands)
            self._grammar = Grammar((*self._own, *brought), self._words)
        return self._grammar


def _command(declared: ConsoleCommand) -> Command:
    def run(shell: Shell, *words: str) -> str | None:
        return shell.context.plugins.run_command(declared, list(words))

    arguments = Argument(declared.usage or "WORDS", f"arguments of plugin {declared.plugin}", optional=True, many=True)
    return Command(
        declared.words,
        f"{declared.help} (plugin {declared.plugin})",
        run,
        (arguments,),
        privilege=Privilege.ENABLED if declared.privileged else Privilege.LOOK,
        changes=declared.privileged,
    )


def _available(context: ConsoleContext) -> Iterator[tuple[str, str]]:
    loaded = {plugin.name for plugin in context.plugins.loaded}
    yield from ((name, "") for name in available(context.plugins.folder) if name not in loaded)


def _loaded(context: ConsoleContext) -> Iterator[tuple[str, str]]:
    yield from ((plugin.name, plugin.code.version) for plugin in context.plugins.loaded)
    yield from ((name, "not loaded") for name in context.plugins.refused)


_NEW = Argument("NAME", "plugin name: its file name without .py", _available)
_KNOWN = Argument("NAME", "name of a loaded plugin", _loaded)

COMMANDS = (
    change("load plugin", "load a plugin", load_plugin, _NEW),
    change(
        "reload plugin",
        "load a plugin's file again; on failure the loaded version keeps running",
        reload_plugin,
        _KNOWN,
    ),
    change("remove plugin", "unload a plugin", remove_plugin, _KNOWN),
    Command("show plugins", "loaded plugins, with the number and CPU time of their hook calls", show_plugins),
)
