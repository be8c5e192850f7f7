"""Access to the console: l2tpns.users, the login, `enable`, and their log events."""

from __future__ import annotations

from pathlib import Path

import crypt_r
import gevent
import pytest

from l2tpns.console.operators import Operators, matches
from l2tpns.console.timing import ConsoleTiming
from tests.lab.memory_log import MemoryLog
from tests.server.operators import TELNET, Desk, OpenDesk

SHA512 = crypt_r.crypt("hush", "$6$abcdefgh")
YESCRYPT = crypt_r.crypt("hush", "$y$j9T$abcdefghijklmnop")
QUICK = ConsoleTiming(access_denied=0.02, password_check=0.01)
TRADITIONAL = crypt_r.crypt("hush", "ab")


# Passwords


@pytest.mark.parametrize("wanted", ["hush", SHA512, YESCRYPT, TRADITIONAL])
def test_clear_text_and_hashes_are_compared(wanted: str) -> None:
    assert matches("hush", wanted)
    assert not matches("Hush", wanted)
    assert not matches("", wanted)
    assert not matches("hush\0", wanted)


def test_a_hash_is_no_password() -> None:
    for wanted in (SHA512, YESCRYPT):
        assert not matches(wanted, wanted)


def test_thirteen_characters_may_be_a_password_too() -> None:
    assert matches("bhPe4rD1ME8.s", "bhPe4rD1ME8.s")


@pytest.mark.parametrize("wanted", ["", "$zz$abc$def", "$6$", "$6$" + "x" * 500])
def test_what_is_no_hash_lets_nobody_in(wanted: str) -> None:
    assert not matches("hush", wanted)
    assert not matches("*0", wanted)


# The file


def file(path: Path, text: str | None, mode: int = 0o600) -> Operators:
    if text is not None:
        (path / "l2tpns.users").write_text(text)
        (path / "l2tpns.users").chmod(mode)
    return Operators(path / "l2tpns.users", MemoryLog().get(), QUICK.password_check)


def test_the_file_names_users_and_the_enable_password(tmp_path: Path) -> None:
    found = file(tmp_path, "# people\n\nfred:a:b\r\n enable:x\n").read()
    assert (found.passwords, found.enable, found.open) == ({"fred": "a:b"}, "x", False)


@pytest.mark.parametrize(
    ("text", "open"), [(None, True), ("enable:x\n", True), ("# nobody\n", False), ("a:b\n", False)]
)
def test_without_users_everybody_may_come_in(tmp_path: Path, text: str | None, open: bool) -> None:
    assert file(tmp_path, text).read().open is open


def test_a_line_that_is_wrong_is_named_without_its_words(tmp_path: Path) -> None:
    found = file(tmp_path, "hushhush\nfred:a\n", mode=0o644).read()
    assert found.passwords == {"fred": "a"}
    assert [warning.rpartition("/")[2] for warning in found.warnings] == [
        "l2tpns.users can be read by others than its owner",
        "l2tpns.users:1: is not NAME:PASSWORD",
    ]


def test_a_file_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "l2tpns.users").mkdir()
    found = file(tmp_path, None)
    assert not found.read().open
    assert not found.check("fred", "a")


def test_the_file_is_read_at_each_login(tmp_path: Path) -> None:
    found = file(tmp_path, "fred:a\n")
    assert found.check("fred", "a")
    file(tmp_path, "fred:b\n")
    assert not found.check("fred", "a")


# The login


def test_a_login_gives_the_right_to_change_things(open_desk: OpenDesk) -> None:
    desk = open_desk(f"fred:{SHA512}\n")
    operator = desk.operator()
    operator.expect("Username: ")
    operator.type("fred\n")
    operator.expect("Password: ")
    operator.type("hush\n")
    operator.expect("lns.example# ")
    assert operator.do("clear counters") == "Counters cleared\n"
    (login,) = desk.server.events("console_login")
    assert login["user"] == "fred"
    assert login["peer"].startswith("127.0.0.1:")


def test_a_wrong_password_is_delayed_logged_and_never_shown(open_desk: OpenDesk) -> None:
    desk = open_desk("fred:hush\n", QUICK)
    operator = desk.operator(TELNET)
    for name in ("fred", "nobody", "fred"):
        operator.expect("Username: ")
        gevent.sleep(0.02)
        operator.type(f"{name}\r\n")
        operator.expect("Password: ")
        operator.type("hushhush\r\n")
        assert "hush" not in operator.expect("Access denied")
    operator.expect_end()
    refused = desk.server.events("console_login_refused")
    assert [record["user"] for record in refused] == ["fred", "?", "fred"]
    assert "hushhush" not in str(desk.server.log.records())


@pytest.mark.shows("enable")
def test_where_nobody_is_asked_enable_is_needed_to_change_things(desk: Desk) -> None:
    operator = desk.operator()
    operator.expect("lns.example> ")
    operator.type("clear counters\n")
    operator.expect('% This needs "enable" first')
    operator.do("enable")
    assert operator.do("clear counters") == "Counters cleared\n"
    operator.type("disable\n")
    operator.expect("lns.example> ")


@pytest.mark.shows("enable")
def test_enable_asks_for_its_password(open_desk: OpenDesk) -> None:
    desk = open_desk("enable:more\nfred:hush\n", QUICK)
    operator = desk.operator()
    operator.type("fred\nhush\nenable\nless\nmore\n")
    assert operator.expect("# ").count("Password: ") == 3
    assert len(desk.server.events("console_enable_refused")) == 1


def test_an_open_console_that_others_can_reach_is_warned_of(open_desk: OpenDesk) -> None:
    assert open_desk(cli_bind_address=None).server.events("console_open")[0]["level"] == "warning"


def test_an_open_console_that_only_this_machine_can_reach_is_not_warned_of(desk: Desk) -> None:
    assert desk.server.events("console_open") == []


def test_a_file_that_names_nobody_is_warned_of(open_desk: OpenDesk) -> None:
    assert open_desk("# nobody yet\n").server.events("console_locked")
