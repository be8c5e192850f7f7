"""`enable`, `help`, `history`, `exit` and others: commands for the console itself (reference section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2tpns.console.commands.arguments import PAGE_LENGTH
from l2tpns.console.commands.configuration import leave_configuration
from l2tpns.console.grammar import ANYWHERE, Command, Mode, Privilege
from l2tpns.console.output import Output

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell


def enable(shell: Shell) -> None:
    if shell.privilege < Privilege.ENABLED:
        shell.enable()


def disable(shell: Shell) -> None:
    shell.privilege = Privilege.LOOK


def terminal_length(shell: Shell, lines: int) -> None:
    shell.terminal.length = lines


def show_history(shell: Shell) -> Output:
    lines = list(shell.terminal.history.lines)
    return Output(
        lambda: (f"{number:5} {line}" for number, line in enumerate(lines, 1)),
        lambda: ({"number": number, "line": line} for number, line in enumerate(lines, 1)),
    )


def leave(shell: Shell) -> None:
    shell.leave()


def step_out(shell: Shell) -> None:
    match shell.mode:
        case Mode.EXEC:
            shell.leave()
        case Mode.CONFIG:
            leave_configuration(shell)
        case Mode.ACL:
            shell.mode = Mode.CONFIG


def help_all(shell: Shell) -> Output:
    """List the commands that this operator may use in this mode."""
    standing = shell.standing
    commands = [command for command in shell.grammar.commands if standing.may_see(command)]
    width = max(len(command.usage) for command in commands)
    return Output(
        lambda: (f"  {command.usage.ljust(width)}  {command.help}" for command in commands),
        lambda: ({"command": command.words, "usage": command.usage, "help": command.help} for command in commands),
    )


COMMANDS = (
    Command("disable", "leave privileged mode", disable),
    Command("enable", "enter privileged mode", enable),
    Command("exit", "leave configuration mode, or close the console", step_out, modes=ANYWHERE),
    Command("help", "list the commands available here", help_all, modes=ANYWHERE),
    Command("history", "list the command lines entered on this console", show_history, modes=ANYWHERE),
    Command("logout", "close the console", leave),
    Command("quit", "close the console", leave),
    Command("terminal length", "set the number of lines per page on this console", terminal_length, (PAGE_LENGTH,)),
)
