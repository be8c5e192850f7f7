"""Follow a LAC to another address, and no other sender: auth_tunnel_change_addr_src (RFC 2661 8.1).

`hasty` makes the silence of the old address as short as 0.35 seconds.
"""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from l2tpns import causes
from l2tpns.l2tp import address_change, tunnel
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.header import ControlHeader, build_control
from l2tpns.proto.l2tp.messages import CDN, HELLO, StopCCN
from l2tpns.state.records import TunnelRecord
from l2tpns.state.snapshot import tunnel_record
from tests.lab.endpoint import Endpoint
from tests.lab.inprocess import InProcess, Peer, until
from tests.lab.lac import Lac
from tests.server.conftest import QUICK, Serve

ECHO = bytes.fromhex("ff03 c021 0901 0008 0000 0000")
CLEAR = messages.ResultCode(1, 0, "")


@pytest.fixture(autouse=True)
def hasty(timing: TunnelTiming) -> None:
    timing.first_retransmission = 0.05
    timing.probe_interval = 0.05


def cautious(serve: Serve, **settings: Any) -> InProcess:
    """Start a server that follows LACs, and asks nothing by itself.

    It retransmits for more than half a minute: no tunnel ends because the machine is slow.
    """
    settings.setdefault("control_retries", 10)
    return serve(auth_tunnel_change_addr_src=True, hello_interval=0, **settings)


class Elsewhere:
    """The LAC `peer` speaks from another socket; what comes to the old one is read when it is asked for."""

    def __init__(self, server: InProcess, peer: Peer, local: str = "127.0.0.1") -> None:
        self.server = server
        self.peer = peer
        self.old, self.new = peer.socket, server.peer(local=(local, 0)).socket
        peer.socket = self.new

    @property
    def address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.new.getsockname()
        return address

    def repeat(self, datagram: bytes) -> ControlHeader:
        """Send it again and again, as a LAC does, until something with a body is heard here."""
        sender = gevent.spawn(self._repeat, datagram)
        try:
            while not (header := self.peer.hear()).body:
                pass
            return header
        finally:
            sender.kill()

    def acknowledge_until_followed(self) -> None:
        """Acknowledge the copy again and again: the server takes one message from a new address at a time."""
        tunnel = the_tunnel(self.server, self.peer)

        def followed() -> bool:
            if tunnel.peer != self.address:
                self.peer.acknowledge()
            return tunnel.peer == self.address

        until(followed)

    def _repeat(self, datagram: bytes) -> None:
        while True:
            self.peer.send(datagram)
            gevent.sleep(0.05)


def heard(socket: Any) -> list[bytes]:
    """What waits in a socket."""
    socket.settimeout(0.0)
    found = []
    try:
        while True:
            found.append(socket.recv(4096))
    except OSError:
        return found


def control_heard(socket: Any) -> list[bytes]:
    return [datagram for datagram in heard(socket) if datagram[0] & 0x80]


def the_tunnel(server: InProcess, peer: Peer) -> tunnel.Tunnel:
    return server.lns.tunnels[peer.peer_tunnel_id]


@pytest.mark.statement(10, 13)
@pytest.mark.parametrize("local", ["127.0.0.1", "127.0.0.9"])
@pytest.mark.shows("set auth_tunnel_change_addr_src")
def test_a_lac_that_moved_is_followed_when_the_old_address_is_silent_and_the_new_one_answers(
    serve: Serve, local: str
) -> None:
    server = cautious(serve)
    peer = server.peer().open()
    peer.call()
    peer.acknowledged()
    old = peer.address
    moved = Elsewhere(server, peer, local)
    datagram = peer.say(HELLO())
    question = moved.repeat(datagram)
    assert isinstance(messages.decode(question.body), HELLO)
    assert the_tunnel(server, peer).peer == old  # it has not answered yet
    moved.acknowledge_until_followed()
    peer.send(datagram)
    while peer.hear().nr != peer.ns:
        pass
    (path,) = server.plane.lacs.paths.values()
    assert path.peer == moved.address
    assert list(server.lns.by_peer) == [(moved.address, peer.tunnel_id)]
    assert {len(datagram) for datagram in control_heard(moved.old)} == {20}  # nothing but HELLOs has gone there
    assert [line["new_peer"] for line in server.events("tunnel_moved")] == [f"{local}:{moved.address[1]}"]
    assert server.events("tunnel_move_probed") and not server.events("tunnel_move_refused")
    peer.say(StopCCN(assigned_tunnel_id=peer.tunnel_id, result_code=CLEAR))
    server.wait(lambda: server.events("tunnel_down"))
    assert server.events("tunnel_down")[0]["peer"] == f"{local}:{moved.address[1]}"


