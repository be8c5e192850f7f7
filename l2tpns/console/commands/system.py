"""`show counters`, `show version`, `show parts`, `uptime`, `shutdown`: the server as a whole (reference 4, 5)."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent

from l2tpns import __version__
from l2tpns.console.context import ConsoleContext
from l2tpns.console.grammar import Command, Privilege, change
from l2tpns.console.output import Column, Output, Row, Table
from l2tpns.runtime.counters import PRIVATE

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell

BANANA = r"""
 _
//\
V  \
 \  \_
  \,'.`-.
   |\ `. `.
   ( \  `. `-.                        _,.-:\
    \ \   `.  `-._             __..--' ,-';/
     \ `.   `-.   `-..___..---'   _.--' ,'/
      `. `.    `-._        __..--'    ,' /
        `. `-_     ``--..''       _.-' ,'
          `-_ `-.___        __,--'   ,'
             `-.__  `----'''    __.-'
                  `--..____..--'
"""


# Counters

SIDES = (("Ethernet", "tun"), ("Tunnel", "tunnel"))


def counter_values(context: ConsoleContext, hidden: frozenset[str]) -> dict[str, Any]:
    context.lns.services.plane.collect()
    values: dict[str, Any] = {name: value for name, _, value in context.lns.counters.items() if name not in hidden}
    values |= {count.name: count.value for count in context.plugins.counts}
    cleared = context.counters_cleared
    values["seconds_since_reset"] = round(monotonic() - (cleared or context.started))
    return values


def show_counters(shell: Shell) -> Output:
    context = shell.context
    hidden = frozenset[str]() if shell.privilege >= Privilege.ENABLED else PRIVATE

    def lines() -> Iterator[str]:
        values = counter_values(context, hidden)
        for title, side in SIDES:
            retries = "retries" if side == "tunnel" else ""
            yield f"{title + ':':<10}{'bytes':>20}{'packets':>16}{'errors':>12}{retries:>12}".rstrip()
            for way in ("rx", "tx"):
                figures = [values[f"{side}_{way}_{what}"] for what in ("octets", "packets", "errors")]
                row = f"  {way.upper():<8}{figures[0]:>20}{figures[1]:>16}{figures[2]:>12}"
                if (side, way) == ("tunnel", "tx"):
                    row += f"{values['control_retransmissions']:>12}"
                yield row
            yield ""
        shown = {f"{side}_{way}_{what}" for _, side in SIDES for way in ("rx", "tx") for what in _FIGURES}
        for name, help, value in context.lns.counters.items():
            if name not in shown and name not in hidden:
                yield f"{name:<26}{value:>14}  {help}"
        for count in context.plugins.counts:
            yield f"{count.name:<26}{count.value:>14}  {count.help}"
        yield ""
        yield f"Last counter reset {values['seconds_since_reset']} seconds ago"

    return Output(lines, lambda: counter_values(context, hidden))


_FIGURES = ("octets", "packets", "errors")


# Release and state


def show_version(shell: Shell) -> Output:
    python = platform.python_version()
    made_of = f"Python {python}, gevent {gevent.__version__}, Linux {platform.release()}"
    return Output(
        lambda: [f"L2TPNS {__version__}", f"ID: {made_of}"],
        lambda: {"version": __version__, "python": python, "gevent": gevent.__version__, "kernel": platform.release()},
    )


def show_banana(shell: Shell) -> Output:
    return Output(lambda: BANANA.strip("\n").split("\n"), lambda: {"banana": BANANA})


def uptime(shell: Shell) -> Output:
    context = shell.context
    now = time.strftime("%H:%M:%S")
    up = monotonic() - context.started
    users = len(context.lns.services.registry.by_address)
    load = os.getloadavg()
    first = f"{now} up {span(up)}, {users} users, load average: {load[0]:.2f}, {load[1]:.2f}, {load[2]:.2f}"
    return Output(
        lambda: [first, context.bandwidth()],
        lambda: {"seconds": int(up), "users": users, "load": list(load), "bandwidth": context.bandwidth()},
    )


def span(seconds: float) -> str:
    """Return a duration as `8 days, 2:07`, `12 mins` or `40 sec`."""
    days, rest = divmod(int(seconds), 86400)
    before = f"{days} day{'s' if days != 1 else ''}, " if days else ""
    if rest >= 3600 or days:
        return f"{before}{rest // 3600}:{rest % 3600 // 60:02}"
    if rest >= 60:
        return f"{rest // 60} min{'s' if rest >= 120 else ''}"
    return f"{rest} sec"


def show_load(shell: Shell) -> Output:
    """Show how late the event loop runs, and how many calls wait or were refused."""
    lns = shell.context.lns
    p99, worst = shell.context.lag()
    starting = lns.admission.starting.total()
    refused, overdue = lns.counters.calls_refused, lns.counters.calls_overdue
    return Output(
        lambda: [
            f"Lag of the event loop in the last minute: p99 {p99 * 1000:.1f} ms, longest {worst * 1000:.1f} ms",
            f"Calls: {starting} starting, {refused} refused, {overdue} refused after waiting",
        ],
        lambda: {
            "lag_p99": p99,
            "lag_worst": worst,
            "starting": starting,
            "refused": refused,
            "overdue": overdue,
        },
    )


PARTS = Table(
    (
        Column("part", "Part", -18),
        Column("state", "State", -8),
        Column("failures", "Failures", 8),
        Column("why", "Last failure", 0),
    )
)


def show_parts(shell: Shell) -> Output:
    """Show the supervised greenlets of the server."""
    supervisor = shell.context.lns.services.supervisor

    def rows() -> Iterator[Row]:
        unwell = {part.name: part for part in supervisor.unwell()}
        for name, running in supervisor.up().items():
            part = unwell.get(name)
            yield {
                "part": name,
                "state": "runs" if running else "waits",
                "failures": part.failures if part is not None else 0,
                "why": part.why if part is not None else "",
            }

    return PARTS.output(rows)


def shutdown(shell: Shell) -> str:
    shell.context.leave()
    return "Shutting down"


def clear_counters(shell: Shell) -> str:
    shell.context.clear_counters()
    return "Counters cleared"


COMMANDS = (
    change("clear counters", "reset all counters to zero", clear_counters),
    Command("show banana", "a banana", show_banana),
    Command("show counters", "what was counted since the start, or since `clear counters`", show_counters),
    Command("show load", "lag of the event loop, calls that are starting and calls refused", show_load),
    Command("show parts", "components of the server: running or not, and failures in the last minute", show_parts),
    Command("show version", "release and runtime versions", show_version),
    change("shutdown", "shut down the server, as SIGTERM does", shutdown, whole=True),
    Command("uptime", "uptime, online users, load average and bandwidth", uptime),
)
