"""`show pool`, `show ipcache`: the addresses of subscribers (reference sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from l2tpns.console.context import ConsoleContext
from l2tpns.console.grammar import Command
from l2tpns.console.output import Column, Output, Row, Table

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


def pool_rows(context: ConsoleContext, everything: bool) -> Iterator[Row]:
    """Yield addresses in use, those kept for their last user and, with `everything`, those never assigned."""
    lns = context.lns
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
    return _pool(shell.context, False)


def show_all_pool(shell: Shell) -> Output:
    return _pool(shell.context, True)


def _pool(context: ConsoleContext, everything: bool) -> Output:
    pool = context.lns.services.pool

    def after() -> Iterator[str]:
        if not everything:
            yield "(Not displaying unused addresses)"
        yield ""
        yield f"Free: {pool.free}"
        yield f"Used: {pool.used}"

    return POOL.output(lambda: pool_rows(context, everything), after)


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
    Command("show pool", "address pool: addresses in use, and those kept for their last user", show_pool),
    Command("show pool all", "address pool, including addresses that were never assigned", show_all_pool),
)
