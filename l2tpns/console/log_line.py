"""Formats log entries as `LEVEL-ip-tid-sid event key=value ...`, as `debug` of the manual's server shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2tpns.runtime.log import LEVELS

NAMES = dict(zip(LEVELS, ("CRIT", "ERROR", "WARN", "INFO", "CALL", "DATA"), strict=True))
_IN_FRONT = frozenset({"time", "level", "event", "peer", "tunnel", "session"})


def log_line(entry: Mapping[str, Any]) -> str:
    """Format an entry. A missing address is `0.0.0.0`, a missing ID 0."""
    facts = " ".join(f"{key}={_value(value)}" for key, value in entry.items() if key not in _IN_FRONT)
    address = str(entry.get("peer", "0.0.0.0")).rpartition(":")[0] or "0.0.0.0"
    level = NAMES.get(entry["level"], "?")
    head = f"{level}-{address}-{entry.get('tunnel', 0)}-{entry.get('session', 0)} {entry['event']}"
    return f"{head} {facts}".rstrip()


def _value(value: Any) -> str:
    text = str(value)
    return f'"{text}"' if " " in text or not text else text
