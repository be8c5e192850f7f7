"""What the fields of a saved record may hold: records are read as untrusted input.

A right checksum proves that a line is as it was written, not that it makes sense: another release, a restored backup
or an editor may have written it. A record with a value outside these limits is refused, and the log names it. Without
the check such a value would end the start, or later the session, the accounting or the journal. `LIMITS` has the
fields with a limit of their own, `DEFAULTS` a limit by type for all others. Types are checked before (see records).
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from l2tpns.proto.ppp.credentials import MD5, MS_CHAP_1, MS_CHAP_2
from l2tpns.proto.ppp.frame import Protocol

Limit = Callable[[Any], bool]

ALL_16, ALL_32, ALL_63 = 0xFFFF, 0xFFFFFFFF, (1 << 63) - 1
LAST_SECOND = 253_402_300_799.0  # of the year 9999, the last that datetime can represent
MAX_IDLE = 1e9  # seconds, 31 years: less than from 1970 to now
MAX_BODY = ALL_16 - 12  # octets of AVPs in a control message (RFC 2661 3.1)
MAX_REPLY = 4096  # octets of a RADIUS packet (RFC 2865 3), and so of each value in it
MAX_NAME = 1024  # octets; PAP carries 255, and a plugin may give a longer name
ESCAPED = 4  # characters that one octet may become in a text


@dataclass(frozen=True, slots=True)
class Range:
    """A limit of a number, or of a length: characters of a text, octets, entries of a list."""

    low: float
    high: float

    def __call__(self, value: Any) -> bool:
        size = value if isinstance(value, (int, float)) else len(value)
        return bool(self.low <= size <= self.high)


def between(low: float, high: float) -> Limit:
    return Range(low, high)


def at_most(length: int) -> Limit:
    return Range(0, length)


def each(limit: Limit) -> Limit:
    return lambda values: len(values) <= MAX_REPLY and all(map(limit, values))


def anything(value: object) -> bool:
    return True


def an_address(value: str) -> bool:
    try:
        IPv4Address(value)
    except ValueError:
        return False
    return True


def _peer(value: tuple[str, int]) -> bool:
    return an_address(value[0]) and 0 < value[1] <= ALL_16


def _pending(values: tuple[tuple[int, bytes], ...]) -> bool:
    return len(values) <= ALL_16 and all(0 <= number <= ALL_16 and len(body) <= MAX_BODY for number, body in values)


def _pair(value: tuple[str, str]) -> bool:
    return len(value[0]) + len(value[1]) <= MAX_REPLY * ESCAPED


def _acct_session_id(value: str) -> bool:
    return 0 < len(value) <= 253 and value.isascii() and value.isprintable()  # RFC 2866 5.5


def _garden(value: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]{0,16}", value) is not None


ID = between(1, ALL_16)
OCTET, WORD, LONG = between(0, 0xFF), between(0, ALL_16), between(0, ALL_32)
COUNT = between(0, ALL_63)
WHEN = between(0, LAST_SECOND)
TEXT = at_most(MAX_REPLY * ESCAPED)
OCTETS = at_most(MAX_REPLY)
NAME = at_most(MAX_NAME)


def optional(limit: Limit) -> Limit:
    return lambda value: value is None or limit(value)


ALGORITHMS = (MD5, MS_CHAP_1, MS_CHAP_2)
LIMITS: dict[str, Limit] = {
    "TunnelRecord.id": ID,
    "TunnelRecord.peer_id": ID,
    "TunnelRecord.peer": _peer,
    "TunnelRecord.local": an_address,
    "TunnelRecord.lac": lambda value: not value or an_address(value),
    "TunnelRecord.receive_window": ID,
    "ReliableRecord.peer_tunnel_id": ID,
    "ReliableRecord.peer_window": WORD,
    "ReliableRecord.ns": WORD,
    "ReliableRecord.nr": WORD,
    "ReliableRecord.sent": WORD,
    "ReliableRecord.pending": _pending,
    "UsageRecord.idle_rx": between(0, MAX_IDLE),
    "UsageRecord.idle_tx": between(0, MAX_IDLE),
    "UsageRecord.ns": WORD,
    "SessionRecord.id": ID,
    "SessionRecord.tunnel": ID,
    "SessionRecord.peer_id": ID,
    "SessionRecord.user": at_most(MAX_NAME * ESCAPED),
    "SessionRecord.acct_session_id": _acct_session_id,
    "SessionRecord.answer_identifier": OCTET,
    "SessionRecord.call_serial": LONG,
    "SessionRecord.extra": OCTET,
    "SessionRecord.tx_speed": LONG,
    "SessionRecord.rx_speed": LONG,
    "Credentials.protocol": lambda value: value in (Protocol.PAP, Protocol.CHAP),
    "Credentials.algorithm": lambda value: value in ALGORITHMS,
    "Credentials.name": NAME,
    "Credentials.password": NAME,
    "Credentials.identifier": OCTET,
    "Credentials.challenge": NAME,
    "Credentials.response": NAME,
    "LcpRecord.magic": LONG,
    "LcpRecord.peer_magic": LONG,
    "LcpRecord.our_mru": ID,
    "LcpRecord.peer_mru": ID,
    "LcpRecord.identifier": OCTET,
    "IpcpRecord.identifier": OCTET,
    "Policy.rate_in": LONG,
    "Policy.rate_out": LONG,
    "Policy.garden": _garden,
    "Sink.port": WORD,  # 0: the sink that snoop_host and snoop_port name
    "AuthReply.routes": each(anything),
    "AuthReply.dns": each(anything),
    "AuthReply.rates": each(anything),
    "AuthReply.session_timeout": optional(LONG),
    "AuthReply.idle_timeout": optional(LONG),
    "AuthReply.interim": optional(LONG),
    "AuthReply.classes": each(OCTETS),
    "AuthReply.avpairs": each(_pair),
    "AuthReply.filter_ids": each(TEXT),
    "AuthReply.termination_action": LONG,
    "AuthReply.mtu": optional(LONG),
    "AuthReply.user": NAME,
    "AuthReply.error": LONG,
    "FramedRoute.metric": LONG,
}


DEFAULTS: dict[type, Limit] = {int: COUNT, float: WHEN, str: TEXT, bytes: OCTETS}
