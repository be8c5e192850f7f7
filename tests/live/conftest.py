"""Provide fixtures of the live tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import bpffs
from tests.lab.netns import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Return a Lab, which is removed after the test."""
    with Lab() as lab:
        yield lab


@pytest.fixture
def stage(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return the Stage of the test's file, closed after the test. A file whose stage needs more has its own fixture."""
    stage = request.module.Stage(lab)
    yield stage
    stage.close()


@pytest.fixture
def bpf_file_system(tmp_path: Path) -> Iterator[Path]:
    """Return where a BPF file system is mounted for the servers of this test."""
    with bpffs.bpf_file_system(tmp_path) as mount:
        yield mount
