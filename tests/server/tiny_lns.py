"""As little of an LNS as our LAC needs to be tested: one greenlet, no limits, no RADIUS; every password is "secret".

Pings are answered by itself, other IP packets are kept in `packets`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import IPv4Address

import gevent
from gevent import socket

from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import data_header, parse_control, parse_data
from l2tpns.proto.l2tp.reliable import Reliable
from l2tpns.proto.ppp.automaton import Timers
from l2tpns.proto.ppp.chap import ChapServer, check_md5
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.ipcp import Ipcp, IpcpPolicy
from l2tpns.proto.ppp.lcp import AuthChoice, Lcp, LcpWishes
from l2tpns.proto.ppp.negotiation import Notice
from l2tpns.proto.ppp.pap import PapServer
from tests.lab import traffic

OURS = IPv4Address("10.255.0.1")
DNS = (IPv4Address("10.255.0.53"),)


class Line:
    """One call: PPP as the server's automata speak it."""

    def __init__(self, tunnel: Tunnel, peer_session_id: int, number: int) -> None:
        self.tunnel = tunnel
        self.peer_session_id = peer_session_id
        self.sequence: int | None = None
        self.address = IPv4Address("10.0.0.0") + number
        timers = Timers(restart=0.3, max_configure=40)  # a busy machine may be away for seconds
        lns = tunnel.lns
        self.lcp = Lcp(self.sender(0xC021), self.lcp_says, os.urandom, timers, LcpWishes(auth=lns.auth))
        self.ipcp = Ipcp(self.sender(0x8021), lambda _: None, os.urandom, timers, IpcpPolicy(OURS, self.address, DNS))
        self.timers = timers
        self.new_authenticators()

    def new_authenticators(self) -> None:
        self.pap = PapServer(self.sender(0xC023))
        self.chap = ChapServer(self.sender(0xC223), os.urandom, b"tiny", self.timers)

    def sender(self, protocol: int) -> Callable[[bytes], None]:
        return lambda packet: self.put(b"\xff\x03" + protocol.to_bytes(2, "big") + packet)

    def put(self, frame: bytes) -> None:
        head = data_header(self.tunnel.peer_tunnel_id, self.peer_session_id, self.sequence)
        if self.sequence is not None:
            self.sequence += 1
        self.tunnel.lns.socket.sendto(head + frame, self.tunnel.peer)

    def start(self, sequencing: bool) -> None:
        self.sequence = 0 if sequencing else None
        now = gevent.get_hub().loop.now()
        self.lcp.open(now)
        self.lcp.lower_up(now)

    def lcp_says(self, notice: Notice) -> None:
        now = gevent.get_hub().loop.now()
        if notice is Notice.UP:
            self.new_authenticators()
        if notice is Notice.UP and self.lcp.auth is AuthChoice.CHAP_MD5:
            self.chap.start(now)
        elif notice is Notice.UP and self.lcp.auth is None:
            self.ipcp.open(now)
            self.ipcp.lower_up(now)
        elif notice is Notice.DOWN:
            self.ipcp.lower_down(now)
        elif notice is Notice.FINISHED:
            self.tunnel.hang_up(self, messages.CdnResult.ADMINISTRATIVE)

    def check(self, credentials: Credentials | None, server: PapServer | ChapServer, now: float) -> None:
        if credentials is None:
            return
        good = credentials.password == b"secret" if server is self.pap else check_md5(credentials, b"secret")
        server.verdict(good, b"welcome" if good else b"go away")
        if good:
            self.ipcp.open(now)
            self.ipcp.lower_up(now)
        else:
            self.tunnel.hang_up(self, messages.CdnResult.ADMINISTRATIVE)

    def receive(self, frame: bytes, now: float) -> None:
        if frame[:1] == b"\x21":  # PFC and ACFC
            self.take_ip(frame[1:])
            return
        protocol, packet = int.from_bytes(frame[2:4], "big"), frame[4:]
        match protocol:
            case 0xC021:
                self.lcp.receive(packet, now)
            case 0x8021:
                self.ipcp.receive(packet, now)
            case 0xC023:
                self.check(self.pap.receive(packet, now), self.pap, now)
            case 0xC223:
                self.check(self.chap.receive(packet, now), self.chap, now)
            case 0x0021:
                self.take_ip(packet)

    def take_ip(self, packet: bytes) -> None:
        found = traffic.parse(packet)
        if found.protocol != traffic.ICMP:
            self.tunnel.lns.packets.append(found)
            return
        _, _, identifier, sequence = found.icmp
        data, kind = found.payload[8:], traffic.ECHO_REPLY
        self.send_ip(traffic.icmp_echo(found.destination, found.source, identifier, sequence, data, kind=kind))

    def send_ip(self, packet: bytes) -> None:
        self.put(b"\xff\x03\x00\x21" + packet)

    def tick(self, now: float) -> None:
        for part in (self.lcp, self.ipcp, self.chap):
            if part.deadline is not None and part.deadline <= now:
                part.timeout(now)


