"""Throttling with a real kernel: what tc, ipset and iptables-legacy show, what gets through, what restarts leave."""

from __future__ import annotations

import signal
from ipaddress import IPv4Network
from time import monotonic
from typing import Any

import gevent
import pytest

from l2tpns.system import shaping
from l2tpns.system.firewall import Firewall
from l2tpns.system.ipset import IpSets
from l2tpns.system.rtnetlink import Netlink
from tests.lab import PATIENCE
from tests.lab.console import Console
from tests.lab.inprocess import until
from tests.lab.kernel import SET, aimed, buckets, rules, sets, speeds
from tests.lab.lac import Dial, Lac, Subscriber
from tests.lab.memory_log import MemoryLog
from tests.lab.netns import Lab, is_root, run, three_hosts
from tests.lab.radius_server import RadiusServer, User
from tests.lab.rates import HEADERS, PORT, Crowd, Offer
from tests.lab.server import Server
from tests.lab.storm import Storm
from tests.lab.traffic import parse

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST = "192.0.2.1", "198.51.100.2"
FRAMED_ROUTE = 22
OURS = [
    "-N l2tpns",
    "-N throttle",
    "-A PREROUTING -m comment --comment l2tpns -j l2tpns",
    '-A l2tpns -m comment --comment "l2tpns made this chain"',
    "-A l2tpns -m comment --comment l2tpns -j throttle",
    '-A throttle -m comment --comment "l2tpns made this chain"',
    f"-A throttle -m comment --comment l2tpns -j SET --map-set {SET} dst --map-mark",
]


class Stage:
    """The daemon, a LAC, a host beyond, a console."""

    def __init__(self, lab: Lab, **settings: Any) -> None:
        self.lac_space, self.space, self.host = three_hosts(lab)
        users = {b"user%06d" % number: User(b"secret") for number in range(500)}
        users |= {b"fred": User(b"pw", [(FRAMED_ROUTE, b"10.77.0.0/24 0.0.0.0 1")]), b"mary": User(b"pw")}
        with self.space.entered():
            self.radius = RadiusServer(users=users).start()
        self.settings = {
            "primary_radius": "127.0.0.1",
            "primary_radius_port": self.radius.port,
            "radius_secret": "testing123",
            "radius_authtypes": "pap,chap",
            "throttle_method": "htb",
            "debug": 3,
            **settings,
        }
        self.server = Server(self.space, lab.directory / "lns", settings=self.settings)
        self.start()
        with self.lac_space.entered():
            self.lac = Lac(("192.0.2.2", 0), (LNS, 1701))
        self.lac.connect()

    def start(self) -> None:
        gevent.get_hub().threadpool.apply(self.server.start)  # our LAC goes on meanwhile
        self.console = Console(self.space)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        self.console.close()
        assert gevent.get_hub().threadpool.apply(self.server.stop, (how,)) == 0

    def log_in(self, user: str) -> Subscriber:
        return self.lac.call(user, "pw", auth="pap").wait_online()

    def storm(self, count: int) -> list[Subscriber]:
        storm = Storm([self.lac], count, window=32, dial=Dial(auth="pap"))
        report = storm.run(120.0)
        assert report.online == count, str(report)
        return storm.subscribers

    def close(self) -> None:
        self.lac.close()
        if self.server.process is not None and self.server.process.poll() is None:
            self.stop()
        self.radius.stop()
        assert self.server.tracebacks() == ""


def network(subscriber: Subscriber) -> IPv4Network:
    return IPv4Network(str(subscriber.address))


def through(stage: Stage, subscriber: Subscriber, count: int = 3) -> list[bytes]:
    """Send packets of 500 octets from the host beyond; those that arrived."""
    arrived: list[bytes] = []
    subscriber.on_ip = lambda _, packet: arrived.append(packet)
    with stage.host.socket() as sock:
        for number in range(count):
            sock.sendto(bytes([number]) * (500 - HEADERS), (str(subscriber.address), PORT))
    until(lambda: len(arrived) == count, PATIENCE)
    subscriber.on_ip = None
    return arrived


