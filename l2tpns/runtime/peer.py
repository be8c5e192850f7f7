"""The address of the other end of a socket."""

from __future__ import annotations

Peer = tuple[str, int]  # IPv4 address and UDP or TCP port
