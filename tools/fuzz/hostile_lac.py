"""Hostile LACs for the fuzzer: tunnels and calls that come up properly and then send anything.

They live in the three_hosts of tests/lab/netns.py. `record` collects seeds: what well-behaved calls send and receive.
"""

from __future__ import annotations

import time
from ipaddress import IPv4Address

from tests.lab.endpoint import Address, Endpoint
from tests.lab.lac import Lac, Subscriber, TunnelPhase
from tests.lab.pppwishes import CHAP, IPCP, LCP, PAP
from tools.fuzz.mutator import Mutator, addressed

LNS = ("192.0.2.1", 1701)
HOST = ("198.51.100.2", 7000)
SECRET = b"rather-secret"
HOSTILE_SESSIONS = 12  # in each hostile tunnel


class Recorder(Endpoint):
    """An endpoint that records all datagrams sent and received."""

    def __init__(self, local: Address, seeds: list[bytes]) -> None:
        self.seeds = seeds
        super().__init__(local)

    def put_raw(self, datagram: bytes, to: Address) -> None:
        self.seeds.append(datagram)
        super().put_raw(datagram, to)

    def _take(self, datagram: bytes, peer: Address) -> None:
        self.seeds.append(datagram)
        super()._take(datagram, peer)


def record(endpoint: Endpoint) -> None:
    """Bring all kinds of calls up and down, for the endpoint to record."""
    for hide in (False, True):
        lac = Lac(endpoint.local, LNS, "seed", secret=SECRET, challenge=True, hide=hide, endpoint=endpoint).connect()
        for auth in ("pap", "chap"):
            lac.call("seed1", "secret", auth=auth, mru=1400, pfc=True, acfc=True).wait_online().terminate()
            call = lac.call("seed2", "secret", auth=auth, proxy_lcp=True, proxy_auth=True, sequencing_required=True)
            call.wait_online().ping(HOST[0])
            call.hangup()
        lac.call("seed3", "wrong", auth="pap").wait_ended()
        lac.hello()
        lac.close()


class HostileLac:
    """A hostile LAC: its tunnels and calls come up properly and then send anything."""

    def __init__(self, endpoint: Endpoint, mutator: Mutator, number: int) -> None:
        self.endpoint = endpoint
        self.mutator = mutator
        self.random = mutator.random
        self.number = number
        self.calls = 0
        self.lac: Lac | None = None
        self._since = self._until = 0.0
        self._old: list[tuple[float, Lac]] = []

    def attack(self) -> str | None:
        """Send one hostile datagram. Return its kind, or None if no tunnel or session is ready to send it."""
        lac = self.lac
        if lac is None or lac.ended is not None or time.monotonic() > self._until:
            self._begin()
            return None
        if lac.phase is not TunnelPhase.ESTABLISHED:
            return None
        if len(lac.sessions) < HOSTILE_SESSIONS and self.random.random() < 0.2:
            self._call(lac)
        up = [subscriber for subscriber in lac.sessions.values() if subscriber.peer_session_id]
        return self._send_control(lac, up) if self.number % 2 else self._send_frame(lac, up)

    def _send_control(self, lac: Lac, up: list[Subscriber]) -> str | None:
        """Send a control message as a LAC. Most of them end the tunnel."""
        if self.random.random() < 0.5:
            if lac.reliable.queue_length > 32:
                return None
            lac.send(self.mutator.body(), self._session(up))
            self.endpoint.flush()
            return "hostile tunnel, in sequence"
        body = self.mutator.body() if self.random.random() < 0.8 else b""
        self._send(addressed(self.mutator.control(body), lac.peer_tunnel_id, self._session(up)))
        return "hostile tunnel, any Ns and Nr"

    def _send_frame(self, lac: Lac, up: list[Subscriber]) -> str | None:
        """Send a frame as a subscriber: PPP, which soon ends a session, or IP once online, which does not."""
        choice = self.random.random()
        if choice < 0.06 and up:
            victim = self.random.choice(up)
            if choice < 0.001:
                victim.hangup()
                return None
            frame = self.mutator.frame()
        else:
            online = [subscriber for subscriber in up if subscriber.online]
            if not online:
                return None
            victim = self.random.choice(online)
            frame = self.mutator.ip_frame(self._packet(victim))
        self._send(self.mutator.data(frame, lac.peer_tunnel_id, victim.peer_session_id))
        return "hostile session"

    def close(self) -> None:
        if self.lac is not None:
            self.lac.close()
        for _, lac in self._old:
            lac.leave()

    def _begin(self) -> None:
        """Open another tunnel. The previous one goes on acknowledging for up to a second, or not at all."""
        now = time.monotonic()
        if now < self._since + 0.02:
            return
        self._since = now
        # Tunnels that the server closed unnoticed end here; some leave without a StopCCN.
        self._until = now + self.random.choice((0.3, 1.0, 5.0))
        if self.lac is not None:
            if self.random.random() < 0.8:
                self.lac.stop()
            self._old.append((now + self.random.choice((0.0, 1.0)), self.lac))
        while self._old and self._old[0][0] < now:
            self._old.pop(0)[1].leave()
        window = self.random.choice((None, 1, 4, 16))
        hide = self.random.random() < 0.3
        challenge = self.random.random() < 0.3
        name = f"hostile{self.number}"
        self.lac = Lac(
            self.endpoint.local,
            LNS,
            name,
            secret=SECRET,
            window=window,
            hide=hide,
            challenge=challenge,
            endpoint=self.endpoint,
        )
        self.lac.start()

    def _call(self, lac: Lac) -> None:
        random = self.random
        self.calls += 1
        proxy = random.random() < 0.3
        subscriber = lac.call(
            f"hostile{self.number}-{self.calls}",
            "secret" if random.random() < 0.9 else "wrong",
            auth=random.choice(("pap", "chap")),
            proxy_lcp=proxy,
            proxy_auth=proxy and random.random() < 0.5,
            sequencing_required=random.random() < 0.2,
            mru=random.choice((None, 128, 576, 1400, 1500)),
        )
        subscriber.on_frame = self._spoil_some

    def _spoil_some(self, way: str, protocol: int, packet: bytes) -> bytes | None:
        if way == "out" and protocol in (LCP, PAP, CHAP, IPCP) and self.random.random() < 0.03:
            return self.mutator.spoil(packet)
        return packet

    def _session(self, up: list[Subscriber]) -> int:
        ids = [subscriber.peer_session_id for subscriber in up]
        return self.random.choice([0, self.random.getrandbits(16), *ids])

    def _packet(self, subscriber: Subscriber) -> bytes:
        host = self.random.choice((HOST[0], LNS[0], "10.1.0.1", "255.255.255.255", "224.0.0.1", "127.0.0.1"))
        return self.mutator.packet(subscriber.address.packed, IPv4Address(host).packed)

    def _send(self, datagram: bytes) -> None:
        self.endpoint.put_raw(datagram[:65000], LNS)
