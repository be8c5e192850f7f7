"""Proxy LCP and proxy authentication: the LAC has begun the subscriber's PPP for us (RFC 2661 4.4.5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from l2tpns.proto.messages import ICCN, ProxyAuthenType
from tests.daemon.conftest import QUICK, Serve
from tests.daemon.subscribers import Ear, refused, say
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac
from tests.lab.pppclient import CHAP, CONF_REQ, LCP, PAP, Phase

PROXIED = {"proxy_lcp": True, "proxy_auth": True}


def change_iccn(lac: Lac, **changes: object) -> None:
    """The LAC's next ICCNs have these fields instead."""
    lac.override[ICCN] = lambda iccn: replace(iccn, **changes)


@pytest.mark.statement(48)
@pytest.mark.parametrize("auth", ["pap", "chap"])
def test_a_subscriber_whom_the_lac_has_asked_is_online_without_lcp_or_login_of_ours(
    server: InProcess, lac: Lac, auth: str
) -> None:
    fred = lac.call("fred", "pw", auth=auth, **PROXIED)
    ear = Ear(fred)
    fred.wait_online()
    assert ear.of("in", LCP) == []
    protocol = PAP if auth == "pap" else CHAP
    assert [packet[0] for packet in ear.of("in", protocol)] == [2 if auth == "pap" else 3]  # the verdict only
    assert ear.of("out", protocol) == []
    assert len(server.backend.asked) == 1


@pytest.mark.statement(48, 107)
@pytest.mark.parametrize("auth", ["pap", "chap"])
def test_a_wrong_password_is_refused_by_proxy_too(lac: Lac, auth: str) -> None:
    fred = lac.call("fred", "wrong", auth=auth, **PROXIED)
    assert refused(fred) == (3, 0)
    assert fred.auth_message == b"go away"


@pytest.mark.statement(48, 51)
@pytest.mark.parametrize(
    "missing", ["proxy_authen_name", "proxy_authen_challenge", "proxy_authen_id", "proxy_authen_response"]
)
def test_without_one_of_the_avps_that_chap_needs_the_subscriber_is_asked_anew(
    server: InProcess, lac: Lac, missing: str
) -> None:
    change_iccn(lac, **{missing: None})
    fred = lac.call("fred", "pw", auth="chap", **PROXIED)
    ear = Ear(fred)
    fred.wait_online()
    assert len(ear.of("in", CHAP, 1)) == 1
    assert len(server.backend.asked) == 1


@pytest.mark.statement(48)
def test_pap_needs_no_challenge(lac: Lac) -> None:
    change_iccn(lac, proxy_authen_challenge=None)
    fred = lac.call("fred", "pw", auth="pap", **PROXIED)
    ear = Ear(fred)
    fred.wait_online()
    assert ear.of("out", PAP) == []


@pytest.mark.statement(48, 51)
@pytest.mark.parametrize("kind", [ProxyAuthenType.TEXTUAL, ProxyAuthenType.NONE, ProxyAuthenType.MSCHAPV1, 9, None])
def test_any_other_type_or_none_means_a_login_of_our_own(lac: Lac, kind: int | None) -> None:
    change_iccn(lac, proxy_authen_type=kind)
    fred = lac.call("fred", "pw", auth="chap", **PROXIED)
    ear = Ear(fred)
    fred.wait_online()
    assert ear.of("in", LCP) == []
    assert len(ear.of("in", CHAP, 1)) == 1


@pytest.mark.statement(50)
@pytest.mark.parametrize("auth", ["pap", "chap"])
@pytest.mark.shows("set proxy_authentication")
def test_proxy_authentication_can_be_switched_off(serve: Serve, auth: str) -> None:
    server = serve(proxy_authentication=False)
    lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw", auth=auth, **PROXIED)
    ear = Ear(fred)
    fred.wait_online()
    assert ear.of("in", LCP) == []
    assert len(ear.of("out", CHAP if auth == "chap" else PAP)) == 1
    assert server.backend.asked[0].credentials.response != b"" or auth == "pap"


@pytest.mark.statement(50, 51)
@pytest.mark.parametrize("auth", ["pap", "chap"])
@pytest.mark.shows("set proxy_lcp")
def test_without_proxy_lcp_the_link_is_negotiated_and_the_login_done_anew(serve: Serve, auth: str) -> None:
    server = serve(proxy_lcp=False)
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw", auth=auth, **PROXIED)
    ear = Ear(fred)
    fred.wait_online()
    assert ear.of("in", LCP, CONF_REQ)
    assert len(ear.of("out", CHAP if auth == "chap" else PAP)) == 1


@pytest.mark.statement(51)
@pytest.mark.parametrize(
    "changes",
    [
        {"last_sent_lcp_confreq": None},
        {"last_received_lcp_confreq": None},
        {"last_sent_lcp_confreq": bytes.fromhex("0304 c023")},  # PAP, which is not allowed here
        {"last_sent_lcp_confreq": bytes.fromhex("0506 12345678")},  # no authentication at all
        {"last_received_lcp_confreq": bytes.fromhex("1104 05dc 0506 12345678")},  # multilink
        {"last_received_lcp_confreq": bytes.fromhex("0504")},  # malformed
    ],
)
def test_what_the_lac_negotiated_is_done_again_if_it_is_not_what_we_want(
    serve: Serve, changes: dict[str, bytes | None]
) -> None:
    lac = serve(radius_authtypes=("chap",)).lac(defaults=QUICK).connect()
    change_iccn(lac, **changes)
    fred = lac.call("fred", "pw", auth="chap", **PROXIED)
    ear = Ear(fred)
    fred.wait_online()
    assert ear.of("in", LCP, CONF_REQ)
    assert len(ear.of("in", CHAP, 1)) == 1


@pytest.mark.statement(51, 98)
def test_a_proxied_subscriber_that_begins_again_is_asked_by_us(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw", auth="chap", **PROXIED).wait_online()
    ear = Ear(fred)
    fred.restart()
    fred.wait(lambda: len(server.backend.asked) == 2 and fred.online, what="online again")
    assert len(ear.of("in", CHAP, 1)) == 1


@pytest.mark.statement(48, 94)
def test_the_mru_of_the_proxied_link_is_kept_to(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw", auth="pap", mru=700, **PROXIED).wait_online()
    assert server.events("session_up")[0]["mru"] == 700
    assert fred.phase is Phase.ONLINE


@pytest.mark.statement(93)
def test_an_echo_on_a_proxied_link_carries_the_magic_number_the_lac_gave_in_our_name(
    server: InProcess, lac: Lac
) -> None:
    fred = lac.call("fred", "pw", auth="pap", **PROXIED).wait_online()
    ear = Ear(fred)
    say(fred, "ff03 c021 0901 0008 00000000")
    fred.wait(lambda: fred.echo_replies, what="Echo-Reply")
    assert ear.of("in", LCP, 10)[0][4:8] == fred.peer_magic
