"""`show pool`, `show ipcache`: the addresses of subscribers (reference sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from l2tpns.console.commands.arguments import POOL_NAME
from l2tpns.console.context import ConsoleContext
from l2tpns.console.grammar import Command
from l2tpns.console.output import Column, Output, Refused, Row, Table
from l2tpns.runtime.text import printable

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell

POOL = Table(
    (
        Column("address", "IP Address", -15),
        Column("used", "Used", 4, lambda used: "Y" if used else "N"),
        Column("session", "Session", 8, lambda session: "" if session is None else str(session)),
        Column("note", "User", 0),
    )
)


def pool_rows(context: ConsoleContext, everything: bool, pool: str | None = None) -> Iterator[Row]:
    """Yield addresses in use, those kept for their last user and, with `everything`, those never assigned.

    `pool` is the name of the only pool to be shown, None: all.
    """
    lns = context.lns
    for name, holding in lns.services.pool.holdings():
        if pool not in (None, name):
            continue
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
            "pool": name,
        }
    if everything:
        for name, address in lns.services.pool.never_used():
            if pool not in (None, name):
                continue
            yield {
                "address": str(address),
                "used": False,
                "session": None,
                "user": "",
                "free_seconds": None,
                "note": "",
                "pool": name,
            }


def show_pool(shell: Shell, name: str | None = None) -> Output:
    return _pool(shell.context, False, name)


def show_all_pool(shell: Shell) -> Output:
    return _pool(shell.context, True)


def _pool(context: ConsoleContext, everything: bool, name: str | None = None) -> Output:
    pools = context.lns.services.pool
    shown = pools if name is None else pools.pool(name)
    if shown is None:
        raise Refused(f"There is no pool {printable(name or '')}")

    def after() -> Iterator[str]:
        if not everything:
            yield "(Not displaying unused addresses)"
        yield ""
        for each in pools.names if name is None and len(pools.names) > 1 else ():
            own = pools.pool(each)
            if own is not None:
                yield f"Pool {each or '(unnamed)'}: {own.free} free, {own.used} used"
        yield f"Free: {shown.free}"
        yield f"Used: {shown.used}"

    return POOL.output(lambda: pool_rows(context, everything, name), after)


IPCACHE = Table((Column("session", "Sess#", 5), Column("address", "IP Address", 0)))


def show_ipcache(shell: Shell) -> Output:
    """Show the addresses and networks that are routed to sessions."""
    lns = shell.context.lns

    def rows() -> Iterator[Row]:
        for address in sorted(lns.services.registry.by_address):
            session = lns.services.registry.by_address.get(address)
            if session is not None:
                yield {"session": session.id, "address": str(address), "routes": list(map(str, session.path.routes))}

    return IPCACHE.output(rows, lambda: (f"{len(lns.services.registry.by_address)} entries",))


COMMANDS = (
    Command("show ipcache", "addresses and the session that each is routed to", show_ipcache),
    Command("show pool", "address pools, or one: addresses in use, and those kept for users", show_pool, (POOL_NAME,)),
    Command("show pool all", "address pool, including addresses that were never assigned", show_all_pool),
)
