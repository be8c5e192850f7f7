"""The places of a listener, and who loses one when there are no more.

Whoever connects more often than others crowds out itself: the place that is taken away is one of the network, and in it
of the owner (an address, a local user), that has the most. A place that is kept is never taken away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import gevent

MOST_KNOWN = 64  # owners that are remembered because a connection of theirs had logged in


@dataclass(slots=True, eq=False)
class Place:
    """One connection's."""

    owner: str
    number: int  # in the order of their coming
    heard: bool = False  # it has said something that makes sense
    kept: bool = False  # it has logged in
    greenlet: Any = None


class Places:
    """Of one listener."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._places: dict[Place, None] = {}
        self._known: dict[str, None] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._places)

    def take(self, owner: str) -> Place | None:
        """A place for a new connection, for which another may have to go; None if all are kept. Does not yield."""
        while len(self._places) >= self._limit():
            victim = self._victim(owner)
            if victim is None:
                return None
            del self._places[victim]
            gevent.kill(victim.greenlet)
        place = Place(owner, next(self._numbers))
        self._places[place] = None
        return place

    def give_back(self, place: Place) -> None:
        """Its connection is over; it may have lost the place before."""
        self._places.pop(place, None)
        if place.kept:
            self._known.pop(place.owner, None)
            self._known[place.owner] = None
            if len(self._known) > MOST_KNOWN:
                del self._known[next(iter(self._known))]

    def _victim(self, newcomer: str) -> Place | None:
        candidates = [place for place in self._places if not place.kept]
        known = {*self._known, *(place.owner for place in self._places if place.kept)}
        owners = Counter([newcomer, *(place.owner for place in candidates)])
        networks = Counter([_network(newcomer), *(_network(place.owner) for place in candidates)])
        return max(
            candidates,
            key=lambda place: (
                networks[_network(place.owner)],
                owners[place.owner],
                place.owner not in known,
                not place.heard,
                -place.number,
            ),
            default=None,
        )


def _network(owner: str) -> str:
    """Many addresses of one network (a /24) may be one neighbour's."""
    return owner.rpartition(".")[0] or owner
