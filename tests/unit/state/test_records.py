"""Records on disk: what was written is read again, in other releases as far as it goes."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.proto.l2tp.reliable import ReliableRecord
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.ipcp import IpcpRecord
from l2tpns.proto.ppp.lcp import AuthChoice, LcpRecord
from l2tpns.radius.types import Assign, AuthReply, FramedRoute
from l2tpns.runtime.durable import make_line, read_line
from l2tpns.state.records import (
    SCHEMA,
    CallRecord,
    Replay,
    SessionRecord,
    TunnelRecord,
    UsageRecord,
    decode,
    default,
    replay,
)

TUNNEL = TunnelRecord(
    id=7,
    peer_id=9,
    peer=("192.0.2.2", 1701),
    local="192.0.2.1",
    control=ReliableRecord(9, 4, 65535, 3, 1, ((5, b"\x80\x08\xff\x00"),)),
    host="lac\\xff",
)
SESSION = SessionRecord(
    id=11,
    tunnel=7,
    peer_id=5,
    user="fr\xe4d",
    acct_session_id="0A",
    address=IPv4Address("10.5.0.2"),
    credentials=Credentials(0xC223, b"fr\xe4d\x00", identifier=3),
    lcp=LcpRecord(AuthChoice.CHAP_MD5, 1, 2, 1492, 1460, True, False, 9),
    ipcp=IpcpRecord(IPv4Address("10.5.0.1"), IPv4Address("10.5.0.2"), 2),
    opened=1000.5,
    online_since=1000.5,
    time_from=1000,
    answer_message=b"\xff\x00hi",
    usage=UsageRecord(1, 2, 3, 2**40, 1.5, 2.5, 0),
)


def written(record: Any) -> Any:
    return orjson.loads(orjson.dumps(record, default))


def lines(*more: list[Any]) -> list[list[Any]]:
    return [["head", SCHEMA, "x", 1.0], ["tun", written(TUNNEL)], ["ses", written(SESSION)], *more]


def test_what_was_written_is_read_again() -> None:
    unknown: set[str] = set()
    assert decode(TunnelRecord, written(TUNNEL), unknown) == TUNNEL
    assert decode(SessionRecord, written(SESSION), unknown) == SESSION
    assert not unknown


def test_what_radius_has_said_is_read_again() -> None:
    reply = AuthReply(
        accepted=True,
        message=b"\xff",
        assign=Assign.FIXED,
        address=IPv4Address("10.5.0.2"),
        routes=(FramedRoute(IPv4Network("172.16.0.0/24"), None, 2),),
        dns=(IPv4Address("10.0.0.53"),),
        session_timeout=3600,
        classes=(b"\x00\xff", b"b"),
        avpairs=(("a", "b"),),
        filter_ids=("web.in",),
    )
    assert decode(AuthReply, written(reply), set()) == reply


def test_a_field_of_a_later_release_is_left_out_and_told() -> None:
    unknown: set[str] = set()
    data = {**written(SESSION), "garden": True, "lcp": {**written(SESSION.lcp), "multilink": 1}}
    assert decode(SessionRecord, data, unknown) == SESSION
    assert unknown == {"SessionRecord.garden", "LcpRecord.multilink"}


def test_a_field_that_an_earlier_release_did_not_have_has_its_default() -> None:
    data = written(SESSION)
    for name in ("usage", "tx_speed", "filter_in", "profile"):
        del data[name]
    assert decode(SessionRecord, data, set()).usage == UsageRecord()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"address": "10.5.0"}, "SessionRecord.address"),
        ({"address": None}, "SessionRecord.address"),
        ({"id": "11"}, "SessionRecord.id"),
        ({"sequenced": 1}, "SessionRecord.sequenced"),
        ({"id": True}, "SessionRecord.id"),
        ({"lcp": {"auth": "xy"}}, "SessionRecord.lcp: LcpRecord.auth"),
        ({"lcp": []}, "SessionRecord.lcp: LcpRecord is not an object"),
        ({"usage": {"ns": 1.5}}, "SessionRecord.usage: UsageRecord.ns"),
    ],
)
def test_a_value_of_a_wrong_kind_is_refused_by_the_name_of_its_field(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(SessionRecord, {**written(SESSION), **change}, set())


def test_a_missing_field_that_nothing_can_replace_is_refused_by_its_name() -> None:
    data = written(SESSION)
    del data["address"]
    with pytest.raises(ValueError, match="address"):
        decode(SessionRecord, data, set())


def test_the_last_word_counts() -> None:
    found = replay(
        lines(
            ["use", 5.0, [[11, 10, 20, 30, 40, 0.5, 0.6, 7, 8, 9, 1, 2, 3, 4, "of a later release"]]],
            ["ctl", 7, 0, 4, 1, [[6, "\x80"]]],
            ["ctl", 7, 1, 6, 0, []],
            ["call", 7, 12, 6],
            ["call", 7, 13, 8],
            ["ses-", 13],
        )
    )
    assert found.sessions[11].usage == UsageRecord(10, 20, 30, 40, 0.5, 0.6, 7, 8, 9, 1, 2, 3, 4)
    assert found.tunnels[7].control == ReliableRecord(9, 4, 1, 6, 0, ())
    assert found.calls == {12: CallRecord(7, 12, 6)}
    assert found.time == 5.0 and not found.clean and not found.refused


def test_a_session_that_comes_again_has_nothing_of_what_it_used_before() -> None:
    found = replay(lines(["use", 5.0, [[11, 10, 20, 30, 40, 0.5, 0.6, 7]]], ["ses", written(SESSION)]))
    assert found.sessions[11] == SESSION


def test_a_session_that_is_online_no_more_is_a_call_and_then_gone() -> None:
    assert replay(lines(["call", 7, 11, 5])).calls == {11: CallRecord(7, 11, 5)}
    found = replay(lines(["call", 7, 11, 5], ["ses-", 11], ["tun-", 7]))
    assert found.empty


def test_only_the_last_line_says_that_the_process_left_in_good_order() -> None:
    assert replay(lines(["left", 9.0])).clean
    assert not replay(lines(["left", 9.0], ["head", SCHEMA, "x", 10.0])).clean


def test_one_bad_record_costs_one_session_and_its_lac_can_be_told() -> None:
    bad = {**written(SESSION), "id": 12, "peer_id": 6, "address": "nowhere"}
    found = replay(lines(["ses", bad]))
    assert set(found.sessions) == {11}
    assert found.calls == {12: CallRecord(7, 12, 6)}
    assert len(found.refused) == 1 and "session 12" in found.refused[0]


def test_a_kind_of_line_of_a_later_release_is_left_out_and_told() -> None:
    found = replay([["head", 99, "9.9", 1.0], *lines()[1:], ["garden", 11, True]])
    assert set(found.sessions) == {11}
    assert found.schemas == {99} and found.unknown == {"line 'garden'"}


OUT_OF_RANGE = [
    ("ses", ("peer_id",), 70000),
    ("ses", ("peer_id",), 0),
    ("ses", ("tunnel",), -1),
    ("ses", ("address",), "10.5.0.256"),
    ("ses", ("acct_session_id",), ""),
    ("ses", ("acct_session_id",), "x" * 300),
    ("ses", ("user",), "x" * 100_000),
    ("ses", ("called",), "1" * 100_000),
    ("ses", ("opened",), -1.0),
    ("ses", ("online_since",), 1e300),
    ("ses", ("next_interim",), 1e12),
    ("ses", ("answer_identifier",), 256),
    ("ses", ("call_serial",), 1 << 32),
    ("ses", ("tx_speed",), -5),
    ("ses", ("usage", "in_octets"), -1),
    ("ses", ("usage", "out_octets"), 1 << 63),
    ("ses", ("usage", "ns"), 65536),
    ("ses", ("usage", "idle_rx"), -0.5),
    ("ses", ("credentials", "protocol"), 0x21),
    ("ses", ("credentials", "identifier"), 300),
    ("ses", ("lcp", "auth"), "xy"),
    ("ses", ("lcp", "peer_mru"), 0),
    ("ses", ("lcp", "magic"), -1),
    ("ses", ("ipcp", "identifier"), 1000),
    ("ses", ("policy", "rate_in"), -1),
    ("ses", ("policy", "garden"), "a b"),
    ("ses", ("policy", "sink"), {"address": "192.0.2.1", "port": 70000}),
    ("ses", ("profile",), {"accepted": True, "session_timeout": -1}),
    ("ses", ("profile",), {"accepted": True, "assign": "nowhere"}),
    ("ses", ("profile",), {"accepted": True, "classes": ["x" * 5000]}),
    ("tun", ("id",), 70000),
    ("tun", ("peer_id",), 70000),
    ("tun", ("peer",), ["192.0.2.300", 1701]),
    ("tun", ("peer",), ["192.0.2.2", 70000]),
    ("tun", ("peer",), ["192.0.2.2"]),
    ("tun", ("local",), "eth0"),
    ("tun", ("receive_window",), 0),
    ("tun", ("opened",), -5.0),
    ("tun", ("host",), "x" * 100_000),
    ("tun", ("control", "ns"), 65536),
    ("tun", ("control", "nr"), -1),
    ("tun", ("control", "sent"), 2),
    ("tun", ("control", "peer_tunnel_id"), 70000),
    ("tun", ("control", "pending"), [[70000, "x"]]),
    ("tun", ("control", "pending"), [[5, "x" * 66_000]]),
]


def altered(data: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *rest = path
    return {**data, name: altered(data[name], tuple(rest), value) if rest else value}


@pytest.mark.parametrize(("kind", "path", "value"), OUT_OF_RANGE)
def test_a_value_that_no_field_can_have_costs_its_record_and_is_named(
    kind: str, path: tuple[str, ...], value: Any
) -> None:
    record: Any = TUNNEL if kind == "tun" else SESSION
    own = {"id": 12, "peer_id": 6, "address": "10.5.0.12", "acct_session_id": "0C"} if kind == "ses" else {"id": 8}
    found = replay(lines([kind, altered({**written(record), **own}, path, value)]))
    assert (found.sessions, found.tunnels) == ({11: SESSION}, {7: TUNNEL})
    assert len(found.refused) == 1 and path[-1] in found.refused[0]
    assert not replay(lines([kind, altered({**written(record), **own}, path, value)], ["left", 9.0])).clean


@pytest.mark.parametrize("name", ["address", "acct_session_id"])
def test_what_only_one_session_can_have_the_second_that_claims_it_is_refused_for(name: str) -> None:
    own = {"id": 12, "peer_id": 6, "address": "10.5.0.12", "acct_session_id": "0C"}
    found = replay(lines(["ses", {**written(SESSION), **own, name: written(SESSION)[name]}]))
    assert found.sessions == {11: SESSION}
    assert found.calls == {12: CallRecord(7, 12, 6)}
    assert found.refused == [f"session 12: {name} {written(SESSION)[name]} belongs to session 11"]


@pytest.mark.parametrize(("opened", "stays"), [(5.0, 8), (-0.0, 7)])
def test_of_two_tunnels_with_the_same_id_of_the_lac_the_newer_one_stays(opened: float, stays: int) -> None:
    older = {**written(TUNNEL), "opened": 1.0}
    found = replay([["tun", older], ["tun", {**written(TUNNEL), "id": 8, "opened": opened}]])
    assert set(found.tunnels) == {stays}
    assert len(found.refused) == 1 and f"tunnel {15 - stays}" in found.refused[0]


@pytest.mark.parametrize("row", [[11], [11, -1], [11, 1, 2, 3, 4, "x"], [70000, 1], ["a"], None, [[1]], [11, 1 << 63]])
def test_usage_that_makes_no_sense_is_left_out_and_the_others_count(row: Any) -> None:
    found = replay(lines(["use", 5.0, [[11, 10, 20, 30, 40, 0.5, 0.6, 7, 8, 9]]], ["use", 6.0, [row]]))
    assert found.sessions[11].usage.in_octets in (10, 0)
    assert bool(found.refused) == (row != [11])


@pytest.mark.parametrize(
    "field, value",
    [
        *(("in_octets", bad) for bad in (-1, 1 << 63, True, 1.5, None)),
        *(("idle_tx", bad) for bad in (-0.5, 1e10, "0", False)),
        *(("ns", bad) for bad in (-1, 1 << 16, 1.0)),
        ("fast_out_packets", -1),
    ],
)
def test_a_whole_row_with_one_value_that_makes_no_sense_is_left_out(field: str, value: Any) -> None:
    good = dataclasses.asdict(UsageRecord(10, 20, 30, 40, 0.5, 0, 7, 8, 9, 10, 11, 12, 13))
    found = replay(lines(["use", 5.0, [[11, *good.values()]]], ["use", 6.0, [[11, *(good | {field: value}).values()]]]))
    assert found.sessions[11].usage == UsageRecord(**good)
    assert len(found.refused) == 1 and field in found.refused[0]


def test_equal_profiles_are_one_object_and_an_unknown_field_is_told_each_time() -> None:
    profile = {"accepted": True, "mtu": 1400, "later": 1}
    for _ in range(2):
        assert replay(lines(["ses", {**written(SESSION), "profile": profile}])).unknown == {"AuthReply.later"}
    del profile["later"]
    first, second = (replay(lines(["ses", {**written(SESSION), "profile": profile}])).sessions[11] for _ in range(2))
    assert first.profile is second.profile and first.profile.mtu == 1400


@pytest.mark.parametrize("line", [["head", SCHEMA, "x", 1e300], ["use", -5, []], ["left", "now"], ["use", 1e13, []]])
def test_a_time_that_cannot_be_does_not_count(line: list[Any]) -> None:
    found = replay(lines(line))
    assert found.time == 1.0 and found.refused


def test_a_row_of_an_earlier_release_says_nothing_of_the_fast_path() -> None:
    found = replay(lines(["use", 5.0, [[11, 10, 20, 30, 40, 0.5, 0.6, 7, 8, 9]]]))
    assert found.sessions[11].usage == UsageRecord(10, 20, 30, 40, 0.5, 0.6, 7, 8, 9)


def test_numbers_that_cannot_follow_leave_the_tunnel_as_it_was() -> None:
    for change in ([70000, 4, 1, []], [9, -1, 1, []], [9, 4, 5, []], [9, 4, 1, [[5, "\u20ac"]]], [9, 4, 1, [[-1, ""]]]):
        found = replay(lines(["ctl", 7, *change], ["left", 9.0]))
        assert found.tunnels == {7: TUNNEL} and found.refused and not found.clean


ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        0.5,
        70000,
        1 << 40,
        1 << 63,
        1e308,
        -1e308,
        "",
        "x",
        "x" * 70_000,
        [],
        {},
        [1],
        "0.0.0.0",
        [[1]],
    ]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = put(value[path[0]], path[1:], new)
    return changed


LINES = lines(
    ["ses", {**written(SESSION), "id": 12, "peer_id": 6, "address": "10.5.0.12", "acct_session_id": "0C"}],
    ["use", 5.0, [[12, 10, 20, 30, 40, 0.5, 0.6, 7, 8, 9]]],
    ["ctl", 7, 10, 5, 0, []],
    ["call", 7, 13, 8],
)
PLACES = [(number, path) for number, line in enumerate(LINES) for path in places(line)[1:]]


@given(st.sampled_from(PLACES), ODD)
def test_one_odd_value_costs_no_more_than_its_line(place: tuple[int, tuple[Any, ...]], odd: Any) -> None:
    number, path = place
    fresh = deepcopy(LINES)  # Replay keeps the objects and changes them
    found = replay([*fresh[:number], put(fresh[number], path, odd), *fresh[number + 1 :]])
    own = {1: None, 2: 11, 3: 12}.get(number)
    assert {11, 12} - {own} <= set(found.sessions) or path == ("id",) or path[1:] == ("id",)
    for record in found.sessions.values():
        assert decode(SessionRecord, written(record), set()).id == record.id
        assert 0 < record.peer_id < 65536 and record.usage.in_octets >= 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(st.tuples(st.sampled_from(sorted(Replay.READERS)) | JSON, st.lists(JSON, max_size=5)), max_size=6))
def test_any_lines_give_records_or_reasons(anything: list[tuple[Any, list[Any]]]) -> None:
    found = replay([[kind, *rest] for kind, rest in anything])
    assert all(isinstance(record, SessionRecord) for record in found.sessions.values())


@given(st.binary(max_size=80))
def test_any_octets_are_a_line_or_none(octets: bytes) -> None:
    fields = read_line(octets)
    assert fields is None or make_line(fields) == octets
