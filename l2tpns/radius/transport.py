"""Asking RADIUS: tries, back-off, failover and return (RFC 2865 section 2.5, RFC 5080 section 2.2.1).

A request goes round the servers, the usable ones first. What was sent to a server once stays open there until the
request is over, so that a late answer of the first server still counts while the second is being asked. Knows nothing
of attributes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent
from pyrad.packet import Packet

from l2tpns.errors import NoAnswer, PassedOver
from l2tpns.radius import packets
from l2tpns.radius.remote_server import Request, Server, ServerStats
from l2tpns.radius.types import RadiusSettings, ServerAddress
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Supervisor

MAX_INTERVAL = 32.0
JITTER = 0.1  # RFC 5080 2.2.1: each interval plus or minus a tenth

# A server that is silent may be halted, with everything that is sent to it waiting in its socket. Servers recognise a
# repetition only for a while (FreeRADIUS not at all once it has answered an Accounting-Request), and would write a
# record down as often as it was sent. So accounting tells a dead server each record once, a new one now and then, and
# repeats only when it shows life, or when there is nothing new to try it with.
FRESH_PROBE = 2.0
REPEATED_PROBE = 8.0
LOOK_AGAIN = 0.5
# An Accounting-Request that a server does not answer, though it answers others, may be one that it never takes (a bug,
# a firewall that drops fragments). After so many such tries a round is over early: others need the worker.
PASSED_OVER = 4
STALE = 90.0  # a request held back for so long is given up: the next one tells its new Acct-Delay-Time


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request that waits for its answer, as `show radius` prints it."""

    identifier: int
    server: ServerAddress
    label: str  # PAP, CHAP, START ...
    session_id: int
    tries: int
    next_try: float  # by the wall clock as it is set now


@dataclass(frozen=True, slots=True)
class ServerReport:
    """A server's figures at one moment."""

    address: ServerAddress
    dead: bool
    trusted: bool
    in_flight: int
    sockets: int
    stats: ServerStats


class Tally:
    """Count the tries of one request that live servers have left unanswered."""

    __slots__ = ("_answers", "_servers", "passed_over", "unsure")

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers
        self._answers = answers_of(servers)
        self.passed_over = 0  # a server has answered another request since
        self.unsure = 0  # none has: it may have died

    def unanswered(self, *, live: bool) -> None:
        self.unsure += live
        answers = answers_of(self._servers)
        if answers != self._answers:
            self._answers = answers
            self.passed_over += self.unsure
            self.unsure = 0


def answers_of(servers: list[Server]) -> int:
    return sum(server.answers for server in servers)


