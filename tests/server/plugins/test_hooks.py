"""Arguments, times and return codes of each hook: sentences of the manual's chapter Plugins."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from time import monotonic

import pytest
from pyrad.packet import AcctPacket

from l2tpns.hooks import HOOKS, PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.radius import packets, usage
from l2tpns.radius.types import AuthReply, Usage
from l2tpns.subscriber import timers
from tests.lab.inprocess import until
from tests.lab.packets import ip
from tests.lab.pppclient import PAP
from tests.server.conftest import Serve
from tests.server.shelf import Shelf
from tests.server.subscribers import Ear, refused

# The manual's parameters of each event.
MANUAL = {
    "pre_auth": ("t", "s", "username", "password", "protocol", "continue_auth"),
    "post_auth": ("t", "s", "username", "auth_allowed", "protocol"),
    "packet_rx": ("t", "s", "buf", "len"),
    "packet_tx": ("t", "s", "buf", "len"),
    "timer": ("time_now",),
    "new_session": ("t", "s"),
    "kill_session": ("t", "s"),
    "radius_response": ("t", "s", "key", "value"),
    "control": (
        *("buf", "l", "source_ip", "source_port", "response", "send_response"),
        *("type", "id", "data", "data_length"),
    ),
}


@pytest.mark.parametrize("hook", MANUAL)
def test_every_event_takes_a_structure_named_param_event_with_the_manuals_fields(hook: str) -> None:
    event = HOOKS[hook].event
    assert event is not None and event.__name__ == f"param_{hook}"
    assert set(MANUAL[hook]) <= set(HOOKS[hook].fields)
    assert all(help for _, help, _ in HOOKS[hook].fields.values()) and HOOKS[hook].stop and HOOKS[hook].error


def test_the_return_codes_are_error_0_ok_1_and_stop_2() -> None:
    assert (PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP) == (0, 1, 2)


# pre_auth

RENAMES = """
def plugin_pre_auth(event):
    SEEN.append((event.t, event.s, event.username, event.password, event.protocol, event.continue_auth))
    event.username = event.username.partition("@")[0]
    event.password = "pw"
