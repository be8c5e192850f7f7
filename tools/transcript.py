"""Write an operator's session at Debian's telnet, as the screen showed it: `python -m tools.transcript FILE`.

A daemon in namespaces with a LAC and some subscribers; wrong and right password, help, Tab, abbreviation, history,
paging, each `show`, configuration, `write memory`, a restart after which the running configuration is the same. The
file is for reading; tests/live/test_telnet.py asserts. Needs root.
"""

from __future__ import annotations

import io
import re
import signal
import sys
from pathlib import Path

import gevent
import pexpect

from l2tpns.console.commands import COMMANDS
from tests.lab.lac import Lac
from tests.lab.netns import Lab, Namespace, three_hosts
from tests.lab.server import Server, Setting

LNS, HOST = "192.0.2.1", "198.51.100.2"
SIZE = (40, 150)
PROMPT = r"lns1(\([a-z-]+\))?[>#] $"
NAMES = ("fred", "mary.smith@dsl.example.net", "a-very-long-name-of-a-user@some-provider.example.net")
SECRETS = "".join(f'"{name}" * pw *\n' for name in NAMES)
ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Telnet:
    """telnet on a terminal; keeps what it showed."""

    def __init__(self, space: Namespace) -> None:
        command, *arguments = space.command("telnet", "127.0.0.1")
        self.screen = io.StringIO()
        self.child = pexpect.spawn(command, arguments, dimensions=SIZE, encoding="utf-8", timeout=20)
        self.child.delaybeforesend = None
        self.child.logfile_read = self.screen

    def expect(self, what: str) -> None:
        self.child.expect(what)

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def do(self, line: str) -> None:
        """Type a command and turn all its pages."""
        self.type(line + "\r")
        self.expect(r"\r\n")
        while self.child.expect([PROMPT, "--More--"]):
            self.type(" ")

    def end(self) -> str:
        self.child.expect(pexpect.EOF)
        self.child.close()
        return render(self.screen.getvalue())


def render(text: str) -> str:
    """Return the lines of the screen, with the movements of the cursor within a line applied."""
    lines: list[list[str]] = [[]]
    column = 0
    text = re.sub("--More--\r *\r", "--More--\n", text)  # otherwise the next line would overwrite it
    text = ESCAPE.sub(lambda found: {"K": "\x00", "J": "\x00"}.get(found[2], ""), text)
    for char in text:
        line = lines[-1]
        if char == "\n":
            lines.append([])
            column = 0
        elif char == "\r":
            column = 0
        elif char == "\b":
            column = max(column - 1, 0)
        elif char == "\x00":
            del line[column:]
        elif char != "\a":
            line += [" "] * (column + 1 - len(line))
            line[column] = char
            column += 1
    return "\n".join("".join(line).rstrip() for line in lines)


def wrong_and_right_password(telnet: Telnet) -> None:
    telnet.expect("Username: ")
    telnet.type("fred\r")
    telnet.expect("Password: ")
    telnet.type("guess\r")
    telnet.expect("Access denied")
    telnet.expect("Username: ")
    telnet.type("fred\r")
    telnet.expect("Password: ")
    telnet.type("hush\r")
    telnet.expect(PROMPT)


def help_and_keys(telnet: Telnet) -> None:
    for begun in ("", "show ", "show session ", "drop ", "set echo", "set echo_timeout ", "show version | "):
        telnet.type(f"{begun}?")
        telnet.expect(re.escape(begun) + "$")
        telnet.type("\x15")  # ^U
    telnet.type("sho\tvers\t\r")
    telnet.expect(PROMPT)
    telnet.type("set echo\t\t")
    telnet.expect("idle|echo_timeout ")
    telnet.type("\x15")
    telnet.do("sh ver")
    telnet.type("\x1b[A\r")  # up
    telnet.expect(PROMPT)
    telnet.do("sh t")
    telnet.do("shw version")
    telnet.do("show session 4711")
    telnet.do("show version now")
    telnet.do("drop tunnel")


def looks(telnet: Telnet, session: int, tunnel: int) -> None:
    for command in COMMANDS:
        if command.words.startswith("show ") or command.words in ("uptime", "write terminal", "history", "help"):
            telnet.do(command.words)
    for line in (
        f"show session {session}",
        f"show tunnels {tunnel}",
        f"show users {NAMES[0]}",
        "show session | json",
        "show session | include fred",
        "show counters | exclude  0 ",
        "show running-config | begin # Plugins",
        "show log 5",
    ):
        telnet.do(line)


def changes(telnet: Telnet) -> None:
    for line in (
        "configure terminal",
        "set hello_interval 33",
        "set tundevicename tun7",
        "set echo_timeout soon",
        "set echo_tiemout 20",
        'set radius_secret "a b"',
        "ip access-list extended web",
        "permit tcp any any eq 80",
        "permit tcp any any eq http",
        "deny ip any any",
        "end",
        "show access-list",
        "filter fred in web",
        "debug info",
        "drop user mary.smith@dsl.example.net nobody",
        "no debug",
        "show session history",
        "write memory",
        "show running-config",
    ):
        telnet.do(line)


def main(path: str) -> None:
    with Lab() as lab:
        lac_space, space, _ = three_hosts(lab)
        settings: dict[str, Setting] = {"hostname": "lns1", "save_state": True, "hello_interval": 60, "debug": 4}
        server = Server(
            space,
            lab.directory / "lns",
            settings=settings,
            secrets=SECRETS,
            users="fred:hush\n",
            pool="10.1.0.0/28\n",
        )
        server.start()
        lac = Lac(("0.0.0.0", 0), (LNS, 1701), "lac1.example.net", sock=lac_space.socket()).connect()
        subscribers = [lac.call(name, "pw", auth="pap", calling=b"0401234567").wait_online() for name in NAMES]
        for _ in range(3):
            assert subscribers[0].ping(HOST) is not None
        thread = gevent.get_hub().threadpool.apply  # pexpect blocks, and the LAC must run meanwhile
        pieces = []

        def first() -> str:
            telnet = Telnet(space)
            wrong_and_right_password(telnet)
            help_and_keys(telnet)
            looks(telnet, subscribers[0].peer_session_id, lac.peer_tunnel_id)
            changes(telnet)
            telnet.type("quit\r")
            return telnet.end()

        pieces.append(thread(first))
        before = running(pieces[0])
        assert thread(server.stop, (signal.SIGTERM,)) == 0
        thread(server.start)
        pieces.append("\n\n(the server is restarted)\n\n")

        def second() -> str:
            telnet = Telnet(space)
            wrong_and_right_password(telnet)
            for line in ("show session", "show running-config", "uptime"):
                telnet.do(line)
            telnet.type("shutdown\r")
            return telnet.end()

        pieces.append(thread(second))
        pieces.append(f"\n\n(the running configuration is the same: {running(pieces[-1]) == before})\n")
        Path(path).write_text("".join(pieces))
        lac.leave()


def running(text: str) -> str:
    """Return the last running configuration in the transcript."""
    found = re.findall(r"# Current configuration:\n.*?\n# end\n", text.replace("--More--\n", ""), re.S)
    return str(found[-1])


if __name__ == "__main__":
    main(sys.argv[1])
