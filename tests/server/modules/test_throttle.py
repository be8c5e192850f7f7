"""The modules autothrottle and throttlectl: throttling by RADIUS and by nsctl."""

from __future__ import annotations

from pathlib import Path

import pytest

from l2tpns.policy.model import Policy
from l2tpns.radius.types import AuthReply, OfferedRates
from l2tpns.subscriber.session import Session
from tests.lab.inprocess import InProcess
from tests.lab.null_shaper import NullShaper
from tests.server.conftest import QUICK, Serve

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture
def server(serve: Serve) -> InProcess:
    """Return a server with both shipped modules."""
    server = serve(plugin_dir=str(CHECKOUT / "modules"), throttle_speed=28)
    server.services.throttle.start(NullShaper())
    server.plugins.load("autothrottle")
    server.plugins.load("throttlectl")
    return server


def log_in(server: InProcess, *avpairs: tuple[str, str], user: str = "fred") -> Session:
    server.backend.replies[user] = AuthReply(accepted=True, avpairs=avpairs)
    server.lac(defaults=QUICK).connect().call(user, "pw").wait_online()
    (session,) = server.registry.by_user[user]
    return session


INPUT = ("lcp:interface-config#1", "service-policy input 64")
OUTPUT = ("lcp:interface-config#2", "service-policy output 512")


@pytest.mark.parametrize(
    ("avpairs", "rates"),
    [
        ([("throttle", "yes")], (28, 28)),
        ([("throttle", "512")], (512, 512)),
        ([("throttle", "no")], (0, 0)),
        ([("throttle", "yes"), ("throttle", "no")], (0, 0)),
        ([("intercept", "yes")], (0, 0)),
        ([INPUT], (64, 0)),
        ([OUTPUT], (0, 512)),
        ([INPUT, OUTPUT], (64, 512)),
        ([("lcp:interface-config#1", "ip vrf forwarding x")], (0, 0)),
    ],
)
def test_what_an_answer_says_is_so_from_the_first_packet(
    server: InProcess, avpairs: list[tuple[str, str]], rates: tuple[int, int]
) -> None:
    session = log_in(server, *avpairs)
    assert (session.policy.rate_in, session.policy.rate_out) == rates
    assert (session.path.policer is not None, server.services.throttle.bucket(session) is not None) == (
        bool(rates[0]),
        bool(rates[1]),
    )
    assert server.events("plugin_says") == server.events("plugin_failed") == []


@pytest.mark.parametrize(
    ("avpairs", "rates"),
    [
        ([], (1000, 2000)),
        ([("throttle", "no")], (0, 0)),
        ([("throttle", "512")], (512, 512)),
        ([OUTPUT], (1000, 512)),
    ],
)
def test_what_the_module_reads_replaces_what_a_vendors_attribute_says(
    server: InProcess, avpairs: list[tuple[str, str]], rates: tuple[int, int]
) -> None:
    offers = (OfferedRates("MikroTik", 1000, 2000),)
    server.backend.replies["fred"] = AuthReply(accepted=True, avpairs=tuple(avpairs), rates=offers)
    server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online()
    (session,) = server.registry.by_user["fred"]
    assert (session.policy.rate_in, session.policy.rate_out) == rates


@pytest.mark.parametrize(
    "avpair",
    [
        ("throttle", "fast"),
        ("throttle", "99999999999"),
        ("throttle", ""),
        ("lcp:interface-config#1", "service-policy input"),
        ("lcp:interface-config#1", "service-policy sideways 64"),
        ("lcp:interface-config#1", "service-policy input gold"),
    ],
)
def test_what_makes_no_sense_is_a_warning_and_the_login_goes_on(server: InProcess, avpair: tuple[str, str]) -> None:
    session = log_in(server, avpair)
    assert session.policy == Policy()
    (line,) = server.events("plugin_says")
    assert (line["level"], line["user"], line["avpair"]) == ("warning", "fred", "=".join(avpair))


def test_throttle_yes_without_throttle_speed_is_a_warning(server: InProcess) -> None:
    server.config.throttle_speed = 0
    assert log_in(server, ("throttle", "yes")).policy == Policy()
    (line,) = server.events("plugin_says")
    assert line["text"] == "throttle_speed is 0: set it, or enter a rate"


