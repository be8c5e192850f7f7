"""`show session`, `show users`, `show session history`, `show histogram`, `drop session`, `drop user`: subscribers.

Labels and columns are those of the manual's server (reference sections 4 and 5). JSON keys are declared beside them.
"downloaded" and Bytes Out count octets to the subscriber, "uploaded" and Bytes In octets from the subscriber.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

from l2tpns import causes
from l2tpns.console.commands.arguments import (
    ENDED_USER,
    SESSION,
    SOME_SESSIONS,
    SOME_USERS,
    USER,
    find_session,
    find_user,
)
from l2tpns.console.grammar import Command, Privilege, change
from l2tpns.console.output import Column, Output, Row, Table, sheet, shown
from l2tpns.dataplane.session_path import SessionPath
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.runtime.text import printable
from l2tpns.subscriber.history import Ending
from l2tpns.subscriber.session import Session

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell


def yes_no(value: bool | None) -> str:
    return "-" if value is None else "Y" if value else "N"


def or_star(value: str) -> str:
    return value or "*"


def duration(seconds: float | None) -> str:
    return "-" if seconds is None else str(int(seconds))


SESSIONS = Table(
    (
        Column("session", "SID", 5),
        Column("linked_session", "LkToSID", 7, lambda session: str(session or 0)),
        Column("tunnel", "TID", 5),
        Column("user", "Username", -32, or_star),
        Column("address", "IP", -15, lambda address: address or "0.0.0.0"),
        Column("intercepted", "I", 1, yes_no),
        Column("throttled", "T", 1, yes_no),
        Column("walled_garden", "G", 1, yes_no),
        Column("ipv6", "6", 1, yes_no),
        Column("opened", "opened", 10, duration),
        Column("out_octets", "downloaded", 12),
        Column("in_octets", "uploaded", 12),
        Column("idle", "idle", 5, duration),
        Column("remaining", "Rem.Time", 8, duration),
        Column("lac", "LAC", -15),
        Column("calling", "CLI", 0, or_star),
    )
)

SESSION_LABELS = {
    "user": "User",
    "calling": "Calling Num",
    "called": "Called Num",
    "tunnel": "Tunnel ID",
    "address": "IP address",
    "routes": "Routes",
    "lac_session": "HSD sid",
    "phase": "PPP Phase",
    "lcp": "LCP state",
    "ipcp": "IPCP state",
    "opened": "Opened",
    "idle_seconds": "Idle time",
    "session_timeout": "Sess Timeout",
    "idle_timeout": "Idle Timeout",
    "remaining": "Remaining time",
    "mru": "MRU",
    "next_recv": "Next Recv",
    "next_send": "Next Send",
    "bytes": "Bytes In/Out",
    "packets": "Pkts In/Out",
    "dropped": "Dropped",
    "acct_session_id": "Radius Session",
    "rx_speed": "Rx Speed",
    "tx_speed": "Tx Speed",
    "filters": "Filter in/out",
    "intercepted": "Intercepted",
    "throttled": "Throttled",
    "walled_garden": "Walled Garden",
    "filter_bucket": "Filter Bucket",
    "data_path": "Data Path",
}


def session_row(session: Session, now: float, enabled: bool) -> Row:
    """Return the summary of a session. `intercepted` is None unless the operator is enabled."""
    path, policy = session.path, session.policy
    session.services.plane.refresh(path)
    return {
        "session": session.id,
        "linked_session": None,  # neither LAC forwarding nor multilink is supported
        "tunnel": session.tunnel.id,
        "user": session.user,
        "address": str(session.address) if session.address is not None else None,
        "intercepted": policy.sink is not None if enabled else None,
        "throttled": bool(policy.rate_in or policy.rate_out),
        "walled_garden": bool(policy.garden),
        "ipv6": False,
        "opened": int(now - session.online_since) if session.online_since else None,
        "out_octets": path.out_octets,
        "in_octets": path.in_octets,
        "idle": max(int(now - last_packet(session)), 0),
        "remaining": remaining(session, now),
        "lac": session.tunnel.peer[0],
        "calling": session.calling,
    }


def remaining(session: Session, now: float) -> int | None:
    """Return the seconds until the Session-Timeout, None without one."""
    timeout = session.profile.session_timeout if session.profile is not None else None
    return max(int(session.timeout_started_at + timeout - now), 0) if timeout and session.online_since else None


def last_packet(session: Session) -> float:
    path: SessionPath = session.path
    return max(path.last_rx, path.last_ip_tx)


def session_detail(session: Session, now: float, enabled: bool) -> Row:
    """Return all details of a session."""
    path, profile, policy = session.path, session.profile, session.policy
    filters = (path.filter_in, path.filter_out)
    ipcp = session.link.layers.get(Protocol.IPCP)
    return {
        **session_row(session, now, enabled),
        "called": session.called,
        "lac_session": session.peer_id,
        "lac_host": session.tunnel.host,
        "routes": [str(route) for route in path.routes],
        "phase": session.phase.value,
        "lcp": session.link.lcp.state.name.title(),
        "ipcp": ipcp.state if ipcp is not None else None,
        "session_timeout": profile.session_timeout if profile is not None else None,
        "idle_timeout": profile.idle_timeout if profile is not None else None,
        "mru": path.mru if session.online_since else session.link.lcp.peer_mru,
        "next_recv": path.next_ns if path.next_ns >= 0 else None,
        "next_send": path.ns if path.sequenced else None,
        "in_packets": path.in_packets,
        "out_packets": path.out_packets,
        "dropped": {reason: count for reason, count in path.dropped.items() if count},
        "acct_session_id": session.acct_session_id,
        "rx_speed": session.rx_speed,
        "tx_speed": session.tx_speed,
        "filter_in": filters[0].name if filters[0] is not None else None,
        "filter_out": filters[1].name if filters[1] is not None else None,
        "sink": session.services.snoop.place(session) if enabled else None,
        "rate_in": policy.rate_in or None,
        "rate_out": policy.rate_out or None,
        "garden": policy.garden or None,
        "filter_bucket": session.services.throttle.bucket(session),
        "data_path": session.services.plane.carrier(path) if enabled else None,
        "throttle_method": session.services.throttle.method_of(session) or None,
    }


def session_sheet(row: Row) -> Iterator[str]:
    dropped = ", ".join(f"{reason} {count}" for reason, count in row["dropped"].items())
    words = {
        **row,
        "idle_seconds": f"{row['idle']} seconds",
        "opened": f"{row['opened']} seconds" if row["opened"] is not None else None,
        "bytes": f"{row['in_octets']}/{row['out_octets']}",
        "packets": f"{row['in_packets']}/{row['out_packets']}",
        "dropped": dropped,
        "filters": f"{shown(row['filter_in'])}/{shown(row['filter_out'])}",
        "intercepted": "-" if row["intercepted"] is None else with_facts(row["intercepted"], row["sink"]),
        "throttled": with_facts(row["throttled"], rates(row)),
        "walled_garden": with_facts(row["walled_garden"], row["garden"]),
    }
    yield from sheet(f"Session {row['session']}", SESSION_LABELS, words)


def with_facts(value: bool, facts: str | None) -> str:
    return f"{shown(value)} ({facts})" if value else shown(value)


def rates(row: Row) -> str:
    """Return the limited directions, as `in 64 out 512 kbit/s`."""
    limited = [f"{way} {row[f'rate_{way}']}" for way in ("in", "out") if row[f"rate_{way}"]]
    return f"{' '.join(limited)} kbit/s, {row['throttle_method'] or 'not enforced'}"


def show_sessions(shell: Shell, *ids: str) -> Output:
    """Show all sessions in summary, or the given ones in detail."""
    lns = shell.context.lns
    if ids:
        return session_details(shell, [find_session(shell.context, word) for word in ids])

    enabled = is_enabled(shell)

    def rows() -> Iterator[Row]:
        for session_id in sorted(lns.sessions):
            session = lns.sessions.get(session_id)  # it may have ended while rows were being written
            if session is not None:
                yield session_row(session, monotonic(), enabled)

    return SESSIONS.output(rows)


def is_enabled(shell: Shell) -> bool:
    return shell.privilege >= Privilege.ENABLED


def session_details(shell: Shell, sessions: list[Session]) -> Output:
    enabled = is_enabled(shell)

    def rows() -> Iterator[Row]:
        return (session_detail(session, monotonic(), enabled) for session in sessions)

    return Output(lambda: (line for row in rows() for line in session_sheet(row)), rows)


# Users


def show_users(shell: Shell, user: str | None = None) -> Output:
    """Show the names of all online users, or one user's sessions in detail."""
    lns = shell.context.lns
    if user is not None:
        return session_details(shell, find_user(shell.context, user))

    def rows() -> Iterator[dict[str, Any]]:
        for name in sorted(lns.services.registry.by_user):
            for session in list(lns.services.registry.by_user.get(name, ())):
                yield {"user": session.user, "session": session.id}

    return Output(lambda: (row["user"] for row in rows()), rows)


