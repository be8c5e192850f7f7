"""The console as an operator meets it: Debian's telnet on a terminal, against the daemon on port 23."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import crypt_r
import pexpect
import pytest

from tests.lab import PATIENCE
from tests.lab.netns import Lab, Namespace, is_root
from tests.lab.server import Server, ServerDied
from tools import transcript

pytestmark = pytest.mark.live
PROMPT, CONFIG_PROMPT = "lns1# ", r"lns1\(config\)# "
LOOKS = [
    "show session", "show session history", "show tunnels", "show tunnels all", "show users", "show pool",
    "show radius", "show radius all", "show counters", "show running-config", "show version", "show banana",
    "show plugins", "show log", "show access-list", "uptime", "write terminal", "history", "help",
]  # fmt: skip


@pytest.fixture
def machine() -> Iterator[Namespace]:
    if not is_root():
        pytest.skip("needs root for namespaces")
    if shutil.which("telnet") is None:
        pytest.skip("needs telnet")
    with Lab() as lab:
        yield lab.namespace("server")


@pytest.fixture
def server(machine: Namespace, tmp_path: Path) -> Iterator[Server]:
    users = f"# the operators\nfred:hush\nmary:{crypt_r.crypt('quiet', '$y$j9T$abcdefghijklmnop')}\n"
    with Server(machine, tmp_path, settings={"hostname": "lns1"}, secrets="", users=users) as server:
        yield server
    assert server.tracebacks() == ""


class Telnet(pexpect.spawn):
    """telnet in the server's namespace, on a terminal of 80 by 24."""

    def __init__(self, machine: Namespace) -> None:
        command, *arguments = machine.command("telnet", "127.0.0.1")
        super().__init__(command, arguments, dimensions=(24, 80), encoding="utf-8", timeout=PATIENCE)
        self.delaybeforesend = None

    def login(self, name: str, password: str) -> None:
        self.expect("Username: ")
        self.send(f"{name}\r")
        self.expect("Password: ")
        self.send(f"{password}\r")

    def do(self, line: str, prompt: str = PROMPT) -> str:
        """Type a command; what it said."""
        self.send(f"{line}\r")
        self.expect(re.escape(line) + r"\r\n")
        self.expect(prompt)
        assert self.before is not None
        return self.before.replace("\r\n", "\n")


@pytest.fixture
def telnet(machine: Namespace, server: Server) -> Iterator[Telnet]:
    with Telnet(machine) as telnet:
        telnet.login("mary", "quiet")
        telnet.expect(PROMPT)
        yield telnet


@pytest.mark.shows("quit")
def test_login_by_clear_text_and_by_hash_and_not_by_a_wrong_password(machine: Namespace, server: Server) -> None:
    with Telnet(machine) as telnet:
        telnet.login("fred", "hushhush")
        telnet.expect("Access denied")
        assert "hush" not in (telnet.before or "")  # not echoed
        telnet.login("fred", "hush")
        telnet.expect(PROMPT)
        telnet.send("quit\r")
        telnet.expect(pexpect.EOF)
    with Telnet(machine) as telnet:
        telnet.login("mary", "quiet")
        telnet.expect(PROMPT)
    server.wait_for("console_login", user="mary")
    assert len(server.log("console_login_refused", user="fred")) == 1
    assert "hush" not in server.output.read_text()


def test_help_completion_abbreviation_and_history(telnet: Telnet) -> None:
    telnet.send("show ?")
    telnet.expect(r"  counters +what was counted")
    telnet.expect("--More--")
    telnet.send(" ")
    telnet.expect("lns1# show ")
    telnet.send("vers\t")
    telnet.expect("ion ")
    telnet.send("\r")
    telnet.expect("L2TPNS ")
    telnet.expect(PROMPT)
    assert telnet.do("sh ver").startswith("L2TPNS ")
    telnet.send("\x1b[A\x1b[A")  # twice up
    telnet.expect("show version")
    telnet.send("\x01\x0b")  # ^A ^K
    telnet.send("shwo ver\x02\x02\x02\x02\x02\x02\x08")  # ^B to the o, backspace takes the w
    telnet.send("\x05\x15show version\r")  # ^E ^U, and anew
    telnet.expect("L2TPNS ")
    telnet.expect(PROMPT)
    telnet.send("half a line\x03")  # ^C
    telnet.expect(r"\^C\r\n")
    telnet.expect(PROMPT)


def test_pages_and_filters(telnet: Telnet) -> None:
    telnet.send("show running-config\r")
    telnet.expect("--More--")
    telnet.send(" ")
    telnet.expect("--More--")
    telnet.send("q")
    telnet.expect(PROMPT)
    telnet.do("terminal length 0")
    whole = telnet.do("show running-config")
    assert whole.startswith("# Current configuration:\n")
    assert whole.endswith("# end\n")
    assert telnet.do("show running-config | include ^set radius_(secret|interim) ").count("\n") == 2
    assert "set hostname" not in telnet.do("show running-config | exclude hostname")
    assert telnet.do("show running-config | begin # Plugins") == "# Plugins\n# end\n"
    assert json.loads(telnet.do("show version | json"))["version"]


