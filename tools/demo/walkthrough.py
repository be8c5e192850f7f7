"""The steps of `make demo`: a LAC, the server and a host beyond it, from the first packet to the last.

The three machines are network namespaces. The subscribers' ends of PPP are tun devices in the LAC's namespace, so ping
and TCP are the kernel's own. The server runs with its defaults: no RADIUS, names and passwords from l2tpns.secrets.
The screen shows what the programs print, cut to its width.
"""

from __future__ import annotations

import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab.netns import Capture, Lab, Namespace, three_hosts
from tests.lab.server import Server, Setting
from tests.lab.transfer import transfer
from tools.demo.lac_program import LacProgram
from tools.demo.leftovers import Leftovers
from tools.demo.story import Failed, Step, Story

LNS, HOST, GATEWAY, POOL = "192.0.2.1", "198.51.100.2", "10.1.0.1", "10.1.0.0/16"
BOBS_ADDRESS = "10.1.7.7"
SETTINGS: dict[str, Setting] = {
    "debug": 3,
    "hostname": "lns1",
    "l2tp_secret": "demo",
    "l2tp_challenge": True,
    "radius_authtypes": "chap,pap",
    "iftun_address": GATEWAY,
    "peer_address": GATEWAY,
}
SECRETS = f"""\
# name    server  password       address
alice     *       "open sesame"  *
bob       *       hunter2        {BOBS_ADDRESS}
mallory   *       s3cret         *
"""
LOGINS = ("alice:open sesame:pap", "bob:hunter2:chap", "mallory:guess:chap")
OCTETS = 8_000_000
PINGS = 3
SHOWN_PACKETS = 23
OMITTED_KEYS = frozenset("time level event path peer host tunnel session calling called result error phase".split())
REASON = "the server is being shut down"  # of every CDN after SIGQUIT
PICTURE = """\
  alice, bob, mallory
   (a tun device each)          lac                      server                     host
             |                   |                         |                         |
             +------ PPP --------+==== L2TP, UDP 1701 =====+-------------------------+
  10.1.0.0/16                192.0.2.2    192.0.2.1, 10.1.0.1, 198.51.100.1    198.51.100.2
"""


