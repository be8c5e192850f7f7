"""Loading, reloading and removing plugins; their variables, counters, commands and greenlets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

from l2tpns.config.file import make_config, parse_text, running_config
from l2tpns.config.settings import Config
from l2tpns.errors import ConfigError, PluginError
from l2tpns.plugins.loader import CHECKOUT, INSTALLED, directory
from tests.lab.inprocess import InProcess, until
from tests.server.operators import Desk, Operator
from tests.server.shelf import Shelf

HOOK = "def plugin_pre_auth(event): SEEN.append(event.username)\n"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def plugin_pre_auht(event): pass", "plugin_pre_auht is not a hook: did you mean plugin_pre_auth?"),
        ("plugin_api_versoin = 1\n" + HOOK, "did you mean plugin_api_version?"),
        ("def plugin_timer(event:\n  pass", "plain.py:1: '(' was never closed"),
        ("def f(): pass", "no hook found"),
        ("import no_such_module", "plain.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("\n\n1/0", "plain.py:3: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "plain.py:1: SystemExit: 3"),
        ("def plugin_timer(): pass", "plain.py:1: plugin_timer must take one argument"),
        ("def plugin_done(event): pass", "plugin_done must take no argument"),
        ("plugin_timer = 5", "plugin_timer must be a function"),
        ("async def plugin_timer(event): pass", "must be a plain function: no async, no yield"),
        ("def plugin_timer(event): yield", "must be a plain function: no async, no yield"),
        ("plugin_api_version = 2\ndef plugin_timer(e): pass", "written for plugin interface 2, this is 1"),
        ("plugin_control_help = 5\ndef plugin_timer(e): pass", "plugin_control_help must be a list of strings"),
        ("plugin_avpairs = 'throttle'\ndef plugin_timer(e): pass", "plugin_avpairs must be a list of strings"),
        ("plugin_avpairs = [1]\ndef plugin_timer(e): pass", "plugin_avpairs must be a list of strings"),
        ("def plugin_init(server): return 0", "its plugin_init returned PLUGIN_RET_ERROR"),
        ("def plugin_init(server):\n    server.sessoins()", "plain.py:2: plugin_init failed: AttributeError"),
        ("def plugin_init(server): server.setting('x', [], 'y')", "a setting cannot be a list"),
        ("def plugin_init(server): server.command('show pool', 'y', print)", "already has a command `show pool`"),
        ("\0", "null bytes"),
    ],
)
@pytest.mark.shows("set plugin_dir")
def test_a_plugin_that_cannot_be_loaded_is_named_with_its_mistake_and_nothing_of_it_stays(
    open_desk: Callable[..., Desk], tmp_path: Path, source: str, why: str
) -> None:
    desk = open_desk(plugin_dir=str(tmp_path))
    desk.server.meant = ("plugin_failed",)
    (tmp_path / "plain.py").write_text(source)
    said = desk.plain().do("load plugin plain")
    assert said.lstrip().startswith("% ") and why in said
    plugins = desk.server.plugins
    assert why in desk.server.events("plugin_not_loaded")[0]["why"]
    assert plugins.loaded == [] and plugins.chains == {} and plugins.settings.declared == {} and plugins.counts == []
    assert desk.server.config.plugins == ()


@pytest.mark.parametrize(
    ("name", "why"),
    [("../x", "not a valid plugin name"), ("x.py", "not a valid plugin name"), ("gardn", "did you mean garden?")],
)
def test_a_name_that_is_none_is_refused(shelf: Shelf, name: str, why: str) -> None:
    shelf.write("garden", HOOK)
    with pytest.raises(PluginError, match=why.replace("?", r"\?")):
        shelf.plugins.load(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses foreign files")
def test_root_runs_no_file_of_another_user_or_that_everybody_may_write(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shelf.write("x", HOOK)
    path.chmod(0o666)
    with pytest.raises(PluginError, match="is writable by all users"):
        shelf.plugins.load("x")
    path.chmod(0o644)
    os.chown(path, 65534, 0)
    with pytest.raises(PluginError, match="belongs to user 65534"):
        shelf.plugins.load("x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(PluginError, match="it must belong to root or to user 12345"):
            shelf.plugins.load("x")
    os.chown(path, 0, 0)
    shelf.directory.chmod(0o777)
    with pytest.raises(PluginError, match="is writable by all users"):
        shelf.plugins.load("x")


def test_plugins_are_found_where_plugin_dir_says_or_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert directory("/opt/p") == Path("/opt/p")
    monkeypatch.setenv("L2TPNS_LIB", "/opt/l")
    assert directory("") == Path("/opt/l")
    monkeypatch.delenv("L2TPNS_LIB")
    assert directory("") == CHECKOUT and str(INSTALLED) == "/usr/lib/l2tpns"


# The console


@pytest.mark.shows("load plugin NAME", "remove plugin NAME", "show plugins", "reload plugin NAME")
def test_the_console_loads_shows_reloads_and_removes_in_the_words_of_old(
    open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = open_desk(plugin_dir=str(tmp_path))
    (tmp_path / "one.py").write_text("__version__ = '1.2'\ndef plugin_timer(event): pass\n")
    operator = desk.plain()
    assert "Loading plugin one" in operator.do("load plugin one")
    assert "% Plugin is already loaded" in operator.do("load plugin one")
    shown = operator.do("show plugins")
    assert "Plugins currently loaded:\n  one 1.2\n" in shown and "timer" in shown and " ms" in shown
    assert 'load plugin "one"' in operator.do("show running-config")
    assert "Reloading plugin one" in operator.do("reload plugin one")
    assert "Removing plugin one" in operator.do("remove plugin one")
    assert "% Plugin is not loaded" in operator.do("remove plugin one")
    assert "load plugin" not in operator.do("show running-config")
    changes = [line["command"] for line in desk.server.events("console_command")]
    assert changes == ["load plugin one", "reload plugin one", "remove plugin one"]


def test_a_plugin_brings_commands_of_its_own_and_what_it_does_wrong_in_them_is_told(
    open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = open_desk(plugin_dir=str(tmp_path))
    desk.server.meant = ("plugin_failed",)
    (tmp_path / "brings.py").write_text(
        """
