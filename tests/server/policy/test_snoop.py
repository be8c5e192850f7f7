"""Interception: which sessions are copied, where, from which packet on, and what only the audit log shows."""

from __future__ import annotations

import errno
import gc
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import gevent
import orjson
import pytest

from l2tpns.capture.frame import DOWN, UP, parse
from l2tpns.policy.model import PolicyError, Sink
from l2tpns.radius.types import AuthReply, AuthRequest, FramedRoute
from l2tpns.runtime import sockets
from l2tpns.subscriber.session import Session
from tests.lab import PATIENCE
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Subscriber
from tests.lab.packets import ip
from tests.server.operators import Desk

LOOPBACK = IPv4Address("127.0.0.1")
HOST = "198.51.100.2"


class Receiver:
    """The receiver of the copies."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(PATIENCE)
        self.sink = Sink(LOOPBACK, self.socket.getsockname()[1])

    def take(self, count: int) -> list[bytes]:
        return [self.socket.recv(65535) for _ in range(count)]

    def nothing(self) -> bool:
        """Return datagrams. Those sent on loopback have arrived when send returns."""
        self.socket.setblocking(False)
        try:
            return self.socket.recv(65535) == b""
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.socket.close()


@pytest.fixture
def audit(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Return the lines of one event in an audit file."""

    def lines(event: str = "") -> list[dict[str, Any]]:
        path = tmp_path / "audit"
        found = [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        return [line for line in found if not event or line["event"] == event]

    return lines


def online(server: InProcess, lac: Lac, name: str = "fred") -> tuple[Subscriber, Session]:
    subscriber = lac.call(name, "pw").wait_online()
    return subscriber, next(iter(server.registry.by_user[name]))


def talk(server: InProcess, subscriber: Subscriber, session: Session) -> tuple[bytes, bytes]:
    """Send a packet in each direction."""
    address = str(session.address)
    up, down = ip(address, HOST, b"up"), ip(HOST, address, b"down")
    delivered = len(server.plane.delivered)
    subscriber.send_ip(up)
    server.wait(lambda: len(server.plane.delivered) > delivered)
    server.plane.deliver(down)
    return up, down


# Copies


def test_a_copy_of_each_packet_both_ways_is_the_payload_and_nothing_else(
    server: InProcess, lac: Lac, receiver: Receiver
) -> None:
    subscriber, session = online(server, lac)
    server.services.snoop.start(session, receiver.sink, by="test")
    up, down = talk(server, subscriber, session)
    assert receiver.take(2) == [up, down]
    assert (server.counters.snoop_packets, server.counters.snoop_errors) == (2, 0)


def test_nothing_is_copied_after_it_was_stopped_and_nothing_of_others(
    server: InProcess, lac: Lac, receiver: Receiver
) -> None:
    subscriber, session = online(server, lac)
    mary, hers = online(server, lac, "mary")
    server.services.snoop.start(session, receiver.sink, by="test")
    talk(server, mary, hers)
    server.services.snoop.stop(session, by="test")
    talk(server, subscriber, session)
    assert receiver.nothing() and session.path.mirror is None and session.policy.sink is None


def test_one_who_is_to_be_intercepted_before_it_is_online_is_from_its_first_packet_on(
    server: InProcess, lac: Lac, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = server.backend.authenticate

    def accept_and_snoop(request: AuthRequest) -> AuthReply:
        server.services.snoop.start(server.lns.sessions[request.session_id], receiver.sink, by="radius")
        return accept(request)

    monkeypatch.setattr(server.backend, "authenticate", accept_and_snoop)
    first: list[bytes] = []
    online_before = server.plane.online

    def online_at_last(path: Any, *args: Any) -> None:
        online_before(path, *args)
        packet = ip(HOST, str(args[0]), b"first")
        first.append(packet)
        server.plane.deliver(packet)  # as if it had waited for this moment

    monkeypatch.setattr(server.plane, "online", online_at_last)
    online(server, lac)
    assert receiver.take(1) == first


@pytest.mark.shows("set snoop_format")
def test_framed_copies_carry_direction_time_number_session_and_user(
    serve: Callable[..., InProcess], receiver: Receiver
) -> None:
    server = serve(snoop_format="framed")
    subscriber, session = online(server, server.lac().connect())
    server.services.snoop.start(session, receiver.sink, by="test")
    up, down = talk(server, subscriber, session)
    first, second = map(parse, receiver.take(2))
    assert (first.direction, first.packet, first.number) == (UP, up, 0)
    assert (second.direction, second.packet, second.number) == (DOWN, down, 1)
    assert (first.tunnel, first.session, first.user) == (session.tunnel.id, session.id, "fred")
    assert first.acct == session.acct_session_id and 0 < first.time <= second.time


def test_framed_copies_carry_the_name_that_the_subscriber_has_now(
    serve: Callable[..., InProcess], receiver: Receiver
) -> None:
    server = serve(snoop_format="framed")
    subscriber, session = online(server, server.lac().connect())
    server.services.snoop.start(session, receiver.sink, by="test")
    talk(server, subscriber, session)
    server.registry.forget_user(session)
    session.user, session.acct_session_id = "fredericus", "NEW"  # as when it leaves a garden under another name
    talk(server, subscriber, session)
    copies = [parse(copy) for copy in receiver.take(4)]
    assert [copy.user for copy in copies] == ["fred", "fred", "fredericus", "fredericus"]
    assert [copy.number for copy in copies] == [0, 1, 2, 3] and copies[3].acct == "NEW"


def test_the_form_of_copies_can_be_changed_while_they_are_made(server: InProcess, lac: Lac, receiver: Receiver) -> None:
    subscriber, session = online(server, lac)
    server.services.snoop.start(session, receiver.sink, by="test")
    up, _ = talk(server, subscriber, session)
    server.config.assign("snoop_format", "framed")
    talk(server, subscriber, session)
    copies = receiver.take(4)
    assert copies[0] == up and parse(copies[2]).packet == up and copies[2] != up


def test_a_large_packet_arrives_whole(server: InProcess, lac: Lac, receiver: Receiver) -> None:
    subscriber, session = online(server, lac)
    server.services.snoop.start(session, receiver.sink, by="test")
    packet = ip(str(session.address), HOST, bytes(range(256)) * 8)
    subscriber.send_ip(packet)
    server.wait(lambda: server.counters.snoop_packets == 1)
    assert receiver.take(1) == [packet]


# Where to


def test_without_a_sink_it_goes_where_snoop_host_and_snoop_port_say_also_when_they_change(
    server: InProcess, lac: Lac, receiver: Receiver
) -> None:
    subscriber, session = online(server, lac)
    with pytest.raises(PolicyError, match="snoop_host and snoop_port are not set"):
        server.services.snoop.start(session, by="test")
    server.config.assign("snoop_host", "127.0.0.1")
    server.config.assign("snoop_port", str(receiver.sink.port))
    server.services.snoop.start(session, by="test")
    up, down = talk(server, subscriber, session)
    assert receiver.take(2) == [up, down]
    other = Receiver()
    server.config.assign("snoop_port", str(other.sink.port))
    up, down = talk(server, subscriber, session)
    assert other.take(2) == [up, down] and receiver.nothing()
    server.config.assign("snoop_host", "0.0.0.0")
    talk(server, subscriber, session)
    assert other.nothing() and server.counters.snoop_errors == 2
    other.socket.close()


@pytest.mark.parametrize(
    ("address", "port", "why"),
    [
        ("10.5.0.200", 9000, "is in the pool"),
        ("10.77.0.1", 9000, "is a subscriber's"),
        ("10.88.0.9", 9000, "is a subscriber's"),
        ("0.0.0.0", 9000, "is not the address of a single host"),
        ("224.0.0.1", 9000, "is not the address of a single host"),
        ("255.255.255.255", 9000, "is not the address of a single host"),
        ("192.0.2.1", 0, "0 is not a UDP port"),
    ],
)
def test_a_sink_that_would_be_a_subscriber_or_nobody_is_refused(
    server: InProcess, lac: Lac, address: str, port: int, why: str
) -> None:
    route = FramedRoute(IPv4Network("10.88.0.0/24"))
    server.backend.replies["mary"] = AuthReply(accepted=True, address=IPv4Address("10.77.0.1"), routes=(route,))
    _, session = online(server, lac)
    online(server, lac, "mary")
    with pytest.raises(PolicyError, match=why):
        server.services.snoop.start(session, Sink(IPv4Address(address), port), by="test")
    assert session.policy.sink is None and session.path.mirror is None


def test_copies_stop_while_a_subscriber_has_the_sinks_address(
    server: InProcess, lac: Lac, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscriber must not receive copies: if it is intercepted too, each copy would be copied again, endlessly."""
    subscriber, session = online(server, lac)
    server.services.snoop.start(session, receiver.sink, by="test")
    monkeypatch.setattr(server.services.guard.routable, "refusal", lambda network: "")
    server.backend.replies["mary"] = AuthReply(accepted=True, address=LOOPBACK)
    mary, hers = online(server, lac, "mary")
    talk(server, subscriber, session)
    assert receiver.nothing() and server.counters.snoop_errors == 2
    assert "subscriber" in server.events("snoop_copies_lost")[0]["why"]
    mary.hangup()
    server.wait(lambda: hers.id not in server.lns.sessions)
    up, down = talk(server, subscriber, session)
    assert receiver.take(2) == [up, down]


# A lost sink


def test_a_sink_that_nobody_listens_at_is_counted_and_told_once_and_back_it_gets_every_copy(
    server: InProcess, lac: Lac
) -> None:
    receiver = Receiver()
    sink = receiver.sink
    receiver.socket.close()
    subscriber, session = online(server, lac)
    server.services.snoop.start(session, sink, by="test")
    for _ in range(20):
        talk(server, subscriber, session)
    assert len(server.plane.delivered) == 20 and server.counters.snoop_errors > 10
    lines = server.events("snoop_copies_lost")
    assert len(lines) == 1 and lines[0]["sink"] == f"127.0.0.1:{sink.port}" and "fred" not in str(lines)
    receiver.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.socket.bind(("127.0.0.1", sink.port))
    receiver.socket.settimeout(PATIENCE)
    up, down = talk(server, subscriber, session)
    assert receiver.take(2) == [up, down]
    receiver.socket.close()


# Its life


def test_interception_ends_with_the_session_and_its_socket_is_closed(
    server: InProcess, lac: Lac, receiver: Receiver
) -> None:
    subscriber, session = online(server, lac)
    server.services.snoop.start(session, receiver.sink, by="test")
    subscriber.hangup()
    server.wait(lambda: not server.lns.sessions)
    snoop = server.services.snoop
    assert not snoop.copiers and not snoop._snoop_sinks and session.path.mirror is None


def test_several_sessions_share_a_socket_until_the_last_one_leaves(
    server: InProcess, lac: Lac, receiver: Receiver
) -> None:
    _, his = online(server, lac)
    mary, hers = online(server, lac, "mary")
    for session in (his, hers):
        server.services.snoop.start(session, receiver.sink, by="test")
    assert len(server.services.snoop._snoop_sinks) == 1
    server.services.snoop.stop(his, by="test")
    up, down = talk(server, mary, hers)
    assert receiver.take(2) == [up, down]
    server.services.snoop.stop(hers, by="test")
    assert not server.services.snoop._snoop_sinks


def test_one_who_begins_again_with_lcp_is_another_login_and_no_longer_intercepted(
    server: InProcess, lac: Lac, receiver: Receiver
) -> None:
    subscriber, session = online(server, lac)
    server.services.snoop.start(session, receiver.sink, by="test")
    ups = server.counters.sessions_online
    subscriber.restart()
    server.wait(lambda: server.counters.sessions_online == ups + 1)
    assert session.policy.sink is None and session.path.mirror is None and not server.services.snoop.copiers


# The audit log


@pytest.mark.shows("set audit_file")
def test_the_audit_file_says_who_switched_it_on_and_off_and_no_other_line_says_who_is_intercepted(
    server: InProcess, lac: Lac, receiver: Receiver, tmp_path: Path, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    server.log.open_audit(str(tmp_path / "audit"))
    subscriber, session = online(server, lac)
    before = len(server.log.records())
    server.services.snoop.start(session, receiver.sink, by="console bob 192.0.2.9:1234")
    server.services.snoop.start(session, receiver.sink, by="radius")  # as it is already
    talk(server, subscriber, session)
    server.services.snoop.stop(session, by="nsctl 127.0.0.1")
    server.services.snoop.stop(session, by="nsctl 127.0.0.1")
    on, off = audit()
    assert {**on, "time": ""} == {
        "time": "",
        "level": "audit",
        "event": "snoop_on",
        "by": "console bob 192.0.2.9:1234",
        "user": "fred",
        "session": session.id,
        "tunnel": session.tunnel.id,
        "acct": session.acct_session_id,
        "sink": f"127.0.0.1:{receiver.sink.port}",
        "peer": on["peer"],
        "host": "lac1",
    }
    assert (off["event"], off["by"], off["sent"], off["lost"]) == ("snoop_off", "nsctl 127.0.0.1", 2, 0)
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o600
    assert "snoop" not in str(server.log.records()[before:])


def test_a_session_that_ends_ends_its_interception_in_the_audit_file_too(
    server: InProcess, lac: Lac, receiver: Receiver, tmp_path: Path, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    server.log.open_audit(str(tmp_path / "audit"))
    subscriber, session = online(server, lac)
    server.services.snoop.start(session, receiver.sink, by="test")
    subscriber.hangup()
    server.wait(lambda: not server.lns.sessions)
    assert [line["by"] for line in audit("snoop_off")] == ["end of session"]


def test_so_does_a_session_that_never_came_online(
    server: InProcess, lac: Lac, receiver: Receiver, tmp_path: Path, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    server.log.open_audit(str(tmp_path / "audit"))
    server.backend.answering.clear()
    call = lac.call("fred", "wrong")
    server.wait(lambda: server.backend.asked)
    (session,) = server.lns.sessions.values()
    server.services.snoop.start(session, receiver.sink, by="test")
    server.backend.answering.set()
    call.wait_ended()
    server.wait(lambda: not server.lns.sessions)
    assert [(line["event"], line["by"]) for line in audit()] == [
        ("snoop_on", "test"),
        ("snoop_off", "end of session"),
    ]


def test_what_was_refused_is_in_the_audit_file_too(
    server: InProcess, lac: Lac, tmp_path: Path, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    server.log.open_audit(str(tmp_path / "audit"))
    _, session = online(server, lac)
    with pytest.raises(PolicyError):
        server.services.snoop.start(session, Sink(IPv4Address("10.5.0.9"), 9), by="radius")
    (line,) = audit()
    assert line["event"] == "snoop_refused" and line["sink"] == "10.5.0.9:9" and "pool" in line["why"]


def test_without_an_audit_file_the_log_has_it_but_no_console_shows_it(
    server: InProcess, lac: Lac, receiver: Receiver, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server.log.open(str(log))
    heard: list[bytes] = []
    listener = server.log.listen(range(6), lambda line, level: heard.append(line))
    _, session = online(server, lac)
    server.services.snoop.start(session, receiver.sink, by="test")
    assert b"snoop_on" in log.read_bytes()
    assert b"snoop" not in b"".join(heard) and b"snoop" not in b"".join(server.log.tail(1000))
    server.log.unlisten(listener)


def test_the_audit_file_gets_what_else_is_audited_and_is_opened_again_after_it_was_renamed(
    server: InProcess, tmp_path: Path, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    server.log.open_audit(str(tmp_path / "audit"))
    server.log.get().audit("console_command", user="bob")
    (tmp_path / "audit").rename(tmp_path / "audit.1")
    server.log.reopen()
    server.log.get().audit("console_command", user="eve")
    assert [line["user"] for line in audit()] == ["eve"]
    assert [line["user"] for line in server.events("console_command")] == ["bob", "eve"]
    server.log.open_audit("")
    server.log.get().audit("console_command", user="dan")
    assert len(audit()) == 1


def test_an_audit_file_that_takes_nothing_more_is_an_error_in_the_log(server: InProcess) -> None:
    server.log.open_audit("/dev/full")
    for _ in range(30):
        server.log.get().secret_audit("snoop_on", user="fred")
        gevent.sleep(0)
    lines = server.events("audit_lines_lost")
    assert 1 <= len(lines) < 30 and "fred" not in str(lines)


def test_a_sink_without_a_route_is_not_tried_for_each_packet_and_found_when_there_is_one(
    server: InProcess, lac: Lac, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[object] = []

    class NoRoute(sockets.RawSocket):
        def connect(self, address: Any) -> None:
            tries.append(address)
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    subscriber, session = online(server, lac)
    server.services.snoop.retry_delay = 3600.0
    with monkeypatch.context() as broken:
        broken.setattr(sockets, "RawSocket", NoRoute)
        server.services.snoop.start(session, receiver.sink, by="test")
        for _ in range(10):
            talk(server, subscriber, session)
        assert len(tries) == 1 and server.counters.snoop_errors == 20
        (line,) = server.events("snoop_copies_lost")
        assert line["why"] == "Network is unreachable"
    server.services.snoop.copiers[session].snoop_sink._retry_at = 0.0
    up, down = talk(server, subscriber, session)
    assert receiver.take(2) == [up, down]


def test_without_a_free_descriptor_copies_are_lost_and_packets_pass(
    server: InProcess, lac: Lac, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_is_free(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    subscriber, session = online(server, lac)
    with monkeypatch.context() as broken:
        broken.setattr(sockets, "RawSocket", none_is_free)
        server.services.snoop.start(session, receiver.sink, by="test")
        talk(server, subscriber, session)  # it waits until both packets have passed
        assert server.counters.snoop_errors == 2
        assert server.events("snoop_copies_lost")[0]["why"] == "Too many open files"
    server.services.snoop.copiers[session].snoop_sink._retry_at = 0.0
    up, down = talk(server, subscriber, session)
    assert receiver.take(2) == [up, down]


def test_one_that_was_intercepted_and_has_ended_leaves_no_garbage(
    serve: Callable[..., InProcess], receiver: Receiver
) -> None:
    server = serve(snoop_format="framed")
    lac = server.lac().connect()
    gc.collect()
    gc.disable()
    try:
        subscriber = lac.call("fred", "pw").wait_online()
        for session in server.lns.sessions.values():
            server.services.snoop.start(session, receiver.sink, by="test")
            talk(server, subscriber, session)
        del session
        subscriber.hangup()
        server.wait(lambda: server.calm)
        server.greenlets.clear()
        ours = server.lns  # a session that another test has killed may still hang on its greenlet
        server.wait(lambda: not [x for x in gc.get_objects() if isinstance(x, Session) and x.lns is ours])
    finally:
        gc.enable()


def test_how_many_copies_there_were_is_shown_after_enable_only(desk: Desk) -> None:
    looking, enabled = desk.operator(), desk.plain()
    looking.expect("> ")
    for line in ("show counters", "show counters | json"):
        assert "snoop_" not in looking.do(line, "> ") and "snoop_packets" in enabled.do(line)