class Tunnel:
    def __init__(self, lns: TinyLns, peer: tuple[str, int], number: int) -> None:
        self.lns = lns
        self.peer = peer
        self.number = number
        self.peer_tunnel_id = 0
        self.reliable = Reliable()
        self.lines: dict[int, Line] = {}
        self.up = False
        self.stopped: messages.StopCCN | None = None
        self.hung_up: list[messages.CDN] = []
        self.challenge = os.urandom(16) if lns.challenge else None

    def send(self, message: messages.Message, session_id: int = 0) -> None:
        body = messages.encode(message)
        self.reliable.send(session_id, body, gevent.get_hub().loop.now())

    def hang_up(self, line: Line, result: int) -> None:
        for session_id, other in list(self.lines.items()):
            if other is line:
                del self.lines[session_id]
                code = messages.ResultCode(result)
                self.send(messages.CDN(result_code=code, assigned_session_id=session_id), line.peer_session_id)

    def stop(self, result: int) -> None:
        code = messages.ResultCode(result)
        self.send(messages.StopCCN(assigned_tunnel_id=self.number, result_code=code))

    def process(self, message: messages.Message, session_id: int) -> None:
        match message:
            case messages.SCCRQ():
                self.answer(message)
            case messages.SCCCN():
                wanted = None
                if self.challenge is not None:
                    wanted = messages.tunnel_auth_response(messages.MessageType.SCCCN, self.lns.secret, self.challenge)
                self.up = message.challenge_response == wanted
                if not self.up:
                    self.stop(messages.StopCcnResult.NOT_AUTHORISED)
            case messages.StopCCN():
                self.stopped = message
                self.lines.clear()
            case messages.ICRQ():
                self.lns.lines += 1
                self.lines[self.lns.lines] = Line(self, message.assigned_session_id, self.lns.lines)
                self.send(messages.ICRP(assigned_session_id=self.lns.lines), message.assigned_session_id)
            case messages.ICCN():
                self.lns.iccns.append(message)
                self.lines[session_id].start(message.sequencing_required)
            case messages.CDN():
                self.hung_up.append(message)
                self.lines.pop(session_id, None)

    def answer(self, sccrq: messages.SCCRQ) -> None:
        self.peer_tunnel_id = self.reliable.peer_tunnel_id = sccrq.assigned_tunnel_id
        self.reliable.peer_window = sccrq.window
        response = None
        if sccrq.challenge is not None:
            number = messages.MessageType.SCCRP
            response = messages.tunnel_auth_response(number, self.lns.secret, sccrq.challenge)
        self.send(
            messages.SCCRP(
                protocol_version=messages.VERSION_1_0,
                framing_capabilities=3,
                host_name=b"tiny",
                assigned_tunnel_id=self.number,
                challenge=self.challenge,
                challenge_response=response,
            )
        )


class TinyLns:
    def __init__(
        self,
        auth: tuple[AuthChoice, ...] = (AuthChoice.PAP, AuthChoice.CHAP_MD5),
        *,
        secret: bytes = b"",
        challenge: bool = False,
    ) -> None:
        self.auth = auth
        self.secret = secret
        self.challenge = challenge
        self.tunnels: dict[int, Tunnel] = {}
        self.lines = 0
        self.iccns: list[messages.ICCN] = []
        self.packets: list[traffic.Packet] = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address = self.socket.getsockname()
        self.greenlets = [gevent.spawn(self.read), gevent.spawn(self.tick)]

    def __enter__(self) -> TinyLns:
        return self

    def __exit__(self, *_: object) -> None:
        gevent.killall(self.greenlets)
        self.socket.close()

    @property
    def tunnel(self) -> Tunnel:
        """The newest."""
        return self.tunnels[max(self.tunnels)]

    def read(self) -> None:
        while True:
            datagram, peer = self.socket.recvfrom(4096)
            now = gevent.get_hub().loop.now()
            if not datagram[0] & 0x80:
                data = parse_data(datagram)
                line = self.tunnels[data.tunnel_id].lines.get(data.session_id)
                if line is not None:
                    line.receive(data.payload, now)
                    self.flush(line.tunnel, now)
                continue
            header = parse_control(datagram)
            tunnel = self.tunnels.get(header.tunnel_id)
            if tunnel is None:
                tunnel = next((old for old in self.tunnels.values() if old.peer == peer and not old.up), None)
            if tunnel is None or tunnel.stopped:
                number = len(self.tunnels) + 1
                tunnel = self.tunnels.setdefault(header.tunnel_id or number, Tunnel(self, peer, number))
            for ready in tunnel.reliable.receive(header, now):
                tunnel.process(messages.decode(ready.body), ready.session_id)
            self.flush(tunnel, now)

    def tick(self) -> None:
        while True:
            gevent.sleep(0.02)
            now = gevent.get_hub().loop.now()
            for tunnel in self.tunnels.values():
                for line in list(tunnel.lines.values()):
                    line.tick(now)
                self.flush(tunnel, now)

    def flush(self, tunnel: Tunnel, now: float) -> None:
        for datagram in tunnel.reliable.outgoing(now):
            self.socket.sendto(datagram, tunnel.peer)
