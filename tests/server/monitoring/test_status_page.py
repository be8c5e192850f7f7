"""The status page: its contents, the escaping of peers' texts, and that it does not block the server."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import gevent
import pytest

from l2tpns.monitoring import graphs
from l2tpns.monitoring import http as web
from l2tpns.monitoring.html import duration, e, octets
from l2tpns.monitoring.samples import GRAPHS, HOUR, PERIOD, Samples
from l2tpns.runtime import cooperative
from tests.lab.inprocess import InProcess
from tests.lab.lac import Dial
from tests.server.slices import Others
from tests.server.visitors import Visitor


class Reader(HTMLParser):
    """Parses the page: elements with their attributes, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while tag in self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.rows[-1][-1] += data

    def cells(self, text: str) -> list[str]:
        """Return the row with this text in a cell."""
        (row,) = [row for row in self.rows if text in row]
        return row


def names(body: str) -> list[str]:
    """Return the names in the session table, in order."""
    sessions = body.partition('<div id="sessions">')[2]
    return [row[1] for row in Reader(sessions).rows if row]


# Contents


def test_each_session_has_a_row(server: InProcess, visitor: Visitor) -> None:
    lac = server.lac("lac1.example", defaults=Dial(restart=0.3)).connect()
    lac.call("fred", "pw", calling=b"0255501234").wait_online()
    (session,) = server.lns.sessions.values()
    session.path.in_octets, session.path.out_octets = 1234, 56_789_000
    session.online_since -= 3700
    row = Reader(visitor.ask("/").body).cells(str(session.id))
    assert row[:6] == [str(session.id), "fred", "10.5.0.1", "lac1.example", "0255501234", "online"]
    assert re.fullmatch("1:01:4[0-9]", row[6])
    assert row[7:9] == ["1.2 kB", "56.8 MB"]


def test_what_was_dropped_and_who_has_gone_is_told_with_the_reason(server: InProcess, visitor: Visitor) -> None:
    assert "Nothing was dropped." in visitor.ask("/").body
    server.counters.drop_spoofed = 1234
    fred = server.lac(defaults=Dial(restart=0.3)).connect().call("fred", "pw").wait_online()
    fred.terminate()
    server.wait(lambda: server.services.history)
    read = Reader(visitor.ask("/").body)
    assert read.cells("packets from source addresses that are not the subscriber's")[1] == "1,234"
    assert read.cells("fred")[2] == "the subscriber ended PPP"


# Texts of peers


def test_no_name_becomes_html(server: InProcess, visitor: Visitor) -> None:
    evil = "<script>alert(1)</script>\"' onload=x \u202eabc\x07&amp;"
    server.backend.passwords[evil] = b"pw"
    lac = server.lac("<img src=x onerror=alert(2)>", defaults=Dial(restart=0.3)).connect()
    lac.call(evil.encode(), "pw", calling=b"<b>0255</b>").wait_online()
    server.config.hostname = "</title><h1>lns"
    body = visitor.ask("/?q=%3Cscript%3E").body
    read = Reader(body)
    assert read.cells("<script>alert(1)</script>\"' onload=x ·abc·&amp;")  # as text
    assert "<img src=x onerror=alert(2)>" in read.cells("<b>0255</b>")
    assert not [tag for tag, _ in read.elements if tag in ("img", "b") and "alert" in str(_)]
    assert [attributes for tag, attributes in read.elements if tag == "script"] == [{"src": "status.js", "defer": None}]
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    (field,) = [attributes for tag, attributes in read.elements if tag == "input"]
    assert field["value"] == "<script>"


def test_text_is_cut_and_what_cannot_be_seen_is_a_dot() -> None:
    assert e("a\x00\u200b\u2028b") == "a···b"
    assert e("<" * 1000) == "&lt;" * 200
    assert e("\"'&") == "&quot;&#x27;&amp;"


