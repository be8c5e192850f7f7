"""nsctl against the daemon with plugins: octets built by hand on its port, and the program on another host."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import PATIENCE
from tests.lab.console import Console
from tests.lab.lac import Lac
from tests.lab.netns import Lab, Namespace, is_root, three_hosts
from tests.lab.server import CHECKOUT, Server

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, CLIENT = "192.0.2.1", "192.0.2.2"
SECRET = "what both of them know"
HELP = bytes.fromhex("9013 13 00 ff")
NOTE = bytes.fromhex("9013 14 02 04 6e6f7465 03 6f6e65 ff")  # "note" "one"
PLUGIN = '''
"""Notes: `nsctl note TEXT`."""
import gevent
from l2tpns.plugins import PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP

plugin_control_help = ["note TEXT - make a note"]
NOTES = []


def plugin_control(event):
    if event.argv[0] == "note":
        NOTES.append(" ".join(event.argv[1:]))
        event.response = f"{len(NOTES)} notes"
        return PLUGIN_RET_STOP
    if event.argv[0] == "wait":
        gevent.sleep(1)
        event.response = "waited"
        return PLUGIN_RET_STOP
    if event.argv[0] == "refuse":
        event.response = "not today"
        return PLUGIN_RET_ERROR
    return PLUGIN_RET_OK
'''


def octets(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


def sealed(packet: bytes, key: str = SECRET, nonce: bytes = b"") -> bytes:
    head = struct.pack("!HBBQ", 0x9014, 1, 1, int(time.time() * 1000)) + (nonce or random.randbytes(16))
    return head + packet + hmac.new(key.encode(), head + packet, hashlib.sha256).digest()


class Stage:
    """The daemon with a plugin of the test's own, and another host beside it."""

    def __init__(self, lab: Lab, secrets: str = "", **settings: Any) -> None:
        self.elsewhere, self.machine, _ = three_hosts(lab)
        self.plugins = lab.directory / "plugins"
        self.plugins.mkdir()
        (self.plugins / "notes.py").write_text(PLUGIN)
        self.server = Server(
            self.machine, lab.directory / "lns", settings={"plugin_dir": str(self.plugins), **settings}, secrets=secrets
        )
        self.server.start()
        self.key = lab.directory / "key"
        self.key.write_text(SECRET + "\n")
        self.key.chmod(0o600)

    def nsctl(self, *words: str, where: Namespace | None = None) -> tuple[int, str, str]:
        """The program, on the server's machine unless told otherwise: exit status, standard output, standard error."""
        argv = (where or self.machine).command(sys.executable, "-m", "l2tpns.nsctl", "-t", str(PATIENCE), *words)
        done = subprocess.run(argv, capture_output=True, text=True, cwd=CHECKOUT, timeout=2 * PATIENCE)
        return done.returncode, done.stdout, done.stderr

    def socket(self, where: Namespace, address: str, port: int = 0) -> socket.socket:
        sock = where.socket()
        sock.settimeout(PATIENCE)
        sock.bind(("", port))
        sock.connect((address, 1702))
        return sock

    def ask(self, request: bytes) -> bytes:
        with self.socket(self.machine, "127.0.0.1") as sock:
            sock.send(request)
            return sock.recv(65535)

    def console(self, line: str) -> str:
        with Console(self.machine) as console:
            return console.do(line)

    def counter(self, name: str) -> int:
        found: int = json.loads(self.console("show counters | json"))[name]
        return found

    def close(self) -> None:
        assert self.server.stop() == 0
        assert self.server.tracebacks() == ""
        assert not any("traceback" in line for line in self.server.log())


@pytest.fixture
def open_stage(lab: Lab) -> Iterator[Stage]:
    """Other hosts may ask, if they know the secret."""
    stage = Stage(lab, nsctl_bind_address=LNS, nsctl_secret=SECRET)
    yield stage
    stage.close()


