"""A tunnel in the course of time: HELLO, retransmission, closing, moving (RFC 2661 5.5, 5.7, 5.8, 6.5, 7.6, 8.1)."""

from __future__ import annotations

import time
from ipaddress import IPv4Address

import gevent
import pytest

from l2tpns import causes
from l2tpns.config.settings import Config
from l2tpns.dataplane import udp
from l2tpns.l2tp import tunnel
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.proto.l2tp.header import build_control
from l2tpns.proto.l2tp.messages import CDN, HELLO, SCCCN, SCCRP, ResultCode, StopCCN
from l2tpns.proto.l2tp.reliable import Reliable
from tests.lab import PATIENCE
from tests.lab.inprocess import InProcess, Peer, until
from tests.lab.lac import Why
from tests.server.clocks import TunnelClock
from tests.server.conftest import QUICK, Serve

CLEAR = ResultCode(1, 0, "")


@pytest.fixture
def hasty(timing: TunnelTiming) -> None:
    """Retransmission after 0.05, 0.1, 0.2 s rather than 1, 2, 4."""
    timing.first_retransmission = 0.05


# HELLO


@pytest.mark.statement(62)
@pytest.mark.shows("set hello_interval")
def test_a_silent_lac_gets_a_hello_of_session_0_and_a_talking_one_gets_none(
    tunnel_clock: TunnelClock, serve: Serve
) -> None:
    assert Config().hello_interval == 60
    server = serve(hello_interval=600)
    silent, talking = server.peer().open(), server.lac(defaults=QUICK).connect()
    fred = talking.call("fred", "pw").wait_online()
    for number in (1, 2):  # data is a sign of life as good as control
        tunnel_clock.ahead += 300
        fred.send_udp("198.51.100.2", 9, b"x")
        server.wait(lambda number=number: len(server.plane.delivered) == number)
    header, _ = silent.expect_header(HELLO)
    assert header.session_id == 0
    silent.acknowledge()
    assert talking.hellos == 0
    tunnel_clock.ahead += 600
    talking.wait(lambda: talking.hellos, what="HELLO")
    assert len(server.lns.tunnels) == 2


@pytest.mark.statement(62)
def test_a_message_whose_numbers_do_not_fit_is_no_sign_of_life(tunnel_clock: TunnelClock, serve: Serve) -> None:
    server = serve(hello_interval=600)
    peer = server.peer().open()
    (ours,) = server.lns.tunnels.values()
    tunnel_clock.ahead += 300
    for ns, nr in ((40000, 1), (2, 40000)):
        peer.say(b"", ns=ns, nr=nr)
    peer.send(build_control(0, 0, 0, 0, b"junk"))  # read after them
    server.wait(lambda: server.counters.control_malformed == 1 and not len(ours.mailbox))
    tunnel_clock.ahead += 300
    peer.expect(HELLO)


@pytest.mark.statement(62)
@pytest.mark.parametrize("settings", [{"hello_interval": 0}, {"hello_interval": 0.2, "disable_sending_hello": True}])
@pytest.mark.shows("set disable_sending_hello")
def test_hello_can_be_switched_off(serve: Serve, settings: dict[str, int]) -> None:
    lac = serve(**settings).lac().connect()
    gevent.sleep(0.5)
    assert lac.hellos == 0


@pytest.mark.statement(57, 62)
@pytest.mark.usefixtures("hasty")
def test_a_hello_that_nobody_acknowledges_ends_the_tunnel_and_its_sessions(serve: Serve) -> None:
    server = serve(hello_interval=0.4, control_retries=2)
    lac = server.lac().connect()
    lac.call("fred", "pw").wait_online()
    server.wait(lambda: all(ours.quiet for ours in server.lns.tunnels.values()))
    before = server.counters.control_retransmissions
    lac.vanish()
    server.wait(lambda: not server.lns.tunnels and server.calm)
    assert server.counters.control_retransmissions == before + 2
    assert server.events("tunnel_down")[0]["cause"] == "tunnel_lost"
    (stop,) = server.accounting.of("stop")
    assert stop.terminate_cause == 2  # lost carrier


