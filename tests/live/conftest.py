"""Fixtures of the live tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.netns import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Namespaces that go with the test."""
    with Lab() as lab:
        yield lab
