"""The LNS: the tables of tunnels and sessions, their ids, and the changes of these tables.

The UDP reader passes control messages to `on_control`, which finds their tunnel. Sessions and tunnels use the rest of
the server through `services`. l2tp/admission.py decides how many there may be. Knows no PPP.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import gevent

from l2tpns import causes
from l2tpns.dataplane.endpoint import Endpoint
from l2tpns.errors import ProtocolError, WireError
from l2tpns.l2tp.address_change import ProbeBudget
from l2tpns.l2tp.admission import Admission
from l2tpns.l2tp.strangers import Strangers
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.l2tp.tunnel import Tunnel, TunnelState
from l2tpns.proto.l2tp.header import parse_control
from l2tpns.proto.l2tp.messages import ICRQ, StopCcnResult
from l2tpns.runtime.cooperative import in_slices
from l2tpns.runtime.peer import Peer
from l2tpns.runtime.supervisor import Part
from l2tpns.subscriber import timers
from l2tpns.subscriber.services import Services
from l2tpns.subscriber.session import Session


class Lns:
    """All tunnels and sessions of one server, and the TunnelOwner of its tunnels (l2tp/owner.py)."""

    def __init__(
        self,
        services: Services,
        tunnels: dict[int, Tunnel],
        sessions: dict[int, Session],
        timing: TunnelTiming | None = None,
        limits: TunnelLimits | None = None,
    ) -> None:
        """Use the empty tables `tunnels` and `sessions`, which other parts read too."""
        self.services = services
        self.config = services.config
        self.counters = services.counters
        self.log = services.log
        self.timing = timing or TunnelTiming()
        self.limits = limits or TunnelLimits()
        self.tunnels = tunnels  # by our id
        self.sessions = sessions  # by our id
        self.by_peer: dict[tuple[Peer, int], Tunnel] = {}  # by address and the LAC's tunnel id
        self.admission = Admission(self.config, self.timing, self.limits, tunnels, sessions)
        self.strangers = Strangers(services, self.admission, self, self.timing)
        self.probe_budget = ProbeBudget(self.limits)
        self.clock: Part | None = None

    def start(self) -> None:
        """Start the timer wheel."""
        self.clock = self.services.supervisor.spawn("timer wheel", self._turn_wheel, essential=True)

    def _turn_wheel(self) -> None:
        """Wake each session at the time for which it has set its timer."""
        awake, wheel, timing = self.services.awake, self.services.wheel, self.services.session_timing
        awake.beat()
        while True:
            gevent.sleep(timing.wheel_tick)
            paused = awake.beat()
            if paused:
                self.log.warning("process_paused", seconds=round(paused, 1))
                gevent.spawn(self._send_echoes)
            now = timing.clock()
            for session in in_slices(wheel.advance(now)):
                try:
                    session.on_timer(now)
                except Exception:  # an error in one session must not stop the timers of the others
                    session.log.exception("session_failed")

    def _send_echoes(self) -> None:
        """Have every session send an Echo-Request, after a pause of this process. May yield."""
        for session in in_slices(list(self.sessions.values())):
            timers.ask_again(session, self.services.session_timing.clock())

    # Control datagrams

    def on_control(self, datagram: bytes, peer: Peer, endpoint: Endpoint) -> None:
        """Handle a datagram with T=1. Called by the UDP reader; must not block or raise."""
        if self.services.handed_over:
            return  # not acknowledged: the LAC retransmits it to the next process
        try:
            header = parse_control(datagram)
        except WireError:
            self.counters.drop_malformed += 1
            return
        if header.tunnel_id == 0:
            self.strangers.on_message(header, peer, endpoint)
            return
        tunnel = self.tunnels.get(header.tunnel_id)
        if tunnel is None:
            self.counters.drop_unknown_tunnel += 1
            return
        if tunnel.peer != peer:
            # RFC 2661 8.1: addresses are static for the life of the tunnel, unless the operator allows changes.
            self.counters.drop_wrong_peer += 1
            if self.config.auth_tunnel_change_addr_src:
                tunnel.post_foreign(header, peer)
            return
        if not tunnel.mailbox.post(header):
            self.counters.drop_mailbox_full += 1

    # Tunnels

    def tunnel_begun(self, tunnel: Tunnel) -> None:
        """Add a tunnel whose SCCRQ was accepted."""
        self.tunnels[tunnel.id] = tunnel
        self.by_peer[tunnel.peer, tunnel.peer_id] = tunnel
        self.admission.tunnel_begun(tunnel)

    def tunnel_restored(self, tunnel: Tunnel) -> None:
        """Add an established tunnel of an earlier process."""
        self.tunnels[tunnel.id] = tunnel
        self.by_peer[tunnel.peer, tunnel.peer_id] = tunnel
        self.services.guard.lac_established(tunnel.peer[0], tunnel.host)
        self.admission.tunnel_restored(tunnel)

    def tunnel_established(self, tunnel: Tunnel) -> None:
        """Note that a tunnel is established. End an older one with the same peer and id: the LAC was restarted."""
        services = self.services
        self.counters.tunnels_opened += 1
        self.strangers.budget.add_known(tunnel.lac)
        tunnel.use_endpoint(services.plane.dedicate(tunnel.endpoint))
        self.admission.tunnel_established(tunnel)
        services.guard.lac_established(tunnel.peer[0], tunnel.host)
        services.changes.tunnel(tunnel)
        for older in list(self.tunnels.values()):
            if older is not tunnel and older.peer == tunnel.peer and older.peer_id == tunnel.peer_id:
                older.end(causes.TUNNEL_LOST, None, "the LAC was restarted")

    def tunnel_closing(self, tunnel: Tunnel, *, sends_stopccn: bool) -> None:
        """Note that a tunnel ends. It may linger until its StopCCN is acknowledged."""
        self.counters.tunnels_closed += 1
        if tunnel.reliable.proven:  # else it was never saved
            self.services.changes.tunnel_gone(tunnel)
        self.services.guard.lac_left(tunnel.peer[0])
        self.admission.tunnel_closing(tunnel, sends_stopccn=sends_stopccn)

    def may_linger(self) -> bool:
        """Return True if one more closed tunnel may stay to acknowledge repetitions."""
        return self.admission.may_linger()

    def tunnel_moved(self, tunnel: Tunnel, peer: Peer) -> None:
        """Note the address that the LAC of a tunnel sends from now."""
        if self.by_peer.get((tunnel.peer, tunnel.peer_id)) is tunnel:
            del self.by_peer[tunnel.peer, tunnel.peer_id]
        self.by_peer[peer, tunnel.peer_id] = tunnel
        self.services.guard.lac_established(peer[0], tunnel.host)

    def move_refusal(self, tunnel: Tunnel, peer: Peer, now: float) -> bool:
        """Return True if a tunnel must not look for its LAC at this address now; else count a probe."""
        if (peer, tunnel.peer_id) in self.by_peer or (tunnel.reliable.idle and self.config.disable_sending_hello):
            return True  # another tunnel has this address, or there is no message to probe with
        if self.services.guard.lac_refusal(peer[0]):
            return True  # a reply would go to a subscriber
        return not self.probe_budget.take(now)

    def charge(self, lac: str, seconds: float) -> None:
        """Charge the CPU time of a tunnel that is not proven yet to the budget of unknown senders."""
        self.strangers.budget.charge(lac, seconds)

    def evict(self, tunnel: Tunnel) -> None:
        """Remove a half-open tunnel to admit another one. Its LAC gets no StopCCN."""
        self.counters.tunnels_crowded_out += 1
        self.log.warning_limited("tunnel_crowded_out", tunnel=tunnel.id, peer=f"{tunnel.peer[0]}:{tunnel.peer[1]}")
        if tunnel.state is not TunnelState.CLOSING:
            self.admission.tunnel_closing(tunnel, sends_stopccn=False)  # tunnel_gone does the rest
        self.tunnel_gone(tunnel)
        tunnel.close_evicted()

    def tunnel_gone(self, tunnel: Tunnel) -> None:
        """Remove a tunnel from the tables."""
        if self.tunnels.get(tunnel.id) is not tunnel:
            return  # it was evicted before
        self.admission.tunnel_gone(tunnel)
        tunnel.endpoint.release()
        del self.tunnels[tunnel.id]
        key = (tunnel.peer, tunnel.peer_id)
        if self.by_peer.get(key) is tunnel:
            del self.by_peer[key]

    def drop_tunnel(self, tunnel: Tunnel) -> None:
        """End the sessions of a tunnel with a CDN now, and the tunnel `drop_tunnel_delay` seconds later (manual)."""
        tunnel.dropping = True
        for session in list(tunnel.sessions.values()):
            session.end(causes.ADMIN_DROP)
        gevent.spawn_later(self.config.drop_tunnel_delay, tunnel.end, causes.ADMIN_DROP)

    # Sessions

    def call_refusal(self, tunnel: Tunnel) -> ProtocolError | None:
        """Return why a tunnel may have no further call now, or None."""
        return self.admission.call_refusal(tunnel)

    def start_session(self, tunnel: Tunnel, icrq: ICRQ) -> None:
        """Start a session for a call."""
        session = Session(self.services, tunnel, self.unused_session_id(), icrq)
        self.sessions[session.id] = session
        tunnel.add_session(session)
        self.admission.call_begun(tunnel.lac)
        self.services.changes.call(session)
        session.start()

    def call_started(self, tunnel: Tunnel) -> None:
        """Count a call of this tunnel no longer among those that are starting."""
        self.admission.call_started(tunnel.lac)

    def session_gone(self, session: Session) -> None:
        """Remove a session from the table."""
        self.counters.sessions_ended += 1
        self.services.changes.session_gone(session)
        del self.sessions[session.id]

    # Ids

    def unused_tunnel_id(self) -> int:
        """Return a tunnel id that is free."""
        return self._unused_id(self.tunnels)

    def unused_session_id(self) -> int:
        """Return a session id that is free."""
        return self._unused_id(self.sessions)

    def _unused_id(self, taken: dict[int, Any]) -> int:
        """Return a free id that cannot be guessed (RFC 2661 9.1). There always is one: at most MAX_ID are in use."""
        while True:
            candidate = int.from_bytes(self.services.random(2), "big")
            if candidate and candidate not in taken:
                return candidate

    def lac_addresses(self) -> set[IPv4Address]:
        """Return the addresses of the LACs of all tunnels."""
        return {IPv4Address(tunnel.peer[0]) for tunnel in self.tunnels.values()}

    # Shutdown

    def shutdown(self, timeout: float) -> None:
        """End all sessions, then all tunnels. Wait until the LACs acknowledge this, for `timeout` seconds at most."""
        self.admission.shutting_down = True
        awake = self.services.awake
        until = awake.now() + timeout
        sessions = list(self.sessions.values())
        for session in sessions:
            session.end(causes.SHUTDOWN)
        awake.join([session.greenlet for session in sessions], timeout)
        while awake.now() < until and any(not tunnel.quiet for tunnel in self.tunnels.values()):
            gevent.sleep(0.05)
        for tunnel in list(self.tunnels.values()):
            tunnel.end(causes.SHUTDOWN, StopCcnResult.SHUTTING_DOWN)
        while awake.now() < until and any(
            t.state is not TunnelState.CLOSING or not t.reliable.idle for t in self.tunnels.values()
        ):
            gevent.sleep(0.05)
