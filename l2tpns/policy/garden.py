"""Walled gardens: their members, and the effect on accounting and user names (manual: Walled Garden).

The manual leaves some behaviour open; it is decided here (docs/garden.md). A session in a garden has its address and is
found by its user name, but is not accounted. It neither ends an older session of that user nor is ended by a newer one.
A session that leaves is treated as if it had just logged in: other sessions of that user end, counters begin at zero,
accounting starts. The kernel's rules are in system/garden_rules.py.
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
from l2tpns.system.garden_rules import DEFAULT, RESERVED
from l2tpns.system.rule_watch import RULE_CHECK_INTERVAL, RuleWatch

MAX_NAME = 16
NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}", re.ASCII)
MAX_GARDENS = 64  # each adds a few rules to every forwarded packet, and the kernel has 256 sets

Builder = Callable[[str, str], bool]  # garden, chain -> True if it has added rules


class Kernel(Protocol):
    """The kernel's part of gardens: system/garden_rules.py. Its methods raise L2tpnsError."""

    @property
    def longest_name(self) -> int: ...

    def chain_of(self, name: str) -> str: ...

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
    """Records its calls. If `refuse` is set, build, add and remove raise L2tpnsError with that text."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse = refuse
        self.gardens: dict[str, set[IPv4Network]] = {}
        self.forgotten: list[IPv4Network] = []
        self.longest_name = MAX_NAME

    def chain_of(self, name: str) -> str:
        return DEFAULT if name == DEFAULT else f"{DEFAULT}_{name}"

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
class Membership:
    """The garden of an online session, and the networks that the kernel restricts for it."""

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
        self._network_users: dict[str, Counter[IPv4Network]] = {}  # by garden: sessions per network
        self._memberships: dict[Subscriber, Membership] = {}
        self._building = RLock()
        self._to_flush: set[IPv4Network] = set()
        self._flusher: Any = None
        self._flush_delay = timing.flush_delay
        self._watch = RuleWatch(supervisor, "garden watcher", self._repair, timing.check_interval)

    # Requests of operators, RADIUS and plugins

    def enter(self, session: Subscriber, name: str = DEFAULT, *, by: str) -> None:
        """Move a session into a garden. May yield. Raises PolicyError, and the session stays where it was."""
        self.build(name)  # may yield
        before = session.policy.garden
        if before == name:
            raise PolicyError("already in walled garden")
        if not session.alive:
            raise PolicyError(f"session {session.id} has ended")
        online = bool(session.online_since)
        usage = None
        if online and not before:  # usage until now is accounted, later usage is not
            usage = session.suspend_service(TerminateCause.PORT_SUSPENDED)
        session.change_policy(garden=name)
        if online:
            self._remove_membership(session)
            self.begin(session)
            self._flush_connections(session)
            self._changes.session(session)
        self._counters.garden_entered += 1
        address = str(session.address) if session.address is not None else None
        session.log.info("garden_entered", user=session.user, address=address, garden=name, by=by)
        if usage is not None:
            session.account_stop(usage)

    def leave(self, session: Subscriber, *, user: str = "", by: str) -> None:
        """Move a session out of its garden, as after a login. May yield. Raises PolicyError.

        A `user` that is not empty replaces the user name.
        """
        name = session.policy.garden
        if not name:
            raise PolicyError("not in walled garden")
        if user:
            session.rename(user)
        if session.online_since:
            session.replace_older()
            if session.policy.garden != name or not session.online_since:
                return  # changed by another command meanwhile, or ended
        session.change_policy(garden="")
        if not session.online_since:
            return
        self._flush_connections(session)
        self._remove_membership(session)
        session.resume_service()  # reference 9: counters begin at zero, then Start
        self._changes.session(session)
        self._counters.garden_left += 1
        session.log.info("garden_left", user=session.user, address=str(session.address), garden=name, by=by)
        session.account_start()

    def members(self) -> dict[str, int]:
        """Return the number of sessions in each garden, by name."""
        counts = Counter(membership.garden for membership in self._memberships.values())
        return {name: counts[name] for name in sorted(self._network_users)}

    def networks(self, name: str) -> int:
        """Return the number of addresses and networks in a garden."""
        return len(self._network_users.get(name, ()))

    # PolicyPart (policy/model.py)

    def begin(self, session: Subscriber) -> None:
        """Restrict a session in a garden before its first packet. End it if the kernel refuses."""
        name = session.policy.garden
        if not name or not session.online_since:
            return
        membership = Membership(name, networks_of(session))
        try:
            users = self._network_users.get(name)
            if users is None:
                raise PolicyError(f"walled garden {name} is not built")
            self._memberships[session] = membership
            session.path.in_garden = True
            self._plane.changed(session.path)
            new = [network for network in membership.networks if not users[network]]
            users.update(membership.networks)
            self.kernel.add(name, new)
        except L2tpnsError as error:
            session.log.error("garden_failed", user=session.user, garden=name, why=str(error))
            self._plane.offline(session.path)
            session.end(causes.NO_RESOURCES, text="walled garden unavailable")

    def finish(self, session: Subscriber) -> None:
        """Lift the restriction of a session that has gone offline."""
        if session in self._memberships:
            self._flush_connections(session)  # the next session with this address is not in the garden
            self._remove_membership(session)

    def _remove_membership(self, session: Subscriber) -> None:
        membership = self._memberships.pop(session, None)
        if membership is None:
            return
        session.path.in_garden = False
        self._plane.changed(session.path)
        users = self._network_users[membership.garden]
        users.subtract(membership.networks)
        gone = [network for network in membership.networks if users[network] <= 0]
        for network in gone:
            del users[network]
        try:
            self.kernel.remove(membership.garden, gone)
        except L2tpnsError as error:
            session.log.error("garden_failed", user=session.user, garden=membership.garden, why=str(error))

    # Gardens

    def build(self, name: str = DEFAULT) -> None:
        """Build a garden unless it exists. May yield. Raises PolicyError."""
        if name in self._network_users:
            return
        longest = min(MAX_NAME, self.kernel.longest_name)
        if not NAME.fullmatch(name) or name == RESERVED or (name != DEFAULT and len(name) > longest):
            why = f"is not a valid garden name: use up to {longest} of a-z, A-Z, 0-9, _ and -"
            raise PolicyError(f'"{printable(name)}" {why}')
        if len(self._network_users) >= MAX_GARDENS:
            raise PolicyError(f"the maximum of {MAX_GARDENS} walled gardens is reached")
        with self._building:
            if name in self._network_users:
                return
            try:
                self.kernel.build(name)
            except L2tpnsError as error:
                self._log.error("garden_failed", garden=name, why=str(error))
                raise PolicyError(f"walled garden {name} is unavailable: {error}") from error
            self._network_users[name] = Counter()
            self._fill_chain(name, *self._builders)
            self._log.info("garden_built", garden=name, chain=self.kernel.chain_of(name))
            if self.kernel.is_empty(name):
                why = "its chain has no rules: only DNS is allowed"
                self._log.warning("garden_empty", garden=name, chain=self.kernel.chain_of(name), why=why)

    def add_builder(self, builder: Builder, spawn: Callable[..., Any]) -> None:
        """Call `builder` for each garden that is built, to add rules to its chain.

        `spawn` runs it soon for existing gardens too. The default garden is built now, before a session needs it: the
        operator may want to add rules by hand.
        """
        self._builders.append(builder)
        spawn(self._fill_chains, builder, list(self._network_users))

    def remove_builder(self, builder: Builder) -> None:
        """Call `builder` no longer. The rules that it has added stay."""
        self._builders.remove(builder)

    def _fill_chains(self, builder: Builder, names: Iterable[str]) -> None:
        with suppress(PolicyError):  # logged by build
            self.build()
        for name in names:
            with self._building:
                self._fill_chain(name, builder)

    def _fill_chain(self, name: str, *builders: Builder) -> None:
        """Call builders and log their failures: a garden without rules still restricts its members."""
        for builder in builders:
            try:
                if builder(name, self.kernel.chain_of(name)):
                    self.kernel.filled(name)
            except L2tpnsError as error:
                self._log.error("garden_failed", garden=name, why=str(error))
            except BaseException as error:  # raised by a plugin
                if is_kill(error):
                    raise
                self._log.exception("garden_failed", garden=name)

    # Start and end

    def start(self, open_kernel: Callable[[], Kernel], names: Iterable[str]) -> None:
        """Open the kernel and build the gardens of saved sessions, before the sessions are restored."""
        try:
            self.kernel = open_kernel()
        except OSError as error:
            self.kernel = NullKernel(f"this kernel has no netfilter: {error.strerror}")
        for name in names:
            with suppress(PolicyError):  # logged by build; its members will not be restored
                self.build(name)

    def reconcile(self) -> None:
        """Remove what an earlier process has left, once all sessions are restored; watch the rules. May yield."""
        try:
            for name, users in self._network_users.items():
                missing, stale = self.kernel.fill(name, users)
                if stale:
                    self._log.info("garden_cleaned", garden=name, stale=stale, missing=missing)
            with self._building:  # a garden that a plugin has built only in part is not a leftover
                self.kernel.tidy(self._network_users)
        except L2tpnsError as error:
            self._log.error("garden_failed", why=str(error))
        self._watch.start()

    def stop(self, *, keep: bool = False) -> None:
        """Remove all rules, unless the kernel goes on carrying packets of sessions in gardens."""
        self._watch.stop()
        if self._flusher is not None:
            self._flusher.kill()
        if keep:
            return
        try:
            with self._building:
                self.kernel.stop()
        except L2tpnsError as error:
            self._log.error("garden_failed", why=str(error))

    def _repair(self) -> None:
        """Restore rules that another program removed: reloading the firewall removes these rules too."""
        for name, users in list(self._network_users.items()):
            try:
                if self.kernel.build(name):
                    self.kernel.fill(name, users)
                    self._log.warning("garden_rules_restored", garden=name, why="another program removed them")
                    with self._building:
                        self._fill_chain(name, *self._builders)
                elif self.kernel.count(name) != len(users):
                    missing, stale = self.kernel.fill(name, users)
                    if missing or stale:
                        self._log.warning("garden_members_restored", garden=name, missing=missing, stale=stale)
            except L2tpnsError as error:
                self._log.error("garden_failed", garden=name, why=str(error))

    # Connections

    def _flush_connections(self, session: Subscriber) -> None:
        """Schedule a flush of its connections from conntrack, which still holds earlier decisions about them."""
        membership = self._memberships.get(session)
        if membership is None:
            return
        self._to_flush.update(membership.networks)
        if not self._flusher:
            self._flusher = gevent.spawn(self._flush_collected)

    def _flush_collected(self) -> None:
        """Flush the collected networks, many in one pass of the conntrack table."""
        while self._to_flush:
            gevent.sleep(self._flush_delay)
            networks, self._to_flush = self._to_flush, set()
            try:
                self.kernel.forget(networks)
            except L2tpnsError as error:
                self._log.error("garden_failed", why=str(error))


def networks_of(session: Subscriber) -> tuple[IPv4Network, ...]:
    """Return the session's address and its framed routes."""
    assert session.address is not None and session.profile is not None
    routes = (route.prefix for route in session.profile.routes)
    return tuple(dict.fromkeys((IPv4Network(session.address), *routes)))
