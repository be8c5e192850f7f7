"""Restore tunnels and sessions from the records of the saved state (records.py). snapshot.py writes these.

Restored tunnels and sessions continue at `serve`: the restart causes no message of L2TP, LCP or IPCP. After a crash
each tunnel sends a HELLO first, since its acknowledgement shows what the LAC expects. The LACs of calls that were not
online get a CDN. See docs/decisions/0008-saved-state.md.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Any

import gevent

from l2tpns.config import lac_config
from l2tpns.dataplane.plane import FastCounts
from l2tpns.l2tp.tunnel import Tunnel, TunnelState
from l2tpns.lns import Lns
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.messages import CDN, HELLO, ICRQ, CdnResult, ResultCode
from l2tpns.proto.l2tp.reliable import Reliable
from l2tpns.radius.types import AuthReply
from l2tpns.runtime.clock import Moment, elapsed, moment
from l2tpns.state.journal import Journal
from l2tpns.state.records import CallRecord, Replay, SessionRecord, TunnelRecord
from l2tpns.subscriber import timers
from l2tpns.subscriber.authentication import new_authenticator
from l2tpns.subscriber.network import Ipv4
from l2tpns.subscriber.phase import Phase
from l2tpns.subscriber.session import Session

# After a crash the saved Ns of data messages is behind by what was sent in the last second. The LAC drops a message
# whose Ns is behind, or more than 32,767 ahead (RFC 2661 5.4).
DATA_NS_AHEAD = 0x4000


@dataclass(slots=True)
class Resumed:
    """The result of a restore."""

    tunnels: int = 0
    sessions: list[Session] = field(default_factory=list)
    calls: int = 0  # whose LAC gets a CDN
    gone: list[list[Any]] = field(default_factory=list)  # lines for the journal: the ends of what was not restored

    @property
    def accounted(self) -> Collection[str]:
        """Return the Acct-Session-Ids of the restored sessions."""
        return {session.acct_session_id for session in self.sessions}


class Outage:
    """The time from the last line of an earlier process until now. Converts times of records to monotonic ones."""

    def __init__(self, last: Moment) -> None:
        self.last = last
        self.over = monotonic()
        self._over = moment()

    def monotonic(self, when: float, written: Moment) -> float:
        """Return the monotonic time of `when`, which is by the wall clock at the moment `written`.

        It does not matter whether the wall clock was set since.
        """
        if not written.wall:  # schema 1
            written = self.last
        return self.over - self._since(written) + when - written.wall

    def _since(self, written: Moment) -> float:
        if written.boot == self._over.boot:
            return elapsed(written, self._over)
        # The machine was restarted: use the wall clock for the outage only, not for the whole life of the session.
        return elapsed(written, self.last) + elapsed(self.last, self._over)


def resume(lns: Lns, journal: Journal, saved: Replay) -> Resumed:
    """Restore all saved tunnels and sessions. Does not yield.

    What cannot be restored is logged, and the LAC of a session gets a CDN if possible.
    """
    done, outage = Resumed(), Outage(saved.last)
    journal.collect_ends()
    probe = b"" if saved.clean else messages.encode(HELLO())
    for record in saved.tunnels.values():
        try:
            _resume_tunnel(lns, record, outage, probe)
            done.tunnels += 1
        except Exception as error:  # an error in one record must not keep the others from being restored
            lns.log.error("tunnel_not_resumed", tunnel=record.id, host=record.host, why=str(error))
            done.gone.append(["tun-", record.id])
    calls = list(saved.calls.values())
    for session_record in saved.sessions.values():
        try:
            done.sessions.append(_resume_session(lns, session_record, outage, saved.clean))
        except Exception as error:  # as above
            user = session_record.user
            lns.log.error("session_not_resumed", session=session_record.id, user=user, why=str(error))
            calls.append(CallRecord(session_record.tunnel, session_record.id, session_record.peer_id))
    for call in calls:
        done.calls += _end_call(lns, call)
        done.gone.append(["ses-", call.id])
    lns.counters.sessions_resumed += len(done.sessions)
    for tunnel in lns.tunnels.values():
        gevent.spawn(tunnel.run)
    for session in done.sessions:
        session.start()
    return done


def _resume_tunnel(lns: Lns, record: TunnelRecord, outage: Outage, probe: bytes) -> None:
    _check_id(record.id, lns.tunnels)
    services = lns.services
    _, config = lac_config.choose(services.config, record.lac or record.peer[0], record.host)
    reliable = Reliable(
        receive_window=record.receive_window,
        retries=config.control_retries,
        first_interval=lns.timing.first_retransmission,
    )
    endpoint = services.plane.endpoint(record.local)
    tunnel = Tunnel(services, lns, lns.timing, record.id, record.peer, endpoint, record.peer_id, record.host, reliable)
    tunnel.count_as(record.lac or tunnel.lac)
    tunnel.state = TunnelState.ESTABLISHED
    tunnel.opened_at = outage.monotonic(record.opened, record.written)
    tunnel.last_used = outage.monotonic(record.last_used, record.written)
    reliable.restore(record.control, services.awake.at(outage.over), probe)
    lns.tunnel_restored(tunnel)
    tunnel.log.info("tunnel_resumed", ns=record.control.ns, nr=record.control.nr, pending=len(record.control.pending))


def _resume_session(lns: Lns, record: SessionRecord, outage: Outage, exact: bool) -> Session:
    """Restore a session. Raises ValueError or another exception if that fails; then nothing of the session is left."""
    _check_id(record.id, lns.sessions)
    tunnel = lns.tunnels.get(record.tunnel)
    if tunnel is None:
        raise ValueError("its tunnel was not restored")
    if record.peer_id in tunnel.by_peer_id:
        raise ValueError(f"the LAC's session id {record.peer_id} is in use")
    if lns.services.accounting.has_stopped(record.acct_session_id, record.accounted):
        raise ValueError("it has ended: its accounting Stop was written")
    if not isinstance(record.profile, AuthReply):
        raise ValueError("the reply of the RADIUS server is missing")
    icrq = ICRQ(assigned_session_id=record.peer_id, call_serial_number=record.call_serial)
    session = Session(lns.services, tunnel, record.id, icrq)
    try:
        _restore(lns, session, record, record.profile, outage, exact)
    except Exception:
        _undo(lns, session)
        raise
    return session


def _restore(
    lns: Lns, session: Session, record: SessionRecord, profile: AuthReply, outage: Outage, exact: bool
) -> None:
    services = session.services
    session.called, session.calling = record.called, record.calling
    session.user = record.user
    why = services.registry.take_address(record.address, session)
    if why:
        raise ValueError(f"its address {record.address} is unavailable: {why}")
    session.address = record.address
    session.starting = False
    session.acct_session_id = record.acct_session_id
    session.profile, session.credentials = profile, record.credentials
    session.tx_speed, session.rx_speed = record.tx_speed, record.rx_speed
    _restore_ppp(session, record, profile)
    _restore_times(session, record, outage)
    _restore_path(session, record, exact)
    lns.sessions[session.id] = session
    lns.tunnels[record.tunnel].add_session(session)
    services.registry.remember_user(session)
    services.plane.attach(session.path)
    session.policy = record.policy
    session.start_service()
    timers.set_timer(session, monotonic())


def _undo(lns: Lns, session: Session) -> None:
    """Remove a session from all tables, however far _restore came."""
    services, tunnel = session.services, lns.tunnels[session.tunnel.id]
    session.alive = False
    for part in services.policies:
        session.attempt(partial(part.finish, session))
    session.attempt(lambda: services.plane.detach(session.path))
    if session.address is not None:
        services.registry.give_back_address(session.address)
    services.registry.forget_user(session)
    lns.sessions.pop(session.id, None)
    if tunnel.sessions.get(session.id) is session:
        tunnel.remove_session(session)
    if session.timer is not None:
        session.timer.cancel()


def _restore_ppp(session: Session, record: SessionRecord, profile: AuthReply) -> None:
    link = session.link
    link.phase = Phase.ONLINE
    link.lcp.restore(record.lcp)
    link.authenticator = new_authenticator(session, record.lcp.auth)
    link.authenticator.restore(record.answer_identifier, record.answer_message)
    layer = Ipv4(session, profile, record.address)
    # If IPCP was being negotiated again, the session still has the address of the negotiation before.
    layer.restore(replace(record.ipcp, peer=record.address))
    link.layers = {layer.protocol: layer}


def _restore_times(session: Session, record: SessionRecord, outage: Outage) -> None:
    """Set the timers. They include the outage, except idle time, which the subscriber did not cause."""
    now, written = outage.over, record.written
    session.opened_wall = record.opened
    session.online_since = min(outage.monotonic(record.online_since, written), now) or now
    session.timeout_started_at = min(outage.monotonic(record.time_from, written), now)
    session.next_interim = outage.monotonic(record.next_interim, written) if record.next_interim else 0.0
    session.next_challenge = outage.monotonic(record.next_challenge, written) if record.next_challenge else 0.0
    # At a random time within the interval: not all sessions may send their Echo-Request at once.
    share = int.from_bytes(session.services.random(2), "big") / 0x10000
    session.next_echo = now + (session.tunnel.config.echo_timeout * share or float("inf"))


def _restore_path(session: Session, record: SessionRecord, exact: bool) -> None:
    path, usage, now = session.path, record.usage, monotonic()
    path.sequenced, path.extra = record.sequenced, record.extra
    path.ns = (usage.ns + (0 if exact else DATA_NS_AHEAD)) & 0xFFFF
    path.in_octets, path.in_packets = usage.in_octets, usage.in_packets
    path.out_octets, path.out_packets = usage.out_octets, usage.out_packets
    session.usage_file_octets = (usage.told_in, usage.told_out)
    counted = FastCounts(usage.fast_in_octets, usage.fast_in_packets, usage.fast_out_octets, usage.fast_out_packets)
    session.services.plane.go_on(path, counted)
    path.last_rx = now
    path.last_ip_rx, path.last_ip_tx = now - usage.idle_rx, now - usage.idle_tx
    filters = session.services.config.filters
    for name in (record.filter_in, record.filter_out):
        if name and name not in filters:
            session.log.warning("filter_unknown", filter=name, why="it is no longer configured")
    path.filter_in, path.filter_out = filters.get(record.filter_in), filters.get(record.filter_out)


def _end_call(lns: Lns, call: CallRecord) -> bool:
    """Send a CDN for a call that was not online: its subscriber has to dial again. Return True if one was due."""
    tunnel = lns.tunnels.get(call.tunnel)
    if tunnel is None or call.peer_id in tunnel.by_peer_id:
        return False
    code = ResultCode(CdnResult.NO_FACILITIES, 0, "the server was restarted")
    tunnel.send(CDN(result_code=code, assigned_session_id=call.id), call.peer_id)
    return True


def _check_id(number: int, taken: Collection[int]) -> None:
    if not 0 < number <= 0xFFFF or number in taken:
        raise ValueError(f"id {number} cannot be used")