class Demo:
    """The demonstration. Its steps return a detail for the summary, or raise."""

    def __init__(self, lab: Lab, story: Story) -> None:
        self.lab = lab
        self.story = story
        self.leftovers = Leftovers(lab)
        self.addresses: dict[str, str] = {}
        self.capture: Capture | None = None
        self.server: Server | None = None
        self.lac: LacProgram | None = None

    def run(self, *, keep: bool) -> None:
        story = self.story
        try:
            story.chapter("three machines", [("three machines, as network namespaces", self.build)])
            story.chapter("the server", [("the server: UDP 1701, tun device, route for the pool", self.start)])
            story.chapter("a LAC brings three subscribers", self.logins())
            story.chapter("traffic, both ways", self.traffic())
            story.chapter("what the operator sees", [("log, routes and counters tell the same", self.look_around)])
            if keep and not story.failed:
                self.keep()
            story.chapter("the server leaves", self.farewell(played=keep))
            if story.failed and self.server is not None:
                story.heading("the last lines of the server's log")
                story.plain(self.server.last_words())
                if self.lac is not None:
                    story.heading("the LAC's last lines")
                    story.plain(self.lac.last_words())
        except KeyboardInterrupt:
            story.interrupted()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            story.chapter("cleaning up", [("no namespace, process, route or file is left", self.clean_up)], always=True)

    # Up

    def build(self) -> str:
        self.lac_ns, self.server_ns, self.host_ns = three_hosts(self.lab, clients=POOL)
        # Many subscribers in one namespace: an answer may come in by another device than the main table names.
        self.lac_ns.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        self.story.text(PICTURE)
        return ", ".join(namespace.label for namespace in self.lab.namespaces)

    def start(self) -> str:
        self.server = server = Server(
            self.server_ns, self.lab.directory / "lns", settings=SETTINGS, secrets=SECRETS, pool=f"{POOL}\n"
        )
        for name in ("l2tpns.cfg", "l2tpns.secrets", "l2tpns.ip_pool"):
            self.story.command(f"cat {name}")
            self.story.text((server.directory / name).read_text())
        server.start()
        server.wait_for("ready")
        self.story.command("l2tpns -c l2tpns.cfg")
        self.show_log("secrets_read", "listening", "tun_up", "ready")
        routes = self.server_ns.ip("route", "show", POOL)
        if "dev tun0" not in routes or f"{GATEWAY}/32" not in self.server_ns.addresses("tun0"):
            raise Failed(f"tun0 has not its address and route: {routes or 'no route'}")
        return f"ready after {server.started_in:.1f} s"

    def logins(self) -> list[Step]:
        return [
            ("the LAC's tunnel: both ends prove they know the secret", self.open_tunnel),
            ("alice logs in by PAP, gets an address of the pool", lambda: self.log_in("alice", "pap")),
            ("bob logs in by CHAP, gets the address kept for him", lambda: self.log_in("bob", "chap", BOBS_ADDRESS)),
            ("mallory has a wrong password and is refused", self.refuse_mallory),
        ]

    def open_tunnel(self) -> str:
        if shutil.which("tcpdump"):
            self.capture = self.lab.capture(self.server_ns, "wan", self.lab.directory / "login.pcap", "udp port 1701")
        options = ["--hostname", "lac1", "--secret", "demo", "--challenge", "--expect-refused", "mallory"]
        options += ["--tun", "ppp-{user}", "--route", "198.51.100.0/24"]
        for login in LOGINS:
            options += ["--login", login]
        self.lac = LacProgram(self.lac_ns, self.lab.directory, LNS, *options)
        self.lac.wait_for("tunnels_up")
        up = self.running.wait_for("tunnel_up")
        return f"{up['host']} at {up['peer']}"

    def log_in(self, user: str, auth: str, address: str = "") -> str:
        online = self.lac_program.wait_for("online", user=user)
        up = self.running.wait_for("session_up", user=user, auth=auth)
        if up["address"] != online["address"] or (address and address != up["address"]):
            raise Failed(f"{address or 'the same'} expected; the server: {up['address']}, {user}: {online['address']}")
        self.addresses[user] = up["address"]
        return f"{up['address']} in {online['took'] * 1000:.0f} ms"

    def refuse_mallory(self) -> str:
        told = self.lac_program.wait_for("refused", user="mallory")
        refused = self.running.wait_for("auth_refused", user="mallory")
        self.running.wait_for("session_down", user="mallory", cause="auth_refused")
        for user in self.addresses:
            self.lac_program.wait_for("device", user=user)
        if self.capture is not None:
            self.show_packets(self.capture.stop())
        self.story.text(f"mallory is told: {told['message']}. The log says: {refused['why']}.")
        if not told["message"] or refused["why"] != "wrong password":
            raise Failed("no clear reason")
        return f"{refused['why']!r} in the log"

    # Traffic

    def traffic(self) -> list[Step]:
        return [
            ("ping from alice and bob to the server and the host", self.ping_out),
            ("ping from the host to alice and bob", self.ping_in),
            (f"TCP from alice and bob to the host, {OCTETS // 10**6} MB each", self.upload),
            (f"TCP from the host to alice and bob, {OCTETS // 10**6} MB each", self.download),
        ]

    def ping_out(self) -> str:
        return _means(
            [self.ping(self.lac_ns, to, "-I", f"ppp-{user}") for user in self.addresses for to in (GATEWAY, HOST)]
        )

    def ping_in(self) -> str:
        return _means([self.ping(self.host_ns, address) for address in self.addresses.values()])

    def ping(self, namespace: Namespace, target: str, *options: str) -> float:
        """Return the mean round trip in ms. Raises Failed unless every echo is answered.

        One at a time: after an answer ping waits for the next one no longer than 200 ms, whatever -W says.
        """
        argv = ("ping", "-n", "-q", "-c", "1", "-W", "20", *options, target)
        self.story.command(f"{' '.join(argv)}   # {PINGS} times", on=namespace.label)
        said = [namespace.run(*argv, check=False).strip().splitlines()[-2:] for _ in range(PINGS)]
        times = [float(found[1]) for lines in said for found in re.finditer(r"= [\d.]+/([\d.]+)/", lines[-1])]
        self.story.text("\n".join([*(lines[0] for lines in said), *said[-1][1:]]))
        if len(times) < PINGS:
            raise Failed(f"{target} did not answer each ping")
        return sum(times) / PINGS

    def upload(self) -> str:
        return self.transfers("to the host", lambda own: transfer(self.lac_ns, own, self.host_ns, HOST, octets=OCTETS))

    def download(self) -> str:
        return self.transfers("from it", lambda own: transfer(self.host_ns, HOST, self.lac_ns, own, octets=OCTETS))

    def transfers(self, direction: str, run: Callable[[str], float]) -> str:
        rates = []
        for user, address in self.addresses.items():
            took = run(address)
            rates.append(OCTETS * 8e-6 / took)
            self.story.text(f"{user} {direction}: {OCTETS} octets in {took:.2f} s, {rates[-1]:.0f} Mbit/s")
        return f"{min(rates):.0f} to {max(rates):.0f} Mbit/s, SHA-256 right"

    # What the operator sees

    def look_around(self) -> str:
        story = self.story
        story.command("cat log     # one JSON object a line; here: time, event and the facts that matter now")
        self.show_log("tunnel_up", "session_up", "auth_refused", "session_down")
        story.command("ip route")
        story.text(self.server_ns.ip("route"))
        story.command("ip route show table all dev ppp-alice", on="lac")
        story.text(self.lac_ns.ip("-4", "route", "show", "table", "all", "dev", "ppp-alice"))
        story.command("kill -USR1 $(pidof l2tpns)     # a status line in the log")
        self.running.signal(signal.SIGUSR1)
        status = self.running.wait_for("status")
        story.wrapped(" ".join(f"{key}={value}" for key, value in status.items() if key not in ("time", "level")))
        expected = {"tunnels": 1, "sessions": 2, "online": 2, "logins_accepted": 2, "logins_refused": 1}
        wrong = {key: status.get(key) for key, value in expected.items() if status.get(key) != value}
        if wrong:
            raise Failed(f"{expected} expected, but {wrong}")
        return f"2 online, 1 refused, {status['rss_kib'] // 1024} MiB"

    def show_packets(self, file: Path) -> None:
        self.story.command("tcpdump -nt -i wan udp port 1701     # the tunnel, alice's call and login")
        said = self.server_ns.run("tcpdump", "-nt", "-r", str(file), check=False)
        lines = [_short_packet(line) for line in said.splitlines() if "l2tp:" in line and "ZLB" not in line]
        self.story.text("\n".join(lines[:SHOWN_PACKETS]))
        self.story.text(f"... and {len(lines) - SHOWN_PACKETS} more")

    def show_log(self, *events: str) -> None:
        for entry in self.running.log():
            if entry["event"] in events:
                self.story.text(_short_entry(entry))

    @property
    def running(self) -> Server:
        assert self.server is not None
        return self.server

    @property
    def lac_program(self) -> LacProgram:
        assert self.lac is not None
        return self.lac

    # To play with

    def keep(self) -> None:
        lac, server, host = self.lac_ns.name, self.server_ns.name, self.host_ns.name
        directory, pid = self.running.directory, self.running.pid
        self.story.heading("everything stays up until you press Enter or Ctrl-C")
        self.story.plain(f"""\
In another terminal, as root, here ({Path.cwd()}):
  ip netns exec {lac} ping -I ppp-alice {HOST}   # alice to the host
  ip netns exec {host} ping {BOBS_ADDRESS}   # the host to bob
  ip netns exec {server} ip route   # what the server has in the kernel
  ip netns exec {server} tcpdump -ni wan udp port 1701
The log, and a line with all counters in it:
  tail -f {directory}/stdout
  kill -USR1 {pid}
A fourth subscriber; the server reads its files again:
  echo 'carol * pw *' >> {directory}/l2tpns.secrets && kill -HUP {pid}
  ip netns exec {lac} {sys.executable} -m tests.lab.lac --lns {LNS} --hostname lac2 \\
      --secret demo --login carol:pw:chap --tun ppp-{{user}} --ping {HOST} --hold""")
        try:
            while self.running.process is not None and self.running.process.poll() is None:
                if _enter_pressed(0.5):
                    break
        except KeyboardInterrupt:
            pass

    # Down

    def farewell(self, *, played: bool) -> list[Step]:
        # What the reader tried meanwhile may have caused warnings.
        levels = ("error",) if played else ("error", "warning")
        return [
            ("SIGQUIT: both are told, the server ends", self.leave),
            ("its tun device and its routes are gone", self.check_kernel),
            (f"no {', '.join(levels)} or traceback in its log", lambda: self.check_log(levels)),
        ]

    def leave(self) -> str:
        self.story.command("kill -QUIT $(pidof l2tpns)")
        seen = len(self.running.log())
        begun = time.monotonic()
        status = self.running.stop()
        took = time.monotonic() - begun
        for entry in self.running.log()[seen:]:
            self.story.text(_short_entry(entry))
        told = [self.lac_program.wait_for("ended", user=user) for user in self.addresses]
        for entry in told:
            self.story.text(f"{entry['user']}'s end: {entry['why']}")
        if status != 0:
            raise Failed(f"exit status {status}")
        if any(entry["text"] != REASON for entry in told):
            raise Failed("not each subscriber was told that the server is being shut down")
        self.lac_program.stop()
        return f"exit status 0 after {took:.1f} s"

    def check_kernel(self) -> str:
        devices = re.findall(r"^\d+: ([\w-]+)", self.server_ns.ip("-o", "link"), re.MULTILINE)
        routes = self.server_ns.ip("route").splitlines()
        if set(devices) != {"lo", "wan", "lan"} or any("proto kernel" not in route for route in routes):
            raise Failed(f"devices {devices}, routes {routes}")
        return "as before its start"

    def check_log(self, levels: tuple[str, ...]) -> str:
        entries = self.running.log()
        bad = [_short_entry(entry) for entry in entries if entry.get("level") in levels]
        bad += [entry["line"] for entry in entries if entry["event"] == "not_json"]
        bad += self.running.tracebacks().splitlines()[-3:]
        if bad:
            raise Failed("\n".join(bad))
        return f"{len(entries)} lines"

    def clean_up(self) -> str:
        self.leftovers.remember()
        self.lab.close()
        found = self.leftovers.find()
        if found:
            raise Failed("left: " + ", ".join(found))
        return "looked for each"


def _means(times: list[float]) -> str:
    return f"{PINGS * len(times)} of {PINGS * len(times)} answered, {sum(times) / len(times):.2f} ms"


def _short_entry(entry: dict[str, Any]) -> str:
    """Return a line of the log as time, event and facts, without facts that are empty or the same in all lines."""
    omitted = OMITTED_KEYS | {"why"} if "cause" in entry else OMITTED_KEYS
    facts = [(key, value) for key, value in entry.items() if key not in omitted and value not in ("", None, [])]
    words = (f'{key}="{value}"' if " " in str(value) else f"{key}={value}" for key, value in facts)
    return f"{entry.get('time', '')[11:23]} {entry['event']} {' '.join(words)}"


def _short_packet(line: str) -> str:
    """Return a line of tcpdump as direction and what follows `l2tp:`."""
    return f"{'LAC->LNS' if f'> {LNS}.1701:' in line else 'LNS->LAC'} {line.split('l2tp:', 1)[1]}"


def _enter_pressed(timeout: float) -> bool:
    if not sys.stdin.isatty():
        time.sleep(timeout)
        return False
    return bool(select.select([sys.stdin], [], [], timeout)[0]) and bool(sys.stdin.readline())
