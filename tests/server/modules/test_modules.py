"""Shipped plugins without a test file of their own: stripdomain, setrxspeed, sessionctl, httpauth."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.pywsgi import WSGIServer

from l2tpns.plugins.loader import CHECKOUT
from tests.lab.inprocess import until
from tests.server.conftest import Serve
from tests.server.shelf import Shelf
from tests.server.subscribers import refused

MODULES = sorted(CHECKOUT.glob("*.py"))


@pytest.fixture
def shipped(serve: Serve, tmp_path: Path) -> Shelf:
    """Return a server whose plugin directory is modules/ of this checkout."""
    return Shelf(serve(allow_duplicate_users=True), tmp_path)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_l2tpns_plugins_and_nothing_else_of_ours(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert all(name == "l2tpns.plugins" for name in names if name.partition(".")[0] == "l2tpns")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_module_loads_reloads_and_leaves(shipped: Shelf, path: Path) -> None:
    shipped.plugins.load(path.stem)
    shipped.plugins.reload(path.stem)
    shipped.online().hangup()
    until(lambda: shipped.server.calm)
    shipped.plugins.remove(path.stem)
    assert shipped.plugins.chains == {} and shipped.events("plugin_failed") == []


@pytest.mark.parametrize(("given", "left"), [("fred@isp.example", "fred"), ("fred@a@b", "fred"), ("fred", "fred")])
def test_stripdomain_cuts_the_user_name_at_the_first_at_sign(shipped: Shelf, given: str, left: str) -> None:
    shipped.plugins.load("stripdomain")
    shipped.online(given)
    assert shipped.server.backend.asked[0].credentials.user == left and shipped.session(left).user == left


def test_stripdomain_leaves_a_name_that_would_be_empty(shipped: Shelf) -> None:
    shipped.plugins.load("stripdomain")
    refused(shipped.call("@isp"))
    assert shipped.server.backend.asked[0].credentials.user == "@isp"


@pytest.mark.parametrize(
    ("tx", "rx", "known"),
    [
        (256_000, None, 64_000),
        (512_000, None, 128_000),
        (1_500_000, None, 256_000),
        (1500, None, 256),
        (8_000_000, None, 8_000_000),
        (512_000, 100_000, 100_000),
    ],
)
def test_setrxspeed_knows_the_speed_that_the_lac_does_not_tell(
    shipped: Shelf, tx: int, rx: int | None, known: int
) -> None:
    shipped.plugins.load("setrxspeed")
    shipped.online(tx_speed=tx, rx_speed=rx)
    assert shipped.session().rx_speed == known and shipped.session().tx_speed == tx


def test_sessionctl_drops_by_name_and_by_id_with_the_reason(shipped: Shelf) -> None:
    shipped.plugins.load("sessionctl")
    control = shipped.plugins.control
    fred, mary, guest = (shipped.online(name) for name in ("fred", "mary", "guest"))
    number = shipped.session("mary").id
    assert control(["drop", "FRED", "not", "paid"], ("192.0.2.1", 1)) == (
        True,
        f"drop: session {shipped.session('fred').id} (fred)",
    )
    assert fred.wait_ended().text == "not paid"
    assert control(["kill", str(number)], ("192.0.2.1", 1)) == (True, f"kill: session {number} (mary)")
    assert mary.wait_ended().text == "kill by nsctl from 192.0.2.1"
    assert control(["drop", "fred"], ("192.0.2.1", 1)) == (False, "session not found")
    assert control(["kill"], ("192.0.2.1", 1)) == (False, "usage: kill USER|SID [REASON]")
    assert control(["throttle", "guest"], ("192.0.2.1", 1)) is None
    assert len(shipped.plugins.control_help()) == 2 and guest.ended is None


# httpauth: its HTTP client is the standard library's, which yields only in a patched process


class Api:
    """An HTTP API with replies and delays set by the test."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.slow: set[str] = set()
        self.patience = Event()  # for the slow replies
        self.server = WSGIServer(("127.0.0.1", 0), self.answer, log=None)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/login"

    def answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        question = json.loads(environ["wsgi.input"].read())
        self.asked.append(question)
        if question["username"] in self.slow:
            self.patience.wait()
        answer = self.answers.get(question["username"], {"allow": True})
        start("200 OK" if answer != 500 else "500 Oh", [("Content-Type", "application/json")])
        return [answer if isinstance(answer, bytes) else json.dumps(answer).encode()]


@pytest.fixture
def api(shipped: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The API, and httpauth using it, in a server patched as the daemon is."""
    import socket

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, getattr(gevent.socket, name))
    api = Api()
    shipped.server.config.plugin_settings = {"httpauth_url": api.url, "httpauth_timeout": "60"}
    shipped.plugins.load("httpauth")
    yield api
    api.patience.set()
    api.server.stop(timeout=5)


def test_httpauth_asks_before_radius_and_tells_who_calls_but_no_password(shipped: Shelf, api: Api) -> None:
    shipped.call("fred", auth="pap").wait_online()
    (asked,) = api.asked
    assert asked.pop("session") and asked == {
        "username": "fred",
        "protocol": "pap",
        "calling": "0401",
        "called": "08002",
        "lac": "127.0.0.1",
    }


def test_httpauth_refuses_and_renames(shipped: Shelf, api: Api) -> None:
    api.answers = {"fred": {"allow": False}, "frederic": {"username": "mary"}}
    refused(shipped.call("fred"))
    assert shipped.server.backend.asked == []
    shipped.online("frederic")
    assert shipped.session("mary").user == "mary"
    assert {count.name: count.value for count in shipped.plugins.counts} == {
        "httpauth_asked": 2,
        "httpauth_refused": 1,
        "httpauth_failed": 0,
    }


def test_while_the_api_thinks_only_the_subscriber_concerned_waits(shipped: Shelf, api: Api) -> None:
    api.slow = {"fred"}
    fred = shipped.call("fred")
    until(lambda: api.asked)
    for _ in range(10):
        shipped.online("mary")
    assert fred.ended is None and not fred.online_at
    fred.hangup()
    until(lambda: len(shipped.server.lns.sessions) == 10)


@pytest.mark.parametrize("answer", [500, b"no JSON", [1]])
def test_httpauth_fail_says_what_becomes_of_a_login_without_an_answer(shipped: Shelf, api: Api, answer: Any) -> None:
    api.answers = {"fred": answer}
    shipped.online("fred")
    shipped.plugins.settings.assign("httpauth_fail", "closed")
    refused(shipped.call("fred"))
    assert {count.name: count.value for count in shipped.plugins.counts}["httpauth_failed"] == 2
    assert shipped.events("plugin_says")[0]["then"] == "open" and shipped.events("plugin_failed") == []


def test_an_api_that_keeps_silent_is_waited_for_as_long_as_the_variable_says(shipped: Shelf, api: Api) -> None:
    api.slow = {"fred"}
    shipped.plugins.settings.assign("httpauth_timeout", "1")
    shipped.online("fred")
    assert shipped.events("plugin_says")[0]["why"] == "timed out"
