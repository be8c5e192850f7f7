"""The commands that change something, those of the console itself, and the list of them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from l2tpns import causes
from l2tpns.config.settings import SETTINGS
from l2tpns.config.value_types import Effect
from l2tpns.console.commands import access_lists, figures, garden, monitor, plugins, sessions, snoop, system, throttle
from l2tpns.console.commands.arguments import ONE_USER, SOME_SESSIONS, SOME_TUNNELS, SOME_USERS, find_user
from l2tpns.console.context import Office
from l2tpns.console.grammar import Argument, Command, Mode, Privilege, change
from l2tpns.console.output import Output, Refused, text
from l2tpns.l2tp.tunnel import TunnelState
from l2tpns.policy import filters as filtering
from l2tpns.runtime.log import LEVELS
from l2tpns.runtime.log_render import HIDDEN
from l2tpns.runtime.text import printable

if TYPE_CHECKING:
    from l2tpns.config.access_list import AccessList
    from l2tpns.console.shell import Shell
    from l2tpns.subscriber.session import Session

ANYWHERE = tuple(Mode)
CONFIGURING = (Mode.CONFIG, Mode.ACL)
ENABLED = Privilege.ENABLED


# Dropping


def drop_users(shell: Shell, *names: str) -> str:
    """As the manual's server: only who has an address."""
    said = []
    for name in names:
        online = [s for s in shell.office.lns.services.registry.sessions_of(name) if s.address is not None]
        for session in online:
            session.end(causes.ADMIN_DROP)
        said.append(f"Dropping user {name}" if online else f"User {name} is not connected")
    return "\n".join(said)


def drop_sessions(shell: Shell, *words: str) -> str:
    said = []
    for word in words:
        if not (word.isascii() and word.isdigit() and 0 < int(word[:6]) <= 65535):
            said.append(f"Invalid session ID (1 - 65535): {printable(word)}")
            continue
        session = shell.office.lns.sessions.get(int(word))
        if session is None:
            said.append(f"Session {word} is not active.")
        else:
            session.end(causes.ADMIN_DROP)
            said.append(f"Dropping session {session.id}")
    return "\n".join(said)


def drop_tunnels(shell: Shell, *words: str) -> str:
    lns = shell.office.lns
    said = []
    for word in words:
        tunnel = lns.tunnels.get(int(word)) if word.isascii() and word.isdigit() and len(word) <= 5 else None
        if tunnel is None:
            said.append(f"Tunnel {printable(word)} not connected")
        elif tunnel.dropping or tunnel.state is TunnelState.CLOSING:
            said.append(f"Tunnel {tunnel.id} already being shut down")
        else:
            lns.drop_tunnel(tunnel)
            said.append(f"Tunnel {tunnel.id} shut down ({tunnel.host})")
    return "\n".join(said)


# Filters


def filter_user(shell: Shell, name: str, direction: str, filter_name: str) -> str:
    chosen = shell.office.config.filters.get(filter_name)
    if chosen is None:
        raise Refused(f"There is no access-list {printable(filter_name)}")
    for session in find_user(shell.office, name):
        before = (session.path.filter_in, session.path.filter_out)
        _give(session, (chosen, before[1]) if direction == "in" else (before[0], chosen))
    return f"Filtering user {name}: {direction} {filter_name}"


def no_filter_user(shell: Shell, name: str) -> str:
    for session in find_user(shell.office, name):
        _give(session, (None, None))
    return f"Not filtering user {name}"


def _give(session: Session, filters: tuple[AccessList | None, AccessList | None]) -> None:
    filtering.set_filters(session.services.plane, session, *filters)


# Configuration


def set_variable(shell: Shell, name: str, value: str) -> str:
    """Says when it takes effect, if not at once."""
    setting, notes = shell.office.set_variable(name, value)
    effect = () if setting.effect is Effect.LIVE else (f"It takes effect {setting.effect.value}",)
    return "\n".join([f'Setting "{name}" to "{HIDDEN if setting.secret else value}"', *effect, *notes])


def configure_terminal(shell: Shell) -> str:
    shell.mode = Mode.CONFIG
    return 'Variables are set with "set", packet filters with "ip access-list"; "end" leaves'


def leave_configuration(shell: Shell) -> None:
    shell.mode = Mode.EXEC


def write_memory(shell: Shell) -> Output:
    path = shell.office.write_memory()
    return text(f"Writing configuration\n{path} written")


def reload_configuration(shell: Shell) -> str:
    return "\n".join(shell.office.reload())


def shutdown(shell: Shell) -> str:
    shell.office.leave()
    return "Shutting down"


def clear_counters(shell: Shell) -> str:
    shell.office.clear_counters()
    return "Counters cleared"


# The log, live


def debug(shell: Shell, *names: str) -> str:
    """More streams for this console, or which there are."""
    if not names:
        return _streams(shell)
    shell.watch(shell.streams | _levels(names))
    return _streams(shell)


