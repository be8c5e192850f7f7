"""Sets and rules in the kernel, with what other programs have there at the same time (root, own namespaces)."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import gevent
import pytest

from l2tpns.system.firewall import Firewall, FirewallError
from l2tpns.system.ipset import IpSetError, IpSets
from tests.lab.memory_log import MemoryLog
from tests.lab.netns import Lab, Namespace, is_root

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

ONE, NET, ALL = IPv4Network("10.1.0.1/32"), IPv4Network("10.2.0.0/16"), IPv4Network("0.0.0.0/0")


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A namespace that this thread is in."""
    with Lab() as lab:
        namespace = lab.namespace("rules")
        with namespace.entered():
            yield namespace


@pytest.fixture
def sets(space: Namespace) -> Iterator[IpSets]:
    sets = IpSets()
    yield sets
    sets.close()


@pytest.fixture
def firewall(space: Namespace, tmp_path: Path) -> Firewall:
    return Firewall(MemoryLog().get(), str(tmp_path / "lock"))


def chain(firewall: Firewall, table: str, name: str) -> bool:
    with firewall.change(table) as (it,):
        return it.chain(name)


def ensure_rule(firewall: Firewall, table: str, chain: str, rule: str) -> bool:
    with firewall.change(table) as (it,):
        return it.ensure(chain, rule)


def remove_rule(firewall: Firewall, table: str, chain: str, rule: str) -> bool:
    with firewall.change(table) as (it,):
        return it.remove(chain, rule)


def rules(space: Namespace, *argv: str) -> list[str]:
    """What iptables-legacy-save says, without comments and counters."""
    return [line.split(" [")[0] for line in space.run("iptables-legacy-save", *argv).splitlines() if line[0] != "#"]


# Sets


def test_a_set_holds_networks_and_ipset_shows_them(space: Namespace, sets: IpSets) -> None:
    sets.ensure("garden_users", maxelem=1000)
    sets.ensure("garden_users", maxelem=1000)
    for network in (ONE, NET, NET):
        sets.add("garden_users", network)
    saved = space.run("ipset", "save", "garden_users").splitlines()
    assert saved[0].startswith("create garden_users hash:net family inet") and saved[0].endswith("maxelem 1000")
    assert set(saved[1:]) == {"add garden_users 10.1.0.1", "add garden_users 10.2.0.0/16"}
    assert sets.members("garden_users") == {ONE: None, NET: None}
    sets.remove("garden_users", ONE)
    sets.remove("garden_users", ONE)
    assert sets.members("garden_users") == {NET: None}


def test_members_carry_marks_that_change(space: Namespace, sets: IpSets) -> None:
    sets.ensure("l2tpns_marks", skbinfo=True)
    sets.add("l2tpns_marks", ONE, 0x10005)
    sets.add("l2tpns_marks", ONE, 0xFFFFFFFE)
    assert "add l2tpns_marks 10.1.0.1 skbmark 0xfffffffe" in space.run("ipset", "save")
    assert sets.members("l2tpns_marks") == {ONE: 0xFFFFFFFE}


def test_everything_is_held_in_two_halves(sets: IpSets) -> None:
    sets.ensure("l2tpns_all")
    assert sets.fill("l2tpns_all", {ALL: None}) == (2, 0)
    assert sets.fill("l2tpns_all", {ALL: None}) == (0, 0)
    sets.remove("l2tpns_all", ALL)
    assert sets.members("l2tpns_all") == {}


def test_fill_changes_what_differs(space: Namespace, sets: IpSets) -> None:
    sets.ensure("l2tpns_marks", skbinfo=True)
    sets.fill("l2tpns_marks", {IPv4Network(0x0A000000 + number): number for number in range(1, 3001)})
    space.run("ipset", "add", "l2tpns_marks", "172.16.0.0/12")
    wanted = {IPv4Network(0x0A000000 + number): number % 2000 for number in range(1, 3001)}
    assert sets.fill("l2tpns_marks", dict(wanted)) == (1001, 1)
    assert sets.fill("l2tpns_marks", dict(wanted)) == (0, 0)
    assert sets.members("l2tpns_marks") == wanted


def test_a_set_of_another_shape_is_refused_and_stays(space: Namespace, sets: IpSets) -> None:
    space.run("ipset", "create", "garden_users", "hash:ip,port")
    with pytest.raises(IpSetError, match="garden_users of another type"):
        sets.ensure("garden_users")
    assert "hash:ip,port" in space.run("ipset", "save")


