"""One connection's screen: keys come in through a reader greenlet, lines go out in slices.

Nothing here can hold up the server: octets are read, keys obeyed and lines made in turns of a millisecond that all
consoles share with what else strangers feed (`Share`). What was made is sent to the end before more is made, so that a
slow reader waits alone and costs no memory. What the log has to say meanwhile is kept in a short queue; what does not
fit is counted. A peer that has not logged in may send a name and a password a few times, and no more.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import gevent
from gevent.lock import Semaphore
from gevent.queue import Full, Queue

from l2tpns.console.editor import BELL, Editor, History, Key
from l2tpns.console.telnet import GREETING, Telnet, escape
from l2tpns.runtime.awake import AwakeClock
from l2tpns.runtime.share import Share

CHUNK = 8192  # characters sent at once
READ_SIZE = 1024
INPUT_QUEUE = 16  # pieces of READ_SIZE typed ahead
LOGIN_CHARACTERS = 4096  # that may be typed before the login has succeeded
LOGIN_TELNET = 16_384  # octets before it that are no characters: what telnet negotiates
ECHO_PIECES = 64  # answers to keys that are kept for one packet
NEWS_QUEUE = 500  # log lines that wait to be shown
MORE = "--More--"
WAKE = ""  # in the input queue: there is news


class Closed(Exception):
    """The connection is over; the text says why."""


class Flooded(Closed):
    """The peer has sent more than a login takes."""


class Interrupted(Exception):
    """^C."""


class Terminal:
    """A screen and a keyboard, on a socket."""

    def __init__(
        self,
        sock: Any,
        share: Share,
        idle_timeout: Callable[[], int],
        awake: AwakeClock,
        owner: str,
        send_timeout: float,
    ) -> None:
        self._awake = awake
        self._sock = sock
        self._share = share
        self._owner = owner  # of the turns
        self._idle_timeout = idle_timeout
        self._send_timeout = send_timeout
        self._sending = Semaphore(1)
        self._telnet = Telnet(self._send)
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._input: Queue[str | None] = Queue(INPUT_QUEUE)
        self._typed: deque[str] = deque()  # characters taken out of the queue
        self._echoed: list[str] = []  # what keys have shown and is not sent yet
        self._trusted = False  # logged in
        self._characters = 0  # typed before that
        self._flooded = ""  # why the peer is sent away
        self._over = False
        self._interrupted = False
        self._news: deque[str] = deque()
        self._news_lost = 0
        self.length: int | None = None  # `terminal length`; None: as the peer says
        self.keep_awake = False  # somebody watches: no idle time-out
        self.history = History()
        self._reader = gevent.spawn(self._read)

    def start(self) -> None:
        self._send(GREETING)

    def trust(self, user: str) -> None:
        """The peer has logged in: it may send what it likes, and has its turns as this user."""
        self._trusted = True
        if user:
            self._owner = f"operator {user}"

    def close(self) -> None:
        self._reader.kill(block=False)
        self._sock.close()
        self._telnet.break_reference_cycles()

    @property
    def echo(self) -> bool:
        return self._telnet.echo

    @property
    def width(self) -> int:
        return self._telnet.width or 80

    @property
    def height(self) -> int:
        """Lines of a page; 0: no paging. A peer that has told no size is a program, or reads it all anyway."""
        return self._telnet.height if self.length is None else self.length

    # Out

    def print(self, words: str) -> None:
        """Lines of our own."""
        self._send_text("".join(f"{line}\r\n" for line in words.split("\n")))

    def show(self, lines: Iterable[str | None]) -> None:
        """A command's lines, page by page; None where there is none yet, but a pause may be made."""
        self._interrupted = False
        page = _Page(self)
        pieces = iter(lines)
        more = True
        while more:
            made, more = self._make(pieces)
            if self._interrupted:
                raise Interrupted
            for portion in page.portions(made):
                self._send_text(portion)

    def _make(self, pieces: Iterator[str | None]) -> tuple[list[str], bool]:
        """Pieces of about CHUNK characters in all, made in one turn; and whether there are more."""
        self._share.turn(self._owner)
        made: list[str] = []
        room = CHUNK
        for piece in pieces:
            if piece is not None:
                made.append(piece)
                room -= len(piece)
            if room <= 0 or not self._share.open:
                return made, True
        return made, False

    def put(self, words: str) -> None:
        """Text as it is, such as a prompt."""
        if words:
            self._send_text(words)

    def _put_later(self, words: str) -> None:
        """Text that goes with what comes next, or before the next key is waited for: one packet for many keys."""
        self._echoed.append(words)
        if len(self._echoed) >= ECHO_PIECES:
            self._send_text("")

    def _send_text(self, words: str) -> None:
        if self._echoed:
            words = "".join(self._echoed) + words
            self._echoed.clear()
        self._send(escape(words.encode("utf-8", "surrogateescape")))

    def _send(self, octets: bytes) -> None:
        timeout = gevent.Timeout(self._send_timeout)
        timeout.start()
        try:
            with self._sending:
                self._sock.sendall(octets)
        except gevent.Timeout as reached:
            if reached is not timeout:
                raise
            raise Closed("reads too slowly") from None
        except OSError as error:
            raise Closed(str(error.strerror or error)) from None
        finally:
            timeout.close()

    # News: lines that come by themselves

    def notify(self, line: str) -> None:
        """Show a line as soon as possible; from any greenlet, never blocks."""
        if len(self._news) >= NEWS_QUEUE:
            self._news_lost += 1
            return
        self._news.append(line)
        if len(self._news) == 1:
            self.wake()

    def _take_news(self) -> Iterator[str]:
        while self._news:
            yield printable(self._news.popleft())
        lost, self._news_lost = self._news_lost, 0
        if lost:
            yield f"({lost} lines came too fast to be shown)"

    def _show_news(self, editor: Editor) -> None:
        text = "".join(f"{line}\r\n" for line in self._take_news())
        if text:
            self.put(editor.erase() + text + editor.draw_below() if self.echo else text)

    def wake(self) -> None:
        """There is something to show: for who is followed; from any greenlet, never blocks."""
        try:
            self._input.put_nowait(WAKE)
        except Full:
            pass  # it is awake

    def show_live(self, lines: Callable[[], Iterator[str]], over: Callable[[], bool]) -> None:
        """Show lines whenever woken, without pages, until Enter, ^C or ^D is typed, or until it is over."""
        awake, self.keep_awake = self.keep_awake, True
        try:
            while True:
                pieces, more = chain(lines(), self._take_news()), True
                while more:
                    made, more = self._make(pieces)
                    self._send_text("".join(f"{printable(line)}\r\n" for line in made))
                if over():
                    return
                if (char := self._next()) != WAKE and (char in "\n\x03\x04" or (self.echo and char in "qQ")):
                    return
        finally:
            self.keep_awake = awake

    # In

    def _read(self) -> None:
        """Octets to characters, a piece at a turn; waits where nobody takes them, so that the peer waits too."""
        silent = 0  # octets that were no characters
        try:
            while octets := self._sock.recv(READ_SIZE):
                self._share.turn(self._owner)
                data = self._telnet.feed(octets)
                typed = self._decode(data)
                silent += len(octets) - len(data)
                if silent > LOGIN_TELNET and not self._trusted:
                    self._flooded = f"more than {LOGIN_TELNET} octets of telnet before the login"
                    break
                if "\x03" in typed:
                    self._interrupted = True
                if typed:
                    self._input.put(typed)
        except (OSError, Closed):
            pass
        self._input.put(None)

    def _next(self, timeout: float | None = None) -> str:
        """The next character, or WAKE. Closed at the end, or when nothing was typed for too long."""
        if not self._typed:
            self._refill(timeout)
            if not self._typed:
                return WAKE
        self._share.turn(self._owner)
        if not self._trusted:
            self._characters += 1
            if self._characters > LOGIN_CHARACTERS:
                raise Flooded(f"more than {LOGIN_CHARACTERS} characters before the login")
        return self._typed.popleft()

    def _refill(self, timeout: float | None) -> None:
        """Wait for what is typed; nothing was if it was for news."""
        if self._echoed:
            self._send_text("")
        if self._over:
            raise Closed("hung up")
        limit = self._idle_timeout() if timeout is None else timeout
        try:
            piece = self._input.get() if self.keep_awake or not limit else self._get_within(limit)
        except gevent.queue.Empty:
            raise Closed("idle for too long") from None
        if piece is None:
            self._over = True
            raise Flooded(self._flooded) if self._flooded else Closed("hung up")
        self._typed.extend(piece)

    def _get_within(self, limit: float) -> str | None:
        """Return what was typed within so many awake seconds; raises Empty."""
        deadline = self._awake.now() + limit
        while True:
            try:
                piece: str | None = self._input.get(timeout=self._awake.real(deadline - self._awake.now()))
                return piece
            except gevent.queue.Empty:
                if self._awake.now() >= deadline:
                    raise

    def key(self) -> str:
        """One key, for --More--; news waits."""
        while (char := self._next()) == WAKE:
            pass
        return char

    def ask(self, prompt: str, *, hidden: bool = False, until: float | None = None) -> str:
        """A line without history or help: a name, a password. Interrupted by ^C, Closed by ^D or at `until`."""
        editor = Editor(hidden=hidden, plain=True, width=self.width)
        editor.prompt = prompt
        self.put(prompt)
        while True:
            timeout = None if until is None else max(until - self._awake.now(), 0.001)
            shown, event = editor.key(self._next(timeout) or "\0")
            if event is Key.LINE:
                self.put("\r\n" if self.echo or hidden else "")
                return editor.text
            if event is Key.TOO_LONG:
                self.put("\r\n")
                return ""
            if event is Key.INTERRUPT:
                self.put("\r\n")
                raise Interrupted
            if event is Key.END:
                raise Closed("hung up")
            if self.echo and not hidden:
                self._put_later(shown)

    def read_line(
        self,
        prompt: Callable[[], str],
        complete: Callable[[str], tuple[str, list[str]]],
        help: Callable[[str], Iterable[str]],
    ) -> str:
        """A command line; "" after ^C or a line that was too long. Closed by ^D on an empty line."""
        editor = Editor(self.history, width=self.width)
        editor.prompt = prompt()
        self.put(editor.prompt)
        while True:
            char = self._next()
            editor.width = self.width
            if char == WAKE:
                self._show_news(editor)
                continue
            if char == "?" and not self.echo:
                editor.insert("?")
                continue
            shown, event = editor.key(char)
            if self.echo and shown:
                self._put_later(shown)
            if event is None:
                continue
            if event is Key.COMPLETE:
                self._complete(editor, complete)
            elif event is Key.HELP:
                self.put("?\r\n" if self.echo else "")
                self._help(editor, help)
            elif event is Key.END:
                raise Closed("hung up")
            elif event is Key.INTERRUPT:
                self.put("^C\r\n" if self.echo else "\r\n")
                return ""
            else:
                self.put("\r\n" if self.echo else "")
                if event is Key.TOO_LONG:
                    self.print("The line is too long")
                    return ""
                self.history.add(editor.text)
                return editor.text

    def _complete(self, editor: Editor, complete: Callable[[str], tuple[str, list[str]]]) -> None:
        begun, words = complete(editor.before_cursor)
        if not words:
            self._put_later(BELL if self.echo else "")
            return
        common = _common_beginning(words)
        if len(words) == 1:
            common += " "
        shown = editor.insert(common[len(begun) :])
        if self.echo:
            self._put_later(shown)
            if len(words) > 1 and len(common) == len(begun):
                self.put("\r\n")
                self.show(_in_columns(words, self.width))
                self.put(editor.draw_below())

    def _help(self, editor: Editor, help: Callable[[str], Iterable[str]]) -> None:
        try:
            self.show(help(editor.before_cursor))
        except Interrupted:
            self.put("\r\n")
        self.put(editor.draw_below() if self.echo else "")


