"""The status page in a real browser: the script works, and the Content-Security-Policy blocks nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from l2tpns.monitoring import graphs
from l2tpns.monitoring.samples import GRAPHS, HOUR, PERIOD, Sample
from tests.lab.browser import Browser, Page, installed
from tests.lab.inprocess import InProcess
from tests.lab.lac import Dial, Lac
from tests.server.conftest import Serve
from tests.server.visitors import SERVED, Visitor, figures_of

USERS = ("fred", "mary", "guest", "anna", "annabel", "<img src=x onerror=document.title='owned'>")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if installed() is None:
        pytest.skip("needs chromium")
    with Browser() as browser:
        yield browser


@pytest.fixture
def server(serve: Serve) -> InProcess:
    return serve(**SERVED)


@pytest.fixture
def lac(server: InProcess) -> Lac:
    lac = server.lac("lac1.example", defaults=Dial(restart=0.3)).connect()
    for number, user in enumerate(USERS):
        server.backend.passwords[user] = b"pw"
        lac.call(user.encode(), "pw", calling=b"02555012%02d" % number).wait_online()
    return lac


@pytest.fixture
def visitor(server: InProcess, lac: Lac) -> Iterator[Visitor]:
    with figures_of(server) as visitor:
        an_hour(visitor)
        yield visitor


@pytest.fixture
def page(browser: Browser, visitor: Visitor) -> Iterator[Page]:
    page = browser.open(url(visitor))
    yield page
    assert page.complaints == []  # such as a script or style blocked by the policy
    assert {address.split("?")[0].rpartition("/")[0] + "/" for address in page.requests} == {url(visitor)}
    page.call("Page.close")


def url(visitor: Visitor) -> str:
    assert visitor.figures.address is not None
    return "http://{}:{}/".format(*visitor.figures.address)


def an_hour(visitor: Visitor) -> None:
    """Add samples to draw: waves, with a gap of a quarter of an hour."""
    now = monotonic()
    ring = visitor.figures.samples.ring
    for number in range(361):
        if 150 <= number < 240:
            continue
        values = tuple(
            tuple(1000 / 7**index * (2 + math.sin(number / 20 + line)) / (line + 1) for line in range(len(graph.lines)))
            for index, graph in enumerate(GRAPHS)
        )
        ring.append(Sample(now - (360 - number) * PERIOD, values))


def shown(page: Page) -> list[str]:
    """Return the users in the session table."""
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('#sessions tbody tr')].map(r => r.cells[1].textContent)"
    )
    return found


def test_the_page_looks_as_it_should(browser: Browser, page: Page, visitor: Visitor, tmp_path: Path) -> None:
    """Set L2TPNS_SCREENSHOTS=DIR to keep the pictures."""
    kept = Path(os.environ.get("L2TPNS_SCREENSHOTS", tmp_path))
    for name, width, dark in (("wide", 1400, False), ("dark", 1400, True), ("narrow", 420, False)):
        page.size(width, 900)
        page.dark(dark)
        page.screenshot(kept / f"status-{name}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing overflows
    assert page.evaluate("document.querySelectorAll('svg polyline').length") >= 2 * len(GRAPHS)
    assert page.evaluate("getComputedStyle(document.querySelector('.line.c0')).strokeWidth") == "2px"


def test_names_are_text_to_the_browser_too(page: Page) -> None:
    assert shown(page) == list(USERS[::-1])
    assert page.evaluate("document.images.length") == 0
    assert page.evaluate("document.title") == "lns.example: l2tpns"


def test_typing_searches_without_loading_the_page_again(page: Page, server: InProcess) -> None:
    page.evaluate("document.body.marked = true")
    page.click("#search input")
    page.type("anna")
    page.wait("document.querySelectorAll('#sessions tbody tr').length === 2")
    assert shown(page) == ["annabel", "anna"]
    assert page.evaluate("location.search") == "?q=anna"
    page.type("b")
    page.wait("document.querySelectorAll('#sessions tbody tr').length === 1")
    page.evaluate("document.querySelector('#search input').value = 'nobody'")
    page.press("Enter", 13)
    page.wait("document.querySelector('#sessions .none')")
    assert page.evaluate("document.body.marked && document.activeElement.name === 'q'")


def test_pages_are_turned_without_loading_the_page_again(browser: Browser, visitor: Visitor) -> None:
    visitor.figures.sources.rows_per_page = 4
    page = browser.open(url(visitor))
    page.evaluate("document.body.marked = true")
    assert shown(page) == list(USERS[:1:-1])
    page.click("#sessions a[rel=next]")
    page.wait("document.querySelectorAll('#sessions tbody tr').length === 2")
    assert shown(page) == ["mary", "fred"]
    page.click("#sessions a[rel=prev]")
    page.wait("document.querySelectorAll('#sessions tbody tr').length === 4")
    assert page.evaluate("document.body.marked")
    assert page.complaints == []


def test_the_page_follows_what_happens(page: Page, server: InProcess, lac: Lac) -> None:
    page.evaluate("document.querySelector('#search input').value = 'half a wo'")
    server.services.history.clear()
    (session,) = server.registry.by_user["fred"]
    session.path.in_octets = 77_000_000
    page.evaluate("refresh(ALL)")  # what the clock calls each ten seconds
    page.wait("document.querySelector('#sessions').textContent.includes('77.0 MB')")
    assert page.evaluate("document.querySelector('#search input').value") == "half a wo"  # is left alone


def test_a_graph_tells_its_values_under_the_pointer(page: Page, visitor: Visitor) -> None:
    page.hover("figure:nth-of-type(2) svg", 0.9)
    page.wait("document.querySelector('figure:nth-of-type(2) .tip')")
    when, _, values = page.evaluate("document.querySelector('.tip').textContent").partition(": ")
    # The right tenth of the picture less the margin: of the hour that is some minutes.
    ago = (0.1 * graphs.WIDTH - (graphs.WIDTH - graphs.RIGHT)) / (graphs.RIGHT - graphs.LEFT) * HOUR
    assert when == f"{round(ago / 60)} min ago"
    (then,) = [sample for sample in visitor.figures.samples.ring if abs(monotonic() - ago - sample.at) <= PERIOD / 2]
    assert [float(value) for value in values.split(" / ")] == pytest.approx(then.values[1], rel=0.05)
    assert page.evaluate("document.querySelectorAll('svg .cursor').length") == 1
    page.hover("h2")
    page.wait("!document.querySelector('.tip, .cursor')")


def test_a_server_that_does_not_answer_is_told(browser: Browser, visitor: Visitor) -> None:
    page = browser.open(url(visitor))
    visitor.figures.stop()
    page.evaluate("refresh(ALL)")
    page.wait("document.querySelector('#state').textContent.includes('does not answer')")


def test_it_works_without_the_script(browser: Browser, visitor: Visitor) -> None:
    page = browser.open("about:blank")
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.call("Page.navigate", url=url(visitor) + "?q=anna")
    page.wait("document.querySelector('#sessions tbody tr')")
    assert shown(page) == ["annabel", "anna"]
    page.click("#search input")
    page.type(" 0255501204")
    page.press("Enter", 13)
    page.wait("document.querySelectorAll('#sessions tbody tr').length === 1")
    assert shown(page) == ["annabel"]