class Transport:
    """All requests of one kind; request() blocks the greenlet that calls it and nobody else."""

    def __init__(
        self,
        settings: RadiusSettings,
        dictionary: Any,
        log: Logger,
        *,
        accounting: bool = False,
        random: Callable[[int], bytes] = os.urandom,
        supervisor: Supervisor | None = None,
        awake: AwakeClock | None = None,
    ) -> None:
        self._supervisor = supervisor or Supervisor(log)
        self.awake = awake or AwakeClock()
        self._accounting = accounting
        self._dictionary = dictionary
        self._log = log
        self._random = random
        self._servers: list[Server] = []
        self._retired: list[Server] = []
        self.settings = settings
        self.configure(settings)

    def configure(self, settings: RadiusSettings) -> None:
        """Takes effect for new requests; a server that stays keeps its sockets, figures and trust."""
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

    def _new_server(self, address: ServerAddress, settings: RadiusSettings) -> Server:
        return Server(address, settings, self._dictionary, self._log, self._supervisor)

    def request(
        self,
        encode: packets.Encoder,
        *,
        label: str,
        session_id: int = 0,
        tries: int | None = None,
        max_interval: float = MAX_INTERVAL,
    ) -> Packet:
        """Return the first authentic reply. Raises NoAnswer when all tries are used up; PassedOver when the servers
        answered others meanwhile."""
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
                server = self._turn(order, number)
                answer = self._hold_back(request, server, order) if self._accounting else None
                if answer is not None:
                    return answer
                sent, dead = request.tries, server.dead
                answer = self._try(request, server, self._jittered(min(interval, max_interval)))
                if answer is not None:
                    return answer
                tally.unanswered(live=request.tries > sent and not dead)
                if self._accounting and tally.passed_over >= PASSED_OVER:
                    break
                interval *= 2
        finally:
            for server, leg in request.legs.items():
                server.close_leg(leg)
        text = f"no RADIUS server answered {request.tries} tries of {label}"
        raise PassedOver(text, tally.passed_over, tally.unsure)

    def _try(self, request: Request, server: Server, interval: float) -> Packet | None:
        deadline = self.awake.now() + interval
        request.next_try = time.monotonic() + interval
        leg = request.legs.get(server)
        if leg is None:
            leg = server.open_leg(request, interval)
            if leg is None:
                # Thousands are in flight already, or no local port: our own limit, not the server's silence.
                return self._answer(request, deadline)
            request.legs[server] = leg
        request.tries += 1
        leg.channel.send(leg)
        answer = self._answer(request, deadline)
        if answer is None:
            server.timed_out(leg.channel)
        return answer

    def _turn(self, order: list[Server], number: int) -> Server:
        """Round robin; accounting leaves out the dead after its first try, as long as another one lives."""
        server = order[number % len(order)]
        if number and self._accounting and server.dead:
            return next((other for other in order if not other.dead), server)
        return server

    def _hold_back(self, request: Request, server: Server, order: list[Server]) -> Packet | None:
        """Wait while all servers are dead and it is another request's turn to find out whether they still are."""
        leg = request.legs.get(server)
        quiet = FRESH_PROBE if leg is None or server.refusing else REPEATED_PROBE
        held = False
        while all(other.dead for other in order) and time.monotonic() < server.last_sent + quiet:
            held = True
            answer = self._answer(request, self.awake.now() + LOOK_AGAIN)
            if answer is not None:
                return answer
        if leg is None:
            server.last_sent = time.monotonic()  # taken: nobody else finds it quiet now
        elif time.monotonic() > leg.sent_at + STALE:
            raise NoAnswer(f"no RADIUS server answered {request.label} in time")
        elif held and not server.dead:
            # It lives again, and may be about to answer what it was told before.
            return self._answer(request, self.awake.now() + self.settings.timeout)
        return None

    def _answer(self, request: Request, deadline: float) -> Packet | None:
        """Wait for an answer until the awake clock shows `deadline`: the server is not blamed for a pause of ours."""
        while not request.result.ready():
            left = deadline - self.awake.now()
            if left > 0.0:
                request.result.wait(self.awake.real(left))
                continue
            gevent.sleep(0)  # who was held up finds the end of the time and the answer at once: the answer counts
            if not request.result.ready():
                return None
        _, leg, reply = request.result.get()
        # RFC 2868 3.5: salted attributes of a reply are read with the authenticator of its request.
        reply.request_authenticator = leg.packet.authenticator
        return reply

    def _order(self) -> list[Server]:
        """In the configured order, but the dead ones last."""
        usable: list[Server] = []
        dead: list[Server] = []
        for server in self._servers:
            # A server behind a usable one is not probed: nobody needs its answer now.
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
            InFlight(leg.identifier, server.address, leg.request.label, leg.request.session_id,
                     leg.request.tries, leg.request.next_try + shift)
            for server in self._servers + self._retired
            for leg in server.legs()
        ]  # fmt: skip

    def report(self) -> list[ServerReport]:
        return [
            ServerReport(server.address, server.dead, server.trusted, server.in_flight,
                         server.sockets, server.stats)
            for server in self._servers
        ]  # fmt: skip

    def close(self) -> None:
        for server in self._servers + self._retired:
            server.close()
