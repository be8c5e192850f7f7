"""Make records of the saved state (records.py) from tunnels and sessions. restore.py does the reverse.

Times are by the wall clock, with the moment at which they were written: see restore.Outage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from time import monotonic
from typing import Any

from l2tpns.l2tp.tunnel import Tunnel, TunnelState
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.runtime.clock import moment
from l2tpns.state.records import SessionRecord, TunnelRecord, UsageRecord
from l2tpns.subscriber.session import Session

Line = list[Any]  # of the saved state: a kind, then a record or numbers


def lines(tunnels: Mapping[int, Tunnel], sessions: Mapping[int, Session]) -> Iterator[Line]:
    """Yield a line for each tunnel and session. Each is made when the caller asks for it, so that it is current.

    The caller may yield to other greenlets between two lines. The line of what has ended meanwhile is empty.
    """
    for tunnel in list(tunnels.values()):
        yield ["tun", tunnel_record(tunnel)] if tunnel.state is TunnelState.ESTABLISHED else []
    for session in list(sessions.values()):
        if not session.alive:
            yield []
        elif session.is_online:
            yield ["ses", session_record(session)]
        else:
            yield call_line(session)


def call_line(session: Session) -> Line:
    """Return the line of a call that is not online: its LAC gets a CDN after a restart."""
    return ["call", session.tunnel.id, session.id, session.peer_id]


def tunnel_record(tunnel: Tunnel) -> TunnelRecord:
    """Return the record of an established tunnel."""
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
    """Return the record of a session that is online."""
    now, written = monotonic(), moment()
    shift = written.wall - now
    path, profile, link = session.path, session.profile, session.link
    credentials, authenticator, ipv4 = session.credentials, link.authenticator, link.layers[Protocol.IPCP]
    assert session.address and profile and credentials and authenticator
    if profile.termination_action != 1:  # else they are sent again at the Session-Timeout (RFC 2865 5.29)
        credentials = replace(credentials, password=b"", challenge=b"", response=b"")
    answer = authenticator.record()
    return SessionRecord(
        id=session.id,
        tunnel=session.tunnel.id,
        peer_id=session.peer_id,
        user=session.user,
        acct_session_id=session.acct_session_id,
        address=session.address,
        credentials=credentials,
        lcp=link.lcp.record(),
        ipcp=ipv4.record(),
        opened=session.opened_wall,
        online_since=session.online_since + shift,
        time_from=session.timeout_started_at + shift,
        profile=profile,
        answer_identifier=answer.identifier,
        answer_message=answer.message,
        next_interim=session.next_interim + shift if session.next_interim else 0.0,
        # A challenge that is not answered yet is sent again at once.
        next_challenge=now + shift
        if authenticator.challenging
        else session.next_challenge and session.next_challenge + shift,
        called=session.called,
        calling=session.calling,
        call_serial=session.call_serial,
        tx_speed=session.tx_speed,
        rx_speed=session.rx_speed,
        sequenced=path.sequenced,
        extra=path.extra,
        filter_in=path.filter_in.name if path.filter_in is not None else "",
        filter_out=path.filter_out.name if path.filter_out is not None else "",
        policy=session.policy,
        usage=UsageRecord(*usage_row(session, now)),
        accounted=session.services.accounting.is_on_disk(session.acct_session_id),
        written=written,
    )


def usage_row(session: Session, now: float) -> list[Any]:
    """Return the fields of a UsageRecord, in their order."""
    path = session.path
    session.services.plane.refresh(path)
    return [
        path.in_octets,
        path.in_packets,
        path.out_octets,
        path.out_packets,
        round(now - path.last_ip_rx, 1),
        round(now - path.last_ip_tx, 1),
        path.ns,
        *session.usage_file_octets,
        *session.services.plane.counted(path),
    ]
