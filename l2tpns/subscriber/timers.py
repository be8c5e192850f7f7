"""What a session does while it is online: LCP Echo, time-outs, interim accounting, CHAP re-challenge.

Driven by the LNS's timer wheel: one entry a session, at the time the next of these is due.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from l2tpns import causes
from l2tpns.causes import SessionEnded
from l2tpns.errors import NoAnswer
from l2tpns.policy import filters
from l2tpns.proto.ppp.chap import ChapServer
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.radius.types import AuthReply
from l2tpns.subscriber import plugin_hooks

if TYPE_CHECKING:
    from l2tpns.subscriber.session import Session

MINIMUM_INTERIM = 60  # RFC 2869 5.16
LONGEST_SLEEP = 3600.0  # between two looks at a session for which nothing is due
ECHO_ANSWER_TIME = 5.0  # seconds for the answer to the Echo that follows a pause of this process
ECHO_SPREAD = 1.0  # seconds over which the Echoes of all sessions are spread then


def begin(session: Session, now: float) -> None:
    """The session has come online: when each of these is due first."""
    config = session.lns.config
    interim = interim_interval(session)
    rechallenge = config.chap_rechallenge if isinstance(session.authenticator, ChapServer) else 0
    session.next_echo = now + (config.echo_timeout or inf)
    session.next_interim = now + interim if interim else 0.0
    session.next_challenge = now + rechallenge if rechallenge else 0.0


def interim_interval(session: Session) -> int:
    """Seconds between interim records; 0: none, which RADIUS may say too. RADIUS goes before the configuration."""
    assert session.profile is not None
    named = session.profile.interim
    interval = named if named is not None else session.lns.config.radius_interim
    return max(interval, MINIMUM_INTERIM) if interval else 0


def reverify(session: Session, credentials: Credentials) -> None:
    """The answer to a later Challenge (RFC 1994 2.2): checked in a greenlet of its own."""
    authenticator = session.authenticator
    try:
        credentials, refusal = plugin_hooks.pre_auth(session, credentials)
        reply = refusal or plugin_hooks.ask(session, credentials)
    except NoAnswer:
        reply = AuthReply(accepted=True)  # what was true stays true until somebody says otherwise
    if authenticator is not None and session.authenticator is authenticator:  # else the link has begun anew
        same = reply.accepted and session.lns.same_user(credentials.user, session.user)
        authenticator.verdict(same, reply.message)
        if not same:
            session.log.info("auth_refused", user=credentials.user, why=reply.why or reply.message or "no reason given")
            session.end(causes.AUTH_REFUSED)


def time_is_over(session: Session, profile: AuthReply, now: float) -> None:
    """Session-Timeout; with Termination-Action RADIUS-Request the server is asked again (RFC 2865 5.29)."""
    if profile.termination_action != 1 or session.credentials is None:
        raise SessionEnded(causes.SESSION_TIMEOUT)
    try:
        reply = session.verify(partial(plugin_hooks.decide_again, session, session.credentials, profile.state))
    except SessionEnded as end:
        if end.reason is not causes.RADIUS_SILENT:
            raise
        raise SessionEnded(causes.SESSION_TIMEOUT) from end
    if not reply.accepted:
        raise SessionEnded(causes.SESSION_TIMEOUT)
    before = interim_interval(session)
    # Its routes are in the kernel, and caged with it: they stay as they are until it comes online again.
    session.profile, session.time_from = replace(reply, routes=profile.routes), now
    interval = interim_interval(session)
    if interval != before:
        session.next_interim = now + interval if interval else 0.0
    filters.bind(session, reply.filter_ids)
    session.lns.journal.session(session)


def ask_again(session: Session, now: float) -> None:
    """Ask whether the subscriber is there, soon: this process has stood still, and what was said to it may be lost."""
    if session.online_since:
        share = (session.id & 0xFF) / 0x100
        session.next_echo = min(session.next_echo, now + ECHO_SPREAD * share)
        session.set_timer(now)


def given_up(session: Session) -> float:
    """Return when a silent subscriber is given up: not for a silence that was this process's own."""
    awake, last_rx = session.lns.awake, session.path.last_rx
    silent = last_rx + session.lns.config.idle_echo_timeout + awake.paused_since(last_rx)
    return max(silent, awake.resumed + ECHO_ANSWER_TIME)


def idle_too_long(session: Session, idle_timeout: int) -> float:
    """Return when Idle-Timeout has passed, without the pauses, in which nothing could be carried."""
    last = last_traffic(session)
    return last + idle_timeout + session.lns.awake.paused_since(last)


def next_due(session: Session) -> float:
    """When `keep_house` must look next (monotonic)."""
    config, profile = session.lns.config, session.profile
    assert profile is not None
    due = session.next_echo
    if config.ppp_keepalive:
        due = max(due, session.path.last_rx + config.echo_timeout)
    if config.idle_echo_timeout:
        due = min(due, given_up(session))
    if profile.session_timeout:  # 0 ends a session at its start, or (kill_timedout_sessions) never
        due = min(due, session.time_from + profile.session_timeout)
    if profile.idle_timeout:
        due = min(due, idle_too_long(session, profile.idle_timeout))
    if session.next_interim:
        due = min(due, session.next_interim)
    if session.next_challenge:
        due = min(due, session.next_challenge)
    return due


def last_traffic(session: Session) -> float:
    return max(session.path.last_ip_rx, session.path.last_ip_tx, session.online_since)


def keep_house(session: Session, now: float) -> None:
    """Echo, time-outs, interim accounting, re-challenge."""
    config, profile = session.lns.config, session.profile
    assert profile is not None
    if profile.session_timeout and now >= session.time_from + profile.session_timeout:
        time_is_over(session, profile, now)
    if profile.idle_timeout and now >= idle_too_long(session, profile.idle_timeout):
        raise SessionEnded(causes.IDLE_TIMEOUT)
    if config.idle_echo_timeout and now >= given_up(session):
        raise SessionEnded(causes.ECHO_TIMEOUT)
    if session.next_interim and now >= session.next_interim:
        interval = interim_interval(session)
        session.next_interim = now + interval if interval else 0.0
        session.lns.accounting.interim(session.accounted("interim"))
    if session.next_challenge and now >= session.next_challenge and isinstance(session.authenticator, ChapServer):
        session.next_challenge = now + config.chap_rechallenge
        session.authenticator.rechallenge(session.now())
    if now >= session.next_echo:
        if not config.ppp_keepalive or now >= session.path.last_rx + config.echo_timeout:
            session.lcp.send_echo(session.now())
        session.next_echo = now + (config.echo_timeout or inf)
