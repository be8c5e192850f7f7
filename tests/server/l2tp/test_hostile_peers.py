"""What peers without good will may try: forgery, floods, endless beginnings, never an acknowledgement."""

from __future__ import annotations

import gc

import gevent
import pytest
from gevent.event import Event

from l2tpns.l2tp import calls
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.l2tp.tunnel import TunnelState
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import build_control, parse_control
from l2tpns.proto.l2tp.messages import CDN, ICRQ, OCRQ, SCCCN, SCCRP, SCCRQ, ResultCode, StopCCN
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.radius.types import AuthRequest
from l2tpns.subscriber import session
from l2tpns.subscriber.services import SessionTiming
from tests.lab import PATIENCE
from tests.lab.inprocess import InProcess, Peer, avps
from tests.lab.lac import Refused
from tests.server.conftest import QUICK, Serve


def icrq(session_id: int) -> ICRQ:
    return ICRQ(assigned_session_id=session_id, call_serial_number=session_id)


# Forgery: a sender that uses the LAC's address, but receives nothing and does not know our random tunnel id


@pytest.mark.parametrize("kind", ["stopccn", "sccrq"])
def test_nobody_ends_a_tunnel_without_knowing_our_id_whatever_ns_they_guess(server: InProcess, kind: str) -> None:
    lac = server.lac(tunnel_id=7, defaults=QUICK).connect()
    fred = lac.call("fred", "pw").wait_online()
    stop = StopCCN(assigned_tunnel_id=7, result_code=ResultCode(1, 0, ""))
    sccrq = server.peer().sccrq(assigned_tunnel_id=7)
    body = messages.encode(stop if kind == "stopccn" else sccrq)
    for ns in range(1, 20):
        for nr in range(8):
            lac.send_raw(build_control(0, 0, ns, nr, body))
    lac.hello()
    lac.wait_acked()
    server.wait(lambda: server.counters.tunnel_rx_packets > 19 * 8)
    assert [ours.state for ours in server.lns.tunnels.values()] == [TunnelState.ESTABLISHED]
    assert len(server.lns.sessions) == 1 and fred.online


def test_a_forged_sccrq_acknowledges_nothing_in_the_lacs_name(server: InProcess) -> None:
    peer = server.peer()
    peer.say(peer.sccrq())
    ours = server.lns.tunnels[peer.expect(SCCRP).assigned_tunnel_id]
    peer.say(peer.sccrq(), tunnel_id=0, ns=0, nr=1)
    server.wait(lambda: server.counters.drop_malformed == 1)
    assert ours.reliable.unacked == 1


# Reflection: a victim that has asked for nothing


def hears_until_forgotten(server: InProcess, victim: Peer) -> list[bytes]:
    """What comes to a host that never answers."""
    server.wait(lambda: not server.lns.tunnels)
    datagrams = []
    while True:
        try:
            datagrams.append(victim.hear_raw(0.1))
        except TimeoutError:
            return datagrams


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("challenge", [None, b"c", b"c" * 400])
@pytest.mark.parametrize("name", ["lns", "n" * 64])
def test_a_forged_sccrq_brings_its_victim_three_times_its_octets_at_most(
    serve: Serve, timing: TunnelTiming, hide: bool, challenge: bytes | None, name: str
) -> None:
    timing.first_retransmission = 0.02
    timing.establish_timeout = 0.6  # for an SCCRP that is larger than what may be sent
    server = serve(hostname=name, l2tp_secret="s", l2tp_challenge=True, l2tp_hide_avps=hide)
    victim = server.peer()
    forged = victim.say(victim.sccrq(host_name=b"x", challenge=challenge))
    server.wait(lambda: len(server.lns.tunnels) == 1)
    datagrams = hears_until_forgotten(server, victim)
    assert len(datagrams) <= 3
    assert sum(map(len, datagrams)) <= 3 * len(forged)


@pytest.mark.parametrize(
    "body",
    [
        avps("8008 0000 0000 0001"),  # an SCCRQ of nothing: Protocol Version is missing
        avps("8008 0000 0000 0001", "8008 0000 0309 0001"),
        avps("8008 0000 0000 0001", "8007 0000 0007 78", "8008 0000 0009 0007", "8007 0000 000b 63"),
        avps("8008 0000 0000 0002", "8008 0000 0009 0007"),  # an SCCRP without an SCCRQ
    ],
)
def test_a_refusal_is_not_larger_than_three_times_what_it_refuses(server: InProcess, body: bytes) -> None:
    peer = server.peer()
    forged = peer.say(body)
    answer = peer.hear_raw()
    assert len(answer) <= 3 * len(forged)
    assert isinstance(messages.decode(parse_control(answer).body), StopCCN)
    assert server.counters.tunnel_tx_packets == 1