from l2tpns.plugins import *
def plugin_init(server):
    server.command("show weather", "what it is like outside", weather, usage="TOWN", privileged=False)
def weather(words):
    if not words: raise PluginError("where?")
    return f"{words[0]}: fine" if words[0] != "moon" else 1/0
"""
    )
    operator = desk.plain()
    operator.do("load plugin brings")
    assert "Paris: fine" in operator.do("show weather Paris")
    assert "% where?" in operator.do("show weather")
    assert "% plugin brings failed: see the log" in operator.do("show weather moon")
    assert "plugin brings" in operator.do("show weather?")
    operator.do("remove plugin brings")
    assert "% " in operator.do("show weather Paris") and len(desk.server.events("plugin_failed")) == 1


# Reload

SAVES = """
from l2tpns.plugins import *
SEEN = []
def plugin_init(server):
    SEEN.append(("init", server.saved))
    server.counter("many", "how many").add()
def plugin_done():
    SEEN.append("done")
def plugin_save():
    return {"of": "the first"}
def plugin_pre_auth(event): pass
"""


def test_a_reload_in_place_takes_up_the_edit_and_keeps_order_counters_and_what_the_plugin_has_saved(
    shelf: Shelf,
) -> None:
    shelf.load("first", SAVES, head="")
    shelf.load("second", HOOK)
    old = shelf.seen("first")
    shelf.write("first", SAVES.replace("pass", "SEEN.append('new code')"), head="")
    shelf.plugins.reload("first")
    assert old == [("init", None), "done"] and shelf.seen("first") == [("init", {"of": "the first"})]
    assert [plugin.name for plugin in shelf.plugins.loaded] == ["first", "second"]
    assert [(count.name, count.value) for count in shelf.plugins.counts] == [("first_many", 2)]
    shelf.online()
    assert shelf.seen("first")[-1] == "new code" and shelf.seen("second") == ["fred"]


@pytest.mark.parametrize("edit", ["def plugin_init(server): 1/0", "def plugin_init(", "def plugin_foo(e): pass", ""])
def test_a_broken_edit_keeps_the_old_plugin_running(shelf: Shelf, edit: str) -> None:
    shelf.server.meant = ("plugin_failed",)
    shelf.load("one", HOOK)
    before = shelf.module("one")
    shelf.write("one", edit, head="")
    with pytest.raises(PluginError, match=r"one\.py"):
        shelf.plugins.reload("one")
    assert shelf.module("one") is before
    shelf.online()
    assert shelf.seen("one") == ["fred"] and shelf.plugins.refused == {}


def test_a_plugin_that_is_removed_is_told_and_its_greenlets_end(shelf: Shelf) -> None:
    shelf.load(
        "beside",
        """
        import gevent
        def plugin_timer(event): pass
        def plugin_done(): SEEN.append("done")
        def plugin_save(): server.spawn(run)
        def run():
            try:
                while True: gevent.sleep(0.01)
            finally:
                SEEN.append("ended")
        """,
    )
    seen = shelf.seen("beside")
    shelf.module("beside").plugin_save()
    gevent.sleep(0.05)
    shelf.plugins.remove("beside")
    until(lambda: len(seen) == 2)
    assert seen == ["done", "ended"]


# The configuration


def test_a_reload_of_the_configuration_loads_and_removes_what_differs_and_nothing_else(shelf: Shelf) -> None:
    for name in ("a", "b", "c"):
        shelf.write(name, HOOK)
    assert shelf.plugins.apply_config(("a", "b")) == []
    kept = shelf.module("b")
    (told,) = shelf.plugins.apply_config(("c", "b", "nowhere"))
    assert [plugin.name for plugin in shelf.plugins.loaded] == ["c", "b"] and shelf.module("b") is kept
    assert told.startswith("plugin nowhere is not loaded: no such file: ")
    assert [line["plugin"] for line in shelf.events("plugin_removed")] == ["a"]


@pytest.mark.shows('load plugin "NAME"')
def test_a_plugin_that_is_missing_at_the_start_is_logged_and_shown_and_the_others_are_loaded(
    open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    (tmp_path / "good.py").write_text("def plugin_timer(event): pass\n")
    desk = open_desk(plugin_dir=str(tmp_path), plugins=("gone", "good"))
    desk.server.plugins.start()
    assert [line["plugin"] for line in desk.server.events("plugin_not_loaded")] == ["gone"]
    shown = desk.plain().do("show plugins")
    assert "  good\n" in shown and "Not loaded:\n  gone: no such file: " in shown
    assert desk.server.config.plugins == ("gone", "good")  # write memory does not forget it
    (tmp_path / "gone.py").write_text("def plugin_timer(event): pass\n")
    desk.plain().do("load plugin gone")
    assert [plugin.name for plugin in desk.server.plugins.loaded] == ["gone", "good"]


SETTINGS = """
from ipaddress import IPv4Address
from l2tpns.plugins import *
def plugin_init(server):
    global url, tries, on, host, names, mode, key
    url = server.setting("url", "http://x/", "where")
    tries = server.setting("tries", 3, "how often", minimum=1, maximum=9)
    on = server.setting("on", False, "whether")
    host = server.setting("host", IPv4Address(0), "who")
    names = server.setting("names", ("a",), "whom")
    mode = server.setting("mode", "open", "how", choices=("open", "closed"))
    key = server.setting("key", "", "secret", secret=True)
    SEEN.append(url.value)
