"""Checksummed lines of JSON, for files that are appended to by a process which may be killed at any time.

A torn last line is what a crash leaves; whoever reads counts it for nothing. Used by the accounting spool and by the
saved state.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from errno import EMFILE, ENFILE
from pathlib import Path
from typing import Any

import orjson

CHECKSUM = 9  # eight hexadecimal digits and a blank


def make_line(fields: list[Any], default: Callable[[Any], Any] | None = None) -> bytes:
    text = orjson.dumps(fields, default)
    return b"%08x %s\n" % (zlib.crc32(text), text)


def read_line(line: bytes) -> list[Any] | None:
    """The fields, or None for a line that is torn or damaged, or holds no list in spite of its right checksum."""
    text = line[CHECKSUM:-1]
    if not line.endswith(b"\n") or line[:CHECKSUM] != b"%08x " % zlib.crc32(text):
        return None
    try:
        fields = orjson.loads(text)
    except ValueError:
        return None
    return fields if isinstance(fields, list) else None


def write_all(descriptor: int, octets: bytes) -> None:
    """All of it, however many calls that takes. Raises OSError."""
    written = os.write(descriptor, octets)
    while written < len(octets):
        written += os.write(descriptor, octets[written:])


def fsync_all(descriptors: Iterable[int], directory: Path) -> str:
    """In a thread: files, then the directory that names them. The first error's text, or nothing."""
    try:
        for descriptor in descriptors:
            os.fsync(descriptor)
    except OSError as error:
        return error.strerror or str(error)
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (EMFILE, ENFILE):  # no descriptor is free: what is in the files is safe, and counts
            return error.strerror or str(error)
    return ""


def close_quietly(descriptor: int) -> None:
    """Close it. A disk that fails may say so only now, and there is nothing that we could do better."""
    with suppress(OSError):
        os.close(descriptor)
