"""Interception: a copy of every packet of a session, each way, to a sink (manual: Interception; docs/interception.md).

Whose packets are copied is nobody's business but the operator's who may change it: it stands in the audit log and in no
other line, and consoles show it after `enable` only.

A sink must not be one of our subscribers: it would get what is not its own, and if it is intercepted too, each copy
would be copied again. Asked for, that is refused; when a subscriber gets the address of a sink later, nothing is sent
there as long as it has it.
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

CONFIGURED = Sink(IPv4Address(0), 0)  # as snoop_host and snoop_port say, also when they change


class Copier:
    """Makes the copies of one session's packets; called by the data path."""

    __slots__ = ("_acct", "_config", "_framer", "_session", "_user", "lost", "outlet", "sent")

    def __init__(self, config: Config, session: Subscriber, outlet: SnoopSink) -> None:
        self._config = config
        self._session = session
        self._acct, self._user = session.acct_session_id, session.user
        self._framer = Framer(session.tunnel_id, session.id, self._acct, self._user)
        self.outlet = outlet
        self.sent = self.lost = 0

    def __call__(self, direction: int, packet: bytes) -> None:
        if self._config.snoop_format == "framed":
            session = self._session
            if session.acct_session_id is not self._acct or session.user is not self._user:  # it has left a garden
                self._acct, self._user = session.acct_session_id, session.user
                self._framer.name(self._acct, self._user)
            packet = self._framer.frame(direction, packet, time_ns())
        if self.outlet.send(packet):
            self.sent += 1
        else:
            self.lost += 1


