"""Checksummed lines of JSON, for files to which a process appends that may be killed at any time.

A crash leaves a torn last line, which a reader ignores. Used by the accounting spool and by the saved state.
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

from l2tpns.runtime.files import sync_directory

CHECKSUM = 9  # characters: eight hexadecimal digits and a blank


def make_line(fields: list[Any], default: Callable[[Any], Any] | None = None) -> bytes:
    """Return one line. `default` converts what JSON does not know."""
    text = orjson.dumps(fields, default)
    return b"%08x %s\n" % (zlib.crc32(text), text)


def read_line(line: bytes) -> list[Any] | None:
    """Return the fields of a line; None if it is torn, damaged or not a list."""
    text = line[CHECKSUM:-1]
    if not line.endswith(b"\n") or line[:CHECKSUM] != b"%08x " % zlib.crc32(text):
        return None
    try:
        fields = orjson.loads(text)
    except ValueError:
        return None
    return fields if isinstance(fields, list) else None


def write_all(descriptor: int, octets: bytes) -> None:
    """Write all octets, in as many calls as it takes. Raises OSError."""
    written = os.write(descriptor, octets)
    while written < len(octets):
        written += os.write(descriptor, octets[written:])


def fsync_all(descriptors: Iterable[int], directory: Path | None) -> str:
    """Sync files, then the directory that names them, unless it is None: no file is new.

    Return the first error's text, or "". Blocks: for a thread.
    """
    try:
        for descriptor in descriptors:
            os.fsync(descriptor)
    except OSError as error:
        return error.strerror or str(error)
    if directory is None:
        return ""
    try:
        sync_directory(directory)
    except OSError as error:
        if error.errno not in (EMFILE, ENFILE):  # no descriptor is free: the content is safe already
            return error.strerror or str(error)
    return ""


def close_quietly(descriptor: int) -> None:
    """Close a descriptor. A failing disk may report its error only now, when nothing can be done about it."""
    with suppress(OSError):
        os.close(descriptor)
