"""What RADIUS is told of a session, in authentication and in accounting (RFC 2865, RFC 2866 5, RFC 2869 5.11).

Which attribute each becomes, and when it is told, is radius/'s and session.py's.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.radius.types import AuthRequest, Usage

if TYPE_CHECKING:
    from l2tpns.subscriber.session import Session


def auth_request(session: Session, credentials: Credentials, state: bytes) -> AuthRequest:
    return AuthRequest(credentials=credentials, mtu=session.lcp.peer_mru, state=state, **_call(session))


def usage(session: Session, terminate_cause: int) -> Usage:
    path, profile = session.path, session.profile
    session.lns.plane.refresh(path)
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
        by_radius=bool(session.lns.config.radius_servers),
        session_time=int(monotonic() - session.online_since) if session.online_since else 0,
        terminate_cause=terminate_cause,
        tunnel_connection=str(session.call_serial),
        **_call(session),
    )


def account_name(session: Session) -> bytes:
    """The name to account under: the server may have given another (RFC 2865 5.1)."""
    if session.profile is not None and session.profile.user:
        return session.profile.user
    return session.credentials.name if session.credentials is not None else b""


def _call(session: Session) -> dict[str, Any]:
    """The port and the call, the same in both."""
    tunnel, sent, received = session.tunnel, session.tx_speed, session.rx_speed
    return {
        "session_id": session.id,
        "acct_session_id": session.acct_session_id,
        "called": session.called,
        "calling": session.calling,
        "nas_port_id": f"{tunnel.id}/{session.id}",
        # RFC 2869 5.11: the speed comes first; when they differ, both, the one we transmit with before the other.
        "connect_info": f"{sent}/{received}" if sent and received and sent != received else str(sent or received or ""),
        "tunnel_client": tunnel.peer[0],
        "tunnel_server": tunnel.endpoint.address,
        "tunnel_host": tunnel.host,
    }
