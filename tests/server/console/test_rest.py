"""Commands of the console itself, and `show` of RADIUS, release, addresses and histograms."""

from __future__ import annotations

import re

import pytest

from l2tpns import __version__
from l2tpns.console.commands.system import BANANA
from l2tpns.radius.auth import RadiusBackend
from l2tpns.radius.settings import RadiusSettings, ServerAddress
from tests.lab.inprocess import until
from tests.lab.radius_server import RadiusServer as Scripted
from tests.lab.radius_server import User
from tests.server.console.test_shows import json_of, subscribed
from tests.server.operators import Desk


@pytest.mark.shows("show version")
def test_show_version_tells_release_and_what_it_runs_on(desk: Desk) -> None:
    operator = desk.plain()
    first, second = operator.do("show version").splitlines()
    assert first == f"L2TPNS {__version__}"
    assert re.fullmatch(r"ID: Python 3\.\S+, gevent \S+, Linux \S+", second)
    assert json_of(operator, "show version")["version"] == __version__


@pytest.mark.shows("show banana")
def test_show_banana_shows_a_banana(desk: Desk) -> None:
    assert desk.plain().do("show banana").strip("\n") == BANANA.strip("\n")


@pytest.mark.shows("help")
def test_help_lists_what_may_be_used_where_one_is(desk: Desk) -> None:
    looking, operator = desk.operator(), desk.plain()
    looking.expect("> ")
    said = looking.do("help", prompt="> ")
    assert "show session" in said and "drop user" not in said
    assert re.search(r"^  drop user USER\.\.\. +end all sessions of users$", operator.do("help"), re.M)
    operator.do("configure terminal")
    said = operator.do("help")
    assert "set VARIABLE VALUE" in said and "drop user" not in said


@pytest.mark.shows("history")
def test_history_lists_the_lines_typed_before_and_no_secret_answer(desk: Desk) -> None:
    operator = desk.plain()
    operator.do("show version")
    assert operator.do("history").splitlines() == ["    1 enable", "    2 show version", "    3 history"]


@pytest.mark.shows("quit", "logout", "exit")
@pytest.mark.parametrize("word", ["quit", "logout", "exit"])
def test_three_words_leave(desk: Desk, word: str) -> None:
    operator = desk.plain()
    operator.type(f"{word}\n")
    operator.expect_end()
    until(lambda: desk.server.events("console_closed"))
    assert desk.server.events("console_closed")[0]["why"] == "left"


@pytest.mark.shows("exit", "configure terminal")
def test_exit_leaves_one_mode_at_a_time(desk: Desk) -> None:
    operator = desk.plain()
    operator.do("configure terminal")
    operator.do("ip access-list standard a")
    for prompt in ("lns.example(config)# ", "lns.example# "):
        operator.type("exit\n")
        operator.expect(prompt)
    operator.type("exit\n")
    operator.expect_end()


@pytest.mark.shows("disable", "enable")
def test_disable_gives_the_right_to_change_things_back(desk: Desk) -> None:
    operator = desk.plain()
    operator.do("disable", prompt="> ")
    assert operator.do("clear counters", prompt="> ").startswith('% This needs "enable"')
    operator.do("enable")
    assert operator.do("clear counters") == "Counters cleared\n"


@pytest.mark.shows("no filter USER")
def test_no_filter_takes_both_filters_away(desk: Desk) -> None:
    _, _, operator = subscribed(desk)
    for line in ("configure terminal", "ip access-list standard a", "permit any", "end"):
        operator.do(line)
    assert operator.do("filter fred in a") == "Filtering user fred: in a\n"
    operator.do("filter fred out a")
    (session,) = desk.server.lns.sessions.values()
    assert session.path.filter_in is not None and session.path.filter_out is not None
    assert operator.do("no filter fred") == "Not filtering user fred\n"
    assert session.path.filter_in is session.path.filter_out is None
    assert operator.do("filter fred in b") == "% There is no access-list b\n"


@pytest.mark.shows("no deny RULE")
def test_no_deny_takes_a_rule_away(desk: Desk) -> None:
    operator = desk.plain()
    for line in ("configure terminal", "ip access-list standard a", "deny host 10.0.0.1", "permit any"):
        operator.do(line)
    operator.do("no deny host 10.0.0.1")
    assert operator.do("show access-list a") == "ip access-list standard a\n permit any\n"


# Sessions


@pytest.mark.shows("show ipcache")
def test_show_ipcache_tells_which_address_leads_where(desk: Desk) -> None:
    _, fred, operator = subscribed(desk)
    (session,) = desk.server.lns.sessions.values()
    head, row, last = operator.do("show ipcache").splitlines()
    assert head.split() == ["Sess#", "IP", "Address"]
    assert row.split() == [str(session.id), str(fred.address)]
    assert last == "1 entries"


@pytest.mark.shows("show histogram idle", "show histogram open")
@pytest.mark.parametrize(("what", "step"), [("idle", 5), ("open", 3600)])
def test_a_histogram_has_63_rows_and_one_for_all_beyond(desk: Desk, what: str, step: int) -> None:
    lac, _, operator = subscribed(desk)
    lac.call("mary", "pw").wait_online()
    old = next(session for session in desk.server.lns.sessions.values() if session.user == "mary")
    old.online_since -= 64 * 3600
    old.path.last_rx = old.path.last_ip_tx = old.path.last_ip_rx = 1.0
    rows = json_of(operator, f"show histogram {what}")
    assert len(rows) == 64
    assert [row["seconds"] for row in rows] == [step * number for number in range(63)] + [None]
    assert (rows[0]["sessions"], rows[-1]["sessions"], rows[-1]["percent"]) == (1, 1, 50.0)
    lines = operator.do(f"show histogram {what}").splitlines()
    assert lines[-2].split() == ["lots", "50.00", "1"]
    assert lines[-1] == "2 sessions are open"


# RADIUS


@pytest.mark.shows("show radius", "show radius all")
def test_show_radius_lists_what_waits_and_the_servers(desk: Desk) -> None:
    with Scripted(users={b"fred": User(b"pw")}) as scripted:
        settings = RadiusSettings(servers=(ServerAddress("127.0.0.1", scripted.port),), secret=scripted.secret)
        backend = RadiusBackend(settings, desk.server.log.get())
        desk.server.services.backend = backend
        operator = desk.plain()
        scripted.silent = True
        lac = desk.server.lac("lac1").connect()
        lac.call("fred", "pw", auth="pap")
        until(lambda: scripted.requests)
        said = operator.do("show radius").splitlines()
        assert said[0].split() == "Radius State Session Retry Try Server".split()
        (session,) = desk.server.lns.sessions
        row = said[1].split()
        assert (row[1], row[2], row[4]) == ("AUTH", str(session), "1")
        assert int(row[3]) > 1_600_000_000  # unix time
        assert said[-2].startswith("Free: ") and said[-1] == "Used: 1"
        scripted.silent = False
        until(lambda: desk.server.registry.by_user)
        (server,) = json_of(operator, "show radius all")["servers"]
        assert (server["answers"], server["accepts"], server["state"]) == (1, 1, "up")
        lac.close()
        until(lambda: desk.server.calm)
        backend.close()
