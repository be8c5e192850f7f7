"""Configure all tests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.lab.netns import is_root, leave_network

# Examples have no time limit, as the machine may be slow. They are the same in each run.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give each parallel worker a network namespace of its own, so that ports on loopback never collide. Needs root."""
    if hasattr(config, "workerinput") and is_root():
        leave_network()
