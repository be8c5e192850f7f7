"""The scripted LAC against a tiny LNS on loopback: what other tests rely on when they use it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from l2tpns.proto.l2tp.messages import CDN, HELLO, ICCN, SCCCN, ResultCode, StopCCN
from l2tpns.proto.ppp.lcp import AuthChoice
from tests.lab import traffic
from tests.lab.lac import Dial, Endpoint, Impairment, Lac, Refused, Why
from tests.lab.pppwishes import Phase
from tests.lab.storm import Storm
from tests.server.tiny_lns import DNS, OURS, TinyLns

HERE = ("127.0.0.1", 0)
QUICK = Dial(restart=0.3)


@pytest.fixture
def lns() -> Iterator[TinyLns]:
    with TinyLns() as lns:
        yield lns


@pytest.fixture
def lac(lns: TinyLns) -> Iterator[Lac]:
    with Lac(HERE, lns.address, "lac1", defaults=QUICK).connect() as lac:
        yield lac


@pytest.mark.parametrize("auth", ["pap", "chap"])
def test_a_subscriber_comes_online_with_the_address_and_dns_it_was_given(lac: Lac, auth: str) -> None:
    fred = lac.call("fred", "secret", auth=auth).wait_online()
    assert (fred.address, fred.peer_address, fred.dns) == (IPv4Address("10.0.0.1"), OURS, DNS)
    assert fred.complaints == ()
    assert fred.started_at < fred.connected_at < fred.authenticated_at < fred.online_at


def test_a_wrong_password_is_refused_with_what_the_server_said_and_the_cdn(lac: Lac) -> None:
    eve = lac.call("eve", "wrong", auth="pap")
    with pytest.raises(Refused) as refused:
        eve.wait_online()
    assert (eve.auth_refused, eve.auth_message) == (True, b"go away")
    assert (refused.value.ended.why, refused.value.ended.result) == (Why.CDN, 3)


def test_a_client_that_rejects_authentication_does_not_come_online(lac: Lac) -> None:
    with pytest.raises((Refused, TimeoutError)):
        lac.call("fred", "secret", auth="none").wait_online(2.0)


def test_a_ping_is_answered_through_the_call_and_counted(lac: Lac) -> None:
    fred = lac.call("fred", "secret").wait_online()
    assert fred.ping("192.0.2.99", size=1000) is not None
    assert (fred.out_packets, fred.in_packets, fred.in_octets) == (1, 1, 1028)


@pytest.mark.parametrize("options", [{"length_bit": True}, {"sequencing_required": True}, {"compress": True}])
def test_data_messages_are_written_in_every_form_asked_for(lns: TinyLns, lac: Lac, options: dict[str, bool]) -> None:
    fred = lac.call("fred", "secret", **options).wait_online()
    assert fred.ping("192.0.2.99") is not None
    assert lns.iccns[0].sequencing_required == options.get("sequencing_required", False)
    assert fred.misnumbered == 0


def test_an_ip_packet_from_the_lns_waits_in_the_inbox(lns: TinyLns, lac: Lac) -> None:
    fred = lac.call("fred", "secret").wait_online()
    packet = traffic.udp(OURS, fred.address, 53, 7000, b"hello")
    lns.tunnel.lines[1].send_ip(packet)
    assert fred.receive_ip() == packet


def test_terminate_ends_the_link_and_hangup_the_call(lns: TinyLns, lac: Lac) -> None:
    fred, mary = (lac.call(name, "secret").wait_online() for name in ("fred", "mary"))
    fred.terminate()
    assert fred.wait_ended().why is Why.CDN
    mary.hangup(result=1)
    lac.wait_acked()
    assert mary.ended is not None and mary.ended.why is Why.HANGUP
    assert [cdn.result_code.result for cdn in lns.tunnel.hung_up] == [1]
    assert lac.sessions == {}


def test_a_client_that_starts_lcp_over_comes_online_again(lac: Lac) -> None:
    fred = lac.call("fred", "secret").wait_online()
    fred.restart()
    assert fred.phase == Phase.LINK
    assert fred.wait_online().ping("192.0.2.99") is not None


def test_a_subscriber_that_vanishes_answers_nothing(lns: TinyLns, lac: Lac) -> None:
    fred = lac.call("fred", "secret").wait_online()
    strays = lac.endpoint.strays
    fred.vanish()
    lns.tunnel.lines[1].send_ip(b"\x45")
    lac.wait(lambda: lac.endpoint.strays == strays + 1)
    assert fred.ended is not None and fred.ended.why is Why.VANISHED


def test_the_tunnel_secret_is_proved_both_ways() -> None:
    with TinyLns(secret=b"s", challenge=True) as lns:
        with Lac(HERE, lns.address, secret=b"s", challenge=True).connect() as lac:
            lac.wait_acked()
            assert lns.tunnel.up
        with pytest.raises(Refused) as refused:
            Lac(HERE, lns.address, secret=b"other", challenge=True).connect()
        assert refused.value.ended.why is Why.BAD_RESPONSE


def test_an_override_changes_one_message_and_the_refusal_is_reported() -> None:
    with TinyLns(secret=b"s", challenge=True) as lns:
        lac = Lac(HERE, lns.address, secret=b"s")
        lac.override[SCCCN] = lambda message: replace(message, challenge_response=bytes(16))
        lac.connect()
        assert (lac.wait_ended().why, lac.ended and lac.ended.result) == (Why.STOPCCN, 4)
        lac.close()


def test_a_suppressed_iccn_leaves_the_call_waiting(lns: TinyLns, lac: Lac) -> None:
    lac.override[ICCN] = lambda message: None
    fred = lac.call("fred", "secret")
    with pytest.raises(TimeoutError):
        fred.wait_online(0.3)
    assert fred.phase == Phase.DIALLING and lns.iccns == []


def test_close_says_stopccn_and_waits_for_the_acknowledgement(lns: TinyLns) -> None:
    lac = Lac(HERE, lns.address).connect()
    fred = lac.call("fred", "secret").wait_online()
    lac.close()
    assert fred.ended is not None and fred.ended.why is Why.CLOSED
    assert lns.tunnel.stopped is not None and lns.tunnel.stopped.result_code.result == 1
    assert lac.endpoint.closed


def test_a_stopccn_from_the_lns_ends_every_call(lns: TinyLns, lac: Lac) -> None:
    fred = lac.call("fred", "secret").wait_online()
    lns.tunnel.stop(6)
    ended = fred.wait_ended()
    assert (ended.why, ended.result) == (Why.STOPCCN, 6)
    assert lac.expect(StopCCN).result_code.result == 6


def test_a_hello_is_acknowledged_and_seen(lns: TinyLns, lac: Lac) -> None:
    lns.tunnel.send(HELLO())
    lac.expect(HELLO)
    lac.wait(lambda: lns.tunnel.reliable.idle)
    assert lac.hellos == 1


def test_a_silent_lns_is_given_up_after_the_retries() -> None:
    with TinyLns() as lns:
        lac = Lac(HERE, lns.address, retries=0)
        lac.endpoint.impair(control=Impairment(loss=1.0))
        with pytest.raises(Refused) as refused:
            lac.connect()
        assert refused.value.ended.why is Why.SILENCE
        lac.close()


def test_calls_come_up_over_a_wire_that_loses_doubles_and_reorders(lns: TinyLns) -> None:
    bad = Impairment(loss=0.05, duplicate=0.1, reorder=0.1)
    in_order = replace(bad, reorder=0.0)  # PPP expects that of its link (RFC 1661 2): a late request starts LCP over
    patient = replace(QUICK, max_configure=40)  # a busy machine may be away for seconds
    with Lac(HERE, lns.address, defaults=patient, window=8).connect() as lac:
        lac.endpoint.impair(control=bad, data=in_order, seed=7)
        storm = Storm([lac], 40, window=20)
        report = storm.run()
        assert (report.online, report.failed) == (40, {})
        assert all(subscriber.complaints == () for subscriber in storm.subscribers)
        control, data = lac.endpoint.control_out, lac.endpoint.data_in
        assert control is not None and control.lost and control.doubled and control.reordered
        assert data is not None and data.lost and data.doubled


def test_a_storm_over_several_tunnels_of_one_socket_reports_rate_and_latency(lns: TinyLns) -> None:
    endpoint = Endpoint(HERE)
    lacs = []
    for number in range(3):
        lacs.append(Lac(endpoint.local, lns.address, f"lac{number}", endpoint=endpoint).connect())
        lacs[-1].wait_acked()
    report = Storm(lacs, 60, window=16).run()
    assert report.online == 60 and report.rate > 0
    assert 0 < report.percentile(0.5) <= report.percentile(0.99) <= max(report.latencies)
    assert [len(lac.sessions) for lac in lacs] == [20, 20, 20]
    for lac in lacs:
        lac.close()
    endpoint.close()


def test_refused_calls_of_a_storm_are_counted_by_reason(lac: Lac) -> None:
    report = Storm([lac], 5, users=lambda number: (b"eve", b"wrong")).run()
    assert (report.online, sum(report.failed.values())) == (0, 5)


def test_a_storm_ends_when_its_tunnel_does(lns: TinyLns, lac: Lac) -> None:
    lns.tunnel.stop(6)
    report = Storm([lac], 2000, window=4, users=lambda number: (b"eve", b"wrong")).run()
    assert (report.online, sum(report.failed.values())) == (0, 2000)
    assert any(reason.startswith("StopCCN from the LNS 6") for reason in report.failed)


def test_a_frame_hook_swallows_what_the_client_would_send(lac: Lac) -> None:
    fred = lac.call("fred", "secret")
    seen: list[tuple[str, int]] = []

    def no_pap(way: str, protocol: int, packet: bytes) -> bytes | None:
        seen.append((way, protocol))
        return None if protocol == 0xC023 else packet

    fred.on_frame = no_pap
    with pytest.raises(TimeoutError):
        fred.wait_online(0.5)
    assert fred.phase == Phase.AUTHENTICATE and ("out", 0xC023) in seen


def test_proxied_lcp_and_authentication_go_into_the_iccn(lns: TinyLns, lac: Lac) -> None:
    lac.call("fred", "secret", auth="chap", proxy_lcp=True, proxy_auth=True)
    lac.wait(lambda: lns.iccns)
    iccn = lns.iccns[0]
    assert iccn.proxy_authen_usable and iccn.proxy_authen_name == b"fred"
    assert iccn.last_sent_lcp_confreq is not None and iccn.last_sent_lcp_confreq.startswith(b"\x03\x05\xc2\x23\x05")


def test_the_checker_counts_what_was_lost_doubled_overtaken_and_changed() -> None:
    checker = traffic.Checker()
    good = [traffic.numbered(traffic.UP, 5, number, 100) for number in range(6)]
    for data in (good[0], good[2], good[1], good[1], good[5], good[4][:-1] + b"\xff", b"hello"):
        checker.take(data)
    flow = checker.flows[traffic.UP, 5]
    assert (flow.received, flow.lost(6), flow.doubled, flow.overtaken) == (4, 2, 1, 1)
    assert (checker.corrupt, checker.foreign) == (1, 1)


def test_a_packet_with_a_wrong_checksum_is_not_parsed() -> None:
    packet = traffic.icmp_echo(OURS, OURS, 1, 2, b"data")
    assert traffic.parse(packet).icmp == (8, 0, 1, 2)
    for position in (8, 25):
        spoiled = packet[:position] + bytes((packet[position] ^ 1,)) + packet[position + 1 :]
        with pytest.raises(ValueError):
            traffic.parse(spoiled)


def test_a_cdn_with_session_id_zero_finds_its_call(lns: TinyLns, lac: Lac) -> None:
    fred = lac.call("fred", "secret").wait_online()
    lns.tunnel.send(CDN(result_code=ResultCode(4, 4), assigned_session_id=fred.peer_session_id))
    assert fred.wait_ended().result == 4


def test_a_server_without_authentication_is_taken_as_it_is() -> None:
    with TinyLns(auth=()) as lns, Lac(HERE, lns.address).connect() as lac:
        assert lac.call("anybody", "").wait_online().auth == b""


def test_the_client_naks_towards_the_authentication_it_can_do() -> None:
    with TinyLns(auth=(AuthChoice.CHAP_MD5, AuthChoice.PAP)) as lns, Lac(HERE, lns.address).connect() as lac:
        assert lac.call("fred", "secret", auth="pap").wait_online().auth == b"\xc0\x23"
