"""Renders the status page: the current state, graphs of the last hour, and all sessions.

The page works without its script, which only reloads the page and replaces its parts. Subscribers and LACs choose their
names, so all text passes through `e`. Read-only.
"""

from __future__ import annotations

import heapq
import html
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from urllib.parse import urlencode

from l2tpns import __version__
from l2tpns.monitoring import graphs
from l2tpns.monitoring.html import duration, e, number, octets, table
from l2tpns.monitoring.samples import GRAPHS, Sample, Samples
from l2tpns.monitoring.sources import SESSION_STATES, Census, Sources
from l2tpns.runtime.cooperative import in_slices
from l2tpns.subscriber.session import Session

LACS = 10
ENDS = 10
MAX_QUERY = 100


@dataclass(frozen=True, slots=True)
class Query:
    """The visitor's search: words that must all match, and the page of the result."""

    text: str = ""
    page: int = 1

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.text.lower().split())

    def link(self, page: int) -> str:
        wanted = {"q": self.text} if self.text else {}
        return html.escape("?" + urlencode({**wanted, "page": page}))


def render(sources: Sources, last_hour: LastHour, query: Query) -> Iterator[str]:
    """Yield the page in pieces. May yield to other greenlets."""
    lns, samples = sources.lns, last_hour.samples
    census = sources.census()
    name = e(lns.config.hostname)
    yield f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: l2tpns</title><link rel="stylesheet" href="status.css"><script src="status.js" defer></script></head>
<body><header><h1>{name}</h1><p>l2tpns {e(__version__)} · up {duration(monotonic() - sources.started)} ·
<span id="clock">{time.strftime("%Y-%m-%d %H:%M:%S")}</span> <span id="state"></span></p></header><main>
<div id="now">{_problems(sources)}{_tiles(sources, samples, census)}</div>
<section><h2>The last hour</h2><div id="graphs">"""
    yield last_hour.html()
    yield '</div></section><div id="tables">'
    yield _lacs(sources)
    yield _radius(sources)
    yield _drops(sources)
    yield _ends(sources)
    yield f"""</div><section><h2>Sessions</h2><form id="search" method="get" role="search">
<input type="search" name="q" value="{e(query.text)}" maxlength="{MAX_QUERY}" autocomplete="off"
 aria-label="Search sessions" placeholder="Name, address, LAC, calling number, session or state">
