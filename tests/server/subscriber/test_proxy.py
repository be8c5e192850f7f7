"""Proxy LCP and proxy authentication: the LAC has negotiated on behalf of the LNS (RFC 2661 4.4.5)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from l2tpns.config.settings import Config
from l2tpns.proto.l2tp.messages import ICCN, ProxyAuthenType
from l2tpns.proto.ppp.automaton import Timers
from l2tpns.proto.ppp.lcp import AuthChoice, Lcp, LcpWishes
from l2tpns.subscriber import proxy
from tests.lab.inprocess import InProcess
from tests.lab.lac import Dial, Lac, Subscriber
from tests.lab.pppclient import CHAP, CONF_REQ, LCP, PAP, Phase
from tests.server.conftest import QUICK, Serve
from tests.server.subscribers import Ear, refused, say

PROXIED = {"proxy_lcp": True, "proxy_auth": True}


def change_iccn(lac: Lac, **changes: object) -> None:
    """Make the LAC send these fields in its next ICCNs."""
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
    # A Challenge of ours may come at any time; for a PAP request of its own the subscriber has to begin again.
    assert bool(ear.of("in", LCP, CONF_REQ)) == (auth == "pap")
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


# Which logins can go on from where the LAC left them

NOT_AGAIN = 1000.0  # a restart timer of the client's that never runs out: what needs a timeout does not come online
SPENT: dict[str, object] = {"restart": NOT_AGAIN, "proxy_lcp": True, "proxy_auth": True}


class Spent(Ear):
    """On the line of a client that has sent its PAP request to the LAC, and waits for the answer."""

    def __init__(self, subscriber: Subscriber) -> None:
        super().__init__(subscriber)
        self.spent = False

    def __call__(self, way: str, protocol: int, packet: bytes) -> bytes | None:
        if (way, protocol) == ("in", LCP) and packet[0] == CONF_REQ:
            self.spent = True  # it begins again
        if (way, protocol) == ("out", PAP) and not self.spent:
            return None
        return super().__call__(way, protocol, packet)


IMPAIRED: dict[str, dict[str, object]] = {
    "nothing of a login": dict.fromkeys(
        [f"proxy_authen_{part}" for part in ("type", "name", "challenge", "id", "response")]
    ),
    "no type": {"proxy_authen_type": None},
    "type 1, text": {"proxy_authen_type": ProxyAuthenType.TEXTUAL},
    "type 4, none": {"proxy_authen_type": ProxyAuthenType.NONE},
    "type 5, MS-CHAP": {"proxy_authen_type": ProxyAuthenType.MSCHAPV1},
    "a type unknown": {"proxy_authen_type": 77},
    "no name": {"proxy_authen_name": None},
    "an empty name": {"proxy_authen_name": b""},
    "no id": {"proxy_authen_id": None},
    "no response": {"proxy_authen_response": None},
    "an empty response": {"proxy_authen_response": b""},
    "no LCP": {
        "initial_received_lcp_confreq": None,
        "last_sent_lcp_confreq": None,
        "last_received_lcp_confreq": None,
    },
    "half of LCP": {"last_received_lcp_confreq": None},
    "LCP of damaged options": {"last_received_lcp_confreq": b"\x05"},
}


@pytest.mark.statement(48, 51)
@pytest.mark.parametrize("auth", ["pap", "chap"])
@pytest.mark.parametrize("impairment", IMPAIRED)
def test_a_login_that_the_lac_has_not_passed_on_needs_no_timeout_to_go_on(
    serve: Serve, auth: str, impairment: str
) -> None:
    server = serve(ppp_restart_time=60)
    lac = server.lac().connect()
    change_iccn(lac, **IMPAIRED[impairment])
    fred = lac.call("fred", "pw", Dial(auth=auth, **SPENT))
    ear = Spent(fred)
    fred.wait_online()
    assert len(server.backend.asked) == 1
    if auth == "chap" and "LCP" not in impairment:
        assert ear.of("in", LCP) == []  # a Challenge is enough
    else:
        assert ear.of("in", LCP, CONF_REQ)


@pytest.mark.parametrize("auth", ["pap", "chap"])
@pytest.mark.parametrize("settings", [{"proxy_authentication": False}, {"proxy_lcp": False}], ids=str)
def test_a_login_that_is_not_taken_over_by_our_own_choice_needs_no_timeout_either(
    serve: Serve, auth: str, settings: dict[str, bool]
) -> None:
    server = serve(ppp_restart_time=60, **settings)
    fred = server.lac().connect().call("fred", "pw", Dial(auth=auth, **SPENT))
    Spent(fred)
    fred.wait_online()
    assert len(server.backend.asked) == 1


def test_the_log_says_why_a_lacs_lcp_is_not_adopted(serve: Serve) -> None:
    server = serve(proxy_authentication=False)
    server.lac(defaults=QUICK).connect().call("fred", "pw", auth="pap", **PROXIED).wait_online()
    (told,) = server.events("proxy_lcp_not_adopted")
    assert told["why"] == "the LAC used PAP, but its PAP request cannot be used here"


# The decision, over everything that an ICCN may hold

MAGIC = bytes.fromhex("0506 11111111")
LCP_SENT = {
    "absent": None,
    "pap": bytes.fromhex("0304 c023") + MAGIC,
    "chap": bytes.fromhex("0305 c22305") + MAGIC,
    "none": MAGIC,
    "both": bytes.fromhex("0304 c023 0305 c22305"),
    "mschap": bytes.fromhex("0305 c22381"),
    "damaged": bytes.fromhex("0304 c0"),
}
RECEIVED = {"absent": None, "good": bytes.fromhex("0104 0578"), "bad": bytes.fromhex("0104 0010"), "damaged": b"\x01"}
RESPONSES = {"absent": None, "empty": b"", "16 octets": bytes(16), "17 octets": bytes(17), "too long": bytes(256)}
CHALLENGES = {"absent": None, "empty": b"", "good": bytes(16), "too long": bytes(254)}
NAMES = {"absent": None, "empty": b"", "good": b"fred", "too long": bytes(256)}


def adopt_proxy(settings: dict[str, bool], **fields: object) -> tuple[Lcp, proxy.ProxyResult]:
    wishes = LcpWishes(auth=(AuthChoice.CHAP_MD5, AuthChoice.PAP))
    lcp = Lcp(lambda packet: None, lambda notice: None, bytes, Timers(), wishes)
    iccn = replace(ICCN(tx_connect_speed=1, framing_type=1), **fields)
    return lcp, proxy.adopt_proxy(lcp, iccn, Config(**settings), 0.0)


@pytest.mark.statement(48, 50, 51)
@pytest.mark.parametrize("kind", [None, *ProxyAuthenType, 9])
@pytest.mark.parametrize("sent", LCP_SENT)
def test_lcp_is_adopted_where_the_login_can_go_on_and_credentials_where_they_fit(sent: str, kind: int | None) -> None:
    combinations = 0
    for received, name, challenge, identifier, response, by_proxy in product(
        RECEIVED, NAMES, CHALLENGES, (None, 1), RESPONSES, (False, True)
    ):
        lcp, taken = adopt_proxy(
            {"proxy_authentication": by_proxy},
            last_sent_lcp_confreq=LCP_SENT[sent],
            last_received_lcp_confreq=RECEIVED[received],
            proxy_authen_type=kind,
            proxy_authen_name=NAMES[name],
            proxy_authen_challenge=CHALLENGES[challenge],
            proxy_authen_id=identifier,
            proxy_authen_response=RESPONSES[response],
        )
        complete = by_proxy and name == "good" and identifier is not None
        pap = complete and kind == ProxyAuthenType.PAP and response in ("16 octets", "17 octets")
        chap = complete and kind == ProxyAuthenType.CHAP and (challenge, response) == ("good", "16 octets")
        adopted = received == "good" and ((sent == "pap" and pap) or sent == "chap")
        assert (lcp.opened, not taken.why_not) == (adopted, adopted), (received, name, challenge, identifier, response)
        found = taken.credentials.protocol if taken.credentials is not None else None
        assert found == (PAP if adopted and sent == "pap" else CHAP if adopted and chap else None)
        combinations += 1
    assert combinations == 4 * 4 * 4 * 2 * 5 * 2


@pytest.mark.parametrize("sent", ["pap", "chap"])
def test_with_proxy_lcp_switched_off_nothing_is_adopted(sent: str) -> None:
    lcp, taken = adopt_proxy(
        {"proxy_lcp": False},
        last_sent_lcp_confreq=LCP_SENT[sent],
        last_received_lcp_confreq=RECEIVED["good"],
        proxy_authen_type=ProxyAuthenType.PAP,
        proxy_authen_name=b"fred",
        proxy_authen_id=1,
        proxy_authen_response=b"pw",
    )
    assert (lcp.opened, taken) == (False, proxy.ProxyResult("proxy_lcp is no"))