def test_a_whole_lac_that_moved_goes_on_with_its_calls(serve: Serve) -> None:
    server = cautious(serve)
    lac: Lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw").wait_online()
    lac.wait_acked()
    (ours,) = server.lns.tunnels.values()
    old, lac.endpoint = lac.endpoint, Endpoint()
    lac.endpoint.lacs = old.lacs
    old.lacs = {}
    lac.hello()
    server.wait(lambda: ours.peer == lac.endpoint.local)
    lac.wait_acked()
    fred.send_udp("198.51.100.2", 9, b"x")
    server.wait(lambda: server.plane.delivered)
    assert fred.online
    mary = lac.call("mary", "pw").wait_online()
    assert mary.online and len(server.lns.tunnels) == 1
    old.close()


@pytest.mark.statement(10)
def test_data_from_elsewhere_moves_nothing_and_has_nobody_asked(serve: Serve) -> None:
    server = cautious(serve)
    peer = server.peer().open()
    session_id = peer.call()
    peer.acknowledged()
    old = peer.address
    elsewhere = Elsewhere(server, peer)
    for _ in range(5):
        peer.send_frame(session_id, ECHO)
    server.wait(lambda: server.counters.drop_wrong_peer == 5)
    assert the_tunnel(server, peer).peer == old
    assert the_tunnel(server, peer).reliable.idle
    assert control_heard(elsewhere.old) == heard(elsewhere.new) == [] and not server.events("tunnel_move_probed")


@pytest.mark.statement(10)
@pytest.mark.parametrize(("ns", "nr"), [(0, 0), (60000, 3), (3, 60000), (2, 4), (300, 3)])
def test_control_messages_whose_numbers_do_not_fit_have_nobody_asked(serve: Serve, ns: int, nr: int) -> None:
    server = cautious(serve)
    peer = server.peer().open()
    for number in (1, 2):
        peer.call(number)
        peer.acknowledged()  # Ns 6, Nr 3 by now
    elsewhere = Elsewhere(server, peer)
    for body in (b"", messages.encode(HELLO())):
        peer.say(body, ns=ns, nr=nr)
    server.wait(lambda: server.counters.drop_wrong_peer == 2)
    assert the_tunnel(server, peer).reliable.idle
    assert control_heard(elsewhere.old) == heard(elsewhere.new) == [] and not server.events("tunnel_move_probed")


@pytest.mark.statement(10)
def test_bare_acknowledgements_from_a_stranger_take_no_tunnel_over(serve: Serve) -> None:
    server = cautious(serve)
    lac: Lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw").wait_online()
    (ours,) = server.lns.tunnels.values()
    stranger = server.peer()
    for number in range(1, 65536, 7):
        stranger.send(build_control(number, 0, 0, 0))
    for nr in range(0, 65536, 31):
        stranger.send(build_control(ours.id, 0, nr, nr))
        if not nr % 310:
            gevent.sleep(0.001)
    stranger.send_frame(fred.peer_session_id, ECHO)
    fred.send_udp("198.51.100.2", 9, b"x")
    server.wait(lambda: server.plane.delivered)
    assert ours.peer == lac.endpoint.local
    assert heard(stranger.socket) == []


