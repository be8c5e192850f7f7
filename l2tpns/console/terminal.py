"""The screen and keyboard of one connection: a reader greenlet receives keys, and lines are sent in slices.

Reading, key handling and rendering run in turns of a millisecond that all consoles share with other untrusted input
(`Scheduler`), so a console cannot block the server. Rendered lines are sent completely before more are rendered: a slow
reader delays only itself and takes no memory. Meanwhile log messages wait in a short queue; further ones are counted.
Before its login a peer may send no more than a few names and passwords.
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
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.scheduler import Scheduler

CHUNK = 8192  # characters per send
READ_SIZE = 1024
INPUT_QUEUE = 16  # pieces of READ_SIZE octets
LOGIN_CHARACTERS = 4096  # accepted before the login
LOGIN_TELNET = 16_384  # octets of telnet negotiation accepted before the login
ECHO_PIECES = 64  # echoes collected for one packet
NEWS_QUEUE = 500  # log lines waiting to be shown
MORE = "--More--"
WAKE = ""  # in the input queue: new lines to show


class Closed(Exception):
    """The connection has ended; the text is the reason."""


class Flooded(Closed):
    """The peer sent more than a login needs."""


class Interrupted(Exception):
    """The operator pressed ^C."""


class Terminal:
    """The terminal of one connection."""

    def __init__(
        self,
        sock: Any,
        share: Scheduler,
        idle_timeout: Callable[[], int],
        awake: AwakeClock,
        owner: str,
        send_timeout: float,
    ) -> None:
        self._awake = awake
        self._sock = sock
        self._share = share
        self._owner = owner  # whose turns are used
        self._idle_timeout = idle_timeout
        self._send_timeout = send_timeout
        self._sending = Semaphore(1)
        self._telnet = Telnet(self._send)
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._input: Queue[str | None] = Queue(INPUT_QUEUE)
        self._typed: deque[str] = deque()  # characters taken from the queue
        self._echoed: list[str] = []  # echoes not sent yet
        self._trusted = False  # logged in
        self._characters = 0  # typed before the login
        self._flooded = ""  # why the peer is disconnected
        self._over = False
        self._interrupted = False
        self._news: deque[str] = deque()
        self._news_lost = 0
        self.length: int | None = None  # `terminal length`; None: as reported by the peer
        self.keep_awake = False  # log or packets are shown: no idle timeout
        self.history = History()
        self._reader = gevent.spawn(self._read)

    def start(self) -> None:
        self._send(GREETING)

    def trust(self, user: str) -> None:
        """Lift the limits on input after the login, and take turns as this user."""
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
        """Return the lines per page; 0: no paging, as for a peer that reported no size (a script)."""
        return self._telnet.height if self.length is None else self.length

    # Out

    def print(self, words: str) -> None:
        """Print lines. Yields."""
        self._send_text("".join(f"{line}\r\n" for line in words.split("\n")))

    def show(self, lines: Iterable[str | None]) -> None:
        """Print the lines of a command, page by page. None among them permits a pause. Yields."""
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
        """Render about CHUNK characters in one turn. Return the lines, and True if more follow."""
        self._share.wait_turn(self._owner)
        made: list[str] = []
        room = CHUNK
        for piece in pieces:
            if piece is not None:
                made.append(piece)
                room -= len(piece)
            if room <= 0 or not self._share.slice_open:
                return made, True
        return made, False

    def put(self, words: str) -> None:
        """Print text without a line ending, such as a prompt. Yields."""
        if words:
            self._send_text(words)

    def _put_later(self, words: str) -> None:
        """Queue text until the next output or wait for a key: one packet for many keys."""
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

    # Asynchronous lines

    def notify(self, line: str) -> None:
        """Queue a line to be shown. Called from any greenlet; does not yield."""
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
        """Wake `read_line` or `show_live` to show new lines. Called from any greenlet; does not yield."""
        try:
            self._input.put_nowait(WAKE)
        except Full:
            pass  # already awake

    def show_live(self, lines: Callable[[], Iterator[str]], over: Callable[[], bool]) -> None:
        """Show lines whenever woken, without paging, until Enter, ^C or ^D is typed or `over` returns True."""
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
        """Decode octets into characters, one piece per turn. Blocks while the input queue is full."""
        silent = 0  # octets of telnet negotiation
        try:
            while octets := self._sock.recv(READ_SIZE):
                self._share.wait_turn(self._owner)
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
        """Return the next character, or WAKE. Raises Closed at the end or after the idle timeout."""
        if not self._typed:
            self._refill(timeout)
            if not self._typed:
                return WAKE
        self._share.wait_turn(self._owner)
        if not self._trusted:
            self._characters += 1
            if self._characters > LOGIN_CHARACTERS:
                raise Flooded(f"more than {LOGIN_CHARACTERS} characters before the login")
        return self._typed.popleft()

    def _refill(self, timeout: float | None) -> None:
        """Wait for input. `_typed` stays empty if the wait was ended by `wake`."""
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
        """Return input received within this number of awake seconds. Raises Empty."""
        deadline = self._awake.now() + limit
        while True:
            try:
                piece: str | None = self._input.get(timeout=self._awake.real(deadline - self._awake.now()))
                return piece
            except gevent.queue.Empty:
                if self._awake.now() >= deadline:
                    raise

    def key(self) -> str:
        """Return one key, for --More--. Queued log lines stay queued."""
        while (char := self._next()) == WAKE:
            pass
        return char

    def ask(self, prompt: str, *, hidden: bool = False, until: float | None = None) -> str:
        """Read a name or password, without history and help. Raises Interrupted on ^C, Closed on ^D or at `until`."""
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
        """Read a command line. Return "" after ^C or a line that is too long. Raises Closed on ^D in an empty line."""
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
    """The position on the current page."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._left = self._height = terminal.height - 1

    def portions(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines as text to send, and ask for a key when a page is full."""
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
        """Ask for a key: Space shows a page, Enter a line, q ends the output."""
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
    """Return the line with control characters escaped: peers choose their names freely."""
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
