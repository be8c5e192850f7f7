"""The format of the saved state: records of tunnels and sessions, and the lines that carry them.

A line is a list that begins with its kind. A later line overrides an earlier one:

    ["head", schema, version, time, since boot, boot]     begins each file
    ["tun", TunnelRecord]                  a tunnel as it is now         ["tun-", id]   it has ended
    ["ctl", id, ns, nr, sent, [[session, octets], ...]]   its sequence numbers, and messages queued since the last
    ["call", tunnel, id, peer's id]        a call that is not online     ["ses-", id]   call or session has ended
    ["ses", SessionRecord]                 a session as it is now
    ["use", time, [[id, UsageRecord's fields], ...], since boot]   usage; also shows that the process is alive
    ["left", time, since boot]             ends the state of a process that exited cleanly

Reading is tolerant: unknown fields and kinds are skipped and reported, missing fields have their defaults, and a line
that cannot be read affects no other line. runtime/record_limits.py has the limits of each field. Times are by the wall
clock as it was set when the line was written. `written` in a record gives that moment also by a clock that cannot be
set (runtime/clock.py); schema 1 had the wall clock only. Pure.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

import orjson

from l2tpns.policy.model import Policy
from l2tpns.proto.l2tp.reliable import ReliableChange, ReliableRecord
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.ipcp import IpcpRecord
from l2tpns.proto.ppp.lcp import LcpRecord
from l2tpns.radius.types import AuthReply
from l2tpns.runtime.clock import NEVER, Moment
from l2tpns.runtime.record_limits import (
    ALL_16,
    ALL_63,
    COUNT,
    DEFAULTS,
    ID,
    LIMITS,
    MAX_IDLE,
    WHEN,
    WORD,
    Limit,
    Range,
)

SCHEMA = 2  # 1: without `written`, `since boot`, `boot`

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
    receive_window: int = 4  # as in our SCCRP
    opened: float = 0.0
    last_used: float = 0.0
    written: Moment = NEVER


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call that was not online yet. It cannot be restored: its LAC gets a CDN."""

    tunnel: int
    id: int
    peer_id: int


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """The counters of a session, which change with every packet."""

    in_octets: int = 0
    in_packets: int = 0
    out_octets: int = 0
    out_packets: int = 0
    idle_rx: float = 0.0  # seconds without an IP packet from the subscriber, and to it
    idle_tx: float = 0.0
    ns: int = 0  # of the next data message, if they are numbered
    told_in: int = 0  # octets that usage files contain
    told_out: int = 0
    # Of these, what the fast path had counted then: it goes on counting while there is no process.
    fast_in_octets: int = 0
    fast_in_packets: int = 0
    fast_out_octets: int = 0
    fast_out_packets: int = 0


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session that is online. `credentials` hold a secret only if it is sent to RADIUS again."""

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
    profile: Any = field(default_factory=dict)  # an AuthReply; empty if the release that wrote it had none
    answer_identifier: int = 0  # of the PAP or CHAP reply, which may have to be sent again
    answer_message: bytes = b""
    next_interim: float = 0.0
    next_challenge: float = 0.0
    called: str = ""
    calling: str = ""
    call_serial: int = 0
    tx_speed: int = 0
    rx_speed: int = 0
    sequenced: bool = False
    extra: int = 0  # octets of options in the headers of the LAC's data messages
    filter_in: str = ""
    filter_out: str = ""
    policy: Policy = field(default_factory=Policy)
    usage: UsageRecord = UsageRecord()
    accounted: bool = False  # its accounting Start was in the spool, on disk
    written: Moment = NEVER


SECRETS = ("password", "challenge", "response")  # fields whose value no error message contains
USAGE_FIELDS = tuple(f.name for f in dataclasses.fields(UsageRecord))
_IDLE_FIELDS = ("idle_rx", "idle_tx")
# JSON has a number of whole seconds as an int or as a float.
_USAGE_TYPES = set(itertools.product(*((int, float) if name in _IDLE_FIELDS else (int,) for name in USAGE_FIELDS)))


# To and from JSON


def default(value: Any) -> Any:
    """Convert a value that JSON does not have, for orjson. Octets become latin-1, which loses none of them."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, (IPv4Address, IPv4Network)):
        return str(value)
    raise TypeError(type(value).__name__)


