"""Run the subscriber's end of PPP: LCP, PAP, CHAP-MD5 and IPCP of a client (RFC 1661, 1334, 1994, 1332, 1877).

Written apart from the server's automata on purpose: two ends made of the same code agree on the same mistakes. It is an
event-driven object without greenlet, socket or clock, so that one process holds tens of thousands.
It does not do MS-CHAP, compression, multilink or IPv6; protocols it does not know are Protocol-Rejected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from ipaddress import IPv4Address

from tests.lab.pppwishes import (
    ACFC,
    ADDRESS,
    AUTH,
    AUTH_CHAP,
    AUTH_MSCHAP,
    AUTH_MSCHAPV2,
    AUTH_OF,
    AUTH_PAP,
    CHAP,
    CODE_REJ,
    CONF_ACK,
    CONF_NAK,
    CONF_REJ,
    CONF_REQ,
    DISCARD,
    DNS1,
    DNS2,
    ECHO_REP,
    ECHO_REQ,
    HEAD,
    IDENTIFICATION,
    IPCP,
    LCP,
    LCP_LENGTHS,
    MAGIC,
    MRU,
    PAP,
    PFC,
    PROTO_REJ,
    TERM_ACK,
    TERM_REQ,
    TIME_REMAINING,
    Phase,
    Wishes,
    changed,
    option,
    parse_options,
)


class PppClient:
    """Run one subscriber's PPP. The subclass carries the frames and is notified of each new phase."""

    __slots__ = (
        "accept_auth",
        "auth",
        "auth_message",
        "auth_refused",
        "chap_response",
        "complaints",
        "deadline",
        "dropped",
        "echo_replies",
        "echoes_answered",
        "identifier",
        "ipcp_asked",
        "ipcp_state",
        "lcp_asked",
        "lcp_state",
        "magic",
        "outstanding",
        "password",
        "peer_acfc",
        "peer_address_octets",
        "peer_magic",
        "peer_mru",
        "peer_pfc",
        "phase",
        "proof",
        "protocol_rejects",
        "rejected_by_peer",
        "renegotiations",
        "tries",
        "user",
        "wishes",
    )

    def __init__(self, user: bytes, password: bytes, wishes: Wishes, random: Callable[[int], bytes]) -> None:
        self.user = user
        self.password = password
        self.wishes = wishes
        self.phase = Phase.IDLE
        self.deadline = 0.0  # 0: nothing to wait for
        self.tries = 0
        self.identifier = 0
        self.outstanding = -1  # identifier of the request that waits for an answer
        self.magic = random(4) if wishes.magic else bytes(4)
        self.lcp_asked = b""
        self.ipcp_asked = b""
        self.lcp_state = 0  # bit 0: the peer acknowledged our request; bit 1: we acknowledged the peer's
        self.ipcp_state = 0
        self.auth = b""  # what the peer demanded and we accepted
        self.auth_refused = False
        self.auth_message = b""
        self.chap_response = b""  # empty once the server has decided
        self.proof = b""  # of MS-CHAPv2: what the server's Success must begin with
        self.peer_mru = 1500
        self.peer_magic = bytes(4)
        self.peer_pfc = False
        self.peer_acfc = False
        self.peer_address_octets = bytes(4)
        self.echoes_answered = 0
        self.echo_replies = 0
        self.protocol_rejects = 0  # sent by us
        self.rejected_by_peer: tuple[int, ...] = ()  # protocols the peer rejected
        self.renegotiations = 0
        self.dropped = 0
        self.complaints: tuple[str, ...] = ()  # violations of the RFC by the peer

    def send_frame(self, protocol: int, packet: bytes) -> None:
        """Put one PPP packet on the wire."""
        raise NotImplementedError

    def phase_changed(self, now: float) -> None:
        """React to a new value of `self.phase`."""
        raise NotImplementedError

    @property
    def address(self) -> IPv4Address:
        """Return the client's address as IPCP has it now, 0.0.0.0 while none was assigned."""
        return IPv4Address(self._asked_ip(ADDRESS))

    @property
    def peer_address(self) -> IPv4Address:
        return IPv4Address(self.peer_address_octets)

    @property
    def dns(self) -> tuple[IPv4Address, ...]:
        """Return the DNS servers learned, none if the peer rejected the options."""
        found = (self._asked_ip(DNS1), self._asked_ip(DNS2))
        return tuple(IPv4Address(octets) for octets in found if octets != bytes(4))

    @property
    def online(self) -> bool:
        return self.phase == Phase.ONLINE

    def link_up(self, now: float) -> None:
        """Begin LCP, as the call is connected."""
        self._start_lcp(now, speak=self.wishes.speaks_first)

    def link_adopted(self, peer_options: bytes, now: float, *, authenticating: bool) -> None:
        """Adopt the LCP that the LAC has negotiated (proxy LCP). `peer_options` are those of the LAC's request.

        `authenticating`: our PAP request or CHAP response is on its way by proxy, only the verdict is missing.
        """
        self.lcp_asked = self.wishes.lcp_options(self.magic)
        for kind, value in parse_options(peer_options) or ():
            self._take_lcp_option(kind, value)
        self.lcp_state = 3
        if authenticating:
            self.tries = self.wishes.max_configure
            self._enter(Phase.AUTHENTICATE, now)
            self.deadline = now + self.wishes.restart
        else:
            self._lcp_opened(now)

    def renegotiate(self, now: float) -> None:
        """Start LCP over, as a client does that has lost its state (RFC 1661 4.3)."""
        self._start_lcp(now, speak=True)

    def terminate_link(self, now: float) -> None:
        self.tries = 2
        self._enter(Phase.TERMINATING, now)
        self._send_terminate(now)

    def send_echo(self) -> None:
        self.identifier = self.identifier + 1 & 0xFF
        self.send_frame(LCP, HEAD.pack(ECHO_REQ, self.identifier, 8) + self.magic)

    def timeout(self, now: float) -> None:
        """Send again what was not answered, as the deadline has come."""
        self.deadline = 0.0
        if self.tries <= 0:
            self.dropped += 1
            self._enter(Phase.TERMINATED, now)
            return
        self.tries -= 1
        phase = self.phase
        if phase == Phase.LINK:
            self._send_configure(LCP, self.lcp_asked, now)
        elif phase == Phase.AUTHENTICATE and self.auth == AUTH_PAP and not self.auth_refused:
            self._send_pap(now)
        elif phase == Phase.AUTHENTICATE and self.chap_response:
            # RFC 1994 4.1: Success may have been lost, and the same Response always gets the same answer.
            self.deadline = now + self.wishes.restart
            self.send_frame(CHAP, self.chap_response)
        elif phase == Phase.NETWORK:
            self._send_configure(IPCP, self.ipcp_asked, now)
        elif phase == Phase.TERMINATING:
            self._send_terminate(now)

    def receive_frame(self, protocol: int, packet: bytes, now: float) -> None:
        """Handle a frame other than an IP packet. Octets that cannot be decoded are counted and dropped."""
        if protocol == LCP:
            self._lcp(packet, now)
        elif self.phase < Phase.AUTHENTICATE or self.phase > Phase.ONLINE:
            self.dropped += 1
        elif protocol == IPCP:
            self._ipcp(packet, now)
        elif protocol == PAP and self.auth == AUTH_PAP:
            self._pap(packet, now)
        elif protocol == CHAP and self.auth[:2] == AUTH_CHAP[:2]:
            self._chap(packet, now)
        else:
            self.protocol_rejects += 1
            self.identifier = self.identifier + 1 & 0xFF
            copy = packet[: self.peer_mru - 6]
            head = HEAD.pack(PROTO_REJ, self.identifier, 6 + len(copy))
            self.send_frame(LCP, head + protocol.to_bytes(2, "big") + copy)

    # --- LCP ---

    def _start_lcp(self, now: float, speak: bool) -> None:
        self.lcp_asked = self.wishes.lcp_options(self.magic)
        self.lcp_state = 0
        self.ipcp_state = 0
        self.auth = self.chap_response = b""
        self.peer_mru = 1500
        self.peer_pfc = self.peer_acfc = False
        self.tries = self.wishes.max_configure
        self._enter(Phase.LINK, now)
        if speak:
            self._send_configure(LCP, self.lcp_asked, now)

    def _read(self, packet: bytes) -> tuple[int, int, bytes] | None:
        """Return code, identifier and data of a packet. Return None for a malformed one, and count it."""
        if 4 <= len(packet) <= 65535:
            code, identifier, length = HEAD.unpack_from(packet)
            if 4 <= length <= len(packet):
                return code, identifier, packet[4:length]
        self.dropped += 1
        return None

    def _lcp(self, packet: bytes, now: float) -> None:
        read = self._read(packet)
        if read is None:
            return
        code, identifier, data = read
        length = 4 + len(data)
        phase = self.phase
        if code == ECHO_REQ:
            if Phase.AUTHENTICATE <= phase <= Phase.ONLINE:
                self.echoes_answered += 1
                self.send_frame(LCP, HEAD.pack(ECHO_REP, identifier, length) + self.magic + data[4:])
            else:
                self.dropped += 1
        elif code == CONF_REQ:
            if phase < Phase.LINK or phase > Phase.ONLINE:
                self.dropped += 1
                return
            if phase > Phase.LINK:  # a Configure-Request in state Opened starts LCP over (RFC 1661 4.3)
                self.renegotiations += 1
                self._start_lcp(now, speak=True)
            self._judge_lcp(identifier, data, now)
        elif code in (CONF_ACK, CONF_NAK, CONF_REJ):
            if phase == Phase.LINK:
                self._lcp_answer(code, identifier, data, now)
            else:
                self.dropped += 1
        elif code == TERM_REQ:
            self.send_frame(LCP, HEAD.pack(TERM_ACK, identifier, 4))
            if phase < Phase.TERMINATED:
                self._enter(Phase.TERMINATED, now)
        elif code == TERM_ACK:
            if phase == Phase.TERMINATING:
                self._enter(Phase.TERMINATED, now)
        elif code == ECHO_REP:
            self.echo_replies += 1
            if data[:4] == self.magic != bytes(4):
                self._complain("Echo-Reply with our own magic number (RFC 1661 5.8)")
        elif code == PROTO_REJ:
            if len(data) >= 2:
                self.rejected_by_peer += (int.from_bytes(data[:2], "big"),)
        elif code not in (CODE_REJ, DISCARD, IDENTIFICATION, TIME_REMAINING):
            self.identifier = self.identifier + 1 & 0xFF
            copy = packet[: self.peer_mru - 4]
            self.send_frame(LCP, HEAD.pack(CODE_REJ, self.identifier, 4 + len(copy)) + copy)

    def _judge_lcp(self, identifier: int, data: bytes, now: float) -> None:
        options = parse_options(data)
        if options is None:
            self.dropped += 1
            return
        naks, rejects = b"", b""
        for kind, value in options:
            if kind == AUTH:
                wanted = self.wishes.auth
                if wanted == "none":
                    rejects += option(kind, value)
                elif value not in AUTH_OF.values() or (wanted != "any" and value != AUTH_OF[wanted]):
                    naks += option(kind, AUTH_OF.get(wanted, AUTH_CHAP))
            elif kind == MAGIC:
                if len(value) == 4 and value == self.magic != bytes(4):
                    naks += option(kind, bytes(octet ^ 0x5A for octet in value))
            elif LCP_LENGTHS.get(kind) != len(value):
                rejects += option(kind, value)
        if self._answer(LCP, identifier, data, naks, rejects):
            for kind, value in options:
                self._take_lcp_option(kind, value)
            self.lcp_state |= 2
            if self.deadline == 0.0 and not self.lcp_state & 1:
                self._send_configure(LCP, self.lcp_asked, now)  # this end has waited for the peer to begin
            if self.lcp_state == 3:
                self._lcp_opened(now)

    def _take_lcp_option(self, kind: int, value: bytes) -> None:
        if kind == MRU:
            self.peer_mru = int.from_bytes(value, "big")
        elif kind == AUTH:
            self.auth = value
        elif kind == MAGIC:
            self.peer_magic = value
        elif kind == PFC:
            self.peer_pfc = True
        elif kind == ACFC:
            self.peer_acfc = True

    def _lcp_answer(self, code: int, identifier: int, data: bytes, now: float) -> None:
        if identifier != self.outstanding:
            self.dropped += 1
        elif code == CONF_ACK:
            if data != self.lcp_asked:
                self._complain(f"LCP Configure-Ack {data.hex()} is not what we asked: {self.lcp_asked.hex()}")
                return
            self.lcp_state |= 1
            if self.lcp_state == 3:
                self._lcp_opened(now)
        else:
            wanted = changed(self.lcp_asked, code, data, allow=(MRU,))
            if wanted is None:
                self._complain(f"LCP code {code} for options we did not ask for: {data.hex()}")
                return
            self.lcp_asked = wanted
            self._send_configure(LCP, wanted, now)

    def _lcp_opened(self, now: float) -> None:
        self.tries = self.wishes.max_configure
        self.deadline = 0.0
        if not self.auth:
            self._start_ipcp(now)
            return
        self._enter(Phase.AUTHENTICATE, now)
        if self.auth == AUTH_PAP:
            self._send_pap(now)

    # --- authentication ---

    def _send_pap(self, now: float) -> None:
        self.identifier = self.outstanding = self.identifier + 1 & 0xFF
        user, password = self.user, self.password
        head = HEAD.pack(1, self.outstanding, 6 + len(user) + len(password))
        self.deadline = now + self.wishes.restart
        self.send_frame(PAP, b"%b%c%b%c%b" % (head, len(user), user, len(password), password))

    def _pap(self, packet: bytes, now: float) -> None:
        if len(packet) < 4 or packet[0] not in (2, 3):
            self.dropped += 1
            return
        length = packet[2] << 8 | packet[3]
        if packet[1] != self.outstanding or self.phase != Phase.AUTHENTICATE:
            self.dropped += 1
            return
        if length > 4:
            self.auth_message = packet[5 : 5 + packet[4]]
        self._verdict(packet[0] == 2, now)

    def _chap(self, packet: bytes, now: float) -> None:
        if len(packet) < 4:
            self.dropped += 1
            return
        code, identifier, length = HEAD.unpack_from(packet)
        if code == 1 and length >= 5 and 5 + packet[4] <= length <= len(packet):
            value = packet[5 : 5 + packet[4]]
            response = self._chap_value(packet[1:2], value)
            answer = HEAD.pack(2, identifier, 5 + len(response) + len(self.user)) + bytes([len(response)])
            answer += response + self.user
            if self.phase == Phase.AUTHENTICATE:
                self.chap_response = answer
                self.deadline = now + self.wishes.restart
            self.send_frame(CHAP, answer)
        elif code in (3, 4):
            self.auth_message = packet[4:length]
            if code == 3 and self.auth == AUTH_MSCHAPV2 and not self.auth_message.startswith(self.proof):
                self._complain(f"the server has not proved that it knows the password: {self.auth_message!r}")
                return
            if self.phase == Phase.AUTHENTICATE or code == 4:
                self._verdict(code == 3, now)
        else:
            self.dropped += 1

    def _chap_value(self, identifier: bytes, challenge: bytes) -> bytes:
        """Return the value of a Response. Of MS-CHAPv2 keep the proof that the server must answer with."""
        if self.auth == AUTH_CHAP:
            return hashlib.md5(identifier + self.password + challenge).digest()
        from l2tpns.proto.ppp import mschap_hashes as hashes  # only where they are used, as in the server

        password = hashes.nt_hash(self.password)
        if self.auth == AUTH_MSCHAP:
            return bytes(24) + hashes.challenge_response(challenge, password) + b"\1"
        ours = hashlib.md5(challenge).digest()
        response = hashes.nt_response(challenge, ours, self.user, password)
        self.proof = hashes.authenticator_response(challenge, ours, self.user, password, response)
        return ours + bytes(8) + response + b"\0"

    def _verdict(self, accepted: bool, now: float) -> None:
        self.deadline = 0.0
        self.chap_response = b""
        if accepted:
            self._start_ipcp(now)
        else:
            self.auth_refused = True
            self.phase_changed(now)

    # --- IPCP ---

    def _start_ipcp(self, now: float) -> None:
        self.ipcp_asked = self.wishes.ipcp_options()
        self.ipcp_state = 0
        self.tries = self.wishes.max_configure
        self._enter(Phase.NETWORK, now)
        self._send_configure(IPCP, self.ipcp_asked, now)

    def _ipcp(self, packet: bytes, now: float) -> None:
        if self.phase < Phase.NETWORK:
            self.dropped += 1
            return
        read = self._read(packet)
        if read is None:
            return
        code, identifier, data = read
        if code == CONF_REQ:
            if self.phase == Phase.ONLINE:
                self.renegotiations += 1
                self._start_ipcp(now)
            self._judge_ipcp(identifier, data, now)
        elif code in (CONF_ACK, CONF_NAK, CONF_REJ) and self.phase == Phase.NETWORK and identifier == self.outstanding:
            self._ipcp_answer(code, data, now)
        elif code == TERM_REQ:
            self.send_frame(IPCP, HEAD.pack(TERM_ACK, identifier, 4))
            self.ipcp_state = 0
            self._enter(Phase.NETWORK, now)
        else:
            self.dropped += 1

    def _judge_ipcp(self, identifier: int, data: bytes, now: float) -> None:
        options = parse_options(data)
        if options is None:
            self.dropped += 1
            return
        rejects = b"".join(option(kind, value) for kind, value in options if kind != ADDRESS or len(value) != 4)
        if self._answer(IPCP, identifier, data, b"", rejects):
            for _, value in options:
                self.peer_address_octets = value
            self.ipcp_state |= 2
            if self.ipcp_state == 3:
                self._ipcp_opened(now)

    def _ipcp_answer(self, code: int, data: bytes, now: float) -> None:
        if code == CONF_ACK:
            if data != self.ipcp_asked:
                self._complain(f"IPCP Configure-Ack {data.hex()} is not what we asked: {self.ipcp_asked.hex()}")
                return
            self.ipcp_state |= 1
            if self.ipcp_state == 3:
                self._ipcp_opened(now)
            return
        wanted = changed(self.ipcp_asked, code, data, allow=(ADDRESS, DNS1, DNS2))
        if wanted is None:
            self._complain(f"IPCP code {code} for options we did not ask for: {data.hex()}")
            return
        self.ipcp_asked = wanted
        self._send_configure(IPCP, wanted, now)

    def _ipcp_opened(self, now: float) -> None:
        self.deadline = 0.0
        self._enter(Phase.ONLINE, now)

    def _asked_ip(self, kind: int) -> bytes:
        for found, value in parse_options(self.ipcp_asked) or ():
            if found == kind:
                return value
        return bytes(4)

    # --- what they share ---

    def _enter(self, phase: Phase, now: float) -> None:
        if phase == self.phase:
            return
        self.phase = phase
        if phase >= Phase.TERMINATED:
            self.deadline = 0.0
        self.phase_changed(now)

    def _send_configure(self, protocol: int, options: bytes, now: float) -> None:
        self.identifier = self.outstanding = identifier = self.identifier + 1 & 0xFF
        self.deadline = now + self.wishes.restart
        self.send_frame(protocol, HEAD.pack(CONF_REQ, identifier, 4 + len(options)) + options)

    def _send_terminate(self, now: float) -> None:
        self.identifier = self.identifier + 1 & 0xFF
        self.deadline = now + self.wishes.restart
        self.send_frame(LCP, HEAD.pack(TERM_REQ, self.identifier, 4))

    def _answer(self, protocol: int, identifier: int, data: bytes, naks: bytes, rejects: bytes) -> bool:
        """Send a Reject, else a Nak, else an Ack (RFC 1661 5.2 to 5.4). Return True if it was an Ack."""
        code, body = (CONF_REJ, rejects) if rejects else (CONF_NAK, naks) if naks else (CONF_ACK, data)
        self.send_frame(protocol, HEAD.pack(code, identifier, 4 + len(body)) + body)
        return code == CONF_ACK

    def _complain(self, what: str) -> None:
        if len(self.complaints) < 20:
            self.complaints += (what,)
