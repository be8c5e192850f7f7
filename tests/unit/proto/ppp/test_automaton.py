"""The automaton against the RFC's own drawing of it."""

from __future__ import annotations

import re

import pytest

from l2tpns.proto.ppp.automaton import TABLE, TIMED, Action, Automaton, Event, Notice, State, Timers
from tests.unit.proto.ppp.ends import CLIENT_POLICY, SERVER_POLICY, ipcp_end, lcp_end

# RFC 1661 section 4.1, character by character.
RFC_TABLE = """
      | State
      |    0         1         2         3         4         5
Events| Initial   Starting  Closed    Stopped   Closing   Stopping
------+-----------------------------------------------------------
 Up   |    2     irc,scr/6     -         -         -         -
 Down |    -         -         0       tls/1       0         1
 Open |  tls/1       1     irc,scr/6     3r        5r        5r
 Close|    0       tlf/0       2         2         4         4
      |
  TO+ |    -         -         -         -       str/4     str/5
  TO- |    -         -         -         -       tlf/2     tlf/3
      |
 RCR+ |    -         -       sta/2 irc,scr,sca/8   4         5
 RCR- |    -         -       sta/2 irc,scr,scn/6   4         5
 RCA  |    -         -       sta/2     sta/3       4         5
 RCN  |    -         -       sta/2     sta/3       4         5
      |
 RTR  |    -         -       sta/2     sta/3     sta/4     sta/5
 RTA  |    -         -         2         3       tlf/2     tlf/3
      |
 RUC  |    -         -       scj/2     scj/3     scj/4     scj/5
 RXJ+ |    -         -         2         3         4         5
 RXJ- |    -         -       tlf/2     tlf/3     tlf/2     tlf/3
      |
 RXR  |    -         -         2         3         4         5

      | State
      |    6         7         8           9
Events| Req-Sent  Ack-Rcvd  Ack-Sent    Opened
------+-----------------------------------------
 Up   |    -         -         -           -
 Down |    1         1         1         tld/1
 Open |    6         7         8           9r
 Close|irc,str/4 irc,str/4 irc,str/4 tld,irc,str/4
      |
  TO+ |  scr/6     scr/6     scr/8         -
  TO- |  tlf/3p    tlf/3p    tlf/3p        -
      |
 RCR+ |  sca/8   sca,tlu/9   sca/8   tld,scr,sca/8
 RCR- |  scn/6     scn/7     scn/6   tld,scr,scn/6
 RCA  |  irc/7     scr/6x  irc,tlu/9   tld,scr/6x
 RCN  |irc,scr/6   scr/6x  irc,scr/8   tld,scr/6x
      |
 RTR  |  sta/6     sta/6     sta/6   tld,zrc,sta/5
 RTA  |    6         6         8       tld,scr/6
      |
 RUC  |  scj/6     scj/7     scj/8       scj/9
 RXJ+ |    6         6         8           9
 RXJ- |  tlf/3     tlf/3     tlf/3   tld,irc,str/5
      |
 RXR  |    6         7         8         ser/9
"""
EVENTS = {
    "Up": Event.UP,
    "Down": Event.DOWN,
    "Open": Event.OPEN,
    "Close": Event.CLOSE,
    "TO+": Event.TO_PLUS,
    "TO-": Event.TO_MINUS,
    "RCR+": Event.RCR_PLUS,
    "RCR-": Event.RCR_MINUS,
    "RCA": Event.RCA,
    "RCN": Event.RCN,
    "RTR": Event.RTR,
    "RTA": Event.RTA,
    "RUC": Event.RUC,
    "RXJ+": Event.RXJ_PLUS,
    "RXJ-": Event.RXJ_MINUS,
    "RXR": Event.RXR,
}
TIMERS = Timers(restart=2.5, max_configure=7, max_terminate=4)
NOW = 100.0


def read_rfc_table() -> dict[tuple[Event, State], str]:
    """Every cell; the footnote letters p, r and x are options that l2tpns does not use."""
    cells = {}
    states: list[State] = []
    for line in RFC_TABLE.splitlines():
        name, bar, rest = line.partition("|")
        words = rest.split()
        if bar and not name.strip() and words and words[0].isdigit():
            states = [State(int(word)) for word in words]
        elif name.strip() in EVENTS:
            assert len(words) == len(states), line
            for state, word in zip(states, words, strict=True):
                cells[EVENTS[name.strip()], state] = re.sub("[prx]$", "", word)
    return cells


CELLS = read_rfc_table()


class Recorder(Automaton):
    """Writes down the actions by the RFC's names."""

    def __init__(self) -> None:
        super().__init__(TIMERS)
        self.done: list[str] = []

    def _send_configure_request(self) -> None:
        self.done.append("scr")

    def _send_configure_ack(self, identifier: int, options: bytes) -> None:
        assert (identifier, options) == (9, b"data")
        self.done.append("sca")

    def _send_configure_nak(self, packet: bytes) -> None:
        assert packet == b"data"
        self.done.append("scn")

    def _send_terminate_request(self) -> None:
        self.done.append("str")

    def _send_terminate_ack(self, identifier: int) -> None:
        assert identifier == 9
        self.done.append("sta")

    def _send_code_reject(self, packet: bytes) -> None:
        assert packet == b"data"
        self.done.append("scj")

    def _send_echo_reply(self, identifier: int, data: bytes) -> None:
        assert (identifier, data) == (9, b"data")
        self.done.append("ser")

    def _notify(self, notice: Notice) -> None:
        self.done.append({"UP": "tlu", "DOWN": "tld", "STARTED": "tls", "FINISHED": "tlf"}[notice.name])


