"""What a tunnel and a session are on disk, and how the lines of saved state become records again.

A line is a list: its kind, then what the kind needs. The last word on a thing counts:

    ["head", schema, version, time]        begins each file
    ["tun", TunnelRecord]                  a tunnel as it is now         ["tun-", id]   it is gone
    ["ctl", id, ns, nr, sent, [[session, octets], ...]]   its numbers, and the messages added since the line before
    ["call", tunnel, id, peer's id]        a call that is not online     ["ses-", id]   call or session is gone
    ["ses", SessionRecord]                 a session as it is now
    ["use", time, [[id, UsageRecord's fields], ...]]      what has been used; also a sign of life
    ["left", time]                         ends the state of a process that left in good order

Reading is tolerant: fields and kinds that this release does not know are left out and told, missing fields have their
defaults, a line that makes no sense costs what it tells and nothing else. Times on disk are by the wall clock. Pure.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

from l2tpns.policy import Policy
from l2tpns.proto.credentials import Credentials
from l2tpns.proto.ipcp import IpcpRecord
from l2tpns.proto.lcp import LcpRecord
from l2tpns.proto.reliable import ReliableChange, ReliableRecord

SCHEMA = 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TunnelRecord:
    """An established tunnel. The secret is not written: the configuration has it."""

    id: int
    peer_id: int
    peer: tuple[str, int]
    local: str  # our address
    control: ReliableRecord
    host: str = ""
    lac: str = ""
    receive_window: int = 4  # as our SCCRP told it
    opened: float = 0.0
    last_used: float = 0.0


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call that was on its way to be online: nobody can take it up, the LAC is told that it is over."""

    tunnel: int
    id: int
    peer_id: int


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What changes with every packet."""

    in_octets: int = 0
    in_packets: int = 0
    out_octets: int = 0
    out_packets: int = 0
    idle_rx: float = 0.0  # seconds without an IP packet from the subscriber, and to it
    idle_tx: float = 0.0
    ns: int = 0  # of the next data message, where they are numbered
    told_in: int = 0  # octets that usage files have told of
    told_out: int = 0


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session that is online. `credentials` hold a secret only where RADIUS is to be asked again with it."""

    id: int
    tunnel: int
    peer_id: int
    user: str
    acct_session_id: str
    address: IPv4Address
    credentials: Credentials
    lcp: LcpRecord
    ipcp: IpcpRecord
    opened: float
    online_since: float
    time_from: float
    profile: Any = field(default_factory=dict)  # an AuthReply, whose type is declared above us, or the JSON of one
    answer_identifier: int = 0  # of the PAP or CHAP answer, which may be asked for again
    answer_message: bytes = b""
    next_interim: float = 0.0
    next_challenge: float = 0.0
    called: str = ""
    calling: str = ""
    call_serial: int = 0
    tx_speed: int = 0
    rx_speed: int = 0
    sequenced: bool = False
    filter_in: str = ""
    filter_out: str = ""
    policy: Policy = field(default_factory=Policy)
    usage: UsageRecord = UsageRecord()


USAGE_FIELDS = tuple(f.name for f in dataclasses.fields(UsageRecord))


# To and from JSON


def default(value: Any) -> Any:
    """For orjson: what JSON does not have. Octets as latin-1, which loses none of them."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, (IPv4Address, IPv4Network)):
        return str(value)
    raise TypeError(type(value).__name__)


def decode(cls: type[T], data: Any, unknown: set[str]) -> T:
    """A dataclass from the JSON of one. The names of fields that we do not have are added to `unknown`.

    ValueError names what is missing or of a wrong type.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{cls.__name__} is no object")
    values = {}
    fields = _fields(typing.cast(Hashable, cls))
    for name, value in data.items():
        convert = fields.get(name)
        if convert is None:
            unknown.add(f"{cls.__name__}.{name}")
            continue
        try:
            values[name] = convert(value, unknown)
        except ValueError as error:
            raise ValueError(f"{cls.__name__}.{name}: {error}") from None
    try:
        return cls(**values)
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"{cls.__name__}: {str(error).partition(' ')[2]}") from None


Convert = Callable[[Any, set[str]], Any]


@cache
def _fields(cls: Any) -> dict[str, Convert]:
    hints = typing.get_type_hints(cls)
    return {f.name: _converter(hints[f.name]) for f in dataclasses.fields(cls)}


def _converter(hint: Any) -> Convert:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = _converter(next(a for a in arguments if a is not types.NoneType))
        return lambda value, unknown: None if value is None else inner(value, unknown)
    if origin is tuple and arguments[-1] is Ellipsis:
        item = _converter(arguments[0])
        return lambda value, unknown: tuple(item(one, unknown) for one in _list(value))
    if origin is tuple:
        items = tuple(map(_converter, arguments))
        return lambda value, unknown: tuple(
            convert(one, unknown) for convert, one in zip(items, _list(value), strict=True)
        )
    if hint is Any:
        return lambda value, unknown: value
    if hint is float:
        return lambda value, unknown: float(_of(value, (int, float)))
    if hint is bytes:
        return lambda value, unknown: _of(value, str).encode("latin-1")
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return lambda value, unknown: decode(hint, value, unknown)
    if issubclass(hint, Enum):
        octets = isinstance(next(iter(hint)).value, bytes)
        return lambda value, unknown: hint(_of(value, str).encode("latin-1") if octets else value)
    if issubclass(hint, (IPv4Address, IPv4Network)):
        return lambda value, unknown: hint(_of(value, str))
    return _plain(hint)


