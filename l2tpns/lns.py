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

from l2tpns import ends
from l2tpns.config import Config
from l2tpns.counters import Counters
from l2tpns.dataplane.path import Path
from l2tpns.dataplane.plane import DataPlane
from l2tpns.dataplane.udp import Endpoint
from l2tpns.errors import ProtocolError, WireError
from l2tpns.gardens import Gardens
from l2tpns.halfopen import HalfOpen
from l2tpns.history import LENGTH as HISTORY_LENGTH
from l2tpns.history import Ending
from l2tpns.journal import Journal
from l2tpns.log import Logger
from l2tpns.plugins.core import Plugins
from l2tpns.policy import Part
from l2tpns.pool import Layout, Pool
from l2tpns.proto import messages
from l2tpns.proto.header import ControlHeader, build_control, parse_control
from l2tpns.proto.messages import (
    ICRQ,
    SCCRP,
    SCCRQ,
    CdnResult,
    ErrorCode,
    MessageError,
    ResultCode,
    StopCCN,
    StopCcnResult,
)
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.types import Backend
from l2tpns.radius.usage import SessionIds
from l2tpns.session import Session
from l2tpns.share import Share
from l2tpns.snoop import Snoop
from l2tpns.taps import Taps
from l2tpns.throttle import Throttle
from l2tpns.tunnel import Tunnel, TunnelState
from l2tpns.usagefiles import UsageFiles
from l2tpns.wheel import Wheel

