"""Disconnect- and CoA-Requests through the whole server (RFC 5176)."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from gevent import socket

from l2tpns.config.access_list import AccessList
from l2tpns.policy.garden import NullKernel
from l2tpns.policy.model import PolicyError
from l2tpns.radius.dynamic import MAX_RATE, DynamicAuthorization
from l2tpns.radius.types import AuthReply
from l2tpns.subscriber.dynamic import DynamicAuthority
from l2tpns.subscriber.session import Session
from tests.lab.dae_client import COA, DISCONNECT, DaeClient, request
from tests.lab.inprocess import InProcess
from tests.lab.lac import Subscriber
from tests.lab.null_shaper import NullShaper
from tests.lab.radius_server import ip, u32, vsa
from tests.server.conftest import QUICK, Serve

CHECKOUT = Path(__file__).resolve().parents[3]
SECRET = b"coa-secret"
ACK, NAK = 44, 45
NOW = 1_700_000_000
WEB = AccessList("web", ())


class Clock:
    def __init__(self) -> None:
        self.wall = float(NOW)
        self.now = 1000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(serve: Serve) -> InProcess:
    server = serve(
        radius_dae_clients=((IPv4Network("127.0.0.1"), SECRET.decode()), (IPv4Network("127.0.0.0/8"), "other")),
        radius_dae_port=free_port(),
        filters={"web": WEB, "mail": AccessList("mail", ())},
        throttle_speed=28,
        plugin_dir=str(CHECKOUT / "modules"),
        allow_duplicate_users=True,
    )
    server.services.throttle.start(NullShaper())
    return server


@pytest.fixture
def port(server: InProcess, clock: Clock) -> Iterator[DynamicAuthorization]:
    authority = DynamicAuthority(server.services, server.lns.sessions)
    log = server.services.log
    opened = DynamicAuthorization(
        server.config, server.counters, authority, log, clock=lambda: clock.wall, now=lambda: clock.now
    )
    opened.apply_config()
    opened.start()
    yield opened
    opened.stop()


@pytest.fixture
def client(server: InProcess, port: DynamicAuthorization) -> Iterator[DaeClient]:
    client = DaeClient(("127.0.0.1", server.config.radius_dae_port), SECRET)
    yield client
    client.socket.close()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        found: int = sock.getsockname()[1]
        return found


def log_in(server: InProcess, user: str = "fred", **reply: Any) -> tuple[Subscriber, Session]:
    server.backend.replies[user] = AuthReply(accepted=True, **reply)
    before = set(server.registry.by_user.get(user, ()))
    subscriber = server.lac(defaults=QUICK).connect().call(user, "pw").wait_online()
    (session,) = set(server.registry.by_user[user]) - before
    return subscriber, session


def acct(session: Session) -> tuple[int, bytes]:
    return 44, session.acct_session_id.encode()


def avpair(text: str) -> tuple[int, bytes]:
    return vsa(9, (1, text.encode()))


def rates(session: Session) -> tuple[int, int]:
    return session.policy.rate_in, session.policy.rate_out


# Disconnect


@pytest.mark.statement(158, 258, 265)
def test_a_disconnect_ends_the_session_before_it_is_acknowledged(server: InProcess, client: DaeClient) -> None:
    fred, session = log_in(server)
    answer = client.ask(DISCONNECT, acct(session))
    assert (answer.code, answer.attributes) == (41, [])
    assert not session.alive and session.address not in server.registry.by_address and not server.lns.sessions
    ended = fred.wait_ended()
    assert ended.result == 3
    (stop,) = server.accounting.of("stop")
    assert stop.terminate_cause == 6
    (line,) = server.events("dae_request")
    assert (line["kind"], line["client"], line["result"], line["sessions"]) == (
        "disconnect",
        "127.0.0.1",
        "ack",
        [session.id],
    )


@pytest.mark.statement(256, 262)
def test_each_attribute_and_each_pair_names_the_session(server: InProcess, client: DaeClient) -> None:
    _, session = log_in(server)
    log_in(server, "mary")
    assert session.address is not None
    names = [
        (1, b"FRED"),
        (5, u32(session.id)),
        (8, session.address.packed),
        (30, session.called.encode()),
        (31, session.calling.encode()),
        acct(session),
        (87, f"{session.tunnel.id}/{session.id}".encode()),
    ]
    for one in names:
        for other in names:
            chosen = {one, other} - {(30, b""), (31, b"")}
            if chosen:
                assert client.ask(COA, *chosen, (28, u32(77))).code == ACK, chosen
    assert session.profile is not None and session.profile.idle_timeout == 77


@pytest.mark.statement(256)
@pytest.mark.parametrize(
    "wrong", [(1, b"mary"), (5, u32(1)), (8, ip("10.255.0.99")), (31, b"0800"), (44, b"0000"), (87, b"1/1"), (87, b"x")]
)
def test_an_attribute_that_contradicts_names_no_session(
    server: InProcess, client: DaeClient, wrong: tuple[int, bytes]
) -> None:
    _, session = log_in(server)
    for code in (DISCONNECT, COA):
        answer = client.ask(
            code, acct(session) if wrong[0] != 44 else (1, b"fred"), wrong, *[(28, u32(5))] * (code == COA)
        )
        assert (answer.code, answer.cause) == (code + 2, 503)
    assert session.alive


@pytest.mark.statement(262)
def test_all_sessions_of_a_user_are_ended(server: InProcess, client: DaeClient) -> None:
    sessions = [log_in(server)[1] for _ in range(3)]
    _, mary = log_in(server, "mary")
    assert client.ask(DISCONNECT, (1, b"fred")).code == 41
    assert not any(session.alive for session in sessions) and mary.alive
    assert sorted(server.events("dae_request")[0]["sessions"]) == sorted(session.id for session in sessions)


@pytest.mark.statement(259)
@pytest.mark.parametrize("attribute", [(27, u32(5)), (11, b"web.in"), avpair("throttle=5"), (79, b"x")])
def test_a_disconnect_that_would_change_something_is_refused(
    server: InProcess, client: DaeClient, attribute: tuple[int, bytes]
) -> None:
    _, session = log_in(server)
    answer = client.ask(DISCONNECT, acct(session), attribute)
    assert (answer.code, answer.cause) == (42, 401)
    assert session.alive
    assert client.ask(DISCONNECT, acct(session), (25, b"class"), (49, u32(6)), (33, b"proxy"), (18, b"bye")).code == 41


# What gets a NAK


@pytest.mark.statement(257)
@pytest.mark.parametrize(
    "attributes, cause",
    [
        ([], 402),
        ([(28, u32(5))], 402),
        ([(1, b"fred")], 402),  # nothing to change
        ([(4, ip("192.0.2.99")), (1, b"fred"), (28, u32(5))], 403),
        ([(32, b"another"), (1, b"fred"), (28, u32(5))], 403),
        ([(95, bytes(16)), (1, b"fred"), (28, u32(5))], 403),
        ([(1, b"fred"), (28, b"\0")], 404),
        ([(5, b"\0"), (28, u32(5))], 404),
        ([(1, b"fred"), (1, b"mary"), (28, u32(5))], 404),
        ([(6, u32(17)), (24, b"state"), (1, b"fred")], 405),
        ([(6, u32(8)), (1, b"fred"), (28, u32(5))], 405),
        ([(1, b"fred"), (22, b"192.168.1.0/24")], 401),
        ([(1, b"fred"), (88, b"pool")], 401),
        ([(1, b"fred"), (79, b"eap")], 401),
        ([(1, b"fred"), (200, b"unknown")], 401),
        ([(1, b"fred"), vsa(9999, (1, b"x"))], 401),
        ([(1, b"fred"), avpair("no-such=1")], 401),
        ([(1, b"fred"), (28, u32(5)), avpair("ip:addr-pool=gold")], 401),
        ([(1, b"fred"), (26, b"\0\0\0\x09\x01")], 401),
        ([(1, b"fred"), avpair("intercept=yes")], 501),
        ([(1, b"fred"), (11, b"nonsense.in")], 407),
        ([(1, b"fred"), (11, b"web")], 407),
        ([(1, b"fred"), avpair("throttle=fast")], 407),
        ([(1, b"fred"), avpair("throttle=99999999999")], 407),
        ([(1, b"fred"), avpair("garden=not a name")], 407),
        ([(1, b"fred"), avpair("lcp:interface-config#1=service-policy sideways 5")], 407),
        ([(1, b"fred"), vsa(14988, (8, b"fast"))], 407),
        ([(1, b"nobody"), (28, u32(5))], 503),
    ],
)
def test_each_reason_has_its_error_cause_and_changes_nothing(
    server: InProcess, client: DaeClient, attributes: list[tuple[int, bytes]], cause: int
) -> None:
    _, session = log_in(server, idle_timeout=300)
    profile, policy = session.profile, session.policy
    answer = client.ask(COA, *attributes)
    assert (answer.code, answer.cause) == (NAK, cause)
    assert (session.profile, session.policy) == (profile, policy)
    (line,) = server.events("dae_request")
    assert line["result"] == cause and line["why"]
    assert server.counters.dae_refused == 1


def test_our_own_names_are_accepted(server: InProcess, client: DaeClient) -> None:
    log_in(server)
    address = server.config.main_address
    assert address is not None
    ours = [(4, address.packed), (32, server.config.hostname.encode()), (6, u32(2)), (18, b"hello")]
    assert client.ask(COA, *ours, (1, b"fred"), (28, u32(5))).code == ACK


# Changes


@pytest.mark.statement(261)
def test_what_is_mentioned_is_replaced_and_everything_else_stays(server: InProcess, client: DaeClient) -> None:
    _, session = log_in(
        server,
        session_timeout=1000,
        idle_timeout=300,
        interim=600,
        classes=(b"old",),
        filter_ids=("mail.in", "mail.out"),
        dns=(IPv4Address("192.0.2.1"),),
    )
    before = session.profile
    assert before is not None
    assert client.ask(COA, acct(session), (28, u32(5)), (25, b"new"), (25, b"newer")).code == ACK
    after = session.profile
    assert after is not None
    assert (after.idle_timeout, after.classes) == (5, (b"new", b"newer"))
    assert (after.session_timeout, after.interim, after.dns) == (1000, 600, before.dns)
    assert session.path.filter_in is not None and session.path.filter_in.name == "mail"
    assert client.ask(COA, acct(session), (11, b"web.out")).code == ACK
    assert session.path.filter_in is None and session.path.filter_out is WEB
    dns = vsa(311, (28, ip("192.0.2.53")), (29, ip("192.0.2.54")))
    assert client.ask(COA, acct(session), dns, (85, u32(90))).code == ACK
    assert session.profile is not None and session.profile.interim == 90
    assert list(map(str, session.profile.dns)) == ["192.0.2.53", "192.0.2.54"]
    assert session.next_interim - session.services.session_timing.clock() <= 90
    assert session.usage().classes == (b"new", b"newer")


@pytest.mark.statement(263)
@pytest.mark.parametrize(
    "attributes, expected",
    [
        ([avpair("throttle=512")], (512, 512)),
        ([avpair("throttle=yes")], (28, 28)),
        ([avpair("throttle=no")], (0, 0)),
        ([avpair("lcp:interface-config#1=service-policy input 64")], (64, 200)),
        ([avpair("lcp:interface-config#2=service-policy output 65")], (100, 65)),
        ([avpair("lcp:interface-config#2=rate-limit output 512000 8000 8000")], (100, 512)),
        ([vsa(14988, (8, b"1M/2M"))], (1000, 2000)),
        ([vsa(14122, (8, u32(3_000_000)))], (100, 3000)),
        ([vsa(14122, (8, u32(3_000_000))), avpair("throttle=7")], (7, 7)),
    ],
)
def test_rates_are_changed_at_once(
    server: InProcess, client: DaeClient, attributes: list[tuple[int, bytes]], expected: tuple[int, int]
) -> None:
    _, session = log_in(server)
    server.services.throttle.set(session, 100, 200, by="test")
    assert client.ask(COA, acct(session), *attributes).code == ACK
    assert rates(session) == expected
    assert (session.path.policer is not None) == bool(expected[0])


@pytest.mark.statement(260)
def test_one_bad_attribute_among_three_changes_no_session(server: InProcess, client: DaeClient) -> None:
    sessions = [log_in(server)[1] for _ in range(3)]
    good = [avpair("throttle=512"), (28, u32(5))]
    answer = client.ask(COA, (1, b"fred"), *good, (11, b"unknown.in"))
    assert (answer.code, answer.cause) == (NAK, 407)
    assert all(rates(session) == (0, 0) for session in sessions)
    assert client.ask(COA, (1, b"fred"), *good).code == ACK
    assert all(rates(session) == (512, 512) for session in sessions)


@pytest.mark.statement(260)
def test_a_rate_that_one_session_cannot_have_is_taken_from_all(
    server: InProcess, client: DaeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [log_in(server)[1] for _ in range(2)]
    throttle, calls = server.services.throttle, []
    original = throttle.set

    def only_one(session: Session, *words: Any, by: str) -> None:
        calls.append(session)
        if len(calls) == 2:
            raise PolicyError("all buckets are in use")
        original(session, *words, by=by)

    monkeypatch.setattr(throttle, "set", only_one)
    answer = client.ask(COA, (1, b"fred"), avpair("throttle=512"), (28, u32(5)))
    assert (answer.code, answer.cause) == (NAK, 506)
    assert [rates(session) for session in sessions] == [(0, 0), (0, 0)]
    assert all(session.profile is not None and session.profile.idle_timeout is None for session in sessions)


def test_into_a_garden_and_out_of_it(server: InProcess, client: DaeClient) -> None:
    _, session = log_in(server)
    assert client.ask(COA, acct(session), avpair("garden=slow")).code == ACK
    kernel = server.services.gardens.kernel
    assert isinstance(kernel, NullKernel)
    assert session.policy.garden == "slow" and {str(each) for each in kernel.gardens["slow"]} == {
        f"{session.address}/32"
    }
    assert client.ask(COA, (1, b"fred"), avpair("garden=slow")).code == ACK  # it is there
    assert client.ask(COA, (1, b"fred"), avpair("garden=no")).code == ACK
    assert not session.policy.garden and not kernel.gardens["slow"]
    assert [kind for kind, _ in server.accounting.records] == ["start", "stop", "start"]


def test_a_new_session_timeout_counts_from_the_request(server: InProcess, client: DaeClient) -> None:
    _, session = log_in(server, session_timeout=1000)
    began = session.timeout_started_at
    assert client.ask(COA, acct(session), (27, u32(1))).code == ACK
    assert session.timeout_started_at >= began
    server.wait(lambda: not session.alive)
    assert server.accounting.of("stop")[0].terminate_cause == 5


def test_a_plugin_sees_the_change_and_the_avpairs_that_it_reads(
    server: InProcess, client: DaeClient, tmp_path: Path
) -> None:
    (tmp_path / "watcher.py").write_text(
        "plugin_api_version = 1\n"
        "plugin_avpairs = ('colour',)\n"
        "def plugin_init(server):\n    global SERVER\n    SERVER = server\n"
        "def plugin_radius_response(event):\n    SERVER.log('info', f'{event.key}={event.value}')\n"
        "def plugin_radius_change(event):\n    SERVER.log('info', f'{event.by}: {sorted(event.changed)}')\n"
    )
    server.config.plugin_dir = str(tmp_path)
    server.plugins.load("watcher")
    _, session = log_in(server)
    assert client.ask(COA, acct(session), avpair("colour=red"), (28, u32(5))).code == ACK
    said = [line["text"] for line in server.events("plugin_says")]
    assert said == ["colour=red", "RADIUS 127.0.0.1: ['avpairs', 'idle_timeout']"]


# Who is heard


@pytest.mark.statement(160, 250)
def test_strangers_and_forgeries_get_no_answer(
    server: InProcess, client: DaeClient, port: DynamicAuthorization
) -> None:
    _, session = log_in(server)
    good = request(DISCONNECT, [acct(session)], SECRET)
    expected = 0
    for octets in (
        b"",
        b"x" * 100,
        good[:-1],
        request(DISCONNECT, [acct(session)], b"wrong"),
        good[:30] + b"!" + good[31:],
    ):
        expected += 1
        client.quiet(octets, lambda: server.counters.dae_dropped == expected)  # noqa: B023
    server.config.radius_dae_clients = ((IPv4Network("127.0.0.99"), SECRET.decode()),)
    client.quiet(good, lambda: server.counters.dae_dropped == expected + 1)
    assert session.alive and server.events("dae_request") == []


def test_the_longest_prefix_has_the_secret(server: InProcess, port: DynamicAuthorization) -> None:
    log_in(server)
    elsewhere = DaeClient(("127.0.0.1", server.config.radius_dae_port), b"other", source="127.0.0.77")
    assert elsewhere.ask(COA, (1, b"fred"), (28, u32(5))).code == ACK
    elsewhere.socket.close()


@pytest.mark.statement(254)
def test_a_repetition_gets_the_same_octets_and_acts_once(server: InProcess, client: DaeClient) -> None:
    _, session = log_in(server)
    octets = request(COA, [acct(session), (28, u32(5)), (55, u32(NOW)), (33, b"p")], SECRET, signed=True)
    first = client.send(octets)
    server.services.throttle.set(session, 1, 1, by="test")
    assert client.send(octets).raw == first.raw and first.code == ACK
    gone = request(DISCONNECT, [acct(session)], SECRET, identifier=9)
    assert client.send(gone).raw == client.send(gone).raw
    assert [line["kind"] for line in server.events("dae_request")] == ["coa", "disconnect"]


@pytest.mark.statement(159, 253)
def test_an_old_event_timestamp_gets_silence(server: InProcess, client: DaeClient, clock: Clock) -> None:
    _, session = log_in(server)
    for seconds in (-301, 301):
        before = server.counters.dae_dropped
        old = request(DISCONNECT, [acct(session), (55, u32(NOW + seconds))], SECRET)
        client.quiet(old, lambda: server.counters.dae_dropped == before + 1)  # noqa: B023
    for seconds in (-299, 299):
        assert client.ask(COA, acct(session), (28, u32(5)), (55, u32(NOW + seconds))).code == ACK
    server.config.radius_dae_require_event_timestamp = True
    without = request(DISCONNECT, [acct(session)], SECRET, identifier=77)
    client.quiet(without, lambda: server.counters.dae_dropped == 3)
    assert session.alive


@pytest.mark.statement(253)
def test_a_request_may_be_repeated_as_long_as_it_could_be_accepted(
    server: InProcess, client: DaeClient, clock: Clock
) -> None:
    _, session = log_in(server)
    octets = request(COA, [acct(session), (28, u32(5)), (55, u32(NOW + 299))], SECRET)
    first = client.send(octets)
    clock.now += 599
    clock.wall += 598
    assert client.send(octets).raw == first.raw
    assert len(server.events("dae_request")) == 1


@pytest.mark.statement(252)
def test_a_message_authenticator_may_be_required(server: InProcess, client: DaeClient) -> None:
    log_in(server)
    server.config.radius_dae_require_message_authenticator = True
    client.quiet(request(COA, [(1, b"fred"), (28, u32(5))], SECRET), lambda: server.counters.dae_dropped == 1)
    answer = client.ask(COA, (1, b"fred"), (28, u32(5)), signed=True)
    assert answer.code == ACK and answer.all(80)


@pytest.mark.statement(264)
def test_a_client_has_a_rate(server: InProcess, client: DaeClient, clock: Clock) -> None:
    for number in range(MAX_RATE + 5):
        octets = request(COA, [(1, b"x%d" % number)], SECRET, identifier=number & 0xFF)
        client.socket.sendto(octets, client.server)
        if number % 50 == 49 or number >= MAX_RATE:
            # The socket's buffer holds some hundreds.
            server.wait(lambda: server.counters.dae_requests + server.counters.dae_crowded_out == number + 1)  # noqa: B023
    assert server.counters.dae_crowded_out == 5
    clock.now += 1
    log_in(server)
    again = DaeClient(client.server, SECRET)
    assert again.ask(COA, (1, b"fred"), (28, u32(5))).code == ACK
    again.socket.close()


@pytest.mark.shows("set radius_dae_port")
def test_the_port_is_closed_until_a_client_is_named(server: InProcess, port: DynamicAuthorization) -> None:
    clients, server.config.radius_dae_clients = server.config.radius_dae_clients, ()
    port.apply_config()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("0.0.0.0", server.config.radius_dae_port))
    server.config.radius_dae_clients = clients
    port.apply_config()
    client = DaeClient(("127.0.0.1", server.config.radius_dae_port), SECRET)
    assert client.ask(DISCONNECT, (1, b"nobody")).cause == 503
    client.socket.close()


@pytest.mark.statement(255)
def test_proxy_state_never_causes_a_nak(server: InProcess, client: DaeClient) -> None:
    log_in(server)
    answer = client.ask(COA, (33, b"a"), (1, b"fred"), (28, u32(5)), (33, b"b"))
    assert answer.code == ACK and answer.all(33) == [b"a", b"b"]