@pytest.mark.statement(63)
def test_a_hello_of_the_lac_is_acknowledged_and_that_is_all(server: InProcess) -> None:
    peer = server.peer().open()
    peer.say(HELLO())
    header = peer.hear()
    assert (header.body, header.nr) == (b"", peer.ns)
    peer.expect_nothing()


# Reliable delivery through the whole server


@pytest.mark.statement(54, 56)
@pytest.mark.usefixtures("hasty")
def test_a_lost_sccrp_is_sent_again_with_the_same_ns_and_the_nr_of_now(server: InProcess) -> None:
    peer = server.peer()
    peer.say(peer.sccrq())
    first, sccrp = peer.expect_header(SCCRP)
    peer.peer_tunnel_id = sccrp.assigned_tunnel_id
    peer.say(SCCCN(), nr=0)  # the SCCRP has not been received, says its Nr
    again = peer.hear()
    while not again.body or again.nr != 2:
        again = peer.hear()
    assert (first.ns, first.nr, first.body) == (again.ns, 1, again.body)


@pytest.mark.statement(55)
def test_messages_that_overtake_each_other_are_processed_in_order(server: InProcess) -> None:
    peer = server.peer()
    peer.say(peer.sccrq())
    peer.peer_tunnel_id = peer.expect(SCCRP).assigned_tunnel_id
    peer.say(HELLO(), ns=2)
    assert peer.hear().nr == 1  # acknowledged is what came before
    assert not server.events("tunnel_up")
    peer.say(SCCCN(), ns=1)
    assert peer.hear().nr == 3
    assert server.events("tunnel_up")


@pytest.mark.statement(57)
@pytest.mark.usefixtures("hasty")
@pytest.mark.shows("set control_retries")
def test_a_lac_that_asks_for_a_tunnel_and_never_answers_is_forgotten(serve: Serve) -> None:
    server = serve(control_retries=2)
    peer = server.peer()
    peer.say(peer.sccrq())
    peer.expect(SCCRP)
    server.wait(lambda: not server.lns.tunnels)
    assert not server.lns.admission.half_open
    assert server.events("tunnel_down")[0]["cause"] == "tunnel_lost"


def test_a_lac_that_acknowledges_the_sccrp_and_sends_no_scccn_is_told_so(
    server: InProcess, timing: TunnelTiming
) -> None:
    timing.establish_timeout = 0.2
    peer = server.peer()
    peer.say(peer.sccrq())
    peer.peer_tunnel_id = peer.expect(SCCRP).assigned_tunnel_id
    peer.acknowledge()
    assert peer.expect(StopCCN).result_code.result == 1
    peer.acknowledge()
    server.wait(lambda: not server.lns.admission.half_open)


# Closing


@pytest.mark.statement(64)
def test_after_stopccn_repeats_of_it_are_acknowledged_for_a_cycle_of_retransmission(
    tunnel_clock: TunnelClock, server: InProcess, timing: TunnelTiming
) -> None:
    timing.closed_linger = 600.0
    peer = server.peer().open()
    datagram = peer.say(StopCCN(assigned_tunnel_id=peer.tunnel_id, result_code=CLEAR))
    for ahead in (150.0, 200.0, 200.0, 200.0):
        peer.acknowledged()
        tunnel_clock.ahead += ahead
        peer.send(datagram)
    peer.acknowledged()
    server.wait(lambda: not server.lns.tunnels)
    peer.send(datagram)
    server.wait(lambda: server.counters.drop_unknown_tunnel == 1)


@pytest.mark.statement(64)
def test_that_cycle_is_31_seconds() -> None:
    assert Reliable().cycle <= TunnelTiming().closed_linger == 31.0


def test_a_flood_of_closed_tunnels_does_not_fill_the_memory(
    serve: Serve, limits: TunnelLimits, timing: TunnelTiming
) -> None:
    limits.max_lingering = 3
    timing.closed_linger = 0.3
    server = serve()
    for number in range(1, 9):
        peer = server.peer(tunnel_id=number).open()
        peer.say(StopCCN(assigned_tunnel_id=number, result_code=CLEAR))
        peer.acknowledged()
    assert len(server.lns.tunnels) <= 4


