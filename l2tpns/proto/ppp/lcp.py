"""The Link Control Protocol (RFC 1661 5.7 to 6.6), for both ends of a link.

Identification and Time-Remaining (RFC 1570) are ignored. Callback, Quality-Protocol, FCS alternatives and Multilink
options are rejected. Any async character map is accepted: it has no meaning on an L2TP link (RFC 1662 7.1).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, IntEnum

from l2tpns.errors import WireError
from l2tpns.proto.ppp.automaton import Event, State, Timers
from l2tpns.proto.ppp.frame import DEFAULT_MRU, PROTOCOL_FIELD, Protocol, build_packet
from l2tpns.proto.ppp.names import authentication_name, option_names
from l2tpns.proto.ppp.negotiation import Code, ControlProtocol, Notice, Random
from l2tpns.proto.ppp.options import Option, parse_options

U16 = struct.Struct("!H")
U32 = struct.Struct("!I")
MIN_MRU = 128  # octets, enough for the control packets sent; RFC 1661 has no lower bound
REJECTS_PER_SECOND = 10  # Protocol-Rejects


class LcpOption(IntEnum):
    MRU = 1
    ACCM = 2  # RFC 1662 7.1
    AUTH = 3
    QUALITY = 4
    MAGIC = 5
    PFC = 7
    ACFC = 8


class AuthChoice(Enum):
    """The value of an Authentication-Protocol option: the PPP protocol, and for CHAP the algorithm."""

    PAP = b"\xc0\x23"
    CHAP_MD5 = b"\xc2\x23\x05"
    MS_CHAP_1 = b"\xc2\x23\x80"
    MS_CHAP_2 = b"\xc2\x23\x81"

    @property
    def protocol(self) -> int:
        return int.from_bytes(self.value[: U16.size], "big")

    @property
    def option(self) -> Option:
        return Option(LcpOption.AUTH, self.value)


AUTH_NAMES = {  # as the setting radius_authtypes names them
    "pap": AuthChoice.PAP,
    "chap": AuthChoice.CHAP_MD5,
    "mschap": AuthChoice.MS_CHAP_1,
    "mschapv2": AuthChoice.MS_CHAP_2,
}


@dataclass(frozen=True, slots=True)
class LcpWishes:
    """What this side asks for and what it accepts. One object serves all sessions."""

    mru: int | None = 1492  # None: do not ask, the peer may send DEFAULT_MRU
    peer_mru: int = DEFAULT_MRU  # what is sent at most to a peer that does not say what it can receive (RFC 1661 6.1)
    auth: tuple[
        AuthChoice, ...
    ] = ()  # what the peer may authenticate with, the best first; empty: it need not authenticate
    accept_auth: tuple[AuthChoice, ...] = ()  # what this side would authenticate with if the peer asks for it
    magic: bool = True
    accept_pfc: bool = True
    accept_acfc: bool = True
    ask_pfc: bool = False
    ask_acfc: bool = False
    accm: int | None = None


@dataclass(frozen=True, slots=True)
class LcpRecord:
    """The state of an opened link that a restart restores."""

    auth: AuthChoice | None
    magic: int = 0
    peer_magic: int = 0
    our_mru: int = DEFAULT_MRU
    peer_mru: int = DEFAULT_MRU
    pfc: bool = False
    acfc: bool = False
    identifier: int = 0  # of the last packet sent that is not an answer


class Lcp(ControlProtocol):
    __slots__ = (
        "_choices",
        "_collisions",
        "_last_nak_magic",
        "_rejects_second",
        "_rejects_sent",
        "accm",
        "acfc",
        "auth",
        "auth_refused",
        "echoes_unanswered",
        "loop_suspected",
        "magic",
        "our_mru",
        "peer_auth",
        "peer_magic",
        "pfc",
        "rejected_protocol",
        "wishes",
    )

    protocol = Protocol.LCP

    def __init__(
        self,
        send: Callable[[bytes], None],
        notify: Callable[[Notice], None],
        random: Random,
        timers: Timers,
        wishes: LcpWishes,
        rejected_protocol: Callable[[int], None] = lambda protocol: None,
    ) -> None:
        super().__init__(send, notify, random, timers)
        self.wishes = wishes
        self.rejected_protocol = rejected_protocol
        # What this side asked for and the peer must respect.
        self.our_mru = wishes.mru or DEFAULT_MRU
        self.accm = wishes.accm or 0
        self.auth: AuthChoice | None = None
        self.magic = 0
        # What the peer asked for and this side must respect; peer_mru is in the superclass.
        self.peer_auth: AuthChoice | None = None
        self.peer_magic = 0
        self.pfc = False
        self.acfc = False
        self.auth_refused = False
        self.loop_suspected = False
        self.echoes_unanswered = 0
        self._choices = wishes.auth  # those that the peer has not refused yet
        self._collisions = 0
        self._last_nak_magic = 0
        self._rejects_second = 0
        self._rejects_sent = 0

    # What the owner does, beyond the superclass

    def send_echo(self, now: float) -> None:
        """Send an Echo-Request if Opened (RFC 1661 5.8), and count it as unanswered."""
        if self.opened:
            self.echoes_unanswered += 1
            self.send(build_packet(Code.ECHO_REQUEST, self._next_identifier(), U32.pack(self.magic)))

    def protocol_reject(self, protocol: int, information: bytes, now: float) -> bool:
        """Send a Protocol-Reject, only while Opened (RFC 1661 5.7). Return True if it was sent."""
        second = int(now)
        if second != self._rejects_second:
            self._rejects_second, self._rejects_sent = second, 0
        if not self.opened or self._rejects_sent >= REJECTS_PER_SECOND:
            return False
        self._rejects_sent += 1
        data = self._fit(PROTOCOL_FIELD.pack(protocol) + information)
        self.send(build_packet(Code.PROTOCOL_REJECT, self._next_identifier(), data))
        return True

    def adopt(self, last_sent: bytes, last_received: bytes, now: float, choices: Collection[AuthChoice]) -> bool:
        """Take over an LCP that a LAC has negotiated (RFC 2661 4.4.5), in place of `open` and `lower_up`.

        `last_sent` are the options that the LAC asked for, `last_received` those that the peer asked for, `choices` the
        authentications that can continue from there. Return True if LCP is Opened now, without any packet. Return False
        if nothing has changed because an option is missing or unacceptable.
        """
        if self.state not in (State.INITIAL, State.STARTING) or not last_sent or not last_received:
            return False
        try:
            ours, theirs = parse_options(last_sent), parse_options(last_received)
        except WireError:
            return False
        magic, self.magic = self.magic, _number(ours, LcpOption.MAGIC, 0)
        auth = next((choice for choice in self.wishes.auth if choice in choices and choice.option in ours), None)
        if (
            (auth is None and bool(self.wishes.auth))
            or _repeats(ours)
            or _repeats(theirs)
            or not all(self._would_ask(option) for option in ours)
            or not all(self._consider(option) == option for option in theirs)
        ):
            self.magic = magic
            return False
        self.our_mru = _number(ours, LcpOption.MRU, DEFAULT_MRU)
        self.auth = auth
        self._accept(theirs)
        self.restart_count = self.timers.max_configure
        self.state = State.OPENED
        self._notify(Notice.UP)
        return True

    def record(self) -> LcpRecord:
        return LcpRecord(
            auth=self.auth,
            magic=self.magic,
            peer_magic=self.peer_magic,
            our_mru=self.our_mru,
            peer_mru=self.peer_mru,
            pfc=self.pfc,
            acfc=self.acfc,
            identifier=self._last_identifier,
        )

    def restore(self, record: LcpRecord) -> None:
        """Continue as Opened, without a packet or a notification. The peer does not notice."""
        self.auth = record.auth
        self.magic, self.peer_magic = record.magic, record.peer_magic
        self.our_mru, self.peer_mru = record.our_mru, record.peer_mru
        self.pfc, self.acfc = record.pfc, record.acfc
        self._last_identifier = record.identifier
        self.restart_count = self.timers.max_configure
        self.state = State.OPENED

    def _would_ask(self, option: Option) -> bool:
        """Return True if this side could have asked for an option that the LAC asked for."""
        match option.type:
            case LcpOption.MRU:
                # RFC 1661 6.1: this side can always receive 1500 octets, whatever it prefers, and promises no more.
                return len(option.value) == U16.size and U16.unpack(option.value)[0] <= DEFAULT_MRU
            case LcpOption.AUTH:
                return any(choice.option == option for choice in self.wishes.auth)
            case LcpOption.MAGIC | LcpOption.ACCM:
                return len(option.value) == U32.size
            case LcpOption.PFC | LcpOption.ACFC:
                return not option.value
        return False

    @property
    def auth_wanted(self) -> list[str]:
        """The names of the authentications that the peer suggested and that are not allowed."""
        allowed = [choice.value for choice in self.wishes.auth]
        values = [option.value for option in self.proposed if option.type == LcpOption.AUTH]
        return [authentication_name(value) for value in values if value not in allowed]

    def refusals(self) -> list[str]:
        """As in the superclass. Authentication asked for in a request concerns this side, in a Nak the peer."""
        ours = [option for option in self.refused.values() if option.type == LcpOption.AUTH]
        ours += [option for option in self.proposed if option.type != LcpOption.AUTH]
        theirs = [option for option in self.refused.values() if option.type != LcpOption.AUTH]
        theirs += [option for option in self.proposed if option.type == LcpOption.AUTH]
        of_us = [f"{name} (of this side)" for name in option_names(self.protocol, ours)]
        return option_names(self.protocol, theirs) + of_us

    # Our options

    def _is_wish(self, option: Option) -> bool:
        return option.type != LcpOption.MAGIC

    def _restart(self) -> None:
        self._choices = self.wishes.auth
        self.auth = self._choices[0] if self._choices else None
        self.auth_refused = False
        self.our_mru = self.wishes.mru or DEFAULT_MRU
        self.accm = self.wishes.accm or 0
        self.magic = self._new_magic() if self.wishes.magic else 0
        self.echoes_unanswered = 0
        self._collisions = 0

    def _wanted(self) -> list[Option]:
        wishes = self.wishes
        options = []
        if wishes.mru is not None:
            options.append(Option(LcpOption.MRU, U16.pack(self.our_mru)))
        if wishes.accm is not None:
            options.append(Option(LcpOption.ACCM, U32.pack(self.accm)))
        if self.auth is not None:
            options.append(self.auth.option)
        if wishes.magic:
            options.append(Option(LcpOption.MAGIC, U32.pack(self.magic)))
        if wishes.ask_pfc:
            options.append(Option(LcpOption.PFC))
        if wishes.ask_acfc:
            options.append(Option(LcpOption.ACFC))
        return options

    def _take_nak(self, option: Option) -> None:
        match option.type:
            case LcpOption.MRU if len(option.value) == U16.size:
                # More than was asked for is not useful: the wish is what fits the path.
                (mru,) = U16.unpack(option.value)
                if MIN_MRU <= mru <= self.our_mru:
                    self.our_mru = mru
            case LcpOption.ACCM if len(option.value) == U32.size:
                (self.accm,) = U32.unpack(option.value)
            case LcpOption.AUTH:
                self._next_choice(option.value)
            case LcpOption.MAGIC:
                # RFC 1661 6.4: the number that this side last suggested has come back.
                if self._last_nak_magic and option.value == U32.pack(self._last_nak_magic):
                    self._collide()
                self.magic = self._new_magic()
            case LcpOption.PFC | LcpOption.ACFC:
                self._take_reject(option.type)  # they have no value

    def _next_choice(self, preferred: bytes) -> None:
        """Choose the authentication that the peer prefers (RFC 1661 6.2), or the next one that is allowed."""
        self._choices = tuple(choice for choice in self._choices if choice is not self.auth)
        if not self._choices:
            self.auth_refused = True
            return
        suited = [choice for choice in self._choices if choice.value == preferred]
        self.auth = suited[0] if suited else self._choices[0]

    def _take_reject(self, option_type: int) -> None:
        super()._take_reject(option_type)
        match option_type:
            case LcpOption.MRU:
                self.our_mru = DEFAULT_MRU
            case LcpOption.AUTH:
                self.auth_refused = True
            case LcpOption.MAGIC:
                self.magic = 0

    def _objection(self) -> bytes:
        if self.auth_refused:
            return b"Authentication is required"
        if self._collisions >= self.timers.max_failure:
            return b"Loop detected"
        return super()._objection()

    # The peer's options

    def _consider(self, option: Option) -> Option | None:
        value = option.value
        match option.type:
            case LcpOption.MRU:
                good = len(value) == U16.size and U16.unpack(value)[0] >= MIN_MRU
                fallback = DEFAULT_MRU if len(value) != U16.size else MIN_MRU
                return option if good else Option(LcpOption.MRU, U16.pack(fallback))
            case LcpOption.ACCM:
                return option if len(value) == U32.size else Option(LcpOption.ACCM, bytes(U32.size))
            case LcpOption.AUTH:
                choices = [choice.option for choice in self.wishes.accept_auth]
                if not choices:
                    return None
                return option if option in choices else choices[0]
            case LcpOption.MAGIC:
                return self._consider_magic(option)
            case LcpOption.PFC if self.wishes.accept_pfc:
                return Option(LcpOption.PFC)
            case LcpOption.ACFC if self.wishes.accept_acfc:
                return Option(LcpOption.ACFC)
        return None

    def _consider_magic(self, option: Option) -> Option:
        ours = len(option.value) == U32.size and self.magic != 0 and U32.unpack(option.value)[0] == self.magic
        if ours:
            self._collide()
        elif len(option.value) == U32.size and any(option.value):
            self._collisions = 0
            return option
        # RFC 1661 6.4: neither the number of this side nor zero is acceptable.
        self._last_nak_magic = self._new_magic()
        return Option(LcpOption.MAGIC, U32.pack(self._last_nak_magic))

    def _accept(self, options: list[Option]) -> None:
        self.peer_mru = _number(options, LcpOption.MRU, self.wishes.peer_mru)
        self.peer_magic = _number(options, LcpOption.MAGIC, 0)
        self.pfc = any(option.type == LcpOption.PFC for option in options)
        self.acfc = any(option.type == LcpOption.ACFC for option in options)
        demanded = [option.value for option in options if option.type == LcpOption.AUTH]
        self.peer_auth = AuthChoice(demanded[-1]) if demanded else None

    # Codes of LCP alone

    def _extra(self, code: int, identifier: int, data: bytes, now: float) -> bool:
        match code:
            case Code.PROTOCOL_REJECT:
                self._receive_protocol_reject(data, now)
            case Code.ECHO_REQUEST | Code.ECHO_REPLY:
                self._receive_echo(code, identifier, data, now)
            case Code.DISCARD_REQUEST | Code.IDENTIFICATION | Code.TIME_REMAINING:
                pass
            case _:
                return False
        return True

    def _receive_protocol_reject(self, data: bytes, now: float) -> None:
        if len(data) < PROTOCOL_FIELD.size:
            raise WireError("Protocol-Reject of nothing")
        (protocol,) = PROTOCOL_FIELD.unpack_from(data)
        if not self.opened:
            raise WireError("Protocol-Reject on a link that is not open")  # RFC 1661 5.7: silently discarded
        if protocol == Protocol.LCP:
            self.step(Event.RXJ_MINUS, now)
        else:
            self.rejected_protocol(protocol)

    def _receive_echo(self, code: int, identifier: int, data: bytes, now: float) -> None:
        if len(data) < U32.size or not self.opened:  # RFC 1661 5.8: silently discarded
            raise WireError("Echo of no use")
        if code == Code.ECHO_REPLY:
            # Some clients copy the magic number of this side into their replies. A looped link is detected otherwise:
            # it returns Requests, not Replies.
            self.echoes_unanswered = 0
        elif self.magic and U32.unpack_from(data)[0] == self.magic:
            self.loop_suspected = True
        else:
            self.step(Event.RXR, now, identifier, U32.pack(self.magic) + data[U32.size :])

    def _code_rejected(self, code: int) -> bool:
        if code == Code.ECHO_REQUEST:
            self.echoes_unanswered = 0  # it cannot answer, but it is alive
        return super()._code_rejected(code)

    # Magic

    def _collide(self) -> None:
        self._collisions += 1
        self.loop_suspected = self.loop_suspected or self._collisions >= self.timers.max_failure

    def _new_magic(self) -> int:
        """Return a random number that is neither zero nor the present one."""
        number = int.from_bytes(self.random(U32.size), "big")
        return number if number not in (0, self.magic) else self.magic % 0xFFFFFFFF + 1


def _number(options: list[Option], option_type: int, default: int) -> int:
    """Return the value of an option whose length has been checked, the last one if there are several."""
    values = [option.value for option in options if option.type == option_type]
    return int.from_bytes(values[-1], "big") if values else default


def _repeats(options: list[Option]) -> bool:
    """Return True if an option is listed more than once, which RFC 1661 section 6 forbids."""
    return len({option.type for option in options}) < len(options)
