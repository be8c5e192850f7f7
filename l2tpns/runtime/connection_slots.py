"""A bounded number of connections, and which one is closed to admit another.

A source that connects more often than others evicts its own connections: the slot that is taken away belongs to the
network with the most slots, and within that network to the owner (an address, a local user) with the most. A protected
slot is never taken away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import gevent

MAX_KNOWN_OWNERS = 64  # owners remembered because a connection of theirs was protected


@dataclass(slots=True, eq=False)
class ConnectionSlot:
    """The slot of one connection."""

    owner: str
    number: int  # in the order of arrival
    active: bool = False  # the peer has sent something valid
    protected: bool = False  # the peer has logged in
    greenlet: Any = None


class ConnectionSlots:
    """All slots of one listening socket."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._slots: dict[ConnectionSlot, None] = {}
        self._known: dict[str, None] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._slots)

    def take(self, owner: str) -> ConnectionSlot | None:
        """Return a slot for a new connection, ending others if need be; None if all are protected. Does not yield."""
        while len(self._slots) >= self._limit():
            victim = self._victim(owner)
            if victim is None:
                return None
            del self._slots[victim]
            gevent.kill(victim.greenlet)
        slot = ConnectionSlot(owner, next(self._numbers))
        self._slots[slot] = None
        return slot

    def give_back(self, slot: ConnectionSlot) -> None:
        """Free the slot of a connection that has ended. The slot may have been taken away before."""
        self._slots.pop(slot, None)
        if slot.protected:
            self._known.pop(slot.owner, None)
            self._known[slot.owner] = None
            if len(self._known) > MAX_KNOWN_OWNERS:
                del self._known[next(iter(self._known))]

    def _victim(self, newcomer: str) -> ConnectionSlot | None:
        candidates = [slot for slot in self._slots if not slot.protected]
        known = {*self._known, *(slot.owner for slot in self._slots if slot.protected)}
        owners = Counter([newcomer, *(slot.owner for slot in candidates)])
        networks = Counter([_network(newcomer), *(_network(slot.owner) for slot in candidates)])
        return max(
            candidates,
            key=lambda slot: (
                networks[_network(slot.owner)],
                owners[slot.owner],
                slot.owner not in known,
                not slot.active,
                -slot.number,
            ),
            default=None,
        )


def _network(owner: str) -> str:
    """Return the /24 of an address, for one sender may have many addresses; any other owner as it is."""
    return owner.rpartition(".")[0] or owner
