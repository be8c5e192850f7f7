"""Files that the server writes: never another's, whatever was put in their place, and never a wait."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from l2tpns.errors import ConfigError
from l2tpns.radius.spool import Spool
from l2tpns.runtime import files, process
from l2tpns.runtime.files import (
    accept_owner,
    beyond_own_group,
    displaced,
    foreign,
    open_file,
    open_to_others,
    read_file,
    replace_file,
)
from l2tpns.runtime.log_sinks import Descriptor, open_audit, open_sink
from l2tpns.state.store import StateStore
from l2tpns.subscriber.usage_files import write_file
from l2tpns.system.firewall import Firewall, FirewallError
from tests.lab.memory_log import MemoryLog
from tests.server.conftest import Serve

ANOTHER = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    victim.chmod(0o600)
    return victim


def symbolic(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("nothing"))


def hard(path: Path, victim: Path) -> None:
    os.link(victim, path)


def fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def socket(path: Path, victim: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def directory(path: Path, victim: Path) -> None:
    path.mkdir()


TRAPS = [symbolic, dangling, hard, fifo, socket, directory]


def write_pid(path: Path) -> None:
    process.write_pid_file(path)


def write_log(path: Path) -> None:
    open_sink(str(path)).write(b"a line", 0)


def write_audit(path: Path) -> None:
    open_audit(str(path)).write(b"a line", 0)


def lock_firewall(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        firewall = Firewall.__new__(Firewall)
        patch.setattr(firewall, "_lock_file", path, raising=False)
        with firewall._locked():
            pass


WRITERS: list[Callable[[Path], object]] = [write_pid, write_log, write_audit, lock_firewall]


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_stands_in_place_of_a_file_is_refused_in_words(
    writer: Callable[[Path], object], trap: Callable[[Path, Path], None], tmp_path: Path, victim: Path
) -> None:
    path = tmp_path / "file"
    trap(path, victim)
    with pytest.raises((ConfigError, FirewallError), match="file") as refused:
        writer(path)
    assert "symbolic link" in str(refused.value) or trap not in (symbolic, dangling)
    assert "hard links" in str(refused.value) or trap is not hard
    assert victim.read_text() == "precious\n" and not victim.with_name("nothing").exists()


@pytest.mark.parametrize("trap", TRAPS)
def test_a_lock_of_state_or_spool_that_is_none_is_refused(
    trap: Callable[[Path, Path], None], tmp_path: Path, victim: Path
) -> None:

    folder = tmp_path / "ours"
    folder.mkdir(mode=0o700)
    trap(folder / "lock", victim)
    with pytest.raises(ConfigError, match="state_dir"):
        StateStore(folder, MemoryLog().get()).open()
    with pytest.raises(ConfigError, match="spool_dir"):
        Spool(folder, MemoryLog().get(), lambda entries: None).open()
    assert victim.read_text() == "precious\n"


@pytest.mark.parametrize("trap", [symbolic, dangling, hard])
def test_a_file_that_is_written_whole_takes_the_name_and_leaves_what_it_led_to(
    trap: Callable[[Path, Path], None], tmp_path: Path, victim: Path
) -> None:
    path = tmp_path / "l2tpns.cfg"
    trap(path, victim)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new" and not path.is_symlink()
    assert victim.read_text() == "precious\n" and not victim.with_name("nothing").exists()


@pytest.mark.parametrize("trap", [fifo, socket, directory])
def test_what_is_no_file_is_not_replaced_by_one(
    trap: Callable[[Path, Path], None], tmp_path: Path, victim: Path
) -> None:
    path = tmp_path / "l2tpns.cfg"
    trap(path, victim)
    with pytest.raises(OSError, match="not a regular file"):
        replace_file(path, b"new")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["l2tpns.cfg", "victim"]


@root
def test_a_file_that_is_written_whole_stays_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "l2tpns.cfg"
    path.write_text("old")
    path.chmod(0o640)
    os.chown(path, ANOTHER, ANOTHER)
    replace_file(path, b"new")
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (ANOTHER, ANOTHER, 0o640)


def refuse_owners(monkeypatch: pytest.MonkeyPatch, uid: int) -> list[tuple[int, int]]:
    """Let the kernel refuse another owner, as it does to all but root; a group is given. Return what was asked for."""
    asked: list[tuple[int, int]] = []

    def fchown(_: int, uid: int, gid: int) -> None:
        asked.append((uid, gid))
        if uid != -1:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", fchown)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    return asked


@root
def test_a_process_that_is_not_root_keeps_the_group_where_it_may_not_keep_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "l2tpns.cfg"
    path.write_text("old")
    path.chmod(0o640)
    os.chown(path, ANOTHER, ANOTHER)
    asked = refuse_owners(monkeypatch, ANOTHER + 1)
    replace_file(path, b"new")
    assert asked == [(ANOTHER, ANOTHER), (-1, ANOTHER)]
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o640


@root
def test_root_that_may_not_keep_the_owner_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l2tpns.cfg"
    path.write_text("old")
    os.chown(path, ANOTHER, ANOTHER)
    refuse_owners(monkeypatch, 0)
    with pytest.raises(PermissionError):
        replace_file(path, b"new")
    assert path.read_text() == "old" and list(tmp_path.glob(".*")) == []


@root
@pytest.mark.parametrize("trap", TRAPS)
def test_usage_files_in_a_directory_of_another_write_over_nothing(
    trap: Callable[[Path, Path], None], tmp_path: Path, victim: Path
) -> None:
    folder = tmp_path / "usage"
    folder.mkdir()
    os.chown(folder, ANOTHER, ANOTHER)
    trap(folder / ".unfinished", victim)
    first = write_file(folder, 1_790_000_000.0, b"one")
    trap(folder / "elsewhere", victim)
    (folder / "elsewhere").rename(first.with_name(str(int(first.name) + 1)))
    second = write_file(folder, 1_790_000_000.0, b"two")
    assert int(second.name) == int(first.name) + 2
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
    assert victim.read_text() == "precious\n" and not victim.with_name("nothing").exists()


@root
def test_usage_files_are_not_written_to_a_directory_that_another_may_have_put_there(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "etc").mkdir()
    (home / "usage").symlink_to(tmp_path / "etc")
    os.chown(home, ANOTHER, ANOTHER)
    with pytest.raises(OSError, match="user 65534"):
        write_file(home / "usage", 1_790_000_000.0, b"one")
    assert list((tmp_path / "etc").iterdir()) == []
    assert displaced(tmp_path) == ""


def test_usage_files_give_up_when_all_names_are_taken(tmp_path: Path) -> None:
    for _ in range(3):
        write_file(tmp_path, 1_790_000_000.0, b"one", max_names=3)
    with pytest.raises(OSError, match="in use"):
        write_file(tmp_path, 1_790_000_000.0, b"one", max_names=3)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_log_goes_on_into_its_file_a_fifo_of_ours_and_a_device(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        open_sink(str(path)).write(b"line", 0)
    assert path.read_text() == "line\nline\n"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert open_sink(str(tmp_path / "pipe")).write(b"line", 0)
    assert os.read(reader, 100) == b"line\n"
    os.close(reader)
    assert open_sink("/dev/null").write(b"line", 0)
    assert type(open_sink("file:/dev/stdout")) is Descriptor and type(open_sink("/proc/self/fd/2")) is Descriptor


@root
def test_a_file_of_another_is_written_only_where_no_other_could_have_put_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("")
    os.chown(path, ANOTHER, ANOTHER)
    os.close(open_file(path, os.O_WRONLY))  # as logrotate's `create 640 syslog adm` makes it
    tmp_path.chmod(0o1777)
    with pytest.raises(OSError, match=f"user {ANOTHER}"):
        open_file(path, os.O_WRONLY)


def test_a_log_that_was_replaced_by_a_link_is_not_followed_when_it_is_reopened(tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "log"
    sink = open_sink(str(path))
    path.rename(tmp_path / "log.1")
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        sink.reopen()
    assert sink.write(b"line", 0) and (tmp_path / "log.1").read_text() == "line\n"
    assert victim.read_text() == "precious\n"


def test_a_pid_file_is_written_over_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1234567890\n")
    process.write_pid_file(path)
    assert path.read_text() == f"{os.getpid()}\n"
    process.remove_pid_file(path)
    assert not path.exists()
    os.mkfifo(path)
    process.remove_pid_file(path)  # does not wait for a writer
    process.write_pid_file(Path("/dev/null"))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("trap", TRAPS)
def test_what_is_read_is_a_plain_file(trap: Callable[[Path, Path], None], tmp_path: Path, victim: Path) -> None:
    trap(tmp_path / "file", victim)
    if trap is hard:
        assert read_file(tmp_path / "file") == b"precious\n"
        return
    with pytest.raises(OSError):
        read_file(tmp_path / "file")


# What is said of places


@root
def test_a_directory_of_another_or_of_everybody_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert foreign(tmp_path / "a" / "b") == ""
    (tmp_path / "a").chmod(0o1777)
    assert foreign(tmp_path / "a" / "b") == ""  # as /tmp
    (tmp_path / "a").chmod(0o775)
    assert foreign(tmp_path / "a" / "b") == ""  # as /var/log, of a group that root has chosen
    (tmp_path / "a").chmod(0o777)
    assert "chmod o-w" in foreign(tmp_path / "a" / "b")
    (tmp_path / "a").chmod(0o755)
    os.chown(tmp_path / "a", ANOTHER, ANOTHER)
    assert f"belongs to user {ANOTHER}" in foreign(tmp_path / "a" / "b")


@root
def test_the_user_of_setuid_is_ourselves_before_the_switch_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, secrets = tmp_path / "logs" / "log", tmp_path / "secrets"
    log.parent.mkdir()
    for path, mode in ((log, 0o640), (secrets, 0o640)):
        path.touch()
        path.chmod(mode)
        os.chown(path, ANOTHER, ANOTHER)
    os.chown(log.parent, ANOTHER, ANOTHER)
    with pytest.raises(OSError, match=f"it belongs to user {ANOTHER}"):
        open_file(log, os.O_WRONLY)
    assert foreign(log.parent)
    assert beyond_own_group(secrets.stat())

    monkeypatch.setattr(files, "_own_users", {0})
    monkeypatch.setattr(files, "_own_groups", set())
    accept_owner(ANOTHER, ANOTHER)
    os.close(open_file(log, os.O_WRONLY))
    assert foreign(log.parent) == ""
    assert not beyond_own_group(secrets.stat())
    secrets.chmod(0o644)
    assert beyond_own_group(secrets.stat())


@pytest.mark.parametrize(("mode", "told"), [(0o600, False), (0o640, False), (0o644, True), (0o602, True)])
def test_a_file_of_secrets_that_everybody_can_open_is_told_with_the_command(
    tmp_path: Path, mode: int, told: bool
) -> None:
    path = tmp_path / "l2tpns.secrets"
    assert open_to_others(path) == ""
    path.write_text("")
    path.chmod(mode)
    assert (f"mode {mode:04o}" in open_to_others(path)) is told
    assert open_to_others(path).endswith(f"chmod o= {path}") is told


@root
def test_a_usage_directory_of_another_is_written_to_and_nothing_else_changes(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "usage"
    folder.mkdir()
    os.chown(folder, ANOTHER, ANOTHER)
    server = serve(accounting_dir=str(folder))
    lac = server.lac().connect()
    lac.call("fred", "pw").wait_online()
    (session,) = server.lns.sessions.values()
    session.path.in_octets = 5
    path = server.services.usage_files.write()
    assert path is not None and path.read_text().endswith("fred 10.5.0.1 1 5 0\n")
