"""Changes of the configuration while we run: what is refused changes nothing, what moves nothing is said."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from l2tpns.config.live import Configurator, Options, read
from l2tpns.config.settings import SETTINGS, Config
from l2tpns.config.value_types import Affects
from l2tpns.errors import ConfigError
from l2tpns.subscriber.usage_files import unusable
from tests.lab.memory_log import MemoryLog

NO_SERVER = "radius_accounting has no effect: no RADIUS server is named: records wait on disk"


class Running:
    """A server that has read its file, and does nothing else."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "l2tpns.cfg"
        self.write()
        self.log = MemoryLog()
        self.applied: list[tuple[int, int]] = []  # echo_timeout and radius_timeout, each time they were handed on
        self.radius: list[bool] = []  # whether RADIUS was concerned, each time
        self.refuse: Exception | None = None
        self.adopted: list[Config] = []  # as `prepare` was given them
        options = Options(self.file)
        self.configurator = Configurator(options, read(options), self.log, self.apply, self.prepare, unusable)
        self.config = self.configurator.config

    def write(self, *lines: str) -> None:
        self.file.write_text("".join(f"set {line}\n" for line in lines))

    def apply(self, radius: bool) -> None:
        self.applied.append((self.config.echo_timeout, self.config.radius_timeout))
        self.radius.append(radius)
        if self.refuse is not None:
            refuse, self.refuse = self.refuse, None
            raise refuse

    def prepare(self, config: Config) -> Callable[[], None]:
        return partial(self.adopted.append, config)

    def said(self, event: str) -> list[object]:
        return [line.get("variable") or line.get("why") for line in self.log.records(event)]


@pytest.fixture
def running(tmp_path: Path) -> Running:
    return Running(tmp_path)


def test_a_variable_that_moves_nothing_is_told_to_who_sets_it_and_to_the_log(running: Running) -> None:
    _, notes = running.configurator.assign("radius_accounting", "yes")
    assert notes == (NO_SERVER,)
    assert running.said("setting_without_effect") == ["radius_accounting"]


def test_what_others_have_set_without_effect_is_not_told_again_to_who_sets_something_else(running: Running) -> None:
    running.configurator.assign("radius_accounting", "yes")
    assert running.configurator.assign("echo_timeout", "20")[1] == ()
    assert running.configurator.assign("primary_radius", "192.0.2.1")[1] == (
        "primary_radius has no effect: radius_secret is not set: no subscriber can log in",
    )
    assert running.configurator.assign("radius_secret", "not-told")[1] == ()


def test_half_a_pair_that_waits_for_a_restart_is_told_too(running: Running) -> None:
    assert running.configurator.assign("radius_bind_min", "4000")[1][0].startswith("radius_bind_min has no effect")
    assert running.configurator.assign("radius_bind_max", "4100")[1] == ()


def test_a_reload_tells_what_moves_nothing(running: Running) -> None:
    running.write("radius_accounting yes", "echo_timeout 20")
    assert running.configurator.reload() == (NO_SERVER, "Changed: echo_timeout, radius_accounting")
    assert running.said("setting_without_effect") == ["radius_accounting"]
    assert [config.echo_timeout for config in running.adopted] == [20]


@pytest.mark.parametrize("error", [ConfigError("nobody could log in"), RuntimeError("a mistake of ours")])
def test_what_cannot_be_applied_is_taken_back_and_what_was_before_is_applied_again(
    running: Running, error: Exception
) -> None:
    running.refuse = error
    with pytest.raises(type(error)):
        running.configurator.assign("radius_timeout", "7")
    assert running.applied == [(10, 7), (10, 1)]
    running.refuse = error
    running.write("echo_timeout 20")
    with pytest.raises(type(error)):
        running.configurator.reload()
    assert running.applied[2:] == [(20, 1), (10, 1)]
    assert (running.config.echo_timeout, running.config.radius_timeout) == (10, 1)
    assert running.adopted == []