def plugin_timer(event): pass
SEEN = []
"""
FILE = 'load plugin "web"\nset web_url "http://y/"\nset web_tries 5\nset web_key "hush"\n'


def configured(text: str) -> Config:
    return make_config(parse_text(text))


def test_a_configuration_sets_a_plugins_variables_after_its_load_line(
    serve: Callable[..., InProcess], tmp_path: Path
) -> None:
    config = configured(FILE)
    assert dict(config.plugin_settings) == {"web_url": "http://y/", "web_tries": "5", "web_key": "hush"}
    assert configured(running_config(config)).differences(config) == ()
    with pytest.raises(ConfigError, match="web_url"):
        configured('set web_url x\nload plugin "web"')
    with pytest.raises(ConfigError, match="wib_url"):
        configured('load plugin "web"\nset wib_url x')
    (tmp_path / "web.py").write_text(SETTINGS)
    server = serve(plugin_dir=str(tmp_path), plugins=config.plugins, plugin_settings=config.plugin_settings)
    server.plugins.start()
    module = server.plugins.loaded[0].code.module
    assert module.SEEN == ["http://y/"] and module.tries.value == 5 and module.host.value is None
    assert server.plugins.settings.secrets == ("hush",)


def test_the_console_sets_them_too_and_says_what_would_be_right(open_desk: Callable[..., Desk], tmp_path: Path) -> None:
    desk = open_desk(plugin_dir=str(tmp_path))
    (tmp_path / "web.py").write_text(SETTINGS)
    operator: Operator = desk.plain()
    operator.do("load plugin web")
    module = desk.server.plugins.loaded[0].code.module
    assert 'Setting "web_tries" to "7"' in operator.do("set web_tries 7") and module.tries.value == 7
    assert "a whole number from 1 to 9" in operator.do("set web_tries 10") and module.tries.value == 7
    assert "open or closed" in operator.do("set web_mode ajar")
    assert 'did you mean "web_tries"' in operator.do("set web_tires 1")
    assert "***" in operator.do("set web_key hush")
    running = operator.do("show running-config")
    assert 'load plugin "web"\nset web_tries "7"\nset web_key "hush"\n' in running
    assert desk.server.plugins.settings.secrets == ("hush",)
    operator.do("remove plugin web")  # its settings are no error in the file that is written then
    assert "web_" not in operator.do("show running-config")
    operator.do("load plugin web")
    assert desk.server.plugins.settings.secrets == ("hush",)
    with pytest.raises(ConfigError, match="web_tries"):
        desk.server.plugins.settings.check({"web_tries": "soon"}, ("web",))


def test_a_value_that_will_not_do_refuses_the_load(shelf: Shelf) -> None:
    shelf.server.meant = ("plugin_failed",)
    shelf.server.config.plugin_settings = {"web_tries": "soon"}
    with pytest.raises(PluginError, match='web_tries: "soon" will not do: it must be a whole number from 1 to 9'):
        shelf.load("web", SETTINGS, head="")
    shelf.server.config.plugin_settings = {"web_tires": "1"}
    with pytest.raises(PluginError, match="did you mean"):
        shelf.load("web", SETTINGS, head="")
    assert shelf.plugins.loaded == []


def test_of_two_plugins_whose_names_begin_alike_each_has_its_own_variables(shelf: Shelf) -> None:
    shelf.server.config.plugin_settings = {"web_x_tries": "5", "web_tries": "7"}
    for name in ("web_x", "web"):
        shelf.load(name, SETTINGS, head="")
    assert [shelf.module(name).tries.value for name in ("web_x", "web")] == [5, 7]
    shelf.plugins.settings.assign("web_x_tries", "6")
    assert [shelf.module(name).tries.value for name in ("web_x", "web")] == [6, 7]


def test_counters_of_plugins_are_shown_and_cleared_with_the_others(
    open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = open_desk(plugin_dir=str(tmp_path))
    (tmp_path / "counts.py").write_text(
        "def plugin_init(server): server.counter('sheep', 'sheep that jumped').add(3)\n"
    )
    operator = desk.plain()
    operator.do("load plugin counts")
    assert "sheep that jumped" in operator.do("show counters")
    assert '"counts_sheep": 3' in operator.do("show counters | json")
    operator.do("clear counters")
    assert '"counts_sheep": 0' in operator.do("show counters | json")
