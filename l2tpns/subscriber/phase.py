"""The phases of a session in order (RFC 2661 7.4.2, RFC 1661 3.2). docs/architecture.md has the full table."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """A phase. Its value is shown in the log, in `show history` and in the saved state."""

    CALL = "call"  # ICRP sent, ICCN not yet received
    LCP = "lcp"
    AUTHENTICATE = "authenticate"
    NETWORK = "network"  # an NCP is negotiating an address
    ONLINE = "online"
