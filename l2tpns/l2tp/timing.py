"""Times and limits of control connections that no setting changes. Tests hand in smaller ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, thread_time

from l2tpns.runtime.cooperative import SLICE


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
    slice: float = SLICE  # of reading a full mailbox, before other greenlets run
    clock: Callable[[], float] = monotonic
    cpu_clock: Callable[[], float] = thread_time  # of what strangers cost


@dataclass(slots=True)
class TunnelLimits:
    """Limits that protect a server from its LACs and from strangers. One object for a server."""

    max_ids: int = 65_000  # tunnels, and sessions: ids are 16 bits, and one drawn at random must soon be free
    max_lingering: int = 1000  # closed tunnels that still acknowledge; further ones are forgotten at once
    max_unanswered: int = 2000  # messages queued for a LAC; while there are more, its calls are refused
    mailbox: int = 512  # datagrams; the peer retransmits what does not fit
    refusals_per_second: int = 200  # StopCCNs to SCCRQs that are refused before there is a tunnel
    probes_per_second: int = 100  # of all tunnels, whether a LAC has moved: each costs some LAC a HELLO
    stranger_burst: float = 0.2  # seconds of work that are saved up in quiet times: some 500 SCCRQs
