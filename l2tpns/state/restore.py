"""Tunnels and sessions as records, and records as tunnels and sessions that go on where they were.

A tunnel enters its life at `serve`, a session at `serve`, too: no message of L2TP, LCP or IPCP is due because of the
restart. After a crash each tunnel says HELLO first, to learn from the acknowledgement what the LAC expects
(docs/decisions/0008-saved-state.md). Calls that were not online yet get their CDN.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent

from l2tpns.l2tp.tunnel import Tunnel, TunnelState
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import ControlHeader
from l2tpns.proto.l2tp.messages import CDN, HELLO, ICRQ, SCCRQ, CdnResult, ResultCode
from l2tpns.proto.l2tp.reliable import Reliable
from l2tpns.proto.ppp.chap import ChapReply, ChapServer
from l2tpns.proto.ppp.pap import PapReply
from l2tpns.radius.types import AuthReply
from l2tpns.runtime.clock import Moment, elapsed, moment
from l2tpns.state.records import CallRecord, Replay, SessionRecord, TunnelRecord, UsageRecord
from l2tpns.subscriber.session import Session

if TYPE_CHECKING:
    from l2tpns.lns import Lns

# After a crash the Ns of numbered data messages is behind by what was sent since it was written, a second at most.
# What is not ahead the LAC drops (RFC 2661 5.4), and what is more than 32,767 ahead it takes for old.
DATA_NS_AHEAD = 0x4000


@dataclass(slots=True)
class Resumed:
    """What came of it."""

    tunnels: int = 0
    sessions: list[Session] = field(default_factory=list)
    calls: int = 0  # that were told to be over
    gone: list[list[Any]] = field(default_factory=list)  # lines for the journal: what will not come back

    @property
    def accounted(self) -> Collection[str]:
        """Acct-Session-Ids that go on."""
        return {session.acct_session_id for session in self.sessions}


class Outage:
    """From an earlier process's last sign of life until now. Makes times of its records monotonic ones of ours."""

    def __init__(self, last: Moment) -> None:
        self.last = last
        self.over = monotonic()
        self._over = moment()

    def monotonic(self, when: float, written: Moment) -> float:
        """`when` is by the wall clock as it was when its record was written: however it has been set since."""
        if not written.wall:  # schema 1
            written = self.last
        return self.over - self._since(written) + when - written.wall

    def _since(self, written: Moment) -> float:
        if written.boot == self._over.boot:
            return elapsed(written, self._over)
        # The machine was restarted: what the wall clock has to bridge is the outage, not the life of the session.
        return elapsed(written, self.last) + elapsed(self.last, self._over)


# Records


def tunnel_record(tunnel: Tunnel) -> TunnelRecord:
    written = moment()
    shift = written.wall - monotonic()
    return TunnelRecord(
        id=tunnel.id,
        peer_id=tunnel.peer_id,
        peer=tunnel.peer,
        local=tunnel.endpoint.address,
        control=tunnel.reliable.record(),
        host=tunnel.host,
        lac=tunnel.lac,
        receive_window=tunnel.reliable.receive_window,
        opened=tunnel.opened_at + shift,
        last_used=tunnel.last_used + shift,
        written=written,
    )


def session_record(session: Session) -> SessionRecord:
    """Of a session that is online."""
    now, written = monotonic(), moment()
    shift = written.wall - now
    path, profile, authenticator = session.path, session.profile, session.authenticator
    credentials = session.credentials
    assert session.address and profile and credentials and session.ipcp and authenticator
    if profile.termination_action != 1:  # else RADIUS is asked with them again when the time is over (RFC 2865 5.29)
        credentials = replace(credentials, password=b"", challenge=b"", response=b"")
    challenging = isinstance(authenticator, ChapServer) and authenticator.challenging
    answer = authenticator.record()
    return SessionRecord(
        id=session.id,
        tunnel=session.tunnel.id,
        peer_id=session.peer_id,
        user=session.user,
        acct_session_id=session.acct_session_id,
        address=session.address,
        credentials=credentials,
        lcp=session.lcp.record(),
        ipcp=session.ipcp.record(),
        opened=session.opened_wall,
        online_since=session.online_since + shift,
        time_from=session.time_from + shift,
        profile=profile,
        answer_identifier=answer.identifier,
        answer_message=answer.message,
        next_interim=session.next_interim + shift if session.next_interim else 0.0,
        # A challenge without an answer yet is put again at once.
        next_challenge=now + shift if challenging else session.next_challenge and session.next_challenge + shift,
        called=session.called,
        calling=session.calling,
        call_serial=session.call_serial,
        tx_speed=session.tx_speed,
        rx_speed=session.rx_speed,
        sequenced=path.sequenced,
        filter_in=path.filter_in.name if path.filter_in is not None else "",
        filter_out=path.filter_out.name if path.filter_out is not None else "",
        policy=session.policy,
        usage=UsageRecord(*usage_row(session, now)),
        accounted=session.lns.accounting.is_on_disk(session.acct_session_id),
        written=written,
    )


