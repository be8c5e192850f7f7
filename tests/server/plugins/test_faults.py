"""Broken plugins of each kind while 100 sessions are online: they are named in the log, and no session ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import gevent
import pytest

from l2tpns.errors import PluginError
from l2tpns.nsctl.server import NsctlServer
from l2tpns.plugins import calls
from l2tpns.proto.nsctl.packet import Packet, Request
from l2tpns.runtime.exceptions import contain_strays
from tests.lab.inprocess import until
from tests.lab.lac import Subscriber
from tests.lab.packets import ip
from tests.server.conftest import Serve
from tests.server.shelf import Shelf

SESSIONS = 100


@pytest.fixture
def crowd(serve: Serve, tmp_path: Path) -> Iterator[Shelf]:
    """Keep 100 sessions online while others log in and out."""
    server = serve(plugin_dir=str(tmp_path), allow_duplicate_users=True)
    server.meant = ("plugin_failed",)
    server.log.level = 3  # of the guests' packets there would soon be more lines than the log keeps
    shelf = Shelf(server, tmp_path)
    fast = shelf.server.lac("lac2").connect()
    regulars = [fast.call("mary", "pw") for _ in range(SESSIONS)]
    for subscriber in regulars:
        subscriber.wait_online()
    coming = True
    done: list[Subscriber] = []

    def come_and_go() -> None:
        while coming:
            visitor = fast.call("guest", "pw").wait_online()
            done.append(visitor)
            visitor.hangup()
            gevent.sleep(0)

    visitors = gevent.spawn(come_and_go)
    yield shelf
    many = len(done)
    until(lambda: len(done) > many + 3)  # logins still go through
    coming = False
    visitors.join(30)
    assert visitors.successful()
    assert all(subscriber.ended is None and subscriber.online_at for subscriber in regulars)
    assert len(shelf.server.registry.by_user["mary"]) == SESSIONS
    # and their packets pass
    session = next(iter(server.registry.by_user["mary"]))
    before = session.path.out_packets
    server.plane.deliver(ip("192.0.2.1", str(session.address)))
    assert session.path.out_packets == before + 1


HOOKS = ("pre_auth", "post_auth", "new_session", "kill_session", "radius_account", "timer", "control")


def use_all(shelf: Shelf) -> None:
    """Cause a call of every hook."""
    fred = shelf.online("fred")
    fred.hangup()
    until(lambda: "fred" not in shelf.server.registry.by_user)
    shelf.plugins.control(["x"], ("192.0.2.1", 1))
    timers = [plugin.functions["timer"] for plugin in shelf.plugins.loaded if "timer" in plugin.functions]
    until(lambda: all(timer.calls for timer in timers))


def every_hook(body: str) -> str:
    return "\n".join(f"def plugin_{hook}(event):\n    {body}" for hook in HOOKS)


def test_one_that_raises_in_every_hook(crowd: Shelf) -> None:
    crowd.load("broken", every_hook("raise ValueError('oh dear')"))
    crowd.load("good", "def plugin_pre_auth(event): SEEN.append(event.username)")
    use_all(crowd)
    failed = {line["hook"]: line for line in crowd.events("plugin_failed")}
    assert set(failed) == {f"plugin_{hook}" for hook in HOOKS}
    for line in failed.values():
        assert (line["plugin"], line["why"]) == ("broken", "ValueError: oh dear") and "broken.py:" in line["where"]
        assert line["traceback"].startswith("Traceback") and "core.py" not in line["traceback"]
    assert "fred" in crowd.seen("good")  # the next one in order has its turn


@pytest.mark.parametrize("nonsense", ["'yes'", "7", "True", "-1", "[]", "3.5"])
def test_one_that_returns_nonsense(crowd: Shelf, nonsense: str) -> None:
    crowd.load("odd", every_hook(f"return {nonsense}"))
    use_all(crowd)
    assert {line["hook"] for line in crowd.events("plugin_failed")} == {f"plugin_{hook}" for hook in HOOKS}
    assert all("instead of PLUGIN_RET_ERROR, _OK or _STOP" in x["why"] for x in crowd.events("plugin_failed"))


@pytest.mark.parametrize(
    "source", ["def plugin_pre_auht(event): pass", "def plugin_pre_auth(event:\n pass", "import nothing_like_it"]
)
def test_one_that_is_misspelt_or_is_no_python_is_not_loaded(crowd: Shelf, source: str) -> None:
    with pytest.raises(PluginError, match=r"broken\.py"):
        crowd.load("broken", source, head="")
    assert crowd.plugins.loaded == []
    use_all(crowd)


@pytest.mark.parametrize("hook", ["pre_auth", "post_auth", "new_session"])
def test_one_that_sleeps_blocks_its_own_session_only(crowd: Shelf, hook: str) -> None:
    crowd.load(
        "sleeps",
        f"""
        import gevent
        def plugin_{hook}(event):
            if event.session.user == "fred":
                SEEN.append(event.s)
                gevent.sleep(3600)
        """,
    )
    fred = crowd.call("fred")
    until(lambda: crowd.seen("sleeps"))
    crowd.lac.call("guest", "pw").wait_online()  # from the same LAC, in the same tunnel
    fred.hangup()  # a subscriber that hangs up is released, whatever the plugin waits for
    until(lambda: crowd.seen("sleeps")[0] not in crowd.server.lns.sessions)


@pytest.mark.parametrize("hook", ["kill_session", "radius_account"])
def test_one_that_sleeps_where_a_session_cannot_wait_is_given_up(crowd: Shelf, hook: str) -> None:
    crowd.server.plugins.hook_timeout = 0.05
    crowd.load("sleeps", f"import gevent\ndef plugin_{hook}(event): gevent.sleep(3600)")
    crowd.online("fred").hangup()
    until(lambda: "fred" not in crowd.server.registry.by_user)
    assert crowd.events("plugin_given_up")[0]["hook"] == f"plugin_{hook}"
    assert "fred" in {record.user.decode() for record in crowd.server.accounting.of("stop")}


def test_one_that_sleeps_where_it_begins_or_ends_is_given_up(crowd: Shelf) -> None:
    crowd.server.plugins.hook_timeout = 0.05
    crowd.server.plugins.init_timeout = 0.05
    with pytest.raises(PluginError, match=r"did not return within 0\.05 seconds"):
        crowd.load("begins", "import gevent\ndef plugin_init(server): gevent.sleep(3600)", head="")
    crowd.load("ends", "import gevent\ndef plugin_done(): gevent.sleep(3600)")
    crowd.plugins.remove("ends")
    assert crowd.plugins.loaded == []
    assert [line["hook"] for line in crowd.events("plugin_given_up")] == ["plugin_init", "plugin_done"]


def test_a_session_that_a_plugin_keeps_waiting_can_be_killed(crowd: Shelf) -> None:
    crowd.load(
        "sleeps",
        "import gevent\ndef plugin_pre_auth(e):\n    if e.username == 'fred': SEEN.append(e.s) or gevent.sleep(3600)",
    )
    crowd.call("fred")
    until(lambda: crowd.seen("sleeps"))
    number = crowd.seen("sleeps")[0]
    crowd.module("sleeps").server.session(number).kill("too slow")
    until(lambda: number not in crowd.server.lns.sessions)
    crowd.plugins.remove("sleeps")


BURN = """
import time, gevent
def burn():
    end = time.thread_time() + 0.06
    while time.thread_time() < end: pass
