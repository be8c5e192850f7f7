"""Whether an interface sends packets whose checksums are left to a network card that it does not have (ethtool(8)).

A veth device hands packets of this machine over as they are: their TCP and UDP checksums are computed nowhere, and
marked so. Inside an L2TP datagram nobody sees the mark.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from _socket import socket as RawSocket

_SIOCETHTOOL = 0x8946  # linux/sockios.h
_GTXCSUM = 0x16  # ETHTOOL_GTXCSUM (linux/ethtool.h)
_VALUE = struct.Struct("=II")  # command, answer
_IFREQ = struct.Struct("16sP16x")


class Offloads:
    """Asks the network namespace that the process is in now."""

    def __init__(self) -> None:
        self._socket = RawSocket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def leaves_checksums(self, name: str) -> bool:
        """Return whether checksums are left to this interface; False if it is gone."""
        value = ctypes.create_string_buffer(_VALUE.pack(_GTXCSUM, 0), _VALUE.size)
        try:
            fcntl.ioctl(self._socket.fileno(), _SIOCETHTOOL, _IFREQ.pack(name.encode(), ctypes.addressof(value)))
        except OSError:
            return False
        return bool(_VALUE.unpack(value.raw)[1])

    def close(self) -> None:
        self._socket.close()
