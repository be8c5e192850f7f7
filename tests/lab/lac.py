"""Act as a LAC for tests, demo and benchmark: bring tunnels and calls to an LNS, misbehave on demand (RFC 2661).

    lac = Lac(("192.0.2.2", 0), ("192.0.2.1", 1701), "lac1", secret=b"s").connect()
    fred = lac.call("fred", "pw", auth="chap").wait_online()
    fred.ping("198.51.100.2"); fred.hangup(); lac.close()

A Lac is one tunnel; several share a socket by sharing an Endpoint. Calls out (OCRQ) are refused. The control messages
come from l2tpns.proto, the PPP end is our own (pppclient.py). It also runs as a program (play.py):
`python -m tests.lab.lac --help`.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any, Self, TypeVar

from gevent.event import Event

from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import ControlHeader, build_control
from l2tpns.proto.l2tp.messages import (
    CDN,
    HELLO,
    ICCN,
    ICRP,
    ICRQ,
    OCRQ,
    SCCCN,
    SCCRP,
    SCCRQ,
    CdnResult,
    ErrorCode,
    Message,
    MessageError,
    MessageType,
    ProxyAuthenType,
    ResultCode,
    StopCCN,
    StopCcnResult,
)
from l2tpns.proto.l2tp.reliable import Reliable
from tests.lab import PATIENCE
from tests.lab.endpoint import Address, Endpoint, Impairment
from tests.lab.subscriber import Dial, Ended, Refused, Subscriber, Why, wait_for

__all__ = ["Dial", "Ended", "Endpoint", "Impairment", "Lac", "Refused", "Subscriber", "TunnelPhase", "Why"]

M = TypeVar("M", bound=Message)
# An override replaces a message before it is sent: by another message, by raw AVPs, or by nothing.
Override = Callable[[Any], Message | bytes | None]
KEPT_MESSAGES = 1000


class TunnelPhase(Enum):
    IDLE = "idle"
    WAIT_REPLY = "wait-ctl-reply"
    ESTABLISHED = "established"
    CLOSING = "closing"
    CLOSED = "closed"


class Lac:
    """Run one tunnel to an LNS, with its calls."""

    def __init__(
        self,
        local: Address,
        lns: Address,
        hostname: str = "lac",
        *,
        secret: bytes | None = None,
        challenge: bool = False,
        window: int | None = 16,
        retries: int = 5,
        tunnel_id: int | None = None,
        hide: bool = False,
        defaults: Dial | None = None,
        endpoint: Endpoint | None = None,
        sock: socket.socket | None = None,
        control: Impairment | None = None,
        data: Impairment | None = None,
        seed: int = 0,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.lns = lns
        self.hostname = hostname
        self.secret = secret
        self.challenge = random(16) if challenge else None
        self.window = window
        self.hide = hide
        self.defaults = defaults or Dial()
        self.random = random
        self.own_endpoint = endpoint is None
        self.endpoint = endpoint or Endpoint(local, sock=sock, control=control, data=data, seed=seed)
        self.reliable = Reliable(receive_window=window or 4, retries=retries)
        self.peer_tunnel_id = 0
        self.phase = TunnelPhase.IDLE
        self.ended: Ended | None = None
        self.alive = True  # False: neither reads nor sends
        self.sccrp: SCCRP | None = None
        self.sessions: dict[int, Subscriber] = {}
        self.inbox: deque[tuple[int, Message]] = deque(maxlen=KEPT_MESSAGES)  # (session id, message), for expect()
        self.override: dict[type[Message], Override] = {}
        self.carried: Callable[[Subscriber], bool] = lambda subscriber: True  # is it online at the LNS, too?
        self.handlers: dict[type[Message], Callable[[Any, int, float], None]] = {
            SCCRP: self._on_sccrp,
            StopCCN: self._on_stopccn,
            ICRP: self._on_icrp,
            CDN: self._on_cdn,
            OCRQ: self._on_ocrq,
        }
        self.hellos = 0
        self.unreadable = 0  # messages of the LNS that could not be decoded
        self.pings = 0
        self.calls = 0
        self._queued = 0  # messages given to Reliable, ever
        self._starting: deque[tuple[int, Subscriber]] = deque()  # calls whose ICCN waits in the window
        self._waiters: tuple[Event, ...] = ()
        self._last_session_id = 0
        self.tunnel_id = tunnel_id or self._free_tunnel_id()
        if self.tunnel_id in self.endpoint.lacs:
            raise ValueError(f"tunnel id {self.tunnel_id} is in use on this endpoint")
        self.endpoint.lacs[self.tunnel_id] = self

    # --- the tunnel ---

    def connect(self, timeout: float = PATIENCE) -> Self:
        """Bring the tunnel up. Raises Refused if the LNS refuses it, TimeoutError if the LNS does not answer."""
        self.start()
        self.wait(lambda: self.phase == TunnelPhase.ESTABLISHED or self.ended is not None, timeout, "a tunnel")
        if self.ended is not None:
            raise Refused(self.ended)
        return self

    def start(self) -> None:
        """Send the SCCRQ. Does not wait for the answer."""
        self.phase = TunnelPhase.WAIT_REPLY
        self.send(
            SCCRQ(
                protocol_version=messages.VERSION_1_0,
                framing_capabilities=3,
                bearer_capabilities=0,
                host_name=self.hostname.encode(),
                vendor_name=b"l2tpns lab",
                assigned_tunnel_id=self.tunnel_id,
                receive_window_size=self.window,
                challenge=self.challenge,
            )
        )
        self.endpoint.flush()

    def close(self, result: int = StopCcnResult.CLEAR, *, timeout: float = 3.0) -> None:
        """Send StopCCN, wait for its acknowledgement and free the socket. Calls end without a CDN (RFC 2661 5.7)."""
        if self.phase in (TunnelPhase.WAIT_REPLY, TunnelPhase.ESTABLISHED) and self.alive:
            self.stop(result)
            try:
                self.wait(lambda: self.reliable.idle or self.reliable.dead, timeout, "an answer to StopCCN")
            except TimeoutError:
                pass
        self.leave()

    def stop(self, result: int = StopCcnResult.CLEAR, error: int = 0, text: str = "") -> None:
        """Send StopCCN and end all calls. The tunnel goes on acknowledging."""
        code = ResultCode(result, error, text)
        self.send(StopCCN(assigned_tunnel_id=self.tunnel_id, result_code=code))
        self.endpoint.flush()
        self._over(Ended(Why.CLOSED, result, error, text), TunnelPhase.CLOSING)

    def vanish(self) -> None:
        """Stop reading and sending, as after a power failure."""
        self.alive = False
        self._over(Ended(Why.VANISHED), TunnelPhase.CLOSED)

    def leave(self) -> None:
        """Forget the tunnel without a StopCCN and free the socket."""
        self.vanish()
        self.endpoint.lacs.pop(self.tunnel_id, None)
        if self.own_endpoint:
            self.endpoint.close()

    def hello(self) -> None:
        self.send(HELLO())
        self.endpoint.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- calls ---

    def call(self, user: str | bytes, password: str | bytes, dial: Dial | None = None, **options: Any) -> Subscriber:
        """Begin a call; `options` are fields of Dial. Does not wait; `.wait_online()` does.

        In a tunnel that has ended, the call has ended, too.
        """
        dial = dial or self.defaults
        if options:
            dial = replace(dial, **options)
        if len(self.sessions) >= 65535:
            raise ValueError("no session id left in this tunnel")
        session_id = self._last_session_id % 65535 + 1
        while session_id in self.sessions:
            session_id = session_id % 65535 + 1
        self._last_session_id = session_id
        self.calls += 1
        subscriber = Subscriber(self, session_id, _octets(user), _octets(password), dial, self.endpoint.now())
        if self.ended is not None:
            subscriber.finish(self.ended)
            return subscriber
        self.sessions[session_id] = subscriber
        icrq = ICRQ(
            assigned_session_id=session_id,
            call_serial_number=self.calls,
            calling_number=dial.calling,
            called_number=dial.called,
        )
        self.send(icrq)
        return subscriber

    def send_cdn(self, subscriber: Subscriber, result: int, error: int = 0, text: str = "") -> None:
        code = ResultCode(result, error, text)
        cdn = CDN(result_code=code, assigned_session_id=subscriber.session_id)
        self.send(cdn, subscriber.peer_session_id)

    # --- sending, in order and not ---

    def send(self, message: Message | bytes, session_id: int = 0) -> None:
        """Queue a message (or raw AVPs) for reliable delivery, after its override if there is one.

        It leaves when the batch of packets in hand is done, or the next tick; `endpoint.flush()` hurries it.
        """
        if isinstance(message, Message) and type(message) in self.override:
            changed = self.override[type(message)](message)
            if changed is None:
                return
            message = changed
        if isinstance(message, Message):
            hide = self.hide and bool(self.secret)
            body = messages.encode(message, secret=self.secret or b"", random=self.random, hide=hide)
        else:
            body = message
        self.reliable.send(session_id, body, self.endpoint.now())
        self._queued += 1
        self.endpoint.touched(self)

    def send_raw(self, datagram: bytes) -> None:
        """Send any octets to the LNS, as they are, now."""
        self.endpoint.put_raw(datagram, self.lns)

    def send_control(
        self,
        body: bytes,
        *,
        tunnel_id: int | None = None,
        session_id: int = 0,
        ns: int | None = None,
        nr: int | None = None,
    ) -> None:
        """Send a control message outside the reliable ones: its Ns is not remembered. Defaults: the correct values."""
        reliable = self.reliable
        self.send_raw(
            build_control(
                self.peer_tunnel_id if tunnel_id is None else tunnel_id,
                session_id,
                reliable.ns if ns is None else ns,
                reliable.nr if nr is None else nr,
                body,
            )
        )

    def flush(self, now: float) -> None:
        """Send what is due. Called by the endpoint."""
        if not self.alive:
            return
        reliable = self.reliable
        for datagram in reliable.outgoing(now):
            self.endpoint.put(datagram, self.lns, control=True)
        # A client may send when its ICCN has left: data messages before it belong to no session (RFC 2661 5.1).
        sent = self._queued - reliable.queue_length
        while self._starting and self._starting[0][0] <= sent:
            subscriber = self._starting.popleft()[1]
            if subscriber.ended is None:
                subscriber.connected(now)
        if reliable.dead and self.phase not in (TunnelPhase.CLOSED, TunnelPhase.CLOSING):
            self.alive = False
            self._over(Ended(Why.SILENCE), TunnelPhase.CLOSED)
        if self._waiters:
            self._wake()

    # --- receiving ---

    def receive_control(self, header: ControlHeader, now: float) -> None:
        """Handle a control message for this tunnel. Called by the endpoint."""
        for ready in self.reliable.receive(header, now):
            try:
                message = messages.decode(ready.body, self.secret or b"")
            except MessageError:
                self.unreadable += 1
                continue
            self.inbox.append((ready.session_id, message))
            handler = self.handlers.get(type(message))
            if handler is not None:
                handler(message, ready.session_id, now)
            elif type(message) is HELLO:
                self.hellos += 1  # the acknowledgement is the only answer (RFC 2661 6.5)

    def _on_sccrp(self, sccrp: SCCRP, _: int, now: float) -> None:
        if self.phase != TunnelPhase.WAIT_REPLY:
            return
        self.sccrp = sccrp
        self.peer_tunnel_id = self.reliable.peer_tunnel_id = sccrp.assigned_tunnel_id
        self.reliable.peer_window = sccrp.window
        secret = self.secret or b""
        if self.challenge is not None:
            expected = messages.tunnel_auth_response(MessageType.SCCRP, secret, self.challenge)
            if sccrp.challenge_response != expected:
                self.stop(StopCcnResult.NOT_AUTHORISED, text="wrong challenge response")
                self.ended = Ended(Why.BAD_RESPONSE)
                return
        response = None
        if sccrp.challenge is not None:
            response = messages.tunnel_auth_response(MessageType.SCCCN, secret, sccrp.challenge)
        self.send(SCCCN(challenge_response=response))
        self.phase = TunnelPhase.ESTABLISHED

    def _on_stopccn(self, stop: StopCCN, _: int, now: float) -> None:
        code = stop.result_code
        # The SCCRQ was refused: without an SCCRP, no tunnel id is known to acknowledge this to.
        if not self.peer_tunnel_id:
            self.reliable.peer_tunnel_id = stop.assigned_tunnel_id
        self._over(Ended(Why.STOPCCN, code.result, code.error, code.text), TunnelPhase.CLOSED)

    def _on_icrp(self, icrp: ICRP, session_id: int, now: float) -> None:
        subscriber = self.sessions.get(session_id)
        if subscriber is None or subscriber.peer_session_id:
            return
        subscriber.peer_session_id = icrp.assigned_session_id
        before = self._queued
        self.send(self._iccn(subscriber), icrp.assigned_session_id)
        if self._queued > before:
            self._starting.append((self._queued, subscriber))

    def _iccn(self, subscriber: Subscriber) -> ICCN:
        dial = subscriber.dial
        iccn = ICCN(
            tx_connect_speed=dial.tx_speed,
            rx_connect_speed=dial.rx_speed,
            framing_type=dial.framing,
            sequencing_required=dial.sequencing_required,
            private_group_id=dial.private_group_id,
        )
        if not dial.proxy_lcp:
            return iccn
        options = dial.lcp_options(subscriber.magic)
        iccn = replace(
            iccn,
            initial_received_lcp_confreq=options,
            last_sent_lcp_confreq=subscriber.proxied_request(),
            last_received_lcp_confreq=options,
        )
        if not dial.proxy_auth:
            return iccn
        if dial.auth == "pap":
            return replace(
                iccn,
                proxy_authen_type=ProxyAuthenType.PAP,
                proxy_authen_name=subscriber.user,
                proxy_authen_id=1,
                proxy_authen_response=subscriber.password,
            )
        challenge = self.random(16)
        return replace(
            iccn,
            proxy_authen_type=ProxyAuthenType.CHAP,
            proxy_authen_name=subscriber.user,
            proxy_authen_id=1,
            proxy_authen_challenge=challenge,
            proxy_authen_response=hashlib.md5(b"\x01" + subscriber.password + challenge).digest(),
        )

    def _on_cdn(self, cdn: CDN, session_id: int, now: float) -> None:
        subscriber = self.sessions.get(session_id)
        if subscriber is None:  # Session ID 0: the AVP holds the LNS's session id (RFC 2661 4.4.4)
            ids = cdn.assigned_session_id
            subscriber = next((other for other in self.sessions.values() if other.peer_session_id == ids), None)
        if subscriber is not None:
            code = cdn.result_code
            subscriber.finish(Ended(Why.CDN, code.result, code.error, code.text))

    def _on_ocrq(self, ocrq: OCRQ, _: int, now: float) -> None:
        code = ResultCode(CdnResult.NO_FACILITIES_EVER, ErrorCode.NONE)
        self.send(CDN(result_code=code, assigned_session_id=1), ocrq.assigned_session_id)

    # --- for tests ---

    def wait(self, condition: Callable[[], object], timeout: float = PATIENCE, what: str = "") -> None:
        """Wait until the condition holds, checked after each flush of the tunnel. Raises TimeoutError."""
        self.endpoint.flush()
        wait_for(self, condition, timeout, what)

    def add_waiter(self, event: Event) -> None:
        self._waiters += (event,)

    def expect(self, kind: type[M], timeout: float = PATIENCE, session_id: int | None = None) -> M:
        """Return the oldest message of this class (for this session) that was not returned before. Waits for one."""
        found: list[M] = []

        def there() -> bool:
            for entry in self.inbox:
                if isinstance(entry[1], kind) and session_id in (None, entry[0]):
                    self.inbox.remove(entry)
                    found.append(entry[1])
                    return True
            return False

        self.wait(there, timeout, kind.__name__)
        return found[0]

    def wait_acked(self, timeout: float = PATIENCE) -> None:
        """Wait until everything sent was acknowledged."""
        self.wait(lambda: self.reliable.idle, timeout, "acknowledgement")

    def wait_ended(self, timeout: float = PATIENCE) -> Ended:
        self.wait(lambda: self.ended is not None, timeout, "the end of the tunnel")
        assert self.ended is not None
        return self.ended

    @property
    def echoes_answered(self) -> int:
        """Return the number of LCP Echo-Requests answered in the calls that are up."""
        return sum(subscriber.echoes_answered for subscriber in self.sessions.values())

    def __repr__(self) -> str:
        ids = f"{self.tunnel_id}/{self.peer_tunnel_id}"
        return f"<Lac {self.hostname} {ids} {self.phase.value} {len(self.sessions)} calls {self.ended or ''}>"

    def _over(self, ended: Ended, phase: TunnelPhase) -> None:
        if self.ended is None:
            self.ended = ended
        self.phase = phase
        self._starting.clear()
        for subscriber in list(self.sessions.values()):
            subscriber.finish(ended)
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, ()
        for event in waiters:
            event.set()

    def _free_tunnel_id(self) -> int:
        while True:
            number = int.from_bytes(self.random(2), "big")
            if number and number not in self.endpoint.lacs:
                return number


def _octets(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


if __name__ == "__main__":
    from tests.lab.play import main

    main()