def test_what_the_console_says_is_what_tc_ipset_and_iptables_show(stage: Stage) -> None:
    fred, mary = stage.log_in("fred"), stage.log_in("mary")
    assert sets(stage.space) == [] and stage.space.run("tc", "class", "show", "dev", "tun0") == ""
    assert stage.console.do("throttle fred in 64 out 800").strip() == "throttling user fred"
    (row,) = stage.console.rows("show throttle")
    assert row["filter_bucket"] == "1:10"
    assert aimed(stage.space) == {network(fred): 0x10, IPv4Network("10.77.0.0/24"): 0x10}
    assert [line for line in rules(stage.space) if not line.startswith("-P")] == OURS
    assert len(through(stage, fred)) == len(through(stage, mary)) == 3
    fred.on_ip = lambda *_: None
    with stage.host.socket() as sock:
        sock.sendto(bytes(500 - HEADERS), ("10.77.0.5", PORT))  # behind fred
    until(lambda: buckets(stage.space)[0x10].packets == 4, PATIENCE)
    (bucket,) = buckets(stage.space).values()
    assert (bucket.rate, bucket.octets) == (800.0, 2000)
    # Another rate: the same class, its counters going on. Then nobody's, and the next one's.
    stage.console.do("throttle fred 2000")
    assert {number: (b.rate, b.packets) for number, b in buckets(stage.space).items()} == {0x10: (2000.0, 4)}
    stage.console.do("no throttle fred")
    assert aimed(stage.space) == {}
    stage.console.do("throttle mary 64")
    assert speeds(stage.space) == {network(mary): 64.0}
    assert list(buckets(stage.space)) == [0x10]
    mary.terminate()
    until(lambda: aimed(stage.space) == {}, PATIENCE)
    assert stage.server.log("throttled", user="fred")[0]["bucket"] == "1:10"
    stage.stop()
    assert sets(stage.space) == [] and [line for line in rules(stage.space) if not line.startswith("-P")] == []


def test_an_operator_s_rules_and_marks_are_left_alone(stage: Stage) -> None:
    theirs = [
        "-N l2tpns",
        "-N throttle",
        "-A PREROUTING -j MARK --set-xmark 0x7/0xffffffff",
        "-A PREROUTING -j l2tpns",
        "-A FORWARD -m mark --mark 0x100007",
        "-A l2tpns -j throttle",
    ]
    for line in theirs:
        stage.space.run("iptables-legacy", "-t", "mangle", *line.split())
    stage.space.run("ipset", "create", "theirs", "hash:ip")
    fred = stage.log_in("fred")
    stage.console.do("throttle fred 800")
    through(stage, fred)
    counted = stage.space.run("iptables-legacy", "-t", "mangle", "-L", "FORWARD", "-nvx").splitlines()[2].split()
    assert counted[0] == "3"
    added = [line for line in rules(stage.space) if line not in theirs and not line.startswith("-P")]
    assert added == OURS[-1:]  # the jumps are there already, and so are the chains
    stage.stop()
    assert [line for line in rules(stage.space) if not line.startswith("-P")] == theirs
    assert sets(stage.space) == ["theirs"]


def test_rules_that_somebody_removed_come_back(lab: Lab) -> None:
    space = lab.namespace("throttle")
    space.ip("tuntap", "add", "tun0", "mode", "tun")
    log = MemoryLog()
    with space.entered():
        netlink = Netlink()
        shaper = shaping.KernelShaper(
            netlink,
            netlink.link_index("tun0"),
            IpSets(),
            Firewall(log.get(), str(lab.directory / "lock")),
            log.get(),
            check_interval=0.05,
        )
        shaper.start(needed=True)
        shaper.shape(shaping.Shaped(64, (IPv4Network("10.1.0.1"), IPv4Network("10.77.0.0/24"))))
        before = rules(space), aimed(space)
        for words in ("-F throttle", "-F l2tpns", "-D PREROUTING 1"):
            space.run("iptables-legacy", "-t", "mangle", *words.split())
        space.run("ipset", "flush", SET)
        until(lambda: log.records("throttle_healed"), PATIENCE)
        assert [line for line in rules(space) if "made this chain" not in line] == [
            line for line in before[0] if "made this chain" not in line
        ]
        assert aimed(space) == before[1]
        # The set alone, while every rule is there.
        space.run("ipset", "flush", SET)
        until(lambda: len(log.records("throttle_healed")) == 2, PATIENCE)
        assert aimed(space) == before[1]
        shaper.stop()


def test_no_more_than_the_rate_gets_through_each_way_and_a_neighbour_is_not_slowed(stage: Stage) -> None:
    rate, wanted = 200, 100_000
    fred, mary = stage.log_in("fred"), stage.log_in("mary")
    stage.console.do(f"throttle fred {rate}")
    with Crowd(stage.host, HOST) as crowd:
        begun = monotonic()
        offers = [Offer(fred, way, 4 * rate) for way in ("down", "up")]
        crowd.flood([*offers, *(Offer(mary, way, 4 * rate) for way in ("down", "up"))])
        took: dict[str, float] = {}
        while len(took) < 2:
            for way in ("down", "up"):
                if crowd.octets[fred, way] >= wanted:
                    took.setdefault(way, monotonic() - begun)
            gevent.sleep(0.01)
            assert monotonic() - begun < 10 * PATIENCE
        for seconds in took.values():
            assert (wanted - 2500 - 1000) / 125 / rate <= seconds  # what its burst lets through comes at once
        for way in ("down", "up"):
            assert crowd.octets[mary, way] > 2 * crowd.octets[fred, way]
    (row,) = stage.console.rows("show throttle")
    assert row["dropped_in"] > 0


