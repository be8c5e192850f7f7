"""Control messages that name no tunnel of ours: SCCRQs, and what else any address may send (RFC 2661 4.4.3, 7.2.1).

Nothing in such a message proves where it comes from. It gets a bounded share of the process's time, and whatever it
may cost is asked in the order of the price: header, message type, budget, limits, and only then the AVPs. See
docs/decisions/0013-strangers-get-a-share-of-the-time.md.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Protocol

import gevent

from l2tpns.dataplane.endpoint import Endpoint
from l2tpns.errors import ProtocolError
from l2tpns.l2tp.admission import Admission
from l2tpns.l2tp.timing import TunnelTiming
from l2tpns.l2tp.tunnel import Tunnel, TunnelOwner, TunnelState
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import CONTROL, ControlHeader, build_control
from l2tpns.proto.l2tp.messages import SCCRP, SCCRQ, MessageError, MessageType, ResultCode, StopCCN, StopCcnResult
from l2tpns.proto.l2tp.reliable import MAX_AMPLIFICATION, Reliable
from l2tpns.runtime.peer import Peer
from l2tpns.subscriber.services import Services

SHARE = 0.25  # of the time, for strangers altogether
BUSY_SHARE = 0.05  # the same while the socket has more to read than is read at once
# How much of `burst` must be left for a message from
BUSY = 0.75  # any address, while there is more to read
HEAVY = 0.5  # an address that has used more than FAIR of a second's share
ANY = 0.25  # any other address; what is below is for LACs that we know
FAIR = 0.125
BUSY_FOR = 0.02  # seconds after a look at the socket that did not read it to its end
REPORT_INTERVAL = 10.0  # seconds between two lines about messages that were dropped
MAX_ADDRESSES = 1024  # whose use of the share is counted, and that are known as LACs
HANDLED = (MessageType.SCCRQ, MessageType.SCCRP, MessageType.STOPCCN)
# A StopCCN of ours without its text: header, Message Type, Assigned Tunnel ID, Result Code with error code.
STOPCCN_SIZE = CONTROL.size + 8 + 8 + 10


class Budget:
    """Seconds of work that strangers may cause: SHARE of the time that passes, at most `burst` seconds at once.

    The time is the processor's, and a quarter may be more than a busy machine has. A socket that is not read to its end
    shows that: then a smaller share has to do.

    When little is left, addresses of known LACs come before others, and those that have used little of this second
    before those that have used much.
    """

    def __init__(self, burst: float, now: float) -> None:
        self.left = self._burst = burst
        self._filled_at = now
        self._second = int(now)
        self._used: dict[str, float] = {}  # seconds of work by address, in this second
        self._known: OrderedDict[str, None] = OrderedDict()

    def know(self, lac: str) -> None:
        """Remember that a tunnel with this LAC came up."""
        self._known[lac] = None
        self._known.move_to_end(lac)
        if len(self._known) > MAX_ADDRESSES:
            self._known.popitem(last=False)

    def allows(self, lac: str, now: float, busy: bool = False) -> bool:
        """Return whether work for a message from this address may begin; `busy`: there is more to read behind it."""
        share = BUSY_SHARE if busy else SHARE
        self.left = min(self._burst, self.left + share * max(0.0, now - self._filled_at))
        self._filled_at = now
        if int(now) != self._second:
            self._second = int(now)
            self._used.clear()
        level = 0.0 if lac in self._known else BUSY if busy else ANY
        if self._used.get(lac, 0.0) > FAIR * SHARE:
            level = max(level, HEAVY)
        return self.left > level * self._burst

    def charge(self, lac: str, seconds: float) -> None:
        """Take what was used for a message or a half-open tunnel of this address."""
        self.left -= seconds
        if lac in self._used or len(self._used) < MAX_ADDRESSES:
            self._used[lac] = self._used.get(lac, 0.0) + seconds


class TunnelTable(TunnelOwner, Protocol):
    """What messages for tunnel 0 ask of the LNS."""

    by_peer: dict[tuple[Peer, int], Tunnel]  # by address and the LAC's tunnel id

    def tunnel_begun(self, tunnel: Tunnel) -> None:
        """Enter a tunnel whose SCCRQ was accepted."""

    def evict(self, tunnel: Tunnel) -> None:
        """Forget a half-open tunnel, for another to have its place."""

    def unused_tunnel_id(self) -> int:
        """Return a tunnel id that is free."""


class Strangers:
    """Handles messages for tunnel 0."""

    def __init__(self, services: Services, admission: Admission, table: TunnelTable, timing: TunnelTiming) -> None:
        self._services = services
        self._admission = admission
        self._table = table
        self._timing = timing
        self.budget = Budget(table.limits.stranger_burst, timing.clock())
        self._refusal_second = 0
        self._refusals = 0
        self._dropped = 0  # since the last line about it
        self._report_at = 0.0

    def on_message(self, header: ControlHeader, peer: Peer, endpoint: Endpoint) -> None:
        """Take a message for tunnel 0. Called by the reader; must not block or raise."""
        if not header.body:
            return
        now = self._timing.clock()
        if not self.budget.allows(peer[0], now, busy=now - endpoint.full_at < BUSY_FOR):
            self._drop(peer, now)
            return
        began = self._timing.cpu_clock()
        try:
            self._on_message(header, peer, endpoint)
        except MessageError as error:
            self._services.counters.control_malformed += 1
            self._services.log.warning_limited("sccrq_refused", peer=f"{peer[0]}:{peer[1]}", why=error.text)
            if error.message_type == SCCRQ.message_type:
                self.refuse(error.assigned_id, header, peer, endpoint, error)
        finally:
            self.budget.charge(peer[0], self._timing.cpu_clock() - began)

    def _drop(self, peer: Peer, now: float) -> None:
        """Count, and do not answer: a LAC sends it again in a second (5.8)."""
        self._services.counters.drop_strangers += 1
        self._dropped += 1
        if now >= self._report_at:
            self._services.log.warning("strangers_dropped", peer=f"{peer[0]}:{peer[1]}", count=self._dropped)
            self._dropped, self._report_at = 0, now + REPORT_INTERVAL

    def _on_message(self, header: ControlHeader, peer: Peer, endpoint: Endpoint) -> None:
        known, message_type = messages.read_message_type(header.body)
        if not known or message_type not in HANDLED:
            self._services.counters.drop_unknown_tunnel += 1
            return
        if message_type == SCCRQ.message_type and (header.ns != 0 or header.nr != 0):
            self._services.counters.drop_malformed += (
                1  # 5.8: the first of its Ns, from one who has had nothing of ours
            )
            return
        secret = self._services.config.l2tp_secret_octets
        peer_id = messages.assigned_tunnel_id(header.body, secret)
        tunnel = self._table.by_peer.get((peer, peer_id))
        if message_type == StopCCN.message_type:  # of one who never learned our id (4.4.3)
            # The sender of an SCCCN knows our id. Without it one who forges the LAC's address could end a tunnel.
            if tunnel is not None and tunnel.state is not TunnelState.ESTABLISHED:
                tunnel.mailbox.post(header)
        elif message_type == SCCRP.message_type:  # 7.2.1 idle
            unasked = ProtocolError(StopCcnResult.FSM, 0, "there was no SCCRQ of ours")
            self.refuse(peer_id, header, peer, endpoint, unasked)
        elif tunnel is not None and not self._lac_restarted(tunnel):
            tunnel.mailbox.post(header)  # a repeat: acknowledged by the tunnel it has made
        else:
            self._on_sccrq(header, peer_id, peer, endpoint)

    def _lac_restarted(self, known: Tunnel) -> bool:
        """Return whether an SCCRQ begins a new tunnel, though we know one with the same LAC's address and id.

        A LAC that lost its memory may use both again. A repeat of the first SCCRQ cannot come long after the SCCCN. The
        old tunnel stays until the new one has its SCCCN, which only a LAC can send that sees our SCCRP: a forged SCCRQ
        does no harm.
        """
        age = self._timing.clock() - known.opened_at - self._services.awake.paused_since(known.opened_at)
        established = known.state is TunnelState.ESTABLISHED and age > 5.0
        return established or known.state is TunnelState.CLOSING

    def _on_sccrq(self, header: ControlHeader, peer_id: int, peer: Peer, endpoint: Endpoint) -> None:
        services, table = self._services, self._table
        config = services.config
        free, eldest = self._admission.find_room(peer[0])
        if not free:
            services.counters.drop_half_open_limit += 1  # not answered: a LAC sends it again in a second (5.8)
            return
        refusal = self._admission.tunnel_refusal(peer[0], eldest)
        if refusal is not None:
            self.refuse(peer_id, header, peer, endpoint, refusal)
            return
        why = services.guard.lac_refusal(peer[0])
        if why:  # not answered: the answer would go to a subscriber
            services.counters.lacs_refused += 1
            services.log.warning_limited("lac_refused", peer=f"{peer[0]}:{peer[1]}", why=why)
            return
        sccrq = messages.decode(header.body, config.l2tp_secret_octets)
        assert isinstance(sccrq, SCCRQ)
        self._report_ignored(sccrq, peer)
        if sccrq.challenge is not None and not config.l2tp_secret:
            no_secret = ProtocolError(StopCcnResult.NOT_AUTHORISED, 0, "no secret is configured to answer a Challenge")
            self.refuse(peer_id, header, peer, endpoint, no_secret)
            return
        if eldest is not None:
            table.evict(eldest)
        tunnel = Tunnel(
            services,
            table,
            self._timing,
            table.unused_tunnel_id(),
            peer,
            endpoint,
            sccrq.assigned_tunnel_id,
            sccrq.host_name.decode("utf-8", "backslashreplace"),
            Reliable(
                peer_window=sccrq.window,
                receive_window=config.receive_window,
                retries=config.control_retries,
                first_interval=self._timing.first_retransmission,
            ),
        )
        tunnel.receive_sccrq(header)
        table.tunnel_begun(tunnel)
        gevent.spawn(tunnel.run, partial(tunnel.open_passive, sccrq))

    def _report_ignored(self, sccrq: SCCRQ, peer: Peer) -> None:
        ignored = sccrq.warnings
        if sccrq.receive_window_size == 0:  # 4.4.3 knows no such window; we go on with 1
            self._services.counters.control_malformed += 1
            ignored += ("Receive Window Size (AVP 10) is 0, taken as 1",)
        if ignored:
            name, why = "SCCRQ", "; ".join(ignored)
            self._services.log.warning_limited("avp_ignored", message=name, peer=f"{peer[0]}:{peer[1]}", why=why)

    def refuse(
        self, peer_tunnel_id: int, header: ControlHeader, peer: Peer, endpoint: Endpoint, error: ProtocolError
    ) -> None:
        """StopCCN without a tunnel (7.2.1 idle): said once and forgotten, so that a flood costs no memory.

        Its text is cut so that the answer is not larger than MAX_AMPLIFICATION times what it answers.
        """
        self._services.counters.tunnels_refused += 1
        second = int(self._timing.clock())
        if second != self._refusal_second:
            self._refusal_second, self._refusals = second, 0
        self._refusals += 1
        room = MAX_AMPLIFICATION * (CONTROL.size + len(header.body)) - STOPCCN_SIZE
        if self._refusals > self._table.limits.refusals_per_second or room < 0:
            return
        text = error.text.encode()[:room].decode("utf-8", "ignore")
        stop = StopCCN(
            assigned_tunnel_id=self._table.unused_tunnel_id(),
            result_code=ResultCode(error.result_code, error.error_code, text),
        )
        endpoint.send(build_control(peer_tunnel_id, 0, 0, 1, messages.encode(stop)), peer)
