"""Text that others chose, made fit for a message, a terminal, the configuration file or a log line."""

from __future__ import annotations

import difflib
import re

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MAX_SHOWN = 80  # characters of foreign text in one message


def printable(text: str) -> str:
    """Return foreign text for one line of a message: without control characters, and cut."""
    return CONTROL.sub("?", text.encode("utf-8", "backslashreplace").decode("utf-8"))[:MAX_SHOWN]


def quote(text: str) -> str:
    """Return the text in quotation marks. Only `\\` and `"` are escaped: in older files a lone `\\` meant itself."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unknown_word(what: str, word: str, known: tuple[str, ...]) -> str:
    """Return `Unknown variable "x": did you mean "y"?`; the question only if a known word is similar."""
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    hint = ": did you mean " + " or ".join(f'"{c}"' for c in close) + "?" if close else ""
    return f'Unknown {what} "{printable(word)}"{hint}'


def escape_unprintable(text: str) -> str:
    """Return text whose characters neither steer a terminal nor end a line. JSON escapes those below U+0020 itself."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c < " " else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # an octet that was not UTF-8
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