def test_nothing_comes_from_elsewhere_and_nothing_stands_inline(visitor: Visitor) -> None:
    answer = visitor.ask("/")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    read = Reader(answer.body)
    for _, attributes in read.elements:
        assert "style" not in attributes
        for name in ("src", "href", "action"):
            assert not re.match("[a-z]+:|//", attributes.get(name) or "")
    linked = {attributes.get("src") or attributes.get("href") for _, attributes in read.elements} - {None}
    assert linked == {"status.css", "status.js", "metrics", "health"}
    for path in linked:
        got = visitor.ask(f"/{path}")
        assert got.status == 200 and got.headers["X-Content-Type-Options"] == "nosniff"
        assert "https://" not in got.body and "@import" not in got.body and "url(" not in got.body


# Search and pages


@pytest.fixture
def crowd(server: InProcess, visitor: Visitor) -> list[str]:
    """Five users at two LACs, with three rows per page."""
    visitor.figures.sources.rows_per_page = 3
    users = ["fred", "mary", "guest", "anna", "annabel"]
    lacs = [server.lac(f"lac{number}", defaults=Dial(restart=0.3)).connect() for number in (1, 2)]
    for number, user in enumerate(users):
        server.backend.passwords[user] = b"pw"
        lacs[number % 2].call(user, "pw", calling=b"0700555%d" % number).wait_online()
    return users


def test_the_newest_session_comes_first_and_pages_show_them_all(visitor: Visitor, crowd: list[str]) -> None:
    first, second = visitor.ask("/").body, visitor.ask("/?page=2").body
    assert names(first) + names(second) == crowd[::-1]
    assert "5 sessions" in first and "page 1 of 2" in first and "page 2 of 2" in second
    assert 'rel="next" href="?page=2"' in first and 'rel="prev" href="?page=1"' in second
    assert names(visitor.ask("/?page=99").body) == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("anna", ["annabel", "anna"]),
        ("ANNAB", ["annabel"]),
        ("lac2", ["anna", "mary"]),
        ("lac2+anna", ["anna"]),
        ("10.5.0.3", ["guest"]),
        ("07005551", ["mary"]),
        ("online+fred", ["fred"]),
        ("nobody", []),
    ],
)
def test_a_search_finds_sessions_that_have_all_the_words(
    visitor: Visitor, crowd: list[str], query: str, found: list[str]
) -> None:
    body = visitor.ask(f"/?q={query}").body
    assert names(body) == found
    assert f"{len(found)} of 5 sessions" in body


def test_the_pages_of_a_search_keep_the_words(visitor: Visitor, crowd: list[str]) -> None:
    body = visitor.ask("/?q=lac").body
    assert 'href="?q=lac&amp;page=2"' in body
    assert names(visitor.ask("/?q=lac&page=2").body) == ["mary", "fred"]


@pytest.mark.parametrize("query", ["page=-1", "page=x", "page=" + "9" * 5000, "q=" + "a" * 5000, "&" * 100, "q", "%ff"])
def test_a_query_that_makes_no_sense_is_a_page_all_the_same(visitor: Visitor, query: str) -> None:
    assert visitor.ask(f"/?{query}").status == 200
    assert len(web.parse_query(query).text) <= 100