@pytest.mark.statement(65)
@pytest.mark.usefixtures("hasty")
def test_our_stopccn_is_sent_again_until_it_is_acknowledged(server: InProcess, timing: TunnelTiming) -> None:
    timing.closed_linger = PATIENCE
    peer = server.peer().open()
    (ours,) = server.lns.tunnels.values()
    ours.end(causes.ADMIN_DROP, text="good night")
    first, stop = peer.expect_header(StopCCN)
    assert (stop.assigned_tunnel_id, stop.result_code) == (ours.id, ResultCode(1, 0, "good night"))
    assert peer.hear().ns == first.ns
    assert server.lns.tunnels
    peer.acknowledge()
    server.wait(lambda: not server.lns.tunnels)


@pytest.mark.statement(65)
@pytest.mark.usefixtures("hasty")
def test_a_stopccn_that_is_never_acknowledged_is_given_up_with_its_tunnel(serve: Serve, timing: TunnelTiming) -> None:
    timing.closed_linger = PATIENCE
    server = serve(control_retries=2)
    peer = server.peer().open()
    server.lns.tunnels[peer.peer_tunnel_id].end(causes.ADMIN_DROP)
    for _ in range(3):
        peer.expect(StopCCN)
    server.wait(lambda: not server.lns.tunnels)


@pytest.mark.statement(30, 65)
def test_a_shutdown_says_cdn_to_the_calls_and_stopccn_to_the_tunnels_and_waits_for_the_answers(
    server: InProcess,
) -> None:
    lac = server.lac().connect()
    fred = lac.call("fred", "pw").wait_online()
    begun = time.monotonic()
    server.lns.shutdown(10 * PATIENCE)
    assert time.monotonic() - begun < PATIENCE
    assert (fred.wait_ended().why, lac.wait_ended().result) == (Why.CDN, 6)
    assert [type(message) for _, message in lac.inbox][-2:] == [CDN, StopCCN]
    assert server.accounting.of("stop")[0].terminate_cause == 7  # admin reboot
    late = server.peer()
    late.say(late.sccrq())
    assert late.expect(StopCCN).result_code.result == 6


@pytest.mark.statement(86)
@pytest.mark.shows("set tunnel_idle_timeout")
def test_a_tunnel_without_sessions_closes_after_a_while_if_that_is_wanted(
    tunnel_clock: TunnelClock, serve: Serve
) -> None:
    assert Config().tunnel_idle_timeout == 0
    server = serve(tunnel_idle_timeout=600, hello_interval=0)
    lac, other = server.lac(defaults=QUICK).connect(), server.lac().connect()
    fred = lac.call("fred", "pw").wait_online()
    tunnel_clock.ahead += 600
    ended = other.wait_ended()
    assert (ended.why, ended.result) == (Why.STOPCCN, 1)
    assert fred.online
    fred.hangup()
    server.wait(lambda: server.calm)
    tunnel_clock.ahead += 600
    assert lac.wait_ended().why is Why.STOPCCN


# Where a LAC is


@pytest.mark.statement(10)
def test_control_and_data_from_another_address_are_dropped(server: InProcess) -> None:
    lac = server.lac().connect()
    fred = lac.call("fred", "pw").wait_online()
    stranger = server.peer()
    stranger.peer_tunnel_id = lac.peer_tunnel_id
    stranger.say(StopCCN(assigned_tunnel_id=lac.tunnel_id, result_code=CLEAR), ns=lac.reliable.ns)
    stranger.send_frame(fred.peer_session_id, bytes.fromhex("ff03 c021 0501 0004"))  # Terminate-Request
    server.wait(lambda: server.counters.drop_wrong_peer == 2)
    lac.hello()
    lac.wait_acked()
    assert fred.online and len(server.lns.sessions) == 1