@pytest.mark.parametrize("lost", [1, 3])
def test_a_lac_whose_sccrq_is_small_comes_up_though_sccrps_are_lost(serve: Serve, lost: int) -> None:
    server = serve(hostname="n" * 64, l2tp_secret="s", l2tp_challenge=True)
    peer = server.peer()
    sccrq = peer.say(peer.sccrq(host_name=b"x"))
    for _ in range(lost):
        peer.send(sccrq)  # it has heard nothing
        gevent.sleep(0.02)
    sccrp = peer.expect(SCCRP)
    peer.peer_tunnel_id = sccrp.assigned_tunnel_id
    assert sccrp.challenge is not None
    peer.say(SCCCN(challenge_response=messages.tunnel_auth_response(3, b"s", sccrp.challenge)))
    server.wait(lambda: server.counters.tunnels_opened == 1)


# Tunnels


def test_a_tunnel_refused_before_it_came_up_counts_until_its_lac_has_acknowledged_that(
    serve: Serve, timing: TunnelTiming
) -> None:
    timing.half_open_grace = 3600.0  # no half-open tunnel is evicted
    timing.closed_linger = PATIENCE
    server = serve(max_half_open_per_lac=2)
    peers = [server.peer(tunnel_id=number) for number in range(1, 4)]
    for peer in peers[:2]:
        peer.say(peer.sccrq())
        peer.peer_tunnel_id = peer.expect(SCCRP).assigned_tunnel_id
        peer.say(icrq(1))  # too early
        assert peer.expect(StopCCN).result_code.result == 7
    peers[2].say(peers[2].sccrq())
    server.wait(lambda: server.counters.drop_half_open_limit == 1)
    for peer in peers[:2]:
        peer.acknowledge()
    server.wait(lambda: not server.lns.admission.half_open)


def test_beyond_the_limit_of_closed_tunnels_our_stopccn_is_said_once(
    serve: Serve, limits: TunnelLimits, timing: TunnelTiming
) -> None:
    timing.closed_linger = 0.4
    limits.max_lingering = 3
    server = serve()
    for number in range(1, 9):
        peer = server.peer(tunnel_id=number).open()
        peer.say(peer.sccrq(), tunnel_id=peer.peer_tunnel_id)  # not expected in an established tunnel
        assert peer.expect(StopCCN).result_code.result == 7
    server.wait(lambda: len(server.lns.tunnels) == 3)


def test_with_all_ids_in_use_a_call_is_refused_at_once(serve: Serve, limits: TunnelLimits) -> None:
    server = serve()
    peer = server.peer().open()
    filler = dict.fromkeys(range(1, limits.max_ids + 1))
    server.lns.sessions.update(filler)  # type: ignore[arg-type]
    try:
        with gevent.Timeout(PATIENCE):
            peer.say(icrq(1))
            assert peer.expect(CDN).result_code.result == 4
    finally:
        server.lns.sessions.clear()


# Calls


def never_acknowledging(server: InProcess) -> Peer:
    """Return a tunnel whose LAC acknowledges nothing from now on, but goes on sending."""
    peer = server.peer().open()
    peer.nr = 1
    return peer


@pytest.mark.parametrize("what", ["calls", "calls out", "malformed calls", "calls and their ends"])
def test_a_lac_that_acknowledges_nothing_does_not_fill_the_memory(
    serve: Serve, limits: TunnelLimits, what: str
) -> None:
    limits.max_unanswered = 20
    server = serve(max_starting_calls=1_000_000 if what == "calls and their ends" else 1)
    other = server.lac(defaults=QUICK).connect()
    fred = other.call("fred", "pw").wait_online()
    peer = never_acknowledging(server)
    ours = server.lns.tunnels[peer.peer_tunnel_id]
    say = {
        "calls": lambda number: peer.say(icrq(number), nr=1),
        "calls out": lambda number: peer.say(ocrq(number), nr=1),
        "malformed calls": lambda number: peer.say(messages.encode(icrq(number))[:-10], nr=1),
        "calls and their ends": lambda number: (peer.say(icrq(number), nr=1), peer.say(hang_up(number), nr=1)),
    }[what]
    for number in range(1, 401):
        say(number)
        gevent.sleep(0)
    server.wait(lambda: ours.reliable.nr == peer.ns)
    gevent.sleep(0.05)
    assert ours.reliable.queue_length <= 100  # those that were read at once
    assert fred.online
    server.wait(lambda: not ours.sessions or what == "calls")
    server.lns.tunnels[peer.peer_tunnel_id].end(session.causes.ADMIN_DROP, None)


