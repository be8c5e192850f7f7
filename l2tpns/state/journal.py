"""The journal: writes each change of a tunnel or session as a line of the saved state (records.py).

A tunnel's sequence numbers are written before the datagrams that carry them are sent, so that the next process never
knows less than the LAC. A session is written when it comes online and when it ends, and its usage every few seconds.
Lines go to each of `sinks`; disk.py has the first. Without an active sink nothing is written. restore.py reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Protocol

import gevent
from gevent.event import Event

from l2tpns.dataplane.plane import DataPlane
from l2tpns.l2tp.tunnel import Tunnel, TunnelState
from l2tpns.runtime.clock import moment
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Part, Supervisor
from l2tpns.state import snapshot
from l2tpns.state.snapshot import Line
from l2tpns.subscriber.session import Session

JOURNAL_INTERVAL = 1.0  # seconds between two lines of usage, which also show that the process is alive
MAX_USAGE_ROWS = 2000  # sessions whose usage is written in one interval; further ones follow in the next
FINAL_DRAIN_TIMEOUT = 0.2  # seconds for messages between sessions and tunnels


class LineSink(Protocol):
    """Keeps the lines."""

    @property
    def active(self) -> bool:
        """Return True if it takes lines now."""

    @property
    def wanted(self) -> bool:
        """Return True if it should keep the state, and is able to."""

    @property
    def failing(self) -> bool:
        """Return True if it should keep the state and fails to."""

    def begin(self, early: list[Line]) -> None:
        """Start to take lines, if it should keep the state. `early` are the first ones."""

    def write(self, *lines: Line) -> None:
        """Keep these lines. Does not yield, does not raise."""

    def poll(self) -> bool:
        """Apply the configuration, recover from failures. Return True if the live state was written. May yield."""

    def sync(self) -> None:
        """Have the lines fsynced. May yield."""

    def write_live_state(self) -> None:
        """Write the live state, and remove what is older. May yield."""

    def write_final(self) -> bool:
        """Write a final snapshot and mark it complete. Return False if it could not. Does not yield."""

    def halt(self) -> None:
        """Take no more lines. What was kept stays."""

    def erase(self) -> None:
        """Remove everything: no session may be restored."""


class Journal:
    """The journal of one server, a Changes (policy/model.py). `tunnels` and `sessions` are the tables of the LNS."""

    def __init__(
        self,
        log: Logger,
        supervisor: Supervisor,
        plane: DataPlane,
        tunnels: Mapping[int, Tunnel],
        sessions: Mapping[int, Session],
        *,
        interval: float = JOURNAL_INTERVAL,
    ) -> None:
        self.sinks: list[LineSink] = []
        self.wake = Event()  # set when a sink has failed: the live state is written again at once
        self._log = log
        self._supervisor = supervisor
        self._plane = plane
        self._tunnels = tunnels
        self._sessions = sessions
        self._interval = interval
        self._part: Part | None = None
        self._usage_due: list[Session] = []  # sessions whose usage is written in the next intervals
        self._early: list[Line] | None = None  # what ended between the restore and the start of the journal
        self._usage_written: dict[int, int] = {}  # session id -> packets when its usage was last written

    @property
    def active(self) -> bool:
        """Return True if any sink takes lines."""
        return any(sink.active for sink in self.sinks)

    @property
    def failing(self) -> bool:
        """Return True if a sink should keep the state and fails to."""
        return any(sink.failing for sink in self.sinks)

    # What tunnels and sessions report

    def tunnel(self, tunnel: Tunnel) -> None:
        """Record a tunnel that is established, or that has moved."""
        if self.active:
            self._write(["tun", snapshot.tunnel_record(tunnel)])

    def control(self, tunnel: Tunnel) -> None:
        """Record a tunnel's sequence numbers. To be called before a datagram that carries them is sent."""
        if tunnel.state is TunnelState.ESTABLISHED and self.active:
            change = tunnel.reliable.change()
            if change is not None:
                self._write(["ctl", tunnel.id, change.ns, change.nr, change.sent, change.queued])

    def tunnel_gone(self, tunnel: Tunnel) -> None:
        """Record the end of a tunnel."""
        self._write_end(["tun-", tunnel.id])

    def call(self, session: Session) -> None:
        """Record a call that is not online yet, or no longer."""
        self._write_end(snapshot.call_line(session))

    def session(self, session: Session) -> None:
        """Record a session that is online, as it is now."""
        if self.active:
            self._write(["ses", snapshot.session_record(session)])

    def session_gone(self, session: Session) -> None:
        """Record the end of a call."""
        self._usage_written.pop(session.id, None)
        self._write_end(["ses-", session.id])

    def collect_ends(self) -> None:
        """Collect what ends during the restore, for `start` to write."""
        self._early = []

    def _write_end(self, line: Line) -> None:
        if self.active:
            self._write(line)
        elif self._early is not None:
            self._early.append(line)

    def _write(self, *lines: Line) -> None:
        for sink in self.sinks:
            if sink.active:
                sink.write(*lines)

    # Start and intervals

    def start(self, *gone: Line) -> None:
        """Write to the sinks from now on. `gone` are the lines for what was not restored."""
        early = [*gone, *(self._early or ())]
        self._early = None
        for sink in self.sinks:
            sink.begin(early)
        self._part = self._supervisor.spawn("journal", self._run)

    def _run(self) -> None:
        for sink in self.sinks:
            if sink.active:
                sink.write_live_state()
        while True:
            self.wake.wait(self._interval)  # after a failed write there may be room for a moment
            self.wake.clear()
            try:
                self.tick()
            except Exception:  # one error must not end the journal
                self._log.exception("journal_failed")

    def tick(self) -> None:
        """Do what is due in each interval: apply the configuration, write the usage of sessions. May yield."""
        for sink in self.sinks:
            if sink.poll():
                self._usage_written.clear()  # the live state contains all usage
            elif sink.active:
                self._write_usage()
                sink.sync()

    def _write_usage(self) -> None:
        """Write the usage of at most MAX_USAGE_ROWS sessions, and of all that number their data messages.

        The saved Ns of the latter must not fall far behind.
        """
        sessions = self._sessions
        if not self._usage_due:
            self._usage_due = list(sessions.values())
        due, self._usage_due = self._usage_due[-MAX_USAGE_ROWS:], self._usage_due[:-MAX_USAGE_ROWS]
        if self._usage_due:
            due += [session for session in sessions.values() if session.path.sequenced]
        rows = []
        now = monotonic()
        for session in due:
            path = session.path
            self._plane.refresh(path)
            changes = path.in_packets + path.out_packets + sum(session.usage_file_octets)
            if session.is_online and self._usage_written.get(session.id) != changes:
                self._usage_written[session.id] = changes
                rows.append([session.id, *snapshot.usage_row(session, now)])
        at = moment()
        self._write(["use", at.wall, rows, at.since_boot])

    # Shutdown

    def write_final(self) -> bool:
        """Write a final snapshot and mark it complete. Return False if no sink could. Does not yield after halt()."""
        if not any(sink.wanted for sink in self.sinks):
            return False
        deadline = monotonic() + FINAL_DRAIN_TIMEOUT
        while monotonic() < deadline and any(len(tunnel.mailbox) for tunnel in self._tunnels.values()):
            gevent.sleep(0.005)  # the sequence numbers must include what sessions have asked their tunnels to send
        self._stop()
        complete = [sink.write_final() for sink in self.sinks]
        return any(complete)

    def erase(self) -> None:
        """Remove the saved state: every subscriber was disconnected."""
        self.halt()
        for sink in self.sinks:
            sink.erase()

    def halt(self) -> None:
        """Write nothing more. What is on disk stays."""
        for sink in self.sinks:
            sink.halt()
        self._stop()

    def _stop(self) -> None:
        if self._part is not None:
            self._part.stop(block=False)
            self._part = None
