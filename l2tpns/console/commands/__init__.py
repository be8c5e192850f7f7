"""The console's commands: each module declares those of its subject; this is the list.

A further command is one more entry in the COMMANDS of its module, and in WORDS when it begins with a new word that
several commands share; a further module is one more name in MODULES. docs/commands.md is generated from it.
"""

from __future__ import annotations

from dataclasses import replace

from l2tpns.console.commands import (
    access_lists,
    configuration,
    console,
    fast_path,
    garden,
    log,
    monitor,
    plugins,
    pool,
    radius,
    sessions,
    snoop,
    system,
    throttle,
    tunnels,
)
from l2tpns.console.grammar import ANYWHERE, Command

MODULES = (
    access_lists,
    configuration,
    console,
    fast_path,
    garden,
    log,
    monitor,
    plugins,
    pool,
    radius,
    sessions,
    snoop,
    system,
    throttle,
    tunnels,
)

WORDS = {
    "clear": "reset counters",
    "configure": "enter configuration mode",
    "drop": "end sessions, tunnels, or all sessions of a user",
    "histogram": "number of sessions by idle time or time online",
    "ip": "IP packet filters (access lists)",
    "load": "load a plugin",
    "monitor": "display packets or control messages live",
    "no": "undo a command",
    "reload": "reread the configuration file or a plugin",
    "remove": "unload a plugin",
    "show": "display the state of the server",
    "terminal": "settings of this console",
    "write": "save or display the configuration",
}


def _everywhere(command: Command) -> Command:
    """Return the command, usable in every mode if configuring needs it: to show, write, load or remove."""
    words = ("show ", "write ", "load ", "remove ")
    return replace(command, modes=ANYWHERE) if command.words.startswith(words) else command


COMMANDS: tuple[Command, ...] = tuple(_everywhere(command) for module in MODULES for command in module.COMMANDS)
