"""What a stranger sends, at the console, by HTTP, to nsctl: it takes no time of the others, and locks nobody out."""

from __future__ import annotations

import errno
import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket, subprocess

from l2tpns.console import terminal
from l2tpns.console.editor import Editor
from l2tpns.console.timing import ConsoleTiming
from l2tpns.monitoring import http as web
from l2tpns.nsctl import server as nsctlserver
from l2tpns.runtime import connection_slots
from l2tpns.runtime.scheduler import SLICE, Scheduler
from l2tpns.system.socket_owner import owner_of, owner_of_connection
from tests.lab.inprocess import until
from tests.lab.netns import is_root
from tests.server.conftest import Serve
from tests.server.nsctl_stage import NOTE, OK, SLOW, Stage
from tests.server.operators import TELNET, OpenDesk
from tests.server.slices import most_at_once
from tests.server.visitors import SERVED, figures_of

NOBODY = 65534
as_another_user = pytest.mark.skipif(not is_root(), reason="only root can be another user too")


class Meter:
    """Counts pieces of work, and how many were done in one go. By its clock each takes a tenth of a slice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces = 0
        self._monkeypatch = monkeypatch

    def clock(self) -> float:
        return 1.0 + self.pieces * SLICE / 10

    def measure(self, scheduler: Scheduler) -> None:
        """Give a scheduler that has had no work yet this clock."""
        scheduler.clock = self.clock

    def count(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            self.pieces += 1
            return real(*arguments, **options)

        self._monkeypatch.setattr(owner, name, counted)

    def watch(self, enough: Callable[[], bool]) -> int:
        """Return the most pieces in one turn of the event loop, until `enough()` holds."""
        return most_at_once(lambda: self.pieces, enough)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    return Meter(monkeypatch)


# Time

KINDS = {
    "letters": b"a",
    "nul": b"\0",
    "tab": b"\t",
    "question": b"?",
    "backspace": b"\x08",
    "redraw": b"\x0c",
    "line": b"\r\n",
    "junk": b"nonsense\r\n",
    "nop": b"\xff\xf1",
    "subnegotiation": b"\xff\xfa\x1f" + b"a" * 1000,
}


@pytest.mark.parametrize("octets", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("users", [None, "fred:hush\n"], ids=["logged in", "stranger"])
def test_octets_at_the_console_are_read_in_turns(
    open_desk: OpenDesk, meter: Meter, users: str | None, octets: bytes
) -> None:
    desk = open_desk(users)
    meter.measure(desk.server.services.operator_scheduler)
    meter.count(terminal.Telnet, "feed")
    meter.count(Editor, "key")
    peer = desk.operator(TELNET)
    sender = gevent.spawn(peer.type, octets * (400_000 // len(octets)))
    reader = gevent.spawn(peer.expect_end)
    try:
        assert meter.watch(lambda: meter.pieces > 300 or reader.ready()) <= 12
        assert meter.pieces > 10
    finally:
        gevent.killall([sender, reader])


@pytest.mark.parametrize("consoles", [1, 30])
def test_what_many_consoles_send_at_once_is_read_in_the_turns_of_one(
    open_desk: OpenDesk, meter: Meter, consoles: int
) -> None:
    desk = open_desk()
    meter.measure(desk.server.services.operator_scheduler)
    meter.count(Editor, "key")
    peers = [desk.operator() for _ in range(consoles)]
    for peer in peers:
        peer.expect("> ")
    for peer in peers:
        peer.type(b"a" * 100)
    assert meter.watch(lambda: meter.pieces == 100 * consoles) <= 12


@pytest.mark.parametrize("octets", [b"a", b"\x0c", b"\t", b"?", b"\r\n", b"\xff\xf1", b"\xff\xfa\x1f" + b"a" * 1000])
def test_more_than_a_login_takes_ends_the_connection_and_is_in_the_log(open_desk: OpenDesk, octets: bytes) -> None:
    desk = open_desk("fred:hush\n")
    peer = desk.operator(TELNET)
    sender = gevent.spawn(peer.type, octets * (2_000_000 // len(octets)))
    peer.expect_end()
    gevent.kill(sender)
    until(lambda: len(desk.console) == 0)
    if octets != b"\r\n":  # three empty names and passwords are refused before
        (event,) = desk.server.events("console_flooded")
        assert "before the login" in event["why"]
    late = desk.operator()
    late.type("fred\nhush\n")
    late.expect("# ")


def test_a_script_may_send_all_its_commands_with_the_password(open_desk: OpenDesk) -> None:
    desk = open_desk("fred:hush\n")
    script = desk.operator()
    sender = gevent.spawn(script.type, "fred\r\nhush\r\n" + "clear counters\r\n" * 3000 + "quit\r\n")
    assert script.expect_end().count("Counters cleared") == 3000
    sender.join()
    assert desk.server.events("console_flooded") == []


def test_one_who_types_a_letter_now_and_then_has_no_more_time_to_log_in(
    open_desk: OpenDesk,
) -> None:
    desk = open_desk("fred:hush\n", ConsoleTiming(login=0.5))
    slow = desk.operator()
    slow.expect("Username: ")

    def type_for_ever() -> None:
        while True:
            slow.type("a")
            gevent.sleep(0.05)

    typist = gevent.spawn(type_for_ever)
    slow.expect_end()
    gevent.kill(typist)


@pytest.mark.parametrize("typed", [b"", b"fred\n", b"fred\nhush\nshow version\nquit\n"], ids=["nothing", "name", "all"])
def test_a_console_that_is_over_leaves_nothing_for_the_collector(
    open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch, typed: bytes
) -> None:
    """What a flood leaves would have to be gone through, for 20 ms in which no packet is carried."""
    made: list[weakref.ref[Any]] = []

    def make(*arguments: Any) -> terminal.Terminal:
        made.append(weakref.ref(found := terminal.Terminal(*arguments)))
        return found

    monkeypatch.setattr("l2tpns.console.server.Terminal", make)
    desk = open_desk("fred:hush\n")
    gc.disable()
    try:
        peer = desk.operator(TELNET)
        peer.expect("Username: ")
        peer.type(typed)
        until(lambda: made)
        peer.close()
        until(lambda: len(desk.console) == 0)
        until(lambda: made[0]() is None)
    finally:
        gc.enable()


def test_a_descriptor_that_is_missing_for_a_while_ends_no_listener(
    open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk()
    real, failures = (
        connection_slots.ConnectionSlots.take,
        iter((OSError(errno.EMFILE, "Too many open files"), ZeroDivisionError())),
    )

    def take(crowd: connection_slots.ConnectionSlots, owner: str) -> connection_slots.ConnectionSlot | None:
        for failure in failures:
            raise failure
        return real(crowd, owner)

    monkeypatch.setattr(connection_slots.ConnectionSlots, "take", take)
    for _ in range(2):
        desk.operator().expect_end()
    desk.plain()
    assert len(desk.server.events("accept_failed")) == 1
    assert len(desk.server.events("door_failed")) == 1
    desk.server.meant = ("door_failed",)


def test_requests_by_http_are_answered_in_turns(serve: Serve, meter: Meter) -> None:
    server = serve(**SERVED)
    meter.measure(server.services.operator_scheduler)
    with figures_of(server) as visitor:
        meter.count(web.Application, "respond")
        socks = [visitor.connect() for _ in range(web.MAX_CONNECTIONS)]
        for sock in socks:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert meter.watch(lambda: meter.pieces == len(socks)) <= 12
        for sock in socks:
            assert sock.recv(12) == b"HTTP/1.1 200"
            sock.close()


def test_datagrams_to_nsctl_are_read_in_turns(meter: Meter) -> None:
    with Stage() as stage:
        stage.restart(share=Scheduler(clock=meter.clock))
        meter.count(nsctlserver.NsctlServer, "on_datagram")
        sock = stage.socket()
        for _ in range(200):
            sock.send(b"junk")
        assert meter.watch(lambda: meter.pieces == 200) <= 12


# Places

# The interpreter and its library may lie where no other user can read.
BECOME_NOBODY = f"""
import os, socket, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
"""
FLOOD = (
    BECOME_NOBODY
    + """
