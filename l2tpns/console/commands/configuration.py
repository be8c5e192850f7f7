"""`configure terminal`, `set`, `write`, `show running-config`, `reload`: the configuration (reference section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from l2tpns.config.settings import SETTINGS
from l2tpns.config.value_types import Effect
from l2tpns.console.context import ConsoleContext
from l2tpns.console.grammar import ANYWHERE, CONFIGURING, Argument, Command, Mode, Privilege, change
from l2tpns.console.output import Output, Row, text
from l2tpns.runtime.log_render import HIDDEN
from l2tpns.runtime.text import printable

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell


def set_variable(shell: Shell, name: str, value: str) -> str:
    """Set a variable. Report when it takes effect, unless at once."""
    setting, notes = shell.context.set_variable(name, value)
    effect = () if setting.effect is Effect.LIVE else (f"It takes effect {setting.effect.value}",)
    return "\n".join([f'Setting "{name}" to "{HIDDEN if setting.secret else value}"', *effect, *notes])


def configure_terminal(shell: Shell) -> str:
    shell.mode = Mode.CONFIG
    return 'Enter "set" for variables and "ip access-list" for packet filters; "end" leaves this mode'


def leave_configuration(shell: Shell) -> None:
    shell.mode = Mode.EXEC


def write_memory(shell: Shell) -> Output:
    path = shell.context.write_memory()
    return text(f"Writing configuration\n{path} written")


def reload_configuration(shell: Shell) -> str:
    return "\n".join(shell.context.reload())


def show_running_config(shell: Shell) -> Output:
    context = shell.context

    def data() -> Row:
        config = context.intended()
        lines = context.running_config().rstrip("\n").split("\n")
        return {"lines": [printable(line) for line in lines], "plugins": list(config.plugins)}

    return Output(lambda: context.running_config().rstrip("\n").split("\n"), data)


def _variables(context: ConsoleContext) -> Iterator[tuple[str, str]]:
    for setting in (*SETTINGS.values(), *context.plugins.settings.declared.values()):
        yield setting.name, setting.help_with_default


def _is_secret(words: Sequence[str]) -> bool:
    return words[:1] == [] or words[0] not in SETTINGS or SETTINGS[words[0]].secret


VARIABLE = Argument("VARIABLE", "variable name", _variables)
VALUE = Argument("VALUE", "new value; quote it if it contains spaces")

COMMANDS = (
    Command("configure terminal", "enter configuration mode", configure_terminal, privilege=Privilege.ENABLED),
    Command("end", "leave configuration mode", leave_configuration, modes=CONFIGURING),
    change("reload", "reread the configuration file, as SIGHUP does", reload_configuration),
    change("set", "set a configuration variable", set_variable, VARIABLE, VALUE, modes=ANYWHERE, secret=_is_secret),
    Command(
        "show running-config",
        "current configuration, including secrets",
        show_running_config,
        privilege=Privilege.ENABLED,
    ),
    change("write memory", "save the current configuration to the configuration file", write_memory),
    Command("write terminal", "same as show running-config", show_running_config, privilege=Privilege.ENABLED),
)
