"""The directory of saved state: its owner, what is read from a damaged file, and which files are refused."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from l2tpns.errors import ConfigError
from l2tpns.runtime import files
from l2tpns.runtime.clock import Moment
from l2tpns.runtime.durable import make_line
from l2tpns.state import store as state
from l2tpns.state.records import SCHEMA, Replay, default
from l2tpns.state.store import StateStore
from tests.lab.memory_log import MemoryLog
from tests.unit.state.test_records import SESSION, TUNNEL, written

NOW = 1_000_000.0
TODAY = 1_790_000_000.0  # a clock that has been set


class Shelf:
    """A directory, and the stores that come and go in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = MemoryLog()
        self.now = NOW
        self.up = 0.0
        self.boot = ""  # unknown, as in schema 1
        self.stores: list[StateStore] = []

    def open(self) -> StateStore:
        store = StateStore(self.directory, self.log.get(), now=lambda: Moment(self.now, self.up, self.boot))
        store.open()
        self.stores.append(store)
        return store

    def close(self) -> None:
        while self.stores:
            self.stores.pop().close()

    def write(self, *lines: list[Any], settle: bool = True) -> None:
        """A life that writes these and dies."""
        store = self.open()
        store.load(1e9)
        assert store.begin() and store.write(*lines)
        if settle:
            assert store.finish_generation(block=True)
        self.close()

    def load(self, max_age: float = 300.0) -> Replay:
        return self.open().load(max_age)

    def file(self) -> Path:
        (path,) = self.directory.glob("*.state")
        return path

    def events(self, event: str) -> list[dict[str, Any]]:
        return self.log.records(event)


@pytest.fixture
def shelf(tmp_path: Path) -> Any:
    shelf = Shelf(tmp_path / "state")
    yield shelf
    shelf.close()


def another(number: int) -> dict[str, Any]:
    """A session like SESSION, with what only one can have of its own."""
    own = {"id": number, "peer_id": number, "address": f"10.5.0.{number}", "acct_session_id": f"{number:04X}"}
    return {**written(SESSION), **own}


def alive() -> list[list[Any]]:
    return [["tun", written(TUNNEL)], ["ses", written(SESSION)], ["ses", another(12)]]


def test_what_was_written_comes_back_and_nothing_is_said_about_it(shelf: Shelf) -> None:
    shelf.write(["tun", TUNNEL], ["ses", SESSION], ["left", NOW])
    found = shelf.load()
    assert found.tunnels == {7: TUNNEL} and found.sessions == {11: SESSION}
    assert found.clean and found.time == NOW
    assert shelf.log.records() == []


def test_only_we_can_read_it(shelf: Shelf) -> None:
    shelf.write(*alive())
    assert shelf.directory.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in shelf.directory.iterdir())


def test_an_empty_directory_is_an_empty_state(shelf: Shelf) -> None:
    assert shelf.load().empty
    assert shelf.log.records() == []


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_can_enter_is_refused(shelf: Shelf, mode: int) -> None:
    shelf.directory.mkdir()
    shelf.directory.chmod(mode)
    with pytest.raises(ConfigError, match="no other user can enter"):
        shelf.open()


def test_a_link_to_a_directory_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    shelf.directory.symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError):
        shelf.open()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_a_directory_of_another_is_refused(shelf: Shelf) -> None:
    shelf.directory.mkdir(mode=0o700)
    os.chown(shelf.directory, 12345, 12345)
    with pytest.raises(ConfigError, match="no other user can enter"):
        shelf.open()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_a_file_of_another_is_set_aside_unread(shelf: Shelf) -> None:
    shelf.write(*alive())
    os.chown(shelf.file(), 12345, 12345)
    assert shelf.load().empty
    assert shelf.events("state_refused")[0]["why"] == "it belongs to user 12345"
    store = shelf.stores[0]
    assert store.begin() and store.finish_generation(block=True)
    assert [path.name for path in shelf.directory.glob("*.damaged")] == ["0000000001.damaged"]
    assert shelf.file().name == "0000000002.state"


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_a_file_that_others_may_use_is_not_read(shelf: Shelf, mode: int) -> None:
    shelf.write(*alive())
    shelf.file().chmod(mode)
    assert shelf.load().empty
    assert "other users have access" in shelf.events("state_refused")[0]["why"]


def test_a_link_or_a_pipe_in_place_of_the_file_is_not_followed(shelf: Shelf, tmp_path: Path) -> None:
    shelf.write(*alive())
    path = shelf.file()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    os.mkfifo(shelf.directory / "0000000005.state", 0o600)
    os.link(tmp_path / "elsewhere", shelf.directory / "0000000006.state")
    assert shelf.load().empty
    assert len(shelf.events("state_refused")) == 3