"""


def test_pre_auth_may_change_name_and_password_before_radius_is_asked(shelf: Shelf) -> None:
    shelf.load("renames", RENAMES)
    shelf.call("fred@isp", "wrong", auth="pap").wait_online()
    session = shelf.session("fred")
    assert shelf.seen("renames") == [(session.tunnel.id, session.id, "fred@isp", "wrong", 0xC023, True)]
    (asked,) = shelf.server.backend.asked
    assert asked.credentials.user == "fred" and asked.credentials.password == b"pw"
    assert session.user == "fred" and shelf.server.accounting.of("start")[0].user == b"fred"


def test_with_chap_there_is_no_password_and_the_name_may_be_changed(shelf: Shelf) -> None:
    shelf.load("renames", RENAMES)
    shelf.call("fred@isp", auth="chap").wait_online()
    assert [seen[2:5] for seen in shelf.seen("renames")] == [("fred@isp", "", 0xC223)]
    assert shelf.session("fred").user == "fred"


def test_a_name_is_changed_for_later_challenges_too(serve: Serve, tmp_path: Path) -> None:
    shelf = Shelf(serve(plugin_dir=str(tmp_path), chap_rechallenge=0.05), tmp_path)
    shelf.load("renames", RENAMES)
    fred = shelf.call("fred@isp", auth="chap").wait_online()
    until(lambda: len(shelf.server.backend.asked) >= 4)
    assert {asked.credentials.user for asked in shelf.server.backend.asked} == {"fred"} and fred.ended is None


def test_a_name_that_is_no_utf_8_reaches_radius_as_it_came(shelf: Shelf) -> None:
    shelf.load("looks", "def plugin_pre_auth(event): event.username = event.username + '!'")
    refused(shelf.call(b"fr\xe9d", auth="pap"))
    assert shelf.server.backend.asked[0].credentials.name == b"fr\xe9d!"


def test_continue_auth_set_to_0_stops_authentication_modules_and_nobody_is_asked(shelf: Shelf) -> None:
    shelf.load("first", "def plugin_pre_auth(event): event.continue_auth = 0")
    shelf.load("second", "def plugin_pre_auth(event): SEEN.append(event.username)")
    fred = shelf.call(auth="pap")
    ear = Ear(fred)
    refused(fred)
    assert ear.of("in", PAP, 3) and shelf.seen("second") == [] and shelf.server.backend.asked == []
    assert shelf.events("auth_refused")[0]["why"] == "refused by plugin first"


@pytest.mark.parametrize("code", ["PLUGIN_RET_STOP", "PLUGIN_RET_ERROR"])
def test_stop_or_error_at_pre_auth_ends_the_chain_and_the_login_goes_on(shelf: Shelf, code: str) -> None:
    shelf.load("first", f"def plugin_pre_auth(event): return {code}")
    shelf.load("second", "def plugin_pre_auth(event): event.continue_auth = 0")
    shelf.online()


# post_auth


def test_post_auth_is_told_whether_authentication_has_been_allowed_so_far(shelf: Shelf) -> None:
    shelf.load(
        "looks",
        """
        def plugin_post_auth(event):
            SEEN.append((event.username, event.auth_allowed, event.protocol, event.reason, event.avpairs))
        """,
    )
    shelf.server.backend.replies["fred"] = AuthReply(accepted=True, avpairs=(("a", "b"),))
    shelf.call("fred", auth="pap").wait_online()
    refused(shelf.call("fred", "wrong", auth="chap"))
    assert shelf.seen("looks") == [("fred", True, 0xC023, "", (("a", "b"),)), ("fred", False, 0xC223, "go away", ())]


def test_you_can_set_auth_allowed_to_1_to_force_allow(shelf: Shelf) -> None:
    shelf.load("allows", "def plugin_post_auth(event): event.auth_allowed = 1")
    stranger = shelf.call("stranger", "wrong", auth="pap")
    ear = Ear(stranger)
    stranger.wait_online()
    assert ear.of("in", PAP, 2) and b"go away" not in ear.of("in", PAP, 2)[0]
    (line,) = shelf.events("verdict_overruled")
    assert (line["plugin"], line["allowed"], line["why"]) == ("allows", True, "go away")


def test_or_to_0_to_disallow_authentication(shelf: Shelf) -> None:
    shelf.load("forbids", "def plugin_post_auth(event): event.auth_allowed = 0")
    fred = shelf.call("fred", auth="pap")
    ear = Ear(fred)
    refused(fred)
    assert ear.of("in", PAP, 3) and shelf.events("auth_refused")[0]["why"] == "plugin forbids"


def test_a_reject_that_became_a_success_has_its_attributes_used_as_an_accepts(shelf: Shelf) -> None:
    shelf.load(
        "garden",
        """
        def plugin_post_auth(event): event.auth_allowed = True
        def plugin_radius_response(event): SEEN.append((event.key, event.value))
        """,
    )
    shelf.server.backend.refusal = replace(
        shelf.server.backend.refusal, avpairs=(("garden", "poor"),), session_timeout=1000
    )
    shelf.online("stranger")
    assert shelf.seen("garden") == [("garden", "poor")]
    profile = shelf.session("stranger").profile
    assert profile is not None and profile.session_timeout == 1000


# radius_response

PAIRS = AuthReply(accepted=True, avpairs=(("intercept", "yes"), ("throttle", "yes"), ("key", "v")))


def test_radius_response_has_each_key_value_pair_processed_through_all_modules(shelf: Shelf) -> None:
    for name in ("first", "second"):
        shelf.load(name, "def plugin_radius_response(event): SEEN.append((event.t, event.s, event.key, event.value))")
    shelf.server.backend.replies["fred"] = PAIRS
    shelf.online()
    session = shelf.session()
    pairs = [(session.tunnel.id, session.id, key, value) for key, value in PAIRS.avpairs]
    assert shelf.seen("first") == shelf.seen("second") == pairs


@pytest.mark.parametrize("code", ["PLUGIN_RET_STOP", "PLUGIN_RET_ERROR"])
def test_if_it_returns_stop_or_error_no_further_modules_are_run_for_this_event(shelf: Shelf, code: str) -> None:
    shelf.load("first", f"def plugin_radius_response(event): return {code} if event.key == 'throttle' else None")
    shelf.load("second", "def plugin_radius_response(event): SEEN.append(event.key)")
    shelf.server.backend.replies["fred"] = PAIRS
    shelf.online()
    assert shelf.seen("second") == ["intercept", "key"]


def test_modules_run_in_the_order_they_were_loaded(shelf: Shelf) -> None:
    names = ("zeta", "alpha", "mid")
    for name in names:
        shelf.load(name, f"def plugin_pre_auth(event): event.username += '.{name}'")
    refused(shelf.call("x"))
    assert shelf.server.backend.asked[0].credentials.user == "x.zeta.alpha.mid"


# new_session, kill_session

LIVES = """
def plugin_new_session(event):
    session = event.session
    SEEN.append(("new", event.t, event.s, event.resumed, session.user, str(session.address), session.online))
