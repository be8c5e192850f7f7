"""nsctl's server on loopback, asked by octets built by hand and by the client program; plugins are played."""

from __future__ import annotations

import hashlib
import hmac
import struct
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket, subprocess
from gevent.event import Event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2tpns import nsctl, nsctlserver
from l2tpns.config import Config
from l2tpns.counters import Counters
from l2tpns.errors import ConfigError, L2tpnsError
from l2tpns.log import Log
from l2tpns.nsctlserver import NsctlServer
from l2tpns.proto.seal import unseal

SECRET = "a key that is long enough"
NOW = 1_700_000_000.0
OTHER_HOST = ("192.0.2.7", 40000)

HELP = bytes.fromhex("9013 13 00 ff")
NOTE = bytes.fromhex("9013 14 02 04 6e6f7465 03 6f6e65 ff")  # "note" "one"
SLOW = bytes.fromhex("9013 14 01 04 736c6f77 ff")  # "slow"
OK = bytes.fromhex("9013 21 00 ff")


class Plugins:
    """What the daemon's would do: `note` is a command that works, `fail` and `slow` and `broken` others."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.obeyed: list[tuple[list[str], tuple[str, int]]] = []
        self.packets: list[tuple[bytes, int, int]] = []
        self.go_on = Event()

    def load(self, name: str) -> None:
        if name in self.loaded:
            raise L2tpnsError(f"{name} is loaded already")
        self.loaded.append(name)

    def remove(self, name: str) -> None:
        if name not in self.loaded:
            raise L2tpnsError(f"{name} is not loaded")
        self.loaded.remove(name)

    def control(
        self, words: list[str], source: tuple[str, int], *, packet: bytes, kind: int, id: int
    ) -> tuple[bool, str] | None:
        self.obeyed.append((words, source))
        self.packets.append((packet, kind, id))
        match words:
            case ["note", *_]:
                return True, ""
            case ["garden" | "ungarden" as what, session]:
                return True, f"{what} {session}"
            case ["fail"]:
                return False, "session not found"
            case ["slow", *_]:
                self.go_on.wait()
                return True, "at last"
            case ["broken"]:
                raise RuntimeError("a plugin's mistake")
            case ["escape"]:
                return True, "\x1b[2Jfred\nmary"
        return None

    def control_help(self) -> list[str]:
        return ["note TEXT - make a note"]


class Stage:
    """A server with its parts; `now` is its clock, `sent` what it sends where no true socket can be."""

    def __init__(self) -> None:
        self.config = Config(nsctl_port=0, nsctl_secret="")
        self.counters = Counters()
        self.plugins = Plugins()
        self.log = Log.in_memory()
        self.now = NOW
        self.seconds = 0.0  # as monotonic() tells them
        self.sent: list[tuple[bytes, tuple[str, int]]] = []
        self.server = self.make()
        self.sockets: list[Any] = []

    def make(self) -> NsctlServer:
        return NsctlServer(self.config, self.counters, self.plugins, self.log.get(), clock=lambda: self.now)

    @property
    def port(self) -> int:
        return self.server.addresses[0][1]

    def socket(self) -> Any:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("127.0.0.1", self.port))
        sock.settimeout(10)
        self.sockets.append(sock)
        return sock

    def ask(self, octets: bytes) -> bytes:
        sock = self.socket()
        sock.send(octets)
        return bytes(sock.recv(65535))

    def hear(self, octets: bytes, source: tuple[str, int] = OTHER_HOST) -> list[bytes]:
        """A datagram from anywhere; what it is answered."""
        self.sent.clear()
        self.server.on_datagram(self, octets, source)
        for _ in range(3):
            gevent.sleep(0)
        assert all(to == source for _, to in self.sent)
        return [octets for octets, _ in self.sent]

    def sendto(self, octets: bytes, to: tuple[str, int]) -> None:
        """We are a socket, too."""
        self.sent.append((octets, to))

    def events(self, event: str) -> list[dict[str, Any]]:
        return self.log.records(event)

    def nsctl(self, *words: str, **environment: str) -> tuple[int, str, str]:
        """The client program: exit status, standard output, standard error."""
        done = subprocess.run(
            [sys.executable, "-m", "l2tpns.nsctl", *words],
            capture_output=True,
            env={"PYTHONPATH": str(Path(nsctl.__file__).parents[1]), "LC_ALL": "C.UTF-8", **environment},
            timeout=60,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def local(self, *words: str) -> tuple[int, str, str]:
        return self.nsctl("-t", "20", "-h", f"127.0.0.1:{self.port}", *words)

    def wait(self, condition: Callable[[], object]) -> None:
        until = monotonic() + 10
        while not condition():
            assert monotonic() < until
            gevent.sleep(0.005)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage()
    monkeypatch.setattr(nsctlserver, "monotonic", lambda: stage.seconds)
    stage.server.follow()
    stage.server.start()
    yield stage
    stage.server.stop()
    for sock in stage.sockets:
        sock.close()
    assert [record for record in stage.log.records() if "traceback" in record and record["event"] != "meant"] == []


def sealed(packet: bytes, at: float = NOW, nonce: bytes = bytes(16), key: str = SECRET, direction: int = 1) -> bytes:
    octets = struct.pack("!HBBQ", 0x9014, 1, direction, int(at * 1000)) + nonce + packet
    return octets + hmac.new(key.encode(), octets, hashlib.sha256).digest()


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
    failure = stage.events("nsctl_failed")[0]
    assert "a plugin's mistake" in failure["traceback"]
    stage.log._output.recent.clear()
    assert stage.ask(NOTE) == OK


# Who does what, in the log


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
        {"level": "audit", "peer": peer, "command": "note one", "result": "ok", "why": None},
        {"level": "audit", "peer": peer, "command": "fail", "result": "failed", "why": "session not found"},
        {"level": "audit", "peer": peer, "command": "load_plugin garden", "result": "ok", "why": None},
    ]


# Requests that wait, and requests that come again


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
    stage.seconds += nsctlserver.REPEATED
    sock.send(NOTE)
    assert sock.recv(65535) == OK
    assert len(stage.plugins.obeyed) == 2


def test_too_many_requests_at_once_are_told_so(stage: Stage) -> None:
    clients = [stage.socket() for _ in range(nsctlserver.MOST_AT_ONCE)]
    for sock in clients:
        sock.send(SLOW)
    stage.wait(lambda: len(stage.plugins.obeyed) == nsctlserver.MOST_AT_ONCE)
    assert b"too many requests" in stage.ask(NOTE)
    assert stage.counters.nsctl_refused == 1
    stage.plugins.go_on.set()
    for sock in clients:
        assert b"at last" in sock.recv(65535)
    assert stage.ask(NOTE) == OK


def test_a_command_that_never_ends_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nsctlserver, "CONTROL_SECONDS", 0.05)
    assert b"given up after" in stage.ask(SLOW)


def test_a_flood_is_answered_by_busy_and_forgotten(stage: Stage) -> None:
    answers = []
    for port in range(1, nsctlserver.MOST_KEPT + 50):
        answers += stage.hear(NOTE, ("127.0.0.1", port))
    assert answers.count(OK) == nsctlserver.MOST_KEPT
    assert len(stage.server._recent) == nsctlserver.MOST_KEPT
    stage.seconds += nsctlserver.REPEATED
    for port in range(2000, 2100):
        assert stage.hear(NOTE, ("127.0.0.1", port)) == [OK]
    assert len(stage.server._recent) <= 100


# From other hosts


def test_another_host_is_not_answered_without_a_secret(stage: Stage) -> None:
    assert stage.hear(NOTE) == []
    assert stage.hear(sealed(NOTE)) == []
    assert stage.hear(NOTE[:-1]) == []
    assert stage.hear(b"") == []
    assert stage.counters.nsctl_refused == 4
    assert stage.counters.nsctl_requests == 0
    assert stage.events("nsctl_refused")[0]["peer"] == "192.0.2.7:40000"
    for _ in range(100):
        stage.hear(NOTE)
    assert len(stage.events("nsctl_refused")) < 100  # a few lines a second


def test_another_host_with_the_secret_is_answered_and_the_answer_is_sealed_for_this_request(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    nonce = bytes(range(16))
    assert stage.hear(sealed(NOTE, nonce=nonce)) == [sealed(OK, nonce=nonce, direction=2)]
    assert stage.plugins.obeyed == [(["note", "one"], OTHER_HOST)]
    assert stage.events("nsctl_command")[0]["peer"] == "192.0.2.7:40000"
    assert stage.hear(NOTE) == []  # still needs it
    assert SECRET not in str(stage.log.records())


def test_the_old_format_may_be_sealed_too(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    answer = bytes.fromhex("9012 0001 0015 01020304") + b"garden 123\0"
    assert stage.hear(sealed(bytes.fromhex("9012 03e8 000e 01020304") + b"123\0")) == [sealed(answer, direction=2)]


def test_a_forged_request_is_not_answered(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    good = sealed(NOTE)
    forged = [
        sealed(NOTE, key="another key of good length"),
        good[:-1] + bytes((good[-1] ^ 1,)),
        good[:30] + b"x" + good[31:],
    ]
    for octets in forged:
        assert stage.hear(octets) == []
    assert stage.hear(sealed(NOTE, direction=2)) == []  # an answer of ours, sent back
    assert stage.plugins.obeyed == []
    assert stage.counters.nsctl_refused == 4
    assert stage.hear(good)[0][28:-32] == OK


def test_a_replayed_request_is_not_obeyed_and_only_its_sender_is_answered_again(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    octets = sealed(NOTE)
    answer = stage.hear(octets)
    assert stage.hear(octets, ("192.0.2.7", 40001)) == []
    assert stage.hear(octets, ("192.0.2.8", 40000)) == []
    assert stage.hear(sealed(NOTE.replace(b"one", b"two"))) == []  # another request under its nonce
    assert stage.counters.nsctl_refused == 3
    assert [line["why"] for line in stage.events("nsctl_refused")] == ["replayed"] * 3
    assert stage.hear(octets) == answer  # it came again: the answer was lost
    assert len(stage.plugins.obeyed) == 1


def test_a_nonce_is_kept_for_as_long_as_its_request_could_be_replayed(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    stage.server._not_before = 0.0
    for ahead in (-30, 0, 30):  # in order: what is later moves the bar
        stage.now, stage.seconds = NOW, 1000.0 + ahead * 10
        octets = sealed(NOTE, NOW + ahead, nonce=bytes((ahead + 100,)) * 16)
        stage.plugins.obeyed.clear()
        stage.hear(octets)
        for seconds in range(0, 120, 5):
            stage.now, stage.seconds = NOW + seconds, 1000.0 + ahead * 10 + seconds
            stage.hear(octets, ("192.0.2.9", 1))
        assert len(stage.plugins.obeyed) == 1


@pytest.mark.parametrize("seconds", [-31, 31, 3600])
def test_clocks_that_differ_are_told_so_to_who_has_the_key(stage: Stage, seconds: int) -> None:
    stage.config.nsctl_secret = SECRET
    (answer,) = stage.hear(sealed(NOTE, NOW + seconds))
    assert answer[28:-32].startswith(b"\x90\x13\x22\x01")
    assert f"not authorised: the clocks differ by {abs(seconds)} s".encode() in answer
    assert stage.plugins.obeyed == []
    assert stage.counters.nsctl_refused == 1


def test_what_was_sealed_before_the_start_is_refused_for_its_nonce_may_be_forgotten(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    octets = sealed(NOTE, NOW + 1)
    stage.now = NOW + 1
    stage.hear(octets)
    stage.now = NOW + 5
    stage.server.stop()
    stage.server = stage.make()
    stage.server.follow()
    (answer,) = stage.hear(octets)
    assert b"not authorised: sealed before the server started" in answer
    assert len(stage.plugins.obeyed) == 1


def test_a_clock_that_is_set_back_does_not_let_old_requests_in_again(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    old = sealed(NOTE)
    stage.hear(old)
    stage.now = NOW + 3600
    stage.hear(sealed(NOTE, NOW + 3600, bytes(15) + b"2"))
    stage.seconds += 7200
    stage.now = NOW
    stage.hear(old)
    assert len(stage.plugins.obeyed) == 2


def test_nonces_that_cannot_be_kept_let_nothing_more_in(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage.server._nonces, "_most", 3)
    stage.config.nsctl_secret = SECRET
    for number in range(5):
        stage.hear(sealed(NOTE, nonce=bytes(15) + bytes((number,))))
    assert len(stage.plugins.obeyed) == 3
    assert stage.counters.nsctl_refused == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=64).map(lambda rest: b"\x90\x12" + rest),
        st.binary(max_size=64).map(lambda rest: b"\x90\x13" + rest),
        st.binary(max_size=64).map(lambda rest: b"\x90\x14" + rest),
        st.binary(max_size=64).map(sealed),
    ),
    st.sampled_from([OTHER_HOST, ("127.0.0.1", 5)]),
)
def test_any_datagram_from_anywhere_has_one_answer_at_most_and_it_can_be_read(
    stage: Stage, octets: bytes, source: tuple[str, int]
) -> None:
    stage.config.nsctl_secret = SECRET
    answers = stage.hear(octets, source)
    assert len(answers) <= 1
    for answer in answers:
        packet = nsctl.decode(unseal(answer, SECRET.encode()).packet if octets[:2] == b"\x90\x14" else answer)
        assert packet.is_answer


# Where it listens


def test_it_listens_on_loopback_unless_told_otherwise_and_not_at_all_if_told_so(stage: Stage) -> None:
    assert Config().nsctl_bind_address == IPv4Address("127.0.0.1")
    assert Config().nsctl_port == 1702
    stage.config.nsctl_bind_address = None
    stage.server.follow()
    assert stage.server.addresses == []
    stage.config.nsctl_bind_address = IPv4Address("127.0.0.2")
    stage.server.follow()
    assert [host for host, _ in stage.server.addresses] == ["127.0.0.2"]


def test_an_address_that_cannot_be_had_is_refused_and_the_port_stays_where_it_was(stage: Stage) -> None:
    port = stage.port
    stage.config.nsctl_bind_address = IPv4Address("192.0.2.1")
    with pytest.raises(ConfigError, match=r"nsctl cannot listen on 192\.0\.2\.1:0: Cannot assign requested address"):
        stage.server.follow()
    assert stage.port == port
    assert stage.ask(NOTE) == OK


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


# The client


def test_the_client_prints_what_was_done_and_exits_with_0(stage: Stage) -> None:
    assert stage.local("note", "one") == (0, "", "")
    assert stage.local("garden", "12") == (0, "garden 12\n", "")
    assert stage.local("load_plugin", "garden") == (0, "plugin garden loaded\n", "")
    status, said, _ = stage.local("help")
    assert status == 0
    assert "note TEXT - make a note\n" in said


def test_the_client_tells_failures_apart_by_exit_status(stage: Stage) -> None:
    assert stage.local("fail") == (1, "", "nsctl: session not found\n")
    assert stage.local("unload_plugin", "garden") == (1, "", "nsctl: garden is not loaded\n")
    assert stage.local("load_plugin") == (1, "", "nsctl: load_plugin needs the name of one plugin\n")
    status, _, said = stage.local("foo")
    assert (status, said) == (5, 'nsctl: unknown command "foo": no plugin that is loaded knows it\n')


def test_the_client_says_that_nothing_listens(stage: Stage) -> None:
    port = stage.port
    stage.server.stop()
    assert stage.nsctl("-h", f"127.0.0.1:{port}", "help") == (
        4,
        "",
        f"nsctl: 127.0.0.1:{port} refuses: nothing listens there\n",
    )


def test_the_client_gives_up_when_its_time_is_over(stage: Stage) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        status, _, said = stage.nsctl("-t", "0.1", "-h", f"127.0.0.1:{port}", "note", "one")
        assert deaf.recv(65535) == NOTE
    assert (status, said) == (3, f"nsctl: no answer from 127.0.0.1:{port} within 0.1 s\n")


def test_a_lost_request_is_made_up_for(stage: Stage) -> None:
    on_datagram = stage.server.on_datagram
    heard: list[bytes] = []

    def lossy(sock: Any, octets: bytes, source: tuple[str, int]) -> None:
        heard.append(octets)
        if len(heard) > 1:
            on_datagram(sock, octets, source)

    stage.server.on_datagram = lossy  # type: ignore[method-assign]
    assert stage.local("note", "one") == (0, "", "")
    assert len(stage.plugins.obeyed) == 1
    assert heard[0] == heard[1]


def test_the_manuals_form_names_the_host_first(stage: Stage) -> None:
    assert stage.nsctl(f"127.0.0.1:{stage.port}", "garden", "12") == (0, "garden 12\n", "")
    assert stage.nsctl(f"localhost:{stage.port}", "ungarden", "12") == (0, "ungarden 12\n", "")


@pytest.mark.parametrize(
    ("argv", "words", "host"),
    [
        (["192.0.2.1", "garden", "12"], ("garden", "12"), "192.0.2.1"),
        (["-t", "1", "lns1", "ungarden", "12"], ("ungarden", "12"), "lns1"),
        (["garden", "12"], ("garden", "12"), "127.0.0.1"),
        (["ungarden", "12", "fred"], ("ungarden", "12", "fred"), "127.0.0.1"),
        (["-h", "lns1", "drop", "garden", "x"], ("drop", "garden", "x"), "lns1"),
        (["drop", "garden"], ("drop", "garden"), "127.0.0.1"),
        (["drop", "fred", "-t", "-h"], ("drop", "fred", "-t", "-h"), "127.0.0.1"),
    ],
)
def test_the_first_word_is_a_host_only_before_garden_or_ungarden_with_one_argument_and_without_h(
    argv: list[str], words: tuple[str, ...], host: str
) -> None:
    options = nsctl.parse_arguments(argv)
    assert (options.words, options.host) == (words, host)


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        ([], "no command"),
        (["-x"], "option -x not recognized"),
        (["-h"], "option -h requires argument"),
        (["-h", "a:b", "help"], '"a:b" is no HOST or HOST:PORT'),
        (["-h", ":1702", "help"], "no HOST"),
        (["-h", "a:65536", "help"], "no HOST"),
        (["-t", "soon", "help"], '"soon" is no number of seconds'),
        (["-t", "0", "help"], "no number"),
        (["-t", "nan", "help"], "no number"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(argv: list[str], what: str) -> None:
    with pytest.raises(nsctl.Mistake, match=what):
        nsctl.parse_arguments(argv)


def test_the_octets_are_shown_on_demand(stage: Stage) -> None:
    status, said, shown = stage.nsctl("-d", "-t", "20", "-h", f"127.0.0.1:{stage.port}", "note", "one")
    assert (status, said) == (0, "")
    assert shown == f"sent {len(NOTE)} octets: {NOTE.hex()}\nreceived 5 octets: {OK.hex()}\n"


def test_what_a_plugin_says_does_not_steer_the_terminal(stage: Stage) -> None:
    assert stage.local("escape") == (0, "?[2Jfred\nmary\n", "")


def test_the_client_has_the_key_from_a_file_that_is_its_owners_alone(stage: Stage, tmp_path: Path) -> None:
    stage.config.nsctl_secret = SECRET
    stage.now = gevent.get_hub().loop.now()  # the true time
    stage.server._not_before = 0
    key = tmp_path / "key"
    key.write_text(SECRET + "\n")
    key.chmod(0o600)
    where = ("-t", "20", "-h", f"127.0.0.1:{stage.port}")
    assert stage.nsctl("-k", str(key), *where, "garden", "1") == (0, "garden 1\n", "")
    assert stage.nsctl(*where, "garden", "1", NSCTL_KEY_FILE=str(key)) == (0, "garden 1\n", "")
    stage.now += 100
    status, _, said = stage.nsctl("-k", str(key), *where, "garden", "1")
    assert (status, said[:43]) == (4, "nsctl: not authorised: the clocks differ by")
    key.chmod(0o640)
    assert stage.nsctl("-k", str(key), *where, "garden", "1") == (
        2,
        "",
        f"nsctl: {key} is open to others: its mode must be 0600\n",
    )


@pytest.mark.parametrize("text", ["", "short\n", "\nsecond line that is long enough\n"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    key = tmp_path / "key"
    key.write_text(text)
    key.chmod(0o600)
    with pytest.raises(nsctl.Mistake, match="16 octets"):
        nsctl.read_key(str(key))
    with pytest.raises(nsctl.Mistake, match="No such file"):
        nsctl.read_key(str(tmp_path / "none"))
    with pytest.raises(nsctl.Mistake, match="directory"):
        nsctl.read_key(str(tmp_path))


def test_answers_that_are_not_ours_are_passed_over() -> None:
    key, nonce = SECRET.encode(), bytes(16)
    right = sealed(OK, direction=2)
    assert nsctl._read(right, key, nonce) is not None
    for wrong in (
        OK,
        sealed(OK),
        sealed(OK, direction=2, nonce=bytes(15) + b"1"),
        right[:-1],
        sealed(HELP, direction=2),
    ):
        assert nsctl._read(wrong, key, nonce) is None
    assert nsctl._read(OK, b"", nonce) is not None
    assert nsctl._read(HELP, b"", nonce) is None


def test_the_client_starts_without_the_servers_libraries() -> None:
    code = "import sys, l2tpns.nsctl; print({'gevent', 'pyroute2', 'structlog', 'l2tpns.config'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, cwd=Path(nsctl.__file__).parents[1]
    )
    assert done.stdout == b"set()\n"
