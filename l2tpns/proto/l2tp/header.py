"""The L2TP header of control and data messages (RFC 2661 section 3.1).

Parsing is lenient where the RFC asks for it (reserved bits, octets past Length) and strict otherwise: a malformed
header is a WireError, to be counted and dropped (section 7.1). reliable.py interprets the sequence numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from l2tpns.errors import WireError

PORT = 1701  # 8.1: UDP
T_BIT = 0x8000  # control message
L_BIT = 0x4000  # Length present
S_BIT = 0x0800  # Ns and Nr present
O_BIT = 0x0200  # Offset Size present
P_BIT = 0x0100  # priority: data only
VERSION_MASK = 0x000F
VERSION = 2
L2F_VERSION = 1  # 8.1: L2F shares the port and is silently discarded
MAX_LENGTH = 0xFFFF

CONTROL_FLAGS = T_BIT | L_BIT | S_BIT | VERSION
CONTROL_MASK = T_BIT | L_BIT | S_BIT | O_BIT | P_BIT | VERSION_MASK  # all but the reserved bits
PLAIN_DATA_MASK = T_BIT | L_BIT | S_BIT | O_BIT | VERSION_MASK

U16 = Struct("!H")
PLAIN_DATA = Struct("!HHH")  # flags, tunnel id, session id
SEQUENCED_DATA = Struct("!HHHHH")  # flags, tunnel id, session id, Ns, Nr
CONTROL = Struct("!HHHHHH")  # flags, length, tunnel id, session id, Ns, Nr


@dataclass(frozen=True, slots=True)
class ControlHeader:
    """A control message: its header, and its AVPs as octets. An empty body is a ZLB, which only acknowledges (5.8)."""

    tunnel_id: int
    session_id: int
    ns: int
    nr: int
    body: bytes


@dataclass(frozen=True, slots=True)
class DataHeader:
    """A data message: `ns` is None if it carries no sequence number; the payload is a PPP frame."""

    tunnel_id: int
    session_id: int
    ns: int | None
    payload: bytes


def is_control(datagram: bytes) -> bool:
    """Return True if the T bit is set. An empty datagram is not a control message."""
    return bool(datagram) and datagram[0] >= 0x80


def parse_control(datagram: bytes) -> ControlHeader:
    """Parse the header of a control message. Raises WireError if it is malformed."""
    size = len(datagram)
    if size < CONTROL.size:
        raise WireError(f"control message of {size} octets")
    flags, length, tunnel_id, session_id, ns, nr = CONTROL.unpack_from(datagram)
    if flags & CONTROL_MASK != CONTROL_FLAGS:
        raise WireError(_what_is_wrong(flags))
    if not CONTROL.size <= length <= size:
        raise WireError(f"Length {length} in a control message of {size} octets")
    return ControlHeader(tunnel_id, session_id, ns, nr, datagram[CONTROL.size : length])


def _what_is_wrong(flags: int) -> str:
    version = flags & VERSION_MASK
    if version != VERSION:
        return "L2F packet" if version == L2F_VERSION else f"header version {version}"
    return f"header flags 0x{flags:04x}"


def build_control(tunnel_id: int, session_id: int, ns: int, nr: int, body: bytes = b"") -> bytes:
    """Return a control message as octets; a ZLB if the body is empty. Raises WireError if it is too long."""
    length = CONTROL.size + len(body)
    if length > MAX_LENGTH:
        raise WireError(f"control message of {length} octets cannot be sent")
    return CONTROL.pack(CONTROL_FLAGS, length, tunnel_id, session_id, ns, nr) + body


def parse_data(datagram: bytes) -> DataHeader:
    """Parse a data message with any mix of the L, S, O and P bits. Raises WireError if it is malformed."""
    size = len(datagram)
    if size < PLAIN_DATA.size:
        raise WireError(f"data message of {size} octets")
    flags, tunnel_id, session_id = PLAIN_DATA.unpack_from(datagram)
    if flags & PLAIN_DATA_MASK == VERSION:
        return DataHeader(tunnel_id, session_id, None, datagram[PLAIN_DATA.size :])
    if flags & VERSION_MASK != VERSION or flags & T_BIT:
        raise WireError(_what_is_wrong(flags))
    end = size
    at = 2
    if flags & L_BIT:
        end = tunnel_id  # the first field is Length
        if end > size:
            raise WireError(f"Length {end} in a data message of {size} octets")
        at = 4
    header = at + 4 + (4 if flags & S_BIT else 0) + (2 if flags & O_BIT else 0)
    if header > end:
        raise WireError(f"data message of {end} octets with a header of {header}")
    tunnel_id, session_id = U16.unpack_from(datagram, at)[0], U16.unpack_from(datagram, at + 2)[0]
    ns: int | None = U16.unpack_from(datagram, at + 4)[0] if flags & S_BIT else None  # Nr is ignored in data
    if flags & O_BIT:
        header += U16.unpack_from(datagram, header - 2)[0]
        if header > end:
            raise WireError(f"offset to octet {header} in a data message of {end} octets")
    return DataHeader(tunnel_id, session_id, ns, datagram[header:end])


def data_header(tunnel_id: int, session_id: int, ns: int | None = None, nr: int = 0) -> bytes:
    """Return the header that precedes a PPP frame: six octets, ten with Ns and Nr; no Length, no Offset Size."""
    if ns is None:
        return PLAIN_DATA.pack(VERSION, tunnel_id, session_id)
    return SEQUENCED_DATA.pack(VERSION | S_BIT, tunnel_id, session_id, ns & 0xFFFF, nr)
