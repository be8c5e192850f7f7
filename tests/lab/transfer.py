"""Check a TCP transfer between two namespaces: what arrives has the digest of what was sent.

    took = transfer(lac, "10.1.0.2", host, "198.51.100.2", octets=8_000_000)

Ordinary kernel TCP on both ends; the receiver answers with the digest, so the way back is used as well.
"""

from __future__ import annotations

import hashlib
import random
import socket
import time
from contextlib import suppress
from threading import Thread

from tests.lab.netns import Namespace

CHUNK = 1 << 16


class Corrupted(AssertionError):
    """Report that the received data is not the data sent."""


def transfer(
    sender: Namespace, source: str, receiver: Namespace, target: str, *, octets: int, timeout: float = 30.0
) -> float:
    """Send pseudo-random octets. Return the seconds until the receiver's digest came. Raises Corrupted or OSError."""
    data = random.Random(octets).randbytes(octets)
    with (
        receiver.socket(kind=socket.SOCK_STREAM) as listener,
        sender.socket(kind=socket.SOCK_STREAM) as sending,
    ):
        listener.settimeout(timeout)
        listener.bind((target, 0))
        listener.listen(1)
        thread = Thread(target=_receive, args=(listener, timeout), daemon=True)
        thread.start()
        begun = time.monotonic()
        sending.settimeout(timeout)
        sending.bind((source, 0))
        sending.connect(listener.getsockname())
        sending.sendall(data)
        sending.shutdown(socket.SHUT_WR)
        digest = b""
        while more := sending.recv(CHUNK):
            digest += more
        took = time.monotonic() - begun
        thread.join(timeout)
    if digest != hashlib.sha256(data).digest():
        raise Corrupted(f"{octets} octets from {source} to {target} arrived changed")
    return took


def _receive(listener: socket.socket, timeout: float) -> None:
    digest = hashlib.sha256()
    with suppress(OSError), listener.accept()[0] as receiving:  # the sender raises the error
        receiving.settimeout(timeout)
        while chunk := receiving.recv(CHUNK):
            digest.update(chunk)
        receiving.sendall(digest.digest())