def test_each_show_says_something(telnet: Telnet) -> None:
    telnet.do("terminal length 0")
    for line in LOOKS:
        said = telnet.do(line)
        assert "%" not in said, line
        if line.startswith("show"):
            json.loads(telnet.do(f"{line} | json"))


@pytest.mark.shows("write memory", "configure terminal")
def test_a_configuration_that_was_written_is_there_after_a_restart(
    machine: Namespace, server: Server, telnet: Telnet
) -> None:
    telnet.do("terminal length 0")
    telnet.do("configure terminal", CONFIG_PROMPT)
    assert 'Setting "hello_interval" to "33"' in telnet.do("set hello_interval 33", CONFIG_PROMPT)
    assert "after a restart" in telnet.do("set tundevicename tun7", CONFIG_PROMPT)
    assert "will not do" in telnet.do("set hello_interval never", CONFIG_PROMPT)
    telnet.do('set radius_secret "a \\"b\\" c"', CONFIG_PROMPT)
    telnet.do("end")
    before = telnet.do("show running-config")
    assert "set hello_interval 33\n" in before
    assert "set tundevicename tun7\n" not in before  # a text stands between quotation marks
    assert 'set tundevicename "tun7"\n' in before
    mode = server.config.stat().st_mode
    assert mode & 0o007 == 0
    assert "Writing configuration\n" in telnet.do("write memory")
    assert server.config.read_text().replace("\r", "") == before
    assert server.config.stat().st_mode == mode
    assert "% " not in telnet.do("reload")
    server.stop()
    telnet.expect(pexpect.EOF)
    server.start()
    with Telnet(machine) as again:
        again.login("fred", "hush")
        again.expect(PROMPT)
        again.do("terminal length 0")
        assert again.do("show running-config") == before
    commands = [entry["command"] for entry in server.log("console_command", user="mary")]
    assert commands == [
        "set hello_interval 33",
        "set tundevicename tun7",
        "set radius_secret ***",
        "write memory",
        "reload",
    ]


@pytest.mark.shows("reload")
def test_a_broken_file_is_refused_and_named_at_reload(server: Server, telnet: Telnet) -> None:
    server.config.write_text("set debug 3\nset echo_timeout soon\n")
    said = telnet.do("reload")
    assert f"{server.config}:2: echo_timeout" in said
    assert "set echo_timeout 10\n" in telnet.do("show running-config | include echo_timeout 10")


@pytest.mark.shows("shutdown")
def test_shutdown_ends_the_daemon_and_the_console(server: Server, telnet: Telnet) -> None:
    telnet.send("shutdown\r")
    telnet.expect(pexpect.EOF)
    assert server.process is not None
    assert server.process.wait(PATIENCE) == 0


def test_a_console_without_users_is_warned_of_where_others_can_reach_it(machine: Namespace, tmp_path: Path) -> None:
    with Server(machine, tmp_path, settings={"cli_bind_address": "0.0.0.0"}, secrets="") as server:
        assert [entry["level"] for entry in server.log("console_open")] == ["warning"]
        server.stop(signal.SIGQUIT)
        server.configure({})
        server.start()
        assert len(server.log("console_open")) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.99"])
def test_a_console_that_cannot_listen_is_an_error_at_the_start(
    machine: Namespace, tmp_path: Path, address: str
) -> None:
    with machine.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 23))
        taken.listen()
        server = Server(machine, tmp_path, settings={"cli_bind_address": address}, secrets="")
        with pytest.raises(ServerDied, match=f"cannot listen on {address}:23"):
            server.start()


def test_what_the_command_line_puts_over_the_file_is_not_written_into_it(machine: Namespace, tmp_path: Path) -> None:
    settings = {"hostname": "filed", "debug": 2}
    with Server(machine, tmp_path, settings=settings, secrets="", arguments=("-h", "lns1", "-v")):
        with Telnet(machine) as telnet:
            telnet.expect("lns1> ")
            telnet.send("enable\r")
            telnet.expect(PROMPT)
            telnet.do("write memory")
            lines = (tmp_path / "l2tpns.cfg").read_text().splitlines()
            assert 'set hostname "filed"' in lines
            assert "set debug 2" in lines
            telnet.do("set debug 5")
            telnet.do("write memory")
            assert "set debug 5" in (tmp_path / "l2tpns.cfg").read_text().splitlines()


@pytest.mark.slow
def test_the_transcript_has_each_command_and_the_same_configuration_after_a_restart(tmp_path: Path) -> None:
    if not is_root() or shutil.which("telnet") is None:
        pytest.skip("needs root for namespaces, and telnet")
    transcript.main(str(tmp_path / "transcript"))
    text = (tmp_path / "transcript").read_text()
    assert text.endswith("(the running configuration is the same: True)\n")
    assert "An error of this server" not in text
    assert text.count("Access denied") == 2 and "--More--" in text