def test_a_set_is_destroyed_unless_a_rule_refers_to_it(space: Namespace, sets: IpSets) -> None:
    sets.destroy("l2tpns_none")
    sets.ensure("l2tpns_used")
    assert sets.exists("l2tpns_used") and sets.names() == ["l2tpns_used"]
    rule = ("FORWARD", "-m", "set", "--match-set", "l2tpns_used", "src", "-j", "DROP")
    space.run("iptables-legacy", "-w", "-A", *rule)
    with pytest.raises(IpSetError, match="it is in use"):
        sets.destroy("l2tpns_used")
    space.run("iptables-legacy", "-w", "-D", *rule)
    sets.destroy("l2tpns_used")
    assert not sets.exists("l2tpns_used")


def test_a_full_or_missing_set_says_so(sets: IpSets) -> None:
    sets.ensure("l2tpns_few", maxelem=3)
    with pytest.raises(IpSetError, match="l2tpns_few: the set is full"):
        sets.fill("l2tpns_few", {IPv4Network(number): None for number in range(1, 1000)})
    with pytest.raises(IpSetError, match="ipset nowhere: No such file"):
        sets.members("nowhere")
    with pytest.raises(IpSetError, match="ipset nowhere"):
        sets.add("nowhere", ONE)


def test_many_greenlets_share_one_socket(sets: IpSets) -> None:
    sets.ensure("l2tpns_many")

    def change(number: int) -> None:
        for last in range(20):
            sets.add("l2tpns_many", IPv4Network(f"10.{number}.0.{last}"))
            gevent.sleep(0)
            if last % 2:
                sets.remove("l2tpns_many", IPv4Network(f"10.{number}.0.{last}"))

    gevent.joinall([gevent.spawn(change, number) for number in range(20)], raise_error=True)
    assert len(sets.members("l2tpns_many")) == 200


# Rules

RULES = (
    "-m set --match-set garden_users src -j garden",
    "-m set ! --match-set garden_users src -j DROP",
    "-p udp -m udp --dport 53 -j RETURN",
    "! -p udp -j ACCEPT",
    "-m conntrack --ctstate DNAT --ctdir ORIGINAL -j RETURN",
    "-o tun0 -j SET --map-set l2tpns_marks dst --map-mark",
    "-j CLASSIFY --set-class 0001:0870",
    "-j MARK --set-xmark 0x5/0xffffffff",
    "-s 10.0.0.0/8 -d 192.0.2.4/32 -i eth+",
)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_as_iptables_would_have_made_it_and_there_once(
    space: Namespace, sets: IpSets, firewall: Firewall, rule: str
) -> None:
    sets.ensure("garden_users")
    sets.ensure("l2tpns_marks", skbinfo=True)
    chain(firewall, "mangle", "garden")
    assert ensure_rule(firewall, "mangle", "FORWARD", rule)
    assert not ensure_rule(firewall, "mangle", "FORWARD", rule)
    before, _, after = rule.partition("-j")
    words = [*before.split(), "-m", "comment", "--comment", "l2tpns", *(("-j", *after.split()) if after else ())]
    appended = [line for line in rules(space, "-t", "mangle") if line.startswith("-A FORWARD")]
    assert appended == [" ".join(("-A FORWARD", *words))]
    assert remove_rule(firewall, "mangle", "FORWARD", rule)
    assert not remove_rule(firewall, "mangle", "FORWARD", rule)


