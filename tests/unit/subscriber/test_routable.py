"""Addresses that may be routed into the tun device, without a kernel: decisions, pool and routes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any, cast

import pytest

from l2tpns.config.settings import Config
from l2tpns.errors import NoAddress
from l2tpns.proto.ip.prefixes import SPECIAL, span, subtract
from l2tpns.runtime.log import Log
from l2tpns.subscriber.pool import Pool, parse_layout
from l2tpns.subscriber.routable import LAC_MEMORY, MAX_CANDIDATES, Routable
from l2tpns.system.routes import Routes
from l2tpns.system.rtnetlink import Netlink
from l2tpns.system.surroundings import Surroundings
from tests.lab.inprocess import Kernel
from tests.lab.memory_log import MemoryLog

AROUND = Surroundings(
    own={IPv4Network("192.0.2.1"): "an address of eth0", IPv4Network("192.0.2.255"): "the broadcast address of eth0"},
    gateways={IPv4Network("198.51.100.254"): "the gateway of a route by eth1"},
    connected={IPv4Network("192.0.2.0/24"): "the network of eth0"},
)
LAC = IPv4Address("203.0.113.7")


def networks(*words: str) -> list[IPv4Network]:
    return [IPv4Network(word) for word in words]


def routable(**settings: Any) -> Routable:
    settings.setdefault("primary_radius", IPv4Address("203.0.113.9"))
    settings.setdefault("iftun_address", IPv4Address("10.255.0.1"))
    settings.setdefault("peer_address", IPv4Address("10.255.0.2"))
    made = Routable(Config(**settings))
    made.surroundings = AROUND
    made.lac_established(LAC, "lac7", 0.0)
    return made


@pytest.mark.parametrize(
    "network, why",
    [
        ("203.0.113.7", "203.0.113.7 is the LAC lac7"),
        ("203.0.113.9", "203.0.113.9 is a RADIUS server"),
        ("192.0.2.1", "192.0.2.1 is an address of eth0"),
        ("198.51.100.254", "198.51.100.254 is the gateway of a route by eth1"),
        ("10.255.0.1", "10.255.0.1 is the address of the tun device"),
        ("10.255.0.2", "10.255.0.2 is our address in PPP"),
        ("192.0.2.50", "192.0.2.50/32 overlaps 192.0.2.0/24, the network of eth0"),
        ("203.0.113.0/29", "203.0.113.0/29 contains 203.0.113.7, the LAC lac7"),
        ("198.51.0.0/16", "198.51.0.0/16 contains 198.51.100.254, the gateway of a route by eth1"),
        ("192.0.2.128/26", "192.0.2.128/26 overlaps 192.0.2.0/24, the network of eth0"),
        ("255.255.255.255", "255.255.255.255/32 is not a subscriber's: it overlaps 240.0.0.0/4"),
        ("224.0.0.5", "224.0.0.5/32 is not a subscriber's: it overlaps 224.0.0.0/4"),
        ("127.0.0.1", "127.0.0.1/32 is not a subscriber's: it overlaps 127.0.0.0/8"),
        ("169.254.1.1", "169.254.1.1/32 is not a subscriber's: it overlaps 169.254.0.0/16"),
        ("0.0.0.0/0", "0.0.0.0/0 is not a subscriber's: it overlaps 0.0.0.0/8"),
    ],
)
def test_what_the_server_needs_is_refused_with_its_name(network: str, why: str) -> None:
    assert routable().refusal(IPv4Network(network)) == why


@pytest.mark.parametrize("network", ["10.9.0.5", "203.0.113.8", "203.0.113.0/30", "172.16.0.0/12", "198.51.100.253"])
def test_everything_else_may_be_routed(network: str) -> None:
    assert routable().refusal(IPv4Network(network)) == ""


def test_a_single_address_is_refused_for_the_reason_of_its_network() -> None:
    """Each address beside a border of what is needed, on both sides of it."""
    guard = routable()
    needed = (*SPECIAL, *guard.needed().hosts, *guard.needed().connected)
    borders = {border for network in needed for first, last in [span(network)] for border in (first, last)}
    near = sorted({border + step for border in borders for step in (-1, 0, 1)} - {-1, 1 << 32})
    refused = [IPv4Address(number) for number in near if guard.address_refusal(IPv4Address(number))]
    assert 20 < len(refused) < len(near)
    for address in map(IPv4Address, near):
        assert guard.address_refusal(address) == guard.refusal(IPv4Network(address))


@pytest.mark.shows("set routed_networks")
def test_a_connected_network_that_is_named_may_be_routed_but_for_what_is_needed_of_it() -> None:
    it = routable(routed_networks=(IPv4Network("192.0.2.128/25"),))
    assert it.refusal(IPv4Network("192.0.2.200")) == ""
    assert it.refusal(IPv4Network("192.0.2.192/27")) == ""
    assert it.refusal(IPv4Network("192.0.2.100")) != ""  # the other half
    assert it.refusal(IPv4Network("192.0.2.255")) == "192.0.2.255 is the broadcast address of eth0"


def test_a_change_of_the_configuration_counts_at_once() -> None:
    config = Config()
    it = Routable(config)
    server = IPv4Network("203.0.113.10")
    assert it.refusal(server) == ""
    config.secondary_radius = IPv4Address("203.0.113.10")
    assert it.refusal(server) == "203.0.113.10 is a RADIUS server"
    config.snoop_host, config.secondary_radius = IPv4Address("203.0.113.11"), None
    assert it.refusal(server) == ""
    assert it.refusal(IPv4Network("203.0.113.11")) == "203.0.113.11 is needed by this server"


def test_a_lac_keeps_its_address_for_a_day_after_its_last_tunnel() -> None:
    it, lac = routable(), IPv4Network(LAC)
    it.expire(LAC_MEMORY + 1, living=[LAC])
    it.lac_left(LAC, LAC_MEMORY + 2)
    it.expire(LAC_MEMORY + 3)
    assert it.refusal(lac) != ""
    it.expire(2 * LAC_MEMORY + 3)
    assert it.refusal(lac) == ""


def test_only_a_few_addresses_of_the_pool_are_kept_for_lacs_that_have_not_come_up() -> None:
    it = routable()
    addresses = [IPv4Address("10.9.0.0") + number for number in range(MAX_CANDIDATES + 1)]
    assert [it.lac_candidate(address, 0.0) for address in addresses] == [True] * MAX_CANDIDATES + [False]
    assert it.refusal(IPv4Network(addresses[0])) == "10.9.0.0 is a LAC that is connecting"
    assert it.lac_candidate(addresses[-1], 1000.0)  # the others never came
    assert it.refusal(IPv4Network(addresses[0])) == ""


# Arithmetic


@pytest.mark.parametrize(
    "whole, holes, rest",
    [
        (["10.0.0.0/30"], ["10.0.0.1"], ["10.0.0.0", "10.0.0.2/31"]),
        (["10.0.0.0/30"], ["10.0.0.0/31", "10.0.0.2"], ["10.0.0.3"]),
        (["10.0.0.0/30"], ["10.0.0.0/8"], []),
        (["10.0.0.0/30", "10.1.0.0/16"], ["192.0.2.0/24"], ["10.0.0.0/30", "10.1.0.0/16"]),
    ],
)
def test_networks_without_holes(whole: list[str], holes: list[str], rest: list[str]) -> None:
    assert sorted(subtract(networks(*whole), networks(*holes))) == networks(*rest)


# The pool


def test_the_pool_does_not_give_out_what_may_not_be_routed_and_names_it() -> None:
    it = routable()
    pool = Pool(parse_layout("192.0.2.0/24\n203.0.113.6/31\n10.7.0.0/30\n"))
    withheld = it.withheld(pool.networks)
    assert withheld[IPv4Network("192.0.2.0/24")] == "192.0.2.0/24 is part of the network of eth0; see routed_networks"
    assert withheld[IPv4Network(LAC)] == "203.0.113.7 is the LAC lac7"
    assert pool.withhold(withheld) and pool.withheld == set(withheld)
    assert not pool.withhold(withheld)  # nothing new
    assert pool.size == 3
    assert [str(pool.allocate(user)) for user in "abc"] == ["203.0.113.6", "10.7.0.1", "10.7.0.2"]
    with pytest.raises(NoAddress):
        pool.allocate("d")


def test_an_address_that_is_withheld_while_a_session_has_it_stays_with_the_session_only() -> None:
    pool = Pool(parse_layout("10.7.0.0/29\n"))
    held = pool.allocate("fred")
    pool.withhold(networks(f"{held}/32"))
    assert (pool.used, pool.size, pool.free) == (1, 5, 5)
    pool.release(held)
    assert held not in [pool.allocate(str(number)) for number in range(5)]
    pool.withhold(())
    assert pool.allocate("mary") == held


def test_a_pool_as_wide_as_a_connected_network_is_searched_at_once() -> None:
    """Sixteen million withheld addresses are not visited one by one."""
    pool = Pool(parse_layout("10.0.0.0/8\n172.16.0.1\n"))
    pool.withhold(networks("10.0.0.0/8"))
    assert pool.size == 1 and str(pool.allocate("fred")) == "172.16.0.1"


# Routes with holes


def routes() -> tuple[Routes, Kernel, Log]:
    kernel, log = Kernel(), MemoryLog()
    return Routes(cast(Netlink, kernel), 1, log.get()), kernel, log


def test_a_pools_route_leads_around_what_is_needed_and_back_when_it_is_needed_no_more() -> None:
    it, kernel, log = routes()
    it.take_pool(networks("10.7.0.0/29"))
    it.avoid({IPv4Network("10.7.0.1"): "the LAC"}, networks("10.7.0.4/30"))
    assert sorted(kernel.routes) == networks("10.7.0.0", "10.7.0.2/31")
    assert not it.covers(IPv4Address("10.7.0.1")) and not it.covers(IPv4Address("10.7.0.5"))
    assert it.covers(IPv4Address("10.7.0.2"))
    assert log.records("route_holed") == []  # the pool's own warning says it
    it.avoid({}, ())
    assert kernel.routes == networks("10.7.0.0/29")
    it.avoid({IPv4Network("10.7.0.1"): "the LAC"}, ())
    it.take_pool(())
    it.remove(networks("10.7.0.0/29"))
    assert kernel.routes == []


def test_a_sessions_route_is_holed_by_what_is_needed_later_and_the_log_says_by_what() -> None:
    it, kernel, log = routes()
    it.add(networks("10.9.0.0/30"))
    it.avoid({IPv4Network("10.9.0.2"): "an address of eth3"}, networks("10.9.0.0/24"))
    assert sorted(kernel.routes) == networks("10.9.0.0/31", "10.9.0.3")  # a connected network takes nothing from it
    (line,) = log.records("route_holed")
    assert (line["route"], line["why"]) == ("10.9.0.0/30", "10.9.0.2 is an address of eth3")
    it.remove(networks("10.9.0.0/30"))
    assert kernel.routes == []


def test_a_piece_of_a_holed_route_that_is_another_sessions_route_stays_with_it() -> None:
    it, kernel, _ = routes()
    it.add(networks("10.9.0.0/30", "10.9.0.0/31"))
    it.avoid({IPv4Network("10.9.0.2"): "an address of eth3"}, ())
    assert sorted(kernel.routes) == networks("10.9.0.0/31", "10.9.0.3")
    it.remove(networks("10.9.0.0/31"))
    assert sorted(kernel.routes) == networks("10.9.0.0/31", "10.9.0.3")
    it.remove(networks("10.9.0.0/30"))
    assert kernel.routes == []
