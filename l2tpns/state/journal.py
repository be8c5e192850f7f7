"""Keeps the saved state as things happen: what tunnels and sessions tell here is on disk before the world sees it.

A tunnel's numbers are written before the datagrams that show them leave (write-ahead), so that a successor never
knows less than the peer; a session is written when it comes online and when it ends; what it has used, every few
seconds. While save_state is off nothing is done at all. Reading it again is state/restore.py's.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from l2tpns.errors import ConfigError
from l2tpns.l2tp.tunnel import TunnelState
from l2tpns.runtime.clock import moment
from l2tpns.state import restore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from l2tpns.l2tp.tunnel import Tunnel
    from l2tpns.lns import Lns
    from l2tpns.runtime.supervisor import Part
    from l2tpns.state.store import StateStore
    from l2tpns.subscriber.session import Session

BEAT = 1.0  # seconds between signs of life
USAGE_AT_ONCE = 2000  # sessions whose usage is written in one beat; of more, each has its turn
LAST_WORDS = 0.2  # seconds for messages between sessions and tunnels
CHUNK = 50  # records written before others get their turn


class Journal:
    """One for the Lns. Inactive until it has a store and save_state is on."""

    def __init__(self, lns: Lns) -> None:
        self.active = False
        self._lns = lns
        self._store: StateStore | None = None
        self._part: Part | None = None
        self._turns: list[Session] = []  # whose usage is written in the next beats
        self._given_up = False  # the directory cannot be used, as long as save_state stays on
        self._early: list[list[Any]] | None = None  # what ended between the taking up and the start of the journal
        self._disowned = Event()  # the disk has just refused a line: everything is to be written anew, at once
        self._told: dict[int, int] = {}  # session id -> packets when its usage was written last

    @property
    def failing(self) -> bool:
        """The state is to be kept, and the disk does not take it."""
        return self._lns.config.save_state and self._store is not None and self._store.opened and self._store.broken

    # What tunnels and sessions tell

    def tunnel(self, tunnel: Tunnel) -> None:
        """It is established."""
        if self.active:
            self._write(["tun", restore.tunnel_record(tunnel)])

    def control(self, tunnel: Tunnel) -> None:
        """Its numbers may have changed; to be told before what shows them leaves."""
        if self.active and tunnel.state is TunnelState.ESTABLISHED:
            change = tunnel.reliable.change()
            if change is not None:
                self._write(["ctl", tunnel.id, change.ns, change.nr, change.sent, change.queued])

    def tunnel_gone(self, tunnel: Tunnel) -> None:
        self._gone(["tun-", tunnel.id])

    def call(self, session: Session) -> None:
        """It is on its way to be online, or online no more."""
        self._gone(["call", session.tunnel.id, session.id, session.peer_id])

    def session(self, session: Session) -> None:
        """It is online, or something of it is different now."""
        if self.active:
            self._write(["ses", restore.session_record(session)])

    def session_gone(self, session: Session) -> None:
        self._told.pop(session.id, None)
        self._gone(["ses-", session.id])

    def remember(self) -> None:
        """What was online before a restart is being taken up: what ends from now on `start` writes down."""
        self._early = []

    def _gone(self, line: list[Any]) -> None:
        if self.active:
            self._write(line)
        elif self._early is not None:
            self._early.append(line)

    # Life

    def start(self, store: StateStore, *gone: list[Any]) -> None:
        """Keep the state in this store, as long as save_state says so. `gone`: lines for what was not taken up."""
        self._store = store
        if self._lns.config.save_state:
            self._given_up = not store.opened  # why is in the log already
            if store.opened and store.begin():
                self.active = True
                self._write(*gone, *(self._early or ()))
        self._early = None
        self._part = self._lns.supervisor.spawn("journal", self._run)

    def _run(self) -> None:
        if self.active:
            self._settle()
        while True:
            self._disowned.wait(BEAT)  # what was disowned has left room, which others may take soon
            self._disowned.clear()
            try:
                self._tick()
            except Exception:  # a mistake here must not end the keeping of everybody else's state
                self._lns.log.exception("journal_failed")

    def _tick(self) -> None:
        store = self._store
        assert store is not None
        wanted = self._lns.config.save_state
        if not wanted:
            self._given_up = False
            if self.active:
                self.active = False
                store.erase()
        elif not store.opened:
            self._open(store)
        elif (not self.active or store.broken or store.overgrown) and store.begin():
            self.active = True
            self._settle()
        elif self.active:
            self._usage()
            store.sync()

    def _open(self, store: StateStore) -> None:
        """save_state was switched on while we run: what is in the directory is of another life."""
        if self._given_up:
            return
        try:
            store.open()
            store.erase()
        except ConfigError as error:
            self._given_up = True
            self._lns.log.error("state_not_kept", why=str(error))

    def _settle(self) -> None:
        """Write everything alive into the generation that has just begun, and let go of the older ones."""
        assert self._store is not None
        self._told.clear()
        for number, line in enumerate(self._alive()):
            if line and not self._keep(line):
                return  # the disk is full again
            if number % CHUNK == CHUNK - 1:
                gevent.sleep(0)
        self._store.settle()

    def _alive(self) -> Iterator[list[Any]]:
        """A line for each; made when it is asked for, so that it is true then. Empty for what has gone meanwhile."""
        lns = self._lns
        for tunnel in list(lns.tunnels.values()):
            established = tunnel.state is TunnelState.ESTABLISHED
            yield ["tun", restore.tunnel_record(tunnel)] if established else []
        for session in list(lns.sessions.values()):
            if lns.sessions.get(session.id) is not session:
                yield []
            elif session.online_since:
                yield ["ses", restore.session_record(session)]
            else:
                yield ["call", session.tunnel.id, session.id, session.peer_id]

    def _keep(self, line: list[Any]) -> bool:
        """Write one of those alive; False when the disk does not take it. One that cannot be written costs itself."""
        assert self._store is not None
        try:
            return self._store.write(line)
        except TypeError:
            self._lns.log.exception("journal_failed")
            return True

    def _usage(self) -> None:
        """What a share of the sessions has used; of numbered ones each time, for their Ns must not fall far behind."""
        sessions = self._lns.sessions
        if not self._turns:
            self._turns = list(sessions.values())
        due, self._turns = self._turns[-USAGE_AT_ONCE:], self._turns[:-USAGE_AT_ONCE]
        if self._turns:
            due += [session for session in sessions.values() if session.path.sequenced]
        rows = []
        now = monotonic()
        for session in due:
            path = session.path
            self._lns.plane.refresh(path)
            changes = path.in_packets + path.out_packets + sum(session.dumped)
            if session.online_since and self._told.get(session.id) != changes:
                self._told[session.id] = changes
                rows.append([session.id, *restore.usage_row(session, now)])
        at = moment()
        self._write(["use", at.wall, rows, at.since_boot])

    def _write(self, *lines: list[Any]) -> None:
        store = self._store
        assert store is not None
        if not store.broken and not store.write(*lines):
            self._disowned.set()

    # Leaving

    def leave(self) -> bool:
        """Write everything and say that it is complete, without giving anybody a turn. False: it could not be."""
        store = self._store
        if store is None or not store.opened or not self._lns.config.save_state:
            return False
        patience = monotonic() + LAST_WORDS
        while monotonic() < patience and any(len(tunnel.mailbox) for tunnel in self._lns.tunnels.values()):
            gevent.sleep(0.005)  # what sessions have asked their tunnels to say becomes a part of the numbers
        self.halt()
        begun = store.begin() or not store.broken  # else into the generation that goes on
        written = begun and all(self._keep(line) for line in self._alive() if line)
        at = moment()
        written = written and store.write(["left", at.wall, at.since_boot]) and store.settle(block=True)
        if not written and not store.broken:  # everybody is about to be disconnected, and nobody writes it down
            store.disown("the state could not be written as a whole")
        return written

    def erase(self) -> None:
        """Everybody was disconnected: no state is left."""
        self.halt()
        if self._store is not None and self._store.opened:
            self._store.erase()

    def halt(self) -> None:
        """Keep nothing more; what is on disk stays."""
        self.active = False
        if self._part is not None:
            self._part.stop(block=False)
            self._part = None
