"""Describe what a PPP client requests, and encode options of its protocols (RFC 1661, 1332, 1877); see pppclient.py."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

LCP, PAP, CHAP, IPCP, IP = 0xC021, 0xC023, 0xC223, 0x8021, 0x0021

CONF_REQ, CONF_ACK, CONF_NAK, CONF_REJ, TERM_REQ, TERM_ACK, CODE_REJ, PROTO_REJ, ECHO_REQ, ECHO_REP, DISCARD = range(
    1, 12
)
IDENTIFICATION, TIME_REMAINING = 12, 13

MRU, ACCM, AUTH, MAGIC, PFC, ACFC = 1, 2, 3, 5, 7, 8
ADDRESS, DNS1, DNS2 = 3, 129, 131

AUTH_PAP = b"\xc0\x23"
AUTH_CHAP = b"\xc2\x23\x05"
AUTH_MSCHAP, AUTH_MSCHAPV2 = b"\xc2\x23\x80", b"\xc2\x23\x81"

HEAD = struct.Struct("!BBH")
IPCP_WITH_DNS = bytes.fromhex("0306 00000000 8106 00000000 8306 00000000")
IPCP_PLAIN = bytes.fromhex("0306 00000000")


class Phase(IntEnum):
    """Name the phases of a call. The first and the last belong to L2TP, the others are those of RFC 1661 3.2."""

    IDLE = 0
    DIALLING = 1
    LINK = 2
    AUTHENTICATE = 3
    NETWORK = 4
    ONLINE = 5
    TERMINATING = 6
    TERMINATED = 7
    ENDED = 8


@dataclass(frozen=True, slots=True)
class Wishes:
    """Hold what this client requests and accepts. `auth` is "any", a name of AUTH_OF or "none" (rejects the option)."""

    auth: str = "any"
    mru: int | None = None
    magic: bool = True
    pfc: bool = False
    acfc: bool = False
    accm: bool = False
    address: IPv4Address | None = None
    dns: bool = True
    restart: float = 3.0
    max_configure: int = 10
    speaks_first: bool = True  # False: send no Configure-Request before the peer's came

    def lcp_options(self, magic: bytes) -> bytes:
        """Return the options of the first Configure-Request, in the order of their types."""
        options = b""
        if self.mru is not None:
            options += b"\x01\x04" + self.mru.to_bytes(2, "big")
        if self.accm:
            options += b"\x02\x06\x00\x00\x00\x00"
        if self.magic:
            options += b"\x05\x06" + magic
        if self.pfc:
            options += b"\x07\x02"
        if self.acfc:
            options += b"\x08\x02"
        return options

    def ipcp_options(self) -> bytes:
        """Return the address option and, if wanted, both DNS servers."""
        if self.address is None:
            return IPCP_WITH_DNS if self.dns else IPCP_PLAIN
        return b"\x03\x06" + self.address.packed + (IPCP_WITH_DNS[6:] if self.dns else b"")


AUTH_OF = {"pap": AUTH_PAP, "chap": AUTH_CHAP, "mschap": AUTH_MSCHAP, "mschapv2": AUTH_MSCHAPV2}
LCP_LENGTHS = {MRU: 2, ACCM: 4, MAGIC: 4, PFC: 0, ACFC: 0}


def parse_options(data: bytes) -> list[tuple[int, bytes]] | None:
    """Return the options of a Configure packet, None if they are malformed."""
    options = []
    position, end = 0, len(data)
    while position < end:
        if position + 2 > end or not 2 <= data[position + 1] <= end - position:
            return None
        length = data[position + 1]
        options.append((data[position], data[position + 2 : position + length]))
        position += length
    return options


def option(kind: int, value: bytes) -> bytes:
    return bytes((kind, 2 + len(value))) + value


def changed(asked: bytes, code: int, data: bytes, allow: tuple[int, ...]) -> bytes | None:
    """Return the request after a Nak (values replaced, those in `allow` also added) or a Reject (options removed)."""
    answer = parse_options(data)
    ours = parse_options(asked)
    if answer is None or ours is None:
        return None
    kinds = [kind for kind, _ in ours]
    if code == CONF_REJ:
        if any(pair not in ours for pair in answer):
            return None
        return b"".join(option(kind, value) for kind, value in ours if (kind, value) not in answer)
    values = dict(answer)
    result = b"".join(option(kind, values.get(kind, value)) for kind, value in ours)
    added = [(kind, value) for kind, value in answer if kind not in kinds and kind in allow]
    return result + b"".join(option(kind, value) for kind, value in added)