Peer = tuple[str, int]
WHEEL_TICK = 0.1  # seconds
LINGERING_LIMIT = 1000  # closed tunnels that still acknowledge; more are forgotten at once
REFUSALS_PER_SECOND = 200  # StopCCNs to SCCRQs that are refused before there is a tunnel
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
    ) -> None:
        self.config = config
        self.counters = counters
        self.log = log
        self.pool = pool
        self.backend = backend
        self.accounting = accounting
        self.random = random
        self.plane: DataPlane  # set by whoever builds both: each calls the other
        self.wheel: Wheel[Session] = Wheel(monotonic(), WHEEL_TICK)
        self.tunnels: dict[int, Tunnel] = {}
        self.sessions: dict[int, Session] = {}
        self.by_peer: dict[tuple[Peer, int], Tunnel] = {}  # by address and the LAC's tunnel id
        self.by_user: dict[str, set[Session]] = {}  # by the name in lower case, authenticated ones
        self.by_address: dict[IPv4Address, Session] = {}
        self.tunnels_of: Counter[str] = Counter()  # tunnels that are not closing, by the LAC's address
        self.half_open = HalfOpen()  # tunnels without SCCCN
        self.starting: Counter[str] = Counter()  # calls not online yet, by the LAC's address
        self.share = Share()  # of the time, for what strangers feed
        self.lingering = 0
        self.history: deque[Ending] = deque(maxlen=HISTORY_LENGTH)
        self.usage_files = UsageFiles(self)
        self.shutting_down = False
        self.deaf = False  # for a moment: what is said now is not acknowledged, so it is said again
        self.left = False  # without a word: everything is on disk, nobody may say or end anything any more
        self.journal = Journal(self)
        self.throttle = Throttle(self)
        self.gardens = Gardens(self)
        self.snoop = Snoop(self)
        self.taps = Taps(self)
        self.plugins = Plugins(self)
        self.policies: tuple[Part, ...] = (self.gardens, self.throttle, self.snoop, self.taps)
        self.acct_session_ids = SessionIds(random)
        self._refusal_second = 0
        self._refusals = 0
        self._wheel_greenlet: Any = None

    def start(self) -> None:
        self._wheel_greenlet = gevent.spawn(self._turn_wheel)

    def _turn_wheel(self) -> None:
        """The clock of everything that is due while a session is online."""
        while True:
            gevent.sleep(WHEEL_TICK)
            now = monotonic()
            for session in self.wheel.advance(now):
                try:
                    session.on_timer(now)
                except Exception:  # one session's mistake: the others' clocks must go on
                    session.log.exception("session_failed")

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
            self.on_stranger(header, peer, endpoint)
            return
        tunnel = self.tunnels.get(header.tunnel_id)
        if tunnel is None:
            self.counters.drop_unknown_tunnel += 1
            return
        if tunnel.peer != peer:
            # 8.1: both ends' addresses are static for the life of the tunnel, unless the operator knows better.
            if not self.config.auth_tunnel_change_addr_src:
                self.counters.drop_wrong_peer += 1
                return
            tunnel.move(peer)
        if not tunnel.mailbox.post(header):
            self.counters.drop_mailbox_full += 1

    def on_stranger(self, header: ControlHeader, peer: Peer, endpoint: Endpoint) -> None:
        """Tunnel ID 0: an SCCRQ, or a StopCCN of one who never learned our id (4.4.3)."""
        if not header.body:
            return
        try:
            message = messages.decode(header.body, self.config.l2tp_secret_octets)
        except MessageError as error:
            self.counters.control_malformed += 1
            self.log.provoked("sccrq_refused", peer=f"{peer[0]}:{peer[1]}", why=error.text)
            if error.message_type == SCCRQ.message_type:
                self.refuse_tunnel(error.assigned_id, peer, endpoint, error)
            return
        for warning in message.warnings:
            self.log.provoked("avp_ignored", message=type(message).__name__, peer=f"{peer[0]}:{peer[1]}", why=warning)
        if isinstance(message, StopCCN):
            tunnel = self.by_peer.get((peer, message.assigned_tunnel_id))
            # Whoever has sent an SCCCN knows our id. Without it one who forges the LAC's address could end a tunnel.
            if tunnel is not None and tunnel.state is not TunnelState.ESTABLISHED:
                tunnel.mailbox.post(header)
        elif isinstance(message, SCCRQ):
            self.on_sccrq(header, message, peer, endpoint)
        elif isinstance(message, SCCRP):  # 7.2.1 idle
            unasked = ProtocolError(StopCcnResult.FSM, 0, "there was no SCCRQ of ours")
            self.refuse_tunnel(message.assigned_tunnel_id, peer, endpoint, unasked)
        else:
            self.counters.drop_unknown_tunnel += 1

    def on_sccrq(self, header: ControlHeader, sccrq: SCCRQ, peer: Peer, endpoint: Endpoint) -> None:
        if header.ns != 0 or header.nr != 0:  # 5.8: the first of its Ns, from one who has had nothing of ours
            self.counters.drop_malformed += 1
            return
        known = self.by_peer.get((peer, sccrq.assigned_tunnel_id))
        if known is not None and not self.lac_restarted(known):
            known.mailbox.post(header)  # a repeat: acknowledged by the tunnel it has made
            return
        if not self.make_room(peer[0]):
            self.counters.drop_half_open_limit += 1  # not answered: who means it sends it again in a second (5.8)
            return
        refusal = self.tunnel_refusal(peer)
        if refusal is not None:
            self.refuse_tunnel(sccrq.assigned_tunnel_id, peer, endpoint, refusal)
            return
        if sccrq.receive_window_size == 0:  # 4.4.3 knows no such window; we go on with 1
            self.counters.control_malformed += 1
            self.log.provoked("avp_ignored", message="SCCRQ", peer=f"{peer[0]}:{peer[1]}", why="Receive Window Size 0")
        tunnel = Tunnel(self, self.unused_tunnel_id(), peer, endpoint, header, sccrq)
        self.tunnels[tunnel.id] = tunnel
        self.by_peer[peer, tunnel.peer_id] = tunnel
        self.half_open.add(tunnel)
        self.tunnels_of[tunnel.lac] += 1
        gevent.spawn(tunnel.run)

    def lac_restarted(self, known: Tunnel) -> bool:
        """A LAC that lost its memory may begin anew with the same port and id; our old tunnel must not swallow that.

        A repeat of the first SCCRQ cannot come long after the SCCCN. The old tunnel stays until the new one has its
        SCCCN, which nobody can send who does not see our SCCRP: a forged SCCRQ does no harm.
        """
        established = known.state is TunnelState.ESTABLISHED and monotonic() - known.opened_at > 5.0
        return established or known.state is TunnelState.CLOSING

    def make_room(self, lac: str) -> bool:
        """Among the half-open tunnels, for who knocks now: the oldest is forgotten without a word. False: all stay."""
        config = self.config
        own = self.half_open.of(lac) >= config.max_half_open_per_lac
        full = own or self.half_open.total() >= config.max_half_open_tunnels
        if not full and len(self.tunnels) - self.lingering < (config.max_tunnels or MAX_ID):
            return True
        oldest = self.half_open.oldest(monotonic(), lac if own else None)
        if oldest is None:
            return not full
        self.counters.tunnels_crowded_out += 1
        self.log.provoked("tunnel_crowded_out", tunnel=oldest.id, peer=f"{oldest.peer[0]}:{oldest.peer[1]}")
        if oldest.state is not TunnelState.CLOSING:
            self.lingering += 1  # as whoever is closing; tunnel_gone sees to the rest
            self._count_down(self.tunnels_of, oldest.lac)
        self.tunnel_gone(oldest)
        oldest.crowd_out()
        return True

    def tunnel_refusal(self, peer: Peer) -> ProtocolError | None:
        """Why there may be no further tunnel now, or None."""
        config = self.config
        if self.shutting_down:
            return ProtocolError(StopCcnResult.SHUTTING_DOWN, 0, "shutting down")
        if (
            self.tunnels_of[peer[0]] >= (config.max_tunnels_per_lac or MAX_ID)
            or len(self.tunnels) - self.lingering >= (config.max_tunnels or MAX_ID)
            or len(self.tunnels) >= MAX_ID
        ):
            return ProtocolError(StopCcnResult.GENERAL, ErrorCode.RESOURCES, "too many tunnels")
        return None

    def refuse_tunnel(self, peer_tunnel_id: int, peer: Peer, endpoint: Endpoint, error: ProtocolError) -> None:
        """StopCCN without a tunnel (7.2.1 idle): said once and forgotten, so that a flood costs no memory."""
        self.counters.tunnels_refused += 1
        second = int(monotonic())
        if second != self._refusal_second:
            self._refusal_second, self._refusals = second, 0
        self._refusals += 1
        if self._refusals > REFUSALS_PER_SECOND:
            return
        stop = StopCCN(
            assigned_tunnel_id=self.unused_tunnel_id(),
            result_code=ResultCode(error.result_code, error.error_code, error.text),
        )
        endpoint.send(build_control(peer_tunnel_id, 0, 0, 1, messages.encode(stop)), peer)

    def on_foreign_source(self, path: Path, peer: Peer) -> bool:
        """A data message came from an address that is not the LAC's: follow it only if the operator wants that."""
        tunnel = self.tunnels.get(path.key >> 16)
        if tunnel is None or not self.config.auth_tunnel_change_addr_src:
            return False
        tunnel.move(peer)
        return True

    # Tunnels' lives

    def tunnel_established(self, tunnel: Tunnel) -> None:
        self.counters.tunnels_opened += 1
        self.half_open.discard(tunnel)
        self.journal.tunnel(tunnel)
        for older in list(self.tunnels.values()):
            if older is not tunnel and older.peer == tunnel.peer and older.peer_id == tunnel.peer_id:
                older.end(ends.TUNNEL_LOST, None, "the LAC has begun anew")

    def tunnel_closing(self, tunnel: Tunnel, *, says_goodbye: bool) -> None:
        """One that never came up stays in the limit of half-open ones until its LAC has acknowledged our StopCCN."""
        self.counters.tunnels_closed += 1
        self.journal.tunnel_gone(tunnel)
        if not says_goodbye:
            self.half_open.discard(tunnel)
        self.lingering += 1
        self._count_down(self.tunnels_of, tunnel.lac)

    def drop_tunnel(self, tunnel: Tunnel) -> None:
        """Manual, drop tunnel: a CDN to each of its sessions now, the StopCCN drop_tunnel_delay seconds later."""
        tunnel.dropping = True
        for session in list(tunnel.sessions.values()):
            session.end(ends.ADMIN_DROP)
        gevent.spawn_later(self.config.drop_tunnel_delay, tunnel.end, ends.ADMIN_DROP)

    def may_linger(self) -> bool:
        return self.lingering <= LINGERING_LIMIT

    def tunnel_moved(self, tunnel: Tunnel, peer: Peer) -> None:
        """Its LAC speaks from another address now: it is found by that."""
        if self.by_peer.get((tunnel.peer, tunnel.peer_id)) is tunnel:
            del self.by_peer[tunnel.peer, tunnel.peer_id]
        self.by_peer[peer, tunnel.peer_id] = tunnel

    def tunnel_gone(self, tunnel: Tunnel) -> None:
        if self.tunnels.get(tunnel.id) is not tunnel:
            return  # crowded out long ago
        self.half_open.discard(tunnel)
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
        self.by_user.setdefault(session.user.lower(), set()).add(session)
        return [] if session.policy.garden else self.replaced_by(session)

    def replaced_by(self, session: Session) -> list[Session]:
        """Who has to go when this one is in."""
        config, name = self.config, session.user.lower()
        if config.allow_duplicate_users or name in (guest.lower() for guest in config.guest_account):
            return []
        return [other for other in self.by_user.get(name, ()) if other is not session and not other.policy.garden]

    def forget_user(self, session: Session) -> None:
        name = session.user.lower()
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
        self.by_user.setdefault(session.user.lower(), set()).add(session)
        if session.credentials is not None:
            session.credentials = replace(session.credentials, name=name)
        if session.profile is not None:
            session.profile = replace(session.profile, user=b"")

    def holders(self, address: IPv4Address, session: Session) -> list[Session]:
        """Who else has this address."""
        holder = self.by_address.get(address)
        return [] if holder is None or holder is session else [holder]

    def take_address(self, address: IPv4Address, session: Session) -> bool:
        """Give a session an address that RADIUS or the subscriber chose; False when another has it."""
        if address in self.by_address or not self.usable(address):
            return False
        if self.pool.contains(address) and not self.pool.claim(address, session.proven_user):
            return False
        self.by_address[address] = session
        return True

    def change_pool(self, layout: Layout) -> None:
        """Give out these addresses from now on; who has one keeps it, whether RADIUS or the pool has named it."""
        self.pool.change(layout)
        for address, session in self.by_address.items():
            if self.pool.contains(address):
                self.pool.claim(address, session.proven_user)

    def give_back_address(self, address: IPv4Address) -> None:
        del self.by_address[address]
        if self.pool.contains(address):
            self.pool.release(address)

    def usable(self, address: IPv4Address) -> bool:
        """Whether a subscriber can have this address at all: RADIUS and clients name strange ones."""
        return not (
            address.is_unspecified
            or address.is_loopback
            or address.is_multicast
            or address.is_reserved
            or address in (self.config.ppp_local_address, self.config.tun_address)
        )

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
        until = monotonic() + patience
        sessions = list(self.sessions.values())
        for session in sessions:
            session.end(ends.SHUTDOWN)
        gevent.joinall([session.greenlet for session in sessions], max(0.0, until - monotonic()))
        while monotonic() < until and any(not tunnel.quiet for tunnel in self.tunnels.values()):
            gevent.sleep(0.05)
        for tunnel in list(self.tunnels.values()):
            tunnel.end(ends.SHUTDOWN, StopCcnResult.SHUTTING_DOWN)
        while monotonic() < until and any(
            t.state is not TunnelState.CLOSING or not t.reliable.idle for t in self.tunnels.values()
        ):
            gevent.sleep(0.05)