"""


def test_one_that_burns_cpu_is_reported_with_its_name_and_time(crowd: Shelf) -> None:
    crowd.load("burns", BURN + "def plugin_post_auth(event):\n    if event.username == 'fred': burn()")
    crowd.online("fred")
    (line,) = crowd.events("plugin_slow")
    assert (line["plugin"], line["hook"]) == ("burns", "plugin_post_auth") and line["milliseconds"] >= 60


def test_the_time_of_others_is_not_its_time_but_what_it_burns_after_a_wait_is(crowd: Shelf) -> None:
    crowd.load("waits", BURN + "def plugin_control(event):\n    gevent.sleep(0.01); burn(); gevent.sleep(0.01)")

    def others() -> None:
        end = calls.thread_time() + 0.5
        while calls.thread_time() < end:
            gevent.sleep(0)

    busy = gevent.spawn(others)
    crowd.plugins.control(["x"], ("192.0.2.1", 1))
    (plugin,) = crowd.plugins.loaded
    assert 0.06 <= plugin.functions["control"].seconds < 0.4
    assert crowd.events("plugin_slow")[0]["plugin"] == "waits"
    busy.kill()


def test_a_time_out_of_gevents_that_a_plugin_lets_go_is_its_failure(crowd: Shelf) -> None:
    crowd.load("late", "import gevent\ndef plugin_post_auth(event):\n    with gevent.Timeout(0.01): gevent.sleep(3600)")
    crowd.online("fred")
    assert crowd.events("plugin_failed")[0]["why"] == "Timeout: 0.01 seconds"


def test_but_who_asks_for_nsctl_may_limit_its_time(shelf: Shelf) -> None:
    shelf.load("late", "import gevent\ndef plugin_control(event): gevent.sleep(3600)")
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        shelf.plugins.control(["x"], ("192.0.2.1", 1))


def test_nor_is_a_time_out_of_its_own_taken_for_the_limit_of_nsctl(shelf: Shelf) -> None:
    shelf.server.meant = ("nsctl_failed",)
    shelf.load(
        "late", "import gevent\ndef plugin_control(event):\n    gevent.Timeout(0.01).start(); gevent.sleep(3600)"
    )
    server = shelf.server
    nsctl = NsctlServer(server.config, server.counters, shelf.plugins, server.lns.log)
    said: list[bytes] = []

    class Socket:
        def sendto(self, octets: bytes, _: object) -> None:
            said.append(octets)

    nsctl.on_datagram(Socket(), Packet.asking(Request.of(["x"])).encode(), ("127.0.0.1", 1))
    until(lambda: said)
    assert b"an error of this server" in said[0] and shelf.events("nsctl_failed")


# Packet hooks


OWN = """
class Own(BaseException):
    def __repr__(self): raise SystemExit
    __str__ = __repr__
