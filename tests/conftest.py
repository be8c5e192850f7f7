"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Examples have no time limit: the machine may be slow. They are the same in each run: what has passed here passes again.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")
