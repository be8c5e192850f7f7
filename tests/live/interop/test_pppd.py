"""Debian's unmodified xl2tpd and pppd against the daemon (`make interop`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.lab.interop import HOST, Stage, missing
from tests.lab.pppd import LinkFailed, Peer

pytestmark = [
    pytest.mark.live,
    pytest.mark.interop,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

BOTH_MODES = pytest.mark.parametrize("kernel", [False, True], ids=["pty", "kernel"])
SECRETS = "fred * fredpw *\nann * annpw 10.1.9.9\n" + "".join(f"user{n} * pw{n} *\n" for n in range(10))
FRED_PAP = Peer("one", "fred", "fredpw", auth="pap")
FRED_CHAP = Peer("one", "fred", "fredpw", auth="chap")
FRED_MS_CHAP = Peer("one", "fred", "fredpw", auth="mschap")
FRED_MS_CHAP_2 = Peer("one", "fred", "fredpw", auth="mschapv2")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage(secrets=SECRETS) as built:
        built.server.start()
        yield built


@BOTH_MODES
@pytest.mark.parametrize("peer", [FRED_PAP, FRED_CHAP, FRED_MS_CHAP, FRED_MS_CHAP_2], ids=lambda peer: peer.auth)
def test_pppd_logs_in_and_reaches_the_host_beyond(stage: Stage, peer: Peer, kernel: bool) -> None:
    with stage.scene([peer], kernel=kernel) as clients:
        link = clients.dial("one")
        up = stage.wait_for("session_up", user="fred", address=str(link.address))
        assert up["auth"] == peer.auth
        assert clients.ping(link, HOST) == 3
        assert "succeeded" in clients.log("one")
        assert stage.host.run("ping", "-c", "2", "-i", "0.2", "-w", "30", str(link.address)).count("bytes from") == 2
        clients.terminate("one")
        clients.wait_down("one")
        down = stage.wait_for("session_down", session=up["session"], tunnel=up["tunnel"])
        assert down["cause"] == "user_request"


@BOTH_MODES
@pytest.mark.parametrize("auth", ["pap", "chap", "mschap", "mschapv2"])
def test_a_wrong_password_is_told_to_pppd_before_the_call_ends(stage: Stage, auth: str, kernel: bool) -> None:
    with stage.scene([Peer("bad", "fred", "wrong", auth=auth)], kernel=kernel) as clients:
        with pytest.raises(LinkFailed) as failed:
            clients.dial("bad")
        assert ("rcvd [PAP AuthNak" if auth == "pap" else "rcvd [CHAP Failure") in str(failed.value)
        assert stage.wait_for("auth_refused", user="fred")


def test_the_tunnel_secret_is_proved_both_ways(stage: Stage) -> None:
    with stage.scene([Peer("one", "fred", "fredpw", secret="rather-secret")]) as clients:
        link = clients.dial("one")
        assert clients.ping(link, HOST) == 3
        clients.disconnect("one")
        clients.wait_down("one")


def test_a_wrong_tunnel_secret_brings_no_session(stage: Stage) -> None:
    with stage.scene([Peer("one", "fred", "fredpw", secret="another")]) as clients:
        clients.call("one")
        with pytest.raises(LinkFailed):
            clients.wait_up("one", timeout=8.0)
        assert stage.server.log("session_up", after=stage.since) == []
        # Our response to its challenge was made with another secret: xl2tpd sees that and closes the tunnel.
        assert "Invalid challenge authentication" in stage.guest.run("cat /var/log/xl2tpd")


@BOTH_MODES
def test_a_pppd_killed_by_signal_9_gets_the_same_address_again(stage: Stage, kernel: bool) -> None:
    with stage.scene([FRED_PAP], kernel=kernel) as clients:
        first = clients.dial("one")
        up = stage.wait_for("session_up", address=str(first.address))
        clients.kill("one")
        clients.wait_down("one")
        stage.wait_for("session_down", session=up["session"], tunnel=up["tunnel"])
        clients.disconnect("one")  # xl2tpd does not dial an entry again whose tunnel is still there
        time.sleep(1.0)
        again = clients.dial("one")
        assert again.address == first.address
        assert clients.ping(again, HOST) == 3


def test_a_client_that_vanished_and_came_back_gets_the_same_address_again(stage: Stage) -> None:
    with stage.scene([FRED_PAP]) as clients:
        first = clients.dial("one")
        clients.vanish()
        clients.start()
        again = clients.dial("one")
        assert again.address == first.address
        assert clients.ping(again, HOST) == 3


@BOTH_MODES
def test_mtu_and_mru_1400_on_the_client_hold_both_ways(stage: Stage, kernel: bool) -> None:
    with stage.scene([Peer("one", "fred", "fredpw", mtu=1400, mru=1400)], kernel=kernel) as clients:
        link = clients.dial("one")
        assert link.mtu == 1400
        assert stage.wait_for("session_up", address=str(link.address), mru=1400)
        assert clients.ping(link, HOST, size=1372, df=True) == 3
        assert clients.ping(link, HOST, size=3000) == 3
        # Downwards: what fits goes, what does not and may not be cut is answered with the MTU, the rest is cut.
        answered = stage.host.run("ping", "-c", "1", "-M", "do", "-s", "1372", str(link.address), check=False)
        assert "1 received" in answered
        refused = stage.host.run("ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1373", str(link.address), check=False)
        assert "mtu = 1400" in refused or "mtu=1400" in refused
        cut = stage.host.run("ping", "-c", "1", "-M", "dont", "-s", "1400", str(link.address), check=False)
        assert "1 received" in cut
        assert sum(stage.iperf(link, "2M")) > 0
        assert sum(stage.iperf(link, "2M", down=True)) > 0


def test_lcp_may_start_over_in_the_middle_of_a_session(stage: Stage) -> None:
    with stage.scene([FRED_CHAP], negotiate_again=True) as clients:
        first = clients.dial("one")
        up = stage.wait_for("session_up", address=str(first.address))
        stage.guest.run("mv /var/log/ppp.one /var/log/ppp.one.first")
        clients.kill("one")
        again = clients.wait_up("one")
        assert again.address == first.address
        stage.wait_for("lcp_renegotiated", session=up["session"], tunnel=up["tunnel"])
        assert clients.ping(again, HOST) == 3


def test_ten_sessions_of_one_client_at_once(stage: Stage) -> None:
    peers = [Peer(f"p{n}", f"user{n}", f"pw{n}", auth="chap" if n % 2 else "pap") for n in range(10)]
    with stage.scene(peers) as clients:
        for peer in peers:
            clients.call(peer.name)
        links = [clients.wait_up(peer.name, timeout=60.0) for peer in peers]
        assert len({link.address for link in links}) == 10
        assert [clients.ping(link, HOST) for link in links] == [3] * 10


@BOTH_MODES
@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_a_hundred_megabytes_by_tcp_never_stall(stage: Stage, kernel: bool, down: bool) -> None:
    with stage.scene([FRED_PAP], kernel=kernel) as clients:
        link = clients.dial("one")
        seconds = stage.iperf(link, "100M", down=down)
        assert sum(seconds) >= 100 * 1024 * 1024
        # A whole window may wait in the queue of a slow pty for a second; that nothing moves for longer is a stall.
        assert all(one or other for one, other in pairwise(seconds[:-1])), f"stalled: {seconds}"
