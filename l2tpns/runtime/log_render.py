"""How facts become one line of the log: JSON that cannot harm its reader and shows no secret.

What a peer sent may stand in a line; it cannot break the line, nor reach a terminal as a control character. A secret
never stands in a line: neither a value under a key such as `password`, nor a registered value under any key. A hexdump
of a packet that holds a password must be cut by code that knows the packet: see `ppp_octets`.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Any

from l2tpns.proto.ppp.frame import Protocol
from l2tpns.runtime import json_text
from l2tpns.runtime.text import escape_unprintable

HIDDEN = "***"
_SECRET_KEYS = frozenset({"password", "secret", "response", "authenticator"})
_SECRET_ENDINGS = ("_password", "_secret", "_response")
# Keys whose values only our own code chooses: a secret that is an ordinary word must not black them out.
_OWN_WORDS = frozenset({"cause", "phase", "message", "auth", "signal", "variable"})
_MAX_TEXT = 8192  # characters of one value
_MAX_DEPTH = 4  # of values inside values
_INT64 = 1 << 63


def render_line(level: str, event: str, facts: dict[str, Any]) -> bytes:
    """Return a line of facts that `render_fact` has made safe."""
    return json_text.dump({"time": render_time(time.time()), "level": level, "event": event, **facts})


def render_time(now: float) -> str:
    """Return the time of a line, to the millisecond."""
    second, part = divmod(now, 1)
    return f"{_render_second(int(second))}.{int(part * 1000):03d}Z"


@lru_cache(maxsize=1)
def _render_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def render_fact(key: str, value: Any, hidden: tuple[str, ...], depth: int = 0) -> Any:
    """Return the value as something that orjson writes, that cannot harm a reader, and that shows no secret."""
    if value is None or value is True or value is False or type(value) is float:
        return value
    if (key in _SECRET_KEYS or key.endswith(_SECRET_ENDINGS)) and value != "" and value != b"":
        return HIDDEN
    kind = type(value)
    if kind is int:
        return value if -_INT64 <= value < _INT64 else str(value)
    if kind is str:
        text = value
    elif isinstance(value, (bytes, bytearray, memoryview)):
        text = bytes(value).decode("utf-8", "surrogateescape")
    elif isinstance(value, Enum):
        text = value.name
    elif depth < _MAX_DEPTH and dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: render_fact(name, getattr(value, name), hidden, depth + 1) for name in names}
    elif depth < _MAX_DEPTH and isinstance(value, Mapping):
        return {escape_unprintable(str(k)): render_fact(str(k), v, hidden, depth + 1) for k, v in value.items()}
    elif depth < _MAX_DEPTH and isinstance(value, (list, tuple, set, frozenset, deque)):
        return [render_fact(key, item, hidden, depth + 1) for item in value]
    elif depth >= _MAX_DEPTH:
        text = kind.__name__  # its repr might show what the keys inside would have hidden
    else:
        text = str(value)
    if key in _OWN_WORDS:
        return text
    if not text.isprintable():
        text = escape_unprintable(text)
    for secret in hidden:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."


def ppp_octets(protocol: int, information: bytes) -> str:
    """Return a PPP packet as hex, without the password of a PAP Authenticate-Request (RFC 1334 2.2.1)."""
    if protocol != Protocol.PAP or information[:1] != b"\x01":
        return information.hex()
    name_ends = 5 + information[4] if len(information) > 4 else 5
    if name_ends >= len(information):
        name_ends = 4  # malformed: the password may begin anywhere
    return information[:name_ends].hex() + HIDDEN
