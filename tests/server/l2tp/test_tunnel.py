"""The control connection as a LAC sees it: RFC 2661 sections 5.1, 6.1 to 6.4 and the state table of 7.2.1."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.messages import (
    CDN,
    HELLO,
    ICRP,
    ICRQ,
    SCCCN,
    SCCRP,
    SCCRQ,
    ProtocolVersion,
    ResultCode,
    StopCCN,
    UnknownMessage,
)
from tests.lab.inprocess import InProcess, Peer, avps, without
from tests.lab.lac import Refused, Why
from tests.server.conftest import Serve

SECRET = "open sesame"
UNKNOWN_TYPE = avps("8008 0000 0000 0063")  # Message Type 99, M=1
UNKNOWN_TYPE_M0 = avps("0008 0000 0000 0063")
SCCRP_FROM_NOWHERE = messages.encode(
    SCCRP(protocol_version=messages.VERSION_1_0, framing_capabilities=3, host_name=b"x", assigned_tunnel_id=7)
)
STOPPED = ResultCode(1, 0, "")


def refusal(peer: Peer) -> tuple[int, int]:
    """Result and error of the StopCCN that comes."""
    code = peer.expect(StopCCN).result_code
    return code.result, code.error


# SCCRQ and SCCRP


@pytest.mark.statement(6, 68, 76)
@pytest.mark.shows("set hostname")
def test_an_sccrq_is_answered_by_an_sccrp_to_the_lacs_tunnel_id_with_our_own_name(serve: Serve) -> None:
    server = serve(hostname="lns.example")
    peer = server.peer(tunnel_id=0x4711)
    peer.say(peer.sccrq(host_name=b"the LAC's name"))
    header, sccrp = peer.expect_header(SCCRP)
    assert (header.tunnel_id, header.session_id, header.ns, header.nr) == (0x4711, 0, 0, 1)
    assert sccrp.protocol_version == ProtocolVersion(1, 0)
    assert sccrp.host_name == b"lns.example"
    assert sccrp.framing_capabilities == 3
    assert sccrp.assigned_tunnel_id in server.lns.tunnels
    assert sccrp.challenge is None and sccrp.challenge_response is None


@pytest.mark.statement(10)
def test_the_answer_goes_to_the_port_the_sccrq_came_from(server: InProcess) -> None:
    peer = server.peer()
    peer.say(peer.sccrq())
    peer.expect(SCCRP)
    assert peer.source == server.address
    assert peer.address[1] != 1701


@pytest.mark.statement(67, 76)
@pytest.mark.parametrize("attribute", [2, 3, 7, 9], ids=["Version", "Framing Capabilities", "Host Name", "Tunnel ID"])
def test_an_sccrq_without_one_of_its_avps_is_refused_and_makes_no_tunnel(server: InProcess, attribute: int) -> None:
    peer = server.peer()
    peer.say(without(messages.encode(peer.sccrq()), attribute))
    header, stop = peer.expect_header(StopCCN)
    assert header.tunnel_id == (0 if attribute == 9 else peer.tunnel_id)
    assert header.nr == 1
    assert stop.result_code.result in (2, 5)
    assert stop.assigned_tunnel_id != 0
    assert not server.lns.tunnels
    assert server.counters.tunnels_refused == 1


@pytest.mark.statement(33, 76)
def test_another_version_is_refused_with_the_highest_we_speak(server: InProcess) -> None:
    peer = server.peer()
    peer.say(peer.sccrq(protocol_version=ProtocolVersion(2, 0)))
    assert refusal(peer) == (5, 0x0100)


@pytest.mark.statement(21)
def test_an_unknown_mandatory_avp_in_an_sccrq_is_named_in_the_refusal(server: InProcess) -> None:
    peer = server.peer()
    peer.say(messages.encode(peer.sccrq()) + avps("8008 0000 0309 0001"))  # vendor 0, type 777
    code = peer.expect(StopCCN).result_code
    assert (code.result, code.error) == (2, 8)
    assert "777" in code.text


@pytest.mark.statement(354)
def test_a_lac_that_wants_to_recover_its_tunnel_is_refused_and_the_tunnel_goes_on(server: InProcess) -> None:
    """RFC 4951: we have offered no failover, which is what Tunnel Recovery (77) would be an answer to."""
    old = server.peer(tunnel_id=0x1111).open()
    session_id = old.call()
    new = server.peer(tunnel_id=0x2222)
    capability, recovery = avps("000c 0000 004c 0003 0000ea60"), avps("8010 0000 004d 0000 0000 1234 0000 5678")
    new.say(messages.encode(new.sccrq()) + capability + recovery)
    assert refusal(new) == (2, 8)
    assert list(server.lns.tunnels) == [old.peer_tunnel_id] and session_id in server.lns.sessions
    old.say(avps("0008 0000 0000 0015"))  # Failover Session Query, M=0
    old.acknowledged()
    old.expect_nothing()


@pytest.mark.statement(354)
def test_a_lac_that_could_fail_over_is_served_like_any_other(server: InProcess) -> None:
    peer = server.peer()
    peer.say(messages.encode(peer.sccrq()) + avps("000c 0000 004c 0003 0000ea60"))
    assert peer.expect(SCCRP).assigned_tunnel_id in server.lns.tunnels


@pytest.mark.statement(20, 22)
def test_all_avps_of_an_sccrq_that_were_ignored_are_in_one_line_of_the_log(server: InProcess) -> None:
    peer = server.peer()
    odd = (
        "0007 0000 0004 00",
        "0007 0000 0006 01",
        "0008 0000 0309 0001",
        "0008 0009 0001 0001",
        "8009 0000 0007 782d79",
    )
    peer.say(messages.encode(peer.sccrq()) + avps(*odd))
    assert peer.expect(SCCRP)
    (line,) = server.events("avp_ignored")
    assert line["message"] == "SCCRQ" and line["peer"].startswith("127.0.0.1:")
    assert line["why"].split("; ") == [
        "Bearer Capabilities (AVP 4) has the wrong length (1, expected 4), read as 0",
        "Firmware Revision (AVP 6) has the wrong length (1, expected 2), read as 1",
        "unknown AVP 777, ignored",
        "unknown AVP 1 of vendor 9, ignored",
        "second Host Name ignored",
    ]


@pytest.mark.statement(67)
def test_framing_capabilities_of_another_size_do_not_cost_the_tunnel(server: InProcess) -> None:
    peer = server.peer()
    peer.say(without(messages.encode(peer.sccrq()), 3) + avps("8008 0000 0003 0003"))
    assert peer.expect(SCCRP)
    (line,) = server.events("avp_ignored")
    assert line["why"] == "Framing Capabilities (AVP 3) has the wrong length (2, expected 4), read as 3"


@pytest.mark.statement(39)
def test_a_receive_window_of_zero_works_as_one_and_is_counted(server: InProcess) -> None:
    peer = server.peer().open(receive_window_size=0)
    assert server.counters.control_malformed == 1
    for number in (1, 2):
        peer.say(ICRQ(assigned_session_id=number, call_serial_number=number))
    first = peer.expect_header(ICRP)[0]
    peer.expect_nothing(0.1)  # the second has to wait until the first is acknowledged
    peer.acknowledge()
    assert peer.expect_header(ICRP)[0].ns == first.ns + 1


# The secret (5.1.1)


@pytest.mark.statement(40, 41)
@pytest.mark.shows("set l2tp_secret")
@pytest.mark.shows("set l2tp_challenge")
def test_with_the_right_secret_each_proves_itself_to_the_other(serve: Serve) -> None:
    server = serve(l2tp_secret=SECRET, l2tp_challenge=True)
    lac = server.lac(secret=SECRET.encode(), challenge=True).connect()
    lac.wait_acked()
    assert lac.sccrp is not None and lac.sccrp.challenge is not None
    assert lac.call("fred", "pw").wait_online().online


@pytest.mark.statement(41)
def test_a_lac_is_challenged_only_when_that_is_configured(serve: Serve) -> None:
    peer = serve(l2tp_secret=SECRET).peer()
    peer.say(peer.sccrq())
    assert peer.expect(SCCRP).challenge is None


@pytest.mark.statement(41, 69, 77)
@pytest.mark.parametrize("response", [None, bytes(16)], ids=["missing", "wrong"])
def test_a_lac_that_does_not_prove_itself_is_refused(serve: Serve, response: bytes | None) -> None:
    server = serve(l2tp_secret=SECRET, l2tp_challenge=True)
    peer = server.peer()
    peer.say(peer.sccrq())
    peer.peer_tunnel_id = peer.expect(SCCRP).assigned_tunnel_id
    peer.say(SCCCN(challenge_response=response))
    assert refusal(peer) == (4, 0)
    assert server.counters.tunnels_opened == 0
    assert [record["level"] for record in server.events("tunnel_auth_refused")] == ["warning"]


@pytest.mark.statement(7, 41)
def test_each_challenge_is_new(serve: Serve) -> None:
    server = serve(l2tp_secret=SECRET, l2tp_challenge=True)
    challenges = set()
    for number in range(1, 6):
        peer = server.peer(tunnel_id=number)
        peer.say(peer.sccrq())
        challenges.add(peer.expect(SCCRP).challenge)
    assert len(challenges) == 5


@pytest.mark.statement(42)
def test_a_challenge_that_we_have_no_secret_for_is_refused(server: InProcess) -> None:
    with pytest.raises(Refused) as refused:
        server.lac(secret=b"any", challenge=True).connect()
    assert (refused.value.ended.why, refused.value.ended.result) == (Why.STOPCCN, 4)


@pytest.mark.statement(41)
@pytest.mark.shows("set l2tp_secret")
def test_a_lac_with_another_secret_finds_out(serve: Serve) -> None:
    with pytest.raises(Refused) as refused:
        serve(l2tp_secret=SECRET).lac(secret=b"another", challenge=True).connect()
    assert refused.value.ended.why is Why.BAD_RESPONSE


@pytest.mark.shows("set l2tp_hide_avps")
def test_hidden_avps_are_read_and_written(serve: Serve) -> None:
    server = serve(l2tp_secret=SECRET, l2tp_hide_avps=True)
    fred = server.lac(secret=SECRET.encode(), hide=True).connect().call("fred", "pw", calling=b"0401").wait_online()
    assert fred.lac.unreadable == 0
    assert server.backend.asked[0].calling == "0401"


# What finds no tunnel


@pytest.mark.statement(8, 76)
def test_control_messages_for_a_tunnel_that_nobody_has_are_dropped(server: InProcess) -> None:
    peer = server.peer()
    for message in (HELLO(), SCCCN(), StopCCN(assigned_tunnel_id=9, result_code=STOPPED), SCCRP_FROM_NOWHERE):
        peer.say(message, tunnel_id=0x7777)
    server.wait(lambda: server.counters.drop_unknown_tunnel == 4)
    peer.expect_nothing()
    assert not server.lns.tunnels


@pytest.mark.statement(76)
def test_an_sccrp_to_nobody_is_answered_by_stopccn_and_an_scccn_by_nothing(server: InProcess) -> None:
    peer = server.peer()
    peer.say(SCCRP_FROM_NOWHERE, tunnel_id=0)
    header, stop = peer.expect_header(StopCCN)
    assert (header.tunnel_id, stop.result_code.result) == (7, 7)
    peer.say(SCCCN(), tunnel_id=0)
    peer.say(HELLO(), tunnel_id=0)
    server.wait(lambda: server.counters.drop_unknown_tunnel == 2)
    peer.expect_nothing()
    assert not server.lns.tunnels


def test_no_octets_whatever_make_a_tunnel_or_an_answer_unless_they_are_an_sccrq(server: InProcess) -> None:
    peer = server.peer()
    for datagram in (b"", b"\xc8", b"\xc8\x02", bytes(12), b"\xff" * 40, b"\xc8\x02\x00\x0c" + bytes(8)):
        peer.send(datagram)
    server.wait(lambda: server.counters.tunnel_rx_packets == 6)
    peer.expect_nothing()
    assert not server.lns.tunnels


@pytest.mark.statement(36, 78)
def test_we_never_open_a_tunnel_ourselves_so_that_no_sccrqs_collide(server: InProcess) -> None:
    """There is no outgoing call, so no SCCRQ of ours: of 4.4.3 only `neither side has a tie` is left, two tunnels."""
    assert SCCRQ not in {type(message) for message in sent_by(server)}
    first, second = server.peer(tunnel_id=1), server.peer(tunnel_id=2)
    ids = []
    for peer in (first, second):
        peer.say(peer.sccrq(tie_breaker=b"\0" * 7 + b"\x01"))
        ids.append(peer.expect(SCCRP).assigned_tunnel_id)
    assert len(set(ids)) == 2


def sent_by(server: InProcess) -> list[object]:
    """Everything that a server says to a LAC that does all it can do."""
    lac = server.lac().connect()
    lac.call("fred", "pw").wait_online().hangup()
    lac.hello()
    lac.wait_acked()
    return [message for _, message in lac.inbox]


# 7.2.1, wait-ctl-conn and established


def waiting(server: InProcess) -> Peer:
    """A tunnel in wait-ctl-conn."""
    peer = server.peer()
    peer.say(peer.sccrq())
    peer.peer_tunnel_id = peer.expect(SCCRP).assigned_tunnel_id
    return peer


def established(server: InProcess) -> Peer:
    return server.peer().open()


@pytest.mark.statement(77)
@pytest.mark.parametrize("message", [SCCRP_FROM_NOWHERE, "sccrq"], ids=["SCCRP", "SCCRQ"])
def test_in_wait_ctl_conn_an_sccrp_or_sccrq_ends_the_tunnel(server: InProcess, message: bytes | str) -> None:
    peer = waiting(server)
    peer.say(peer.sccrq() if isinstance(message, str) else message)
    assert refusal(peer) == (7, 0)
    peer.acknowledge()
    server.wait(lambda: not server.lns.admission.half_open)


@pytest.mark.statement(79, 84)
@pytest.mark.parametrize("message", [SCCRP_FROM_NOWHERE, "sccrq", SCCCN()], ids=["SCCRP", "SCCRQ", "SCCCN"])
def test_established_an_sccrq_sccrp_or_scccn_ends_the_tunnel(server: InProcess, message: SCCCN | bytes | str) -> None:
    peer = established(server)
    peer.say(peer.sccrq() if isinstance(message, str) else message)
    assert refusal(peer) == (7, 0)
    assert server.events("tunnel_down")[0]["cause"] == "protocol_error"


@pytest.mark.statement(24, 84)
@pytest.mark.parametrize("state", [waiting, established])
def test_an_unknown_message_with_the_m_bit_ends_the_tunnel(
    server: InProcess, state: Callable[[InProcess], Peer]
) -> None:
    peer = state(server)
    peer.say(UNKNOWN_TYPE)
    assert refusal(peer)[0] == 2
    assert server.events("control_refused")


@pytest.mark.statement(24, 164)
def test_an_unknown_message_without_the_m_bit_is_acknowledged_and_ignored(server: InProcess) -> None:
    peer = established(server)
    peer.say(UNKNOWN_TYPE_M0)
    for number in (28, 29):  # CSUN, CSURQ of RFC 5515
        peer.say(avps(f"0008 0000 0000 {number:04x}"))
    peer.acknowledged()
    assert peer.ring()
    assert isinstance(messages.decode(UNKNOWN_TYPE_M0), UnknownMessage)


@pytest.mark.statement(84)
def test_a_call_before_the_tunnel_is_up_ends_it(server: InProcess) -> None:
    peer = waiting(server)
    peer.say(ICRQ(assigned_session_id=1, call_serial_number=1))
    assert refusal(peer) == (7, 0)
    assert not server.lns.sessions


@pytest.mark.statement(70, 79)
@pytest.mark.parametrize("state", [waiting, established])
def test_stopccn_is_acknowledged_and_ends_the_tunnel_in_every_state(
    server: InProcess, state: Callable[[InProcess], Peer]
) -> None:
    peer = state(server)
    peer.say(StopCCN(assigned_tunnel_id=peer.tunnel_id, result_code=ResultCode(1, 0, "bye")))
    peer.acknowledged()
    peer.expect_nothing()
    server.wait(lambda: not server.lns.tunnels)
    (down,) = server.events("tunnel_down")
    assert (down["cause"], "bye" in down["why"]) == ("tunnel_closed", True)


@pytest.mark.statement(79)
@pytest.mark.parametrize(
    "broken",
    [
        avps("8008 0000 0000 0004"),  # nothing but the Message Type
        avps("8008 0000 0000 0004", "800a 0000 0001 0001 0000"),  # no Assigned Tunnel ID
        avps("8008 0000 0000 0004", "8008 0000 0001 0001", "8008 0000 0309 0001"),  # an unknown mandatory AVP
    ],
)
def test_even_a_malformed_stopccn_ends_the_tunnel_and_gets_no_answer(server: InProcess, broken: bytes) -> None:
    peer = established(server)
    peer.say(broken)
    peer.acknowledged()
    peer.expect_nothing()
    server.wait(lambda: not server.lns.tunnels)
    assert server.counters.control_malformed == 1


@pytest.mark.statement(8)
def test_a_stopccn_of_one_who_never_learned_our_id_finds_its_tunnel(server: InProcess) -> None:
    peer, other = server.peer(tunnel_id=1), server.peer(tunnel_id=1).open()
    peer.say(peer.sccrq())
    peer.expect(SCCRP)
    peer.say(StopCCN(assigned_tunnel_id=1, result_code=STOPPED), tunnel_id=0)
    peer.acknowledged()
    server.wait(lambda: len(server.lns.tunnels) == 1)
    assert list(server.lns.tunnels) == [other.peer_tunnel_id]


@pytest.mark.statement(70)
def test_stopccn_clears_all_sessions_without_a_cdn(server: InProcess) -> None:
    lac = server.lac().connect()
    for user in ("fred", "mary"):
        lac.call(user, "pw").wait_online()
    lac.stop(result=6, text="maintenance")
    lac.wait_acked()
    server.wait(lambda: server.calm)
    assert not [message for _, message in lac.inbox if isinstance(message, CDN)]
    assert [usage.terminate_cause for usage in server.accounting.of("stop")] == [3, 3]  # lost service


# Repeats and restarts


@pytest.mark.statement(80)
def test_an_sccrq_that_is_sent_again_makes_no_second_tunnel_and_is_acknowledged(server: InProcess) -> None:
    peer = server.peer()
    datagram = peer.say(peer.sccrq())
    sccrp = peer.expect(SCCRP)
    peer.send(datagram)
    assert peer.hear().nr == 1
    assert list(server.lns.tunnels) == [sccrp.assigned_tunnel_id]
    peer.peer_tunnel_id = sccrp.assigned_tunnel_id
    peer.say(SCCCN())
    peer.acknowledged()
    peer.send(datagram)  # now that the tunnel is up
    assert peer.hear().nr == 2
    assert len(server.lns.tunnels) == 1
    assert server.counters.tunnels_opened == 1


def test_a_lac_that_lost_its_memory_may_begin_anew_with_the_same_port_and_id(server: InProcess) -> None:
    peer = server.peer().open()
    session_id = peer.call()
    (old,) = server.lns.tunnels.values()
    old.opened_at -= 60.0  # it has been up for a while
    peer.ns = peer.nr = 0
    peer.say(peer.sccrq(), tunnel_id=0)
    while peer.nr == 0:  # the old tunnel may still send
        peer.hear()
    new = next(tunnel for tunnel in server.lns.tunnels.values() if tunnel is not old)
    assert session_id in server.lns.sessions  # a forged SCCRQ would have changed nothing
    peer.peer_tunnel_id = new.id
    peer.say(SCCCN())
    peer.acknowledged()
    server.wait(lambda: list(server.lns.tunnels.values()) == [new] and not server.lns.sessions)


@pytest.mark.statement(13)
def test_two_lacs_behind_one_nat_and_two_tunnels_of_one_lac_are_tunnels_of_their_own(server: InProcess) -> None:
    lac = server.lac("lac1", tunnel_id=7).connect()
    behind_the_same_nat = server.lac("lac2", tunnel_id=7).connect()
    second = server.lac("lac1", tunnel_id=8, endpoint=lac.endpoint).connect()
    lacs = {"fred": lac, "mary": behind_the_same_nat, "guest": second}
    calls = [each.call(user, "pw") for user, each in lacs.items()]
    assert len({call.wait_online().address for call in calls}) == 3
    assert len(server.lns.tunnels) == 3
    second.stop()
    second.wait_acked()
    server.wait(lambda: len(server.lns.tunnels) == 2)
    assert [call.ended is None for call in calls] == [True, True, False]
    second.leave()


def test_names_of_lacs_are_only_text(server: InProcess) -> None:
    name = b"%s%n;$(reboot)`x`\x1b[2J\xff\n"
    peer = server.peer().open(host_name=name)
    peer.call()
    server.wait(lambda: server.events("call_connected"))
    (up,) = server.events("tunnel_up")
    assert up["host"].startswith("%s%n;$(reboot)`x`")
    assert b"\x1b" not in b"".join(server.log.tail(100))
