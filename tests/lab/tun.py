"""Give a subscriber a network device: ordinary programs (ping, iperf3, curl) run through the call.

    with TunLink(fred.wait_online()) as link:
        subprocess.run(["curl", "--interface", link.name, "http://198.51.100.2/"])

The device appears in the network namespace of this process, with the address that IPCP gave. Packets from that address
take the device by a rule of their own, so that many subscribers share one namespace; nothing else is rerouted unless
`routes` are given. Needs root.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import gevent
from gevent import get_hub

from tests.lab.pppwishes import Phase
from tests.lab.subscriber import Subscriber

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
READ = 1
DRAIN = 16
FIRST_TABLE = 20_000  # routing tables from here on, by the device's index


class TunLink:
    """Provide the device, up while the object is open and the call lasts."""

    def __init__(
        self, subscriber: Subscriber, name: str = "tun%d", *, mtu: int | None = None, routes: Sequence[str] = ()
    ) -> None:
        self.subscriber = subscriber
        self.address = str(subscriber.address)
        self.descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        answer = fcntl.ioctl(self.descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        self.name = answer[:16].rstrip(b"\0").decode()
        self.undelivered = 0
        self.closed = False
        self._watcher = get_hub().loop.io(self.descriptor, READ)
        self._greenlet = gevent.spawn(self._read)
        self._rule: tuple[str, ...] = ()
        subscriber.on_ip = self._write
        try:
            self._configure(mtu or subscriber.peer_mru, routes)
        except BaseException:
            self.close()
            raise
        self._previous = subscriber.on_change
        subscriber.on_change = self._on_change

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.subscriber.on_ip = None
        self._greenlet.kill()
        self._watcher.close()
        os.close(self.descriptor)  # removes the device, its address and its routes
        if self._rule:
            subprocess.run(["ip", "rule", "del", *self._rule], capture_output=True, check=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _configure(self, mtu: int, routes: Sequence[str]) -> None:
        _ip("address", "add", f"{self.address}/32", "dev", self.name)
        _ip("link", "set", self.name, "mtu", str(mtu), "up")
        table = str(FIRST_TABLE + socket.if_nametoindex(self.name))
        _ip("route", "add", "default", "dev", self.name, "table", table)
        rule = ("from", self.address, "lookup", table)
        _ip("rule", "add", *rule)
        self._rule = rule
        for prefix in routes:
            _ip("route", "replace", prefix, "dev", self.name, "src", self.address)

    def _read(self) -> None:
        hub, send = get_hub(), self.subscriber.send_ip
        while True:
            try:
                for _ in range(DRAIN):
                    packet = os.read(self.descriptor, 65535)
                    if packet[0] >> 4 == 4 and self.subscriber.online:
                        send(packet)
            except BlockingIOError:
                pass
            hub.wait(self._watcher)

    def _write(self, _: Subscriber, packet: bytes) -> None:
        try:
            os.write(self.descriptor, packet)
        except OSError:
            self.undelivered += 1

    def _on_change(self, subscriber: Subscriber) -> None:
        if self._previous is not None:
            self._previous(subscriber)
        if subscriber.phase == Phase.ENDED:
            gevent.spawn(self.close)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