@pytest.mark.statement(87)
def test_the_drawing_has_all_160_cells():
    assert len(CELLS) == 16 * 10
    assert set(CELLS) == {(event, state) for event in Event for state in State}
    assert {word for cell in CELLS.values() for word in re.findall("[a-z]+", cell)} == {str(a) for a in Action}


@pytest.mark.statement(87)
@pytest.mark.parametrize(("event", "state"), list(CELLS), ids=lambda value: value.name)
def test_each_event_in_each_state_does_what_the_rfc_draws(event: Event, state: State):
    cell = CELLS[event, state]
    automaton = Recorder()
    automaton.state = state
    automaton.restart_count = -50
    timed = CELLS[Event.TO_PLUS, state] != "-"
    automaton.deadline = before = 101.0 if timed else None

    automaton.step(event, NOW, 9, b"data")

    if cell == "-":  # cannot happen: nothing is done about it
        assert (automaton.state, automaton.done, automaton.deadline) == (state, [], before)
        return
    *actions, after = re.split("[,/]", cell)
    assert automaton.state == State(int(after))
    # irc and zrc are seen by the counter that they set, scr and str by what they take from it.
    assert sorted(automaton.done) == sorted(action for action in actions if action not in ("irc", "zrc"))
    count = -50
    if "irc" in actions:
        count = TIMERS.max_terminate if "str" in actions else TIMERS.max_configure
    elif "zrc" in actions:
        count = 0
    count -= actions.count("scr") + actions.count("str")
    assert automaton.restart_count == count
    # Only scr, str and zrc start the timer; it stands still in a state that has no TO event.
    if CELLS[Event.TO_PLUS, automaton.state] == "-":
        assert automaton.deadline is None
    elif {"scr", "str", "zrc"} & set(actions):
        assert automaton.deadline == NOW + 2.5
    else:
        assert automaton.deadline == before


@pytest.mark.statement(87)
def test_the_table_as_data_has_the_cells_of_the_drawing():
    for (event, state), cell in CELLS.items():
        transition = TABLE[event][state]
        assert (transition is None) == (cell == "-")
    assert {state for state in State if CELLS[Event.TO_PLUS, state] != "-"} == TIMED


def test_the_layers_are_told_when_the_state_is_new_and_the_packets_are_out():
    seen: list[tuple[State, list[str]]] = []

    class Curious(Recorder):
        def _notify(self, notice: Notice) -> None:
            seen.append((self.state, list(self.done)))

    automaton = Curious()
    automaton.state = State.OPENED
    automaton.step(Event.RCR_PLUS, NOW, 9, b"data")
    assert seen == [(State.ACK_SENT, ["scr", "sca"])]


@pytest.mark.statement(88)
def test_the_defaults_are_those_of_section_4_6():
    assert Timers() == Timers(restart=3.0, max_configure=10, max_terminate=2, max_failure=5)


@pytest.mark.statement(88)
@pytest.mark.parametrize(("timers", "times"), [(Timers(), 10), (Timers(restart=0.5, max_configure=3), 3)])
def test_a_silent_peer_gets_max_configure_requests_one_a_restart_period(timers: Timers, times: int):
    for end in (lcp_end(timers=timers), ipcp_end(SERVER_POLICY, timers), ipcp_end(CLIENT_POLICY, timers)):
        first = end.start()
        for number in range(1, times):
            end.it.timeout(number * timers.restart - 0.01)
            assert end.take() == []
            end.it.timeout(number * timers.restart)
            assert end.take() == [first]  # section 5: a retransmission may keep its Identifier
        end.it.timeout(times * timers.restart)
        assert end.take() == []
        assert end.told() == [Notice.FINISHED]
        assert (end.it.state, end.it.deadline) == (State.STOPPED, None)


def test_asked_again_after_a_pause_of_ours_a_silent_peer_gets_one_request_more():
    end = lcp_end(timers=Timers(restart=1.0, max_configure=2))
    first = end.start()
    end.it.ask_again()  # there is a try left: nothing is added
    end.it.timeout(1.0)
    assert end.take() == [first] and end.it.restart_count == 0
    end.it.ask_again()
    end.it.timeout(2.0)
    assert end.take() == [first] and end.told() == []
    end.it.timeout(3.0)
    assert end.take() == [] and end.told() == [Notice.FINISHED]
    end.it.ask_again()
    assert end.it.deadline is None


@pytest.mark.statement(88)
@pytest.mark.parametrize(("timers", "times"), [(Timers(), 2), (Timers(restart=0.5, max_terminate=4), 4)])
def test_a_silent_peer_gets_max_terminate_requests(timers: Timers, times: int):
    end = lcp_end(timers=timers)
    end.start()
    end.it.close(10.0, b"bye")
    (request,) = end.take()
    assert request[0] == 5 and request.endswith(b"bye")
    for number in range(1, times):
        end.it.timeout(10.0 + number * timers.restart)
        assert end.take() == [request]
    end.it.timeout(10.0 + times * timers.restart)
    assert (end.take(), end.told(), end.it.state) == ([], [Notice.FINISHED], State.CLOSED)


def test_a_timer_that_does_not_run_cannot_run_out():
    end = lcp_end()
    end.it.timeout(1e9)
    assert (end.take(), end.it.state) == ([], State.INITIAL)


def test_up_twice_is_up_once():
    end = lcp_end()
    end.start()
    end.it.lower_up(1.0)
    assert (end.take(), end.it.state) == ([], State.REQ_SENT)
