"""Who may be online how often, and who gets which address (reference: duplicates, pool, RFC 2865 5.8)."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from l2tpns.radius.types import Assign, AuthReply
from tests.daemon.conftest import QUICK, Serve
from tests.daemon.subscribers import refused
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Why

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
    assert len(server.lns.by_user["guest"]) == 3
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