def _plain(kind: type) -> Convert:
    return lambda value, unknown: _of(value, kind)


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{value!r} is of a wrong type")
    return value


def _list(value: Any) -> list[Any]:
    found: list[Any] = _of(value, list)
    return found


# Lines


class Replay:
    """Reads lines in the order in which they were written; `finish` makes records of what is left."""

    def __init__(self) -> None:
        self.tunnels: dict[int, TunnelRecord] = {}
        self.sessions: dict[int, SessionRecord] = {}
        self.calls: dict[int, CallRecord] = {}
        self.time = 0.0  # of the last sign of life
        self.clean = False  # left in good order: the numbers are the last ones
        self.schemas: set[int] = set()
        self.unknown: set[str] = set()  # fields and kinds that we do not know
        self.refused: list[str] = []  # why something could not be read
        self._raw: dict[int, dict[str, Any]] = {}
        self._usage: dict[int, list[Any]] = {}

    @property
    def empty(self) -> bool:
        return not (self.tunnels or self.sessions or self.calls)

    def feed(self, fields: list[Any]) -> None:
        """One line. Whatever it holds, nothing is raised."""
        try:
            kind, *rest = fields
            reader = self.READERS.get(kind)
            if reader is None:
                self.unknown.add(f"line {str(kind)[:20]!r}")
                return
            self.clean = kind == "left"
            reader(self, *rest)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.refused.append(f"{str(fields[:1])[:40]}: {error}")

    def head(self, schema: int, version: str, time: float, *_: Any) -> None:
        self.schemas.add(_of(schema, int))
        self.time = max(self.time, float(time))

    def tunnel(self, data: dict[str, Any], *_: Any) -> None:
        record = decode(TunnelRecord, data, self.unknown)
        self.tunnels[record.id] = record

    def control(self, number: int, ns: int, nr: int, sent: int, queued: list[Any], *_: Any) -> None:
        record = self.tunnels[number]
        added = tuple((_of(session, int), _of(body, str).encode("latin-1")) for session, body in queued)
        change = ReliableChange(_of(ns, int), _of(nr, int), _of(sent, int), added)
        self.tunnels[number] = dataclasses.replace(record, control=record.control.after(change))

    def tunnel_gone(self, number: int, *_: Any) -> None:
        self.tunnels.pop(number, None)

    def call(self, tunnel: int, number: int, peer_id: int, *_: Any) -> None:
        self._forget(number)
        self.calls[number] = CallRecord(_of(tunnel, int), _of(number, int), _of(peer_id, int))

    def session(self, data: dict[str, Any], *_: Any) -> None:
        number = _of(data["id"], int)
        self._forget(number)
        self._raw[number] = data

    def session_gone(self, number: int, *_: Any) -> None:
        self._forget(number)

    def used(self, time: float, rows: list[list[Any]], *_: Any) -> None:
        self.time = max(self.time, float(time))
        for number, *values in rows:
            self._usage[number] = values

    def left(self, time: float, *_: Any) -> None:
        self.time = max(self.time, float(time))

    def _forget(self, number: int) -> None:
        self.calls.pop(number, None)
        self._raw.pop(number, None)
        self._usage.pop(number, None)

    def finish(self) -> None:
        for number, data in self._raw.items():
            try:
                values = self._usage.get(number)
                if values is not None:
                    data["usage"] = dict(zip(USAGE_FIELDS, values, strict=False))
                self.sessions[number] = decode(SessionRecord, data, self.unknown)
            except (ValueError, TypeError) as error:
                self.refused.append(f"session {number}: {error}")
                self._keep_as_call(number, data)
        self._raw.clear()
        self._usage.clear()

    def _keep_as_call(self, number: int, data: dict[str, Any]) -> None:
        """It cannot be taken up, but its LAC can be told."""
        tunnel, peer_id = data.get("tunnel"), data.get("peer_id")
        if isinstance(tunnel, int) and isinstance(peer_id, int):
            self.calls[number] = CallRecord(tunnel, number, peer_id)

    READERS: typing.ClassVar[dict[str, Callable[..., None]]] = {
        "head": head,
        "tun": tunnel,
        "tun-": tunnel_gone,
        "ctl": control,
        "call": call,
        "ses": session,
        "ses-": session_gone,
        "use": used,
        "left": left,
    }


def replay(lines: Iterable[list[Any]]) -> Replay:
    """What these lines leave."""
    found = Replay()
    for fields in lines:
        found.feed(fields)
    found.finish()
    return found
