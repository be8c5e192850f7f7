"""Variables whose effect no other test shows: RFC 1661's counters and timer, the MRU, the window."""

from __future__ import annotations

from time import monotonic

import pytest

from tests.lab.pppclient import CONF_NAK, CONF_REJ
from tests.server.conftest import Serve
from tests.server.subscriber.test_network import DNS, ask, networking


def requests_until_the_end(serve: Serve, **settings: float) -> tuple[int, float]:
    """Return how many LCP Configure-Requests a silent client receives, and in which time."""
    peer = serve(**settings).peer().open()
    begun = monotonic()
    peer.call()
    times: list[float] = []
    while True:
        datagram = peer.hear_raw()
        if datagram[0] & 0x80:
            if len(datagram) > 12:
                break  # the CDN
        elif b"\xc0\x21\x01" in datagram:
            times.append(monotonic())
    peer.acknowledge()
    return len(times), times[-1] - begun


@pytest.mark.shows("set ppp_max_configure")
@pytest.mark.parametrize("times", [2, 5])
def test_ppp_max_configure_is_how_often_a_client_is_asked(serve: Serve, times: int) -> None:
    assert requests_until_the_end(serve, ppp_restart_time=0.05, ppp_max_configure=times)[0] == times


@pytest.mark.shows("set ppp_restart_time")
def test_ppp_restart_time_is_the_time_between_two_requests(serve: Serve) -> None:
    count, took = requests_until_the_end(serve, ppp_restart_time=0.3, ppp_max_configure=3)
    assert count == 3
    assert took > 0.55


@pytest.mark.shows("set ppp_max_failure")
@pytest.mark.parametrize("naks", [1, 3])
def test_after_ppp_max_failure_naks_comes_a_reject(serve: Serve, naks: int) -> None:
    fred, ear = networking(serve(ppp_max_failure=naks, primary_dns=DNS[0]))
    answers = [ask(fred, ear, "0306 0a050001 8106 08080808")[0] for _ in range(naks + 1)]
    assert answers == [CONF_NAK] * naks + [CONF_REJ]


@pytest.mark.shows("set l2tp_mtu")
def test_the_mru_that_a_client_is_told_is_l2tp_mtu_less_our_headers(serve: Serve) -> None:
    server = serve(l2tp_mtu=1400)
    fred = server.lac().connect().call("fred", "pw").wait_online()
    assert fred.peer_mru == 1362
    server.config.l2tp_mtu = 2600
    assert server.lac("lac2").connect().call("mary", "pw").wait_online().peer_mru == 1500


@pytest.mark.parametrize("asked, sent", [(1500, 1500), (1492, 1492), (1400, 1400), (None, 1492)])
def test_a_client_gets_1500_octets_if_it_asks_for_them_and_what_pppoe_carries_if_it_does_not(
    serve: Serve, asked: int | None, sent: int
) -> None:
    server = serve(l2tp_mtu=1538)
    server.lac().connect().call("fred", "pw", mru=asked).wait_online()
    (session,) = server.registry.by_user["fred"]
    assert session.path.mru == sent


@pytest.mark.shows("set receive_window")
def test_the_window_that_a_lac_is_told_is_receive_window(serve: Serve) -> None:
    lac = serve(receive_window=7).lac().connect()
    assert lac.sccrp is not None and lac.sccrp.receive_window_size == 7
