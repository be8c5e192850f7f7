"""Descriptors that a service manager keeps: what it is told, and what the next process finds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from l2tpns.runtime import process
from l2tpns.runtime.descriptor_store import DescriptorStore
from tests.lab.server import CHECKOUT
from tests.lab.service_manager import ServiceManager


class Stage:
    def __init__(self, directory: Path) -> None:
        self.manager = ServiceManager(directory / "notify", keeps=True)
        self.store = DescriptorStore(process.ServiceManager({"NOTIFY_SOCKET": str(directory / "notify")}))
        self.pipe = os.pipe()

    def kept(self) -> list[tuple[str, int]]:
        """Return the names of what the manager has, and the inodes."""
        self.manager.read_all()
        return [(name, os.fstat(fd).st_ino) for name, fd in self.manager.store]

    def inode(self, end: int) -> int:
        return os.fstat(self.pipe[end]).st_ino

    def close(self) -> None:
        self.manager.close()
        for fd in self.pipe:
            os.close(fd)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def test_what_is_offered_is_kept_until_it_is_withdrawn(stage: Stage) -> None:
    stage.store.offer("a", stage.pipe[0])
    assert stage.kept() == [("a", stage.inode(0))]
    stage.store.offer("a", stage.pipe[1])  # in its place
    assert stage.kept() == [("a", stage.inode(1))]
    stage.store.withdraw("a")
    stage.store.withdraw("b")
    assert stage.kept() == []


def test_nothing_is_kept_while_nothing_is_wanted(stage: Stage) -> None:
    stage.store.offer("a", stage.pipe[0])
    stage.store.want(False)
    stage.store.offer("b", stage.pipe[1])
    assert stage.kept() == []
    stage.store.want(True)
    assert stage.kept() == [("a", stage.inode(0)), ("b", stage.inode(1))]


PROGRAM = """
import os, sys
from l2tpns.runtime.descriptor_store import DescriptorStore
from l2tpns.runtime.process import ServiceManager
store = DescriptorStore(ServiceManager(), os.environ)
taken = store.take("a")
store.offer("a", taken, inherited=True)
print(os.fstat(taken).st_ino, store.take("a"), os.get_inheritable(taken), os.path.exists("/proc/self/fd/4"))
store.close_rest()
print(os.path.exists("/proc/self/fd/4"))
"""


def test_the_next_process_finds_them_by_name_and_closes_the_rest(stage: Stage) -> None:
    stage.store.offer("a", stage.pipe[0])
    stage.store.offer("b", stage.pipe[1])
    argv, passed = stage.manager.wrap([sys.executable, "-c", PROGRAM])
    environment = {**os.environ, "NOTIFY_SOCKET": stage.manager.path}
    said = subprocess.run(argv, cwd=CHECKOUT, env=environment, pass_fds=passed, capture_output=True, text=True)
    for fd in passed:
        os.close(fd)
    assert said.stdout.split() == [str(stage.inode(0)), "-1", "False", "True", "False"], said.stderr
    assert stage.kept() == [("a", stage.inode(0))]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "a"},
        {"LISTEN_FDS": "many", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "a"},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": ""},
    ],
)
def test_what_was_passed_to_another_process_is_not_taken(environment: dict[str, str]) -> None:
    assert DescriptorStore(None, environment).take("a") == -1
