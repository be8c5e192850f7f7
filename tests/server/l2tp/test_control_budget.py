"""What messages from any address may cost: a share of the time, and nothing that outlives them."""

from __future__ import annotations

from itertools import count

import gevent
import pytest

from l2tpns.l2tp import strangers
from l2tpns.l2tp.budget import (
    BUSY_SHARE,
    FAIR_SHARE,
    MAX_ADDRESSES,
    MIN_LEFT_BUSY,
    MIN_LEFT_HEAVY,
    MIN_LEFT_UNKNOWN,
    SHARE,
    Budget,
)
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import ControlHeader, build_control
from l2tpns.proto.l2tp.messages import HELLO, SCCCN, SCCRP, SCCRQ, StopCCN
from l2tpns.runtime.log import MAX_LIMITED_PER_SECOND
from l2tpns.runtime.scheduler import SLICE, Scheduler
from tests.lab.inprocess import InProcess, avps
from tests.server.conftest import QUICK, Serve

BURST = TunnelLimits().stranger_burst
A, B, LAC = "192.0.2.1", "192.0.2.2", "192.0.2.3"

# The budget


def worked(budget: Budget, address: str, now: float, seconds: float) -> int:
    """How many messages of 10 ms each are let through."""
    allowed = 0
    for _ in range(1000):
        if not budget.allows(address, now):
            break
        budget.charge(address, seconds)
        allowed += 1
    return allowed


def test_strangers_get_their_share_of_the_time_and_no_more() -> None:
    budget = Budget(BURST, 0.0)
    done = sum(worked(budget, f"198.51.100.{number}", 0.0, 0.001) for number in range(250))
    later = sum(
        worked(budget, f"198.51.100.{number}", 1.0 + tenth / 10, 0.001) for tenth in range(100) for number in (1, 2)
    )
    assert done == pytest.approx(1000 * BURST * (1 - MIN_LEFT_UNKNOWN), abs=2)
    assert later <= 1000 * (SHARE * 11 + BURST) and later > 1000 * SHARE * 5


def test_while_there_is_more_to_read_the_share_is_smaller() -> None:
    budgets = Budget(BURST, 0.0), Budget(BURST, 0.0)
    for budget in budgets:
        budget.left = 0.0
    assert Budget(BURST, 0.0).allows(A, 0.0, busy=True)  # a crowd of LACs after a power failure
    for hundredth in range(1, 11):
        budgets[0].allows(A, hundredth / 100)
        budgets[1].allows(A, hundredth / 100, busy=True)
    assert [budget.left for budget in budgets] == pytest.approx([SHARE * 0.1, BUSY_SHARE * 0.1])


def test_an_address_that_has_used_much_yields_to_the_others() -> None:
    budget = Budget(BURST, 0.0)
    assert worked(budget, A, 0.0, 0.001) == pytest.approx(1000 * BURST * (1 - MIN_LEFT_HEAVY), abs=2)
    assert not budget.allows(A, 0.0)
    assert worked(budget, B, 0.0, 0.001) > 5
    budget = Budget(BURST, 0.0)
    assert worked(budget, B, 0.0, BURST * (1 - MIN_LEFT_BUSY) / 10) > 10


def test_a_lac_that_we_know_finds_a_reserve() -> None:
    budget = Budget(BURST, 0.0)
    budget.add_known(LAC)
    for number in range(250):
        worked(budget, f"198.51.100.{number}", 0.0, 0.001)
    assert not budget.allows(A, 0.0)
    assert worked(budget, LAC, 0.0, 0.001) == pytest.approx(
        1000 * min(MIN_LEFT_UNKNOWN * BURST, FAIR_SHARE * SHARE), abs=2
    )


def test_what_is_remembered_of_addresses_is_bounded() -> None:
    budget = Budget(BURST, 0.0)
    for number in range(3 * MAX_ADDRESSES):
        budget.add_known(str(number))
        budget.charge(str(number), 0.0)
    assert len(budget._known) == len(budget._used) == MAX_ADDRESSES
    assert budget.allows(A, 1.0)
    assert not budget._used  # each second anew


# Through the whole server


@pytest.fixture
def dear(timing: TunnelTiming) -> None:
    """Each look at the CPU's clock finds that an hour of work was done."""
    clock = count(0, 3600)
    timing.cpu_clock = lambda: float(next(clock))


