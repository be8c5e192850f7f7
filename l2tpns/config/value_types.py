"""What a configuration variable is: its kind of value, default, help, when a change takes effect, what it affects.

A variable is declared once, in settings.py, by `setting()`. The parser of the configuration file, `set`,
`show running-config`, `write memory` and docs/configuration.md are loops over these declarations. Knows no variable by
name, reads no file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, Flag, auto
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any, Generic, TypeVar

from l2tpns.runtime.text import CONTROL, printable, quote
from l2tpns.runtime.text_file import is_utf_8

T = TypeVar("T")

_META = "setting"


class Effect(Enum):
    """When a change made with `set`, or by a reload, takes effect."""

    LIVE = "at once"
    NEW_SESSIONS = "for tunnels and sessions that begin after it"
    RESTART = "after a restart"


class Affects(Flag):
    """Which parts of the server keep a copy of a setting, and get a new one when it changes."""

    NO_COPY = 0
    RADIUS = auto()


class Kind(Generic[T]):
    """How a value is written, read and described. `parse` raises ValueError."""

    quoted = False
    octets = False  # whether a value may be octets that are not UTF-8

    def parse(self, text: str) -> T:
        raise NotImplementedError

    def text(self, value: T) -> str:
        """Return the value as the operator writes it, without quotes; `parse(text(value)) == value`."""
        return str(value)

    def secrets(self, value: T) -> tuple[str, ...]:
        """Return what no log line may show of the value of a secret variable."""
        return (self.text(value),) if value else ()

    def expected(self) -> str:
        """Return what a correct value is, to follow `must be`."""
        raise NotImplementedError

    def brief(self) -> str:
        """Return the same for a table."""
        return self.expected()


class Bool(Kind[bool]):
    """yes or no. l2tpns 1.1 took every other word for no, also a misspelt yes: here it is an error."""

    def parse(self, text: str) -> bool:
        word = text.lower()
        if word in ("yes", "true", "1"):
            return True
        if word in ("no", "false", "0"):
            return False
        raise ValueError

    def text(self, value: bool) -> str:
        return "yes" if value else "no"

    def expected(self) -> str:
        return "yes, true or 1; or no, false or 0"

    def brief(self) -> str:
        return "yes or no"


class Integer(Kind[int]):
    """A whole number within a range; `clamp` brings a value outside into it, as older servers did."""

    def __init__(self, minimum: int, maximum: int, unit: str = "", clamp: bool = False) -> None:
        self.minimum, self.maximum, self.unit, self.clamp = minimum, maximum, unit, clamp

    def parse(self, text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text, re.ASCII):
            raise ValueError
        value = int(text)
        if self.clamp:
            return min(max(value, self.minimum), self.maximum)
        if not self.minimum <= value <= self.maximum:
            raise ValueError
        return value

    def expected(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        outside = "; a number outside is brought into it" if self.clamp else ""
        return f"a whole number from {self.minimum} to {self.maximum}{unit}{outside}"

    def brief(self) -> str:
        return f"{self.minimum} to {self.maximum} {self.unit}".rstrip()


class Address(Kind[IPv4Address | None]):
    """An IPv4 address. 0.0.0.0 means none, as in older servers, and is None here."""

    def parse(self, text: str) -> IPv4Address | None:
        return _address(text) if text != "0.0.0.0" else None

    def text(self, value: IPv4Address | None) -> str:
        return str(value) if value is not None else "0.0.0.0"

    def expected(self) -> str:
        return "an IPv4 address such as 192.0.2.1, or 0.0.0.0 for none"

    def brief(self) -> str:
        return "an IPv4 address"


class Addresses(Kind[tuple[IPv4Address, ...]]):
    """IPv4 addresses, separated by commas."""

    quoted = True

    def parse(self, text: str) -> tuple[IPv4Address, ...]:
        return tuple(_address(word) for word in _split(text))

    def text(self, value: tuple[IPv4Address, ...]) -> str:
        return ",".join(map(str, value))

    def expected(self) -> str:
        return 'IPv4 addresses separated by commas, such as "192.0.2.1,192.0.2.2"'


class Networks(Kind[tuple[IPv4Network, ...]]):
    """IPv4 networks, separated by commas."""

    quoted = True

    def parse(self, text: str) -> tuple[IPv4Network, ...]:
        return tuple(IPv4Network(word) for word in _split(text))

    def text(self, value: tuple[IPv4Network, ...]) -> str:
        return ",".join(map(str, value))

    def expected(self) -> str:
        return 'IPv4 networks separated by commas, such as "192.0.2.128/25,198.51.100.0/24"'


class Text(Kind[str]):
    """Any text of one line. Octets that are not UTF-8 are kept (surrogateescape), because a secret is octets."""

    quoted = True

    def __init__(self, maximum: int = 255, pattern: str = "", example: str = "", octets: bool = True) -> None:
        self.maximum, self.pattern, self.example, self.octets = maximum, pattern, example, octets

    def parse(self, text: str) -> str:
        if CONTROL.search(text) or len(text.encode("utf-8", "surrogateescape")) > self.maximum:
            raise ValueError
        if self.pattern and text and not re.fullmatch(self.pattern, text, re.ASCII):
            raise ValueError
        return text

    def expected(self) -> str:
        what = self.example or "text without control characters"
        return f"{what} (at most {self.maximum} octets)"


class User(Kind[str]):
    """A user of this machine: a number, or a name as useradd(8) takes it. The start checks that it exists."""

    def parse(self, text: str) -> str:
        if not re.fullmatch(r"[0-9]{1,10}|[a-z_][a-z0-9_-]{0,31}", text, re.ASCII):
            raise ValueError
        if text.isdigit() and int(text) >= 2**32 - 1:  # (uid_t)-1 means "unchanged" in setresuid(2)
            raise ValueError
        return str(int(text)) if text.isdigit() else text

    def expected(self) -> str:
        return "a user id or the name of a user"


class Words(Kind[tuple[str, ...]]):
    """Names, separated by commas."""

    quoted = True

    def __init__(self, choices: tuple[str, ...] = (), minimum: int = 0) -> None:
        self.choices, self.minimum = choices, minimum

    def parse(self, text: str) -> tuple[str, ...]:
        words = _split(text.lower() if self.choices else text)
        if self.choices and not set(words) <= set(self.choices):
            raise ValueError
        if len(words) < self.minimum or len(set(words)) != len(words) or CONTROL.search(text):
            raise ValueError
        return words

    def text(self, value: tuple[str, ...]) -> str:
        return ",".join(value)

    def expected(self) -> str:
        among = f", each one of {', '.join(self.choices)}" if self.choices else ""
        return f"names separated by commas{among}, none of them twice"


Clients = tuple[tuple[IPv4Network, str], ...]


class SecretsOfClients(Kind[Clients]):
    """Addresses or networks, each with a secret: `192.0.2.10 SECRET`, separated by commas."""

    quoted = True
    octets = True

    def parse(self, text: str) -> Clients:
        pairs = (word.partition(" ") for word in _split(text))
        clients = [(IPv4Network(address), secret.strip()) for address, _, secret in pairs]
        if CONTROL.search(text) or not all(secret for _, secret in clients):
            raise ValueError
        return tuple(clients)

    def text(self, value: Clients) -> str:
        return ",".join(f"{network.with_prefixlen.removesuffix('/32')} {secret}" for network, secret in value)

    def secrets(self, value: Clients) -> tuple[str, ...]:
        return tuple(secret for _, secret in value)

    def expected(self) -> str:
        return 'addresses or networks, each with its secret, such as "192.0.2.10 SECRET,198.51.100.0/24 ANOTHER"'

    def brief(self) -> str:
        return "addresses or networks with their secrets"


class Choice(Kind[str]):
    """One of a few words."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def parse(self, text: str) -> str:
        if text.lower() not in self.choices:
            raise ValueError
        return text.lower()

    def expected(self) -> str:
        return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"


