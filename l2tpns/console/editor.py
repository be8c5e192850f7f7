"""The line editor: maps keys to text for a VT100 and to events. Owns no socket and no clock.

^A ^E move to the start and end, ^B ^F and the arrows by one character. ^K ^U ^W delete to the end, to the start and the
previous word, ^D the character at the cursor (on an empty line it ends the input). ^P ^N recall older and newer lines,
^L redraws, ^V inserts the next key literally. A line longer than the window scrolls sideways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum

MAX_LINE = 1024  # characters
MAX_HISTORY = 200
MAX_SEQUENCE = 16  # of an escape sequence
BELL = "\a"


class Key(Enum):
    """An event caused by a key, beyond a change of the line."""

    LINE = "line"  # Enter: the line is in `text`
    TOO_LONG = "too long"  # Enter, but characters were discarded
    END = "end"  # ^D on an empty line
    INTERRUPT = "interrupt"
    COMPLETE = "complete"
    HELP = "help"


class History:
    """Lines entered earlier."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        if line.strip() and self.lines[-1:] != [line]:
            self.lines.append(line)
            del self.lines[:-MAX_HISTORY]


class Editor:
    """The line being edited."""

    def __init__(
        self, history: History | None = None, *, hidden: bool = False, plain: bool = False, width: int = 80
    ) -> None:
        """`hidden`: for a password, neither shown nor kept. `plain`: before the login, with cheap keys only."""
        self.prompt = ""
        self.width = width or 80
        self.cursor = 0
        self.too_long = False
        self._hidden = hidden
        self._helps = not hidden and not plain
        self._history = history or History()
        self._place = len(self._history.lines)  # index in the history
        self._unfinished = ""
        self._chars: list[str] = []
        self._offset = 0  # of the first visible character
        self._sequence = ""  # an escape sequence being received
        self._verbatim = False
        self._keys: KeyMap = PLAIN_KEYS if plain else KEYS
        self._sequences: KeyMap = {} if plain else SEQUENCES

    @property
    def text(self) -> str:
        return "".join(self._chars)

    @property
    def before_cursor(self) -> str:
        return "".join(self._chars[: self.cursor])

    def key(self, char: str) -> tuple[str, Key | None]:
        """Handle one character. Return the text to show and the event, if any."""
        if self._sequence:
            return self._on_sequence(char), None
        if self._verbatim:
            self._verbatim = False
            return self._insert(char), None
        if char == "\n":
            return ("", Key.TOO_LONG if self.too_long else Key.LINE)
        if char == "\x03":
            return "", Key.INTERRUPT
        if char == "\x04" and not self._chars:
            return "", Key.END
        if char == "\t" and self._helps:
            return "", Key.COMPLETE
        if char == "?" and self._helps and not in_quotes(self.before_cursor):
            return "", Key.HELP
        if char == "\x1b":
            self._sequence = char
            return "", None
        if char == "\x16":
            self._verbatim = True
            return "", None
        handler = self._keys.get(char)
        if handler is not None:
            return handler(self), None
        return self._insert(char), None

    def insert(self, text: str) -> str:
        """Insert text at the cursor, as if typed. Return the text to show."""
        return "".join(self._insert(char) for char in text)

    def draw(self) -> str:
        """Return the text that redraws the current line of the screen."""
        shown, back = self._view()
        return f"\r{self.prompt}{shown}\x1b[K{back}"

    def draw_below(self) -> str:
        """Return the text that draws prompt and line on an empty line of the screen."""
        shown, back = self._view()
        return f"{self.prompt}{shown}{back}"

    def _view(self) -> tuple[str, str]:
        """Return the visible part of the line, and the backspaces from its end to the cursor."""
        if self._hidden:
            return "", ""
        room = max(self.width - len(self.prompt) - 1, 8)
        self._offset = min(max(self._offset, self.cursor - room), self.cursor)
        shown = "".join(_shown(char) for char in self._chars[self._offset : self._offset + room])
        return shown, "\b" * (len(shown) - (self.cursor - self._offset))

    def draw_screen(self) -> str:
        return "\x1b[H\x1b[2J" + self.draw()

    def erase(self) -> str:
        """Return the text that erases the line, to print another one; draw() restores it."""
        return "\r\x1b[K"

    # Keys

    def _insert(self, char: str) -> str:
        if not (char.isprintable() or "\udc80" <= char <= "\udcff"):
            return ""
        if len(self._chars) >= MAX_LINE:
            self.too_long = True
            return BELL
        self._chars.insert(self.cursor, char)
        self.cursor += 1
        if self._hidden:
            return ""
        at_end = self.cursor == len(self._chars)
        if at_end and self.cursor - self._offset < self.width - len(self.prompt):
            return _shown(char)
        return self.draw()

    def _move(self, to: int) -> str:
        if not 0 <= to <= len(self._chars):
            return BELL
        self.cursor = to
        return self._drawn()

    def _cut(self, start: int, end: int) -> str:
        del self._chars[start:end]
        self.cursor = start
        if len(self._chars) < MAX_LINE and not self._chars:
            self.too_long = False
        return self._drawn()

    def _backspace(self) -> str:
        return self._cut(self.cursor - 1, self.cursor) if self.cursor else BELL

    def _delete(self) -> str:
        return self._cut(self.cursor, self.cursor + 1) if self.cursor < len(self._chars) else BELL

    def _cut_word(self) -> str:
        start = self.cursor
        while start and self._chars[start - 1] == " ":
            start -= 1
        while start and self._chars[start - 1] != " ":
            start -= 1
        return self._cut(start, self.cursor)

    def _recall(self, place: int) -> str:
        lines = self._history.lines
        if self._hidden or not 0 <= place <= len(lines):
            return BELL
        if self._place == len(lines):
            self._unfinished = self.text
        self._place = place
        self._chars = list(lines[place] if place < len(lines) else self._unfinished)
        self.cursor = len(self._chars)
        return self._drawn()

    def _drawn(self) -> str:
        return "" if self._hidden else self.draw()

    def _on_sequence(self, char: str) -> str:
        """Handle CSI and SS3 sequences, as sent for arrow keys. Unknown ones are ignored."""
        self._sequence += char
        body = self._sequence[1:]
        if body in ("[", "O") or (body[0] == "[" and char in "0123456789;" and len(body) < MAX_SEQUENCE):
            return ""
        self._sequence = ""
        handler = self._sequences.get(body)
        return handler(self) if handler is not None else ""


