"""Asking RADIUS over loopback: matching, retransmission, failover and return (RFC 2865 section 2, RFC 5080 2.2.1)."""

from __future__ import annotations

import errno
import gc
import os
import socket
import time
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest
from gevent.event import Event
from gevent.pool import Pool

from l2tpns.errors import NoAnswer
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.auth import RadiusBackend
from l2tpns.radius.settings import MessageAuthenticator
from l2tpns.runtime import sockets
from tests.lab import PATIENCE
from tests.lab.inprocess import until
from tests.lab.memory_log import MemoryLog
from tests.lab.radius_parts import SECRET, chap, login, pap, settings_for, usage
from tests.lab.radius_server import ACCEPT, CHALLENGE, REJECT, RadiusServer, User, bind_pair, ip, make_reply

USERS = {b"alice": User(b"secret", [(8, ip("10.0.0.5"))])}


@pytest.fixture
def server():
    with RadiusServer(SECRET, USERS) as server:
        yield server


@pytest.fixture
def second():
    with RadiusServer(SECRET, USERS) as server:
        yield server


@pytest.fixture
def ask():
    """Builds backends and closes them. They ask but once, for ever, unless `timeout` says otherwise."""
    backends = []

    def build(*servers, log=None, **changes):
        changes.setdefault("timeout", PATIENCE)
        backends.append(RadiusBackend(settings_for(*servers, **changes), (log or MemoryLog()).get()))
        return backends[-1]

    yield build
    for backend in backends:
        backend.close()


def stats(backend, index=0):
    return backend.transport.report()[index].stats


@pytest.mark.parametrize("credentials", [pap(), chap()])
def test_a_right_password_is_accepted_and_a_wrong_one_refused(server, ask, credentials):
    backend = ask(server)
    assert backend.authenticate(login(credentials)).accepted
    wrong = backend.authenticate(login(pap(password=b"wrong")))
    assert not wrong.accepted and wrong.message == b"no"
    assert not backend.authenticate(login(chap(password=b"wrong"))).accepted
    assert (stats(backend).accepts, stats(backend).rejects) == (1, 2)


@pytest.mark.statement(144)
def test_a_challenge_is_a_refusal(server, ask):
    server.handler = lambda request: [make_reply(request, CHALLENGE, [(24, b"state"), (18, b"code?")])]
    assert not ask(server).authenticate(login()).accepted


