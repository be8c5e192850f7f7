"""Limits, ids and floods: what is refused, how, and that the rest lives on (RFC 2661 4.4.2, 5.8, 9.1)."""

from __future__ import annotations

import gc
from collections import Counter
from itertools import count, pairwise
from time import monotonic

import gevent
import pytest

from l2tpns.l2tp.dispatch import handle_message
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import ControlHeader
from l2tpns.proto.l2tp.messages import CDN, ICCN, ICRP, ICRQ, SCCCN, SCCRP, ResultCode, StopCCN
from l2tpns.subscriber.link import Frame
from tests.lab import PATIENCE
from tests.lab.inprocess import InProcess, Peer
from tests.lab.lac import Lac, Refused, Why
from tests.lab.memory_log import MemoryLog
from tests.server.conftest import QUICK, Serve
from tests.server.subscribers import refused


def ask(server: InProcess, tunnel_id: int = 1) -> tuple[int, int] | None:
    """What a LAC with a port of its own gets for its SCCRQ: None for an SCCRP, else result and error of the StopCCN."""
    peer = server.peer(tunnel_id=tunnel_id)
    peer.say(peer.sccrq())
    answer = peer.expect((SCCRP, StopCCN))
    return None if isinstance(answer, SCCRP) else (answer.result_code.result, answer.result_code.error)


@pytest.fixture(autouse=True)
def time_for_all(limits: TunnelLimits) -> None:
    """Give strangers all the time they want: what they may cost is tested in test_control_budget.py."""
    limits.stranger_burst = 3600.0


@pytest.fixture
def nobody_makes_room(timing: TunnelTiming) -> None:
    """Every half-open tunnel is so young that it may keep its place."""
    timing.half_open_grace = 3600.0


def ring(peer: Peer, session_id: int) -> tuple[int, int] | None:
    """The same for an ICRQ."""
    peer.say(ICRQ(assigned_session_id=session_id, call_serial_number=session_id))
    answer = peer.expect((ICRP, CDN))
    peer.acknowledge()
    return None if isinstance(answer, ICRP) else (answer.result_code.result, answer.result_code.error)


# Tunnels


@pytest.mark.statement(32, 59)
@pytest.mark.usefixtures("nobody_makes_room")
@pytest.mark.parametrize("limit", ["max_tunnels", "max_tunnels_per_lac"])
@pytest.mark.shows("set max_tunnels", "set max_tunnels_per_lac")
def test_one_tunnel_too_many_is_refused_with_no_resources_and_the_others_live_on(serve: Serve, limit: str) -> None:
    server = serve(**{limit: 2})
    lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw").wait_online()
    answers = [ask(server) for _ in range(4)]
    assert answers == [None, (2, 4), (2, 4), (2, 4)]
    assert server.counters.tunnels_refused == 3
    assert len(server.lns.tunnels) == 2
    assert lac.call("mary", "pw").wait_online().online and fred.online


def test_a_tunnel_that_came_up_is_no_longer_half_open(serve: Serve) -> None:
    server = serve(max_half_open_tunnels=1)
    for number in range(1, 4):
        server.peer(tunnel_id=number).open()
    assert server.counters.tunnels_opened == 3
    assert not server.lns.admission.half_open


@pytest.mark.usefixtures("nobody_makes_room")
@pytest.mark.parametrize("limit", ["max_half_open_tunnels", "max_half_open_per_lac"])
@pytest.mark.shows("set max_half_open_tunnels", "set max_half_open_per_lac")
def test_an_sccrq_that_finds_no_room_is_not_answered_and_gets_in_when_it_is_sent_again(
    serve: Serve, limit: str
) -> None:
    server = serve(**{limit: 1})
    first, second = server.peer(), server.peer()
    first.say(first.sccrq())
    first.peer_tunnel_id = first.expect(SCCRP).assigned_tunnel_id
    datagram = second.say(second.sccrq())
    server.wait(lambda: server.counters.drop_half_open_limit == 1)
    second.expect_nothing()
    first.say(SCCCN())
    server.wait(lambda: server.counters.tunnels_opened == 1)
    second.send(datagram)
    assert second.expect(SCCRP)


def test_what_is_said_before_the_server_is_ready_waits(server: InProcess) -> None:
    plane = server.services.plane
    plane.hold()
    peer = server.peer()
    peer.say(peer.sccrq())
    peer.expect_nothing()
    assert not server.lns.tunnels and not server.counters.tunnel_rx_packets
    plane.resume()
    assert peer.expect(SCCRP)


