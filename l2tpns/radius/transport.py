"""Sending requests to RADIUS servers: tries, back-off, failover and return (RFC 2865 2.5, RFC 5080 2.2.1).

A request is sent to one server after another, the usable ones first. It stays pending at each of them until it is
over, so that a late answer of the first server still counts while the second is tried. Knows nothing of attributes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import gevent

from l2tpns.errors import NoAnswer, PassedOver
from l2tpns.radius import packets
from l2tpns.radius.remote_server import IDENTIFIERS, RemoteServer, Request
from l2tpns.radius.reply_packet import ReplyPacket
from l2tpns.radius.report import InFlight, ServerReport
from l2tpns.radius.settings import RadiusSettings, ServerAddress
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Supervisor

MAX_INTERVAL = 32.0
JITTER = 0.1  # RFC 5080 2.2.1: each interval plus or minus a tenth


@dataclass(frozen=True, slots=True)
class TransportTiming:
    """How accounting asks servers that are dead. All but max_passed_over in seconds.

    A silent server may be halted, with everything that is sent to it waiting in its socket. Servers recognise a
    repetition only for a while (FreeRADIUS not at all once it has answered an Accounting-Request), and would record
    the same usage as often as it was sent. So each Accounting-Request is sent to a dead server once, a new one every
    `fresh_probe` seconds, and repeated only when the server responds again, or when there is no new one to try.
    """

    fresh_probe: float = 2.0
    repeated_probe: float = 8.0
    poll_interval: float = 0.5  # between two looks whether the server has come back
    stale_after: float = 90.0  # a request held back for so long is given up: the next has a new Acct-Delay-Time
    # A server that leaves an Accounting-Request unanswered and answers others may never accept it (a bug, a firewall
    # that drops fragments). After this number of such tries a round ends early: other records need the worker.
    max_passed_over: int = 4


class Tally:
    """The tries of one request that live servers have left unanswered."""

    __slots__ = ("_answers", "_servers", "passed_over", "unsure")

    def __init__(self, servers: list[RemoteServer]) -> None:
        self._servers = servers
        self._answers = answers_of(servers)
        self.passed_over = 0  # tries after which a server has answered another request
        self.unsure = 0  # tries after which none has: the server may have died

    def unanswered(self, *, live: bool) -> None:
        self.unsure += live
        answers = answers_of(self._servers)
        if answers != self._answers:
            self._answers = answers
            self.passed_over += self.unsure
            self.unsure = 0


def answers_of(servers: list[RemoteServer]) -> int:
    return sum(server.answers for server in servers)


class Transport:
    """All requests of one kind. request() blocks the calling greenlet only."""

    def __init__(
        self,
        settings: RadiusSettings,
        log: Logger,
        *,
        accounting: bool = False,
        random: Callable[[int], bytes] = os.urandom,
        supervisor: Supervisor | None = None,
        awake: AwakeClock | None = None,
        timing: TransportTiming | None = None,
    ) -> None:
        self._supervisor = supervisor or Supervisor(log)
        self.awake = awake or AwakeClock()
        self._accounting = accounting
        self._timing = timing or TransportTiming()
        self._log = log
        self._random = random
        self._servers: list[RemoteServer] = []
        self._retired: list[RemoteServer] = []
        self.settings = settings
        self.configure(settings)

    def configure(self, settings: RadiusSettings) -> None:
        """Use these settings for new requests. A server that stays keeps its sockets, figures and trust."""
        known = {server.address: server for server in self._servers}
        kept = []
        for address in dict.fromkeys(settings.accounting_servers if self._accounting else settings.servers):
            server = known.pop(address, None) or self._new_server(address, settings)
            server.configure(settings)
            kept.append(server)
        for server in self._servers:
            if server not in kept:
                server.retire()
                self._retired.append(server)
        self._retired = [server for server in self._retired if server.in_flight]
        self._servers = kept
        self.settings = settings

    def _new_server(self, address: ServerAddress, settings: RadiusSettings) -> RemoteServer:
        return RemoteServer(address, settings, self._log, self._supervisor)

    def request(
        self,
        encode: packets.Encoder,
        *,
        label: str,
        session_id: int = 0,
        tries: int | None = None,
        max_interval: float = MAX_INTERVAL,
    ) -> ReplyPacket:
        """Return the first authentic reply. Yields.

        Raises NoAnswer when no server is configured, or PassedOver when all tries are used up: it counts the tries
        after which a server has answered another request.
        """
        order = self._order()
        if not order:
            raise NoAnswer("no RADIUS server is configured")
        if tries is None:
            tries = self.settings.retries or 2 * len(order)
        request = Request(encode, label, session_id)
        tally = Tally(order)
        try:
            interval = self.settings.timeout
            for number in range(tries):
                server = self._server_of_try(order, number)
                answer = self._hold_back(request, server, order) if self._accounting else None
                if answer is not None:
                    return answer
                sent, dead = request.tries, server.dead
                answer = self._try(request, server, self._jittered(min(interval, max_interval)))
                if answer is not None:
                    return answer
                tally.unanswered(live=request.tries > sent and not dead)
                if self._accounting and tally.passed_over >= self._timing.max_passed_over:
                    break
                interval *= 2
        finally:
            for server, pending in request.pending.items():
                server.close_request(pending)
            request.pending.clear()  # they know the request: else it would wait for the collector, with every login
        text = f"no RADIUS server answered {request.tries} tries of {label}"
        raise PassedOver(text, tally.passed_over, tally.unsure)

    def _try(self, request: Request, server: RemoteServer, interval: float) -> ReplyPacket | None:
        deadline = self.awake.now() + interval
        request.next_try = time.monotonic() + interval
        pending = request.pending.get(server)
        if pending is None:
            pending = server.open_request(request, interval)
            if pending is None:
                # Thousands are in flight, or no local port is free: this process is at its limit, not the server.
                return self._answer(request, deadline)
            request.pending[server] = pending
        request.tries += 1
        pending.radius_socket.send(pending)
        answer = self._answer(request, deadline)
        if answer is None:
            server.timed_out(pending.radius_socket)
        return answer

    def _server_of_try(self, order: list[RemoteServer], number: int) -> RemoteServer:
        """Return the server of the next try: round robin, for accounting without dead servers after the first try."""
        server = order[number % len(order)]
        if number and self._accounting and server.dead:
            return next((other for other in order if not other.dead), server)
        return server

    def _hold_back(self, request: Request, server: RemoteServer, order: list[RemoteServer]) -> ReplyPacket | None:
        """Wait while all servers are dead and another request has just been sent to this one.

        Return an answer if one comes meanwhile. Raises NoAnswer when the request has become stale.
        """
        pending = request.pending.get(server)
        fresh = pending is None or server.refusing
        quiet = self._timing.fresh_probe if fresh else self._timing.repeated_probe
        held = False
        while all(other.dead for other in order) and time.monotonic() < server.last_sent + quiet:
            held = True
            answer = self._answer(request, self.awake.now() + self._timing.poll_interval)
            if answer is not None:
                return answer
        if pending is None:
            server.last_sent = time.monotonic()  # now: no other request may probe it
        elif time.monotonic() > pending.sent_at + self._timing.stale_after:
            raise NoAnswer(f"no RADIUS server answered {request.label} in time")
        elif held and not server.dead:
            # It lives again, and may be about to answer what was sent before.
            return self._answer(request, self.awake.now() + self.settings.timeout)
        return None

    def _answer(self, request: Request, deadline: float) -> ReplyPacket | None:
        """Wait for an answer until the awake clock shows `deadline`, which excludes pauses of this process."""
        answers = request.answers
        while (answer := answers.take()) is None:
            left = deadline - self.awake.now()
            if left > 0.0:
                answers.wait(self.awake.real(left))
                continue
            gevent.sleep(0)  # after a delay both the deadline and the answer are there: let the reader run
            if not len(answers):
                return None
        reply: ReplyPacket = answer
        return reply

    def _order(self) -> list[RemoteServer]:
        """Return the servers in the configured order, but the dead ones last."""
        usable: list[RemoteServer] = []
        dead: list[RemoteServer] = []
        for server in self._servers:
            # A server behind a usable one is not probed: no request needs its answer now.
            (usable if (not usable or not server.dead) and server.usable() else dead).append(server)
        return usable + dead

    def _jittered(self, interval: float) -> float:
        fraction = int.from_bytes(self._random(2), "big") / 0xFFFF
        return interval * (1 - JITTER + 2 * JITTER * fraction)

    @property
    def answers(self) -> int:
        """Return how many authentic answers the servers that are configured now have given, to any request."""
        return answers_of(self._servers)

    # --- for show radius and the metrics

    def in_flight(self) -> list[InFlight]:
        shift = time.time() - time.monotonic()
        return [
            InFlight(pending.identifier, server.address, pending.request.label, pending.request.session_id,
                     pending.request.tries, pending.request.next_try + shift)
            for server in self._servers + self._retired
            for pending in server.pending_requests()
        ]  # fmt: skip

    def report(self) -> list[ServerReport]:
        return [
            ServerReport(server.address, server.dead, server.trusted, server.in_flight,
                         self.settings.max_sockets * IDENTIFIERS, server.sockets, server.stats)
            for server in self._servers
        ]  # fmt: skip

    def close(self) -> None:
        for server in self._servers + self._retired:
            server.close()
