"""Measure the rate of a subscriber each way: more is offered than may pass, and what arrives is counted.

    with Crowd(host, HOST) as crowd:
        crowd.flood([Offer(fred, "down", 128), Offer(fred, "up", 128)])
        crowd.measure(10.0)  # {(fred, "down"): Rate(octets, seconds), ...}

Rates are in kbit/s of IP packets, headers included, as throttling counts them.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from time import monotonic
from types import TracebackType
from typing import Any, Self

import gevent
import gevent.socket

from tests.lab.netns import Namespace
from tests.lab.subscriber import Subscriber

HEADERS = 28  # IP and UDP
PORT = 7777
STEP = 0.01  # seconds between two bursts of a flood


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """Describe the load for one subscriber, one way, in packets of `size` octets."""

    subscriber: Subscriber
    way: str  # up, down
    rate: float
    size: int = 1000


Key = tuple[Subscriber, str]


class Crowd:
    """Exchange traffic between subscribers and a host beyond the server."""

    def __init__(self, host: Namespace, address: str) -> None:
        self._address = address
        with host.entered():
            self._socket = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.bind((address, PORT))
        self.octets: Counter[Key] = Counter()
        self._by_address: dict[str, Subscriber] = {}
        self._greenlets: list[Any] = [gevent.spawn(self._receive)]

    def flood(self, offers: Sequence[Offer]) -> None:
        """Send the offers from now on, until `quiet`."""
        for offer in offers:
            self._by_address[str(offer.subscriber.address)] = offer.subscriber
            offer.subscriber.on_ip = self._on_ip
        self._greenlets.append(gevent.spawn(self._send, list(offers)))

    def quiet(self) -> None:
        while len(self._greenlets) > 1:
            self._greenlets.pop().kill()

    def measure(self, seconds: float) -> dict[Key, float]:
        """Return the kbit/s that arrive in so many seconds from now. The exact duration, a little longer, counts."""
        before, begun = Counter(self.octets), monotonic()
        gevent.sleep(seconds)
        took = monotonic() - begun
        return {key: (self.octets[key] - before[key]) / 125 / took for key in self.octets}

    def close(self) -> None:
        gevent.killall(self._greenlets)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _send(self, offers: list[Offer]) -> None:
        """Send each offer as evenly as the clock allows."""
        begun = monotonic()
        sent = [0] * len(offers)
        data = bytes(65536)
        while True:
            due = monotonic() - begun
            for number, offer in enumerate(offers):
                while sent[number] < due * offer.rate * 125:
                    sent[number] += offer.size
                    payload = data[: offer.size - HEADERS]
                    if offer.way == "up":
                        offer.subscriber.send_udp(IPv4Address(self._address), PORT, payload, PORT)
                    else:
                        self._put(payload, (str(offer.subscriber.address), PORT))
            gevent.sleep(STEP)

    def _put(self, data: bytes, to: tuple[str, int]) -> None:
        try:
            self._socket.sendto(data, to)
        except OSError:
            pass  # an ICMP error of an earlier packet, or a full buffer: both count as loss

    def _receive(self) -> None:
        while True:
            try:
                data, (source, _) = self._socket.recvfrom(65536)
            except OSError:
                continue
            subscriber = self._by_address.get(source)
            if subscriber is not None:
                self.octets[subscriber, "up"] += len(data) + HEADERS

    def _on_ip(self, subscriber: Subscriber, packet: bytes) -> None:
        if packet[9] == socket.IPPROTO_UDP:
            self.octets[subscriber, "down"] += len(packet)
