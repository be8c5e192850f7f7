"""Our rules in the kernel's iptables, in its legacy tables: `iptables-legacy` shows them, Debian's `iptables` does not.

Every rule of ours carries the comment `l2tpns`, and a chain that we made holds a rule `l2tpns made this chain`: so a
later process knows what to remove, and never touches the rules of others. Each change is made under the lock that
iptables itself takes, from reading a table to writing it. python-iptables takes no lock; without one both programs
lose rules.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import gevent

from l2tpns.runtime import files
from l2tpns.runtime.log import Logger
from l2tpns.system import iptables
from l2tpns.system.instance import Instance, instance_from
from l2tpns.system.iptables import Entry, FirewallError

LOCK = "/run/xtables.lock"
LOCK_TIMEOUT = 10.0  # seconds for another program to release the lock
LOCK_RETRY_INTERVAL = 0.02  # seconds
TABLES = ("filter", "nat", "mangle")
LOADED = Path("/proc/thread-self/net/ip_tables_names")  # mode 0440, root's
_loaded_descriptor = -1

__all__ = ["Firewall", "FirewallError", "Table"]


def lock_file() -> str:
    """Return the path of the lock that iptables takes."""
    return os.environ.get("XTABLES_LOCKFILE", LOCK)


def keep_table_list() -> None:
    """Open the kernel's list of tables, to be read after root is given up: its mode is checked at the opening only."""
    global _loaded_descriptor
    with suppress(OSError):  # without the module ip_tables there is no list, and no table
        _loaded_descriptor = os.open(LOADED, os.O_RDONLY | os.O_CLOEXEC)


class Table:
    """One table, from being read to being written."""

    def __init__(self, ip4tc: Any, name: str, instance: Instance) -> None:
        self._ip4tc = ip4tc
        self._instance = instance
        self._table = ip4tc.Table(name, False)
        self._table.refresh()  # it may be a cached copy
        self.changed = False

    def has_chain(self, name: str) -> bool:
        return bool(self._table.is_chain(name))

    def chains(self) -> list[str]:
        return [chain.name for chain in self._table.chains]

    def chain(self, name: str) -> bool:
        """Ensure the chain exists. Return True if it was created."""
        if self.has_chain(name):
            return False
        self._table.create_chain(name)
        self.mark(name)
        return True

    def mark(self, name: str, *, filled: bool = False) -> None:
        """Record in a chain of ours what is to be done with it."""
        self.unmark(name)
        comment = self._instance.filled if filled else self._instance.made
        self._insert(name, iptables.make(self._ip4tc, self._table, "", comment), first=True)

    def unmark(self, name: str) -> None:
        """Record that the chain is not ours from now on."""
        self._delete(name, [at for at, entry in enumerate(self.rules(name)) if entry.comment in self._instance.marks])

    def is_marked(self, name: str) -> bool:
        """Return whether the chain is ours."""
        return any(entry.comment in self._instance.marks for entry in self.rules(name))

    def is_filled(self, name: str) -> bool:
        """Return whether the chain was filled on our behalf."""
        return any(entry.comment == self._instance.filled for entry in self.rules(name))

    def is_ours(self, rule: Entry) -> bool:
        return self._instance.owns(rule.comment)

    def owners(self) -> set[Instance]:
        """Return the servers that have rules in the table."""
        found = {instance_from(rule.comment) for name in self.chains() for rule in self.rules(name)}
        return {one for one in found if one is not None}

    def rules(self, chain: str) -> list[iptables.Entry]:
        return list(iptables.entries(self._table, chain))

    def leads(self, chain: str, to: str) -> bool:
        """Return True if a rule of the chain, ours or not, jumps to `to`. Reads no further: there may be thousands."""
        return any(rule.jump == to.encode() for rule in iptables.entries(self._table, chain))

    def ensure(self, chain: str, rule: str, *, first: bool = False) -> bool:
        """Ensure a chain has this rule of ours, added as the first or last one. Return True if it was added."""
        made = self._make(rule)
        if self._places(chain, made):
            return False
        self._insert(chain, made, first)
        return True

    def append(self, chain: str, rule: str) -> None:
        """Add this rule of ours at the end, even if the chain has it already."""
        self._insert(chain, self._make(rule), first=False)

    def remove(self, chain: str, rule: str) -> bool:
        """Remove this rule of ours. Return True if there was one; neither rule nor chain need exist."""
        if not self.has_chain(chain):
            return False
        places = self._places(chain, self._make(rule))
        self._delete(chain, places)
        return bool(places)

    def remove_chain(self, name: str) -> bool:
        """Remove a chain of ours if all its rules are ours and no rule jumps to it. Return True if it was removed."""
        if not self.has_chain(name):
            return False
        rules = self.rules(name)
        if not self.is_filled(name) and not (self.is_marked(name) and all(map(self.is_ours, rules))):
            return False
        if any(rule.jump == name.encode() for chain in self.chains() for rule in self.rules(chain)):
            self._delete(name, [at for at, rule in enumerate(rules) if self.is_ours(rule)])
            return False
        self._table.flush_entries(name)
        self._table.delete_chain(name)
        self.changed = True
        return True

    def empty(self, name: str) -> None:
        """Remove all rules of a chain that was filled on our behalf. It stays ours."""
        self._table.flush_entries(name)
        self.mark(name)
        self.changed = True

    def remove_ours(self) -> int:
        """Remove every rule of ours, then the chains that we made. Return how many of both."""
        removed = 0
        made = [name for name in self.chains() if self.is_marked(name)]
        for name in self.chains():
            places = [at for at, rule in enumerate(self.rules(name)) if rule.comment == self._instance.ours]
            self._delete(name, places)
            removed += len(places)
        for _ in made:  # one may jump to another
            gone = [name for name in made if self.remove_chain(name)]
            removed += len(gone)
            made = [name for name in made if name not in gone]
        return removed

    def _make(self, rule: str) -> Any:
        return iptables.make(self._ip4tc, self._table, rule, self._instance.ours)

    def commit(self) -> None:
        if self.changed:
            self._table.commit()
            self.changed = False

    def _insert(self, chain: str, rule: Any, first: bool) -> None:
        # Not Chain.insert_rule: its final check redirects the standard output of the process.
        if first:
            self._table.insert_entry(chain, rule.rule, 0)
        else:
            self._table.append_entry(chain, rule.rule)
        self.changed = True

    def _places(self, chain: str, rule: Any) -> list[int]:
        wanted = iptables.wanted(rule)
        return [at for at, entry in enumerate(self.rules(chain)) if entry.is_like(wanted)]

    def _delete(self, chain: str, places: list[int]) -> None:
        iptc = self._table._iptc
        for at in reversed(places):
            if iptc.iptc_delete_num_entry(chain.encode(), at, self._table._handle) != 1:
                raise FirewallError(f"chain {chain}: {self._table.strerror()}")
            self.changed = True