def test_both_formats_load_use_and_remove_a_plugin(stage: Stage) -> None:
    assert stage.ask(NOTE)[:3] == bytes.fromhex("901322")  # nobody knows "note" yet
    # 1.1: LOAD_PLUGIN, length, id, "notes"; the answer echoes the id
    load = struct.pack("!HHHI", 0x9012, 5, 16, 0xCAFE) + b"notes\0"
    answer = stage.ask(load)
    assert struct.unpack_from("!HHHI", answer) == (0x9012, 1, len(answer), 0xCAFE)
    assert answer[10:] == b"plugin notes loaded\0"
    assert "notes" in stage.console("show plugins")
    assert 'load plugin "notes"' in stage.console("show running-config")
    assert stage.ask(NOTE) == bytes.fromhex("9013 21 01") + octets("1 notes") + b"\xff"
    assert octets("note TEXT - make a note") in stage.ask(HELP)
    # 1.1: GARDEN is a command for plugins; this one does not know it
    garden = stage.ask(struct.pack("!HHHI", 0x9012, 1000, 12, 7) + b"1\0")
    assert struct.unpack_from("!HHHI", garden) == (0x9012, 2, len(garden), 7)
    assert garden[10:].startswith(b'unknown command "garden"')
    # 2.x: UNLOAD, once and twice
    unload = bytes.fromhex("9013 12 01") + octets("notes") + b"\xff"
    assert stage.ask(unload) == bytes.fromhex("9013 21 01") + octets("plugin notes removed") + b"\xff"
    assert stage.ask(unload)[:3] == bytes.fromhex("901322")
    assert stage.ask(NOTE)[:3] == bytes.fromhex("901322")
    assert 'load plugin "notes"' not in stage.console("show running-config")


@pytest.mark.shows("set nsctl_port", "set nsctl_bind_address")
def test_the_port_moves_at_once(stage: Stage) -> None:
    stage.console("set nsctl_port 1802")
    assert stage.nsctl("help") == (4, "", "nsctl: 127.0.0.1:1702 refuses: nothing listens there\n")
    assert stage.nsctl("-h", "127.0.0.1:1802", "help")[0] == 0
    stage.console("set nsctl_bind_address 0.0.0.0")  # which says: none
    assert stage.nsctl("-h", "127.0.0.1:1802", "help")[0] == 4


def test_the_program_says_by_its_exit_status_what_became_of_the_command(stage: Stage) -> None:
    assert stage.nsctl("load_plugin", "notes") == (0, "plugin notes loaded\n", "")
    assert stage.nsctl("note", "one") == (0, "1 notes\n", "")
    assert stage.nsctl("wait") == (0, "waited\n", "")
    assert stage.nsctl("refuse") == (1, "", "nsctl: not today\n")
    status, _, said = stage.nsctl("load_plugin", "notse")
    assert (status, "notse" in said) == (1, True)
    status, _, said = stage.nsctl("foo")
    assert (status, said.startswith('nsctl: unknown command "foo"')) == (5, True)
    assert stage.nsctl("-t", "0.1", "-h", "198.51.100.2", "help")[0] in (3, 4)
    lines = [(line["command"], line["result"]) for line in stage.server.log("nsctl_command", level="audit")]
    assert lines == [
        ("load_plugin notes", "ok"),
        ("note one", "ok"),
        ("wait", "ok"),
        ("refuse", "failed"),
        ("load_plugin notse", "failed"),
    ]


@pytest.mark.shows("set nsctl_bind_address")
def test_an_address_that_the_machine_does_not_have_is_refused_at_once(stage: Stage) -> None:
    said = stage.console("set nsctl_bind_address 192.0.2.99")
    assert "nsctl cannot listen on 192.0.2.99:1702" in said
    assert "set nsctl_bind_address 127.0.0.1" in stage.console("show running-config")
    assert stage.nsctl("help")[0] == 0


def test_the_daemon_hears_nobody_from_elsewhere_unless_it_is_told_to(stage: Stage) -> None:
    assert stage.nsctl("-h", LNS, "help", where=stage.elsewhere)[0] == 4  # the kernel refuses: nothing listens there
    # With the port open, but no secret: not a word.
    said = stage.console(f"set nsctl_bind_address {LNS}")
    assert "refuse" not in said and "cannot" not in said
    status, _, complaint = stage.nsctl("-t", "1", "-h", LNS, "help", where=stage.elsewhere)
    assert (status, complaint) == (
        3,
        f"nsctl: no answer from {LNS}:1702 within 1 s; other hosts need its nsctl_secret, see -k\n",
    )
    with stage.socket(stage.elsewhere, LNS) as sock:
        sock.send(sealed(HELP))
        stage.server.wait_for("nsctl_refused", why="sealed, and there is no nsctl_secret")
    assert stage.server.log("nsctl_refused", why="from another host, and not sealed with nsctl_secret")
    assert stage.nsctl("help")[0] == 0  # loopback as ever


