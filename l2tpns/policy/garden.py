"""Walled gardens: who is in which, and what follows from that for accounting and names (manual: Walled Garden).

Decided here, where the manual and its server leave it open (docs/garden.md): a session in a garden has its address,
is found by its name, and is not accounted; it neither ends an older session of that name nor is ended by a newer one.
Whoever leaves is as if just logged in: others of that name end, counters begin at zero, accounting starts. What the
kernel is told is system/garden_rules.py's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Protocol

import gevent
from gevent.lock import RLock

from l2tpns import causes
from l2tpns.dataplane.plane import DataPlane
from l2tpns.errors import L2tpnsError
from l2tpns.policy.model import Changes, PolicyError, Subscriber
from l2tpns.radius.types import TerminateCause
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.exceptions import is_kill
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Supervisor
from l2tpns.runtime.text import printable
from l2tpns.system.garden_rules import DEFAULT, RESERVED, chain_of
from l2tpns.system.rule_watch import RULE_CHECK_INTERVAL, RuleWatch

NAME = re.compile(r"[A-Za-z0-9_-]{1,16}", re.ASCII)
MAX_GARDENS = 64  # gardens: each costs every forwarded packet a few rules, and the kernel has 256 sets

Builder = Callable[[str, str], bool]  # garden, chain: whether it has put rules there


class Kernel(Protocol):
    """system/garden_rules.py. What it refuses is an L2tpnsError."""

    def build(self, name: str) -> bool: ...

    def filled(self, name: str) -> None: ...

    def is_empty(self, name: str) -> bool: ...

    def add(self, name: str, networks: Iterable[IPv4Network]) -> None: ...

    def remove(self, name: str, networks: Iterable[IPv4Network]) -> None: ...

    def fill(self, name: str, networks: Iterable[IPv4Network]) -> tuple[int, int]: ...

    def count(self, name: str) -> int: ...

    def forget(self, networks: Collection[IPv4Network]) -> int: ...

    def tidy(self, names: Collection[str]) -> None: ...

    def stop(self) -> None: ...


class NullKernel:
    """Remembers what it is told, or refuses with these words."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse = refuse
        self.gardens: dict[str, set[IPv4Network]] = {}
        self.forgotten: list[IPv4Network] = []

    def build(self, name: str) -> bool:
        self._may()
        new = name not in self.gardens
        self.gardens.setdefault(name, set())
        return new

    def filled(self, name: str) -> None:
        pass

    def is_empty(self, name: str) -> bool:
        return False

    def add(self, name: str, networks: Iterable[IPv4Network]) -> None:
        self._may()
        self.gardens[name].update(networks)

    def remove(self, name: str, networks: Iterable[IPv4Network]) -> None:
        self._may()
        self.gardens[name].difference_update(networks)

    def fill(self, name: str, networks: Iterable[IPv4Network]) -> tuple[int, int]:
        wanted, there = set(networks), self.gardens[name]
        self.gardens[name] = wanted
        return len(wanted - there), len(there - wanted)

    def count(self, name: str) -> int:
        return len(self.gardens[name])

    def forget(self, networks: Collection[IPv4Network]) -> int:
        self.forgotten += networks
        return 0

    def tidy(self, names: Collection[str]) -> None:
        self.gardens = {name: networks for name, networks in self.gardens.items() if name in names}

    def stop(self) -> None:
        self.gardens.clear()

    def _may(self) -> None:
        if self.refuse:
            raise L2tpnsError(self.refuse)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session that is online is caged."""

    garden: str
    networks: tuple[IPv4Network, ...]


@dataclass(slots=True)
class GardenTiming:
    """Times of the gardens that no setting changes, in seconds."""

    check_interval: float = RULE_CHECK_INTERVAL
    flush_delay: float = 0.5  # in which networks are collected whose connections are to be forgotten


class Gardens:
    """All walled gardens of the server; a PolicyPart."""

    def __init__(
        self,
        counters: Counters,
        log: Logger,
        supervisor: Supervisor,
        plane: DataPlane,
        changes: Changes,
        timing: GardenTiming | None = None,
    ) -> None:
        timing = timing or GardenTiming()
        self._counters = counters
        self._log = log
        self._plane = plane
        self._changes = changes
        self.kernel: Kernel = NullKernel()
        self._builders: list[Builder] = []
        self._users: dict[str, Counter[IPv4Network]] = {}  # of each garden that is built; sessions may share a network
        self._places: dict[Subscriber, Place] = {}
        self._building = RLock()
        self._forget: set[IPv4Network] = set()
        self._sweeper: Any = None
        self._flush_delay = timing.flush_delay
        self._watch = RuleWatch(supervisor, "garden watcher", self._repair, timing.check_interval)

    # What operators, RADIUS and plugins ask for

    def enter(self, session: Subscriber, name: str = DEFAULT, *, by: str) -> None:
        """Into a garden, or from one into another. Raises PolicyError, the session being where it was."""
        self.build(name)  # which may wait
        before = session.policy.garden
        if before == name:
            raise PolicyError("already in walled garden")
        if not session.alive:
            raise PolicyError(f"session {session.id} has ended")
        online = bool(session.online_since)
        usage = None
        if online and not before:  # what it has used is accounted, what follows is not
            usage = session.suspend_service(TerminateCause.PORT_SUSPENDED)
        session.change_policy(garden=name)
        if online:
            self._leave_place(session)
            self.begin(session)
            self._decide_anew(session)
            self._changes.session(session)
        self._counters.garden_entered += 1
        address = str(session.address) if session.address is not None else None
        session.log.info("garden_entered", user=session.user, address=address, garden=name, by=by)
        if usage is not None:
            session.account_stop(usage)

    def leave(self, session: Subscriber, *, user: str = "", by: str) -> None:
        """Out of its garden, as if it had just logged in, perhaps as another user. Raises PolicyError."""
        name = session.policy.garden
        if not name:
            raise PolicyError("not in walled garden")
        if user:
            session.rename(user)
        if session.online_since:
            session.replace_older()
            if session.policy.garden != name or not session.online_since:
                return  # meanwhile another command has decided, or it has ended
        session.change_policy(garden="")
        if not session.online_since:
            return
        self._decide_anew(session)
        self._leave_place(session)
        session.resume_service()  # reference 9: counters begin at zero, then Start
        self._changes.session(session)
        self._counters.garden_left += 1
        session.log.info("garden_left", user=session.user, address=str(session.address), garden=name, by=by)
        session.account_start()

    def members(self) -> dict[str, int]:
        """How many sessions are in each garden that there is."""
        counts = Counter(place.garden for place in self._places.values())
        return {name: counts[name] for name in sorted(self._users)}

    def networks(self, name: str) -> int:
        """How many addresses and networks are caged in one."""
        return len(self._users.get(name, ()))

    # A Part (policy/model.py)

    def begin(self, session: Subscriber) -> None:
        """GardenRules it, before it sends anything. What cannot be caged does not get out: it ends."""
        name = session.policy.garden
        if not name or not session.online_since:
            return
        place = Place(name, networks_of(session))
        try:
            users = self._users.get(name)
            if users is None:
                raise PolicyError(f"walled garden {name} is not built")
            self._places[session] = place
            session.path.in_garden = True
            self._plane.changed(session.path)
            new = [network for network in place.networks if not users[network]]
            users.update(place.networks)
            self.kernel.add(name, new)
        except L2tpnsError as error:
            session.log.error("garden_failed", user=session.user, garden=name, why=str(error))
            self._plane.offline(session.path)
            session.end(causes.NO_RESOURCES, text="the walled garden cannot be had")

    def finish(self, session: Subscriber) -> None:
        if session in self._places:
            self._decide_anew(session)  # whoever has the address next is not in this garden
            self._leave_place(session)

    def _leave_place(self, session: Subscriber) -> None:
        place = self._places.pop(session, None)
        if place is None:
            return
        session.path.in_garden = False
        self._plane.changed(session.path)
        users = self._users[place.garden]
        users.subtract(place.networks)
        gone = [network for network in place.networks if users[network] <= 0]
        for network in gone:
            del users[network]
        try:
            self.kernel.remove(place.garden, gone)
        except L2tpnsError as error:
            session.log.error("garden_failed", user=session.user, garden=place.garden, why=str(error))

    # Gardens

    def build(self, name: str = DEFAULT) -> None:
        """Have a garden of this name. Raises PolicyError."""
        if name in self._users:
            return
        if not NAME.fullmatch(name) or name == RESERVED:
            raise PolicyError(f'"{printable(name)}" is no name of a garden: up to 16 of a-z, A-Z, 0-9, _ and -')
        if len(self._users) >= MAX_GARDENS:
            raise PolicyError(f"there are {MAX_GARDENS} walled gardens already")
        with self._building:
            if name in self._users:
                return
            try:
                self.kernel.build(name)
            except L2tpnsError as error:
                self._log.error("garden_failed", garden=name, why=str(error))
                raise PolicyError(f"walled garden {name} cannot be had: {error}") from error
            self._users[name] = Counter()
            self._fill_chain(name, *self._builders)
            self._log.info("garden_built", garden=name, chain=chain_of(name))
            if self.kernel.is_empty(name):
                why = "no rule says where connections go: there is DNS and nothing else"
                self._log.warning("garden_empty", garden=name, chain=chain_of(name), why=why)

    def add_builder(self, builder: Builder, spawn: Callable[..., Any]) -> None:
        """Have it called when a garden is built, to put rules into its chain; soon, too, for those that are.

        The first one is built now, and not when somebody needs it: the operator may want to fill it himself.
        """
        self._builders.append(builder)
        spawn(self._fill_chains, builder, list(self._users))

    def remove_builder(self, builder: Builder) -> None:
        self._builders.remove(builder)

    def _fill_chains(self, builder: Builder, names: Iterable[str]) -> None:
        with suppress(PolicyError):  # it is in the log
            self.build()
        for name in names:
            with self._building:
                self._fill_chain(name, builder)

    def _fill_chain(self, name: str, *builders: Builder) -> None:
        """Raises nothing: whoever is in a garden without rules is caged all the same."""
        for builder in builders:
            try:
                if builder(name, chain_of(name)):
                    self.kernel.filled(name)
            except L2tpnsError as error:
                self._log.error("garden_failed", garden=name, why=str(error))
            except BaseException as error:  # it is a plugin's
                if is_kill(error):
                    raise
                self._log.exception("garden_failed", garden=name)

    # Start and end

    def start(self, open_kernel: Callable[[], Kernel], names: Iterable[str]) -> None:
        """Build these gardens, which saved sessions are in, before the sessions are restored."""
        try:
            self.kernel = open_kernel()
        except OSError as error:
            self.kernel = NullKernel(f"this kernel has no netfilter: {error.strerror}")
        for name in names:
            with suppress(PolicyError):  # it is in the log; who is in it will not be taken up
                self.build(name)

    def settle(self) -> None:
        """All are taken up: whatever else an earlier process has left goes."""
        try:
            for name, users in self._users.items():
                missing, stale = self.kernel.fill(name, users)
                if stale:
                    self._log.info("garden_cleaned", garden=name, stale=stale, missing=missing)
            self.kernel.tidy(self._users)
        except L2tpnsError as error:
            self._log.error("garden_failed", why=str(error))
        self._watch.start()

    def stop(self) -> None:
        """Nobody carries packets any more."""
        self._watch.stop()
        if self._sweeper is not None:
            self._sweeper.kill()
        try:
            self.kernel.stop()
        except L2tpnsError as error:
            self._log.error("garden_failed", why=str(error))

    def _repair(self) -> None:
        """Restore what another program has removed: an operator who reloads the firewall removes our rules too."""
        for name, users in list(self._users.items()):
            try:
                if self.kernel.build(name):
                    self.kernel.fill(name, users)
                    self._log.warning("garden_rules_restored", garden=name, why="another program had removed them")
                    with self._building:
                        self._fill_chain(name, *self._builders)
                elif self.kernel.count(name) != len(users):
                    missing, stale = self.kernel.fill(name, users)
                    if missing or stale:
                        self._log.warning("garden_members_restored", garden=name, missing=missing, stale=stale)
            except L2tpnsError as error:
                self._log.error("garden_failed", garden=name, why=str(error))

    # Connections

    def _decide_anew(self, session: Subscriber) -> None:
        """Its connections were let through, or sent to the portal, when it was elsewhere."""
        place = self._places.get(session)
        if place is None:
            return
        self._forget.update(place.networks)
        if not self._sweeper:
            self._sweeper = gevent.spawn(self._sweep)

    def _sweep(self) -> None:
        """The table is walked once for many; who is caged is caged before that."""
        while self._forget:
            gevent.sleep(self._flush_delay)
            networks, self._forget = self._forget, set()
            try:
                self.kernel.forget(networks)
            except L2tpnsError as error:
                self._log.error("garden_failed", why=str(error))


def networks_of(session: Subscriber) -> tuple[IPv4Network, ...]:
    """Its address, and the networks behind it."""
    assert session.address is not None and session.profile is not None
    routes = (route.prefix for route in session.profile.routes)
    return tuple(dict.fromkeys((IPv4Network(session.address), *routes)))
