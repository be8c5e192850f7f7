"""Interception: a copy of every packet of a session, each way, to a sink (manual: Interception; docs/interception.md).

Only operators with enable privilege may see which sessions are intercepted. The audit log records it and no other log
does. Consoles show it only after `enable`.

A sink must not be a subscriber of this server: that subscriber would receive foreign packets, and if it is intercepted
too, each copy would be copied again. A request for such a sink is refused. If a subscriber gets the address of a sink
later, no copies are sent there as long as it has the address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address
from time import time_ns
from typing import NoReturn

from l2tpns.capture.frame import Framer
from l2tpns.config.settings import Config
from l2tpns.policy.model import Changes, PolicyError, Sink, Subscriber
from l2tpns.policy.snoop_sink import RETRY_DELAY, SnoopSink
from l2tpns.policy.taps import Taps
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.log import Logger

CONFIGURED = Sink(IPv4Address(0), 0)  # stands for the current snoop_host and snoop_port


class Copier:
    """Copies the packets of one session. Called by the reader; must not block or raise."""

    __slots__ = ("_acct", "_config", "_framer", "_session", "_user", "lost", "sent", "snoop_sink")

    def __init__(self, config: Config, session: Subscriber, snoop_sink: SnoopSink) -> None:
        self._config = config
        self._session = session
        self._acct, self._user = session.acct_session_id, session.user
        self._framer = Framer(session.tunnel_id, session.id, self._acct, self._user)
        self.snoop_sink = snoop_sink
        self.sent = self.lost = 0

    def __call__(self, direction: int, packet: bytes) -> None:
        if self._config.snoop_format == "framed":
            session = self._session
            if session.acct_session_id is not self._acct or session.user is not self._user:  # it left a garden
                self._acct, self._user = session.acct_session_id, session.user
                self._framer.name(self._acct, self._user)
            packet = self._framer.frame(direction, packet, time_ns())
        if self.snoop_sink.send(packet):
            self.sent += 1
        else:
            self.lost += 1


class Snoop:
    """Intercepts sessions; a PolicyPart. `sessions` is the server's table, by id.

    `in_pool` returns whether an address belongs to the pool. `holder` returns the session that has an address.
    """

    def __init__(
        self,
        config: Config,
        counters: Counters,
        log: Logger,
        changes: Changes,
        taps: Taps,
        sessions: Mapping[int, Subscriber],
        in_pool: Callable[[IPv4Address], bool],
        holder: Callable[[IPv4Address], Subscriber | None],
        *,
        retry_delay: float = RETRY_DELAY,
    ) -> None:
        self.retry_delay = retry_delay  # of receivers that are used from now on, in seconds
        self._config = config
        self._counters = counters
        self._log = log
        self._changes = changes
        self._taps = taps
        taps.interceptor = self.copier
        self._sessions = sessions
        self._in_pool = in_pool
        self._holder = holder
        self._snoop_sinks: dict[Sink, SnoopSink] = {}
        self.copiers: dict[Subscriber, Copier] = {}  # of the sessions whose packets are being copied
        self._configured: Sink | None = None

    # Requests of operators, RADIUS and plugins

    def start(self, session: Subscriber, sink: Sink | None = None, *, by: str) -> None:
        """Copy the packets of a session to `sink`; None means snoop_host. Raises PolicyError.

        If the session is not online yet, copying begins with its first packet.
        """
        chosen = sink or CONFIGURED
        where, snoop_sink = self.where(chosen), self._snoop_sinks.get(chosen)
        if where is None:
            refusal = "snoop_host and snoop_port are not set"
        elif snoop_sink is not None and snoop_sink.sink == where:
            refusal = snoop_sink.blocked  # in use by other sessions: its state is current
        else:
            refusal = self.refusal(where)
        if refusal:
            self.refuse(session, refusal, chosen, by=by)
        if session.policy.sink != chosen:
            self._audit_on(session, chosen, by)
            self._change(session, chosen)

    def refuse(self, session: Subscriber, why: str, sink: Sink | None = None, *, by: str) -> NoReturn:
        """Log a refused interception in the audit log. Raises PolicyError."""
        place = self._text(sink)
        session.log.secret_audit(
            "snoop_refused", by=by, user=session.user, acct=session.acct_session_id, sink=place, why=why
        )
        raise PolicyError(why)

    def stop(self, session: Subscriber, *, by: str) -> None:
        """Stop copying. Does nothing if the session is not intercepted."""
        sink, copier = session.policy.sink, self.copiers.get(session)
        if sink is not None:
            self._change(session, None)
            self._audit_off(session, sink, copier, by)

    def _change(self, session: Subscriber, sink: Sink | None) -> None:
        session.change_policy(sink=sink)
        self._taps.rebuild(session)
        if session.online_since:
            self._changes.session(session)

    def where(self, sink: Sink | None) -> Sink | None:
        """Return the address and port of a sink, those of the configuration for CONFIGURED; None if it has none."""
        return self._from_configuration() if sink == CONFIGURED else sink

    def _from_configuration(self) -> Sink | None:
        """Return snoop_host and snoop_port: the same object as before unless they have changed."""
        host, port, found = self._config.snoop_host, self._config.snoop_port, self._configured
        if host is None or not port:
            return None
        if found is None or found.address is not host or found.port != port:
            found = self._configured = Sink(host, port)
        return found

    def refusal(self, sink: Sink, leaving: Subscriber | None = None) -> str:
        """Return why no copies may be sent there, an empty string if they may. Ignore the addresses of `leaving`."""
        address = sink.address
        if not 0 < sink.port <= 65535:
            return f"{sink.port} is not a UDP port"
        if address.is_unspecified or address.is_multicast or address.is_reserved:
            return f"{address} is not the address of a single host"
        if self._in_pool(address):
            return f"{address} is in the pool: copies would go to a subscriber"
        if self._holder(address) not in (None, leaving):
            return f"{address} is a subscriber's: copies would go there"
        for session in self._sessions.values():
            if session.profile is not None and session.profile.routes and session is not leaving:
                if _has(session, address):
                    return f"{address} is a subscriber's: copies would go there"
        return ""

    # The data path

    def copier(self, session: Subscriber) -> Copier | None:
        """Return the copier of a session, None if it is not intercepted. Called by Taps before the path is online."""
        if self._snoop_sinks and session.address is not None:
            for snoop_sink in self._snoop_sinks.values():
                if snoop_sink.sink is not None and not snoop_sink.blocked and _has(session, snoop_sink.sink.address):
                    snoop_sink.check()
        sink, found = session.policy.sink, self.copiers.get(session)
        if found is not None and sink is not None and found.snoop_sink is self._snoop_sinks.get(sink):
            return found
        self._release_sink(session)
        if sink is None:
            return None
        snoop_sink = self._snoop_sinks.get(sink) or self._new_snoop_sink(sink)
        snoop_sink.users += 1
        copier = self.copiers[session] = Copier(self._config, session, snoop_sink)
        return copier

    def _new_snoop_sink(self, sink: Sink) -> SnoopSink:
        find = self._from_configuration if sink == CONFIGURED else lambda: sink
        snoop_sink = self._snoop_sinks[sink] = SnoopSink(
            find, self.refusal, self._counters, self._log, self.retry_delay
        )
        snoop_sink.move(find())
        return snoop_sink

    def _release_sink(self, session: Subscriber) -> None:
        copier = self.copiers.pop(session, None)
        if copier is not None:
            copier.snoop_sink.users -= 1
            if not copier.snoop_sink.users:
                copier.snoop_sink.close()
                self._snoop_sinks = {sink: each for sink, each in self._snoop_sinks.items() if each.users}

    def begin(self, session: Subscriber) -> None:
        """Do nothing: Session.start_forwarding() has installed the copier."""

    def finish(self, session: Subscriber) -> None:
        """Stop copying, and unblock sinks that the session's address has blocked."""
        copier = self.copiers.get(session)
        if copier is not None:
            self._release_sink(session)
            self._audit_off(session, session.policy.sink, copier, "end of session")
        for snoop_sink in self._snoop_sinks.values():
            if snoop_sink.blocked and snoop_sink.sink is not None and _has(session, snoop_sink.sink.address):
                snoop_sink.blocked = self.refusal(snoop_sink.sink, leaving=session)

    def login_failed(self, session: Subscriber) -> None:
        """Log the end of an interception whose session has not come online."""
        if session.policy.sink is not None:
            self._audit_off(session, session.policy.sink, None, "end of session")

    def resumed(self, sessions: Iterable[Subscriber]) -> None:
        """Log the interceptions that were restored after a restart."""
        for session in sessions:
            if session.policy.sink is not None:
                self._audit_on(session, session.policy.sink, "saved state")

    # The audit log

    def _audit_on(self, session: Subscriber, sink: Sink, by: str) -> None:
        place = self._text(sink)
        session.log.secret_audit("snoop_on", by=by, user=session.user, acct=session.acct_session_id, sink=place)

    def _audit_off(self, session: Subscriber, sink: Sink | None, copier: Copier | None, by: str) -> None:
        session.log.secret_audit(
            "snoop_off",
            by=by,
            user=session.user,
            acct=session.acct_session_id,
            sink=self._text(sink),
            sent=copier.sent if copier is not None else 0,
            lost=copier.lost if copier is not None else 0,
        )

    def place(self, session: Subscriber) -> str | None:
        """Return the sink of a session as `ADDRESS:PORT`, None if it is not intercepted."""
        return self._text(session.policy.sink) or None

    def _text(self, sink: Sink | None) -> str:
        where = self.where(sink)
        return f"{where.address}:{where.port}" if where is not None else ""


def _has(session: Subscriber, address: IPv4Address) -> bool:
    """Return whether packets to this address are routed to this session."""
    if session.address == address:
        return True
    profile = session.profile
    return profile is not None and any(address in route.prefix for route in profile.routes)
