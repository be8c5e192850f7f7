"""Read the text files of operators in one way, whatever editor saved them.

A byte order mark is dropped, for it means nothing in UTF-8. LF, CR LF and CR end a line; the last line needs no end.
UTF-16 and NUL octets are refused by a ConfigError with file and line. Octets that are not UTF-8 are kept, because a
secret may have any.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from l2tpns.errors import ConfigError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # UTF-16 and UTF-32
_EXAMINED = 4096  # octets, to recognise UTF-16 without a mark
# Characters that look like a blank, like nothing or like a quotation mark, and are not in any of our files.
_ODD = re.compile("[\u00a0\u00ad\u1680\u2000-\u200b\u2018-\u201f\u2028\u2029\u202f\u205f\u2060\u3000\ufeff]")
_QUOTED = re.compile(r""""(?:[^"\\]|\\.)*"|'[^']*'""")
_COMMENT = re.compile(r"(?:^|[ \t])[#!].*")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, without its end. The first has number 1."""

    number: int
    octets: bytes

    @property
    def text(self) -> str:
        """Return the text. `encode("utf-8", "surrogateescape")` restores octets that are not UTF-8."""
        return self.octets.decode("utf-8", "surrogateescape")


def read_lines(path: str | Path) -> list[Line]:
    """Return the lines of a file. Raises OSError, or ConfigError if it is not text."""
    return split_lines(Path(path).read_bytes(), str(path))


def split_lines(octets: bytes, path: str) -> list[Line]:
    """Return the lines of octets already read. The mark is dropped in every line, for `cat` joins files."""
    if is_wide(octets):
        raise ConfigError(f"{path}: is UTF-16 or UTF-32: save it as UTF-8")
    lines = [
        Line(number, line.removeprefix(BYTE_ORDER_MARK))
        for number, line in enumerate(octets.splitlines(), 1)  # of octets: LF, CR LF and CR, nothing else
    ]
    for line in lines:
        if b"\0" in line.octets:
            raise ConfigError(f"{path}:{line.number}: holds a NUL octet: the file is damaged, or not text")
    return lines


def is_wide(octets: bytes) -> bool:
    """Return True for UTF-16 and UTF-32, with a mark or recognised by the NULs between ASCII characters."""
    head = octets[:_EXAMINED]
    evens, odds = head[0::2].count(0), head[1::2].count(0)
    return octets.startswith(_WIDE_MARKS) or max(evens, odds) * 4 > len(head) > 1


def is_utf_8(text: str) -> bool:
    """Return True if the text of a line, or of a part of it, was UTF-8."""
    return not any("\udc80" <= character <= "\udcff" for character in text)


def oddity(text: str) -> str:
    """Return, in words, a character that is invisible or easily mistaken; empty if there is none.

    Text between straight quotation marks and comments may have any character.
    """
    found = _ODD.search(_COMMENT.sub("", _QUOTED.sub("", text)))
    if found is None:
        return ""
    name = unicodedata.name(found[0], "separator").lower()
    return f"holds the character U+{ord(found[0]):04X} ({name}), which is neither a blank nor a quotation mark here"