def test_a_second_server_cannot_use_the_directory(shelf: Shelf) -> None:
    shelf.open()
    with pytest.raises(ConfigError, match="another l2tpns"):
        shelf.open()


def test_a_torn_last_line_is_what_a_crash_leaves_and_costs_only_itself(shelf: Shelf) -> None:
    shelf.write(*alive())
    path = shelf.file()
    path.write_bytes(path.read_bytes()[:-20])
    found = shelf.load()
    assert set(found.sessions) == {11}
    assert shelf.events("state_line_torn")[0]["line"] == 4
    assert not shelf.events("state_damaged")


def test_any_truncated_file_gives_what_is_whole_in_it(shelf: Shelf) -> None:
    shelf.write(*alive())
    path = shelf.file()
    octets = path.read_bytes()
    for end in range(0, len(octets), 37):
        path.write_bytes(octets[:end])
        found = shelf.load()
        shelf.close()
        assert len(found.sessions) == max(0, octets[:end].count(b"\n") - 2)


def test_a_damaged_line_costs_one_record_and_the_file_is_kept_for_a_look(shelf: Shelf) -> None:
    shelf.write(*alive(), ["left", NOW])
    path = shelf.file()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"10.5.0.2", b"10.5.0.3", 1)
    path.write_bytes(b"".join(lines))
    found = shelf.load()
    assert set(found.sessions) == {12} and set(found.tunnels) == {7}
    assert not found.clean  # the numbers may be older than they look
    assert shelf.events("state_damaged")[0]["unreadable"] == 1
    store = shelf.stores[0]
    assert store.begin() and store.finish_generation(block=True)
    assert path.with_suffix(".damaged").read_bytes() == b"".join(lines)


@pytest.mark.parametrize("octets", [b"", b"\x00" * 5000, b"\n" * 10, os.urandom(3000), b"deadbeef [1,2]\n", b"{}"])
def test_a_file_of_anything_is_never_fatal(shelf: Shelf, octets: bytes) -> None:
    shelf.write(*alive())
    shelf.file().write_bytes(octets)
    assert shelf.load().empty
    store = shelf.stores[0]
    assert store.begin() and store.write(*alive()) and store.finish_generation(block=True)
    shelf.close()
    assert len(shelf.load().sessions) == 2


def test_lines_that_are_json_but_no_lists_are_damage(shelf: Shelf) -> None:
    shelf.write(*alive())
    with shelf.file().open("ab") as file:
        file.write(make_line({"a": 1}))  # type: ignore[arg-type]
        file.write(make_line([]))
        for text in (b"{", b"", b"[" * 3000, b"\xff", b'["ses", NaN]'):  # with a right checksum
            file.write(b"%08x %s\n" % (zlib.crc32(text), text))
    assert len(shelf.load().sessions) == 2
    assert shelf.events("state_damaged") and shelf.events("state_record_refused")


def test_a_file_of_another_kind_with_a_like_name_is_no_generation(shelf: Shelf) -> None:
    shelf.write(*alive())
    for name in ("\u00b2.state", "\u0664.state", "x.state", f"{'9' * 40}.state"):
        (shelf.directory / name).write_bytes(b"")
    assert len(shelf.load().sessions) == 2
    assert shelf.stores[0].begin()


def test_a_newer_schema_gives_what_we_know_of_it_and_says_what_we_do_not(shelf: Shelf) -> None:
    shelf.write(*alive())
    path = shelf.file()
    later = {**another(13), "garden": True, "throttle": {"in": 1}}
    lines = [["head", SCHEMA + 1, "9.0", NOW], *alive(), ["ses", later], ["garden", 13, "walls"]]
    path.write_bytes(b"".join(make_line(line, default) for line in lines))
    assert set(shelf.load().sessions) == {11, 12, 13}
    assert shelf.events("state_schema")[0]["schema"] == SCHEMA + 1
    said = shelf.events("state_not_understood")[0]["what"]
    assert said == ["SessionRecord.garden", "SessionRecord.throttle", "line 'garden'"]


def test_an_older_schema_gives_what_it_had(shelf: Shelf) -> None:
    shelf.write(*alive())
    earlier = {name: value for name, value in written(SESSION).items() if name not in ("usage", "sequenced", "profile")}
    without = {name: value for name, value in written(SESSION).items() if name != "address"}
    lines = [
        ["head", SCHEMA - 1, "1.0", NOW],
        ["tun", written(TUNNEL)],
        ["ses", earlier],
        ["ses", {**without, "id": 9}],
    ]
    shelf.file().write_bytes(b"".join(make_line(line, default) for line in lines))
    found = shelf.load()
    assert set(found.sessions) == {11} and set(found.calls) == {9}
    assert shelf.events("state_schema")[0]["schema"] == SCHEMA - 1
    assert "address" in shelf.events("state_record_refused")[0]["why"]


