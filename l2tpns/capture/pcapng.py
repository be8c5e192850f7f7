"""Files of captured packets in the format pcapng (draft-ietf-opsawg-pcapng), which tshark and Wireshark open.

Each interface of the file is a session. `epb_flags` of a packet has its direction: inbound is from the subscriber to
the server.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

LINKTYPE_RAW = 101  # the packet begins with its IP header
INBOUND, OUTBOUND = 1, 2

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_ORDER = 0x1A2B3C4D
_END_OF_OPTIONS = b"\0\0\0\0"
_COMMENT = 1
_APPLICATION = 4  # shb_userappl
_NAME, _DESCRIPTION, _RESOLUTION = 2, 3, 9  # if_name, if_description, if_tsresol
_FLAGS = 2  # epb_flags
_NANOSECONDS = b"\x09"


class Writer:
    """Writes one section block by block, so that the file can be read at any time."""

    def __init__(self, file: BinaryIO, application: str) -> None:
        self._file = file
        self._interfaces = 0
        body = struct.pack("=IHHq", _ORDER, 1, 0, -1) + _option(_APPLICATION, application.encode()) + _END_OF_OPTIONS
        self._block(_SECTION, body)

    def interface(self, name: str, description: str = "") -> int:
        """Add an interface. Return its number."""
        options = _option(_NAME, name.encode("utf-8", "backslashreplace"))
        if description:
            options += _option(_DESCRIPTION, description.encode("utf-8", "backslashreplace"))
        options += _option(_RESOLUTION, _NANOSECONDS) + _END_OF_OPTIONS
        self._block(_INTERFACE, struct.pack("=HHI", LINKTYPE_RAW, 0, 0) + options)
        self._interfaces += 1
        return self._interfaces - 1

    def packet(self, interface: int, time: int, packet: bytes, direction: int = 0, comment: str = "") -> None:
        """Add a packet; `time` in nanoseconds since 1970."""
        length = len(packet)
        body = struct.pack("=IIIII", interface, time >> 32 & 0xFFFFFFFF, time & 0xFFFFFFFF, length, length)
        body += _padded(packet)
        options = _option(_COMMENT, comment.encode()) if comment else b""
        if direction:
            options += _option(_FLAGS, struct.pack("=I", direction))
        self._block(_PACKET, body + options + _END_OF_OPTIONS if options else body)

    def _block(self, kind: int, body: bytes) -> None:
        length = struct.pack("=I", len(body) + 12)
        self._file.write(struct.pack("=I", kind) + length + body + length)


def _option(code: int, value: bytes) -> bytes:
    value = value[:0xFFFF]
    return struct.pack("=HH", code, len(value)) + _padded(value)


def _padded(octets: bytes) -> bytes:
    return octets + bytes(-len(octets) % 4)
