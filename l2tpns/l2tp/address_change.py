"""Find out whether a LAC has moved to another address or port (RFC 2661 8.1; auth_tunnel_change_addr_src).

A NAT on the way, or a new lease, may change the source address of a LAC's datagrams. But a datagram from another
address proves nothing: its tunnel id can be guessed and its source address forged. It only starts a probe:

1. When a control message with fitting Ns and Nr comes from another address, a HELLO is sent to the address in use,
   unless another message to it is unacknowledged already.
2. Any message from the address in use ends the probe: the LAC is still there.
3. When that HELLO or message and its first retransmissions stay unacknowledged, a copy is sent to the new address.
4. When the copy is acknowledged from the new address, the tunnel moves. Until then all else is sent to the old one.

The new address gets no datagram before step 3, and then no more datagrams than have come from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from l2tpns.dataplane.endpoint import Endpoint
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.proto.l2tp.header import ControlHeader
from l2tpns.proto.l2tp.messages import HELLO, Message
from l2tpns.proto.l2tp.reliable import Reliable
from l2tpns.runtime.log import Logger
from l2tpns.runtime.peer import Peer

SILENT_TIMEOUTS = 3  # of the oldest message in a row: 1 + 2 + 4 seconds without a reply from the address in use
MAX_COPIES = 3  # datagrams to the new address


@dataclass(frozen=True, slots=True)
class Foreign:
    """A control message of this tunnel from another address than the LAC's."""

    header: ControlHeader
    peer: Peer


class Movable(Protocol):
    """A tunnel, as far as its move is concerned."""

    log: Logger
    endpoint: Endpoint
    reliable: Reliable

    def send(self, message: Message) -> None:
        """Queue a control message."""

    def move_refusal(self, peer: Peer, now: float) -> bool:
        """Return True if this address must not be probed now; else count a probe."""

    def data_since(self, when: float) -> bool:
        """Return True if a data message has come from the address in use since then, by the tunnel's time."""


class ProbeBudget:
    """Limits how many probes begin in a second: each sends a HELLO to a LAC."""

    def __init__(self, limits: TunnelLimits) -> None:
        self._limits = limits
        self._second = 0
        self._begun = 0

    def take(self, now: float) -> bool:
        """Count a probe. Return False if there were too many in this second."""
        second = int(now)
        if second != self._second:
            self._second, self._begun = second, 0
        self._begun += 1
        return self._begun <= self._limits.probes_per_second


class AddressChange:
    """The probe of one tunnel. Used by the tunnel's greenlet only. Does not yield."""

    __slots__ = (
        "_copies",
        "_next_copy",
        "_not_before",
        "_received",
        "_silent",
        "_started",
        "_timing",
        "_until",
        "candidate",
    )

    def __init__(self, timing: TunnelTiming) -> None:
        self._timing = timing
        self.candidate: Peer | None = None  # where the LAC may be; None: no probe is running
        self._silent: Peer | None = None  # a candidate that did not answer
        self._not_before = 0.0  # for the next probe; of the silent candidate if there is one
        self._started = 0.0
        self._received = 0  # fitting messages from the candidate
        self._copies = 0  # datagrams to it
        self._next_copy = 0.0
        self._until: float | None = None  # when the candidate must have answered

    @property
    def deadline(self) -> float | None:
        """Return when `look` must be called next, None if only after a datagram or a retransmission."""
        if self.candidate is None or self._until is None:
            return None
        return self._next_copy if self._may_copy else self._until

    @property
    def _may_copy(self) -> bool:
        return self._copies < min(self._received, MAX_COPIES)

    def on_foreign(self, tunnel: Movable, foreign: Foreign, now: float) -> bool:
        """Handle a control message from another address. Return True if the tunnel must move to it."""
        if not tunnel.reliable.fits(foreign.header):
            return False  # it fitted when it came
        if self.candidate is None:
            self._begin(tunnel, foreign.peer, now)
        elif foreign.peer == self.candidate:
            self._received += 1
            if self._copies and tunnel.reliable.acknowledges(foreign.header):
                return self._still_silent(tunnel, now)
        return False

    def _begin(self, tunnel: Movable, peer: Peer, now: float) -> None:
        if now < self._not_before and self._silent in (None, peer):
            return
        idle = tunnel.reliable.idle
        if tunnel.move_refusal(peer, now):
            return
        self.candidate, self._started = peer, now
        self._received, self._copies, self._until = 1, 0, None
        tunnel.log.warning_limited("tunnel_move_probed", new_peer=f"{peer[0]}:{peer[1]}")
        if idle:
            tunnel.send(HELLO())

    def on_answer(self, tunnel: Movable, now: float) -> None:
        """End the probe: a control message has come from the address in use."""
        if self.candidate is not None:
            self._refuse(tunnel, now, "the old address answers")

    def _still_silent(self, tunnel: Movable, now: float) -> bool:
        """Return False, and end the probe, if subscribers' packets come from the address in use."""
        if tunnel.data_since(self._started):
            self._refuse(tunnel, now, "data comes from the old address")
            return False
        return True

    def look(self, tunnel: Movable, now: float) -> None:
        """Do what is due: send copies to the candidate, or end the probe. To be called after the retransmissions."""
        if self.candidate is None or tunnel.reliable.silent_timeouts < SILENT_TIMEOUTS:
            return
        if self._until is None:
            self._until, self._next_copy = now + self._timing.probe_answer, now
        if now >= self._until:
            self._refuse(tunnel, now, "the new address does not answer", self.candidate)
        elif self._may_copy and now >= self._next_copy and self._still_silent(tunnel, now):
            datagram = tunnel.reliable.oldest()
            if datagram is not None:
                tunnel.endpoint.send(datagram, self.candidate)
            self._copies += 1
            self._next_copy = now + self._timing.probe_interval

    def _refuse(self, tunnel: Movable, now: float, why: str, silent: Peer | None = None) -> None:
        assert self.candidate is not None
        tunnel.log.warning_limited("tunnel_move_refused", new_peer=f"{self.candidate[0]}:{self.candidate[1]}", why=why)
        self.candidate, self._until = None, None
        self._silent, self._not_before = silent, now + self._timing.probe_pause

    def give_up(self) -> None:
        """End the probe after a pause of this process: a reply from the old address may have been lost."""
        self.candidate, self._until = None, None

    def moved(self) -> None:
        """Reset: the tunnel has moved to the new address."""
        self.candidate, self._until, self._silent, self._not_before = None, None, None, 0.0