# Ended sessions

HISTORY = Table(
    (
        Column("ended", "Ended", -19),
        Column("session", "SID", 5),
        Column("tunnel", "TID", 5),
        Column("user", "Username", -32, or_star),
        Column("address", "IP", -15, lambda address: address or "0.0.0.0"),
        Column("lac", "LAC", -15),
        Column("seconds", "opened", 10, duration),
        Column("out_octets", "downloaded", 12),
        Column("in_octets", "uploaded", 12),
        Column("lac_code", "LAC", 5, lambda code: code or "-"),
        Column("our_code", "We", 5, lambda code: code or "-"),
        Column("cause", "Cause", -21),
        Column("why", "Why", 0),
    )
)


def ending_row(ending: Ending) -> Row:
    return {
        "ended": datetime.fromtimestamp(ending.ended).isoformat(sep=" ", timespec="seconds"),
        "session": ending.session,
        "tunnel": ending.tunnel,
        "user": ending.user,
        "address": str(ending.address) if ending.address is not None else None,
        "lac": ending.lac,
        "calling": ending.calling,
        "phase": ending.phase,
        "seconds": ending.seconds,
        "in_octets": ending.in_octets,
        "out_octets": ending.out_octets,
        "lac_code": _code(ending.lac_result, ending.lac_error),
        "our_code": _code(ending.our_result, ending.our_error),
        "cause": ending.cause,
        "why": ending.why,
    }


