"""The pages on settings, commands, counters, metrics and log events, from their declarations in l2tpns/ and modules/.

A function returns the text of one page of docs/. Source is read; nothing is run: no root, no network.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import groupby

from l2tpns import causes
from l2tpns.config.file import IGNORED
from l2tpns.config.settings import SETTINGS
from l2tpns.config.value_types import Setting
from l2tpns.console import output_filters
from l2tpns.console.commands import COMMANDS, WORDS
from l2tpns.console.grammar import Command, Grammar, Mode, Privilege
from l2tpns.console.terminal import LOGIN_CHARACTERS
from l2tpns.monitoring.http import MAX_CONNECTIONS
from l2tpns.monitoring.prometheus import COUNTED, FAMILIES, Counted
from l2tpns.radius.attributes import IN_REPLIES, VENDORS, Attribute
from l2tpns.runtime import log as logs
from l2tpns.runtime.counters import DECLARED
from l2tpns.subscriber import usage_files
from tools.docs.markdown import NOTE, ROOT, table

ATTRIBUTES_BEGIN = "<!-- attributes: written by `make docs` from l2tpns/radius/attributes.py -->"
ATTRIBUTES_END = "<!-- end of attributes -->"
CAUSES_BEGIN = "<!-- causes: written by `make docs` from l2tpns/causes.py -->"
CAUSES_END = "<!-- end of causes -->"

# Settings


def configuration() -> str:
    """Return docs/configuration.md, from l2tpns/config/settings.py."""
    text = f"""{NOTE}
# Configuration

