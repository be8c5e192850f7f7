"""Logins against Debian's FreeRADIUS: what its answer does to a subscriber, and what its detail file says of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import gevent
import pytest

from tests.lab.lac import Refused, Subscriber, Why
from tests.lab.pppwishes import Phase
from tests.lab.radius_stage import (
    HOST,
    RadiusStage,
    answer_for,
    aside,
    counted,
    counted_by,
    kernel_routes,
    missing,
    until,
)

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

USERS = """
closed Auth-Type := Reject
	Reply-Message = "your account is closed"

fixed Cleartext-Password := "pw"
	Framed-IP-Address = 10.9.9.9,
	Reply-Message = "welcome"

own Cleartext-Password := "pw"
	Framed-IP-Address = 255.255.255.255

pool Cleartext-Password := "pw"
	Framed-IP-Address = 255.255.255.254

routed Cleartext-Password := "pw"
	Framed-IP-Address = 10.9.9.10,
	Framed-Route = "172.16.9.0/24 0.0.0.0 1",
	Framed-Route += "172.16.10.7/32"

dns Cleartext-Password := "pw"
	MS-Primary-DNS-Server = 203.0.113.53,
	MS-Secondary-DNS-Server = 203.0.113.54

classes Cleartext-Password := "pw"
	Class = 0x00ff30783431,
	Class += "gold"

brief Cleartext-Password := "pw"
	Session-Timeout = 2

idle Cleartext-Password := "pw"
	Idle-Timeout = 2

