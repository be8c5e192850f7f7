"""Regular expressions for output filters, matched in time proportional to the length of the text.

Literals, `.`, `[abc]`, `[^a-z]`, `^`, `$`, `*`, `+`, `?`, `|`, `( )`, `\\d \\w \\s` and `\\` before a sign.
Python's `re` backtracks: `(a+)+$` on a line of forty letters takes hours and blocks the server meanwhile. Here the
expression is simulated as a set of states in one pass over the text (Thompson 1968). Steps between sets are cached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

MAX_LENGTH = 200  # characters of an expression
MAX_DEPTH = 20  # levels of parentheses
MAX_CACHED_STEPS = 500  # steps between sets of states; then the cache is cleared

Test = Callable[[str], bool]
_CLASSES: dict[str, Test] = {
    "d": str.isdigit,
    "w": lambda char: char.isalnum() or char == "_",
    "s": str.isspace,
}
_BEGIN, _END = "begin", "end"


@dataclass(slots=True, eq=False)
class _State:
    """A state. A character that passes `test` leads to `out`; without a test, `free` follow at once."""

    test: Test | None = None
    anchor: str = ""
    out: _State | None = None
    free: list[_State] = field(default_factory=list)


_Set = frozenset[_State]


class Regexp:
    """A compiled expression. Raises ValueError with a message for the operator."""

    def __init__(self, pattern: str) -> None:
        if not pattern:
            raise ValueError("a regular expression is missing")
        if len(pattern) > MAX_LENGTH:
            raise ValueError(f"the regular expression is longer than {MAX_LENGTH} characters")
        self._accept = _State()
        self._start = _Parser(pattern).parse(self._accept)
        self._known: dict[tuple[_Set, str], _Set] = {}

    def search(self, text: str) -> bool:
        """Return True if the expression matches any part of the text."""
        states = self._closure([self._start], begin=True, end=not text)
        if self._accept in states:
            return True
        last = len(text) - 1
        for position, char in enumerate(text):
            if position == last:
                return self._accept in self._step(states, char, end=True)
            key = (states, char)
            found = self._known.get(key)
            if found is None:
                if len(self._known) >= MAX_CACHED_STEPS:
                    self._known.clear()
                found = self._known[key] = self._step(states, char, end=False)
            states = found
            if self._accept in states:
                return True
        return False

    def _step(self, states: _Set, char: str, *, end: bool) -> _Set:
        following = [s.out for s in states if s.out is not None and s.test is not None and s.test(char)]
        return self._closure([*following, self._start], begin=False, end=end)

    def _closure(self, states: list[_State], *, begin: bool, end: bool) -> _Set:
        """Return all states reachable from these without consuming a character."""
        found: set[_State] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state in found:
                continue
            found.add(state)
            if state.anchor == _BEGIN and not begin:
                continue
            if state.anchor == _END and not end:
                continue
            waiting.extend(state.free)
        return frozenset(found)


@dataclass(slots=True)
class _Piece:
    """A part of an expression: its first state and its last."""

    start: _State
    end: _State  # a state without test: the next part is appended to its `free`


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._depth = 0

    def parse(self, accept: _State) -> _State:
        piece = self._alternatives()
        if self._at < len(self._pattern):
            raise ValueError("the regular expression has a ) without a (")
        piece.end.free.append(accept)
        return piece.start

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise ValueError("the regular expression is incomplete")
        self._at += 1
        return char

    def _alternatives(self) -> _Piece:
        start, end = _State(), _State()
        while True:
            piece = self._sequence()
            start.free.append(piece.start)
            piece.end.free.append(end)
            if self._peek() != "|":
                return _Piece(start, end)
            self._at += 1

    def _sequence(self) -> _Piece:
        start = end = _State()
        while self._peek() not in ("", "|", ")"):
            piece = self._repeated()
            end.free.append(piece.start)
            end = piece.end
        return _Piece(start, end)

    def _repeated(self) -> _Piece:
        piece = self._atom()
        while self._peek() in ("*", "+", "?") and self._peek():
            sign = self._next()
            start, end = _State(), _State()
            start.free.append(piece.start)
            piece.end.free.append(end)
            if sign in "*?":
                start.free.append(end)
            if sign in "*+":
                piece.end.free.append(piece.start)
            piece = _Piece(start, end)
        return piece

    def _atom(self) -> _Piece:
        char = self._next()
        if char == "(":
            return self._group()
        if char in "*+?":
            raise ValueError(f"the regular expression has a {char} with nothing before it")
        if char in "^$":
            state = _State(anchor=_BEGIN if char == "^" else _END)
            end = _State()
            state.free.append(end)
            return _Piece(state, end)
        if char == ".":
            return _one(lambda _: True)
        if char == "[":
            return _one(self._set())
        if char == "\\":
            char = self._next()
            if char in _CLASSES:
                return _one(_CLASSES[char])
        return _one(char.__eq__)

    def _group(self) -> _Piece:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("the regular expression nests parentheses too deeply")
        piece = self._alternatives()
        if self._peek() != ")":
            raise ValueError("the regular expression has a ( without a )")
        self._at += 1
        self._depth -= 1
        return piece

    def _set(self) -> Test:
        """Parse a bracket expression. A leading `]` is literal, as is a `-` at either end."""
        inverse = self._peek() == "^"
        self._at += inverse
        tests: list[Test] = []
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._next()
            if low == "\\":
                low = self._next()
                if low in _CLASSES:
                    tests.append(_CLASSES[low])
                    continue
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._next()
                if high < low:
                    raise ValueError(f"the regular expression contains the empty range {low}-{high}")
                tests.append(_between(low, high))
            else:
                tests.append(low.__eq__)
        self._at += 1
        return lambda char: any(test(char) for test in tests) != inverse


def _one(test: Test) -> _Piece:
    state, end = _State(test), _State()
    state.out = end
    return _Piece(state, end)


def _between(low: str, high: str) -> Test:
    return lambda char: low <= char <= high
