"""Addresses that this server itself needs: no session gets one, whatever assigns it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from l2tpns import causes
from l2tpns.dataplane.session_path import SessionPath
from l2tpns.radius.types import Assign, AuthReply, FramedRoute
from l2tpns.state.restore import resume
from l2tpns.state.store import StateStore
from l2tpns.system.surroundings import Surroundings
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac
from tests.lab.packets import ip
from tests.server.conftest import QUICK, Serve
from tests.server.lives import end_process

NEEDED = "192.0.2.7"
AROUND = Surroundings(
    own={IPv4Network(NEEDED): "an address of eth0"},
    connected={IPv4Network("198.51.100.0/24"): "the network of eth1"},
)


@pytest.fixture
def guarded(server: InProcess) -> InProcess:
    server.services.guard.apply_surroundings(AROUND)
    return server


@pytest.mark.parametrize(
    "address", [NEEDED, "198.51.100.9", "10.255.0.1", "255.255.255.255", "224.0.0.1", "169.254.0.9"]
)
@pytest.mark.parametrize("assign", [Assign.FIXED, Assign.PEER])
def test_an_address_that_is_needed_is_given_to_no_subscriber(guarded: InProcess, address: str, assign: Assign) -> None:
    wanted = IPv4Address(address)
    named = wanted if assign is Assign.FIXED else None
    guarded.backend.replies["fred"] = AuthReply(accepted=True, assign=assign, address=named)
    lac = guarded.lac(defaults=QUICK).connect()
    fred = lac.call("fred", "pw", address=wanted if assign is Assign.PEER else None)
    assert fred.wait_ended().result in (2, 4)
    guarded.wait(lambda: guarded.calm)
    if assign is Assign.FIXED:
        (line,) = guarded.events("address_refused")
        assert (line["address"], line["user"]) == (address, "fred") and address in line["why"]
    assert lac.call("mary", "pw").wait_online().address == IPv4Address("10.5.0.1")


def test_a_framed_route_that_contains_what_is_needed_is_left_out_and_the_login_goes_on(guarded: InProcess) -> None:
    words = ("192.0.2.0/29", "198.51.0.0/16", "10.9.0.0/24", f"{NEEDED}/32")
    routes = tuple(FramedRoute(IPv4Network(word)) for word in words)
    guarded.backend.replies["fred"] = AuthReply(accepted=True, routes=routes)
    fred = guarded.lac(defaults=QUICK).connect().call("fred", "pw").wait_online()
    guarded.wait(lambda: guarded.accounting.of("start"))
    assert guarded.plane.busy["routes"] == sorted([f"{fred.address}/32", "10.9.0.0/24"])
    assert [line["why"] for line in guarded.events("framed_route_refused")] == [
        f"192.0.2.0/29 contains {NEEDED}, an address of eth0",
        "198.51.0.0/16 overlaps 198.51.100.0/24, the network of eth1",
        f"{NEEDED} is an address of eth0",
    ]
    assert guarded.accounting.of("start")[0].routes == (FramedRoute(IPv4Network("10.9.0.0/24")),)


def test_what_the_pool_cannot_give_out_is_named_and_given_to_nobody(serve: Serve) -> None:
    server = serve("198.51.100.9\n192.0.2.6/31\n")
    server.services.guard.apply_surroundings(AROUND)
    told = {(line["network"], line["why"]) for line in server.events("pool_address_withheld")}
    assert told == {
        ("198.51.100.9/32", "198.51.100.0/24 is part of the network of eth1; see routed_networks"),
        (f"{NEEDED}/32", f"{NEEDED} is an address of eth0"),
    }
    lac = server.lac(defaults=QUICK).connect()
    assert lac.call("fred", "pw").wait_online().address == IPv4Address("192.0.2.6")
    assert lac.call("mary", "pw").wait_ended().text == "the address pool is exhausted"


def test_an_address_that_becomes_ours_later_leaves_the_pool_and_not_its_route(server: InProcess, lac: Lac) -> None:
    server.plane.serve(server.pool.prefixes())
    fred = lac.call("fred", "pw").wait_online()
    assert fred.address == IPv4Address("10.5.0.1")
    ours = IPv4Network("10.5.0.2")
    server.services.guard.apply_surroundings(Surroundings(own={ours: "an address of eth0"}))
    assert server.plane.kernel.routes == [IPv4Network("10.5.0.0/24")]
    assert lac.call("mary", "pw").wait_online().address == IPv4Address("10.5.0.3")
    server.services.guard.apply_surroundings(Surroundings())
    assert ours not in server.pool.withheld
    server.plane.serve(())


def test_who_has_an_address_of_a_network_that_is_connected_later_keeps_its_way(server: InProcess, lac: Lac) -> None:
    server.plane.serve(server.pool.prefixes())
    fred = lac.call("fred", "pw").wait_online()
    server.services.guard.apply_surroundings(
        Surroundings(connected={IPv4Network("10.5.0.0/25"): "the network of eth9"})
    )
    routes = server.plane.kernel.routes
    assert sorted(routes) == [IPv4Network(f"{fred.address}/32"), IPv4Network("10.5.0.128/25")]
    assert lac.call("mary", "pw").wait_online().address == IPv4Address("10.5.0.128")
    fred.terminate()
    fred.wait_ended()
    server.wait(lambda: routes == [IPv4Network("10.5.0.128/25")])
    server.plane.serve(())


# LACs


def test_a_lac_keeps_its_address_after_its_tunnel_is_gone(server: InProcess) -> None:
    peer = server.peer().open()
    address = IPv4Address(peer.address[0])
    server.wait(lambda: server.services.guard.routable.is_lac(address))
    for tunnel in list(server.lns.tunnels.values()):
        tunnel.end(causes.ADMIN_DROP, None)
    server.wait(lambda: not server.lns.tunnels)
    assert server.services.guard.routable.is_lac(address)


def test_an_sccrq_from_a_subscribers_address_is_not_answered(
    server: InProcess, lac: Lac, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply would go into the tun device, and a forged SCCRQ must not take a subscriber's address."""
    lac.call("fred", "pw").wait_online()
    (path,) = server.plane.lacs.paths.values()

    def at(address: IPv4Address) -> SessionPath | None:
        return path if address == IPv4Address("127.0.0.9") else None

    monkeypatch.setattr(server.plane, "subscriber_at", at)
    stranger = server.peer(local=("127.0.0.9", 0))
    stranger.say(stranger.sccrq())
    server.wait(lambda: server.counters.lacs_refused == 1)
    (line,) = server.events("lac_refused")
    assert line["why"] == "127.0.0.9 is routed to the subscriber fred"
    stranger.expect_nothing()
    assert len(server.lns.tunnels) == 1