def no_debug(shell: Shell, *names: str) -> str:
    """Without names: none any more. `all` is here really all."""
    left = shell.streams - _levels(names) if names and "all" not in names else frozenset()
    shell.watch(left)
    return _streams(shell)


def _levels(names: Sequence[str]) -> frozenset[int]:
    """`all` is everything but packets, as ever."""
    everything = {LEVELS.index(level) for level in LEVELS if level != "data"} if "all" in names else set()
    return frozenset(everything | {LEVELS.index(name) for name in names if name != "all"})


def _streams(shell: Shell) -> str:
    return "Currently debugging: " + (" ".join(LEVELS[level] for level in sorted(shell.streams)) or "nothing")


# The console itself


def enable(shell: Shell) -> None:
    if shell.privilege < ENABLED:
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
    """Every command that may be used here."""
    standing = shell.standing
    commands = [command for command in shell.grammar.commands if standing.may_see(command)]
    width = max(len(command.usage) for command in commands)
    return Output(
        lambda: (f"  {command.usage.ljust(width)}  {command.help}" for command in commands),
        lambda: ({"command": command.words, "usage": command.usage, "help": command.help} for command in commands),
    )


# Arguments


def _variables(office: Office) -> Iterator[tuple[str, str]]:
    for setting in (*SETTINGS.values(), *office.plugins.settings.values()):
        yield setting.name, setting.help_with_default


def _stream_names(office: Office) -> Iterator[tuple[str, str]]:
    for level in LEVELS:
        yield level, f"lines of level {level}"
    yield "all", "all but data"


def _height(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 4):
        raise ValueError(f'"{printable(word)}" is no number of lines')
    return int(word)


def _directions(office: Office) -> Iterator[tuple[str, str]]:
    yield "in", "what the user sends"
    yield "out", "what is sent to the user"


def _is_secret(words: Sequence[str]) -> bool:
    return words[:1] == [] or words[0] not in SETTINGS or SETTINGS[words[0]].secret


def _everywhere(command: Command) -> Command:
    """Who configures may look at it and write it without leaving, and type what write memory writes."""
    words = ("show ", "write ", "load ", "remove ")
    return replace(command, modes=ANYWHERE) if command.words.startswith(words) else command


VARIABLE = Argument("VARIABLE", "name of a variable", _variables)
VALUE = Argument("VALUE", "its value; between quotation marks if it has spaces")
STREAMS = Argument("LEVEL", "what to show", _stream_names, closed=True, optional=True, many=True)
HEIGHT = Argument("LINES", "lines of a page; 0: no pages", parse=_height)
DIRECTION = Argument("DIRECTION", "in or out", _directions, closed=True)
FILTER = Argument("NAME", "name of an access-list", system.FILTER_NAMES.choices)


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

COMMANDS: tuple[Command, ...] = tuple(
    _everywhere(command)
    for command in chain(
        sessions.COMMANDS,
        figures.COMMANDS,
        throttle.COMMANDS,
        plugins.COMMANDS,
        snoop.COMMANDS,
        garden.COMMANDS,
        monitor.COMMANDS,
        system.COMMANDS,
        access_lists.COMMANDS,
        (
            change("clear counters", "set all counters to zero", clear_counters),
            Command("configure terminal", "change variables", configure_terminal, privilege=ENABLED),
            Command("debug", "show the log here as it is written", debug, (STREAMS,), privilege=ENABLED),
            Command("disable", "back to looking only", disable),
            change("drop session", "end sessions", drop_sessions, SOME_SESSIONS),
            change("drop tunnel", "end tunnels and all their sessions", drop_tunnels, SOME_TUNNELS),
            change("drop user", "end all sessions of users", drop_users, SOME_USERS),
            Command("enable", "be allowed to change things", enable),
            Command("end", "leave the configuration mode", leave_configuration, modes=CONFIGURING),
            Command("exit", "leave, or leave the configuration mode", step_out, modes=ANYWHERE),
            change("filter", "give a user's sessions a packet filter", filter_user, ONE_USER, DIRECTION, FILTER),
            Command("help", "all commands", help_all, modes=ANYWHERE),
            Command("history", "lines typed before", show_history, modes=ANYWHERE),
            Command("logout", "leave", leave),
            Command("no debug", "show less of the log, or nothing", no_debug, (STREAMS,)),
            change("no filter", "take a user's packet filters away", no_filter_user, ONE_USER),
            Command("quit", "leave", leave),
            change("reload", "read the configuration file again, as SIGHUP does", reload_configuration),
            change("set", "set a variable", set_variable, VARIABLE, VALUE, modes=ANYWHERE, secret=_is_secret),
            change("shutdown", "leave, as SIGTERM does", shutdown, whole=True),
            Command("terminal length", "lines of a page on this console", terminal_length, (HEIGHT,)),
            change("write memory", "write the configuration file", write_memory),
        ),
    )
)
