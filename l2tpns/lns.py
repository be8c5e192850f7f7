"""The LNS: the tables of tunnels and sessions, and what every part may ask for.

Admission is decided here (how many half-open tunnels and starting calls there may be), and everything that more than
one session shares: ids, names, addresses, routes. It knows no PPP and no octets beyond the first SCCRQ of a tunnel.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from time import monotonic
from typing import Any

import gevent

from l2tpns import causes
from l2tpns.config.settings import Config
from l2tpns.dataplane.plane import DataPlane
from l2tpns.dataplane.udp import Endpoint
from l2tpns.errors import ProtocolError, WireError
from l2tpns.l2tp.address_change import ProbeBudget
from l2tpns.l2tp.half_open import HalfOpen
from l2tpns.l2tp.strangers import Strangers
from l2tpns.l2tp.tunnel import Tunnel, TunnelState
from l2tpns.plugins.manager import Plugins
from l2tpns.policy.garden import Gardens
from l2tpns.policy.model import Part
from l2tpns.policy.snoop import Snoop
from l2tpns.policy.taps import Taps
from l2tpns.policy.throttle import Throttle
from l2tpns.proto.l2tp.header import parse_control
from l2tpns.proto.l2tp.messages import ICRQ, CdnResult, ErrorCode, StopCcnResult
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.types import Backend
from l2tpns.radius.usage import SessionIds
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.cooperative import in_slices
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.log import Logger
from l2tpns.runtime.peer import Peer
from l2tpns.runtime.repeat_filter import RepeatFilter
from l2tpns.runtime.scheduler import Scheduler
from l2tpns.runtime.supervisor import Part as Loop
from l2tpns.runtime.supervisor import Supervisor
from l2tpns.runtime.timer_wheel import Wheel
from l2tpns.state.journal import Journal
from l2tpns.subscriber import plugin_hooks, timers
from l2tpns.subscriber.address_guard import AddressGuard
from l2tpns.subscriber.history import LENGTH as HISTORY_LENGTH
from l2tpns.subscriber.history import Ending
from l2tpns.subscriber.pool import Layout, Pool
from l2tpns.subscriber.session import Session
from l2tpns.subscriber.usage_files import UsageFiles

WHEEL_TICK = 0.1  # seconds
LINGERING_LIMIT = 1000  # closed tunnels that still acknowledge; more are forgotten at once
MAX_ID = 65_000  # tunnels, and sessions: ids are 16 bits, and one drawn at random must soon be free


class Lns:
    """All tunnels and sessions of one server."""

    def __init__(
        self,
        config: Config,
        counters: Counters,
        log: Logger,
        pool: Pool,
        backend: Backend,
        accounting: Accounting,
        random: Callable[[int], bytes] = os.urandom,
        supervisor: Supervisor | None = None,
        awake: AwakeClock | None = None,
    ) -> None:
        self.config = config
        self.awake = awake or AwakeClock()
        self.counters = counters
        self.log = log
        self.supervisor = supervisor or Supervisor(log)
        self.pool = pool
        self.backend = backend
        self.accounting = accounting
        self.random = random
        self.plane: DataPlane  # set by whoever builds both: each calls the other
        self.wheel: Wheel[Session] = Wheel(monotonic(), WHEEL_TICK)
        self.tunnels: dict[int, Tunnel] = {}
        self.sessions: dict[int, Session] = {}
        self.by_peer: dict[tuple[Peer, int], Tunnel] = {}  # by address and the LAC's tunnel id
        self.by_user: dict[str, set[Session]] = {}  # by Config.user_key of the name, authenticated ones
        self.by_address: dict[IPv4Address, Session] = {}
        self.tunnels_of: Counter[str] = Counter()  # tunnels that are not closing, by the LAC's address
        self.half_open = HalfOpen()  # tunnels without SCCCN
        self.strangers = Strangers(self)
        self.turns = Scheduler(load=1.0)  # of tunnels with more mail than they can read at once
        self.starting: Counter[str] = Counter()  # calls not online yet, by the LAC's address
        self.share = Scheduler()  # of the time, for what strangers feed
        self.lingering = 0
        self.probe_budget = ProbeBudget()
        self.history: deque[Ending] = deque(maxlen=HISTORY_LENGTH)
        self.username_case = config.username_case  # as by_user and the pool go by it
        pool.compare_names(config.user_key)
        self.usage_files = UsageFiles(self)
        self.shutting_down = False
        self.deaf = False  # for a moment: what is said now is not acknowledged, so it is said again
        self.left = False  # without a word: everything is on disk, nobody may say or end anything any more
        self.guard = AddressGuard(self)
        self.journal = Journal(self)
        self.throttle = Throttle(self)
        self.gardens = Gardens(self)
        self.snoop = Snoop(self)
        self.taps = Taps(self)
        self.plugins = Plugins(self)
        self.unread_avpairs = RepeatFilter(plugin_hooks.UNREAD_INTERVAL)
        self.policies: tuple[Part, ...] = (self.gardens, self.throttle, self.snoop, self.taps)
        self.acct_session_ids = SessionIds(random)
        self.clock: Loop | None = None

    def start(self) -> None:
        self.clock = self.supervisor.spawn("timer wheel", self._turn_wheel, essential=True)

    def _turn_wheel(self) -> None:
        """The clock of everything that is due while a session is online."""
        self.awake.beat()
        while True:
            gevent.sleep(WHEEL_TICK)
            self._beat()
            now = monotonic()
            for session in self.wheel.advance(now):
                try:
                    session.on_timer(now)
                except Exception:  # one session's mistake: the others' clocks must go on
                    session.log.exception("session_failed")

    def _beat(self) -> None:
        """Note that this process is awake; after a pause have all subscribers asked whether they are there."""
        paused = self.awake.beat()
        if paused:
            self.log.warning("process_paused", seconds=round(paused, 1))
            gevent.spawn(self._ask_again)

    def _ask_again(self) -> None:
        for session in in_slices(list(self.sessions.values())):
            timers.ask_again(session, monotonic())

    # Control datagrams

    def on_control(self, datagram: bytes, peer: Peer, endpoint: Endpoint) -> None:
        """A datagram with T=1; called by the UDP reader, so it must neither block nor raise."""
        if self.left or self.deaf:
            return  # not acknowledged: the next process, or this one in a moment, has it sent again
        try:
            header = parse_control(datagram)
        except WireError:
            self.counters.drop_malformed += 1
            return
        if header.tunnel_id == 0:
            self.strangers.on_message(header, peer, endpoint)
            return
        tunnel = self.tunnels.get(header.tunnel_id)
        if tunnel is None:
            self.counters.drop_unknown_tunnel += 1
            return
        if tunnel.peer != peer:
            # 8.1: both ends' addresses are static for the life of the tunnel, unless the operator knows better.
            self.counters.drop_wrong_peer += 1
            if self.config.auth_tunnel_change_addr_src:
                tunnel.post_foreign(header, peer)
            return
        if not tunnel.mailbox.post(header):
            self.counters.drop_mailbox_full += 1

    def lac_restarted(self, known: Tunnel) -> bool:
        """A LAC that lost its memory may begin anew with the same port and id; our old tunnel must not swallow that.

        A repeat of the first SCCRQ cannot come long after the SCCCN. The old tunnel stays until the new one has its
        SCCCN, which nobody can send who does not see our SCCRP: a forged SCCRQ does no harm.
        """
        age = monotonic() - known.opened_at - self.awake.paused_since(known.opened_at)
        established = known.state is TunnelState.ESTABLISHED and age > 5.0
        return established or known.state is TunnelState.CLOSING

    def find_room(self, lac: str) -> tuple[bool, Tunnel | None]:
        """Return whether one more half-open tunnel may begin, and which one has to be evicted for it, if any."""
        config = self.config
        own = self.half_open.of(lac) >= config.max_half_open_per_lac
        full = own or self.half_open.total() >= config.max_half_open_tunnels
        if not full and len(self.tunnels) - self.lingering < (config.max_tunnels or MAX_ID):
            return True, None
        oldest = self.half_open.oldest(monotonic(), lac if own else None)
        return oldest is not None or not full, oldest

    def evict(self, tunnel: Tunnel) -> None:
        """Forget a half-open tunnel without a word; another has its place."""
        self.counters.tunnels_crowded_out += 1
        self.log.provoked("tunnel_crowded_out", tunnel=tunnel.id, peer=f"{tunnel.peer[0]}:{tunnel.peer[1]}")
        if tunnel.state is not TunnelState.CLOSING:
            self.lingering += 1  # as whoever is closing; tunnel_gone sees to the rest
            self._count_down(self.tunnels_of, tunnel.lac)
        self.tunnel_gone(tunnel)
        tunnel.crowd_out()

    def tunnel_refusal(self, peer: Peer, evicted: Tunnel | None = None) -> ProtocolError | None:
        """Why there may be no further tunnel now, or None; `evicted` would make room for it."""
        config = self.config
        if self.shutting_down:
            return ProtocolError(StopCcnResult.SHUTTING_DOWN, 0, "shutting down")
        leaves = evicted is not None and evicted.state is not TunnelState.CLOSING  # else it is not counted any more
        of_this_lac = self.tunnels_of[peer[0]] - (leaves and evicted is not None and evicted.lac == peer[0])
        if (
            of_this_lac >= (config.max_tunnels_per_lac or MAX_ID)
            or len(self.tunnels) - self.lingering - leaves >= (config.max_tunnels or MAX_ID)
            or len(self.tunnels) - (evicted is not None) >= MAX_ID
        ):
            return ProtocolError(StopCcnResult.GENERAL, ErrorCode.RESOURCES, "too many tunnels")
        return None

    def tunnel_begun(self, tunnel: Tunnel) -> None:
        """Count a tunnel whose SCCRQ was accepted."""
        self.tunnels[tunnel.id] = tunnel
        self.by_peer[tunnel.peer, tunnel.peer_id] = tunnel
        self.half_open.add(tunnel)
        self.tunnels_of[tunnel.lac] += 1

    # Tunnels' lives

    def tunnel_established(self, tunnel: Tunnel) -> None:
        self.counters.tunnels_opened += 1
        self.strangers.budget.know(tunnel.lac)
        tunnel.use(self.plane.dedicate(tunnel.endpoint))
        self.half_open.discard(tunnel)
        self.guard.lac_established(tunnel.peer[0], tunnel.host)
        self.journal.tunnel(tunnel)
        for older in list(self.tunnels.values()):
            if older is not tunnel and older.peer == tunnel.peer and older.peer_id == tunnel.peer_id:
                older.end(causes.TUNNEL_LOST, None, "the LAC has begun anew")

    def tunnel_closing(self, tunnel: Tunnel, *, says_goodbye: bool) -> None:
        """One that never came up stays in the limit of half-open ones until its LAC has acknowledged our StopCCN."""
        self.counters.tunnels_closed += 1
        if tunnel.reliable.proven:  # else nothing of it is on disk
            self.journal.tunnel_gone(tunnel)
        self.guard.lac_left(tunnel.peer[0])
        if not says_goodbye:
            self.half_open.discard(tunnel)
        self.lingering += 1
        self._count_down(self.tunnels_of, tunnel.lac)

    def drop_tunnel(self, tunnel: Tunnel) -> None:
        """Manual, drop tunnel: a CDN to each of its sessions now, the StopCCN drop_tunnel_delay seconds later."""
        tunnel.dropping = True
        for session in list(tunnel.sessions.values()):
            session.end(causes.ADMIN_DROP)
        gevent.spawn_later(self.config.drop_tunnel_delay, tunnel.end, causes.ADMIN_DROP)

    def may_linger(self) -> bool:
        return self.lingering <= LINGERING_LIMIT

    def tunnel_moved(self, tunnel: Tunnel, peer: Peer) -> None:
        """Its LAC speaks from another address now: it is found by that."""
        if self.by_peer.get((tunnel.peer, tunnel.peer_id)) is tunnel:
            del self.by_peer[tunnel.peer, tunnel.peer_id]
        self.by_peer[peer, tunnel.peer_id] = tunnel
        self.guard.lac_established(peer[0], tunnel.host)

    def tunnel_gone(self, tunnel: Tunnel) -> None:
        if self.tunnels.get(tunnel.id) is not tunnel:
            return  # crowded out long ago
        self.half_open.discard(tunnel)
        tunnel.endpoint.release()
        self.lingering -= 1
        del self.tunnels[tunnel.id]
        key = (tunnel.peer, tunnel.peer_id)
        if self.by_peer.get(key) is tunnel:
            del self.by_peer[key]

    # Sessions' lives

    def call_refusal(self, tunnel: Tunnel) -> ProtocolError | None:
        """Why there may be no further call now, or None (4.4.2: result 4 asks the LAC to try again later)."""
        config = self.config
        if self.shutting_down or tunnel.dropping:
            return ProtocolError(CdnResult.ADMINISTRATIVE, 0, "shutting down")
        if (
            self.starting.total() >= config.max_starting_calls
            or self.starting[tunnel.lac] >= config.max_starting_per_lac
            or len(self.sessions) >= min(config.max_sessions or MAX_ID, MAX_ID)
            or tunnel.has_backlog()
        ):
            return ProtocolError(CdnResult.NO_FACILITIES, ErrorCode.RESOURCES, "too many calls")
        return None

    def start_session(self, tunnel: Tunnel, icrq: ICRQ) -> None:
        session = Session(self, tunnel, self.unused_session_id(), icrq)
        self.sessions[session.id] = session
        tunnel.session_born(session)
        self.starting[tunnel.lac] += 1
        self.journal.call(session)
        session.greenlet = gevent.spawn(session.run)

    def session_started(self, session: Session) -> None:
        self._count_down(self.starting, session.tunnel.lac)

    def session_gone(self, session: Session) -> None:
        self.counters.sessions_ended += 1
        self.journal.session_gone(session)
        del self.sessions[session.id]
        session.tunnel.session_gone(session)

    # Names and addresses

    def older_sessions(self, session: Session) -> list[Session]:
        """Remember who is logged in; returns the sessions that this login replaces (reference: duplicates).

        Who is in a walled garden may not be who it says: it replaces nobody, and nobody replaces it.
        """
        self.remember_user(session)
        return [] if session.policy.garden else self.replaced_by(session)

    def replaced_by(self, session: Session) -> list[Session]:
        """Who has to go when this one is in."""
        config = self.config
        if config.allow_duplicate_users or any(self.same_user(session.user, guest) for guest in config.guest_account):
            return []
        found = self.sessions_of(session.user)
        return [other for other in found if other is not session and not other.policy.garden]

    def same_user(self, user: str, other: str) -> bool:
        """Return whether two names are one user's, by `username_case`."""
        return self.config.user_key(user) == self.config.user_key(other)

    def sessions_of(self, user: str) -> tuple[Session, ...]:
        """Return the sessions of a user who has logged in, in no order."""
        return tuple(self.by_user.get(self.config.user_key(user), ()))

    def remember_user(self, session: Session) -> None:
        self.by_user.setdefault(self.config.user_key(session.user), set()).add(session)

    def compare_names(self) -> None:
        """Go by `username_case` as it is now. Does not yield."""
        if self.config.username_case == self.username_case:
            return
        self.username_case = self.config.username_case
        sessions = [session for holders in self.by_user.values() for session in holders]
        self.by_user.clear()
        for session in sessions:
            self.remember_user(session)
        self.pool.compare_names(self.config.user_key)

    def forget_user(self, session: Session) -> None:
        name = self.config.user_key(session.user)
        holders = self.by_user.get(name)
        if holders is not None:
            holders.discard(session)
            if not holders:
                del self.by_user[name]

    def rename(self, session: Session, user: str) -> None:
        """It is known by another name from now on, in accounting, too."""
        name = user.encode("utf-8", "surrogateescape")
        self.forget_user(session)
        session.user = name.decode("utf-8", "backslashreplace")  # as Credentials.user has it: JSON takes no other
        self.remember_user(session)
        if session.credentials is not None:
            session.credentials = replace(session.credentials, name=name)
        if session.profile is not None:
            session.profile = replace(session.profile, user=b"")

    def holders(self, address: IPv4Address, session: Session) -> list[Session]:
        """Who else has this address."""
        holder = self.by_address.get(address)
        return [] if holder is None or holder is session else [holder]

    def take_address(self, address: IPv4Address, session: Session) -> str:
        """Give a session an address that RADIUS or the subscriber chose. Return why it cannot have it, or nothing."""
        why = self.guard.refusal(address)
        if why:
            return why
        if address in self.by_address:
            return "another session has it"
        if self.pool.contains(address) and not self.pool.claim(address, session.proven_user):
            return "it is taken"
        self.by_address[address] = session
        return ""

    def change_pool(self, layout: Layout) -> None:
        """Give out these addresses from now on; who has one keeps it, whether RADIUS or the pool has named it."""
        self.pool.change(layout)
        self.claim_held_addresses()

    def claim_held_addresses(self) -> None:
        """Addresses that have come into the pool while sessions had them are not given out again."""
        for address, session in self.by_address.items():
            if self.pool.contains(address):
                self.pool.claim(address, session.proven_user)

    def give_back_address(self, address: IPv4Address) -> None:
        del self.by_address[address]
        if self.pool.contains(address):
            self.pool.release(address)

    # Small services

    def unused_tunnel_id(self) -> int:
        return self._unused_id(self.tunnels)

    def unused_session_id(self) -> int:
        return self._unused_id(self.sessions)

    def _unused_id(self, taken: dict[int, Any]) -> int:
        """9.1: an id that cannot be guessed. There is always a free one: admission keeps below 65,535."""
        while True:
            candidate = int.from_bytes(self.random(2), "big")
            if candidate and candidate not in taken:
                return candidate

    @staticmethod
    def _count_down(counter: Counter[str], host: str) -> None:
        counter[host] -= 1
        if counter[host] <= 0:
            del counter[host]

    # Leaving

    def leave(self) -> bool:
        """Without a word, everything on disk for the next process; False when it cannot be written."""
        self.left = self.journal.leave()
        return self.left

    def shutdown(self, patience: float) -> None:
        """CDN and StopCCN to everybody, and wait until they are acknowledged or `patience` seconds are over."""
        self.shutting_down = True
        until = self.awake.now() + patience
        sessions = list(self.sessions.values())
        for session in sessions:
            session.end(causes.SHUTDOWN)
        self.awake.join([session.greenlet for session in sessions], patience)
        while self.awake.now() < until and any(not tunnel.quiet for tunnel in self.tunnels.values()):
            gevent.sleep(0.05)
        for tunnel in list(self.tunnels.values()):
            tunnel.end(causes.SHUTDOWN, StopCcnResult.SHUTTING_DOWN)
        while self.awake.now() < until and any(
            t.state is not TunnelState.CLOSING or not t.reliable.idle for t in self.tunnels.values()
        ):
            gevent.sleep(0.05)