# Saved state


def test_a_saved_session_whose_address_is_needed_by_now_is_not_resumed_and_loses_only_such_routes(
    tmp_path: Path,
) -> None:
    settings = {"save_state": True, "hello_interval": 0}
    first = InProcess(**settings)
    for user, address in (("fred", NEEDED), ("mary", "10.9.0.1")):
        route = (FramedRoute(IPv4Network("192.0.2.0/29")), FramedRoute(IPv4Network("10.8.0.0/24")))
        first.backend.replies[user] = AuthReply(True, assign=Assign.FIXED, address=IPv4Address(address), routes=route)
    store = StateStore(tmp_path / "state", first.log.get())
    store.open()
    first.start()
    port = first.plane.lacs.port
    first.core.keep_state(store)
    first.journal.start()
    lac = Lac(("127.0.0.1", 0), first.address, defaults=QUICK).connect()
    for user in ("fred", "mary"):
        lac.call(user, "pw").wait_online()
    first.wait(lambda: len(first.accounting.of("start")) == 2)
    assert first.core.hand_over()
    end_process(first)
    store.close()
    second = InProcess(**settings)
    store = StateStore(tmp_path / "state", second.log.get())
    store.open()
    saved = store.load(300)
    second.plane.lacs.port = port
    second.start()
    second.services.guard.apply_surroundings(AROUND)
    resumed = resume(second.lns, second.journal, saved)
    assert [session.user for session in resumed.sessions] == ["mary"]
    (line,) = second.events("session_not_resumed")
    assert (line["user"], line["why"]) == (
        "fred",
        f"its address {NEEDED} is unavailable: {NEEDED} is an address of eth0",
    )
    assert second.plane.busy["routes"] == ["10.8.0.0/24", "10.9.0.1/32"]
    second.journal.halt()
    assert second.stop() == {}
    store.close()
    lac.leave()


# Our own packets


def test_an_l2tp_packet_of_ours_that_comes_out_of_the_tun_device_is_dropped_and_reported(
    server: InProcess, lac: Lac
) -> None:
    fred = lac.call("fred", "pw").wait_online()
    server.plane._forwarder.l2tp_port = server.plane.lacs.port.to_bytes(2, "big")
    header = server.plane.lacs.port.to_bytes(2, "big") + bytes.fromhex("06a5 000c 0000")
    before = server.counters.tunnel_tx_packets
    for _ in range(100):
        server.plane.deliver(ip("127.0.0.1", str(fred.address), header + b"L2TP", protocol=17))
    assert server.counters.drop_own_l2tp == 100
    assert server.counters.tunnel_tx_packets == before
    assert 1 <= len(server.events("own_l2tp_dropped")) <= 20  # in one second, or two
    assert server.events("own_l2tp_dropped")[0]["lac"] == str(fred.address)
    # Another server's L2TP to a subscriber is a packet like any other.
    server.plane.deliver(ip("203.0.113.5", str(fred.address), header + b"L2TP", protocol=17))
    assert server.counters.tunnel_tx_packets == before + 1