@pytest.mark.parametrize(
    "rule",
    [
        "-m nix -j ACCEPT",
        "-j nochain",
        "-m set --match-set nix src -j DROP",
        "-p xyz",
        "--foo",
        "-p udp -m udp --dport x",
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_its_words(space: Namespace, firewall: Firewall, rule: str) -> None:
    with pytest.raises(FirewallError, match=f"rule {rule}: "):
        ensure_rule(firewall, "mangle", "FORWARD", rule)


def test_a_change_of_several_tables_is_made_at_once_or_not_at_all(space: Namespace, firewall: Firewall) -> None:
    with pytest.raises(FirewallError), firewall.change("nat", "filter") as (nat, filter_):
        nat.chain("garden")
        nat.ensure("PREROUTING", "-j garden")
        filter_.ensure("FORWARD", "-j nowhere")
    assert "garden" not in space.run("iptables-legacy-save")


def test_removing_ours_leaves_what_others_have(space: Namespace, firewall: Firewall) -> None:
    for words in (
        "-t nat -N garden",
        "-t nat -A garden -p tcp -m tcp ! --dport 53 -j DNAT --to-destination 192.168.1.1",
        "-t nat -A PREROUTING -m comment --comment l2tpnsx -j garden",
        "-A FORWARD -m hashlimit --hashlimit-above 5/sec --hashlimit-name a -j DROP",
        "-A FORWARD -m limit --limit 5/sec -m comment --comment something",
    ):
        space.run("iptables-legacy", "-w", *words.split())
    before = rules(space)
    with firewall.change("nat", "filter") as (nat, filter_):
        assert [nat.chain(name) for name in ("l2tpns", "garden_users", "garden")] == [True, True, False]
        nat.ensure("PREROUTING", "-j l2tpns", first=True)
        nat.ensure("l2tpns", "-j garden_users")
        nat.ensure("garden_users", "-s 10.1.0.1 -j garden")
        filter_.chain("l2tpns")
        filter_.ensure("FORWARD", "-j l2tpns", first=True)
        filter_.ensure("FORWARD", "-s 10.1.0.1 -j DROP")
    listing = space.run("iptables-legacy", "-w", "-t", "nat", "-L", "PREROUTING", "-n")
    assert listing.splitlines()[2].startswith("l2tpns ")
    assert firewall.remove_all_ours() == 8
    assert rules(space) == before
    assert firewall.remove_all_ours() == 0


def test_a_chain_of_ours_in_which_an_operator_put_rules_stays_for_him(space: Namespace, firewall: Firewall) -> None:
    chain(firewall, "nat", "garden")
    chain(firewall, "nat", "l2tpns")
    ensure_rule(firewall, "nat", "l2tpns", "-j garden")
    space.run("iptables-legacy", "-w", "-t", "nat", "-A", "garden", "-p", "icmp", "-j", "ACCEPT")
    space.run("iptables-legacy", "-w", "-t", "nat", "-A", "PREROUTING", "-j", "l2tpns")
    firewall.remove_all_ours()
    kept = [line for line in rules(space, "-t", "nat") if line.startswith("-A") and "comment" not in line]
    assert kept == ["-A PREROUTING -j l2tpns", "-A garden -p icmp -j ACCEPT"]


def test_a_chain_that_we_filled_goes_with_all_that_is_in_it(space: Namespace, firewall: Firewall) -> None:
    chain(firewall, "nat", "garden")
    space.run("iptables-legacy", "-w", "-t", "nat", "-A", "garden", "-p", "icmp", "-j", "ACCEPT")
    with firewall.change("nat") as (nat,):
        nat.mark("garden", filled=True)
    firewall.remove_all_ours()
    assert "garden" not in space.run("iptables-legacy-save")


def test_tables_that_nobody_uses_are_not_made_by_cleaning(space: Namespace, firewall: Firewall) -> None:
    assert firewall.remove_all_ours() == 0
    assert space.run("cat", "/proc/net/ip_tables_names") == ""


def test_the_lock_is_waited_for_without_holding_anybody_up(
    space: Namespace, firewall: Firewall, tmp_path: Path
) -> None:
    other = os.open(tmp_path / "lock", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    order = []

    def change() -> None:
        chain(firewall, "nat", "garden")
        order.append("changed")

    changing = gevent.spawn(change)
    gevent.sleep(0.1)
    order.append("released")
    os.close(other)
    changing.get()
    assert order == ["released", "changed"]


def test_a_lock_that_is_never_released_is_an_error(space: Namespace, tmp_path: Path) -> None:
    firewall = Firewall(MemoryLog().get(), str(tmp_path / "lock"), lock_timeout=0.1)
    other = os.open(tmp_path / "lock", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(FirewallError, match="another program holds"):
        chain(firewall, "nat", "garden")
    os.close(other)


def test_no_rule_is_lost_while_iptables_changes_the_same_table(space: Namespace) -> None:
    """python-iptables alone takes no lock; then both sides lose rules without an error."""
    firewall = Firewall(MemoryLog().get())
    script = "for i in $(seq 50); do iptables-legacy -w -t mangle -A FORWARD -s 10.1.0.$i -j DROP || exit 1; done"
    with subprocess.Popen(["ip", "netns", "exec", space.name, "sh", "-c", script]) as others:
        for number in range(1, 51):
            ensure_rule(firewall, "mangle", "FORWARD", f"-s 10.2.0.{number} -j ACCEPT")
            others.poll()
            gevent.sleep(0.005)
    assert others.returncode == 0
    saved = rules(space, "-t", "mangle")
    assert sum("-s 10.1.0." in line for line in saved) == 50
    assert sum("-s 10.2.0." in line for line in saved) == 50
    assert firewall.remove_all_ours() == 50
    assert sum("-s 10.1.0." in line for line in rules(space, "-t", "mangle")) == 50
