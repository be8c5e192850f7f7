"""Nothing stays behind when sessions come and go; a hundred cycles of it are a part of `make soak`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.lab.netns import is_root
from tests.lab.server import CHECKOUT

pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.skipif(not is_root(), reason="needs root for namespaces"),
]


def test_five_times_two_hundred_sessions_leave_no_descriptor_greenlet_route_address_or_memory_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "cycles:5:200"], cwd=CHECKOUT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left behind: nothing" in done.stdout