def test_a_request_leaves_nothing_for_the_garbage_collector(server, ask):
    backend = ask(server)
    backend.authenticate(login(pap()))
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            assert backend.authenticate(login(pap())).accepted
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = {type(each).__name__ for each in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kinds & {"Request", "PendingRequest", "RequestPacket"}, kinds


@pytest.mark.statement(157)
def test_a_lost_request_is_sent_again_unchanged(server, ask):
    server.lose(1)
    assert ask(server, timeout=0.2, retries=10).authenticate(login()).accepted
    first, again = server.requests[:2]
    assert first.raw == again.raw and first.peer == again.peer


@pytest.mark.statement(157)
def test_intervals_double_with_jitter_and_tries_end(server, ask):
    server.silent = True
    backend = ask(server, timeout=0.1, retries=4)
    intervals, jittered = [], backend.transport._jittered
    backend.transport._jittered = lambda interval: intervals.append(interval) or jittered(interval)
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        backend.authenticate(login())
    assert time.monotonic() - began > 1.3  # 0.1 + 0.2 + 0.4 + 0.8, plus or minus a tenth
    assert intervals == pytest.approx([0.1, 0.2, 0.4, 0.8])
    until(lambda: len(server.requests) == 4)


@pytest.mark.statement(157)
def test_the_jitter_is_a_tenth_either_way():
    low, high = (
        RadiusBackend(settings_for(), MemoryLog().get(), random=lambda n, octet=octet: octet * n).transport
        for octet in (b"\0", b"\xff")
    )
    assert low._jittered(10.0) == pytest.approx(9.0)
    assert high._jittered(10.0) == pytest.approx(11.0)


def test_tries_are_twice_the_number_of_servers_round_robin(server, second, ask):
    server.silent = second.silent = True
    with pytest.raises(NoAnswer):
        ask(server, second, timeout=0.03).authenticate(login())
    until(lambda: (len(server.requests), len(second.requests)) == (2, 2))
    assert server.requests[0].raw == server.requests[1].raw  # the same identifier and authenticator
    assert server.requests[0].authenticator != second.requests[0].authenticator


@pytest.mark.statement(134)
def test_a_forged_reply_is_discarded_and_the_true_one_still_counts(server, ask):
    server.handler = lambda request: [
        make_reply(request, ACCEPT, secret=b"guess"),
        make_reply(request, REJECT, secret=b"guess"),
        make_reply(request, ACCEPT, identifier=request.identifier ^ 1),
        *server.answer(request),
    ]
    backend = ask(server)
    assert not backend.authenticate(login(pap(password=b"wrong"))).accepted
    assert backend.authenticate(login()).accepted
    assert stats(backend).bad_authenticators == 4
    assert stats(backend).unexpected >= 1


@pytest.mark.statement(134)
def test_a_forged_reply_does_not_end_the_request(server, ask):
    backend = ask(server, timeout=0.2, retries=10)
    honest = server.answer
    answers = chain([lambda r: [make_reply(r, REJECT, secret=b"guess")]], repeat(honest))
    server.handler = lambda request: next(answers)(request)
    server._seen = Forgetful()
    assert backend.authenticate(login()).accepted
    assert len(server.requests) >= 2


class Forgetful(dict):
    """A server without a memory of what it answered."""

    def get(self, key, default=None):
        return None


@pytest.mark.statement(134)
def test_a_reply_from_another_port_is_not_heard(server, ask):
    other, spare = bind_pair("127.0.0.1")

    def from_elsewhere(request):
        other.sendto(make_reply(request, ACCEPT), request.peer)
        return []

    server.handler = from_elsewhere
    backend = ask(server, timeout=0.05)
    with pytest.raises(NoAnswer):
        backend.authenticate(login())
    other.close()
    spare.close()
    assert stats(backend).accepts == 0


@pytest.mark.statement(139, 134)
def test_a_malformed_reply_is_discarded_and_the_request_lives_on(server, ask):
    def malformed_first(request):
        return [make_reply(request, ACCEPT, body=b"\x08\x06\x0a"), *server.answer(request)]

    server.handler = malformed_first
    backend = ask(server)
    assert backend.authenticate(login()).accepted
    assert stats(backend).malformed == 1


@pytest.mark.statement(135)
def test_more_than_256_requests_in_flight_use_more_source_ports_and_no_identifier_twice(server, ask):
    answering = Event()
    server.handler = lambda request: answering.wait() and server.answer(request)
    backend = ask(server, timeout=4.0, retries=5)  # so many at once may not fit into its socket
    pool = Pool(700)
    waiting = [pool.spawn(backend.authenticate, login()) for _ in range(700)]
    until(lambda: len({(r.peer, r.identifier) for r in server.requests}) == 700)
    in_flight = backend.transport.in_flight()
    assert len(in_flight) == 700
    assert {item.label for item in in_flight} == {"PAP"} and {item.session_id for item in in_flight} == {42}
    answering.set()
    pool.join()
    assert all(greenlet.value.accepted for greenlet in waiting)
    assert len({r.peer for r in server.requests}) == 3
    assert backend.transport.in_flight() == []
    assert backend.transport.report()[0].sockets == 1  # the surplus is closed again


@pytest.mark.statement(135)
def test_an_identifier_rests_before_it_is_used_again(server, ask):
    backend = ask(server)
    for _ in range(5):
        backend.authenticate(login())
    assert len({request.identifier for request in server.requests}) == 5


@pytest.mark.statement(137)
def test_every_request_has_an_authenticator_of_its_own(server, ask):
    backend = ask(server)
    for _ in range(20):
        backend.authenticate(login())
    assert len({request.authenticator for request in server.requests}) == 20


def test_sockets_stay_within_the_port_range(server, ask):
    low = bind_pair("127.0.0.1")
    port = low[0].getsockname()[1]
    for sock in low:
        sock.close()
    server.delay = 0.2
    backend = ask(server, bind_min=port, bind_max=port + 1, timeout=3.0, retries=10)
    pool = Pool(300)
    waiting = [pool.spawn(backend.authenticate, login()) for _ in range(300)]
    pool.join()
    assert all(greenlet.value.accepted for greenlet in waiting)
    assert {request.peer[1] for request in server.requests} <= {port, port + 1}


# --- two servers


def test_a_silent_primary_costs_the_first_logins_a_try_and_later_ones_nothing(server, second, ask):
    server.silent = True
    backend = ask(server, second, timeout=0.1, dead_time=3600.0, retries=10)
    for _ in range(3):
        assert backend.authenticate(login()).accepted
    assert backend.transport.report()[0].dead
    before = len(server.requests)
    assert backend.authenticate(login()).accepted
    assert len(server.requests) == before


def test_after_its_dead_time_the_primary_is_asked_by_one_request_and_then_by_all(server, second, ask, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("l2tpns.radius.remote_server.time", SimpleNamespace(monotonic=lambda: now[0]))
    server.silent = True
    backend = ask(server, second, timeout=0.1, dead_time=30.0, retries=10)
    for _ in range(3):
        backend.authenticate(login())
    now[0] += 30
    before = len(server.requests)
    pool = Pool(10)
    for _ in range(10):
        pool.spawn(backend.authenticate, login())
    pool.join()
    assert len(server.requests) == before + 1  # still silent: one probe, nine spared
    server.silent = False
    backend.configure(settings_for(server, second, timeout=PATIENCE, dead_time=30.0))
    now[0] += 30
    seen = len(second.requests)
    for _ in range(5):
        assert backend.authenticate(login()).accepted
    assert not backend.transport.report()[0].dead
    assert len(second.requests) == seen


def test_a_late_answer_of_the_first_server_still_counts(server, second, ask):
    second.silent = True
    server.handler = lambda request: [until(lambda: second.requests), *server.answer(request)][1:]
    backend = ask(server, second, timeout=1.0)
    assert backend.authenticate(login()).accepted
    assert len(server.requests) == 1 and len(second.requests) == 1


def test_with_all_servers_dead_they_are_asked_all_the_same(server, ask):
    server.silent = True
    backend = ask(server, timeout=0.02, dead_time=60.0)
    for _ in range(3):
        with pytest.raises(NoAnswer):
            backend.authenticate(login())
    server.silent = False
    backend.configure(settings_for(server, timeout=PATIENCE, dead_time=60.0))
    assert backend.authenticate(login()).accepted
    assert not backend.transport.report()[0].dead


def test_a_server_that_is_not_there_is_no_answer(ask, server):
    server.stop()
    with pytest.raises(NoAnswer):
        ask(server, timeout=0.03).authenticate(login())


def test_without_a_secret_no_request_is_sent(server, ask):
    with pytest.raises(NoAnswer):
        ask(server, secret=b"").authenticate(login())
    assert server.requests == []


def test_new_servers_and_secret_take_effect_at_once(server, second, ask):
    backend = ask(server)
    backend.authenticate(login())
    second.secret = b"other"
    backend.configure(settings_for(second, secret=b"other", timeout=PATIENCE))
    assert backend.authenticate(login()).accepted
    assert (len(server.requests), len(second.requests)) == (1, 1)


def test_a_request_in_flight_outlives_a_change_of_servers(server, second, ask):
    answering = Event()
    server.handler = lambda request: answering.wait() and server.answer(request)
    backend = ask(server)
    waiting = gevent.spawn(backend.authenticate, login())
    until(lambda: server.requests)
    backend.configure(settings_for(second))
    answering.set()
    assert waiting.get().accepted
    assert second.requests == []


# --- Message-Authenticator in replies


@pytest.mark.statement(145)
def test_a_wrong_message_authenticator_is_discarded_whatever_the_setting(server, ask):
    def wrong_signature(request):
        body = b"\x50\x12" + bytes(16)  # a Message-Authenticator of zeros under a right Response Authenticator
        return [make_reply(request, ACCEPT, body=body)]

    server.handler = wrong_signature
    for require in MessageAuthenticator:
        with pytest.raises(NoAnswer):
            ask(server, require=require, timeout=0.03).authenticate(login())


@pytest.mark.statement(145)
def test_yes_refuses_unsigned_replies_and_no_takes_them(server, ask):
    server.sign = False
    with pytest.raises(NoAnswer):
        ask(server, require=MessageAuthenticator.YES, timeout=0.03).authenticate(login())
    assert ask(server, require=MessageAuthenticator.NO).authenticate(login()).accepted


@pytest.mark.statement(145)
def test_auto_takes_unsigned_replies_until_the_server_has_signed_one(server, ask):
    server.sign = False
    backend = ask(server)
    assert backend.authenticate(login()).accepted
    server.sign = True
    assert backend.authenticate(login()).accepted
    assert backend.transport.report()[0].trusted
    server.sign = False
    backend.configure(settings_for(server, timeout=0.03))
    with pytest.raises(NoAnswer):
        backend.authenticate(login())


@pytest.mark.statement(145)
def test_one_server_that_signs_binds_no_other(server, second, ask):
    second.sign = False
    backend = ask(server, second)
    assert backend.authenticate(login()).accepted
    server.silent = True
    backend.configure(settings_for(server, second, timeout=0.1, retries=10))
    assert backend.authenticate(login()).accepted


def test_a_proxy_state_that_we_never_sent_is_refused(server, ask):
    # CVE-2024-3596 hides its collision blocks in Proxy-State.
    server.handler = lambda request: [make_reply(request, ACCEPT, [(33, b"collision")], sign=False)]
    with pytest.raises(NoAnswer):
        ask(server, timeout=0.03).authenticate(login())


def test_no_line_of_the_log_shows_a_secret_or_a_password(server, ask):
    log = MemoryLog()
    backend = ask(server, log=log)
    server.handler = lambda request: [make_reply(request, ACCEPT, secret=b"guess"), *server.answer(request)]
    backend.authenticate(login(pap(password=b"open sesame")))
    backend.authenticate(login(pap(password=b"x" * 129)))
    lines = b"".join(log.tail(100))
    assert lines and b"open sesame" not in lines and SECRET not in lines and b"xxxx" not in lines


def test_closing_leaves_no_descriptor(server, ask):
    def descriptors():
        return {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}

    before = descriptors()
    backend = ask(server)
    backend.authenticate(login())
    ours = {name for name in descriptors() - before if name.startswith("socket:")}
    assert len(ours) == 1
    backend.close()
    until(lambda: not ours & descriptors())


def test_a_reader_that_is_ended_is_begun_again_and_hears_the_answer(server, ask):
    backend = ask(server)
    assert backend.authenticate(login()).accepted
    (radius_socket,) = backend.transport._servers[0].open_sockets
    radius_socket.part._greenlet.kill()
    assert backend.authenticate(login()).accepted
    assert radius_socket.part.failures == 1


def test_without_a_free_descriptor_a_login_has_no_answer_and_nothing_fails(server, ask, monkeypatch):
    log = MemoryLog()
    backend = ask(server, log=log, timeout=0.01)

    def none_is_free(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(sockets, "RawSocket", none_is_free)
    with pytest.raises(NoAnswer):
        backend.authenticate(login())
    assert "Too many open files" in log.records("radius_no_socket")[0]["why"]


# --- answers from elsewhere


@pytest.fixture
def elsewhere(server):
    """Has the server answer from another address of its host: honestly, or as make_reply is told."""
    sock = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.2", server.port))
    honest = server.answer

    def begin(**told):
        def answer(request):
            for reply in [make_reply(request, ACCEPT, **told)] if told else honest(request):
                sock.sendto(reply, request.peer)
            return []

        server.handler = answer
        server._seen = Forgetful()

    yield begin
    sock.close()


def beside(backend):
    return [
        radius_socket
        for server in backend.transport._servers
        for radius_socket in server.open_sockets
        if radius_socket.stray_listener
    ]


def test_an_answer_from_another_address_is_dropped_and_named_once(server, ask, elsewhere):
    log = MemoryLog()
    backend = ask(server, log=log, timeout=0.2, retries=3)
    elsewhere()
    for _ in range(3):
        with pytest.raises(NoAnswer):
            backend.authenticate(login())
    (line,) = log.records("radius_answer_from_elsewhere")
    assert (line["source"], line["peer"]) == (f"127.0.0.2:{server.port}", f"127.0.0.1:{server.port}")
    assert stats(backend).accepts == 0 and stats(backend).unexpected > 1


def test_with_one_try_a_request_the_next_request_finds_it_out(server, ask, elsewhere):
    log = MemoryLog()
    backend = ask(server, log=log, timeout=0.2, retries=1)
    elsewhere()
    for _ in range(2):
        with pytest.raises(NoAnswer):
            backend.authenticate(login())
    until(lambda: log.records("radius_answer_from_elsewhere"))


def test_accounting_names_it_too(server, elsewhere, tmp_path):
    log = MemoryLog()
    elsewhere()
    accounting = Accounting(settings_for(server, timeout=0.1), tmp_path / "spool", log.get())
    accounting.open()
    accounting.start(usage())
    until(lambda: log.records("radius_answer_from_elsewhere"))
    assert log.records("radius_answer_from_elsewhere")[0]["peer"] == f"127.0.0.1:{server.port + 1}"
    accounting.close(0)


@pytest.mark.parametrize("told", [{"secret": b"guess"}, {"identifier": 77}, {"body": b"\x08\x06\x0a"}])
def test_what_is_not_authentic_is_not_named(server, ask, elsewhere, told):
    log = MemoryLog()
    backend = ask(server, log=log, timeout=0.1, retries=4)
    elsewhere(**told)
    with pytest.raises(NoAnswer):
        backend.authenticate(login())
    until(lambda: stats(backend).unexpected)
    assert log.records("radius_answer_from_elsewhere") == []


def test_the_socket_beside_is_there_while_the_server_is_silent_and_nobody_can_join_it(server, ask):
    backend = ask(server, timeout=0.2, retries=10)
    assert backend.authenticate(login()).accepted
    assert beside(backend) == []
    server.lose(2)
    waiting = gevent.spawn(backend.authenticate, login())
    until(lambda: beside(backend) or waiting.ready())
    port = server.requests[-1].peer[1]
    for address in ("", "127.0.0.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                thief.bind((address, port))
    assert waiting.get().accepted  # what comes from its own address goes where it went before
    assert beside(backend) == []


def test_a_flood_from_elsewhere_takes_no_time_and_stops_no_answer(server, ask, elsewhere):
    backend = ask(server, timeout=0.2, retries=1)
    server.lose(1)
    with pytest.raises(NoAnswer):
        backend.authenticate(login())
    (radius_socket,) = beside(backend)
    heard = stats(backend).unexpected
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for _ in range(2000):
            stranger.sendto(bytes(20), radius_socket.sock.getsockname())
    gevent.sleep(0)
    assert stats(backend).unexpected - heard <= 1
    backend.configure(settings_for(server, timeout=PATIENCE))
    assert backend.authenticate(login()).accepted