@dataclass(frozen=True, slots=True)
class Setting:
    """One variable, as declared."""

    name: str
    kind: Kind[Any]
    default: Any
    help: str
    effect: Effect
    pending: str
    secret: bool
    affects: Affects = Affects.NO_COPY
    lac: bool = False  # may have another value in the profile of a LAC

    @property
    def help_with_default(self) -> str:
        """Return the help, with the default in brackets unless the help has it."""
        default = self.kind.text(self.default)
        return self.help if "(default:" in self.help or not default else f"{self.help} (default: {default})"

    def parse(self, text: str) -> Any:
        """Return the value of `text`. Raises ValueError with the variable and what a correct value is."""
        if not self.kind.octets and not is_utf_8(text):
            raise ValueError(f'{self.name}: "{printable(text)}" is not UTF-8, which this variable must be')
        try:
            return self.kind.parse(text)
        except ValueError:
            # The text of a secret is never in a message: messages are logged.
            given = "this value" if self.secret else f'"{printable(text)}"'
            raise ValueError(f"{self.name}: {given} will not do: it must be {self.kind.expected()}") from None

    def line(self, value: Any) -> str:
        """Return `set NAME VALUE`, which parses back to the same value."""
        text = self.kind.text(value)
        return f"set {self.name} {quote(text) if self.kind.quoted else text}"


def setting(
    default: T,
    help: str,
    kind: Kind[T],
    effect: Effect = Effect.LIVE,
    *,
    pending: str = "",
    secret: bool = False,
    affects: Affects = Affects.NO_COPY,
    lac: bool = False,
) -> T:
    """Declare a variable as the field of a dataclass.

    `pending` says why a variable is accepted and kept but has no effect yet, for a warning. `affects` names the
    parts of the server that keep a copy. With `lac` the profile of a LAC may have another value.
    """
    metadata = {_META: (kind, help, effect, pending, secret, affects, lac)}
    return dataclasses.field(default=default, metadata=metadata)


def declared(owner: type) -> Iterator[Setting]:
    """Yield the variables that a dataclass declares, in order."""
    for field in dataclasses.fields(owner):
        if _META in field.metadata:
            kind, help, effect, pending, secret, affects, lac = field.metadata[_META]
            yield Setting(field.name, kind, field.default, help, effect, pending, secret, affects, lac)


def _split(text: str) -> tuple[str, ...]:
    """Return the words between commas. Raises ValueError for an empty word among others."""
    if not text.strip():
        return ()
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise ValueError
    return words


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise ValueError from None
