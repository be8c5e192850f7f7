"""Packet filters: what a rule means, how it is written, and that no packet upsets it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from l2tpns.config.access_list import AccessList, Flags, Hosts, Ports, Rule, parse_head, parse_rule
from l2tpns.errors import ConfigError
from tests.lab.packets import ip

CLIENT, HOST = "10.0.0.5", "198.51.100.2"
FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
MORE = 0x2000  # flags and fragment offset: more fragments follow


def extended(*lines: str) -> AccessList:
    return AccessList("x", True, tuple(parse_rule(line.split(), True) for line in lines))


def standard(*lines: str) -> AccessList:
    return AccessList("x", False, tuple(parse_rule(line.split(), False) for line in lines))


def udp(sport: int, dport: int, source: str = CLIENT, destination: str = HOST, fragment: int = 0) -> bytes:
    return ip(source, destination, struct.pack("!HHHH", sport, dport, 12, 0) + b"data", fragment=fragment)


def tcp(flags: int = ACK, sport: int = 4000, dport: int = 80, fragment: int = 0, options: bytes = b"") -> bytes:
    segment = struct.pack("!HHIIBBHHH", sport, dport, 1, 2, 0x50, flags, 65535, 0, 0)
    return ip(CLIENT, HOST, segment, protocol=6, fragment=fragment, options=options)


def icmp() -> bytes:
    return ip(CLIENT, HOST, bytes.fromhex("0800 f7fd 0001 0001"), protocol=1)


# What a rule means


def test_nothing_passes_a_list_without_rules() -> None:
    assert not extended().permits(udp(1, 2)) and not standard().permits(udp(1, 2))


def test_the_first_rule_that_matches_decides_and_what_none_matches_is_dropped() -> None:
    filter = extended("deny udp any any eq 53", "permit udp any any lt 100", "deny ip any any", "permit ip any any")
    assert [filter.permits(udp(9, port)) for port in (53, 54, 99, 100)] == [False, True, True, False]
    assert not extended("permit tcp any any").permits(udp(1, 2))


@pytest.mark.parametrize(
    ("line", "source", "destination", "matches"),
    [
        ("permit any", CLIENT, HOST, True),
        ("permit host 10.0.0.5", CLIENT, HOST, True),
        ("permit host 10.0.0.6", CLIENT, HOST, False),
        ("permit 10.0.0.0 0.0.0.255", "10.0.0.255", HOST, True),
        ("permit 10.0.0.0 0.0.0.255", "10.0.1.0", HOST, False),
        ("permit 10.0.0.77 0.0.0.255", CLIENT, HOST, True),  # bits that do not matter do not matter here either
        ("permit 10.0.0.1 0.0.254.0", "10.0.6.1", HOST, True),  # every other network: the mask may have holes
        ("permit 10.0.0.1 0.0.254.0", "10.0.7.1", HOST, False),
        ("permit any host 198.51.100.2", CLIENT, HOST, True),
        ("permit any host 198.51.100.2", CLIENT, "198.51.100.3", False),
        ("permit 10.0.0.5 0.0.0.0 198.51.0.0 0.0.255.255", CLIENT, HOST, True),
        ("permit 0.0.0.0 255.255.255.255", CLIENT, HOST, True),
    ],
)
def test_addresses_match_by_wildcard(line: str, source: str, destination: str, matches: bool) -> None:
    assert standard(line).permits(ip(source, destination)) is matches
    rest = line.removeprefix("permit ")
    assert extended(f"permit ip {rest}" + destination_of(rest)).permits(ip(source, destination)) is matches


def destination_of(rest: str) -> str:
    """The ` any` that an extended list wants where a standard one may stop."""
    return " any" if len(rest.split()) == (1 if rest.startswith("any") else 2) else ""


@pytest.mark.parametrize(
    ("protocol", "passes"), [("ip", "tcp udp icmp gre"), ("tcp", "tcp"), ("udp", "udp"), ("icmp", "icmp")]
)
def test_a_protocol_matches_itself_and_ip_matches_all(protocol: str, passes: str) -> None:
    packets = {"tcp": tcp(), "udp": udp(1, 2), "icmp": icmp(), "gre": ip(CLIENT, HOST, bytes(4), protocol=47)}
    filter = extended(f"permit {protocol} any any")
    assert [name for name, packet in packets.items() if filter.permits(packet)] == passes.split()


@pytest.mark.parametrize(
    ("ports", "matching", "others"),
    [
        ("eq 80", [80], [79, 81, 0, 65535]),
        ("neq 80", [79, 81, 0, 65535], [80]),
        ("lt 80", [0, 79], [80, 65535]),
        ("gt 80", [81, 65535], [80, 0]),
        ("range 80 82", [80, 81, 82], [79, 83]),
        ("range 80 80", [80], [79, 81]),
        ("lt 0", [], [0, 1]),
        ("gt 65535", [], [65535]),
    ],
)
def test_ports_of_tcp_and_udp(ports: str, matching: list[int], others: list[int]) -> None:
    of_source = [extended(f"permit tcp any {ports} any"), extended(f"permit udp any {ports} any")]
    of_destination = [extended(f"permit tcp any any {ports}"), extended(f"permit udp any any {ports}")]
    for port in (*matching, *others):
        wanted = [port in matching] * 2
        assert [
            filter.permits(p) for filter, p in zip(of_source, (tcp(sport=port), udp(port, 9)), strict=True)
        ] == wanted
        packets = (tcp(dport=port), udp(9, port))
        assert [filter.permits(p) for filter, p in zip(of_destination, packets, strict=True)] == wanted


def test_ports_are_found_behind_ip_options() -> None:
    filter = extended("permit tcp any eq 4000 any eq 25 match-all +syn")
    options = bytes.fromhex("94040000 01010101")  # router alert, padding
    assert filter.permits(tcp(SYN, dport=25, options=options))
    assert not filter.permits(tcp(SYN, dport=26, options=options))
    assert not filter.permits(tcp(ACK, dport=25, options=options))


@pytest.mark.parametrize(
    ("words", "matching", "others"),
    [
        ("established", [ACK, RST, ACK | PSH, RST | FIN], [0, SYN, SYN | ACK, FIN, SYN | RST]),
        ("match-all +syn -ack", [SYN, SYN | URG], [SYN | ACK, ACK, 0]),
        ("match-any +syn -ack", [SYN, SYN | ACK, 0, FIN], [ACK, ACK | PSH]),
        ("match-any +fin +rst", [FIN, RST, FIN | RST | ACK], [0, SYN, ACK]),
        ("match-all +fin +psh +urg", [FIN | PSH | URG, 0x3F], [FIN | PSH, 0]),
        ("match-all -syn", [0, ACK], [SYN, SYN | ACK]),
    ],
)
def test_tcp_flags(words: str, matching: list[int], others: list[int]) -> None:
    filter = extended(f"permit tcp any any {words}")
    assert all(filter.permits(tcp(flags)) for flags in matching)
    assert not any(filter.permits(tcp(flags)) for flags in others)


# Fragments


def test_fragments_are_all_but_the_first() -> None:
    filter = extended("deny ip any any fragments", "permit ip any any")
    assert filter.permits(udp(1, 2)) and filter.permits(udp(1, 2, fragment=MORE))
    assert not filter.permits(udp(1, 2, fragment=MORE | 5)) and not filter.permits(udp(1, 2, fragment=5))


def test_later_fragments_follow_a_permit_by_its_addresses_and_protocol() -> None:
    filter = extended("permit udp any host 198.51.100.2 eq 53")
    assert filter.permits(udp(9, 53, fragment=MORE)) and filter.permits(udp(0, 0, fragment=5))
    assert not filter.permits(udp(9, 54, fragment=MORE))
    assert not filter.permits(udp(9, 53, destination="198.51.100.3", fragment=5))
    assert not filter.permits(tcp(fragment=5))


def test_later_fragments_are_not_denied_for_ports_that_they_do_not_have() -> None:
    filter = extended("deny udp any any eq 53", "permit udp any any")
    assert not filter.permits(udp(9, 53)) and filter.permits(udp(0, 53, fragment=5))
    assert not extended("deny udp any any eq 53").permits(udp(0, 0, fragment=5))


@pytest.mark.parametrize(("line", "needed"), [("deny tcp any any eq 25", 4), ("deny tcp any any established", 14)])
def test_a_first_fragment_too_short_to_be_judged_is_dropped(line: str, needed: int) -> None:
    # RFC 1858 3.2.1: else a port or SYN could hide in the second.
    segment = tcp(SYN, dport=80)[20:]
    filter = extended(line, "permit ip any any")
    short = ip(CLIENT, HOST, segment[: needed - 1], protocol=6, fragment=MORE)
    enough = ip(CLIENT, HOST, segment[:needed], protocol=6, fragment=MORE)
    assert (filter.permits(short), filter.permits(enough)) == (False, True)
    assert extended("permit ip any any").permits(short)


def test_a_tcp_fragment_that_could_replace_the_flags_is_dropped() -> None:
    filter = extended("permit ip any any")
    assert not filter.permits(tcp(fragment=1))  # RFC 1858 3.2.2: octets 8 to 15 of the header
    assert filter.permits(tcp(fragment=3)) and filter.permits(udp(1, 2, fragment=1))


# Any packet


RULES = st.builds(
    Rule,
    permit=st.booleans(),
    source=st.builds(Hosts.matching, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    destination=st.sampled_from([Hosts(), Hosts.matching(0x0A000005, 0), Hosts.matching(0x0A000000, 0xFFFFFF)]),
)
PORTS = st.none() | st.one_of(
    st.builds(
        lambda operator, port: Ports(operator, port, port),
        st.sampled_from(["eq", "neq", "lt", "gt"]),
        st.integers(0, 65535),
    ),
    st.builds(lambda a, b: Ports("range", min(a, b), max(a, b)), st.integers(0, 65535), st.integers(0, 65535)),
)
FLAGS = st.none() | st.one_of(
    st.just(Flags("established")),
    st.builds(
        lambda match, on, off: Flags(match, on, off & ~on),
        st.sampled_from(["match-any", "match-all"]), st.integers(1, 63), st.integers(0, 63),
    ),
)  # fmt: skip


@st.composite
def extended_rules(draw: st.DrawFn) -> Rule:
    plain = draw(RULES)
    protocol = draw(st.sampled_from([None, 1, 6, 17]))
    ports = (draw(PORTS), draw(PORTS)) if protocol in (6, 17) else (None, None)
    flags = draw(FLAGS) if protocol == 6 else None
    fragments = draw(st.booleans()) and ports == (None, None) and flags is None
    return Rule(plain.permit, plain.source, plain.destination, protocol, *ports, flags, fragments)


LISTS = st.one_of(
    st.builds(AccessList, st.just("some-name"), st.just(False), st.lists(RULES, max_size=4).map(tuple)),
    st.builds(AccessList, st.just("some-name"), st.just(True), st.lists(extended_rules(), max_size=4).map(tuple)),
)
PACKETS = st.one_of(
    st.binary(max_size=80),
    st.builds(lambda head, rest: bytes((head,)) + rest, st.integers(0x40, 0x4F), st.binary(min_size=19, max_size=60)),
    st.builds(
        lambda octets, at, octet: octets[:at] + bytes((octet,)) + octets[at + 1 :],
        st.sampled_from([tcp(), udp(1, 53), icmp()]), st.integers(0, 40), st.integers(0, 255),
    ),
)  # fmt: skip


@given(LISTS, PACKETS)
@example(extended("permit tcp any any eq 1 established"), tcp()[:20])
@example(extended("permit tcp any any eq 1"), b"\x40" + tcp()[1:])
def test_any_octets_are_permitted_or_not(filter: AccessList, packet: bytes) -> None:
    assert filter.permits(packet) in (True, False)


@given(st.binary(max_size=60))
def test_what_is_no_ipv4_is_not_permitted(octets: bytes) -> None:
    if len(octets) < 20 or octets[0] >> 4 != 4:
        assert not extended("permit ip any any").permits(octets)


# How it is written


@given(LISTS)
def test_a_list_is_written_as_it_is_read(filter: AccessList) -> None:
    head, *lines = (line.split() for line in filter.lines())
    assert head[:2] == ["ip", "access-list"]
    name, is_extended = parse_head(head[2:])
    assert AccessList(name, is_extended, tuple(parse_rule(line, is_extended) for line in lines)) == filter


def test_a_rule_is_written_in_the_operators_words() -> None:
    line = "deny tcp 10.0.0.0 0.0.0.255 range 1 5 host 192.0.2.1 lt 1024 match-any +syn -ack"
    assert extended(line).lines() == ["ip access-list extended x", " " + line]
    assert standard("permit any any").lines()[1] == " permit any"
    assert (
        extended("PERMIT Ip 10.0.0.77 0.0.0.255 Any FRAGMENTS").lines()[1]
        == " permit ip 10.0.0.0 0.0.0.255 any fragments"
    )


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("permit", "after `permit`: the line ends: it must be ip, tcp, udp or icmp"),
        ("permit gre any any", 'after `permit`: "gre" will not do: it must be ip, tcp, udp or icmp'),
        ("permit ip any", "after `permit ip any`: the line ends: it must be any, host ADDRESS or ADDRESS WILDCARD"),
        ("permit ip 10.0.0.256 0.0.0.0 any", '"10.0.0.256" will not do: it must be any, host ADDRESS or'),
        ("permit ip 10.0.0.1 any any", '"any" will not do: it must be a wildcard such as 0.0.0.255'),
        ("permit ip host any any", '"any" will not do: it must be an IPv4 address'),
        ("permit tcp any any eq smtp", '"smtp" will not do: it must be a port number from 0 to 65535'),
        ("permit tcp any any eq 65536", '"65536" will not do: it must be a port number'),
        ("permit tcp any any range 9 8", '"8" will not do: it must be a port number from 9 to 65535'),
        ("permit tcp any any range 9", "after `permit tcp any any range 9`: the line ends"),
        ("permit ip any any eq 9", '"eq" will not do: it must be the end of the line: only tcp and udp have ports'),
        ("permit icmp any eq 9 any", '"eq" will not do: it must be any, host ADDRESS or'),
        ("permit udp any any established", '"established" will not do: it must be the end of the line'),
        ("permit tcp any any eq 9 fragments", '"fragments" will not do: it must be the end of the line'),
        ("permit tcp any any match-all", "the line ends: it must be + or - and one of fin, syn, rst, psh, ack, urg"),
        ("permit tcp any any match-all syn", '"syn" will not do: it must be + or - and one of'),
        ("permit tcp any any match-any +syn -syn", '"-syn" will not do: it must be + or - and one of'),
        ("permit tcp any any match-any +syn log", '"log" will not do: it must be + or - and one of'),
        ("permit ip any any log", '"log" will not do: it must be the end of the line'),
    ],
)
def test_a_wrong_word_is_named_with_what_would_be_right(line: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_rule(line.split(), True)
    assert wrong in str(error.value)


def test_a_standard_list_knows_addresses_only() -> None:
    with pytest.raises(
        ConfigError, match=r"after `permit any any`: .* a standard list knows a source and a destination"
    ):
        standard("permit any any eq 9")
    with pytest.raises(ConfigError, match='"tcp" will not do: it must be any, host ADDRESS or ADDRESS WILDCARD'):
        standard("permit tcp any any")


@given(st.lists(st.sampled_from(["permit", "deny", "ip", "tcp", "any", "host", "1.2.3.4", "eq", "1", "+syn", ""])))
def test_any_words_are_a_rule_or_an_error_of_ours(words: list[str]) -> None:
    for is_extended in (True, False):
        try:
            rule = parse_rule(words, is_extended)
        except ConfigError:
            continue
        assert parse_rule(rule.text(is_extended).split(), is_extended) == rule


@pytest.mark.parametrize("words", ["", "standard", "named x", "extended x y", "extended x" * 40, "standard a\x00b"])
def test_the_head_of_a_list_has_a_kind_and_a_name(words: str) -> None:
    with pytest.raises(ConfigError, match=r"Usage: ip access-list|is not the name of an access-list"):
        parse_head(words.split())
