"""`make demo`: what a newcomer sees first."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import PATIENCE
from tests.lab.netns import RUN_NETNS, is_root
from tests.lab.server import CHECKOUT

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root")]

DEMO = (sys.executable, "-m", "tools.demo")
STEPS = 15


def start(output: Path, *options: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TMPDIR": str(output.parent), "PYTHONUNBUFFERED": "1"}
    with output.open("wb") as file:
        return subprocess.Popen(
            [*DEMO, *options], cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
        )


def left_by(process: subprocess.Popen[bytes], output: Path) -> list[str]:
    namespaces = [entry.name for entry in RUN_NETNS.iterdir() if f"-{process.pid}-" in entry.name]
    return namespaces + [entry.name for entry in output.parent.iterdir() if entry != output]


def test_the_demo_shows_every_step_ends_with_one_screen_of_summary_and_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "output"
    process = start(output)
    status = process.wait(10 * PATIENCE)
    said = output.read_text()
    assert status == 0, said
    lines = said.splitlines()
    assert max(map(len, lines)) <= 100

    heading = next(
        number for number, line in enumerate(lines) if line.startswith("-- l2tpns: what this demo has shown")
    )
    summary = lines[heading:]
    assert len(summary) <= 24
    assert sum(line.startswith("OK      ") for line in summary) == STEPS
    assert any(line.startswith(f"all OK: {STEPS} steps") for line in summary)

    # Not only OK: the operator's view is there, too.
    assert re.search(r"session_up user=alice acct=[0-9A-F]{16} address=10\.1\.\d+\.\d+ mru=1462 auth=pap", said)
    assert re.search(r"session_up user=bob acct=[0-9A-F]{16} address=10\.1\.7\.7 mru=1462 auth=chap", said)
    assert re.search(r'auth_refused user=mallory why="wrong password"', said)
    assert said.count(" 1 received, 0% packet loss") == 3 * 6
    assert left_by(process, output) == []


def test_the_demo_can_be_kept_running_and_goes_when_it_is_told(tmp_path: Path) -> None:
    output = tmp_path / "output"
    process = start(output, "--keep")
    try:
        deadline = time.monotonic() + 10 * PATIENCE
        while "--hold" not in output.read_text():
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        shown = re.search(r"^  (ip netns exec .* ping -I ppp-alice [\d.]+) ", output.read_text(), re.MULTILINE)
        assert shown is not None
        subprocess.run([*shown[1].split(), "-c", "1", "-W", "20"], check=True, capture_output=True)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(2 * PATIENCE)
    assert status == 0, output.read_text()
    assert left_by(process, output) == []
