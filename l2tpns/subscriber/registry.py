"""The user name and the address of each session.

A name is registered when a login is accepted, an address when the pool, RADIUS or the subscriber has chosen it. Names
are compared by `username_case` (config/user_names.py).
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Generic, TypeVar

from l2tpns.config.settings import Config
from l2tpns.policy.model import Subscriber
from l2tpns.subscriber.pool import Layout
from l2tpns.subscriber.pools import UNNAMED, Pools
from l2tpns.subscriber.routable import Routable

S = TypeVar("S", bound=Subscriber)


class Registry(Generic[S]):
    """Names and addresses of all sessions. No method yields."""

    def __init__(self, config: Config, pool: Pools, routable: Routable) -> None:
        self.by_user: dict[str, set[S]] = {}  # by Config.user_key of the name
        self.by_address: dict[IPv4Address, S] = {}
        self._config = config
        self._pool = pool
        self._routable = routable
        self._username_case = config.username_case  # the setting that by_user and the pool use now
        pool.compare_names(config.user_key)

    # Names

    def login(self, session: S) -> list[S]:
        """Register the user name of a session. Return the sessions that this login replaces (reference: duplicates).

        In a walled garden the user name is not proven: such a session replaces none and is replaced by none.
        """
        self.remember_user(session)
        return [] if session.policy.garden else self.replaced_by(session)

    def replaced_by(self, session: S) -> list[S]:
        """Return the sessions that this one replaces."""
        config = self._config
        if config.allow_duplicate_users or any(self.same_user(session.user, guest) for guest in config.guest_account):
            return []
        found = self.sessions_of(session.user)
        return [other for other in found if other is not session and not other.policy.garden]

    def same_user(self, user: str, other: str) -> bool:
        """Return whether two names belong to the same user, by `username_case`."""
        return self._config.user_key(user) == self._config.user_key(other)

    def sessions_of(self, user: str) -> tuple[S, ...]:
        """Return the logged-in sessions of a user, unordered."""
        return tuple(self.by_user.get(self._config.user_key(user), ()))

    def remember_user(self, session: S) -> None:
        """Register the user name of a session."""
        self.by_user.setdefault(self._config.user_key(session.user), set()).add(session)

    def forget_user(self, session: S) -> None:
        """Remove the user name of a session. Does nothing if it is not registered."""
        name = self._config.user_key(session.user)
        holders = self.by_user.get(name)
        if holders is not None:
            holders.discard(session)
            if not holders:
                del self.by_user[name]

    def compare_names(self) -> None:
        """Apply the current `username_case`."""
        if self._config.username_case == self._username_case:
            return
        self._username_case = self._config.username_case
        sessions = [session for holders in self.by_user.values() for session in holders]
        self.by_user.clear()
        for session in sessions:
            self.remember_user(session)
        self._pool.compare_names(self._config.user_key)

    # Addresses

    def holders(self, address: IPv4Address, session: S) -> list[S]:
        """Return the other sessions with this address: one or none."""
        holder = self.by_address.get(address)
        return [] if holder is None or holder is session else [holder]

    def allocate(self, session: S, pool: str = UNNAMED) -> IPv4Address:
        """Assign an address of a pool. Raises NoAddress if the pool is exhausted."""
        address = self._pool.allocate(session.proven_user, pool)
        self.by_address[address] = session
        return address

    def take_address(self, address: IPv4Address, session: S) -> str:
        """Assign an address that RADIUS or the subscriber chose. Return why it is refused, or an empty string."""
        why = self._routable.address_refusal(address)
        if why:
            return why
        if address in self.by_address:
            return "another session has it"
        if self._pool.contains(address) and not self._pool.claim(address, session.proven_user):
            return "it is in use"
        self.by_address[address] = session
        return ""

    def give_back_address(self, address: IPv4Address) -> None:
        """Free an address. Raises KeyError if no session has it."""
        del self.by_address[address]
        if self._pool.contains(address):
            self._pool.release(address)

    def change_pool(self, layout: Layout) -> None:
        """Allocate from these addresses from now on. Each session keeps its address."""
        self._pool.change(layout)
        self.claim_held_addresses()

    def claim_held_addresses(self) -> None:
        """Mark as used the addresses that were added to the pool while sessions had them."""
        for address, session in self.by_address.items():
            if self._pool.contains(address):
                self._pool.claim(address, session.proven_user)