def test_a_state_that_is_too_old_is_refused_as_a_whole_and_set_aside(shelf: Shelf) -> None:
    shelf.write(*alive(), ["use", NOW + 50, []])
    shelf.now = NOW + 50 + 301
    assert shelf.load().empty
    told = shelf.events("state_too_old")[0]
    assert (told["seconds"], told["limit"], told["sessions"]) == (301, 300, 2)
    assert [path.suffix for path in shelf.directory.glob("0*")] == [".refused"]
    shelf.close()
    assert shelf.load().empty


def test_a_clock_that_went_back_makes_no_state_too_old(shelf: Shelf) -> None:
    shelf.write(*alive())
    shelf.now = NOW - 5000
    assert len(shelf.load().sessions) == 2


def test_generations_are_read_in_their_order_while_a_new_one_is_not_complete(shelf: Shelf) -> None:
    shelf.write(*alive())
    shelf.write(["ses-", 11], ["ctl", 7, 0, 9, 0, []], settle=False)
    assert len(list(shelf.directory.glob("*.state"))) == 2
    found = shelf.load()
    assert set(found.sessions) == {12} and found.tunnels[7].control.nr == 9


def test_when_all_is_in_the_new_generation_the_older_ones_go(shelf: Shelf) -> None:
    shelf.write(*alive())
    shelf.write(*alive()[:2], settle=False)
    shelf.write(*alive()[:2])
    assert shelf.file().name == "0000000003.state"
    assert set(shelf.load().sessions) == {11}


