"""The life of a console: changes and their log lines, paging, the live log, limits, and hostile input."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable

import pytest

from l2tpns import causes
from l2tpns.config.file import make_config, parse_file
from l2tpns.config.settings import SETTINGS
from l2tpns.console import terminal
from l2tpns.console.server import Console
from l2tpns.console.timing import ConsoleTiming
from l2tpns.errors import ConfigError
from l2tpns.runtime.scheduler import SLICE
from l2tpns.subscriber.pool import parse_layout
from tests.lab.inprocess import until
from tests.server.operators import Desk, OpenDesk
from tests.server.slices import most_at_once

# Changes


def test_every_change_is_in_the_log_with_who_did_it(desk: Desk) -> None:
    operator = desk.plain()
    operator.do("set l2tp_secret hush")
    operator.do("set echo_timeout 20")
    operator.do("set echo_timeout soon")
    operator.do("show version")
    changes = desk.server.events("console_command")
    assert [change["command"] for change in changes] == ["set l2tp_secret ***", "set echo_timeout 20"]
    assert all(change["peer"].startswith("127.0.0.1:") for change in changes)
    (refused,) = desk.server.events("console_refused")
    assert refused["command"] == "set echo_timeout soon"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("set echo_timeout 20", 'Setting "echo_timeout" to "20"\n'),
        ("set radius_interim 600", "It takes effect for tunnels and sessions that begin after it"),
        ("set tundevicename tun7", "It takes effect after a restart"),
        ("set l2tp_secret hush", 'Setting "l2tp_secret" to "***"'),
        ("set echo_timeout soon", '% echo_timeout: "soon" will not do: it must be a whole number from 0 to 86400'),
        ("set echo_tiemout 20", '% Unknown variable "echo_tiemout": did you mean "echo_timeout"'),
        ("set radius_accounting yes", "radius_accounting has no effect: no RADIUS server is named"),
        ("set echo_timeout", "% Usage: set VARIABLE VALUE"),
    ],
)
@pytest.mark.shows("set VARIABLE VALUE", "configure terminal")
def test_set_says_what_it_did(desk: Desk, line: str, says: str) -> None:
    operator = desk.plain()
    assert says in operator.do(line)
    operator.type("configure terminal\n")
    operator.expect("lns.example(config)# ")
    operator.heard = b""
    operator.type(line + "\nend\n")
    assert says in operator.expect("lns.example# ").replace("\r\n", "\n")


@pytest.mark.shows("set VARIABLE VALUE")
def test_every_variable_can_be_set_to_what_it_is(desk: Desk) -> None:
    operator = desk.plain()
    before = desk.context.running_config()
    for line in before.splitlines():
        if line.startswith("set "):
            assert operator.do(line).startswith(f'Setting "{line.split()[1]}" to'), line
    assert desk.context.running_config() == before
    assert before.count("\nset ") == len(SETTINGS)


@pytest.mark.shows("write memory")
def test_write_memory_writes_what_loads_to_the_same(desk: Desk) -> None:
    desk.config_file.chmod(0o640)
    operator = desk.plain()
    operator.do("set hello_interval 33")
    assert operator.do("write memory") == f"Writing configuration\n{desk.config_file} written\n"
    assert make_config(parse_file(desk.config_file)) == desk.server.config
    assert desk.config_file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in desk.directory.iterdir()] == ["l2tpns.cfg"]


def test_a_file_that_cannot_be_written_is_named(desk: Desk) -> None:
    operator = desk.plain()
    desk.context.files = type(desk.context.files)(desk.directory / "gone/l2tpns.cfg", *[desk.directory] * 3)
    assert operator.do("write memory") == f"% {desk.directory}/gone/l2tpns.cfg: No such file or directory\n"


@pytest.mark.shows("reload", "shutdown")
def test_reload_and_shutdown_are_the_daemon_s_to_do(desk: Desk) -> None:
    operator = desk.plain()
    assert operator.do("reload") == "Changed: nothing\n"
    desk.reload_error = "l2tpns.cfg:3: no"
    assert operator.do("reload") == "% l2tpns.cfg:3: no\n"
    assert operator.do("shut").startswith("% Unknown command")
    assert operator.do("shutdown") == "Shutting down\n"
    assert desk.asked == ["reload", "leave"]


@pytest.mark.shows("drop user USER", "drop session SID")
def test_a_session_is_dropped_by_user_or_by_id(desk: Desk) -> None:
    lac = desk.server.lac("lac1").connect()
    operator = desk.plain()
    fred = lac.call("fred", "pw").wait_online()
    assert operator.do("drop user FRED mary") == "Dropping user FRED\nUser mary is not connected\n"
    fred.wait_ended()
    mary = lac.call("mary", "pw").wait_online()
    (number,) = desk.server.lns.sessions
    assert operator.do(f"drop session {number}") == f"Dropping session {number}\n"
    mary.wait_ended()
    desk.server.wait(lambda: not desk.server.lns.sessions)
    assert operator.do(f"drop session {number} 0 x") == (
        f"Session {number} is not active.\nInvalid session ID (1 - 65535): 0\nInvalid session ID (1 - 65535): x\n"
    )


@pytest.mark.shows("drop tunnel TID")
@pytest.mark.shows("set drop_tunnel_delay")
def test_a_tunnel_is_dropped_after_its_sessions_had_their_cdn(
    open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk(drop_tunnel_delay=1)
    waits: list[tuple[float, Callable[..., None], causes.Cause]] = []
    monkeypatch.setattr("l2tpns.lns.gevent.spawn_later", lambda *facts: waits.append(facts))
    lac = desk.server.lac("lac1").connect()
    operator = desk.plain()
    fred = lac.call("fred", "pw").wait_online()
    (number,) = desk.server.lns.tunnels
    assert operator.do(f"drop tunnel {number}") == f"Tunnel {number} shut down (lac1)\n"
    fred.wait_ended()
    assert operator.do(f"drop tunnel {number}") == f"Tunnel {number} already being shut down\n"
    assert " Closing " in operator.do("show tunnels")
    late = lac.call("mary", "pw")
    late.wait_ended()  # no new call in a tunnel that is closing
    assert desk.server.lns.tunnels[number].state.value == "Open"
    ((delay, end, reason),) = waits
    assert delay == 1
    end(reason)
    desk.server.wait(lambda: not desk.server.lns.tunnels)
    assert operator.do(f"drop tunnel {number}") == f"Tunnel {number} not connected\n"


# The screen


@pytest.mark.shows("terminal length LINES")
def test_pages_are_as_long_as_the_window(desk: Desk) -> None:
    operator = desk.telnet()
    operator.type("show running-config\r\n")
    page = operator.expect("--More--")
    assert page.count("\r\n") == 1 + 23  # the command line, and a page
    operator.type("\r\n")
    assert operator.expect("--More--").count("\r\n") == 1
    operator.type(" ")
    assert operator.expect("--More--").count("\r\n") == 23
    operator.type("q")
    operator.expect("# ")
    operator.type("terminal length 0\r\n")
    operator.expect("# ")
    operator.type("show running-config\r\n")
    assert "--More--" not in operator.expect("# end\r\n")


def test_control_c_breaks_off(desk: Desk) -> None:
    operator = desk.telnet()
    operator.type("terminal length 0\r\n")
    operator.expect("# ")
    operator.type("show pool all\r\n")
    operator.expect("10.5.0.1 ")
    operator.type("show vers\x03show version\r\n")
    operator.expect("L2TPNS")


def test_tab_and_help_of_a_session(desk: Desk) -> None:
    lac = desk.server.lac("lac1").connect()
    lac.call("fred", "pw").wait_online()
    (number,) = desk.server.lns.sessions
    operator = desk.telnet()
    operator.type("ter len 0\r\n")
    operator.expect("# ")
    operator.type("sh ses ?")
    assert "fred" in operator.expect("lns.example# sh ses ")
    operator.type(f"{str(number)[:-1]}\t\r\n")
    operator.expect(f"Session {number}:")
    operator.expect("# ")
    operator.type("show users f\t\r\n")
    operator.expect("show users fred ")
    operator.expect("Session")


def test_a_script_without_telnet_gets_no_echo_and_no_pages(desk: Desk) -> None:
    operator = desk.operator()
    operator.expect("> ")
    operator.type("show ?\nshow pool all\nquit\n")
    said = operator.expect_end()
    assert "version" in said
    assert "show pool all" not in said
    assert "10.5.0.254" in said
    assert "--More--" not in said


def test_what_was_typed_before_the_hangup_is_still_done(desk: Desk) -> None:
    operator = desk.operator()
    operator.type("enable\nclear counters\n")
    operator.socket.shutdown(1)
    assert "Counters cleared" in operator.expect_end()


# Live log


@pytest.mark.shows("debug LEVEL", "no debug LEVEL")
def test_debug_shows_the_log_as_it_is_written_also_beyond_its_level(open_desk: OpenDesk) -> None:
    desk = open_desk()
    desk.server.log.level = 0
    operator = desk.plain()
    assert operator.do("debug info call") == "Currently debugging: info call\n"
    lac = desk.server.lac("lac1").connect()
    lac.call("fred", "pw").wait_online()
    line = operator.expect(" session_up ")
    assert re.search(r"INFO-127\.0\.0\.1-\d+-\d+ session_up $", line)
    assert "CALL-" in line
    assert desk.server.events("session_up") == []
    assert "call\n" in operator.do("no debug info").replace("Currently debugging: ", "")
    operator.do("no debug")
    assert operator.do("debug") == "Currently debugging: nothing\n"
    assert desk.server.log._output.level == 0


def test_lines_that_come_too_fast_are_counted_not_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = desk.plain()
    operator.do("debug warning")
    log = desk.server.log.get()
    for number in range(terminal.NEWS_QUEUE + 7):
        log.warning("flood", number=number)
    operator.expect("(7 lines came too fast to be shown)")


# Limits


@pytest.mark.shows("set cli_max_connections")
def test_beyond_the_limit_a_stranger_makes_way_and_an_operator_does_not(open_desk: OpenDesk) -> None:
    desk = open_desk("fred:hush\n", cli_max_connections=2)
    stranger, second = desk.operator(), desk.operator()
    stranger.expect("Username: ")
    second.expect("Username: ")
    fred = desk.operator()
    stranger.expect_end()
    fred.type("fred\nhush\n")
    fred.expect("# ")
    second.type("fred\nhush\n")
    second.expect("# ")
    assert desk.operator().expect_end() == "Too many consoles\r\n"
    assert fred.do("show version")


@pytest.mark.shows("set cli_idle_timeout")
def test_a_console_left_alone_is_closed(open_desk: OpenDesk) -> None:
    desk = open_desk(cli_idle_timeout=1)
    operator = desk.operator()
    operator.expect("> ")
    operator.expect_end()
    until(lambda: desk.server.events("console_closed"))
    assert desk.server.events("console_closed")[0]["why"] == "idle for too long"


def test_a_port_that_is_taken_is_an_error_of_the_configuration(desk: Desk) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 127.0.0.1:\d+: Address already in use"):
        Console(desk.context, desk.server.log.get(), port=desk.console.port).start()


@pytest.mark.parametrize("how", ["the socket fails", "the acceptor is ended"])
def test_a_port_that_is_lost_is_served_again(desk: Desk, how: str) -> None:
    desk.plain().do("show version")
    lost = desk.console._door
    assert lost is not None
    if how == "the socket fails":
        lost._listener.close()  # as on EBADF, EINVAL
    else:
        lost._acceptor.kill()
    until(lambda: desk.console._door not in (None, lost))
    assert "L2TPNS" in desk.plain().do("show version")


@pytest.mark.shows("show load")
def test_the_lag_of_the_loop_and_the_calls_refused_are_shown(desk: Desk) -> None:
    desk.server.counters.calls_refused, desk.server.counters.calls_overdue = 7, 5
    said = desk.plain().do("show load")
    assert "p99 2.0 ms, longest 30.5 ms" in said
    assert "0 starting, 7 refused, 5 refused after waiting" in said


@pytest.mark.shows("show parts")
def test_the_parts_of_the_server_are_shown(desk: Desk) -> None:
    desk.server.meant = ("part_failed",)
    part = desk.server.services.supervisor.spawn("test part", int, "no number")
    until(lambda: part.failures > 4 and not part.running)
    said = desk.plain().do("show parts")
    assert re.search(r"^timer wheel +runs +0 *$", said, re.M)
    assert re.search(r"^test part +(runs|waits) +\d+ +ValueError: invalid literal", said, re.M)
    part.stop()


# Hostile input


def test_a_line_that_is_too_long_is_refused_whole(desk: Desk) -> None:
    operator = desk.plain()
    said = operator.do("clear counters " + "x" * 100_000)
    assert said == "The line is too long\n"
    assert operator.do("clear counters") == "Counters cleared\n"


def test_binary_junk_leaves_the_server_and_other_consoles_alone(desk: Desk) -> None:
    other = desk.plain()
    for seed in range(20):
        junk = os.urandom(20_000) if seed else bytes(range(256)) * 50
        operator = desk.operator()
        operator.type(junk.replace(b"\n", b"") + b"\n")
        operator.close()
    assert "L2TPNS" in other.do("show version")
    until(lambda: len(desk.console) == 1)
    assert [record for record in desk.server.log.records() if "traceback" in record] == []


def test_a_storm_of_options_is_survived(desk: Desk) -> None:
    other = desk.plain()
    operator = desk.operator()
    for _ in range(20):
        operator.type(b"\xff\xfb\x1f\xff\xfd\x01\xff\xfa\x1f" + b"\xff\xfd\x22" * 1000 + b"\xff\xf0")
    assert "L2TPNS" in other.do("show version")


def test_a_slow_reader_waits_alone(desk: Desk) -> None:
    """It requests far more than its socket buffers and reads nothing: others are served, and no memory is used."""
    slow, other = desk.operator(), desk.plain()
    slow.expect("> ")
    slow.type("help\n" * 5000)
    for _ in range(20):
        other.do("show version")
    assert len(desk.console) == 2  # the slow one is still being served
    slow.close()
    until(lambda: len(desk.console) == 1)


def test_a_reader_that_takes_nothing_is_given_up(open_desk: OpenDesk) -> None:
    desk = open_desk(timing=ConsoleTiming(send=0.2))
    slow = desk.operator()
    slow.expect("> ")
    slow.type("show pool all\n" * 2000)
    until(lambda: desk.server.events("console_closed"))
    assert desk.server.events("console_closed")[0]["why"] == "reads too slowly"


def test_fifty_consoles_leave_the_others_their_time(desk: Desk, rows_made: Callable[[], int]) -> None:
    """All of them list 65,000 addresses, on a clock by which a row takes a twentieth of a slice."""
    desk.server.services.operator_scheduler.clock = lambda: 1.0 + rows_made() * SLICE / 20
    desk.server.pool.change(parse_layout("10.5.0.0/16\n"))
    consoles = [desk.operator() for _ in range(50)]
    for operator in consoles:
        operator.type("show pool all | include nothing\n" * 3)
    most = most_at_once(rows_made, lambda: rows_made() >= 4_000)
    assert 20 <= most <= 28  # between two turns: one slice of one console, and `LINES_PER_PAUSE` rows
    for operator in consoles:
        operator.close()


def test_an_error_of_ours_is_told_and_logged_and_the_console_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = desk.plain()
    monkeypatch.setattr(desk.context, "bandwidth", None)
    assert "% An error of this server" in operator.do("uptime")
    (record,) = desk.server.events("console_command_failed")
    assert "traceback" in record
    desk.server.log._output.recent.clear()
    assert json.loads(operator.do("show version | json"))["version"]
