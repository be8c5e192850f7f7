"""Telnet's octets and the line editor's keys: no socket, no server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.console.editor import MAX_LINE, Editor, History, Key, in_quotes
from l2tpns.console.telnet import Telnet, escape
from l2tpns.console.terminal import printable


def telnet() -> tuple[Telnet, list[bytes]]:
    sent: list[bytes] = []
    return Telnet(sent.append), sent


# Telnet


def test_the_window_size_is_learnt_even_with_a_255_in_it() -> None:
    decoder, _ = telnet()
    assert decoder.feed(bytes.fromhex("fffb1ffffa1f 00ffff 0018 fff0") + b"x") == b"x"  # NAWS 255 x 24
    assert (decoder.width, decoder.height) == (255, 24)


@pytest.mark.parametrize(
    ("typed", "lines"), [(b"a\r\n", b"a\n"), (b"a\r\0", b"a\n"), (b"a\n", b"a\n"), (b"a\r", b"a\n")]
)
def test_every_end_of_line_is_one(typed: bytes, lines: bytes) -> None:
    decoder, _ = telnet()
    assert decoder.feed(typed) == lines
    assert decoder.feed(b"b\r\n\r\n") == b"b\n\n"


def test_an_end_of_line_in_two_pieces_is_one() -> None:
    decoder, _ = telnet()
    assert decoder.feed(b"a\r") + decoder.feed(b"\nb") == b"a\nb"


def test_a_doubled_255_is_data() -> None:
    decoder, _ = telnet()
    assert decoder.feed(b"a\xff\xffb") == b"a\xffb"
    assert escape(b"a\xffb") == b"a\xff\xffb"


def test_we_echo_for_who_asks_and_only_then() -> None:
    decoder, sent = telnet()
    assert not decoder.echo
    decoder.feed(bytes.fromhex("fffd01"))  # DO ECHO
    assert decoder.echo
    assert sent == []  # the answer to the offer
    decoder.feed(bytes.fromhex("fffe01"))  # DONT ECHO
    assert not decoder.echo
    assert sent == [bytes.fromhex("fffc01")]  # WONT ECHO


def test_an_option_we_do_not_have_is_refused() -> None:
    decoder, sent = telnet()
    decoder.feed(bytes.fromhex("fffd22fffb18"))  # DO LINEMODE, WILL TERMINAL-TYPE
    assert sent == [bytes.fromhex("fffc22"), bytes.fromhex("fffe18")]


def test_a_storm_of_options_is_answered_once_for_each() -> None:
    decoder, sent = telnet()
    for _ in range(100):
        for command in (251, 252, 253, 254):
            decoder.feed(b"".join(bytes([255, command, option]) for option in range(256)))
    assert len(sent) <= 3 * 256


def test_a_subnegotiation_without_end_is_not_kept() -> None:
    decoder, _ = telnet()
    decoder.feed(b"\xff\xfa\x1f" + b"x" * 1_000_000)
    assert len(decoder._sub) <= 64
    assert decoder.feed(b"\xff\xf0ok") == b"ok"


def test_the_interrupt_of_telnet_is_control_c() -> None:
    decoder, _ = telnet()
    assert decoder.feed(b"\xff\xf4") == b"\x03"


@given(st.lists(st.binary(max_size=40)))
def test_any_octets_in_any_pieces_are_decoded_alike(pieces: list[bytes]) -> None:
    whole, parts = telnet()[0], telnet()[0]
    assert whole.feed(b"".join(pieces)) == b"".join(parts.feed(piece) for piece in pieces)


# The editor


def typed(keys: str, history: History | None = None) -> Editor:
    editor = Editor(history)
    for key in keys:
        editor.key(key)
    return editor


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("show\x01x", "xshow"),  # ^A
        ("show\x01\x05x", "showx"),  # ^E
        ("show\x02\x02x", "shxow"),  # ^B
        ("show\x1b[D\x1b[Dx", "shxow"),  # left
        ("show\x1bOD\x1bOC!", "show!"),  # left and right as in application mode
        ("show\x02\x02\x0b", "sh"),  # ^K
        ("show\x02\x02\x15", "ow"),  # ^U
        ("show the users  \x17", "show the "),  # ^W
        ("show\x7f\x08", "sh"),  # backspace
        ("show\x01\x04", "how"),  # ^D
        ("show\x01\x1b[3~", "how"),  # Delete
        ("show\x1b[H1\x1b[F2", "1show2"),  # Home, End
        ("show\x1b[1~1\x1b[4~2", "1show2"),
        ("a\x1b[99zb\x00\x07c", "abc"),  # an unknown sequence
        ("a\x16?b", "a?b"),  # ^V
        ('say "what?"', 'say "what?"'),  # no help inside quotation marks
        ("\u00e4\u00f6\udcff", "\u00e4\u00f6\udcff"),
    ],
)
def test_keys_edit_the_line(keys: str, line: str) -> None:
    assert typed(keys).text == line


def test_arrows_bring_back_older_lines_and_the_unfinished_one() -> None:
    history = History()
    for line in ("one", "two", "two", " "):
        history.add(line)
    assert history.lines == ["one", "two"]
    assert typed("thr\x1b[A", history).text == "two"
    assert typed("thr\x1b[A\x1b[A\x1b[A", history).text == "one"
    assert typed("thr\x10\x10\x0e\x0e", history).text == "thr"


@pytest.mark.parametrize(
    ("keys", "event"),
    [("\n", Key.LINE), ("a\x03", Key.INTERRUPT), ("\x04", Key.END), ("a\t", Key.COMPLETE), ("a?", Key.HELP)],
)
def test_keys_that_mean_something(keys: str, event: Key) -> None:
    editor = typed(keys[:-1])
    assert editor.key(keys[-1])[1] is event


def test_a_line_that_is_too_long_is_not_taken_for_a_shorter_one() -> None:
    editor = typed("x" * (MAX_LINE + 1))
    assert len(editor.text) == MAX_LINE
    assert editor.key("\n")[1] is Key.TOO_LONG


def test_a_password_is_never_shown() -> None:
    editor = Editor(hidden=True)
    editor.prompt = "Password: "
    shown = "".join(editor.key(key)[0] for key in "se\tc?\x01\x05\x0c\x10ret")
    assert editor.text == "sec?ret"
    assert not set("secr") & set(shown.replace("Password: ", ""))


@given(st.text(st.sampled_from("abc \x01\x02\x04\x05\x06\x0b\x0c\x0e\x10\x15\x17\x1b[ACD~3\x7f\u00e4"), max_size=200))
def test_what_is_shown_is_what_is_in_the_line(keys: str) -> None:
    editor = Editor(width=40)
    editor.prompt = "host# "
    screen = Screen(editor.prompt)
    for key in keys:
        screen.put(editor.key(key)[0])
    visible = editor.text[editor._offset :]
    assert screen.text.rstrip() == (editor.prompt + visible[: len(screen.text) - len(editor.prompt)]).rstrip()
    assert screen.column == len(editor.prompt) + editor.cursor - editor._offset
    assert screen.column <= 40


class Screen:
    """One line of a VT100."""

    def __init__(self, prompt: str) -> None:
        self.cells = list(prompt)
        self.column = len(prompt)

    @property
    def text(self) -> str:
        return "".join(self.cells)

    def put(self, output: str) -> None:
        for part in output.replace("\x1b[H\x1b[2J", "\r\x1b[K").replace("\x1b[K", "\v"):
            if part == "\r":
                self.column = 0
            elif part == "\b":
                self.column -= 1
            elif part == "\v":
                del self.cells[self.column :]
            elif part != "\a":
                self.cells[self.column : self.column + 1] = [part]
                self.column += 1


@pytest.mark.parametrize(
    ("text", "inside"), [('a "b', True), ('a "b"', False), ("a 'b", True), ('"a\\"', True), ("", False)]
)
def test_quotation_marks(text: str, inside: bool) -> None:
    assert in_quotes(text) is inside


def test_what_steers_a_terminal_becomes_harmless() -> None:
    assert printable("a\x1b[2J\x07\x9b\u202e\tb") == "a\\x1b[2J\\x07\\x9b\\u202e\tb"