def plugin_kill_session(event):
    session = event.session
    SEEN.append(("kill", event.t, event.s, event.cause, session.user, str(session.address), session.traffic[0]))
"""


def test_new_session_is_called_when_it_is_ready_to_handle_traffic_and_kill_session_while_it_is_still_whole(
    shelf: Shelf,
) -> None:
    shelf.load("lives", LIVES)
    fred = shelf.online()
    session = shelf.session()
    ids, address = (session.tunnel.id, session.id), str(session.address)
    until(lambda: shelf.seen("lives"))
    assert shelf.seen("lives") == [("new", *ids, False, "fred", address, True)]
    packet = ip(address, "192.0.2.1")
    fred.send_ip(packet)
    until(lambda: session.path.in_packets)
    fred.hangup()
    until(lambda: shelf.server.calm)
    assert shelf.seen("lives")[1:] == [("kill", *ids, "lac_lost_carrier", "fred", address, len(packet))]


def test_a_session_that_never_came_online_is_killed_once_too_if_it_asked_to_log_in(shelf: Shelf) -> None:
    shelf.load("lives", LIVES)
    refused(shelf.call("fred", "wrong"))
    until(lambda: shelf.server.calm)
    assert [seen[0] for seen in shelf.seen("lives")] == ["kill"]


def test_a_subscriber_that_begins_anew_with_lcp_is_another_session_to_plugins(shelf: Shelf) -> None:
    shelf.load("lives", LIVES)
    fred = shelf.online()
    fred.restart()
    fred.wait(lambda: len(shelf.seen("lives")) == 3)
    assert [seen[0] for seen in shelf.seen("lives")] == ["new", "kill", "new"]
    assert shelf.seen("lives")[1][3] == "user_request"


# radius_account, radius_reset


def test_radius_account_adds_attributes_to_every_record(shelf: Shelf) -> None:
    shelf.load(
        "adds",
        """
        def plugin_radius_account(event):
            SEEN.append(event.kind)
            event.avpair("throttle=yes")
            event.add("Filter-Id", "gold.in")
        """,
    )
    fred = shelf.online()
    fred.hangup()
    until(lambda: shelf.server.calm)
    assert shelf.seen("adds") == ["start", "stop"]
    for kind in ("start", "stop"):
        (record,) = shelf.server.accounting.of(kind)
        assert record.avpairs == ("throttle=yes",) and record.attributes == (("Filter-Id", "gold.in"),)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("User-Name", "fred", "plugins may not add"),
        ("User-Password", "pw", "plugins may not add"),
        ("No-Such-Thing", "x", "the dictionary has no"),
        ("Session-Timeout", "soon", "cannot be"),
        ("Filter-Id", "x" * 300, "more than an attribute holds"),
    ],
)
def test_an_attribute_that_cannot_be_is_refused_where_it_is_added(
    shelf: Shelf, name: str, value: str, why: str
) -> None:
    shelf.load(
        "adds",
        f"""
        def plugin_radius_account(event):
            try:
                event.add({name!r}, {value!r})
            except ValueError as error:
                SEEN.append(str(error))
        """,
    )
    shelf.online()
    assert why in shelf.seen("adds")[0] and shelf.server.accounting.of("start")[0].attributes == ()


def test_what_no_record_can_hold_is_left_out_and_the_records_are_written(shelf: Shelf) -> None:
    shelf.load(
        "adds",
        """
        def plugin_radius_account(event):
            event.avpair("name=\\udcff")
            event.avpairs.extend([5, None, "good=yes"])
            event.attributes.extend([5, ("Filter-Id",), ("Filter-Id", None), ("Session-Timeout", 2**70), (1, 2)])
            event.attributes.append(("Filter-Id", "gold"))
            try:
                event.add("Framed-IP-Address", b"abcd")
            except ValueError as error:
                SEEN.append(str(error))
        """,
    )
    shelf.online()
    (record,) = shelf.server.accounting.of("start")
    assert record.avpairs == ("name=\\udcff", "good=yes") and record.attributes == (("Filter-Id", "gold"),)
    assert usage.load_usage(usage.dump_usage(record)) == record
    assert shelf.seen("adds") == ["Framed-IP-Address must be text or a number, not bytes"]


def test_what_plugins_add_goes_through_the_spool_into_the_packet() -> None:
    used = Usage(
        "A", b"fred", 7, avpairs=("throttle=yes",), attributes=(("Filter-Id", "gold"), ("Session-Timeout", 60))
    )
    assert usage.load_usage(usage.dump_usage(used)) == used
    packet = AcctPacket(packet=usage.sample("stop", used).encode(), dict=packets.load_dictionary())
    assert packet["Filter-Id"] == ["gold"] and packet["Session-Timeout"] == [60]
    assert packet["Cisco-AVPair"] == ["throttle=yes"]


def test_what_plugins_add_never_makes_a_record_too_long_to_be_answered() -> None:
    much = tuple(f"{number}=" + "x" * 240 for number in range(30))
    used = Usage("A", b"fred", 7, avpairs=much, attributes=(("Filter-Id", "gold"),) * 30, in_octets=5)
    packet = AcctPacket(packet=usage.sample("stop", used).encode(), dict=packets.load_dictionary())
    assert len(packet.raw_packet) <= 4096 and packet["Acct-Input-Octets"] == [5]
    assert packet["Cisco-AVPair"] == list(much[: len(packet["Cisco-AVPair"])]) and len(packet["Cisco-AVPair"]) > 10


def test_radius_reset_comes_before_the_pairs_of_a_new_answer(shelf: Shelf) -> None:
    shelf.load(
        "resets",
        """
        def plugin_radius_reset(event): SEEN.append("reset")
        def plugin_radius_response(event): SEEN.append(event.value)
        """,
    )
    replies = shelf.server.backend.replies
    replies["fred"] = AuthReply(accepted=True, session_timeout=1000, termination_action=1, avpairs=(("a", "old"),))
    shelf.call(auth="pap").wait_online()
    replies["fred"] = AuthReply(accepted=True, avpairs=(("a", "new"),))
    session = shelf.session()
    session.timeout_started_at -= 1000  # its time is over
    timers.set_timer(session, monotonic())
    until(lambda: len(shelf.seen("resets")) >= 3)
    assert shelf.seen("resets") == ["old", "reset", "new"]


# timer


def test_timer_is_run_every_second_with_the_current_unix_timestamp(shelf: Shelf) -> None:
    shelf.load("first", "def plugin_timer(event): SEEN.append(event.time_now)")
    shelf.load("second", "def plugin_timer(event): SEEN.append(event.time_now); return PLUGIN_RET_STOP")
    shelf.load("third", "def plugin_timer(event): SEEN.append(event.time_now)")
    until(lambda: len(shelf.seen("second")) >= 3)
    times = shelf.seen("second")
    assert times == sorted(set(times)) and all(type(now) is int for now in times)
    assert shelf.seen("first")[: len(times)] == times and shelf.seen("third") == []


# control

CONTROL = """
def plugin_control(event):
    SEEN.append((event.argv, event.source_ip, event.source_port, event.data, event.data_length))
    if event.argv[0] == "good":
        event.response = "done"
        return PLUGIN_RET_STOP
    if event.argv[0] == "bad":
        event.response = "no such thing"
        return PLUGIN_RET_ERROR
    if event.argv[0] == "quiet":
        event.send_response = 1
    return PLUGIN_RET_OK
