"""No frame to a subscriber exceeds its MRU, whichever part of the server sends it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from l2tpns import causes
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.radius.types import AuthReply
from l2tpns.subscriber import plugin_hooks
from tests.lab import traffic
from tests.lab.inprocess import InProcess
from tests.lab.lac import Subscriber
from tests.lab.packets import tcp_syn
from tests.lab.pppclient import CHAP, CODE_REJ, CONF_REJ, ECHO_REP, IPCP, LCP, PAP, PROTO_REJ, TERM_REQ
from tests.server.conftest import QUICK, Serve
from tests.server.subscribers import Ear, refused, say

SMALLEST = 128
MESSAGE = "Grüße vom Betreiber: ".encode() * 60
HOST = IPv4Address("198.51.100.2")
HUGE = "".join(f"{kind:02x} 1e {'5a' * 28}" for kind in range(0x40, 0x60))  # 960 octets of options unknown to all


def dialled(server: InProcess, **dial: object) -> tuple[Subscriber, Ear]:
    fred = server.lac(defaults=replace(QUICK, mru=SMALLEST)).connect().call("fred", "pw", **dial)
    return fred, Ear(fred)


def within_mru(server: InProcess, fred: Subscriber, ear: Ear) -> bool:
    """Assert that every received frame was short enough, and that the server dropped none."""
    control = [len(packet) for way, _, packet in ear.heard if way == "in"]
    ip = [len(packet) for packet in fred.received]
    return max((*control, *ip)) <= SMALLEST and server.counters.drop_above_mru == 0


@pytest.mark.statement(94)
@pytest.mark.parametrize("auth, protocol", [("pap", PAP), ("chap", CHAP)])
@pytest.mark.parametrize("proxied", [False, True], ids=["asked by us", "asked by the LAC"])
def test_the_message_of_a_verdict_is_cut_to_the_mru(serve: Serve, auth: str, protocol: int, proxied: bool) -> None:
    server = serve(hostname="n" * 63)
    server.backend.replies["fred"] = AuthReply(accepted=True, message=MESSAGE)
    fred, ear = dialled(server, auth=auth, proxy_lcp=proxied, proxy_auth=proxied)
    fred.wait_online()
    assert MESSAGE.decode().startswith(fred.auth_message.decode()) and len(fred.auth_message) > 100
    server.backend.refusal = AuthReply(accepted=False, message=MESSAGE)
    eve = fred.lac.call("eve", "pw", auth=auth, proxy_lcp=proxied, proxy_auth=proxied)
    ear_of_eve = Ear(eve)
    assert refused(eve) == (3, 0)
    assert len(eve.auth_message) > 100
    assert within_mru(server, fred, ear) and within_mru(server, eve, ear_of_eve)
    assert ear.of("in", protocol)


ANSWERS: dict[str, tuple[str, int, int]] = {
    # what the subscriber says from the protocol field on, and the protocol and code of the answer
    "an Echo-Request": ("c021 0901 0400 12345678" + "55" * 1016, LCP, ECHO_REP),
    "an unknown code of LCP": ("c021 2a01 0400" + "55" * 1020, LCP, CODE_REJ),
    "an unknown code of IPCP": ("8021 2a01 0400" + "55" * 1020, IPCP, CODE_REJ),
    "an unknown protocol": ("80fd 0101 0400" + "55" * 1020, LCP, PROTO_REJ),
    "unknown options of IPCP": ("8021 0101 03c4" + HUGE, IPCP, CONF_REJ),
    "unknown options of LCP": ("c021 0101 03c4" + HUGE, LCP, CONF_REJ),
}


@pytest.mark.statement(94)
@pytest.mark.parametrize("question", ANSWERS)
def test_the_answer_to_a_packet_above_the_mru_is_not_above_it(server: InProcess, question: str) -> None:
    octets, protocol, code = ANSWERS[question]
    fred, _ = dialled(server)
    fred.wait_online()
    ear = Ear(fred)
    ear.deaf_to = (LCP, IPCP)
    say(fred, "ff03", octets)
    fred.wait(lambda: ear.of("in", protocol, code), what=f"the answer to {question}")
    assert len(ear.of("in", protocol, code)[0]) > SMALLEST - 31
    assert within_mru(server, fred, ear)


@pytest.mark.statement(94)
def test_packets_from_the_world_come_in_pieces_that_fit_or_not_at_all(server: InProcess) -> None:
    fred, ear = dialled(server)
    fred.wait_online()
    server.plane.deliver(traffic.udp(HOST, fred.address, 9, 9, bytes(1400)))
    fred.wait(lambda: fred.in_packets >= 14, what="fragments")
    assert within_mru(server, fred, ear)
    assert max(map(len, fred.received)) > 100


def test_the_words_of_an_end_are_cut_to_the_mru(server: InProcess) -> None:
    fred, _ = dialled(server)
    fred.wait_online()
    ear = Ear(fred)
    (session,) = server.lns.sessions.values()
    session.end(causes.ADMIN_DROP, text="the operator has much to say " * 20)
    fred.wait_ended()
    (request,) = ear.of("in", LCP, TERM_REQ)
    assert len(request) == SMALLEST and within_mru(server, fred, ear)


@pytest.mark.statement(94)
def test_a_frame_that_is_too_long_all_the_same_does_not_leave_and_is_told(server: InProcess) -> None:
    fred, _ = dialled(server)
    fred.wait_online()
    ear = Ear(fred)
    (session,) = server.lns.sessions.values()
    session.link.send_frame(Protocol.CHAP, bytes(SMALLEST + 1))
    session.link.send_frame(Protocol.CHAP, bytes(SMALLEST))
    fred.wait(lambda: ear.of("in", CHAP), what="the frame that fits")
    assert [len(packet) for packet in ear.of("in", CHAP)] == [SMALLEST]
    assert server.counters.drop_above_mru == 1
    (told,) = server.events("frame_above_mru")
    assert (told["octets"], told["mru"], told["protocol"]) == (SMALLEST + 1, SMALLEST, "c223")


@pytest.mark.statement(94, 98)
def test_a_subscriber_that_begins_again_gets_no_packet_of_the_old_size_while_plugins_hear_of_it(
    server: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online()
    carried: list[bool] = []
    monkeypatch.setattr(plugin_hooks, "kill_session", lambda session, cause: carried.append(session.path.online))
    fred.restart()
    fred.wait(lambda: len(server.backend.asked) == 2 and fred.online, what="online again")
    assert carried == [False]


@pytest.mark.parametrize(("length_bit", "mru", "mss"), [(False, 1500, 1422), (True, 1500, 1420), (True, 1400, 1360)])
def test_what_a_subscriber_sends_over_tcp_needs_no_fragments_however_long_the_lacs_headers_are(
    server: InProcess, length_bit: bool, mru: int, mss: int
) -> None:
    fred = server.lac(defaults=replace(QUICK, mru=mru, length_bit=length_bit)).connect().call("fred", "pw")
    fred.wait_online()
    server.plane.deliver(tcp_syn("198.51.100.2", str(fred.address), 1460))
    assert int.from_bytes(fred.receive_ip()[42:44]) == mss
