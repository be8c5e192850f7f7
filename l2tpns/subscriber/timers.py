"""Timers of an online session: LCP Echo, time-outs, interim accounting, CHAP re-challenge.

LCP Echo is RFC 1661 5.8, Session-Timeout and Idle-Timeout are RFC 2865 5.27 and 5.28, interim accounting is RFC 2869
5.16, re-challenge is RFC 1994 2. The timer wheel holds one entry for each session, at the time of its next timer.
"""

from __future__ import annotations

from math import inf

from l2tpns import causes
from l2tpns.causes import SessionEnded
from l2tpns.radius.types import AuthReply
from l2tpns.subscriber import accounting
from l2tpns.subscriber.state import SessionState

MIN_INTERIM = 60  # seconds (RFC 2869 5.16)
MAX_INTERVAL = 3600.0  # seconds after which the deadlines of a session are computed again
ECHO_REPLY_TIMEOUT = 5.0  # seconds for the reply to the Echo-Request that follows a pause of this process
ECHO_SPREAD = 1.0  # seconds over which the Echo-Requests of all sessions are then spread


def begin(session: SessionState, now: float) -> None:
    """Schedule all timers of a session that has come online. Does not yield."""
    config, authenticator = session.tunnel.config, session.link.authenticator
    rechallenge = config.chap_rechallenge if authenticator is not None and authenticator.repeats else 0
    session.next_echo = now + (config.echo_timeout or inf)
    schedule_interim(session, now)
    session.next_challenge = now + rechallenge if rechallenge else 0.0


def schedule_interim(session: SessionState, now: float) -> None:
    """Schedule the next interim record one interval from now, or none. Does not yield."""
    assert session.profile is not None
    interval = interim_interval(session, session.profile)
    session.next_interim = now + interval if interval else 0.0


def interim_interval(session: SessionState, profile: AuthReply) -> int:
    """Return the seconds between interim records, 0 for none. RADIUS overrides radius_interim (RFC 2869 5.16)."""
    named = profile.interim
    interval = named if named is not None else session.services.config.radius_interim
    return max(interval, MIN_INTERIM) if interval else 0


def ask_again(session: SessionState, now: float) -> None:
    """Send an Echo-Request soon: this process was paused and may have lost packets. Does not yield."""
    if session.is_online:
        share = (session.id & 0xFF) / 0x100
        session.next_echo = min(session.next_echo, now + ECHO_SPREAD * share)
        set_timer(session, now)


def silence_deadline(session: SessionState) -> float:
    """Return when a silent subscriber times out. Pauses of this process do not count."""
    awake, last_rx = session.services.awake, session.path.last_rx
    silent = last_rx + session.tunnel.config.idle_echo_timeout + awake.paused_since(last_rx)
    return max(silent, awake.resumed + ECHO_REPLY_TIMEOUT)


def idle_deadline(session: SessionState, idle_timeout: int) -> float:
    """Return when Idle-Timeout expires (RFC 2865 5.28). Pauses of this process do not count."""
    last = last_traffic(session)
    return last + idle_timeout + session.services.awake.paused_since(last)


def next_deadline(session: SessionState) -> float:
    """Return when the next timer is due (monotonic). Does not yield."""
    return min(other_deadline(session), echo_deadline(session))


def echo_deadline(session: SessionState) -> float:
    """Return when the next Echo-Request is due; inf: never."""
    config, due = session.tunnel.config, session.next_echo
    return max(due, session.path.last_rx + config.echo_timeout) if config.ppp_keepalive else due


def other_deadline(session: SessionState) -> float:
    """Return when a timer is due that needs the session's greenlet; inf: none runs. Does not yield."""
    config, profile = session.tunnel.config, session.profile
    assert profile is not None
    session.services.plane.refresh(session.path)
    due = inf
    if config.idle_echo_timeout:
        due = silence_deadline(session)
    if profile.session_timeout:  # 0 ends a session at its login if kill_timedout_sessions is set, else never
        due = min(due, session.timeout_started_at + profile.session_timeout)
    if profile.idle_timeout:
        due = min(due, idle_deadline(session, profile.idle_timeout))
    if session.next_interim:
        due = min(due, session.next_interim)
    if session.next_challenge:
        due = min(due, session.next_challenge)
    return due


def run_echo_timer(session: SessionState, now: float) -> None:
    """Send an Echo-Request if one is due. Does not yield."""
    if now >= session.next_echo:
        config, link = session.tunnel.config, session.link
        if not config.ppp_keepalive or now >= session.path.last_rx + config.echo_timeout:
            link.lcp.send_echo(link.now())
        session.next_echo = now + (config.echo_timeout or inf)


def last_traffic(session: SessionState) -> float:
    """Return the time of the last IP packet, or when the session came online (monotonic)."""
    return max(session.path.last_ip_rx, session.path.last_ip_tx, session.online_since)


def session_timeout_expired(session: SessionState, now: float) -> bool:
    """Return whether Session-Timeout has passed (RFC 2865 5.27)."""
    profile = session.profile
    assert profile is not None
    return bool(profile.session_timeout) and now >= session.timeout_started_at + (profile.session_timeout or 0)


def run_due_timers(session: SessionState, now: float) -> None:
    """Run the timers that are due: interim accounting, re-challenge, LCP Echo. May yield.

    Raises SessionEnded when the subscriber has been idle or silent for too long.
    """
    config, profile, link = session.tunnel.config, session.profile, session.link
    assert profile is not None
    session.services.plane.refresh(session.path)
    if profile.idle_timeout and now >= idle_deadline(session, profile.idle_timeout):
        raise SessionEnded(causes.IDLE_TIMEOUT)
    if config.idle_echo_timeout and now >= silence_deadline(session):
        raise SessionEnded(causes.ECHO_TIMEOUT)
    if session.next_interim and now >= session.next_interim:
        schedule_interim(session, now)
        accounting.interim(session)
    if session.next_challenge and now >= session.next_challenge and link.authenticator is not None:
        session.next_challenge = now + config.chap_rechallenge
        link.authenticator.rechallenge(link.now())
    run_echo_timer(session, now)


def set_timer(session: SessionState, now: float) -> None:
    """Set the session's entry in the timer wheel to its next deadline. Does not yield."""
    schedule(session, next_deadline(session), now)


def schedule(session: SessionState, due: float, now: float) -> None:
    """Set the session's entry in the timer wheel to a deadline that was found. Does not yield."""
    if session.timer is not None:
        session.timer.cancel()
    session.timer = session.services.wheel.schedule(session, min(due - now, MAX_INTERVAL), now)
