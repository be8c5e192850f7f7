"""A subscriber's address through the whole server: IPCP, name servers, routes (RFC 1332, RFC 1877)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from l2tpns.pool import parse_layout
from l2tpns.radius.types import Assign, AuthReply, FramedRoute
from tests.daemon.conftest import QUICK, Serve
from tests.daemon.subscribers import Ear, refused, say
from tests.lab import traffic
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Subscriber, Why
from tests.lab.pppclient import CONF_ACK, CONF_NAK, CONF_REJ, CONF_REQ, IPCP, LCP, Phase

DNS = (IPv4Address("192.0.2.53"), IPv4Address("192.0.2.54"))


def ask(subscriber: Subscriber, ear: Ear, *options: str) -> tuple[int, bytes]:
    """The answer's code and options to an IPCP Configure-Request with these."""
    before = len(ear.of("in", IPCP, CONF_ACK, CONF_NAK, CONF_REJ))
    data = bytes.fromhex("".join(options))
    say(subscriber, f"ff03 8021 0142 {4 + len(data):04x}", data.hex())
    subscriber.wait(lambda: len(ear.of("in", IPCP, CONF_ACK, CONF_NAK, CONF_REJ)) > before, what="an answer")
    answer = ear.of("in", IPCP, CONF_ACK, CONF_NAK, CONF_REJ)[-1]
    return answer[0], answer[4:]


def networking(server: InProcess) -> tuple[Subscriber, Ear]:
    """A subscriber in the network phase that says nothing by itself of IPCP."""
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
    """As a reload does."""
    server.lns.change_pool(parse_layout(text))
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
