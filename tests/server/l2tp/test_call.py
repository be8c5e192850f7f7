"""A call as a LAC sees it: RFC 2661 section 6.6 to 6.14 and the state table of 7.4.2, LNS side."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gevent.event import Event

from l2tpns import causes
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.messages import (
    CDN,
    ICCN,
    ICRP,
    ICRQ,
    OCCN,
    OCRP,
    OCRQ,
    SLI,
    WEN,
    CallErrors,
    Message,
    ResultCode,
    StopCCN,
)
from l2tpns.proto.l2tp.values import DisconnectCause
from tests.lab.inprocess import InProcess, Peer, avps, without
from tests.lab.lac import Refused, Why
from tests.lab.pppclient import Phase
from tests.server.conftest import QUICK, Serve

ICRQ_1 = ICRQ(assigned_session_id=1, call_serial_number=1)
ICRP_1 = ICRP(assigned_session_id=1)
CONNECTED = ICCN(tx_connect_speed=1_000_000, framing_type=1)
OCRQ_1 = OCRQ(
    assigned_session_id=9,
    call_serial_number=1,
    minimum_bps=1,
    maximum_bps=2,
    bearer_type=1,
    framing_type=1,
    called_number=b"08002",
)
UNKNOWN_AVP = avps("8008 0000 0309 0001")  # M=1, vendor 0, type 777
LCP_REQUEST = bytes.fromhex("ff03 c021 0101 000a 0506 12345678")  # Configure-Request 1, Magic-Number


def refused(peer: Peer) -> tuple[int, int, int]:
    """To which of our sessions the CDN goes that comes, with its result and error."""
    header, cdn = peer.expect_header(CDN)
    return header.session_id, cdn.result_code.result, cdn.result_code.error


def still_there(server: InProcess, peer: Peer) -> bool:
    """The tunnel is up and takes a further call."""
    return bool(peer.ring(77)) and len(server.lns.tunnels) == 1


# ICRQ, ICRP, ICCN


@pytest.mark.statement(6, 71, 81)
def test_an_icrq_is_answered_by_an_icrp_to_the_lacs_session_id_with_an_id_of_ours(server: InProcess) -> None:
    peer = server.peer().open()
    peer.say(ICRQ(assigned_session_id=0xABCD, call_serial_number=5))
    header, icrp = peer.expect_header(ICRP)
    assert (header.tunnel_id, header.session_id) == (peer.tunnel_id, 0xABCD)
    assert list(server.lns.sessions) == [icrp.assigned_session_id]
    assert icrp.assigned_session_id != 0


@pytest.mark.statement(21, 71, 81)
@pytest.mark.parametrize(
    "body",
    [
        messages.encode(ICRQ_1) + UNKNOWN_AVP,
        messages.encode(ICRQ_1) + avps("8008 0000 000c 0010"),  # a Q.931 Cause Code of two octets
    ],
)
def test_a_bad_icrq_is_answered_by_cdn_only(server: InProcess, body: bytes) -> None:
    peer = server.peer().open()
    peer.say(body)
    session_id, result, _ = refused(peer)
    assert (session_id, result) == (1, 2)
    assert not server.lns.sessions
    assert still_there(server, peer)


@pytest.mark.statement(81)
def test_an_icrq_without_a_session_id_is_answered_by_cdn_only(server: InProcess) -> None:
    peer = server.peer().open()
    peer.say(without(messages.encode(ICRQ_1), 14))
    assert refused(peer)[:2] == (0, 2)
    assert still_there(server, peer)


@pytest.mark.statement(71, 81)
def test_without_a_call_an_icrp_is_answered_by_cdn_and_an_iccn_by_nothing(server: InProcess) -> None:
    peer = server.peer().open()
    peer.say(ICRP_1, 0x7777)
    assert refused(peer)[:2] == (1, 2)
    peer.say(CONNECTED, 0x7777)
    peer.acknowledged()
    assert still_there(server, peer)


@pytest.mark.statement(71, 82)
@pytest.mark.parametrize(
    "body",
    [
        messages.encode(CONNECTED) + UNKNOWN_AVP,
        messages.encode(CONNECTED) + avps("8007 0000 0027 01"),  # Sequencing Required with a value
    ],
)
def test_a_bad_iccn_ends_the_call_and_only_it(server: InProcess, body: bytes) -> None:
    peer = server.peer().open()
    session_id = peer.ring()
    peer.say(body, session_id)
    assert refused(peer)[:2] == (1, 2)
    assert session_id not in server.lns.sessions
    assert still_there(server, peer)


@pytest.mark.statement(71, 81)
@pytest.mark.parametrize(
    ("more", "serial", "why"),
    [
        ("", "0", "Call Serial Number (AVP 15) is missing, taken as 0"),
        ("8008 0000 000f 0007", "7", "Call Serial Number (AVP 15) has the wrong length (2, expected 4), read as 7"),
        ("000e 0000 000f 00000000 00000007", "7", "Call Serial Number (AVP 15) has the wrong length (8, expected 4)"),
        (
            "800a 0000 000f 00000007 8008 0000 0012 0001",
            "7",
            "Bearer Type (AVP 18) has the wrong length (2, expected 4), read as 1",
        ),
    ],
)
def test_an_icrq_is_not_refused_for_what_nothing_depends_on(
    server: InProcess, more: str, serial: str, why: str
) -> None:
    peer = server.peer().open()
    peer.say(without(messages.encode(ICRQ_1), 15) + bytes.fromhex(more))
    session = server.lns.sessions[peer.expect(ICRP).assigned_session_id]
    (line,) = server.events("avp_ignored")
    assert (line["message"], line["level"]) == ("ICRQ", "warning")
    assert why in line["why"]
    assert session.usage().tunnel_connection == serial
    assert still_there(server, peer)


@pytest.mark.statement(71, 82)
@pytest.mark.parametrize("attributes", [(24,), (19,), (24, 19)], ids=["Tx Connect Speed", "Framing Type", "both"])
def test_an_iccn_without_the_figures_of_the_line_connects_the_call(
    server: InProcess, attributes: tuple[int, ...]
) -> None:
    peer = server.peer().open()
    session = server.lns.sessions[peer.ring()]
    body = messages.encode(CONNECTED)
    for attribute in attributes:
        body = without(body, attribute)
    peer.say(body, session.id)
    server.wait(lambda: session.phase.value == "lcp")
    (line,) = server.events("avp_ignored")  # one, whatever is missing
    assert [f"(AVP {n}) is missing" in line["why"] for n in (24, 19)] == [n in attributes for n in (24, 19)]
    assert session.tx_speed == (0 if 24 in attributes else CONNECTED.tx_connect_speed)


def test_a_lac_that_leaves_out_the_same_at_each_call_is_reported_once(server: InProcess) -> None:
    peer = server.peer().open()
    for number in range(1, 6):
        peer.say(without(messages.encode(ICRQ(assigned_session_id=number, call_serial_number=number)), 15))
        session_id = peer.expect(ICRP).assigned_session_id
        peer.say(without(messages.encode(CONNECTED), 24), session_id)
    server.wait(lambda: all(session.phase.value == "lcp" for session in server.lns.sessions.values()))
    assert [line["message"] for line in server.events("avp_ignored")] == ["ICRQ", "ICCN"]


@pytest.mark.statement(74, 75)
@pytest.mark.parametrize(
    "body",
    [
        avps("8008 0000 0000 000f"),  # a WEN without Call Errors
        avps("8008 0000 0000 000f", "801e 0000 0022" + "00000001" * 6),  # the reserved field is left out
        avps("8008 0000 0000 0010"),  # an SLI without ACCM
        avps("8008 0000 0000 0010", "800e 0000 0023 ffffffff ffffffff"),
    ],
)
def test_statistics_that_cannot_be_read_do_not_end_the_call(server: InProcess, body: bytes) -> None:
    peer = server.peer().open()
    session_id = peer.call()
    known = WEN(call_errors=CallErrors(1, 2, 3, 4, 5, 6))
    peer.say(known, session_id)
    peer.say(body, session_id)
    peer.acknowledged()
    peer.expect_nothing()
    assert server.lns.sessions[session_id].wide_errors == known
    assert len(server.events("avp_ignored")) == 1


@pytest.mark.statement(34, 82)
@pytest.mark.parametrize("framing, accepted", [(1, True), (2, True), (3, True), (4, False), (0x80000001, False)])
def test_a_framing_type_that_was_not_advertised_is_refused(server: InProcess, framing: int, accepted: bool) -> None:
    peer = server.peer().open()
    peer.say(replace(CONNECTED, framing_type=framing), peer.ring())
    if accepted:
        peer.acknowledged()
    else:
        assert refused(peer) == (1, 2, 3)


@pytest.mark.statement(82, 84)
@pytest.mark.parametrize("message", [ICRQ_1, ICRP_1, OCRP(assigned_session_id=1)], ids=["ICRQ", "ICRP", "OCRP"])
def test_in_wait_connect_another_message_than_iccn_ends_the_call(server: InProcess, message: Message) -> None:
    peer = server.peer().open()
    peer.say(message, peer.ring())
    assert refused(peer)[:2] == (1, 2)
    assert not server.lns.sessions
    assert still_there(server, peer)


@pytest.mark.statement(83, 84)
@pytest.mark.parametrize("message", [ICRQ_1, ICRP_1, CONNECTED], ids=["ICRQ", "ICRP", "ICCN"])
def test_established_an_icrq_icrp_or_iccn_ends_the_call(server: InProcess, message: Message) -> None:
    peer = server.peer().open()
    session_id = peer.call()
    peer.acknowledged()
    peer.say(message, session_id)
    assert refused(peer)[:2] == (1, 2)
    assert not server.lns.sessions
    assert still_there(server, peer)


@pytest.mark.statement(82)
@pytest.mark.parametrize("connected", [False, True])
def test_a_second_icrq_with_the_id_of_a_call_ends_that_call_with_one_cdn(server: InProcess, connected: bool) -> None:
    peer = server.peer().open()
    (peer.call if connected else peer.ring)(1)
    peer.say(ICRQ_1)
    assert refused(peer) == (1, 2, 5)
    peer.expect_nothing()
    assert not server.lns.sessions
    assert still_there(server, peer)


@pytest.mark.statement(82)
@pytest.mark.shows("set call_timeout")
def test_a_call_that_is_never_connected_ends(serve: Serve) -> None:
    server = serve(call_timeout=0.2)
    peer = server.peer().open()
    peer.ring()
    assert refused(peer) == (1, 10, 0)  # not established in the time the LAC allows: nor in ours
    assert server.calm


@pytest.mark.statement(82)
def test_a_call_that_we_end_in_wait_connect_is_told_by_cdn(server: InProcess) -> None:
    peer = server.peer().open()
    server.lns.sessions[peer.ring()].end(causes.ADMIN_DROP)
    assert refused(peer) == (1, 3, 0)


# Outgoing calls (6.9 to 6.11)


@pytest.mark.statement(72)
def test_an_ocrq_of_a_lac_is_answered_by_cdn_and_the_tunnel_kept(server: InProcess) -> None:
    peer = server.peer().open()
    peer.say(OCRQ_1)
    assert refused(peer)[:2] == (9, 2)
    assert still_there(server, peer)


@pytest.mark.statement(72)
def test_ocrp_and_occn_for_no_call_are_acknowledged_and_dropped(server: InProcess) -> None:
    peer = server.peer().open()
    peer.say(OCRP(assigned_session_id=1), 0x7777)
    peer.say(OCCN(tx_connect_speed=1, framing_type=1), 0x7777)
    peer.acknowledged()
    assert server.counters.drop_unknown_session == 2
    assert still_there(server, peer)


# CDN


@pytest.mark.statement(66, 82, 83)
@pytest.mark.parametrize("state", ["wait-connect", "established"])
@pytest.mark.parametrize(("result", "cause"), [(1, "lac_lost_carrier"), (2, "lac_cdn"), (3, "lac_cdn")])
def test_a_cdn_is_acknowledged_and_not_answered_and_ends_the_call(
    server: InProcess, state: str, result: int, cause: str
) -> None:
    peer = server.peer().open()
    session_id = peer.ring() if state == "wait-connect" else peer.call()
    peer.say(CDN(result_code=ResultCode(result, 0, "gone"), assigned_session_id=1), session_id)
    peer.acknowledged()
    peer.expect_nothing()
    assert server.calm
    (down,) = server.events("session_down")
    assert (down["cause"], "gone" in down["why"]) == (cause, True)
    assert still_there(server, peer)


@pytest.mark.statement(9)
def test_a_cdn_with_session_id_0_finds_its_call_by_the_assigned_session_id(server: InProcess) -> None:
    peer = server.peer().open()
    stays, goes = peer.ring(5), peer.ring(6)
    peer.say(CDN(result_code=ResultCode(1, 0, ""), assigned_session_id=6), 0)
    peer.acknowledged()
    server.wait(lambda: list(server.lns.sessions) == [stays])
    assert goes not in server.lns.sessions


@pytest.mark.statement(83)
def test_a_cdn_ends_ppp_and_the_accounting_and_frees_what_the_call_held(server: InProcess) -> None:
    lac = server.lac().connect()
    fred = lac.call("fred", "pw").wait_online()
    assert server.plane.busy["routes"] == [f"{fred.address}/32"]
    fred.hangup()
    server.wait(lambda: server.calm)
    assert [name for name, _ in server.accounting.records] == ["start", "stop"]
    assert server.plane.busy == {"paths": {}, "routes": [], "installed": {}}
    assert server.counters.sessions_ended == 1


@pytest.mark.statement(73, 83)
@pytest.mark.parametrize("attribute", [1, 14], ids=["Result Code", "Assigned Session ID"])
def test_a_cdn_that_lacks_something_ends_its_call_all_the_same(server: InProcess, attribute: int) -> None:
    peer = server.peer().open()
    session_id = peer.call()
    cdn = CDN(result_code=ResultCode(1, 0, ""), assigned_session_id=1)
    peer.say(without(messages.encode(cdn), attribute), session_id)
    peer.acknowledged()
    server.wait(lambda: server.calm)
    peer.expect_nothing()
    assert server.counters.control_malformed == 1
    assert still_there(server, peer)


@pytest.mark.statement(66)
def test_a_session_id_may_be_used_again_in_the_message_after_its_cdn(server: InProcess) -> None:
    peer = server.peer().open()
    old = peer.call()
    peer.say(CDN(result_code=ResultCode(1, 0, ""), assigned_session_id=1), old)
    peer.say(ICRQ_1)
    new = peer.expect(ICRP).assigned_session_id
    peer.say(CONNECTED, new)
    peer.acknowledged()
    assert list(server.lns.sessions) == [new] != [old]


@pytest.mark.statement(66, 73)
def test_a_cdn_for_no_call_is_acknowledged_and_nothing_else(server: InProcess) -> None:
    peer = server.peer().open()
    for session_id in (0, 0x7777):
        peer.say(CDN(result_code=ResultCode(1, 0, ""), assigned_session_id=99), session_id)
    peer.acknowledged()
    peer.expect_nothing()


@pytest.mark.statement(163)
def test_the_disconnect_cause_of_a_lac_is_understood(server: InProcess) -> None:
    peer = server.peer().open()
    cdn = CDN(
        result_code=ResultCode(3, 0, ""), assigned_session_id=1, disconnect_cause=DisconnectCause(8, 0xC021, 1, "tired")
    )
    peer.say(cdn, peer.call())
    peer.acknowledged()
    server.wait(lambda: server.calm)
    assert "echo" in server.events("session_down")[0]["why"]


@pytest.mark.statement(163)
def test_our_cdn_names_the_disconnect_cause_without_the_m_bit(server: InProcess) -> None:
    peer = server.peer().open()
    session_id = peer.call()
    peer.acknowledged()
    server.lns.sessions[session_id].end(causes.AUTH_REFUSED)
    header, cdn = peer.expect_header(CDN)
    assert cdn.disconnect_cause == DisconnectCause(16, 0xC223, 2)
    at = header.body.index(bytes.fromhex("0000 002e"))  # vendor and number of the AVP
    assert header.body[at - 2] & 0x80 == 0


@pytest.mark.statement(350)
@pytest.mark.parametrize(
    "cause, code, protocol, direction",
    [
        (causes.LCP_SILENT, 6, 0xC021, 1),
        (causes.LOOPED, 7, 0xC021, 0),
        (causes.ECHO_TIMEOUT, 8, 0xC021, 1),
        (causes.AUTH_TIMEOUT, 13, 0xC223, 1),
        (causes.AUTH_REFUSED, 16, 0xC223, 2),
        (causes.NCP_FAILED, 17, 0x8021, 1),
        (causes.NO_COMMON_ADDRESS, 19, 0x8021, 1),
        (causes.USER_REQUEST, 3, 0, 1),
        (causes.SESSION_TIMEOUT, 3, 0, 2),
        (causes.ADMIN_DROP, 1, 0, 0),
    ],
    ids=lambda value: value.name if isinstance(value, causes.Cause) else "",
)
def test_the_disconnect_cause_has_the_protocol_and_the_side_that_it_is_about(
    server: InProcess, cause: causes.Cause, code: int, protocol: int, direction: int
) -> None:
    peer = server.peer().open()
    session_id = peer.call()
    peer.acknowledged()
    server.lns.sessions[session_id].end(cause)
    assert peer.expect(CDN).disconnect_cause == DisconnectCause(code, protocol, direction)


@pytest.mark.statement(350)
def test_the_disconnect_cause_can_be_switched_off(serve: Serve) -> None:
    server = serve(l2tp_disconnect_cause=False)
    peer = server.peer().open()
    session_id = peer.call()
    peer.acknowledged()
    server.lns.sessions[session_id].end(causes.AUTH_REFUSED)
    assert peer.expect(CDN).disconnect_cause is None


# WEN, SLI


@pytest.mark.statement(74)
def test_wen_is_kept_with_its_call_and_not_answered(server: InProcess) -> None:
    peer = server.peer().open()
    session_id = peer.call()
    for crc in (1, 5):
        peer.say(WEN(call_errors=CallErrors(crc, 2, 3, 4, 5, 6)), session_id)
    peer.acknowledged()
    peer.expect_nothing()
    kept = server.lns.sessions[session_id].wide_errors
    assert kept is not None and kept.call_errors == CallErrors(5, 2, 3, 4, 5, 6)  # the counters are cumulative


@pytest.mark.statement(75)
def test_sli_is_acknowledged_and_ignored(server: InProcess) -> None:
    peer = server.peer().open()
    session_id = peer.call()
    peer.say(avps("8008 0000 0000 0010", "8010 0000 0023 0000 ffffffff ffffffff"), session_id)
    peer.acknowledged()
    peer.expect_nothing()
    assert session_id in server.lns.sessions
    assert SLI in messages.MESSAGES.values()


# Data of a call


@pytest.mark.statement(14)
def test_data_of_a_call_in_wait_connect_goes_nowhere(server: InProcess) -> None:
    peer = server.peer().open()
    session_id = peer.ring()
    peer.send_frame(session_id, bytes.fromhex("ff03 0021 4500 0014 0000 0000 4011 0000 0a050001 c6336402"))
    server.wait(lambda: server.counters.drop_not_online == 1)
    for frame in ("ff03 8021 0101 0004", "ff03 c023 0101 0006 0000"):
        peer.send_frame(session_id, bytes.fromhex(frame))
    peer.say(CONNECTED, session_id)
    peer.acknowledged()
    assert server.plane.delivered == []
    assert server.backend.asked == []


@pytest.mark.statement(14)
def test_a_clients_first_request_may_overtake_the_iccn_that_allows_it(server: InProcess) -> None:
    peer = server.peer().open()
    session_id = peer.ring()
    peer.send_frame(session_id, LCP_REQUEST)
    peer.say(CONNECTED, session_id)
    answers = set()
    while 2 not in answers:  # Configure-Ack
        datagram = peer.hear_raw()
        if not datagram[0] & 0x80:
            answers.add(datagram[10])
    assert server.lns.sessions[session_id].phase.value == "lcp"


@pytest.mark.statement(15)
def test_with_sequencing_required_every_data_message_is_numbered_from_0(server: InProcess) -> None:
    lac = server.lac().connect()
    fred = lac.call("fred", "pw", sequencing_required=True).wait_online()
    before = fred.sequenced_in
    assert before >= 4  # LCP, CHAP, IPCP
    for _ in range(3):
        server.plane.deliver(packet_to(fred.address.packed))
    fred.wait(lambda: fred.in_packets == 3)
    assert fred.sequenced_in == before + 3
    assert fred.misnumbered == 0


@pytest.mark.statement(16)
def test_without_sequencing_required_no_data_message_is_numbered(server: InProcess) -> None:
    assert server.lac().connect().call("fred", "pw").wait_online().sequenced_in == 0


def packet_to(address: bytes) -> bytes:
    """An IP packet of 20 octets."""
    return bytes.fromhex("4500 0014 0000 0000 4011 0000 c6336402") + address


@pytest.mark.statement(47)
def test_a_private_group_id_is_ignored(server: InProcess) -> None:
    fred = server.lac().connect().call("fred", "pw", private_group_id=b"vrf-7").wait_online()
    assert str(fred.address) == "10.5.0.1"


# Slowness and mistakes of others


@pytest.mark.statement(85)
def test_a_slow_radius_holds_up_nobody_else_and_not_the_caller_either(server: InProcess) -> None:
    server.backend.answering.clear()
    lac = server.lac(defaults=QUICK).connect()
    slow = lac.call("fred", "pw")
    slow.wait_phase(Phase.AUTHENTICATE)
    server.wait(lambda: len(server.backend.asked) == 1)
    silent, server.backend.answering = server.backend.answering, Event()
    server.backend.answering.set()
    assert lac.call("mary", "pw").wait_online().online
    slow.send_echo()
    slow.wait(lambda: slow.echo_replies == 1, what="Echo-Reply")
    assert not slow.online
    slow.terminate()
    assert slow.wait_ended().why is Why.CDN
    assert not silent.is_set()
    server.wait(lambda: len(server.lns.sessions) == 1)


@pytest.mark.statement(85)
def test_a_call_that_is_hung_up_while_radius_thinks_leaves_nothing(server: InProcess) -> None:
    server.backend.answering.clear()
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw")
    server.wait(lambda: server.backend.asked)
    fred.hangup()
    server.wait(lambda: server.calm)
    assert server.counters.logins_accepted == 0


def test_a_fault_of_our_own_in_one_call_ends_that_call_only(server: InProcess) -> None:
    lac = server.lac(defaults=QUICK).connect()
    mary = lac.call("mary", "pw").wait_online()
    server.backend.replies["guest"] = object()  # type: ignore[assignment]
    with pytest.raises(Refused) as broken:
        lac.call("guest", "pw").wait_online()
    assert (broken.value.ended.why, broken.value.ended.result) == (Why.CDN, 2)
    assert mary.online and len(server.lns.sessions) == 1
    assert len(server.events("session_failed")) == 1
    server.meant = ("session_failed",)


def test_a_tunnel_ends_when_something_in_it_is_broken(server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = server.peer().open()
    monkeypatch.setattr(server.lns, "call_refusal", None)
    peer.say(ICRQ_1)
    assert peer.expect(StopCCN).result_code.result == 2
    assert len(server.events("tunnel_failed")) == 1
    server.meant = ("tunnel_failed",)
