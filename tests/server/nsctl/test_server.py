"""The nsctl server on loopback, in both formats."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from l2tpns.config.settings import Config
from l2tpns.errors import ConfigError
from l2tpns.nsctl import server as nsctlserver
from tests.server.nsctl_stage import HELP, NOTE, OK, SECRET, SLOW, Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


# Both formats


def test_a_2_x_client_is_answered(stage: Stage) -> None:
    assert stage.ask(NOTE) == OK
    assert stage.plugins.obeyed[0][0] == ["note", "one"]
    assert stage.plugins.obeyed[0][1][0] == "127.0.0.1"
    assert stage.counters.nsctl_requests == 1


def test_help_has_the_commands_of_server_and_plugins(stage: Stage) -> None:
    answer = stage.ask(HELP)
    assert answer[:4] == b"\x90\x13\x21\x04"
    for line in (b"load_plugin NAME", b"unload_plugin NAME", b"help", b"note TEXT - make a note"):
        assert line in answer
    assert stage.events("nsctl_command") == []


def test_a_1_1_client_is_answered_with_its_id(stage: Stage) -> None:
    garden = bytes.fromhex("9012 03e8 000e 01020304") + b"123\0"
    assert stage.ask(garden) == bytes.fromhex("9012 0001 0015 01020304") + b"garden 123\0"
    ungarden = bytes.fromhex("9012 03e9 000e 01020305") + b"123\0"
    assert stage.ask(ungarden) == bytes.fromhex("9012 0001 0017 01020305") + b"ungarden 123\0"
    assert [words for words, _ in stage.plugins.obeyed] == [["garden", "123"], ["ungarden", "123"]]
    assert stage.plugins.packets == [(garden, 1000, 0x01020304), (ungarden, 1001, 0x01020305)]


def test_plugins_are_loaded_and_removed_in_either_format_and_the_answer_says_so(stage: Stage) -> None:
    name = b"garden"
    assert stage.ask(bytes.fromhex("9012 0005 0011 00000001") + name + b"\0")[:10].hex() == "90120001001f00000001"
    assert stage.plugins.loaded == ["garden"]
    assert stage.ask(b"\x90\x13\x12\x01\x06" + name + b"\xff")[2] == 0x21
    assert stage.plugins.loaded == []
    assert stage.ask(bytes.fromhex("9012 0006 0011 00000002") + name + b"\0")[:4].hex() == "90120002"
    assert stage.ask(b"\x90\x13\x11\x01\x06" + name + b"\xff")[2] == 0x21
    again = stage.ask(b"\x90\x13\x11\x01\x06" + name + b"\xff")
    assert again == b"\x90\x13\x22\x01\x18garden is loaded already\xff"


def test_the_longest_argument_is_read(stage: Stage) -> None:
    assert stage.ask(bytes.fromhex("9013 14 02 04 6e6f7465 ff") + b"x" * 255 + b"\xff") == OK
    assert stage.plugins.obeyed[0][0] == ["note", "x" * 255]


def test_an_unknown_command_is_an_error_that_says_so(stage: Stage) -> None:
    answer = stage.ask(bytes.fromhex("9013 14 01 03 666f6f ff"))
    assert answer[:4] == b"\x90\x13\x22\x01"
    assert answer[5:].startswith(b'unknown command "foo"')
    assert stage.ask(bytes.fromhex("9013 14 00 ff"))[5:] == b"no command given\xff"


def test_an_unknown_type_is_an_error_and_so_is_a_packet_that_is_cut(stage: Stage) -> None:
    assert stage.ask(bytes.fromhex("9013 15 00 ff")) == b"\x90\x13\x22\x01\x19unknown request type 0x15\xff"
    assert stage.ask(bytes.fromhex("9012 0003 000a 00000009"))[:10].hex() == "90120002002100000009"
    assert stage.ask(NOTE[:-1])[2] == 0x22
    assert stage.plugins.obeyed == []
    assert stage.counters.nsctl_malformed == 3


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x00" * 60000,
        b"GET / HTTP/1.0\r\n\r\n",
        OK,
        b"\x90\x12",
        bytes.fromhex("9012 0002 000a 00000009"),
        OK + b"x",
    ],
    ids=["empty", "60000 octets", "http", "an answer", "cut", "an old answer", "a broken answer"],
)
def test_junk_and_answers_are_never_answered(stage: Stage, octets: bytes) -> None:
    sock = stage.socket()
    sock.send(octets)
    sock.send(NOTE)
    assert sock.recv(65535) == OK  # and nothing before it
    assert stage.counters.nsctl_malformed == 1


def test_a_plugin_that_fails_has_an_answer_and_the_next_request_is_served(stage: Stage) -> None:
    answer = stage.ask(bytes.fromhex("9013 14 01 06 62726f6b656e ff"))
    assert answer[2] == 0x22
    assert b"an error of this server" in answer
    stage.meant = stage.events("nsctl_failed")
    assert "a plugin's mistake" in stage.meant[0]["traceback"]
    assert stage.ask(NOTE) == OK


# Log events


def test_every_command_is_in_the_audit_log_with_its_source_and_its_result(stage: Stage) -> None:
    sock = stage.socket()
    stage.log.level = 0
    for octets in (NOTE, bytes.fromhex("9013 14 01 04 6661696c ff"), b"\x90\x13\x11\x01\x06garden\xff"):
        sock.send(octets)
        sock.recv(65535)
    peer = "{}:{}".format(*sock.getsockname())
    assert [
        {key: line.get(key) for key in ("level", "peer", "command", "result", "why")}
        for line in stage.events("nsctl_command")
    ] == [
        {"level": "audit", "peer": peer, "command": "note one", "result": "ok", "why": ""},
        {"level": "audit", "peer": peer, "command": "fail", "result": "failed", "why": "session not found"},
        {"level": "audit", "peer": peer, "command": "load_plugin garden", "result": "ok", "why": ""},
    ]


# Slow and repeated requests


def test_a_command_that_waits_holds_nobody_up(stage: Stage) -> None:
    slow = stage.socket()
    slow.send(SLOW)
    assert stage.ask(NOTE) == OK
    stage.plugins.go_on.set()
    assert slow.recv(65535) == b"\x90\x13\x21\x01\x07at last\xff"


def test_a_repeated_request_is_obeyed_once_and_answered_again(stage: Stage) -> None:
    sock = stage.socket()
    for _ in range(3):
        sock.send(SLOW)
    stage.wait(lambda: len(stage.plugins.obeyed) == 1)
    stage.plugins.go_on.set()
    answer = sock.recv(65535)
    sock.send(SLOW)
    assert sock.recv(65535) == answer
    assert len(stage.plugins.obeyed) == 1


def test_the_same_command_from_another_client_or_after_another_command_is_another_one(stage: Stage) -> None:
    first, second = stage.socket(), stage.socket()
    other = NOTE.replace(b"one", b"two")
    for sock, octets in ((first, NOTE), (second, NOTE), (first, other), (first, NOTE)):
        sock.send(octets)
        assert sock.recv(65535) == OK
    assert [words[1] for words, _ in stage.plugins.obeyed] == ["one", "one", "two", "one"]


def test_an_answer_is_not_repeated_for_ever(stage: Stage) -> None:
    sock = stage.socket()
    for _ in range(2):
        sock.send(NOTE)
        assert sock.recv(65535) == OK
    assert len(stage.plugins.obeyed) == 1
    stage.seconds += nsctlserver.ANSWER_LIFETIME
    sock.send(NOTE)
    assert sock.recv(65535) == OK
    assert len(stage.plugins.obeyed) == 2


def test_too_many_requests_at_once_are_told_so(stage: Stage) -> None:
    clients = [stage.socket() for _ in range(nsctlserver.MAX_RUNNING)]
    for sock in clients:
        sock.send(SLOW)
    stage.wait(lambda: len(stage.plugins.obeyed) == nsctlserver.MAX_RUNNING)
    assert b"too many requests" in stage.ask(NOTE)
    assert stage.counters.nsctl_refused == 1
    stage.plugins.go_on.set()
    for sock in clients:
        assert b"at last" in sock.recv(65535)
    assert stage.ask(NOTE) == OK


def test_a_command_that_never_ends_is_given_up(stage: Stage) -> None:
    stage.restart(control_timeout=0.05)
    assert b"given up after" in stage.ask(SLOW)


def test_a_flood_is_answered_by_busy_and_forgotten(stage: Stage) -> None:
    answers = []
    for port in range(1, nsctlserver.MAX_RECENT + 50):
        answers += stage.hear(NOTE, ("127.0.0.1", port))
    assert answers.count(OK) == nsctlserver.MAX_RECENT
    assert len(stage.server._recent) == nsctlserver.MAX_RECENT
    stage.seconds += nsctlserver.ANSWER_LIFETIME
    for port in range(2000, 2100):
        assert stage.hear(NOTE, ("127.0.0.1", port)) == [OK]
    assert len(stage.server._recent) <= 100


# Where it listens


@pytest.mark.shows("set nsctl_bind_address")
def test_it_listens_on_loopback_unless_told_otherwise_and_not_at_all_if_told_so(stage: Stage) -> None:
    assert Config().nsctl_bind_address == IPv4Address("127.0.0.1")
    assert Config().nsctl_port == 1702
    stage.config.nsctl_bind_address = None
    stage.server.apply_config()
    assert stage.server.addresses == []
    stage.config.nsctl_bind_address = IPv4Address("127.0.0.2")
    stage.server.apply_config()
    assert [host for host, _ in stage.server.addresses] == ["127.0.0.2"]


def test_an_address_that_cannot_be_had_is_refused_and_the_port_stays_where_it_was(stage: Stage) -> None:
    port = stage.port
    stage.config.nsctl_bind_address = IPv4Address("192.0.2.1")
    with pytest.raises(ConfigError, match=r"nsctl cannot listen on 192\.0\.2\.1:0: Cannot assign requested address"):
        stage.server.apply_config()
    assert stage.port == port
    assert stage.ask(NOTE) == OK


@pytest.mark.shows("set nsctl_secret")
def test_an_address_that_others_reach_needs_a_secret_or_a_warning_is_due() -> None:
    config = Config(nsctl_bind_address=IPv4Address("192.0.2.1"))
    assert ("nsctl_bind_address", "nsctl_secret is not set: requests from other hosts are not answered") in [
        *config.without_effect()
    ]
    config.assign("nsctl_secret", SECRET)
    assert list(config.without_effect()) == []
    with pytest.raises(ConfigError, match="at least 16 characters"):
        config.assign("nsctl_secret", "too short")
    assert SECRET in config.secrets()
