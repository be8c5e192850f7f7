"""What the kernel had of ours and has no more comes back, and nothing leads into the tun device that must not."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import gevent
import pytest

from l2tpns.system import tun_watch
from l2tpns.system.routes import PROTOCOL
from l2tpns.system.rtnetlink import Netlink
from l2tpns.system.surroundings import Surroundings, look
from l2tpns.system.sysctls import WANTED
from tests.lab import PATIENCE
from tests.lab.console import Console
from tests.lab.lac import Lac
from tests.lab.netns import Lab, end, is_root, three_hosts
from tests.lab.radius_server import RadiusServer, User, ip
from tests.lab.server import Server

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, RADIUS, FAR = "192.0.2.1", "198.51.100.2", "203.0.113.7"


def until(condition: Callable[[], object]) -> None:
    with gevent.Timeout(PATIENCE):
        while not condition():
            gevent.sleep(0.05)


class Stage:
    """A daemon between a LAC's namespace and a host's; RADIUS is on the host. FAR is an address behind the LAC's."""

    def __init__(self, lab: Lab) -> None:
        self.lac_space, self.space, self.host = three_hosts(lab, clients="10.0.0.0/8")
        self.lac_space.ip("address", "add", f"{FAR}/32", "dev", "lo")
        self.space.route("203.0.113.0/24", "192.0.2.2")
        self.users = {b"nobody": User(b"pw")}
        with self.host.entered():
            self.radius = RadiusServer(users=self.users, host=RADIUS).start()
        self.directory = lab.directory / "lns"
        self.lacs: list[Lac] = []
        self.server: Server

    def start(self, pool: str = "10.1.0.0/16\n", **settings: Any) -> None:
        everything = {
            "primary_radius": RADIUS,
            "primary_radius_port": self.radius.port,
            "radius_secret": "testing123",
            "debug": 3,
            **settings,
        }
        self.server = Server(self.space, self.directory, settings=everything, pool=pool)
        gevent.get_hub().threadpool.apply(self.server.start)

    def lac(self, address: str = "192.0.2.2") -> Lac:
        with self.lac_space.entered():
            lac = Lac((address, 0), (LNS, 1701))
        self.lacs.append(lac)
        return lac

    def events(self, event: str) -> list[dict[str, Any]]:
        return self.server.log(event)

    def lost(self) -> list[str]:
        routes = [", ".join(line["routes"]) for line in self.events("routes_restored")]
        return [words for line in self.events("tun_restored") for words in line["lost"]] + routes

    def routes(self) -> list[str]:
        """Destinations of our kernel routes."""
        shown = self.space.ip("route", "show", "proto", str(PROTOCOL))
        return sorted(line.split()[0] for line in shown.splitlines())

    def sysctl(self, name: str) -> str:
        return self.space.run("sysctl", "-n", name).strip()

    def close(self) -> None:
        for lac in self.lacs:
            lac.close()
        if self.server.process is not None and self.server.process.poll() is None:
            gevent.get_hub().threadpool.apply(self.server.stop)
        self.radius.stop()
        assert self.server.tracebacks() == ""


# What is lost comes back


@pytest.mark.parametrize(
    "commands, lost",
    [
        (["ip route flush dev tun0"], "10.1.0.0/16, 10.9.0.0/24, 172.20.1.5/32"),
        (["ip route del 10.9.0.0/24"], "10.9.0.0/24"),
        (["ip link set tun0 down"], "up"),
        (["ip link set tun0 down", "ip link set tun0 up"], "10.1.0.0/16, 10.9.0.0/24, 172.20.1.5/32"),
        (["ip addr flush dev tun0"], "address 1.1.1.1/32"),
        (["ip link set tun0 mtu 1280"], "mtu 1462"),
        (["ip link set tun0 txqueuelen 3"], "txqueuelen 2000"),
        (["tc qdisc del dev tun0 root"], "qdisc htb"),
    ],
    ids=lambda words: words[-1] if isinstance(words, list) else "",
)
def test_what_another_program_takes_away_is_put_back_and_named(stage: Stage, commands: list[str], lost: str) -> None:
    stage.users[b"fred"] = User(b"pw", [(8, ip("172.20.1.5")), (22, b"10.9.0.0/24 0.0.0.0 1")])
    stage.users[b"mary"] = User(b"pw")
    stage.host.route("172.20.0.0/16", "198.51.100.1")
    stage.start()
    lac = stage.lac().connect()
    fred, mary = lac.call("fred", "pw", auth="pap").wait_online(), lac.call("mary", "pw", auth="pap").wait_online()
    before = ["10.1.0.0/16", "10.9.0.0/24", "172.20.1.5"]
    until(lambda: stage.routes() == before)
    assert fred.ping(RADIUS) is not None
    for command in commands:
        stage.space.run(*command.split())
    until(lambda: lost in stage.lost())
    until(lambda: stage.routes() == before)
    until(lambda: fred.ping(RADIUS, timeout=1.0) is not None and mary.ping(RADIUS, timeout=1.0) is not None)
    assert "mtu 1462" in stage.space.ip("link", "show", "tun0")
    assert stage.space.addresses("tun0") == ["1.1.1.1/32"]


