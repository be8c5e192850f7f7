"""Packet filters: named access lists, in the language of 2.4.1's startup-config(5), and their verdict on a packet.

    ip access-list standard|extended NAME
     permit|deny SOURCE [DESTINATION]                                          standard
     permit|deny ip|tcp|udp|icmp SOURCE [PORTS] DESTINATION [PORTS] [FLAGS]    extended

The first rule that matches decides; a packet that none matches is dropped. Stateless: `established` looks at the TCP
flags only. policy/filters.py assigns filters to sessions.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address

from l2tpns.errors import ConfigError
from l2tpns.runtime.text import printable

ALL = 0xFFFFFFFF
ICMP, TCP, UDP = 1, 6, 17
PROTOCOLS = {"ip": None, "tcp": TCP, "udp": UDP, "icmp": ICMP}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
FIN, SYN, RST, PSH, ACK, URG = (1 << bit for bit in range(6))  # RFC 9293 3.1
FLAG_BITS = {"fin": FIN, "syn": SYN, "rst": RST, "psh": PSH, "ack": ACK, "urg": URG}
ANY_FLAG, ALL_FLAGS, ESTABLISHED = "match-any", "match-all", "established"

_IP = struct.Struct("!6xHxBxxII")  # flags and fragment offset, protocol, source, destination
_OFFSET = 0x1FFF
_PORTS = struct.Struct("!HH")
_FLAGS_AT = 13  # of a TCP header
_NAME = re.compile(r"[A-Za-z0-9_.:+@/=-]{1,64}")


@dataclass(frozen=True, slots=True)
class Hosts:
    """Addresses that are equal to `address` in the bits of `mask`; its other bits are zero."""

    address: int = 0
    mask: int = 0

    @classmethod
    def matching(cls, address: int, wildcard: int) -> Hosts:
        """Return the hosts of a rule: the bits of `wildcard` do not matter."""
        mask = ALL & ~wildcard
        return cls(address & mask, mask)

    def __str__(self) -> str:
        if self.mask == 0:
            return "any"
        if self.mask == ALL:
            return f"host {IPv4Address(self.address)}"
        return f"{IPv4Address(self.address)} {IPv4Address(ALL & ~self.mask)}"


@dataclass(frozen=True, slots=True)
class Ports:
    """`operator` is eq, neq, lt, gt or range, as written; `last` is `first` in all but the last."""

    operator: str
    first: int
    last: int

    def holds(self, port: int) -> bool:
        match self.operator:
            case "neq":
                return port != self.first
            case "lt":
                return port < self.first
            case "gt":
                return port > self.first
            case _:
                return self.first <= port <= self.last

    def __str__(self) -> str:
        return f"{self.operator} {self.first}" + (f" {self.last}" if self.operator == "range" else "")


@dataclass(frozen=True, slots=True)
class Flags:
    """What the TCP flags must be: `match` says whether any or all of those in `on` are set and in `off` clear."""

    match: str
    on: int = 0
    off: int = 0

    def holds(self, flags: int) -> bool:
        if self.match == ESTABLISHED:
            return flags & (ACK | RST) != 0 and not flags & SYN
        if self.match == ALL_FLAGS:
            return flags & (self.on | self.off) == self.on
        return flags & self.on != 0 or ~flags & self.off != 0

    def __str__(self) -> str:
        named = [f"+{name}" for name, bit in FLAG_BITS.items() if bit & self.on]
        named += [f"-{name}" for name, bit in FLAG_BITS.items() if bit & self.off]
        return " ".join([self.match, *named])


@dataclass(frozen=True, slots=True)
class Rule:
    """One `permit` or `deny` line. `protocol` None is `ip`."""

    permit: bool
    source: Hosts = Hosts()
    destination: Hosts = Hosts()
    protocol: int | None = None
    source_ports: Ports | None = None
    destination_ports: Ports | None = None
    flags: Flags | None = None
    fragments: bool = False

    @property
    def looks_deeper(self) -> bool:
        """Return whether the rule looks at octets behind the IP header, which only the first fragment has."""
        return self.source_ports is not None or self.destination_ports is not None or self.flags is not None

    def needs(self) -> int:
        """Return how many octets behind the IP header the rule looks at."""
        return _FLAGS_AT + 1 if self.flags is not None else _PORTS.size

    def holds_deeper(self, packet: bytes, start: int) -> bool:
        """Return whether ports and flags match, in a packet that has them."""
        source, destination = _PORTS.unpack_from(packet, start)
        return (
            (self.source_ports is None or self.source_ports.holds(source))
            and (self.destination_ports is None or self.destination_ports.holds(destination))
            and (self.flags is None or self.flags.holds(packet[start + _FLAGS_AT]))
        )

    def text(self, extended: bool) -> str:
        """Return the line, which parse_rule reads back."""
        words: list[object] = ["permit" if self.permit else "deny"]
        if not extended:
            words += [self.source] if self.destination == Hosts() else [self.source, self.destination]
            return " ".join(map(str, words))
        words += [PROTOCOL_NAMES[self.protocol], self.source, self.source_ports]
        words += [self.destination, self.destination_ports, self.flags, "fragments" if self.fragments else None]
        return " ".join(str(word) for word in words if word is not None)


@dataclass(frozen=True, slots=True)
class AccessList:
    """A named filter."""

    name: str
    extended: bool
    rules: tuple[Rule, ...] = ()

    def permits(self, packet: bytes) -> bool:
        """Return the verdict on a whole IPv4 packet. One that is malformed or too short to judge is not permitted."""
        if len(packet) < 20 or packet[0] >> 4 != 4:
            return False
        offset, protocol, source, destination = _IP.unpack_from(packet)
        offset &= _OFFSET
        if offset == 1 and protocol == TCP:
            return False  # RFC 1858 3.2.2: it could overwrite the flags of the first fragment
        for rule in self.rules:
            if (
                source & rule.source.mask != rule.source.address
                or destination & rule.destination.mask != rule.destination.address
                or (rule.protocol is not None and rule.protocol != protocol)
            ):
                continue
            if offset:
                # Only the first fragment has ports, and without it the others are useless: so a permit applies to them
                # too, and a deny leaves them to the rules that follow.
                if rule.permit or not rule.looks_deeper:
                    return rule.permit
            elif rule.looks_deeper:
                start = (packet[0] & 0x0F) << 2
                if start < 20 or len(packet) < start + rule.needs():
                    return False  # RFC 1858 3.2.1: too short to be judged is too short to pass
                if rule.holds_deeper(packet, start):
                    return rule.permit
            elif not rule.fragments:
                return rule.permit
        return False

    def plus(self, rule: Rule) -> AccessList:
        """Return the list with this rule at its end."""
        return replace(self, rules=(*self.rules, rule))

    def minus(self, rule: Rule) -> AccessList:
        """Return the list without rules equal to this one."""
        return replace(self, rules=tuple(other for other in self.rules if other != rule))

    def lines(self) -> list[str]:
        """Return the block in the configuration, which reads back to the same."""
        head = f"ip access-list {'extended' if self.extended else 'standard'} {self.name}"
        return [head, *(f" {rule.text(self.extended)}" for rule in self.rules)]


# Reading


def parse_head(words: Sequence[str]) -> tuple[str, bool]:
    """Parse what follows `ip access-list`. Return the name, and True for an extended list. Raises ConfigError."""
    if len(words) != 2 or words[0] not in ("standard", "extended"):
        raise ConfigError("Usage: ip access-list standard|extended NAME")
    if not _NAME.fullmatch(words[1]):
        what = "it must be at most 64 letters, digits and _ . : + @ / = -"
        raise ConfigError(f'"{printable(words[1])}" is not the name of an access-list: {what}')
    return words[1], words[0] == "extended"


def parse_rule(words: Sequence[str], extended: bool) -> Rule:
    """Parse a `permit` or `deny` line. Raises ConfigError with what is expected, and where."""
    line = _Line(words)
    permit = line.choose("permit", "deny") == "permit"
    if not extended:
        source = line.hosts()
        destination = Hosts() if line.is_over else line.hosts()
        line.end("a standard list knows a source and a destination only")
        return Rule(permit, source, destination)
    protocol = PROTOCOLS[line.choose(*PROTOCOLS)]
    source = line.hosts()
    source_ports = line.ports(protocol)
    destination = line.hosts()
    destination_ports = line.ports(protocol)
    flags = line.flags() if protocol == TCP else None
    rule = Rule(permit, source, destination, protocol, source_ports, destination_ports, flags)
    if line.next == "fragments" and not rule.looks_deeper:
        line.take()
        rule = Rule(permit, source, destination, protocol, fragments=True)
    line.end("only tcp and udp have ports, only tcp has flags, and fragments goes with neither")
    return rule


class _Line:
    """The words of a line, taken one after the other."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._at = 0

    @property
    def next(self) -> str:
        return "" if self.is_over else self._words[self._at].lower()

    @property
    def is_over(self) -> bool:
        return self._at >= len(self._words)

    def take(self) -> str:
        word = self.next
        self._at += 1
        return word

    def wrong(self, expected: str) -> ConfigError:
        """Return an error about the next word."""
        before = printable(" ".join(self._words[: self._at]))
        given = "the line ends" if self.is_over else f'"{printable(self._words[self._at])}" will not do'
        return ConfigError(f"after `{before}`: {given}: it must be {expected}" if before else f"{given}: {expected}")

    def end(self, hint: str) -> None:
        if not self.is_over:
            raise self.wrong(f"the end of the line: {hint}")

    def choose(self, *words: str) -> str:
        if self.next not in words:
            raise self.wrong(f"{', '.join(words[:-1])} or {words[-1]}")
        return self.take()

    def hosts(self) -> Hosts:
        expected = "any, host ADDRESS or ADDRESS WILDCARD"
        if self.next == "any":
            self.take()
            return Hosts()
        if self.next == "host":
            self.take()
            return Hosts(self._address("an IPv4 address such as 192.0.2.1"), ALL)
        address = self._address(expected)
        return Hosts.matching(address, self._address("a wildcard such as 0.0.0.255, whose bits do not matter"))

    def _address(self, expected: str) -> int:
        try:
            address = int(IPv4Address(self.next))
        except AddressValueError:
            raise self.wrong(expected) from None
        self.take()
        return address

    def ports(self, protocol: int | None) -> Ports | None:
        if protocol not in (TCP, UDP) or self.next not in ("eq", "neq", "lt", "gt", "range"):
            return None
        operator = self.take()
        first = self._port(0)
        return Ports(operator, first, self._port(first) if operator == "range" else first)

    def _port(self, lowest: int) -> int:
        if not re.fullmatch("[0-9]{1,5}", self.next, re.ASCII) or not lowest <= int(self.next) <= 65535:
            raise self.wrong(f"a port number from {lowest} to 65535")
        return int(self.take())

    def flags(self) -> Flags | None:
        if self.next == ESTABLISHED:
            return Flags(self.take())
        if self.next not in (ANY_FLAG, ALL_FLAGS):
            return None
        match = self.take()
        bits = {"+": 0, "-": 0}
        while not (bits["+"] or bits["-"]) or not self.is_over:
            sign, bit = self.next[:1], FLAG_BITS.get(self.next[1:])
            if sign not in bits or sign == "" or bit is None or bit & (bits["+"] | bits["-"]):
                raise self.wrong(f"+ or - and one of {', '.join(FLAG_BITS)}, each at most once")
            bits[sign] |= bit
            self.take()
        return Flags(match, bits["+"], bits["-"])
