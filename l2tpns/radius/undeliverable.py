"""Accounting records that no server accepts, in a file for the operator: `set-aside` in the spool's directory.

One line of JSON per record: when it was given up and why, when it happened, kind, session, usage. The file is for
people: its records were never delivered and are not sent any more. It grows to MAX_OCTETS; later records are logged
and not kept.
"""

from __future__ import annotations

import os
from pathlib import Path

import orjson

from l2tpns.radius.spool import Entry
from l2tpns.runtime import files
from l2tpns.runtime.durable import write_all

NAME = "set-aside"
MAX_OCTETS = 64 << 20


def keep(directory: Path, entry: Entry, why: str, now: float) -> str:
    """Append a record to the file. Return why this failed, or an empty string."""
    record = {
        "set_aside": now,
        "why": why,
        "time": entry.time.wall,
        "kind": entry.kind,
        "session": entry.session,
        "usage": orjson.Fragment(entry.body),
    }
    try:
        descriptor = files.open_file(directory / NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            if os.fstat(descriptor).st_size >= MAX_OCTETS:
                return f"{NAME} has {MAX_OCTETS >> 20} MB already"
            write_all(descriptor, orjson.dumps(record) + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or str(error)
    return ""