KeyMap = Mapping[str, Callable[[Editor], str]]

# For a name or a password.
PLAIN_KEYS: KeyMap = {
    "\x08": Editor._backspace,
    "\x7f": Editor._backspace,
    "\x15": lambda editor: editor._cut(0, editor.cursor),
    "\x17": Editor._cut_word,
}
KEYS: KeyMap = {
    **PLAIN_KEYS,
    "\x01": lambda editor: editor._move(0),
    "\x02": lambda editor: editor._move(editor.cursor - 1),
    "\x05": lambda editor: editor._move(len(editor._chars)),
    "\x06": lambda editor: editor._move(editor.cursor + 1),
    "\x04": Editor._delete,
    "\x0b": lambda editor: editor._cut(editor.cursor, len(editor._chars)),
    "\x0c": Editor.draw_screen,
    "\x0e": lambda editor: editor._recall(editor._place + 1),
    "\x10": lambda editor: editor._recall(editor._place - 1),
}
SEQUENCES: KeyMap = {
    **dict.fromkeys(("[A", "OA"), KEYS["\x10"]),
    **dict.fromkeys(("[B", "OB"), KEYS["\x0e"]),
    **dict.fromkeys(("[C", "OC"), KEYS["\x06"]),
    **dict.fromkeys(("[D", "OD"), KEYS["\x02"]),
    **dict.fromkeys(("[H", "OH", "[1~", "[7~"), KEYS["\x01"]),
    **dict.fromkeys(("[F", "OF", "[4~", "[8~"), KEYS["\x05"]),
    "[3~": Editor._delete,
}


def in_quotes(text: str) -> bool:
    """Return True if the end of the text is inside quotation marks."""
    return (False, *quoting(text))[-1]


def quoting(text: str) -> Iterator[bool]:
    """Yield for each character whether the text after it is inside quotation marks."""
    quote = ""
    escaped = False
    for char in text:
        if escaped:
            escaped = False
        elif quote:
            if char == "\\" and quote == '"':
                escaped = True
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        yield bool(quote)


def _shown(char: str) -> str:
    return "?" if "\udc80" <= char <= "\udcff" else char