class Disk:
    """Refuses what it is told to refuse."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = self.read_only = False
        self._write, self._remove, self._open = state.write_all, files.remove, files.open_file
        monkeypatch.setattr("l2tpns.state.store.write_all", self.write_all)
        monkeypatch.setattr("l2tpns.runtime.files.remove", self.remove)
        monkeypatch.setattr("l2tpns.runtime.files.open_file", self.open_file)

    def write_all(self, descriptor: int, octets: bytes) -> None:
        if self.full or self.read_only:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._write(descriptor, octets)

    def remove(self, path: Path) -> bool:
        return not (self.read_only and path.suffix == ".state") and self._remove(path)

    def open_file(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if self.read_only and path.suffix == ".state":
            raise OSError(errno.EROFS, "Read-only file system")
        return self._open(path, flags, mode)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disk:
    monkeypatch.setenv("L2TPNS_RUN", str(tmp_path / "run"))
    return Disk(monkeypatch)


def test_once_a_line_cannot_be_written_nobody_takes_up_what_is_on_the_disk(shelf: Shelf, disk: Disk) -> None:
    shelf.write(*alive())
    store = shelf.open()
    store.load(300)
    assert store.begin()
    disk.full = True
    for _ in range(5):
        assert not store.write(["ses-", 11])
    assert store.broken and not store.finish_generation(block=True) and not store.begin()
    assert not list(shelf.directory.glob("*.state"))
    assert len(shelf.events("state_write_failed")) == len(shelf.events("state_disowned")) == 1
    assert shelf.events("state_disowned")[0]["removed"]
    shelf.close()
    assert shelf.load().empty


def test_when_the_disk_has_room_again_the_state_that_is_written_counts(shelf: Shelf, disk: Disk) -> None:
    store = shelf.open()
    assert store.begin()
    disk.full = True
    assert not store.write(["ses-", 1])
    disk.full = False
    assert store.begin() and store.write(*alive()) and store.finish_generation(block=True)
    assert [entry["event"] for entry in shelf.log.records()][-1] == "state_written_again"
    shelf.close()
    assert len(shelf.load().sessions) == 2


def test_a_generation_that_cannot_be_begun_leaves_the_one_that_is_written(shelf: Shelf, disk: Disk) -> None:
    store = shelf.open()
    assert store.begin() and store.write(*alive()) and store.finish_generation(block=True)
    disk.full = True
    assert not store.begin() and not store.begin() and not store.broken
    disk.full = False
    assert store.write(["ses-", 12])
    assert len(shelf.events("state_write_failed")) == 1
    shelf.close()
    assert set(shelf.load().sessions) == {11}


def test_a_first_generation_that_cannot_be_begun_disowns_what_was_taken_up(shelf: Shelf, disk: Disk) -> None:
    shelf.write(*alive())
    store = shelf.open()
    assert len(store.load(300).sessions) == 2
    disk.full = True
    assert not store.begin()  # and the two may end now
    shelf.close()
    assert shelf.load().empty


def test_what_a_read_only_disk_keeps_is_marked_where_the_next_process_sees_it(shelf: Shelf, disk: Disk) -> None:
    store = shelf.open()
    assert store.begin() and store.write(*alive()) and store.finish_generation(block=True)
    disk.read_only = True
    assert not store.write(["ses-", 11])
    assert (shelf.events("state_disowned")[0]["removed"], shelf.events("state_disowned")[0]["marked"]) == (False, True)
    assert not store.begin()
    shelf.close()
    assert shelf.load().empty and shelf.events("state_stale")[0]["sessions"] == 2
    shelf.close()
    disk.read_only = False
    store = shelf.open()
    assert store.load(300).empty  # the mark is there until everything is written anew
    assert store.begin() and store.write(*alive()) and store.finish_generation(block=True)
    assert not store.mark.exists()
    shelf.close()
    assert len(shelf.load().sessions) == 2


def test_a_farewell_that_cannot_erase_the_state_marks_it(shelf: Shelf, disk: Disk) -> None:
    store = shelf.open()
    assert store.begin() and store.write(*alive()) and store.finish_generation(block=True)
    disk.read_only = True
    store.erase()
    shelf.close()
    assert shelf.load().empty


def test_a_disk_that_fails_to_make_safe_what_it_took_is_no_longer_believed(
    shelf: Shelf, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shelf.open()
    assert store.begin() and store.write(*alive()) and store.finish_generation(block=True)
    monkeypatch.setattr("l2tpns.state.store.fsync_all", lambda *_: "Input/output error")
    assert not store.sync() and store.broken
    shelf.close()
    assert shelf.load().empty


def test_without_a_free_descriptor_the_state_is_only_less_safe(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    store = shelf.open()
    assert store.begin() and store.write(*alive()) and store.finish_generation(block=True)

    def none_free(descriptor: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", none_free)
        assert not store.sync() and not store.broken
    shelf.close()
    assert len(shelf.load().sessions) == 2


def test_a_newer_file_that_cannot_be_read_takes_the_older_ones_with_it(shelf: Shelf) -> None:
    shelf.write(*alive())
    shelf.write(["ses-", 11], settle=False)
    newest = max(shelf.directory.glob("*.state"))
    newest.chmod(0o644)
    assert shelf.load().empty


def test_erased_is_gone(shelf: Shelf) -> None:
    shelf.write(*alive())
    shelf.open().erase()
    assert not list(shelf.directory.glob("*.state"))


BOOT = [["head", SCHEMA, "x", NOW, 500.0, "a"], *alive()]


def put_lines(shelf: Shelf, *lines: list[Any]) -> None:
    shelf.write(*alive())
    shelf.file().write_bytes(b"".join(make_line(line, default) for line in lines))


@pytest.mark.parametrize("step", [0.0, 3600.0, -7200.0, 1.7e9])
def test_how_old_the_state_is_no_step_of_the_clock_changes(shelf: Shelf, step: float) -> None:
    put_lines(shelf, *BOOT, ["use", NOW + 5, [], 505.0])
    shelf.now, shelf.up, shelf.boot = NOW + 5 + 299 + step, 804.0, "a"
    assert len(shelf.load().sessions) == 2
    shelf.close()
    shelf.up = 806.0
    assert shelf.load().empty
    assert shelf.events("state_too_old")[0]["seconds"] == 301


def test_after_a_reboot_the_state_is_as_old_as_the_wall_clock_says_and_no_younger_than_the_boot(shelf: Shelf) -> None:
    online = {"online_since": TODAY - 10, "time_from": TODAY - 10}
    sessions = [["ses", {**another(number), **online}] for number in (11, 12)]
    put_lines(shelf, ["head", SCHEMA, "x", TODAY, 500.0, "a"], ["tun", written(TUNNEL)], *sessions)
    shelf.now, shelf.up, shelf.boot = TODAY + 200, 50.0, "b"
    assert len(shelf.load().sessions) == 2
    shelf.close()
    shelf.now, shelf.up = TODAY - 5000, 301.0
    assert shelf.load().empty


def test_what_release_0_1_0_wrote_is_taken_up(shelf: Shelf) -> None:
    put_lines(shelf, ["head", 1, "0.1.0", NOW], *alive(), ["use", NOW + 1, []], ["left", NOW + 2])
    shelf.now, shelf.up, shelf.boot = NOW + 10, 5000.0, "a"
    found = shelf.load()
    assert len(found.sessions) == 2 and found.clean and found.time == NOW + 2
    assert shelf.events("state_schema")[0]["schema"] == 1


def test_what_is_written_says_which_boot_it_is_of(shelf: Shelf) -> None:
    shelf.up, shelf.boot = 500.0, "a"
    shelf.write(["use", NOW, [], 501.0])
    assert shelf.load().last == Moment(NOW, 501.0, "a")
