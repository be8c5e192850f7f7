"""Reliable delivery of control messages: Ns, Nr, window, retransmission (RFC 2661 section 5.8, Appendix A).

Knows nothing of message contents, sockets or clocks: a tunnel passes in each received message and the time, and sends
the datagrams that outgoing() returns. HELLO and the wait after a StopCCN are in l2tp/tunnel.py. Times are in seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import chain

from l2tpns.proto.l2tp.header import CONTROL, ControlHeader, build_control

SEQUENCE_MASK = 0xFFFF
HALF = 0x8000  # 5.8: the 32,768 numbers up to the last received one are old, the others are ahead
MAX_WINDOW = HALF - 1  # with more in flight, old and new messages could not be distinguished
MIN_INTERVAL_CAP = 8.0  # 5.8: a cap of the interval must not be less than 8 seconds
MAX_AMPLIFICATION = (
    3  # octets sent per octet received, and datagrams per datagram, while the peer's address may be forged
)
RESYNC_REACH = 1024  # how far the peer's numbers may be ahead of a record that a crash has truncated


@dataclass(frozen=True, slots=True)
class ReliableRecord:
    """The state that a restart restores: `ns` of the first pending message; the first `sent` of them have been sent."""

    peer_tunnel_id: int
    peer_window: int
    ns: int
    nr: int
    sent: int
    pending: tuple[tuple[int, bytes], ...]  # peer's session id, AVPs

    def after(self, change: ReliableChange) -> ReliableRecord:
        """Return the record as it is after the change."""
        pending = (*self.pending, *change.queued)
        acknowledged = (change.ns - self.ns) & SEQUENCE_MASK
        return ReliableRecord(
            self.peer_tunnel_id, self.peer_window, change.ns, change.nr, change.sent, pending[acknowledged:]
        )


@dataclass(frozen=True, slots=True)
class ReliableChange:
    """The difference to an earlier record: the present numbers, and the messages that were added."""

    ns: int
    nr: int
    sent: int
    queued: tuple[tuple[int, bytes], ...]


@dataclass(slots=True)
class Allowance:
    """What may be sent to a peer whose address may be forged: it has not proved yet that it receives."""

    octets: int = 0
    datagrams: int = 0

    def earn(self, octets: int) -> None:
        self.octets += MAX_AMPLIFICATION * octets
        self.datagrams += MAX_AMPLIFICATION

    def covers(self, octets: int) -> bool:
        return octets <= self.octets and self.datagrams > 0

    def spend(self, octets: int) -> None:
        self.octets -= octets
        self.datagrams -= 1


class Reliable:
    """One end of a control connection's transport."""

    def __init__(
        self,
        *,
        peer_window: int = 4,
        receive_window: int = 16,
        retries: int = 5,
        first_interval: float = 1.0,
        max_interval: float = MIN_INTERVAL_CAP,
    ) -> None:
        if max_interval < MIN_INTERVAL_CAP:
            raise ValueError(f"the longest interval between retransmissions must be {MIN_INTERVAL_CAP:g} s or more")
        self.peer_tunnel_id = 0  # 5.3: 0 until the peer's Assigned Tunnel ID is known
        self.ns = 0  # of the next new message
        self.nr = 0  # expected from the peer
        self.dead = False
        self.retransmissions = 0
        self.duplicates = 0
        self.out_of_order = 0
        self.receive_window = receive_window
        self._retries = retries
        self._first_interval = first_interval
        self._max_interval = max_interval
        self._queue: deque[tuple[int, bytes]] = deque()  # not sent yet
        self._unacked: deque[tuple[int, bytes]] = deque()  # sent; the last one has Ns self.ns - 1
        self._flight = 0  # how many of _unacked, from the front, count as in flight
        self._ahead: dict[int, ControlHeader] = {}
        # After a crash, until the peer's numbers are certain: new messages, which wait, and whether a gap before the
        # peer's first message may be due to the truncated record.
        self._held: deque[tuple[int, bytes]] | None = None
        self._gap_is_ours = False
        self._added = 0  # messages ever passed to send(), and how many of them a record or change includes
        self._recorded = 0
        self._recorded_numbers = (0, 0, 0)
        self._ack_owed = False
        self._timeouts = 0  # in a row
        self._timer: float | None = None
        self._now = 0.0
        self._allowance: Allowance | None = None
        self._congestion_window = 1.0  # CWND
        self.peer_window = peer_window

    @property
    def peer_window(self) -> int:
        """The peer's Receive Window Size; 0 is invalid and works as 1. Set it when the AVP is read."""
        return self._peer_window

    @peer_window.setter
    def peer_window(self, size: int) -> None:
        self._peer_window = min(max(size, 1), MAX_WINDOW)
        self._slow_start_threshold = float(self._peer_window)  # SSTHRESH
        self._congestion_window = min(self._congestion_window, self._slow_start_threshold)

    @property
    def unacked(self) -> int:
        """The number of messages that were sent and are not acknowledged."""
        return len(self._unacked)

    @property
    def queue_length(self) -> int:
        """The number of messages that wait for room in the window."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """True if nothing is queued and every message was acknowledged."""
        return not self._queue and not self._unacked and not self._held

    @property
    def silent_timeouts(self) -> int:
        """How many times in a row the oldest message timed out; MAX_WINDOW once no retry is left."""
        return self._timeouts if self._timeouts < self._retries else MAX_WINDOW

    @property
    def cycle(self) -> float:
        """Seconds of a full retransmission cycle, 31 by default: a closed tunnel acknowledges that long (5.7)."""
        return sum(self._interval(timeouts) for timeouts in range(self._retries + 1))

    @property
    def deadline(self) -> float | None:
        """When outgoing() must be called next, None: not at all. A time in the past means at once."""
        if self.dead:
            return None
        if self._ack_owed or self._can_send():
            return self._now
        return self._timer

    @property
    def proven(self) -> bool:
        """True unless the peer's address may be forged."""
        return self._allowance is None

    def await_proof(self) -> None:
        """Send no more than MAX_AMPLIFICATION times what is received, until proved() is called.

        Meanwhile a repeated message is answered by the oldest unacknowledged message, not by a ZLB: a ZLB would stop
        the peer's repeats, which earn the allowance for the next retransmission.
        """
        self._allowance = Allowance()

    def proved(self) -> None:
        """Lift the limit: the peer has sent a value that only a receiver of this end's messages can know."""
        self._allowance = None

    def send(self, session_id: int, body: bytes, now: float) -> None:
        """Queue a message for the peer's session, 0: for the tunnel. outgoing() sends it."""
        self._now = now
        self._added += 1
        (self._queue if self._held is None else self._held).append((session_id, body))

    def receive(self, header: ControlHeader, now: float) -> list[ControlHeader]:
        """Take in a received message. Return the messages that are in sequence now, to be processed in this order."""
        self._now = now
        if self._allowance is not None:
            self._allowance.earn(CONTROL.size + len(header.body))
        self._acknowledged(header.nr, now)
        if not header.body:
            return []  # 5.8: a ZLB does not use up its Ns and is never acknowledged
        self._ack_owed = True
        distance = (header.ns - self.nr) & SEQUENCE_MASK
        if distance >= HALF:
            self.duplicates += 1  # the acknowledgement was lost: it is sent again
            if self._allowance is not None:
                self._flight = 0
            return []
        if distance:
            self.out_of_order += 1
            if not self._gap_is_ours or header.ns not in self._ahead:
                reach = RESYNC_REACH if self._gap_is_ours else self.receive_window
                if distance < reach and len(self._ahead) < self.receive_window:
                    self._ahead.setdefault(header.ns, header)
                return []
            # A peer that repeats this message has nothing older to repeat: everything before it was acknowledged before
            # the crash, and the record does not have it.
            self.nr = min(self._ahead, key=lambda ns: (ns - self.nr) & SEQUENCE_MASK)
            header = self._ahead.pop(self.nr)
        self._gap_is_ours = False
        ready: list[ControlHeader] = []
        following: ControlHeader | None = header
        while following is not None:
            ready.append(following)
            self.nr = (self.nr + 1) & SEQUENCE_MASK
            following = self._ahead.pop(self.nr, None)
        return ready

    def fits(self, header: ControlHeader) -> bool:
        """Return True if the peer may have sent this now, by its Ns and Nr: neither is old or far ahead."""
        reach = RESYNC_REACH if self._gap_is_ours else self.receive_window
        repeats = (header.ns - self.nr + self.receive_window) & SEQUENCE_MASK
        return repeats <= self.receive_window + reach and self._newly_acknowledged(header.nr) is not None

    def acknowledges(self, header: ControlHeader) -> bool:
        """Return True if this acknowledges the oldest message in flight. Changes nothing."""
        return bool(self._newly_acknowledged(header.nr))

    def _newly_acknowledged(self, nr: int) -> int | None:
        """Return how many messages an Nr would acknowledge, None if the peer cannot have sent it now."""
        count = (nr - self.ns + len(self._unacked)) & SEQUENCE_MASK
        beyond = 0 if self._held is None else RESYNC_REACH
        return count if count <= len(self._unacked) + beyond else None

    def oldest(self) -> bytes | None:
        """Return the oldest unacknowledged message as a datagram for another address, None if there is none."""
        if not self._unacked:
            return None
        session_id, body = self._unacked[0]
        ns = (self.ns - len(self._unacked)) & SEQUENCE_MASK
        return build_control(self.peer_tunnel_id, session_id, ns, self.nr, body)

    def _acknowledged(self, nr: int, now: float) -> None:
        """Forget the messages that an Nr acknowledges. An old Nr, or one ahead of what was sent, changes nothing."""
        count = (nr - self.ns + len(self._unacked)) & SEQUENCE_MASK
        if self._held is not None and 0 < count - len(self._unacked) < RESYNC_REACH:
            # The peer has received more than the record has. The pending messages were sent with these numbers.
            for _ in range(min(count - len(self._unacked), len(self._queue))):
                self._unacked.append(self._queue.popleft())
            self.ns = nr
            count = len(self._unacked)
        elif not 0 < count <= len(self._unacked):
            return
        for _ in range(count):
            self._unacked.popleft()
        if self._held is not None and not self._unacked and not self._queue:
            self._queue, self._held = self._held, None
        self._flight = max(0, self._flight - count)
        self._timeouts = 0
        self._timer = now + self._interval(0) if self._unacked else None
        # Appendix A: slow start below SSTHRESH, then one packet more for each full window acknowledged.
        slow_start = self._congestion_window < self._slow_start_threshold
        growth = 1.0 if slow_start else 1.0 / self._congestion_window
        self._congestion_window = min(self._congestion_window + growth, float(self._peer_window))

    def outgoing(self, now: float) -> list[bytes]:
        """Return the datagrams to send now. Sets `dead` if the last retransmission timed out."""
        self._now = now
        if self._timer is not None and now >= self._timer:
            self._time_out(now)
        if self.dead:
            return []
        datagrams: list[bytes] = []
        while self._can_send():
            if self._flight == len(self._unacked):
                self._unacked.append(self._queue.popleft())
                self.ns = (self.ns + 1) & SEQUENCE_MASK
            else:
                self.retransmissions += 1
            session_id, body = self._unacked[self._flight]
            # 5.8: a retransmission keeps its Ns, but carries the present Nr.
            ns = (self.ns - len(self._unacked) + self._flight) & SEQUENCE_MASK
            datagrams.append(self._spend(build_control(self.peer_tunnel_id, session_id, ns, self.nr, body)))
            self._flight += 1
            if self._timer is None:
                self._timer = now + self._interval(0)
        if self._ack_owed and not datagrams and self._may_acknowledge():
            datagrams.append(self._spend(build_control(self.peer_tunnel_id, 0, self.ns, self.nr)))
        self._ack_owed = False
        return datagrams

    def _can_send(self) -> bool:
        waiting = self._flight < len(self._unacked) or self._queue
        return bool(waiting) and self._flight < int(self._congestion_window) and self._can_afford()

    def _can_afford(self) -> bool:
        """Return True if the allowance covers the next message."""
        if self._allowance is None:
            return True
        _, body = self._unacked[self._flight] if self._flight < len(self._unacked) else self._queue[0]
        return self._allowance.covers(CONTROL.size + len(body))

    def _may_acknowledge(self) -> bool:
        allowance = self._allowance
        return allowance is None or (not self._unacked and not self._queue and allowance.covers(CONTROL.size))

    def _spend(self, datagram: bytes) -> bytes:
        if self._allowance is not None:
            self._allowance.spend(len(datagram))
        return datagram

    def _interval(self, timeouts: int) -> float:
        return min(self._first_interval * 2.0**timeouts, max(self._max_interval, self._first_interval))

    def _time_out(self, now: float) -> None:
        self._timeouts += 1
        if self._timeouts > self._retries:
            self.dead = True
            self._timer = None
            return
        # Appendix A: SSTHRESH becomes half of CWND, and slow start begins again with the oldest message.
        self._slow_start_threshold = max(1.0, self._congestion_window / 2)
        self._congestion_window = 1.0
        self._flight = 0
        self._timer = now + self._interval(self._timeouts)

    def ask_again(self) -> None:
        """Allow at least one more retransmission: an answer may have been lost while this process could not read."""
        self._timeouts = min(self._timeouts, max(self._retries - 1, 0))

    def record(self) -> ReliableRecord:
        """Return the state as data, without messages held ahead of sequence: the peer sends those again."""
        ns, nr, sent = self._note_numbers()
        return ReliableRecord(self.peer_tunnel_id, self.peer_window, ns, nr, sent, tuple(self._pending()))

    def change(self) -> ReliableChange | None:
        """Return the difference to the last record() or change(), None if there is none.

        A journal that is written before the datagrams of outgoing() are sent is never behind what the peer has seen.
        """
        before, added = self._recorded_numbers, self._added - self._recorded
        numbers = self._note_numbers()
        if numbers == before and not added:
            return None
        return ReliableChange(*numbers, tuple(self._pending())[-added:] if added else ())

    def _note_numbers(self) -> tuple[int, int, int]:
        sent = len(self._unacked)
        self._recorded = self._added
        self._recorded_numbers = ((self.ns - sent) & SEQUENCE_MASK, self.nr, sent)
        return self._recorded_numbers

    def _pending(self) -> chain[tuple[int, bytes]]:
        return chain(self._unacked, self._queue, self._held or ())

    def restore(self, record: ReliableRecord, now: float, probe: bytes = b"") -> None:
        """Continue from a record: unacknowledged messages are sent again, with the Ns that they had.

        A `probe` (the AVPs of a HELLO) means that the record may be older than what the peer has seen. The probe is
        sent after the pending messages, and new ones wait for its acknowledgement, whose Nr is the Ns that the peer
        expects (5.8).
        """
        self._now = now
        self.peer_tunnel_id = record.peer_tunnel_id
        self.peer_window = record.peer_window
        self.ns = (record.ns + record.sent) & SEQUENCE_MASK
        self.nr = record.nr
        self._unacked = deque(record.pending[: record.sent])
        self._queue = deque(record.pending[record.sent :])
        self._flight = 0
        if probe:
            self._queue.append((0, probe))
            self._held = deque()
            self._gap_is_ours = True
