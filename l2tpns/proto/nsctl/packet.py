"""The packets of nsctl: 0x9012 of l2tpns 1.1 and 0x9013 of 2.x (docs/nsctl.md has them as tables).

seal.py authenticates them; nsctl/server.py and the plugins carry out the commands.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import ClassVar

from l2tpns.errors import WireError

PORT = 1702
MAX_PACKET = 4096  # octets of a packet of 2.x
MAX_OLD_PACKET = 1400  # octets, the buffer of the client of 1.1
# The text of an ERROR begins so if no plugin knows the command: neither format has a field for that.
UNKNOWN_COMMAND = "unknown command"
NOT_AUTHORISED = "not authorised"

OLD_MAGIC = 0x9012
MAGIC = 0x9013
_OLD_HEADER = struct.Struct("!HHHI")  # magic, type, length of everything, id
_HEADER = struct.Struct("!HBB")  # magic, type, number of arguments
_TERMINATOR = 0xFF
_MAX_ARGUMENT = 255
_MAX_LINE = 254  # octets of a line of an answer: a client might mistake a length of 255 for the terminator
_MAX_ARGUMENTS = 255
_CUT = b"..."


class Verb(Enum):
    """The kind of a command, by the words of the client of 2.x. CONTROL is every command of a plugin."""

    LOAD = "load_plugin"
    UNLOAD = "unload_plugin"
    HELP = "help"
    CONTROL = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A command in either format. Octets that are not UTF-8 are preserved (surrogateescape)."""

    verb: Verb
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, words: Sequence[str]) -> Request:
        """Return the request of a command line."""
        if words and words[0] and words[0] in (verb.value for verb in Verb):
            return cls(Verb(words[0]), tuple(words[1:]))
        return cls(Verb.CONTROL, tuple(words))

    @property
    def name(self) -> str:
        """The first word of the command."""
        return self.verb.value or (self.words[0] if self.words else "")

    def __str__(self) -> str:
        return " ".join(filter(None, (self.verb.value, *self.words)))


class Malformed(WireError):
    """A packet that cannot be read. `packet` is what can be answered, if its header is readable."""

    def __init__(self, text: str, packet: AnyPacket | None = None) -> None:
        super().__init__(text)
        self.packet = packet


class OldType(IntEnum):
    """Types of 0x9012."""

    OK = 1
    ERROR = 2
    LOAD_PLUGIN = 5
    UNLOAD_PLUGIN = 6
    GARDEN = 1000
    UNGARDEN = 1001


@dataclass(frozen=True, slots=True)
class OldPacket:
    """A packet of 0x9012."""

    type: int
    id: int
    strings: tuple[bytes, ...] = ()

    @property
    def is_answer(self) -> bool:
        return self.type in (OldType.OK, OldType.ERROR)

    def request(self) -> Request:
        words = tuple(_text(string) for string in self.strings)
        match self.type:
            case OldType.LOAD_PLUGIN:
                return Request(Verb.LOAD, words)
            case OldType.UNLOAD_PLUGIN:
                return Request(Verb.UNLOAD, words)
            case OldType.GARDEN | OldType.UNGARDEN:
                return Request(Verb.CONTROL, (OldType(self.type).name.lower(), *words))
        raise Malformed(f"unknown request type {self.type}", self)

    def answer(self, ok: bool, text: str) -> OldPacket:
        """Return the answer to this request, cut to the size that the client of 1.1 can receive."""
        octets = _octets(text).replace(b"\0", b" ")
        room = MAX_OLD_PACKET - _OLD_HEADER.size - 1
        if len(octets) > room:
            octets = next(_pieces(octets, room - len(_CUT))) + _CUT
        return OldPacket(OldType.OK if ok else OldType.ERROR, self.id, (octets,))

    def encode(self) -> bytes:
        body = b"".join(string + b"\0" for string in self.strings)
        return _OLD_HEADER.pack(OLD_MAGIC, self.type, _OLD_HEADER.size + len(body), self.id) + body


class Type(IntEnum):
    """Types of 0x9013."""

    LOAD = 0x11
    UNLOAD = 0x12
    HELP = 0x13
    CONTROL = 0x14
    OK = 0x21
    ERROR = 0x22


