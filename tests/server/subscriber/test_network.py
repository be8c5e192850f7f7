"""A subscriber's address through the whole server: IPCP, name servers, routes (RFC 1332, RFC 1877)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from l2tpns.config.lac_profile import LacProfile
from l2tpns.radius.types import Assign, AuthReply, FramedRoute
from l2tpns.subscriber.pool import parse_layout
from tests.lab import traffic
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Subscriber, Why
from tests.lab.pppclient import CONF_ACK, CONF_NAK, CONF_REJ, CONF_REQ, IPCP, LCP, Phase
from tests.server.conftest import QUICK, Serve
from tests.server.subscribers import Ear, refused, say

DNS = (IPv4Address("192.0.2.53"), IPv4Address("192.0.2.54"))


def ask(subscriber: Subscriber, ear: Ear, *options: str) -> tuple[int, bytes]:
    """Return code and options of the reply to an IPCP Configure-Request with these options."""
    before = len(ear.of("in", IPCP, CONF_ACK, CONF_NAK, CONF_REJ))
    data = bytes.fromhex("".join(options))
    say(subscriber, f"ff03 8021 0142 {4 + len(data):04x}", data.hex())
    subscriber.wait(lambda: len(ear.of("in", IPCP, CONF_ACK, CONF_NAK, CONF_REJ)) > before, what="an answer")
    answer = ear.of("in", IPCP, CONF_ACK, CONF_NAK, CONF_REJ)[-1]
    return answer[0], answer[4:]


def networking(server: InProcess) -> tuple[Subscriber, Ear]:
    """A subscriber in the network phase that sends no IPCP packets by itself."""
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw")
    ear = Ear(fred)
    ear.deaf_to = (IPCP,)
    fred.wait_phase(Phase.NETWORK)
    fred.wait(lambda: ear.of("in", IPCP, CONF_REQ), what="Configure-Request")
    return fred, ear


@pytest.mark.statement(112)
def test_a_client_learns_its_address_by_nak_and_gets_no_other(server: InProcess) -> None:
    fred, ear = networking(server)
    assert ear.of("in", IPCP, CONF_REQ)[0][4:] == bytes.fromhex("0306 0aff0001")  # ours
    right = bytes.fromhex("0306 0a050001")
    assert ask(fred, ear, "0306 00000000") == (CONF_NAK, right)
    assert ask(fred, ear, "0306 c0000201") == (CONF_NAK, right)
    assert ask(fred, ear, "0306 0a050001") == (CONF_ACK, right)


@pytest.mark.statement(113)
@pytest.mark.parametrize("option", ["010a 00000000 00000000", "0206 002d 0f01"], ids=["IP-Addresses", "VJ"])
def test_deprecated_options_are_rejected(server: InProcess, option: str) -> None:
    fred, ear = networking(server)
    assert ask(fred, ear, option, "0306 00000000") == (CONF_REJ, bytes.fromhex(option))


@pytest.mark.statement(114)
def test_ipcp_before_the_network_phase_is_discarded(server: InProcess, lac: Lac) -> None:
    server.backend.answering.clear()
    fred = lac.call("fred", "pw", auth="pap")
    ear = Ear(fred)
    fred.wait_phase(Phase.AUTHENTICATE)
    for _ in range(3):
        say(fred, "ff03 8021 0142 000a 0306 00000000")
    fred.send_echo()
    fred.wait(lambda: fred.echo_replies, what="Echo-Reply")
    assert ear.of("in", IPCP) == []
    server.backend.answering.set()
    fred.wait_online()


@pytest.mark.statement(115)
@pytest.mark.parametrize(
    "settings, option, answer",
    [
        (DNS, "8106 00000000", (CONF_NAK, "8106 c0000235")),
        (DNS, "8306 00000000", (CONF_NAK, "8306 c0000236")),
        (DNS, "8206 00000000", (CONF_REJ, "8206 00000000")),
        (DNS, "8406 00000000", (CONF_REJ, "8406 00000000")),
        ((None, None), "8106 00000000", (CONF_REJ, "8106 00000000")),
        ((None, None), "8306 00000000", (CONF_REJ, "8306 00000000")),
    ],
)
@pytest.mark.shows("set primary_dns", "set secondary_dns")
def test_name_servers_are_told_where_there_are_any(
    serve: Serve, settings: tuple[IPv4Address | None, ...], option: str, answer: tuple[int, str]
) -> None:
    fred, ear = networking(serve(primary_dns=settings[0], secondary_dns=settings[1]))
    assert ask(fred, ear, option) in [
        (answer[0], bytes.fromhex(answer[1])),
        (answer[0], bytes.fromhex(answer[1] + "0306 0a050001")),  # with the address that it did not ask for
    ]


def test_radius_names_other_name_servers(serve: Serve) -> None:
    server = serve(primary_dns=DNS[0])
    server.backend.replies["fred"] = AuthReply(accepted=True, dns=(DNS[1],))
    lac = server.lac(defaults=QUICK).connect()
    assert lac.call("fred", "pw").wait_online().dns == (DNS[1],)
    assert lac.call("mary", "pw").wait_online().dns == (DNS[0],)


def test_framed_routes_come_and_go_with_the_session(server: InProcess, lac: Lac) -> None:
    network = IPv4Network("192.0.2.0/28")
    server.backend.replies["fred"] = AuthReply(accepted=True, routes=(FramedRoute(network),))
    fred = lac.call("fred", "pw").wait_online()
    server.wait(lambda: server.accounting.of("start"))
    assert server.plane.busy["routes"] == [f"{fred.address}/32", "192.0.2.0/28"]
    server.plane.deliver(traffic.udp(IPv4Address("198.51.100.2"), IPv4Address("192.0.2.3"), 9, 9, b"x"))
    fred.receive_ip()
    fred.hangup()
    server.wait(lambda: not server.plane.busy["routes"])


def test_a_client_may_renegotiate_ipcp_and_stays_who_it_is(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    ear, address = Ear(fred), fred.address
    assert ask(fred, ear, "0306 0a050001")[0] == CONF_ACK
    (path,) = server.plane.lacs.paths.values()
    assert not path.online  # no traffic while it is not agreed what for
    server.wait(lambda: path.online)
    fred.send_udp("198.51.100.2", 9, b"x")
    server.wait(lambda: server.plane.delivered)
    assert fred.address == address
    assert len(server.accounting.records) == len(server.backend.asked) == 1


def test_a_client_that_closes_ipcp_is_disconnected(serve: Serve) -> None:
    server = serve(ppp_restart_time=0.1)
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online()
    ear = Ear(fred)
    ear.deaf_to = (IPCP,)
    say(fred, "ff03 8021 0501 0004")
    fred.wait(lambda: ear.of("in", IPCP, 6), what="Terminate-Ack")
    assert server.plane.busy["routes"] == []
    assert fred.wait_ended().result == 3
    server.wait(lambda: server.calm)


def test_a_client_that_ignores_ipcp_is_disconnected(serve: Serve) -> None:
    server = serve(ppp_restart_time=0.05, ppp_max_configure=3)
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw")
    ear = Ear(fred)
    ear.deaf_to = (IPCP,)
    assert refused(fred)[0] == 2
    assert len(ear.of("in", IPCP, CONF_REQ)) == 3
    server.wait(lambda: server.calm)


def test_a_client_may_choose_its_address_where_radius_says_so(server: InProcess, lac: Lac) -> None:
    for user in ("fred", "mary"):
        server.backend.replies[user] = AuthReply(accepted=True, assign=Assign.PEER)
    wanted = IPv4Address("192.0.2.77")
    assert lac.call("fred", "pw", address=wanted).wait_online().address == wanted
    assert refused_later(lac.call("mary", "pw", address=wanted)) == 4
    assert refused_later(lac.call("mary", "pw", address=IPv4Address("10.255.0.1"))) == 4  # ours


def refused_later(subscriber: Subscriber) -> int:
    """The client thinks that it is online already: it has acknowledged and been acknowledged."""
    return subscriber.wait_ended().result


def test_everything_of_a_link_is_over_when_the_server_ends_it(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    ear = Ear(fred)
    server.lns.shutdown(1.0)
    assert fred.wait_ended().why is Why.CDN
    assert len(ear.of("in", LCP, 5)) == 1  # Terminate-Request, for clients behind LACs that say nothing


# Another pool while subscribers are online


def take_pool(server: InProcess, text: str) -> None:
    """Change the pool as a reload does."""
    server.registry.change_pool(parse_layout(text))
    server.plane.serve(server.pool.prefixes())


def test_an_address_that_radius_had_named_is_not_given_twice_when_the_pool_comes_to_have_it(
    server: InProcess, lac: Lac
) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, address=IPv4Address("10.6.0.1"))
    fred = lac.call("fred", "pw").wait_online()
    take_pool(server, "10.6.0.1\n10.6.0.2\n")
    assert server.pool.free == 1
    assert lac.call("mary", "pw").wait_online().address == IPv4Address("10.6.0.2")
    fred.terminate()
    fred.wait_ended()
    server.wait(lambda: server.pool.free == 1)
    assert lac.call("guest", "pw").wait_online().address == IPv4Address("10.6.0.1")
    take_pool(server, "")


def test_who_has_an_address_that_the_pool_loses_keeps_it_and_its_way_until_it_leaves(
    server: InProcess, lac: Lac
) -> None:
    routes = server.plane.kernel.routes
    take_pool(server, "10.5.0.0/24\n")
    fred = lac.call("fred", "pw").wait_online()
    assert routes == [IPv4Network("10.5.0.0/24")]
    take_pool(server, "10.6.0.0/24\n10.5.0.128/25\n")
    assert fred.address == IPv4Address("10.5.0.1") and fred.online
    assert sorted(routes) == [
        IPv4Network("10.5.0.1/32"),
        IPv4Network("10.5.0.128/25"),
        IPv4Network("10.6.0.0/24"),
    ]
    mary = lac.call("mary", "pw").wait_online()
    assert mary.address == IPv4Address("10.6.0.1")
    take_pool(server, "10.5.0.0/24\n")  # as it was; now mary's is the odd one out
    assert lac.call("guest", "pw").wait_online().address == IPv4Address("10.5.0.2")
    fred.terminate()
    fred.wait_ended()
    server.wait(lambda: sorted(routes) == [IPv4Network("10.5.0.0/24"), IPv4Network("10.6.0.1/32")])
    take_pool(server, "")
    assert mary.online


@pytest.mark.statement(112)
@pytest.mark.parametrize(
    "requests, words",
    [
        (["0306 0a010101"], "insists on IP-Address 10.1.1.1 and was offered IP-Address 10.5.0.1"),
        (["0306 0a010101"] * 5 + [""], "insists on IP-Address 10.1.1.1 and was offered IP-Address 10.5.0.1"),
        ([""], "asks for no IP-Address and was offered IP-Address 10.5.0.1"),
        (["0306 0a050001 0206 002d0f01"], "insists on IP-Compression-Protocol Van Jacobson"),
    ],
)
def test_a_subscriber_that_takes_no_address_of_ours_is_not_online_and_the_end_names_what_it_wants(
    server: InProcess, requests: list[str], words: str
) -> None:
    fred, ear = networking(server)
    (request,) = ear.of("in", IPCP, CONF_REQ)
    say(fred, "ff03 8021 02", request[1:].hex())  # what the server asks for itself is agreed on
    for number in range(40):
        data = bytes.fromhex(requests[number % len(requests)])
        say(fred, f"ff03 8021 01{number:02x} {4 + len(data):04x}", data.hex())
    end = fred.wait_ended()
    assert (end.why, end.result, end.text) == (Why.CDN, 2, f"the subscriber {words}")
    assert server.events("session_up") == []
    down = server.events("session_down")[0]
    disputed = "no_common_address" if "offered" in words else "ncp_failed"
    assert (down["cause"], down["phase"], down["why"]) == (disputed, "network", f"the subscriber {words}")
    assert ear.of("in", IPCP, CONF_ACK) == []
    assert server.accounting.records == []


@pytest.mark.statement(112)
def test_a_subscriber_that_may_choose_and_names_no_address_is_asked_for_one_and_not_online(server: InProcess) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, assign=Assign.PEER)
    fred, ear = networking(server)
    assert ask(fred, ear, "") == (CONF_NAK, bytes.fromhex("0306 00000000"))
    for number in range(6):
        say(fred, f"ff03 8021 01{number:02x} 0004")
    assert fred.wait_ended().text == "the subscriber asks for no IP-Address"
    assert server.events("session_down")[0]["cause"] == "no_common_address"


@pytest.mark.parametrize("objection", ["03", "04"], ids=["nak", "reject"])
def test_a_subscriber_that_does_not_like_our_own_address_comes_online_without_being_told_it(
    server: InProcess, objection: str
) -> None:
    fred, ear = networking(server)
    for heard in range(10):
        fred.wait(lambda heard=heard: len(ear.of("in", IPCP, CONF_REQ)) > heard, what="Configure-Request")
        request = ear.of("in", IPCP, CONF_REQ)[heard]
        if not request[4:]:
            break
        option = request[4:] if objection == "04" else bytes.fromhex("0306 c0a80001")
        say(fred, "ff03 8021", objection, f"{request[1]:02x} 000a", option.hex())
    assert request[4:] == b""
    say(fred, "ff03 8021 02", request[1:].hex())
    assert ask(fred, ear, "0306 0a050001")[0] == CONF_ACK
    server.wait(lambda: server.events("session_up"))
    wanted = [line["wanted"] for line in server.events("ppp_refused") if line["layer"] == "IPCP"]
    assert wanted == ([["IP-Address 192.168.0.1 (of this side)"]] if objection == "03" else [])


def test_a_subscriber_that_renegotiates_and_insists_on_another_address_is_ended_with_both_named(
    server: InProcess, lac: Lac
) -> None:
    fred = lac.call("fred", "pw").wait_online()
    ear = Ear(fred)
    ear.deaf_to = (IPCP,)
    for number in range(0x50, 0x58):
        say(fred, f"ff03 8021 01{number:02x} 000a 0306 0a010101")
    assert fred.wait_ended().text == "the subscriber insists on IP-Address 10.1.1.1 and was offered IP-Address 10.5.0.1"
    assert server.events("session_down")[0]["cause"] == "no_common_address"
    server.wait(lambda: server.accounting.of("stop"))


# What a subscriber wanted


def test_what_a_subscriber_that_comes_online_did_not_get_is_told_among_the_calls(server: InProcess) -> None:
    fred, ear = networking(server)
    ask(fred, ear, "0306 0a050001 0206 002d0f01 8206 00000000 8406 0a000001")
    assert ask(fred, ear, "0306 0a050001")[0] == CONF_ACK
    (request,) = ear.of("in", IPCP, CONF_REQ)
    say(fred, "ff03 8021 02", request[1:].hex())
    server.wait(lambda: server.events("session_up"))
    say(fred, "ff03 80fd 0101 0004")
    say(fred, "ff03 8057 0101 0004")
    say(fred, "ff03 80fd 0102 0004")
    fred.wait(lambda: len(ear.of("in", LCP, 8)) == 3, what="Protocol-Rejects")
    told = [(line["layer"], line["wanted"]) for line in server.events("ppp_refused")]
    assert told == [
        ("IPCP", ["IP-Compression-Protocol Van Jacobson", "Secondary-NBNS 10.0.0.1"]),
        ("LCP", ["CCP"]),
        ("LCP", ["IPv6CP"]),
    ]
    assert {line["level"] for line in server.events("ppp_refused")} == {"call"}


# Several pools

POOLS = "10.5.0.0/24\npool gold\n10.6.0.0/24\npool lac\n10.7.0.0/24\n"


@pytest.mark.parametrize(
    "reply, network",
    [
        ({}, "10.5."),
        ({"framed_pool": "gold"}, "10.6."),
        ({"avpairs": (("ip:addr-pool", "gold"),)}, "10.6."),
        ({"framed_pool": "lac", "avpairs": (("ip:addr-pool", "gold"),)}, "10.7."),
        ({"framed_pool": "unknown"}, "10.5."),
    ],
)
def test_radius_names_the_pool(serve: Serve, reply: dict[str, Any], network: str) -> None:
    server = serve(pool=POOLS)
    server.backend.replies["fred"] = AuthReply(accepted=True, **reply)
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online()
    assert str(fred.address).startswith(network)
    assert len(server.events("framed_pool_unknown")) == (reply.get("framed_pool") == "unknown")
    assert server.events("avpair_ignored") == []


def test_the_profile_of_a_lac_names_the_pool_unless_radius_does(serve: Serve) -> None:
    lacs = {"a": LacProfile("a", host_names=("lac-a",), values={"ip_pool": "lac"})}
    server = serve(pool=POOLS, lacs=lacs, ip_pool="gold")
    lac, other = server.lac("lac-a", defaults=QUICK).connect(), server.lac("lac-b", defaults=QUICK).connect()
    assert str(lac.call("fred", "pw").wait_online().address).startswith("10.7.")
    assert str(other.call("mary", "pw").wait_online().address).startswith("10.6.")
    server.backend.replies["guest"] = AuthReply(accepted=True, framed_pool="gold")
    assert str(lac.call("guest", "pw").wait_online().address).startswith("10.6.")


def test_an_exhausted_pool_says_its_name(serve: Serve) -> None:
    server = serve(pool="10.5.0.0/24\npool gold\n10.6.0.1\n")
    for user in ("fred", "mary"):
        server.backend.replies[user] = AuthReply(accepted=True, framed_pool="gold")
    lac = server.lac(defaults=QUICK).connect()
    lac.call("fred", "pw").wait_online()
    assert lac.call("mary", "pw").wait_ended().text == "the address pool is exhausted"
    (empty,) = server.events("pool_empty")
    assert (empty["user"], empty["pool"]) == ("mary", "gold")
