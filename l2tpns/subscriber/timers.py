"""What a session does while it is online: LCP Echo, time-outs, interim accounting, CHAP re-challenge.

Driven by the LNS's timer wheel: one entry a session, at the time the next of these is due.
"""

from __future__ import annotations

from math import inf

from l2tpns import causes
from l2tpns.causes import SessionEnded
from l2tpns.radius.types import AuthReply
from l2tpns.subscriber import accounting
from l2tpns.subscriber.state import SessionState

MIN_INTERIM = 60  # seconds (RFC 2869 5.16)
MAX_INTERVAL = 3600.0  # seconds between two looks at a session for which nothing is due
ECHO_ANSWER_TIME = 5.0  # seconds for the answer to the Echo that follows a pause of this process
ECHO_SPREAD = 1.0  # seconds over which the Echoes of all sessions are spread then


def begin(session: SessionState, now: float) -> None:
    """Schedule the first of each: the session has come online. Does not yield."""
    config, authenticator = session.services.config, session.link.authenticator
    rechallenge = config.chap_rechallenge if authenticator is not None and authenticator.repeats else 0
    session.next_echo = now + (config.echo_timeout or inf)
    schedule_interim(session, now)
    session.next_challenge = now + rechallenge if rechallenge else 0.0


def schedule_interim(session: SessionState, now: float) -> None:
    """Have the next interim record written one interval from now, or none."""
    assert session.profile is not None
    interval = interim_interval(session, session.profile)
    session.next_interim = now + interval if interval else 0.0


def interim_interval(session: SessionState, profile: AuthReply) -> int:
    """Return the seconds between interim records; 0: none, which RADIUS may say too. RADIUS precedes our setting."""
    named = profile.interim
    interval = named if named is not None else session.services.config.radius_interim
    return max(interval, MIN_INTERIM) if interval else 0


def ask_again(session: SessionState, now: float) -> None:
    """Ask whether the subscriber is there, soon: this process has stood still, and what was said to it may be lost."""
    if session.is_online:
        share = (session.id & 0xFF) / 0x100
        session.next_echo = min(session.next_echo, now + ECHO_SPREAD * share)
        set_timer(session, now)


def given_up(session: SessionState) -> float:
    """Return when a silent subscriber is given up: not for a silence that was this process's own."""
    awake, last_rx = session.services.awake, session.path.last_rx
    silent = last_rx + session.services.config.idle_echo_timeout + awake.paused_since(last_rx)
    return max(silent, awake.resumed + ECHO_ANSWER_TIME)


def idle_too_long(session: SessionState, idle_timeout: int) -> float:
    """Return when Idle-Timeout has passed, without the pauses, in which nothing could be carried."""
    last = last_traffic(session)
    return last + idle_timeout + session.services.awake.paused_since(last)


def next_deadline(session: SessionState) -> float:
    """Return when `run_due_timers` must be called next (monotonic)."""
    config, profile = session.services.config, session.profile
    assert profile is not None
    due = session.next_echo
    if config.ppp_keepalive:
        due = max(due, session.path.last_rx + config.echo_timeout)
    if config.idle_echo_timeout:
        due = min(due, given_up(session))
    if profile.session_timeout:  # 0 ends a session at its start, or (kill_timedout_sessions) never
        due = min(due, session.timeout_started_at + profile.session_timeout)
    if profile.idle_timeout:
        due = min(due, idle_too_long(session, profile.idle_timeout))
    if session.next_interim:
        due = min(due, session.next_interim)
    if session.next_challenge:
        due = min(due, session.next_challenge)
    return due


def last_traffic(session: SessionState) -> float:
    return max(session.path.last_ip_rx, session.path.last_ip_tx, session.online_since)


def time_is_over(session: SessionState, now: float) -> bool:
    """Return whether Session-Timeout has passed (RFC 2865 5.27)."""
    profile = session.profile
    assert profile is not None
    return bool(profile.session_timeout) and now >= session.timeout_started_at + (profile.session_timeout or 0)


def run_due_timers(session: SessionState, now: float) -> None:
    """Do what is due: interim accounting, re-challenge, LCP Echo. May yield.

    Raises SessionEnded when the subscriber is idle or silent for too long.
    """
    config, profile, link = session.services.config, session.profile, session.link
    assert profile is not None
    if profile.idle_timeout and now >= idle_too_long(session, profile.idle_timeout):
        raise SessionEnded(causes.IDLE_TIMEOUT)
    if config.idle_echo_timeout and now >= given_up(session):
        raise SessionEnded(causes.ECHO_TIMEOUT)
    if session.next_interim and now >= session.next_interim:
        schedule_interim(session, now)
        accounting.interim(session)
    if session.next_challenge and now >= session.next_challenge and link.authenticator is not None:
        session.next_challenge = now + config.chap_rechallenge
        link.authenticator.rechallenge(link.now())
    if now >= session.next_echo:
        if not config.ppp_keepalive or now >= session.path.last_rx + config.echo_timeout:
            link.lcp.send_echo(link.now())
        session.next_echo = now + (config.echo_timeout or inf)


def set_timer(session: SessionState, now: float) -> None:
    """Set the session's one timer in the wheel to what is due next. Does not yield."""
    if session.timer is not None:
        session.timer.cancel()
    delay = min(next_deadline(session) - now, MAX_INTERVAL)
    session.timer = session.services.wheel.schedule(session, delay, now)