@pytest.mark.statement(10)
def test_while_the_lac_answers_a_stranger_who_knows_the_numbers_hears_nothing_and_gets_nothing(serve: Serve) -> None:
    server = cautious(serve)
    lac: Lac = server.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw").wait_online()
    lac.wait_acked()
    (ours,) = server.lns.tunnels.values()
    home = ours.peer
    stranger = server.peer()
    for _ in range(10):
        stranger.send(build_control(ours.id, 0, ours.reliable.nr, ours.reliable.ns))
        stranger.send(build_control(ours.id, 0, ours.reliable.nr, ours.reliable.ns, messages.encode(HELLO())))
        gevent.sleep(0.01)
    server.wait(lambda: server.events("tunnel_move_refused"))
    assert server.events("tunnel_move_refused")[0]["why"] == "the old address answers"
    assert ours.peer == home and heard(stranger.socket) == []
    assert lac.hellos == 1  # and it is not asked again for a while
    stranger.send(build_control(ours.id, 0, ours.reliable.nr, ours.reliable.ns, messages.encode(HELLO())))
    lac.hello()
    lac.wait_acked()
    assert lac.hellos == 1 and fred.online


@pytest.mark.statement(10)
def test_packets_of_subscribers_from_the_old_address_show_that_the_lac_is_there(serve: Serve) -> None:
    server = cautious(serve)
    peer = server.peer().open()
    session_id = peer.call()
    peer.acknowledged()
    ours = the_tunnel(server, peer)
    there = Peer(server.address)
    there.socket, there.peer_tunnel_id = peer.socket, peer.peer_tunnel_id
    moved = Elsewhere(server, peer)
    peer.say(HELLO())
    server.wait(lambda: server.events("tunnel_move_probed"))
    there.send_frame(session_id, ECHO)
    server.wait(lambda: server.events("tunnel_move_refused"))
    assert server.events("tunnel_move_refused")[0]["why"] == "data comes from the old address"
    assert ours.peer == there.address and heard(moved.new) == []
    moved.old.close()


@pytest.mark.statement(10)
def test_a_message_in_the_name_of_the_old_address_whose_numbers_do_not_fit_is_no_answer(serve: Serve) -> None:
    server = cautious(serve)
    peer = server.peer().open()
    there = Peer(server.address)
    there.socket, there.peer_tunnel_id = peer.socket, peer.peer_tunnel_id
    moved = Elsewhere(server, peer)
    hello = peer.say(HELLO())
    server.wait(lambda: server.events("tunnel_move_probed"))
    there.say(b"", ns=40000, nr=40000)
    moved.repeat(hello)
    moved.acknowledge_until_followed()
    assert not server.events("tunnel_move_refused")
    moved.old.close()


@pytest.mark.statement(10)
def test_a_new_address_that_does_not_acknowledge_gets_no_more_than_it_sent_and_no_tunnel(
    serve: Serve, timing: TunnelTiming
) -> None:
    timing.probe_answer = 0.3
    server = cautious(serve, control_retries=5)
    peer = server.peer().open()
    ours, home = the_tunnel(server, peer), peer.address
    moved = Elsewhere(server, peer)
    hello = peer.say(HELLO())
    server.wait(lambda: server.events("tunnel_move_probed"))
    peer.send(hello)
    server.wait(lambda: server.events("tunnel_move_refused"))
    assert server.events("tunnel_move_refused")[0]["why"] == "the new address does not answer"
    assert ours.peer == home
    answers = heard(moved.new)
    assert 1 <= len(answers) <= 2 and sum(map(len, answers)) <= 2 * len(hello)
    # What it repeats acknowledges nothing, however often it comes.
    for _ in range(20):
        peer.send(hello)
        gevent.sleep(0.01)
    assert len(server.events("tunnel_move_probed")) == 1  # this address rests
    server.wait(lambda: server.events("tunnel_down"))
    assert server.events("tunnel_down")[0]["cause"] == "tunnel_lost" and not server.events("tunnel_moved")


def test_until_it_is_decided_control_and_data_go_to_the_old_address(serve: Serve) -> None:
    server = cautious(serve)
    peer = server.peer().open()
    session_id = peer.call()
    peer.acknowledged()
    moved = Elsewhere(server, peer)
    peer.say(HELLO())
    server.wait(lambda: server.events("tunnel_move_probed"))
    session = server.lns.sessions[session_id]
    server.plane.send_frame(session.path, 0xC021, b"\x09\x01\x00\x08abcd")
    gevent.sleep(0.05)
    assert any(datagram.endswith(b"abcd") for datagram in heard(moved.old))
    assert not any(b"abcd" in datagram for datagram in heard(moved.new))