`l2tpns.cfg` is a list of commands, one a line: `set VARIABLE VALUE`, `load plugin "NAME"`, `ip access-list` with
its rules ([packet filters](filters.md)) and `lac` with its lines ([below](#profiles-of-lacs)). Lines that begin with
`#` or `!` are comments. A value with spaces stands between quotation marks; in it `\\"` and `\\\\` stand for `"` and
`\\`. The file is read and checked whole: if a word or a value is wrong, the server reports file, line and what would be
right, and does not start; a reload then changes nothing.

In the same directory are `l2tpns.ip_pool` (the addresses of subscribers; `pool NAME` begins another pool, which RADIUS,
a profile or `ip_pool` names; or the file `ip_pool`), `l2tpns.secrets` (subscribers
and passwords, used while `primary_radius` and `secondary_radius` are not set) and `l2tpns.users` (the operators of the
console; or `users`).

All are UTF-8 text, with or without a byte order mark; LF, CR LF and CR end a line. A file in UTF-16 and one that holds
NUL octets are refused. A no-break space or a typographic quotation mark outside quotation marks is reported with file
and line: it neither separates words nor quotes.

## Variables

A change takes effect at once (L), for tunnels and sessions that begin after it (N), or after a restart (R). Variables
with a star may have another value in the profile of a LAC.
A variable marked *not yet* in the last column is accepted without effect; the server reports this at its start, at a
reload and when it is set.

"""
    text += table(("Variable", "Default", "", "Value", "Meaning"), [_row(setting) for setting in SETTINGS.values()])
    text += """
## Profiles of LACs

A block gives some LACs values of their own:

    lac metro
     address 192.0.2.0/24,198.51.100.7
     host-name "lac1.metro.example,lac2.metro.example"
     set l2tp_secret "another secret"
     set radius_authtypes "chap"
     set max_starting_per_lac 200
    exit

A LAC has the profile if it has one of the addresses and one of the host names (AVP 7 of its SCCRQ, compared letter by
letter); what the block does not name may be anything. If several fit, the one with the longest prefix counts, then one
that names the host, then the first in the file. Variables without a line have the value of the whole server, also after
a later change of it. The profile is chosen when a tunnel begins, by the address at that time, and again at a restart; a
changed block counts for tunnels that begin after a reload. `show lac` lists the profiles with their tunnels and
sessions. At the console profiles can be seen, not changed: edit the file and `reload`.

## Variables of l2tpns 2.4.1 that are ignored

Each causes a warning. So do the block `router bgp` and the command `setforward`.

"""
    return text + table(("Variable", "Why"), [(f"`{name}`", why) for name, why in IGNORED.items()])


def _row(setting: Setting) -> tuple[str, ...]:
    default = setting.kind.text(setting.default)
    meaning = setting.help + (f". *Not yet: {setting.pending}.*" if setting.pending else "")
    effect = setting.effect.name[0] + ("*" if setting.lac else "")
    return f"`{setting.name}`", f"`{default}`" if default else "", effect, setting.kind.brief(), meaning


# Commands


def commands() -> str:
    """Return docs/commands.md, from l2tpns/console/commands/__init__.py and what it collects."""
    grammar = Grammar(COMMANDS, WORDS)
    text = f"""{NOTE}
# Commands

The console is at TCP port 23 of `cli_bind_address`: `telnet 127.0.0.1`, or a script on a plain socket. Its
operators are listed in `l2tpns.users` beside the configuration, `NAME:PASSWORD` a line, the password in clear text or
as a hash of crypt(3) (`$6$`, `$y$`, ...). Without the file no login is needed, so keep the console on 127.0.0.1. A line
`enable:PASSWORD` sets the password of `enable`; without it every operator may change the configuration.

At most `cli_max_connections` consoles are open. To admit one more, the server closes one that has not logged in, of the
source that has the most of them: a local user (on this machine), an address, or its network (/24). A console that has
logged in is never closed for another. Before the login a peer may send {LOGIN_CHARACTERS:,} characters; more ends the
connection, with `console_flooded` in the log.

Words may be shortened as long as they stay unambiguous (`sh ses 12`). `?` shows what may follow, Tab completes, the
arrows recall older lines; ^A ^E ^B ^F move, ^K ^U ^W delete, ^L redraws the screen, ^C cancels, ^D leaves. A page is as
long as the window; `terminal length 0` turns paging off, as does a client that reports no window size.

After a command, behind `|`: {", ".join(f"`{name}` {help}" for name, help in output_filters.FILTERS.items())}.
A regular expression supports `.` `[a-z]` `[^a-z]` `^` `$` `*` `+` `?` `|` `( )` `\\d` `\\w` `\\s`. Every `show` has a
form in JSON whose keys do not change.

Commands marked # need the prompt `HOST#` (`enable`). Those that change something are logged with the operator's name.

"""
    return text + table(("Command", "", "Meaning"), [_command_row(command) for command in grammar.commands])


def _command_row(command: Command) -> tuple[str, ...]:
    modes = ""
    if Mode.EXEC not in command.modes:
        modes = f" (within `{'configure terminal' if Mode.CONFIG in command.modes else 'ip access-list'}`)"
    return f"`{command.usage}`", "#" if command.privilege >= Privilege.ENABLED else "", command.help + modes


# Counters


def counters() -> str:
    """Return docs/counters.md, from l2tpns/runtime/counters.py."""
    text = f"""{NOTE}
# Counters

Counts since the process started. *tunnel* is the side of the LACs, *tun* that of the tun device; *rx* is what the
server received. Octets are those of the IP packet on the tun side, of the UDP payload on the tunnel side.

"""
    return text + table(("Counter", "What is counted"), [(f"`{name}`", help) for name, help in DECLARED])


# Metrics


def metrics() -> str:
    """Return docs/metrics.md, from l2tpns/monitoring/prometheus.py and l2tpns/subscriber/usage_files.py."""
    assert usage_files.__doc__ is not None
    text = f"""{NOTE}
# Metrics, health, status page, usage files

`set metrics_bind_address 127.0.0.1` serves three things by HTTP, on TCP port `metrics_port`. It is read-only and has no
login: any host that reaches the address sees the names and addresses of all subscribers, so choose loopback or a
management network.

A request must come to an address, to `localhost`, to our `hostname` or the machine's, or to a name that is listed, for
example `set metrics_allowed_hosts "lns1.example.net,status.example.net"`. Any other name in its Host header is answered
by 421 and logged (`figures_refused`): otherwise a foreign web page in your browser could point its own name here and
read everything. A request that a foreign page makes (Origin, Sec-Fetch-Site) is answered by 403; links
work. So Prometheus may scrape an address as it is, and a name once it is listed. A proxy in front must pass on an
allowed Host header.

At most {MAX_CONNECTIONS} connections are open at the same time. For one more, the source that has the most loses its
oldest. A source is a local user, an address, or its network (/24).

| Path | What it gives |
| --- | --- |
| `/` | the status page: what matters now, graphs of the last hour, all sessions to search |
| `/metrics` | metrics for Prometheus, in its text format or as OpenMetrics |
| `/health` | JSON with `status` (`ok`, `degraded`, `failing`, `leaving`), `problems` in words, and more: see below |

`/health` answers 503 while a part of the server does not run (`failing`: `down` names it) and during shutdown, else
200, since a restart would not cure the other problems. `standing` lists the problems for programs: each with its kind
as `name`, `subject`, `text`, the `remedy`, and its start as `since`. A part that ends by itself is restarted within ten
seconds; `l2tpns_part_up` and `show parts` report the same.

## Metrics

Those of the process and its interpreter (`process_...`, `python_...`) are prometheus_client's. `clear counters` sets
those that are counters to zero, which Prometheus treats as a restart.

"""
    rows = [
        (f"`{family.full_name}`", family.kind, ", ".join(f"`{label}`" for label in family.labels), family.help)
        for family in FAMILIES
    ]
    text += table(("Metric", "Kind", "Labels", "Meaning"), rows)
    text += "\nThe [counters](counters.md) behind the labels:\n\n"
    labelled = [
        (f"`l2tpns_{counted.group.name}_total`", _labels(counted), counted.help)
        for counted in COUNTED
        if counted.group is not None
    ]
    text += table(("Metric", "Labels", "Meaning"), labelled)
    title, *paragraphs = usage_files.__doc__.strip().split("\n\n")
    return text + "\n## Usage files\n\n" + "\n\n".join([title.partition(": ")[2].capitalize(), *paragraphs]) + "\n"


def _labels(counted: Counted) -> str:
    assert counted.group is not None
    return ", ".join(f'`{name}="{value}"`' for name, value in zip(counted.group.labels, counted.values, strict=True))


# Log events


def log_events() -> str:
    """Return docs/log.md, from every call of a logger in l2tpns/ and modules/."""
    levels: dict[str, set[str]] = {}
    keys: dict[str, set[str]] = {}
    for folder in ("l2tpns", "modules"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for level, event, facts in _log_calls(ast.parse(path.read_text())):
                levels.setdefault(event, set()).add(level)
                keys.setdefault(event, set()).update(facts)
    rows = [
        (f"`{event}`", ", ".join(sorted(levels[event])), ", ".join(f"`{key}`" for key in sorted(keys[event])))
        for event in sorted(levels)
    ]
    text = f"""{NOTE}
# The log

One JSON object a line: `time`, `level`, `event`, then facts. The same key always means the same thing: `tunnel` and
`session` are our ids, `user` the subscriber's name, `peer` a LAC's address and port, `cause` why a
tunnel or session ended, `why` a reason in words.
Lines of a tunnel or session have its keys besides those below. The variable `debug` sets the level:
{", ".join(f"{number} {name}" for number, name in enumerate(logs.LEVELS))}.

Passwords and secrets are never written. The log never blocks the server: lines that the destination does not accept (a
full pipe, a slow syslog) are dropped, and the next line that is accepted is `log_lines_dropped` with their `count`.
Warnings that a peer can cause at will are limited to {logs.MAX_LIMITED_PER_SECOND} lines a second; the next one has
the number
`kept_back`.

"""
    return text + table(("Event", "Level", "Keys"), rows)


def _log_calls(tree: ast.AST) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (level, event, keys) for each call such as `self.log.info("tunnel_up", window=4)`."""
    named = {
        "debug": "call",
        "exception": "error",
        "warning_limited": "warning",
        "audit": "audit",
        "secret_audit": "audit",
        **{level: level for level in logs.LEVELS},
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr=attr, value=ast.Name(id=owner) | ast.Attribute(attr=owner)),
                args=[ast.Constant(value=str(event)), *_],
                keywords=keywords,
            ) if attr in named and owner.endswith(("log", "logger", "root")):
                yield named[attr], event, [keyword.arg for keyword in keywords if keyword.arg]


# RADIUS


def radius() -> str:
    """Return docs/radius.md: the page as it is, with the table of attributes from l2tpns/radius/attributes.py."""
    shown = groupby((each for each in IN_REPLIES if each.effect), lambda each: each.effect)
    rows = [(", ".join(map(_numbered, group)), effect) for effect, group in shown]
    return _between("docs/radius.md", ATTRIBUTES_BEGIN, ATTRIBUTES_END, table(("Attribute", "Effect"), rows))


def _numbered(attribute: Attribute) -> str:
    vendor = f"{VENDORS[attribute.vendor]} " if attribute.vendor else ""
    return f"{attribute.name} ({vendor}{attribute.number})"


def _between(page: str, begin: str, end: str, text: str) -> str:
    """Return a page that is written by hand, with the text between two marks replaced. Raises SystemExit."""
    before, first, rest = (ROOT / page).read_text().partition(begin)
    _, second, after = rest.partition(end)
    if not (first and second):
        raise SystemExit(f"{page} has no {begin} ... {end}")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


# Causes


def architecture() -> str:
    """Return docs/architecture.md, which is written by hand but for the causes, from l2tpns/causes.py."""
    found = [value for value in vars(causes).values() if isinstance(value, causes.Cause)]
    rows = [
        (
            f"`{cause.name}`",
            cause.text,
            f"{cause.result:d}" + (f", {cause.error:d}" if cause.error else ""),
            f"{cause.terminate:d} {cause.terminate.name}",
            f"{cause.disconnect}, {cause.direction}" if cause.disconnect else "",
        )
        for cause in found
    ]
    head = ("Cause", "Text", "CDN result, error", "Acct-Terminate-Cause", "RFC 3145 code, direction")
    return _between("docs/architecture.md", CAUSES_BEGIN, CAUSES_END, table(head, rows))
