"""The walled garden with real packets, real rules and a RADIUS server (manual: Walled Garden; root, own namespaces).

lac -- server -- host: 198.51.100.2 beyond, 198.51.100.80 the portal, 203.0.113.5 the rest of the world
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest

from l2tpns.system.conntrack import Conntrack
from l2tpns.system.firewall import Firewall
from l2tpns.system.garden_rules import GardenRules
from l2tpns.system.ipset import IpSets
from l2tpns.system.nft import dropping_chains
from tests.lab import PATIENCE
from tests.lab.lac import Dial, Lac, Subscriber
from tests.lab.memory_log import MemoryLog
from tests.lab.netns import CommandFailed, Lab, Namespace, is_root, three_hosts
from tests.lab.radius_server import RadiusServer, User, vsa
from tests.lab.server import CHECKOUT, Server
from tests.lab.storm import Storm
from tests.lab.traffic import icmp_echo, ipv4, parse, tcp_syn, udp

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST, PORTAL, WORLD = "192.0.2.1", "198.51.100.2", "198.51.100.80", "203.0.113.5"
START, STOP = 1, 2
GRE, SCTP = 47, 132
SHIPPED = CHECKOUT / "etc/l2tpns/build-garden"
OTHERS = """\
*nat
:theirs - [0:0]
-A PREROUTING -p tcp -m tcp --dport 8080 -j theirs
-A theirs -m comment --comment "l2tpns is a neighbour" -j RETURN
COMMIT
*filter
-A FORWARD -s 172.16.0.0/12 -m comment --comment theirs -j DROP
COMMIT
"""


class Stage:
    """The daemon with its RADIUS server, a LAC, and the world with its portal."""

    def __init__(self, lab: Lab, *lines: str, script: bool = True, **settings: Any) -> None:
        self.lab = lab
        self.lac_space, self.space, self.host = three_hosts(lab)
        self.host.ip("address", "add", f"{PORTAL}/24", "dev", "lan")
        self.host.ip("address", "add", f"{WORLD}/32", "dev", "lo")
        self.space.route("203.0.113.0/24", HOST)
        self.users = {b"fred": User(b"pw"), b"mary": User(b"pw")}
        with self.space.entered():
            self.radius = RadiusServer(users=self.users).start()
        self.script = lab.directory / "build-garden"
        if script:
            self.script.write_text(SHIPPED.read_text().replace("PORTAL=192.168.1.1", f"PORTAL={PORTAL}"))
            self.script.chmod(0o755)
        everything = {
            "primary_radius": "127.0.0.1",
            "primary_radius_port": self.radius.port,
            "radius_secret": "testing123",
            "radius_accounting": True,
            "save_state": True,
            **settings,
        }
        plugin = ('load plugin "garden"', f'set garden_script "{self.script}"')
        self.server = Server(self.space, lab.directory / "lns", settings=everything, lines=[*plugin, *lines])
        self.sockets: dict[tuple[str, int], Any] = {}
        self.theirs: list[str] = []  # rules before the server began

    def start(self) -> None:
        gevent.get_hub().threadpool.apply(self.server.start)

    def stop(self) -> int:
        """In a thread: its RADIUS server is one of ours."""
        status: int = gevent.get_hub().threadpool.apply(self.server.stop)
        return status

    def connect(self) -> Lac:
        self.lac = Lac(("0.0.0.0", 0), (LNS, 1701), sock=self.lac_space.socket(), defaults=Dial(auth="pap"))
        return self.lac.connect()

    def listen(self, *places: tuple[str, int]) -> None:
        for place in places:
            with self.host.entered():
                self.sockets[place] = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.sockets[place].bind(place)
            self.sockets[place].settimeout(PATIENCE)

    def nsctl(self, *words: str) -> tuple[int, str]:
        command = self.space.command(sys.executable, "-m", "l2tpns.nsctl", *words)
        done = gevent.get_hub().threadpool.apply(
            lambda: subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    def rules(self) -> list[str]:
        """iptables-legacy-save and ipset save, without counters."""
        saved = self.space.run("iptables-legacy-save").splitlines()
        kept = [re.sub(r" \[\d+:\d+\]", "", line) for line in saved if not line.startswith("#")]
        return [*kept, *sorted(self.space.run("ipset", "save").splitlines())]

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        self.radius.stop()
        assert self.server.tracebacks() == ""


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        stage = Stage(lab)
        stage.space.run("iptables-legacy-restore", "-w", "--noflush", input=OTHERS)
        stage.theirs = stage.rules()
        stage.start()
        stage.connect()
        yield stage
        stage.lac.close()
        if stage.server.process is not None and stage.server.process.poll() is None:
            assert stage.stop() == 0
        stage.close()


def members(space: Namespace, name: str = "garden_users") -> set[str]:
    lines = space.run("ipset", "save", name).splitlines()
    return {line.split()[2] for line in lines if line.startswith("add ")}


def counted(space: Namespace, table: str, chain: str) -> list[int]:
    """Packets of each rule."""
    listing = space.run("iptables-legacy", "-w", "-t", table, "-L", chain, "-nvx")
    return [int(line.split()[0]) for line in listing.splitlines()[2:] if line.strip()]


def answer(sock: Any, data: bytes) -> tuple[bytes, tuple[str, int]]:
    """What came next, which is answered."""
    heard, peer = sock.recvfrom(100)
    sock.sendto(data, peer)
    return heard, peer


def sender(packet: bytes) -> tuple[str, int, bytes]:
    found = parse(packet)
    return str(found.source), found.ports[0], found.payload[8:]


def test_a_rejected_subscriber_reaches_the_portal_and_dns_and_nothing_else(stage: Stage) -> None:
    stage.listen((PORTAL, 9000), (WORLD, 53), (WORLD, 9000))
    fred = stage.lac.call("fred", "wrong").wait_online()
    stage.lac.wait(lambda: members(stage.space) == {str(fred.address)})
    capture = stage.lab.capture(stage.host, "lan", stage.lab.directory / "lan.pcap", f"src host {fred.address}")
    # What must not leave, and what nat does not see. What is sent last arrives first: nothing is just late.
    world = IPv4Address(WORLD)
    fred.send_ip(icmp_echo(fred.address, world, 1, 1))
    fred.send_ip(icmp_echo(fred.address, IPv4Address(PORTAL), 1, 1))
    for protocol in (GRE, SCTP, 4, 41, 50):
        fred.send_ip(ipv4(fred.address, world, protocol, bytes(40)))
    # Everything that is UDP, and to anywhere, is the portal's.
    fred.send_udp(WORLD, 9000, b"for the world")
    assert answer(stage.sockets[PORTAL, 9000], b"from the portal") == (b"for the world", (str(fred.address), 7000))
    assert sender(fred.receive_ip()) == (WORLD, 9000, b"from the portal")
    # A connection by TCP is the portal's, too, which has no such port.
    fred.send_ip(tcp_syn(fred.address, world, 7001, 80))
    refused = parse(fred.receive_ip())
    assert (str(refused.source), refused.payload[13] & 0x04) == (WORLD, 0x04)  # RST
    # DNS passes as it is.
    fred.send_udp(WORLD, 53, b"a question")
    assert answer(stage.sockets[WORLD, 53], b"an answer")[0] == b"a question"
    assert sender(fred.receive_ip()) == (WORLD, 53, b"an answer")
    # Nobody reaches it unasked, though packets to others pass.
    mary = stage.lac.call("mary", "pw").wait_online()
    stage.sockets[WORLD, 9000].sendto(b"hello fred", (str(fred.address), 9))
    stage.sockets[WORLD, 9000].sendto(b"hello mary", (str(mary.address), 9))
    assert sender(mary.receive_ip()) == (WORLD, 9000, b"hello mary")
    assert not fred.received
    # And what was seen on the wire.
    seen = stage.host.run("tcpdump", "-n", "-r", str(capture.stop())).splitlines()
    places = {line.split(" > ")[1].split(":")[0] for line in seen if " > " in line}
    assert places == {f"{PORTAL}.9000", f"{PORTAL}.80", f"{WORLD}.53"}
    # The manual: iptables -t nat -L garden -nvx
    assert counted(stage.space, "nat", "garden")[-2:] == [1, 1]
    assert counted(stage.space, "filter", "l2tpns_out")[-1] == 7


def test_what_is_open_when_a_session_goes_in_and_out_is_decided_anew(stage: Stage) -> None:
    stage.listen((PORTAL, 9000), (WORLD, 9000))
    fred = stage.lac.call("fred", "pw").wait_online()
    neighbour = stage.lac.call("mary", "pw").wait_online()
    for subscriber in (fred, neighbour):
        subscriber.send_udp(WORLD, 9000, b"one")
        assert answer(stage.sockets[WORLD, 9000], b"yes")[0] == b"one"
        assert sender(subscriber.receive_ip()) == (WORLD, 9000, b"yes")
    assert stage.nsctl("garden", "fred")[0] == 0

    def now_at(subscriber: Subscriber, place: tuple[str, int]) -> None:
        """The same connection goes on, and comes out there."""

        def arrived() -> bool:
            subscriber.send_udp(WORLD, 9000, b"again")
            stage.sockets[place].settimeout(0.2)
            with suppress(TimeoutError):
                return bool(stage.sockets[place].recvfrom(100)[0] == b"again")
            return False

        subscriber.wait(arrived)

    now_at(fred, (PORTAL, 9000))
    now_at(neighbour, (WORLD, 9000))
    before = len(stage.radius.records)
    assert stage.nsctl("ungarden", "fred") == (0, f"session {_session(stage, 'fred')} is out of the walled garden")
    now_at(fred, (WORLD, 9000))
    fred.wait(lambda: fred.ping(HOST, timeout=1.0) is not None)
    stage.lac.wait(lambda: len(stage.radius.records) > before)
    kinds = [(record.one(1), record.number(40)) for record in stage.radius.records if record.one(1) == b"fred"]
    assert kinds == [(b"fred", START), (b"fred", STOP), (b"fred", START)]
    assert members(stage.space) == set()


def _session(stage: Stage, user: str) -> int:
    found: int = stage.server.log("session_up", user=user)[-1]["session"]
    return found


def test_leaving_gives_full_service_and_an_accounting_start(stage: Stage) -> None:
    fred = stage.lac.call("fred", "wrong").wait_online()
    assert fred.ping(HOST, timeout=0.5) is None
    assert [record for record in stage.radius.records if record.one(1) == b"fred"] == []
    session = _session(stage, "fred")
    assert stage.nsctl("ungarden", str(session))[0] == 0
    assert stage.nsctl("ungarden", str(session)) == (1, "nsctl: not in walled garden")
    assert fred.ping(HOST) is not None
    stage.lac.wait(lambda: any(r.number(40) == START and r.one(1) == b"fred" for r in stage.radius.records))
    assert fred.online and fred.address == IPv4Address(stage.server.log("garden_left")[-1]["address"])


def test_a_garden_that_radius_names_has_chains_and_members_of_its_own(stage: Stage) -> None:
    avpair = vsa(9, (1, b"garden=unpaid"))
    stage.users[b"mary"] = User(b"pw", [avpair, (22, b"10.9.0.0/16 0.0.0.0 1")])
    mary = stage.lac.call("mary", "pw").wait_online()
    stage.lac.wait(lambda: members(stage.space, "garden_users_unpaid") == {str(mary.address), "10.9.0.0/16"})
    # What comes from behind the subscriber is caged, too.
    stage.listen((PORTAL, 9000))
    source = IPv4Address("10.9.1.1")
    mary.send_ip(icmp_echo(source, IPv4Address(WORLD), 1, 1))
    mary.send_ip(udp(source, IPv4Address(WORLD), 7000, 9000, b"from behind"))
    assert answer(stage.sockets[PORTAL, 9000], b"")[0] == b"from behind"
    assert counted(stage.space, "nat", "garden_unpaid")[-1] == 1
    assert counted(stage.space, "filter", "l2tpns_out")[-1] == 1


def test_what_the_operator_lets_out_in_his_chain_of_filter_passes(stage: Stage) -> None:
    fred = stage.lac.call("fred", "wrong").wait_online()
    assert fred.ping(HOST, timeout=0.5) is None
    stage.space.run("iptables-legacy", "-w", "-A", "garden", "-p", "icmp", "-j", "ACCEPT")
    assert fred.ping(HOST) is not None


def test_after_a_crash_the_kernel_has_exactly_what_it_should_and_after_quit_nothing_of_ours(stage: Stage) -> None:
    survive_a_crash(stage, 50)


@pytest.mark.slow
def test_after_a_crash_with_500_in_gardens_the_kernel_has_exactly_what_it_should(stage: Stage) -> None:
    survive_a_crash(stage, 500)


def survive_a_crash(stage: Stage, sessions: int) -> None:
    storm = Storm([stage.lac], sessions, window=32, dial=Dial(auth="pap"))
    report = storm.run(120.0)
    assert report.online == sessions, str(report)  # nobody knows them: all are rejected
    fred = stage.lac.call("fred", "pw").wait_online()
    stage.server.wait_for("session_up", user="fred")
    inside = {str(subscriber.address) for subscriber in storm.subscribers}
    assert members(stage.space) == inside and len(inside) == sessions
    before = stage.rules()
    gevent.sleep(1.5)  # the journal is written once a second
    stage.server.kill()
    # What is left over is wrong in both ways.
    stage.space.run("ipset", "add", "garden_users", "10.99.0.1")
    stage.space.run("ipset", "del", "garden_users", sorted(inside)[0])
    stage.space.run("ipset", "create", "garden_users_gone", "hash:net")
    stage.space.run("iptables-legacy", "-w", "-t", "nat", "-D", "garden_users", "2")
    stage.start()
    with suppress(TimeoutError):
        stage.lac.wait(lambda: stage.rules() == before)  # build-garden takes its time
    assert stage.rules() == before
    assert members(stage.space) == inside
    (resumed,) = stage.server.log("state_resumed")
    assert resumed["sessions"] == sessions + 1
    (cleaned,) = stage.server.log("firewall_cleaned")
    assert cleaned["rules"]
    assert fred.ping(HOST) is not None
    in_garden = storm.subscribers[0]
    assert in_garden.ping(HOST, timeout=0.5) is None
    stage.lac.close()
    assert stage.stop() == 0
    assert stage.rules() == stage.theirs


def test_clean_kernel_removes_what_a_crash_has_left_unless_a_server_runs(stage: Stage) -> None:
    stage.lac.call("fred", "wrong").wait_online()
    command = (sys.executable, "-m", "l2tpns", "--clean-kernel")
    stage.lac.wait(lambda: members(stage.space))
    in_use = stage.rules()
    with pytest.raises(CommandFailed, match="a server runs here"):
        stage.space.run(*command)
    assert stage.rules() == in_use != stage.theirs
    stage.server.kill()
    assert "devices removed" in stage.space.run(*command)
    assert stage.rules() == stage.theirs
    assert stage.space.run(*command).startswith("0 rules")


def test_chains_that_the_operator_has_made_are_used_and_stay_as_they_were() -> None:
    """As the manual tells him, by hand: and its rules, in the words of today's iptables."""
    manual = f"""\
*nat
:l2tpns - [0:0]
:garden - [0:0]
:garden_users - [0:0]
-A PREROUTING -j l2tpns
-A l2tpns -j garden_users
-A garden -p tcp -m tcp ! --dport 53 -j DNAT --to-destination {PORTAL}
-A garden -p udp -m udp ! --dport 53 -j DNAT --to-destination {PORTAL}
COMMIT
"""
    with Lab() as lab:
        stage = Stage(lab, script=False)
        stage.space.run("iptables-legacy-restore", "-w", input=manual)
        before = stage.rules()
        stage.start()
        stage.connect()
        stage.listen((PORTAL, 9000))
        fred = stage.lac.call("fred", "wrong").wait_online()
        fred.send_udp(WORLD, 9000, b"for the world")
        assert answer(stage.sockets[PORTAL, 9000], b"")[0] == b"for the world"
        nat = stage.space.run("iptables-legacy-save", "-t", "nat")
        assert nat.count("-j l2tpns\n") == nat.count("-A l2tpns") == 1
        stage.server.kill()
        stage.start()
        assert stage.stop() == 0
        assert [line for line in stage.rules() if not line.startswith((":", "*filter", "COMMIT"))] == [
            line for line in before if not line.startswith((":", "COMMIT"))
        ]
        stage.lac.close()
        stage.close()


