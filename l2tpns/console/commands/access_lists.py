"""Packet filters: `ip access-list` edits them rule by rule as in l2tpns 2.4.1; `filter` applies them to a user.

    HOST(config)# ip access-list extended web
    HOST(config-acl)# permit tcp any any eq 80

Each line takes effect at once, also for sessions that have the filter. config/access_list.py parses the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from l2tpns.config.access_list import AccessList, parse_head, parse_rule
from l2tpns.console.commands.arguments import ONE_USER, find_user
from l2tpns.console.context import ConsoleContext
from l2tpns.console.grammar import CONFIGURING, Argument, Command, Mode, change
from l2tpns.console.output import Output, Refused, Row
from l2tpns.policy import filters as filtering
from l2tpns.runtime.text import printable

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell


def access_list(shell: Shell, kind: str, name: str) -> str | None:
    """Enter the list's rules, creating it if needed. A new list drops everything until a rule permits something."""
    name, extended = parse_head((kind, name))
    filters = shell.context.config.filters
    known = filters.get(name)
    if known is not None and known.extended != extended:
        raise Refused(f"ip access-list: {name} is an access-list of the other kind already")
    shell.mode, shell.access_list = Mode.ACL, name
    if known is not None:
        return None
    shell.context.change_filters({**filters, name: AccessList(name, extended)})
    return f"{name} is new: until it permits something it drops everything"


def no_access_list(shell: Shell, kind: str, name: str) -> str | None:
    name, _ = parse_head((kind, name))
    filters = dict(shell.context.config.filters)
    if filters.pop(name, None) is None:
        raise Refused(f"There is no access-list {name}")
    shell.context.change_filters(filters)
    if shell.mode is Mode.ACL and shell.access_list == name:
        shell.mode = Mode.CONFIG
    users = sum(
        name in {f.name for f in (session.path.filter_in, session.path.filter_out) if f is not None}
        for session in shell.context.lns.sessions.values()
    )
    return f"{users} sessions have it, and keep the rules that it had" if users else None


def permit(shell: Shell, *words: str) -> str | None:
    return _add(shell, ("permit", *words))


def deny(shell: Shell, *words: str) -> str | None:
    return _add(shell, ("deny", *words))


def no_permit(shell: Shell, *words: str) -> None:
    _take_away(shell, ("permit", *words))


def no_deny(shell: Shell, *words: str) -> None:
    _take_away(shell, ("deny", *words))


def _add(shell: Shell, words: tuple[str, ...]) -> str | None:
    """Append a rule, unless the list has an equal one: a second one could never match."""
    inside = _inside(shell)
    rule = parse_rule(words, inside.extended)
    if rule in inside.rules:
        return f"{inside.name} has this rule already"
    _put(shell, inside.plus(rule))
    return None


def _take_away(shell: Shell, words: tuple[str, ...]) -> None:
    inside = _inside(shell)
    fewer = inside.minus(parse_rule(words, inside.extended))
    if fewer == inside:
        raise Refused(f"{inside.name} has no such rule")
    _put(shell, fewer)


def _inside(shell: Shell) -> AccessList:
    """Return the list being edited. Raises Refused if another console has removed it."""
    found = shell.context.config.filters.get(shell.access_list)
    if found is None:
        raise Refused(f"There is no access-list {shell.access_list} any more")
    return found


def _put(shell: Shell, changed: AccessList) -> None:
    shell.context.change_filters({**shell.context.config.filters, changed.name: changed})


def show_access_lists(shell: Shell, *names: str) -> Output:
    filters = shell.context.config.filters
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
            yield "No access lists are configured"

    return Output(lines, rows)


# A user's filters


def filter_user(shell: Shell, name: str, direction: str, filter_name: str) -> str:
    chosen = shell.context.config.filters.get(filter_name)
    if chosen is None:
        raise Refused(f"There is no access-list {printable(filter_name)}")
    for session in find_user(shell.context, name):
        if direction == "in":
            filtering.set_filters(session.services.plane, session, chosen, session.path.filter_out)
        else:
            filtering.set_filters(session.services.plane, session, session.path.filter_in, chosen)
    return f"Filtering user {name}: {direction} {filter_name}"


def no_filter_user(shell: Shell, name: str) -> str:
    for session in find_user(shell.context, name):
        filtering.set_filters(session.services.plane, session, None, None)
    return f"Not filtering user {name}"


# Arguments


def _kinds(context: ConsoleContext) -> Iterator[tuple[str, str]]:
    yield "standard", "match addresses only"
    yield "extended", "match protocol, addresses, ports and TCP flags"


def _names(context: ConsoleContext) -> Iterator[tuple[str, str]]:
    for _, filter in sorted(context.config.filters.items()):
        yield filter.name, f"{'extended' if filter.extended else 'standard'}, {len(filter.rules)} rules"


def _words(context: ConsoleContext) -> Iterator[tuple[str, str]]:
    """Yield the words of rules."""
    yield "any", "any address"
    yield "host", "a single address follows"
    for protocol in ("ip", "tcp", "udp", "icmp"):
        yield protocol, "protocol; required first word of an extended rule"
    for operator in ("eq", "neq", "lt", "gt"):
        yield operator, "a port follows; goes after an address"
    yield "range", "first and last port follow; goes after an address"
    yield "established", "TCP packets with ACK or RST set and SYN clear"
    yield "match-any", "at least one of these TCP flags: +syn -ack ..."
    yield "match-all", "all of these TCP flags: +syn -ack ..."
    yield "fragments", "non-initial fragments only"


def _directions(context: ConsoleContext) -> Iterator[tuple[str, str]]:
    yield "in", "packets from the user"
    yield "out", "packets to the user"


KIND = Argument("KIND", "standard or extended", _kinds, closed=True)
NAME = Argument("NAME", "name of an access-list", _names)
SOME_NAMES = Argument("NAME", "name of an access-list", _names, optional=True, many=True)
DIRECTION = Argument("DIRECTION", "in or out", _directions, closed=True)
RULE = Argument("RULE", "[ip|tcp|udp|icmp] SOURCE [PORTS] [DESTINATION [PORTS] [FLAGS]]", _words, many=True)


COMMANDS = (
    change("deny", "drop packets that match", deny, RULE, modes=(Mode.ACL,)),
    change("filter", "apply a packet filter to a user's sessions", filter_user, ONE_USER, DIRECTION, NAME),
    change("ip access-list", "create or edit a packet filter", access_list, KIND, NAME, modes=CONFIGURING),
    change("no deny", "remove this deny rule", no_deny, RULE, modes=(Mode.ACL,)),
    change("no filter", "remove the packet filters from a user's sessions", no_filter_user, ONE_USER),
    change("no ip access-list", "remove a packet filter", no_access_list, KIND, NAME, modes=CONFIGURING),
    change("no permit", "remove this permit rule", no_permit, RULE, modes=(Mode.ACL,)),
    change("permit", "pass packets that match", permit, RULE, modes=(Mode.ACL,)),
    Command("show access-list", "packet filters and their rules", show_access_lists, (SOME_NAMES,)),
)