def test_a_tunnel_that_was_closed_leaves_its_place_to_the_next(serve: Serve, timing: TunnelTiming) -> None:
    timing.closed_linger = 0.5
    server = serve(max_tunnels=1)
    peer = server.peer().open()
    assert ask(server) == (2, 4)
    peer.say(StopCCN(assigned_tunnel_id=peer.tunnel_id, result_code=ResultCode(1, 0, "")))
    peer.acknowledged()
    assert len(server.lns.tunnels) == 1  # it goes on acknowledging
    assert ask(server) is None


@pytest.mark.usefixtures("nobody_makes_room")
def test_a_flood_of_sccrqs_costs_no_memory_and_few_answers(
    serve: Serve, timing: TunnelTiming, limits: TunnelLimits
) -> None:
    limits.refusals_per_second = 20
    timing.clock = lambda: 1000.0  # all within one second
    server = serve(max_tunnels_per_lac=4)
    peer = server.peer()
    for number in range(1, 301):
        peer.say(peer.sccrq(assigned_tunnel_id=number), ns=0)
        if number % 50 == 0:
            server.wait(lambda seen=number: server.counters.tunnel_rx_packets == seen)
    assert len(server.lns.tunnels) == len(server.lns.by_peer) == server.lns.admission.half_open.total() == 4
    server.wait(lambda: server.counters.tunnel_tx_packets == 24)  # 4 SCCRP, 20 StopCCN
    assert server.counters.tunnels_refused == 296
    timing.clock = monotonic


def half_open_at(server: InProcess, host: str, tunnel_id: int = 1) -> Peer:
    """A LAC that has its SCCRP and says no more."""
    peer = server.peer(tunnel_id=tunnel_id, local=(host, 0))
    peer.say(peer.sccrq())
    peer.peer_tunnel_id = peer.expect(SCCRP).assigned_tunnel_id
    return peer


def may_go_on(server: InProcess, peer: Peer) -> bool:
    """Whether its tunnel is still there: it comes up with the SCCCN."""
    opened, unknown = server.counters.tunnels_opened, server.counters.drop_unknown_tunnel
    peer.say(SCCCN())
    server.wait(
        lambda: server.counters.tunnels_opened > opened or server.counters.drop_unknown_tunnel > unknown, PATIENCE
    )
    return server.counters.tunnels_opened > opened


def test_the_oldest_half_open_tunnel_makes_room_and_hears_nothing_of_it(serve: Serve, timing: TunnelTiming) -> None:
    timing.half_open_grace = 0.0
    server = serve(max_half_open_tunnels=3)
    good = server.lac(defaults=QUICK).connect()
    peers = [half_open_at(server, f"127.0.0.{number}") for number in range(2, 6)]
    assert server.counters.tunnels_crowded_out == 1 and not server.counters.tunnels_refused
    assert len(server.lns.tunnels) == 1 + 3 and len(server.lns.by_peer) == 1 + 3
    assert not server.counters.tunnels_closed  # nothing is said
    assert [may_go_on(server, peer) for peer in peers] == [False, True, True, True]
    assert good.call("fred", "pw").wait_online().online  # what is established never makes room
    assert [line["peer"] for line in server.events("tunnel_crowded_out")] == [f"127.0.0.2:{peers[0].address[1]}"]


def test_an_address_that_has_most_half_open_tunnels_makes_room_first(serve: Serve, timing: TunnelTiming) -> None:
    timing.half_open_grace = 0.0
    server = serve(max_half_open_tunnels=3)
    single = half_open_at(server, "127.0.0.2")
    many = [half_open_at(server, "127.0.0.3", tunnel_id) for tunnel_id in (1, 2)]
    newcomer = half_open_at(server, "127.0.0.4")
    assert [may_go_on(server, peer) for peer in (single, *many, newcomer)] == [True, False, True, True]


@pytest.mark.parametrize("limit", ["max_half_open_per_lac", "max_tunnels"])
def test_other_limits_that_half_open_tunnels_reach_keep_nobody_out_either(
    serve: Serve, timing: TunnelTiming, limit: str
) -> None:
    timing.half_open_grace = 0.0
    server = serve(**{limit: 2})
    elsewhere = half_open_at(server, "127.0.0.9") if limit == "max_half_open_per_lac" else None
    peers = [half_open_at(server, "127.0.0.2", tunnel_id) for tunnel_id in (1, 2, 3)]
    assert [may_go_on(server, peer) for peer in peers] == [False, True, True]
    assert elsewhere is None or may_go_on(server, elsewhere)


