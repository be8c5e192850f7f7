"""Several pools: their file, who gets an address of which, and what a reload does."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from l2tpns.errors import ConfigError, NoAddress
from l2tpns.subscriber.pool import parse_layout
from l2tpns.subscriber.pools import Pools

FILE = """
10.0.0.0/30
pool gold
10.1.0.0/30
10.1.0.8/30  # more
pool silver
10.2.0.1
pool gold
10.1.0.16
"""


def address(text: str) -> IPv4Address:
    return IPv4Address(text)


def test_lines_belong_to_the_pool_that_begins_above_them() -> None:
    pools = Pools(parse_layout(FILE))
    assert pools.names == ["", "gold", "silver"]
    assert [pool.size for name in pools.names if (pool := pools.pool(name))] == [2, 5, 1]
    assert (pools.size, pools.free, pools.used) == (8, 8, 0)
    assert pools.networks[:2] == (IPv4Network("10.0.0.0/30"), IPv4Network("10.1.0.0/30"))
    assert IPv4Network("10.2.0.1/32") in pools.prefixes()


def test_a_pool_is_exhausted_by_itself() -> None:
    pools = Pools(parse_layout(FILE))
    assert pools.allocate("a", "silver") == address("10.2.0.1")
    with pytest.raises(NoAddress, match="all 1 addresses"):
        pools.allocate("b", "silver")
    assert str(pools.allocate("b", "gold")).startswith("10.1.0.")
    assert str(pools.allocate("b")).startswith("10.0.0.")
    with pytest.raises(NoAddress, match="no pool bronze"):
        pools.allocate("b", "bronze")
    assert (pools.used, pools.free) == (3, 5)


def test_a_user_gets_its_last_address_of_each_pool_again() -> None:
    pools = Pools(parse_layout(FILE))
    gold, plain = pools.allocate("fred", "gold"), pools.allocate("fred")
    assert pools.release(gold) and pools.release(plain)
    pools.allocate("mary", "gold")
    assert (pools.allocate("FRED", "gold"), pools.allocate("fred")) == (gold, plain)


def test_a_given_address_is_taken_from_its_pool() -> None:
    pools = Pools(parse_layout(FILE))
    gold = address("10.1.0.16")
    assert pools.contains(gold) and pools.claim(gold, "fred") and not pools.claim(gold, "mary")
    assert [(name, str(holding.address)) for name, holding in pools.holdings()] == [("gold", "10.1.0.16")]
    assert pools.release(gold) and not pools.release(gold)
    assert not pools.contains(address("192.0.2.1")) and not pools.claim(address("192.0.2.1"), "fred")
    assert ("silver", address("10.2.0.1")) in list(pools.never_used())


def test_an_address_in_use_stays_so_while_pools_come_go_and_exchange_it() -> None:
    pools = Pools(parse_layout(FILE))
    silver, gold = pools.allocate("a", "silver"), pools.allocate("b", "gold")
    pools.change(parse_layout(f"10.0.0.0/30\npool new\n{silver}\n10.9.0.1\n"))
    assert pools.names == ["", "gold", "silver", "new"]  # those two while sessions have their addresses
    assert pools.contains(silver) and pools.contains(gold)
    assert pools.allocate("c", "new") == address("10.9.0.1") or pools.used == 3
    assert pools.release(gold) and not pools.contains(gold)
    assert pools.release(silver)
    pools.change(parse_layout(f"10.0.0.0/30\npool new\n{silver}\n"))
    assert "gold" not in pools.names and "silver" not in pools.names


def test_withheld_addresses_are_in_no_pool_also_in_one_that_comes_later() -> None:
    pools = Pools(parse_layout(FILE))
    assert pools.withhold([IPv4Network("10.2.0.1/32"), IPv4Network("10.3.0.1/32")])
    assert not pools.withhold([IPv4Network("10.2.0.1/32"), IPv4Network("10.3.0.1/32")])
    with pytest.raises(NoAddress):
        pools.allocate("a", "silver")
    pools.change(parse_layout("pool late\n10.3.0.1\n10.3.0.2\n"))
    assert pools.allocate("a", "late") == address("10.3.0.2")


@pytest.mark.parametrize(
    "text, why",
    [
        ("pool", ':1: pool "": it must be a name'),
        ("pool a b", ':1: pool "a b": it must be a name'),
        ("pool all", ':1: pool "all": it must be a name'),
        ("10.0.0.0/8\npool a\n10.1.0.0/16", ":3: has addresses that are in the unnamed pool already, on line 1"),
        (
            "pool a\n10.1.0.0/16\npool b\n10.2.0.0/16\n10.1.0.7",
            ":5: has addresses that are in pool a already, on line 2",
        ),
        ("pool a\n10.1.0.0/16\n10.1.2.0/24\npool b\n10.1.3.0/24", ":5: has addresses that are in pool a already"),
    ],
)
def test_a_wrong_line_is_named(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_layout(text, "l2tpns.ip_pool")
    assert f"l2tpns.ip_pool{why}" in str(caught.value)


def test_lines_of_one_pool_may_overlap() -> None:
    assert parse_layout("pool a\n10.1.0.0/24\n10.1.0.0/25\n10.1.0.255").named["a"].size == 255
