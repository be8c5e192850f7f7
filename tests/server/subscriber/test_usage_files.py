"""Usage files: the usage of each session, every five minutes (reference: accounting dump)."""

from __future__ import annotations

import errno
import os
import re
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from l2tpns.subscriber.session import Session
from l2tpns.subscriber.usage_files import UsageFiles, one_word, write_file
from tests.lab.inprocess import InProcess
from tests.lab.lac import Dial, Lac
from tests.server.conftest import Serve


@pytest.fixture
def server(serve: Serve, tmp_path: Path) -> InProcess:
    return serve(accounting_dir=str(tmp_path), bind_address=IPv4Address("192.0.2.1"), bind_multi_address=())


@pytest.fixture
def lac(server: InProcess) -> Lac:
    to = ("127.0.0.1", server.plane.lacs.port)
    return server.lac(to=to, defaults=Dial(restart=0.3)).connect()


def session_of(server: InProcess, user: str) -> Session:
    (session,) = server.registry.by_user[user]
    return session


def use(server: InProcess, user: str, up: int, down: int) -> None:
    """Count octets as if packets had passed."""
    path = session_of(server, user).path
    path.in_octets += up
    path.out_octets += down


def write(server: InProcess) -> list[str]:
    """Return the rows of the next file, none if there is no file."""
    path = server.services.usage_files.write()
    return [] if path is None else rows(path)


