"""`l2tpns-capture`: receives copies of intercepted packets and writes them to a file that tshark opens (pcapng).

It stops at ^C or SIGTERM, or after `--count` packets, and reports how many it received and how many were lost. For
evidence use the form `framed`: then time, direction and the subscriber's name are those of the server.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from types import FrameType
from typing import Any, BinaryIO, Self

from l2tpns import __version__
from l2tpns.capture.frame import UP, Copied, parse
from l2tpns.capture.pcapng import INBOUND, OUTBOUND, Writer
from l2tpns.runtime.sockets import set_buffers

MAX_DATAGRAM = 65535  # octets
MAX_LATE = 1000  # a copy may be so many numbers late; a number further behind starts a new count
BUFFER = 32 << 20  # octets that the kernel keeps while the disk is busy


@dataclass(slots=True)
class Stream:
    """The copies of one session from one server."""

    interface: int
    next: int  # number that the next copy should have
    packets: int = 0
    lost: int = 0

    def count(self, number: int) -> int:
        """Count a copy with this number. Return how many are missing before it."""
        ahead = (number - self.next + 0x80000000 & 0xFFFFFFFF) - 0x80000000
        if -MAX_LATE < ahead < 0 < number:
            self.lost = max(self.lost - 1, 0)  # it was counted as lost and is only late
            return 0
        self.next = number + 1 & 0xFFFFFFFF
        missing = max(ahead, 0)  # far behind: the server has started a new count
        self.lost += missing
        return missing


@dataclass(slots=True)
class Recorder:
    """Turns datagrams into packets of a file."""

    writer: Writer
    packets: int = 0
    unreadable: int = 0
    streams: dict[tuple[str, int, int, str], Stream] = field(default_factory=dict)

    def take(self, payload: bytes, sender: tuple[str, int], received: int) -> None:
        """Write the packet of one datagram, `received` in nanoseconds since 1970."""
        try:
            copy = parse(payload)
        except ValueError:
            self.unreadable += 1
            return
        stream = self._stream(copy, sender)
        stream.packets += 1
        self.packets += 1
        if copy.direction is None:
            self.writer.packet(stream.interface, received, copy.packet)
            return
        missing = stream.count(copy.number)
        comment = f"{missing} copies before this one are missing" if missing else ""
        direction = INBOUND if copy.direction == UP else OUTBOUND
        self.writer.packet(stream.interface, copy.time, copy.packet, direction, comment)

    def _stream(self, copy: Copied, sender: tuple[str, int]) -> Stream:
        """Return the stream of a copy. The form `ip` names no session: it has one interface for each sender."""
        if copy.direction is None:
            key, name, description = (f"{sender[0]}:{sender[1]}", 0, 0, ""), f"{sender[0]}:{sender[1]}", ""
        else:
            key = (sender[0], copy.tunnel, copy.session, copy.acct)
            name = f"{copy.user or 'session'} {copy.tunnel}/{copy.session}"
            description = f"user {copy.user} Acct-Session-Id {copy.acct} from {sender[0]}"
        stream = self.streams.get(key)
        if stream is None:
            stream = self.streams[key] = Stream(self.writer.interface(name, description), copy.number)
        return stream

    @property
    def lost(self) -> int:
        return sum(stream.lost for stream in self.streams.values())


class Stop:
    """A context in which ^C and SIGTERM set `asked` and make `wake` readable, so that every block is completed."""

    def __init__(self) -> None:
        self.asked = False
        self.wake, self._wakes = socket.socketpair()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno())
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self.wake.close()
        self._wakes.close()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True


def main(argv: list[str] | None = None) -> int:
    """Run the program. Return the exit status."""
    arguments = parse_arguments(argv)
    try:
        sock = listen(arguments.address, arguments.port)
    except OSError as error:
        print(
            f"l2tpns-capture: cannot listen on {arguments.address}:{arguments.port}: {error.strerror}", file=sys.stderr
        )
        return 1
    try:
        file = open_file(arguments.file)
    except OSError as error:
        print(f"l2tpns-capture: {arguments.file}: {error.strerror}", file=sys.stderr)
        return 1
    with file, sock:
        recorder = Recorder(Writer(file, f"l2tpns-capture {__version__}"))
        file.flush()
        print(f"listening on {arguments.address}:{sock.getsockname()[1]}", file=sys.stderr, flush=True)
        try:
            with Stop() as stop:
                receive(sock, recorder, file, stop, arguments.count)
        except BrokenPipeError:
            sys.stderr.write("l2tpns-capture: the reader of standard output has gone\n")
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
    said = f"{recorder.packets} packets of {len(recorder.streams)} sessions, {recorder.lost} lost"
    print(f"{said}, {recorder.unreadable} unreadable", file=sys.stderr)
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="l2tpns-capture", description="Writes copies of intercepted packets into a file that tshark opens."
    )
    parser.add_argument("-a", "--address", type=IPv4Address, default=IPv4Address(0), help="to listen on (all)")
    parser.add_argument("-p", "--port", type=_port, required=True, help="to listen on: snoop_port of the server")
    parser.add_argument("-c", "--count", type=int, default=0, help="stop after so many packets")
    parser.add_argument("file", help="to write, which must not exist; - is standard output, for `| tshark -r -`")
    parser.add_argument("--version", action="version", version=f"l2tpns-capture {__version__}")
    return parser.parse_args(argv)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError
    return port


def listen(address: IPv4Address, port: int) -> socket.socket:
    """Return a bound UDP socket. Raises OSError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        set_buffers(sock, receive=BUFFER)
        sock.bind((str(address), port))
    except OSError:
        sock.close()
        raise
    return sock


def open_file(name: str) -> BinaryIO:
    """Create a file that only its owner can read. Raises OSError if it exists."""
    if name == "-":
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    return os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def receive(sock: socket.socket, recorder: Recorder, file: BinaryIO, stop: Stop, count: int) -> None:
    """Record until a signal or `count` packets. The file is flushed whenever no datagram is waiting."""
    while not stop.asked and not (count and recorder.packets >= count):
        try:
            payload, sender = sock.recvfrom(MAX_DATAGRAM, socket.MSG_DONTWAIT)
        except BlockingIOError:
            file.flush()
            select.select((sock, stop.wake), (), ())
        else:
            recorder.take(payload, sender, time.time_ns())


if __name__ == "__main__":
    sys.exit(main())
