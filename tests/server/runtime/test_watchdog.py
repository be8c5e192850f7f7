"""What keeps the process fit: descriptors for hard times, the watchdog, steps that survive each other, its exits."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from l2tpns.errors import ConfigError, RepairError, WaitError, refused
from l2tpns.runtime import process
from l2tpns.runtime.process import ServiceManager, Spare
from l2tpns.runtime.shutdown_steps import ShutdownSteps
from l2tpns.runtime.supervisor import Supervisor
from l2tpns.runtime.watchdog import Watchdog
from tests.lab.inprocess import until
from tests.lab.memory_log import MemoryLog


@pytest.fixture
def crowded() -> Iterator[None]:
    """No descriptor is free, as of now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def spare() -> Iterator[Spare]:
    spare = Spare(4)
    spare.fill()
    yield spare
    spare.release()


def test_spare_descriptors_serve_when_no_other_is_free(spare: Spare, crowded: None) -> None:
    with pytest.raises(OSError, match="Too many open files"):
        os.dup(0)
    assert process.descriptors() is None and process.resident_kib() is None
    with spare.lent():
        assert (process.descriptors() or 0) > 3 and (process.resident_kib() or 0) > 0
    assert not spare.short
    with pytest.raises(OSError, match="Too many open files"):
        os.dup(0)
    spare.release()
    os.close(os.dup(0))


def test_a_process_without_descriptors_has_no_spare_ones_and_says_so(crowded: None) -> None:
    spare = Spare()
    spare.fill()
    assert spare.short
    with spare.lent():
        pass


# The service manager


class Manager:
    """A socket such as systemd's."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.setblocking(False)
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        try:
            while True:
                self.heard.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return self.heard


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Manager, dict[str, str]]]:
    name = f"@l2tpns-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    manager = Manager("\0" + name[1:] if name.startswith("@") else name)
    yield manager, {"NOTIFY_SOCKET": name}
    manager.socket.close()


def test_the_service_manager_is_told_even_when_no_descriptor_is_free(
    manager: tuple[Manager, dict[str, str]], request: pytest.FixtureRequest
) -> None:
    listener, environment = manager
    service = ServiceManager(environment)
    request.getfixturevalue("crowded")
    service.notify("STOPPING=1")
    assert listener.listen() == ["STOPPING=1"]


def test_telling_never_fails(manager: tuple[Manager, dict[str, str]], request: pytest.FixtureRequest) -> None:
    listener, environment = manager
    listener.socket.close()
    ServiceManager(environment).notify("READY=1")  # nobody listens any more
    ServiceManager({}).notify("READY=1")
    ServiceManager({"NOTIFY_SOCKET": "/nonexistent/socket"}).notify("READY=1")
    request.getfixturevalue("crowded")
    ServiceManager(environment).notify("READY=1")


@pytest.mark.parametrize(
    ("environment", "period"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 0.0),  # another process of the service is meant
        ({"WATCHDOG_USEC": "0"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": ""}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_waits_for_whom_it_names(environment: dict[str, str], period: float) -> None:
    assert ServiceManager({"NOTIFY_SOCKET": "@x", **environment}).watchdog_period == period
    assert ServiceManager(environment).watchdog_period == 0.0  # nobody could be told


def test_the_watchdog_hears_of_us_while_all_parts_run_and_no_longer(
    manager: tuple[Manager, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, environment = manager
    parts, spare = Supervisor(MemoryLog().get()), Spare(1)
    service = ServiceManager({**environment, "WATCHDOG_USEC": "40000"})
    parts.spawn("keeper", Watchdog(service, spare, parts).run)
    parts.spawn("reader", gevent.sleep, 3600)
    until(lambda: listener.listen().count("WATCHDOG=1") >= 3)
    ill = parts.spawn("ill", int, "x")
    until(lambda: parts.down() == ["ill"] and ill.failures > 5)  # the pauses are longer than the watchdog's by now
    listener.listen().clear()
    looks = []
    down = parts.down
    monkeypatch.setattr(parts, "down", lambda: looks.append(1) or down())
    until(lambda: len(looks) > 5 or ill.running)
    assert ill.running or listener.listen() == []
    ill.stop()
    until(lambda: "WATCHDOG=1" in listener.listen())
    for part in list(parts.parts):
        part.stop()
    spare.release()


def test_the_keeper_takes_descriptors_back_when_there_are_some_again(spare: Spare) -> None:
    spare.release()
    parts = Supervisor(MemoryLog().get())
    keeper = parts.spawn("keeper", Watchdog(ServiceManager({}), spare, parts).run)
    until(lambda: not spare.short)
    keeper.stop()


# ShutdownSteps


@pytest.mark.parametrize(
    "error", [ValueError("oh dear"), OSError(errno.EROFS, "ro"), SystemExit(1), KeyboardInterrupt()]
)
def test_a_step_of_the_end_that_fails_is_named_and_the_next_is_taken(error: BaseException) -> None:
    log = MemoryLog()
    taken: list[str] = []

    def fail() -> None:
        raise error

    steps = ShutdownSteps(log.get())
    steps.take("first", taken.append, "first")
    steps.take("second", fail)
    steps.take("third", taken.append, "third")
    assert taken == ["first", "third"]
    (line,) = log.records("stop_step_failed")
    assert line["step"] == "second" and line["why"].startswith(type(error).__name__) and "fail" in line["traceback"]


# What the operator has to do


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EADDRNOTAVAIL, WaitError),
        (errno.EADDRINUSE, WaitError),
        (errno.ENOSPC, WaitError),
        (errno.EDQUOT, WaitError),
        (errno.EROFS, WaitError),
        (errno.EMFILE, WaitError),
        (errno.ENOMEM, WaitError),
        (errno.EBUSY, WaitError),
        (None, WaitError),  # better once too often
        (errno.ENOENT, RepairError),
        (errno.EACCES, RepairError),
        (errno.EPERM, RepairError),
        (errno.EISDIR, ConfigError),
        (errno.ENAMETOOLONG, ConfigError),
    ],
)
def test_a_refusal_of_the_machine_says_what_is_to_be_done(code: int | None, kind: type[ConfigError]) -> None:
    error = refused(code, "why")
    assert type(error) is kind and str(error) == "why"
    assert error.status == {ConfigError: 78, WaitError: 75, RepairError: 71}[kind]
