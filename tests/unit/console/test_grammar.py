"""Commands, their abbreviations, help and completion; filters behind `|`, regular expressions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from time import monotonic
from typing import Any, cast

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from l2tpns.console import commands, output_filters
from l2tpns.console.commands import COMMANDS, WORDS
from l2tpns.console.context import ConsoleContext
from l2tpns.console.grammar import Argument, Command, CommandContext, Grammar, Mode, Privilege
from l2tpns.console.output import Column, Output, Refused, Table
from l2tpns.console.regexp import Regexp
from l2tpns.runtime.files import replace_file
from tests.lab import PATIENCE

NOBODY = cast(ConsoleContext, None)


def fruits(context: ConsoleContext) -> list[tuple[str, str]]:
    return [("apple", "red"), ("apricot", "orange"), ("pear", "green")]


def run(*_: Any) -> None:
    return None


TOY = Grammar(
    (
        Command("show session", "sessions", run, (Argument("SID", "an id", optional=True, many=True),)),
        Command("show session history", "ends", run),
        Command("show settings", "settings", run),
        Command("shutdown", "leave", run, privilege=Privilege.ENABLED, whole=True),
        Command("eat", "eat fruit", run, (Argument("FRUIT", "a fruit", fruits, closed=True, many=True),)),
        Command("set", "set", run, (Argument("NAME", "", fruits), Argument("VALUE", "")), modes=(Mode.CONFIG,)),
    ),
    {"show": "look"},
)
LOOKING = CommandContext(NOBODY, privilege=Privilege.LOOK)
ENABLED = CommandContext(NOBODY)
CONFIGURING = CommandContext(NOBODY, Mode.CONFIG)


def test_every_file_with_commands_is_in_the_list() -> None:
    files = {path.stem for path in Path(commands.__file__).parent.glob("*.py") if "COMMANDS = (" in path.read_text()}
    assert files - {"__init__"} == {module.__name__.rpartition(".")[2] for module in commands.MODULES}


@pytest.mark.parametrize(
    ("line", "words", "values"),
    [
        ("show session", "show session", ()),
        ("sh ses 12 13", "show session", ("12", "13")),
        ("sh ses h", "show session history", ()),
        ("sh set", "show settings", ()),
        ("e ap apr", "eat", None),
        ("eat app apr pe", "eat", ("apple", "apricot", "pear")),
        ("shutdown", "shutdown", ()),
        ('show session "a b"', "show session", ("a b",)),
    ],
)
def test_words_may_be_shortened(line: str, words: str, values: tuple[str, ...] | None) -> None:
    if values is None:
        with pytest.raises(Refused, match="ambiguous: apple, apricot"):
            TOY.parse(line, ENABLED)
        return
    call = TOY.parse(line, ENABLED)
    assert (call.command.words, call.values) == (words, values)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sh se", '"show se" is ambiguous: session, settings'),
        ("shut", 'Unknown command "shut"'),
        ("show", '"show" is not complete'),
        ("show nothing", 'Unknown command "show nothing"'),
        ("eat", "Usage: eat FRUIT..."),
        ("eat stone", 'FRUIT: "stone" is none of apple, apricot, pear'),
        ("show settings now", "Usage: show settings"),
        ("set a b", 'Unknown command "set"'),
        ('show session "12', "a quotation mark has no partner"),
        ("show session | inclde x", 'Unknown filter "inclde": did you mean "include"'),
        ("show session | include", "a regular expression is missing"),
        ("show session | include (", "ends too early|without a"),
        ("\x1b[2J", "Unknown command"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: str, says: str) -> None:
    with pytest.raises(Refused, match=says if "|" in says else re.escape(says)) as refused:
        TOY.parse(line, ENABLED)
    assert "\x1b" not in str(refused.value)


def test_who_may_only_look_is_told_of_enable() -> None:
    with pytest.raises(Refused, match='This needs "enable" first'):
        TOY.parse("shutdown", LOOKING)
    assert "shutdown" not in dict(TOY.help("", LOOKING))
    assert "shutdown" in dict(TOY.help("", ENABLED))


def test_modes_have_their_own_commands() -> None:
    assert TOY.parse("set apple 1", CONFIGURING).values == ("apple", "1")
    assert [word for word, _ in TOY.help("", CONFIGURING)] == ["set"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["eat", "show", "shutdown"]),
        ("sh", ["show", "shutdown"]),
        ("show ", ["session", "settings"]),
        ("show session", ["session"]),
        ("show session ", ["history", "SID", "<cr>", "|"]),
        ("sh ses 1 ", ["SID", "<cr>", "|"]),
        ("eat ", ["apple", "apricot", "pear"]),
        ("eat ap", ["apple", "apricot"]),
        ("eat pear ", ["apple", "apricot", "pear", "<cr>", "|"]),
        ("show session | ", ["include", "exclude", "begin", "json"]),
        ("show session | include ", ["RE"]),
        ("show session | json ", ["<cr>"]),
        ("sh se ", []),
        ("nothing ", []),
    ],
)
def test_help_lists_what_may_follow(line: str, words: list[str]) -> None:
    assert [word for word, _ in TOY.help(line, ENABLED)] == words


@pytest.mark.parametrize(
    ("line", "begun", "words"),
    [
        ("sh", "sh", ["show", "shutdown"]),
        ("show se", "se", ["session", "settings"]),
        ("show sett", "sett", ["settings"]),
        ("eat ap", "ap", ["apple", "apricot"]),
        ("show session | in", "in", ["include"]),
        ("eat x", "x", []),
    ],
)
def test_tab_completes(line: str, begun: str, words: list[str]) -> None:
    assert TOY.complete(line, ENABLED) == (begun, words)


def test_every_command_has_a_line_of_help() -> None:
    for command in COMMANDS:
        assert command.help and command.help[-1] != ".", command.words
    for first in {command.words.split()[0] for command in COMMANDS}:
        begun = [command for command in COMMANDS if command.words.split()[0] == first]
        assert len(begun) == 1 or first in WORDS, first


def test_every_word_that_help_lists_has_its_help() -> None:
    whole = {command.words for command in COMMANDS}
    for command in COMMANDS:
        words = command.words.split()
        for count in range(1, len(words)):
            assert " ".join(words[:count]) in whole or words[count - 1] in WORDS, words


def test_the_log_gets_whole_words_and_no_secret() -> None:
    grammar = Grammar(COMMANDS, WORDS)
    assert grammar.parse("se l2tp_secret hush", ENABLED).line == "set l2tp_secret ***"
    assert grammar.parse("set nonsense hush", ENABLED).line == "set nonsense ***"
    assert grammar.parse('set hostname "a b"', ENABLED).line == 'set hostname "a b"'


@given(st.text(max_size=60))
def test_any_line_is_understood_or_refused(line: str) -> None:
    for standing in (LOOKING, ENABLED, CONFIGURING):
        try:
            TOY.parse(line, standing)
        except Refused:
            pass
        TOY.help(line, standing)
        TOY.complete(line, standing)


# Filters

LINES = Output(lambda: ["one", "two", "three"], lambda: iter([{"n": 1}, {"n": 2}]))


@pytest.mark.parametrize(
    ("pipe", "lines"),
    [
        ("include o", ["one", "two"]),
        ("i ^t|e$", ["one", "two", "three"]),
        ("exclude o", ["three"]),
        ("begin tw", ["two", "three"]),
        ('include "two"', ["two"]),
        ("json", ['[{"n":1}', ',{"n":2}', "]"]),
        ("json | include 2", [',{"n":2}']),
    ],
)
def test_filters(pipe: str, lines: list[str]) -> None:
    assert [line for line in output_filters.parse(pipe).lines(LINES) if line is not None] == lines


def test_only_a_bar_between_words_and_outside_quotation_marks_begins_a_filter() -> None:
    assert output_filters.split("show x | include a|b") == ("show x ", " include a|b")
    assert output_filters.split('set x "a | b"') == ('set x "a | b"', None)
    assert output_filters.split("set x a|b") == ("set x a|b", None)


def test_a_word_too_long_for_its_column_moves_those_behind_it_no_further_than_need_be() -> None:
    table = Table((Column("a", "A", -4), Column("b", "B", 5), Column("c", "C", -3), Column("d", "D", 0)))
    assert [table.line(row) for row in ({"a": a, "b": 1, "c": "x", "d": "y"} for a in ("ab", "abcdefg", "a" * 12))] == [
        "ab       1 x   y",
        "abcdefg  1 x   y",
        "aaaaaaaaaaaa 1 x y",
    ]


def test_rows_of_any_number_are_one_json_value() -> None:
    table = Table((Column("n", "N", 3),))
    for count in (0, 1, 3):
        rows = [{"n": number} for number in range(count)]
        assert json.loads("\n".join(table.output(lambda rows=rows: rows).json_lines())) == rows


# Regular expressions


@given(
    st.text(st.sampled_from("ab.*+?|()[]^$-\\dc"), min_size=1, max_size=10),
    st.text(st.sampled_from("abc-1]"), max_size=12),
)
def test_expressions_mean_what_they_mean_to_python(pattern: str, text: str) -> None:
    try:
        ours = Regexp(pattern)
    except ValueError:
        return
    # Syntax that Python interprets differently: lazy and possessive operators, and what it warns of.
    assume(not re.search(r"[*+?][*+?]", pattern) and "[[" not in pattern and "--" not in pattern)
    assume(not re.search(r"\\[abc]|[\^$][*+?]|\(\?", pattern))
    try:
        theirs = re.compile(pattern, re.ASCII)
    except re.error:
        return
    assert ours.search(text) == bool(theirs.search(text))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(.*)*x", "a*a*a*a*a*a*a*a*a*a*b", "((a?)+)+c" * 20])
def test_an_expression_that_explodes_elsewhere_does_not_here(pattern: str) -> None:
    begun = monotonic()
    Regexp(pattern).search("a" * 4000 + "!")
    assert monotonic() - begun < PATIENCE  # Python would backtrack for ever


@pytest.mark.parametrize("pattern", ["", "(", ")", "a)", "*", "[", "[a", "[z-a]", "\\", "x" * 201, "(" * 50 + ")" * 50])
def test_an_expression_that_is_none_is_refused_in_words(pattern: str) -> None:
    with pytest.raises(ValueError, match="regular expression"):
        Regexp(pattern)


# The file


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l2tpns.cfg"
    path.write_text("old")
    path.chmod(0o640)
    replace_file(path, b"new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError):
        replace_file(path, b"newer")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
