"""Limits of sessions per user, and assignment of addresses (reference: duplicates, pool; RFC 2865 5.8)."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from l2tpns.plugins.server_api import Server as PluginServer
from l2tpns.radius.types import Assign, AuthReply
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Why
from tests.server.conftest import QUICK, Serve
from tests.server.operators import Desk
from tests.server.subscribers import refused

FIXED = IPv4Address("10.77.0.1")
NAS_REQUEST = 10  # Acct-Terminate-Cause


def fixed(address: IPv4Address = FIXED) -> AuthReply:
    return AuthReply(accepted=True, assign=Assign.FIXED, address=address)


def test_a_new_login_ends_the_older_session_of_the_same_name_and_gets_its_address(server: InProcess, lac: Lac) -> None:
    old = lac.call("fred", "pw").wait_online()
    other_lac = server.lac("lac2", defaults=QUICK).connect()
    server.backend.passwords["FRED"] = b"pw"
    new = other_lac.call("FRED", "pw").wait_online()
    ended = old.wait_ended()
    assert (ended.why, ended.result) == (Why.CDN, 3)
    assert new.address == old.address
    assert len(server.lns.sessions) == 1
    assert [(usage.user, usage.terminate_cause) for usage in server.accounting.of("stop")] == [(b"fred", NAS_REQUEST)]
    assert server.counters.sessions_replaced == 1


def test_a_login_that_fails_ends_nobody(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    refused(lac.call("fred", "wrong"))
    assert fred.online


@pytest.mark.parametrize("settings", [{"allow_duplicate_users": True}, {"guest_account": ("anybody", "Guest")}])
@pytest.mark.shows("set allow_duplicate_users", "set guest_account")
def test_duplicates_may_be_allowed_for_all_or_for_guests(serve: Serve, settings: dict[str, object]) -> None:
    server = serve(**settings)
    lac = server.lac(defaults=QUICK).connect()
    guests = [lac.call("guest", "pw").wait_online() for _ in range(3)]
    assert len({guest.address for guest in guests}) == 3
    assert all(guest.online for guest in guests)
    assert len(server.registry.by_user["guest"]) == 3
    first, second = lac.call("fred", "pw").wait_online(), lac.call("fred", "pw").wait_online()
    assert second.online
    assert (first.ended is None) is ("allow_duplicate_users" in settings)


def test_two_logins_of_one_name_at_the_same_time_leave_one(server: InProcess, lac: Lac) -> None:
    server.backend.delay = 0.05
    calls = [lac.call("fred", "pw", auth="pap") for _ in range(6)]
    lac.wait(lambda: sum(call.ended is not None for call in calls) == 5)
    (left,) = (call for call in calls if call.ended is None)
    left.wait_online()
    assert len(server.lns.sessions) == 1
    assert server.pool.used == 1


def test_a_user_who_comes_again_gets_the_same_address(server: InProcess, lac: Lac) -> None:
    fred, mary = (lac.call(name, "pw").wait_online() for name in ("fred", "mary"))
    for call in (fred, mary):
        call.hangup()
    server.wait(lambda: server.calm)
    again = {name: lac.call(name, "pw").wait_online().address for name in ("mary", "fred", "guest")}
    assert (again["fred"], again["mary"]) == (fred.address, mary.address)
    assert again["guest"] not in (fred.address, mary.address)


def test_an_address_of_radius_goes_to_the_newest_session_that_has_it(server: InProcess, lac: Lac) -> None:
    for user in ("fred", "mary"):
        server.backend.replies[user] = fixed()
    fred = lac.call("fred", "pw").wait_online()
    assert fred.address == FIXED
    mary = lac.call("mary", "pw").wait_online()
    assert mary.address == FIXED
    assert fred.wait_ended().result == 3
    assert server.plane.busy["routes"] == [f"{FIXED}/32"]
    assert server.counters.sessions_replaced == 1
    assert server.pool.used == 0


def test_an_address_of_radius_within_the_pool_is_taken_out_of_it_meanwhile(server: InProcess, lac: Lac) -> None:
    server.backend.replies["fred"] = fixed(IPv4Address("10.5.0.1"))
    fred = lac.call("fred", "pw").wait_online()
    assert str(fred.address) == "10.5.0.1"
    assert str(lac.call("mary", "pw").wait_online().address) == "10.5.0.2"
    fred.hangup()
    server.wait(lambda: server.pool.used == 1)


def test_an_address_that_the_server_itself_has_is_given_to_nobody(server: InProcess, lac: Lac) -> None:
    server.pool.claim(IPv4Address("10.5.0.9"), "")  # as the daemon does with its own
    server.backend.replies["fred"] = fixed(IPv4Address("10.5.0.9"))
    assert refused(lac.call("fred", "pw"))[0] == 4
    assert server.events("session_down")[0]["cause"] == "address_in_use"
    server.pool.release(IPv4Address("10.5.0.9"))


def test_the_stop_of_the_old_session_comes_before_the_start_of_the_new_one(server: InProcess, lac: Lac) -> None:
    lac.call("fred", "pw").wait_online()
    lac.call("fred", "pw").wait_online()
    server.wait(lambda: len(server.accounting.records) == 3)
    assert [kind for kind, _ in server.accounting.records] == ["start", "stop", "start"]
    ids = [usage.acct_session_id for _, usage in server.accounting.records]
    assert ids[0] == ids[1] != ids[2]


# Which names are one user's

SAME = [("fred", "FRED"), ("Stra\u00dfe", "sTRA\u00dfE"), ("\u212a1X", "\u212a1x")]
UNLIKE = [
    ("\u212a1", "k1"),  # KELVIN SIGN
    ("\u0130x", "i\u0307x"),
    ("\u0130x", "ix"),
    ("stra\u00dfe", "STRASSE"),
    ("\u00c4rger", "\u00e4rger"),
    ("\uff26red", "fred"),  # FULLWIDTH F
    ("\u03a3", "\u03c3"),
    ("fred", "fred "),
    ("\u017fam", "sam"),  # LATIN SMALL LETTER LONG S
]


def both_online(server: InProcess, first: str, second: str) -> bool:
    """Log in with the one name, then the other; return whether the first is still online."""
    for name in (first, second):
        server.backend.passwords[name] = b"pw"
    lac = server.lac(defaults=QUICK).connect()
    calls = [lac.call(name.encode(), "pw").wait_online() for name in (first, second)]
    server.wait(lambda: len(server.lns.sessions) == 2 - server.counters.sessions_replaced)
    return calls[0].ended is None


@pytest.mark.shows("set username_case")
@pytest.mark.parametrize("case", ["insensitive", "sensitive"])
@pytest.mark.parametrize("first, second, alike", [(*pair, True) for pair in SAME] + [(*pair, False) for pair in UNLIKE])
def test_only_the_case_of_ascii_letters_may_make_no_difference(
    serve: Serve, case: str, first: str, second: str, alike: bool
) -> None:
    server = serve(username_case=case)
    one = alike and case == "insensitive"
    assert both_online(server, first, second) is not one
    assert len(server.registry.by_user) == (1 if one else 2)
    assert len(server.registry.sessions_of(second)) == 1
    assert server.registry.same_user(first, second) is one


@pytest.mark.parametrize("case", ["insensitive", "sensitive"])
@pytest.mark.parametrize("guest, user, alike", [("Guest", "gUEST", True), ("\u212a1", "k1", False)])
def test_guests_are_named_by_the_same_rule(serve: Serve, case: str, guest: str, user: str, alike: bool) -> None:
    server = serve(username_case=case, guest_account=(guest,))
    assert both_online(server, user, user) is (alike and case == "insensitive")


@pytest.mark.shows("set username_case")
def test_users_that_are_online_are_told_apart_anew_when_the_rule_changes(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(allow_duplicate_users=True)
    server, operator = desk.server, desk.plain()
    assert both_online(server, "fred", "FRED")
    assert len(server.registry.sessions_of("fred")) == 2
    operator.do("configure terminal")
    operator.do("set username_case sensitive")
    assert len(server.registry.sessions_of("fred")) == len(server.registry.sessions_of("FRED")) == 1
    assert len(server.registry.by_user) == 2
    assert "is not connected" in operator.do("show users Fred")
    operator.do("set username_case insensitive")
    assert len(server.registry.sessions_of("Fred")) == 2


@pytest.mark.parametrize("case", ["insensitive", "sensitive"])
def test_operators_and_plugins_name_users_by_the_same_rule(open_desk: Callable[..., Desk], case: str) -> None:
    desk = open_desk(username_case=case)
    server, operator = desk.server, desk.plain()
    server.backend.passwords.update({"K1": b"pw", "\u212a1": b"pw"})
    lac = server.lac(defaults=QUICK).connect()
    for name in ("K1", "\u212a1"):
        lac.call(name.encode(), "pw").wait_online()
    found = {name: [session.user for session in server.registry.sessions_of(name)] for name in ("K1", "k1", "\u212a1")}
    assert found == {"K1": ["K1"], "k1": ["K1"] if case == "insensitive" else [], "\u212a1": ["\u212a1"]}
    plugin = PluginServer(server.lns, "test", lambda name, error: None)
    for name, users in found.items():
        assert [session.user for session in plugin.sessions(name)] == users
        assert ("is not connected" in operator.do(f"show users {name}")) is not users
    assert ("Dropping" in operator.do("drop user k1")) is (case == "insensitive")
    operator.do("drop user K1")
    server.wait(lambda: [ending.user for ending in server.services.history] == ["K1"])
    assert ("K1" in operator.do("show session history k1")) is (case == "insensitive")
    assert "K1" in operator.do("show session history K1")
    assert "K1" not in operator.do("show session history \u212a1")
    assert [session.user for session in server.lns.sessions.values()] == ["\u212a1"]