def decode(cls: type[T], data: Any, unknown: set[str]) -> T:
    """Return a dataclass from its JSON. The names of unknown fields are added to `unknown`.

    Raises ValueError, which names the field that is missing or of a wrong type.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{cls.__name__} is not an object")
    values: dict[str, Any] = {}
    fields = _fields(typing.cast(Hashable, cls))
    for name, value in typing.cast(dict[str, Any], data).items():
        known = fields.get(name)
        if known is None:
            unknown.add(f"{cls.__name__}.{name}")
            continue
        kind, least, most, convert, limit = known
        if type(value) is kind and least <= (len(value) if kind is str else value) <= most:
            values[name] = value  # nearly all of them
            continue
        try:
            values[name] = found = convert(value, unknown)
            limit = limit or DEFAULTS.get(type(found))
            if limit is not None and not limit(found):
                raise ValueError(f"{str(found)[:60]} is out of range")
        except ValueError as error:
            why = "its value cannot be used" if name in SECRETS else str(error)
            raise ValueError(f"{cls.__name__}.{name}: {why}") from None
    try:
        return cls(**values)
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"{cls.__name__}: {str(error).partition(' ')[2]}") from None


_known: dict[tuple[type, bytes], Any] = {}
MAX_KNOWN = 1024


def _shared(cls: type[T], data: Any, unknown: set[str]) -> T:
    """Return what `decode` returns, the same object for equal data: thousands of sessions have the same profile."""
    key = cls, orjson.dumps(data)
    found = _known.get(key)
    if found is None:
        names = set[str]()
        found = decode(cls, data, names)
        unknown |= names
        if not names and len(_known) < MAX_KNOWN:
            _known[key] = found
    return typing.cast(T, found)


Convert = Callable[[Any, set[str]], Any]


@cache
def _fields(cls: Any) -> dict[str, tuple[Any, float, float, Convert, Limit | None]]:
    """Return for each field what JSON has if it needs no conversion, its range, the conversion and the limit."""
    hints, found = typing.get_type_hints(cls), dict[str, Any]()
    for name in (each.name for each in dataclasses.fields(cls)):
        limit = LIMITS.get(f"{cls.__name__}.{name}")
        bounds = limit or DEFAULTS.get(hints[name])
        simple = hints[name] in (int, float, str, bool)
        if hints[name] is bool and bounds is None:
            bounds = Range(0, 1)
        found[name] = (
            hints[name] if simple and isinstance(bounds, Range) else None,
            bounds.low if isinstance(bounds, Range) else 0,
            bounds.high if isinstance(bounds, Range) else 0,
            _converter(hints[name]),
            limit,
        )
    return found


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
        return lambda value, unknown: _octets(value)
    if hint is Policy:
        return lambda value, unknown: _shared(hint, value, unknown)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return lambda value, unknown: value if isinstance(value, hint) else decode(hint, value, unknown)
    if issubclass(hint, Enum):
        octets = isinstance(next(iter(hint)).value, bytes)
        return lambda value, unknown: hint(_of(value, str).encode("latin-1") if octets else value)
    if issubclass(hint, (IPv4Address, IPv4Network)):
        return lambda value, unknown: _address(hint, _of(value, str))
    return _plain(hint)


@lru_cache(maxsize=1024)
def _address(kind: type, text: str) -> Any:
    return kind(text)  # a session has its own twice, and ours is in all of them


def _plain(kind: type) -> Convert:
    return lambda value, unknown: _of(value, kind)


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{str(value)[:60]!r} is of a wrong type")
    return value


def _octets(value: Any) -> bytes:
    return bytes(_of(value, str).encode("latin-1"))


def _within(limit: Limit, value: Any, kind: Any = int) -> Any:
    if not limit(_of(value, kind)):
        raise ValueError(f"{str(value)[:60]} is out of range")
    return value


def _list(value: Any) -> list[Any]:
    found: list[Any] = _of(value, list)
    return found


# Lines


def _consistent(control: ReliableRecord) -> None:
    if control.sent > len(control.pending):
        raise ValueError(f"ReliableRecord.sent: {control.sent} of {len(control.pending)} messages cannot be sent")


def _usage_row(values: list[Any]) -> list[Any]:
    """Check the fields of a UsageRecord, in order. Faster than `decode`: a file has hundreds of thousands."""
    if tuple(map(type, values)) in _USAGE_TYPES and min(values) >= 0:
        _, _, _, _, idle_rx, idle_tx, ns, *_ = values
        if max(values) <= ALL_63 and idle_rx <= MAX_IDLE and idle_tx <= MAX_IDLE and ns <= ALL_16:
            return values
    for name, value in zip(USAGE_FIELDS, values, strict=False):
        largest = WORD if name == "ns" else COUNT
        if name in _IDLE_FIELDS:
            if type(value) not in (int, float) or not 0 <= value <= MAX_IDLE:
                raise ValueError(f"{name}: {str(value)[:60]} is out of range")
        elif type(value) is not int or not largest(value):
            raise ValueError(f"{name}: {str(value)[:60]} is out of range")
    return values


class Replay:
    """Reads lines in the order in which they were written. `finish` makes the records."""

    def __init__(self) -> None:
        self.tunnels: dict[int, TunnelRecord] = {}
        self.sessions: dict[int, SessionRecord] = {}
        self.calls: dict[int, CallRecord] = {}
        self.last = NEVER  # when the process was last known to be alive
        self.clean = False  # the process exited cleanly: the sequence numbers are the last ones
        self.schemas: set[int] = set()
        self.unknown: set[str] = set()  # fields and kinds of lines
        self.refused: list[str] = []  # why something could not be read
        self._boot = ""  # of the generation that is being read
        self._controls: dict[int, ReliableRecord] = {}  # of the tunnels, as they are now
        self._raw: dict[int, dict[str, Any]] = {}
        self._usage: dict[int, list[Any]] = {}
        self._holders: dict[tuple[str, Any], int] = {}  # session ids by what must be unique

    @property
    def time(self) -> float:
        """Return when the process was last known to be alive, by the wall clock."""
        return self.last.wall

    @property
    def empty(self) -> bool:
        """Return True if there is nothing to restore."""
        return not (self.tunnels or self.sessions or self.calls)

    def feed(self, fields: list[Any]) -> None:
        """Read one line. Does not raise: what cannot be read is added to `refused`."""
        try:
            kind, *rest = fields
            reader = self.READERS.get(kind)
            if reader is None:
                self.unknown.add(f"line {str(kind)[:20]!r}")
                return
            self.clean = kind == "left"
            reader(self, *rest)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            self.refused.append(f"{str(fields[:1])[:40]}: {error}")

    def head(self, schema: int, version: str, time: float, since_boot: float = 0.0, boot: str = "", *_: Any) -> None:
        self.schemas.add(_of(schema, int))
        self._boot = _of(boot, str)
        self._alive_at(time, since_boot)

    def _alive_at(self, time: float, since_boot: float) -> None:
        wall = float(_within(WHEN, time, (int, float)))
        monotonic = float(_within(WHEN, since_boot, (int, float)))
        self.last = Moment(wall, monotonic, self._boot if monotonic else "")

    def tunnel(self, data: dict[str, Any], *_: Any) -> None:
        record = decode(TunnelRecord, data, self.unknown)
        _consistent(record.control)
        self.tunnels[record.id] = record
        self._controls[record.id] = record.control

    def control(self, number: int, ns: int, nr: int, sent: int, queued: list[Any], *_: Any) -> None:
        added = tuple((session, _octets(body)) for session, body in queued)
        if not (type(ns) is type(nr) is type(sent) is int and WORD(ns) and WORD(nr) and WORD(sent)):
            raise ValueError(f"{str([ns, nr, sent])[:60]} are no sequence numbers")
        if added:
            _within(LIMITS["ReliableRecord.pending"], added, tuple)
        control = self._controls[number].after(ReliableChange(ns, nr, sent, added))
        _consistent(control)
        self._controls[number] = control

    def tunnel_gone(self, number: int, *_: Any) -> None:
        self.tunnels.pop(number, None)
        self._controls.pop(number, None)

    def call(self, tunnel: int, number: int, peer_id: int, *_: Any) -> None:
        call = CallRecord(_within(ID, tunnel), _within(ID, number), _within(ID, peer_id))
        self._forget(number)
        self.calls[number] = call

    def session(self, data: dict[str, Any], *_: Any) -> None:
        number = _within(ID, data["id"])
        self._forget(number)
        self._raw[number] = data

    def session_gone(self, number: int, *_: Any) -> None:
        self._forget(number)

    def used(self, time: float, rows: list[list[Any]], since_boot: float = 0.0, *_: Any) -> None:
        self._alive_at(time, since_boot)
        for row in rows:
            try:
                number, *values = row
                self._usage[_within(ID, number)] = _usage_row(values)
            except (ValueError, TypeError) as error:
                self.refused.append(f"usage {str(row)[:40]}: {error}")

    def left(self, time: float, since_boot: float = 0.0, *_: Any) -> None:
        self._alive_at(time, since_boot)

    def _forget(self, number: int) -> None:
        self.calls.pop(number, None)
        self._raw.pop(number, None)
        self._usage.pop(number, None)

    def finish(self) -> None:
        """Make the records of the tunnels and sessions that are left."""
        for number, control in self._controls.items():
            self.tunnels[number] = dataclasses.replace(self.tunnels[number], control=control)
        self._controls.clear()
        for number, data in self._raw.items():
            try:
                self._take(number, data)
            except (ValueError, TypeError) as error:
                self.refused.append(f"session {number}: {error}")
                self._keep_as_call(number, data)
        self._raw.clear()
        self._usage.clear()
        self._refuse_older_tunnels()
        # A refused line may have held the last sequence numbers of a tunnel.
        self.clean = self.clean and not self.refused

    def _take(self, number: int, data: dict[str, Any]) -> None:
        """Add the record of one session. Raises ValueError or TypeError if it cannot be restored."""
        values = self._usage.get(number)
        if values is not None:
            data["usage"] = UsageRecord(*values[: len(USAGE_FIELDS)])
        if data.get("profile"):
            try:
                data["profile"] = _shared(AuthReply, data["profile"], self.unknown)
            except ValueError as error:
                raise ValueError(f"SessionRecord.profile: {error}") from None
        record = decode(SessionRecord, data, self.unknown)
        online = (record.written.wall or self.last.wall) - min(record.online_since, record.time_from)
        if online > MAX_IDLE:
            raise ValueError(f"SessionRecord.online_since: {online / 86400:.0f} days before it was written")
        for name, value in (("address", record.address), ("acct_session_id", record.acct_session_id)):
            holder = self._holders.setdefault((name, value), number)
            if holder != number:
                raise ValueError(f"{name} {value} belongs to session {holder}")
        self.sessions[number] = record

    def _refuse_older_tunnels(self) -> None:
        """Refuse the older of two tunnels with one LAC and id: the LAC was restarted, and the older was ending."""
        newest: dict[tuple[tuple[str, int], int], TunnelRecord] = {}
        for record in list(self.tunnels.values()):
            other = newest.setdefault((record.peer, record.peer_id), record)
            if other is record:
                continue
            older, newer = (record, other) if record.opened < other.opened else (other, record)
            newest[record.peer, record.peer_id] = newer
            del self.tunnels[older.id]
            self.refused.append(f"tunnel {older.id}: its LAC has the same id for tunnel {newer.id}, which is newer")

    def _keep_as_call(self, number: int, data: dict[str, Any]) -> None:
        """Keep a session that cannot be restored as a call, so that its LAC gets a CDN."""
        try:
            self.calls[number] = CallRecord(_within(ID, data.get("tunnel")), number, _within(ID, data.get("peer_id")))
        except ValueError:
            pass  # the record does not name the LAC either

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
    """Return what these lines amount to."""
    found = Replay()
    for fields in lines:
        found.feed(fields)
    found.finish()
    return found
