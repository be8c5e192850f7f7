"""What LCP and every NCP have in common: the packets of RFC 1661 section 5 around the automaton of section 4.

A protocol of its own says which options it wants and what it thinks of the peer's. Works alike for both ends. Does not
add the PPP protocol field. `send` and `notify` must not call back into `receive` of the same object; `open` and `close`
are welcome from `notify`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from enum import IntEnum

from l2tpns.errors import WireError
from l2tpns.proto.fsm import ASKING, Automaton, Event, Notice, State, Timers
from l2tpns.proto.options import Option, build_options, parse_options
from l2tpns.proto.ppp import DEFAULT_MRU, PACKET_HEADER, build_packet, parse_packet

Random = Callable[[int], bytes]

__all__ = ["Code", "ControlProtocol", "Notice", "Random", "State", "Timers"]


class Code(IntEnum):
    """RFC 1661 section 5; 12 and 13 from RFC 1570."""

    CONFIGURE_REQUEST = 1
    CONFIGURE_ACK = 2
    CONFIGURE_NAK = 3
    CONFIGURE_REJECT = 4
    TERMINATE_REQUEST = 5
    TERMINATE_ACK = 6
    CODE_REJECT = 7
    PROTOCOL_REJECT = 8
    ECHO_REQUEST = 9
    ECHO_REPLY = 10
    DISCARD_REQUEST = 11
    IDENTIFICATION = 12
    TIME_REMAINING = 13


class ControlProtocol(Automaton):
    """One side of one negotiation."""

    __slots__ = (
        "_awaiting",
        "_identifier",
        "_last_identifier",
        "_naks_received",
        "_naks_sent",
        "_reason",
        "_rejected",
        "_request",
        "_terminate_identifier",
        "dropped",
        "notify",
        "peer_mru",
        "random",
        "send",
    )

    protocol: int  # the PPP protocol number, of the class

    def __init__(
        self,
        send: Callable[[bytes], None],
        notify: Callable[[Notice], None],
        random: Random,
        timers: Timers,
    ) -> None:
        super().__init__(timers)
        self.send = send
        self.notify = notify
        self.random = random
        self.peer_mru = DEFAULT_MRU  # no packet of ours is longer
        self.dropped = 0  # packets that were silently discarded
        self._last_identifier = 0  # of any packet that we began
        self._identifier = 0  # of our last Configure-Request
        self._request = b""  # its options
        self._awaiting = False  # it has had no valid answer
        self._terminate_identifier = 0
        self._reason = b""  # what our Terminate-Request says
        self._rejected = 0  # bit set: types of option that the peer does not want to see
        self._naks_received = 0
        self._naks_sent = 0

    # What the owner does

    def open(self, now: float) -> None:
        self.step(Event.OPEN, now)

    def close(self, now: float, reason: bytes = b"") -> None:
        if self.state not in (State.CLOSING, State.STOPPING):
            self._reason = reason
        self.step(Event.CLOSE, now)

    def lower_up(self, now: float) -> None:
        self.step(Event.UP, now)

    def lower_down(self, now: float) -> None:
        self.step(Event.DOWN, now)

    def protocol_rejected(self, now: float) -> None:
        """The peer does not speak this protocol: LCP had a Protocol-Reject for it (5.7)."""
        self.step(Event.RXJ_MINUS, now)

    def receive(self, packet: bytes, now: float) -> None:
        """Take a packet of this protocol. Whatever its octets are, nothing is raised: `dropped` counts."""
        if self.state in (State.INITIAL, State.STARTING):  # the layer below is down (RFC 1332 2: silently discarded)
            self.dropped += 1
            return
        try:
            code, identifier, data = parse_packet(packet)
            self._receive(code, identifier, data, now)
        except WireError:
            self.dropped += 1

    # What a protocol declares

    @abstractmethod
    def _restart(self) -> None:
        """A new negotiation begins: forget what the last one has led to on our side."""

    @abstractmethod
    def _wanted(self) -> list[Option]:
        """The options that we would ask for now; those that the peer has rejected are left out by the caller."""

    @abstractmethod
    def _take_nak(self, option: Option) -> None:
        """The peer would rather have this value. The option is one that we asked for."""

    @abstractmethod
    def _consider(self, option: Option) -> Option | None:
        """Judge an option of the peer's: itself when good, another value when we want that, None to reject it."""

    @abstractmethod
    def _accept(self, options: list[Option]) -> None:
        """The peer's request is acknowledged: all its options are good."""

    def _missing(self, options: list[Option]) -> list[Option]:
        """Options that the peer should have asked for (RFC 1661 5.3: appended to a Configure-Nak)."""
        return []

    def _take_reject(self, option_type: int) -> None:
        """The peer will not hear of this option; it is not sent again in this negotiation."""
        self._rejected |= 1 << option_type

    def _objection(self) -> bytes:
        """Why there is no sense in going on, for the Terminate-Request; empty when there is."""
        return b""

    def _extra(self, code: int, identifier: int, data: bytes, now: float) -> bool:
        """A code above 7. False when the protocol does not know it."""
        return False

    def _code_rejected(self, code: int) -> bool:
        """May we live on without the code? Those that every control protocol has are needed (section 4.3, RXJ)."""
        return code not in range(Code.CONFIGURE_REQUEST, Code.CODE_REJECT + 1)

    # Receiving

    def _receive(self, code: int, identifier: int, data: bytes, now: float) -> None:
        match code:
            case Code.CONFIGURE_REQUEST:
                self._receive_request(identifier, data, now)
            case Code.CONFIGURE_ACK:
                self._receive_ack(identifier, data, now)
            case Code.CONFIGURE_NAK | Code.CONFIGURE_REJECT:
                self._receive_objections(code, identifier, data, now)
            case Code.TERMINATE_REQUEST:
                self.step(Event.RTR, now, identifier)
            case Code.TERMINATE_ACK:
                self.step(Event.RTA, now)
            case Code.CODE_REJECT:
                if not data:
                    raise WireError("Code-Reject of nothing")
                self.step(Event.RXJ_PLUS if self._code_rejected(data[0]) else Event.RXJ_MINUS, now)
            case _:
                if not self._extra(code, identifier, data, now):
                    self.step(Event.RUC, now, identifier, build_packet(code, identifier, data))

    def _receive_request(self, identifier: int, data: bytes, now: float) -> None:
        options = parse_options(data)
        if self.state in (State.CLOSED, State.CLOSING, State.STOPPING):  # judged by nobody: the link is going
            self.step(Event.RCR_PLUS, now, identifier)
            return
        code, answer = self._judge(options)
        if code is Code.CONFIGURE_ACK:
            self._naks_sent = 0
            self._accept(options)
            self.step(Event.RCR_PLUS, now, identifier, data)
        else:
            self.step(Event.RCR_MINUS, now, identifier, build_packet(code, identifier, build_options(answer)))
        self._give_up_if_hopeless(now)

    def _judge(self, options: list[Option]) -> tuple[Code, list[Option]]:
        """Reject before Nak before Ack (sections 5.2 to 5.4)."""
        rejects: list[Option] = []
        naks: list[Option] = []
        naked: list[Option] = []
        for option in options:
            better = self._consider(option)
            if better is None:
                rejects.append(option)
            elif better != option:
                naks.append(better)
                naked.append(option)
        if self._naks_sent >= self.timers.max_failure:
            # Section 4.6: it does not converge, so Naks turn into Rejects, and nothing is appended.
            rejects = [option for option in options if option in rejects or option in naked]
            naks = []
        else:
            naks += self._missing(options)
        if rejects:
            return Code.CONFIGURE_REJECT, rejects
        if naks:
            self._naks_sent += 1
            return Code.CONFIGURE_NAK, naks
        return Code.CONFIGURE_ACK, options

    def _receive_ack(self, identifier: int, data: bytes, now: float) -> None:
        if self._expects_answer():
            self._check_identifier(identifier)
            if data != self._request:
                raise WireError("Configure-Ack of something else")
            self._awaiting = False
        self.step(Event.RCA, now, identifier)

    def _receive_objections(self, code: int, identifier: int, data: bytes, now: float) -> None:
        if self._expects_answer():
            self._check_identifier(identifier)
            options = parse_options(data)
            asked = parse_options(self._request)
            if not options:
                raise WireError("nothing is objected to")
            if code == Code.CONFIGURE_REJECT and not all(option in asked for option in options):
                raise WireError("Configure-Reject of something else")  # section 5.4: options as they were
            # Section 5: the Identifier changes whenever a valid reply has been received.
            self._awaiting = False
            self._yield_to(options, {option.type for option in asked}, code)
            if self._give_up_if_hopeless(now):
                return
            if self._naks_received > 3 * self.timers.max_failure:
                # A peer that objects for ever would keep the restart counter full: leave the rest to the timer.
                raise WireError("no end of objections")
        self.step(Event.RCN, now, identifier)

    def _yield_to(self, options: Iterable[Option], asked: set[int], code: int) -> None:
        self._naks_received += 1
        stubborn = self._naks_received > self.timers.max_failure
        for option in options:
            if option.type in asked:  # what a Nak adds of its own we have no use for
                if code == Code.CONFIGURE_REJECT or stubborn:
                    self._take_reject(option.type)
                else:
                    self._take_nak(option)

    def _expects_answer(self) -> bool:
        """Outside these states no request of ours is out, and the table alone says what an answer to it means."""
        return self.state in ASKING or self.state is State.OPENED

    def _check_identifier(self, identifier: int) -> None:
        # A second copy of a valid answer has no request any more: without this a datagram doubled by the network
        # would take an opened link down.
        if not self._awaiting or identifier != self._identifier:
            raise WireError("answer to no request of ours")

    def _give_up_if_hopeless(self, now: float) -> bool:
        reason = self._objection()
        if reason:
            self.close(now, reason)
        return bool(reason)

    # Sending

    def _next_identifier(self) -> int:
        self._last_identifier = (self._last_identifier + 1) & 0xFF
        return self._last_identifier

    def _send_configure_request(self) -> None:
        if self.state not in ASKING:
            self._rejected = 0
            self._naks_received = 0
            self._naks_sent = 0
            self._awaiting = False
            self._restart()
        request = build_options(option for option in self._wanted() if not self._rejected >> option.type & 1)
        if not self._awaiting or request != self._request:  # else a retransmission, whose late answer is welcome
            self._identifier = self._next_identifier()
        self._request = request
        self._awaiting = True
        self.send(build_packet(Code.CONFIGURE_REQUEST, self._identifier, request))

    def _send_configure_ack(self, identifier: int, options: bytes) -> None:
        self.send(build_packet(Code.CONFIGURE_ACK, identifier, options))

    def _send_configure_nak(self, packet: bytes) -> None:
        self.send(packet)

    def _send_terminate_request(self) -> None:
        if self.state not in (State.CLOSING, State.STOPPING):  # else it is a retransmission
            self._terminate_identifier = self._next_identifier()
        self.send(build_packet(Code.TERMINATE_REQUEST, self._terminate_identifier, self._fit(self._reason)))

    def _send_terminate_ack(self, identifier: int) -> None:
        self.send(build_packet(Code.TERMINATE_ACK, identifier))

    def _send_code_reject(self, packet: bytes) -> None:
        self.send(build_packet(Code.CODE_REJECT, self._next_identifier(), self._fit(packet)))

    def _send_echo_reply(self, identifier: int, data: bytes) -> None:
        self.send(build_packet(Code.ECHO_REPLY, identifier, self._fit(data)))

    def _fit(self, data: bytes) -> bytes:
        return data[: self.peer_mru - PACKET_HEADER.size]

    def _tell(self, notice: Notice) -> None:
        self.notify(notice)
