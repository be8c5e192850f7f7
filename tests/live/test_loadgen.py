"""The benchmark's load generator against a daemon: its sessions come up, and its checks find what they must find."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.loadgen import Generator, Load
from tests.lab.netns import Lab, is_root, three_hosts, wait_until
from tests.lab.server import Server

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LAC, LNS, HOST = "192.0.2.2", "192.0.2.1", "198.51.100.2"
SESSIONS = 50
PORT = 5000
RADIUS_SECRET, TUNNEL_SECRET = "radius secret", "tunnel secret"
RUN = 1


class Stage:
    """A daemon that authenticates and accounts through the generator's RADIUS server, and both ends of the traffic."""

    def __init__(self, lab: Lab) -> None:
        self.lac, server, self.host = three_hosts(lab)
        enter = lab.stack.enter_context
        self.radius = enter(Generator(server, "radius", "127.0.0.1", "1812", RADIUS_SECRET))
        settings = {
            "peer_address": "10.1.0.1",
            "primary_radius": "127.0.0.1",
            "radius_secret": RADIUS_SECRET,
            "radius_accounting": True,
            "l2tp_secret": TUNNEL_SECRET,
            "l2tp_challenge": True,
        }
        daemon = Server(server, lab.directory / "lns", settings=settings)
        daemon.start()
        lab.stack.callback(daemon.stop)
        options = ("--from", LAC, "--lns", LNS, "--peer", HOST, "--tunnels", "3", "--secret", TUNNEL_SECRET)
        self.subscribers = enter(Generator(self.lac, "lac", *options, "--sessions", str(SESSIONS)))
        self.network = enter(Generator(self.host, "net", HOST, str(SESSIONS)))
        self.login = self.subscribers.login(SESSIONS)
        sessions = lab.directory / "sessions"
        self.subscribers.ask(f"list {sessions}", "list")
        self.network.ask(f"sessions {sessions}", "sessions")
        self.addresses = [line.split()[1] for line in Path(sessions).read_text().splitlines()]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        yield Stage(lab)


def probe(session: int, number: int, *, fill: int | None = None) -> bytes:
    """Return the payload of a probe (bench/generator/probe.h); `fill` replaces the first octet of its pattern."""
    pattern = bytearray((number + place) & 255 for place in range(12))
    if fill is not None:
        pattern[0] = fill
    return struct.pack("!4sBBHIIQ", b"L2LG", 1, 0, RUN, session, number, 0) + bytes(pattern)


def counted(generator: Generator, what: str, value: int) -> dict[str, int]:
    wait_until(lambda: generator.counts()[what] >= value, what=f"{what} {value}")
    return generator.counts()


def test_fifty_sessions_come_up_with_radius_accounting_and_a_tunnel_secret(stage: Stage) -> None:
    assert (stage.login["up"], stage.login["failed"]) == (SESSIONS, 0)
    assert stage.login["setup_ms"]["count"] == SESSIONS
    assert len(set(stage.addresses)) == SESSIONS
    wait_until(lambda: stage.radius.stats()["starts"] == SESSIONS, what="an accounting start of each session")
    assert stage.radius.stats()["accepts"] == SESSIONS


@pytest.mark.parametrize("octets", [64, 1400])
def test_probes_of_all_sessions_arrive_whole_and_at_the_right_end(stage: Stage, octets: int) -> None:
    load = Load(RUN, octets, 0.5, 1000, SESSIONS)
    for sender, receiver in ((stage.subscribers, stage.network), (stage.network, stage.subscribers)):
        receiver.expect(RUN)
        sender.send(load)
        sent = sender.sent(load)["packets"]
        counts = counted(receiver, "packets", sent)
        assert counts["packets"] == sent > 0
        wrong = ("duplicates", "late", "corrupt", "misdelivered", "stale", "foreign", "drops")
        assert not any(counts[what] for what in wrong), counts


def test_pings_are_answered_through_both_directions(stage: Stage) -> None:
    load = Load(2, 64, 0.2, 100, SESSIONS)
    stage.subscribers.ping(load)
    pinged = stage.subscribers.pinged(load)
    assert pinged["round_trip_ms"]["count"] == pinged["sent"] > 0


def test_a_changed_a_repeated_a_late_and_a_misdelivered_packet_are_found_at_the_session(stage: Stage) -> None:
    stage.subscribers.expect(RUN)
    with stage.host.socket() as sender:
        for payload in (
            probe(7, 0),
            probe(7, 0),  # repeated
            probe(7, 2),
            probe(7, 1),  # late
            probe(7, 3, fill=0),  # changed
            probe(8, 0),  # of session 8, at the address of session 7
            b"no probe",
            struct.pack("!4sBBHIIQ", b"L2LG", 1, 0, RUN + 1, 7, 0, 0),  # of another run
        ):
            sender.sendto(payload, (stage.addresses[7], PORT))
    counts = counted(stage.subscribers, "stale", 1)
    found = {name: counts[name] for name in ("packets", "duplicates", "late", "corrupt", "misdelivered", "foreign")}
    assert found == {"packets": 3, "duplicates": 1, "late": 1, "corrupt": 1, "misdelivered": 1, "foreign": 1}


def test_a_packet_from_an_address_that_is_not_its_sessions_is_found_at_the_network(stage: Stage) -> None:
    stage.network.expect(RUN)
    with stage.host.socket() as sender:
        sender.sendto(probe(7, 0), (HOST, PORT))
    assert counted(stage.network, "misdelivered", 1)["packets"] == 0


def test_hung_up_sessions_are_accounted_and_receive_no_more(stage: Stage) -> None:
    assert stage.subscribers.ask("hangup 0 10", "hangup")["sessions"] == 10
    wait_until(lambda: stage.radius.stats()["stops"] == 10, what="an accounting stop of each session")
    assert stage.subscribers.stats()["online"] == SESSIONS - 10
