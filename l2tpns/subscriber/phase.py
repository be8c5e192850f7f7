"""The phases of a session, in their order (RFC 2661 7.4.2, RFC 1661 3.2): docs/architecture.md has the whole table."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """The value is what the log, `show history` and the saved state's reader see."""

    CALL = "call"  # ICRQ was answered, the ICCN has not come
    LCP = "lcp"
    AUTHENTICATE = "authenticate"
    NETWORK = "network"  # an NCP negotiates an address
    ONLINE = "online"
