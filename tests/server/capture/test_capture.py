"""l2tpns-capture: both forms of copies become a file that Debian's tshark reads, and what is missing is told."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.capture.__main__ import Stream, main
from l2tpns.capture.frame import DOWN, UP, Framer, parse
from tests.lab.packets import ip, tcp_syn

CLIENT, HOST = "10.0.0.5", "198.51.100.2"
TSHARK = shutil.which("tshark")
PATIENCE = 60.0  # seconds: a Python has to start
# 2026-11-22 12:00:00.123456789 UTC
NOON = 1_795_348_800_123_456_789


def test_the_framed_form_octet_by_octet() -> None:
    framer = Framer(tunnel=0x1234, session=0xABCD, acct="0A1B", user="zoë")
    assert framer.frame(UP, b"first", 1) and framer.frame(DOWN, b"packet", 0x0102030405060708).hex(" ") == (
        "f0 53 "  # magic
        "01 "  # version
        "01 "  # direction: to the subscriber
        "00 20 "  # length of the header
        "12 34 ab cd "  # tunnel, session
        "00 00 00 01 "  # number of the copy
        "01 02 03 04 05 06 07 08 "  # time
        "04 04 "  # lengths of Acct-Session-Id and user
        "30 41 31 42 "  # 0A1B
        "7a 6f c3 ab "  # zoë
        "70 61 63 6b 65 74"  # the packet
    )


@given(
    st.sampled_from((UP, DOWN)),
    st.binary(max_size=100),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.text(max_size=300),
    st.text(max_size=300),
    st.integers(0, 2**64 - 1),
)
def test_what_is_framed_is_read_again(
    direction: int, packet: bytes, tunnel: int, session: int, acct: str, user: str, time: int
) -> None:
    found = parse(Framer(tunnel, session, acct, user).frame(direction, packet, time))
    assert (found.direction, found.packet, found.tunnel, found.session) == (direction, packet, tunnel, session)
    assert (found.number, found.time) == (0, time)
    cut = user.encode("utf-8", "backslashreplace")[:255].decode("utf-8", "ignore")
    assert found.user == cut


@given(st.binary(max_size=80))
def test_any_payload_is_a_copy_or_a_value_error(payload: bytes) -> None:
    for octets in (payload, b"\xf0\x53\x01" + payload):
        try:
            assert parse(octets).packet is not None
        except ValueError:
            pass


def test_a_header_that_a_later_release_has_made_longer_is_read() -> None:
    octets = Framer(1, 2, "a", "b").frame(UP, b"packet", 3)
    longer = octets[:4] + (len(octets) - 6 + 4).to_bytes(2, "big") + octets[6:-6] + b"more" + octets[-6:]
    assert parse(longer).packet == b"packet" and parse(longer).user == "b"


@pytest.mark.parametrize(
    ("numbers", "lost"),
    [
        ([0, 1, 2, 3], 0),
        ([7, 8, 9], 0),  # the receiver came later
        ([0, 1, 5, 6], 3),
        ([0, 2, 1, 3], 0),  # one was late
        ([0xFFFFFFFE, 0xFFFFFFFF, 0, 1], 0),
        ([0, 1, 2, 0, 1], 0),  # the server was restarted
        ([5000, 5001, 3, 4], 0),  # so it was, and the first copies were lost
    ],
)
def test_missing_copies_are_counted(numbers: list[int], lost: int) -> None:
    stream = Stream(0, numbers[0])
    for number in numbers:
        stream.count(number)
    assert stream.lost == lost


class Capture:
    """The program, as it runs."""

    def __init__(self, path: Path, *options: str) -> None:
        command = [sys.executable, "-m", "l2tpns.capture", "-a", "127.0.0.1", "-p", "0", *options, str(path)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert self.process.stderr is not None
        assert select.select([self.process.stderr], [], [], PATIENCE)[0]
        self.port = int(self.process.stderr.readline().rpartition(b":")[2])
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.socket.sendto(payload, ("127.0.0.1", self.port))

    def stop(self, signum: int = signal.SIGINT) -> str:
        self.process.send_signal(signum)
        return self.end()

    def end(self) -> str:
        """What it says at last."""
        _, said = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, said
        return said.decode().strip()


@pytest.fixture
def capture() -> Iterator[Callable[..., Capture]]:
    running: list[Capture] = []

    def start(path: Path, *options: str) -> Capture:
        running.append(Capture(path, *options))
        return running[-1]

    yield start
    for each in running:
        each.process.kill()
        each.process.wait()
        each.socket.close()


def fields(path: Path, *names: str) -> list[list[str]]:
    """Of each packet, read by tshark."""
    command = ["tshark", "-r", str(path), "-n", "-T", "fields", *(word for name in names for word in ("-e", name))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.skipif(TSHARK is None, reason="tshark is not installed")
def test_framed_copies_become_interfaces_directions_and_times_for_tshark(
    capture: Callable[..., Capture], tmp_path: Path
) -> None:
    path = tmp_path / "copies.pcapng"
    program = capture(path, "-c", "5")
    fred, mary = Framer(7, 8, "00A1", "fred"), Framer(7, 9, "00A2", "mary@isp")
    up, down = tcp_syn(CLIENT, HOST, 1460), tcp_syn(HOST, CLIENT, 1400)
    program.send(
        fred.frame(UP, up, NOON), fred.frame(DOWN, down, NOON + 1), mary.frame(UP, ip("10.0.0.6", HOST), NOON + 2)
    )
    fred.frame(UP, up, NOON)  # lost on its way
    program.send(fred.frame(UP, up, NOON + 3), b"junk", ip(CLIENT, HOST))
    assert program.end() == "5 packets of 3 sessions, 1 lost, 1 unreadable"
    names = ("frame.interface_name", "frame.packet_flags_direction", "frame.time_epoch", "ip.src", "frame.comment")
    rows = fields(path, *names)
    assert [row[:4] for row in rows[:4]] == [
        ["fred 7/8", "0x00000001", "1795348800.123456789", CLIENT],
        ["fred 7/8", "0x00000002", "1795348800.123456790", HOST],
        ["mary@isp 7/9", "0x00000001", "1795348800.123456791", "10.0.0.6"],
        ["fred 7/8", "0x00000001", "1795348800.123456792", CLIENT],
    ]
    assert [row[4] for row in rows[:4]] == ["", "", "", "1 copies before this one are missing"]
    assert rows[4][0].startswith("127.0.0.1:") and rows[4][3] == CLIENT
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_whole_file(capture: Callable[..., Capture], tmp_path: Path, signum: int) -> None:
    path = tmp_path / "copies.pcapng"
    program = capture(path)
    whole = path.stat().st_size
    program.send(ip(CLIENT, HOST))
    while path.stat().st_size == whole:  # what has come is in the file without waiting for the next
        time.sleep(0.01)
    assert program.stop(signum) == "1 packets of 1 sessions, 0 lost, 0 unreadable"
    octets = path.read_bytes()
    at = 0
    while at < len(octets):
        length = int.from_bytes(octets[at + 4 : at + 8], sys.byteorder)
        assert octets[at + length - 4 : at + length] == octets[at + 4 : at + 8]
        at += length


def test_it_never_writes_over_a_file_nor_takes_a_port_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evidence"
    path.write_text("evidence")
    assert main(["-a", "127.0.0.1", "-p", "0", str(path)]) == 1
    assert "File exists" in capsys.readouterr().err and path.read_text() == "evidence"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        assert main(["-a", "127.0.0.1", "-p", port, os.devnull]) == 1
    assert "cannot listen on 127.0.0.1:" in capsys.readouterr().err