def _code(result: int | None, error: int | None) -> str | None:
    """Return result and error code of a CDN as `RESULT/ERROR`."""
    return None if result is None else f"{result}/{error or 0}"


def show_history(shell: Shell, user: str | None = None) -> Output:
    """Show ended sessions, the newest last."""
    endings = list(shell.context.lns.services.history)
    if user is not None:
        endings = [ending for ending in endings if shell.context.lns.services.registry.same_user(ending.user, user)]
    return HISTORY.output(lambda: map(ending_row, endings))


# Histograms

HISTOGRAM_ROWS = 63  # plus one for all higher values
IDLE_STEP, OPEN_STEP = 5, 3600  # seconds per row

HISTOGRAM = Table(
    (
        Column("seconds", "Seconds", 8, lambda seconds: "lots" if seconds is None else str(seconds)),
        Column("percent", "Percent", 7, lambda percent: f"{percent:.2f}"),
        Column("sessions", "Sessions", 8),
    )
)


def show_histogram_idle(shell: Shell) -> Output:
    """Count sessions by the time since their last packet."""
    return _histogram(shell, IDLE_STEP, lambda session, now: now - last_packet(session))


def show_histogram_open(shell: Shell) -> Output:
    return _histogram(shell, OPEN_STEP, lambda session, now: now - session.online_since)


def _histogram(shell: Shell, step: int, age: Callable[[Session, float], float]) -> Output:
    lns = shell.context.lns

    def rows() -> Iterator[Row]:
        now = monotonic()
        online = list(lns.services.registry.by_address.values())
        counts: Counter[int] = Counter()
        for session in online:
            lns.services.plane.refresh(session.path)
            counts[min(int(max(age(session, now), 0) // step), HISTOGRAM_ROWS)] += 1
        for number in range(HISTOGRAM_ROWS + 1):
            yield {
                "seconds": number * step if number < HISTOGRAM_ROWS else None,
                "percent": round(100 * counts[number] / max(len(online), 1), 2),
                "sessions": counts[number],
            }

    return HISTOGRAM.output(rows, lambda: (f"{len(lns.services.registry.by_address)} sessions are open",))


# Dropping


def drop_users(shell: Shell, *names: str) -> str:
    """Drop the users' sessions that have an address, as the manual's server does."""
    said = []
    for name in names:
        online = [s for s in shell.context.lns.services.registry.sessions_of(name) if s.address is not None]
        for session in online:
            session.end(causes.ADMIN_DROP)
        said.append(f"Dropping user {name}" if online else f"User {name} is not connected")
    return "\n".join(said)


def drop_sessions(shell: Shell, *words: str) -> str:
    said = []
    for word in words:
        if not (word.isascii() and word.isdigit() and 0 < int(word[:6]) <= 65535):
            said.append(f"Invalid session ID (1 - 65535): {printable(word)}")
            continue
        session = shell.context.lns.sessions.get(int(word))
        if session is None:
            said.append(f"Session {word} is not active.")
        else:
            session.end(causes.ADMIN_DROP)
            said.append(f"Dropping session {session.id}")
    return "\n".join(said)


COMMANDS = (
    change("drop session", "end sessions by ID", drop_sessions, SOME_SESSIONS),
    change("drop user", "end all sessions of users", drop_users, SOME_USERS),
    Command("show histogram idle", "number of sessions by time since their last packet", show_histogram_idle),
    Command("show histogram open", "number of sessions by time online", show_histogram_open),
    Command("show session", "all sessions in summary, or the given ones in detail", show_sessions, (SESSION,)),
    Command("show session history", "last 1,000 sessions that ended, and why they ended", show_history, (ENDED_USER,)),
    Command("show users", "names of online users, or one user's sessions in detail", show_users, (USER,)),
)
