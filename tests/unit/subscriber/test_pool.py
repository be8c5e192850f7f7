"""The address pool: the format of its file, the assignment of addresses, the low cost of large ranges."""

from __future__ import annotations

import tracemalloc
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from l2tpns.errors import ConfigError, NoAddress
from l2tpns.subscriber.pool import Layout, Pool, parse_layout, read_layout

SHIPPED = Path(__file__).parents[3] / "etc/l2tpns/l2tpns.ip_pool"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def addresses(text: str) -> list[str]:
    return [str(IPv4Address(number)) for number in parse_layout(text)]


def pool_of(text: str) -> Pool:
    return Pool(parse_layout(text))


def give_all(pool: Pool) -> list[str]:
    given = []
    while pool.free:
        given.append(str(pool.allocate(f"filler{len(given)}")))
    return given


# The file


def test_the_manuals_own_example_is_a_pool() -> None:
    text = "192.168.1.1\n192.168.1.2\n192.168.1.3\n192.168.4.0/24\n172.16.0.0/16\n10.0.0.0/8\n"
    layout = parse_layout(text)
    assert layout.size == 3 + 254 + 256 * 254 + 65536 * 254


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.0/29", [f"192.0.2.{n}" for n in range(1, 7)]),
        ("192.0.2.248/29", [f"192.0.2.{n}" for n in range(249, 255)]),
        ("192.0.2.4/30", ["192.0.2.5", "192.0.2.6"]),
        ("192.0.2.0/31", ["192.0.2.0", "192.0.2.1"]),  # RFC 3021: no first and last to leave out
        ("192.0.2.255/32", ["192.0.2.255"]),
        ("192.0.2.255", ["192.0.2.255"]),  # named on purpose
        ("192.0.2.5/29", [f"192.0.2.{n}" for n in range(1, 7)]),  # host bits do not matter, as ever
        ("192.0.2.9 # one\n\n  # none\n192.0.2.8", ["192.0.2.9", "192.0.2.8"]),
        ("", []),
    ],
)
def test_which_addresses_a_line_gives(text: str, expected: list[str]) -> None:
    assert addresses(text) == expected


def test_a_range_leaves_out_what_ends_in_0_or_255() -> None:
    given = addresses("192.0.2.0/23")
    assert len(given) == 508
    assert not [a for a in given if a.endswith((".0", ".255"))]


def test_lines_that_overlap_give_each_address_once() -> None:
    assert addresses("192.0.2.3\n192.0.2.0/29\n192.0.2.2\n192.0.2.0/29") == [
        "192.0.2.3", "192.0.2.1", "192.0.2.2", "192.0.2.4", "192.0.2.5", "192.0.2.6",
    ]  # fmt: skip


def test_an_address_that_a_range_leaves_out_may_be_named() -> None:
    layout = parse_layout("192.0.2.0/23\n192.0.2.255\n192.0.3.255")
    assert layout.size == 510
    assert int(IPv4Address("192.0.2.255")) in layout
    assert int(IPv4Address("192.0.3.0")) not in layout


lines = st.builds(
    lambda low, length: IPv4Network((0xC0000200 + low, length), strict=False), st.integers(0, 1023), st.integers(22, 32)
)


@given(st.lists(lines, max_size=12))
def test_any_lines_give_the_union_of_what_each_gives_alone(networks: list[IPv4Network]) -> None:
    def alone(network: IPv4Network) -> set[int]:
        numbers = set(map(int, network))
        if network.prefixlen >= 31:
            return numbers
        edges = {int(network.network_address), int(network.broadcast_address)}
        return {n for n in numbers - edges if n & 255 not in (0, 255)}

    layout = Layout(networks)
    expected = set().union(*map(alone, networks))
    listed = list(layout)
    assert len(listed) == len(set(listed)) == layout.size
    assert set(listed) == expected
    assert all((number in layout) == (number in expected) for number in range(0xC00001F0, 0xC0000700))
    covered = layout.prefixes()
    assert all(any(IPv4Address(n) in prefix for prefix in covered) for n in expected)
    assert not [a for a in covered for b in covered if a != b and a.subnet_of(b)]
    assert all(any(p.subnet_of(n) for n in networks) or p.prefixlen >= 22 for p in covered)


def test_the_kernel_gets_the_ranges_as_they_are_written_and_single_addresses_together() -> None:
    layout = parse_layout("192.0.2.0/25\n192.0.2.128/25\n198.51.100.2\n198.51.100.3\n192.0.2.7\n192.0.2.0/25")
    assert sorted(map(str, layout.prefixes())) == ["192.0.2.0/25", "192.0.2.128/25", "198.51.100.2/31"]