@pytest.mark.statement(11)
@pytest.mark.shows("set bind_multi_address", "set multi_hostname")
def test_the_answer_leaves_from_the_address_that_was_asked_under_its_own_name(serve: Serve) -> None:
    addresses = (IPv4Address("127.0.0.2"), IPv4Address("127.0.0.3"))
    server = serve(bind_multi_address=addresses, multi_hostname=("two", "three"))
    port = server.address[1]
    for address, name in zip(addresses, (b"two", b"three"), strict=True):
        peer = server.peer()
        peer.lns = (str(address), port)
        peer.say(peer.sccrq())
        assert peer.expect(SCCRP).host_name == name
        assert peer.source == (str(address), port)


def at(server: InProcess, address: str) -> Peer:
    """A LAC of a server that listens everywhere, which it calls at this address."""
    peer = server.peer()
    peer.lns = (address, server.address[1])
    return peer


@pytest.mark.statement(11)
def test_half_open_tunnels_take_no_sockets_and_no_lac_is_locked_out_by_them(serve: Serve) -> None:
    server = serve(bind_multi_address=(IPv4Address(0),))
    lacs = server.plane.lacs
    lacs.max_endpoints = 4
    for number in range(20):
        peer = at(server, f"127.0.9.{number}")
        peer.say(peer.sccrq())
        assert peer.expect(SCCRP) and peer.source == peer.lns
    assert not lacs.endpoints
    up = [at(server, f"127.0.8.{number}").open() for number in range(6)]  # more than there are sockets
    assert sorted(lacs.endpoints) == [f"127.0.8.{number}" for number in range(4)]
    for peer in up:
        assert peer.call() and peer.source == peer.lns


@pytest.mark.statement(11)
@pytest.mark.parametrize("sockets", [0, 4])
def test_a_tunnel_lives_with_and_without_a_socket_of_its_address(serve: Serve, sockets: int) -> None:
    server = serve(bind_multi_address=(IPv4Address(0),))
    lacs = server.plane.lacs
    lacs.max_endpoints = sockets
    lac = server.lac(to=("127.0.0.3", server.address[1]), defaults=QUICK).connect()
    fred = lac.call("fred", "pw").wait_online()
    fred.send_udp("198.51.100.2", 9, b"x")
    server.wait(lambda: len(server.plane.delivered) == 1)
    assert list(lacs.endpoints) == ["127.0.0.3"][:sockets]
    now = time.monotonic() + 10 * udp.ENDPOINT_IDLE_TIMEOUT
    lacs.sweep(now)
    assert list(lacs.endpoints) == ["127.0.0.3"][:sockets]
    lac.stop()
    lac.wait_acked()
    server.wait(lambda: not server.lns.tunnels)
    lacs.sweep(now)
    assert not lacs.endpoints
    peer = at(server, "127.0.0.3").open()
    assert peer.call()


@pytest.mark.statement(54, 58)
def test_more_control_messages_than_fit_are_dropped_and_taken_when_they_come_again(
    server: InProcess, limits: TunnelLimits
) -> None:
    limits.mailbox = 2
    peer = server.peer().open()
    hellos = [
        build_control(peer.peer_tunnel_id, 0, peer.ns + n, peer.nr, b"\x80\x08" + bytes(5) + b"\x06") for n in range(8)
    ]
    for datagram in hellos:
        peer.send(datagram)
    server.wait(lambda: server.counters.drop_mailbox_full > 0)
    for datagram in hellos:
        peer.send(datagram)
        gevent.sleep(0.01)
    peer.ns += 8
    while peer.hear().nr != peer.ns:
        pass


def test_a_failure_of_our_own_while_closing_leaves_no_session_behind(
    server: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.meant = ("tunnel_failed",)
    lac = server.lac(defaults=QUICK).connect()
    lac.call("fred", "pw").wait_online()

    end = tunnel.Session.end

    def fail_while_closing(self: tunnel.Session, reason: causes.Cause, *, tell: bool = True, text: str = "") -> None:
        if text:
            raise RuntimeError("planted")
        end(self, reason, tell=tell)

    monkeypatch.setattr(tunnel.Session, "end", fail_while_closing)
    lac.stop()
    until(lambda: not server.lns.sessions and not server.lns.tunnels)
    assert server.events("session_down")[0]["cause"] == "tunnel_closed"
