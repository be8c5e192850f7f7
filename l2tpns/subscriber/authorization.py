"""Applies an Access-Accept to a session (RFC 2865 5, RFC 2869 5): what acts at once, here; the rest where it is due.

A new reply attribute needs a row in radius/attributes.py, a field of AuthReply, and, if it acts at once, a line here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from l2tpns.policy import filters
from l2tpns.policy.model import PolicyError, Subscriber
from l2tpns.radius import rates
from l2tpns.radius.types import AuthReply
from l2tpns.subscriber import timers
from l2tpns.subscriber.state import SessionState


def apply(session: SessionState, reply: AuthReply, *, initial: bool) -> None:
    """Apply a positive reply to a login (`initial`) or to an online session. Does not yield.

    Attributes that act later (time-outs, the interim interval, DNS, the address, the MTU, routes, Class) are read from
    `session.profile` when they are due. Attributes that act at once are applied here.
    """
    before = session.profile
    if initial or before is None:
        session.profile = reply
        _forget_password(session, reply)
    else:
        # The routes are in the kernel, and in its garden: they stay until the session comes online again.
        session.profile = replace(reply, routes=before.routes)
        session.timeout_started_at = now = session.services.session_timing.clock()
        if timers.interim_interval(session, reply) != timers.interim_interval(session, before):
            timers.schedule_interim(session, now)
    filters.apply_filter_ids(session.services.plane, session.services.config.filters, session, reply.filter_ids)


def apply_rates(session: SessionState, reply: AuthReply, before: AuthReply | None = None) -> None:
    """Apply the rates that vendors' attributes name, to an online session at once. May yield.

    To be called before plugins see the reply: theirs is the last word. `before` is the reply that this one replaces:
    what it limited, and this one does not mention, has no limit any more.
    """
    rate_in, rate_out = rates.chosen(reply.rates)
    if before is not None:
        old_in, old_out = rates.chosen(before.rates)
        rate_in = 0 if rate_in is None and old_in else rate_in
        rate_out = 0 if rate_out is None and old_out else rate_out
    if rate_in is None and rate_out is None:
        return
    try:
        session.services.throttle.set(cast(Subscriber, session), rate_in, rate_out, by="RADIUS")
    except PolicyError as error:
        session.log.error("throttle_refused", user=session.user, rate_out=rate_out, why=str(error))


def _forget_password(session: SessionState, reply: AuthReply) -> None:
    """Forget the password unless RADIUS needs it again (Termination-Action, RFC 2865 5.29)."""
    if reply.termination_action != 1 and session.credentials is not None:
        session.credentials = replace(session.credentials, password=b"")