@pytest.mark.usefixtures("dear")
def test_beyond_their_share_strangers_are_dropped_and_counted_and_known_tunnels_go_on(server: InProcess) -> None:
    budget = server.lns.strangers.budget
    lac = server.lac(defaults=QUICK).connect()
    assert budget.left < 0  # what an SCCRQ and a half-open tunnel cost
    stranger = server.peer()
    datagram = stranger.say(stranger.sccrq())
    for _ in range(20):
        stranger.send(datagram)
    server.wait(lambda: server.counters.drop_strangers == 21)
    assert lac.call("fred", "pw").wait_online().online
    lac.hello()
    lac.wait_acked()
    (line,) = server.events("strangers_dropped")
    assert (line["count"], line["peer"]) == (1, f"127.0.0.1:{stranger.address[1]}")
    budget.left = BURST
    stranger.send(datagram)  # as every LAC does that was not answered (5.8)
    assert stranger.expect(SCCRP)


@pytest.mark.usefixtures("dear")
@pytest.mark.parametrize(
    "body", ["8008 0000 0000 0001 8008 0000 0309 0001", "8008 0000 0000 0002", "8008 0000 0000 0063", "80"]
)
def test_malformed_messages_of_strangers_are_charged_as_well(server: InProcess, body: str) -> None:
    peer = server.peer()
    peer.say(avps(body))
    server.wait(lambda: server.lns.strangers.budget.left < 0)
    peer.say(avps(body), ns=0)
    server.wait(lambda: server.counters.drop_strangers == 1)


@pytest.mark.usefixtures("dear")
def test_what_a_half_open_tunnel_does_is_charged_until_its_lac_has_proved_its_address(server: InProcess) -> None:
    budget = server.lns.strangers.budget
    peer = server.peer()
    sccrq = peer.say(peer.sccrq())
    peer.peer_tunnel_id = peer.expect(SCCRP).assigned_tunnel_id
    server.wait(lambda: budget.left < -3600)  # the SCCRQ, and the SCCRP
    budget.left = BURST
    peer.send(sccrq)
    server.wait(lambda: budget.left < -3600)  # the repeat, and the answer to it
    peer.say(SCCCN())
    server.wait(lambda: server.counters.tunnels_opened == 1)
    budget.left = BURST
    peer.say(HELLO())
    while peer.hear().nr != peer.ns:
        pass
    assert budget.left == BURST


