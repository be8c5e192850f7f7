"""The link of a subscriber through the whole server: LCP and its renegotiation (RFC 1661)."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from tests.lab import traffic
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Why
from tests.lab.pppclient import CHAP, CONF_ACK, IPCP, LCP, Phase
from tests.server.clocks import Clock
from tests.server.conftest import QUICK, Serve
from tests.server.subscribers import Ear, refused, say

PROTO_REJ = 8


@pytest.mark.statement(90)
def test_a_terminate_request_is_acknowledged_and_the_call_ends(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    ear = Ear(fred)
    fred.terminate()
    ended = fred.wait_ended()
    assert (ended.why, ended.result) == (Why.CDN, 3)
    assert len(ear.of("in", LCP, 6)) == 1
    server.wait(lambda: server.calm)
    assert server.accounting.of("stop")[0].terminate_cause == 1  # user request


@pytest.mark.statement(90)
def test_a_terminate_request_before_the_login_ends_the_call_too(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw", auth="chap")
    Ear(fred).deaf_to = (CHAP,)
    fred.wait_phase(Phase.AUTHENTICATE)
    fred.terminate()
    assert fred.wait_ended().why is Why.CDN
    assert server.accounting.records == []


@pytest.mark.statement(92)
def test_a_protocol_we_do_not_speak_is_rejected_a_few_times_a_second(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    ear = Ear(fred)
    for _ in range(40):
        say(fred, "ff03 80fd 0101 0004")  # CCP
    fred.send_echo()
    fred.wait(lambda: fred.echo_replies, what="Echo-Reply")
    rejects = ear.of("in", LCP, PROTO_REJ)
    assert 1 <= len(rejects) <= 20
    assert rejects[0][4:] == bytes.fromhex("80fd 0101 0004")
    assert fred.online


@pytest.mark.statement(92)
def test_before_lcp_is_open_an_unknown_protocol_is_silently_discarded(server: InProcess) -> None:
    peer = server.peer().open()
    session_id = peer.call()
    peer.send_frame(session_id, bytes.fromhex("ff03 80fd 0101 0004"))
    peer.send_frame(session_id, bytes.fromhex("ff03 c021 0101 000a 0506 12345678"))
    codes = []
    while CONF_ACK not in codes:
        datagram = peer.hear_raw()
        if not datagram[0] & 0x80:
            codes.append(datagram[10])
    assert PROTO_REJ not in codes


@pytest.mark.statement(92)
def test_a_rejected_ipcp_ends_the_session_there_is_no_other_network(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    say(fred, "ff03 c021 0801 000a 8021 0101 0004")
    assert fred.wait_ended().result == 3


@pytest.mark.statement(92)
def test_a_rejected_protocol_that_we_never_spoke_changes_nothing(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    say(fred, "ff03 c021 0801 000a 80fd 0101 0004")
    fred.send_echo()
    fred.wait(lambda: fred.echo_replies, what="Echo-Reply")
    assert fred.online


@pytest.mark.statement(93)
def test_an_echo_is_answered_with_our_magic_number(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    ear = Ear(fred)
    fred.send_echo()
    fred.wait(lambda: fred.echo_replies, what="Echo-Reply")
    (reply,) = ear.of("in", LCP, 10)
    assert reply[4:8] == fred.peer_magic != bytes(4)


@pytest.mark.statement(93)
def test_our_own_echo_coming_back_is_a_loop_and_ends_the_session(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    say(fred, "ff03 c021 0901 0008", fred.peer_magic.hex())
    assert fred.wait_ended().result == 2
    assert server.events("session_down")[0]["cause"] == "looped"


@pytest.mark.statement(94)
def test_no_packet_above_the_clients_mru_is_sent_to_it(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw", mru=600).wait_online()
    server.plane.deliver(traffic.udp(IPv4Address("198.51.100.2"), fred.address, 9, 9, bytes(1000)))
    fred.wait(lambda: fred.in_packets == 2, what="fragments")
    assert max(map(len, fred.received)) <= 600
    say(fred, "ff03 80fd 0101 05dc", "00" * 1496)
    ear = Ear(fred)
    fred.wait(lambda: ear.of("in", LCP, PROTO_REJ), what="Protocol-Reject")
    assert len(ear.of("in", LCP, PROTO_REJ)[0]) <= 600


@pytest.mark.statement(94)
def test_a_packet_of_1500_octets_is_taken_whatever_was_negotiated(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    fred.send_ip(traffic.udp(fred.address, IPv4Address("198.51.100.2"), 9, 9, bytes(1500 - 28)))
    server.wait(lambda: [len(packet) for packet in server.plane.delivered] == [1500])


@pytest.mark.statement(97)
def test_frames_are_taken_with_and_without_their_address_and_with_one_octet_of_protocol(
    server: InProcess, lac: Lac
) -> None:
    fred = lac.call("fred", "pw").wait_online()
    ear = Ear(fred)
    packet = traffic.udp(fred.address, IPv4Address("198.51.100.2"), 9, 9, b"x").hex()
    for head in ("ff03 0021", "0021", "ff03 21", "21"):
        say(fred, head, packet)
    server.wait(lambda: len(server.plane.delivered) == 4)
    for head in ("ff03 c021", "c021"):
        say(fred, head, "0901 0008 00000000")
    fred.wait(lambda: fred.echo_replies == 2, what="Echo-Replies")
    assert len(ear.of("in", LCP, 10)) == 2


@pytest.mark.statement(98)
def test_a_configure_request_starts_everything_over_and_the_address_is_the_same(server: InProcess, lac: Lac) -> None:
    fred, mary = (lac.call(name, "pw").wait_online() for name in ("fred", "mary"))
    address = fred.address
    fred.restart()
    server.wait(lambda: len(server.accounting.of("stop")) == 1)
    fred.wait(lambda: fred.online, what="online again")
    assert fred.address == address != mary.address
    server.wait(lambda: len(server.accounting.of("start")) == 3)
    assert len(server.backend.asked) == 3  # authenticated anew
    first, _, again = server.accounting.of("start")
    assert first.acct_session_id != again.acct_session_id
    fred.send_udp("198.51.100.2", 9, b"x")
    server.wait(lambda: server.plane.delivered)
    assert server.counters.sessions_replaced == 0


@pytest.mark.statement(98)
def test_between_the_configure_request_and_the_new_login_nothing_passes(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw", auth="chap").wait_online()
    old = fred.address
    Ear(fred).deaf_to = (CHAP,)
    fred.restart()
    fred.wait_phase(Phase.AUTHENTICATE)
    say(fred, "ff03 0021", traffic.udp(old, IPv4Address("198.51.100.2"), 9, 9, b"x").hex())
    server.wait(lambda: server.counters.drop_not_online == 1)
    assert server.plane.delivered == []
    assert server.plane.busy["routes"] == []
    fred.on_frame = None
    fred.wait(lambda: fred.online, what="online again")


@pytest.mark.statement(98)
def test_who_logs_in_under_another_name_after_that_is_another_user(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    fred.user = b"mary"
    fred.restart()
    fred.wait(lambda: len(server.registry.by_user) == 1 and "mary" in server.registry.by_user and fred.online)
    assert [usage.user for usage in server.accounting.of("start")] == [b"fred", b"mary"]


@pytest.mark.statement(98)
def test_who_fails_to_log_in_again_is_gone(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw").wait_online()
    fred.password = b"forgotten"
    fred.restart()
    assert fred.wait_ended().result == 3
    server.wait(lambda: server.calm)


@pytest.mark.statement(95)
@pytest.mark.parametrize("choice", ["pap", "chap"])
@pytest.mark.shows("set radius_authtypes")
def test_a_client_may_choose_among_the_protocols_that_we_offer(server: InProcess, lac: Lac, choice: str) -> None:
    lac.call("fred", "pw", auth=choice).wait_online()
    assert server.events("session_up")[0]["auth"] == choice


@pytest.mark.statement(95)
def test_a_client_that_will_not_authenticate_is_refused(server: InProcess, lac: Lac) -> None:
    assert refused(lac.call("fred", "pw", auth="none")) == (3, 0)


@pytest.mark.statement(95)
@pytest.mark.shows("set radius_authtypes")
def test_a_protocol_that_we_do_not_offer_is_not_agreed_on(serve: Serve) -> None:
    server = serve(radius_authtypes=("pap",), ppp_restart_time=0.1, ppp_max_configure=2)
    assert refused(server.lac(defaults=QUICK).connect().call("fred", "pw", auth="chap"))[0] in (2, 3)
    assert server.backend.asked == []


def test_a_client_that_says_nothing_at_all_is_given_up(serve: Serve) -> None:
    server = serve(ppp_restart_time=0.05, ppp_max_configure=3)
    peer = server.peer().open()
    peer.call()
    server.wait(lambda: server.calm)
    assert server.events("session_down")[0]["cause"] == "lcp_silent"


@pytest.mark.shows("set login_timeout")
def test_who_is_not_online_in_time_is_given_up(clock: Clock, serve: Serve) -> None:
    server = serve(login_timeout=0.2)
    lac = server.lac(defaults=QUICK).connect()
    slow, lost = lac.call("fred", "pw", auth="chap"), lac.call("mary", "pw")
    Ear(slow).deaf_to = (CHAP,)
    Ear(lost).deaf_to = (IPCP,)
    slow.wait_phase(Phase.AUTHENTICATE)
    lost.wait_phase(Phase.NETWORK)
    clock.now += 1
    assert (slow.wait_ended().result, lost.wait_ended().result) == (3, 3)
    causes = {down["user"]: down["cause"] for down in server.events("session_down")}
    assert causes == {"": "auth_timeout", "mary": "login_timeout"}