"""
PACKETS: dict[str, Callable[[str], str]] = {
    "raises": lambda hook: f"def {hook}(event): raise ValueError('oh dear')",
    "waits": lambda hook: f"import gevent\ndef {hook}(event): gevent.sleep(3600)",
    "returns nonsense": lambda hook: f"def {hook}(event): return 'yes'",
    "puts nonsense in the packet's place": lambda hook: f"def {hook}(event): event.buf = 'text'",
    "empties the packet": lambda hook: f"def {hook}(event): event.buf = b''",
    "misspells a field": lambda hook: f"def {hook}(event): event.bfu = b'x'",
    "would leave": lambda hook: f"def {hook}(event): raise SystemExit",
    "would end its greenlet": lambda hook: f"import gevent\ndef {hook}(event): raise gevent.GreenletExit",
    "would interrupt us": lambda hook: f"def {hook}(event): raise KeyboardInterrupt",
    "raises a time-out": lambda hook: f"import gevent\ndef {hook}(event): raise gevent.Timeout(1)",
    "raises what is no Exception": lambda hook: f"{OWN}def {hook}(event): raise Own",
    "puts in its place what cannot be shown": lambda hook: f"{OWN}def {hook}(event): event.buf = Own()",
    "returns what cannot be shown": lambda hook: f"{OWN}def {hook}(event): return Own()",
}


@pytest.mark.parametrize("fault", PACKETS)
def test_a_packet_hook_that(crowd: Shelf, fault: str) -> None:
    """The plugin is named in the log, and the packet passes unchanged."""
    crowd.load("broken", "\n".join(PACKETS[fault](hook) for hook in ("plugin_packet_rx", "plugin_packet_tx")))
    crowd.load("good", "def plugin_packet_tx(event): SEEN.append(event.buf)")
    fred = crowd.online("fred")
    address = str(crowd.session("fred").address)
    up, down = ip(address, "192.0.2.1", b"up"), ip("192.0.2.1", address, b"down")
    fred.send_ip(up)
    until(lambda: up in crowd.server.plane.delivered)
    crowd.server.plane.deliver(down)
    assert fred.receive_ip() == down and crowd.seen("good") == [up]
    assert {line["hook"] for line in crowd.events("plugin_failed")} == {"plugin_packet_rx", "plugin_packet_tx"}


def test_a_packet_hook_that_burns_cpu_is_reported(crowd: Shelf) -> None:
    crowd.load("burns", BURN + "def plugin_packet_tx(event): burn()")
    fred = crowd.online("fred")
    fred.send_ip(ip(str(crowd.session("fred").address), "192.0.2.1"))
    until(lambda: crowd.events("plugin_slow"))
    assert crowd.events("plugin_slow")[0]["hook"] == "plugin_packet_tx"


# What else it may do


def test_a_secret_that_a_plugin_puts_into_an_exception_is_not_in_the_log(shelf: Shelf) -> None:
    shelf.server.meant = ("plugin_failed",)
    shelf.load("tells", "def plugin_pre_auth(event): raise ValueError('bad ' + event.password)")
    shelf.server.backend.passwords["fred"] = b"hunter2"
    shelf.call("fred", "hunter2", auth="pap").wait_online()
    (line,) = shelf.events("plugin_failed")
    assert line["why"] == "ValueError: bad ***" and "hunter2" not in str(line)


@pytest.mark.parametrize("then", ["pass", "raise ValueError('bad ' + key.value)"])
def test_nor_is_a_variable_that_is_secret_when_the_plugin_begins_and_ends(shelf: Shelf, then: str) -> None:
    shelf.server.meant = ("plugin_failed", "plugin_not_loaded")
    shelf.plugins.on_change = lambda: shelf.server.log.hide(shelf.plugins.settings.secrets)
    shelf.server.config.plugin_settings = {"tells_key": "hunter2", "tells_keys": "hunter3,hunter4"}
    source = f"""
