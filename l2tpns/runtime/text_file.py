"""Files that an operator writes: read one way, whatever editor saved them.

A byte order mark says nothing in UTF-8 and is dropped; LF, CR LF and CR end a line; the last line needs no end. UTF-16
and NUL octets are no text that could be meant, and ConfigError says so by file and line. Octets that are not UTF-8 are
kept: a secret is octets.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from l2tpns.errors import ConfigError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # UTF-16 and UTF-32
_LOOKED_AT = 4096  # octets, to see whether it is UTF-16 without a mark
# What looks like a blank, like nothing, or like a quotation mark, and is none to any of our files.
_ODD = re.compile("[\u00a0\u00ad\u1680\u2000-\u200b\u2018-\u201f\u2028\u2029\u202f\u205f\u2060\u3000\ufeff]")
_QUOTED = re.compile(r""""(?:[^"\\]|\\.)*"|'[^']*'""")
_COMMENT = re.compile(r"(?:^|[ \t])[#!].*")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, without its end; the first has number 1."""

    number: int
    octets: bytes

    @property
    def text(self) -> str:
        """Octets that are not UTF-8 come back as they were by `encode("utf-8", "surrogateescape")`."""
        return self.octets.decode("utf-8", "surrogateescape")


def read_lines(path: str | Path) -> list[Line]:
    """The lines of a file. OSError when it cannot be read, ConfigError when it is no text."""
    return split_lines(Path(path).read_bytes(), str(path))


def split_lines(octets: bytes, path: str) -> list[Line]:
    """The same of what has been read already. The mark is dropped at any line's start: files are joined by `cat`."""
    if is_wide(octets):
        raise ConfigError(f"{path}: is UTF-16 or UTF-32: save it as UTF-8")
    lines = [
        Line(number, line.removeprefix(BYTE_ORDER_MARK))
        for number, line in enumerate(octets.splitlines(), 1)  # of octets: LF, CR LF and CR, nothing else
    ]
    for line in lines:
        if b"\0" in line.octets:
            raise ConfigError(f"{path}:{line.number}: holds a NUL octet: the file is damaged, or is no text")
    return lines


def is_wide(octets: bytes) -> bool:
    """UTF-16 or UTF-32, with its mark or seen by the NULs between ASCII characters."""
    head = octets[:_LOOKED_AT]
    evens, odds = head[0::2].count(0), head[1::2].count(0)
    return octets.startswith(_WIDE_MARKS) or max(evens, odds) * 4 > len(head) > 1


def is_utf_8(text: str) -> bool:
    """Whether a line's text, or a part of it, was UTF-8."""
    return not any("\udc80" <= character <= "\udcff" for character in text)


def oddity(text: str) -> str:
    """A character that an operator cannot see or takes for another, in words; empty when there is none.

    Between straight quotation marks and in comments everything is meant.
    """
    found = _ODD.search(_COMMENT.sub("", _QUOTED.sub("", text)))
    if found is None:
        return ""
    name = unicodedata.name(found[0], "separator").lower()
    return f"holds the character U+{ord(found[0]):04X} ({name}), which is neither a blank nor a quotation mark here"