def test_a_directory_for_usage_files_that_is_none_is_refused(running: Running, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, why in (("nowhere", "No such file"), ("file", "Not a directory")):
        with pytest.raises(ConfigError, match=f"accounting_dir: .*/{name}: {why}"):
            running.configurator.assign("accounting_dir", str(tmp_path / name))
        running.write(f"accounting_dir {tmp_path / name}", "echo_timeout 20")
        with pytest.raises(ConfigError, match=f"accounting_dir: .*/{name}: {why}"):
            running.configurator.reload()
    assert (running.config.accounting_dir, running.config.echo_timeout) == ("", 10)
    running.configurator.assign("accounting_dir", str(tmp_path))
    assert running.config.accounting_dir == str(tmp_path)


def test_a_directory_that_has_gone_is_told_at_the_start_and_at_a_reload_and_stops_neither(tmp_path: Path) -> None:
    first = Running(tmp_path)
    directory = tmp_path / "usage"
    directory.mkdir()
    first.write(f"accounting_dir {directory}")
    assert first.configurator.reload() == ("Changed: accounting_dir",)
    directory.rmdir()
    first.write(f"accounting_dir {directory}", "echo_timeout 20")
    told, changed = first.configurator.reload()
    assert told == f"accounting_dir: no file can be written to {directory}: No such file or directory"
    assert changed == "Changed: echo_timeout"
    second = Configurator(
        Options(first.file), read(Options(first.file)), first.log, first.apply, first.prepare, unusable
    )
    assert second.config_warnings() == (told,)
    assert first.said("usage_file_failed") == ["No such file or directory"] * 2


def test_a_configuration_with_secrets_that_everybody_can_read_is_told_at_the_start_and_at_a_reload(
    running: Running,
) -> None:
    running.file.chmod(0o644)
    assert running.configurator.config_warnings() == ()  # it has none
    running.write("radius_secret testing123", "primary_radius 127.0.0.1")
    told = running.configurator.reload()
    assert told[0].endswith(f"(mode 0644): chmod o= {running.file}")
    (running.file.parent / "l2tpns.users").write_text("fred:x\n")
    (running.file.parent / "l2tpns.secrets").write_text("fred * pw *\n")
    running.file.chmod(0o640)
    told = running.configurator.reload()
    assert [line.rpartition("/")[2] for line in told[:2]] == ["l2tpns.users", "l2tpns.secrets"]
    assert [line["path"] for line in running.log.records("secrets_readable")] == [
        str(running.file.parent / name) for name in ("l2tpns.cfg", "l2tpns.users", "l2tpns.secrets")
    ]


@pytest.mark.parametrize("variable", ["log_file", "audit_file", "pid_file", "accounting_dir", "spool_dir", "state_dir"])
def test_a_place_where_everybody_decides_what_stands_there_is_told_by_the_variable_that_names_it(
    running: Running, tmp_path: Path, variable: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)
    running.write(f"{variable} {place if variable.endswith('dir') else place / 'file'}")
    told = [line for line in running.configurator.reload() if line.startswith(f"{variable}: every user")]
    assert told == [
        f"{variable}: every user can remove and replace what is written to {place}: chmod o-w {place}",
    ]
    assert running.said("place_unsafe") == [variable]


RADIUS_SETTINGS = """hostname bind_address bind_multi_address primary_radius secondary_radius primary_radius_port
    secondary_radius_port radius_secret radius_accounting radius_interim radius_authtypes radius_bind_min
    radius_bind_max radius_timeout radius_retries radius_dead_time radius_require_message_authenticator"""


def test_what_affects_radius_is_handed_on_to_it_and_nothing_else_is(running: Running) -> None:
    assert [name for name, each in SETTINGS.items() if Affects.RADIUS in each.affects] == RADIUS_SETTINGS.split()
    running.configurator.assign("radius_timeout", "7")
    running.configurator.assign("metrics_bind_address", "127.0.0.1")
    running.configurator.assign("hostname", "lns1")
    assert running.radius == [True, False, True]
