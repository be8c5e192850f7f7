"""Profiles of LACs: which LAC has which, and what it changes for its tunnels and sessions."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from l2tpns.config.file import make_config, parse_text, running_config
from l2tpns.config.lac_config import choose
from l2tpns.config.lac_profile import LacProfile
from l2tpns.config.settings import SETTINGS, Config
from l2tpns.errors import ConfigError
from l2tpns.proto.l2tp.messages import SCCRP, StopCCN
from tests.lab.inprocess import InProcess
from tests.lab.lac import Refused, Why
from tests.server.conftest import QUICK, Serve
from tests.server.operators import Desk

FILE = """
set l2tp_secret "of all"
set radius_authtypes "pap"
lac wide
 address 127.0.0.0/8
 set l2tp_secret "of the wide"
exit
lac one
 address 127.0.0.7
 set radius_authtypes "chap"
 set proxy_lcp no
exit
lac named
 host-name "lac1,lac2"
 set echo_timeout 33
exit
lac both
 address 127.0.0.0/8
 host-name lac3
exit
set hostname "lns"
"""


def config(text: str = FILE) -> Config:
    return make_config(parse_text(text))


@pytest.mark.parametrize(
    "address, host, profile",
    [
        ("127.0.0.7", "lac1", "one"),  # the longest prefix
        ("127.0.0.8", "lac9", "wide"),
        ("127.0.0.8", "lac3", "both"),  # the same prefix, and the name of the host
        ("127.0.0.8", "lac1", "wide"),  # an address counts more than a name
        ("192.0.2.1", "lac2", "named"),
        ("192.0.2.1", "lac3", ""),
        ("192.0.2.1", "LAC2", ""),
    ],
)
def test_the_longest_prefix_counts_then_the_name_of_the_host(address: str, host: str, profile: str) -> None:
    assert choose(config(), address, host)[0] == profile


def test_of_two_alike_the_first_in_the_file_counts() -> None:
    text = "lac b\n address 10.0.0.0/8\nexit\nlac a\n address 10.0.0.0/8\nexit\n"
    assert choose(config(text), "10.1.2.3", "x")[0] == "b"


def test_a_profile_has_its_own_values_and_else_the_present_ones_of_the_server() -> None:
    server = config()
    _, one = choose(server, "127.0.0.7", "")
    assert (one.radius_authtypes, one.proxy_lcp, one.l2tp_secret) == (("chap",), False, "of all")
    _, wide = choose(server, "127.0.0.8", "")
    assert wide.l2tp_secret_octets == b"of the wide" and server.l2tp_secret_octets == b"of all"
    server.assign("echo_timeout", "77")
    assert (one.echo_timeout, one.mru, one.hello_seconds) == (77, server.mru, server.hello_seconds)
    assert choose(Config(), "127.0.0.7", "")[0] == ""


def test_the_secret_of_a_profile_is_hidden_in_the_log() -> None:
    assert set(config().secrets()) == {"of all", "of the wide"}


def test_what_is_written_reads_back_to_the_same() -> None:
    server = config()
    again = make_config(parse_text(running_config(server)))
    assert again == server and list(again.lacs) == ["wide", "one", "named", "both"]


@pytest.mark.parametrize(
    "lines, why",
    [
        ("lac", ":1: Usage: lac NAME"),
        ("lac a b", ":1: Usage: lac NAME"),
        ("lac a/b", ":1: Usage: lac NAME"),
        ("lac a\nexit\nlac a", ":3: lac a is there already"),
        ("lac a\n address 10.0.0.1/8", ":2: address: 10.0.0.1/8 will not do: it must be networks"),
        ("lac a\n host-name a,,b", ":2: host-name: a,,b will not do: it must be host names"),
        ("lac a\n address 10.0.0.1 10.0.0.2", ":2: Usage: address LIST"),
        ("lac a\n set radius_secret x", ":2: radius_secret is the same for all LACs: set it outside of `lac a`"),
        ("lac a\n set no_such 1", ":2: "),
        ("lac a\n set l2tp_secret", ":2: Usage: set <variable> <value>"),
        ("lac a\n set echo_timeout x", ":2: echo_timeout:"),
        ("address 10.0.0.0/8", ":1: "),
    ],
)
def test_a_wrong_line_is_named(lines: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(lines)
    assert why in str(caught.value)


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.lac])
def test_each_variable_that_may_be_set_for_a_lac_is_read_from_its_profile(name: str) -> None:
    profile = LacProfile("x", values={name: object()})
    server = Config(lacs={"x": profile})
    assert getattr(choose(server, "127.0.0.1", "")[1], name) is profile.values[name] is not getattr(server, name)


# Tunnels and sessions


def profile(name: str, *addresses: str, host_names: tuple[str, ...] = (), **values: Any) -> dict[str, LacProfile]:
    return {name: LacProfile(name, tuple(map(IPv4Network, addresses)), host_names, values)}


def test_two_lacs_have_two_secrets(serve: Serve) -> None:
    lacs = {
        **profile("a", host_names=("lac-a",), l2tp_secret="one"),
        **profile("b", host_names=("lac-b",), l2tp_secret="two"),
    }
    server = serve(l2tp_secret="three", l2tp_challenge=True, lacs=lacs)
    for name, secret in (("lac-a", b"one"), ("lac-b", b"two"), ("lac-c", b"three")):
        server.lac(name, secret=secret).connect()
    for name, secret in (("lac-a", b"two"), ("lac-b", b"three"), ("lac-c", b"one")):
        lac = server.lac(name, secret=secret)
        with suppress(Refused):
            lac.connect()
        server.wait(lambda: lac.ended is not None)  # noqa: B023
        assert lac.ended is not None and lac.ended.why in (Why.STOPCCN, Why.BAD_RESPONSE)
    assert sorted(tunnel.profile for tunnel in server.lns.tunnels.values() if not tunnel.closing) == ["", "a", "b"]


def test_a_lac_without_a_secret_and_one_with_hidden_avps(serve: Serve) -> None:
    lacs = profile("b", host_names=("lac-b",), l2tp_secret="two", l2tp_hide_avps=True)
    server = serve(lacs=lacs)
    server.lac("lac-b", secret=b"two", hide=True).connect().call("fred", "pw").wait_online()
    server.lac("lac-c").connect().call("mary", "pw").wait_online()


def test_each_lac_has_its_authentication_and_its_name_servers(serve: Serve) -> None:
    lacs = profile("a", host_names=("lac-a",), radius_authtypes=("chap",), primary_dns=IPv4Address("192.0.2.53"))
    server = serve(radius_authtypes=("pap",), primary_dns=IPv4Address("192.0.2.1"), lacs=lacs)
    fred = server.lac("lac-a", defaults=QUICK).connect().call("fred", "pw").wait_online()
    mary = server.lac("lac-b", defaults=QUICK).connect().call("mary", "pw").wait_online()
    assert {line["user"]: line["auth"] for line in server.events("session_up")} == {"fred": "chap", "mary": "pap"}
    assert (str(fred.dns[0]), str(mary.dns[0])) == ("192.0.2.53", "192.0.2.1")


def test_each_lac_has_its_limits(serve: Serve) -> None:
    lacs = profile("a", host_names=("lac-a",), max_tunnels_per_lac=1, max_starting_per_lac=1)
    server = serve(lacs=lacs)
    first = server.peer()
    first.say(first.sccrq(host_name=b"lac-a"))
    first.expect(SCCRP)
    second = server.peer(tunnel_id=0x2222)
    second.say(second.sccrq(host_name=b"lac-a"))
    assert second.expect(StopCCN).result_code.error == 4
    other = server.peer(tunnel_id=0x3333)
    other.say(other.sccrq(host_name=b"lac-b"))
    other.expect(SCCRP)


def test_a_change_of_a_profile_counts_for_tunnels_that_begin_after_it(serve: Serve) -> None:
    server = serve(lacs=profile("a", host_names=("lac-a",), l2tp_disconnect_cause=False))
    peer = server.peer()
    peer.say(peer.sccrq(host_name=b"lac-a"))
    peer.peer_tunnel_id = peer.expect(SCCRP).assigned_tunnel_id
    tunnel = server.lns.tunnels[peer.peer_tunnel_id]
    server.config.lacs = {}
    assert tunnel.config.l2tp_disconnect_cause is False and tunnel.profile == "a"
    assert choose(server.config, "127.0.0.1", "lac-a")[0] == ""


def test_the_console_shows_the_profiles(open_desk: Any) -> None:
    desk: Desk = open_desk(lacs=profile("a", "127.0.0.0/8", host_names=("lac-a",), l2tp_disconnect_cause=False))
    server: InProcess = desk.server
    server.lac("lac-a", defaults=QUICK).connect().call("fred", "pw").wait_online()
    server.lac("lac-b", defaults=QUICK).connect()
    rows = [line.split() for line in desk.plain().do("show lac").splitlines()]
    assert rows[1][:5] == ["a", "1", "1", "0", "127.0.0.0/8"] and "l2tp_disconnect_cause" in rows[1]
    assert rows[2][:4] == ["(none)", "1", "0", "0"]
