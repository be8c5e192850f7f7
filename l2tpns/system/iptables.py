"""python-iptables without its traps: how it is loaded, and how rules are made, recognised and compared.

- Importing `iptc` runs ldconfig, gcc and ld a dozen times to find its libraries: half a second, and not every router
  has a compiler. Here they are opened by the names that distributions give them.
- Its classes cannot read rules with an extension that they do not know, and redirect standard output to examine one.
  So they only make our rules; the rules of the kernel are compared, and recognised as ours, as octets.
- Its Rule loads all five tables of the namespace to find out whether a target is a chain; ours asks one table.

Rules are written as iptables prints them: `-p udp -m udp --dport 53 -j RETURN`. Each of ours carries a comment.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shlex
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2tpns.errors import L2tpnsError

_VERSIONS = {"c": (6,), "ip4tc": (2, 0), "ip6tc": (2, 0), "xtables": (12, 13, 11)}  # sonames since 2016
_EXTENSIONS = ("usr/lib/*/xtables", "usr/lib64/xtables", "usr/lib/xtables", "lib/*/xtables", "lib64/xtables")
_ATTRIBUTES = {"-p": "protocol", "-s": "src", "-d": "dst", "-i": "in_interface", "-o": "out_interface"}

# linux/netfilter_ipv4/ip_tables.h, struct ipt_entry: the packets that match, then offsets and counters
_IP_SIZE, _OFFSETS, _ENTRY_SIZE = 84, 88, 112
_OFFSET = struct.Struct("=HH")
_PART = struct.Struct("=H29sB")  # linux/netfilter/x_tables.h, of a match and of a target: size, name, revision


class FirewallError(L2tpnsError):
    """A rule, a table or the library is not available. The text is for the operator."""


@dataclass(frozen=True, slots=True)
class Part:
    """A match or a target with its settings, as the kernel stores them."""

    name: bytes
    revision: int
    settings: bytes

    def is_like(self, wanted: Part) -> bool:
        """Compare with a part that we want: the kernel appends memory of its own to the settings."""
        same = self.name == wanted.name and self.revision == wanted.revision
        return same and self.settings.startswith(wanted.settings)


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule. `jump` is a chain or a verdict if the target is not an extension."""

    packets: bytes
    matches: tuple[Part, ...]
    jump: bytes
    target: Part | None

    @property
    def comment(self) -> str:
        for match in self.matches:
            if match.name == b"comment":
                return match.settings.partition(b"\0")[0].decode(errors="replace")
        return ""

    def is_like(self, wanted: Entry) -> bool:
        if (self.packets, self.jump, len(self.matches)) != (wanted.packets, wanted.jump, len(wanted.matches)):
            return False
        if not all(mine.is_like(other) for mine, other in zip(self.matches, wanted.matches, strict=True)):
            return False
        if self.target is None or wanted.target is None:
            return self.target is wanted.target
        return self.target.is_like(wanted.target)


def load() -> Any:
    """Return the module iptc.ip4tc. Raises FirewallError."""
    if "XTABLES_LIBDIR" not in os.environ:
        for pattern in _EXTENSIONS:
            for directory in Path("/").glob(pattern):
                os.environ.setdefault("XTABLES_LIBDIR", str(directory))
    find = ctypes.util.find_library
    ctypes.util.find_library = _find_library
    try:
        from iptc import ip4tc
    except Exception as error:  # AttributeError, OSError, XTablesError: what it raises without its libraries
        raise FirewallError(f"python-iptables cannot be used: {error or type(error).__name__}") from error
    finally:
        ctypes.util.find_library = find
    return ip4tc


def _find_library(name: str) -> str | None:
    for version in _VERSIONS.get(name, ()):
        soname = f"lib{name}.so.{version}"
        try:
            ctypes.CDLL(soname)
        except OSError:
            continue
        return soname
    return None


def make(ip4tc: Any, table: Any, text: str, comment: str) -> Any:
    """Return an iptc Rule for a table, made from text, with a comment. Raises FirewallError for a bad text."""

    class Rule(ip4tc.Rule):  # type: ignore[misc]
        tables = property(lambda self: [table])

    try:
        rule = Rule()
        part = None
        for inverted, option, values in _words(text):
            if inverted:
                values = ["!", *values] if option.startswith("--") else [f"!{values[0]}"]
            if option in _ATTRIBUTES:
                setattr(rule, _ATTRIBUTES[option], *values)
            elif option == "-m":
                part = rule.create_match(*values)
            elif option == "-j":
                part = rule.create_target(*values)
            elif part is not None:
                part.set_parameter(option.removeprefix("--"), values)
            else:
                raise ValueError(option)
        rule.create_match("comment").set_parameter("comment", [comment])
        if rule.target is None:
            rule.create_target("")
    except Exception as error:  # ValueError, AttributeError, TypeError, IPTCError, XTablesError: all mean a bad text
        raise FirewallError(f"rule {text}: {error_text(error)}") from error
    return rule


def _words(text: str) -> Iterator[tuple[bool, str, list[str]]]:
    """Yield (inverted, option, its values)."""
    inverted, option, values = False, "", list[str]()
    following = False
    for word in shlex.split(text):
        if word == "!" or (word.startswith("-") and len(word) > 1):
            if option:
                yield inverted, option, values
                option, values, inverted = "", [], False
            inverted, following = following or word == "!", word == "!"
            if word != "!":
                option = word
        else:
            values.append(word)
    if option:
        yield inverted, option, values


def wanted(rule: Any) -> Entry:
    """Return what the kernel would store of a rule from `make`, without memory of its own."""
    octets = bytes(rule.rule)
    sizes = [match.usersize - _PART.size for match in rule.matches]
    entry = _read(octets, b"")
    matches = tuple(
        Part(part.name, part.revision, part.settings[:size]) for part, size in zip(entry.matches, sizes, strict=True)
    )
    target = entry.target
    if target is None or rule.target._module.name == b"standard":
        return Entry(entry.packets, matches, rule.target.name.encode(), None)
    settings = target.settings[: rule.target.usersize - _PART.size]
    return Entry(entry.packets, matches, target.name, Part(target.name, target.revision, settings))


def entries(table: Any, chain: str) -> Iterator[Entry]:
    """Yield the rules of a chain, ours or not."""
    entry = table.first_rule(chain)
    while entry:
        octets = ctypes.string_at(ctypes.addressof(entry), entry.next_offset)
        yield _read(octets, table.get_target(entry) or b"")
        entry = table.next_rule(entry)


def _read(octets: bytes, jump: bytes) -> Entry:
    """Parse a rule. `jump` is what libiptc reports: the chain, the verdict, or the name of the extension again."""
    target_at, end = _OFFSET.unpack_from(octets, _OFFSETS)
    matches = []
    position = _ENTRY_SIZE
    while position < target_at:
        size, name, revision = _PART.unpack_from(octets, position)
        matches.append(Part(_name(name), revision, octets[position + _PART.size : position + size]))
        position += size
    size, name, revision = _PART.unpack_from(octets, target_at)
    target = Part(_name(name), revision, octets[target_at + _PART.size : end])
    extension = target if target.name and jump in (b"", target.name) else None
    return Entry(octets[:_IP_SIZE], tuple(matches), jump, extension)


def _name(octets: bytes) -> bytes:
    return octets.partition(b"\0")[0]


def error_text(error: Exception) -> str:
    """Return the text of an error, without the `b'...'` that python-iptables leaves in it."""
    return str(error).replace("b'", "").replace("'", "") or type(error).__name__
