"""The sink that keeps the journal's lines in the directory of saved state, while `save_state` is on.

store.py decides to which file a line is written, and what happens when the disk is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gevent

from l2tpns.config.settings import Config
from l2tpns.errors import ConfigError
from l2tpns.runtime.clock import moment
from l2tpns.runtime.log import Logger
from l2tpns.state.snapshot import Line
from l2tpns.state.store import StateStore

CHUNK = 50  # lines written before it yields


class DiskSink:
    """The sink of one store.

    `alive` yields a line for each tunnel and session. `failed` is called when the disk refuses a line.
    """

    def __init__(
        self,
        config: Config,
        log: Logger,
        store: StateStore,
        alive: Callable[[], Iterator[Line]],
        failed: Callable[[], None],
    ) -> None:
        self.active = False
        self._config = config
        self._log = log
        self._store = store
        self._alive = alive
        self._failed = failed
        self._given_up = False  # the directory cannot be used; not tried again until save_state was off

    @property
    def failing(self) -> bool:
        """Return True if the state should be kept and the disk fails."""
        return self.wanted and self._store.broken

    @property
    def wanted(self) -> bool:
        """Return True if the state should be kept, and the directory is open."""
        return self._config.save_state and self._store.opened

    def begin(self, early: list[Line]) -> None:
        """Start to keep the state, if `save_state` is on."""
        store = self._store
        if self._config.save_state:
            self._given_up = not store.opened  # the reason was logged
            if store.opened and store.begin():
                self.active = True
                self.write(*early)

    def write(self, *lines: Line) -> None:
        """Keep these lines."""
        store = self._store
        if not store.broken and not store.write(*lines):
            self._failed()

    def poll(self) -> bool:
        """Apply `save_state`. Return True if the live state was due to be written again, and was. May yield."""
        store = self._store
        if not self._config.save_state:
            self._given_up = False
            if self.active:
                self.active = False
                store.erase()
        elif not store.opened:
            self._open()
        elif (not self.active or store.broken or store.overgrown) and store.begin():
            self.active = True
            self.write_live_state()
            return True
        return False

    def _open(self) -> None:
        """Open the store after save_state was switched on, and erase it: what it contains is out of date."""
        if self._given_up:
            return
        try:
            self._store.open()
            self._store.erase()
        except ConfigError as error:
            self._given_up = True
            self._log.error("state_not_kept", why=str(error))

    def sync(self) -> None:
        """Have the lines fsynced. May yield."""
        self._store.sync()

    def write_live_state(self) -> None:
        """Write the live state to the generation that has just begun, then remove the older ones. May yield."""
        for number, line in enumerate(self._alive()):
            if line and not self._keep(line):
                return  # the disk is full again
            if number % CHUNK == CHUNK - 1:
                gevent.sleep(0)
        self._store.finish_generation()

    def _keep(self, line: Line) -> bool:
        """Write one line. Return False if the disk fails. A line that JSON cannot express is logged and left out."""
        try:
            return self._store.write(line)
        except TypeError:
            self._log.exception("journal_failed")
            return True

    def write_final(self) -> bool:
        """Write a final snapshot and mark it complete. Return False if it could not. Does not yield."""
        store = self._store
        self.active = False
        if not self.wanted:
            return False
        begun = store.begin() or not store.broken  # else to the current generation
        written = begun and all(self._keep(line) for line in self._alive() if line)
        at = moment()
        written = written and store.write(["left", at.wall, at.since_boot]) and store.finish_generation(block=True)
        if not written and not store.broken:  # all subscribers will be disconnected, and no line records that
            store.invalidate("the state could not be written completely")
        return written

    def halt(self) -> None:
        """Take no more lines; what is on disk stays."""
        self.active = False

    def erase(self) -> None:
        """Remove the state."""
        if self._store.opened:
            self._store.erase()
