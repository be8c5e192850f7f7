"""What `show` prints for a server with a subscriber, as text and as JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from l2tpns.config.file import make_config, parse_text
from l2tpns.config.settings import SETTINGS
from l2tpns.console.commands import COMMANDS
from l2tpns.radius.types import AuthReply
from l2tpns.subscriber.pool import parse_layout
from tests.lab.lac import Lac
from tests.server.operators import Desk, Operator


def subscribed(desk: Desk) -> tuple[Lac, Any, Operator]:
    lac = desk.server.lac("lac1").connect()
    fred = lac.call("fred", "pw", calling=b"0123").wait_online()
    return lac, fred, desk.plain()


def json_of(operator: Operator, command: str) -> Any:
    return json.loads(operator.do(f"{command} | json"))


@pytest.mark.shows("show session")
def test_show_session_has_the_columns_of_the_manual_s_server(desk: Desk) -> None:
    _, _, operator = subscribed(desk)
    head, row = operator.do("show session").splitlines()
    names = "SID LkToSID TID Username IP I T G 6 opened downloaded uploaded idle Rem.Time LAC CLI"  # of 2.4.1
    assert head.split() == names.split()
    session = next(iter(desk.server.lns.sessions.values()))
    columns = row.split()
    assert columns[:5] == [str(session.id), "0", str(session.tunnel.id), "fred", str(session.address)]
    assert columns[5:9] == ["N", "N", "N", "N"]
    assert columns[13:] == ["-", "127.0.0.1", session.calling]
    assert head.index("Username") == row.index("fred")


def test_show_session_as_json_has_a_row_for_each(desk: Desk) -> None:
    subscribed(desk)
    operator = desk.plain()
    (row,) = json_of(operator, "show session")
    session = next(iter(desk.server.lns.sessions.values()))
    assert (row["session"], row["user"], row["address"]) == (session.id, "fred", str(session.address))
    assert list(row) == [
        "session", "linked_session", "tunnel", "user", "address", "intercepted", "throttled", "walled_garden", "ipv6",
        "opened", "out_octets", "in_octets", "idle", "remaining", "lac", "calling",
    ]  # fmt: skip


@pytest.mark.shows("show session SID")
def test_show_session_of_one_tells_all_labels(desk: Desk) -> None:
    _, _, operator = subscribed(desk)
    session = next(iter(desk.server.lns.sessions.values()))
    said = operator.do(f"show session {session.id}")
    assert said.startswith(f"\nSession {session.id}:\n\tUser:")
    facts = dict(re.findall(r"^\t([^:]+):\s*(.*)$", said, re.M))
    assert facts["User"] == "fred"
    assert facts["IP address"] == str(session.address)
    assert facts["Radius Session"] == session.acct_session_id
    assert facts["LCP state"] == facts["IPCP state"] == "Opened"
    assert facts["Walled Garden"] == "no"
    assert facts["Filter Bucket"] == "none"
    for (
        label
    ) in "Calling Num,Called Num,Tunnel ID,HSD sid,Idle time,Next Recv,Next Send,Bytes In/Out,Pkts In/Out".split(","):
        assert label in facts


def test_a_session_id_that_nobody_has_is_named(desk: Desk) -> None:
    operator = desk.plain()
    assert operator.do("show session 4x2") == '% Invalid session id "4x2"\n'


@pytest.mark.shows("show tunnels", "show tunnels TID", "show tunnels all")
def test_show_tunnels_lists_lacs_and_one_in_full(desk: Desk) -> None:
    _, _, operator = subscribed(desk)
    tunnel = next(iter(desk.server.lns.tunnels.values()))
    head, row = operator.do("show tunnels").splitlines()
    assert head.split() == "TID Hostname IP State Sessions".split()
    assert row.split() == [str(tunnel.id), "lac1", "127.0.0.1", "Open", "1"]
    said = operator.do(f"show tunnels {tunnel.id}")
    facts = dict(re.findall(r"^\t([^:]+):\s*(.*)$", said, re.M))
    assert facts["Remote Port"] == str(tunnel.peer[1])
    assert facts["Sessions"] == str(next(iter(tunnel.sessions)))
    (row_of_all,) = json_of(operator, "show tunnels all")
    assert row_of_all["hostname"] == "lac1"


@pytest.mark.shows("show users", "show users USER")
def test_show_users_names_them_and_tells_of_one(desk: Desk) -> None:
    _, _, operator = subscribed(desk)
    assert operator.do("show users") == "fred\n"
    assert "\tUser:            fred\n" in operator.do("show users FRED")
    assert operator.do("show users mary") == "% User mary is not connected\n"


@pytest.mark.shows("show pool", "show pool all")
def test_show_pool_tells_who_has_what_and_who_had(desk: Desk) -> None:
    _, _, operator = subscribed(desk)
    session = next(iter(desk.server.lns.sessions.values()))
    address = session.address
    said = operator.do("show pool").splitlines()
    assert said[0].split() == ["IP", "Address", "Used", "Session", "User"]
    assert said[1].split() == [str(session.address), "Y", str(session.id), "fred"]
    assert said[-4:] == ["(Not displaying unused addresses)", "", "Free: 253", "Used: 1"]
    assert len(operator.do("show pool all").splitlines()) == 1 + 254 + 3
    operator.do("drop user fred")
    desk.server.wait(lambda: not desk.server.lns.sessions)
    assert re.search(rf"{address}\s+N\s+\[fred\] 0s", operator.do("show pool"))


def test_show_pool_can_be_of_one_pool(desk: Desk) -> None:
    desk.server.registry.change_pool(parse_layout("10.5.0.0/24\npool gold\n10.6.0.1\n"))
    desk.server.backend.replies["mary"] = AuthReply(accepted=True, framed_pool="gold")
    _, _, operator = subscribed(desk)
    desk.server.lac("lac2").connect().call("mary", "pw").wait_online()
    said = operator.do("show pool").splitlines()
    assert said[-4:] == ["Pool (unnamed): 253 free, 1 used", "Pool gold: 0 free, 1 used", "Free: 253", "Used: 2"]
    said = operator.do("show pool gold").splitlines()
    assert said[1].split()[0] == "10.6.0.1" and said[-2:] == ["Free: 0", "Used: 1"] and len(said) == 6
    assert operator.do("show pool lead") == "% There is no pool lead\n"


@pytest.mark.shows("show session history")
def test_the_history_tells_why_a_session_ended(desk: Desk) -> None:
    _, _, operator = subscribed(desk)
    session = next(iter(desk.server.lns.sessions.values()))
    operator.do("drop user fred")
    desk.server.wait(lambda: desk.server.services.history)
    (row,) = json_of(operator, "show session history fred")
    assert (row["user"], row["session"], row["cause"]) == ("fred", session.id, "admin_drop")
    assert (row["our_code"], row["lac_code"]) == ("3/0", None)
    assert json_of(operator, "show session history mary") == []
    assert "admin_drop" in operator.do("show session history")


def test_the_history_has_the_result_code_of_the_lac(desk: Desk) -> None:
    _, fred, operator = subscribed(desk)
    fred.hangup(result=1)
    desk.server.wait(lambda: desk.server.services.history)
    (row,) = json_of(operator, "show session history")
    assert row["cause"] == "lac_lost_carrier"
    assert row["lac_code"] == "1/0"
    assert row["our_code"] is None


@pytest.mark.shows("show running-config", "write terminal")
def test_show_running_config_loads_to_the_same_configuration(desk: Desk) -> None:
    operator = desk.plain()
    for command in ("show running-config", "write terminal"):
        said = operator.do(command)
        assert said.startswith("# Current configuration:\n")
        assert said.rstrip().endswith("# end")
        assert make_config(parse_text(said)) == desk.server.config
    lines = json_of(operator, "show running-config")["lines"]
    assert sum(line.startswith("set ") for line in lines) == len(SETTINGS)


@pytest.mark.shows("show counters", "clear counters")
def test_clear_counters_clears_them(desk: Desk) -> None:
    _, _, operator = subscribed(desk)
    assert json_of(operator, "show counters")["sessions_online"] == 1
    said = operator.do("show counters")
    assert "Ethernet:" in said and "Tunnel:" in said and "sessions_online" in said
    assert operator.do("clear counters") == "Counters cleared\n"
    assert json_of(operator, "show counters")["sessions_online"] == 0


@pytest.mark.shows("uptime")
def test_uptime_is_the_line_of_the_manual(desk: Desk) -> None:
    first, second = desk.plain().do("uptime").splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d up 0 sec, 0 users, load average: [\d.]+, [\d.]+, [\d.]+", first)
    assert second == "Bandwidth: none"


@pytest.mark.shows("show log")
def test_show_log_has_the_last_lines(desk: Desk) -> None:
    _, _, operator = subscribed(desk)
    session = next(iter(desk.server.lns.sessions.values()))
    line = next(line for line in operator.do("show log").splitlines() if "session_up" in line)
    assert f" INFO-127.0.0.1-{session.tunnel.id}-{session.id} session_up " in line
    assert "user=fred" in line
    assert len(json_of(operator, "show log 2")) == 2


@pytest.mark.parametrize(
    "command",
    ["show version", "show banana", "show plugins", "show radius", "show radius all", "show access-list", "history"],
)
def test_every_other_show_says_something_in_both_forms(desk: Desk, command: str) -> None:
    operator = desk.plain()
    said = operator.do(command)
    assert not said.startswith("%")
    json_of(operator, command)


def test_every_show_command_has_a_json_form(desk: Desk) -> None:
    operator = desk.plain()
    for command in COMMANDS:
        if command.words.startswith("show "):
            json_of(operator, command.words)


def test_a_name_that_steers_terminals_is_shown_harmless(desk: Desk) -> None:
    desk.server.backend.passwords["\x1b[2Jevil\u202e"] = b"pw"
    lac = desk.server.lac("lac1").connect()
    lac.call("\x1b[2Jevil\u202e", "pw").wait_online()
    said = desk.plain().do("show users")
    assert said == "\\x1b[2Jevil\\u202e\n"
