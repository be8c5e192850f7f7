"""The same against Debian's FreeRADIUS: it reads us, we read it, its detail file holds each record once."""

from __future__ import annotations

import time
from collections import Counter
from ipaddress import IPv4Address, IPv4Network

import gevent
import pytest
from gevent.pool import Pool

from l2tpns.errors import NoAnswer
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.auth import RadiusBackend
from l2tpns.radius.rates import chosen
from l2tpns.radius.secrets_file import check_ms_chap
from l2tpns.radius.settings import RadiusSettings, ServerAddress
from l2tpns.radius.types import Assign, FramedRoute
from tests.lab import PATIENCE, freeradius
from tests.lab.freeradius import FreeRadius
from tests.lab.memory_log import MemoryLog
from tests.lab.radius_parts import SECRET, chap, login, mschap, mschapv2, pap, usage

pytestmark = pytest.mark.skipif(not freeradius.installed(), reason="the package freeradius is not installed")

USERS = """
alice Cleartext-Password := "secret"
	Framed-IP-Address = 10.0.0.5,
	Framed-Route = "192.168.7.0/24 0.0.0.0 1",
	Framed-Route += "192.168.8.0/24 0.0.0.0 1",
	Class = 0x30783431,
	Session-Timeout = 3600,
	Idle-Timeout = 300,
	Acct-Interim-Interval = 600,
	Cisco-AVPair = "throttle=yes,intercept=no",
	MS-Primary-DNS-Server = 192.0.2.53,
	Reply-Message = "welcome"

pool Cleartext-Password := "secret"
	Framed-IP-Address = 255.255.255.254

mikrotik Cleartext-Password := "secret"
	Mikrotik-Rate-Limit = "512k/10M"

wispr Cleartext-Password := "secret"
	WISPr-Bandwidth-Max-Up = 1000000,
	WISPr-Bandwidth-Max-Down = 8000000

huawei Cleartext-Password := "secret"
	Huawei-Input-Average-Rate = 3000000,
	Huawei-Output-Average-Rate = 30000000

ascend Cleartext-Password := "secret"
	Ascend-Data-Rate = 64000,
	Ascend-Xmit-Rate = 128000

cisco Cleartext-Password := "secret"
	Cisco-AVPair = "lcp:interface-config#1=rate-limit input 64000 8000 8000 conform-action transmit exceed-action drop",
	Cisco-AVPair += "lcp:interface-config#2=rate-limit output 512000 8000 8000"

"""


@pytest.fixture(scope="module")
def server():
    with FreeRadius(USERS) as server:
        yield server


def settings(server, **changes):
    here = ServerAddress(server.host, server.port), ServerAddress(server.host, server.port + 1)
    return RadiusSettings(
        servers=here[:1], accounting_servers=here[1:], secret=SECRET, accounting=True, nas_identifier="lns1", **changes
    )


@pytest.fixture
def backend(server):
    backend = RadiusBackend(settings(server), MemoryLog().get())
    yield backend
    backend.close()


@pytest.mark.statement(136, 145)
@pytest.mark.parametrize("kind", [pap, chap])
def test_freeradius_lets_in_who_knows_the_password(backend, kind):
    reply = backend.authenticate(login(kind(b"alice", b"secret")))
    assert reply.accepted and reply.message == b"welcome"
    assert (reply.assign, reply.address) == (Assign.FIXED, IPv4Address("10.0.0.5"))
    assert reply.routes == tuple(FramedRoute(IPv4Network(f"192.168.{n}.0/24")) for n in (7, 8))
    assert reply.classes == (b"0x41",)
    assert (reply.session_timeout, reply.idle_timeout, reply.interim) == (3600, 300, 600)
    assert reply.avpairs == (("throttle", "yes"), ("intercept", "no"))
    assert reply.dns == (IPv4Address("192.0.2.53"),)
    assert backend.transport.report()[0].trusted  # its reply carried a Message-Authenticator that holds


@pytest.mark.statement(111)
@pytest.mark.parametrize("kind", [mschap, mschapv2])
def test_freeradius_understands_ms_chap_and_proves_that_it_knows_the_password(backend, kind):
    credentials = kind(b"alice", b"secret")
    reply = backend.authenticate(login(credentials))
    assert reply.accepted and reply.message == b"welcome"
    assert reply.proof == check_ms_chap(credentials, b"secret")[1]


@pytest.mark.statement(371)
@pytest.mark.parametrize(
    "name, rates",
    [
        (b"mikrotik", (512, 10_000)),
        (b"wispr", (1000, 8000)),
        (b"huawei", (3000, 30_000)),
        (b"ascend", (64, 128)),
        (b"cisco", (64, 512)),
    ],
)
def test_freeradius_names_rates_in_five_dialects(backend, name, rates):
    assert chosen(backend.authenticate(login(pap(name, b"secret"))).rates) == rates


@pytest.mark.parametrize("kind", [pap, chap, mschap, mschapv2])
def test_freeradius_refuses_who_does_not(backend, kind):
    assert not backend.authenticate(login(kind(b"alice", b"wrong"))).accepted
    assert not backend.authenticate(login(kind(b"nobody", b"secret"))).accepted