class Firewall:
    """The tables of the network namespace of this process, and the rules of one server in them."""

    def __init__(
        self,
        log: Logger,
        lock: str | None = None,
        lock_timeout: float = LOCK_TIMEOUT,
        instance: Instance = Instance(),  # noqa: B008
    ) -> None:
        self.instance = instance
        self._log = log
        self._lock_file = lock or lock_file()
        self._lock_timeout = lock_timeout
        self._used: set[str] = set()  # tables
        self._ip4tc: Any = None

    def load(self) -> None:
        """Load the library in a thread, for it takes 0.2 seconds. May yield. Raises FirewallError.

        Without this call the first change loads it, and blocks all greenlets meanwhile.
        """
        if self._ip4tc is None:
            self._ip4tc = gevent.get_hub().threadpool.apply(iptables.load)

    @contextmanager
    def change(self, *names: str) -> Iterator[tuple[Table, ...]]:
        """Yield tables to be changed together: written in this order when the block ends; not at all if it raises.

        The block must not yield, for iptables waits meanwhile. Raises FirewallError.
        """
        if self._ip4tc is None:
            self._ip4tc = iptables.load()
        self._used.update(names)
        with self._locked():
            try:
                tables = tuple(Table(self._ip4tc, name, self.instance) for name in names)
                yield tables
                for table in tables:
                    table.commit()
            except self._ip4tc.IPTCError as error:
                raise FirewallError(iptables.error_text(error)) from error

    def remove_all_ours(self) -> int:
        """Remove every rule of ours and every chain that we made, in all tables that exist. Return how many of both."""
        removed = 0
        loaded = set(self.loaded())
        for name in TABLES:
            if name in loaded:  # reading a table creates it
                with self.change(name) as (table,):
                    removed += table.remove_ours()
        return removed

    def owners(self) -> set[Instance]:
        """Return the servers that have rules in any table."""
        found: set[Instance] = set()
        loaded = set(self.loaded())
        for name in TABLES:
            if name in loaded:
                with self.change(name) as (table,):
                    found |= table.owners()
        return found

    def loaded(self) -> Iterable[str]:
        """Return the tables that exist. A table exists once a program has used it."""
        try:
            if _loaded_descriptor >= 0:
                return os.pread(_loaded_descriptor, 4096, 0).decode().split()
            return LOADED.read_text().split()
        except PermissionError:  # there was no list while we were root, so rules of ours are only where we made them
            return self._used
        except OSError:
            return ()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of iptables. Raises FirewallError if another program keeps it too long. May yield."""
        try:
            descriptor = files.open_file(self._lock_file, os.O_RDONLY | os.O_CREAT)
        except OSError as error:
            raise FirewallError(f"{self._lock_file}: {error.strerror}") from error
        try:
            until = monotonic() + self._lock_timeout
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if monotonic() > until:
                        raise FirewallError(f"another program holds {self._lock_file}") from None
                    gevent.sleep(LOCK_RETRY_INTERVAL)
            yield
        finally:
            os.close(descriptor)  # releases the lock