class Snoop:
    """Intercepts sessions; a PolicyPart. `sessions` is the server's table of them, by id.

    `in_pool` says whether an address is one of the pool's, `holder` which session has it.
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
        self._outlets: dict[Sink, SnoopSink] = {}
        self.copiers: dict[Subscriber, Copier] = {}  # of the sessions whose packets are copied now
        self._configured: Sink | None = None

    # What operators, RADIUS and plugins ask

    def start(self, session: Subscriber, sink: Sink | None = None, *, by: str) -> None:
        """Copy its packets, from the first one on if it is not online yet; None: to snoop_host. PolicyError."""
        chosen = sink or CONFIGURED
        where, outlet = self.where(chosen), self._outlets.get(chosen)
        if where is None:
            refusal = "snoop_host and snoop_port are not set"
        elif outlet is not None and outlet.sink == where:
            refusal = outlet.blocked  # others use it: what it says is true, and no search
        else:
            refusal = self.refusal(where)
        if refusal:
            self.refuse(session, refusal, chosen, by=by)
        if session.policy.sink != chosen:
            self._tell_on(session, chosen, by)
            self._change(session, chosen)

    def refuse(self, session: Subscriber, why: str, sink: Sink | None = None, *, by: str) -> NoReturn:
        """It cannot be: PolicyError, and a line in the audit log, for whoever asked may have to answer for it."""
        place = self._words(sink)
        session.log.secret_audit(
            "snoop_refused", by=by, user=session.user, acct=session.acct_session_id, sink=place, why=why
        )
        raise PolicyError(why)

    def stop(self, session: Subscriber, *, by: str) -> None:
        """No further copies."""
        sink, copier = session.policy.sink, self.copiers.get(session)
        if sink is not None:
            self._change(session, None)
            self._tell_off(session, sink, copier, by)

    def _change(self, session: Subscriber, sink: Sink | None) -> None:
        session.change_policy(sink=sink)
        self._taps.rebuild(session)
        if session.online_since:
            self._changes.session(session)

    def where(self, sink: Sink | None) -> Sink | None:
        """Where this is now: CONFIGURED stands for the configuration's; None if that names none."""
        return self._from_configuration() if sink == CONFIGURED else sink

    def _from_configuration(self) -> Sink | None:
        """The same object as long as it is the same place."""
        host, port, found = self._config.snoop_host, self._config.snoop_port, self._configured
        if host is None or not port:
            return None
        if found is None or found.address is not host or found.port != port:
            found = self._configured = Sink(host, port)
        return found

    def refusal(self, sink: Sink, leaving: Subscriber | None = None) -> str:
        """Why nothing may be sent there, or nothing; `leaving` has its address no longer."""
        address = sink.address
        if not 0 < sink.port <= 65535:
            return f"{sink.port} is no UDP port"
        if address.is_unspecified or address.is_multicast or address.is_reserved:
            return f"{address} is not the address of one host"
        if self._in_pool(address):
            return f"{address} lies in the pool: copies would go to a subscriber"
        if self._holder(address) not in (None, leaving):
            return f"{address} is a subscriber's: copies would go there"
        for session in self._sessions.values():
            if session.profile is not None and session.profile.routes and session is not leaving:
                if _has(session, address):
                    return f"{address} is a subscriber's: copies would go there"
        return ""

    # What the data path needs

    def copier(self, session: Subscriber) -> Copier | None:
        """Who copies its packets, if anybody; asked whenever that may have changed, before the path carries any."""
        if self._outlets and session.address is not None:
            for outlet in self._outlets.values():
                if outlet.sink is not None and not outlet.blocked and _has(session, outlet.sink.address):
                    outlet.check()
        sink, found = session.policy.sink, self.copiers.get(session)
        if found is not None and sink is not None and found.outlet is self._outlets.get(sink):
            return found
        self._let_go(session)
        if sink is None:
            return None
        outlet = self._outlets.get(sink) or self._new_outlet(sink)
        outlet.users += 1
        copier = self.copiers[session] = Copier(self._config, session, outlet)
        return copier

    def _new_outlet(self, sink: Sink) -> SnoopSink:
        find = self._from_configuration if sink == CONFIGURED else lambda: sink
        outlet = self._outlets[sink] = SnoopSink(find, self.refusal, self._counters, self._log, self.retry_delay)
        outlet.move(find())
        return outlet

    def _let_go(self, session: Subscriber) -> None:
        copier = self.copiers.pop(session, None)
        if copier is not None:
            copier.outlet.users -= 1
            if not copier.outlet.users:
                copier.outlet.close()
                self._outlets = {sink: outlet for sink, outlet in self._outlets.items() if outlet.users}

    def begin(self, session: Subscriber) -> None:
        """Session.carry() has everything in place already."""

    def finish(self, session: Subscriber) -> None:
        copier = self.copiers.get(session)
        if copier is not None:
            self._let_go(session)
            self._tell_off(session, session.policy.sink, copier, "end of session")
        for outlet in self._outlets.values():
            if outlet.blocked and outlet.sink is not None and _has(session, outlet.sink.address):
                outlet.blocked = self.refusal(outlet.sink, leaving=session)

    def login_failed(self, session: Subscriber) -> None:
        """It has not come online, and nothing was copied: the audit log has to say so."""
        if session.policy.sink is not None:
            self._tell_off(session, session.policy.sink, None, "end of session")

    def resumed(self, sessions: Iterable[Subscriber]) -> None:
        """Taken up again after a restart: for the audit log, whose last word may have been another process's."""
        for session in sessions:
            if session.policy.sink is not None:
                self._tell_on(session, session.policy.sink, "saved state")

    # Who it is told

    def _tell_on(self, session: Subscriber, sink: Sink, by: str) -> None:
        place = self._words(sink)
        session.log.secret_audit("snoop_on", by=by, user=session.user, acct=session.acct_session_id, sink=place)

    def _tell_off(self, session: Subscriber, sink: Sink | None, copier: Copier | None, by: str) -> None:
        session.log.secret_audit(
            "snoop_off",
            by=by,
            user=session.user,
            acct=session.acct_session_id,
            sink=self._words(sink),
            sent=copier.sent if copier is not None else 0,
            lost=copier.lost if copier is not None else 0,
        )

    def place(self, session: Subscriber) -> str | None:
        """Where its copies go, `ADDRESS:PORT`; None: nowhere."""
        return self._words(session.policy.sink) or None

    def _words(self, sink: Sink | None) -> str:
        where = self.where(sink)
        return f"{where.address}:{where.port}" if where is not None else ""


def _has(session: Subscriber, address: IPv4Address) -> bool:
    """Whether the kernel would bring packets for this address to this session."""
    if session.address == address:
        return True
    profile = session.profile
    return profile is not None and any(address in route.prefix for route in profile.routes)