def plugin_init(given):
    global server, key
    server = given
    key = server.setting("key", "", "the key", secret=True)
    keys = server.setting("keys", (), "more", secret=True)
    server.log("info", f"begins with {{key.value}}", keys=keys.value)
    {then}
def plugin_done():
    server.log("info", f"ends with {{key.value}}")
"""
    with suppress(PluginError):
        shelf.load("tells", source, head="from l2tpns.plugins import *\n")
        shelf.plugins.remove("tells")
    assert "begins with" in str(shelf.server.log.records()) and "hunter" not in str(shelf.server.log.records())


def test_a_plugin_that_fails_at_every_login_does_not_fill_the_log(shelf: Shelf) -> None:
    shelf.server.meant = ("plugin_failed",)
    shelf.load("broken", "def plugin_pre_auth(event): 1/0")
    for _ in range(20):
        shelf.online("fred").hangup()
        until(lambda: shelf.server.calm)
    (plugin,) = shelf.plugins.loaded
    assert plugin.functions["pre_auth"].failures == 20
    assert len(shelf.events("plugin_failed")) < 10


@pytest.mark.parametrize(
    "call", ["throttle(1.5)", "throttle(64, '64')", "enter_garden(5)", "leave_garden(5)", "leave_garden('\\ud800')"]
)
def test_what_is_asked_of_a_session_with_a_wrong_type_changes_nothing(shelf: Shelf, call: str) -> None:
    shelf.server.meant = ("plugin_failed",)
    shelf.load("slips", f"def plugin_control(event):\n    server.find('fred')[0].{call}")
    shelf.online()
    (session,) = shelf.server.registry.by_user["fred"]
    session.services.gardens.enter(session, by="test")
    policy = session.policy
    assert shelf.plugins.control(["x"], ("192.0.2.1", 1)) == (
        False,
        "plugin slips failed: see the server's log",
    )
    assert session.policy == policy and session.user == "fred" and session in shelf.server.registry.by_user["fred"]


# What is no Exception: it ends neither a greenlet of ours nor the server

BASE = ("gevent.GreenletExit", "KeyboardInterrupt", "SystemExit(3)", "GeneratorExit", "gevent.Timeout(1)", "Own")
base = pytest.mark.parametrize("error", BASE)
BASE_HEAD = "import gevent\n" + OWN


@base
def test_what_a_hook_raises_is_its_failure_whatever_it_is(crowd: Shelf, error: str) -> None:
    crowd.load("broken", every_hook(f"raise {error}"), head=BASE_HEAD)
    crowd.load("good", "def plugin_pre_auth(event): SEEN.append(event.username)")
    use_all(crowd)
    assert {line["hook"] for line in crowd.events("plugin_failed")} == {f"plugin_{hook}" for hook in HOOKS}
    assert "fred" in crowd.seen("good")
    assert crowd.server.services.supervisor.down() == []


@base
@pytest.mark.parametrize(
    "where",
    [
        "raise {}",  # while it is imported
        "def plugin_init(server): raise {}",
        "def plugin_timer(event): pass\ndef plugin_api_version(): raise {}",
        "def plugin_timer(event): pass\ndef plugin_control_help(): raise {}",
    ],
)
def test_nor_does_one_that_is_loaded(shelf: Shelf, where: str, error: str) -> None:
    shelf.server.meant = ("plugin_failed",)  # of plugin_init
    with pytest.raises(PluginError, match=r"bad\.py:\d+: "):
        shelf.load("bad", where.format(error), head=BASE_HEAD)
    assert shelf.plugins.loaded == []


@base
def test_nor_what_is_saved_or_done(shelf: Shelf, error: str) -> None:
    shelf.server.meant = ("plugin_failed",)
    bad = f"def plugin_done(): raise {error}\ndef plugin_save(): raise {error}"
    shelf.load("bad", bad, head=BASE_HEAD)
    with pytest.raises(PluginError, match="plugin_save failed"):
        shelf.plugins.reload("bad")
    shelf.plugins.remove("bad")
    assert [line["hook"] for line in shelf.events("plugin_failed")] == ["plugin_save", "plugin_done"]


@base
def test_nor_a_command_a_builder_of_gardens_or_a_greenlet_of_its_own(shelf: Shelf, error: str) -> None:
    shelf.server.meant = ("plugin_failed", "garden_failed")
    source = f"""