class _Page:
    """Where on the page we are."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._left = self._height = terminal.height - 1

    def portions(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines as text to send, asking for a key where a page is full."""
        text: list[str] = []
        for line in lines:
            line = printable(line)
            if self._height > 0:
                rows = 1 + max(len(line) - 1, 0) // self._terminal.width
                if self._left < rows and self._left < self._height:
                    yield "".join(text)
                    text.clear()
                    self._turn_page(rows)
                self._left -= rows
            text.append(f"{line}\r\n")
        yield "".join(text)

    def _turn_page(self, rows: int) -> None:
        """Space: a page; Enter: a line; q: no more."""
        terminal = self._terminal
        terminal.put(MORE)
        while True:
            key = terminal.key()
            if key in (" ", "\n", "q", "Q", "\x03"):
                break
        terminal.put(f"\r{' ' * len(MORE)}\r")
        if key in ("q", "Q", "\x03"):
            raise Interrupted
        self._left = self._height if key == " " else rows


def printable(line: str) -> str:
    """A line that cannot steer the terminal: what peers call themselves may hold anything."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" or "\udc80" <= c <= "\udcff" else _escape(c) for c in line)


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _common_beginning(words: list[str]) -> str:
    low, high = min(words), max(words)
    for position, char in enumerate(low):
        if high[position] != char:
            return low[:position]
    return low


def _in_columns(words: list[str], width: int) -> Iterator[str]:
    column = max(map(len, words)) + 2
    per_line = max(width // column, 1)
    for start in range(0, len(words), per_line):
        yield "".join(word.ljust(column) for word in words[start : start + per_line]).rstrip()
