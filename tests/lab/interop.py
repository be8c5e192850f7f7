"""Set up the stage for real clients: a guest with xl2tpd and pppd, the daemon, a host beyond it, captures of all.

guest 172.31.0.2 -- tap0 -- lac 192.0.2.2 -- wan -- 192.0.2.1 server 198.51.100.1 -- lan -- 198.51.100.2 host
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from tests.lab import PATIENCE
from tests.lab.freeradius import FreeRadius
from tests.lab.netns import Lab, is_root, three_hosts, wait_until
from tests.lab.pppd import Clients, Link, Peer
from tests.lab.server import Server, Setting
from tests.lab.tshark import findings, summary
from tests.lab.uml import Guest

LNS = "192.0.2.1"
GATEWAY = "10.1.0.1"  # the server's end of each PPP link; with LNS here, the route to LNS would lead into the tunnel
HOST = "198.51.100.2"
NEEDED = ("linux", "xl2tpd", "pppd", "tshark", "tcpdump", "iperf3", "busybox", "modprobe")

SETTINGS: Mapping[str, Setting] = {
    "bind_address": LNS,
    "peer_address": GATEWAY,
    "radius_authtypes": "pap,chap,mschapv2,mschap",
    "primary_dns": HOST,
    "l2tp_secret": "rather-secret",
}


def missing() -> str:
    """Return why the stage cannot be built here, empty if it can."""
    if not is_root():
        return "needs root: network namespaces"
    absent = [name for name in NEEDED if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (tools/setup.sh test)" if absent else ""


class Stage:
    """Provide everything but the scenario. The guest boots once. Each scenario starts its own xl2tpd."""

    def __init__(self, *, settings: Mapping[str, Setting] | None = None, secrets: str | None = None) -> None:
        self.lab = Lab()
        self.settings = {**SETTINGS, **(settings or {})}
        self.secrets = secrets
        self.since = 0  # the log's length when the scene began

    def __enter__(self) -> Self:
        self.lab.__enter__()
        try:
            self.lac, self.server_side, self.host = three_hosts(self.lab)
            self.lac.forward()
            self.server_side.route("172.31.0.0/24", "192.0.2.2")
            self.host.start("iperf3", "-s")
            self.server = Server(
                self.server_side, self.lab.directory / "lns", settings=self.settings, secrets=self.secrets
            )
            self.guest = Guest(self.lac, self.lab.directory / "guest")
            self.guest.boot()
        except BaseException:
            self.lab.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.guest.close()
            if self.server.process is not None and self.server.process.poll() is None:
                self.server.stop()
        finally:
            self.lab.close()

    @contextmanager
    def freeradius(self, users: str) -> Iterator[FreeRadius]:
        """Run FreeRADIUS beside the server. At the end the server stops first: its Accounting-Off needs an answer."""
        prefix = tuple(self.server_side.command())
        with FreeRadius(users, secret="shared-by-two", port=1812, prefix=prefix) as running:
            yield running
            if self.server.process is not None and self.server.process.poll() is None:
                assert self.server.stop() == 0

    @contextmanager
    def scene(self, peers: Sequence[Peer], *, kernel: bool = False, negotiate_again: bool = False) -> Iterator[Clients]:
        """Run one scenario. Asserts at its end that no session, traceback or warning of tshark is left."""
        clients = Clients(self.guest, LNS, peers)
        capture = self.lab.capture(self.lac, "tap0", self.lab.directory / "capture.pcap", "udp port 1701")
        self.since = len(self.server.log())
        try:
            clients.start(kernel=kernel, negotiate_again=negotiate_again)
            yield clients
        finally:
            clients.stop()
            capture.stop()
        self.wait_empty()
        assert self.server.tracebacks() == ""
        bad = findings(capture.file)
        assert not bad, "\n".join([*(str(one) for one in bad), *summary(capture.file, "l2tp.type == 1")])

    def wait_for(self, event: str, **facts: Any) -> dict[str, Any]:
        """Wait for a line that the daemon logs in this scene."""
        return self.server.wait_for(event, after=self.since, **facts)

    def wait_journal(self, user: str) -> None:
        """Wait until the session of a user is on disk."""
        files = self.lab.directory / "lns/state"
        wait_until(lambda: any(user.encode() in path.read_bytes() for path in files.glob("*.state")), what="saved")

    def wait_empty(self, timeout: float = 2 * PATIENCE) -> None:
        """Wait until each session that came up in this scene has ended."""

        def ended() -> bool:
            entries = self.server.log(after=self.since)
            up = {(entry["tunnel"], entry["session"]) for entry in entries if entry["event"] == "session_up"}
            down = {(entry["tunnel"], entry["session"]) for entry in entries if entry["event"] == "session_down"}
            return up <= down

        wait_until(ended, timeout, "every session has ended")

    def iperf(self, link: Link, octets: str, *, down: bool = False, timeout: float = 300.0) -> list[int]:
        """Run one TCP transfer by the client. Return the octets that arrived in each second."""
        text = self.guest.run(
            f"iperf3 --json -c {HOST} -B {link.address} -n {octets} {'-R' if down else ''}", timeout=timeout
        )
        report: dict[str, Any] = json.loads(text)
        assert "error" not in report, report["error"]
        return [int(interval["sum"]["bytes"]) for interval in report["intervals"]]