def bad(*_): raise {error}
def plugin_init(server):
    server.command("badly", "x", bad)
    server.on_garden(bad)
    server.spawn(bad)
"""
    shelf.load("bad", source, head=BASE_HEAD)
    (command,) = shelf.plugins.commands
    with pytest.raises(PluginError, match="plugin bad failed"):
        shelf.plugins.run_command(command, [])
    until(lambda: shelf.events("garden_failed") and len(shelf.events("plugin_failed")) == 2)
    assert {line["hook"] for line in shelf.events("plugin_failed")} == {"plugin_command badly", "plugin_spawn bad"}
    assert shelf.online("fred").ended is None


@base
def test_nor_a_greenlet_that_gevent_has_made_for_it(shelf: Shelf, error: str) -> None:
    hub = gevent.get_hub()
    contain_strays(hub, shelf.server.lns.log)
    shelf.server.meant = ("greenlet_failed",)
    try:
        shelf.load("bad", f"def bad(): raise {error}\ndef plugin_init(_): gevent.spawn(bad)", head=BASE_HEAD)
        assert shelf.online("fred").ended is None
        if error != "gevent.GreenletExit":  # which gevent takes for an end in order
            assert "bad.py" in shelf.events("greenlet_failed")[0]["traceback"]
    finally:
        del hub.handle_error


def test_a_bomb_of_time_that_a_packet_hook_leaves_behind_costs_no_lac_its_reader(shelf: Shelf) -> None:
    shelf.server.meant = ("part_failed",)
    shelf.load("late", "import gevent\ndef plugin_packet_tx(event): gevent.Timeout(0.01).start()")
    fred = shelf.online("fred")
    fred.send_ip(ip(str(shelf.session("fred").address), "192.0.2.1"))
    until(lambda: shelf.events("part_failed"))
    shelf.plugins.remove("late")
    shelf.server.lac("another").connect().call("mary", "pw").wait_online()


# But the creator of a greenlet may end it


WAITS = """
import gevent
def plugin_control(event):
    SEEN.append("begun")
    {}
    SEEN.append("went on")
"""


@pytest.mark.parametrize(
    "body",
    [
        "gevent.sleep(3600)",
        "gevent.event.Event().wait()",
        "\n    try: gevent.sleep(3600)\n    finally: raise ValueError",
        "\n    try: gevent.sleep(3600)\n    except BaseException: raise gevent.GreenletExit",
    ],
)
def test_a_greenlet_that_is_killed_while_a_hook_waits_ends(shelf: Shelf, body: str) -> None:
    shelf.load("waits", WAITS.format(body))
    job = gevent.spawn(shelf.plugins.control, ["x"], ("192.0.2.1", 1))
    until(lambda: shelf.seen("waits"))
    job.kill()
    assert isinstance(job.value, gevent.GreenletExit)
    assert shelf.seen("waits") == ["begun"] and not shelf.events("plugin_failed")


def test_a_hook_that_kills_its_own_greenlet_costs_its_session_only(shelf: Shelf) -> None:
    shelf.server.meant = ("session_failed",)
    shelf.load(
        "kills",
        "import gevent\ndef plugin_pre_auth(event):\n    if event.username == 'fred': gevent.getcurrent().kill()",
    )
    fred = shelf.call("fred")
    until(lambda: fred.ended is not None)
    shelf.online("mary")
    assert "a plugin killed the greenlet" in shelf.events("session_failed")[0]["traceback"]
