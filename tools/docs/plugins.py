"""docs/plugins.md: how a plugin is written, and the reference of hooks and callbacks, from l2tpns/plugins/."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

from l2tpns.hooks import HOOKS, NAMES, PLUGIN_API_VERSION, Event, Hook, param_radius_account
from l2tpns.plugins import calls, manager
from l2tpns.plugins.server_api import Count, Login, Server, Variable
from l2tpns.plugins.session_api import Session
from tools.docs.markdown import NOTE, ROOT, table

MODULES = ROOT / "modules"

TUTORIAL = f'''# Plugins

A plugin is one Python file. The server calls its functions `plugin_...` at events: a subscriber logs in, comes online,
leaves, a packet passes, a second is over, an `nsctl` command arrives. A plugin may read and change the event and call
the server's methods. It imports `l2tpns.plugins` and Python's library, and nothing else of this server.

## Ten lines

Save this as `/usr/lib/l2tpns/threestrikes.py` (as root; in a checkout: `modules/threestrikes.py`).

```python
"""Who has failed to log in three times from one number waits until the hour is over."""
FAILED = {{}}

def plugin_pre_auth(event):
    if FAILED.get(event.session.calling, 0) >= 3:
        event.continue_auth = 0

def plugin_post_auth(event):
    number = event.session.calling
    FAILED[number] = 0 if event.auth_allowed else FAILED.get(number, 0) + 1

def plugin_timer(event):
    if event.time_now % 3600 == 0:
        FAILED.clear()
```

Load it at the console (`telnet 127.0.0.1`, `enable`):

    lns# load plugin threestrikes
    Loading plugin threestrikes
    lns# show plugins
    Plugins currently loaded:
      threestrikes
          pre_auth               214 calls        0.9 ms, slowest 0.1 ms
          ...

`write memory` puts `load plugin "threestrikes"` into the configuration. After an edit: `reload plugin threestrikes`.
If the new code is faulty, file and line are reported and the old code stays in use. `remove plugin threestrikes`
unloads it.

## A little more

A variable is a value that operators can change; a counter counts. Both are declared in `plugin_init`, whose argument is
the server:

```python
"""Who has failed to log in too often from one number waits until the hour is over."""
from l2tpns.plugins import PLUGIN_RET_OK, PLUGIN_RET_STOP

FAILED = {{}}

def plugin_init(given):
    global server, most, refused
    server = given
    most = server.setting("most", 3, "failures of one number in an hour", minimum=1)
    refused = server.counter("refused", "logins of numbers that had failed too often")
    FAILED.update(server.saved or {{}})  # what plugin_save has saved before a reload

def plugin_save():
    return FAILED

def plugin_pre_auth(event):
    if FAILED.get(event.session.calling, 0) < most.value:
        return PLUGIN_RET_OK
    refused.add()
    server.log("info", "too many failures", session=event.s, user=event.username)
    event.continue_auth = False
    return PLUGIN_RET_STOP

def plugin_post_auth(event):
    number = event.session.calling
    FAILED[number] = 0 if event.auth_allowed else FAILED.get(number, 0) + 1

def plugin_timer(event):
    if event.time_now % 3600 == 0:
        FAILED.clear()
```

Now `set threestrikes_most 5` works at the console and in the configuration, there after the line `load plugin`;
`show counters` and the metrics have `threestrikes_refused`; and the failures are kept across a reload.

## Rules

- **Order.** Plugins are called in the order in which they were loaded. A function returns `PLUGIN_RET_OK` (1) or
  nothing: the next one is called. `PLUGIN_RET_STOP` (2): success, and no further plugin is called. `PLUGIN_RET_ERROR`
  (0): failure, and no further plugin is called. Both concern this one event; each hook below says what they mean.
- **Errors.** If a function raises, or returns anything else, the log has `plugin_failed`, its changes to the event are
  undone, and the next plugin is called. A name that begins with `plugin_` and is not a hook, a syntax error, a function
  with the wrong number of arguments: the plugin is not loaded, and file and line are reported. Any exception is the
  plugin's failure and ends nothing else: also `sys.exit()`, `KeyboardInterrupt`, `GreenletExit` and a `BaseException`
  of its own, in a hook, a command, `server.spawn` or while it is loaded. An exception in a greenlet that the plugin
  made itself is logged as `greenlet_failed`. Only `os._exit()`, `os.abort()` and a crash of C code end
  the server: nothing can catch them.
- **Waiting** (network, `time.sleep`) is allowed, but for packet hooks: only the session concerned waits, and it can
  still hang up or be dropped. Where a session cannot wait (`kill_session`, `radius_account`), and in `plugin_done`,
  a plugin that has not returned after {manager.HOOK_TIMEOUT:g} seconds is abandoned, in `plugin_init` after
  {manager.INIT_TIMEOUT:g}. All `plugin_timer` run one after the other. `server.spawn` runs a function beside all of
  this.
- **Computing** without waiting blocks the whole server. A call that uses {calls.SLOW_CALL * 1000:g} ms of CPU or
  more is reported (`plugin_slow`); `show plugins` has the sum and the slowest call of each function. An
  endless loop stops the server until systemd's watchdog (`WatchdogSec`) restarts it: plugins run in its process.
- **Packet hooks** are called for every packet of every session as soon as one plugin has one ([what that
  costs](performance.md)). They may not wait: a call that would wait raises. Their time is that of the wall clock.
  Put your packet into `event.buf`, octets that begin with an IP header; the result is sent unchanged. For the order of
  hooks and interception see l2tpns/policy/taps.py.
- **Reload.** `plugin_init` of the new code runs before `plugin_done` of the old: if it fails the old one goes on.
  Order, values of variables and counters are kept.
- **Start.** Plugins are loaded before the first subscriber is served; one that cannot be loaded is reported in the log
  and by `show plugins`, and the server starts without it. A reload of the configuration loads and removes what differs.
- **Trust.** A plugin is part of the server: it has all its rights and can harm it. So its file and directory must
  belong to root or to the user that the server runs as, and must not be writable for all users. It receives the
  passwords of PAP: do not log them.
- A Cisco-AVPair is cut at commas that another `key=` follows; the value of one whose key has a colon, such as
  `lcp:interface-config`, goes on until another such key. If in doubt send each pair in an attribute of its own.
- A Reject that a plugin turns into success keeps its attributes: they count as an Accept's. Its message is not shown.

'''


def page() -> str:
    return "".join([NOTE, "\n", TUTORIAL, *_shipped(), *_hooks(), *_callbacks()])


def _shipped() -> Iterator[str]:
    yield "## Shipped\n\n"
    rows = []
    for path in sorted(MODULES.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        rows.append((f"`{path.stem}`", " ".join(text.partition("\n\n")[0].split())))
    yield table(("Plugin", "What it does"), rows)


def _hooks() -> Iterator[str]:
    yield "\n## Hooks\n\nFields marked * may be set.\n"
    for hook in HOOKS.values():
        yield f"\n### {hook.function}({_argument(hook)})\n\n{_when(hook)}\n"
        if hook.event is not None:
            rows = [(f"`{name}`{' *' * free}", f"`{kind}`", help) for name, (kind, help, free) in hook.fields.items()]
            yield "\n" + table(("Field", "Type", "Meaning"), rows)
            if hook.event is param_radius_account:
                yield "\n" + table(("Method", "Meaning"), list(_methods(hook.event, Event)))
        if hook.name not in ("done", "save"):
            yield f"\nSTOP: {hook.stop}. ERROR: {hook.error}.\n"
    yield "\n### Other names\n\n"
    yield table(("Name", "What it is"), [(f"`{name}`", help) for name, help in NAMES.items()])
    yield f"\nThe interface is number {PLUGIN_API_VERSION}.\n"


def _argument(hook: Hook) -> str:
    return "event" if hook.event is not None else "server" if hook.arguments else ""


def _when(hook: Hook) -> str:
    return hook.when or " ".join((hook.event.__doc__ or "").split())


def _callbacks() -> Iterator[str]:
    yield "\n## The server\n\nThe argument of `plugin_init`; one for each plugin. "
    yield "A method that fails raises `PluginError` with the reason in words.\n\n"
    yield table(
        ("Method", "Meaning"),
        [("`saved`", "what `plugin_save` of the code before a reload has returned; else None"), *_methods(Server)],
    )
    yield "\n## A session\n\n`event.session`, and what the server's methods return.\n\n"
    yield table(("Property or method", "Meaning"), list(_methods(Session)))
    yield "\n## What they return\n\n"
    rows = [
        ("`Variable`", "of `setting`: `value`"),
        ("`Count`", "of `counter`: `add(amount=1)`, `value`"),
        ("`Login`", f"of `radius_login`: {', '.join(f'`{name}`' for name in Login.__slots__)}"),
    ]
    assert {Count.__name__, Variable.__name__, Login.__name__} == {name.strip("`") for name, _ in rows}
    yield table(("Type", "Meaning"), rows)


def _methods(cls: type[Any], base: type[Any] = object) -> Iterator[tuple[str, str]]:
    """Yield the properties and methods that a plugin may use, each with its help."""
    for name, thing in vars(cls).items():
        if name.startswith("_") or hasattr(base, name):
            continue
        if isinstance(thing, property):
            yield f"`{name}`", _help(thing.fget)
        elif inspect.isfunction(thing):
            yield f"`{name}{_signature(thing)}`", _help(thing)


def _help(thing: Any) -> str:
    text = " ".join((inspect.getdoc(thing) or "").split())
    assert text, f"{thing} has no help"
    return text


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=_plain(p.annotation)) for p in list(signature.parameters.values())[1:]]
    shown = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return re.sub(r": '([^']*)'", r": \1", shown)


def _plain(annotation: Any) -> Any:
    return inspect.Parameter.empty if annotation in ("Any", "T") else annotation