<button>Search</button></form><div id="sessions">"""
    yield from _sessions(sources, query)
    yield '</div></section></main><footer><a href="metrics">metrics</a> · <a href="health">health</a></footer>'
    yield "</body></html>\n"


# Current state


def _problems(sources: Sources) -> str:
    return "".join(f'<p class="problem">{e(problem.text)}</p>' for problem in sources.problems())


def _tiles(sources: Sources, samples: Samples, census: Census) -> str:
    lns, accounting = sources.lns, sources.accounting
    online = census.sessions["online"]
    starting = sum(census.sessions[state] for state in SESSION_STATES if state != "online")
    pool = lns.services.pool
    used = 100 * (pool.size - pool.free) / pool.size if pool.size else 0
    counters = lns.counters
    lag = _latest(samples, "Worst lag of the event loop", 0)
    up, down = _latest(samples, "Traffic", 0), _latest(samples, "Traffic", 1)
    refused = counters.logins_refused + counters.logins_unanswered
    dropped = sum(value for name, _, value in counters.items() if name.startswith("drop_"))
    tiles = (
        ("Sessions online", number(online), f"{number(starting)} starting", False),
        (
            "Tunnels",
            number(census.tunnels["open"]),
            f"{number(census.tunnels['opening'])} opening, {number(census.tunnels['closing'])} closing",
            False,
        ),
        (
            "Mbit/s up / down",
            f"{_known(up)} / {_known(down)}",
            f"{octets(counters.tun_tx_octets)} / {octets(counters.tun_rx_octets)} in total",
            False,
        ),
        ("Logins accepted", number(counters.logins_accepted), f"{number(refused)} refused or unanswered", False),
        (
            "Pool in use",
            f"{used:.1f} %" if pool.size else "none",
            f"{number(pool.free)} of {number(pool.size)} free",
            used > 95,
        ),
        ("Packets dropped", number(dropped), "by reason below", False),
        (
            "Accounting waiting",
            number(accounting.undelivered),
            f"{number(accounting.stats.delivered)} delivered, {number(accounting.stats.lost)} lost",
            accounting.stats.lost > 0 or accounting.undelivered > 1000,
        ),
        ("Worst lag, ms", _known(lag), "of the event loop", lag is not None and lag > 100),
    )
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile{" bad" if bad else ""}"><h3>{title}</h3><p class="big">{value}</p><p>{more}</p></div>'
            for title, value, more, bad in tiles
        )
        + "</div>"
    )


def _latest(samples: Samples, title: str, line: int) -> float | None:
    graph = next(index for index, graph in enumerate(GRAPHS) if graph.title == title)
    return samples.ring[-1].values[graph][line] if samples.ring else None


def _known(value: float | None) -> str:
    return "–" if value is None else graphs.short(value)  # noqa: RUF001


class LastHour:
    """The graphs, the most expensive part of a page, redrawn only when there is a new sample."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self._newest: Sample | None = None
        self._html = ""

    def html(self) -> str:
        """Return the graphs. May yield to other greenlets between them."""
        newest = self.samples.ring[-1] if self.samples.ring else None
        if newest is not self._newest or not self._html:
            now = newest.at if newest is not None else 0.0
            self._html = "".join(_figure(self.samples, index, now) for index in in_slices(range(len(GRAPHS)), clock=1))
            self._newest = newest
        return self._html


def _figure(samples: Samples, index: int, now: float) -> str:
    graph = GRAPHS[index]
    lines = [samples.line(index, line) for line in range(len(graph.lines))]
    legend = ""
    for line, points in enumerate(lines):
        values = [value for _, value in points if value is not None]
        legend += (
            f'<li><i class="c{line}"></i>{graph.lines[line].label}'
            f" <b>{_known(points[-1][1] if points else None)}</b>"
            f" <small>max {_known(max(values, default=None))}</small></li>"
        )
    unit = f" <small>{graph.unit}</small>" if graph.unit else ""
    return (
        f"<figure><figcaption>{graph.title}{unit}</figcaption>{graphs.draw(lines, now, graph.title)}"
        f'<ul class="legend">{legend}</ul></figure>'
    )


# Tables


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _lacs(sources: Sources) -> str:
    tunnels = list(sources.lns.tunnels.values())
    most = heapq.nlargest(LACS, in_slices(tunnels), key=lambda tunnel: len(tunnel.sessions))
    rows = [
        (
            f'<span class="peer">{e(tunnel.host)}</span>',
            e(tunnel.peer[0]),
            e(tunnel.state.value),
            number(len(tunnel.sessions)),
            number(tunnel.reliable.retransmissions),
            number(tunnel.reliable.unacked + tunnel.reliable.queue_length),
        )
        for tunnel in most
    ]
    title = (
        "LACs" if len(tunnels) <= LACS else f"LACs <small>the {LACS} with the most sessions, of {len(tunnels)}</small>"
    )
    head = ("LAC", "Address", "Tunnel", "Sessions#", "Retransmissions#", "Queued#")
    return _section(title, table(head, rows, "No tunnel."))


def _radius(sources: Sources) -> str:
    rows = []
    for use, report in sources.radius():
        stats = report.stats
        count = stats.latency.count
        rows.append(
            (
                e(report.address),
                use,
                '<b class="bad">silent</b>' if report.dead else "answers" if count else "not used yet",
                number(stats.requests),
                f"{1000 * stats.latency.sum / count:.1f}" if count else "",
                number(stats.timeouts),
                number(report.in_flight),
            )
        )
    head = ("Server", "Use", "State", "Requests#", "Mean ms#", "Time-outs#", "In flight#")
    return _section(
        "RADIUS", table(head, rows, "No RADIUS server is configured: names and passwords come from l2tpns.secrets.")
    )