def test_rules_that_somebody_has_flushed_come_back() -> None:
    with Lab() as lab:
        space = lab.namespace("cage")
        with space.entered():
            cage = GardenRules(Firewall(MemoryLog().get()), IpSets())
            assert cage.build("garden")
            cage.add("garden", [IPv4Network("10.1.0.1")])
            assert not cage.build("garden")
            rules = space.run("iptables-legacy-save")
            for table in ("nat", "filter"):
                space.run("iptables-legacy", "-w", "-t", table, "-F")
                space.run("iptables-legacy", "-w", "-t", table, "-X")
            assert cage.build("garden")
            assert _bare(space.run("iptables-legacy-save")) == _bare(rules)
            assert members(space) == {"10.1.0.1"}


def test_connections_of_a_source_are_forgotten_and_no_others() -> None:
    with Lab() as lab:
        space = lab.namespace("tracked")
        space.run("iptables-legacy", "-w", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT")
        with space.entered():
            conntrack = Conntrack()
            for last in range(1, 41):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                sock.bind((f"127.0.1.{last}", 0))
                for port in (1000, 1001):
                    sock.sendto(b"", ("127.0.0.1", port))
                sock.close()
            one = [IPv4Network("127.0.1.1")]
            assert [conntrack.forget(one), conntrack.forget(one)] == [2, 0]
            assert conntrack.forget([IPv4Network("127.0.1.16/28")]) == 32
            assert conntrack.forget([IPv4Network(f"127.0.1.{last}") for last in range(1, 13)]) == 22
            assert conntrack.forget([IPv4Network("127.0.1.0/24")]) == 24
            conntrack.close()


def test_an_nft_chain_that_drops_what_is_forwarded_is_named() -> None:
    with Lab() as lab:
        space = lab.namespace("nft")
        try:
            space.run("iptables-nft", "-P", "FORWARD", "DROP")
        except (CommandFailed, FileNotFoundError):
            pytest.skip("needs iptables-nft and nf_tables")
        with space.entered():
            assert dropping_chains() == ["ip filter FORWARD"]
        space.run("iptables-nft", "-P", "FORWARD", "ACCEPT")
        space.run("iptables-nft", "-P", "INPUT", "DROP")
        with space.entered():
            assert dropping_chains() == []


def _bare(saved: str) -> list[str]:
    return sorted(re.sub(r" \[\d+:\d+\]", "", line) for line in saved.splitlines() if not line.startswith("#"))


def test_the_shipped_script_is_the_manuals_example() -> None:
    assert Path(SHIPPED).stat().st_mode & 0o111 == 0  # it is run where the operator has made it executable
