"""`show` of everything but subscribers and LACs: pool, RADIUS, counters, configuration, log, version; and `uptime`."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
import orjson

from l2tpns import __version__
from l2tpns.console.context import Office
from l2tpns.console.grammar import Argument, Command, Privilege
from l2tpns.console.log_line import log_line
from l2tpns.console.output import Column, Output, Refused, Row, Table
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.types import Backend
from l2tpns.runtime.counters import PRIVATE
from l2tpns.runtime.text import printable

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


# The pool

POOL = Table(
    (
        Column("address", "IP Address", -15),
        Column("used", "Used", 4, lambda used: "Y" if used else "N"),
        Column("session", "Session", 8, lambda session: "" if session is None else str(session)),
        Column("note", "User", 0),
    )
)


def pool_rows(office: Office, everything: bool) -> Iterator[Row]:
    """Addresses in use, those kept for who had them, and with `everything` those that nobody ever had."""
    lns = office.lns
    for holding in lns.services.pool.holdings():
        holder = lns.services.registry.by_address.get(holding.address) if holding.used else None
        seconds = None if holding.used else int(holding.seconds)
        kept = f"[{holding.user}] {seconds}s" if holding.user else f"{seconds}s"
        yield {
            "address": str(holding.address),
            "used": holding.used,
            "session": holder.id if holder is not None else None,
            "user": holding.user,
            "free_seconds": seconds,
            "note": holding.user if holding.used else kept,
        }
    if everything:
        for address in lns.services.pool.never_used():
            yield {
                "address": str(address),
                "used": False,
                "session": None,
                "user": "",
                "free_seconds": None,
                "note": "",
            }


def show_pool(shell: Shell) -> Output:
    return _pool(shell.office, False)


def show_all_pool(shell: Shell) -> Output:
    return _pool(shell.office, True)


def _pool(office: Office, everything: bool) -> Output:
    pool = office.lns.services.pool

    def after() -> Iterator[str]:
        if not everything:
            yield "(Not displaying unused addresses)"
        yield ""
        yield f"Free: {pool.free}"
        yield f"Used: {pool.used}"

    return POOL.output(lambda: pool_rows(office, everything), after)


# RADIUS

RADIUS = Table(
    (
        Column("identifier", "Radius", 6),
        Column("state", "State", 6),
        Column("session", "Session", 9),
        Column("retry", "Retry", 10, lambda retry: str(int(retry))),
        Column("tries", "Try", 4),
        Column("server", "Server", 0),
    )
)
SERVERS = Table(
    (
        Column("server", "Server", -21),
        Column("kind", "For", -4),
        Column("state", "State", -7),
        Column("in_flight", "Waiting", 7),
        Column("requests", "Requests", 10),
        Column("retransmissions", "Repeated", 10),
        Column("answers", "Answers", 10),
        Column("timeouts", "Timeouts", 10),
        Column("not_authentic", "Forged", 8),
        Column("milliseconds", "ms", 7),
    )
)


def radius_clients(office: Office) -> tuple[tuple[str, Backend | Accounting], ...]:
    return ("auth", office.lns.services.backend), ("acct", office.lns.services.accounting)


def radius_rows(office: Office) -> Iterator[Row]:
    """Requests that wait for an answer; the time of the next try is the unix time that the manual promises."""
    for kind, client in radius_clients(office):
        for request in client.in_flight():
            yield {
                "identifier": request.identifier,
                "kind": kind,
                "state": "AUTH" if kind == "auth" else request.label,  # the words of 1.1: AUTH START STOP
                "session": request.session_id,
                "retry": round(request.next_try, 3),
                "tries": request.tries,
                "server": str(request.server),
            }


def server_rows(office: Office) -> Iterator[Row]:
    for kind, client in radius_clients(office):
        for report in client.report():
            stats = report.stats
            answers = stats.accepts + stats.rejects + stats.challenges + stats.responses
            yield {
                "server": str(report.address),
                "kind": kind,
                "state": "silent" if report.dead else "up",
                "in_flight": report.in_flight,
                "requests": stats.requests,
                "retransmissions": stats.retransmissions,
                "answers": answers,
                "accepts": stats.accepts,
                "rejects": stats.rejects,
                "timeouts": stats.timeouts,
                "not_authentic": stats.bad_authenticators,
                "milliseconds": round(1000 * stats.latency_sum / answers, 1) if answers else 0.0,
            }


def show_radius(shell: Shell) -> Output:
    return RADIUS.output(lambda: radius_rows(shell.office), lambda: _radius_use(shell.office))


def show_all_radius(shell: Shell) -> Output:
    """The requests, and what there is to say of each server."""
    office = shell.office

    def lines() -> Iterator[str]:
        yield from RADIUS.lines(radius_rows(office))
        yield from _radius_use(office)
        yield ""
        yield from SERVERS.lines(server_rows(office))

    return Output(lines, lambda: {"requests": list(radius_rows(office)), "servers": list(server_rows(office))})


def _radius_use(office: Office) -> Iterator[str]:
    """How many identifiers there are (a socket has 256, RFC 2865 3), and how many are taken."""
    used = room = 0
    for _, client in radius_clients(office):
        for report in client.report():
            used += report.in_flight
            room += report.identifiers
    yield ""
    yield f"Free: {room - used}"
    yield f"Used: {used}"


# Counters

SIDES = (("Ethernet", "tun"), ("Tunnel", "tunnel"))


def counter_values(office: Office, hidden: frozenset[str]) -> dict[str, Any]:
    values: dict[str, Any] = {name: value for name, _, value in office.lns.counters.items() if name not in hidden}
    values |= {count.name: count.value for count in office.plugins.counts}
    cleared = office.counters_cleared
    values["seconds_since_reset"] = round(monotonic() - (cleared or office.started))
    return values


def show_counters(shell: Shell) -> Output:
    office = shell.office
    hidden = frozenset[str]() if shell.privilege >= Privilege.ENABLED else PRIVATE

    def lines() -> Iterator[str]:
        values = counter_values(office, hidden)
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
        for name, help, value in office.lns.counters.items():
            if name not in shown and name not in hidden:
                yield f"{name:<26}{value:>14}  {help}"
        for count in office.plugins.counts:
            yield f"{count.name:<26}{count.value:>14}  {count.help}"
        yield ""
        yield f"Last counter reset {values['seconds_since_reset']} seconds ago"

    return Output(lines, lambda: counter_values(office, hidden))


_FIGURES = ("octets", "packets", "errors")


# The rest


def show_running_config(shell: Shell) -> Output:
    office = shell.office

    def data() -> Row:
        config = office.intended()
        lines = office.running_config().rstrip("\n").split("\n")
        return {"lines": [printable(line) for line in lines], "plugins": list(config.plugins)}

    return Output(lambda: office.running_config().rstrip("\n").split("\n"), data)


def show_version(shell: Shell) -> Output:
    python = platform.python_version()
    made_of = f"Python {python}, gevent {gevent.__version__}, Linux {platform.release()}"
    return Output(
        lambda: [f"L2TPNS {__version__}", f"ID: {made_of}"],
        lambda: {"version": __version__, "python": python, "gevent": gevent.__version__, "kernel": platform.release()},
    )


def show_banana(shell: Shell) -> Output:
    return Output(lambda: BANANA.strip("\n").split("\n"), lambda: {"banana": BANANA})


def show_log(shell: Shell, count: int = 100) -> Output:
    """The newest last."""
    kept = shell.office.log.tail(count)

    def entries() -> Iterator[Any]:
        return map(orjson.loads, kept)

    return Output(lambda: (f"{entry['time']} {log_line(entry)}" for entry in entries()), entries)


def show_access_lists(shell: Shell, *names: str) -> Output:
    filters = shell.office.config.filters
    for name in names:
        if name not in filters:
            raise Refused(f"There is no access-list {printable(name)}")
    chosen = [filters[name] for name in names or filters]

    def rows() -> Iterable[Row]:
        return ({"name": filter.name, "extended": filter.extended, "lines": list(filter.lines())} for filter in chosen)

    def lines() -> Iterator[str]:
        for filter in chosen:
            yield from filter.lines()
        if not chosen:
            yield "There is no access-list"

    return Output(lines, rows)


def uptime(shell: Shell) -> Output:
    office = shell.office
    now = time.strftime("%H:%M:%S")
    up = monotonic() - office.started
    users = len(office.lns.services.registry.by_address)
    load = os.getloadavg()
    first = f"{now} up {span(up)}, {users} users, load average: {load[0]:.2f}, {load[1]:.2f}, {load[2]:.2f}"
    return Output(
        lambda: [first, office.bandwidth()],
        lambda: {"seconds": int(up), "users": users, "load": list(load), "bandwidth": office.bandwidth()},
    )


def span(seconds: float) -> str:
    """`8 days, 2:07`, `12 mins`, `40 sec`."""
    days, rest = divmod(int(seconds), 86400)
    before = f"{days} day{'s' if days != 1 else ''}, " if days else ""
    if rest >= 3600 or days:
        return f"{before}{rest // 3600}:{rest % 3600 // 60:02}"
    if rest >= 60:
        return f"{rest // 60} min{'s' if rest >= 120 else ''}"
    return f"{rest} sec"


def _count(word: str) -> int:
    if not (word.isascii() and word.isdigit() and 0 < len(word) <= 6):
        raise ValueError(f'"{printable(word)}" is no number of lines')
    return int(word)


def _filter_names(office: Office) -> Iterator[tuple[str, str]]:
    for name in sorted(office.config.filters):
        yield name, "access-list"


FILTER_NAMES = Argument("NAME", "name of an access-list", _filter_names, optional=True, many=True)
_LINES = Argument("LINES", "how many lines", parse=_count, optional=True)

COMMANDS = (
    Command("show access-list", "packet filters", show_access_lists, (FILTER_NAMES,)),
    Command("show banana", "a banana", show_banana),
    Command("show counters", "what was counted since the start, or since `clear counters`", show_counters),
    Command("show log", "the last lines of the log", show_log, (_LINES,), privilege=Privilege.ENABLED),
    Command("show pool", "addresses of subscribers: in use, and kept for who had them", show_pool),
    Command("show pool all", "also the addresses that nobody ever had", show_all_pool),
    Command("show radius", "requests that wait for a RADIUS server", show_radius),
    Command("show radius all", "also the servers, and what they answered", show_all_radius),
    Command(
        "show running-config",
        "the configuration as it is now, with its secrets",
        show_running_config,
        privilege=Privilege.ENABLED,
    ),
    Command("show version", "which release this is", show_version),
    Command("uptime", "how long, how many, how fast", uptime),
    Command("write terminal", "the same as show running-config", show_running_config, privilege=Privilege.ENABLED),
)