@pytest.mark.statement(136)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 128])
def test_freeradius_reads_passwords_of_every_length(length):
    password = "p" * length
    with FreeRadius(f'alice Cleartext-Password := "{password}"\n') as server:
        backend = RadiusBackend(settings(server), MemoryLog().get())
        assert backend.authenticate(login(pap(b"alice", password.encode()))).accepted
        backend.close()


def test_a_wrong_secret_is_no_answer_and_no_login(server):
    wrong = settings(server, timeout=0.05)
    backend = RadiusBackend(RadiusSettings(servers=wrong.servers, secret=b"wrong", timeout=0.05), MemoryLog().get())
    with pytest.raises(NoAnswer):
        backend.authenticate(login())
    backend.close()


def until(condition, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        gevent.sleep(0.05)


@pytest.mark.statement(142, 146, 147, 149)
def test_the_detail_file_has_one_start_the_interims_and_one_stop(tmp_path):
    with FreeRadius(USERS) as server:
        accounting = Accounting(settings(server), tmp_path / "spool", MemoryLog().get())
        accounting.open()
        accounting.on()
        facts = {
            "classes": (b"0x41", b"\xff\x00"),
            "called": "0800",
            "routes": (FramedRoute(IPv4Network("192.168.7.0/24")),),
            "tunnel_client": "192.0.2.7",
            "tunnel_server": "192.0.2.1",
            "tunnel_host": "lac1",
        }
        accounting.start(usage(**facts))
        until(lambda: server.records("Start"))
        accounting.interim(
            usage(**facts, in_octets=(1 << 32) + 5, out_octets=6, in_packets=7, out_packets=8, session_time=9)
        )
        until(lambda: server.records("Interim-Update"))
        accounting.stop(usage(**facts, in_octets=(2 << 32) + 5, out_octets=60, session_time=90, terminate_cause=1))
        accounting.off()
        assert accounting.close(PATIENCE)
        kinds = [record["Acct-Status-Type"] for record in server.records()]
        assert kinds == ["Accounting-On", "Start", "Interim-Update", "Stop", "Accounting-Off"]
        interim, stop = server.records()[2:4]
        assert (interim["Acct-Input-Octets"], interim["Acct-Input-Gigawords"]) == ("5", "1")
        assert (interim["Acct-Output-Octets"], interim["Acct-Input-Packets"]) == ("6", "7")
        assert stop["Class"] == ["0x30783431", "0xff00"]
        assert stop["Acct-Terminate-Cause"] == "User-Request"
        assert stop["Framed-Route"] == "192.168.7.0/24 0.0.0.0 1"
        assert stop["Tunnel-Client-Endpoint:0"] == "192.0.2.7" and stop["Tunnel-Type:0"] == "L2TP"
        assert (stop["NAS-Port-Type"], stop["Service-Type"], stop["Framed-Protocol"]) == (
            "Virtual",
            "Framed-User",
            "PPP",
        )
        assert stop["Acct-Session-Id"] == "5F00000000000001" and stop["Acct-Delay-Time"] == "0"


@pytest.mark.statement(147, 148)
@pytest.mark.parametrize("outage", ["kill", "halt"])
def test_a_server_that_is_away_among_200_logins_and_logouts_has_each_record_once(tmp_path, outage):
    with FreeRadius(USERS) as server:
        accounting = Accounting(settings(server), tmp_path / "spool", MemoryLog().get())
        accounting.open()
        names = [f"s{number}" for number in range(200)]
        for name in names[:100]:
            accounting.start(usage(name))
        gevent.sleep(0.02)  # some are under way
        server.kill() if outage == "kill" else server.halt()
        for name in names[100:]:
            accounting.start(usage(name))
        for name in names[:100]:
            accounting.stop(usage(name, terminate_cause=1))
        gevent.sleep(6)
        server.start() if outage == "kill" else server.go_on()
        for name in names[100:]:
            accounting.stop(usage(name, terminate_cause=1))
        assert accounting.close(3 * PATIENCE)
        gevent.sleep(0.2)
        again = 0
        for status in ("Start", "Stop"):
            told = Counter(str(record["Acct-Session-Id"]) for record in server.records(status))
            assert sorted(told) == sorted(names)
            # A server that was killed may have written what it had no time to answer.
            under_way = names[:100] if outage == "kill" else []
            again += sum(times - 1 for name, times in told.items() if name not in under_way)
        # FreeRADIUS forgets an Accounting-Request once it has answered it: a repetition that crosses the answer, or
        # arrives while the server is halted, is a second record. There is none unless the machine is slow: an answer
        # then takes longer than a timeout, or the outage longer than the pause before a repeated probe. A round of
        # tries without an answer ends in a new packet.
        (report,) = accounting.report()
        assert again <= report.stats.retransmissions + accounting.stats.rounds_unanswered


def test_a_thousand_logins_at_once_are_all_answered(backend):
    pool = Pool(1000)
    greenlets = [pool.spawn(backend.authenticate, login(pap(b"pool", b"secret"))) for _ in range(1000)]
    pool.join()
    assert all(greenlet.value.accepted and greenlet.value.assign is Assign.POOL for greenlet in greenlets)
    assert backend.transport.in_flight() == []