port, kept, number = int(sys.argv[1]), [], 0
while True:
    sock = socket.socket()
    sock.settimeout(1)
    try:
        sock.connect(("127.0.0.1", port))
    except OSError:
        continue
    kept.append(sock)
    number += 1
    if len(kept) > 200:
        kept.pop(0).close()
    if number % 100 == 0:
        print(number, flush=True)
"""
)


@pytest.fixture
def flood() -> Iterator[Callable[[int], Callable[[], None]]]:
    """Starts another user's process that connects to a port all the time; the result waits until it has 100 times."""
    processes: list[subprocess.Popen] = []

    def start(port: int) -> Callable[[], None]:
        process = subprocess.Popen([sys.executable, "-c", FLOOD, str(port)], stdout=subprocess.PIPE)
        processes.append(process)

        def more() -> None:
            assert process.stdout.readline()

        return more

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@as_another_user
def test_a_user_who_connects_to_the_console_all_the_time_locks_no_other_one_out(
    open_desk: OpenDesk, flood: Callable[[int], Callable[[], None]]
) -> None:
    desk = open_desk("fred:hush\n", cli_max_connections=16)
    before = desk.operator()
    before.type("fred\nhush\n")
    before.expect("# ")
    more = flood(desk.console.port)
    more()
    operator = desk.operator()
    operator.expect("Username: ")
    more()
    operator.type("fr")
    more()
    operator.type("ed\n")
    operator.expect("Password: ")
    more()
    operator.type("hush\n")
    operator.expect("# ")
    more()
    for each in (before, operator):
        assert "L2TPNS" in each.do("show version")
    assert len(desk.console) <= 16


