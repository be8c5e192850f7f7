"""What tests of a subscriber's PPP share: an ear on the line, and words put into the client's mouth."""

from __future__ import annotations

import pytest

from tests.lab.lac import Refused, Subscriber, Why


class Ear:
    """Every PPP packet that a subscriber and the server send each other."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.heard: list[tuple[str, int, bytes]] = []
        self.deaf_to: tuple[int, ...] = ()  # protocols of which the client sends nothing
        subscriber.on_frame = self

    def __call__(self, way: str, protocol: int, packet: bytes) -> bytes | None:
        if way == "out" and protocol in self.deaf_to:
            return None
        self.heard.append((way, protocol, packet))
        return packet

    def of(self, way: str, protocol: int, *codes: int) -> list[bytes]:
        return [p for w, proto, p in self.heard if (w, proto) == (way, protocol) and (not codes or p[0] in codes)]


def say(subscriber: Subscriber, *words: str) -> None:
    """Send a frame from its address field on."""
    subscriber.send_ppp(bytes.fromhex("".join(words)))


def refused(subscriber: Subscriber) -> tuple[int, int]:
    """Result and error of the CDN by which the server ends this call."""
    with pytest.raises(Refused) as caught:
        subscriber.wait_online()
    assert caught.value.ended.why is Why.CDN
    return caught.value.ended.result, caught.value.ended.error