def ocrq(session_id: int) -> OCRQ:
    return OCRQ(
        assigned_session_id=session_id,
        call_serial_number=1,
        minimum_bps=1,
        maximum_bps=1,
        bearer_type=1,
        framing_type=1,
        called_number=b"1",
    )


def hang_up(session_id: int) -> CDN:
    return CDN(result_code=ResultCode(1, 0, ""), assigned_session_id=session_id)


def test_the_end_of_a_call_is_taken_to_heart_once(server: InProcess) -> None:
    peer = server.peer().open()
    session_id = peer.ring()
    call = server.lns.sessions[session_id]
    for _ in range(50):
        calls.end_call(call.tunnel, session_id, 1, session.SessionEnded(session.causes.LAC_CDN, tell=False))
        calls.refuse_call(call.tunnel, session_id, 1, session.ProtocolError(2, 6, "malformed"))
    assert len(call.link.mailbox) == 1


def test_more_avps_than_there_are_cost_no_time_to_read() -> None:
    body = messages.encode(
        SCCRQ(protocol_version=messages.VERSION_1_0, framing_capabilities=3, host_name=b"lac", assigned_tunnel_id=1)
    )
    with pytest.raises(messages.MessageError, match="more than 100 AVPs") as caught:
        messages.decode(body + bytes.fromhex("0006 0000 0fff") * 650)
    assert (caught.value.result_code, caught.value.error_code, caught.value.assigned_id) == (2, 4, 1)


# Subscribers


def test_who_begins_lcp_again_and_again_is_disconnected(server: InProcess, session_timing: SessionTiming) -> None:
    session_timing.max_renegotiations = 3
    lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw", auth="pap").wait_online()
    for _ in range(2):
        fred.restart()
        fred.wait(lambda: not fred.online)
        fred.wait_online()
    fred.restart()
    assert fred.wait_ended().text == "the subscriber keeps restarting LCP"
    assert len(server.accounting.of("start")) == len(server.accounting.of("stop")) == 3
    assert len(server.backend.asked) == 3


def test_beginning_again_gives_no_more_time_to_log_in(serve: Serve) -> None:
    server = serve(login_timeout=0.6)
    lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw", auth="pap")
    fred.on_frame = lambda way, protocol, packet: None if way == "out" and protocol == Protocol.PAP else packet
    with gevent.Timeout(PATIENCE), pytest.raises(Refused):
        while True:
            gevent.sleep(0.15)
            if fred.ended is not None:
                raise Refused(fred.ended)
            fred.restart()
    assert server.events("session_down")[-1]["cause"] in ("auth_timeout", "login_timeout")


def test_a_question_whose_asker_began_again_is_withdrawn(server: InProcess) -> None:
    """Else a subscriber could keep as many questions open as it can renegotiate while RADIUS is silent."""
    asked = open_questions = 0
    answering = Event()
    answer = server.backend.authenticate

    def slowly(request: AuthRequest) -> object:
        nonlocal asked, open_questions
        asked += 1
        open_questions += 1
        try:
            answering.wait()
            return answer(request)
        finally:
            open_questions -= 1

    server.backend.authenticate = slowly  # type: ignore[method-assign,assignment]
    lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw", auth="pap")
    for number in (1, 2, 3):
        server.wait(lambda number=number: asked == number)
        gevent.sleep(0)
        assert open_questions == 1
        if number < 3:
            fred.restart()
    answering.set()
    fred.wait_online()


def test_flooded_mailboxes_stay_small(server: InProcess) -> None:
    peer = server.peer().open()
    session_id = peer.call()
    call = server.lns.sessions[session_id]
    for _ in range(500):
        peer.send_frame(session_id, bytes.fromhex("ff03 c021 09 01 0008 00000000"))
    gevent.sleep(0.05)
    assert len(call.link.mailbox) <= call.link.mailbox.limit
    gc.collect()
