"""The option negotiation automaton (RFC 1661 section 4): states, events, the transition table, the restart timer.

Knows nothing of packets: a subclass implements the actions that send them. The two optional features of the table are
not used: Open in Opened does not restart the link [r], and a side that gave up is Stopped and not passive [p].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum, StrEnum


class State(IntEnum):
    """States (4.2)."""

    INITIAL = 0
    STARTING = 1
    CLOSED = 2
    STOPPED = 3
    CLOSING = 4
    STOPPING = 5
    REQ_SENT = 6
    ACK_RCVD = 7
    ACK_SENT = 8
    OPENED = 9


class Event(IntEnum):
    """Events (4.3), in the order of the table."""

    UP = 0
    DOWN = 1
    OPEN = 2
    CLOSE = 3
    TO_PLUS = 4
    TO_MINUS = 5
    RCR_PLUS = 6
    RCR_MINUS = 7
    RCA = 8
    RCN = 9
    RTR = 10
    RTA = 11
    RUC = 12
    RXJ_PLUS = 13
    RXJ_MINUS = 14
    RXR = 15


class Action(StrEnum):
    """Actions (4.4)."""

    TLU = "tlu"
    TLD = "tld"
    TLS = "tls"
    TLF = "tlf"
    IRC = "irc"
    ZRC = "zrc"
    SCR = "scr"
    SCA = "sca"
    SCN = "scn"
    STR = "str"
    STA = "sta"
    SCJ = "scj"
    SER = "ser"


class Notice(IntEnum):
    """Notifications to the owner: the actions This-Layer-Up, -Down, -Started and -Finished (4.4)."""

    UP = 0
    DOWN = 1
    STARTED = 2
    FINISHED = 3


@dataclass(frozen=True, slots=True)
class Timers:
    """Counters and the restart timer (4.6); `restart` in seconds."""

    restart: float = 3.0
    max_configure: int = 10
    max_terminate: int = 2
    max_failure: int = 5


@dataclass(frozen=True, slots=True)
class Transition:
    """A cell of the table: packets and counters, notifications, and the next state."""

    actions: tuple[Action, ...]
    notices: tuple[Notice, ...]
    state: State


NOTICES = {
    Action.TLU: Notice.UP,
    Action.TLD: Notice.DOWN,
    Action.TLS: Notice.STARTED,
    Action.TLF: Notice.FINISHED,
}


def _row(text: str) -> tuple[Transition | None, ...]:
    """Return a line of the table in 4.1, cells separated by blanks; None for a dash, which cannot happen."""
    return tuple(None if cell == "-" else _cell(cell) for cell in text.split())


def _cell(text: str) -> Transition:
    *left, state = text.split("/")
    actions = tuple(Action(name) for name in left[0].split(",")) if left else ()
    return Transition(
        # The order of actions is free (4.1). Notifications come last, after the packets and in the new state, so that
        # the owner may close or open the automaton from there.
        actions=tuple(action for action in actions if action not in NOTICES),
        notices=tuple(NOTICES[action] for action in actions if action in NOTICES),
        state=State(int(state)),
    )


TABLE: dict[Event, tuple[Transition | None, ...]] = {
    # states:               0 1 2 3 4 5  6 7 8 9
    Event.UP: _row("2 irc,scr/6 - - - -  - - - -"),
    Event.DOWN: _row("- - 0 tls/1 0 1  1 1 1 tld/1"),
    Event.OPEN: _row("tls/1 1 irc,scr/6 3 5 5  6 7 8 9"),
    Event.CLOSE: _row("0 tlf/0 2 2 4 4  irc,str/4 irc,str/4 irc,str/4 tld,irc,str/4"),
    Event.TO_PLUS: _row("- - - - str/4 str/5  scr/6 scr/6 scr/8 -"),
    Event.TO_MINUS: _row("- - - - tlf/2 tlf/3  tlf/3 tlf/3 tlf/3 -"),
    Event.RCR_PLUS: _row("- - sta/2 irc,scr,sca/8 4 5  sca/8 sca,tlu/9 sca/8 tld,scr,sca/8"),
    Event.RCR_MINUS: _row("- - sta/2 irc,scr,scn/6 4 5  scn/6 scn/7 scn/6 tld,scr,scn/6"),
    Event.RCA: _row("- - sta/2 sta/3 4 5  irc/7 scr/6 irc,tlu/9 tld,scr/6"),
    Event.RCN: _row("- - sta/2 sta/3 4 5  irc,scr/6 scr/6 irc,scr/8 tld,scr/6"),
    Event.RTR: _row("- - sta/2 sta/3 sta/4 sta/5  sta/6 sta/6 sta/6 tld,zrc,sta/5"),
    Event.RTA: _row("- - 2 3 tlf/2 tlf/3  6 6 8 tld,scr/6"),
    Event.RUC: _row("- - scj/2 scj/3 scj/4 scj/5  scj/6 scj/7 scj/8 scj/9"),
    Event.RXJ_PLUS: _row("- - 2 3 4 5  6 6 8 9"),
    Event.RXJ_MINUS: _row("- - tlf/2 tlf/3 tlf/2 tlf/3  tlf/3 tlf/3 tlf/3 tld,irc,str/5"),
    Event.RXR: _row("- - 2 3 4 5  6 7 8 ser/9"),
}

# The states whose columns have a TO event; in all others the timer does not run (4.1).
TIMED = frozenset(state for state in State if TABLE[Event.TO_PLUS][state] is not None)
# The states in which a Configure-Request has been sent and has no answer yet.
ASKING = frozenset((State.REQ_SENT, State.ACK_RCVD, State.ACK_SENT))


class Automaton(ABC):
    """One negotiation. Only `step` changes the state. Times are monotonic seconds."""

    __slots__ = ("deadline", "restart_count", "state", "timers")

    def __init__(self, timers: Timers) -> None:
        self.timers = timers
        self.state = State.INITIAL
        self.restart_count = 0
        self.deadline: float | None = None

    @property
    def opened(self) -> bool:
        return self.state is State.OPENED

    def timeout(self, now: float) -> None:
        """Step by the timeout event. To be called at `deadline`; does nothing before."""
        if self.deadline is not None and now >= self.deadline:
            self.step(Event.TO_PLUS if self.restart_count > 0 else Event.TO_MINUS, now)

    def ask_again(self) -> None:
        """Allow at least one more request: an answer may have been lost while this process could not read."""
        if self.state in ASKING:
            self.restart_count = max(self.restart_count, 1)

    def step(self, event: Event, now: float, identifier: int = 0, data: bytes = b"") -> None:
        """Do what the table says. `identifier` and `data` are those of the received packet, for the answer to it."""
        transition = TABLE[event][self.state]
        if transition is None:  # the owner reports Up twice, or a packet comes on a layer that is down
            return
        for action in transition.actions:
            match action:
                case Action.IRC:
                    terminating = Action.STR in transition.actions
                    self.restart_count = self.timers.max_terminate if terminating else self.timers.max_configure
                case Action.ZRC:
                    # 4.4: wait one period before finishing, so that the peer gets the Terminate-Ack.
                    self.restart_count = 0
                    self.deadline = now + self.timers.restart
                case Action.SCR:
                    self._count_down(now)
                    self._send_configure_request()
                case Action.STR:
                    self._count_down(now)
                    self._send_terminate_request()
                case Action.SCA:
                    self._send_configure_ack(identifier, data)
                case Action.SCN:
                    self._send_configure_nak(data)
                case Action.STA:
                    self._send_terminate_ack(identifier)
                case Action.SCJ:
                    self._send_code_reject(data)
                case _:
                    self._send_echo_reply(identifier, data)
        self.state = transition.state
        if transition.state not in TIMED:
            self.deadline = None
        for notice in transition.notices:
            self._notify(notice)

    def _count_down(self, now: float) -> None:
        self.restart_count -= 1
        self.deadline = now + self.timers.restart

    @abstractmethod
    def _send_configure_request(self) -> None:
        """Send a Configure-Request. `state` is still the old one: outside ASKING a new negotiation begins."""

    @abstractmethod
    def _send_configure_ack(self, identifier: int, options: bytes) -> None: ...

    @abstractmethod
    def _send_configure_nak(self, packet: bytes) -> None:
        """Send a Configure-Nak or Configure-Reject; the packet was built where the options were judged."""

    @abstractmethod
    def _send_terminate_request(self) -> None: ...

    @abstractmethod
    def _send_terminate_ack(self, identifier: int) -> None: ...

    @abstractmethod
    def _send_code_reject(self, packet: bytes) -> None: ...

    @abstractmethod
    def _send_echo_reply(self, identifier: int, data: bytes) -> None: ...

    @abstractmethod
    def _notify(self, notice: Notice) -> None: ...
