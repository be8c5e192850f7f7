"""Turns what happens to tunnels and sessions into lines of the saved state, before the world sees it.

A tunnel's numbers are written before the datagrams that show them leave (write-ahead), so that a successor never
knows less than the peer; a session is written when it comes online and when it ends; what it has used, every few
seconds. Lines go to each of `sinks`: the directory of saved state (disk.py) is the first. While no sink is active
nothing is done at all. Reading the lines again is restore.py's.
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

JOURNAL_INTERVAL = 1.0  # seconds between signs of life
MAX_USAGE_ROWS = 2000  # sessions whose usage is written in one interval; further ones follow in the next
FINAL_DRAIN_TIMEOUT = 0.2  # seconds for messages between sessions and tunnels


class LineSink(Protocol):
    """Keeps the lines."""

    @property
    def active(self) -> bool:
        """Return whether it takes lines now."""

    @property
    def wanted(self) -> bool:
        """Return whether it is to keep the state, and might."""

    @property
    def failing(self) -> bool:
        """Return whether it is to keep the state and cannot."""

    def begin(self, early: list[Line]) -> None:
        """Start to take lines, if it is to keep the state; `early` are the first ones."""

    def write(self, *lines: Line) -> None:
        """Keep these lines. Does not yield, does not raise."""

    def poll(self) -> bool:
        """Follow the configuration, recover from failures. Return whether all that is alive was just written."""

    def sync(self) -> None:
        """Have what was written reach the disk soon."""

    def settle(self) -> None:
        """Write all that is alive, and drop what is older. May yield."""

    def leave(self) -> bool:
        """Write a final snapshot and mark it complete. Return False if it could not. Does not yield."""

    def halt(self) -> None:
        """Take no more lines; what was kept stays."""

    def erase(self) -> None:
        """Drop everything: no session is to be restored."""


class Journal:
    """Writes the changes of one server; a Changes (policy/model.py). `tunnels` and `sessions` are its tables."""

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
        self.wake = Event()  # a sink has just failed: everything is to be written anew, at once
        self._log = log
        self._supervisor = supervisor
        self._plane = plane
        self._tunnels = tunnels
        self._sessions = sessions
        self._interval = interval
        self._part: Part | None = None
        self._turns: list[Session] = []  # whose usage is written in the next intervals
        self._early: list[Line] | None = None  # what ended between the restore and the start of the journal
        self._told: dict[int, int] = {}  # session id -> packets when its usage was written last

    @property
    def active(self) -> bool:
        """Return whether any sink takes lines."""
        return any(sink.active for sink in self.sinks)

    @property
    def failing(self) -> bool:
        """Return whether a sink is to keep the state and cannot."""
        return any(sink.failing for sink in self.sinks)

    # What tunnels and sessions report

    def tunnel(self, tunnel: Tunnel) -> None:
        """Record a tunnel that is established, or that has moved."""
        if self.active:
            self._write(["tun", snapshot.tunnel_record(tunnel)])

    def control(self, tunnel: Tunnel) -> None:
        """Record a tunnel's sequence numbers, before a datagram that shows them leaves."""
        if tunnel.state is TunnelState.ESTABLISHED and self.active:
            change = tunnel.reliable.change()
            if change is not None:
                self._write(["ctl", tunnel.id, change.ns, change.nr, change.sent, change.queued])

    def tunnel_gone(self, tunnel: Tunnel) -> None:
        """Record the end of a tunnel."""
        self._write_end(["tun-", tunnel.id])

    def call(self, session: Session) -> None:
        """Record a call that is not online yet, or not any more."""
        self._write_end(snapshot.call_line(session))

    def session(self, session: Session) -> None:
        """Record a session that is online, as it is now."""
        if self.active:
            self._write(["ses", snapshot.session_record(session)])

    def session_gone(self, session: Session) -> None:
        """Record the end of a call."""
        self._told.pop(session.id, None)
        self._write_end(["ses-", session.id])

    def remember(self) -> None:
        """Collect what ends from now on, during the restore, for `start` to write."""
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

    # Life

    def start(self, *gone: Line) -> None:
        """Write to the sinks from now on. `gone`: lines for what was not restored."""
        early = [*gone, *(self._early or ())]
        self._early = None
        for sink in self.sinks:
            sink.begin(early)
        self._part = self._supervisor.spawn("journal", self._run)

    def _run(self) -> None:
        for sink in self.sinks:
            if sink.active:
                sink.settle()
        while True:
            self.wake.wait(self._interval)  # a line that could not be written has left room, for a short time perhaps
            self.wake.clear()
            try:
                self.tick()
            except Exception:  # a mistake here must not end the keeping of all other state
                self._log.exception("journal_failed")

    def tick(self) -> None:
        """Do what is due in each interval: follow the configuration, write what sessions have used. May yield."""
        for sink in self.sinks:
            if sink.poll():
                self._told.clear()  # all usage is in what was just written
            elif sink.active:
                self._write_usage()
                sink.sync()

    def _write_usage(self) -> None:
        """Write the usage of a share of the sessions. Numbered ones each time: their Ns must not fall far behind."""
        sessions = self._sessions
        if not self._turns:
            self._turns = list(sessions.values())
        due, self._turns = self._turns[-MAX_USAGE_ROWS:], self._turns[:-MAX_USAGE_ROWS]
        if self._turns:
            due += [session for session in sessions.values() if session.path.sequenced]
        rows = []
        now = monotonic()
        for session in due:
            path = session.path
            self._plane.refresh(path)
            changes = path.in_packets + path.out_packets + sum(session.usage_file_octets)
            if session.is_online and self._told.get(session.id) != changes:
                self._told[session.id] = changes
                rows.append([session.id, *snapshot.usage_row(session, now)])
        at = moment()
        self._write(["use", at.wall, rows, at.since_boot])

    # Leaving

    def leave(self) -> bool:
        """Write a final snapshot and mark it complete. Return False if no sink could. Does not yield after halt()."""
        if not any(sink.wanted for sink in self.sinks):
            return False
        deadline = monotonic() + FINAL_DRAIN_TIMEOUT
        while monotonic() < deadline and any(len(tunnel.mailbox) for tunnel in self._tunnels.values()):
            gevent.sleep(0.005)  # what sessions have asked their tunnels to send becomes a part of the numbers
        self._stop()
        left = [sink.leave() for sink in self.sinks]
        return any(left)

    def erase(self) -> None:
        """Drop the state: every subscriber was disconnected."""
        self.halt()
        for sink in self.sinks:
            sink.erase()

    def halt(self) -> None:
        """Keep nothing more; what is on disk stays."""
        for sink in self.sinks:
            sink.halt()
        self._stop()

    def _stop(self) -> None:
        if self._part is not None:
            self._part.stop(block=False)
            self._part = None
