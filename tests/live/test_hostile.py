"""A short run of `make fuzz`: hostile datagrams of all kinds while 100 sessions of another LAC carry traffic."""

from __future__ import annotations

import pytest

from tests.lab.netns import Lab, is_root
from tools.fuzz.campaign import Campaign

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.skipif(not is_root(), reason="namespaces need root")]
COUNT = 60_000


def test_hostile_datagrams_cost_no_session_no_packet_and_no_memory() -> None:
    with Lab() as lab:
        campaign = Campaign(lab, seed=7, settings={"control_retries": 2, "debug": 5})
        campaign.set_up()
        report = campaign.run(COUNT)
    print(report)
    assert report.faults == []
    assert report.sent >= COUNT
    assert report.traffic_sent > 0
    # The attack got past the door: what it said was heard in tunnels and sessions of its own.
    assert report.by_source["hostile session"] > 1000
    assert report.by_source["hostile tunnel, in sequence"] > 500
    assert report.events["control_refused"] > 0
    assert report.last["sessions_online"] > 100