@pytest.mark.shows("set nsctl_secret")
def test_another_host_with_the_key_is_obeyed(open_stage: Stage) -> None:
    stage = open_stage
    remote = ("-h", LNS, "-k", str(stage.key))
    assert stage.nsctl(*remote, "load_plugin", "notes", where=stage.elsewhere) == (0, "plugin notes loaded\n", "")
    assert stage.nsctl(*remote, "note", "x", where=stage.elsewhere) == (0, "1 notes\n", "")
    assert stage.nsctl("note", "y") == (0, "2 notes\n", "")  # on the machine itself: no key
    command = stage.server.log("nsctl_command", command="note x")[0]
    assert command["peer"].startswith(f"{CLIENT}:")
    stage.key.write_text("some other secret\n")
    status, _, said = stage.nsctl("-t", "1", *remote, "note", "z", where=stage.elsewhere)
    assert (status, said) == (
        3,
        f"nsctl: no answer from {LNS}:1702 within 1 s; is the key the server's nsctl_secret?\n",
    )
    assert SECRET not in stage.server.output.read_text()


def test_a_forged_and_a_replayed_request_are_refused(open_stage: Stage) -> None:
    stage = open_stage
    stage.nsctl("load_plugin", "notes")
    true, nonce = sealed(NOTE, nonce=bytes(range(16))), bytes(range(16))
    with stage.socket(stage.elsewhere, LNS) as victim, stage.socket(stage.elsewhere, LNS) as villain:
        villain.send(NOTE)  # not sealed
        villain.send(sealed(NOTE, key="a guess of his own"))
        villain.send(true[:-1] + bytes((true[-1] ^ 1,)))
        stage.server.wait_for("nsctl_refused", count=3)
        victim.send(true)
        answer = victim.recv(65535)
        assert answer[:4] == bytes.fromhex("90140102")  # sealed, an answer
        assert answer[12:28] == nonce
        assert answer[28:-32] == bytes.fromhex("9013 21 01") + octets("1 notes") + b"\xff"
        assert hmac.new(SECRET.encode(), answer[:-32], hashlib.sha256).digest() == answer[-32:]
        villain.send(true)  # overheard
        stage.server.wait_for("nsctl_refused", why="replayed")
        villain.send(answer)  # sent back
        stage.server.wait_for("nsctl_refused", why="an answer, sent as a request")
        victim.send(true)  # he has not heard the answer: the same one, and nothing is done
        assert victim.recv(65535) == answer
        villain.setblocking(False)
        with pytest.raises(BlockingIOError):
            villain.recv(65535)
    assert len(stage.server.log("nsctl_command", command="note one")) == 1
    assert [line["why"] for line in stage.server.log("nsctl_refused")] == [
        "from another host, and not sealed with nsctl_secret",
        "not sealed with the shared key",
        "not sealed with the shared key",
        "replayed",
        "an answer, sent as a request",
    ]
    assert stage.counter("nsctl_refused") == 5


def test_a_flood_of_junk_costs_neither_the_daemon_nor_the_next_request(open_stage: Stage) -> None:
    stage = open_stage
    stage.nsctl("load_plugin", "notes")
    chance = random.Random(1702)
    before = stage.server.rss()
    with stage.socket(stage.elsewhere, LNS) as far, stage.socket(stage.machine, "127.0.0.1") as near:
        for _ in range(20_000):
            head = chance.choice((b"", b"\x90\x12", b"\x90\x13", b"\x90\x13\x14", b"\x90\x14\x01\x01"))
            junk = head + chance.randbytes(chance.choice((0, 1, 7, 60, 300)))
            chance.choice((far, near)).send(junk)
        for sock in (far, near):
            sock.send(bytes(65_507))
        near.setblocking(False)
        try:
            while True:
                heard = near.recv(65535)
                assert heard.startswith((b"\x90\x13\x22", b"\x90\x12\x00\x02"))  # ERROR
        except BlockingIOError:
            pass
    assert stage.nsctl("note", "one") == (0, "1 notes\n", "")
    assert stage.server.rss() - before < 20_000_000
    assert len(stage.server.log("nsctl_refused")) + len(stage.server.log("nsctl_malformed")) < 20_000
    assert stage.counter("nsctl_malformed") > 0
    assert stage.counter("nsctl_refused") > 0


# The modules that come along


class Subscribers(Stage):
    """Fred and Mary online, and the modules of this checkout that nsctl has commands of."""

    MODULES = ("sessionctl", "throttlectl", "snoopctl", "garden")

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab, secrets="fred * pw *\nmary * pw *\n")
        for name in self.MODULES:
            shutil.copy(CHECKOUT / "modules" / f"{name}.py", self.plugins)
            assert self.nsctl("load_plugin", name) == (0, f"plugin {name} loaded\n", "")
        self.lac = Lac(("0.0.0.0", 0), (LNS, 1701), sock=self.elsewhere.socket()).connect()
        self.fred = self.lac.call("fred", "pw").wait_online()
        self.mary = self.lac.call("mary", "pw").wait_online()

    def id_of(self, user: str) -> str:
        return str(self.server.log("session_up", user=user)[-1]["session"])

    def session(self, user: str) -> dict[str, Any]:
        (found,) = json.loads(self.console(f"show session {self.id_of(user)} | json"))
        assert isinstance(found, dict)
        return found

    def close(self) -> None:
        self.lac.close()
        super().close()


