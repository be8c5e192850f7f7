"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Examples have no time limit, for the machine may be slow; they are the same in each run: what has passed passes again.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")
