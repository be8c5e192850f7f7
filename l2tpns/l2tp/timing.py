"""Times of a control connection that no setting changes. Tests use shorter ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TunnelTiming:
    """All in seconds. One object for a server."""

    first_retransmission: float = 1.0  # RFC 2661 5.8: then 2, 4, 8 ... seconds
    establish_timeout: float = 31.0  # the SCCCN may take a full retransmission cycle of the LAC's
    closed_linger: float = (
        31.0  # RFC 2661 5.7: repetitions of a StopCCN are acknowledged for a full retransmission cycle
    )
    min_poll: float = 1.0  # between two polls of an established tunnel
    max_poll: float = 60.0
    half_open_grace: float = 0.25  # in which a half-open tunnel may not be evicted
    probe_answer: float = 5.0  # from the first copy to a LAC's new address to its reply
    probe_interval: float = 1.0  # between two such copies
    probe_pause: float = 10.0  # between two probes of a tunnel whose LAC has not moved
