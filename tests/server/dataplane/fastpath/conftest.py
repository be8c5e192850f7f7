"""Provide the kernel programs in a network with a LAC."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.netns import Lab, Namespace, is_root, three_hosts
from tests.server.dataplane.fastpath.kernel_stage import LAC, KernelStage


@pytest.fixture(scope="module")
def server() -> Iterator[Namespace]:
    """Return the server's namespace, which has the LAC as a neighbour."""
    if not is_root():
        pytest.skip("needs root for the kernel programs and namespaces")
    with Lab() as lab:
        _, server, _ = three_hosts(lab)
        server.ip("neighbour", "add", LAC, "lladdr", "02:00:00:00:00:02", "dev", "wan")
        yield server


@pytest.fixture
def kernel(server: Namespace) -> Iterator[KernelStage]:
    """Return the programs, loaded anew, with one session."""
    kernel = KernelStage(server)
    yield kernel
    kernel.close()
