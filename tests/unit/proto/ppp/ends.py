"""Two ends of a PPP link in memory: packets are lost by their number, time is a number that jumps to the next timer."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection
from ipaddress import IPv4Address
from typing import Generic, TypeVar

from l2tpns.proto.ppp.automaton import Timers
from l2tpns.proto.ppp.frame import build_packet
from l2tpns.proto.ppp.ipcp import UNSPECIFIED, Ipcp, IpcpPolicy
from l2tpns.proto.ppp.lcp import Lcp, LcpWishes
from l2tpns.proto.ppp.negotiation import ControlProtocol, Notice
from l2tpns.proto.ppp.pap import PapCode

Protocol = TypeVar("Protocol", bound=ControlProtocol)


def octets(text: str) -> bytes:
    """Hex with comments: what follows a # on a line is for the reader."""
    return bytes.fromhex("".join(line.split("#")[0] for line in text.splitlines()))


def chance(seed: int = 1) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


class End(Generic[Protocol]):
    """An automaton with what it has sent and told since it was last asked."""

    def __init__(self, make: Callable[[Callable[[bytes], None], Callable[[Notice], None]], Protocol]) -> None:
        self.sent: list[bytes] = []
        self.notices: list[Notice] = []
        self.it = make(self.sent.append, self.notices.append)

    def start(self, now: float = 0.0) -> bytes:
        """Open on a layer that is up; returns the first Configure-Request."""
        self.it.open(now)
        self.it.lower_up(now)
        self.notices.clear()
        (request,) = self.take()
        return request

    def take(self) -> list[bytes]:
        taken = list(self.sent)
        self.sent.clear()
        return taken

    def told(self) -> list[Notice]:
        told = list(self.notices)
        self.notices.clear()
        return told

    def gets(self, text: str | bytes, now: float = 0.0) -> list[bytes]:
        """What it sends in answer to a packet."""
        self.it.receive(octets(text) if isinstance(text, str) else text, now)
        return self.take()


def lcp_end(wishes: LcpWishes | None = None, seed: int = 1, timers: Timers | None = None) -> End[Lcp]:
    wishes = wishes or LcpWishes()
    return End(lambda send, notify: Lcp(send, notify, chance(seed), timers or Timers(), wishes))


def ipcp_end(policy: IpcpPolicy, timers: Timers | None = None) -> End[Ipcp]:
    return End(lambda send, notify: Ipcp(send, notify, chance(), timers or Timers(), policy))


def opened_lcp(wishes: LcpWishes | None = None, peer_options: str = "") -> End[Lcp]:
    """An open link whose peer, identifiers 70 and on, has asked for these options."""
    end = lcp_end(wishes)
    request = end.start()
    end.gets(b"\x02" + request[1:])  # its Configure-Ack
    options = octets(peer_options)
    end.gets(bytes((1, 0x70, 0, 4 + len(options))) + options)
    assert end.it.opened
    end.told()
    return end


SERVER_POLICY = IpcpPolicy(
    local=IPv4Address("10.0.0.1"),
    peer=IPv4Address("10.0.0.77"),
    dns=(IPv4Address("192.0.2.53"), IPv4Address("192.0.2.54")),
)
CLIENT_POLICY = IpcpPolicy(local=IPv4Address("0.0.0.0"), peer=None, ask_dns=True)


def dns_learned(client: Ipcp) -> tuple[IPv4Address, ...]:
    """Return the name servers that a client of CLIENT_POLICY was told."""
    return tuple(address for address in client._dns if address != UNSPECIFIED)


def build_request(identifier: int, name: bytes, password: bytes) -> bytes:
    """Return a client's PAP Authenticate-Request (RFC 1334 2.2.1)."""
    return build_packet(PapCode.REQUEST, identifier, bytes((len(name),)) + name + bytes((len(password),)) + password)


def negotiate(
    one: End[Protocol], other: End[Protocol], lose: Collection[int] = (), begin: float = 0.0, end: float = 600.0
) -> float:
    """Carry packets both ways until nothing moves; the packets with the numbers in `lose` do not arrive.

    Returns the time at which the last timer ran out.
    """
    number = 0
    now = begin
    queue: deque[tuple[End[Protocol], bytes]] = deque()
    while now <= end:
        for sender, receiver in ((one, other), (other, one)):
            for packet in sender.take():
                if number not in lose:
                    queue.append((receiver, packet))
                number += 1
        if queue:
            receiver, packet = queue.popleft()
            receiver.it.receive(packet, now)
            continue
        deadlines = [side.it.deadline for side in (one, other) if side.it.deadline is not None]
        if not deadlines:
            return now
        now = min(deadlines)
        one.it.timeout(now)
        other.it.timeout(now)
    raise AssertionError("the two ends come to no end")