@pytest.mark.parametrize(
    ("avpairs", "told"),
    [
        ([("throttle", "yes")], ("throttle=28",)),
        ([INPUT], ("lcp:interface-config#1=service-policy input 64",)),
        (
            [INPUT, OUTPUT],
            ("lcp:interface-config#1=service-policy input 64", "lcp:interface-config#2=service-policy output 512"),
        ),
        ([], ()),
    ],
)
def test_accounting_is_told_how_fast_a_session_may_be(
    server: InProcess, avpairs: list[tuple[str, str]], told: tuple[str, ...]
) -> None:
    log_in(server, *avpairs)
    assert [usage.avpairs for usage in server.accounting.of("start")] == [told]


# nsctl


def nsctl(server: InProcess, line: str) -> tuple[bool, str] | None:
    return server.plugins.control(line.split(), ("127.0.0.1", 1703))


def test_nsctl_throttles_by_user_or_session_and_lets_go_again(server: InProcess) -> None:
    session = log_in(server)
    assert nsctl(server, "throttle fred") == (True, f"session {session.id} is throttled: in 28 out 28 kbit/s")
    assert nsctl(server, f"throttle {session.id} out 512") == (
        True,
        f"session {session.id} is throttled: in 28 out 512 kbit/s",
    )
    assert nsctl(server, "throttle FRED in 64 out 2000") == (
        True,
        f"session {session.id} is throttled: in 64 out 2000 kbit/s",
    )
    assert session.policy == Policy(rate_in=64, rate_out=2000)
    assert nsctl(server, "unthrottle fred") == (True, f"session {session.id} is not throttled any more")
    assert session.policy == Policy()
    assert {line["by"] for line in server.events("throttled")} == {"plugin throttlectl"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("throttle", "usage: throttle USER|SID [RATE | in RATE | out RATE]"),
        ("unthrottle", "usage: unthrottle USER|SID"),
        ("unthrottle fred 64", "usage: unthrottle USER|SID"),
        ("throttle nobody", "session not found"),
        ("unthrottle nobody", "session not found"),
        ("throttle fred 0", "'0' is no rate: kbit/s, and not 0"),
        ("throttle fred in", "'in' is no rate: kbit/s, and not 0"),
        ("throttle fred up 64", "rates are RATE, in RATE, out RATE, or in RATE out RATE"),
        ("throttle fred 99999999", "a rate must be between 0 and 10000000 kbit/s"),
        ("unthrottle fred", "not throttled"),
    ],
)
def test_nsctl_is_told_what_is_wrong(server: InProcess, line: str, said: str) -> None:
    session = log_in(server)
    assert nsctl(server, line) == (False, said)
    assert session.policy == Policy()


def test_who_is_throttled_so_already_is_an_error(server: InProcess) -> None:
    log_in(server)
    nsctl(server, "throttle fred 64")
    assert nsctl(server, "throttle fred 64") == (False, "already throttled")


def test_those_of_a_user_who_are_not_throttled_so_yet_are_throttled_and_let_go(serve: Serve) -> None:
    server = serve(plugin_dir=str(CHECKOUT / "modules"), allow_duplicate_users=True)
    server.plugins.load("throttlectl")
    lac = server.lac(defaults=QUICK).connect()
    for _ in range(2):
        lac.call("fred", "pw").wait_online()
    for first in (True, False):
        one, other = sorted(server.registry.by_user["fred"], key=lambda session: session.id, reverse=first)
        assert nsctl(server, f"throttle {one.id} 64") == (True, f"session {one.id} is throttled: in 64 out 64 kbit/s")
        assert nsctl(server, "throttle fred 64") == (True, f"session {other.id} is throttled: in 64 out 64 kbit/s")
        assert nsctl(server, f"unthrottle {one.id}") == (True, f"session {one.id} is not throttled any more")
        assert nsctl(server, "unthrottle fred") == (True, f"session {other.id} is not throttled any more")


def test_other_commands_are_left_to_others(server: InProcess) -> None:
    assert nsctl(server, "garden fred") is None
    assert [line.split()[0] for line in server.plugins.control_help()] == ["throttle", "unthrottle"]
