"""Set up the stage for RADIUS: our LAC, the daemon, and Debian's FreeRADIUS on the host beyond it.

lac 192.0.2.2 -- wan -- 192.0.2.1 server 198.51.100.1 -- lan -- host 198.51.100.2 (and .3 for a second RADIUS server)

    with RadiusStage(users='fred Cleartext-Password := "pw"\\n') as stage:
        fred = stage.online("fred")
        fred.terminate()
        stage.stop_of("fred")["Acct-Terminate-Cause"]

The LAC runs in greenlets of this process: what blocks without gevent (a daemon's start or end) runs in a thread, so
that messages to the LAC are acknowledged meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import gevent

from tests.lab import PATIENCE, freeradius, traffic
from tests.lab.endpoint import Endpoint
from tests.lab.freeradius import FreeRadius
from tests.lab.lac import Dial, Lac, Subscriber
from tests.lab.netns import Lab, is_root, three_hosts
from tests.lab.server import Server, Setting

LNS = "192.0.2.1"
HOST, SECOND = "198.51.100.2", "198.51.100.3"
BEHIND = "172.16.0.0/12"  # networks for Framed-Routes; the host has a route to them
PASSWORD = "pw"

SETTINGS: Mapping[str, Setting] = {
    "primary_radius": HOST,
    "radius_secret": "testing123",
    "radius_accounting": True,
    "radius_authtypes": "chap,pap,mschapv2,mschap",
}
Record = dict[str, str | list[str]]

P = ParamSpec("P")
T = TypeVar("T")


def missing() -> str:
    """Return why the stage cannot be built here, empty if it can."""
    if not is_root():
        return "needs root: network namespaces"
    return "" if freeradius.installed() else "the package freeradius is not installed"


def until(condition: Callable[[], object], patience: float = PATIENCE, what: str = "") -> None:
    """Poll until the condition holds. Yields, so that the LAC goes on."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {patience:g} s still not: {what}")
        gevent.sleep(0.05)


