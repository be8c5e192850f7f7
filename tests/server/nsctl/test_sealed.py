"""nsctl from other hosts: requests must be sealed with the secret, and recent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2tpns.nsctl import __main__ as nsctl
from l2tpns.proto.nsctl.seal import unseal
from tests.server.nsctl_stage import NOTE, NOW, OK, OTHER_HOST, SECRET, Stage, sealed


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def test_another_host_is_not_answered_without_a_secret(stage: Stage) -> None:
    assert stage.hear(NOTE) == []
    assert stage.hear(sealed(NOTE)) == []
    assert stage.hear(NOTE[:-1]) == []
    assert stage.hear(b"") == []
    assert stage.counters.nsctl_refused == 4
    assert stage.counters.nsctl_requests == 0
    assert stage.events("nsctl_refused")[0]["peer"] == "192.0.2.7:40000"
    for _ in range(100):
        stage.hear(NOTE)
    assert len(stage.events("nsctl_refused")) < 100  # a few lines a second


def test_another_host_with_the_secret_is_answered_and_the_answer_is_sealed_for_this_request(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    nonce = bytes(range(16))
    assert stage.hear(sealed(NOTE, nonce=nonce)) == [sealed(OK, nonce=nonce, direction=2)]
    assert stage.plugins.obeyed == [(["note", "one"], OTHER_HOST)]
    assert stage.events("nsctl_command")[0]["peer"] == "192.0.2.7:40000"
    assert stage.hear(NOTE) == []  # still needs it
    assert SECRET not in str(stage.log.records())


def test_the_old_format_may_be_sealed_too(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    answer = bytes.fromhex("9012 0001 0015 01020304") + b"garden 123\0"
    assert stage.hear(sealed(bytes.fromhex("9012 03e8 000e 01020304") + b"123\0")) == [sealed(answer, direction=2)]


def test_a_forged_request_is_not_answered(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    good = sealed(NOTE)
    forged = [
        sealed(NOTE, key="another key of good length"),
        good[:-1] + bytes((good[-1] ^ 1,)),
        good[:30] + b"x" + good[31:],
    ]
    for octets in forged:
        assert stage.hear(octets) == []
    assert stage.hear(sealed(NOTE, direction=2)) == []  # a reply of the server, sent back
    assert stage.plugins.obeyed == []
    assert stage.counters.nsctl_refused == 4
    assert stage.hear(good)[0][28:-32] == OK


def test_a_replayed_request_is_not_obeyed_and_only_its_sender_is_answered_again(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    octets = sealed(NOTE)
    answer = stage.hear(octets)
    assert stage.hear(octets, ("192.0.2.7", 40001)) == []
    assert stage.hear(octets, ("192.0.2.8", 40000)) == []
    assert stage.hear(sealed(NOTE.replace(b"one", b"two"))) == []  # another request with the same nonce
    assert stage.counters.nsctl_refused == 3
    assert [line["why"] for line in stage.events("nsctl_refused")] == ["replayed"] * 3
    assert stage.hear(octets) == answer  # retransmitted: the reply was lost
    assert len(stage.plugins.obeyed) == 1


def test_a_nonce_is_kept_for_as_long_as_its_request_could_be_replayed(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    stage.server._not_before = 0.0
    for ahead in (-30, 0, 30):  # in this order, as each later one moves the limit
        stage.now, stage.seconds = NOW, 1000.0 + ahead * 10
        octets = sealed(NOTE, NOW + ahead, nonce=bytes((ahead + 100,)) * 16)
        stage.plugins.obeyed.clear()
        stage.hear(octets)
        for seconds in range(0, 120, 5):
            stage.now, stage.seconds = NOW + seconds, 1000.0 + ahead * 10 + seconds
            stage.hear(octets, ("192.0.2.9", 1))
        assert len(stage.plugins.obeyed) == 1


@pytest.mark.parametrize("seconds", [-31, 31, 3600])
def test_clocks_that_differ_are_told_so_to_who_has_the_key(stage: Stage, seconds: int) -> None:
    stage.config.nsctl_secret = SECRET
    (answer,) = stage.hear(sealed(NOTE, NOW + seconds))
    assert answer[28:-32].startswith(b"\x90\x13\x22\x01")
    assert f"not authorised: the clocks differ by {abs(seconds)} s".encode() in answer
    assert stage.plugins.obeyed == []
    assert stage.counters.nsctl_refused == 1


def test_what_was_sealed_before_the_start_is_refused_for_its_nonce_may_be_forgotten(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    octets = sealed(NOTE, NOW + 1)
    stage.now = NOW + 1
    stage.hear(octets)
    stage.now = NOW + 5
    stage.server.stop()
    stage.server = stage.make()
    stage.server.apply_config()
    (answer,) = stage.hear(octets)
    assert b"not authorised: sealed before the server started" in answer
    assert len(stage.plugins.obeyed) == 1


def test_a_clock_that_is_set_back_does_not_let_old_requests_in_again(stage: Stage) -> None:
    stage.config.nsctl_secret = SECRET
    old = sealed(NOTE)
    stage.hear(old)
    stage.now = NOW + 3600
    stage.hear(sealed(NOTE, NOW + 3600, bytes(15) + b"2"))
    stage.seconds += 7200
    stage.now = NOW
    stage.hear(old)
    assert len(stage.plugins.obeyed) == 2


def test_nonces_that_cannot_be_kept_let_nothing_more_in(stage: Stage) -> None:
    stage.restart(max_nonces=3)
    stage.config.nsctl_secret = SECRET
    for number in range(5):
        stage.hear(sealed(NOTE, nonce=bytes(15) + bytes((number,))))
    assert len(stage.plugins.obeyed) == 3
    assert stage.counters.nsctl_refused == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=64).map(lambda rest: b"\x90\x12" + rest),
        st.binary(max_size=64).map(lambda rest: b"\x90\x13" + rest),
        st.binary(max_size=64).map(lambda rest: b"\x90\x14" + rest),
        st.binary(max_size=64).map(sealed),
    ),
    st.sampled_from([OTHER_HOST, ("127.0.0.1", 5)]),
)
def test_any_datagram_from_anywhere_has_one_answer_at_most_and_it_can_be_read(
    stage: Stage, octets: bytes, source: tuple[str, int]
) -> None:
    stage.config.nsctl_secret = SECRET
    answers = stage.hear(octets, source)
    assert len(answers) <= 1
    for answer in answers:
        packet = nsctl.decode(unseal(answer, SECRET.encode()).packet if octets[:2] == b"\x90\x14" else answer)
        assert packet.is_answer