def rows(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


@pytest.mark.shows("set accounting_dir")
def test_a_file_has_the_header_and_the_columns_that_operators_scripts_read(
    server: InProcess, lac: Lac, tmp_path: Path
) -> None:
    lac.call("fred", "pw").wait_online()
    use(server, "fred", 81920, 5_000_000_000)
    path = server.services.usage_files.write()
    assert path is not None and path.parent == tmp_path
    assert re.fullmatch("[0-9]{14}", path.name)
    assert abs(time.mktime(time.strptime(path.name, "%Y%m%d%H%M%S")) - time.time()) < 5  # local time
    lines = path.read_text().splitlines()
    assert lines[0] == "# dslwatch.pl dump file V1.01"
    assert lines[1] == "# host: lns.example"
    assert lines[2] == "# endpoint: 192.0.2.1"
    assert re.fullmatch("# time: [0-9]{10}", lines[3])
    assert re.fullmatch("# uptime: [0-9]", lines[4])
    assert lines[5] == "# format: username ip qos uptxoctets downrxoctets"
    assert lines[6:] == ["fred 10.5.0.1 1 81920 5000000000"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_each_file_tells_only_what_is_new_and_radius_is_told_everything(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    use(server, "fred", 100, 1000)
    assert write(server) == ["fred 10.5.0.1 1 100 1000"]
    use(server, "fred", 7, 0)
    assert write(server) == ["fred 10.5.0.1 1 7 0"]
    fred.terminate()
    server.wait(lambda: server.calm)
    (stop,) = server.accounting.of("stop")
    assert (stop.in_octets, stop.out_octets) == (107, 1000)


def test_without_a_row_there_is_no_file(server: InProcess, lac: Lac, tmp_path: Path) -> None:
    lac.call("fred", "pw").wait_online()
    assert server.services.usage_files.write() is None
    assert list(tmp_path.iterdir()) == []


def test_a_session_that_has_ended_has_a_closing_row(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    lac.call("mary", "pw").wait_online()
    use(server, "fred", 100, 1000)
    use(server, "mary", 1, 2)
    assert len(write(server)) == 2
    use(server, "fred", 10, 20)
    fred.hangup()
    server.wait(lambda: len(server.lns.sessions) == 1)
    use(server, "mary", 3, 4)
    assert write(server) == ["fred 10.5.0.1 1 10 20", "mary 10.5.0.2 1 3 4"]
    assert write(server) == []


def test_a_link_that_begins_anew_has_a_row_for_each_of_its_logins(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    use(server, "fred", 100, 1000)
    write(server)
    use(server, "fred", 10, 20)
    fred.restart()
    server.wait(lambda: len(server.accounting.of("start")) == 2)
    use(server, "fred", 5, 6)
    assert sorted(write(server)) == ["fred 10.5.0.1 1 10 20", "fred 10.5.0.1 1 5 6"]


def test_rows_that_cannot_be_written_wait_and_nothing_is_told_twice(
    server: InProcess, lac: Lac, tmp_path: Path
) -> None:
    fred = lac.call("fred", "pw").wait_online()
    server.config.accounting_dir = str(tmp_path / "missing")
    use(server, "fred", 100, 1000)
    assert write(server) == write(server) == []
    use(server, "fred", 10, 20)
    fred.terminate()
    server.wait(lambda: server.calm)
    lac.call("mary", "pw").wait_online()
    use(server, "mary", 1, 2)
    assert write(server) == []
    (error,) = server.events("usage_file_failed")  # once, not at each try
    assert error["path"].endswith("missing") and error["why"] == "No such file or directory"
    (tmp_path / "missing").mkdir()
    assert write(server) == ["fred 10.5.0.1 1 110 1020", "mary 10.5.0.2 1 1 2"]
    assert len(server.events("usage_files_again")) == 1


def test_a_full_disk_leaves_no_half_of_a_file_under_its_name(
    server: InProcess, lac: Lac, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lac.call("fred", "pw").wait_online()
    use(server, "fred", 100, 1000)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert server.services.usage_files.write() is None
    assert list(tmp_path.iterdir()) == []
    assert write(server) == ["fred 10.5.0.1 1 100 1000"]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_used_while_a_file_is_being_written_is_in_the_next(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    use(server, "fred", 100, 1000)
    files = server.services.usage_files
    put_back = files._put_back
    ended: list[str] = []

    def while_failing(failed: dict[str, object]) -> None:
        """End the session between its row and the failure."""
        use(server, "fred", 10, 20)
        fred.terminate()
        server.wait(lambda: server.calm)
        ended.append("fred")
        put_back(failed)  # type: ignore[arg-type]

    files._put_back = while_failing  # type: ignore[method-assign,assignment]
    directory, server.config.accounting_dir = server.config.accounting_dir, "/nonexistent"
    assert files.write() is None
    server.config.accounting_dir = directory
    assert ended and write(server) == ["fred 10.5.0.1 1 110 1020"]


def test_nothing_is_written_or_kept_while_no_directory_is_set(serve: Serve) -> None:
    server = serve()
    fred = server.lac(defaults=Dial(restart=0.3)).connect().call("fred", "pw").wait_online()
    use(server, "fred", 100, 1000)
    fred.terminate()
    server.wait(lambda: server.calm)
    assert server.services.usage_files.write() is None
    assert not server.services.usage_files._waiting


def test_a_file_is_written_each_interval_and_a_last_one_at_the_end(server: InProcess, lac: Lac, tmp_path: Path) -> None:
    files = server.services.usage_files = UsageFiles(
        server.config, server.log.get(), server.services.supervisor, server.lns.sessions, interval=0.05
    )
    lac.call("fred", "pw").wait_online()
    files.start()
    for octets in (1, 2):
        use(server, "fred", octets, 0)
        server.wait(lambda: len(list(tmp_path.glob("[0-9]*"))) == octets)  # noqa: B023
    use(server, "fred", 3, 0)
    files.stop()
    found = [row for path in sorted(tmp_path.iterdir()) for row in rows(path)]
    assert found == [f"fred 10.5.0.1 1 {octets} 0" for octets in (1, 2, 3)]


def test_two_files_of_the_same_second_do_not_replace_one_another(tmp_path: Path) -> None:
    now = time.time()
    paths = [write_file(tmp_path, now, octets) for octets in (b"one", b"two", b"three")]
    assert [path.read_bytes() for path in paths] == [b"one", b"two", b"three"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        (b"fred@isp.example", "fred@isp.example"),
        (b"DOMAIN\\fred", "DOMAIN\\fred"),
        ("jürgen".encode(), "jürgen"),
        (b"fred 10.0.0.1 1 9 9\nmary", "fred%2010.0.0.1%201%209%209%0Amary"),
        (b"100%", "100%25"),
        (b"#fred", "%23fred"),
        (b"a#b", "a#b"),
        (b"\xff\x00", "%FF%00"),
        ("a\u2028b\u00a0c".encode(), "a%E2%80%A8b%C2%A0c"),
    ],
)
def test_a_name_stays_one_column_whatever_the_subscriber_has_chosen(name: bytes, column: str) -> None:
    assert one_word(name) == column
    assert len(column.split()) == 1
