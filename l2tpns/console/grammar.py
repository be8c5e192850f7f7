"""The command grammar: declarations, unambiguous abbreviations, help and completion.

A command is declared once, with its words, arguments, help, required privilege and function. Everything else is derived
by walking the tree of words. This module knows no individual command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from itertools import islice
from typing import TYPE_CHECKING, Any

from l2tpns.config.file import split_words
from l2tpns.console import output_filters
from l2tpns.console.output import Output, Refused
from l2tpns.errors import ConfigError
from l2tpns.runtime.text import printable, quote

if TYPE_CHECKING:
    from l2tpns.console.context import ConsoleContext

MAX_PROPOSALS = 200  # completions shown for Tab or `?`
ENTER = "<cr>"


class Privilege(IntEnum):
    """The prompt `HOST>` permits reading, `HOST#` also changes."""

    LOOK = 0
    ENABLED = 1


class Mode(Enum):
    """The mode in which a line is entered; the value follows the host name in the prompt."""

    EXEC = ""
    CONFIG = "(config)"
    ACL = "(config-acl)"


ANYWHERE = tuple(Mode)
CONFIGURING = (Mode.CONFIG, Mode.ACL)


Choices = Callable[["ConsoleContext"], Iterable[tuple[str, str]]]  # word and help


def no_choices(context: ConsoleContext) -> Iterable[tuple[str, str]]:
    return ()


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument or, with `many`, all that follow. A `closed` one accepts only its choices, abbreviated or not."""

    name: str
    help: str
    choices: Choices = no_choices
    parse: Callable[[str], Any] = str  # raises ValueError with a message for the operator
    closed: bool = False
    optional: bool = False
    many: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A command. `run` is called with the shell and the values of the arguments; its result is printed."""

    words: str
    help: str
    run: Callable[..., Output | str | None]
    arguments: tuple[Argument, ...] = ()
    privilege: Privilege = Privilege.LOOK
    modes: tuple[Mode, ...] = (Mode.EXEC,)
    whole: bool = False  # cannot be abbreviated, because a slip would cost too much
    changes: bool = False  # logged with the operator
    secret: Callable[[Sequence[str]], bool] | None = None  # returns True if these arguments contain a secret

    @property
    def usage(self) -> str:
        parts = [self.words]
        for argument in self.arguments:
            name = argument.name + ("..." if argument.many else "")
            parts.append(f"[{name}]" if argument.optional else name)
        return " ".join(parts)

    def runnable(self, given: int) -> bool:
        """Return True if this number of arguments is sufficient."""
        return given >= sum(not argument.optional for argument in self.arguments)

    def argument(self, place: int) -> Argument | None:
        """Return the argument at this position, or None."""
        if place < len(self.arguments):
            return self.arguments[place]
        return self.arguments[-1] if self.arguments and self.arguments[-1].many else None


def change(words: str, help: str, run: Callable[..., Any], *arguments: Argument, **more: Any) -> Command:
    """Declare a command that changes the server: it requires `enable` and is logged."""
    return Command(words, help, run, arguments, privilege=Privilege.ENABLED, changes=True, **more)


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed line."""

    command: Command
    values: tuple[Any, ...]
    pipe: output_filters.Pipe
    line: str  # as logged: full words, without secrets


@dataclass(frozen=True, slots=True)
class CommandContext:
    """The mode and privilege with which a line is entered."""

    context: ConsoleContext
    mode: Mode = Mode.EXEC
    privilege: Privilege = Privilege.ENABLED

    def may_see(self, command: Command) -> bool:
        return self.mode in command.modes and self.privilege >= command.privilege


@dataclass(slots=True)
class _Node:
    """A node of the tree: the words that may follow, and the command that ends here."""

    children: dict[str, _Node] = field(default_factory=dict)
    command: Command | None = None
    commands_below: list[Command] = field(default_factory=list)  # all commands at or below this place

    @property
    def whole(self) -> bool:
        """Return True if the word cannot be abbreviated."""
        return all(command.whole for command in self.commands_below)


