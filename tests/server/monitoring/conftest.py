"""Provide a server with its status pages, and an HTTP client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.inprocess import InProcess
from tests.server.conftest import Serve
from tests.server.visitors import SERVED, Visitor, figures_of


@pytest.fixture
def server(serve: Serve) -> InProcess:
    return serve(**SERVED)


@pytest.fixture
def visitor(server: InProcess) -> Iterator[Visitor]:
    with figures_of(server) as visitor:
        yield visitor
