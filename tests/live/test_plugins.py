"""Plugins in the daemon itself: in its configuration, over SIGHUP and restarts, and waiting for the network."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent.socket
import pytest
from gevent.event import Event
from gevent.pywsgi import WSGIServer

from tests.lab.console import Console
from tests.lab.inprocess import until
from tests.lab.lac import Lac
from tests.lab.netns import Lab, is_root, three_hosts
from tests.lab.server import CHECKOUT, Server

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS = "192.0.2.1"
USERS = ("slow", *(f"user{number}" for number in range(20)))
TELLS = """
from l2tpns.plugins import *
def plugin_init(given):
    global server, word
    server = given
    word = server.setting("word", "none", "what to say", secret=False)
    server.log("info", "init")
def plugin_done(): server.log("info", "done")
def plugin_new_session(event): server.log("info", "new", session=event.s, resumed=event.resumed)
def plugin_kill_session(event): server.log("info", "kill", session=event.s)
"""


class Stage:
    """The daemon, with a plugin directory of its own."""

    def __init__(self, lab: Lab) -> None:
        self.lac_space, self.space, _ = three_hosts(lab)
        self.plugins = lab.directory / "plugins"
        self.plugins.mkdir()
        shutil.copy(CHECKOUT / "modules/httpauth.py", self.plugins)
        (self.plugins / "tells.py").write_text(TELLS)
        self.settings: dict[str, Any] = {"plugin_dir": str(self.plugins), "save_state": True, "shutdown_timeout": 2}
        secrets = "".join(f"{user} * pw *\n" for user in USERS)
        self.server = Server(self.space, lab.directory / "lns", settings=self.settings, secrets=secrets)

    def lac(self) -> Lac:
        with self.lac_space.entered():
            return Lac(("192.0.2.2", 0), (LNS, 1701)).connect()

    def said(self, text: str) -> list[dict[str, Any]]:
        return [line for line in self.server.log("plugin_says") if line["text"] == text]


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        stage = Stage(lab)
        yield stage
        assert stage.server.tracebacks() == ""


def test_an_http_api_keeps_only_the_subscriber_waiting_that_it_is_asked_about(stage: Stage) -> None:
    patience = Event()

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        name = json.loads(environ["wsgi.input"].read())["username"]
        if name == "slow":
            patience.wait()
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"allow": name != "user0"}).encode()]

    with stage.space.entered():
        listener = gevent.socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
    api = WSGIServer(listener, answer, log=None)
    api.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/login"
    stage.server.configure(
        stage.settings, ['load plugin "httpauth"', f'set httpauth_url "{url}"', "set httpauth_timeout 60"]
    )
    with stage.server:
        lac = stage.lac()
        slow = lac.call("slow", "pw")
        until(lambda: stage.server.log("control_received", message="ICCN"))
        others = [lac.call(user, "pw") for user in USERS[2:]]
        for other in others:
            other.wait_online()
        assert lac.call("user0", "pw").wait_ended().result == 3
        assert slow.ended is None and not slow.online_at
        patience.set()
        slow.wait_online()
        with Console(stage.space) as console:
            counters = json.loads(console.do("show counters | json"))
            assert (counters["httpauth_asked"], counters["httpauth_refused"]) == (21, 1)
        stage.server.stop()
    api.stop(timeout=5)


def test_the_configuration_file_loads_and_removes_plugins_and_sets_their_variables(stage: Stage) -> None:
    load = 'load plugin "tells"'
    stage.server.configure(stage.settings, ['load plugin "gone"', load, 'set tells_word "one"'])
    with stage.server:
        assert stage.server.log("plugin_not_loaded")[0]["plugin"] == "gone"  # and the server starts
        with Console(stage.space) as console:
            shown = console.do("show plugins")
            assert "\n  tells\n" in shown and "Not loaded:\n  gone: no such file: " in shown

            stage.server.configure(stage.settings, [load, "set tells_wrod two"])
            stage.server.signal(signal.SIGHUP)
            refused = stage.server.wait_for("reload_refused")
            assert 'Unknown variable "tells_wrod": did you mean "tells_word"?' in refused["why"]
            assert 'set tells_word "one"' in console.do("show running-config")

            stage.server.configure(stage.settings, [load, "set tells_word two"])
            said = console.do("reload")
            assert "Changed: " in said and "plugin_settings" in said
            assert 'set tells_word "two"' in console.do("show running-config") and len(stage.said("init")) == 1
            assert "Not loaded" not in console.do("show plugins")

            console.do('set tells_word "three"')
            console.do("write memory")
            assert 'load plugin "tells"\nset tells_word "three"\n' in Path(stage.server.config).read_text()

            stage.server.configure(stage.settings)
            console.do("reload")
            assert len(stage.said("done")) == 1 and "tells" not in console.do("show plugins")
        stage.server.stop()


def test_sessions_that_are_taken_up_after_a_restart_are_new_to_plugins_and_say_so(stage: Stage) -> None:
    stage.server.configure(stage.settings, ['load plugin "tells"'])
    with stage.server:
        call = stage.lac().call("user1", "pw").wait_online()
        until(lambda: stage.said("new"))
        stage.server.stop(signal.SIGTERM)
        assert stage.said("kill") == [] and len(stage.said("done")) == 1
        stage.server.start()
        until(lambda: len(stage.said("new")) == 2)
        first, second = stage.said("new")
        assert first["session"] == second["session"] and (first["resumed"], second["resumed"]) == (False, True)
        call.hangup()
        until(lambda: stage.said("kill"))
        stage.server.stop()