def test_throttled_sessions_keep_their_classes_when_the_queue_is_replaced(stage: Stage) -> None:
    stage.users[b"fred"] = User(b"pw")
    stage.start()
    stage.lac().connect().call("fred", "pw", auth="pap").wait_online()
    console = Console(stage.space)
    console.do("throttle fred 800")
    console.close()
    until(lambda: "class htb 1:10" in stage.space.run("tc", "class", "show", "dev", "tun0"))
    for number, command in enumerate(("qdisc replace dev tun0 root handle 7: pfifo", "filter del dev tun0"), 1):
        stage.space.run("tc", *command.split())
        until(lambda: len(stage.events("tun_restored")) == number)  # noqa: B023
        assert "class htb 1:10" in stage.space.run("tc", "class", "show", "dev", "tun0")
        assert stage.space.run("tc", "filter", "show", "dev", "tun0").count("handle 0x1") == 1
    assert stage.lost() == ["qdisc htb", "1 classes", "filter of throttling"]


def test_a_queue_that_an_operator_chose_stays_while_no_session_is_throttled(stage: Stage) -> None:
    stage.start()
    stage.space.run("tc", "qdisc", "replace", "dev", "tun0", "root", "handle", "7:", "pfifo")
    stage.space.run("ip", "link", "set", "tun0", "down")
    until(lambda: stage.events("tun_restored"))
    assert "pfifo 7:" in stage.space.run("tc", "qdisc", "show", "dev", "tun0")


def test_two_programs_that_both_insist_do_not_fight_in_a_busy_loop(stage: Stage, lab: Lab) -> None:
    stage.users[b"fred"] = User(b"pw")
    stage.start()
    rounds = lab.directory / "rounds"
    fight = f"while :; do ip route flush dev tun0; ip link set tun0 down; echo >>{rounds}; done"
    other = stage.space.start("sh", "-c", fight)
    until(lambda: len(stage.events("tun_restored")) > tun_watch.MAX_IMMEDIATE_REPAIRS and rounds.stat().st_size > 200)
    repairs = len(stage.events("tun_restored"))
    assert repairs < rounds.stat().st_size / 10
    end(other)
    until(lambda: stage.routes() == ["10.1.0.0/16"])
    fred = stage.lac().connect().call("fred", "pw", auth="pap").wait_online()
    assert fred.ping(RADIUS) is not None


# Sysctls


@pytest.mark.parametrize("everywhere", ["0", "1"])
def test_two_subscribers_are_told_of_no_other_way_to_each_other(stage: Stage, everywhere: str) -> None:
    stage.users |= {b"fred": User(b"pw"), b"mary": User(b"pw")}
    for name in ("all", "default"):
        stage.space.run("sysctl", "-qw", f"net.ipv4.conf.{name}.send_redirects={everywhere}")
    stage.start()
    lac = stage.lac().connect()
    fred, mary = (lac.call(user, "pw", auth="pap").wait_online() for user in ("fred", "mary"))
    redirects: list[bytes] = []
    heard: list[bytes] = []
    fred.on_ip = lambda _, packet: (redirects if packet[9] == 1 and packet[20] == 5 else heard).append(packet)
    mary.on_ip = lambda _, packet: heard.append(packet)
    for _ in range(5):
        fred.send_udp(str(mary.address), 9, b"x")
    until(lambda: len(heard) == 5)
    assert redirects == []
    assert stage.sysctl("net.ipv4.conf.all.send_redirects") == everywhere  # which is not ours
    (line,) = stage.events("tun_settings")
    assert line.get("overruled_by") == (["net.ipv4.conf.all.send_redirects"] if everywhere == "1" else None)