@as_another_user
def test_a_user_who_connects_by_http_all_the_time_locks_no_other_one_out(
    serve: Serve, flood: Callable[[int], Callable[[], None]]
) -> None:
    server = serve(**SERVED)
    with figures_of(server) as visitor:
        assert visitor.figures.address is not None
        more = flood(visitor.figures.address[1])
        more()
        sock = visitor.connect()
        for part in (b"GET /metrics HT", b"TP/1.1\r\nHost: localhost\r\n", b"\r\n"):
            more()
            more()
            sock.sendall(part)
        assert sock.recv(12) == b"HTTP/1.1 200"
        sock.close()


REQUESTS = (
    BECOME_NOBODY
    + """
socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(60)]
for sock in socks:
    sock.connect(("127.0.0.1", int(sys.argv[1])))
    sock.send(bytes.fromhex(sys.argv[2]))
print("sent", flush=True)
sys.stdin.read()
"""
)


@as_another_user
def test_a_user_whose_requests_to_nsctl_never_end_locks_no_other_one_out() -> None:
    with Stage() as stage:
        process = subprocess.Popen(
            [sys.executable, "-c", REQUESTS, str(stage.port), SLOW.hex()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout.readline() == b"sent\n"
            until(lambda: stage.counters.nsctl_requests == 60)
            assert len(stage.plugins.obeyed) == nsctlserver.MAX_RUNNING
            assert stage.ask(NOTE) == OK
        finally:
            process.kill()
            process.communicate()
            stage.plugins.go_on.set()


# Whose they are


def test_the_owner_of_a_connection_on_this_machine_is_its_user() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.bind(("127.7.7.7", 0))  # a user has as many addresses as it likes
        client.connect(listener.getsockname())
        sock, peer = listener.accept()
        with sock:
            assert owner_of_connection(sock, peer) == f"uid {os.getuid()}"
            client.close()
            assert owner_of_connection(sock, peer) == "127.7.7.7"  # never root's, whose number the kernel gives then


def test_the_owner_of_a_datagram_from_this_machine_is_its_user() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        ours.bind(("127.0.0.1", 0))
        client.sendto(b"x", ours.getsockname())
        _, peer = ours.recvfrom(1)
        assert owner_of(peer, ours.getsockname(), socket.IPPROTO_UDP) == f"uid {os.getuid()}"
        assert owner_of(("192.0.2.7", 5), ours.getsockname(), socket.IPPROTO_UDP) == "192.0.2.7"


def test_without_sock_diag_the_owner_is_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2tpns.system.socket_owner._SOCK_DIAG_BY_FAMILY", 99)
    assert owner_of(("127.0.0.1", 5), ("127.0.0.1", 6)) == "127.0.0.1"