def usage_row(session: Session, now: float) -> list[Any]:
    """UsageRecord's fields, in order."""
    path = session.path
    return [
        path.in_octets,
        path.in_packets,
        path.out_octets,
        path.out_packets,
        round(now - path.last_ip_rx, 1),
        round(now - path.last_ip_tx, 1),
        path.ns,
        *session.dumped,
    ]


# Taking up again


def resume(lns: Lns, saved: Replay) -> Resumed:
    """Take up what can be; gives nobody a turn. What cannot be is named in the log, and its LAC told if possible."""
    done, outage = Resumed(), Outage(saved.last)
    lns.journal.remember()
    probe = b"" if saved.clean else messages.encode(HELLO())
    for record in saved.tunnels.values():
        try:
            _resume_tunnel(lns, record, outage, probe)
            done.tunnels += 1
        except Exception as error:  # whatever is wrong with one, the others are served
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
        session.greenlet = gevent.spawn(session.run)
    return done


def _resume_tunnel(lns: Lns, record: TunnelRecord, outage: Outage, probe: bytes) -> None:
    _check_id(record.id, lns.tunnels)
    sccrq = SCCRQ(
        protocol_version=messages.VERSION_1_0,
        framing_capabilities=0,
        host_name=record.host.encode(),
        assigned_tunnel_id=record.peer_id,
    )
    silence = ControlHeader(record.id, 0, 0, 0, b"")
    tunnel = Tunnel(lns, record.id, record.peer, lns.plane.endpoint(record.local), silence, sccrq)
    tunnel.lac = record.lac or tunnel.lac
    tunnel.host = record.host
    tunnel.state = TunnelState.ESTABLISHED
    tunnel.opened_at = outage.monotonic(record.opened, record.written)
    tunnel.last_used = outage.monotonic(record.last_used, record.written)
    tunnel.reliable = Reliable(receive_window=record.receive_window, retries=lns.config.control_retries)
    tunnel.reliable.restore(record.control, lns.awake.at(outage.over), probe)
    lns.tunnels[tunnel.id] = tunnel
    lns.by_peer[tunnel.peer, tunnel.peer_id] = tunnel
    lns.guard.lac_established(tunnel.peer[0], tunnel.host)
    lns.tunnels_of[tunnel.lac] += 1
    tunnel.log.info("tunnel_resumed", ns=record.control.ns, nr=record.control.nr, pending=len(record.control.pending))


def _resume_session(lns: Lns, record: SessionRecord, outage: Outage, exact: bool) -> Session:
    """Whatever it raises, nothing of the session is left then. ValueError when it cannot be."""
    _check_id(record.id, lns.sessions)
    tunnel = lns.tunnels.get(record.tunnel)
    if tunnel is None:
        raise ValueError("its tunnel is not there")
    if record.peer_id in tunnel.by_peer_id:
        raise ValueError(f"the LAC's session id {record.peer_id} is in use")
    if lns.accounting.has_stopped(record.acct_session_id, record.accounted):
        raise ValueError("its accounting Stop was written: it has ended")
    if not isinstance(record.profile, AuthReply):
        raise ValueError("what RADIUS has said of it is missing")
    icrq = ICRQ(assigned_session_id=record.peer_id, call_serial_number=record.call_serial)
    session = Session(lns, tunnel, record.id, icrq)
    try:
        _restore(session, record, record.profile, outage, exact)
    except Exception:
        _undo(session)
        raise
    return session