_VERBS = {Type.LOAD: Verb.LOAD, Type.UNLOAD: Verb.UNLOAD, Type.HELP: Verb.HELP, Type.CONTROL: Verb.CONTROL}


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet of 0x9013. In an answer each argument is a line of the text."""

    type: int
    arguments: tuple[bytes, ...] = ()
    id: ClassVar[int] = 0  # this format has none

    @classmethod
    def asking(cls, request: Request) -> Packet:
        """Return the packet of a request."""
        type = next(type for type, verb in _VERBS.items() if verb is request.verb)
        return cls(type, tuple(_octets(word) for word in request.words))

    @property
    def is_answer(self) -> bool:
        return self.type in (Type.OK, Type.ERROR)

    @property
    def text(self) -> str:
        return "\n".join(_text(argument) for argument in self.arguments)

    def request(self) -> Request:
        if self.type not in _VERBS:
            raise Malformed(f"unknown request type 0x{self.type:02x}", self)
        return Request(_VERBS[Type(self.type)], tuple(_text(argument) for argument in self.arguments))

    def answer(self, ok: bool, text: str) -> Packet:
        """Return the answer to this request, cut to MAX_PACKET. A line longer than an argument becomes several."""
        arguments: list[bytes] = []
        room = MAX_PACKET - _HEADER.size - 1 - (1 + len(_CUT))
        for line in _octets(text).split(b"\n") if text else ():
            for piece in _pieces(line, _MAX_LINE):
                room -= 1 + len(piece)
                if room < 0 or len(arguments) == _MAX_ARGUMENTS - 1:
                    return Packet(Type.OK if ok else Type.ERROR, (*arguments, _CUT))
                arguments.append(piece)
        return Packet(Type.OK if ok else Type.ERROR, tuple(arguments))

    def encode(self) -> bytes:
        """Return the packet as octets. Raises WireError if the arguments are too many or too long."""
        if len(self.arguments) > _MAX_ARGUMENTS or any(len(word) > _MAX_ARGUMENT for word in self.arguments):
            raise WireError(f"at most {_MAX_ARGUMENTS} words of {_MAX_ARGUMENT} octets")
        body = b"".join(bytes((len(argument),)) + argument for argument in self.arguments)
        octets = _HEADER.pack(MAGIC, self.type, len(self.arguments)) + body + bytes((_TERMINATOR,))
        if len(octets) > MAX_PACKET:
            raise WireError(f"{len(octets)} octets; {MAX_PACKET} are the most")
        return octets


AnyPacket = OldPacket | Packet


def decode(octets: bytes) -> AnyPacket:
    """Return a packet of either format. Raises Malformed."""
    if len(octets) >= _OLD_HEADER.size and octets[:2] == OLD_MAGIC.to_bytes(2, "big"):
        return _decode_old(octets)
    if len(octets) >= _HEADER.size and octets[:2] == MAGIC.to_bytes(2, "big"):
        return _decode_new(octets)
    raise Malformed("no packet of nsctl")


def _decode_old(octets: bytes) -> OldPacket:
    _, type, length, id = _OLD_HEADER.unpack_from(octets)
    bare = OldPacket(type, id)
    if length != len(octets):
        raise Malformed(f"{len(octets)} octets, of which the header says {length}", bare)
    if length > MAX_OLD_PACKET:
        raise Malformed(f"{length} octets; {MAX_OLD_PACKET} are the most", bare)
    *strings, rest = octets[_OLD_HEADER.size :].split(b"\0")
    if rest:
        raise Malformed("the last string has no end", bare)
    return OldPacket(type, id, tuple(strings))


def _decode_new(octets: bytes) -> Packet:
    _, type, count = _HEADER.unpack_from(octets)
    bare = Packet(type)
    if len(octets) > MAX_PACKET:
        raise Malformed(f"{len(octets)} octets; {MAX_PACKET} are the most", bare)
    arguments: list[bytes] = []
    position = _HEADER.size
    for _ in range(count):
        end = position + 1 + octets[position] if position < len(octets) else len(octets) + 1
        if end > len(octets):
            raise Malformed(f"{count} arguments announced, {len(arguments)} there", bare)
        arguments.append(octets[position + 1 : end])
        position = end
    if octets[position:] != bytes((_TERMINATOR,)):
        raise Malformed(f"{count} arguments announced, and 0xFF does not follow them as the last octet", bare)
    return Packet(type, tuple(arguments))


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def _octets(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, which no octets decode to
        return text.encode("utf-8", "backslashreplace")


def _pieces(octets: bytes, longest: int) -> Iterator[bytes]:
    """Yield pieces of at most `longest` octets, at least one, not cut inside a UTF-8 character."""
    while len(octets) > longest:
        end = longest
        while end > longest - 4 and octets[end] & 0xC0 == 0x80:
            end -= 1
        yield octets[:end]
        octets = octets[end:]
    yield octets
