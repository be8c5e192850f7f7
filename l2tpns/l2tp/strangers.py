"""Control messages with tunnel id 0: SCCRQs, and what else any address may send (RFC 2661 4.4.3, RFC 2661 7.2.1).

Nothing in such a message proves its origin. All of them together get a bounded share of the processor's time
(budget.py), and the cheap checks come first: header, message type, limits, and only then the AVPs. See
docs/decisions/0013-strangers-get-a-share-of-the-time.md.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import gevent

from l2tpns.config import lac_config
from l2tpns.config.settings import Config
from l2tpns.dataplane.endpoint import Endpoint
from l2tpns.errors import ProtocolError
from l2tpns.l2tp.admission import Admission
from l2tpns.l2tp.authentication import no_secret
from l2tpns.l2tp.budget import Budget
from l2tpns.l2tp.owner import TunnelOwner
from l2tpns.l2tp.timing import TunnelTiming
from l2tpns.l2tp.tunnel import Tunnel, TunnelState
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import CONTROL, ControlHeader, build_control
from l2tpns.proto.l2tp.messages import SCCRP, SCCRQ, MessageError, MessageType, ResultCode, StopCCN, StopCcnResult
from l2tpns.proto.l2tp.reliable import MAX_AMPLIFICATION, Reliable
from l2tpns.runtime.peer import Peer
from l2tpns.subscriber.services import Services

BUSY_PERIOD = 0.02  # seconds after a read that left datagrams in the socket
REPORT_INTERVAL = 10.0  # seconds between two log lines about dropped messages
HANDLED = (MessageType.SCCRQ, MessageType.SCCRP, MessageType.STOPCCN)
# Octets of our StopCCN without text: header, Message Type, Assigned Tunnel ID, Result Code with error code.
STOPCCN_SIZE = CONTROL.size + 8 + 8 + 10


class TunnelTable(TunnelOwner[Tunnel], Protocol):
    """What messages for tunnel 0 need of the LNS."""

    by_peer: dict[tuple[Peer, int], Tunnel]  # by address and the LAC's tunnel id

    def tunnel_begun(self, tunnel: Tunnel) -> None:
        """Add a tunnel whose SCCRQ was accepted."""

    def evict(self, tunnel: Tunnel) -> None:
        """Remove a half-open tunnel to admit another one."""

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
        self._dropped = 0  # since the last log line about it
        self._report_at = 0.0

    def on_message(self, header: ControlHeader, peer: Peer, endpoint: Endpoint) -> None:
        """Handle a message for tunnel 0. Called by the reader; must not block or raise."""
        if not header.body:
            return
        now = self._timing.clock()
        if not self.budget.allows(peer[0], now, busy=now - endpoint.full_at < BUSY_PERIOD):
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
        """Count the message and send no reply: a LAC retransmits it after a second (RFC 2661 5.8)."""
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
            # RFC 2661 5.8: an SCCRQ is the first message of its sender, which has received none of ours.
            self._services.counters.drop_malformed += 1
            return
        host = messages.host_name(header.body).decode("utf-8", "backslashreplace")
        _, config = lac_config.choose(self._services.config, peer[0], host)
        peer_id = messages.assigned_tunnel_id(header.body, config.l2tp_secret_octets)
        tunnel = self._table.by_peer.get((peer, peer_id))
        if message_type == StopCCN.message_type:  # its sender never learned our id (RFC 2661 4.4.3)
            # A LAC that has sent an SCCCN knows our id. Without this check a forged address could end its tunnel.
            if tunnel is not None and tunnel.state is not TunnelState.ESTABLISHED:
                tunnel.mailbox.post(header)
        elif message_type == SCCRP.message_type:  # RFC 2661 7.2.1, state idle
            unasked = ProtocolError(StopCcnResult.FSM, 0, "this LNS sent no SCCRQ")
            self.refuse(peer_id, header, peer, endpoint, unasked)
        elif tunnel is not None and not self._lac_restarted(tunnel):
            tunnel.mailbox.post(header)  # a repetition: the tunnel that the first one began sends its SCCRP again
        else:
            self._on_sccrq(header, peer_id, peer, endpoint, config)

    def _lac_restarted(self, known: Tunnel) -> bool:
        """Return True if an SCCRQ begins a new tunnel, although one with the LAC's address and id exists.

        A LAC that was restarted may use both again, while a repetition of the first SCCRQ cannot come long after the
        SCCCN. The old tunnel stays until the new one is established: only a LAC that receives our SCCRP can send the
        SCCCN, so a forged SCCRQ ends no tunnel.
        """
        age = self._timing.clock() - known.opened_at - self._services.awake.paused_since(known.opened_at)
        established = known.state is TunnelState.ESTABLISHED and age > 5.0
        return established or known.state is TunnelState.CLOSING

    def _on_sccrq(self, header: ControlHeader, peer_id: int, peer: Peer, endpoint: Endpoint, config: Config) -> None:
        services, table = self._services, self._table
        free, eldest = self._admission.find_room(peer[0])
        if not free:
            services.counters.drop_half_open_limit += 1  # no reply: a LAC retransmits it after a second (RFC 2661 5.8)
            return
        refusal = self._admission.tunnel_refusal(peer[0], config, eldest)
        if refusal is not None:
            self.refuse(peer_id, header, peer, endpoint, refusal)
            return
        why = services.guard.lac_refusal(peer[0])
        if why:  # no reply: it would go to a subscriber
            services.counters.lacs_refused += 1
            services.log.warning_limited("lac_refused", peer=f"{peer[0]}:{peer[1]}", why=why)
            return
        sccrq = messages.decode(header.body, config.l2tp_secret_octets)
        assert isinstance(sccrq, SCCRQ)
        self._report_ignored(sccrq, peer)
        if sccrq.challenge is not None and not config.l2tp_secret:
            self.refuse(peer_id, header, peer, endpoint, no_secret())
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
        if sccrq.receive_window_size == 0:  # not valid (RFC 2661 4.4.3): the window is 1
            self._services.counters.control_malformed += 1
            ignored += ("Receive Window Size (AVP 10) is 0, taken as 1",)
        if ignored:
            name, why = "SCCRQ", "; ".join(ignored)
            self._services.log.warning_limited("avp_ignored", message=name, peer=f"{peer[0]}:{peer[1]}", why=why)

    def refuse(
        self, peer_tunnel_id: int, header: ControlHeader, peer: Peer, endpoint: Endpoint, error: ProtocolError
    ) -> None:
        """Send a StopCCN without a tunnel (RFC 2661 7.2.1, state idle), once, so that a flood costs no memory.

        The text is cut so that the StopCCN has at most MAX_AMPLIFICATION times the octets of the message it refuses.
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