def _drops(sources: Sources) -> str:
    counted = [(value, name, text) for name, text, value in sources.lns.counters.items() if name.startswith("drop_")]
    rows = [(e(text), number(value)) for value, name, text in sorted(counted, reverse=True) if value]
    return _section("Drops", table(("Reason", "Count#"), rows, "Nothing was dropped."))


def _ends(sources: Sources) -> str:
    rows = [
        (
            time.strftime("%H:%M:%S", time.localtime(ending.ended)),
            f'<span class="peer">{e(ending.user)}</span>',
            e(ending.why),
            duration(ending.seconds),
        )
        for ending in islice(reversed(sources.lns.services.history), ENDS)
    ]
    return _section(
        "Recently ended sessions", table(("Time", "User", "Why", "Online#"), rows, "No session has ended yet.")
    )


# Sessions


HEAD = ("Session", "User", "Address", "LAC", "Calling", "State", "Online#", "Received#", "Sent#", "Idle#")


def _sessions(sources: Sources, query: Query) -> Iterator[str]:
    """Yield the table, the newest session first: any other order would need sorting in one go."""
    sessions = list(sources.lns.sessions.values())
    sessions.reverse()
    total = len(sessions)
    count = sources.rows_per_page
    first = (query.page - 1) * count
    if query.words:
        rows, found = _search(sessions, query.words, first, count)
    else:
        rows, found = [_row(session) for session in in_slices(sessions[first : first + count])], total
    pages = max(1, -(-found // count))
    what = f"{number(found)} of {number(total)} sessions" if query.words else f"{number(total)} sessions"
    yield f'<p class="found">{what}, newest first{_pages(query, pages)}</p>'
    yield table(HEAD, rows, "No matching session." if query.words else "No session.")
    if len(rows) > 20:
        yield f'<p class="found">{_pages(query, pages).removeprefix(" · ")}</p>'


def _search(
    sessions: list[Session], words: tuple[str, ...], first: int, count: int
) -> tuple[list[tuple[str, ...]], int]:
    rows, found = [], 0
    for session in in_slices(sessions):
        if all(word in _haystack(session) for word in words):
            if first <= found < first + count:
                rows.append(_row(session))
            found += 1
    return rows, found


def _haystack(session: Session) -> str:
    tunnel = session.tunnel
    facts = (
        str(session.id),
        session.user,
        str(session.address or ""),
        tunnel.host,
        tunnel.peer[0],
        session.calling,
        session.called,
        session.phase.value,
    )
    return "\n".join(facts).lower()


def _row(session: Session) -> tuple[str, ...]:
    path, now = session.path, monotonic()
    session.services.plane.refresh(path)
    online = session.online_since
    return (
        str(session.id),
        f'<span class="peer">{e(session.user)}</span>',
        e(session.address or ""),
        f'<span class="peer" title="{e(session.tunnel.peer[0])}">{e(session.tunnel.host)}</span>',
        f'<span class="peer">{e(session.calling)}</span>',
        f'<span class="phase">{e(session.phase.value)}</span>',
        duration(now - online) if online else "",
        octets(path.in_octets),
        octets(path.out_octets),
        duration(max(0.0, now - path.last_rx)),
    )


def _pages(query: Query, pages: int) -> str:
    if pages == 1:
        return ""
    links = []
    if query.page > 1:
        links.append(f'<a rel="prev" href="{query.link(min(query.page - 1, pages))}">previous</a>')
    links.append(f"page {number(query.page)} of {number(pages)}")
    if query.page < pages:
        links.append(f'<a rel="next" href="{query.link(query.page + 1)}">next</a>')
    return " · " + " · ".join(links)