@pytest.fixture
def subscribers(lab: Lab) -> Iterator[Subscribers]:
    stage = Subscribers(lab)
    yield stage
    stage.close()


def test_every_module_that_comes_along_tells_of_its_commands(subscribers: Subscribers) -> None:
    status, said, _ = subscribers.nsctl("help")
    assert status == 0
    words = {line.split()[0] for line in said.splitlines()}
    for word in ("drop", "kill", "throttle", "unthrottle", "snoop", "unsnoop", "garden", "ungarden"):
        assert word in words


def test_sessions_are_throttled_by_user_or_id_and_only_they(subscribers: Subscribers) -> None:
    stage = subscribers
    fred = stage.id_of("fred")
    assert stage.nsctl("throttle", "fred", "512")[0] == 0
    assert (stage.session("fred")["rate_in"], stage.session("fred")["rate_out"]) == (512, 512)
    assert not stage.session("mary")["throttled"]
    assert stage.nsctl("throttle", fred, "out", "128")[0] == 0
    assert (stage.session("fred")["rate_in"], stage.session("fred")["rate_out"]) == (512, 128)
    assert stage.nsctl("throttle", "fred", "0")[0] == 1
    assert stage.nsctl("unthrottle", "fred")[0] == 0
    assert not stage.session("fred")["throttled"]
    assert stage.nsctl("unthrottle", "fred") == (1, "", "nsctl: not throttled\n")
    assert stage.nsctl("throttle", "nobody", "512") == (1, "", "nsctl: session not found\n")


@pytest.mark.parametrize("old", [True, False], ids=["in the format of 1.1", "as the manual types it"])
def test_a_session_goes_into_the_garden_and_out_of_it(subscribers: Subscribers, old: bool) -> None:
    stage = subscribers
    fred = stage.id_of("fred")

    def ask(what: str) -> bool:
        if not old:
            return stage.nsctl("127.0.0.1", what, fred)[0] == 0
        string = fred.encode() + b"\0"
        kind = {"garden": 1000, "ungarden": 1001}[what]
        answer = stage.ask(struct.pack("!HHHI", 0x9012, kind, 10 + len(string), kind) + string)
        assert struct.unpack_from("!HHHI", answer) == (0x9012, answer[3], len(answer), kind)
        return answer[3] == 1

    assert ask("garden")
    assert stage.session("fred")["garden"] == "garden"
    assert stage.session("mary")["garden"] is None
    assert not ask("garden")  # he is there already
    assert ask("ungarden")
    assert stage.session("fred")["garden"] is None
    assert not ask("ungarden")


def test_copies_of_a_users_packets_are_switched_on_and_off(subscribers: Subscribers) -> None:
    stage = subscribers
    assert stage.nsctl("snoop", "fred", "198.51.100.2", "9000")[0] == 0
    assert stage.session("fred")["sink"] == "198.51.100.2:9000"
    assert stage.session("mary")["sink"] is None
    assert stage.nsctl("unsnoop", "fred")[0] == 0
    assert stage.session("fred")["sink"] is None
    assert stage.nsctl("unsnoop", "fred") == (1, "", "nsctl: not snooped\n")


def test_sessions_are_dropped_and_killed_and_only_they(subscribers: Subscribers) -> None:
    stage = subscribers
    assert stage.nsctl("drop", "fred", "unpaid", "bill")[0] == 0
    stage.server.wait_for("session_down", user="fred")
    assert stage.nsctl("drop", "fred") == (1, "", "nsctl: session not found\n")
    assert not stage.server.log("session_down", user="mary")
    assert stage.nsctl("kill", stage.id_of("mary"))[0] == 0
    stage.server.wait_for("session_down", user="mary")


def test_another_host_with_the_key_steers_a_session(subscribers: Subscribers) -> None:
    stage = subscribers
    stage.console(f'set nsctl_secret "{SECRET}"')
    stage.console(f"set nsctl_bind_address {LNS}")
    remote = ("-h", LNS, "-k", str(stage.key))
    assert stage.nsctl(*remote, "throttle", "mary", "64", where=stage.elsewhere)[0] == 0
    assert stage.session("mary")["throttled"]
    assert stage.server.log("nsctl_command", command="throttle mary 64")[0]["peer"].startswith(CLIENT)
    assert SECRET not in stage.server.output.read_text()