def test_what_was_on_its_way_when_the_lac_moved_reaches_it_at_the_new_address(serve: Serve) -> None:
    server = cautious(serve)
    peer = server.peer().open()
    session_id = peer.call()
    peer.acknowledged()
    moved = Elsewhere(server, peer)
    server.lns.sessions[session_id].end(causes.ADMIN_DROP)
    gevent.sleep(0.05)
    header = moved.repeat(peer.say(HELLO()))
    assert isinstance(messages.decode(header.body), CDN) and header.session_id == 1
    moved.acknowledge_until_followed()
    assert the_tunnel(server, peer).reliable.idle


def test_a_tunnel_does_not_move_to_where_another_with_the_same_id_is(serve: Serve) -> None:
    server = cautious(serve)
    first = server.peer().open()
    second = server.peer(local=("127.0.0.9", 0)).open()
    assert first.tunnel_id == second.tunnel_id
    ours = the_tunnel(server, first)
    second.peer_tunnel_id, second.ns, second.nr = first.peer_tunnel_id, first.ns, first.nr
    second.say(HELLO())
    server.wait(lambda: server.counters.drop_wrong_peer == 1)
    first.say(HELLO())
    first.acknowledged()
    assert ours.peer == first.address and not server.events("tunnel_move_probed")
    assert len(server.lns.by_peer) == 2


def test_probes_of_all_tunnels_together_are_limited(serve: Serve, limits: TunnelLimits) -> None:
    budget = address_change.ProbeBudget(TunnelLimits())
    assert [budget.take(7.5) for _ in range(101)] == [True] * 100 + [False]
    assert budget.take(8.0)
    limits.probes_per_second = 0
    server = cautious(serve)
    peer = server.peer().open()
    ours = the_tunnel(server, peer)
    Elsewhere(server, peer).old.close()
    peer.say(HELLO())
    server.wait(lambda: server.counters.drop_wrong_peer == 1)
    gevent.sleep(0.05)
    assert ours.reliable.idle and not server.events("tunnel_move_probed")


def test_a_lac_that_gets_no_hello_is_not_asked_by_one(serve: Serve) -> None:
    server = cautious(serve, disable_sending_hello=True)
    peer = server.peer().open()
    moved = Elsewhere(server, peer)
    peer.say(HELLO())
    server.wait(lambda: server.counters.drop_wrong_peer == 1)
    gevent.sleep(0.05)
    assert the_tunnel(server, peer).reliable.idle and heard(moved.old) == []


@pytest.mark.parametrize("state", ["half open", "closing"])
def test_a_tunnel_that_is_not_established_does_not_move(serve: Serve, timing: TunnelTiming, state: str) -> None:
    server = cautious(serve)
    peer = server.peer()
    if state == "half open":
        peer.say(peer.sccrq())
        peer.peer_tunnel_id = peer.expect(messages.SCCRP).assigned_tunnel_id
    else:
        timing.closed_linger = 0.5
        peer.open().say(StopCCN(assigned_tunnel_id=peer.tunnel_id, result_code=CLEAR))
        server.wait(lambda: server.events("tunnel_down"))
    moved = Elsewhere(server, peer)
    peer.say(HELLO())
    server.wait(lambda: server.counters.drop_wrong_peer == 1)
    assert heard(moved.new) == [] and not server.events("tunnel_move_probed")


def test_the_saved_state_knows_where_the_lac_has_gone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = cautious(serve)
    peer = server.peer().open()
    written: list[TunnelRecord] = []
    monkeypatch.setattr(server.journal, "tunnel", lambda tunnel: written.append(tunnel_record(tunnel)))
    moved = Elsewhere(server, peer)
    moved.repeat(peer.say(HELLO()))
    moved.acknowledge_until_followed()
    assert [record.peer for record in written] == [moved.address]
