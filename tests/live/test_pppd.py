"""One login of Debian's pppd through xl2tpd; all the others are in `make interop`."""

from __future__ import annotations

import pytest

from tests.lab.interop import HOST, Stage, missing
from tests.lab.pppd import Peer

pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(missing()), reason=missing())]


def test_a_real_client_logs_in_by_chap_and_reaches_the_host_beyond() -> None:
    with Stage(secrets="fred * fredpw *\n") as stage:
        stage.server.start()
        with stage.scene([Peer("one", "fred", "fredpw", auth="chap", secret="rather-secret")]) as clients:
            link = clients.dial("one")
            assert clients.ping(link, HOST) == 3
            assert sum(stage.iperf(link, "1M")) >= 1 << 20
        assert stage.server.stop() == 0
