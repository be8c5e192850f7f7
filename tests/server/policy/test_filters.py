"""Filters of sessions: named by RADIUS, defined in the configuration, changed while in use."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from l2tpns.config.access_list import AccessList, parse_rule
from l2tpns.radius.types import AuthReply
from tests.lab.inprocess import InProcess
from tests.lab.lac import Subscriber
from tests.server.conftest import QUICK

HOST, OTHER = "198.51.100.2", "198.51.100.3"


def access_lists(**lists: str) -> dict[str, AccessList]:
    return {name: AccessList(name, True, (parse_rule(rule.split(), True),)) for name, rule in lists.items()}


ONLY_HOST = access_lists(web=f"permit ip any host {HOST}", back=f"permit ip host {HOST} any")


def log_in(server: InProcess, *filter_ids: str, **reply: Any) -> Subscriber:
    server.backend.replies["fred"] = AuthReply(accepted=True, filter_ids=filter_ids, **reply)
    return server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online()


def reaches(server: InProcess, fred: Subscriber, target: str) -> bool:
    """Return whether a packet of fred reaches the tun device. A packet to HOST follows, to know when to look."""
    before = len(server.plane.delivered)
    dropped = server.counters.drop_filtered
    fred.send_udp(target, 9, b"?")
    server.wait(lambda: len(server.plane.delivered) > before or server.counters.drop_filtered > dropped)
    return len(server.plane.delivered) > before


def test_filter_id_gives_each_direction_its_rules(server: InProcess) -> None:
    server.config.filters = ONLY_HOST
    log_in(server, "back.out", "web.in")
    (session,) = server.lns.sessions.values()
    assert (session.path.filter_in, session.path.filter_out) == (ONLY_HOST["web"], ONLY_HOST["back"])
    assert server.events("filter_unknown") == []


def test_what_the_filter_does_not_permit_goes_nowhere(server: InProcess) -> None:
    server.config.filters = ONLY_HOST
    fred = log_in(server, "web.in")
    assert (reaches(server, fred, HOST), reaches(server, fred, OTHER)) == (True, False)


@pytest.mark.parametrize(
    ("filter_id", "why"),
    [
        ("none.in", "access-list none is not configured"),
        ("web", "Filter-Id must be NAME.in or NAME.out"),
        ("web.both", "Filter-Id must be NAME.in or NAME.out"),
        (".in", "Filter-Id must be NAME.in or NAME.out"),
    ],
)
def test_an_unknown_filter_is_a_warning_and_the_login_goes_on_without(
    server: InProcess, filter_id: str, why: str
) -> None:
    server.config.filters = ONLY_HOST
    fred = log_in(server, filter_id, "back.out")
    (warning,) = server.events("filter_unknown")
    assert (warning["level"], warning["filter"], warning["why"]) == ("warning", filter_id, why)
    assert reaches(server, fred, OTHER)
    (session,) = server.lns.sessions.values()
    assert session.path.filter_out == ONLY_HOST["back"]


def test_new_rules_hold_for_sessions_that_are_online(server: InProcess) -> None:
    server.config.filters = ONLY_HOST
    fred = log_in(server, "web.in")
    assert not reaches(server, fred, OTHER)
    server.config.filters = access_lists(web=f"permit ip any host {OTHER}")
    server.core.refresh_filters()
    assert (reaches(server, fred, HOST), reaches(server, fred, OTHER)) == (False, True)
    assert server.events("filter_unknown") == []


def test_a_filter_that_is_gone_stays_with_those_who_have_it_and_is_named_once(server: InProcess) -> None:
    server.config.filters = ONLY_HOST
    fred = log_in(server, "web.in", "web.out")
    server.config.filters = {}
    server.core.refresh_filters()
    assert (reaches(server, fred, HOST), reaches(server, fred, OTHER)) == (True, False)
    (warning,) = server.events("filter_unknown")
    assert warning["filter"] == "web"


def test_a_new_login_on_the_same_link_has_its_own_filters_only(server: InProcess) -> None:
    server.config.filters = ONLY_HOST
    fred = log_in(server, "web.in")
    server.backend.replies["fred"] = AuthReply(accepted=True)
    fred.restart()
    server.wait(lambda: len(server.events("session_up")) == 2)
    assert reaches(server, fred.wait_online(), OTHER)


def test_what_the_server_says_when_asked_again_replaces_the_filters(server: InProcess) -> None:
    server.config.filters = ONLY_HOST
    fred = log_in(server, "web.in", session_timeout=1, termination_action=1)
    assert not reaches(server, fred, OTHER)
    (session,) = server.lns.sessions.values()
    server.backend.replies["fred"] = AuthReply(accepted=True)
    server.wait(lambda: session.path.filter_in is None)
    assert reaches(server, fred, OTHER)


def test_each_session_has_its_own(server: InProcess) -> None:
    server.config.filters = ONLY_HOST
    fred = log_in(server, "web.in")
    mary = server.lac("lac2", defaults=QUICK).connect().call("mary", "pw").wait_online()
    assert (reaches(server, fred, OTHER), reaches(server, mary, OTHER)) == (False, True)
    assert fred.address != mary.address and isinstance(fred.address, IPv4Address)
