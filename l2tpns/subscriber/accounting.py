"""Access-Requests of a session, and the accounting of its service (RFC 2865 4.1, RFC 2866 5, RFC 2869 5.11).

A service begins when the session comes online or leaves a walled garden, and ends when it goes offline or enters one.
radius/attributes.py maps the fields to attributes.
"""

from __future__ import annotations

import time
from typing import Any

from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.radius.types import AuthRequest, TerminateCause, Usage
from l2tpns.subscriber import plugin_hooks
from l2tpns.subscriber.state import SessionState


def auth_request(session: SessionState, credentials: Credentials, state: bytes = b"") -> AuthRequest:
    """Return the request of a login or, with `state`, of another authorization (Termination-Action)."""
    return AuthRequest(credentials=credentials, mtu=session.link.lcp.peer_mru, state=state, **_call(session))


def usage(session: SessionState, terminate_cause: int = 0) -> Usage:
    """Return the usage of a session until now. Does not yield."""
    path, profile = session.path, session.profile
    session.services.plane.refresh(path)
    return Usage(
        user=account_name(session),
        address=session.address,
        routes=profile.routes if profile is not None else (),
        classes=profile.classes if profile is not None else (),
        opened=session.opened_wall,
        in_octets=path.in_octets,
        in_packets=path.in_packets,
        out_octets=path.out_octets,
        out_packets=path.out_packets,
        session_timeout=profile.session_timeout if profile is not None else None,
        idle_timeout=profile.idle_timeout if profile is not None else None,
        by_radius=bool(session.services.config.radius_servers),
        session_time=int(session.services.session_timing.clock() - session.online_since) if session.online_since else 0,
        terminate_cause=terminate_cause,
        tunnel_connection=str(session.call_serial),
        **_call(session),
    )


def account_name(session: SessionState) -> bytes:
    """Return the user name for accounting, which the RADIUS server may have replaced (RFC 2865 5.1)."""
    if session.profile is not None and session.profile.user:
        return session.profile.user
    return session.credentials.name if session.credentials is not None else b""


def start(session: SessionState) -> None:
    """Write the Start of the service that has begun, with the attributes that plugins add. May yield.

    Write nothing if the service has ended while the plugins ran, for instance because the session entered a garden.
    """
    began = session.online_since
    record = plugin_hooks.accounted(session, "start", usage(session))
    if (session.online_since, session.acct_session_id) == (began, record.acct_session_id):
        session.services.accounting.start(record)


def interim(session: SessionState) -> None:
    """Write an interim record. May yield."""
    session.services.accounting.interim(plugin_hooks.accounted(session, "interim", usage(session)))


def stop(session: SessionState, record: Usage) -> None:
    """Write the Stop of a service, whose last usage is `record`, even if a plugin fails. May yield."""
    try:
        record = plugin_hooks.accounted(session, "stop", record)
    finally:
        session.services.accounting.stop(record)


def suspend(session: SessionState, cause: TerminateCause) -> Usage:
    """End the service of a session that stays online. Return its last usage for `stop`. Does not yield."""
    record = usage(session, int(cause))
    session.services.usage_files.ended(session, record)
    session.acct_session_id = session.services.acct_session_ids.new()
    return record


def resume(session: SessionState) -> None:
    """Begin a new service of a session that stays online, with times and counters at zero. Does not yield."""
    session.services.plane.refresh(session.path)  # what was counted until now belongs to no service
    session.path.reset_counters()
    session.usage_file_octets = (0, 0)
    session.online_since, session.opened_wall = session.services.session_timing.clock(), time.time()


def _call(session: SessionState) -> dict[str, Any]:
    """Return the fields that describe the port and the call, the same in requests and records."""
    tunnel, sent, received = session.tunnel, session.tx_speed, session.rx_speed
    return {
        "session_id": session.id,
        "acct_session_id": session.acct_session_id,
        "called": session.called,
        "calling": session.calling,
        "nas_port_id": f"{tunnel.id}/{session.id}",
        # RFC 2869 5.11: the speed comes first. If the two differ, the transmit speed of the LNS precedes the other.
        "connect_info": f"{sent}/{received}" if sent and received and sent != received else str(sent or received or ""),
        "tunnel_client": tunnel.peer[0],
        "tunnel_server": tunnel.endpoint.address,
        "tunnel_host": tunnel.host,
    }
