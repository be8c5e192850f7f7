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
    "clear": "set back to zero",
    "configure": "change the configuration",
    "drop": "end sessions, tunnels, or all of a user",
    "histogram": "sessions by how long they have been idle, or open",
    "ip": "packet filters",
    "load": "load a plugin",
    "monitor": "look at packets or messages as they pass",
    "no": "undo",
    "reload": "take up the configuration file, or a plugin's, again",
    "remove": "remove a plugin",
    "show": "show what there is",
    "terminal": "how this console behaves",
    "write": "the configuration, to the file or to this console",
}


def _everywhere(command: Command) -> Command:
    """Who configures may look at it and write it without leaving, and type what write memory writes."""
    words = ("show ", "write ", "load ", "remove ")
    return replace(command, modes=ANYWHERE) if command.words.startswith(words) else command


COMMANDS: tuple[Command, ...] = tuple(_everywhere(command) for module in MODULES for command in module.COMMANDS)
