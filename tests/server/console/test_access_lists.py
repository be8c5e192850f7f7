"""Packet filters at the console: created, edited and removed rule by rule while sessions use them."""

from __future__ import annotations

import pytest

from l2tpns.config.access_list import AccessList, parse_rule
from l2tpns.config.file import make_config, parse_file
from tests.server.operators import Desk, Operator
from tests.server.policy.test_filters import HOST, reaches

LIST = "ip access-list extended web"


def configuring(desk: Desk) -> Operator:
    operator = desk.plain()
    operator.do("configure terminal")
    return operator


def rules(desk: Desk, name: str) -> list[str]:
    chosen = desk.server.config.filters[name]
    return [rule.text(chosen.extended) for rule in chosen.rules]


@pytest.mark.shows(
    "ip access-list standard NAME",
    "ip access-list extended NAME",
    "permit RULE",
    "deny RULE",
    "no permit RULE",
    "show access-list NAME",
)
def test_a_list_is_typed_rule_by_rule_and_written_to_the_file(desk: Desk) -> None:
    operator = configuring(desk)
    assert operator.do("ip access-list ext web") == "web is new: until it permits something it drops everything\n"
    operator.type("permit tcp any any eq 80\n")
    operator.expect("lns.example(config-acl)# ")
    operator.do("deny ip any 10.0.0.0 0.255.255.255")
    operator.do("permit udp any any range 53 123")
    assert operator.do(LIST) == ""  # the list exists: rules are appended
    operator.do("permit icmp any any")
    assert rules(desk, "web") == [
        "permit tcp any any eq 80",
        "deny ip any 10.0.0.0 0.255.255.255",
        "permit udp any any range 53 123",
        "permit icmp any any",
    ]
    operator.do("no permit tcp any any eq 80")
    assert "permit udp any any range 53 123\n" in operator.do("show access-list web")
    operator.do("exit")
    operator.do("ip access-list standard home")
    operator.do("permit 10.1.0.0 0.0.255.255")
    operator.do("end")
    assert f"{LIST}\n deny ip any" in operator.do("show running-config")
    operator.do("write memory")
    assert make_config(parse_file(desk.config_file)).filters == desk.server.config.filters
    assert set(desk.server.config.filters) == {"web", "home"}


@pytest.mark.shows("end")
def test_exit_leads_back_to_the_configuration_and_end_all_the_way(desk: Desk) -> None:
    operator = configuring(desk)
    operator.do(LIST)
    operator.type("exit\n")
    operator.expect("lns.example(config)# ")
    operator.heard = b""
    assert operator.do("permit ip any any").startswith('% Unknown command "permit"')
    operator.do(LIST)
    operator.type("end\n")
    operator.expect("lns.example# ")


@pytest.mark.shows("permit RULE", "no permit RULE", "filter USER in NAME")
def test_a_rule_takes_effect_at_once_on_sessions_that_have_the_list(desk: Desk) -> None:
    lac = desk.server.lac("lac1").connect()
    fred = lac.call("fred", "pw").wait_online()
    operator = configuring(desk)
    operator.do(LIST)
    operator.do("end")
    operator.do("filter fred in web")
    assert not reaches(desk.server, fred, HOST)
    operator.do("configure terminal")
    operator.do(LIST)
    operator.do("permit udp any any eq 9")
    assert reaches(desk.server, fred, HOST)
    operator.do("no permit udp any any eq 9")
    assert not reaches(desk.server, fred, HOST)


@pytest.mark.shows("no ip access-list NAME", "filter USER out NAME")
def test_a_list_that_is_taken_away_stays_with_the_sessions_that_have_it(desk: Desk) -> None:
    lac = desk.server.lac("lac1").connect()
    lac.call("fred", "pw").wait_online()
    operator = configuring(desk)
    operator.do(LIST)
    operator.do("permit icmp any any")
    operator.do("end")
    operator.do("filter fred out web")
    operator.do("configure terminal")
    assert operator.do(f"no {LIST}") == "1 sessions have it, and keep the rules that it had\n"
    assert desk.server.config.filters == {}
    (session,) = desk.server.lns.sessions.values()
    assert session.path.filter_out is not None and len(session.path.filter_out.rules) == 1
    assert operator.do(f"no {LIST}") == "% There is no access-list web\n"


def test_what_is_wrong_with_a_rule_is_said_and_changes_nothing(desk: Desk) -> None:
    operator = configuring(desk)
    operator.do(LIST)
    operator.do("permit icmp any any")
    for line, says in {
        "permit tcp any any eq http": "a port number from 0 to 65535",
        "permit any": "ip, tcp, udp or icmp",
        "deny": "Usage: deny RULE...",
        "no permit tcp any any": "web has no such rule",
        "ip access-list standard web": "of the other kind already",
        "ip access-list standard a|b": "not the name of an access-list",
        "ip access-list simple a": "is none of standard, extended",
    }.items():
        assert says in operator.do(line), line
    assert rules(desk, "web") == ["permit icmp any any"]


def test_a_list_that_another_console_removed_is_not_made_again(desk: Desk) -> None:
    operator, other = configuring(desk), configuring(desk)
    operator.do(LIST)
    other.do(f"no {LIST}")
    assert operator.do("permit icmp any any") == "% There is no access-list web any more\n"
    assert desk.server.config.filters == {}


def test_a_rule_that_is_there_already_is_not_added_again(desk: Desk) -> None:
    operator = configuring(desk)
    operator.do(LIST)
    operator.do("permit icmp any any")
    assert operator.do("permit icmp any any") == "web has this rule already\n"
    assert rules(desk, "web") == ["permit icmp any any"]


def test_what_write_memory_writes_can_be_typed_and_changes_nothing(desk: Desk) -> None:
    operator = configuring(desk)
    for line in (LIST, "permit tcp any any eq 80", "deny ip any any", "ip access-list standard home", "permit any"):
        operator.do(line)
    operator.do("end")
    before = desk.context.running_config()
    operator.do("configure terminal")
    for line in before.splitlines():
        assert not operator.do(line).startswith("%"), line
    assert desk.context.running_config() == before


def test_changes_of_rules_are_in_the_log_with_their_list(desk: Desk) -> None:
    operator = configuring(desk)
    operator.do(LIST)
    operator.do("permit tcp any any eq 80")
    lines = [(entry["command"], entry.get("access_list")) for entry in desk.server.events("console_command")]
    assert lines == [("ip access-list extended web", None), ("permit tcp any any eq 80", "web")]


def test_help_tells_what_rules_are_made_of(desk: Desk) -> None:
    operator = configuring(desk)
    assert "standard" in operator.do("ip access-list ?")
    operator.do(LIST)
    said = operator.do("permit ?")
    assert "RULE" in said and "established" in said


def test_a_rule_more_and_a_rule_less_is_the_list_of_before() -> None:
    empty = AccessList("a", True)
    rule = parse_rule(["permit", "ip", "any", "any"], True)
    assert empty.plus(rule).rules == (rule,)
    assert empty.plus(rule).minus(rule) == empty
