"""The telnet protocol: separates data from negotiation (RFC 854; echo RFC 857, go-ahead RFC 858, NAWS RFC 1073).

Owns no socket. A peer without telnet (nc, a script on a plain socket) never answers the offers and gets no echo. The
number of replies is bounded: an option is refused once, however often the peer offers it.
"""

from __future__ import annotations

from collections.abc import Callable

IAC, DONT, DO, WONT, WILL, SB, SE = 255, 254, 253, 252, 251, 250, 240
BREAK, INTERRUPT, ABORT, ARE_YOU_THERE, ERASE_CHARACTER, ERASE_LINE = 243, 244, 245, 246, 247, 248
ECHO, SUPPRESS_GO_AHEAD, NAWS = 1, 3, 31
MAX_SUBNEGOTIATION = 64  # octets; NAWS has five

# Initial offers: character mode (echo by the server, no go-ahead); request for the window size.
GREETING = bytes([IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD, IAC, DO, NAWS])

# Telnet commands that stand for keys.
KEYS = {INTERRUPT: b"\x03", BREAK: b"\x03", ABORT: b"\x03", ERASE_CHARACTER: b"\x7f", ERASE_LINE: b"\x15"}


class Telnet:
    """The decoder of one connection. `reply` is called with octets to send."""

    def __init__(self, reply: Callable[[bytes], None]) -> None:
        self._reply = reply
        self._state: Callable[[int], None] = self._on_data
        self._data = bytearray()
        self._command = 0
        self._sub = bytearray()
        self._after_cr = False
        self._ours = {ECHO: False, SUPPRESS_GO_AHEAD: False}  # offered options, and whether the peer agreed
        self._offered = set(self._ours)  # offers without an answer so far; their answers get no reply
        self._answered: set[tuple[int, int]] = set()
        self.echo = False  # the peer is a terminal in character mode and expects echo
        self.width = self.height = 0  # 0: unknown

    def break_reference_cycles(self) -> None:
        """Free the connection's memory when it ends, without waiting for the garbage collector."""
        self._reply = self._state = _nothing

    def feed(self, octets: bytes) -> bytes:
        """Return the data in these octets. Every line ending becomes a single `\\n`."""
        self._data = bytearray()
        for octet in octets:
            self._state(octet)
        return bytes(self._data)

    def _on_data(self, octet: int) -> None:
        if octet == IAC:
            self._state = self._on_command
            return
        after_cr, self._after_cr = self._after_cr, octet == 0x0D
        if after_cr and octet in (0x0A, 0x00):
            return  # the second half of CR LF or CR NUL
        self._data.append(0x0A if octet == 0x0D else octet)

    def _on_command(self, octet: int) -> None:
        self._state = self._on_data
        if octet == IAC:
            self._data.append(IAC)
        elif octet in (WILL, WONT, DO, DONT):
            self._command = octet
            self._state = self._on_option
        elif octet == SB:
            self._sub = bytearray()
            self._state = self._on_sub
        elif octet == ARE_YOU_THERE:
            self._answer_once(octet, 0, b"\r\n[yes]\r\n")
        else:
            self._data += KEYS.get(octet, b"")

    def _on_option(self, option: int) -> None:
        self._state = self._on_data
        command = self._command
        if command in (DO, DONT):
            if option in self._ours:
                self._ours[option] = command == DO
                if option == ECHO:
                    self.echo = command == DO
                if option in self._offered:
                    self._offered.discard(option)  # the answer to the offer
                elif command == DONT:
                    self._answer_once(command, option, bytes([IAC, WONT, option]))
                else:
                    self._answer_once(command, option, bytes([IAC, WILL, option]))
            elif command == DO:
                self._answer_once(command, option, bytes([IAC, WONT, option]))
        elif command == WILL and option not in (NAWS, SUPPRESS_GO_AHEAD):
            self._answer_once(command, option, bytes([IAC, DONT, option]))
        elif command == WILL and option == SUPPRESS_GO_AHEAD:
            self._answer_once(command, option, bytes([IAC, DO, option]))

    def _answer_once(self, command: int, option: int, answer: bytes) -> None:
        """Send an answer once per option: repeated answers could loop for ever."""
        if (command, option) not in self._answered:
            self._answered.add((command, option))
            self._reply(answer)

    def _on_sub(self, octet: int) -> None:
        if octet == IAC:
            self._state = self._on_sub_command
        elif len(self._sub) < MAX_SUBNEGOTIATION:
            self._sub.append(octet)

    def _on_sub_command(self, octet: int) -> None:
        if octet == IAC:
            self._state = self._on_sub
            if len(self._sub) < MAX_SUBNEGOTIATION:
                self._sub.append(IAC)
            return
        self._state = self._on_data
        sub = self._sub
        if octet == SE and len(sub) == 5 and sub[0] == NAWS:
            self.width, self.height = sub[1] << 8 | sub[2], sub[3] << 8 | sub[4]


def _nothing(_: object) -> None:
    pass


def escape(octets: bytes) -> bytes:
    """Return data with each octet 255 doubled (RFC 854)."""
    return octets.replace(b"\xff", b"\xff\xff")