# What is cheap comes first


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The messages whose AVPs were all read."""
    bodies: list[bytes] = []
    decode = messages.decode
    monkeypatch.setattr(
        strangers.messages, "decode", lambda body, secret=b"": bodies.append(body) or decode(body, secret)
    )
    return bodies


def test_avps_are_read_only_of_an_sccrq_that_may_have_a_tunnel(
    serve: Serve, timing: TunnelTiming, decoded: list[bytes]
) -> None:
    timing.half_open_grace = 3600.0
    server = serve(max_half_open_tunnels=1)
    first, second = server.peer(), server.peer()
    sccrq = first.say(first.sccrq())
    server.wait(lambda: len(server.lns.tunnels) == 1)
    assert len(decoded) == 1
    first.send(sccrq)  # a repeat
    second.say(second.sccrq())  # no room
    second.say(second.sccrq(), ns=1)  # not the first of its Ns
    second.say(HELLO(), tunnel_id=0)
    second.say(StopCCN(assigned_tunnel_id=5, result_code=messages.ResultCode(1)), tunnel_id=0)
    server.wait(lambda: server.counters.tunnel_rx_packets == 6)
    assert len(decoded) == 1
    assert server.counters.drop_half_open_limit == server.counters.drop_malformed == 1


def test_a_refusal_by_limits_needs_no_more_than_the_assigned_tunnel_id(serve: Serve, decoded: list[bytes]) -> None:
    server = serve(max_tunnels_per_lac=1)
    server.peer(tunnel_id=1).open()
    del decoded[:]
    peer = server.peer(tunnel_id=0x4711)
    peer.say(messages.encode(peer.sccrq()) + avps("8008 0000 0309 0001"))
    header, stop = peer.expect_header(StopCCN)
    assert (header.tunnel_id, stop.result_code.error) == (0x4711, 4)
    assert all(messages.read_message_type(body) != (True, SCCRQ.message_type) for body in decoded)


def test_an_sccrq_that_is_refused_evicts_nobody(serve: Serve, timing: TunnelTiming) -> None:
    timing.half_open_grace = 0.0
    server = serve(max_half_open_tunnels=1)
    first, second = server.peer(tunnel_id=1), server.peer(tunnel_id=2)
    first.say(first.sccrq())
    first.peer_tunnel_id = first.expect(SCCRP).assigned_tunnel_id
    second.say(messages.encode(second.sccrq()) + avps("8008 0000 0309 0001"))
    assert second.expect(StopCCN).result_code.error == 8
    assert server.counters.tunnels_crowded_out == 0
    first.say(SCCCN())
    server.wait(lambda: server.counters.tunnels_opened == 1)


def test_a_challenge_without_a_secret_to_answer_it_makes_no_tunnel(server: InProcess) -> None:
    peer = server.peer()
    peer.say(peer.sccrq(challenge=b"c"))
    assert peer.expect(StopCCN).result_code.result == 4
    assert not server.lns.tunnels and not server.events("tunnel_down")


def test_tunnels_that_any_address_may_begin_and_end_fill_no_log(server: InProcess) -> None:
    for number in range(1, 3 * MAX_LIMITED_PER_SECOND):
        peer = server.peer(tunnel_id=number)
        peer.say(peer.sccrq())
        peer.say(StopCCN(assigned_tunnel_id=number, result_code=messages.ResultCode(1)), tunnel_id=0)
    server.wait(lambda: server.counters.tunnels_closed == 3 * MAX_LIMITED_PER_SECOND - 1)
    seconds = {line["time"][:19] for line in server.events("tunnel_down")}
    assert len(server.events("tunnel_down")) <= MAX_LIMITED_PER_SECOND * (len(seconds) + 1)
    before = len(server.events("tunnel_down"))
    known = [server.peer(tunnel_id=number).open() for number in range(1, 2 * MAX_LIMITED_PER_SECOND)]
    for peer in known:
        peer.say(StopCCN(assigned_tunnel_id=peer.tunnel_id, result_code=messages.ResultCode(1)))
    server.wait(lambda: len(server.events("tunnel_down")) == before + len(known))  # of those each is told


# A tunnel's own flood


def test_a_tunnel_with_a_full_mailbox_yields_after_each_slice(server: InProcess, timing: TunnelTiming) -> None:
    timing.slice = 0.0
    server.services.tunnel_scheduler = Scheduler(load=1.0, length=1e-6)
    peer = server.peer().open()
    (ours,) = server.lns.tunnels.values()
    hello = messages.encode(HELLO())
    begin = ours.reliable.nr
    for number in range(40):
        ours.mailbox.post(ControlHeader(ours.id, 0, begin + number, 1, hello))
    seen = {ours.reliable.nr}
    while ours.reliable.nr != begin + 40:
        gevent.sleep(1e-6)
        seen.add(ours.reliable.nr)
    assert len(seen) > 20  # something else had its turn between most of them
    assert peer.hear().nr > begin  # acknowledged meanwhile, not only in the end


def test_tunnels_with_full_mailboxes_work_one_after_the_other() -> None:
    worked: list[str] = []
    turns = Scheduler(load=1.0, clock=lambda: 1.0 + len(worked) * SLICE)

    def work(name: str) -> None:
        for _ in range(3):
            turns.wait_turn()
            worked.append(name)

    greenlets = [gevent.spawn(work, name) for name in "abc"]
    gevent.sleep(0)
    greenlets[1].kill()
    gevent.joinall(greenlets)
    assert worked == ["a", "c"] * 3


def test_messages_of_hundreds_of_avps_in_a_tunnel_cost_it_and_nobody_else(serve: Serve) -> None:
    server = serve()
    lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw").wait_online()
    peer = server.peer().open()
    (theirs,) = (ours for ours in server.lns.tunnels.values() if ours.peer == peer.address)
    body = messages.encode(HELLO()) + avps("0007 0000 0008 00") + avps("0008 0009 0001 0001") * 90
    for number in range(300):
        peer.send(build_control(peer.peer_tunnel_id, 0, peer.ns + number, peer.nr, body))
        if number % 50 == 49:
            gevent.sleep(0.01)
    peer.ns += 300
    server.wait(lambda: not len(theirs.mailbox))
    assert fred.online
    assert len(server.events("avp_ignored")) == 1  # the same each time