def test_60_000_sessions_hold_up_nobody(server: InProcess, visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    fred = server.lac(defaults=Dial(restart=0.3)).connect().call("fred", "pw").wait_online()
    (session,) = server.lns.sessions.values()
    real, server.lns.sessions = server.lns.sessions, dict.fromkeys(range(60_000), session)
    others = Others(monkeypatch)
    try:
        with others:
            visitors = [gevent.spawn(visitor.ask, path) for path in ("/?q=fred&page=300", "/?q=x", "/metrics", "/?q=y")]
            gevent.joinall(visitors)
        bodies = [visitor.value.body for visitor in visitors]
    finally:
        server.lns.sessions = real
    assert "60,000 of 60,000 sessions" in bodies[0] and "page 300 of 600" in bodies[0]
    assert len(names(bodies[0])) == 100
    assert "0 of 60,000 sessions" in bodies[1]
    assert 'l2tpns_sessions{state="online"} 60000.0' in bodies[2]
    assert max(map(len, bodies)) < 150_000
    assert others.turns > 60_000 / (10 * cooperative.CLOCK)
    fred.terminate()


# Graphs


def test_samples_are_rates_between_two_moments(server: InProcess, visitor: Visitor) -> None:
    samples = Samples(visitor.figures.sources)
    moment = samples._last
    server.counters.logins_accepted += 30
    server.counters.tun_rx_octets += 12_500_000
    object.__setattr__(moment, "at", moment.at - 10)
    samples.take()
    values = {
        f"{graph.title}: {line.label}": value
        for graph, found in zip(GRAPHS, samples.ring[-1].values, strict=True)
        for line, value in zip(graph.lines, found, strict=True)
    }
    assert values["Logins: accepted"] == pytest.approx(3, rel=0.01)
    assert values["Traffic: to subscribers"] == pytest.approx(10, rel=0.01)
    assert values["Packets: to subscribers"] == 0
    assert values["RADIUS reply time: authentication"] is None  # no request in this interval
    server.counters.clear()
    samples.take()
    assert samples.ring[-1].values[1][0] is None  # a counter cannot decrease


def test_graphs_are_drawn_once_for_each_sample(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw = graphs.draw

    def counted(lines: list[graphs.Points], now: float, title: str) -> str:
        drawn.append(title)
        return draw(lines, now, title)

    monkeypatch.setattr(graphs, "draw", counted)
    for expected in (1, 2):
        visitor.figures.samples.take()
        assert visitor.ask("/").body.count("<polyline") == visitor.ask("/").body.count("<polyline") > 0
        assert len(drawn) == expected * len(GRAPHS)


def test_no_more_than_an_hour_is_kept(visitor: Visitor) -> None:
    samples = visitor.figures.samples
    for _ in range(1000):
        samples.take()
    assert len(samples.ring) == HOUR / PERIOD + 1


def test_a_graph_shows_the_values_at_their_times_and_breaks_where_nobody_measured() -> None:
    now = 10_000.0
    drawn = graphs.draw(
        [[(now - 3600, 0.0), (now - 3590, 50.0), (now - 1800, None), (now - 10, 100.0), (now, 25.0)]], now, ""
    )
    lines = [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall('<polyline[^>]* points="([^"]*)"', drawn)
    ]
    height = graphs.BOTTOM - graphs.TOP
    assert 'data-max="100"' in drawn
    assert [[y for _, y in line] for line in lines] == [
        [graphs.BOTTOM, graphs.BOTTOM - height / 2],
        [graphs.TOP, graphs.BOTTOM - height / 4],
    ]
    assert lines[0][0][0] == graphs.LEFT and lines[1][1][0] == graphs.RIGHT


def test_a_graph_without_a_sample_is_empty_and_one_sample_can_be_seen() -> None:
    assert "<polyline" not in graphs.draw([[]], 100.0, "")
    assert "<polyline" in graphs.draw([[(100.0, 5.0)]], 100.0, "")


@pytest.mark.parametrize(
    ("highest", "top"), [(0, 1), (0.3, 1), (1, 1), (1.01, 2), (4, 5), (5, 5), (9.9, 10), (60_000, 100_000), (1e9, 1e9)]
)
def test_a_scale_ends_at_a_round_number(highest: float, top: float) -> None:
    assert graphs.nice(highest) == pytest.approx(top)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (999, "999"), (999.7, "1k"), (12_345, "12.3k"), (999_999, "1M"), (3.2e9, "3.2G")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert graphs.short(value) == text


def test_octets_and_times_are_as_people_write_them() -> None:
    assert [octets(n) for n in (0, 999, 1000, 999_940, 999_960, 1_234_567_890, 5 * 10**15)] == [
        "0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.2 GB", "5,000.0 TB",
    ]  # fmt: skip
    assert [duration(s) for s in (0, 61, 3661, 90061)] == ["0:00", "1:01", "1:01:01", "1 d 01:01:01"]
