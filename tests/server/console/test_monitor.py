"""`monitor`, `snoop` and `show snoop` at the console, and what interception shows without `enable`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import orjson
import pytest

from l2tpns.console.commands.monitor import MAX_QUEUED, LineQueue
from l2tpns.console.packet_line import SNAP_LENGTH, packet_line
from l2tpns.subscriber.session import Session
from tests.lab.lac import Lac, Subscriber
from tests.lab.packets import ip, tcp_syn
from tests.server.operators import Desk, Operator

HOST = "198.51.100.2"
CLIENT = "10.0.0.5"


@pytest.fixture
def call(desk: Desk) -> Iterator[Callable[[str], tuple[Subscriber, Session]]]:
    lac: Lac = desk.server.lac().connect()

    def dial(name: str) -> tuple[Subscriber, Session]:
        subscriber = lac.call(name, "pw").wait_online()
        return subscriber, next(iter(desk.server.registry.by_user[name]))

    yield dial


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a listening sink."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    yield sock.getsockname()[1]
    sock.close()


def audit(desk: Desk) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (desk.directory / "audit").read_bytes().splitlines()]


# The line of a packet


def monitoring(desk: Desk, session: Session) -> Operator:
    """An operator who watches the packets of a session."""
    operator = desk.plain()
    operator.type(f"monitor session {session.id}\n")
    operator.expect("Enter ends it")
    return operator


@pytest.mark.parametrize(
    ("packet", "line"),
    [
        (tcp_syn(CLIENT, HOST, 1460), f"TCP {CLIENT}:4000 > {HOST}:80 S seq 1 win 65535 length 0"),
        (
            tcp_syn(CLIENT, HOST, None, flags=0x18)[:40] + b"",
            f"TCP {CLIENT}:4000 > {HOST}:80 AP seq 1 ack 0 win 65535 length 0",
        ),
        (
            ip(CLIENT, HOST, bytes.fromhex("14e9 0035 001c 0000") + bytes(20)),
            f"UDP {CLIENT}:5353 > {HOST}:53 length 20",
        ),
        (
            ip(CLIENT, HOST, bytes.fromhex("0800 0000 0007 0003") + bytes(56), protocol=1),
            f"ICMP {CLIENT} > {HOST} echo request id 7 seq 3 length 64",
        ),
        (
            ip(CLIENT, HOST, bytes.fromhex("0304 0000 0000 0240"), protocol=1),
            f"ICMP {CLIENT} > {HOST} unreachable code 4 length 8",
        ),
        (ip(CLIENT, HOST, bytes(8), protocol=47), f"GRE {CLIENT} > {HOST} length 8"),
        (ip(CLIENT, HOST, bytes(8), protocol=200), f"protocol 200 {CLIENT} > {HOST} length 8"),
        (
            ip(CLIENT, HOST, bytes.fromhex("14e9 0035 001c 0000"), fragment=0x2000),
            f"UDP {CLIENT}:5353 > {HOST}:53 length 0, fragment 4660@0+",
        ),
        (ip(CLIENT, HOST, bytes(8), fragment=0x0003), f"UDP {CLIENT} > {HOST} length 8, fragment 4660@24"),
        (ip(CLIENT, HOST, b"\x00"), f"UDP {CLIENT} > {HOST} length 1"),
        (b"\x60" + bytes(39), "no IPv4, length 40"),
        (b"", "no IPv4, length 0"),
    ],
)
def test_a_packet_is_told_in_one_line(packet: bytes, line: str) -> None:
    assert packet_line(packet[:SNAP_LENGTH], len(packet)) == line


def test_whatever_a_packet_holds_there_is_a_line() -> None:
    whole = tcp_syn(CLIENT, HOST, 1460)
    for length in range(len(whole) + 1):
        for first in (0x45, 0x40, 0x4F):
            assert packet_line(bytes([first]) + whole[1:length], length)


# The queue


def test_who_reads_too_slowly_is_told_how_many_were_missed() -> None:
    woken: list[int] = []
    waiting = LineQueue(lambda: woken.append(1), str)
    for number in range(MAX_QUEUED + 7):
        waiting.put(number)
    lines = list(waiting.lines())
    assert lines[:2] == ["0", "1"] and lines[-1] == "(7 came too fast to be shown)"
    assert len(lines) == MAX_QUEUED + 1 and woken == [1]
    waiting.put(8)
    assert list(waiting.lines()) == ["8"] and woken == [1, 1]


# monitor session


@pytest.mark.shows("monitor session SID")
@pytest.mark.shows("watch session")
def test_monitor_shows_a_subscribers_packets_as_they_pass_until_enter(
    desk: Desk, call: Callable[[str], tuple[Subscriber, Session]]
) -> None:
    desk.server.log.open_audit(str(desk.directory / "audit"))
    fred, session = call("fred")
    _, hers = call("mary")
    operator = monitoring(desk, session)
    desk.server.wait(lambda: session.path.mirror is not None)
    desk.server.plane.deliver(ip(HOST, str(hers.address)))
    desk.server.plane.deliver(ip(HOST, str(session.address), bytes.fromhex("0035 14e9 000c 0000") + bytes(4)))
    assert f" down UDP {HOST}:53 > {session.address}:5353 length 4" in operator.expect("length 4")
    fred.send_ip(tcp_syn(str(session.address), HOST, 1460))
    operator.expect(f" up   TCP {session.address}:4000 > {HOST}:80 S seq 1 win 65535 length 0")
    operator.type("\n")
    assert "2 packets shown, 0 missed" in operator.expect("# ")
    assert session.path.mirror is None
    on, off = audit(desk)
    assert on["event"] == "monitor_on" and on["user"] == "fred" and on["by"].startswith("console 127.0.0.1:")
    assert off["event"] == "monitor_off" and off["shown"] == 2


@pytest.mark.parametrize("key", ["\x03", "q", "\r\n"])
def test_on_a_terminal_control_c_q_and_enter_end_a_monitor(
    desk: Desk, call: Callable[[str], tuple[Subscriber, Session]], key: str
) -> None:
    _, session = call("fred")
    operator = desk.telnet()
    operator.type(f"monitor session {session.id}\r\n")
    operator.expect("Enter ends it")
    operator.type(key)
    operator.expect("0 packets shown")
    operator.type("show version\r\n")
    operator.expect("L2TPNS")
    assert session.path.mirror is None


def test_a_monitor_ends_with_its_session(desk: Desk, call: Callable[[str], tuple[Subscriber, Session]]) -> None:
    fred, session = call("fred")
    operator = monitoring(desk, session)
    desk.server.wait(lambda: session.path.mirror is not None)
    fred.hangup()
    operator.expect(f"Session {session.id} has ended")
    operator.expect("# ")


def test_an_operator_who_hangs_up_monitors_no_longer(
    desk: Desk, call: Callable[[str], tuple[Subscriber, Session]]
) -> None:
    _, session = call("fred")
    operator = monitoring(desk, session)
    operator.close()
    desk.server.wait(lambda: session.path.mirror is None and len(desk.console) == 0)


def test_a_reader_that_takes_nothing_holds_up_nobody(
    desk: Desk, call: Callable[[str], tuple[Subscriber, Session]]
) -> None:
    _, session = call("fred")
    operator = monitoring(desk, session)
    desk.server.wait(lambda: session.path.mirror is not None)
    packet = ip(HOST, str(session.address), bytes(100))
    for _ in range(200):
        for _ in range(100):
            desk.server.plane.deliver(packet)
        gevent.sleep(0)
    assert session.path.out_packets == 20_000
    operator.type("\n")
    said = operator.expect("missed\r\n")
    assert "came too fast to be shown)" in said


# monitor tunnel


@pytest.mark.shows("monitor tunnel TID")
@pytest.mark.shows("watch tunnel")
def test_monitor_tunnel_shows_its_control_messages(
    desk: Desk, call: Callable[[str], tuple[Subscriber, Session]]
) -> None:
    fred, session = call("fred")
    operator = desk.plain()
    operator.type(f"monitor tunnel {session.tunnel.id}\n")
    operator.expect("Enter ends it")
    fred.hangup()
    operator.expect(f"-{session.tunnel.id}-{session.id} control_received")
    operator.expect("message=CDN")
    operator.type("\n")
    operator.expect("lines shown, 0 missed")
    assert not desk.server.log._output.listeners


# snoop


@pytest.mark.shows("snoop USER", "no snoop USER", "snoop USER IP PORT")
@pytest.mark.shows("set snoop_host", "set snoop_port")
def test_snoop_says_what_it_did_and_the_audit_log_who_did_it(
    desk: Desk, call: Callable[[str], tuple[Subscriber, Session]], port: int
) -> None:
    desk.server.log.open_audit(str(desk.directory / "audit"))
    _, session = call("fred")
    call("mary")
    operator = desk.plain()
    assert "% snoop_host and snoop_port are not set" in operator.do("snoop fred")
    assert "Snooping user fred\n" in operator.do(f"snoop fred 127.0.0.1 {port}")
    operator.do("set snoop_host 127.0.0.1")
    operator.do(f"set snoop_port {port}")
    assert "Snooping user Mary\nUser bob is not connected\n" in operator.do("snoop Mary bob")
    assert "Not snooping user fred\nUser bob is not connected\n" in operator.do("no snoop fred bob")
    assert session.policy.sink is None
    told = [(line["event"], line["user"], line["by"].partition(":")[0]) for line in audit(desk) if "by" in line]
    assert told == [
        ("snoop_refused", "fred", "console 127.0.0.1"),
        ("snoop_on", "fred", "console 127.0.0.1"),
        ("snoop_on", "mary", "console 127.0.0.1"),
        ("snoop_off", "fred", "console 127.0.0.1"),
    ]
    assert not [line for line in desk.server.log.records() if "snoop fred" in str(line) or "snoop Mary" in str(line)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("snoop", "% Usage: snoop USER..."),
        ("snoop fred 127.0.0.1", "after it comes a port"),
        ("snoop fred 127.0.0.1 0", "after it comes a port"),
        ("snoop fred 127.0.0.1 99999", "after it comes a port"),
        ("snoop fred 127.0.0.1 9000 mary", "after it comes a port"),
        ("snoop fred 10.5.0.77 9000", "is in the pool"),
        ("no snoop", "% Usage: no snoop USER..."),
        ("monitor session 0", '% Invalid session id "0"'),
        ("monitor tunnel 0", '% Invalid tunnel id "0"'),
    ],
)
def test_what_is_wrong_is_told(
    desk: Desk, call: Callable[[str], tuple[Subscriber, Session]], line: str, says: str
) -> None:
    _, session = call("fred")
    assert says in desk.plain().do(line)
    assert session.policy.sink is None


@pytest.mark.shows("show snoop")
def test_who_is_intercepted_is_shown_to_the_enabled_only(
    desk: Desk, call: Callable[[str], tuple[Subscriber, Session]], port: int
) -> None:
    _, session = call("fred")
    operator = desk.plain()
    operator.do(f"snoop fred 127.0.0.1 {port}")
    desk.server.plane.deliver(ip(HOST, str(session.address)))
    (row,) = _json(operator, "show snoop | json")
    assert (row["user"], row["sink"], row["sent"], row["lost"]) == ("fred", f"127.0.0.1:{port}", 1, 0)
    assert f"Intercepted:     YES (127.0.0.1:{port})" in operator.do(f"show session {session.id}")
    assert _json(operator, "show session | json")[0]["intercepted"] is True
    operator.do("disable", prompt="> ")
    for line in ("snoop mary", "no snoop fred", "show snoop", f"monitor session {session.id}"):
        assert 'This needs "enable" first' in operator.do(line, prompt="> "), line
    assert "YES" not in operator.do(f"show session {session.id}", prompt="> ")
    assert str(port) not in operator.do(f"show session {session.id} | json", prompt="> ")
    assert _json(operator, "show session | json", "> ")[0]["intercepted"] is None
    assert 'This needs "enable" first' in operator.do("show log", prompt="> ")


def _json(operator: Operator, line: str, prompt: str = "# ") -> list[dict[str, Any]]:
    said = operator.do(line, prompt=prompt)
    rows: list[dict[str, Any]] = orjson.loads(said[said.index("[") : said.rindex("]") + 1])
    return rows