def test_the_sysctls_of_the_device_are_set_reported_and_put_back(stage: Stage) -> None:
    for name in ("send_redirects", "accept_redirects", "accept_source_route", "route_localnet"):
        stage.space.run("sysctl", "-qw", f"net.ipv4.conf.default.{name}=1")
    stage.space.run("sysctl", "-qw", "net.ipv4.conf.default.forwarding=0")
    stage.start()
    wanted = {name.format("tun0").replace("/", "."): value for name, value in WANTED.items()}
    wanted["ipv4.conf.tun0.forwarding"] = "1"
    assert {name: stage.sysctl(f"net.{name}") for name in wanted} == wanted
    (line,) = stage.events("tun_settings")
    assert set(line["settings"]) == {f"{name.rpartition('.')[2]}={value}" for name, value in wanted.items()}
    stage.space.run("sysctl", "-qw", "net.ipv4.conf.tun0.send_redirects=1")
    stage.space.run("ip", "link", "set", "tun0", "mtu", "1400")
    until(lambda: "send_redirects=0" in stage.lost())


# What must not lead there


def test_the_kernel_says_what_this_machine_needs(lab: Lab) -> None:
    space = lab.namespace("around")
    for line in (
        "link add eth9 type veth peer name peer9",
        "link set peer9 up",
        "link set eth9 up",
        "address add 192.0.2.1/24 broadcast 192.0.2.255 dev eth9",
        "link add eth8 type veth peer name peer8",
        "link set eth8 up",
        "address add 192.0.9.1/32 dev eth8",
        "route add 10.8.0.0/16 via 192.0.2.77",
        "route add 10.7.0.0/16 nexthop via 192.0.2.78 nexthop via 192.0.2.79",
        "route add default via 203.0.113.1 dev eth9 onlink table 77",
        "route add local 198.51.100.0/24 dev lo",
        "route add 10.6.0.0/16 via 192.0.2.80 proto bgp",
    ):
        space.ip(*line.split())
    with space.entered():
        netlink = Netlink()
        found: Surroundings = look(netlink, 0)
        netlink.close()
    assert found.connected == {IPv4Network("192.0.2.0/24"): "the network of eth9"}
    assert found.gateways == {
        IPv4Network(f"{address}/32"): "the gateway of a route by an interface"
        if address in ("192.0.2.78", "192.0.2.79")
        else "the gateway of a route by eth9"
        for address in ("192.0.2.77", "192.0.2.78", "192.0.2.79", "203.0.113.1")
    }
    assert set(map(str, found.own)) >= {"192.0.2.1/32", "192.0.2.255/32", "192.0.9.1/32", "198.51.100.0/24"}


def test_an_address_that_the_machine_gets_later_is_given_to_nobody_and_answers_at_once(stage: Stage) -> None:
    stage.users |= {b"fred": User(b"pw", [(22, b"10.9.0.0/30 0.0.0.0 1")]), b"mary": User(b"pw")}
    stage.start("10.1.0.1\n10.1.0.2\n10.1.0.3\n")
    lac = stage.lac().connect()
    fred = lac.call("fred", "pw", auth="pap").wait_online()
    until(lambda: "10.9.0.0/30" in stage.routes())
    before = stage.routes()
    for address in ("10.9.0.2", "10.1.0.2"):
        stage.space.ip("address", "add", f"{address}/32", "dev", "wan")
    until(lambda: stage.events("pool_address_withheld"))
    assert [line["why"] for line in stage.events("pool_address_withheld")] == ["10.1.0.2 is an address of wan"]
    assert stage.routes() == before  # the kernel looks its own addresses up first
    assert fred.ping("10.9.0.2") is not None and fred.ping("10.1.0.2") is not None
    mary = lac.call("mary", "pw", auth="pap").wait_online()
    assert IPv4Address("10.1.0.2") not in (fred.address, mary.address)


