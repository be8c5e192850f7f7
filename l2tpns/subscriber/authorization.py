"""What an Access-Accept makes of a session: the one place that applies a reply (RFC 2865, RFC 2869).

A new reply attribute needs a row in radius/attributes.py, a field of AuthReply, and a line here.
"""

from __future__ import annotations

from dataclasses import replace

from l2tpns.policy import filters
from l2tpns.radius.types import AuthReply
from l2tpns.subscriber import timers
from l2tpns.subscriber.state import SessionState


def apply(session: SessionState, reply: AuthReply, *, initial: bool) -> None:
    """Apply a positive reply: `initial` of a login, else to a session that is online. Does not yield.

    What the session's life asks for when it is due (time-outs, the interim interval, DNS, the address, the MTU,
    routes, Class) is read from `session.profile`; what acts at once is done here.
    """
    before = session.profile
    if initial or before is None:
        session.profile = reply
        _forget_password(session, reply)
    else:
        # Its routes are in the kernel, and caged with it: they stay as they are until it comes online again.
        session.profile = replace(reply, routes=before.routes)
        session.timeout_started_at = now = session.services.session_timing.clock()
        if timers.interim_interval(session, reply) != timers.interim_interval(session, before):
            timers.schedule_interim(session, now)
    if initial and reply.framed_pool:
        session.log.warning("framed_pool_unknown", pool=reply.framed_pool, why="there is one pool, l2tpns.ip_pool")
    filters.apply_filter_ids(session.services.plane, session.services.config.filters, session, reply.filter_ids)


def _forget_password(session: SessionState, reply: AuthReply) -> None:
    """Keep the subscriber's password only if RADIUS will be asked with it again (Termination-Action)."""
    if reply.termination_action != 1 and session.credentials is not None:
        session.credentials = replace(session.credentials, password=b"")