def _restore(session: Session, record: SessionRecord, profile: AuthReply, outage: Outage, exact: bool) -> None:
    lns = session.lns
    session.called, session.calling = record.called, record.calling
    session.user = record.user
    why = lns.take_address(record.address, session)
    if why:
        raise ValueError(f"its address {record.address} cannot be had: {why}")
    session.address = record.address
    session.starting = False
    session.acct_session_id = record.acct_session_id
    session.profile, session.credentials = profile, record.credentials
    session.tx_speed, session.rx_speed = record.tx_speed, record.rx_speed
    _restore_ppp(session, record, profile)
    _restore_times(session, record, outage)
    _restore_path(session, record, exact)
    lns.sessions[session.id] = session
    session.tunnel.session_born(session)
    lns.remember_user(session)
    lns.plane.attach(session.path)
    session.policy = record.policy
    session.carry()
    for part in lns.policies:
        part.begin(session)
    session.set_timer(monotonic())


def _undo(session: Session) -> None:
    """It is nowhere any more, however far _restore came."""
    lns, tunnel = session.lns, session.tunnel
    for part in lns.policies:
        session.attempt(partial(part.finish, session))
    session.attempt(lambda: lns.plane.detach(session.path))
    if session.address is not None:
        lns.give_back_address(session.address)
    lns.forget_user(session)
    lns.sessions.pop(session.id, None)
    if tunnel.sessions.get(session.id) is session:
        tunnel.session_gone(session)
    if session.timer is not None:
        session.timer.cancel()


def _restore_ppp(session: Session, record: SessionRecord, profile: AuthReply) -> None:
    session.phase = "online"
    session.lcp.restore(record.lcp)
    authenticator = session.new_authenticator(record.lcp.auth)
    if isinstance(authenticator, ChapServer):
        authenticator.restore(ChapReply(record.answer_identifier, True, record.answer_message))
    else:
        authenticator.restore(PapReply(record.answer_identifier, True, record.answer_message))
    session.authenticator = authenticator
    session.ipcp = session.new_ipcp(profile, record.address)
    # Where IPCP was being negotiated again: what it had agreed to before is what the session has.
    session.ipcp.restore(replace(record.ipcp, peer=record.address))


def _restore_times(session: Session, record: SessionRecord, outage: Outage) -> None:
    """Time went on while nobody was there, but for idleness, of which the subscriber is not to blame."""
    now, written = outage.over, record.written
    session.opened_wall = record.opened
    session.online_since = min(outage.monotonic(record.online_since, written), now) or now
    session.time_from = min(outage.monotonic(record.time_from, written), now)
    session.next_interim = outage.monotonic(record.next_interim, written) if record.next_interim else 0.0
    session.next_challenge = outage.monotonic(record.next_challenge, written) if record.next_challenge else 0.0
    # Anywhere within the interval: all sessions of a server must not send their Echo at once.
    share = int.from_bytes(session.lns.random(2), "big") / 0x10000
    session.next_echo = now + (session.lns.config.echo_timeout * share or float("inf"))


def _restore_path(session: Session, record: SessionRecord, exact: bool) -> None:
    path, usage, now = session.path, record.usage, monotonic()
    path.sequenced = record.sequenced
    path.ns = (usage.ns + (0 if exact else DATA_NS_AHEAD)) & 0xFFFF
    path.in_octets, path.in_packets = usage.in_octets, usage.in_packets
    path.out_octets, path.out_packets = usage.out_octets, usage.out_packets
    session.dumped = (usage.told_in, usage.told_out)
    path.last_rx = now
    path.last_ip_rx, path.last_ip_tx = now - usage.idle_rx, now - usage.idle_tx
    filters = session.lns.config.filters
    for name in (record.filter_in, record.filter_out):
        if name and name not in filters:
            session.log.warning("filter_unknown", filter=name, why="it is not in the configuration any more")
    path.filter_in, path.filter_out = filters.get(record.filter_in), filters.get(record.filter_out)


def _end_call(lns: Lns, call: CallRecord) -> bool:
    """It was not online: its subscriber has to dial again."""
    tunnel = lns.tunnels.get(call.tunnel)
    if tunnel is None or call.peer_id in tunnel.by_peer_id:
        return False
    code = ResultCode(CdnResult.NO_FACILITIES, 0, "the server was restarted")
    tunnel.send(CDN(result_code=code, assigned_session_id=call.id), call.peer_id)
    return True


def _check_id(number: int, taken: Collection[int]) -> None:
    if not 0 < number <= 0xFFFF or number in taken:
        raise ValueError(f"id {number} cannot be used")