plugin_control_help = ["good - does good"]
"""


def test_control_should_handle_the_packet_and_form_a_response_if_required(shelf: Shelf) -> None:
    shelf.load("ctl", CONTROL)
    control = shelf.plugins.control
    assert control(["good", "x y"], ("192.0.2.1", 1703)) == (True, "done")
    assert shelf.seen("ctl") == [(("good", "x y"), "192.0.2.1", 1703, b"good\0x y", 8)]
    assert control(["bad"], ("192.0.2.1", 1)) == (False, "no such thing")
    assert control(["quiet"], ("192.0.2.1", 1)) == (True, "")
    assert control(["other"], ("192.0.2.1", 1)) is None
    assert shelf.plugins.control_help() == ["good - does good"]


def test_a_command_that_no_plugin_claims_is_said_to_have_failed_if_one_failed(shelf: Shelf) -> None:
    shelf.load("ctl", "def plugin_control(event): raise RuntimeError('oh')")
    shelf.server.meant = ("plugin_failed",)
    assert shelf.plugins.control(["x"], ("192.0.2.1", 1)) == (
        False,
        "plugin ctl failed: see the server's log",
    )


# Packets

PACKETS = """
def plugin_packet_rx(event):
    SEEN.append(("rx", event.t, event.s, event.buf, event.len))
    return VERDICT[0]
def plugin_packet_tx(event):
    SEEN.append(("tx", event.t, event.s, event.buf, event.len))
    return VERDICT[0]