DEFAULT Cleartext-Password := "pw"
"""
SETTINGS = {
    "radius_require_message_authenticator": "yes",
    "primary_dns": "198.51.100.53",
    "echo_timeout": 2,
    "idle_echo_timeout": 5,
}


@pytest.fixture(scope="module")
def stage() -> Iterator[RadiusStage]:
    """One daemon and one FreeRADIUS for all tests here."""
    with RadiusStage(USERS, settings=SETTINGS) as stage:
        yield stage


@pytest.fixture(autouse=True)
def complaints(stage: RadiusStage) -> Iterator[list[Subscriber]]:
    """Subscribers of a test; none of them may have found fault with the server."""
    subscribers: list[Subscriber] = []
    yield subscribers
    assert [subscriber.complaints for subscriber in subscribers if subscriber.complaints] == []


def leave(subscriber: Subscriber) -> None:
    subscriber.terminate()
    subscriber.wait_ended()


@pytest.mark.statement(136, 137, 145)
@pytest.mark.parametrize("auth", ["pap", "chap"])
def test_the_right_password_brings_a_subscriber_online(
    stage: RadiusStage, complaints: list[Subscriber], auth: str
) -> None:
    subscriber = stage.online("fixed", auth=auth)
    complaints.append(subscriber)
    assert subscriber.auth_message == b"welcome"
    assert subscriber.ping(HOST) is not None
    leave(subscriber)
    stage.wait_down("fixed", "user_request")


@pytest.mark.statement(107)
@pytest.mark.parametrize("auth", ["pap", "chap"])
@pytest.mark.parametrize(
    ("user", "password", "message"),
    [("closed", "pw", b"your account is closed"), ("somebody", "wrong", b"")],
    ids=["closed", "wrong-password"],
)
def test_a_refused_subscriber_is_told_why_before_the_call_ends(
    stage: RadiusStage, complaints: list[Subscriber], auth: str, user: str, password: str, message: bytes
) -> None:
    subscriber = stage.call(user, password, auth=auth)
    complaints.append(subscriber)
    with pytest.raises(Refused) as refused:
        subscriber.wait_online()
    assert subscriber.auth_refused and subscriber.auth_message == message
    assert refused.value.ended.why is Why.CDN
    assert stage.records(user) == []  # who never was online is not accounted for


@pytest.mark.statement(140)
def test_radius_names_the_address_or_leaves_it_to_the_pool_or_to_the_subscriber(
    stage: RadiusStage, complaints: list[Subscriber]
) -> None:
    fixed = stage.online("fixed")
    pool = stage.online("pool")
    own = stage.online("own", address=IPv4Address("10.77.1.2"))
    complaints += [fixed, pool, own]
    assert fixed.address == IPv4Address("10.9.9.9")
    assert pool.address in IPv4Network("10.1.0.0/16")
    assert own.address == IPv4Address("10.77.1.2")
    for subscriber in complaints:
        assert subscriber.ping(HOST) is not None
        user = subscriber.user.decode()
        until(lambda user=user: stage.records(user, "Start"), what="a Start")
        assert stage.records(user, "Start")[-1]["Framed-IP-Address"] == str(subscriber.address)
    for subscriber in complaints:
        leave(subscriber)
    assert {"10.9.9.9", "10.77.1.2"}.isdisjoint(kernel_routes(stage))


@pytest.mark.statement(141)
def test_a_framed_route_is_reached_through_the_subscriber_and_gone_with_it(
    stage: RadiusStage, complaints: list[Subscriber]
) -> None:
    routes = {"172.16.9.0/24", "172.16.10.7"}
    assert routes.isdisjoint(kernel_routes(stage))
    subscriber = stage.online("routed")
    complaints.append(subscriber)
    assert routes < set(kernel_routes(stage))
    answer_for(subscriber, IPv4Network("172.16.0.0/12"))
    for behind in ("172.16.9.77", "172.16.10.7"):
        said = aside(stage.host.run, "ping", "-c", "2", "-i", "0.2", "-w", "30", behind)
        assert "2 received" in said, said
    leave(subscriber)
    stage.wait_down("routed", "user_request")
    until(lambda: routes.isdisjoint(kernel_routes(stage)), what="the routes are gone")
    assert "2 received" not in stage.host.run("ping", "-c", "2", "-i", "0.2", "-W", "1", "172.16.9.77", check=False)
    stop = stage.stop_of("routed")
    assert stop["Framed-Route"] == ["172.16.9.0/24 0.0.0.0 1", "172.16.10.7/32 0.0.0.0 1"]
    assert counted(stop) == counted_by(subscriber)


@pytest.mark.statement(147, 152)
def test_each_record_says_which_call_on_which_port_it_is_about(
    stage: RadiusStage, complaints: list[Subscriber]
) -> None:
    subscriber = stage.online("call", calling=b"0401", called=b"08002", tx_speed=50_000_000, rx_speed=10_000_000)
    complaints.append(subscriber)
    leave(subscriber)
    stage.stop_of("call")
    up = stage.server.log("session_up", user="call")[0]
    for record in stage.records("call"):
        assert record["NAS-Port-Id"] == f"{up['tunnel']}/{up['session']}"
        assert record["NAS-Port"] == str(up["session"])
        assert record["Acct-Session-Id"] == up["acct"]
        assert record["Acct-Tunnel-Connection"] == str(subscriber.lac.calls)
        assert record["Connect-Info"] == "50000000/10000000"
        assert (record["Calling-Station-Id"], record["Called-Station-Id"]) == ("0401", "08002")
        assert (record["Tunnel-Client-Endpoint:0"], record["Tunnel-Client-Auth-Id:0"]) == ("192.0.2.2", "lac1")
        assert record["Framed-IP-Address"] == up["address"]
        assert record["NAS-IP-Address"] == "198.51.100.1"


def test_radius_names_the_dns_servers_else_the_configuration_does(
    stage: RadiusStage, complaints: list[Subscriber]
) -> None:
    told, untold = stage.online("dns"), stage.online("pool")
    complaints += [told, untold]
    assert told.dns == (IPv4Address("203.0.113.53"), IPv4Address("203.0.113.54"))
    assert untold.dns == (IPv4Address("198.51.100.53"),)
    leave(told)
    leave(untold)


@pytest.mark.statement(142, 152)
def test_every_class_comes_back_unchanged_in_each_record(stage: RadiusStage, complaints: list[Subscriber]) -> None:
    subscriber = stage.online("classes")
    complaints.append(subscriber)
    leave(subscriber)
    stop = stage.stop_of("classes")
    for record in stage.records("classes"):
        assert record["Class"] == ["0x00ff30783431", "0x676f6c64"]
        assert record["Acct-Delay-Time"] == "0" and "Event-Timestamp" in record
    assert stop["NAS-Port-Type"] == "Virtual"


# What ends a session


@pytest.mark.statement(143, 150)
def test_session_timeout_ends_a_session_in_time(stage: RadiusStage, complaints: list[Subscriber]) -> None:
    subscriber = stage.online("brief")
    complaints.append(subscriber)
    subscriber.wait_ended()
    assert subscriber.ended_at - subscriber.online_at > 1.9
    stop = stage.stop_of("brief")
    assert stop["Acct-Terminate-Cause"] == "Session-Timeout" and int(str(stop["Acct-Session-Time"])) >= 2
    assert stop["Session-Timeout"] == "2"


@pytest.mark.statement(143, 150)
def test_idle_timeout_ends_a_session_without_traffic_and_only_that(
    stage: RadiusStage, complaints: list[Subscriber]
) -> None:
    subscriber = stage.online("idle")
    complaints.append(subscriber)
    for _ in range(6):  # three seconds of traffic
        gevent.sleep(0.5)
        assert subscriber.ping(HOST) is not None
    last = time.monotonic()
    subscriber.wait_ended()
    assert subscriber.ended_at - last > 1.5
    assert stage.stop_of("idle")["Acct-Terminate-Cause"] == "Idle-Timeout"


def terminated(stage: RadiusStage, subscriber: Subscriber) -> None:
    subscriber.terminate()


def hung_up(stage: RadiusStage, subscriber: Subscriber) -> None:
    subscriber.hangup(result=1)


def vanished(stage: RadiusStage, subscriber: Subscriber) -> None:
    subscriber.vanish()


def logged_in_again(stage: RadiusStage, subscriber: Subscriber) -> None:
    again = stage.call(subscriber.user.decode()).wait_online()
    again.wait_phase(Phase.ONLINE)
    until(lambda: subscriber.ended is not None, what="the older session's end")
    leave(again)


ENDS = {
    terminated: ("User-Request", "user_request"),
    hung_up: ("Lost-Carrier", "lac_lost_carrier"),
    vanished: ("Lost-Carrier", "echo_timeout"),
    logged_in_again: ("NAS-Request", "duplicate_user"),
}


@pytest.mark.statement(150)
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_the_stop_says_what_ended_the_session(stage: RadiusStage, complaints: list[Subscriber], end: Any) -> None:
    user = end.__name__
    subscriber = stage.online(user)
    complaints.append(subscriber)
    end(stage, subscriber)
    until(lambda: stage.records(user, "Stop"), what="a Stop")
    stop = stage.records(user, "Stop")[0]
    cause, reason = ENDS[end]
    assert stop["Acct-Terminate-Cause"] == cause
    assert stage.server.log("session_down", user=user)[0]["cause"] == reason


# What is counted


@pytest.mark.statement(147, 149)
@pytest.mark.parametrize(
    "options", [{}, {"compress": True}, {"sequencing_required": True}, {"length_bit": True}], ids=str
)
def test_octets_and_packets_are_those_the_client_counted(
    stage: RadiusStage, complaints: list[Subscriber], options: dict[str, Any]
) -> None:
    user = "counts" + "".join(options)
    subscriber = stage.online(user, **options)
    complaints.append(subscriber)
    for size in (0, 56, 1000, 1400):
        assert subscriber.ping(HOST, size=size) is not None
    for number in range(50):
        subscriber.send_udp(HOST, 9, bytes(number * 20))  # one way; an ICMP port unreachable comes back, or not
    before = -1
    while subscriber.in_packets != before:
        before = subscriber.in_packets
        gevent.sleep(0.3)
    leave(subscriber)
    stop = stage.stop_of(user)
    assert counted(stop) == counted_by(subscriber)
    assert subscriber.out_packets == 54
    start = stage.records(user, "Start")[0]
    assert "Acct-Input-Octets" not in start