def test_a_tunnel_whose_scccn_has_come_does_not_make_room(serve: Serve, timing: TunnelTiming) -> None:
    timing.half_open_grace = 0.0
    server = serve(max_half_open_tunnels=1)
    first = half_open_at(server, "127.0.0.2")
    (tunnel,) = server.lns.tunnels.values()
    tunnel.mailbox.post_urgent(ControlHeader(tunnel.id, 0, 9, 0, b""))  # what it is does not matter
    assert server.lns.admission.half_open.oldest(float("inf")) is None
    assert may_go_on(server, first)


def test_a_lac_comes_up_while_sccrqs_from_everywhere_fill_all_places(serve: Serve, timing: TunnelTiming) -> None:
    timing.half_open_grace = 0.0
    server = serve(max_half_open_tunnels=64, max_half_open_per_lac=4)
    floods = [server.peer(local=(f"127.0.1.{number}", 0)) for number in range(1, 65)]
    numbers = count(1)

    def flood(sccrqs: int) -> None:
        """Each as good as the first of a LAC; returns when all are read."""
        before = server.counters.tunnels_crowded_out + len(server.lns.admission.half_open)
        for peer in (floods * (sccrqs // len(floods) + 1))[:sccrqs]:
            peer.say(peer.sccrq(assigned_tunnel_id=next(numbers)), ns=0)
            gevent.sleep(0)
        server.wait(
            lambda: server.counters.tunnels_crowded_out + len(server.lns.admission.half_open) == before + sccrqs,
            PATIENCE,
        )

    flood(200)
    good = server.peer()
    good.say(good.sccrq())
    good.peer_tunnel_id = good.expect(SCCRP, PATIENCE).assigned_tunnel_id
    flood(60)  # within its round trip: nearly all places change hands
    assert may_go_on(server, good)
    flood(200)
    assert len(server.lns.admission.half_open) == 64 and len(server.lns.tunnels) == 64 + 1
    assert good.ring()
    assert server.counters.drop_half_open_limit == 0


# Calls


@pytest.mark.statement(31, 59)
@pytest.mark.parametrize("limit", ["max_starting_calls", "max_starting_per_lac", "max_sessions"])
@pytest.mark.shows("set max_starting_calls", "set max_starting_per_lac", "set max_sessions")
def test_one_call_too_many_is_told_to_try_later_and_the_others_live_on(serve: Serve, limit: str) -> None:
    server = serve(**{limit: 3})
    lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw").wait_online()
    peer = server.peer().open()
    answers = [ring(peer, number) for number in range(1, 6)]
    allowed = 2 if limit == "max_sessions" else 3
    assert [answer is None for answer in answers] == [True] * allowed + [False] * (5 - allowed)
    assert set(answers[allowed:]) == {(4, 4)}
    assert server.counters.calls_refused == 5 - allowed
    assert len(server.lns.sessions) == 1 + allowed
    lac.hello()
    lac.wait_acked()
    assert fred.online


def test_a_call_that_ended_or_is_online_is_no_longer_starting(serve: Serve) -> None:
    server = serve(max_starting_calls=1)
    lac = server.lac(defaults=QUICK).connect()
    for user in ("fred", "mary", "guest"):
        lac.call(user, "pw").wait_online()
        server.wait(lambda: not server.lns.admission.starting)
    assert refused(lac.call("eve", "pw")) == (3, 0)
    server.wait(lambda: not server.lns.admission.starting)
    assert lac.call("eve", "pw", auth="pap").wait_ended().result == 3


def test_calls_of_one_lac_do_not_use_up_the_share_of_another(serve: Serve) -> None:
    server = serve(max_starting_per_lac=2)
    peer = server.peer().open()
    assert [ring(peer, number) for number in (1, 2)] == [None, None]
    server.lns.admission.starting["192.0.2.1"] += 5  # as if another address had these
    assert ring(peer, 3) == (4, 4)
    server.lns.admission.starting["127.0.0.1"] -= 1
    assert ring(peer, 4) is None
    server.lns.admission.starting["127.0.0.1"] += 1
    del server.lns.admission.starting["192.0.2.1"]


def test_there_are_never_more_sessions_than_ids(serve: Serve, limits: TunnelLimits) -> None:
    limits.max_ids = 2
    peer = serve(max_sessions=100_000).peer().open()
    assert [ring(peer, number) for number in (1, 2, 3)] == [None, None, (4, 4)]


def test_an_empty_pool_ends_the_call_and_not_the_others(serve: Serve) -> None:
    server = serve("10.5.0.1\n")
    lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw").wait_online()
    ended = lac.call("mary", "pw").wait_ended()
    assert (ended.why, ended.result, ended.error) == (Why.CDN, 2, 7)  # try another
    assert server.counters.no_address == 1
    fred.hangup()
    server.wait(lambda: server.calm)
    assert str(lac.call("mary", "pw").wait_online().address) == "10.5.0.1"


def test_an_iccn_that_finds_the_mailbox_full_connects_the_call_all_the_same(server: InProcess) -> None:
    peer = server.peer().open()
    session = server.lns.sessions[peer.ring()]
    while session.link.mailbox.post(Frame(0xC021, b"junk")):
        pass
    body = messages.encode(ICCN(tx_connect_speed=1_000_000, framing_type=1))
    header = ControlHeader(session.tunnel.id, session.id, 2, 0, body)
    for _ in range(2):  # without a yield, before the session reads its mailbox; the second is an error of the LAC
        handle_message(session.tunnel, header)
    assert server.counters.drop_mailbox_full == 1
    server.wait(lambda: session.phase.value == "lcp")


def test_a_session_that_does_not_read_its_mail_does_not_fill_the_memory(server: InProcess) -> None:
    peer = server.peer().open()
    session_id = peer.ring()
    session = server.lns.sessions[session_id]
    for _ in range(session.link.mailbox.limit + 50):
        session.link.post_frame(0xC021, b"\x09\x01\x00\x08\0\0\0\0")
    assert len(session.link.mailbox) == session.link.mailbox.limit
    assert server.counters.drop_mailbox_full == 50


# Ids (9.1)


def chi_square(values: list[int], buckets: int) -> float:
    expected = len(values) / buckets
    return sum((count - expected) ** 2 / expected for count in Counter(v % buckets for v in values).values())


@pytest.mark.statement(6, 7)
@pytest.mark.parametrize("kind", ["tunnel", "session"])
def test_assigned_ids_are_never_zero_never_twice_and_cannot_be_guessed(server: InProcess, kind: str) -> None:
    """2,000 ids in 16 buckets, by their low and their high bits; 52 is exceeded once in a million times."""
    table = server.lns.tunnels if kind == "tunnel" else server.lns.sessions
    ids: list[int] = []
    for _ in range(2000):
        ids.append(server.lns.unused_tunnel_id() if kind == "tunnel" else server.lns.unused_session_id())
        table[ids[-1]] = None  # type: ignore[assignment]
    table.clear()
    assert 0 not in ids and len(set(ids)) == 2000 and max(ids) <= 0xFFFF
    assert chi_square(ids, 16) < 52 and chi_square([number >> 12 for number in ids], 16) < 52
    assert sum(after == before + 1 for before, after in pairwise(ids)) < 3  # no run
    rises = sum(after > before for before, after in pairwise(ids))
    assert 850 < rises < 1150


@pytest.mark.statement(6)
def test_an_id_of_zero_or_in_use_is_drawn_again(server: InProcess) -> None:
    numbers = [0, 7, 7, 9]
    server.services.random = lambda n: numbers.pop(0).to_bytes(n, "big")
    assert server.lns.unused_session_id() == 7
    server.lns.sessions[7] = None  # type: ignore[assignment]
    assert server.lns.unused_session_id() == 9
    server.lns.sessions.clear()


# A life after a storm


def test_after_hundreds_of_calls_nothing_is_left_and_nothing_has_grown(serve: Serve) -> None:
    server = serve(echo_timeout=0)
    lac = server.lac(defaults=QUICK).connect()
    storm(server, lac, 30)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(4):
        storm(server, lac, 30)
    server.log = MemoryLog()
    server.accounting.records.clear()
    server.backend.asked.clear()
    lac.inbox.clear()
    server.greenlets[:] = [greenlet for greenlet in server.greenlets if not greenlet.dead]
    gc.collect()
    assert len(gc.get_objects()) - before < 3000  # 120 sessions are more than 20,000 objects
    assert server.counters.sessions_ended == 5 * 31


def storm(server: InProcess, lac: Lac, count: int) -> None:
    for number in range(count):
        server.backend.passwords[f"user{number}"] = b"pw"
    calls = [lac.call(f"user{number}", "pw") for number in range(count)]
    for call in calls:
        call.wait_online()
    for number, call in enumerate(calls):
        call.hangup() if number % 2 else call.terminate()
    server.wait(lambda: server.calm)
    with pytest.raises(Refused):
        lac.call("eve", "pw").wait_online()
    server.wait(lambda: server.calm)