VERDICT = [None]
"""


def test_packet_rx_is_towards_the_user_and_packet_tx_from_the_user_with_the_raw_packet(shelf: Shelf) -> None:
    shelf.load("packets", PACKETS)
    fred = shelf.online()
    session = shelf.session()
    up = ip(str(session.address), "192.0.2.1")
    down = ip("192.0.2.1", str(session.address))
    fred.send_ip(up)
    until(lambda: shelf.server.plane.delivered == [up])
    shelf.server.plane.deliver(down)
    assert fred.receive_ip() == down
    ids = (session.tunnel.id, session.id)
    assert shelf.seen("packets") == [("tx", *ids, up, len(up)), ("rx", *ids, down, len(down))]


def test_error_drops_the_packet_and_stop_hides_it_from_the_next_module(shelf: Shelf) -> None:
    shelf.load("first", PACKETS)
    shelf.load("second", PACKETS)
    shelf.online()
    session, verdict = shelf.session(), shelf.module("first").VERDICT
    tap = session.path.packet_hook
    assert tap is not None
    assert tap(0, b"packet") == b"packet" and len(shelf.seen("second")) == 1
    verdict[0] = PLUGIN_RET_STOP
    assert tap(0, b"packet") == b"packet" and len(shelf.seen("second")) == 1
    verdict[0] = PLUGIN_RET_ERROR
    assert tap(1, b"packet") is None and len(shelf.seen("second")) == 1
    verdict[0] = PLUGIN_RET_OK
    assert tap(1, b"packet") == b"packet" and len(shelf.seen("second")) == 2


def test_a_packet_hook_may_put_another_packet_in_its_place(shelf: Shelf) -> None:
    shelf.load("first", "def plugin_packet_tx(event): event.buf = event.buf + b'1'")
    shelf.load("second", "def plugin_packet_tx(event): event.buf = event.buf + b'2'; SEEN.append(event.len)")
    shelf.online()
    tap = shelf.session().path.packet_hook
    assert tap is not None and tap(0, b"packet") == b"packet12" and shelf.seen("second") == [7]
    assert tap(1, b"packet") == b"packet"


def test_packet_hooks_stand_in_a_sessions_path_only_while_one_is_loaded(shelf: Shelf) -> None:
    shelf.online()
    path = shelf.session().path
    assert path.packet_hook is None
    shelf.load("packets", PACKETS)
    assert path.packet_hook is not None
    shelf.plugins.remove("packets")
    assert path.packet_hook is None


# Fields


@pytest.mark.parametrize(
    ("slip", "why"),
    [
        ("event.usrname = 'x'", "AttributeError"),
        ("event.s = 5", "param_pre_auth.s may not be changed, only: username, password, continue_auth"),
        ("event.username = b'x'", "param_pre_auth.username must be str, not bytes"),
        ("event.continue_auth = 'no'", "param_pre_auth.continue_auth must be bool, not str"),
    ],
)
def test_a_field_that_is_misspelt_or_not_to_be_set_so_is_an_error_of_the_plugin(
    shelf: Shelf, slip: str, why: str
) -> None:
    shelf.server.meant = ("plugin_failed",)
    shelf.load("slips", f"def plugin_pre_auth(event):\n    event.username = 'nobody'\n    {slip}")
    shelf.online()  # and nothing that it did before the slip counts
    (line,) = shelf.events("plugin_failed")
    assert why in line["why"] and line["where"].endswith("slips.py:9") and line["hook"] == "plugin_pre_auth"


def test_a_session_can_be_throttled_watched_and_dropped_by_a_plugin(shelf: Shelf) -> None:
    shelf.load(
        "acts",
        """
        def plugin_post_auth(event):
            event.session.throttle(64, 128)
            event.session.snoop("192.0.2.9", 5000)
            SEEN.append((event.session.rate_in, event.session.rate_out, event.session.sink))
        """,
    )
    fred = shelf.online()
    assert shelf.seen("acts") == [(64, 128, (IPv4Address("192.0.2.9"), 5000))]
    server = shelf.module("acts").server
    (view,) = server.find("fred")
    assert server.find(str(view.id)) == [view] and server.session_of(view.address) == view and view.online
    view.drop("enough")
    assert fred.wait_ended().text == "enough"
    until(lambda: shelf.server.calm)
    assert not view.alive
    with pytest.raises(Exception, match="has ended"):
        view.drop()


def test_radius_login_asks_and_nothing_follows(shelf: Shelf) -> None:
    shelf.load("asks", "def plugin_new_session(event): pass")
    shelf.online()
    server = shelf.module("asks").server
    (view,) = server.sessions("FRED")
    assert server.radius_login(view, "mary", "pw").accepted and not server.radius_login(view, "mary", "x").accepted
    assert shelf.server.backend.asked[-1].credentials.protocol == Protocol.PAP
    shelf.server.backend.silent = True
    assert server.radius_login(view, "mary", "pw") is None