def aside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it in a thread, while the LAC goes on."""
    result: T = gevent.get_hub().threadpool.apply(function, args, kwargs)
    return result


class RadiusStage:
    """Provide everything but the scenario. `second`: another FreeRADIUS at SECOND; `start=False`: no daemon yet."""

    def __init__(
        self,
        users: str,
        *,
        settings: Mapping[str, Setting] | None = None,
        second: str | None = None,
        start: bool = True,
    ) -> None:
        self.lab = Lab()
        self.users = users
        self.second_users = second
        self.settings = {**SETTINGS, **(settings or {})}
        if second is not None:
            self.settings["secondary_radius"] = SECOND
        self.begin = start
        self._lac: Lac | None = None

    def __enter__(self) -> Self:
        self.lab.__enter__()
        try:
            self.lac_side, self.server_side, self.host = three_hosts(self.lab)
            self.host.route(BEHIND, "198.51.100.1")
            self.host.ip("address", "add", f"{SECOND}/24", "dev", "lan")
            self.radius = self._freeradius(self.users, HOST)
            if self.second_users is not None:
                self.second = self._freeradius(self.second_users, SECOND)
            self.endpoint = Endpoint(("192.0.2.2", 0), sock=self.lac_side.socket())
            self.server = Server(self.server_side, self.lab.directory / "lns", settings=self.settings)
            if self.begin:
                aside(self.server.start)
        except BaseException:
            self.lab.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if self.server.process is not None and self.server.process.poll() is None:
                if error is None:
                    aside(self.server.stop)
                else:
                    self.server.kill()
            self.endpoint.close()
            if error is None:
                assert self.server.tracebacks() == ""
        finally:
            self.lab.close()

    def _freeradius(self, users: str, address: str) -> FreeRadius:
        radius = FreeRadius(users, host=address, port=1812, prefix=tuple(self.host.command()))
        self.lab.stack.callback(radius.close)
        return aside(radius.start)

    # --- subscribers

    @property
    def lac(self) -> Lac:
        """Return the LAC with its tunnel, made when needed and again after it has ended."""
        if self._lac is None or self._lac.ended is not None:
            if self._lac is not None:
                self._lac.leave()
            self._lac = Lac(("192.0.2.2", 0), (LNS, 1701), "lac1", endpoint=self.endpoint).connect()
        return self._lac

    def call(self, user: str, password: str = PASSWORD, **options: Any) -> Subscriber:
        return self.lac.call(user, password, Dial(**options))

    def online(self, user: str, **options: Any) -> Subscriber:
        """Bring a subscriber online at both ends: what it sends from now on is carried and counted."""
        before = len(self.server.log("session_up", user=user))
        subscriber = self.call(user, **options).wait_online()
        until(lambda: len(self.server.log("session_up", user=user)) > before, PATIENCE, f"session_up of {user}")
        return subscriber

    def wait_down(self, user: str, cause: str, patience: float = PATIENCE) -> dict[str, Any]:
        until(lambda: self.server.log("session_down", user=user), patience, f"session_down of {user}")
        down = self.server.log("session_down", user=user)[-1]
        assert down["cause"] == cause, down
        return down

    # --- what FreeRADIUS recorded

    def records(self, user: str = "", status: str = "", servers: tuple[FreeRadius, ...] = ()) -> list[Record]:
        """Return the records of the detail files, or those of one user or status."""
        return [
            record
            for server in servers or (self.radius,)
            for record in server.records(status)
            if not user or record.get("User-Name") == user
        ]

    def stop_of(self, user: str, patience: float = PATIENCE) -> Record:
        """Return the Stop of a user that was online once. Asserts that one Start and one Stop were recorded."""
        until(lambda: self.records(user, "Stop"), patience, f"a Stop of {user}")
        records = self.records(user)
        assert [record["Acct-Status-Type"] for record in (records[0], records[-1])] == ["Start", "Stop"], records
        assert all(record["Acct-Status-Type"] == "Interim-Update" for record in records[1:-1])
        assert len({str(record["Acct-Session-Id"]) for record in records}) == 1
        return records[-1]


def counted(record: Record) -> tuple[int, int, int, int]:
    """Return octets and packets from the subscriber, then to it, gigawords included."""

    def number(name: str) -> int:
        return int(str(record[name]))

    return (
        number("Acct-Input-Octets") + (number("Acct-Input-Gigawords") << 32),
        number("Acct-Input-Packets"),
        number("Acct-Output-Octets") + (number("Acct-Output-Gigawords") << 32),
        number("Acct-Output-Packets"),
    )


def counted_by(subscriber: Subscriber) -> tuple[int, int, int, int]:
    """Return the same counts of the subscriber itself: IP packets with their headers, without PPP's or L2TP's."""
    return subscriber.out_octets, subscriber.out_packets, subscriber.in_octets, subscriber.in_packets


def answer_for(subscriber: Subscriber, network: IPv4Network) -> None:
    """Make the subscriber answer pings for a network behind it, as a router and its hosts would."""

    def on_ip(_: Subscriber, octets: bytes) -> None:
        packet = traffic.parse(octets)
        if packet.protocol != traffic.ICMP or packet.destination not in network:
            return
        kind, _code, identifier, sequence = packet.icmp
        if kind == traffic.ECHO_REQUEST:
            ours, theirs, data = packet.destination, packet.source, packet.payload[8:]
            subscriber.send_ip(traffic.icmp_echo(ours, theirs, identifier, sequence, data, kind=traffic.ECHO_REPLY))

    subscriber.on_ip = on_ip


def kernel_routes(stage: RadiusStage) -> list[str]:
    """Return the destinations of the daemon's routes, as iproute2 prints them."""
    shown = stage.server_side.ip("-4", "route", "show", "dev", "tun0", check=False)
    return [line.split()[0] for line in shown.splitlines()]