def test_a_lac_whose_address_the_pool_contains_is_served_and_its_address_is_not_given_out(stage: Stage) -> None:
    stage.users |= {b"fred": User(b"pw"), b"mary": User(b"pw")}
    stage.start(f"{FAR}\n10.1.0.1\n")
    lac = stage.lac(FAR).connect()
    fred = lac.call("fred", "pw", auth="pap").wait_online()
    assert fred.address == IPv4Address("10.1.0.1") and fred.ping(RADIUS) is not None
    assert stage.routes() == ["10.1.0.1"]
    assert stage.events("pool_address_withheld")[0]["network"] == f"{FAR}/32"


def test_a_lac_whose_address_is_a_subscribers_is_refused_and_the_subscriber_stays(stage: Stage) -> None:
    stage.users[b"fred"] = User(b"pw", [(22, b"203.0.113.0/24 0.0.0.0 1")])
    stage.space.ip("route", "del", "203.0.113.0/24")  # it is reached by the default route
    stage.space.route("default", "192.0.2.2")
    stage.start()
    fred = stage.lac().connect().call("fred", "pw", auth="pap").wait_online()
    until(lambda: stage.routes() == ["10.1.0.0/16", "203.0.113.0/24"])
    late = stage.lac(FAR)
    gevent.spawn(lambda: late.connect(5.0))
    until(lambda: stage.events("lac_refused"))
    assert stage.events("lac_refused")[0]["why"] == f"{FAR} is routed to the subscriber fred"
    assert fred.online and stage.routes() == ["10.1.0.0/16", "203.0.113.0/24"]


def test_a_framed_route_that_contains_a_lac_is_refused_even_after_the_lac_has_left(stage: Stage) -> None:
    stage.users |= {b"fred": User(b"pw", [(22, b"203.0.113.0/24 0.0.0.0 1")]), b"mary": User(b"pw")}
    stage.space.ip("route", "del", "203.0.113.0/24")
    stage.space.route("default", "192.0.2.2")
    stage.start()
    far = stage.lac(FAR).connect()
    mary = far.call("mary", "pw", auth="pap").wait_online()
    lac = stage.lac().connect()
    for number in (1, 2):
        fred = lac.call("fred", "pw", auth="pap").wait_online()
        until(lambda: len(stage.events("framed_route_refused")) == number)  # noqa: B023
        fred.terminate()
        fred.wait_ended()
        if number == 1:
            assert mary.ping(RADIUS) is not None
            far.close()
            until(lambda: stage.routes() == ["10.1.0.0/16"])
    assert stage.events("framed_route_refused")[0]["why"] == f"203.0.113.0/24 contains {FAR}, the LAC lac"


def test_a_packet_of_ours_that_the_kernel_routes_into_the_device_ends_there(stage: Stage) -> None:
    """Whoever made the route: an operator by mistake, or a routing daemon."""
    stage.users[b"fred"] = User(b"pw", [(8, ip("172.20.1.5"))])
    stage.host.route("172.20.0.0/16", "198.51.100.1")
    stage.start()
    lac = stage.lac(FAR).connect()
    fred = lac.call("fred", "pw", auth="pap").wait_online()
    assert fred.ping(RADIUS) is not None
    stage.space.ip("route", "add", f"{FAR}/32", "dev", "tun0", "proto", "static")
    with stage.host.socket() as sock:
        for _ in range(10):
            sock.sendto(b"to fred", ("172.20.1.5", 9))
    until(lambda: stage.events("own_l2tp_dropped"))
    assert stage.events("own_l2tp_dropped")[0]["lac"] == FAR
    stage.space.ip("route", "del", f"{FAR}/32", "dev", "tun0")
    until(lambda: fred.ping(RADIUS, timeout=1.0) is not None)


@pytest.mark.shows("set routed_networks")
def test_an_address_of_our_own_network_goes_to_a_subscriber_where_the_operator_names_it(stage: Stage) -> None:
    stage.users |= {b"fred": User(b"pw"), b"mary": User(b"pw", [(8, ip("192.0.2.99"))])}
    stage.start("192.0.2.128/29\n192.0.2.1\n", routed_networks="192.0.2.128/25")
    lac = stage.lac().connect()
    fred = lac.call("fred", "pw", auth="pap").wait_online()
    assert fred.address == IPv4Address("192.0.2.129")
    mary = lac.call("mary", "pw", auth="pap")
    assert mary.wait_ended()
    assert stage.events("address_refused")[0]["why"].endswith("the network of wan")
