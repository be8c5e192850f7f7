"""Taps on a session's packets and their order: hooks, copies, monitors."""

from __future__ import annotations

import pytest

from l2tpns.dataplane.session_path import DOWN, UP, SessionPath, Tap
from l2tpns.subscriber.session import Session
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Subscriber
from tests.lab.packets import ip, tcp_syn
from tests.unit.dataplane.test_forward import CLIENT, HEADER, HOST, Rig, acl

Seen = list[tuple[int, bytes]]


def hook(session: Session) -> Tap:
    """Stand for a packet hook of a plugin: append a mark to each packet."""
    return lambda direction, packet: packet + b"!"


def watched(rig: Rig) -> Seen:
    seen: Seen = []
    rig.path.mirror = lambda direction, packet: seen.append((direction, packet))
    rig.path.changed()
    return seen


def online(server: InProcess, lac: Lac, name: str = "fred") -> tuple[Subscriber, Session]:
    subscriber = lac.call(name, "pw").wait_online()
    return subscriber, next(iter(server.registry.by_user[name]))


# The data path


def test_a_copy_is_what_the_subscriber_sent_before_any_hook_and_what_it_gets_after_all_of_them() -> None:
    rig = Rig()
    seen = watched(rig)
    rig.path.packet_hook = lambda direction, packet: packet + b"!"
    rig.path.changed()
    up, down = ip(CLIENT, HOST), ip(HOST, CLIENT)
    rig.up(up)
    assert rig.down(down) == [HEADER + down + b"!"]
    assert rig.written == [up + b"!"] and seen == [(UP, up), (DOWN, down + b"!")]


def test_a_copy_of_a_syn_has_the_mss_that_the_subscriber_sent_and_the_one_that_it_gets() -> None:
    rig = Rig(mru=576)
    seen = watched(rig)
    up, down = tcp_syn(CLIENT, HOST, 1460), tcp_syn(HOST, CLIENT, 1460)
    rig.up(up)
    datagrams = rig.down(down)
    assert rig.written[0] != up and seen == [(UP, up), (DOWN, datagrams[0][len(HEADER) :])]
    assert seen[1][1] != down


def test_what_the_subscriber_sends_is_copied_even_if_a_filter_or_a_hook_drops_it_but_not_what_it_does_not_get() -> None:
    rig = Rig()
    seen = watched(rig)
    rig.path.filter_in = rig.path.filter_out = acl("deny ip any any")
    rig.path.changed()
    rig.up(ip(CLIENT, HOST))
    rig.down(ip(HOST, CLIENT))
    rig.path.filter_in = rig.path.filter_out = None
    rig.path.packet_hook = lambda direction, packet: None
    rig.path.changed()
    rig.up(ip(CLIENT, HOST))
    rig.down(ip(HOST, CLIENT))
    assert seen == [(UP, ip(CLIENT, HOST))] * 2


def test_a_packet_from_an_address_that_is_not_the_subscribers_is_not_copied() -> None:
    rig = Rig()
    seen = watched(rig)
    rig.up(ip("10.0.0.6", HOST))
    assert seen == []


def test_of_a_packet_that_is_cut_each_piece_is_copied_and_one_that_is_refused_is_not() -> None:
    rig = Rig(mru=576)
    seen = watched(rig)
    datagrams = rig.down(ip(HOST, CLIENT, bytes(1000)))
    assert len(datagrams) == 2 and seen == [(DOWN, datagram[len(HEADER) :]) for datagram in datagrams]
    rig.down(ip(HOST, CLIENT, bytes(1000), df=True))
    assert len(seen) == 2


def test_what_packet_limit_or_the_kernel_keeps_from_the_subscriber_is_not_copied() -> None:
    rig = Rig(packet_limit=1)
    seen = watched(rig)
    rig.down(ip(HOST, CLIENT))
    rig.down(ip(HOST, CLIENT))
    rig.clock.now += 1
    rig.endpoint.refuses = True
    rig.down(ip(HOST, CLIENT))
    assert seen == [(DOWN, ip(HOST, CLIENT))]


# The parts


def test_nobody_pays_while_nobody_wants_packets(server: InProcess, lac: Lac) -> None:
    _, session = online(server, lac)
    assert session.path.packet_hook is None and session.path.mirror is None


def test_hooks_that_come_and_go_are_found_by_sessions_that_are_online(server: InProcess, lac: Lac) -> None:
    _, session = online(server, lac)
    server.plugins.packet_tap = hook
    server.services.taps.rebuild_all()
    assert session.path.packet_hook is not None and session.path.packet_hook(UP, b"x") == b"x!"
    _, mary = online(server, lac, "mary")
    assert mary.path.packet_hook is not None
    server.plugins.packet_tap = lambda session: None
    server.services.taps.rebuild_all()
    assert session.path.packet_hook is mary.path.packet_hook is None


def test_every_monitor_sees_the_packets_until_it_goes(server: InProcess, lac: Lac) -> None:
    _, session = online(server, lac)
    taps = server.services.taps
    first: Seen = []
    second: Seen = []

    def note(direction: int, packet: bytes) -> None:
        first.append((direction, packet))

    def note_too(direction: int, packet: bytes) -> None:
        second.append((direction, packet))

    taps.watch(session, note)
    taps.watch(session, note_too)
    packet = ip("192.0.2.1", str(session.address))
    server.plane.deliver(packet)
    taps.unwatch(session, note)
    server.plane.deliver(packet)
    assert first == [(DOWN, packet)] and second == [(DOWN, packet)] * 2
    taps.unwatch(session, note_too)
    assert session.path.mirror is None


def test_a_monitor_stays_while_the_subscriber_begins_again(server: InProcess, lac: Lac) -> None:
    subscriber, session = online(server, lac)
    seen: Seen = []

    def note(direction: int, packet: bytes) -> None:
        seen.append((direction, packet))

    server.services.taps.watch(session, note)
    ups = server.counters.sessions_online
    subscriber.restart()
    server.wait(lambda: server.counters.sessions_online == ups + 1)
    server.plane.deliver(ip("192.0.2.1", str(session.address)))
    assert len(seen) == 1
    server.services.taps.unwatch(session, note)


def test_a_session_that_has_gone_is_held_by_nobody(server: InProcess, lac: Lac) -> None:
    subscriber, session = online(server, lac)
    server.plugins.packet_tap = hook
    server.services.taps.rebuild_all()
    subscriber.hangup()
    server.wait(lambda: not server.lns.sessions)
    assert session.path.packet_hook is session.path.mirror is None


def test_the_data_plane_is_told_that_an_ended_session_has_no_policer_hook_or_copy_left(
    server: InProcess, lac: Lac, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriber, session = online(server, lac)
    path, applied = session.path, []
    changed = server.services.plane.changed

    def apply(path: SessionPath) -> None:
        applied.append((path.policer, path.packet_hook, path.mirror))
        changed(path)

    monkeypatch.setattr(server.services.plane, "changed", apply)
    server.plugins.packet_tap = hook
    server.services.taps.watch(session, lambda direction, packet: None)
    server.services.throttle.set(session, 64, 0, by="test")
    assert None not in applied[-1]
    subscriber.hangup()
    server.wait(lambda: not server.lns.sessions)
    assert applied[-1] == (None, None, None) == (path.policer, path.packet_hook, path.mirror)