def test_another_rate_loses_nothing_of_what_waits(stage: Stage) -> None:
    fred = stage.log_in("fred")
    stage.console.do("throttle fred out 8")
    arrived: list[bytes] = []
    fred.on_ip = lambda _, packet: arrived.append(parse(packet).payload[8:9])
    with stage.host.socket() as sock:
        for number in range(6):
            sock.sendto(bytes([number]) * 900, (str(fred.address), PORT))
    until(lambda: arrived, PATIENCE)
    stage.console.do("throttle fred out 8000")
    until(lambda: len(arrived) == 6, PATIENCE)
    assert arrived == [bytes([number]) for number in range(6)]


def test_radius_throttles_by_the_shipped_module(lab: Lab) -> None:
    stage = Stage(lab, throttle_speed=28)
    stage.console.do("load plugin autothrottle")
    stage.radius.users[b"mary"] = User(b"pw", [(26, cisco("lcp:interface-config#1=service-policy output 96"))])
    stage.radius.users[b"fred"] = User(b"pw", [(26, cisco("throttle=yes,intercept=no"))])
    fred, mary = stage.log_in("fred"), stage.log_in("mary")
    assert speeds(stage.space) == {network(fred): 28.0, network(mary): 96.0}
    told = {row["user"]: (row["rate_in"], row["rate_out"]) for row in stage.console.rows("show throttle")}
    assert told == {"fred": (28, 28), "mary": (0, 96)}
    stage.close()


def cisco(text: str) -> bytes:
    """RFC 2865 5.26: a Cisco-AVPair."""
    return (9).to_bytes(4, "big") + bytes([1, len(text) + 2]) + text.encode()


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_after_kill_9_the_kernel_is_exactly_as_it_was(lab: Lab, count: int) -> None:
    stage = Stage(lab, save_state=True)
    subscribers = stage.storm(count)
    for number, subscriber in enumerate(subscribers):
        stage.console.do(f"throttle {subscriber.user.decode()} in 64 out {100 + number}")
    wanted = {network(subscriber): 100.0 + number for number, subscriber in enumerate(subscribers)}
    assert speeds(stage.space) == wanted
    before = rules(stage.space), sets(stage.space)
    stage.console.close()
    stage.server.kill()
    stage.space.run("ipset", "add", SET, "10.99.0.0/16", "skbmark", "0x100000/0xffff0000")  # what nobody knows of
    stage.start()
    until(lambda: len(aimed(stage.space)) == count, 2 * PATIENCE)
    assert speeds(stage.space) == wanted
    assert (rules(stage.space), sets(stage.space)) == before
    assert len(buckets(stage.space)) == count
    rows = stage.console.rows("show throttle")
    assert {row["user"]: (row["rate_in"], row["rate_out"]) for row in rows} == {
        subscriber.user.decode(): (64, 100 + number) for number, subscriber in enumerate(subscribers)
    }
    assert len(through(stage, subscribers[0], 1)) == 1
    stage.close()
    assert sets(stage.space) == [] and [line for line in rules(stage.space) if not line.startswith("-P")] == []


def test_who_leaves_without_a_word_leaves_no_rules_and_finds_them_again(lab: Lab) -> None:
    stage = Stage(lab, save_state=True)
    (subscriber,) = stage.storm(1)
    stage.console.do(f"throttle {subscriber.user.decode()} 64")
    before = rules(stage.space), speeds(stage.space)
    stage.stop(signal.SIGTERM)
    assert sets(stage.space) == [] and [line for line in rules(stage.space) if not line.startswith("-P")] == []
    stage.start()
    until(lambda: sets(stage.space) and aimed(stage.space), PATIENCE)
    assert (rules(stage.space), speeds(stage.space)) == before
    stage.close()


def test_what_a_dead_server_left_goes_when_nobody_is_throttled_any_more(lab: Lab) -> None:
    stage = Stage(lab)
    fred = stage.log_in("fred")
    stage.console.do("throttle fred 64")
    stage.console.close()
    stage.server.kill()
    fred.vanish()
    assert sets(stage.space) == [SET]
    stage.start()
    assert sets(stage.space) == [] and [line for line in rules(stage.space) if not line.startswith("-P")] == []
    stage.close()


def test_a_server_whose_device_cannot_be_made_again_leaves_without_complaints(stage: Stage) -> None:
    fred = stage.log_in("fred")
    stage.console.do("throttle fred 64")
    process = stage.server.running()
    run("nsenter", "-t", str(process.pid), "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/net")  # as it sees it
    stage.space.ip("link", "delete", "tun0")
    until(lambda: process.poll() is not None, 2 * PATIENCE)
    assert process.returncode == 75 and stage.server.log("throttling_impaired") == []
    assert fred.ended is not None
    assert sets(stage.space) == [] and [line for line in rules(stage.space) if not line.startswith("-P")] == []
