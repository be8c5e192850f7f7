"""The common part of LCP and every NCP: the packets of RFC 1661 section 5 around the automaton of section 4.

A subclass says which options to ask for and judges the peer's. Works alike for both ends of a link. Does not add the
PPP protocol field. `send` and `notify` must not call `receive` of the same object; `notify` may call `open`, `close`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable
from enum import IntEnum

from l2tpns.errors import WireError
from l2tpns.proto.ppp.automaton import ASKING, Automaton, Event, Notice, State, Timers
from l2tpns.proto.ppp.frame import DEFAULT_MRU, PACKET_HEADER, build_packet, cut_text, parse_packet
from l2tpns.proto.ppp.impasse import Impasse
from l2tpns.proto.ppp.names import option_name, option_names
from l2tpns.proto.ppp.options import HEADER_SIZE, Option, build_options, parse_options

Random = Callable[[int], bytes]
MAX_FAILURE_FACTOR = 3  # after so many times Max-Failure objections the negotiation is given up
MAX_WISHES = 16  # refused options of the peer that are remembered

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
    """One side of one negotiation. Times are monotonic seconds."""

    __slots__ = (
        "_awaiting",
        "_identifier",
        "_last_identifier",
        "_naks_received",
        "_naks_sent",
        "_objected",
        "_objections_heard",
        "_reason",
        "_rejected",
        "_rejects_sent",
        "_request",
        "_terminate_identifier",
        "dropped",
        "impasse",
        "notify",
        "peer_mru",
        "proposed",
        "random",
        "refused",
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
        self.peer_mru = DEFAULT_MRU  # octets of the longest packet sent
        self.dropped = 0  # packets that were silently discarded
        self._last_identifier = 0  # of the last packet sent that is not an answer
        self._identifier = 0  # of the last Configure-Request sent
        self._request = b""  # its options
        self._awaiting = False  # it has no valid answer yet
        self._terminate_identifier = 0
        self._reason = b""  # data of the Terminate-Request
        self._rejected = 0  # bit set of the option types that the peer has rejected
        self._naks_received = 0
        self._naks_sent = 0
        self._rejects_sent = 0
        self._objected: tuple[int, bytes] | None = (
            None  # identifier and data of the peer's last request that was not acknowledged
        )
        self._objections_heard = 0  # requests of the peer that were not acknowledged, without repetitions
        self.impasse: Impasse | None = None  # why the negotiation was given up, for the owner
        self.refused: dict[int, Option] = {}  # by type: options that the peer asked for and did not get
        self.proposed: tuple[Option, ...] = ()  # options that the peer asked for by Configure-Nak and did not get

    # What the owner does

    def open(self, now: float) -> None:
        """Administratively open (RFC 1661 4.3): negotiate as soon as the lower layer is up."""
        self.step(Event.OPEN, now)

    def close(self, now: float, reason: bytes = b"") -> None:
        """Administratively close; `reason` is the data of the Terminate-Request (RFC 1661 4.3, 5.5)."""
        if self.state not in (State.CLOSING, State.STOPPING):
            self._reason = reason
        self.step(Event.CLOSE, now)

    def lower_up(self, now: float) -> None:
        """Report that the lower layer carries packets (RFC 1661 4.3)."""
        self.step(Event.UP, now)

    def lower_down(self, now: float) -> None:
        """Report that the lower layer carries packets no more (RFC 1661 4.3)."""
        self.step(Event.DOWN, now)

    def protocol_rejected(self, now: float) -> None:
        """Report that LCP received a Protocol-Reject for this protocol (RFC 1661 5.7)."""
        self.step(Event.RXJ_MINUS, now)

    def receive(self, packet: bytes, now: float) -> None:
        """Handle a packet of this protocol. Never raises; packets that are silently discarded count as `dropped`."""
        if self.state in (State.INITIAL, State.STARTING):  # the layer below is down (RFC 1332 2: silently discarded)
            self.dropped += 1
            return
        try:
            code, identifier, data = parse_packet(packet)
            self._receive(code, identifier, data, now)
        except WireError:
            self.dropped += 1

    def refusals(self) -> list[str]:
        """Return the options that the peer wanted in this negotiation and did not get, by their standard names."""
        of_us = [f"{name} (of this side)" for name in option_names(self.protocol, self.proposed)]
        return option_names(self.protocol, self.refused.values()) + of_us

    # What a protocol declares

    @abstractmethod
    def _restart(self) -> None:
        """Begin a new negotiation: forget what this side agreed to in the last one."""

    @abstractmethod
    def _wanted(self) -> list[Option]:
        """Return the options to ask for now. The caller leaves out those that the peer has rejected."""

    @abstractmethod
    def _take_nak(self, option: Option) -> None:
        """Handle a Nak of an option that this side asked for: the peer suggests this value."""

    @abstractmethod
    def _consider(self, option: Option) -> Option | None:
        """Judge an option of the peer. Return it if acceptable, a better value for a Nak, None to reject it."""

    @abstractmethod
    def _accept(self, options: list[Option]) -> None:
        """Apply the peer's options: its request is acknowledged."""

    def _missing(self, options: list[Option]) -> list[Option]:
        """Return options that the peer should have asked for; they are appended to a Configure-Nak (RFC 1661 5.3)."""
        return []

    def _needed(self) -> Collection[int]:
        """Return the option types without which a request of the peer is never acknowledged."""
        return ()

    def _is_wish(self, option: Option) -> bool:
        """Return True if the value says what the peer wants, and is not a request for a value."""
        return True

    def _take_reject(self, option_type: int) -> None:
        """Handle a Reject: do not ask for the option again in this negotiation."""
        self._rejected |= 1 << option_type

    def _objection(self) -> bytes:
        """Return why the negotiation is given up, for the Terminate-Request; b"" if it is not."""
        return self.impasse.words("the peer").encode() if self.impasse else b""

    def _extra(self, code: int, identifier: int, data: bytes, now: float) -> bool:
        """Handle a code above 7. Return False if the protocol does not know it."""
        return False

    def _code_rejected(self, code: int) -> bool:
        """Return True if the protocol works without the rejected code. Codes 1 to 7 are needed (RFC 1661 4.3, RXJ)."""
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
        if self.state in (State.CLOSED, State.CLOSING, State.STOPPING):  # not judged: the link is being closed
            self.step(Event.RCR_PLUS, now, identifier)
            return
        code, answer = self._judge(options, self._objected == (identifier, data))
        if self.impasse is not None:
            self._give_up_if_hopeless(now)
            return
        if code is Code.CONFIGURE_ACK:
            self._naks_sent = self._rejects_sent = self._objections_heard = 0
            self._objected = None
            self._accept(options)
            self.step(Event.RCR_PLUS, now, identifier, data)
            for option in options:
                self.refused.pop(option.type, None)
        else:
            if answer:  # empty if the peer's option is larger than what the peer can receive
                self.step(Event.RCR_MINUS, now, identifier, build_packet(code, identifier, build_options(answer)))
            self._note_objection(code, identifier, data)
            self._note_wishes(options, {option.type for option in answer})
        self._give_up_if_hopeless(now)

    def _judge(self, options: list[Option], repeated: bool) -> tuple[Code, list[Option]]:
        """Return code and options of the answer: Reject before Nak before Ack (RFC 1661 5.2 to 5.4).

        Sets `impasse` if no answer can lead to an agreement.
        """
        opinions: list[tuple[Option, Option | None]] = []
        seen: set[int] = set()
        for option in options:
            # RFC 1661 section 6: no option may be listed more than once.
            opinions.append((option, None if option.type in seen else self._consider(option)))
            seen.add(option.type)
        needed = self._needed()
        # RFC 1661 4.6: after Max-Failure Naks the negotiation does not converge, so Naks become Rejects and nothing is
        # appended. Needed options are never rejected: a Reject would say that they are optional.
        naked = needed if self._naks_sent >= self.timers.max_failure else range(256)
        naks = [better for option, better in opinions if better not in (None, option) and option.type in naked]
        naks += [option for option in self._missing(options) if option.type in naked]
        rejects = [
            option for option, better in opinions if better != option and (better is None or option.type not in naked)
        ]
        self.impasse = self._find_impasse(options, rejects, naks, repeated)
        if rejects:
            return Code.CONFIGURE_REJECT, self._fitting(rejects)
        if naks:
            return Code.CONFIGURE_NAK, self._fitting(naks)
        return Code.CONFIGURE_ACK, options

    def _find_impasse(
        self, options: list[Option], rejects: list[Option], naks: list[Option], repeated: bool
    ) -> Impasse | None:
        """Return an impasse if Max-Failure Naks did not yield a needed option, or there were too many objections."""
        most = self.timers.max_failure
        objectionable = {option.type for option in (*rejects, *naks)}
        lacking = [kind for kind in self._needed() if kind in objectionable]
        # An unchanged repetition means that the answer was lost, not that the peer insists.
        stubborn = lacking and self._naks_sent >= most and self._objections_heard >= most and not repeated
        endless = objectionable and self._naks_sent + self._rejects_sent >= MAX_FAILURE_FACTOR * most
        if not stubborn and not endless:
            return None
        # Rejects are answered first: for the other options nothing has been offered yet.
        disputed = frozenset(lacking if stubborn else {option.type for option in rejects or naks})
        insists = {kind: option for kind, option in self.refused.items() if kind in disputed}
        insists |= {option.type: option for option in options if option.type in disputed}
        return Impasse(
            types=disputed,
            insists=tuple(option_names(self.protocol, insists.values())),
            offered=tuple(
                option_names(self.protocol, (nak for nak in naks if nak.type in disputed and self._is_wish(nak)))
            ),
            missing=tuple(option_name(self.protocol, Option(kind)) for kind in disputed if kind not in insists),
        )

    def _note_objection(self, code: Code, identifier: int, data: bytes) -> None:
        """Count a Nak or Reject that was sent."""
        if code is Code.CONFIGURE_NAK:
            self._naks_sent += 1
        else:
            self._rejects_sent += 1
        if self._objected != (identifier, data):
            self._objected = identifier, data
            self._objections_heard += 1

    def _note_wishes(self, options: list[Option], objected: set[int]) -> None:
        """Remember the options of a request that the peer does not get."""
        for option in options:
            room = option.type in self.refused or len(self.refused) < MAX_WISHES
            if option.type in objected and room and self._is_wish(option):
                self.refused[option.type] = option

    def _receive_ack(self, identifier: int, data: bytes, now: float) -> None:
        if self._expects_answer():
            self._check_identifier(identifier)
            if data != self._request:
                raise WireError("Configure-Ack of something else")
            self._awaiting = False
            agreed = parse_options(data)
            self.proposed = tuple(option for option in self.proposed if option not in agreed)
        self.step(Event.RCA, now, identifier)

    def _receive_objections(self, code: int, identifier: int, data: bytes, now: float) -> None:
        if self._expects_answer():
            self._check_identifier(identifier)
            options = parse_options(data)
            asked = parse_options(self._request)
            if not options:
                raise WireError("nothing is objected to")
            if code == Code.CONFIGURE_REJECT and not all(option in asked for option in options):
                raise WireError("Configure-Reject of something else")  # RFC 1661 5.4: only options of the request
            # RFC 1661 section 5: the Identifier changes whenever a valid reply has been received.
            self._awaiting = False
            self._yield_to(options, {option.type for option in asked}, code)
            if self._give_up_if_hopeless(now):
                return
            if self._naks_received > MAX_FAILURE_FACTOR * self.timers.max_failure:
                # A peer that objects for ever would keep resetting the restart counter: let the timer end it.
                raise WireError("no end of objections")
        self.step(Event.RCN, now, identifier)

    def _yield_to(self, options: Iterable[Option], asked: set[int], code: int) -> None:
        self._naks_received += 1
        stubborn = self._naks_received > self.timers.max_failure
        for option in options:
            wish = code == Code.CONFIGURE_NAK and self._is_wish(option) and option not in self.proposed
            if wish and len(self.proposed) < MAX_WISHES:
                self.proposed += (option,)
            if option.type not in asked:  # an option that the Nak adds is ignored
                continue
            if code == Code.CONFIGURE_NAK:
                self._take_nak(option)
            if code == Code.CONFIGURE_REJECT or stubborn:
                self._take_reject(option.type)

    def _expects_answer(self) -> bool:
        """Return True if a Configure-Request may be unanswered; in other states the table alone handles an answer."""
        return self.state in ASKING or self.state is State.OPENED

    def _check_identifier(self, identifier: int) -> None:
        # A second copy of a valid answer belongs to no request: without this check a datagram that the network
        # duplicates would take an opened link down.
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
            self._naks_sent = self._rejects_sent = self._objections_heard = 0
            self._objected = self.impasse = None
            self.refused = {}
            self.proposed = ()
            self._awaiting = False
            self._restart()
        request = build_options(option for option in self._wanted() if not self._rejected >> option.type & 1)
        if not self._awaiting or request != self._request:  # otherwise a retransmission: a late answer to it is valid
            self._identifier = self._next_identifier()
        self._request = request
        self._awaiting = True
        self.send(build_packet(Code.CONFIGURE_REQUEST, self._identifier, request))

    def _send_configure_ack(self, identifier: int, options: bytes) -> None:
        self.send(build_packet(Code.CONFIGURE_ACK, identifier, options))

    def _send_configure_nak(self, packet: bytes) -> None:
        self.send(packet)

    def _send_terminate_request(self) -> None:
        if self.state not in (State.CLOSING, State.STOPPING):  # otherwise it is a retransmission
            self._terminate_identifier = self._next_identifier()
        reason = cut_text(self._reason, self.peer_mru - PACKET_HEADER.size)
        self.send(build_packet(Code.TERMINATE_REQUEST, self._terminate_identifier, reason))

    def _send_terminate_ack(self, identifier: int) -> None:
        self.send(build_packet(Code.TERMINATE_ACK, identifier))

    def _send_code_reject(self, packet: bytes) -> None:
        self.send(build_packet(Code.CODE_REJECT, self._next_identifier(), self._fit(packet)))

    def _send_echo_reply(self, identifier: int, data: bytes) -> None:
        self.send(build_packet(Code.ECHO_REPLY, identifier, self._fit(data)))

    def _fit(self, data: bytes) -> bytes:
        return data[: self.peer_mru - PACKET_HEADER.size]

    def _fitting(self, options: Iterable[Option]) -> list[Option]:
        """Return the options that fit into one packet for the peer; the others are objected to the next time."""
        fitting = []
        room = self.peer_mru - PACKET_HEADER.size
        for option in options:
            size = HEADER_SIZE + len(option.value)
            if size <= room:
                fitting.append(option)
                room -= size
        return fitting

    def _notify(self, notice: Notice) -> None:
        self.notify(notice)
