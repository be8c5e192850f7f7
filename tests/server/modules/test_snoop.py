"""The modules autosnoop and snoopctl: interception by RADIUS and by nsctl."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from l2tpns.nsctl.server import NsctlServer
from l2tpns.plugins import Session as View
from l2tpns.radius.types import AuthReply
from l2tpns.subscriber.session import Session
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Subscriber
from tests.server.policy.test_snoop import Receiver, talk

NSCTL = ("127.0.0.1", 40000)
Dial = Callable[..., tuple[Subscriber, Session]]


@pytest.fixture
def receiver() -> Any:
    receiver = Receiver()
    yield receiver
    receiver.socket.close()


@pytest.fixture
def dial(server: InProcess, lac: Lac, tmp_path: Path) -> Dial:
    """Log fred in, with these Cisco-AVPairs in the Accept."""
    server.log.open_audit(str(tmp_path / "audit"))

    def dial(*avpairs: tuple[str, str], user: str = "fred") -> tuple[Subscriber, Session]:
        server.backend.replies[user] = AuthReply(accepted=True, avpairs=avpairs)
        subscriber = lac.call(user, "pw").wait_online()
        return subscriber, next(iter(server.registry.by_user[user]))

    return dial


def audit(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "audit"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


# autosnoop


def test_intercept_with_an_address_copies_from_the_first_packet_and_accounting_says_so(
    server: InProcess, dial: Dial, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plugins.load("autosnoop")
    seen_when_online: list[bool] = []
    online = server.plane.online

    def watch(path: Any, *args: Any) -> None:
        seen_when_online.append(path.mirror is not None)
        online(path, *args)

    monkeypatch.setattr(server.plane, "online", watch)
    where = f"127.0.0.1:{receiver.sink.port}"
    subscriber, session = dial(("throttle", "no"), ("intercept", where))
    assert seen_when_online == [True]
    up, down = talk(server, subscriber, session)
    assert receiver.take(2) == [up, down]
    assert server.accounting.of("start")[0].avpairs == (f"intercept={where}",)
    (line,) = audit(tmp_path)
    assert (line["event"], line["by"], line["user"], line["sink"]) == ("snoop_on", "radius", "fred", where)
    assert line["acct"] == session.acct_session_id
    subscriber.hangup()
    server.wait(lambda: not server.lns.sessions)
    assert server.accounting.of("stop")[0].avpairs == (f"intercept={where}",)
    assert "snoop" not in str([line for line in server.log.records() if line["event"] != "plugin_loaded"])


def test_intercept_yes_goes_to_snoop_host_and_no_stays_alone(server: InProcess, dial: Dial, receiver: Receiver) -> None:
    server.plugins.load("autosnoop")
    server.config.assign("snoop_host", "127.0.0.1")
    server.config.assign("snoop_port", str(receiver.sink.port))
    subscriber, session = dial(("intercept", "yes"))
    up, down = talk(server, subscriber, session)
    assert receiver.take(2) == [up, down]
    _, mary = dial(("intercept", "no"), user="mary")
    assert mary.policy.sink is None and mary.path.mirror is None
    assert server.accounting.of("start")[1].avpairs == ()


@pytest.mark.parametrize("value", ["yes", "banana", "127.0.0.1", "127.0.0.1:0", "10.5.0.9:9000", "[::1]:9000", ""])
def test_what_cannot_be_keeps_nobody_out_and_is_in_the_audit_log(
    server: InProcess, dial: Dial, tmp_path: Path, value: str
) -> None:
    server.plugins.load("autosnoop")
    _, session = dial(("intercept", value))
    assert session.online_since and session.policy.sink is None
    lines = audit(tmp_path)
    assert [line["event"] for line in lines] == ["snoop_refused"]
    assert not [line for line in server.events("plugin_says") if "fred" in str(line)]
    assert len(server.events("plugin_says")) == len(lines)


# snoopctl


def test_snoop_and_unsnoop_by_name_and_by_id(server: InProcess, dial: Dial, receiver: Receiver, tmp_path: Path) -> None:
    plugins = server.plugins
    plugins.load("snoopctl")
    subscriber, session = dial()
    port = str(receiver.sink.port)
    assert plugins.control(["snoop", "FRED", "127.0.0.1", port], NSCTL) == (True, "snooping FRED")
    up, down = talk(server, subscriber, session)
    assert receiver.take(2) == [up, down]
    assert plugins.control(["unsnoop", str(session.id)], NSCTL) == (True, f"not snooping {session.id}")
    assert session.path.mirror is None
    assert [(line["event"], line["by"]) for line in audit(tmp_path)] == [
        ("snoop_on", "nsctl 127.0.0.1:40000"),
        ("snoop_off", "nsctl 127.0.0.1:40000"),
    ]


def test_without_an_address_it_is_snoop_hosts(server: InProcess, dial: Dial, receiver: Receiver) -> None:
    plugins = server.plugins
    plugins.load("snoopctl")
    _, session = dial()
    assert plugins.control(["snoop", "fred"], NSCTL) == (False, "snoop_host and snoop_port are not set")
    server.config.assign("snoop_host", "127.0.0.1")
    server.config.assign("snoop_port", str(receiver.sink.port))
    assert plugins.control(["snoop", "fred"], NSCTL) == (True, "snooping fred")
    assert server.services.snoop.place(session) == f"127.0.0.1:{receiver.sink.port}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["snoop"], "usage: snoop USER|SID [IP PORT]"),
        (["snoop", "fred", "127.0.0.1"], "usage: snoop USER|SID [IP PORT]"),
        (["snoop", "bob", "127.0.0.1", "9000"], "session not found"),
        (["snoop", "fred", "localhost", "9000"], "localhost 9000 is not an address and port"),
        (["snoop", "fred", "127.0.0.1", "x"], "127.0.0.1 x is not an address and port"),
        (["snoop", "fred", "127.0.0.1", "0"], "0 is not a port"),
        (["snoop", "fred", "10.5.0.9", "9000"], "10.5.0.9 is in the pool: copies would go to a subscriber"),
        (["unsnoop"], "usage: unsnoop USER|SID"),
        (["unsnoop", "bob"], "session not found"),
        (["unsnoop", "fred"], "not snooped"),
    ],
)
def test_what_nsctl_is_told_when_it_cannot_be(server: InProcess, dial: Dial, words: list[str], says: str) -> None:
    server.plugins.load("snoopctl")
    _, session = dial()
    assert server.plugins.control(words, NSCTL) == (False, says)
    assert session.policy.sink is None


def test_other_commands_are_not_its_own_and_help_knows_these(server: InProcess, dial: Dial) -> None:
    server.plugins.load("snoopctl")
    dial()
    assert server.plugins.control(["throttle", "fred"], NSCTL) is None
    assert any(line.startswith("snoop USER|SID") for line in server.plugins.control_help())


def test_a_plugin_sees_where_copies_really_go(server: InProcess, dial: Dial, receiver: Receiver) -> None:
    server.config.assign("snoop_host", "127.0.0.1")
    server.config.assign("snoop_port", str(receiver.sink.port))
    server.plugins.load("snoopctl")
    _, session = dial()
    server.services.snoop.start(session, by="test")
    assert View(session, "test").sink == (IPv4Address("127.0.0.1"), receiver.sink.port)


def test_nsctl_tells_who_is_intercepted_to_the_audit_log_only(
    server: InProcess, dial: Dial, receiver: Receiver, tmp_path: Path
) -> None:
    dial()
    sent: list[bytes] = []
    sock: Any = SimpleNamespace(sendto=lambda octets, to: sent.append(octets))
    nsctl = NsctlServer(server.config, server.counters, server.plugins, server.log.get())

    def ask(*words: str) -> bytes:
        arguments = b"".join(bytes([len(word)]) + word.encode() for word in words)
        sent.clear()
        nsctl.on_datagram(sock, b"\x90\x13\x14" + bytes([len(words)]) + arguments + b"\xff", ("127.0.0.1", 4000))
        server.wait(lambda: sent)
        return sent[0]

    port = str(receiver.sink.port)
    assert b"no plugin that is loaded knows it" in ask("snoop", "fred", "127.0.0.1", port)
    server.plugins.load("snoopctl")
    assert b"snooping fred" in ask("snoop", "Fred", "127.0.0.1", port).lower()
    assert b"session not found" in ask("unsnoop", "bob")
    told = [line for line in audit(tmp_path) if line["event"] == "nsctl_command"]
    assert [(line["command"], line["result"]) for line in told] == [
        (f"snoop Fred 127.0.0.1 {port}", "ok"),
        ("unsnoop bob", "failed"),
    ]
    assert all(line["peer"] == "127.0.0.1:4000" for line in told)
    log = str([line for line in server.log.records() if line["event"].startswith("nsctl")])
    assert "snoop" in log and "red" not in log and port not in log and "bob" not in log