class Grammar:
    """The tree of all commands."""

    def __init__(self, commands: Iterable[Command], words: Mapping[str, str]) -> None:
        """`words` maps words that several commands share to their help."""
        self._help = words
        self.commands = tuple(sorted(commands, key=lambda command: command.words))
        self._root = _Node()
        for command in self.commands:
            node = self._root
            node.commands_below.append(command)
            for word in command.words.split():
                node = node.children.setdefault(word, _Node())
                node.commands_below.append(command)
            if node.command is not None:
                raise ValueError(f"{command.words} is declared twice")
            node.command = command

    # A line

    def parse(self, line: str, standing: CommandContext) -> Call:
        """Parse a line. Raises Refused with the reason."""
        typed, after = output_filters.split(line)
        words = _words(typed)
        node, used, path = self._descend(words, standing)
        if node.command is None or not standing.may_see(node.command):
            raise Refused(self._refusal(node, words, used, path, standing))
        command = node.command
        rest = words[used:]
        if not command.runnable(len(rest)) or (rest and command.argument(len(rest) - 1) is None):
            raise Refused(f"Usage: {command.usage}")
        values = [self._value(command, place, word, standing) for place, word in enumerate(rest)]
        pipe = output_filters.Pipe() if after is None else output_filters.parse(after)
        arguments = "***" if command.secret is not None and command.secret(rest) else " ".join(map(_quoted, rest[1:]))
        logged = " ".join([*path, *map(_quoted, rest[:1]), arguments]).rstrip()
        return Call(command, tuple(values), pipe, logged)

    def _value(self, command: Command, place: int, word: str, standing: CommandContext) -> Any:
        argument = command.argument(place)
        assert argument is not None
        if argument.closed:
            word = _expand(argument, word, standing.context)
        try:
            return argument.parse(word)
        except ValueError as error:
            raise Refused(str(error)) from None

    def _descend(self, words: Sequence[str], standing: CommandContext) -> tuple[_Node, int, list[str]]:
        """Follow the words while they are keywords. Return the node, their number, and the full keywords."""
        node = self._root
        path: list[str] = []
        for word in words:
            names = self._matching(node, word, standing)
            if len(names) > 1:
                raise Refused(f'"{printable(" ".join([*path, word]))}" is ambiguous: {", ".join(names)}')
            if not names:
                break
            path.append(names[0])
            node = node.children[names[0]]
        return node, len(path), path

    def _matching(self, node: _Node, word: str, standing: CommandContext) -> list[str]:
        """Return the keywords that a word may abbreviate."""
        seen = [name for name, child in node.children.items() if any(map(standing.may_see, child.commands_below))]
        if word in seen:
            return [word]
        return [name for name in seen if name.startswith(word) and not node.children[name].whole]

    def _refusal(self, node: _Node, words: Sequence[str], used: int, path: list[str], standing: CommandContext) -> str:
        if used == len(words) and node.children:
            if node.command is None or standing.mode not in node.command.modes:
                return f'"{" ".join(path)}" is not complete: press ? to see what may follow'
        enabled = CommandContext(standing.context, standing.mode, Privilege.ENABLED)
        if standing.privilege < Privilege.ENABLED:
            try:
                above, reached, _ = self._descend(words, enabled)
            except Refused:
                above, reached = node, used
            if reached > used or (above.command is not None and reached == used):
                return 'This needs "enable" first'
        wrong = printable(" ".join([*path, *words[used : used + 1]]))
        return f'Unknown command "{wrong}": press ? for a list of commands'

    # Help

    def help(self, line: str, standing: CommandContext) -> list[tuple[str, str]]:
        """Return the words that may follow or complete the last one, with their help."""
        return list(islice(self._proposals(line, standing, helping=True), MAX_PROPOSALS))

    def complete(self, line: str, standing: CommandContext) -> tuple[str, list[str]]:
        """Return the incomplete last word and its completions."""
        _, begun = _split_begun(line)
        found = [word for word, _ in islice(self._proposals(line, standing, helping=False), MAX_PROPOSALS)]
        return begun, found

    def _proposals(self, line: str, standing: CommandContext, *, helping: bool) -> Iterator[tuple[str, str]]:
        typed, after = output_filters.split(line)
        if after is not None:
            yield from _pipe_proposals(after, helping)
            return
        words, begun = _split_begun(typed)
        try:
            node, used, _ = self._descend(words, standing)
        except Refused:
            return
        if used == len(words):
            for name in sorted(node.children):
                child = node.children[name]
                if name.startswith(begun) and any(map(standing.may_see, child.commands_below)):
                    yield name, self._help.get(name) or (child.command.help if child.command is not None else "")
        command = node.command
        if command is None or not standing.may_see(command):
            return
        place = len(words) - used
        argument = command.argument(place)
        if argument is not None:
            yield from _argument_proposals(argument, begun, standing, helping)
        if helping and not begun and command.runnable(place):
            yield ENTER, "execute the command"
            yield "|", "filter the output"


def _argument_proposals(
    argument: Argument, begun: str, standing: CommandContext, helping: bool
) -> Iterator[tuple[str, str]]:
    if helping and not argument.closed:
        yield argument.name, argument.help
    for word, help in argument.choices(standing.context):
        if word.startswith(begun):
            yield (word if helping else _quoted(word)), help


def _pipe_proposals(after: str, helping: bool) -> Iterator[tuple[str, str]]:
    words, begun = _split_begun(after)
    if not words:
        for name, help in output_filters.FILTERS.items():
            if name.startswith(begun):
                yield name, help
    elif helping and not "json".startswith(words[0]):
        yield "RE", "regular expression: . [a-z] ^ $ * + ? | ( ) \\d \\w \\s"
        if begun or len(words) > 1:
            yield ENTER, "execute the command"
    elif helping:
        yield ENTER, "execute the command"


def _expand(argument: Argument, word: str, context: ConsoleContext) -> str:
    choices = [choice for choice, _ in argument.choices(context)]
    if word in choices:
        return word
    found = [choice for choice in choices if choice.startswith(word)]
    if len(found) > 1:
        raise Refused(f'"{printable(word)}" is ambiguous: {", ".join(found)}')
    if not found:
        raise Refused(f'{argument.name}: "{printable(word)}" is none of {", ".join(choices)}')
    return found[0]


def _words(line: str) -> list[str]:
    try:
        return split_words(line)
    except ConfigError as error:
        raise Refused(str(error)) from None


def _split_begun(line: str) -> tuple[list[str], str]:
    """Split a line into its complete words and the incomplete last one."""
    head, space, begun = _rpartition_space(line)
    if not space:
        return [], begun
    try:
        return split_words(head), begun
    except ConfigError:
        return [""], begun  # inside quotation marks: no completion


def _rpartition_space(line: str) -> tuple[str, str, str]:
    place = max(line.rfind(" "), line.rfind("\t"))
    return line[: max(place, 0)], line[place : place + 1] if place >= 0 else "", line[place + 1 :]


def _quoted(word: str) -> str:
    return quote(word) if not word or set(word) & set(" \t\"'|") else word
