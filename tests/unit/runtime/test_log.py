"""The log: one JSON object a line, no secret in it, and never a wait."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address
from pathlib import Path

import orjson
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.errors import ConfigError
from l2tpns.runtime import log as logs
from l2tpns.runtime import log_sinks
from l2tpns.runtime.log import Log
from l2tpns.runtime.log_render import ppp_octets, render_time
from l2tpns.runtime.log_sinks import Descriptor, Syslog
from tests.lab.memory_log import MemoryLog


class Result(IntEnum):
    BUSY = 4


@dataclass(frozen=True, slots=True)
class Credentials:
    name: bytes
    password: bytes


def lines(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(
    "now, text",
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_600_000_000.9999, "2020-09-13T12:26:40.999Z"),
        (1_600_000_000.25, "2020-09-13T12:26:40.250Z"),
        (1_600_000_001.0, "2020-09-13T12:26:41.000Z"),
    ],
)
def test_a_time_is_utc_and_cut_to_the_millisecond(now: float, text: str) -> None:
    assert render_time(now) == text


def test_a_line_has_time_level_event_and_the_facts_bound_and_given_in_this_order(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), level=3)
    log.get(tunnel=7, peer=IPv4Address("192.0.2.7")).info("tunnel_up", host=b"lac1", window=4)
    (line,) = lines(tmp_path / "log")
    assert list(line) == ["time", "level", "event", "tunnel", "peer", "host", "window"]
    assert line["level"] == "info"
    assert line["peer"] == "192.0.2.7"
    assert line["host"] == "lac1"
    assert str(line["time"]).endswith("Z") and len(str(line["time"])) == len("2026-01-01T00:00:00.000Z")


@pytest.mark.parametrize("level", range(6))
def test_a_threshold_lets_its_own_level_and_the_graver_ones_through(level: int) -> None:
    log = MemoryLog(level)
    logger = log.get()
    for name in logs.LEVELS:
        getattr(logger, name)("x")
    assert [line["level"] for line in log.records()] == list(logs.LEVELS[: level + 1])
    assert logger.enabled(level)
    assert not logger.enabled(level + 1)


def test_a_change_of_level_reaches_loggers_that_were_bound_before() -> None:
    log = MemoryLog(level=0)
    logger = log.get(session=1)
    logger.info("before")
    log.level = 3
    logger.info("after")
    assert [line["event"] for line in log.records()] == ["after"]


def test_a_module_that_asks_structlog_for_its_logger_writes_to_the_log_that_is_installed() -> None:
    module_logger = structlog.get_logger()
    log = MemoryLog(level=3)
    log.install()
    try:
        module_logger.info("radius_silent", server="192.0.2.1")
        module_logger.bind(user="bob").debug("not_at_this_level")
    finally:
        structlog.reset_defaults()
    (record,) = log.records()
    assert (record["event"], record["server"]) == ("radius_silent", "192.0.2.1")


@pytest.mark.parametrize("key", ["password", "secret", "response", "l2tp_secret", "user_password", "chap_response"])
def test_the_value_under_a_secret_key_is_not_shown(key: str) -> None:
    log = MemoryLog()
    log.get().info("x", **{key: "hunter2"}, nested={key: b"hunter2", "user": "bob"})
    (line,) = log.tail(1)
    assert b"hunter2" not in line
    assert log.records()[0]["nested"] == {key: "***", "user": "bob"}


def test_a_dataclass_shows_its_fields_but_not_the_password() -> None:
    log = MemoryLog()
    log.get().info("x", credentials=Credentials(b"bob", b"hunter2"), several=[Credentials(b"al", b"hunter2")])
    assert b"hunter2" not in log.tail(1)[0]
    assert log.records()[0]["credentials"] == {"name": "bob", "password": "***"}


def test_a_dataclass_too_deep_for_the_log_does_not_show_its_password_either() -> None:
    log = MemoryLog()
    log.get().info("x", deep=[[[[[[Credentials(b"bob", b"hunter2")]]]]]])
    assert b"hunter2" not in log.tail(1)[0]


@pytest.mark.parametrize("secret", ['s3cr"et\\', "pässwort", "a\udcffb", "tab\there"])
def test_a_registered_secret_is_hidden_wherever_it_appears(secret: str) -> None:
    log = MemoryLog()
    log.hide([secret, ""])
    octets = secret.encode("utf-8", "surrogateescape")
    log.get().info("x", why=f"bad {secret}!", octets=b"\x01" + octets, dump=octets.hex(), more={"a": [secret]})
    record = log.records()[0]
    assert record["why"] == "bad ***!"
    assert record["dump"] == "***"
    assert record["more"] == {"a": ["***"]}
    assert record["octets"].endswith("***")


def test_a_secret_that_begins_another_leaves_nothing_of_the_longer() -> None:
    log = MemoryLog()
    log.hide(["abc", "abcdef"])
    log.get().info("x", why="abcdef")
    assert log.records()[0]["why"] == "***"


def test_a_secret_in_the_text_of_an_exception_is_hidden() -> None:
    log = MemoryLog()
    log.hide(["hunter2"])
    try:
        raise RuntimeError("cannot use hunter2")
    except RuntimeError as error:
        log.get().exception("bug", why=error)
    (record,) = log.records("bug")
    assert record["why"] == "cannot use ***"
    assert "RuntimeError: cannot use ***" in record["traceback"]


@given(st.one_of(st.text(), st.binary(), st.text(st.characters(categories=["Cs", "Cc", "Cf", "Zl", "Zp"]))))
def test_whatever_a_peer_sends_stays_in_one_line_without_terminal_controls(value: str | bytes) -> None:
    log = MemoryLog()
    log.get().info("x", user=value)
    (line,) = log.tail(1)
    text = line.decode("utf-8")
    assert text.isprintable()
    assert len(text.splitlines()) == 1
    assert orjson.loads(line)["event"] == "x"


def test_enums_big_numbers_and_foreign_objects_are_written() -> None:
    log = MemoryLog()
    log.get().info("x", result=Result.BUSY, big=1 << 80, path=Path("/x"), nothing=None, yes=True, share=0.5)
    record = log.records()[0]
    assert record["result"] == "BUSY"
    assert record["big"] == str(1 << 80)
    assert (record["path"], record["nothing"], record["yes"], record["share"]) == ("/x", None, True, 0.5)


def test_a_very_long_value_is_cut() -> None:
    log = MemoryLog()
    log.get().info("x", user="u" * 1_000_000)
    assert len(log.tail(1)[0]) < 10_000


def test_of_a_warning_that_peers_provoke_a_few_a_second_are_written_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    log = MemoryLog()
    for number in range(1000):
        log.get(peer=f"192.0.2.{number % 250}").warning_limited("control_refused", why="garbage")
    log.get().warning_limited("tunnel_moved")  # another event has its own share
    now += 1.0
    for _ in range(2):
        log.get().warning_limited("control_refused", why="garbage")
    records = log.records("control_refused")
    assert [record.get("kept_back") for record in records] == [None] * logs.MAX_LIMITED_PER_SECOND + [990, None]
    assert len(log.records("tunnel_moved")) == 1


def test_a_warning_below_the_threshold_is_not_counted_as_kept_back() -> None:
    log = MemoryLog(level=logs.ERROR)
    for _ in range(100):
        log.get().warning_limited("control_refused")
    log.level = logs.WARNING
    log.get().warning_limited("control_refused")
    assert [record.get("kept_back") for record in log.records()] == [None]


def test_a_pap_request_is_dumped_without_its_password() -> None:
    # code 1, id 7, length 16, name of 3 octets "bob", password of 7 octets "hunter2"
    packet = bytes.fromhex("0107 0010 03 626f62 07 68756e74657232")
    assert ppp_octets(0xC023, packet) == "0107001003626f62***"
    assert ppp_octets(0xC021, packet) == packet.hex()
    assert ppp_octets(0xC023, b"\x02" + packet[1:]) == "02" + packet[1:].hex()
    for cut in range(len(packet)):
        assert "68756e" not in ppp_octets(0xC023, packet[:cut])
    for length in range(11, 256):  # a name that claims octets of the password, and more
        assert ppp_octets(0xC023, packet[:4] + bytes((length,)) + packet[5:]) == "01070010***"


def test_a_renamed_file_is_left_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(f"file:{path}", level=3)
    log.get().info("one")
    path.rename(tmp_path / "log.1")
    log.get().info("two")
    log.reopen()
    log.get().info("three")
    assert [line["event"] for line in lines(tmp_path / "log.1")] == ["one", "two"]
    assert [line["event"] for line in lines(path)] == ["three"]


def test_a_file_that_cannot_be_reopened_is_kept_and_the_log_says_so(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    log = Log(str(directory / "log"), level=3)
    directory.rename(tmp_path / "e")
    log.reopen()
    log.get().info("still_here")
    assert [line["event"] for line in lines(tmp_path / "e" / "log")] == ["log_not_reopened", "still_here"]


def test_a_file_is_added_to_and_not_readable_by_everybody(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for event in ("one", "two"):
        log = Log(str(path), level=3)
        log.get().info(event)
        log.close()
    assert [line["event"] for line in lines(path)] == ["one", "two"]
    assert path.stat().st_mode & 0o007 == 0


def test_a_destination_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log_file.*nowhere/log.*No such file"):
        Log(str(tmp_path / "nowhere" / "log"))


def test_without_syslog_the_error_names_its_socket_and_a_detached_daemon_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "dev-log")
    monkeypatch.setattr(log_sinks, "SYSLOG_SOCKET", path)
    with pytest.raises(ConfigError, match="dev-log: No such file"):
        Log("syslog:daemon")
    log = Log(level=3, detached=True)
    log.get().info("lost")
    assert log.dropped == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        log._output.sink._retry = 0.0  # type: ignore[attr-defined]
        log.get().info("heard")
        first, second = server.recv(4096), server.recv(4096)
    assert first.startswith(b"<28>") and b"log_lines_dropped" in first  # daemon = 3, warning = 4
    assert b'"heard"' in second
    log.close()


def test_a_change_of_destination_that_fails_leaves_the_log_where_it_is(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), level=3)
    with pytest.raises(ConfigError):
        log.open(str(tmp_path / "nowhere" / "log"))
    log.get().info("here")
    log.open(str(tmp_path / "other"))
    log.get().info("there")
    assert [line["event"] for line in lines(tmp_path / "log")] == ["here"]
    assert [line["event"] for line in lines(tmp_path / "other")] == ["there"]


def _drain(fd: int) -> bytes:
    os.set_blocking(fd, False)
    octets = b""
    try:
        while chunk := os.read(fd, 65536):
            octets += chunk
    except BlockingIOError:
        pass
    return octets


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_stops_costs_lines_and_no_wait_and_never_half_a_line(kind: str) -> None:
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        ends = socket.socketpair()
        reader, writer = (end.detach() for end in ends)
    log = MemoryLog(level=3)
    sink = Descriptor(writer)
    log._output.sink = sink
    for number in range(5000):  # far more than a pipe holds; returns although nobody reads
        log.get().info("x", number=number, text="y" * 300)
    assert sink.dropped > 1000
    first = _drain(reader)
    log.get().info("after")
    rest = _drain(reader)
    sink.close()
    records = [orjson.loads(line) for line in (first + rest).splitlines()]
    assert records[-1]["event"] == "after"
    assert records[-2]["event"] == "log_lines_dropped"
    written = [record["number"] for record in records if record["event"] == "x"]
    # In order, and for each one that is missing the log says so.
    assert written == sorted(written)
    missing = sum(record["count"] for record in records if record["event"] == "log_lines_dropped")
    assert missing == 5000 - len(written) == log.dropped
    assert os.get_blocking(writer), "the descriptor that others share was changed"
    os.close(reader)
    os.close(writer)


def test_syslog_gets_facility_severity_and_the_line_and_its_losses_are_counted(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(tmp_path / "dev-log"))
    log = MemoryLog(level=3)
    log._output.sink = Syslog("local3", str(tmp_path / "dev-log"))
    log.get().warning("radius_silent", server="192.0.2.1")
    datagram = server.recv(4096)
    assert datagram.startswith(b"<156>")  # local3 = 19, warning = 4: 19 * 8 + 4
    assert f" l2tpns[{os.getpid()}]: ".encode() in datagram
    assert orjson.loads(datagram[datagram.index(b"{") :])["event"] == "radius_silent"
    for _ in range(5000):
        log.get().info("flood", text="y" * 300)
    assert log.dropped > 0
    server.close()
    log.get().info("nobody_listens")
    before = log.dropped
    log.get().info("nobody_listens")
    assert log.dropped == before + 1


def test_an_unknown_syslog_facility_never_gets_here_and_no_syslog_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Syslog("daemon", str(tmp_path / "nothing"))


def test_a_secret_that_is_an_ordinary_word_does_not_black_out_our_own_words():
    log = MemoryLog()
    log.hide(["tunnel"])
    log.get().info("tunnel_down", cause="tunnel_closed", why="the tunnel is closed")
    (record,) = log.records("tunnel_down")
    assert (record["cause"], record["why"]) == ("tunnel_closed", "the *** is closed")


def test_who_listens_gets_lines_that_the_log_leaves_out() -> None:
    log = MemoryLog(level=0)
    heard: list[int] = []
    listener = log.listen({3, 5}, lambda line, level: heard.append(level))
    logger = log.get()
    logger.info("a")
    logger.data("b")
    logger.warning("c")
    assert heard == [3, 5]
    assert log.records() == []
    assert log.level == 0
    log.unlisten(listener)
    logger.info("d")
    assert not logger.enabled(1)
    assert heard == [3, 5]


def test_what_an_operator_did_is_written_at_every_level():
    log = MemoryLog(level=0)
    log.get().info("session_up")
    log.get().audit("console_command", user="fred")
    assert [record["event"] for record in log.records()] == ["console_command"]
