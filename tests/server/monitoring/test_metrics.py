"""Metrics for Prometheus, /health, and the HTTP server, which no client can block."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

import gevent
import pytest
from gevent import socket as sockets
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics

from l2tpns import __version__
from l2tpns.config.settings import SETTINGS, Config
from l2tpns.errors import ConfigError
from l2tpns.monitoring import http as web
from l2tpns.monitoring.problems import Finding, ProblemBoard
from l2tpns.monitoring.prometheus import COUNTED, FAMILIES
from l2tpns.monitoring.service import MonitoringTiming
from l2tpns.monitoring.sources import LATE, RECENT, SESSION_STATES, STANDING, LagMeter
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.auth import RadiusBackend
from l2tpns.radius.settings import RadiusSettings
from l2tpns.runtime.counters import DECLARED, PRIVATE, Histogram
from l2tpns.state.store import StateStore
from tests.lab import PATIENCE
from tests.lab.inprocess import LOOPBACK, InProcess, until
from tests.lab.lac import Dial, Refused
from tests.lab.memory_log import MemoryLog
from tests.lab.pppclient import Phase
from tests.lab.radius_parts import SECRET, settings_for, usage
from tests.lab.radius_server import RadiusServer, User
from tests.server.conftest import Serve
from tests.server.visitors import SERVED, Visitor, figures_of

QUICK = MonitoringTiming(config_poll=0.01, listen_retry=0.02)


# What is measured


def test_every_counter_that_is_not_private_is_a_metric_under_one_name(server: InProcess, visitor: Visitor) -> None:
    first = 987_654_321_000  # nothing else has such values
    for value, (name, _) in enumerate(DECLARED, first):
        setattr(server.counters, name, value)
    values = list(visitor.metrics().values())
    shown = [0 if name in PRIVATE else 1 for name, _ in DECLARED]
    assert [values.count(value) for value, _ in enumerate(DECLARED, first)] == shown
    assert [counted.counter for counted in COUNTED] == [name for name, _ in DECLARED if name not in PRIVATE]


def test_counters_of_a_kind_are_one_family_with_labels(server: InProcess, visitor: Visitor) -> None:
    server.counters.drop_spoofed = 7
    server.counters.tunnel_rx_octets = 123
    server.counters.control_retransmissions = 5
    metrics = visitor.metrics()
    assert metrics['l2tpns_drops_total{reason="spoofed"}'] == 7
    assert metrics['l2tpns_octets_total{direction="rx",side="tunnel"}'] == 123
    assert metrics["l2tpns_control_retransmissions_total"] == 5


def test_names_and_helps_are_declared_once_and_follow_prometheus_rules() -> None:
    names = [family.full_name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("l2tpns_[a-z0-9_]+", name) and family.help for name, family in zip(names, FAMILIES))  # noqa: B905
    assert [name for name in names if name.endswith("_total")] == [
        family.full_name for family in FAMILIES if family.kind == "counter"
    ]


def test_tunnels_and_sessions_are_counted_by_state(server: InProcess, visitor: Visitor) -> None:
    lac = server.lac(defaults=Dial(restart=0.3)).connect()
    lac.call("fred", "pw").wait_online()
    server.backend.answering.clear()
    lac.call("mary", "pw").wait_phase(Phase.AUTHENTICATE)
    server.wait(lambda: len(server.backend.asked) == 2)
    metrics = visitor.metrics()
    states = {state: metrics[f'l2tpns_sessions{{state="{state}"}}'] for state in SESSION_STATES}
    assert states == {"call": 0, "lcp": 0, "authenticate": 1, "network": 0, "online": 1}
    assert metrics['l2tpns_tunnels{state="open"}'] == 1
    assert metrics['l2tpns_tunnels{state="closing"}'] == 0
    assert metrics['l2tpns_pool_addresses{state="used"}'] == 1
    assert metrics['l2tpns_pool_addresses{state="free"}'] == 253
    lac.vanish()


def test_logins_are_counted_by_result(server: InProcess, visitor: Visitor) -> None:
    lac = server.lac(defaults=Dial(restart=0.3)).connect()
    lac.call("fred", "pw").wait_online()
    with pytest.raises(Refused):
        lac.call("mary", "wrong").wait_online()
    server.backend.silent = True
    with pytest.raises(Refused):
        lac.call("guest", "pw").wait_online()
    metrics = visitor.metrics()
    results = ("accepted", "refused", "unanswered")
    assert [metrics[f'l2tpns_logins_total{{result="{result}"}}'] for result in results] == [1, 1, 1]


def test_each_radius_server_has_its_latency_and_outcomes(serve: Serve, tmp_path: Path) -> None:
    log = MemoryLog().get()
    with RadiusServer(SECRET, {b"fred": User(b"pw")}) as answers, RadiusServer(SECRET, {}) as dead:
        address, silent = f"{answers.host}:{answers.port}", f"{dead.host}:{dead.port}"
        dead.lose(100)
        server = serve(**SERVED)
        settings = settings_for(dead, answers, timeout=0.5)
        accounting = Accounting(settings_for(answers), tmp_path, log)
        accounting.open()
        backend = server.services.backend = RadiusBackend(settings, log)
        try:
            with figures_of(server, accounting) as visitor:
                lac = server.lac(defaults=Dial(restart=0.3)).connect()
                lac.call("fred", "pw").wait_online()
                with pytest.raises(Refused):
                    lac.call("fred", "wrong").wait_online()
                accounting.start(usage())
                server.wait(lambda: accounting.stats.delivered == 1)
                metrics = visitor.metrics()
                page = visitor.ask("/").body
        finally:
            accounting.close()
            backend.close()
    of = f'server="{address}",use="auth"'
    assert metrics[f'l2tpns_radius_replies_total{{outcome="accept",{of}}}'] == 1
    assert metrics[f'l2tpns_radius_replies_total{{outcome="reject",{of}}}'] == 1
    assert metrics[f"l2tpns_radius_latency_seconds_count{{{of}}}"] == 2
    assert metrics[f"l2tpns_radius_latency_seconds_sum{{{of}}}"] > 0
    assert metrics[f'l2tpns_radius_latency_seconds_bucket{{le="+Inf",{of}}}'] == 2
    assert metrics[f'l2tpns_radius_failures_total{{reason="timeout",server="{silent}",use="auth"}}'] >= 2
    assert metrics[f"l2tpns_radius_silent{{{of}}}"] == 0
    accounts = f'server="{answers.host}:{answers.port + 1}",use="acct"'
    assert metrics[f'l2tpns_radius_replies_total{{outcome="accounting",{accounts}}}'] == 1
    assert metrics['l2tpns_accounting_records_total{event="delivered"}'] == 1
    assert metrics["l2tpns_accounting_undelivered"] == 0
    assert metrics["l2tpns_accounting_spool_octets"] > 0
    assert address in page and silent in page


def test_the_lag_of_the_loop_is_measured() -> None:
    meter = LagMeter()
    meter.PERIOD = 0.01  # type: ignore[misc]
    greenlet = gevent.spawn(meter.run)
    gevent.sleep(0.05)
    time.sleep(0.2)  # blocks the loop, unlike gevent's sleep
    gevent.sleep(0.03)
    gevent.kill(greenlet)
    assert meter.take_worst() > 0.15
    assert meter.take_worst() == 0
    buckets = dict(meter.histogram.cumulative())
    assert buckets["+Inf"] - buckets["0.1"] >= 1
    assert meter.histogram.count >= 3


def test_the_lag_of_the_last_minute_is_known() -> None:
    meter = LagMeter()
    assert meter.recent() == (0, 0)
    for lag in [9.0, *(number / 1000 for number in range(RECENT))]:
        meter.take(lag)
    assert meter.recent() == (0.593, 0.599)


def test_a_lag_that_stays_is_a_problem_and_one_that_passes_is_none(visitor: Visitor) -> None:
    sources = visitor.figures.sources
    for lag in [LATE + 0.01] * (STANDING - 1) + [0.0] + [LATE + 0.01] * (STANDING - 1):
        sources.lag.take(lag)
        assert "loop_late" not in [problem.name for problem in sources.problems()]
    sources.lag.take(LATE + 0.01)
    assert "loop_late" in [problem.name for problem in sources.problems()]
    sources.lag.take(0.0)
    assert "loop_late" not in [problem.name for problem in sources.problems()]


def test_a_histogram_counts_a_value_in_the_bucket_that_it_does_not_exceed() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("0.1", 2), ("1.0", 3), ("+Inf", 4)]
    assert histogram.count == 4
    assert histogram.sum == pytest.approx(7.65)


def test_the_build_is_told_and_so_is_the_process(visitor: Visitor) -> None:
    metrics = visitor.metrics()
    (build,) = [name for name in metrics if name.startswith("l2tpns_build_info")]
    assert f'version="{__version__}"' in build and metrics[build] == 1
    assert metrics["process_resident_memory_bytes"] > 1e6


def test_who_asks_for_openmetrics_gets_it(visitor: Visitor) -> None:
    answer = visitor.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    names = {family.name for family in open_metrics(answer.body)}
    assert {family.full_name.removesuffix("_total") for family in FAMILIES} <= names
    assert visitor.ask("/metrics").headers["Content-Type"].startswith("text/plain; version=0.0.4")


# Health


def test_health_is_ok_then_degraded_then_leaving(server: InProcess, visitor: Visitor) -> None:
    answer = visitor.ask("/health")
    assert (answer.status, answer.json["status"], answer.json["problems"]) == (200, "ok", [])
    assert answer.json["version"] == __version__
    visitor.figures.sources.accounting.stats.lost = 1
    answer = visitor.ask("/health")
    assert (answer.status, answer.json["status"]) == (200, "degraded")
    assert answer.json["problems"] == ["accounting records were lost: the spool was full"]
    assert answer.json["problems"][0] in visitor.ask("/").body
    server.lns.admission.shutting_down = True
    answer = visitor.ask("/health")
    assert (answer.status, answer.json["status"]) == (503, "leaving")


def test_a_disk_that_does_not_take_state_or_records_is_a_problem(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2TPNS_RUN", str(tmp_path / "run"))
    server = serve("10.5.0.0/24\n", save_state=True, **SERVED)
    store = StateStore(tmp_path / "state", server.log.get())
    store.open()
    server.core.keep_state(store)
    server.journal.start()
    accounting = Accounting(RadiusSettings(accounting=True), tmp_path / "spool", server.log.get())
    accounting.open()
    with figures_of(server, accounting) as visitor:
        assert visitor.ask("/health").json["problems"] == []
        store.invalidate("it cannot be written")
        assert "the saved state" in visitor.ask("/health").json["problems"][0]
        assert accounting.spool is not None
        accounting.spool._owed[1] = b"what became of it"
        assert "wait in memory" in visitor.ask("/health").json["problems"][0]
    server.journal.halt()
    store.close()
    accounting.close(0)


def test_an_empty_pool_is_a_problem(serve: Serve) -> None:
    server = serve("10.5.0.1\n", **SERVED)
    with figures_of(server) as visitor:
        assert visitor.ask("/health").json["status"] == "ok"
        server.lac(defaults=Dial(restart=0.3)).connect().call("fred", "pw").wait_online()
        assert visitor.ask("/health").json["problems"] == ["no address of the pool is free"]


def test_a_part_that_does_not_run_is_told_everywhere(server: InProcess, visitor: Visitor) -> None:
    server.meant = ("part_failed",)
    part = server.services.supervisor.spawn("test part", int, "no number")
    until(lambda: part.failures > 4 and not part.running)
    answer = visitor.ask("/health")
    assert (answer.status, answer.json["status"], answer.json["down"]) == (503, "failing", ["test part"])
    (problem,) = answer.json["problems"]
    assert problem.startswith("the test part has failed ") and "ValueError: invalid literal" in problem
    (standing,) = answer.json["standing"]
    assert (standing["name"], standing["subject"], standing["text"]) == ("part_failing", "test part", problem)
    assert "part_failed" in standing["remedy"]
    metrics = visitor.metrics()
    assert metrics['l2tpns_part_up{part="test part"}'] == 0 or part.running
    assert metrics['l2tpns_part_up{part="timer wheel"}'] == 1
    assert "the test part has failed" in visitor.ask("/").body
    part.stop()
    answer = visitor.ask("/health")
    assert (answer.status, answer.json["status"], answer.json["standing"], answer.json["down"]) == (200, "ok", [], [])


def test_a_part_that_runs_again_is_a_problem_for_a_while(server: InProcess, visitor: Visitor) -> None:
    server.meant = ("part_failed",)
    begun = []

    def once() -> None:
        begun.append(1)
        if len(begun) > 1:
            gevent.sleep(3600)

    part = server.services.supervisor.spawn("test part", once)
    until(lambda: len(begun) == 2)
    answer = visitor.ask("/health")
    assert (answer.status, answer.json["status"]) == (200, "degraded")
    assert answer.json["problems"] == ["the test part has failed once, the last time by it has returned: it runs again"]
    part.stop()


def test_a_problem_stands_since_it_was_found_first() -> None:
    board = ProblemBoard()
    wrong, other = Finding("a", "x", "1 time", "mend it"), Finding("b", "", "", "")
    assert [problem.since for problem in board.update([wrong], 10.0)] == [10.0]
    again = Finding("a", "x", "2 times", "mend it")
    assert [(p.text, p.since) for p in board.update([again, other], 20.0)] == [("2 times", 10.0), ("", 20.0)]
    assert board.update([], 30.0) == []
    assert [problem.since for problem in board.update([again], 40.0)] == [40.0]


# Where it is served


def test_it_is_off_unless_an_address_is_set() -> None:
    assert Config().metrics_bind_address is None
    assert all(not SETTINGS[name].pending for name in ("metrics_bind_address", "metrics_port", "accounting_dir"))


@pytest.mark.shows("set metrics_port")
@pytest.mark.shows("set metrics_bind_address")
def test_a_change_of_the_address_is_felt_at_once(serve: Serve) -> None:
    server = serve()
    with figures_of(server, running=True, timing=QUICK) as visitor:
        assert visitor.figures.address is None
        server.config.metrics_port = 0
        server.config.metrics_bind_address = IPv4Address("127.0.0.2")
        server.wait(lambda: visitor.figures.address)
        assert visitor.ask("/health").status == 200
        assert visitor.figures.address is not None and visitor.figures.address[0] == "127.0.0.2"
        old = visitor.figures.address
        server.config.metrics_bind_address = None
        server.wait(lambda: visitor.figures.address is None)
        with pytest.raises(OSError), closing(sockets.create_connection(old, timeout=1)):
            pass
    assert server.events("figures_unprotected") == []  # loopback


def test_a_port_that_is_taken_is_told_once_and_tried_again(serve: Serve) -> None:
    with closing(sockets.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        server = serve(metrics_bind_address=IPv4Address("127.0.0.1"), metrics_port=holder.getsockname()[1])
        with figures_of(server, running=True, timing=QUICK) as visitor:
            server.wait(lambda: server.events("figures_not_served"))
            gevent.sleep(0.1)  # time for further attempts
            assert visitor.figures.address is None
            (error,) = server.events("figures_not_served")
            assert error["level"] == "error" and "in use" in error["why"]
            holder.close()
            server.wait(lambda: visitor.figures.address)
            assert visitor.ask("/health").status == 200


def test_an_address_that_others_reach_is_worth_a_warning(serve: Serve) -> None:
    server = serve(metrics_bind_address=IPv4Address("0.0.0.0"), metrics_port=0)
    with figures_of(server) as visitor:
        assert len(server.events("figures_unprotected")) == 1
        assert visitor.ask("/health").status == 200


# Hostile clients


@pytest.fixture(params=[LOOPBACK, IPv4Address("0.0.0.0")], ids=["loopback", "every address"])
def anywhere(request: pytest.FixtureRequest, serve: Serve) -> Iterator[tuple[InProcess, Visitor]]:
    server = serve(metrics_bind_address=request.param, metrics_port=0, metrics_allowed_hosts="status.example")
    with figures_of(server) as visitor:
        yield server, visitor


@pytest.mark.shows("set metrics_allowed_hosts")
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9701", 200),
        ("localhost.", 200),
        ("127.0.0.1:9701", 200),
        ("192.0.2.1:9701", 200),  # an address is never rebound
        ("[::1]:9701", 200),
        ("LNS.example", 200),
        (socket.gethostname(), 200),
        ("status.example", 200),
        ("Status.Example.:80", 200),
        ("", 200),  # not a browser: these always send a name
        ("attacker.example", 421),
        ("attacker.example:9701", 421),
        ("localhost.attacker.example", 421),
        ("status.example.attacker.example", 421),
        ("127.0.0.1.attacker.example", 421),
        ("status.example, attacker.example", 421),
        ("x.status.example", 421),
        (":9701", 421),
    ],
)
def test_a_page_of_a_foreign_name_is_refused_wherever_it_is_served(
    anywhere: tuple[InProcess, Visitor], host: str, status: int
) -> None:
    server, visitor = anywhere
    for path in ("/", "/metrics", "/health", "/status.js"):
        answer = visitor.ask(path, host=host)
        assert answer.status == status
    if status == 421:
        assert "metrics_allowed_hosts" in answer.body and "l2tpns_" not in answer.body
        assert {event["host"] for event in server.events("figures_refused")} == {host}


def test_names_may_be_allowed_while_it_is_served(server: InProcess, visitor: Visitor) -> None:
    assert visitor.ask("/metrics", host="new.example").status == 421
    server.config.assign("metrics_allowed_hosts", "New.example, other.example")
    assert visitor.ask("/metrics", host="new.example").status == 200
    for wrong in ("new.example:9701", "http://new.example", "new example", "*", "new.example,,x"):
        with pytest.raises(ConfigError, match=r"metrics_allowed_hosts: .* without a port"):
            server.config.assign("metrics_allowed_hosts", wrong)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "http://localhost.attacker.example"}, 403),
        ({"Origin": "http://127.0.0.1:8080"}, 403),  # another server of this machine
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "https://status.example"}, 200),  # a proxy in front
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_a_request_that_a_foreign_page_makes_is_refused(
    server: InProcess, visitor: Visitor, headers: dict[str, str], status: int
) -> None:
    server.config.metrics_allowed_hosts = "status.example"
    assert visitor.ask("/metrics", **headers).status == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_there_is_nothing_to_change(visitor: Visitor, method: str) -> None:
    assert visitor.ask("/", method=method).status == 405


def test_head_is_answered_without_a_body(visitor: Visitor) -> None:
    answer = visitor.ask("/health", method="HEAD")
    assert (answer.status, answer.body) == (200, "")


def test_other_paths_are_not_there(visitor: Visitor) -> None:
    for path in ("/../etc/passwd", "/status.css/", "/figures/status.css", "/%2e%2e/", "/Metrics"):
        assert visitor.ask(path).status == 404


@pytest.mark.parametrize(
    "octets",
    [
        b"\xff\xfd\x18\xff\xfd\x20\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/x.y\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + bytes(70_000),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000,
        b"GET /" + b"a" * 100_000,
    ],
)
def test_junk_is_refused_and_leaves_no_traceback(
    visitor: Visitor, octets: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        answer = visitor.send(octets)
    except ConnectionError:
        answer = b""  # the server closed the connection during the request
    assert not answer.startswith(b"HTTP/1.1 200")
    assert visitor.ask("/health").status == 200
    assert capfd.readouterr().err == ""


def test_a_silent_visitor_is_sent_away(server: InProcess) -> None:
    timing = MonitoringTiming(connection=0.1)
    with figures_of(server, timing=timing) as visitor, closing(visitor.connect()) as silent:
        silent.sendall(b"GET / HT")
        assert silent.recv(100) == b""


def test_who_sends_a_little_now_and_then_has_no_more_time_than_others(server: InProcess) -> None:
    timing = MonitoringTiming(connection=0.3)
    begun = time.monotonic()
    with figures_of(server, timing=timing) as visitor, closing(visitor.connect()) as slow, pytest.raises(OSError):
        slow.sendall(b"GET / HTTP/1.1\r\n")
        while time.monotonic() < begun + PATIENCE:
            slow.sendall(b"X: y\r\n")
            gevent.sleep(0.02)


def test_one_who_does_not_read_holds_nobody_up(
    server: InProcess, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def text(_: object, accept: str) -> tuple[bytes, str]:
        asked.append(accept)
        return bytes(30_000_000), web.TEXT

    monkeypatch.setattr(web.Metrics, "text", text)
    with closing(visitor.connect()) as lazy:
        lazy.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        gevent.sleep(0.05)
        assert visitor.ask("/").status == 200
        running = visitor.figures._server
        assert running is not None
        server.wait(lambda: len(running.connections) == 1)
    timing = MonitoringTiming(connection=0.2)
    with figures_of(server, timing=timing) as visitor, closing(visitor.connect()) as lazy:
        running = visitor.figures._server
        assert running is not None
        lazy.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.wait(lambda: len(asked) == 2)
        server.wait(lambda: not running.connections)  # timed out


def test_the_oldest_connection_goes_for_the_newest(server: InProcess, visitor: Visitor) -> None:
    idle = [visitor.connect() for _ in range(3 * web.MAX_CONNECTIONS)]
    try:
        assert visitor.ask("/health").status == 200
        running = visitor.figures._server
        assert running is not None and len(running.connections) <= web.MAX_CONNECTIONS
        assert idle[0].recv(1) == b""
    finally:
        for sock in idle:
            sock.close()
    server.wait(lambda: not running.connections)


def test_a_mistake_of_ours_is_a_line_in_the_log_and_an_answer(
    server: InProcess, visitor: Visitor, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(web, "render", broken)
    assert visitor.ask("/").status == 500
    (line,) = server.events("figures_failed")
    assert "on purpose" in line["traceback"]
    server.meant = ("figures_failed",)
    assert visitor.ask("/health").status == 200
    assert capfd.readouterr().err == ""


def test_a_page_whose_socket_fails_is_served_again(serve: Serve) -> None:
    server = serve(**SERVED)
    with figures_of(server, running=True, timing=QUICK) as visitor:
        visitor.figures._server._door._listener.close()  # as on EBADF, EINVAL
        until(lambda: len(server.events("figures_served")) == 2)
        assert visitor.ask("/health").json["status"] == "ok"
    assert len(server.events("figures_not_served")) == 1