def test_a_line_for_a_bind_address_counts_only_there() -> None:
    text = "198.51.100.1:192.0.2.1\n198.51.100.2 : 192.0.2.2\n192.0.2.3\n"
    layout = parse_layout(text, own=[IPv4Address("198.51.100.2")])
    assert [str(IPv4Address(n)) for n in layout] == ["192.0.2.2", "192.0.2.3"]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("192.0.2.256", "must be an address"),
        ("192.0.2.0/33", "must be an address"),
        ("192.0.2.0/", "must be an address"),
        ("2001:db8::/64", "must be an address"),
        ("lns1:192.0.2.0/24", "must be an address"),
        ("192.0.2.1-192.0.2.9", "must be an address"),
        ("0.0.0.0/0", "too large"),
        ("10.0.0.0/7", "too large"),
        ("127.0.0.0/8", "cannot"),
        ("224.0.0.0/8", "cannot"),
        ("255.255.255.255", "cannot"),
        ("0.0.0.0", "cannot"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(line: str, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_layout(f"192.0.2.1\n{line}\n", "l2tpns.ip_pool")
    assert str(caught.value).startswith(f'l2tpns.ip_pool:2: "{line}"')
    assert word.replace("cannot", "cannot be used for subscribers") in str(caught.value)


@given(st.text() | st.text("0123456789./:# \n"))
def test_any_text_is_a_pool_or_an_error_of_ours(text: str) -> None:
    try:
        parse_layout(text)
    except ConfigError as error:
        assert str(error).startswith("pool:")


def test_no_file_is_an_empty_pool_and_the_shipped_one_can_be_read(tmp_path: Path) -> None:
    assert read_layout(tmp_path / "none").size == 0
    assert read_layout(SHIPPED).size == 0
    with pytest.raises(ConfigError, match="directory"):
        read_layout(tmp_path)
    with_all = "\n".join(line.lstrip("#") for line in SHIPPED.read_text().splitlines() if line[1:2].isdigit())
    assert parse_layout(with_all, own=[IPv4Address("198.51.100.1")]).size > 100_000


# Who gets which


def test_a_subscriber_gets_its_last_address_again_whatever_the_case_of_its_name() -> None:
    pool = pool_of("192.0.2.0/24")
    first = pool.allocate("alice")
    other = pool.allocate("bob")
    assert pool.release(first) and pool.release(other)
    assert pool.allocate("ALICE") == first
    assert pool.allocate("bob") == other


def test_only_the_case_of_ascii_letters_makes_no_difference() -> None:
    pool = pool_of("192.0.2.0/24")
    first = pool.allocate("\u212a1")
    pool.release(first)
    assert pool.allocate("k1") != first
    assert pool.allocate("\u212a1") == first


def test_names_may_be_told_apart_by_their_case_from_some_moment_on() -> None:
    pool = pool_of("192.0.2.0/24")
    lower, upper = pool.allocate("alice"), pool.allocate("ALICE")
    pool.compare_names(lambda name: name)
    for address in (lower, upper):
        pool.release(address)
    assert (pool.allocate("ALICE"), pool.allocate("alice")) == (upper, lower)
    pool.release(upper)
    pool.compare_names(str.lower)
    assert pool.allocate("Alice") == upper


def test_an_address_nobody_had_goes_before_one_that_somebody_may_want_again() -> None:
    pool = pool_of("192.0.2.0/29")
    first = pool.allocate("alice")
    pool.release(first)
    assert first not in {pool.allocate(f"new{n}") for n in range(5)}
    assert pool.allocate("last") == first
    with pytest.raises(NoAddress, match="6"):
        pool.allocate("too late")


def test_when_each_was_used_the_longest_free_is_given() -> None:
    pool = pool_of("192.0.2.0/29")
    given = [pool.allocate(f"user{n}") for n in range(6)]
    for index in (3, 1, 5):
        pool.release(given[index])
    assert [pool.allocate(f"new{n}") for n in range(3)] == [given[3], given[1], given[5]]


def test_who_lost_its_address_to_another_gets_another() -> None:
    pool = pool_of("192.0.2.1\n192.0.2.2")
    mine = pool.allocate("alice")
    other = pool.allocate("bob")
    pool.release(mine)
    assert pool.allocate("carol") == mine
    pool.release(other)
    assert pool.allocate("alice") == other
    pool.release(mine)
    assert pool.allocate("bob") == mine


def test_two_sessions_of_one_name_have_two_addresses() -> None:
    pool = pool_of("192.0.2.0/24")
    one, two = pool.allocate("guest"), pool.allocate("guest")
    assert one != two
    pool.release(one)
    pool.release(two)
    assert pool.allocate("guest") == two  # its last
    assert pool.allocate("guest") not in (one, two)


def test_nameless_subscribers_remember_nothing() -> None:
    pool = pool_of("192.0.2.0/24")
    first = pool.allocate("")
    pool.release(first)
    assert pool.allocate("") != first


def test_an_address_that_radius_names_is_taken_out_of_the_pool() -> None:
    pool = pool_of("192.0.2.0/29")
    named = IPv4Address("192.0.2.1")
    assert pool.claim(named, "alice")
    assert not pool.claim(named, "bob")
    assert named not in {pool.allocate(f"user{n}") for n in range(5)}
    with pytest.raises(NoAddress):
        pool.allocate("more")
    pool.release(named)
    assert pool.allocate("more") == named


def test_an_address_outside_the_pool_is_not_the_pools_to_give() -> None:
    pool = pool_of("192.0.2.0/29")
    for outside in ("192.0.2.0", "192.0.2.7", "198.51.100.1"):
        assert not pool.contains(IPv4Address(outside))
        assert not pool.claim(IPv4Address(outside), "alice")
    assert pool.contains(IPv4Address("192.0.2.1"))


def test_releasing_twice_does_not_free_it_for_two() -> None:
    pool = pool_of("192.0.2.1")
    address = pool.allocate("alice")
    assert pool.release(address)
    assert not pool.release(address)
    pool.allocate("bob")
    with pytest.raises(NoAddress):
        pool.allocate("carol")


def test_the_whole_of_a_pool_can_be_used() -> None:
    pool = pool_of("192.0.2.0/24")
    assert len(set(give_all(pool))) == 254
    assert (pool.size, pool.used, pool.free) == (254, 254, 0)


def test_a_range_of_16_million_addresses_costs_no_memory_and_no_time() -> None:
    tracemalloc.start()
    pool = pool_of("10.0.0.0/8")
    given = {pool.allocate(f"user{n}") for n in range(1000)}
    assert pool.claim(IPv4Address("10.200.0.1"), "framed")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(given) == 1000
    assert pool.free == 65536 * 254 - 1001
    assert peak < 1_000_000


def test_the_memory_of_who_had_what_is_bounded() -> None:
    pool = Pool(parse_layout("10.0.0.0/8\n"), max_remembered=3)
    for number in range(100):
        pool.release(pool.allocate(f"user{number}"))
    assert len(list(pool.holdings())) == 3
    assert [holding.user for holding in pool.holdings()] == ["user97", "user98", "user99"]


def test_what_is_shown_of_a_pool() -> None:
    clock = Clock()
    pool = Pool(parse_layout("192.0.2.0/29"), clock)
    one, two = pool.allocate("alice"), pool.allocate("bob")
    clock.now += 30
    pool.release(one)
    clock.now += 12
    rows = [(str(h.address), h.used, h.user, h.seconds) for h in pool.holdings()]
    assert rows == [(str(two), True, "bob", 42.0), (str(one), False, "alice", 12.0)]
    assert len(list(pool.never_used())) == 4


# Another file while we run


def test_a_pool_that_grows_gives_the_new_addresses_too() -> None:
    pool = pool_of("192.0.2.1")
    first = pool.allocate("alice")
    pool.change(parse_layout("192.0.2.1\n192.0.2.2"))
    assert str(pool.allocate("bob")) == "192.0.2.2"
    pool.release(first)
    assert pool.allocate("alice") == first


def test_a_pool_that_shrinks_leaves_addresses_to_those_who_have_them_and_then_gives_them_no_more() -> None:
    pool = pool_of("192.0.2.1\n192.0.2.2\n192.0.2.3")
    kept, freed, other = pool.allocate("alice"), pool.allocate("bob"), pool.allocate("carol")
    pool.release(freed)
    pool.change(parse_layout("192.0.2.3"))
    assert (pool.size, pool.used, pool.free) == (1, 2, 0)
    assert pool.contains(kept)  # still ours to take back
    with pytest.raises(NoAddress):
        pool.allocate("bob")
    assert pool.release(kept)
    assert not pool.contains(kept)
    with pytest.raises(NoAddress):
        pool.allocate("alice")
    pool.release(other)
    assert pool.allocate("alice") == other


class PoolMachine(RuleBasedStateMachine):
    """In any order of events, no address is shared and none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.text = "192.0.2.0/28"
        self.pool = pool_of(self.text)
        self.held: dict[IPv4Address, str] = {}

    @rule(user=st.sampled_from(["", "alice", "bob", "carol", "Alice"]))
    def allocate(self, user: str) -> None:
        try:
            address = self.pool.allocate(user)
        except NoAddress:
            assert self.pool.free == 0
            return
        assert address not in self.held
        assert int(address) in parse_layout(self.text)
        self.held[address] = user

    @rule(low=st.integers(0, 40), user=st.sampled_from(["alice", "dave"]))
    def claim(self, low: int, user: str) -> None:
        address = IPv4Address(0xC0000200 + low)
        possible = address not in self.held and int(address) in parse_layout(self.text)
        assert self.pool.claim(address, user) is possible
        if possible:
            self.held[address] = user

    @rule(index=st.integers(0, 40))
    def release(self, index: int) -> None:
        if self.held:
            address = list(self.held)[index % len(self.held)]
            del self.held[address]
            assert self.pool.release(address)

    @rule(text=st.sampled_from(["192.0.2.0/28", "192.0.2.0/27", "192.0.2.16/28\n192.0.2.3", "192.0.2.8/30", ""]))
    def change(self, text: str) -> None:
        self.text = text
        self.pool.change(parse_layout(text))

    @invariant()
    def the_numbers_agree(self) -> None:
        layout = parse_layout(self.text)
        assert self.pool.used == len(self.held)
        assert self.pool.free == layout.size - sum(int(address) in layout for address in self.held)
        idle = [holding for holding in self.pool.holdings() if not holding.used]
        assert len(idle) + len(list(self.pool.never_used())) == self.pool.free


TestPoolMachine = PoolMachine.TestCase
